#!/usr/bin/env python3
"""Freezes single threads of another process, all the time or nine tenths of it.

freeze.py THREAD...          until the process is gone or this program is ended
freeze.py --slow THREAD...   9 of 10 parts of the time, in slices
freeze.py --busy THREAD      the same as the first, in the midst of a computation

Runs as a systemd service of Type=notify, which has started when the threads stand. A SIGSTOP stops whole processes; one thread alone can only be stopped by a tracer. A tracer must not hold up
the death that it provokes: it hands on every signal, and reaps the threads that it traces.
"""

import ctypes
import os
import socket
import sys
import time

PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 0x4206, 0x4207
PTRACE_EVENT_STOP = 128
WALL = 0x40000000  # __WALL: threads too, which are no children
FROZEN_S, RUNNING_S = 0.045, 0.005

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread, data=0):
    if libc.ptrace(request, thread, None, data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def reap(threads, held):
    """Takes all that the kernel reports; `held` becomes the threads that stand where we want them."""
    while threads:
        try:
            thread, status = os.waitpid(-1, WALL | os.WNOHANG)
        except ChildProcessError:
            threads.clear()
            return
        if thread == 0:
            return
        if not os.WIFSTOPPED(status):
            threads.discard(thread)
            held.discard(thread)
        elif status >> 16 == PTRACE_EVENT_STOP:
            held.add(thread)
        else:
            # Only for the time in which it runs: its signal is its own, and must come through.
            resume(thread, os.WSTOPSIG(status))


def resume(thread, signal_number=0):
    try:
        ptrace(PTRACE_CONT, thread, signal_number)
    except ProcessLookupError:
        pass  # It is being killed, and stops for nobody.


def interrupt(thread):
    try:
        ptrace(PTRACE_INTERRUPT, thread)
    except ProcessLookupError:
        pass


def say_ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])


def computes(thread):
    """Whether a thread that stands has been stopped between two system calls."""
    with open(f"/proc/{thread}/syscall") as at:
        return at.read().startswith("-1 ")


def main(arguments):
    way = arguments.pop(0) if arguments[0].startswith("--") else ""
    threads = {int(thread) for thread in arguments}
    held = set()
    for thread in threads:
        ptrace(PTRACE_SEIZE, thread)
        interrupt(thread)
    while threads - held:
        reap(threads, held)
        for thread in [thread for thread in held if way == "--busy" and not computes(thread)]:
            held.discard(thread)
            resume(thread)
            time.sleep(RUNNING_S)
            interrupt(thread)
    say_ready()
    while threads:
        time.sleep(FROZEN_S)
        reap(threads, held)
        if way == "--slow":
            for thread in held:
                resume(thread)
            held.clear()
            time.sleep(RUNNING_S)
            reap(threads, held)
            for thread in threads - held:
                interrupt(thread)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
