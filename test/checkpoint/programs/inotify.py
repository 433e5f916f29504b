"""Watches of directories and files, as editors, test runners and coding agents set them by the hundred."""

import os
import select
import struct

from harness import expect, libc, run

CREATED, MODIFIED, DELETED = 0x100, 0x2, 0x200
NONBLOCK = 0o4000
DIRECTORIES = ['/agent/data/watched', '/agent/code/watched', '/root/watched', '/tmp/watched', '/usr/local/watched', '/etc/watched']
MANY = 300
HEADER = struct.Struct('iIII')

watches = libc('inotify_init1', NONBLOCK)
names = {}
checks = 0


def watch(path, mask):
    names[libc('inotify_add_watch', watches, path.encode(), mask)] = path


def events():
    """What happened since the last look, sorted; waits for the first of it."""
    seen = []
    while select.select([watches], [], [], 0 if seen else 10)[0]:
        data = os.read(watches, 1 << 16)
        while data:
            number, mask, _, length = HEADER.unpack_from(data)
            name = data[HEADER.size : HEADER.size + length].rstrip(b'\0').decode()
            seen.append((names[number], mask, name))
            data = data[HEADER.size + length :]
    return sorted(seen)


def check():
    global checks
    checks += 1
    name = f'new-{checks}'
    for directory in DIRECTORIES:
        open(f'{directory}/{name}', 'w').close()
    with open('/agent/data/file', 'a') as file:
        file.write('more\n')
    for directory in DIRECTORIES:
        os.unlink(f'{directory}/{name}')
    wanted = [(directory, mask, name) for directory in DIRECTORIES for mask in (CREATED, DELETED)]
    expect('events', events(), sorted([*wanted, ('/agent/data/file', MODIFIED, '')]))
    return {'checks': checks}


for directory in DIRECTORIES:
    os.makedirs(directory)
    watch(directory, CREATED | DELETED)
for number in range(MANY):
    os.makedirs(f'/agent/data/tree/{number}')
    watch(f'/agent/data/tree/{number}', CREATED)
open('/agent/data/file', 'w').close()
watch('/agent/data/file', MODIFIED)
run(check)
