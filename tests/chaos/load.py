#!/usr/bin/env python3
"""A light, steady load of jobs, and the count of their answers. Shares no code with the service.

load.py run RATE         sends RATE jobs a second, half of them interactive, half bulk, until SIGTERM
load.py large NAME LANE  sends one job that takes megabytes
load.py settled SECONDS  succeeds as soon as every job has an answer, and fails after so long
load.py count SECONDS    waits until every job has an answer, at most so long; prints JSON
load.py declare QUEUE    makes a queue like those of the service
load.py ready            makes the queue of the answers, and waits until a broker that is killed finds it again

A job counts as sent when the broker has confirmed it; one whose confirm was lost with its connection may or
may not be in a queue, so no answer is expected of it. All answers stay in a queue of their own until they are
counted, so nothing that happens to the broker meanwhile can make this count see one answer twice.
"""

import json
import os
import signal
import sys
import time

import pika

LANES = ("embeddings.interactive", "embeddings.bulk")
ANSWERS = "chaos.answers"
SENT = "/run/chaos-sent"
# Another address than the service's, so that its way to the broker can be cut alone.
BROKER = pika.ConnectionParameters("127.0.0.2", blocked_connection_timeout=None, heartbeat=10, socket_timeout=2)
# The last is no AMQPError: a broker that is stopped takes connections and answers none.
FAILURES = (
    pika.exceptions.AMQPError,
    OSError,
    pika.adapters.utils.connection_workflow.AMQPConnectorException,
)


def connected():
    """A channel with confirms, as soon as there is a broker."""
    while True:
        try:
            channel = pika.BlockingConnection(BROKER).channel()
            channel.confirm_delivery()
            return channel
        except FAILURES:
            time.sleep(0.2)


def ready():
    # Replicated and written before it is confirmed: a broker that is killed loses no answer. But RabbitMQ 3.10 that is
    # killed within a second of declaring such a queue never finds its leader again, and all that goes there hangs.
    connected().queue_declare(ANSWERS, durable=True, arguments={"x-queue-type": "quorum"})
    time.sleep(5)


def run(rate):
    channel = connected()
    # What an earlier run has left.
    channel.queue_purge(ANSWERS)
    # Another name for each job of all runs: an answer that is late for its own run must not count for the next.
    begun, number, due = int(time.time()), 0, time.monotonic()
    open(SENT, "w").close()
    with open(SENT, "a", buffering=1) as sent:
        while True:
            number, due = number + 1, max(due + 1 / rate, time.monotonic() - 1)
            try:
                channel.connection.sleep(max(due - time.monotonic(), 0))
                send(channel, f"{begun}-{number}", LANES[number % 2])
                print(f"{begun}-{number}", file=sent)
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                pass  # Nobody has it: not a job.
            except FAILURES:
                channel = connected()


def send(channel, number, lane, repeat=1):
    text = "the quick brown fox jumps over the lazy dog " * repeat
    texts = [f"job {number}, line {line}: {text}" for line in range(4)]
    name = f"job-{number}"
    properties = pika.BasicProperties(reply_to=ANSWERS, correlation_id=name, message_id=name, delivery_mode=2)
    channel.basic_publish("", lane, json.dumps({"input": texts}), properties, mandatory=True)


def large(name, lane):
    send(connected(), f"large-{name}", f"embeddings.{lane}", repeat=20_000)
    with open(SENT, "a") as sent:
        print(f"large-{name}", file=sent)


def declare(queue):
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "embeddings.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 1000,
    }
    connected().queue_declare(queue, durable=True, arguments=arguments)


def answers(seconds):
    """The jobs that were sent, and how many answers each has got: as soon as each has one, or after so long."""
    with open(SENT) as lines:
        sent = {f"job-{line.strip()}" for line in lines}
    got, wrong = {}, 0
    channel = connected()
    deadline = time.monotonic() + seconds
    while True:
        method, properties, body = channel.basic_get(ANSWERS, auto_ack=False)
        if method is not None:
            got[properties.correlation_id] = got.get(properties.correlation_id, 0) + 1
            if properties.type != "embeddings.result" or len(json.loads(body)["data"]) != 4:
                wrong += 1
                print(properties.type, body[:300], file=sys.stderr)
        elif sent <= got.keys() or time.monotonic() > deadline:
            # Nothing is acknowledged, so all answers return to the queue.
            channel.connection.close()
            return sent, got, wrong
        else:
            channel.connection.sleep(0.2)


def settled(seconds):
    sent, got, _ = answers(seconds)
    if missing := sent - got.keys():
        sys.exit(f"no answer: {sorted(missing)}")


def count(seconds):
    answers(seconds)
    # A second answer to a job comes, if at all, close behind the others.
    time.sleep(0.5)
    sent, got, wrong = answers(0)
    lost = sorted(sent - got.keys())
    if lost:
        print("no answer:", *lost, file=sys.stderr)
    twice = sum(times > 1 for times in got.values())
    print(json.dumps({"sent": len(sent), "lost": len(lost), "twice": twice, "errors": wrong}))


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    if command == "run":
        # Between two statements of Python: what is on its way is confirmed or counts as not sent.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        run(float(rest[0]))
    elif command == "large":
        large(*rest)
    elif command == "settled":
        settled(float(rest[0]))
    elif command == "count":
        count(float(rest[0]))
    elif command == "ready":
        ready()
    elif command == "declare":
        declare(rest[0])
    else:
        sys.exit(__doc__)
