/** Loaded into an orb under test ahead of its own code: SIGUSR2 makes a callback throw and a promise be rejected that nobody has. */
process.on('SIGUSR2', () => {
  setTimeout(() => void Promise.reject(new Error('rejected for the test')), 0)
  setTimeout(() => {
    throw new Error('thrown for the test')
  }, 0)
})
