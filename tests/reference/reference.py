"""What the reference checks share: running the programs, PyTorch's networks, Pillow's transforms, comparing arrays."""
import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(TOP, "tests", "golden", "models"), os.path.join(TOP, "tests", "golden", "image"), os.path.join(TOP, "cache", "python")]

import numpy as np
import timm
import torch
import torchvision
from generate import DinoV2, HALF, IMAGENET, resnet_features  # the DINOv2 of the golden files, written from the published architecture
from PIL import Image
from safetensors import safe_open
from torchvision import transforms


def parser(doc):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default=os.path.join(TOP, "bin"), help="folder of the programs")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu", help="device of the programs; PyTorch always runs on the CPU")
    p.add_argument("--keep", help="folder for the files that are made; without it they are removed")
    return p


class Bench:
    """The programs, a work folder, and a count of what failed."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.args, self.failed, self.checked = args, 0, 0
        self.work = args.keep or tempfile.mkdtemp(prefix="kd-reference.")
        os.makedirs(self.work, exist_ok=True)
        print("python %s, torch %s, torchvision %s, timm %s, Pillow %s" % (platform.python_version(), torch.__version__, torchvision.__version__, timm.__version__, Image.__version__))

    def path(self, *names):
        return os.path.join(self.work, *names)

    def run(self, program, *words, capture=False, computes=True):
        """Runs a program to its end and gives its stdout; what it says on stderr is shown when it fails."""
        command = [os.path.join(self.args.bin, program)] + [str(w) for w in words]
        if computes:
            command += ["--device", self.args.device, "--threads", str(self.args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            sys.exit("%s\nended with status %d: %s" % (" ".join(command), done.returncode, done.stderr.decode(errors="replace")))
        return done.stdout.decode(errors="replace")

    def features(self, name, *words):
        """kd-eval features: (arrays by name, paths)."""
        out = self.path(name + ".features.safetensors")
        self.run("kd-eval", "features", "--out", out, *words)
        with safe_open(out, "np") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["paths"])

    def check(self, what, value, limit, most=True):
        """One line; value <= limit passes (or >= with most=False)."""
        good = value <= limit if most else value >= limit
        self.checked += 1
        self.failed += not good
        print("%-6s %-70s %-12.6g limit %s %g" % ("ok" if good else "NOT OK", what, value, "<=" if most else ">=", limit), flush=True)

    def finish(self):
        if not self.args.keep:
            shutil.rmtree(self.work, ignore_errors=True)
        print("%d checked, %d failed" % (self.checked, self.failed))
        sys.exit(1 if self.failed or not self.checked else 0)


def some_photos(bench, folder, count, name):
    """A folder of links to `count` JPEG files spread over the folder."""
    found = sorted(os.path.join(r, f) for r, _, files in os.walk(folder) for f in files if f.lower().endswith((".jpg", ".jpeg", ".png")))
    if len(found) < count:
        sys.exit("%s holds %d images; %d are needed" % (folder, len(found), count))
    out = bench.path(name)
    os.makedirs(out)
    for i in range(count):
        source = found[i * len(found) // count]
        shutil.copy(source, os.path.join(out, "%03d-%s" % (i, os.path.basename(source))))
    return out


def eval_pixels(path, size=224, reduced=0):
    """uint8 [S,S,3] by Pillow and torchvision: shorter side to size*256/224, centre crop, then optionally the BOX reduction."""
    crop = transforms.Compose([transforms.Resize(size * 256 // 224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)])
    view = crop(Image.open(path).convert("RGB"))
    if reduced:
        view = view.resize((reduced, reduced), Image.BOX)
    return np.asarray(view)


def to_input(pixels, norm):
    """float32 [n,3,S,S], as ToTensor and Normalize make it."""
    mean, std = norm
    x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(255)
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def dinov2_from(state):
    """The official architecture with the sizes that a DINOv2 state_dict has; heads are 64 wide."""
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    swiglu = "blocks.0.mlp.w12.weight" in state
    hidden = state["blocks.0.mlp.w3.weight"].shape[1] if swiglu else state["blocks.0.mlp.fc1.weight"].shape[0]
    grid = math.isqrt(state["pos_embed"].shape[1] - 1)
    return DinoV2(width, depth, width // 64, patch, grid, hidden, swiglu)


class Network:
    """A student or teacher of a library: loads strictly, gives pooled, cls and patch as the library computes them."""

    def __init__(self, name, state):
        self.name = name
        if name == "resnet18":
            self.module, self.norm = torchvision.models.resnet18(), IMAGENET
        elif name.startswith("dinov2") or name == "dinov2":
            self.module, self.norm = dinov2_from(state), IMAGENET
        else:
            self.module = timm.create_model(name, num_classes=0)
            config = self.module.pretrained_cfg
            self.norm = (config["mean"], config["std"])
            assert self.norm == HALF
            state = {k: v for k, v in state.items() if k not in ("head.weight", "head.bias")}
        self.module.load_state_dict(state, strict=True)
        self.module.eval()

    @torch.no_grad()
    def __call__(self, pixels, dtype=torch.float32):
        x = to_input(pixels, self.norm).to(dtype)
        if self.name == "resnet18":
            pooled, fmap = resnet_features(self.module, x)
            self.module.fc = torch.nn.Identity()
            assert torch.equal(self.module(x), pooled)  # the library's own forward
            out = {"pooled": pooled, "cls": pooled, "patch": fmap.flatten(1, 2)}
        else:
            tokens = self.module(x) if self.name.startswith("dinov2") else self.module.forward_features(x)
            pooled = tokens[:, 0] if self.name.startswith("dinov2") else self.module(x)
            out = {"pooled": pooled, "cls": tokens[:, 0], "patch": tokens[:, 1:]}
        return {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in out.items()}


def worst_difference(a, b):
    assert a.shape == b.shape, "shapes %s and %s" % (a.shape, b.shape)
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def cosines(a, b):
    """Over the last axis, in double."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
