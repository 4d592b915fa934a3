#!/usr/bin/env python3
"""An AMQP client that shares no code with the service: pika, and the standard library.

client.py ask TEXT...      one interactive job; checks the reply and prints what it holds
client.py publish N        N persistent bulk jobs, confirmed, to be answered into the queue `answers`
client.py answered         how many different jobs have an answer (answers stay in the queue)
client.py tried_again      how many of those took more than one attempt
client.py waiting          how many jobs wait, in both lanes and among those that go on
"""

import json
import math
import sys
import uuid

import pika

LANES = ("embeddings.interactive", "embeddings.bulk")
# What is sent anew at a stop and would lose its place at the end of the bulk lane waits here.
WAITING = (*LANES, "embeddings.resumed")


def check_result(properties, body, inputs):
    """Raises unless this is a right answer to so many inputs."""
    reply = json.loads(body)
    assert properties.type == "embeddings.result", (properties.type, reply)
    assert [item["index"] for item in reply["data"]] == list(range(inputs)), "indices"
    for item in reply["data"]:
        vector = item["embedding"]
        assert len(vector) == 384, len(vector)
        assert abs(math.sqrt(sum(x * x for x in vector)) - 1) < 1e-3, "not normalised"


def ask(channel, texts):
    reply_to = "amq.rabbitmq.reply-to"
    name = str(uuid.uuid4())
    answers = []
    channel.basic_consume(reply_to, lambda c, m, p, b: answers.append((p, b)), auto_ack=True)
    channel.basic_publish(
        "",
        LANES[0],
        json.dumps({"input": list(texts)}),
        pika.BasicProperties(reply_to=reply_to, correlation_id=name, content_type="application/json"),
        mandatory=True,
    )
    channel.connection.call_later(30, channel.close)
    while not answers and channel.is_open:
        channel.connection.process_data_events(time_limit=1)
    assert answers, "no reply within 30 s"
    properties, body = answers[0]
    assert properties.correlation_id == name, "not our correlation id"
    check_result(properties, body, len(texts))
    print(f"{len(texts)} vectors of 384 numbers")


def publish(channel, number):
    channel.queue_declare("answers", durable=True)
    channel.confirm_delivery()
    for n in range(number):
        texts = [f"job {n}, line {line}: the quick brown fox jumps over the lazy dog" for line in range(8)]
        channel.basic_publish(
            "",
            LANES[1],
            json.dumps({"input": texts}),
            pika.BasicProperties(
                reply_to="answers", correlation_id=f"job-{n}", message_id=f"job-{n}", delivery_mode=2
            ),
            mandatory=True,
        )


def answered(channel):
    """Each job that has an answer, and the most attempts that one of them tells."""
    jobs = {}
    while True:
        method, properties, body = channel.basic_get("answers")
        if method is None:
            break
        check_result(properties, body, 8)
        attempts = int(properties.headers["x-attempt"])
        jobs[properties.correlation_id] = max(attempts, jobs.get(properties.correlation_id, 0))
    return jobs  # Nothing is acked: all answers return to the queue when the connection closes.


def waiting(channel):
    print(sum(channel.queue_declare(lane, passive=True).method.message_count for lane in WAITING))


if __name__ == "__main__":
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1"))
    command, *rest = sys.argv[1:]
    if command == "ask":
        ask(connection.channel(), rest)
    elif command == "publish":
        publish(connection.channel(), int(rest[0]))
    elif command == "answered":
        print(len(answered(connection.channel())))
    elif command == "tried_again":
        print(sum(attempts > 1 for attempts in answered(connection.channel()).values()))
    elif command == "waiting":
        waiting(connection.channel())
    else:
        sys.exit(__doc__)
