"""Golden values for the models, from PyTorch.

    python generate.py                  # everything but the real photos
    python generate.py --data DIR       # also photos.safetensors: DIR holds caltech101.tar and teachers/vitt14_dinov2_layout.pth

Weights, pictures and targets come from a formula (value() below, repeated in tests/unit/formula.h), so only results are stored. Everything is
computed in float64 from float32 inputs. ResNet-18 is torchvision's, the plain ViT timm's; the DINOv2 ViT is written here from the published
architecture and checked against timm's where the two agree. recipe.json records the versions. positions.safetensors is made by positions.py.
"""
import argparse
import io
import json
import math
import platform
import tarfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

import timm
import torchvision
from timm.models.vision_transformer import VisionTransformer

torch.set_grad_enabled(True)


# ---- the formula ----

def bits(name, n):
    h = 2166136261
    for c in name.encode():
        h = ((h ^ c) * 16777619) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        x = np.uint32(h) + np.arange(n, dtype=np.uint32) * np.uint32(2654435761)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x2C1B3C6D)
        x ^= x >> np.uint32(12)
        x *= np.uint32(0x297A2D39)
        x ^= x >> np.uint32(15)
    return x


def unit(name, n):
    """In [-1, 1)."""
    return bits(name, n).astype(np.float64) / 2147483648.0 - 1.0


def value(name, shape):
    n = int(np.prod(shape)) if len(shape) else 1
    u = unit(name, n)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        v = 1 + 0.5 * u
    elif name.endswith("token") or name.endswith("pos_embed"):
        v = 0.5 * u
    elif len(shape) >= 2:
        v = u * math.sqrt(4.0 / (n / shape[0]))
    elif name.endswith("bn3.weight"):  # small branches, or a deep ResNet makes per cents of f32's rounding, PyTorch's too
        v = 0.25 * (1 + 0.3 * u)
    elif name.endswith(".weight") or name.endswith(".gamma"):
        v = 1 + 0.3 * u
    else:
        v = 0.1 * u
    return torch.from_numpy(v.astype(np.float32)).double().reshape(shape)


def fill(module):
    state = {k: value(k, tuple(v.shape)) for k, v in module.state_dict().items()}
    module.load_state_dict(state, strict=True)
    return module


def pictures(n, size):
    """uint8 [n, size, size, 3]."""
    return (bits("images", n * size * size * 3) >> np.uint32(24)).astype(np.uint8).reshape(n, size, size, 3)


def normalized(pixels, mean, std):
    """torchvision ToTensor and Normalize, in float32, then widened."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    m, s = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return ((x - m) / s).double()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# ---- DINOv2, from the published architecture ----

class Block(torch.nn.Module):
    def __init__(self, width, heads, hidden, swiglu):
        super().__init__()
        m = torch.nn.Module
        self.norm1, self.attn, self.ls1 = torch.nn.LayerNorm(width, eps=1e-6), m(), m()
        self.attn.qkv, self.attn.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.ls1.gamma = torch.nn.Parameter(torch.ones(width))
        self.norm2, self.mlp, self.ls2 = torch.nn.LayerNorm(width, eps=1e-6), m(), m()
        if swiglu:
            self.mlp.w12, self.mlp.w3 = torch.nn.Linear(width, 2 * hidden), torch.nn.Linear(hidden, width)
        else:
            self.mlp.fc1, self.mlp.fc2 = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)
        self.ls2.gamma = torch.nn.Parameter(torch.ones(width))
        self.heads, self.swiglu = heads, swiglu

    def attention(self, x):
        n, t, d = x.shape
        q, k, v = self.attn.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1)
        return self.attn.proj((a @ v).transpose(1, 2).reshape(n, t, d))

    def ffn(self, x):
        if self.swiglu:
            a, b = self.mlp.w12(x).chunk(2, -1)
            return self.mlp.w3(F.silu(a) * b)
        return self.mlp.fc2(F.gelu(self.mlp.fc1(x)))

    def forward(self, x):
        x = x + self.ls1.gamma * self.attention(self.norm1(x))
        return x + self.ls2.gamma * self.ffn(self.norm2(x))


def interpolate_official(pos, from_, to):
    """DINOv2 interpolate_pos_encoding with interpolate_offset = 0.1, antialias off. pos [1, 1+from*from, D] float32."""
    if from_ == to:
        return pos
    grid = pos[:, 1:].reshape(1, from_, from_, -1).permute(0, 3, 1, 2)
    s = float(to + 0.1) / math.sqrt(from_ * from_)
    grid = F.interpolate(grid.float(), scale_factor=(s, s), mode="bicubic")
    assert grid.shape[-2:] == (to, to)
    return torch.cat([pos[:, :1], grid.permute(0, 2, 3, 1).reshape(1, to * to, -1).to(pos.dtype)], 1)


class DinoV2(torch.nn.Module):
    def __init__(self, width, depth, heads, patch, grid, hidden, swiglu=False):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.mask_token = torch.nn.Parameter(torch.zeros(1, width))
        self.patch_embed = torch.nn.Module()
        self.patch_embed.proj = torch.nn.Conv2d(3, width, patch, patch)
        self.blocks = torch.nn.ModuleList([Block(width, heads, hidden, swiglu) for _ in range(depth)])
        self.norm = torch.nn.LayerNorm(width, eps=1e-6)
        self.patch, self.grid = patch, grid

    def forward(self, x):
        """[n, 1+P, D] after the final norm."""
        side = x.shape[-1] // self.patch
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + interpolate_official(self.pos_embed, self.grid, side)
        for b in self.blocks:
            x = b(x)
        return self.norm(x)


class Heads(torch.nn.Module):
    """LayerNorm -> Linear on the pooled feature and on the map."""

    def __init__(self, width, out):
        super().__init__()
        for tap in ("cls", "patch"):
            self.add_module(tap, torch.nn.Module())
            getattr(self, tap).norm = torch.nn.LayerNorm(width, eps=1e-6)
            getattr(self, tap).linear = torch.nn.Linear(width, out)

    def forward(self, tap, x):
        m = getattr(self, tap)
        return m.linear(m.norm(x))


# ---- golden training steps ----

HEAD_OUT = 24


def sample(t):
    """L2 norm, then the values at 0, n/3, 2n/3, n-1."""
    t = t.detach().double().reshape(-1)
    n = t.numel()
    return np.array([t.norm().item()] + [t[i].item() for i in (0, n // 3, 2 * n // 3, n - 1)], np.float32)


def training_step(path, model, features, pixels, norm, width, target_side):
    """features(model, x) -> pooled [n,C], map [n,h,w,C]. Stores features, losses, samples of every gradient and of the running statistics afterwards."""
    model = fill(model.double()).train()
    heads = torch.nn.Module()
    heads.head = Heads(width, HEAD_OUT)
    heads = fill(heads.double())
    n = pixels.shape[0]
    pooled, fmap = features(model, normalized(pixels, *norm))
    target_cls = torch.from_numpy(unit("target_cls", n * HEAD_OUT).astype(np.float32)).double().reshape(n, HEAD_OUT)
    target_patch = torch.from_numpy(unit("target_patch", n * target_side ** 2 * HEAD_OUT).astype(np.float32)).double().reshape(n, target_side, target_side, HEAD_OUT)
    pred_cls = heads.head("cls", pooled)
    pred = heads.head("patch", fmap)
    pred_patch = F.interpolate(pred.permute(0, 3, 1, 2), (target_side, target_side), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    loss_cls, loss_patch = F.mse_loss(pred_cls, target_cls), F.mse_loss(pred_patch, target_patch)
    (loss_cls + 0.5 * loss_patch).backward()
    out = {"pooled": pooled, "map": fmap, "pred_cls": pred_cls, "loss_cls": loss_cls.reshape(1), "loss_patch": loss_patch.reshape(1)}
    out = {k: v.detach().float().numpy() for k, v in out.items()}
    for k, p in list(model.named_parameters()) + list(heads.named_parameters()):
        if p.grad is not None:
            out["grad/" + k] = sample(p.grad)
    for k, b in model.named_buffers():
        if k.endswith("running_mean") or k.endswith("running_var"):
            out["state/" + k] = sample(b)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, path)


def resnet_features(m, x):
    x = m.maxpool(m.relu(m.bn1(m.conv1(x))))
    fmap = m.layer4(m.layer3(m.layer2(m.layer1(x))))
    return m.avgpool(fmap).flatten(1), fmap.permute(0, 2, 3, 1)


def token_features(tokens):
    n, t, d = tokens.shape
    side = math.isqrt(t - 1)
    return tokens[:, 0], tokens[:, 1:].reshape(n, side, side, d)


def check_own_vit():
    """Our DINOv2 against timm's ViT with LayerScale: the same network when the grid isn't interpolated."""
    ours = fill(DinoV2(128, 2, 2, 14, 3, 512).double())
    theirs = VisionTransformer(img_size=42, patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1.0, num_classes=0).double()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "mask_token"}, strict=True)
    x = normalized(pictures(2, 42), *IMAGENET)
    assert (ours(x) - theirs.forward_features(x)).abs().max() < 1e-12


def training_goldens():
    training_step("train_resnet18.safetensors", torchvision.models.resnet18(), resnet_features, pictures(3, 48), IMAGENET, 512, 3)
    timm_vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=192, depth=3, num_heads=3, num_classes=0)
    training_step("train_timm.safetensors", timm_vit, lambda m, x: token_features(m.forward_features(x)), pictures(2, 64), HALF, 192, 4)
    for name, swiglu in (("dinov2", False), ("swiglu", True)):
        vit = DinoV2(128, 2, 2, 14, 3, 88 if swiglu else 512, swiglu)
        training_step(f"train_{name}.safetensors", vit, lambda m, x: token_features(m(x)), pictures(2, 42), IMAGENET, 128, 4)


# ---- a tiny weight file, and its outputs at three image sizes ----

def tiny_teacher():
    model = fill(DinoV2(64, 2, 1, 14, 5, 256).double()).eval()
    state = {k: v.half() for k, v in model.state_dict().items()}
    torch.save(state, "tiny_dinov2.pth")
    model.load_state_dict({k: v.double() for k, v in state.items()}, strict=True)
    out = {}
    with torch.no_grad():
        for size in (70, 98, 42):
            y = model(normalized(pictures(2, size), *IMAGENET)).float().numpy()
            out[f"cls_{size}"], out[f"patch_{size}"] = np.ascontiguousarray(y[:, 0]), np.ascontiguousarray(y[:, 1:])
    save_file(out, "tiny_dinov2_outputs.safetensors")


# ---- real photos and weights ----

PHOTOS = ("caltech101/test/airplanes", "caltech101/test/dolphin", "caltech101/test/pizza", "caltech101/test/watch")  # the first file of each
TOKENS = (0, 1, 15, 16, 100, 135, 240, 255)


def photos(data):
    from PIL import Image
    from torchvision import transforms as T

    state = torch.load(data + "/teachers/vitt14_dinov2_layout.pth", map_location="cpu")
    model = DinoV2(192, 12, 3, 14, 37, 768)
    model.load_state_dict(state, strict=True)
    model = model.double().eval()
    crop = T.Compose([T.Resize(256, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224)])
    tar = tarfile.open(data + "/caltech101.tar")
    members = sorted(m.name for m in tar.getmembers() if m.isfile())
    names = [next(m for m in members if m.startswith(p + "/")) for p in PHOTOS]
    pixels = np.stack([np.asarray(crop(Image.open(io.BytesIO(tar.extractfile(n).read())).convert("RGB"))) for n in names])
    with torch.no_grad():
        y = model(normalized(pixels, *IMAGENET)).float().numpy()
    out = {"cls": y[:, 0], "patch": y[:, 1:][:, list(TOKENS)], "tokens": np.array(TOKENS, np.int64), "pixel_sums": pixels.astype(np.int64).sum((1, 2))}
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, "photos.safetensors", metadata={f"photo{i}": n for i, n in enumerate(names)})


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data")
    data = a.parse_args().data
    check_own_vit()
    if data:
        photos(data)
        return
    training_goldens()
    tiny_teacher()
    json.dump({"command": "python generate.py", "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__,
               "numpy": np.__version__}, open("recipe.json", "w"), indent=1)


if __name__ == "__main__":
    main()
