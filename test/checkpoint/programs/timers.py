"""Timers of every kind that the kernel has: each must fire again after a wake."""

import ctypes
import os
import select
import signal
import struct
import threading
import time

from harness import LIBC, expect, later, libc, run

PERIOD_S = 0.1
# Longer than the program lives.
ALARM_S = 3600
CLOCKS = {'real': time.CLOCK_REALTIME, 'monotonic': time.CLOCK_MONOTONIC, 'boot': time.CLOCK_BOOTTIME}
SIGEV_SIGNAL = 0
counts = {}


def tick(name, times=1):
    counts[name] = counts.get(name, 0) + times


def interval(seconds):
    """struct itimerspec"""
    nanoseconds = int(seconds * 1e9)
    return struct.pack('qqqq', 0, nanoseconds, 0, nanoseconds)


def timerfd(name, clock):
    fd = libc('timerfd_create', clock, 0)
    libc('timerfd_settime', fd, 0, interval(PERIOD_S), None)
    while True:
        tick(f'timerfd {name}', struct.unpack('Q', os.read(fd, 8))[0])


def posix_timer(name, clock, number):
    signal.signal(number, lambda *_: tick(f'POSIX timer {name}'))
    # struct sigevent: value, signal, kind of notice
    event = struct.pack('qii', 0, number, SIGEV_SIGNAL).ljust(64, b'\0')
    timer = ctypes.c_void_p()
    libc('timer_create', clock, event, ctypes.byref(timer))
    LIBC.timer_settime.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    libc('timer_settime', timer, 0, interval(PERIOD_S), None)


def sleeper():
    while True:
        time.sleep(PERIOD_S)
        tick('sleep')


def waiter():
    never = threading.Event()
    while True:
        never.wait(PERIOD_S)
        tick('wait for a condition, with timeout')


def poller():
    reader, _writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)
    while True:
        poll.poll(PERIOD_S)
        tick('epoll, with timeout')


for name, clock in CLOCKS.items():
    later(lambda name=name, clock=clock: timerfd(name, clock))
for number, (name, clock) in enumerate(CLOCKS.items()):
    posix_timer(name, clock, signal.SIGRTMIN + number)
signal.signal(signal.SIGALRM, lambda *_: os._exit(71))
signal.alarm(ALARM_S)
for work in (sleeper, waiter, poller):
    later(work)


def check():
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    expect('a running alarm', 0 < left <= ALARM_S, True)
    return {**counts, 'time of an alarm, in ms': ALARM_S * 1000 - left * 1000}


run(check)
# Signals are handled by the first thread: it must be there to handle them.
while True:
    signal.pause()
