"""Speaks to a running service as an independent client. Usage: conformance.py URL PREFIX

Each case is a request and what its answer must be; a case that fails is an AssertionError.
"""

import base64
import json
import math
import struct
import sys
import threading
import time
import traceback
import uuid

import pika

URL, PREFIX = sys.argv[1:3]
DEADLINE = 40


class Caller:
    def __init__(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(URL))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue

    def ask(self, body, lane="interactive", **properties):
        """Sends bytes, or anything that becomes JSON; returns properties and body of the answer."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        properties.setdefault("reply_to", self.queue)
        properties.setdefault("correlation_id", str(uuid.uuid4()))
        of = pika.BasicProperties(**properties)
        self.channel.basic_publish("", f"{PREFIX}.{lane}", body, of, mandatory=True)
        answer, content = self.take(self.queue)
        assert answer.correlation_id == properties["correlation_id"], answer
        assert answer.app_id == "embeddings", answer
        assert answer.headers["x-attempt"] == 1, answer
        return answer, json.loads(content)

    def take(self, queue):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method:
                return properties, body
            self.connection.sleep(0.01)
        raise AssertionError(f"nothing came into {queue}")


def norm(vector):
    return math.sqrt(sum(x * x for x in vector))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / (norm(a) * norm(b))


def results(caller):
    for lane in ("interactive", "bulk"):
        answer, body = caller.ask({"input": ["a cat", "a dog"]}, lane, message_id="m1")
        assert (answer.type, answer.message_id) == ("embeddings.result", "m1"), answer
        assert answer.headers["x-model-fingerprint"], answer
        assert body["object"] == "list" and body["truncated"] == [], body
        assert [item["index"] for item in body["data"]] == [0, 1]
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == 8, body["usage"]
        floats = body["data"][0]["embedding"]
        assert len(floats) == 384 and abs(norm(floats) - 1) < 1e-3

        _, body = caller.ask({"input": ["a cat"], "encoding_format": "base64"}, lane)
        raw = base64.b64decode(body["data"][0]["embedding"], validate=True)
        assert cosine(struct.unpack("<384f", raw), floats) > 0.9999

        _, body = caller.ask({"input": "a cat", "dimensions": 128}, lane)
        short = body["data"][0]["embedding"]
        assert len(short) == 128 and abs(norm(short) - 1) < 1e-3
        assert cosine(short, floats[:128]) > 0.9999


def errors(caller):
    cases = [
        (b"", 400, "invalid_request", None),
        (b"{", 400, "invalid_request", None),
        (b"\xff\xfe\x00", 400, "invalid_request", None),
        ({}, 400, "invalid_request", "input"),
        ({"input": [1]}, 400, "invalid_request", "input"),
        ({"input": "a", "model": "gpt"}, 404, "model_not_found", "model"),
        ({"input": ["a"] * 65}, 413, "too_many_inputs", "input"),
        ({"input": "word " * 4000, "truncate": False}, 413, "input_too_long", "input"),
    ]
    for body, code, kind, param in cases:
        answer, content = caller.ask(body)
        error = content["error"]
        assert answer.type == "embeddings.error", answer
        assert (error["code"], error["type"], error["param"]) == (code, kind, param), error
    past = {"x-budget-ms": 10, "x-sent-at-ms": int(time.time() * 1000) - 5000}
    _, content = caller.ask({"input": "a"}, headers=past)
    assert (content["error"]["code"], content["error"]["type"]) == (504, "deadline_exceeded")
    _, content = caller.ask({"input": "a"}, headers={"x-budget-ms": "soon"})
    assert content["error"]["param"] == "x-budget-ms"
    _, content = caller.ask({"input": "a"}, headers={"x-mine": {"deep": [1, {"er": None}]}})
    assert content["data"]


def dead_letters(caller):
    properties = pika.BasicProperties(message_id="m2", headers={"mine": True})
    caller.channel.basic_publish("", f"{PREFIX}.bulk", b'{"input":"a"}', properties, mandatory=True)
    dead, body = caller.take(f"{PREFIX}.dead")
    assert body == b'{"input":"a"}' and dead.message_id == "m2" and dead.headers["mine"] is True
    assert dead.headers["x-error-code"] == 400 and dead.headers["x-error-param"] == "reply_to"
    assert dead.headers["x-original-queue"] == f"{PREFIX}.bulk"


def direct_reply_to(caller):
    channel, answers = caller.connection.channel(), []
    channel.basic_consume(
        "amq.rabbitmq.reply-to", lambda c, m, p, body: answers.append((p, body)), auto_ack=True
    )
    of = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="d1")
    channel.basic_publish("", f"{PREFIX}.interactive", b'{"input":"direct"}', of)
    end = time.monotonic() + DEADLINE
    while not answers and time.monotonic() < end:
        caller.connection.process_data_events(0.05)
    (properties, body), = answers
    assert properties.correlation_id == "d1" and json.loads(body)["data"]
    channel.close()


def poison(caller):
    """Messages that once ended the process, or the session over and over; each is settled like any other."""
    headers = {}
    for _ in range(14_000):
        headers = {"a": headers}
    _, answer = caller.ask({"input": "deep headers"}, headers=headers)
    assert len(answer["data"]) == 1, answer
    # Without a sender, what is wrong goes into a header of the copy, which has to fit into one frame.
    for more in ({}, {"headers": {"large": "y" * 120_000}}, {"headers": headers}):
        body = json.dumps({"input": "a", "model": "x" * 3_000_000}).encode()
        of = pika.BasicProperties(message_id="wide", **more)
        caller.channel.basic_publish("", f"{PREFIX}.interactive", body, of, mandatory=True)
        dead, copy = caller.take(f"{PREFIX}.dead")
        assert copy == body and dead.message_id == "wide"
        assert len(dead.headers["x-error-message"]) < 2000, dead.headers["x-error-type"]


def not_utf8(caller):
    """The protocol demands UTF-8 in short strings, and the broker hands on what is none. It ends no session."""
    latin = "café".encode("latin-1")
    cases = [
        {"correlation_id": latin},
        {"correlation_id": b"\xff" * 255, "message_id": b"\xfe" * 255},
        {"type": latin, "app_id": latin, "headers": {latin: 1, "deep": {latin: [latin]}}},
    ]
    for properties in cases:
        of = pika.BasicProperties(reply_to=caller.queue, **properties)
        caller.channel.basic_publish("", f"{PREFIX}.interactive", b'{"input":"a"}', of, mandatory=True)
        answer, body = caller.take(caller.queue)
        # Each byte that is no text becomes U+FFFD, of which 85 fill a short string.
        sent = properties.get("correlation_id", b"").decode(errors="replace")[:85]
        assert (answer.correlation_id or "") == sent, answer
        assert answer.headers["x-attempt"] == 1 and json.loads(body)["data"], answer
    of = pika.BasicProperties(reply_to=latin, message_id=latin)
    caller.channel.basic_publish("", f"{PREFIX}.interactive", b'{"input":"a"}', of, mandatory=True)
    _, body = caller.ask({"input": "the session goes on"})
    assert body["data"]
    of = pika.BasicProperties(content_type=latin, reply_to=caller.queue)
    caller.channel.basic_publish("", f"{PREFIX}.interactive", b'{"input":"a"}', of, mandatory=True)
    _, body = caller.take(caller.queue)
    assert json.loads(body)["error"]["type"] == "invalid_request", body


def main():
    for case in (results, errors, dead_letters, direct_reply_to, poison, not_utf8):
        case(Caller())
        print(case.__name__, "passed")
    print("all cases passed")


if __name__ == "__main__":
    # pika writes nested headers by recursion, as deep as they are.
    sys.setrecursionlimit(1_000_000)
    threading.stack_size(1 << 29)
    failures = []

    def run():
        try:
            main()
        except BaseException:
            failures.append(traceback.format_exc())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    sys.exit("".join(failures) or 0)
