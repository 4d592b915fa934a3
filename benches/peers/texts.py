"""The texts of the benchmark: English that every Python carries, so that nothing is stored or fetched.

Lengths are drawn with a fixed seed; the same Python version gives the same texts, and every run prints their hash.
  short   8 to 24 tokens
  mixed   log-normal, median 60, at most 256 tokens
  long    256 tokens
"""
import hashlib
import random

MAX_TOKENS = 256


def paragraphs():
    from pydoc_data.topics import topics
    seen = []
    for key in sorted(topics):
        for text in topics[key].split("\n\n"):
            text = " ".join(text.split())
            letters = sum(c.isalpha() or c == " " for c in text)
            if len(text.split()) >= 5 and letters > 0.8 * len(text):
                seen.append(text)
    return list(dict.fromkeys(seen))


def workloads(tokenizer, fraction):
    source = paragraphs()
    tokenizer.no_truncation()

    def cut(start, tokens):
        text, i = source[start], start
        while True:
            encoded = tokenizer.encode(text)
            if len(encoded.ids) >= tokens:
                end = encoded.offsets[tokens - 2][1]
                space = text.rfind(" ", 0, end + 1)
                return text[:space if space > 0 else end].strip()
            i = (i + 1) % len(source)
            text += " " + source[i]

    def draw(seed, count, length):
        rng = random.Random(seed)
        return [cut(rng.randrange(len(source)), length(rng)) for _ in range(max(8, int(count * fraction)))]

    lognormal = lambda rng: max(8, min(MAX_TOKENS, round(rng.lognormvariate(4.0943, 0.7))))
    texts = {
        "short": draw(1, 2048, lambda rng: rng.randint(8, 24)),
        "mixed": draw(2, 768, lognormal),
        "long": draw(3, 192, lambda rng: 300),
    }
    tokenizer.enable_truncation(MAX_TOKENS)
    return texts, {name: hashlib.sha256("\n".join(part).encode()).hexdigest()[:12] for name, part in texts.items()}
