#!/usr/bin/env python3
"""Makes the weight files of this folder that need a current PyTorch, and beside each the values that it gives back (as make_weights.py).

Usage: python3 make_more.py    (in this folder; needs torch, transformers, safetensors; the versions are written to VERSIONS.more)
"""
import collections
import os
import sys

import safetensors
import safetensors.torch
import torch
import transformers

torch.manual_seed(21)


def sharded():
    """A set of shards with index, as transformers writes it, and what the safetensors package reads from them in one file."""
    config = transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, mlp_ratio=1, image_size=28, patch_size=4)
    model = transformers.Dinov2Model(config)
    model.save_pretrained("sharded", max_shard_size="3KB")
    os.remove("sharded/config.json")
    tensors = {}
    for file in sorted(os.listdir("sharded")):
        if file.endswith(".safetensors"):
            tensors.update(safetensors.torch.load_file(f"sharded/{file}"))
    assert sorted(t.sum().item() for t in tensors.values()) == sorted(t.sum().item() for t in model.state_dict().values())
    safetensors.torch.save_file(tensors, "sharded.expected.safetensors", metadata={"format": "pt"})


def main():
    sharded()
    with open("VERSIONS.more", "w") as f:
        f.write(f"made by make_more.py with python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}, "
                f"safetensors {safetensors.__version__}\n")


main()
