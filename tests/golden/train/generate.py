"""Golden training curves: 20 AdamW steps of small students in PyTorch, in float64 and in float32. The "wide" ones see views that aren't square and learn on a grid of another shape.

    python generate.py

Weights, pictures and targets come from the formula of ../models/generate.py (repeated in tests/unit/formula.h), so only results are stored: per step both
losses, the gradient's norm before clipping and the learning rate, and samples of the trained weights. The float32 curve ("f32/...") says how far plain rounding
carries two correct programs apart; tolerances in tests/unit/test_train_step.c are a multiple of it.
"""
import importlib.util
import json
import math
import os
import platform

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.numpy import save_file
from timm.models.vision_transformer import VisionTransformer

spec = importlib.util.spec_from_file_location("golden_models", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models", "generate.py"))
G = importlib.util.module_from_spec(spec)
spec.loader.exec_module(G)

STEPS, WARMUP, DECAY, CLIP, BATCH, BATCHES, WIDTH = 20, 5, 0.05, 1.0, 4, 2, 24


def schedule(lr, step):
    """LightlyTrain's: linear warm-up per step, half a cosine to lr / 1000."""
    if step < WARMUP:
        return lr * (step + 1) / WARMUP
    left, at = STEPS - WARMUP, step - WARMUP
    return lr / 1000 + (lr - lr / 1000) * (math.cos(math.pi * at / (left - 1)) + 1) / 2


def groups(module):
    """No decay on 1-D parameters, tokens and position embeddings."""
    decayed, rest = [], []
    for k, p in module.named_parameters():
        no = p.ndim < 2 or k.endswith("token") or k.endswith("pos_embed")
        (rest if no else decayed).append(p)
    return [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]


def pictures(n, height, width):
    return (G.bits("images", n * height * width * 3) >> np.uint32(24)).astype(np.uint8).reshape(n, height, width, 3)


def curve(make, features, size, grid, width, lr, dtype):
    model = torch.nn.Module()
    model.net = G.fill(make().double()).train()
    heads = torch.nn.Module()
    heads.kd_head = G.Heads(width, WIDTH)
    model.heads = G.fill(heads.double())
    model = model.to(dtype)
    n = BATCH * BATCHES
    pixels = pictures(n, *size)
    target_cls = torch.from_numpy(G.unit("target.cls", n * WIDTH).astype(np.float32)).to(dtype).reshape(n, WIDTH)
    target_patch = torch.from_numpy(G.unit("target.patch", n * grid[0] * grid[1] * WIDTH).astype(np.float32)).to(dtype).reshape(n, *grid, WIDTH)
    optimizer = torch.optim.AdamW(groups(model), lr=lr)
    out = {k: [] for k in ("loss_cls", "loss_patch", "grad_norm", "lr")}
    for step in range(STEPS):
        rows = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        pooled, fmap = features(model.net, G.normalized(pixels[rows], *G.IMAGENET).to(dtype))
        pred_cls = model.heads.kd_head("cls", pooled)
        pred = model.heads.kd_head("patch", fmap)
        if pred.shape[1:3] != grid:
            pred = F.interpolate(pred.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        losses = F.mse_loss(pred_cls, target_cls[rows]), F.mse_loss(pred, target_patch[rows])
        optimizer.zero_grad()
        (losses[0] + losses[1]).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], CLIP)
        for g in optimizer.param_groups:
            g["lr"] = schedule(lr, step)
        optimizer.step()
        for k, v in zip(out, (losses[0].item(), losses[1].item(), norm.item(), schedule(lr, step))):
            out[k].append(v)
    out = {k: np.array(v, np.float64).astype(np.float32) for k, v in out.items()}
    for k, p in list(model.net.named_parameters()) + list(model.heads.named_parameters()):
        if p.grad is not None:
            out["weight/" + k] = G.sample(p)
    return out


def golden(path, *args):
    exact, single = curve(*args, torch.float64), curve(*args, torch.float32)
    for k, v in single.items():
        if not k.startswith("weight/"):
            exact["f32/" + k] = v
    print(path, exact["loss_cls"][[0, -1]], exact["loss_patch"][[0, -1]], "f32 differs by", np.abs(exact["loss_cls"] - single["loss_cls"]).max(),
          np.abs(exact["loss_patch"] - single["loss_patch"]).max(), (np.abs(exact["grad_norm"] - single["grad_norm"]) / exact["grad_norm"]).max())
    save_file({k: np.ascontiguousarray(v) for k, v in exact.items()}, path)


def wide_vit():
    """timm's ViT with LayerScale has DINOv2's names; its position table has the image's own grid."""
    return VisionTransformer(img_size=(42, 70), patch_size=14, embed_dim=64, depth=2, num_heads=1, init_values=1.0, num_classes=0)


def wide_features(model, x):
    tokens = model.forward_features(x)
    return tokens[:, 0], tokens[:, 1:].reshape(len(x), 3, 5, 64)


torch.manual_seed(0)
torch.set_num_threads(1)
golden("curve_dinov2.safetensors", lambda: G.DinoV2(64, 2, 1, 14, 4, 256), lambda m, x: G.token_features(m(x)), (56, 56), (4, 4), 64, 2e-3)
golden("curve_resnet18.safetensors", torchvision.models.resnet18, G.resnet_features, (64, 64), (4, 4), 512, 1e-4)
golden("curve_dinov2_wide.safetensors", wide_vit, wide_features, (42, 70), (4, 6), 64, 2e-3)
golden("curve_resnet18_wide.safetensors", torchvision.models.resnet18, G.resnet_features, (64, 96), (4, 5), 512, 1e-4)
json.dump({"command": "python generate.py", "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
          open("recipe.json", "w"), indent=1)
