#!/usr/bin/env python3
"""Teachers on a CUDA device against PyTorch on the same device: kd-eval features of drawn pictures with random weights of full-size networks.

    check_teacher_gpu.py --bin DIR --device cuda --images DIR [--names dinov2_vits14,dinov2_vitb14]

f32: PyTorch without TF32, smallest cosine of a token at least 0.99999. bf16: PyTorch in f32, at least 0.999, with the same number of PyTorch's own bf16 beside it.
"""
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))
import numpy as np  # noqa: E402
import reference as r  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SIZES = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24)}
LIMIT = {"f32": 0.99999, "bf16": 0.999}


def weights_of(width, depth):
    """Values of a natural size: residual branches that are neither silent nor dominant."""
    torch.manual_seed(7)
    net = r.DinoV2(width, depth, width // 64, 14, 37, 4 * width)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gamma"):
                p.fill_(0.3)
            elif p.dim() > 1:
                p.normal_(0, 0.02 if "embed" in name or "token" in name else p[0].numel() ** -0.5)
            elif name.endswith("weight"):
                p.normal_(1, 0.1)
            else:
                p.normal_(0, 0.05)
    return net.eval()


@torch.no_grad()
def on_device(net, pixels, bf16):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    x = r.to_input(pixels, r.IMAGENET).cuda()
    net = net.cuda().float()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        return net(x).float().cpu().numpy()


def smallest_cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def main():
    p = r.parser(__doc__)
    p.add_argument("--images", required=True)
    p.add_argument("--names", default="dinov2_vits14,dinov2_vitb14")
    p.add_argument("--photos", type=int, default=16)
    b = r.Bench(p.parse_args())
    photos = r.some_photos(b, b.args.images, b.args.photos, "photos")
    for name in b.args.names.split(","):
        net = weights_of(*SIZES[name])
        file = b.path(name + ".safetensors")
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
        exact = None
        for precision in ("f32", "bf16"):
            ours, paths = b.features(name + precision, "--model", "auto", "--weights", file, "--images", photos, "--precision", precision)
            if exact is None:
                pixels = np.stack([r.eval_pixels(os.path.join(photos, x)) for x in paths])
                exact = on_device(net, pixels, False)
            theirs = smallest_cosine(on_device(net, pixels, True), exact) if precision == "bf16" else 1.0
            tokens = np.concatenate([ours["cls"][:, None], ours["patch"]], 1)
            b.check("%s %s: smallest cosine of a token to PyTorch's f32 on the device (PyTorch's own %s: %.6f)" % (name, precision, precision, theirs), smallest_cosine(tokens, exact), LIMIT[precision], most=False)
    b.finish()


main()
