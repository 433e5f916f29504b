"""Files in every state that they can be held open in."""

import fcntl
import mmap
import os
import tempfile
from multiprocessing import shared_memory

from harness import expect, run

DATA = os.urandom(3 << 20)
SMALL = b'still readable'
HERE = '/agent/data'
checks = 0


def written(path, data):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, data)
    return fd


reader = written(f'{HERE}/read', DATA)
os.lseek(reader, 0, os.SEEK_SET)
log = os.open(f'{HERE}/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
deleted = written(f'{HERE}/deleted', DATA)
os.unlink(f'{HERE}/deleted')
in_tmp = written('/tmp/deleted', SMALL)
os.unlink('/tmp/deleted')
linked = written(f'{HERE}/linked', SMALL)
os.link(f'{HERE}/linked', f'{HERE}/other-name')
os.unlink(f'{HERE}/linked')
renamed = written(f'{HERE}/before', SMALL)
os.rename(f'{HERE}/before', f'{HERE}/after')
unnamed = os.open(HERE, os.O_TMPFILE | os.O_RDWR)
os.write(unnamed, SMALL)
anonymous = os.memfd_create('anonymous')
os.write(anonymous, DATA)
replaced = written(f'{HERE}/replaced', SMALL)
written(f'{HERE}/replacement', DATA)
os.rename(f'{HERE}/replacement', f'{HERE}/replaced')
locked = written(f'{HERE}/locked', SMALL)
fcntl.flock(locked, fcntl.LOCK_EX)
record_locked = written(f'{HERE}/record-locked', SMALL)
fcntl.lockf(record_locked, fcntl.LOCK_EX, 4)
os.mkdir(f'{HERE}/gone')
directory = os.open(f'{HERE}/gone', os.O_RDONLY)
os.rmdir(f'{HERE}/gone')
usr = os.open('/usr/bin/env', os.O_RDONLY)
env = os.pread(usr, 4096, 0)
mapped_fd = written(f'{HERE}/mapped', bytes(8192))
mapped = mmap.mmap(mapped_fd, 8192)
mapped_deleted_fd = written(f'{HERE}/mapped-deleted', bytes(8192))
mapped_deleted = mmap.mmap(mapped_deleted_fd, 8192)
os.unlink(f'{HERE}/mapped-deleted')
shm = shared_memory.SharedMemory('matrix', create=True, size=1 << 20)
shm_deleted = tempfile.TemporaryFile(dir='/dev/shm')
shm_deleted.write(SMALL)
shm_deleted.flush()
fifo_path = f'{HERE}/fifo'
os.mkfifo(fifo_path)
fifo = os.open(fifo_path, os.O_RDWR)
os.write(fifo, b'in the fifo')
pipe_reader, pipe_writer = os.pipe()
os.write(pipe_writer, b'in the pipe')
device = os.open('/dev/urandom', os.O_RDONLY)
null = os.open('/dev/null', os.O_RDWR)
proc = os.open('/proc/self/status', os.O_RDONLY)


def check():
    global checks
    checks += 1
    step = 4096
    at = (checks - 1) * step
    expect('position of a file', os.lseek(reader, 0, os.SEEK_CUR), at)
    expect('a file', os.read(reader, step), DATA[at : at + step])
    os.write(log, b'%d\n' % checks)
    with open(f'{HERE}/log') as lines:
        expect('lines of a log', lines.read().split(), [str(n + 1) for n in range(checks)])
    expect('a deleted file', os.pread(deleted, len(DATA), 0), DATA)
    for what, fd in [('in /tmp', in_tmp), ('hard-linked', linked), ('renamed', renamed), ('unnamed', unnamed), ('replaced', replaced)]:
        expect(f'a file, {what}', os.pread(fd, 100, 0), SMALL)
    expect('a memfd', os.pread(anonymous, len(DATA), 0), DATA)
    expect('the other name of a file', open(f'{HERE}/other-name', 'rb').read(), SMALL)
    expect('what replaced a file', open(f'{HERE}/replaced', 'rb').read(), DATA)
    expect('links of the deleted', [os.fstat(fd).st_nlink for fd in (deleted, in_tmp, unnamed, directory)], [0, 0, 0, 0])
    expect('a file of /usr', os.pread(usr, 4096, 0), env)
    for what, memory in [('mapped', mapped), ('mapped, deleted', mapped_deleted), ('shared', shm.buf)]:
        expect(f'{what} memory', int.from_bytes(memory[:8], 'little'), checks - 1)
        memory[:8] = checks.to_bytes(8, 'little')
    expect('a mapped file', int.from_bytes(os.pread(mapped_fd, 8, 0), 'little'), checks)
    expect('a mapped deleted file', int.from_bytes(os.pread(mapped_deleted_fd, 8, 0), 'little'), checks)
    expect('a deleted file in /dev/shm', os.pread(shm_deleted.fileno(), 100, 0), SMALL)
    for what, source, sink in [('fifo', fifo, fifo), ('pipe', pipe_reader, pipe_writer)]:
        expect(f'a {what}', os.read(source, 100), b'in the %s' % what.encode())
        os.write(sink, b'in the %s' % what.encode())
    expect('a device', len(os.read(device, 16)), 16)
    os.write(null, b'nothing')
    expect('/proc/self', b'Name:' in os.pread(proc, 100, 0), True)
    expect('locks', [held(f'{HERE}/locked', fcntl.flock), held(f'{HERE}/record-locked', fcntl.lockf)], [True, True])
    return {'checks': checks}


def held(path, lock):
    """Whether another process finds it locked."""
    pid = os.fork()
    if pid == 0:
        try:
            lock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


run(check)
