#!/usr/bin/env python3
"""The peers' files in bytes, from the export: quantise.py MODEL_DIR model.onnx OUT_DIR

openvino.xml  static, calibrated on 300 texts that are in no workload, with SmoothQuant (NNCF)
ort.onnx      dynamic, weights per channel, BERT's fusions applied first
"""
import os
import random
import sys

import nncf
import numpy as np
import onnx
import openvino
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from tokenizers import Tokenizer

import texts as workload

model, source, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(128)


def item(text):
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


paragraphs = workload.paragraphs()
texts = random.Random(7).sample(paragraphs, min(300, len(paragraphs)))
quantised = nncf.quantize(
    openvino.Core().read_model(source), nncf.Dataset(texts, item), model_type=nncf.ModelType.TRANSFORMER,
    preset=nncf.QuantizationPreset.MIXED, subset_size=300)
openvino.save_model(quantised, os.path.join(out, "openvino.xml"), compress_to_fp16=False)

fused = os.path.join(out, "fused.onnx")
optimizer.optimize_model(source, model_type="bert", num_heads=12, hidden_size=384,
                         optimization_options=FusionOptions("bert"), opt_level=0).save_model_to_file(fused)
quantize_dynamic(fused, os.path.join(out, "ort.onnx"), weight_type=QuantType.QInt8, per_channel=True, reduce_range=False,
                 extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT})
