#!/usr/bin/env python3
"""The engine beside OpenVINO and ONNX Runtime, interleaved in one run; prints ratios of medians.

    peers.py --binary target/release/embeddings --model DIR --onnx model.onnx [--rounds 5] [--fraction 1.0]

All compute in f32 on the same threads. Each peer runs as it is fastest on a CPU: one thread a batch, one batch a
thread at once, sorted by length, some 512 padded tokens to a batch. Counted are real tokens, never padding; the
clock runs from text to vectors, and for the engine it includes JSON in both directions.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
from tokenizers import Tokenizer

import texts as workload

BATCH_TOKENS = 512


class Graph:
    """Shared by the runtimes: tokens, batches of like length, pooling."""

    def __init__(self, args):
        self.tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(workload.MAX_TOKENS)

    def batches(self, texts):
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        while order:
            longest = len(ids[order[0]])
            count = max(1, BATCH_TOKENS // longest)
            rows, order = order[:count], order[count:]
            feed = {name: np.zeros((len(rows), longest), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
            for row, i in enumerate(rows):
                feed["input_ids"][row, :len(ids[i])] = ids[i]
                feed["attention_mask"][row, :len(ids[i])] = 1
            yield rows, feed

    @staticmethod
    def pool(hidden, feed):
        mask = feed["attention_mask"].astype(np.float32)
        vectors = np.matmul(mask[:, None, :], hidden)[:, 0, :]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class OpenVino(Graph):
    def __init__(self, args):
        super().__init__(args)
        import openvino
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": args.threads,
                    "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": args.threads}
        self.queue = openvino.AsyncInferQueue(core.compile_model(core.read_model(args.onnx), "CPU", settings), args.threads)
        self.queue.set_callback(self.done)

    def done(self, request, user):
        rows, feed = user
        self.out[rows] = self.pool(request.get_output_tensor(0).data, feed)

    def embed(self, texts):
        self.out = np.empty((len(texts), 384), np.float32)
        for rows, feed in self.batches(texts):
            self.queue.start_async(feed, (rows, feed))
        self.queue.wait_all()
        return self.out


class OnnxRuntime(Graph):
    def __init__(self, args):
        super().__init__(args)
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.threads = args.threads
        self.session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])

    def embed(self, texts):
        out = np.empty((len(texts), 384), np.float32)
        batches, lock = self.batches(texts), threading.Lock()

        def work():
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                out[batch[0]] = self.pool(self.session.run(None, batch[1])[0], batch[1])

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return out


class Ours:
    def __init__(self, args):
        command = [args.binary, "embed", "--model", args.model, "--threads", str(args.threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def embed(self, texts):
        line = (json.dumps(texts) + "\n").encode()
        writer = threading.Thread(target=lambda: (self.process.stdin.write(line), self.process.stdin.flush()))
        writer.start()
        answer = self.process.stdout.readline()
        writer.join()
        return answer


def busy():
    """Ticks in which any process had a processor, and those that the hypervisor gave to others."""
    user, nice, system, _, _, irq, soft, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return user + nice + system + irq + soft, steal


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--workloads", default="short,mixed,long")
    args = parser.parse_args()
    tokenizer = Graph(args).tokenizer
    texts, hashes = workload.workloads(tokenizer, args.fraction)
    peers = {"embeddings": Ours(args), "openvino": OpenVino(args), "onnxruntime": OnnxRuntime(args)}
    tick = os.sysconf("SC_CLK_TCK")
    for name in args.workloads.split(","):
        part = texts[name]
        tokens = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(part))
        vectors, rates, cores = {}, {peer: [] for peer in peers}, {peer: [] for peer in peers}
        for peer, engine in peers.items():
            answer = engine.embed(part[:: max(1, len(part) // 64)])
            vectors[peer] = np.array(json.loads(answer), np.float32) if isinstance(answer, bytes) else answer
        for peer, vector in vectors.items():
            distance = float(np.abs(vector - vectors["openvino"]).max())
            assert distance < 1e-4, f"{peer} computes something else: {distance}"
        for _ in range(args.rounds):
            for peer, engine in peers.items():
                (began, stolen), start = busy(), time.perf_counter()
                engine.embed(part)
                seconds = time.perf_counter() - start
                (ended, stolen_now) = busy()
                rates[peer].append(tokens / seconds)
                cores[peer].append((ended - began + stolen_now - stolen) / tick / seconds)
        print(f"{name}: {len(part)} texts, {tokens} tokens, sha256 {hashes[name]}, {args.threads} threads, {args.rounds} rounds")
        base = statistics.median(rates["openvino"])
        for peer, values in rates.items():
            middle = statistics.median(values)
            print(f"  {peer:12} {middle:8.0f} tokens/s ({min(values):.0f}-{max(values):.0f})  {middle / base:.2f} x openvino"
                  f"  cores in use {statistics.median(cores[peer]):.2f}")
        sys.stdout.flush()
    peers["embeddings"].process.stdin.close()
    peers["embeddings"].process.wait()


if __name__ == "__main__":
    main()
