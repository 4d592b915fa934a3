#!/usr/bin/env python3
"""Exports a BERT model folder to ONNX, as the peers read it: export.py MODEL_DIR OUT.onnx"""
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModel


class Hidden(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state


ids = torch.randint(1000, 20000, (2, 12))
mask = torch.ones_like(ids)
mask[1, 8:] = 0
names = ["input_ids", "attention_mask", "token_type_ids"]
# The TorchScript exporter: its graph is the one that the runtimes' fusions recognise.
torch.onnx.export(
    Hidden(sys.argv[1]), (ids, mask, torch.zeros_like(ids)), sys.argv[2], input_names=names,
    output_names=["hidden"], opset_version=17, dynamo=False,
    dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names + ["hidden"]})
