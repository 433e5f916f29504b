"""A common Python program: data in memory, an event loop, a child behind pipes, SQLite."""

import asyncio
import hashlib
import os
import sqlite3
import subprocess

from harness import expect, later, run

memory = os.urandom(40 << 20)
digest = hashlib.sha256(memory).digest()
child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
database = sqlite3.connect('/agent/data/python.db', check_same_thread=False)
database.execute('pragma journal_mode = wal')
database.execute('create table beats (number integer primary key)')
beats = 0
checks = 0


async def beat():
    global beats
    while True:
        await asyncio.sleep(0.05)
        beats += 1


def check():
    global checks
    checks += 1
    expect('memory', hashlib.sha256(memory).digest(), digest)
    child.stdin.write(b'%d\n' % checks)
    child.stdin.flush()
    expect('echo of the child', child.stdout.readline(), b'%d\n' % checks)
    with database:
        database.execute('insert into beats values (?)', (checks,))
    expect('rows', database.execute('select count(*) from beats').fetchone(), (checks,))
    return {'checks': checks, 'beats of the event loop': beats}


later(lambda: asyncio.run(beat()))
run(check)
