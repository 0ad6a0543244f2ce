#!/usr/bin/env python3
"""Teachers against their official forward pass: `kd-eval features` on real photos, in f32 and bf16.

    check_teacher.py --images DIR --weights dinov2.pth [--weights vit_tiny_patch16_224.safetensors] [--bin bin] [--photos 16] [--precision f32,bf16]

DINOv2 files (official names) run through the published architecture with its interpolation of positions (37x37 to 16x16 at 224 pixels), timm's through timm; both in double,
on pixels that Pillow and torchvision prepared.
"""
import os

import numpy as np
import torch
from safetensors.torch import load_file

import reference as r

F32_DIFFERENCE = 1e-4  # of values up to 30
TIMES_PYTORCH = 3      # tokens in which rounding grows may differ by this many times what PyTorch's own f32 or bf16 (autocast) differs from double


def yardstick(net, pixels, precision):
    """What PyTorch computes in that precision."""
    net.module.float()
    if precision == "f32":
        return net(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(pixels)


def compare(b, what, precision, ours, exact, theirs):
    """exact: in double; theirs: PyTorch in the same precision."""
    for tap in ("pooled", "cls", "patch"):
        name = "%s, %s, %s: " % (what, precision, tap)
        if precision == "f32":
            own = r.worst_difference(theirs[tap], exact[tap])
            b.check(name + "largest difference (values to %.3g; PyTorch %.2g)" % (np.abs(exact[tap]).max(), own), r.worst_difference(ours[tap], exact[tap]),
                    max(F32_DIFFERENCE, TIMES_PYTORCH * own))
        else:
            mine, own = 1 - r.cosines(ours[tap], exact[tap]), 1 - r.cosines(theirs[tap], exact[tap])
            b.check(name + "largest 1 - cosine (PyTorch %.3g)" % own.max(), mine.max(), TIMES_PYTORCH * own.max())
            b.check(name + "mean 1 - cosine (PyTorch %.3g)" % own.mean(), mine.mean(), TIMES_PYTORCH * own.mean())


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True, action="append")
    p.add_argument("--images", required=True)
    p.add_argument("--photos", type=int, default=16)
    p.add_argument("--precision", default="f32,bf16")
    p.add_argument("--name", default="vit_tiny_patch16_224", help="timm's name of the files in timm's layout")
    b = r.Bench(p.parse_args())
    a = b.args
    photos = r.some_photos(b, a.images, a.photos, "photos")
    for weights in a.weights:
        state = load_file(weights) if weights.endswith(".safetensors") else torch.load(weights, map_location="cpu")
        dinov2 = "mask_token" in state or any(k.endswith(".gamma") for k in state)
        net = r.Network("dinov2" if dinov2 else a.name, state)
        exact = pixels = None
        for precision in a.precision.split(","):
            ours, paths = b.features(os.path.basename(weights) + precision, "--weights", weights, "--images", photos, "--precision", precision)
            if exact is None:
                pixels = np.stack([r.eval_pixels(os.path.join(photos, x)) for x in paths])
                net.module.double()
                exact = net(pixels, torch.float64)
            compare(b, os.path.basename(weights), precision, ours, exact, yardstick(net, pixels, precision))
    b.finish()


main()
