"""A shell behind a pseudoterminal, as agents run commands that want one."""

import os
import pty
import select
import struct
import termios
import fcntl

from harness import expect, run

ROWS, COLUMNS = 41, 133
checks = 0
shell, master = pty.fork()
if shell == 0:
    os.execv('/bin/bash', ['bash', '--norc', '-i'])


def read_until(mark):
    text = b''
    while mark not in text:
        if not select.select([master], [], [], 10)[0]:
            raise AssertionError(f'the terminal says {text!r}, and not {mark!r}')
        text += os.read(master, 4096)
    return text


def check():
    global checks
    checks += 1
    os.write(master, b'count=$((count + 1)); echo "<$count $$ $(stty size)>"; sleep 1000 & jobs | wc -l; kill %1; wait; echo "end"-"of"\n')
    told = read_until(b'end-of')
    expect('what the shell said', b'<%d %d %d %d>' % (checks, shell, ROWS, COLUMNS) in told, True)
    expect('who is in front', os.tcgetpgrp(master), shell)
    return {'checks': checks}


fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', ROWS, COLUMNS, 0, 0))
run(check)
