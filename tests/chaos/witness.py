#!/usr/bin/env python3
"""Sees from outside how the service ends and how it comes back. Times are Unix time in seconds.

witness.py death PID SECONDS   waits for the process to end; prints JSON: when and how, and the last pet
witness.py ready PID SECONDS   waits for another process than PID to be ready; prints since when
witness.py states              prints each new state: when, process, systemd's word, the service's first word
witness.py broker SECONDS      waits for the broker to answer; prints since when
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

UNIT = "embeddings.service"
POLL_S = 0.25
# waitid(2): si_code
EXITED = "1"


def show(*names):
    command = ["systemctl", "show", UNIT] + [f"--property={name}" for name in names]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def unix_time(monotonic_usec):
    """None for a time stamp that systemd has not set."""
    return float(monotonic_usec) / 1e6 + (time.time() - time.monotonic()) if int(monotonic_usec) else None


def death(pid, seconds):
    process = os.pidfd_open(pid)
    deadline = time.monotonic() + seconds
    print("watching", flush=True)
    seen = {"died": False, "pet": None}
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if select.select([process], [], [], min(POLL_S, left))[0]:
            seen |= {"died": True, "at": time.time()} | how_it_ended(pid)
            break
        state = show("MainPID", "WatchdogTimestampMonotonic")
        if state["MainPID"] == str(pid):
            seen["pet"] = unix_time(state["WatchdogTimestampMonotonic"])
    print(json.dumps(seen))


def how_it_ended(pid):
    """As systemd has it, within the pause before it starts another."""
    while True:
        state = show("ExecMainPID", "ExecMainCode", "ExecMainStatus", "ExecMainExitTimestampMonotonic", "Result")
        if state["ExecMainPID"] != str(pid):
            return {"exit": "unknown", "result": "unknown"}
        if int(state["ExecMainExitTimestampMonotonic"]):
            break
        time.sleep(0.02)
    status = int(state["ExecMainStatus"])
    end = str(status) if state["ExecMainCode"] == EXITED else signal.Signals(status).name
    return {"exit": end, "result": state["Result"]}


def ready(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = show("MainPID", "ActiveState", "ActiveEnterTimestampMonotonic")
        if state["ActiveState"] == "active" and state["MainPID"] not in ("0", str(pid)):
            print(unix_time(state["ActiveEnterTimestampMonotonic"]))
            return
        time.sleep(POLL_S)
    sys.exit(f"not ready within {seconds} s: {show('ActiveState', 'SubState', 'StatusText')}")


def states():
    before = None
    while True:
        seen = show("MainPID", "ActiveState", "StatusText")
        said = seen["StatusText"].split(maxsplit=1) or ["-"]
        state = seen["MainPID"], seen["ActiveState"], said[0]
        if state != before:
            print(time.time(), *state, flush=True)
            before = state
        time.sleep(POLL_S)


def broker(seconds):
    import pika
    from load import FAILURES

    # The address that the service uses too.
    patience = {"socket_timeout": 2, "stack_timeout": 5, "blocked_connection_timeout": 5}
    address = pika.ConnectionParameters("127.0.0.1", **patience)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection = pika.BlockingConnection(address)
            print(time.time())
            connection.close()
            return
        except FAILURES:
            time.sleep(0.2)
    sys.exit(f"no broker within {seconds} s")


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    if command == "death":
        death(int(rest[0]), float(rest[1]))
    elif command == "ready":
        ready(int(rest[0]), float(rest[1]))
    elif command == "states":
        states()
    elif command == "broker":
        broker(float(rest[0]))
    else:
        sys.exit(__doc__)
