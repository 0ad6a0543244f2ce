"""What the reference checks share: running the programs, PyTorch's networks, Pillow's transforms, comparing arrays."""
import argparse
import json
import math
import os
import platform
import re
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
from families import convnext_features, mobilenet_features
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


PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # ultralytics: x / 255


def torchvision_backbone(name):
    """(module without its classifier, function of module and input that gives pooled and map, channels last)."""
    module = torchvision.models.get_model(name)
    if name.startswith("resnet"):
        module.fc = torch.nn.Identity()
        return module, resnet_features
    if name.startswith("mobilenet"):
        module.classifier = torch.nn.Identity()
        return module, mobilenet_features
    module.classifier[2] = torch.nn.Identity()
    return module, convnext_features


def yolo_backbone(name):
    """ultralytics' layers before the neck, with SPPF's first activation, which some releases leave out (docs/yolo.md). Names without their "model."."""
    from ultralytics import YOLO
    module = YOLO(name + ".yaml").model.model[:11 if name.startswith("yolo11") else 10]
    module[9].cv1.act = torch.nn.SiLU()
    return module


def yolo_features(module, x):
    last = module(x)
    return last.mean((2, 3)), last.permute(0, 2, 3, 1)


class Network:
    """A student or teacher of a library: loads strictly, gives pooled, cls and patch as the library computes them. size: of the images, for a timm ViT."""

    def __init__(self, name, state, size=None):
        self.name, self.maps = name, None
        if name.startswith(("resnet", "mobilenet", "convnext")):
            self.module, self.maps = torchvision_backbone(name)
            self.norm = IMAGENET
        elif name.startswith("yolo"):
            self.module, self.maps, self.norm = yolo_backbone(name), yolo_features, PLAIN
            assert all(k.startswith("model.") for k in state)
            state = {k[len("model."):]: v for k, v in state.items()}
        elif name.startswith("dinov2"):
            self.module, self.norm = dinov2_from(state), IMAGENET
        else:
            patch = re.search(r"_patch(\d+)_", name).group(1)
            known = {} if timm.is_model(name) else {"patch_size": int(patch)}  # the same class, made from the sixteen's function
            self.module = timm.create_model(name.replace("_patch" + patch, "_patch16") if known else name, num_classes=0, **known, **({"img_size": size} if size else {}))
            config = self.module.pretrained_cfg
            self.norm = (config["mean"], config["std"])
            assert self.norm == HALF
            state = {k: v for k, v in state.items() if k not in ("head.weight", "head.bias")}
        self.module.load_state_dict(state, strict=True)
        self.module.eval()

    @torch.no_grad()
    def __call__(self, pixels, dtype=torch.float32):
        x = to_input(pixels, self.norm).to(dtype)
        if self.maps:
            pooled, fmap = self.maps(self.module, x)
            if not self.name.startswith("yolo"):
                assert torch.equal(self.module(x), pooled)  # the library's own forward
            out = {"pooled": pooled, "cls": pooled, "patch": fmap.flatten(1, 2)}
        else:
            tokens = self.module(x) if self.name.startswith("dinov2") else self.module.forward_features(x)
            pooled = tokens[:, 0] if self.name.startswith("dinov2") else self.module(x)
            out = {"pooled": pooled, "cls": tokens[:, 0], "patch": tokens[:, 1:]}
        return {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in out.items()}


class TimmFolder:
    """A folder of kd-export --format hf as timm loads it: weights, size and normalisation are the folder's."""

    def __init__(self, folder):
        self.module = timm.create_model("local-dir:" + folder, pretrained=True).eval()
        config = timm.data.resolve_model_data_config(self.module)
        self.norm, self.size = (config["mean"], config["std"]), config["input_size"][1:]

    @torch.no_grad()
    def __call__(self, pixels):
        assert pixels.shape[1:3] == tuple(self.size)
        x = to_input(pixels, self.norm)
        pooled, features = self.module(x), self.module.forward_features(x)
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2) if features.ndim == 4 else features[:, self.module.num_prefix_tokens:]
        return {"pooled": pooled.numpy(), "cls": (pooled if features.ndim == 4 else features[:, 0]).numpy(), "patch": tokens.numpy()}


def worst_difference(a, b):
    assert a.shape == b.shape, "shapes %s and %s" % (a.shape, b.shape)
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def cosines(a, b):
    """Over the last axis, in double."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
