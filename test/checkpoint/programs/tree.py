"""
A tree of processes, each with two children behind pipes down to three levels, beside it a daemon that has let go of its
parent, a child that has ended and was not waited for, and one that is stopped.
"""

import os
import signal
import subprocess
import sys
import time

LEVELS = 3
ENDED_WITH = 42
BEATS = '/agent/data/beats'


def member(level):
    """Answers each number that comes with the pids of its branch, and minds that none is missed or comes twice."""
    branch = children(level)
    wanted = 1
    for line in sys.stdin:
        if int(line) != wanted:
            sys.exit(f'level {level} got {line!r}, not {wanted}')
        wanted += 1
        pids = [str(os.getpid())] + [pid for child in branch for pid in told(child, line)]
        print(' '.join(pids), flush=True)


def children(level):
    if level == LEVELS:
        return []
    command = [sys.executable, __file__, str(level + 1)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'bufsize': 1}
    return [subprocess.Popen(command, **pipes) for _ in range(2)]


def told(child, line):
    child.stdin.write(line)
    child.stdin.flush()
    return child.stdout.readline().split()


def daemon():
    """Counts in a file; a child of pid 1, in a session of its own."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    with open(BEATS, 'a', buffering=1) as beats:
        number = 0
        while True:
            time.sleep(0.05)
            number += 1
            beats.write(f'{number}\n')


def has_ended():
    """A child that ended and is not waited for."""
    pid = os.fork()
    if pid == 0:
        os._exit(ENDED_WITH)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def stopped():
    """A child that stopped itself; it ends once it is told to go on."""
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(ENDED_WITH)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    return pid


if len(sys.argv) > 1:
    member(int(sys.argv[1]))
    sys.exit()

from harness import expect, run  # noqa: E402: members of the tree have no use for it

daemon()
branch = children(0)
checks = 0
pids = None
ended = has_ended()
stop = stopped()


def check():
    global checks, pids, ended, stop
    checks += 1
    now = [told(child, f'{checks}\n') for child in branch]
    expect('processes of the tree', sum(map(len, now)), 2 * (2**LEVELS - 1))
    expect('pids of the tree', now, pids or now)
    pids = now
    expect('how the ended child ended', os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]), ENDED_WITH)
    expect('the stopped child', os.waitpid(stop, os.WNOHANG), (0, 0))
    os.kill(stop, signal.SIGCONT)
    expect('how the stopped child ended', os.waitstatus_to_exitcode(os.waitpid(stop, 0)[1]), ENDED_WITH)
    ended, stop = has_ended(), stopped()
    beats = open(BEATS).read().split()
    expect('beats', beats, [str(number + 1) for number in range(len(beats))])
    return {'checks': checks, 'beats of the daemon': len(beats)}


run(check)
