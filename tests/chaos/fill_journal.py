#!/usr/bin/env python3
"""Sends to the journal until its socket takes no more; needs a journald that does not read."""

import socket

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
    journal.setblocking(False)
    try:
        while True:
            journal.sendto(b"MESSAGE=filling\nPRIORITY=7\n", "/run/systemd/journal/socket")
    except BlockingIOError:
        pass
