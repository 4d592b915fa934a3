#!/usr/bin/env python3
"""Makes the small models of the families other than BERT, with their golden vectors, as make.py does for BERT.

    /tmp/golden/bin/python tests/golden/families.py .cache/models/all-MiniLM-L6-v2 [NAME…]

(The environment is that of make.py. Without names all are made.) Each model has the shape of a published one and
is too small to mean anything. Its weights are large enough that attention, gates and norms bend the vectors much:
with the usual small ones a model is nearly linear, and a fault in them would hide in the fourth decimal place. The
smaller variants have a large epsilon in their norms, for the same reason. The weights are rounded to 16 bits before the vectors are computed in 32, and stored so.

Tokenizers are trained here on the words of make.py, each of the kind that the family's models come with.
"""
import json
import os
import shutil
import sys

from make import HERE, ODD, WORDS, line, sentence, tokenizer as wordpiece

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, models
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

TEXTS = [" ".join(WORDS), *(sentence(40, seed) for seed in range(40)), *ODD,
         "Working houses; different developments, generally speaking: 42 numbers!", "北京是中国的首都。東京は日本の首都です"]


def byte_level(special, mask=None, prefix_space=False, normalizer=None, size=420):
    """Byte-level BPE with GPT-2's pattern, as RoBERTa and ModernBERT have it."""
    own = Tokenizer(BPE(unk_token=None))
    own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    own.decoder = decoders.ByteLevel()
    tokens = [AddedToken(t, special=True, normalized=False, lstrip=t == mask) for t in special]
    own.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=size, special_tokens=tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return own


def roberta(folder, base):
    own = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], mask="<mask>")
    own.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return wrap(own, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
                unk_token="<unk>", mask_token=AddedToken("<mask>", lstrip=True, special=True))


def unigram(folder, base):
    """Unigram behind Metaspace, as XLM-RoBERTa has it; NFKC stands for its table of characters."""
    own = Tokenizer(Unigram())
    own.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    own.decoder = decoders.Metaspace()
    own.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    own.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return wrap(own, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
                unk_token="<unk>", mask_token=AddedToken("<mask>", lstrip=True, special=True))


def modernbert_tokenizer(folder, base):
    own = byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], mask="[MASK]", normalizer=normalizers.NFC())
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return wrap(own, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
                mask_token=AddedToken("[MASK]", lstrip=True, special=True))


def mpnet_tokenizer(folder, base):
    """MPNet has BERT's WordPiece with RoBERTa's special tokens."""
    spec = json.load(open(os.path.join(base, "tokenizer.json")))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-"
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *letters, *("##" + c for c in letters[:36]), *sorted(set(WORDS)),
             "##ing", "##s", "##ed", "<mask>"]
    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(vocab)}
    spec["added_tokens"] = [
        {"id": vocab.index(t), "content": t, "single_word": False, "lstrip": t == "<mask>", "rstrip": False,
         "normalized": False, "special": True} for t in ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]]
    spec["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
                              "add_prefix_space": False}
    return wrap(Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", cls_token="<s>", eos_token="</s>",
                sep_token="</s>", pad_token="<pad>", unk_token="[UNK]",
                mask_token=AddedToken("<mask>", lstrip=True, special=True))


QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def qwen_tokenizer(folder, base):
    own = Tokenizer(BPE(unk_token=None))
    own.normalizer = normalizers.NFC()
    own.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    own.decoder = decoders.ByteLevel()
    own.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    own.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]])
    end = own.token_to_id("<|endoftext|>")
    own.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>",
                                      special_tokens=[("<|endoftext|>", end)])])
    return wrap(own, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")


def gemma_tokenizer(folder, base):
    """BPE over the whole text with blanks written as ▁, and bytes for what it does not know."""
    own = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    own.normalizer = normalizers.Replace(" ", "▁")
    # Training needs words; the real one knows no piece with a blank inside either.
    own.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*|[^▁]+"), "isolated")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    own.train_from_iterator([t.replace("\0", "") for t in TEXTS[:41]], trainers.BpeTrainer(
        vocab_size=200, special_tokens=[AddedToken(t, special=True, normalized=False) for t in special], show_progress=False))
    spec = json.loads(own.to_str())
    vocab = spec["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    for blanks in (2, 3, 4):
        vocab.setdefault("▁" * blanks, len(vocab))
        spec["model"]["merges"].append(["▁" * (blanks - 1), "▁"] if blanks != 4 else ["▁▁", "▁▁"])
    spec["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    own = Tokenizer.from_str(json.dumps(spec))
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    own.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    return wrap(own, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="right")


def wrap(own, **tokens):
    return PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=512, **tokens)


def bert_tokenizer(folder, base):
    return wordpiece(folder, base)[0]


def randomize(model, from_zero, sharp_by):
    """Weights that make each part matter; `from_zero` says that norms count from 0, as Gemma's do. Queries and keys
    are `sharp_by` times as large as what keeps the size of a row."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn_like(value)
            if value.ndim == 1:
                norm = "norm" in name.lower() and name.endswith("weight")
                value.copy_(noise * 0.3 + (1.0 if norm and not from_zero else 0.0))
            elif "embed" in name or "relative_attention_bias" in name:
                value.copy_(noise * (1.5 if "relative" in name else 0.5))
            else:
                sharp = any(part in name for part in ("query", "key", "q_proj", "k_proj", "q_lin", "k_lin", ".q.", ".k.", "Wqkv"))
                value.copy_(noise * (sharp_by if sharp else 1.0) / value.shape[-1] ** 0.5)


def stored_as(tensors, layout):
    """The names and shapes of the repositories from before transformers had the family, after its conversion_mapping.py."""
    out = {}
    for name, value in tensors.items():
        for new, old in layout.get("names", []):
            name = name.replace(new, old)
        out[name] = value
    for joined, parts in layout.get("joined", []):
        for first in [n for n in out if parts[0] in n]:
            out[first.replace(parts[0], joined)] = torch.cat([out.pop(first.replace(parts[0], part)) for part in parts], 0)
    return out


NOMIC = {"names": [("embeddings.LayerNorm", "emb_ln"), ("post_attention_layernorm", "norm1"), ("post_mlp_layernorm", "norm2"),
                   ("up_proj", "fc11"), ("gate_proj", "fc12"), ("down_proj", "fc2"), ("self_attn.o_proj", "attn.out_proj"),
                   ("layers.", "encoder.layers.")],
         "joined": [("attn.Wqkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])]}
GTE = {"names": [("self_attn.o_proj", "attention.o_proj"), ("post_attention_layernorm", "attn_ln"), ("post_mlp_layernorm", "mlp_ln"),
                 ("layers.", "encoder.layer.")],
       "joined": [("attention.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                  ("mlp.up_gate_proj", ["mlp.up_proj", "mlp.gate_proj"])]}


def small(base, name, architecture, make_tokenizer, config, modes=("mean",), dense=(), normalize=True, limit=64, prompts=None,
          default=None, include_prompt=True, layout=None, prefix="", counts=(), from_zero=False, sharp_by=2.0, dtype=torch.float16):
    torch.manual_seed(sum(map(ord, name)))
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    work = folder + ".work"
    os.makedirs(work)
    fast = make_tokenizer(work, base)
    config_class = getattr(transformers, architecture.removesuffix("Model") + "Config")
    ids = {"pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    settings = config_class(vocab_size=max(fast.get_vocab().values()) + 1, **ids, **config)
    model_class = getattr(transformers, architecture)
    model = model_class(settings).eval()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    randomize(model, from_zero, sharp_by)
    model = model.to(dtype).to(torch.float32)
    model.save_pretrained(work)
    fast.save_pretrained(work)
    transformer = models.Transformer(work, max_seq_length=limit)
    flags = {mode: True for mode in modes}
    keys = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
            "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
            "lasttoken": "pooling_mode_lasttoken"}
    width = settings.hidden_size if hasattr(settings, "hidden_size") else settings.dim
    chain = [transformer, models.Pooling(width, **{key: mode in flags for mode, key in keys.items()}, include_prompt=include_prompt)]
    width *= len(modes)
    for out_features, bias, activation in dense:
        chain.append(models.Dense(width, out_features, bias=bias, activation_function=activation))
        width = out_features
    if normalize:
        chain.append(models.Normalize())
    whole = SentenceTransformer(modules=chain, device="cpu", prompts=prompts, default_prompt_name=default).eval()
    whole.save(folder, create_model_card=False)
    weights = os.path.join(folder, "model.safetensors")
    own = {key: value for key, value in model.state_dict().items()}
    stored = {prefix + key: value.to(dtype).contiguous() for key, value in stored_as(own, layout or {}).items()}
    save_file(stored, weights, metadata={"format": "pt"})
    shutil.rmtree(work)
    # What is committed is what is compared with: load it once more.
    again = SentenceTransformer(folder, device="cpu").eval()
    texts = [sentence(n, n) for n in (0, 1, 30, 7)]
    apart = abs(again.encode(texts, prompt="") - whole.encode(texts, prompt="")).max()
    alone = abs(torch.tensor(again.encode(texts, prompt="") - [again.encode(text, prompt="") for text in texts])).max()
    with open(os.path.join(folder, "golden.jsonl"), "w") as out:
        for n in (0, 1, 2, 7, 20, 50, 62, 90, *counts):
            out.write(line(again, sentence(n, n), prompt=prompts and ""))
        for text in ("Working, houses; 42 unknown é 北京 words!", "  two  blanks,\n\nlines\tand tabs  ", "<pad> <mask> </s> [MASK] <|im_end|>"):
            out.write(line(again, text, prompt=prompts and ""))
        for prompt in (prompts or {}).values():
            for n in (0, 3, 40, 90):
                out.write(line(again, sentence(n, n), prompt=prompt))
    for path, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(path, file), 0o644)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(f"{name}: {size} bytes, reloaded {apart:.1e} apart, in company {alone:.1e} apart")


def main():
    base, only = sys.argv[1], sys.argv[2:]
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    less = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    none, tanh = torch.nn.Identity(), torch.nn.Tanh()
    made = {}

    def add(name, *args, **more):
        made[name] = (args, more)

    add("gelu-new", "BertModel", bert_tokenizer, {**less, "max_position_embeddings": 128, "hidden_act": "gelu_new", "layer_norm_eps": 0.05})
    add("roberta", "RobertaModel", roberta, {**sizes, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        limit=96, prefix="roberta.")
    add("xlm-roberta", "XLMRobertaModel", unigram, {**sizes, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        modes=["cls"], limit=96, prompts={"query": "query: ", "passage": "passage: "})
    add("camembert", "CamembertModel", unigram, {**less, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 0.05},
        modes=["mean", "max"], dense=[(32, True, tanh)])
    add("distilbert", "DistilBertModel", bert_tokenizer, {"dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4,
        "max_position_embeddings": 128}, normalize=False, limit=128, prefix="distilbert.")
    add("distilbert-relu", "DistilBertModel", bert_tokenizer, {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2,
        "max_position_embeddings": 128, "activation": "relu"}, modes=["weightedmean"], dense=[(24, False, tanh)])
    add("mpnet", "MPNetModel", mpnet_tokenizer, {**sizes, "max_position_embeddings": 302, "layer_norm_eps": 1e-5}, limit=300,
        counts=(120, 260, 300))
    modern = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 72, "local_attention": 16,
              "global_attn_every_n_layers": 3, "max_position_embeddings": 512, "cls_token_id": 1, "sep_token_id": 2}
    add("modernbert", "ModernBertModel", modernbert_tokenizer, modern, modes=["cls"], limit=300, sharp_by=1.0, prompts={"search_query": "search_query: ",
        "search_document": "search_document: "}, counts=(130, 260))
    add("modernbert-bias", "ModernBertModel", modernbert_tokenizer, {**modern, **less, "num_hidden_layers": 3, "norm_eps": 0.05, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
        "local_attention": 10}, include_prompt=False, prompts={"query": "find the "}, prefix="model.")
    nomic = {**sizes, "max_position_embeddings": 256}
    add("nomic", "NomicBertModel", bert_tokenizer, nomic, limit=200, prompts={"query": "search_query: ", "document": "search_document: "},
        counts=(120, 230))
    add("nomic-hub", "NomicBertModel", bert_tokenizer, {**nomic, **less, "layer_norm_eps": 0.05}, layout=NOMIC)
    qwen = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "intermediate_size": 80, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
    add("qwen3", "Qwen3Model", qwen_tokenizer, qwen, modes=["lasttoken"], limit=300, counts=(130, 260), dtype=torch.bfloat16,
        prompts={"query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:", "document": ""})
    add("qwen3-bias", "Qwen3Model", qwen_tokenizer, {**qwen, **less, "rms_norm_eps": 0.05, "num_attention_heads": 6, "num_key_value_heads": 1, "attention_bias": True},
        prefix="model.", include_prompt=False, prompts={"query": "find the "}, modes=["weightedmean"])
    gemma = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32,
             "intermediate_size": 80, "max_position_embeddings": 512, "query_pre_attn_scalar": 16, "sliding_window": 24,
             "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
             "use_bidirectional_attention": True}
    add("gemma3", "Gemma3TextModel", gemma_tokenizer, gemma, dense=[(96, False, none), (48, False, none)], limit=300, from_zero=True,
        dtype=torch.bfloat16, counts=(130, 260), prompts={"query": "task: search result | query: ", "document": "title: none | text: "})
    add("gemma3-causal", "Gemma3TextModel", gemma_tokenizer, {**gemma, "rms_norm_eps": 0.05, "head_dim": 16, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "use_bidirectional_attention": False, "sliding_window": 9,
        "query_pre_attn_scalar": 24}, modes=["lasttoken"], from_zero=True)
    gte = {**sizes, "max_position_embeddings": 256, "type_vocab_size": 1}
    add("gte", "GteModel", unigram, {**gte, "hidden_size": 64, "num_attention_heads": 2}, modes=["cls"], limit=200, counts=(150,))
    add("gte-hub", "GteModel", bert_tokenizer, {**gte, **less, "layer_norm_eps": 0.05, "type_vocab_size": 0}, layout=GTE, prefix="new.")
    for name, (args, more) in made.items():
        if not only or name in only:
            small(base, name, *args, **more)


if __name__ == "__main__":
    main()
