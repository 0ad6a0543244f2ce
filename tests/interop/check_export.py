#!/usr/bin/env python3
"""Students that kd-train exports, in their own libraries: strict loading of every format, and the same features as `kd-eval features`.

    check_export.py --images DIR --weights TEACHER [--bin bin] [--students resnet18,vit_tiny_patch16_224,...] [--report FILE.md]
    check_export.py --images DIR --exported resnet18=run/exported/resnet18.safetensors [--student-size 112] [--bin bin]

A teacher's cache of a few photos is made and each student is trained on it for some steps at a high rate, so that no parameter stays at its first value. Then, on 4 photos: the strict load of .safetensors, .pth (the same
tensors, by torch.load with weights_only) and of f16; what timm makes of the folder of --format hf, where timm has the network; and the same network with every tensor changed by PyTorch (the way back).
The second form compares the student of a real run. --report adds a line per student to a table.
"""
import collections
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import reference as r

# The project's promise for features in f32. Networks of a few steps have running statistics that don't fit their activations yet, and values of some hundreds:
# for those the same share of 10, about the largest feature of a trained student. Weights that PyTorch changed at random may also be twice as far from f64 as its own f32 is.
LIMIT, USUAL = 1e-4, 10.0
EVERY = ("resnet18,resnet34,resnet50,resnet101,mobilenet_v3_small,mobilenet_v3_large,convnext_tiny,convnext_small,yolov8n,yolov8s,yolov8m,yolov8l,yolov8x,yolo11n,yolo11s,"
         "vit_tiny_patch16_224,vit_small_patch16_224,vit_tiny_patch14_224,vit_tiny_patch8_224,deit_tiny_patch16_224,dinov2_w64_d2,dinov2_vits14,dinov2_vits14_reg")
HEADER = "| student | library | px | tensors | f32 | f16 file | changed by PyTorch | timm, hf folder |\n|---|---|---|---|---|---|---|---|\n"
CNNS = ("resnet", "mobilenet", "convnext", "yolo")
NOT_TIMM = ("mobilenet", "yolo")


def changed(state):
    """Every floating tensor moved by a few per cent of its own size and a little more: no zero biases, no gamma of 1."""
    g = torch.Generator().manual_seed(1)
    out = {}
    for k, v in state.items():
        if not v.is_floating_point():
            out[k] = v
            continue
        noise = torch.randn(v.shape, generator=g)
        out[k] = v * (1 + 0.2 * noise) + 0.02 * torch.randn(v.shape, generator=g) * (0 if k.endswith("running_var") else 1)
        if k.endswith("running_var"):
            out[k] = out[k].abs() + 0.1
    return out


def with_statistics(name, state, pixels):
    """A network of batch norms whose running statistics are those of these pixels: values of a usual size."""
    network = r.Network(name, state)
    for m in network.module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        network.module.train()(r.to_input(pixels, network.norm))
    prefix = "model." if name.startswith("yolo") else ""
    return {prefix + k: v for k, v in network.module.state_dict().items()}


def pixels_of(photos, paths, reduced):
    return np.stack([r.eval_pixels(os.path.join(photos, p), 224, reduced) for p in paths])


def our_features(b, name, weights, photos, reduced):
    words = ["--model", name, "--weights", weights, "--images", photos] + (["--student-size", reduced] if reduced else [])
    return b.features(os.path.basename(weights) + str(reduced), *words)


def check_features(b, what, ours, theirs, own=None):
    """Largest difference, as a share of what is allowed for values of a usual size. own: how far the library's own f32 is from theirs, by tap."""
    worst = 0.0
    for tap in ("pooled", "cls", "patch"):
        difference, largest = r.worst_difference(ours[tap], theirs[tap]), float(np.abs(theirs[tap]).max())
        limit = LIMIT * max(1.0, largest / USUAL)
        text = "" if own is None else ", the library's own f32 %.2g off" % own[tap]
        b.check("%s, %s (largest value %.3g%s)" % (what, tap, largest, text), difference, limit if own is None else max(limit, 2 * own[tap]))
        worst = max(worst, difference / max(1.0, largest / USUAL))
    return worst


def compare(b, what, name, weights, photos, reduced, double=False):
    """double: against the library in f64, with its own f32 as a measure of what f32 can give: weights that nobody trained have inner values that use up the limit."""
    ours, paths = our_features(b, name, weights, photos, reduced)
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    network, pixels, what = r.Network(name, state), pixels_of(photos, paths, reduced), "%s, %s" % (name, what)
    theirs = network(pixels)
    if not double:
        return check_features(b, what, ours, theirs)
    network.module.double()
    truth = network(pixels, torch.float64)
    return check_features(b, what, ours, truth, {k: r.worst_difference(theirs[k], truth[k]) for k in truth})


def equal_states(a, b):
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def check_pth(b, name, f32, pth, photos, reduced):
    """The same tensors, an OrderedDict, and the same features of our own from either file."""
    state = torch.load(pth, weights_only=True)
    b.check("%s, .pth by torch.load(weights_only=True): tensors that differ" % name, float(not (type(state) is collections.OrderedDict and equal_states(state, load_file(f32)))), 0)
    ours, again = our_features(b, name, f32, photos, reduced)[0], our_features(b, name, pth, photos, reduced)[0]
    b.check("%s, kd-eval of .pth and .safetensors: largest difference" % name, max(r.worst_difference(ours[k], again[k]) for k in ours), 0)


def export(b, run, out, *words):
    b.run("kd-export", "--run", run, "--checkpoint", "latest", "--out", out, *words, computes=False)
    return out


def train_and_compare(b, name, reduced, cache, train, photos, lines):
    a, run = b.args, b.path("run-%s-%d" % (name, reduced))
    b.run("kd-train", "--cache", cache, "--images", train, "--student", name, "--out", run, "--epochs", 1, "--batch-size", 4, "--steps", a.steps, "--lr", 0.003, "--warmup-epochs", 0,
          "--val-fraction", 0, *(["--student-size", reduced] if reduced else []))
    f32, f16, back, pth, folder = (b.path("%s-%d%s" % (name, reduced, x)) for x in (".safetensors", "-f16.safetensors", "-changed.safetensors", ".pth", "-hf"))
    export(b, run, f32)
    seen = ", seen at %d" % reduced if reduced else ""
    worst = [compare(b, "f32" + seen, name, f32, photos, reduced)] if not name.endswith("_reg") else []
    check_pth(b, name, f32, export(b, run, pth, "--format", "pth"), photos, reduced)
    timm_worst = "not timm's"
    if not name.startswith(NOT_TIMM):
        ours, paths = our_features(b, name, f32, photos, reduced)
        timm_worst = "%.1e" % check_features(b, "%s, timm's local-dir%s" % (name, seen), ours, r.TimmFolder(export(b, run, folder, "--format", "hf"))(pixels_of(photos, paths, reduced)))
    if worst:
        worst.append(compare(b, "f16 file" + seen, name, export(b, run, f16, "--dtype", "f16"), photos, reduced))
        state = changed(load_file(f32))
        if any("running_mean" in k for k in state):
            state = with_statistics(name, state, pixels_of(photos, sorted(os.listdir(photos)), reduced))
        save_file({k: v.contiguous() for k, v in state.items()}, back)
        worst.append(compare(b, "changed by PyTorch" + seen, name, back, photos, reduced, double=True))
    cells = ["%.1e" % x for x in worst] or ["not built here"] * 3
    lines.append("| %s | %s | %d | %d | %s | %s |" % (name, "ultralytics" if name.startswith("yolo") else "torchvision" if name.startswith(CNNS) else "DINOv2" if name.startswith("dinov2") else "timm",
                                                     reduced or 224, len(load_file(f32)), " | ".join(cells), timm_worst))
    for path in (f32, f16, back, pth):
        if os.path.exists(path) and not a.keep:
            os.remove(path)


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", help="teacher")
    p.add_argument("--images", required=True)
    p.add_argument("--exported", action="append", default=[], help="NAME=FILE")
    p.add_argument("--student-size", type=int, default=0, help="of --exported")
    p.add_argument("--students", default=EVERY)
    p.add_argument("--cnn-size", type=int, default=96, help="what convolutional students see; a ViT sees 224")
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--report", help="file that the table is written to")
    args = p.parse_args()
    if not args.weights and not args.exported:
        p.error("give --weights or --exported")
    b = r.Bench(args)
    photos = r.some_photos(b, args.images, 4, "photos")
    for item in args.exported:
        name, file = item.split("=", 1)
        compare(b, "exported", name, file, photos, args.student_size)
    lines = []
    if args.weights:
        train, cache = r.some_photos(b, args.images, 16, "train"), b.path("small.kdc")
        b.run("kd-precompute", "--images", train, "--weights", args.weights, "--cache", cache, "--views", 1)
        for name in args.students.split(","):
            train_and_compare(b, name, args.cnn_size if name.startswith(CNNS) else 0, cache, train, photos, lines)
            if args.report:
                with open(args.report, "w") as f:
                    f.write(HEADER + "\n".join(lines) + "\n")
    b.finish()


main()
