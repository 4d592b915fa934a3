"""What is done to workers and nodes in a soak, from a seed: when, to whom, and for how long."""

import random
import re
import signal
import threading
import time

WORKER_KILLED = "worker killed (SIGKILL)"
WORKER_STOPPED = "worker told to stop (SIGTERM)"
WORKER_FROZEN = "worker frozen (SIGSTOP)"
NODE_KILLED = "node killed (SIGKILL)"
TWO_KILLED = "two nodes killed (SIGKILL): no quorum"
# How often each, in a long run.
WEIGHTS = {WORKER_KILLED: 40, WORKER_STOPPED: 12, WORKER_FROZEN: 16, NODE_KILLED: 28, TWO_KILLED: 4}
# Those that a short run must have.
FIRST = (WORKER_KILLED, NODE_KILLED, WORKER_FROZEN, WORKER_KILLED, WORKER_STOPPED)
# Longest wait for the nodes to be whole again before the next one is killed.
WHOLE_S = 120


class Event:
    def __init__(self, at, kind):
        # The number of vectors at which it happens.
        self.at, self.kind = at, kind
        self.target = self.when = self.until = None
        self.detail = ""


def schedule(seed, inputs, events, nodes, only):
    """Events in their order; they come at numbers of vectors and not at times, so that a seed means the same on any machine."""
    rng = random.Random(f"harm {seed}")
    kinds = [kind for kind in WEIGHTS if nodes > 2 or kind not in (NODE_KILLED, TWO_KILLED)]
    kinds = [kind for kind in kinds if re.search(only, kind)]
    first = [kind for kind in FIRST if kind in kinds][:events]
    rest = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds], k=events - len(first))
    # The short list first only where there is nothing else: in a long run its kinds are spread as well.
    chosen = first + rest
    rng.shuffle(chosen)
    moments = sorted(rng.uniform(0.03, 0.93) for _ in chosen)
    return [Event(int(inputs * moment), kind) for moment, kind in zip(moments, chosen)]


class Harm(threading.Thread):
    """Carries out that part of a schedule that is done to workers, or that to nodes: a node takes its time to come back."""

    def __init__(self, seed, events, to_nodes, workers, nodes, ledger, running):
        super().__init__(daemon=True)
        self.rng = random.Random(f"targets {seed} {to_nodes}")
        self.events = [event for event in events if (event.kind in (NODE_KILLED, TWO_KILLED)) == to_nodes]
        self.workers, self.nodes, self.ledger, self.running = workers, nodes, ledger, running
        self.helpers, self.fault = [], None

    def run(self):
        try:
            for event in self.events:
                while self.ledger.compared < event.at:
                    if not self.running():
                        return
                    time.sleep(0.01)
                # Nodes take their time to come back; harm to a fleet that has nothing to do tells nothing.
                if self.ledger.finished():
                    break
                self.perform(event)
            self.join_helpers()
        except Exception as fault:
            self.fault = fault
            raise

    def perform(self, event):
        if event.kind in (NODE_KILLED, TWO_KILLED):
            self.kill_nodes(event, 1 if event.kind == NODE_KILLED else 2)
            return
        alive = [worker for worker in self.workers if worker.alive()]
        while not alive and self.running():
            time.sleep(0.1)
            alive = [worker for worker in self.workers if worker.alive()]
        worker = self.rng.choice(alive)
        event.target, event.when = f"worker {worker.number}", time.monotonic()
        if event.kind == WORKER_KILLED:
            worker.signal(signal.SIGKILL)
        elif event.kind == WORKER_STOPPED:
            worker.signal(signal.SIGTERM)
        else:
            seconds = self.rng.uniform(1, 12)
            event.detail = f"for {seconds:.1f} s"
            worker.signal(signal.SIGSTOP)
            self.after(seconds, lambda: worker.signal(signal.SIGCONT))

    def kill_nodes(self, event, count):
        # A node that is away, or not yet caught up, would make two of one.
        self.join_helpers()
        deadline = time.monotonic() + WHOLE_S
        while not self.nodes.whole(queues := self.nodes.queues(1)):
            if time.monotonic() > deadline:
                raise AssertionError(f"after {WHOLE_S} s some queue still lacks a member: {queues}")
            time.sleep(0.5)
        numbers = self.rng.sample(range(1, self.nodes.count + 1), count)
        led = [self.nodes.leads(number, queues) for number in numbers]
        seconds = self.rng.uniform(3, 15)
        event.target = "node " + ", ".join(map(str, numbers))
        event.detail = f"leader of {sum(led)} queues, away for {seconds:.0f} s"
        event.when = time.monotonic()
        for number in numbers:
            self.nodes.kill(number)
        self.after(seconds, lambda: self.bring_back(event, numbers))

    def bring_back(self, event, numbers):
        for number in numbers:
            self.nodes.start(number)
        event.until = time.monotonic()

    def after(self, seconds, action):
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self.helpers.append(timer)

    def join_helpers(self):
        for helper in self.helpers:
            helper.join()
        self.helpers = []
