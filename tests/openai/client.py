"""OpenAI's Python client and LangChain's OpenAIEmbeddings against the service, unchanged but for the base URL.

Usage: client.py BASE_URL MAX_QUEUE, with tiktoken's vocabulary in TIKTOKEN_CACHE_DIR
"""

import json
import sys
import threading
import time

import openai
import tiktoken
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
wrong = refused(openai.BadRequestError, model=model, input=[[1, 2, 3], [4, 100256]])
assert "input[1]: 100256 is no token" in wrong.message and wrong.param == "input", wrong
assert wrong.request_id.startswith("req_"), wrong.request_id
wrong = refused(openai.BadRequestError, model=model, input=[220] * 8193)
assert "8193 token ids for one text, limit is 8192" in wrong.message and wrong.param == "input", wrong

# OpenAI's other two shapes: the token ids of a text, or of several.
vocabulary = tiktoken.get_encoding("cl100k_base")
texts = ["a text", "größer als 北京, 👩‍👩‍👧‍👦", "  two\n\nparagraphs\t"]
ids = [vocabulary.encode_ordinary(text) for text in texts]
by_ids = client.embeddings.create(model=model, input=ids).data
for by_id, by_text in zip(by_ids, client.embeddings.create(model=model, input=texts).data, strict=True):
    assert cosine(by_id.embedding, by_text.embedding) > 0.99999
assert cosine(client.embeddings.create(model=model, input=ids[0]).data[0].embedding, plain) > 0.99999

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

# LangChain by its base URL alone: it cuts texts by OpenAI's vocabulary, sends the ids of the pieces, and takes the mean of their
# vectors, each by its length.
def mean_of_pieces(text, length):
    tokens = vocabulary.encode_ordinary(text)
    pieces = [tokens[at : at + length] for at in range(0, len(tokens), length)]
    cut = [vocabulary.decode(piece) for piece in pieces]
    vectors = [item.embedding for item in client.embeddings.create(model=model, input=cut).data]
    weighted = [sum(len(p) * v[i] for p, v in zip(pieces, vectors)) for i in range(len(vectors[0]))]
    return weighted, len(pieces)


chain = OpenAIEmbeddings(model=model, base_url=base, api_key="none")
documents = chain.embed_documents(texts)
for document, text in zip(documents, texts, strict=True):
    assert cosine(document, client.embeddings.create(model=model, input=text).data[0].embedding) > 0.9999, text
assert cosine(chain.embed_query("a text"), plain) > 0.9999
assert len(chain.embed_query("")) == 384

story = "Über den Wolken 👩‍👩‍👧‍👦 muß die Freiheit wohl grenzenlos sein, 北京. " * 40
for text, length in [(story, 7), (story, 100), ("words to fill a page with " * 4000, 8191)]:
    chain = OpenAIEmbeddings(model=model, base_url=base, api_key="none", embedding_ctx_length=length)
    expected, pieces = mean_of_pieces(text, length)
    assert pieces > 2, pieces
    short, long = chain.embed_documents(["a text", text])
    assert cosine(short, plain) > 0.9999 and cosine(long, expected) > 0.9999, (length, cosine(long, expected))
assert any("\ufffd" in vocabulary.decode(vocabulary.encode_ordinary(story)[at : at + 7]) for at in range(0, 700, 7))

# Told to leave texts alone it may, too.
chain = OpenAIEmbeddings(model=model, base_url=base, api_key="none", check_embedding_ctx_length=False)
assert cosine(chain.embed_query("a text"), plain) > 0.9999

print(json.dumps({"refused_without_retries": without, "of": total}))
print("all cases passed")
