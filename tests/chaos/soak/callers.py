"""The callers of a soak: jobs from a seed, publishers that survive the death of a node, and the count of all answers.

Shares no code with the service. A job is known by its id in `message_id` and `correlation_id`; what is asked for and what comes
back is kept per job, so at the end each one can be told: answered never, once, or how often, and with which indices.
"""

import array
import base64
import collections
import heapq
import itertools
import json
import random
import threading
import time

import pika

REPLIES = "soak.replies"
LANES = ("embeddings.interactive", "embeddings.bulk")
# Told from one another by the index of an input, so that a vector in the wrong place is found.
TEXTS = 997
WORDS = (
    "river stone winter paper engine silver garden letter broken window quiet harbour market summer "
    "ladder copper morning forest signal distant teacher bread mountain cable orange kitchen"
).split()
# Float32 of another batch: the sums run in another order.
COSINE_MIN = 0.9999
# The last is no AMQPError: a node that is dying takes connections and answers none.
FAILURES = (
    pika.exceptions.AMQPError,
    OSError,
    pika.adapters.utils.connection_workflow.AMQPConnectorException,
)


def texts(seed):
    """What is embedded: short lines for the most part, one in forty a paragraph."""
    rng = random.Random(f"texts {seed}")
    lengths = (rng.randint(60, 150) if n % 40 == 0 else rng.randint(3, 10) for n in range(TEXTS))
    return [f"{n}: " + " ".join(rng.choices(WORDS, k=length)) for n, length in enumerate(lengths)]


class Job:
    __slots__ = ("number", "lane", "count", "stream", "first", "published", "refused", "answers", "seen", "repeats",
                 "sent_at", "done_at", "trouble")

    def __init__(self, seed, number, streams):
        rng = random.Random(f"job {seed} {number}")
        self.number, self.lane = number, rng.choice(LANES)
        self.stream = number in streams
        shape = rng.random()
        if self.stream:
            self.count = streams[number]
        elif shape < 0.90:
            self.count = 1
        elif shape < 0.985:
            self.count = rng.randint(2, 6)
        else:
            self.count = rng.randint(10, 60)
        self.first = rng.randrange(TEXTS)
        self.published = self.refused = self.answers = self.repeats = 0
        # One byte for each input of a streamed job: how often its vector came, at most 255.
        self.seen = bytearray(self.count if self.stream else 0)
        self.sent_at = self.done_at = None
        self.trouble = None

    @property
    def name(self):
        return f"job-{self.number}"

    def text(self, index):
        return (self.first + index) % TEXTS

    def body(self, pool):
        inputs = [pool[self.text(index)] for index in range(self.count)]
        body = {"input": inputs if self.count > 1 else inputs[0], "encoding_format": "base64"}
        return json.dumps(body | ({"stream": True} if self.stream else {}))


def schedule_streams(seed, jobs, count, largest):
    """Which jobs are streamed, and with how many inputs: some hundred, or thousands."""
    rng = random.Random(f"streams {seed}")
    numbers = rng.sample(range(jobs), min(count, jobs))
    return {number: rng.randint(largest // 10, largest) for number in numbers}


class Ledger:
    """All jobs, and what has become of each."""

    def __init__(self, seed, jobs, streams, outstanding, pool, vectors):
        self.lock = threading.Lock()
        self.seed, self.total, self.streams, self.outstanding_max = seed, jobs, streams, outstanding
        self.pool, self.vectors = pool, vectors
        self.jobs, self.again = {}, []
        self.next = self.open = self.answered = 0
        self.refusals, self.errors = {}, {}
        # When each answer came; and messages that came to us a second time because our own connection was lost.
        self.times, self.echoes = [], 0
        self.republished = self.compared = 0
        # Publications that the broker would not take.
        self.untaken = collections.Counter()
        self.tie = itertools.count()

    def take(self):
        """A job to publish now, or None."""
        with self.lock:
            if self.again and self.again[0][0] <= time.monotonic():
                return heapq.heappop(self.again)[2]
            if self.next >= self.total or self.open >= self.outstanding_max:
                return None
            job = Job(self.seed, self.next, self.streams)
            self.jobs[job.name] = job
            self.next, self.open = self.next + 1, self.open + 1
            return job

    def finished(self):
        return self.answered >= self.total

    def publishing(self, job):
        """Whether it still has to be; an answer may have come although the confirm was lost."""
        with self.lock:
            if job.done_at:
                return False
            job.sent_at = job.sent_at or time.monotonic()
            self.republished += job.published > job.refused
            job.published += 1
            return True

    def later(self, job, seconds):
        heapq.heappush(self.again, (time.monotonic() + seconds, next(self.tie), job))

    def heard(self, kind, name, body, redelivered):
        now = time.monotonic()
        with self.lock:
            self.times.append(now)
            job = self.jobs.get(name)
            if job is None:
                raise AssertionError(f"an answer to a job that nobody sent: {name}")
            if kind == "embeddings.error":
                self.failed(job, json.loads(body)["error"], redelivered)
            elif kind == "embeddings.result":
                self.result(job, json.loads(body), redelivered)
            elif kind == "embeddings.chunk":
                self.chunk(job, json.loads(body), redelivered)
            elif kind == "embeddings.done":
                self.answer(job, redelivered)
            elif kind != "embeddings.progress":
                raise AssertionError(f"an answer of the kind {kind}")

    def failed(self, job, error, redelivered):
        if error["type"] in ("overloaded", "draining"):
            # That it is sent again must not be doubled by a connection of ours that was lost.
            if redelivered and job.refused >= job.published:
                self.echoes += 1
                return
            self.refusals[error["type"]] = self.refusals.get(error["type"], 0) + 1
            job.refused += 1
            if not job.done_at:
                self.later(job, error["retry_after_ms"] / 1000)
            return
        self.errors[error["type"]] = self.errors.get(error["type"], 0) + 1
        job.trouble = job.trouble or f"{error['type']}: {error['message']}"
        self.answer(job, redelivered)

    def result(self, job, result, redelivered):
        indices = [item["index"] for item in result["data"]]
        if job.stream or indices != list(range(job.count)):
            job.trouble = f"a result with the indices {indices[:5]}…"
        self.compare(job, result["data"])
        self.answer(job, redelivered)

    def chunk(self, job, chunk, redelivered):
        items = chunk["data"]
        if redelivered and all(job.seen[item["index"]] for item in items):
            self.echoes += 1
            return
        self.compare(job, items)
        for item in items:
            before = job.seen[item["index"]]
            job.repeats += before > 0
            job.seen[item["index"]] = min(before + 1, 255)

    def answer(self, job, redelivered):
        if redelivered and job.answers:
            self.echoes += 1
            return
        job.answers += 1
        if not job.done_at:
            job.done_at = time.monotonic()
            self.open, self.answered = self.open - 1, self.answered + 1

    def compare(self, job, items):
        for item in items:
            expected = self.vectors[job.text(item["index"])]
            got = base64.b64decode(item["embedding"])
            self.compared += 1
            if got != expected.tobytes() and not alike(array.array("f", got), expected):
                job.trouble = f"input {item['index']} has another vector than undisturbed"


def alike(one, other):
    """Same dimension, length one, same direction; a number that is not finite is in no relation to anything."""
    if len(one) != len(other):
        return False
    length = sum(x * x for x in one) ** 0.5
    return abs(length - 1) < 1e-3 and sum(map(float.__mul__, one, other)) > COSINE_MIN


class Broker:
    """Where the nodes are; a connection goes to one that answers."""

    def __init__(self, ports):
        self.ports = ports

    def channel(self, running):
        """A channel to some node, as soon as there is one; None once `running` says no."""
        while running():
            for port in random.sample(self.ports, len(self.ports)):
                parameters = pika.ConnectionParameters(
                    "127.0.0.1", port, heartbeat=10, socket_timeout=2, stack_timeout=5, blocked_connection_timeout=None
                )
                try:
                    return pika.BlockingConnection(parameters).channel()
                except FAILURES:
                    pass
            time.sleep(0.1)
        return None


class Publisher(threading.Thread):
    """Sends jobs with confirms. One whose confirm is lost with its connection is sent again by the next, with the same id."""

    def __init__(self, broker, ledger, running):
        super().__init__(daemon=True)
        self.broker, self.ledger, self.running = broker, ledger, running

    def run(self):
        unconfirmed = None
        while channel := self.broker.channel(self.running):
            try:
                channel.confirm_delivery()
                while self.running():
                    unconfirmed = unconfirmed or self.ledger.take()
                    if unconfirmed is None:
                        channel.connection.sleep(0.02)
                        continue
                    if self.ledger.publishing(unconfirmed):
                        self.publish(channel, unconfirmed)
                    unconfirmed = None
                return
            except FAILURES:
                pass

    def publish(self, channel, job):
        properties = pika.BasicProperties(
            reply_to=REPLIES, correlation_id=job.name, message_id=job.name, delivery_mode=2,
            content_type="application/json",
        )
        try:
            channel.basic_publish("", job.lane, job.body(self.ledger.pool), properties, mandatory=True)
        except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as refusal:
            with self.ledger.lock:
                kind = "returned" if isinstance(refusal, pika.exceptions.UnroutableError) else "rejected"
                self.ledger.untaken[kind] += 1
                job.refused += 1
                self.ledger.later(job, 0.5)


class Listener(threading.Thread):
    """Takes the answers, and acknowledges each once it is counted."""

    ACK_EVERY = 20

    def __init__(self, broker, ledger, running):
        super().__init__(daemon=True)
        self.broker, self.ledger, self.running = broker, ledger, running
        self.fault = None

    def run(self):
        try:
            while channel := self.broker.channel(self.running):
                try:
                    self.listen(channel)
                    return
                except FAILURES:
                    pass
        except Exception as fault:
            self.fault = fault
            raise

    def listen(self, channel):
        channel.basic_qos(prefetch_count=200)
        unacknowledged = 0
        for method, properties, body in channel.consume(REPLIES, inactivity_timeout=0.2):
            if method:
                self.ledger.heard(properties.type, properties.correlation_id, body, method.redelivered)
                tag, unacknowledged = method.delivery_tag, unacknowledged + 1
            if unacknowledged >= self.ACK_EVERY or (unacknowledged and not method):
                channel.basic_ack(tag, multiple=True)
                unacknowledged = 0
            if not self.running() and not method:
                channel.cancel()
                channel.connection.close()
                return
