"""The workers and the nodes of a soak, and the harm that is done to them."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

# As systemd's RestartSec, roughly.
RESTART_S = 1.0
REASONS = {70: "broker_disconnected", 71: "no_progress", 72: "engine_corrupt", 78: "config_error"}
# What a session that ends says in the log.
LOST = "lost the broker"


class Worker(threading.Thread):
    """`embeddings serve`, started again whenever it ends, with directories of its own."""

    def __init__(self, number, binary, config, directory):
        super().__init__(daemon=True)
        self.number, self.binary, self.config, self.directory = number, binary, config, Path(directory)
        self.directory.mkdir()
        self.process, self.began, self.ended, self.stopping = None, None, [], False
        # When this worker lost a session and lived on.
        self.sessions_lost = []
        # What we did to it, for telling our signals from others'.
        self.signalled = set()
        # (time, age, resident KiB)
        self.memory = []

    def run(self):
        with open(self.directory / "log", "a") as log:
            while not self.stopping:
                self.serve(log)
                if not self.stopping:
                    time.sleep(RESTART_S)

    def serve(self, log):
        places = {name: str(self.directory) for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY")}
        command = [self.binary, "serve", "--config", str(self.config)]
        self.process = subprocess.Popen(
            command, env=os.environ | places, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.began = time.monotonic()
        for line in self.process.stdout:
            log.write(line)
            log.flush()
            if LOST in line:
                self.sessions_lost.append(time.monotonic())
        code = self.process.wait()
        if not self.stopping:
            self.ended.append((time.monotonic(), self.reason(code)))
        self.process = None

    def reason(self, code):
        if code == -signal.SIGKILL and signal.SIGKILL in self.signalled:
            return "SIGKILL (ours)"
        # One that has just been started dies of it; systemd counts both as a clean end.
        if code in (0, -signal.SIGTERM) and signal.SIGTERM in self.signalled:
            return "SIGTERM (ours)"
        return REASONS.get(code, f"status {code}")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        process = self.process
        if process and process.poll() is None:
            self.signalled.add(number)
            process.send_signal(number)

    def stop(self):
        self.stopping = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self.join(15)
        self.signal(signal.SIGKILL)

    def sample(self):
        process, began = self.process, self.began
        if not process:
            return
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmRSS"):
                now = time.monotonic()
                self.memory.append((now, now - began, int(line.split()[1])))


class Nodes:
    """The RabbitMQ nodes that scripts/with-broker brought."""

    def __init__(self, scripts, count):
        self.tool, self.count = str(Path(scripts) / "broker-node"), count
        self.directory = os.environ["WITH_BROKER_DIR"]

    def kill(self, number):
        subprocess.run([self.tool, "kill", str(number)], check=False)

    def start(self, number):
        subprocess.run([self.tool, "start", str(number)], check=True, stdout=subprocess.DEVNULL)

    def tool_output(self, number, *command):
        """What a command of RabbitMQ's says on this node; None if it fails or takes too long."""
        script = f'. {self.directory}/node-{number}/env && exec /usr/lib/rabbitmq/bin/"$@"'
        try:
            done = subprocess.run(
                ["sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=60, check=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        return done.stdout

    def name(self, number):
        with open(f"{self.directory}/node-{number}/env") as env:
            words = env.read().split()
        return next(word.split("=")[1] for word in words if word.startswith("RABBITMQ_NODENAME="))

    def queues(self, number):
        """Per quorum queue: leader, and how many members are online."""
        said = self.tool_output(number, "rabbitmqctl", "-q", "--no-table-headers", "list_queues", "name", "leader", "online")
        rows = [line.split("\t") for line in (said or "").splitlines()]
        return {row[0]: (row[1], row[2].count("@")) for row in rows if len(row) == 3 and "@" in row[2]}

    def leads(self, number, queues):
        return sum(leader == self.name(number) for leader, _ in queues.values())

    def whole(self, queues):
        """Whether each queue has all its members online."""
        return bool(queues) and all(online == self.count for _, online in queues.values())
