#!/usr/bin/env python3
"""Students that kd-train exports, in their own libraries: strict loading, and the same features as `kd-eval features`.

    check_export.py --images DIR --weights TEACHER [--bin bin] [--students resnet18,vit_tiny_patch16_224,vit_small_patch16_224,dinov2_w64_d2]
    check_export.py --images DIR --exported resnet18=run/exported/resnet18.safetensors [--student-size 112] [--bin bin]

A teacher's cache of a few photos is made and each student is trained on it for some steps at a high rate, so that no parameter stays at its first value.
Then, on 8 photos: what kd-export writes in f32 and in f16, and the same network with every tensor changed by PyTorch (the way back).
The second form compares the student of a real run.
"""
import os

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import reference as r

# The project's promise for pooled features in f32. Networks of a few steps have running statistics that don't fit their activations yet, and values of some hundreds:
# for those the same share of 10, about the largest feature of a trained student.
LIMIT, USUAL = 1e-4, 10.0


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


def with_statistics(state, pixels):
    """A ResNet whose running statistics are those of these pixels: values of a usual size."""
    net = r.torchvision.models.resnet18()
    net.load_state_dict(state, strict=True)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        net.train()(r.to_input(pixels, r.IMAGENET))
    return net.state_dict()


def compare(b, what, name, weights, photos, reduced):
    words = ["--model", name, "--weights", weights, "--images", photos] + (["--student-size", reduced] if reduced else [])
    ours, paths = b.features(os.path.basename(weights) + str(reduced), *words)
    pixels = np.stack([r.eval_pixels(os.path.join(photos, p), 224, reduced) for p in paths])
    theirs = r.Network(name, {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()})(pixels)
    for tap in ("pooled", "cls", "patch"):
        b.check("%s, %s, %s (largest value %.3g)" % (name, what, tap, np.abs(theirs[tap]).max()), r.worst_difference(ours[tap], theirs[tap]),
                LIMIT * max(1.0, float(np.abs(theirs[tap]).max()) / USUAL))


def train_and_compare(b, name, reduced, cache, train, photos):
    a, run = b.args, b.path("run-%s-%d" % (name, reduced))
    f32, f16, back = (b.path("%s-%d%s.safetensors" % (name, reduced, x)) for x in ("", "-f16", "-changed"))
    b.run("kd-train", "--cache", cache, "--images", train, "--student", name, "--out", run, "--epochs", 1, "--batch-size", 8, "--steps", a.steps, "--lr", 0.003, "--warmup-epochs", 0,
          "--val-fraction", 0, *(["--student-size", reduced] if reduced else []))
    b.run("kd-export", "--run", run, "--checkpoint", "latest", "--out", f32, computes=False)
    b.run("kd-export", "--run", run, "--checkpoint", "latest", "--dtype", "f16", "--out", f16, computes=False)
    seen = ", seen at %d" % reduced if reduced else ""
    compare(b, "f32" + seen, name, f32, photos, reduced)
    compare(b, "f16 file" + seen, name, f16, photos, reduced)
    state = changed(load_file(f32))
    if name == "resnet18":
        state = with_statistics(state, np.stack([r.eval_pixels(os.path.join(photos, p), 224, reduced) for p in sorted(os.listdir(photos))]))
    save_file(state, back)
    compare(b, "changed by PyTorch" + seen, name, back, photos, reduced)


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", help="teacher")
    p.add_argument("--images", required=True)
    p.add_argument("--exported", action="append", default=[], help="NAME=FILE")
    p.add_argument("--student-size", type=int, default=0, help="of --exported")
    p.add_argument("--students", default="resnet18,vit_tiny_patch16_224,vit_small_patch16_224,dinov2_w64_d2")
    p.add_argument("--steps", type=int, default=4)
    args = p.parse_args()
    if not args.weights and not args.exported:
        p.error("give --weights or --exported")
    b = r.Bench(args)
    photos = r.some_photos(b, args.images, 8, "photos")
    for item in args.exported:
        name, file = item.split("=", 1)
        compare(b, "exported", name, file, photos, args.student_size)
    if args.weights:
        train, cache = r.some_photos(b, args.images, 40, "train"), b.path("small.kdc")
        b.run("kd-precompute", "--images", train, "--weights", args.weights, "--cache", cache, "--views", 1)
        for name in args.students.split(","):
            for reduced in (0, 112) if name == "resnet18" else (0,):
                train_and_compare(b, name, reduced, cache, train, photos)
    b.finish()


main()
