"""Embeds the same texts with our engine and with sentence-transformers in f16 on the same card, in turns.

Each side keeps its model loaded and gets all texts of a workload at once; it may batch and sort as it likes. Counted are
tokens without padding, as sentence-transformers' own tokenizer counts them. Prints medians, their ratio, and the smallest
cosine between the two.

    python side_by_side.py MODEL_DIR EXAMPLE_BINARY ROUNDS
"""

import json
import random
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

model_dir, binary, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
# Batches that fill a card: 256 texts for theirs, tokens for ours. Others may be tried by hand.
THEIR_BATCH, OUR_TOKENS = 256, 32768

random.seed(7)
WORDS = (
    "the a of to and in is was for on with as by at from it that this an be are or not have has had one two new first "
    "people time year day world life house city water river stone light night music letter story question answer"
).split()


def text(words):
    return " ".join(random.choice(WORDS) for _ in range(words))


WORKLOADS = {
    "short": [text(random.randint(5, 20)) for _ in range(20000)],
    "mixed": [text(random.choice([6, 12, 25, 50, 100, 180])) for _ in range(8000)],
    "long": [text(200) for _ in range(4000)],
}

theirs = SentenceTransformer(model_dir, device="cuda").half()
ours = subprocess.Popen(
    [binary, model_dir, "cuda:0", "f16", str(OUR_TOKENS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)


def run_ours(texts):
    """The example tells the seconds of tokenizing and computing, without the pipe, and then the vectors."""
    ours.stdin.write((json.dumps(texts) + "\n").encode())
    ours.stdin.flush()
    answer = json.loads(ours.stdout.readline())
    return answer["seconds"], np.array(answer["vectors"])


def run_theirs(texts):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    vectors = theirs.encode(texts, batch_size=THEIR_BATCH, convert_to_numpy=True, show_progress_bar=False)
    torch.cuda.synchronize()
    return time.perf_counter() - begin, vectors.astype(np.float64)


for name, texts in WORKLOADS.items():
    ids = theirs.tokenizer(texts, truncation=True, max_length=theirs.max_seq_length)["input_ids"]
    tokens = sum(len(one) for one in ids)
    times = {"ours": [], "theirs": []}
    for number in range(rounds + 1):
        for side, run in (("ours", run_ours), ("theirs", run_theirs)):
            seconds, vectors = run(texts)
            if number:  # the first round warms up
                times[side].append(seconds)
            if side == "ours":
                mine = vectors
    norm = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    least = (norm(mine) * norm(vectors)).sum(axis=1).min()
    rate = {side: tokens / statistics.median(all) for side, all in times.items()}
    print(
        f"{name}: {tokens} tokens, ours {rate['ours']:.0f}/s, sentence-transformers f16 {rate['theirs']:.0f}/s, "
        f"ratio {rate['ours'] / rate['theirs']:.2f}, smallest cosine {least:.6f}"
    )
