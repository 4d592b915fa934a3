#!/usr/bin/env python3
"""Sends to the journal until its socket takes no more from anybody; needs a journald that does not read."""

import socket


def fill(sender):
    """How many messages went in. What one sender may have under way is bounded too."""
    sender.setblocking(False)
    sent = 0
    try:
        while True:
            sender.sendto(b"MESSAGE=filling\nPRIORITY=7\n", "/run/systemd/journal/socket")
            sent += 1
    except BlockingIOError:
        return sent


while fill(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)):
    pass
