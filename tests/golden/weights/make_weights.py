#!/usr/bin/env python3
"""Makes the weight files of this folder with PyTorch, and beside each FILE.pth the values that torch.load gives (FILE.expected.safetensors).

Usage: python3 make_weights.py    (in this folder; needs torch, numpy, safetensors; the versions are written to VERSIONS)
"""
import argparse
import collections
import os
import pathlib
import pickle
import sys

import numpy as np
import safetensors
import safetensors.torch
import torch

torch.manual_seed(20)


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


def save(name, obj, **options):
    torch.save(obj, f"{name}.pth", **options)
    expect(name, obj)


def all_types():
    f = torch.randn(3, 5) * 10
    return collections.OrderedDict(
        f32=f, f16=f.half(), bf16=f.bfloat16(), f64=f.double() / 3, i64=torch.tensor([-5, 0, 2**40]), i32=torch.tensor([-7, 2**30], dtype=torch.int32),
        i16=torch.tensor([-300, 300], dtype=torch.int16), i8=torch.tensor([-128, 127], dtype=torch.int8), u8=torch.tensor([0, 255], dtype=torch.uint8),
        flag=torch.tensor([True, False, True]), scalar=torch.tensor(0.5), batches=torch.tensor(1234567), empty=torch.zeros(0, 4))


class Evil:
    """What an attacker would put into a file: a call on loading."""

    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def main():
    save("plain", all_types())
    save("protocol4", {"a": torch.randn(2, 3), "b": {"c": torch.randn(4), "n": 3, "s": {1, 2}, "t": (1, 2, 3, 4), "x": b"bytes"}}, pickle_protocol=4)

    args = argparse.Namespace(output=pathlib.PosixPath("out"), lr=0.1, seeds=[1, 2**70])
    parameter = torch.nn.Parameter(torch.randn(2, 2))
    save("nested", {"teacher": {"backbone.x": torch.randn(3), "backbone.y": parameter, "head": None},
                    "student": {"module.backbone.x": torch.randn(3)},
                    "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.randn(3)}}, "param_groups": [{"params": [0], "lr": 1e-3}]},
                    "epoch": 7, "args": args, "loss": np.float64(0.25), "done": True, "list": [torch.randn(1), torch.randn(2)]})

    # A bare state_dict carries _metadata, which pickle stores with BUILD.
    model = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))
    save("module", model.state_dict())

    base = torch.randn(4, 6)
    save("views", {"base": base, "transposed": base.t(), "row": base[2], "column": base[:, 1], "block": base[1:3, 2:5], "steps": base[::2, ::3],
                   "expanded": base[0, :1].expand(3, 4), "one": base[3, 5], "permuted": torch.randn(2, 3, 4).permute(2, 0, 1)})

    # Tensors beside a payload: they may be read, the payload must not run (torch.load is not called here).
    torch.save({"evil": Evil(), "w": torch.arange(4.0)}, "malicious.pth")
    expect("malicious", {"w": torch.arange(4.0)})

    torch.save({"w": torch.arange(4.0)}, "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), "whole_module.pth")
    torch.save(torch.arange(4.0), "bare_tensor.pth")
    torch.save({"epoch": 3, "loss": [1.0, 2.0]}, "no_tensors.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save("script.pt")
    with open("bare_pickle.pkl", "wb") as f:
        pickle.dump({"w": [1.0, 2.0]}, f, protocol=2)

    # The tensors that tests/unit/test_safetensors.c writes: its file must equal these bytes.
    safetensors.torch.save_file(
        {"z.f32": torch.tensor([[1.0, -2.5, 3.25], [0.0, 1e-8, 65504.0]]), "a.f32": torch.tensor(7.0), "half": torch.tensor([1.0, -2.0, 0.5]).half(),
         "brain": torch.tensor([1.0, 3.0]).bfloat16(), "double": torch.tensor([0.1], dtype=torch.float64), "long": torch.tensor([[-1], [2**40]]),
         "int": torch.tensor([-3], dtype=torch.int32), "short": torch.tensor([-4, 5, 6], dtype=torch.int16), "char": torch.tensor([-5], dtype=torch.int8),
         "byte": torch.tensor([250, 1, 2], dtype=torch.uint8), "flag": torch.tensor([True, False]), "none": torch.zeros(0, 3),
         'quote " and \\ and ü': torch.tensor([9.0])},
        "reference.safetensors", metadata={"format": "pt"})

    assert not os.path.exists("EXECUTED")
    with open("VERSIONS", "w") as f:
        f.write(f"made by make_weights.py with python {sys.version.split()[0]}, torch {torch.__version__}, numpy {np.__version__}, "
                f"safetensors {safetensors.__version__}\n")


main()
