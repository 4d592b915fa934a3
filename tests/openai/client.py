"""OpenAI's Python client and LangChain's OpenAIEmbeddings against the service, unchanged but for the base URL.

Usage: client.py BASE_URL MAX_QUEUE
"""

import json
import sys
import threading
import time

import openai
from langchain_openai import OpenAIEmbeddings

base, max_queue = sys.argv[1], int(sys.argv[2])
model = "all-MiniLM-L6-v2"
client = openai.OpenAI(base_url=base, api_key="none")


def cosine(a, b):
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def refused(kind, **arguments):
    try:
        client.embeddings.create(**arguments)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected for {arguments}")


# The client asks for base64 unless it is told otherwise, and reads both.
plain = client.embeddings.create(model=model, input="a text", encoding_format="float").data[0].embedding
coded = client.embeddings.create(model=model, input="a text").data[0].embedding
assert len(plain) == 384 and cosine(plain, coded) > 0.999999, "base64 and float"
batch = client.embeddings.create(model=model, input=["a text", "another", "a third"], user="someone")
assert [item.index for item in batch.data] == [0, 1, 2] and batch.usage.total_tokens > 6, batch.usage
assert cosine(batch.data[0].embedding, plain) > 0.9999
assert len(client.embeddings.create(model=model, input="a text", dimensions=64).data[0].embedding) == 64
assert model in [it.id for it in client.models.list()] and client.models.retrieve(model).id == model

wrong = refused(openai.NotFoundError, model="text-embedding-none", input="a")
assert (wrong.status_code, wrong.code, wrong.param) == (404, "model_not_found", "model"), wrong
wrong = refused(openai.BadRequestError, model=model, input="a", dimensions=10_000)
assert (wrong.code, wrong.param, wrong.type) == ("invalid_request", "dimensions", "invalid_request_error"), wrong
wrong = refused(openai.BadRequestError, model=model, input=[[1, 2, 3]])
assert "token ids" in wrong.message, wrong
assert wrong.request_id.startswith("req_"), wrong.request_id

# More at once than may be inside: without retries some are refused, and told when to come back…
long = ["words to work on while others are refused " * 10] * 64
outcomes = []


def ask(retries):
    mine = openai.OpenAI(base_url=base, api_key="none", max_retries=retries)
    began = time.monotonic()
    try:
        mine.embeddings.create(model=model, input=long)
        outcomes.append(("answered", time.monotonic() - began))
    except openai.RateLimitError as error:
        after = error.response.headers["retry-after"]
        assert int(after) >= 1 and int(error.response.headers["retry-after-ms"]) >= 1, after
        assert error.code == "overloaded" and error.type == "rate_limit_error", error
        outcomes.append(("refused", time.monotonic() - began))


def crowd(retries):
    outcomes.clear()
    threads = [threading.Thread(target=ask, args=(retries,)) for _ in range(4 * max_queue)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcome for outcome, _ in outcomes].count("refused"), len(outcomes)


without, total = crowd(0)
assert total == 4 * max_queue and 0 < without < total, (without, total)
# …and the client's own retries go by that: with them all are answered.
with_retries, total = crowd(20)
assert (with_retries, total) == (0, 4 * max_queue), (with_retries, total)

# LangChain sends OpenAI's tokens unless it is told to leave texts alone.
chain = OpenAIEmbeddings(model=model, base_url=base, api_key="none", check_embedding_ctx_length=False)
documents = chain.embed_documents(["a text", "another"])
assert len(documents) == 2 and cosine(documents[0], plain) > 0.9999
assert cosine(chain.embed_query("a text"), plain) > 0.9999

print(json.dumps({"refused_without_retries": without, "of": total}))
print("all cases passed")
