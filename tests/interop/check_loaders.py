#!/usr/bin/env python3
"""The loaders of docs/export.md, as they stand there: each is run in a folder that holds the file it names, and its `features` are those of `kd-eval features`.

    check_loaders.py --images DIR --weights TEACHER [--bin bin] [--only torchvision]

DINOv2's official code is found by KD_DINOV2, a checkout; without it that loader is skipped, and said so. Needs torch, torchvision, timm, safetensors, ultralytics, onnxruntime, Pillow."""
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))

import numpy as np
import torch

import reference as r

# section of the page: the students that its loader is run for (the name in it is replaced), and what must be importable. tests/cli/test_export_docs.sh checks that these are the page's sections.
LOADERS = {
    "torchvision": ["resnet18", "mobilenet_v3_small", "convnext_tiny"],
    "timm": ["vit_tiny_patch16_224", "convnext_tiny", "dinov2_w64_d2"],
    "DINOv2's layout": ["dinov2_w64_d2"],
    "ultralytics": ["yolov8n", "yolo11n"],
    "ONNX": ["resnet18", "dinov2_w64_d2"],
}
LIMIT = 1e-4


def loaders():
    """{section: code} of the page."""
    with open(os.path.join(r.TOP, "docs", "export.md")) as f:
        parts = re.split(r"^## (.*)$", f.read(), flags=re.M)
    found = {}
    for title, text in zip(parts[1::2], parts[2::2]):
        code = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
        if code:
            found[title] = code[0]
    return found


def run_loader(code, folder, name):
    here = os.getcwd()
    os.chdir(folder)
    try:
        space = {}
        with torch.no_grad():
            exec(compile(re.sub(r'^name = ".*"$', 'name = "%s"' % name, code, flags=re.M), "docs/export.md", "exec"), space)
        return np.asarray(space["features"])
    finally:
        os.chdir(here)


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True, help="teacher")
    p.add_argument("--images", required=True)
    p.add_argument("--only", help="one section")
    a = p.parse_args()
    codes = loaders()
    assert set(codes) == set(LOADERS), "the page has loaders for %s" % sorted(codes)
    if os.environ.get("KD_DINOV2"):
        sys.path.insert(0, os.environ["KD_DINOV2"])
    b = r.Bench(a)
    photo, train, cache = r.some_photos(b, a.images, 1, "photo"), r.some_photos(b, a.images, 16, "train"), b.path("small.kdc")
    b.run("kd-precompute", "--images", train, "--weights", a.weights, "--cache", cache, "--views", 1)
    for section, names in LOADERS.items():
        if a.only and section != a.only:
            continue
        if section.startswith("DINOv2") and not os.environ.get("KD_DINOV2"):
            print("skipped %s: KD_DINOV2 names no checkout" % section)
            continue
        for name in names:
            folder, run = b.path("%s-%s" % (re.sub(r"\W", "", section), name)), b.path("run-" + name)
            os.makedirs(folder)
            if not os.path.isdir(run):
                b.run("kd-train", "--cache", cache, "--images", train, "--student", name, "--out", run, "--epochs", 1, "--batch-size", 4, "--steps", 2, "--lr", 0.003, "--warmup-epochs", 0, "--val-fraction", 0)
            weights = os.path.join(folder, name + ".safetensors")
            b.run("kd-export", "--run", run, "--out", weights, computes=False)
            b.run("kd-export", "--run", run, "--out", os.path.join(folder, "student"), "--format", "hf", computes=False)
            b.run("kd-export", "--run", run, "--out", os.path.join(folder, name + ".onnx"), "--format", "onnx", computes=False)
            shutil.copy(os.path.join(photo, os.listdir(photo)[0]), os.path.join(folder, "photo.jpg"))
            ours, _ = b.features(name, "--model", name, "--weights", weights, "--images", photo)
            theirs = run_loader(codes[section], folder, name)
            largest = float(np.abs(theirs).max())
            b.check("%s, %s: features (largest value %.3g)" % (section, name, largest), r.worst_difference(ours["pooled"], theirs), LIMIT * max(1.0, largest / 10))
    b.finish()


if __name__ == "__main__":
    main()
