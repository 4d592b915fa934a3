#!/usr/bin/env python3
"""The engine beside OpenVINO and ONNX Runtime, interleaved in one run; prints ratios of medians.

    peers.py --binary target/release/embeddings --model DIR --onnx model.onnx [--quantised DIR]
             [--precisions f32,bf16,int8] [--workloads short,mixed,long,one] [--rounds 5] [--fraction 1.0]

All compute on the same threads. Each peer runs as it is fastest on a CPU: one thread a batch, one batch a thread at
once, sorted by length, some 512 padded tokens to a batch; a single text (workload `one`) on all threads. Counted are
real tokens, never padding; the clock runs from text to vectors, and for the engine it includes JSON in both
directions. Beside the clock stands processor time, which a busy machine disturbs less.
"""
import argparse
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
from tokenizers import Tokenizer

import texts as workload

BATCH_TOKENS = 512
# Smallest cosine to 32 bits that each of ours has to keep; the peers' own is only told.
LEAST = {"f32": 0.99999, "bf16": 0.9999, "int8": 0.998}

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
    def __init__(self, args, file, precision):
        super().__init__(args)
        import openvino
        core = openvino.Core()
        model = core.read_model(file)
        names = {name for place in model.inputs for name in place.get_names()}
        self.feed = lambda feed: {name: value for name, value in feed.items() if name in names}
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": args.threads}
        many = core.compile_model(model, "CPU", {**settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": args.threads})
        self.queue = openvino.AsyncInferQueue(many, args.threads)
        self.queue.set_callback(self.done)
        self.single = core.compile_model(model, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"}).create_infer_request()

    def done(self, request, user):
        rows, feed = user
        self.out[rows] = self.pool(request.get_output_tensor(0).data, feed)

    def embed(self, texts):
        self.out = np.empty((len(texts), 384), np.float32)
        if len(texts) == 1:
            for rows, feed in self.batches(texts):
                self.out[rows] = self.pool(self.single.infer(self.feed(feed), share_inputs=True)[0], feed)
            return self.out
        for rows, feed in self.batches(texts):
            self.queue.start_async(self.feed(feed), (rows, feed))
        self.queue.wait_all()
        return self.out


class OnnxRuntime(Graph):
    def __init__(self, args, file):
        super().__init__(args)
        import onnxruntime

        def session(threads):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        self.threads, self.many, self.single = args.threads, session(1), session(args.threads)
        self.names = {place.name for place in self.many.get_inputs()}

    def run(self, session, feed):
        return self.pool(session.run(None, {name: value for name, value in feed.items() if name in self.names})[0], feed)

    def embed(self, texts):
        out = np.empty((len(texts), 384), np.float32)
        if len(texts) == 1:
            for rows, feed in self.batches(texts):
                out[rows] = self.run(self.single, feed)
            return out
        batches, lock = self.batches(texts), threading.Lock()

        def work():
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                out[batch[0]] = self.run(self.many, batch[1])

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return out


class Ours:
    def __init__(self, args, precision):
        command = [args.binary, "embed", "--model", args.model, "--threads", str(args.threads), "--precision", precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def embed(self, texts):
        line = (json.dumps(texts) + "\n").encode()
        if len(line) <= select.PIPE_BUF:
            # The pipe takes it whole. A thread for each text would be the harness's time, not the engine's.
            self.process.stdin.write(line)
            self.process.stdin.flush()
            return self.process.stdout.readline()
        writer = threading.Thread(target=lambda: (self.process.stdin.write(line), self.process.stdin.flush()))
        writer.start()
        answer = self.process.stdout.readline()
        writer.join()
        return answer

    def processor_seconds(self):
        # The name of the command stands in brackets and may hold spaces.
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processor_seconds(engine):
    if isinstance(engine, Ours):
        return engine.processor_seconds()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def contenders(args):
    """By precision: ours first, then its peers."""
    found = {}
    for precision in args.precisions.split(","):
        engines = {"embeddings": Ours(args, precision)}
        if precision in ("f32", "bf16"):
            engines["openvino"] = OpenVino(args, args.onnx, precision)
        if precision == "f32":
            engines["onnxruntime"] = OnnxRuntime(args, args.onnx)
        if precision == "int8":
            file = os.path.join(args.quantised, "openvino.xml")
            engines["openvino"] = OpenVino(args, file, "f32")
            engines["openvino/bf16"] = OpenVino(args, file, "bf16")
            engines["onnxruntime"] = OnnxRuntime(args, os.path.join(args.quantised, "ort.onnx"))
        found[precision] = engines
    return found


def vectors(answer):
    return np.array(json.loads(answer), np.float32) if isinstance(answer, bytes) else answer


def one_by_one(engines, texts, rounds):
    """Milliseconds for each text, alone."""
    times = {name: [] for name in engines}
    part = texts[:40]
    for _ in range(rounds):
        for name, engine in engines.items():
            for text in part:
                start = time.perf_counter()
                engine.embed([text])
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--quantised", help="what quantise.py made; needed for int8")
    parser.add_argument("--precisions", default="f32,bf16,int8")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--workloads", default="short,mixed,long,one")
    args = parser.parse_args()
    tokenizer = Graph(args).tokenizer
    texts, hashes = workload.workloads(tokenizer, args.fraction)
    reference = OnnxRuntime(args, args.onnx)
    for precision, engines in contenders(args).items():
        sample = texts["mixed"][:64] + texts["short"][:64]
        wanted = reference.embed(sample)
        for name, engine in engines.items():
            least = float((vectors(engine.embed(sample)) * wanted).sum(1).min())
            print(f"{precision} {name}: smallest cosine to f32 {least:.6f}")
            assert name != "embeddings" or least >= LEAST[precision] - 1e-6, "ours is too far away"
        for workload_name in args.workloads.split(","):
            if workload_name == "one":
                times = one_by_one(engines, texts["short"], args.rounds)
                print(f"{precision} one: a short text at a time, {args.threads} threads, {args.rounds} rounds")
                base = statistics.median(times["embeddings"])
                for name, values in times.items():
                    values.sort()
                    middle = statistics.median(values)
                    print(f"  {name:14} p50 {middle:6.2f} ms, least {values[0]:5.2f}, p99 {values[len(values) * 99 // 100]:6.2f}"
                          f"  embeddings takes {base / middle:.2f} of it")
                continue
            part = texts[workload_name]
            tokens = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(part))
            rates, work = {name: [] for name in engines}, {name: [] for name in engines}
            for _ in range(args.rounds):
                for name, engine in engines.items():
                    before, start = processor_seconds(engine), time.perf_counter()
                    engine.embed(part)
                    rates[name].append(tokens / (time.perf_counter() - start))
                    work[name].append(tokens / max(processor_seconds(engine) - before, 1e-2))
            print(f"{precision} {workload_name}: {len(part)} texts, {tokens} tokens, sha256 {hashes[workload_name]},"
                  f" {args.threads} threads, {args.rounds} rounds")
            ours, ours_work = statistics.median(rates["embeddings"]), statistics.median(work["embeddings"])
            for name, values in rates.items():
                middle, each = statistics.median(values), statistics.median(work[name])
                print(f"  {name:14} {middle:8.0f} tokens/s ({min(values):.0f}-{max(values):.0f}), embeddings has {ours / middle:.2f} of it;"
                      f" {each:7.0f} a second of processor time, {ours_work / each:.2f}")
            sys.stdout.flush()
        engines["embeddings"].process.stdin.close()
        engines["embeddings"].process.wait()


if __name__ == "__main__":
    main()
