#!/usr/bin/env python3
"""Many jobs through several workers and a cluster, while both are killed at random; and the count of every job.

Runs inside `scripts/with-broker --nodes N`. Shares no code with the service. Fails if a job has no answer, an index of a
streamed job is missing, a vector is not what it is undisturbed, something stays behind in a queue, or more is computed again
than one slice for each death.
"""

import argparse
import array
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "soak"))

import callers  # noqa: E402
import fleet  # noqa: E402
import harm  # noqa: E402
import report  # noqa: E402

# Longest time without a single answer while some are owed: a cluster without a quorum is away for less.
SILENCE_S = 120
# A second answer to a job comes, if at all, close behind the others.
LATE_S = 3
SAMPLE_S = 2
QUEUES = ("interactive", "bulk", "resumed", "dead") + tuple(f"resumed.after-{s}s" for s in (1, 4, 16, 60))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100, help="times that something is killed, stopped or frozen")
    parser.add_argument("--streams", type=int, help="streamed jobs among them; one in a thousand unless told")
    parser.add_argument("--stream-inputs", type=int, default=2000, help="inputs of the largest one")
    parser.add_argument("--harm", default="", help="regular expression; only such harm is done")
    parser.add_argument("--outstanding", type=int, default=400, help="jobs that are not answered yet, at most")
    parser.add_argument("--publishers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True, help="its folder")
    parser.add_argument("--scripts", default=str(HERE.parent.parent / "scripts"), help="where broker-node is")
    parser.add_argument("--logs", help="folder that keeps the workers' logs; a temporary one unless told")
    parser.add_argument("--report", help="document whose section on this system is written anew")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    if options.streams is None:
        options.streams = max(1, options.jobs // 1000)
    return options


def undisturbed(options, pool):
    """The vector of each text, computed by the engine alone."""
    lines = "".join(json.dumps(text) + "\n" for text in pool)
    command = [options.binary, "embed", "--model", options.model]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [array.array("f", json.loads(line)) for line in done.stdout.splitlines()]


def configuration(options, url, path):
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    path.write_text(
        f'[broker]\nurl = "{url}"\n[http]\nlisten = ""\n[engine]\nthreads = {threads}\n'
        f'[models."all-MiniLM-L6-v2"]\npath = "{options.model}"\n'
    )


class Soak:
    def __init__(self, options, directory):
        self.options, self.directory = options, directory
        self.url = os.environ["EMBED_BROKER__URL"]
        ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.url)]
        self.broker = callers.Broker(ports)
        self.nodes = fleet.Nodes(options.scripts, len(ports))
        self.going = True
        streams = callers.schedule_streams(options.seed, options.jobs, options.streams, options.stream_inputs)
        pool = callers.texts(options.seed)
        self.ledger = callers.Ledger(
            options.seed, options.jobs, streams, options.outstanding, pool, undisturbed(options, pool)
        )
        config = directory / "embeddings.toml"
        configuration(options, self.url, config)
        self.workers = [
            fleet.Worker(number, options.binary, config, directory / f"worker-{number}")
            for number in range(1, options.workers + 1)
        ]
        inputs = sum(callers.Job(options.seed, number, streams).count for number in range(options.jobs))
        self.events = harm.schedule(options.seed, inputs, options.kills, len(ports), options.harm)
        self.harm = [
            harm.Harm(options.seed, self.events, to_nodes, self.workers, self.nodes, self.ledger, self.running)
            for to_nodes in (False, True)
        ]
        self.listener = callers.Listener(self.broker, self.ledger, self.running)
        self.publishers = [
            callers.Publisher(self.broker, self.ledger, self.running) for _ in range(options.publishers)
        ]
        self.members = {}

    def running(self):
        return self.going

    def prepare(self):
        """The queue of the answers, and workers that take jobs."""
        channel = self.broker.channel(self.running)
        channel.queue_declare(callers.REPLIES, durable=True, arguments={"x-queue-type": "quorum"})
        for worker in self.workers:
            worker.start()
        deadline = time.monotonic() + 90
        while self.consumers() < len(self.workers):
            assert time.monotonic() < deadline, "the workers do not come up"
            time.sleep(0.2)
        self.members = self.nodes.queues(1)
        channel.connection.close()

    def consumers(self):
        """How many workers take jobs: those of the lane whose queue is declared and subscribed to last."""
        found = self.nodes_say("list_queues", "name", "consumers")
        return int(found.get("embeddings.resumed", 0))

    def nodes_say(self, *command):
        said = self.nodes.tool_output(1, "rabbitmqctl", "-q", "--no-table-headers", *command) or ""
        return dict(line.split("\t")[:2] for line in said.splitlines() if "\t" in line)

    def run(self):
        self.began = time.monotonic()
        threading.Thread(target=self.sample, daemon=True).start()
        for thread in (self.listener, *self.publishers, *self.harm):
            thread.start()
        shown = last = time.monotonic()
        answered = -1
        while not self.ledger.finished():
            time.sleep(0.1)
            now = time.monotonic()
            if self.ledger.answered > answered:
                answered, last = self.ledger.answered, now
            if now - last > SILENCE_S or any(part.fault for part in (self.listener, *self.harm)):
                break
            if now - shown > 10:
                shown = now
                print(f"{now - self.began:6.0f} s  {answered} answered", file=sys.stderr, flush=True)
        self.ended = time.monotonic()
        for part in self.harm:
            part.join(240)
        # What is answered a second time, late.
        time.sleep(LATE_S)
        self.left = self.depths()
        self.going = False
        self.listener.join(20)

    def sample(self):
        while self.going:
            for worker in self.workers:
                worker.sample()
            time.sleep(SAMPLE_S)

    def depths(self):
        """What lies in the service's queues, delivered or not, as soon as it is nothing; after half a minute, whatever it is."""
        for _ in range(15):
            found = self.nodes_say("list_queues", "name", "messages")
            left = {name: int(found.get(f"embeddings.{name}", -1)) for name in QUEUES}
            if not any(left.values()):
                break
            time.sleep(2)
        return left

    def stop(self):
        self.going = False
        for worker in self.workers:
            worker.stop()


def version(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def system(soak):
    release = platform.freedesktop_os_release()
    broker = soak.nodes.tool_output(1, "rabbitmqctl", "-q", "version") or "?"
    return {
        "title": f"{release['NAME'].split()[0]} {release.get('VERSION', '')}".strip(),
        "on": f"RabbitMQ {broker.strip()}, {version(soak.options.binary, '--version')}, "
        f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} cores",
    }


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="soak.") as temporary:
        directory = Path(options.logs or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        soak = Soak(options, directory)
        try:
            soak.prepare()
            soak.run()
            figures = report.judge(soak)
            figures["system"] = system(soak)
        finally:
            soak.stop()
    text = report.section(figures)
    print(text)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))
    if options.report:
        report.write(Path(options.report), figures, text)
    for problem in figures["problems"]:
        print("FAIL:", problem, file=sys.stderr)
    sys.exit(1 if figures["problems"] else 0)


if __name__ == "__main__":
    main()
