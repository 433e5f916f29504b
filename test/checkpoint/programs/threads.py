"""200 threads, each of which waits for work and counts what it got."""

import queue
import threading

from harness import expect, later, run

THREADS = 200
inboxes = [queue.SimpleQueue() for _ in range(THREADS)]
outbox = queue.SimpleQueue()
local = threading.local()
checks = 0


def worker(number):
    local.done = 0
    while True:
        task = inboxes[number].get()
        local.done += 1
        outbox.put((number, task, local.done, threading.get_native_id()))


def round_trip():
    for inbox in inboxes:
        inbox.put(checks)
    return sorted(outbox.get(timeout=20) for _ in range(THREADS))


def check():
    global checks
    checks += 1
    wanted = [(number, checks, checks + 1, native_ids[number]) for number in range(THREADS)]
    expect('what the threads did', round_trip(), wanted)
    return {'checks': checks}


for index in range(THREADS):
    later(lambda index=index: worker(index))
native_ids = [native_id for _, _, _, native_id in round_trip()]
run(check)
