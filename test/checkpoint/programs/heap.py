"""500 MB of data that no compression and no merging of pages makes smaller."""

import hashlib
import os

from harness import expect, run

PARTS = 500
memory = [os.urandom(1 << 20) for _ in range(PARTS)]
digests = [hashlib.sha1(part).digest() for part in memory]
checks = 0


def check():
    global checks
    checks += 1
    for number in range(PARTS):
        expect(f'part {number}', hashlib.sha1(memory[number]).digest(), digests[number])
    return {'checks': checks}


run(check)
