#!/usr/bin/env python3
"""An exported YOLO backbone as a checkpoint that ultralytics trains from.

    python to_ultralytics.py --weights yolov8n.safetensors --out distilled.pt
    yolo train model=distilled.pt data=coco8.yaml

--weights is what `kd-export` writes (.safetensors or .pth); it says itself which model it is. The rest of the detector, neck and head, is random, or that of a released checkpoint: --rest yolov8n.pt.

What train() starts from is the file. It doesn't train the module that a YOLO object holds: it builds the network again from the configuration in the checkpoint and copies the tensors of equal names into it. So weights that
are only loaded into YOLO("yolov8n.yaml").model are lost, and so is anything about a module that isn't a tensor. Which matters here: releases from YOLO26's on, until pull request 26040, build the SPPF of yolov8.yaml and yolo11.yaml
without the activation of its first convolution. The same weights then give other features. In such a release the configuration that is written says SPP with pools of 5, 9 and 13 in place of SPPF with 5: the same function (a maximum
over 9 is one over 5 of one over 5), the same names and tensors, and the activation is there.

Needs torch, ultralytics, safetensors."""
import argparse
import copy
import json
import sys
import zipfile

import torch
import ultralytics
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

SPPF_LAYER = 9


def read(path):
    """(tensors, metadata) of an export."""
    if path.endswith(".safetensors"):
        from safetensors import safe_open
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    with zipfile.ZipFile(path) as z:
        metadata = json.loads(z.read("archive/kdcache.json"))
    return torch.load(path, map_location="cpu", weights_only=True), metadata


def has_activation(model):
    return isinstance(model.model[SPPF_LAYER].cv1.act, torch.nn.SiLU)


def with_activation(model):
    """The same detector, from a configuration that this release builds with the activation."""
    if has_activation(model):
        return model
    config = copy.deepcopy(model.yaml)
    source, repeats, kind, arguments = config["backbone"][SPPF_LAYER]
    assert kind == "SPPF" and arguments[1] == 5, config["backbone"][SPPF_LAYER]
    config["backbone"][SPPF_LAYER] = [source, repeats, "SPP", [arguments[0], [5, 9, 13]]]
    again = DetectionModel(config, verbose=False)
    again.load_state_dict(model.state_dict(), strict=True)
    assert has_activation(again)
    print("ultralytics %s builds SPPF without its first activation: the checkpoint's configuration says SPP with pools of 5, 9, 13, which is the same function with it" % ultralytics.__version__)
    return again


def convert(weights, out, rest=None):
    """Writes the checkpoint; returns its detector."""
    tensors, metadata = read(weights)
    name = (metadata or {}).get("model", "")
    if (metadata or {}).get("library") != "ultralytics":
        sys.exit("%s: is %s, not a YOLO backbone that kd-export wrote" % (weights, name or "a file without kdcache's metadata"))
    model = with_activation(YOLO(rest or name + ".yaml").model.float())
    layers = 1 + max(int(k.split(".")[1]) for k in tensors)
    backbone = {k[len("model."):]: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    model.model[:layers].load_state_dict(backbone, strict=True)
    torch.save({"epoch": -1, "best_fitness": None, "model": model, "ema": None, "updates": None, "optimizer": None, "train_args": {}, "version": ultralytics.__version__, "kdcache": metadata}, out)
    return model


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", required=True, help="exported backbone")
    p.add_argument("--out", required=True, help="FILE.pt to write")
    p.add_argument("--rest", help="released .pt of the same model that neck and head are taken from; default: random")
    a = p.parse_args()
    convert(a.weights, a.out, a.rest)
    print("wrote %s; yolo train model=%s starts from it" % (a.out, a.out))
