#!/usr/bin/env python3
"""Makes the weight files of this folder that hold a pickled torch.nn.Module, and beside each what PyTorch's own state_dict() of the module gives.

Usage: python3 make_modules.py    (in this folder; needs torch, safetensors; the versions are written to VERSIONS.modules)

The files have the layout of ultralytics' checkpoints; its classes are stood in for by small ones of the same names.
"""
import copy
import sys
import types

import safetensors
import safetensors.torch
import torch

torch.manual_seed(22)

tasks, conv = types.ModuleType("ultralytics.nn.tasks"), types.ModuleType("ultralytics.nn.modules.conv")
for name, module in (("ultralytics", types.ModuleType("ultralytics")), ("ultralytics.nn", types.ModuleType("ultralytics.nn")), (tasks.__name__, tasks),
                     ("ultralytics.nn.modules", types.ModuleType("ultralytics.nn.modules")), (conv.__name__, conv)):
    sys.modules[name] = module


class Conv(torch.nn.Module):
    __module__ = conv.__name__

    def __init__(self, c1, c2):
        super().__init__()
        self.conv = torch.nn.Conv2d(c1, c2, 1, bias=False)
        self.bn = torch.nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = torch.nn.SiLU()


class DetectionModel(torch.nn.Module):
    __module__ = tasks.__name__

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(Conv(3, 2), torch.nn.Sequential(Conv(2, 2), torch.nn.Linear(2, 1)))
        self.model[1].register_module("nothing", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("scratch", torch.randn(2), persistent=False)
        self.register_buffer("other_scratch", torch.randn(2), persistent=False)
        self.register_buffer("empty", None)
        self.register_parameter("absent", None)
        self.scale = torch.nn.Parameter(torch.randn(2))
        self.stride = torch.tensor([8.0, 16.0, 32.0])  # an attribute: no part of the state_dict
        self.yaml = {"nc": 80, "scales": {"n": [0.33, 0.25, 1024]}}
        self.names = {0: "person"}
        self.save = [4, 6, 9]


conv.Conv, tasks.DetectionModel = Conv, DetectionModel


def expect(name, module):
    """f32 for floating tensors (what kd_weights_read_f32 returns), int64 for the others."""
    out = {k: (v.float() if v.is_floating_point() else v.long()).contiguous().clone() for k, v in module.state_dict().items()}
    safetensors.torch.save_file(out, f"{name}.expected.safetensors", metadata={"format": "pt"})


def main():
    # What ultralytics' trainer writes: the average of the weights in half precision, the optimizer's state beside it.
    model = DetectionModel()
    ema = copy.deepcopy(model).half()
    torch.save({"epoch": 3, "best_fitness": 0.5, "model": None, "ema": ema, "updates": 7, "optimizer": {"state": {0: {"momentum_buffer": torch.randn(2)}}},
                "train_args": {"imgsz": 640}, "train_metrics": {"fitness": 0.5}, "date": "2026-01-01", "version": "8.4.0"}, "module_ema.pt")
    expect("module_ema", ema)

    # A finished training, stripped: the weights under "model". Protocol 4 writes sets with their own opcodes. A layer that is used twice is listed twice.
    model.twice = model.model[0]
    torch.save({"model": model, "ema": None, "updates": None, "optimizer": None}, "module_model.pt", pickle_protocol=4)
    expect("module_model", model)

    # Both are there: the average is what ultralytics loads.
    torch.save({"model": model, "ema": ema}, "module_both.pt")
    expect("module_both", ema)

    # torch.save(module), as it is and in the format before PyTorch 1.6, which names the class by a persistent id with its source.
    torch.save(torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))), "module_alone.pt")
    expect("module_alone", torch.load("module_alone.pt", weights_only=False))
    torch.serialization.get_source_lines_and_file = lambda cls: (["class X: ..."], 1, "x.py")  # PyTorch's own texts don't belong into this file
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)), "module_legacy.pt", _use_new_zipfile_serialization=False)
    expect("module_legacy", torch.load("module_legacy.pt", weights_only=False))
    expect("whole_module", torch.load("whole_module.pth", weights_only=False))  # of make_weights.py

    # A state_dict under "ema" is no module, and one that is nested elsewhere isn't what the file is about: dictionaries, as ever.
    plain = {"model": torch.nn.Linear(2, 2), "ema": {"w": torch.randn(3)}, "more": {"net": torch.nn.Linear(2, 2), "b": torch.randn(2)}}
    torch.save(plain, "module_ignored.pt")
    safetensors.torch.save_file({"ema.w": plain["ema"]["w"], "more.b": plain["more"]["b"]}, "module_ignored.expected.safetensors", metadata={"format": "pt"})
    with open("VERSIONS.modules", "w") as f:
        f.write(f"made by make_modules.py with python {sys.version.split()[0]}, torch {torch.__version__}, safetensors {safetensors.__version__}\n")


main()
