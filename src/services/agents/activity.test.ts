import { expect, test } from 'bun:test'
import { Activity } from './activity.ts'

test('requests and WebSockets are counted while they are open, and what comes from outside is an arrival', () => {
  const activity = new Activity()
  let arrivals = 0
  const begin = () =>
    activity.begin(() => {
      arrivals++
    })
  const [request, socket] = [begin(), begin()]
  expect([activity.openRequests, activity.openWebSockets, arrivals]).toEqual([2, 0, 2])
  socket.upgraded()
  socket.touch()
  expect([activity.openRequests, activity.openWebSockets, arrivals]).toEqual([1, 1, 3])
  request.end()
  socket.end()
  expect([activity.openRequests, activity.openWebSockets, arrivals]).toEqual([0, 0, 3])
  expect(activity.lastAt).toBeLessThanOrEqual(performance.now())
})

test('is in use while a request, a WebSocket or a lease is open, and remembers when that ended', () => {
  const activity = new Activity()
  expect(activity.inUse).toBe(false)
  const request = activity.begin(() => undefined)
  expect(activity.inUse).toBe(true)
  request.upgraded()
  expect(activity.inUse).toBe(true)
  request.end()
  expect(activity.inUse).toBe(false)

  const [one, other] = [activity.lease(), activity.lease()]
  one()
  one()
  expect(activity.inUse).toBe(true)
  const before = performance.now()
  other()
  expect(activity.inUse).toBe(false)
  expect(activity.lastAt).toBeGreaterThanOrEqual(before)
})
