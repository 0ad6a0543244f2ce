#!/usr/bin/env python3
"""Makes the weight files of this folder that need a current PyTorch, and beside each the values that it gives back (as make_weights.py).

Usage: python3 make_more.py    (in this folder; needs torch, transformers, safetensors; the versions are written to VERSIONS.more)
"""
import argparse
import collections
import enum
import functools
import os
import pathlib
import sys
import types

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers

torch.manual_seed(21)


def flat(obj, prefix=""):
    """Tensors of nested dicts and lists, names joined with '.'."""
    items = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, (list, tuple)) else []
    for key, value in items:
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, torch.Tensor):
            yield name, value.detach()
        else:
            yield from flat(value, name)


def expect(name, obj):
    """f32 for floating tensors (what kd_weights_read_f32 returns), int64 for the others."""
    out = {k: (v.float() if v.is_floating_point() else v.long()).contiguous().clone() for k, v in flat(obj)}
    safetensors.torch.save_file(out, f"{name}.expected.safetensors", metadata={"format": "pt"})


def save(name, obj, ending=".pth", **options):
    torch.save(obj, name + ending, **options)
    expect(name, obj)


LEGACY = {"_use_new_zipfile_serialization": False}


class Evil:
    """What an attacker would put into a file: a call on loading."""

    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def all_types():
    f = torch.randn(3, 5) * 10
    return collections.OrderedDict(
        f32=f, f16=f.half(), bf16=f.bfloat16(), f64=f.double() / 3, i64=torch.tensor([-5, 0, 2**40]), i32=torch.tensor([-7, 2**30], dtype=torch.int32),
        i16=torch.tensor([-300, 300], dtype=torch.int16), i8=torch.tensor([-128, 127], dtype=torch.int8), u8=torch.tensor([0, 255], dtype=torch.uint8),
        flag=torch.tensor([True, False, True]), scalar=torch.tensor(0.5), batches=torch.tensor(1234567), empty=torch.zeros(0, 4))


def views():
    base = torch.randn(4, 6)
    return {"base": base, "transposed": base.t(), "row": base[2], "column": base[:, 1], "block": base[1:3, 2:5], "steps": base[::2, ::3],
            "expanded": base[0, :1].expand(3, 4), "one": base[3, 5], "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
            "bytes": torch.arange(7, dtype=torch.uint8), "after": torch.randn(5)}


def nested():
    args = argparse.Namespace(output=pathlib.PosixPath("out"), lr=0.1, seeds=[1, 2**70, 2**3000], kinds=frozenset({1, 2}), raw=bytearray(b"raw"))
    return {"teacher": {"backbone.x": torch.randn(3), "backbone.y": torch.nn.Parameter(torch.randn(2, 2)), "head": None},
            "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.randn(3)}}, "param_groups": [{"params": [0], "lr": 1e-3}]},
            "epoch": 7, "args": args, "loss": np.float64(0.25), "array": np.arange(6.0), "list": [torch.randn(1), torch.randn(2)]}


def modern():
    """What a current torch writes beside the tensors: Parameters with and without attributes, tied weights, _metadata (BUILD)."""
    model = torch.nn.Sequential(collections.OrderedDict(a=torch.nn.Linear(3, 3), n=torch.nn.BatchNorm1d(3), b=torch.nn.Linear(3, 3)))
    model.b.weight = model.a.weight
    marked = torch.nn.Parameter(torch.randn(2))
    marked.no_weight_decay = True
    noted = torch.randn(2, 2)
    noted.source = "a tensor with an attribute"
    return {"model": model.state_dict(keep_vars=True), "marked": marked, "noted": noted, "buffer": torch.nn.Buffer(torch.randn(3)), "size": torch.Size([1, 2])}


class Stage(enum.Enum):
    FIT = "fit"


class Config:
    def __init__(self):
        self.width = 3


def lightning():
    """The layout of a Lightning checkpoint, with classes of modules that the reader doesn't have (a stand-in for Lightning's own)."""
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    parsing.AttributeDict = type("AttributeDict", (dict,), {"__module__": parsing.__name__})
    sys.modules["pytorch_lightning"] = types.ModuleType("pytorch_lightning")
    sys.modules["pytorch_lightning.utilities"] = types.ModuleType("pytorch_lightning.utilities")
    sys.modules[parsing.__name__] = parsing
    key = "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, 'train_time_interval': None}"
    progress = {"total": {"ready": 3, "completed": 3}, "current": {"ready": 3, "completed": 3}}
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict([("model.embedding.weight", torch.randn(2, 3)), ("model.head.bias", torch.randn(2))]),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": progress, "epoch_loop.state_dict": {"_batches_that_stepped": 12}}},
        "callbacks": {key: {"best_model_score": torch.tensor(0.5), "best_k_models": {"a.ckpt": torch.tensor(0.5)}, "dirpath": pathlib.PosixPath("x")},
                      Config: {"saved": None}, Stage.FIT: 1},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(12.0), "exp_avg": torch.randn(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [{"base_lrs": [0.1], "_last_lr": [np.float32(0.1)]}], "hparams_name": "kwargs",
        "hyper_parameters": parsing.AttributeDict(stage=Stage.FIT, config=Config(), net=torch.nn.Linear, make=functools.partial(torch.nn.ReLU, inplace=True),
                                                  dtype=torch.float32, device=torch.device("cpu"), path=pathlib.PosixPath("/data"), seed=np.int64(7)),
        "rng": {"python": (3, tuple(range(2**32 - 5, 2**32)), None), "torch": torch.arange(16, dtype=torch.uint8)},
        "collection": collections.defaultdict(list, a=[1]), "counts": collections.Counter("abca")}


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
    save("modern", modern())
    save("lightning", lightning(), ending=".ckpt")
    save("legacy_types", all_types(), **LEGACY)
    save("legacy_views", views(), pickle_protocol=4, **LEGACY)
    save("legacy_nested", nested(), pickle_protocol=3, **LEGACY)
    save("protocol5", nested(), pickle_protocol=5)

    torch.serialization.set_crc32_options(False)
    save("without_crc", {"w": torch.randn(3)})
    torch.serialization.set_crc32_options(True)

    # Tensors beside a payload: they may be read, the payload must not run (torch.load is not called here).
    payload = {"evil": Evil(), "w": torch.arange(4.0)}
    torch.save(payload, "malicious_legacy.pth", **LEGACY)
    torch.save(payload, "malicious_protocol4.pth", pickle_protocol=4)
    for name in ["malicious_legacy", "malicious_protocol4"]:
        expect(name, {"w": torch.arange(4.0)})
    assert not os.path.exists("EXECUTED")
    with open("VERSIONS.more", "w") as f:
        f.write(f"made by make_more.py with python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}, "
                f"safetensors {safetensors.__version__}\n")


main()
