"""A process that another one traces, as below a debugger."""

import os
import signal

from harness import expect, libc, run

checks = 0
commands, to_debugger = os.pipe()
from_debugger, answers = os.pipe()


def debugger():
    """Traces a child and says for each byte whether it still holds it."""
    child = os.fork()
    if child == 0:
        libc('ptrace', 0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    while os.read(commands, 1):
        state = open(f'/proc/{child}/status').read().split('State:')[1].split()[0]
        os.write(answers, state.encode())


pid = os.fork()
if pid == 0:
    os.close(to_debugger)
    debugger()
    os._exit(0)


def check():
    global checks
    checks += 1
    os.write(to_debugger, b'?')
    expect('state of the traced process', os.read(from_debugger, 1), b't')
    return {'checks': checks}


run(check)
