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
  expect(activity.lastAt).toBeLessThanOrEqual(Date.now())
})
