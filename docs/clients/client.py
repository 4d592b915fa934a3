#!/usr/bin/env python3
"""Vectors for texts by RabbitMQ, in Python. Needs pika: apt install python3-pika, or pip install 'pika>=1.2,<2'.

    client.py [--url URL] [--prefix NAME] [--budget SECONDS] [--stream] TEXT...

One line of JSON for each text, in order. Exit: 0 done, 1 the job was refused or failed, 69 no broker, no service, or not
a word from it in time.
"""

import argparse
import json
import random
import sys
import time
import uuid

import pika
from pika.exceptions import AMQPError, NackError, UnroutableError

EXIT_FAILED, EXIT_UNAVAILABLE = 1, 69


class Unavailable(Exception):
    """Nobody takes the job, or nobody answers."""


class JobError(Exception):
    """An answer that is an error; `kind` and `retry_after` (seconds, or None) are the service's words."""

    def __init__(self, error):
        super().__init__(f"{error['type']}: {error['message']}")
        self.kind = error["type"]
        retry_after_ms = error.get("retry_after_ms")
        self.retry_after = None if retry_after_ms is None else retry_after_ms / 1000


class Embedder:
    """A connection and a reply queue, for any number of jobs one after the other. One thread only, as pika has it."""

    def __init__(self, url, prefix="embeddings"):
        parameters = pika.URLParameters(url)
        # A broker that blocks publishing (memory or disk alarm) is an error after this, and not a hang.
        parameters.blocked_connection_timeout = 30
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        # From now on basic_publish returns when the broker has the message, and raises if it could not take it.
        self.channel.confirm_delivery()
        self.prefix = prefix
        # Ours alone, and gone with the connection.
        self.replies = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.basic_consume(self.replies, self._heard, auto_ack=True)
        self.job, self.heard = None, []

    def embed(self, texts, budget=30.0, stream=False):
        """The vectors of the texts, in order.

        `budget` in seconds is how long you will wait: for the answer, or with `stream` for the next word of the job. A
        service that is full says when to come back; that is heeded, as long as the budget lasts.
        """
        job = str(uuid.uuid4())  # the same at each try, so that an answer to an earlier one is as good
        end = time.monotonic() + budget
        while True:
            try:
                return self._attempt(job, texts, budget, end, stream)
            except JobError as refusal:
                if refusal.retry_after is None:
                    raise
                # Up to half as much more, or all who were refused would come back in one moment.
                pause = refusal.retry_after * random.uniform(1, 1.5)
                if time.monotonic() + pause >= end:
                    raise
                print(f"{refusal.kind}: again in {pause:.2f} s", file=sys.stderr)
                self.connection.sleep(pause)

    def _attempt(self, job, texts, budget, end, stream):
        self.job, self.heard = job, []
        left_ms = max(1, int((end - time.monotonic()) * 1000))
        # A job that cannot begin within its budget is answered deadline_exceeded, and never computed for nobody.
        headers = {"x-sent-at-ms": int(time.time() * 1000)}
        if not stream:
            headers["x-budget-ms"] = left_ms
        properties = pika.BasicProperties(
            reply_to=self.replies,
            correlation_id=job,
            message_id=job,
            content_type="application/json",
            delivery_mode=2,
            headers=headers,
        )
        lane = "bulk" if stream else "interactive"
        body = json.dumps({"input": texts, "stream": stream}).encode()
        try:
            # mandatory: a queue that is not there is told, instead of a message lost in silence.
            self.channel.basic_publish("", f"{self.prefix}.{lane}", body, properties, mandatory=True)
        except UnroutableError:
            raise Unavailable(f"there is no queue {self.prefix}.{lane}: has the service ever run?") from None
        except NackError:
            raise Unavailable("the broker does not take the job") from None
        vectors = [None] * len(texts)
        while True:
            kind, answer = self._next(end)
            if kind == "embeddings.error":
                raise JobError(answer["error"])
            # A chunk may come twice after a death of the service; the index says which it is.
            for item in answer.get("data", []):
                vectors[item["index"]] = item["embedding"]
            if kind in ("embeddings.result", "embeddings.done"):
                assert all(vectors), "the service answered without all vectors"
                return vectors
            end = time.monotonic() + budget

    def _next(self, end):
        while not self.heard:
            left = end - time.monotonic()
            if left <= 0:
                raise Unavailable("no answer in time: is the service running? (embeddings status)")
            self.connection.process_data_events(time_limit=left)
        return self.heard.pop(0)

    def _heard(self, _channel, _method, properties, body):
        # Anything else is a late answer to a job that we have given up.
        if properties.correlation_id == self.job:
            self.heard.append((properties.type, json.loads(body)))


def main():
    parser = argparse.ArgumentParser(description="Vectors for texts by RabbitMQ.")
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--prefix", default="embeddings")
    parser.add_argument("--budget", type=float, default=30, metavar="SECONDS")
    parser.add_argument("--stream", action="store_true", help="vectors as they are computed, for jobs of any size")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    args = parser.parse_args()
    try:
        vectors = Embedder(args.url, args.prefix).embed(args.texts, args.budget, args.stream)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (Unavailable, AMQPError, OSError) as error:
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    for text, vector in zip(args.texts, vectors):
        print(json.dumps({"text": text, "embedding": vector}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
