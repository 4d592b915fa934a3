#!/usr/bin/env python3
"""Makes the golden vectors that tests/vectors.rs compares with: what sentence-transformers computes in f32.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.15.0 sentence-transformers==6.2.0 \
        transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
    /tmp/golden/bin/python tests/golden/make.py .cache/models/all-MiniLM-L6-v2

Writes beside itself: minilm-256.jsonl and minilm-512.jsonl (texts and vectors of the real model, at its own limit
of 256 tokens and at 512), and for each small model with random weights a folder with its vectors in golden.jsonl.

A line is {"text": …, "repeat": n, "prompt": text or absent, "tokens": n, "vector": base64 of little-endian f32};
the text is repeated n times, so that long ones stay short here.
"""
import base64
import json
import os
import random
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, models
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)
torch.set_num_threads(1)

WORDS = (
    "the a of to and in is was for on that with as it at by from be this have are not or which one had but all were "
    "their when there can more if no man out other so what time up go about than into could state only new year some "
    "take come these know see use get like then first any work now may such give over think most even find day also "
    "after way many must look before great back through long where much should well people down own just because good "
    "each those feel seem how high too place little world very still nation hand old life tell write become here show "
    "house both between need mean call develop under last right move thing general school never same another begin "
    "while number part turn real leave might want point form off child few small since against ask late home interest"
).split()


def sentence(n, seed):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


# Odd texts: each has broken some embedding server.
ODD = [
    "", " ", "\n\t\r ", "\0", "a\0b", ".", "!!!", "…", "hello world", "Hello, World!", "hello   world",
    "The quick brown fox jumps over the lazy dog.", "naïve café Ångström ÅNGSTRÖM e\u0301 é",
    "北京是中国的首都。", "東京は日本の首都です", "서울은 한국의 수도", "Москва — столица России", "مرحبا بالعالم",
    "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "😀😃🎉", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "a\u200bb\u200cc\ufeffd",
    "zero\u00a0width\u2003space\u3000here", "\ufffd replaced \ufffd", "line\u2028separator\u2029paragraph\u0085next",
    "tab\tand\vvertical\ffeed", "[CLS] literal [SEP] tokens [MASK] [PAD] [UNK]", "[MASK][MASK]", "[mask] [cls]",
    "##ing ##s", "don't can't it's", "e-mail@example.com https://example.com/path?q=1&r=2#frag",
    "3.14159 1,000,000 1e-12 0xdeadbeef", "$100 €200 £300 ¥400", "C++ & C# <tag attr=\"x\">", "a/b\\c|d~e^f`g",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "ﬁ ligature Ⅷ roman ½ half",
    "Z\u0351\u036b\u0343a\u0300l\u0301g\u0302o\u0303", "İstanbul ıssız STRASSE straße ΣΊΣΥΦΟΣ", "\U0001d54f\U0001d556",
    "\u202eright to left override\u202c", "mixed 中文 and English テキスト", "I" * 100, "I" * 101, "x" * 99 + " y",
]
LONG = [
    ("word ", 2000), ("x", 5000), ("x.", 3000), ("北", 1000), ("😀 ", 700), ("a\u0301", 3000), (" ", 9000), ("\0", 9000),
    ("[MASK]", 900), ("[MASK", 2000), ("hello world ", 4000), ("wörter und Zeichen; ", 900), ("\u0301", 9000),
    ("supercalifragilistic", 800), ("ab\u200b", 4000), ("क्षि", 3000),
]


def line(model, text, repeat=1, prompt=None):
    full = text * repeat
    with torch.inference_mode():
        vector = model.encode([full], prompt=prompt, convert_to_numpy=True)[0]
    assert np.isfinite(vector).all()
    tokens = model.tokenizer((prompt or "") + full, truncation=True, max_length=model.max_seq_length)["input_ids"]
    row = {"text": text, "repeat": repeat, "tokens": len(tokens), "vector": base64.b64encode(vector.astype("<f4")).decode()}
    if prompt is not None:
        row["prompt"] = prompt
    return json.dumps(row, ensure_ascii=True) + "\n"


def real(folder):
    model = SentenceTransformer(folder, device="cpu")
    with open(os.path.join(HERE, "minilm-256.jsonl"), "w") as out:
        for text in ODD:
            out.write(line(model, text))
        for text, repeat in LONG:
            out.write(line(model, text, repeat))
        for n in [1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 30, 31, 32, 33, 61, 62, 63, 64, 100, 126, 127, 128, 200, 253, 254, 255, 300]:
            out.write(line(model, sentence(n, n)))
    model.max_seq_length = 512
    with open(os.path.join(HERE, "minilm-512.jsonl"), "w") as out:
        for n in [1, 255, 256, 300, 383, 384, 400, 500, 509, 510, 511, 600]:
            out.write(line(model, sentence(n, 1000 + n)))
        for text, repeat in [("word ", 2000), ("x.", 3000)]:
            out.write(line(model, text, repeat))


def tokenizer(folder, base):
    """The real tokenizer with a vocabulary of some 250 pieces."""
    spec = json.load(open(os.path.join(base, "tokenizer.json")))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters[:36]), *sorted(set(WORDS)), "##ing", "##s", "##ed"]
    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(vocab)}
    for token in spec["added_tokens"]:
        token["id"] = vocab.index(token["content"])
    special = spec["post_processor"]["special_tokens"]
    for token in special.values():
        token["ids"] = [vocab.index(token["id"])]
    os.makedirs(folder, exist_ok=True)
    file = os.path.join(folder, "tokenizer.json")
    json.dump(spec, open(file, "w"), separators=(",", ":"))
    fast = PreTrainedTokenizerFast(
        tokenizer_file=file, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]",
        model_max_length=128)
    return fast, len(vocab)


def small(base, name, hidden=32, heads=2, wide=64, layers=2, modes=("mean",), dense=(), normalize=True, limit=64,
          prompts=None, default=None, include_prompt=True, dtype=None, prefix="", shards=1):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    work = folder + ".bert"
    fast, size = tokenizer(work, base)
    config = BertConfig(vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=wide, max_position_embeddings=128, initializer_range=0.25)
    bert = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for key, value in bert.named_parameters():
            if key.endswith("bias") or "LayerNorm" in key:
                value.add_(torch.randn_like(value) * 0.2)
    if dtype:
        bert = bert.to(dtype).to(torch.float32)
    bert.save_pretrained(work)
    fast.save_pretrained(work)
    transformer = models.Transformer(work, max_seq_length=limit)
    flags = {key: mode in modes for mode, key in KEYS.items()}
    pooling = models.Pooling(hidden, **flags, include_prompt=include_prompt)
    chain, width = [transformer, pooling], hidden * len(modes)
    for out_features, activation in dense:
        chain.append(models.Dense(width, out_features, activation_function=activation))
        width = out_features
    if normalize:
        chain.append(models.Normalize())
    model = SentenceTransformer(modules=chain, device="cpu", prompts=prompts, default_prompt_name=default)
    model.eval()
    model.save(folder, create_model_card=False)
    shutil.rmtree(work)
    weights = os.path.join(folder, "model.safetensors")
    stored = {prefix + key: value.to(dtype) if dtype else value for key, value in load_file(weights).items()}
    if shards == 1:
        save_file(stored, weights, metadata={"format": "pt"})
    else:
        os.remove(weights)
        where = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = dict(list(stored.items())[i::shards])
            save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
            where.update(dict.fromkeys(part, file))
        json.dump({"metadata": {}, "weight_map": where}, open(weights + ".index.json", "w"))
    with open(os.path.join(folder, "golden.jsonl"), "w") as out:
        for n in (0, 1, 2, 7, 20, 61, 62, 63, 90):
            out.write(line(model, sentence(n, n), prompt=prompts and ""))
        out.write(line(model, "Working, houses; 42 unknown é 北 words!", prompt=prompts and ""))
        for prompt in (prompts or {}).values():
            for n in (0, 3, 40, 90):
                out.write(line(model, sentence(n, n), prompt=prompt))
    print(name, sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs), sorted(os.listdir(folder)))


KEYS = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken"}


def main():
    base = sys.argv[1]
    tanh, none = torch.nn.Tanh(), torch.nn.Identity()
    small(base, "cls", modes=["cls"])
    small(base, "max", hidden=48, heads=4, wide=80, modes=["max"], normalize=False)
    small(base, "weighted", hidden=64, heads=2, modes=["weightedmean"], layers=1, dtype=torch.bfloat16)
    small(base, "last-prompt", modes=["lasttoken"], prompts={"query": "what is this: ", "document": ""}, default="query")
    small(base, "mean-prompt-out", modes=["mean"], include_prompt=False, prompts={"query": "find the "}, normalize=False)
    small(base, "sqrt-dense", modes=["mean_sqrt_len_tokens"], dense=[(40, tanh), (24, none)], dtype=torch.float16)
    small(base, "joined", hidden=36, heads=3, wide=50, modes=["cls", "max", "mean"], prefix="bert.", shards=2)
    real(base)


if __name__ == "__main__":
    main()
