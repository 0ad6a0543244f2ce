"""Three training steps of full-size students in PyTorch: gradients of step 1, losses, and where the weights went; in float64, with the distance of PyTorch's own float32 beside it.

    python generate_steps.py [STUDENT ...]

Weights, pictures and targets come from the formula of ../models/generate.py, so no weights are stored. Of each tensor x (the gradient; the way from the first to the last weights) the file has its norm
and 8 projections: sums of its values with signs, bits 31 to 24 of the formula at "NAME/signs". The difference of two tensors has projections whose mean square is the square of its norm, so
tests/unit/test_train_parity.c knows the relative L2 error of every gradient, within a quarter, from 9 numbers.

A tensor of the file, NAME: [20] = gradient: norm, 8 projections, relative L2 error of float32; way of the weights: the same. loss_cls, loss_patch: [3]; f32/loss_cls, f32/loss_patch.

A ReLU's gradient is all or nothing, so one value that rounds to the other side of 0 changes whole gradients by 1e-3. The pictures ("images.K") are those, of 40, whose values stay farthest from 0
at every ReLU and whose largest stay farthest from the second in every max pool: by more than rounding.
"""
import json
import os
import platform
import sys

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
import ultralytics
from safetensors.numpy import save_file
from ultralytics import YOLO

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models"))
import generate as G

STEPS, DECAY, CLIP, WIDTH, LR, PROJECTIONS, CANDIDATES = 3, 0.05, 1.0, 24, 1e-4, 8, 40


def pictures(candidate, n, size):
    return (G.bits("images.%d" % candidate, n * size * size * 3) >> np.uint32(24)).astype(np.uint8).reshape(n, size, size, 3)


def summary(name, exact, single):
    x = exact.detach().double().reshape(-1).numpy()
    signs = G.bits(name + "/signs", x.size) >> np.uint32(24)
    out = [np.linalg.norm(x)]
    for j in range(PROJECTIONS):
        out.append(np.where(signs >> np.uint32(PROJECTIONS - 1 - j) & np.uint32(1), x, -x).sum())
    out.append(np.linalg.norm(single.detach().double().reshape(-1).numpy() - x) / max(out[0], 1e-300))
    return out


class Margin:
    """How far the values of a forward pass stay from where a ReLU or a max pool changes its mind, in units of their spread."""

    def __init__(self, net):
        self.least = float("inf")
        self.hooks = [m.register_forward_pre_hook(self.relu if isinstance(m, torch.nn.ReLU) else self.pool) for m in net.modules() if isinstance(m, (torch.nn.ReLU, torch.nn.MaxPool2d))]

    def relu(self, module, args):
        self.least = min(self.least, (args[0].abs().min() / args[0].std()).item())

    def pool(self, module, args):
        x, k, p = args[0], module.kernel_size, module.padding
        windows = F.unfold(F.pad(x, (p, p, p, p), value=-1e9), k, stride=module.stride).reshape(len(x), x.shape[1], k * k, -1)
        top = windows.topk(2, dim=2).values
        gap = (top[:, :, 0] - top[:, :, 1])[top[:, :, 0] != 0]  # equal by being the same value in overlapping windows, or zeros behind a ReLU
        gap = gap[gap > 0]
        if gap.numel():
            self.least = min(self.least, (gap.min() / x.std()).item())

    def remove(self):
        for h in self.hooks:
            h.remove()


def student(make, width, dtype):
    module = torch.nn.Module()
    module.net = G.fill(make().double())
    module.heads = torch.nn.Module()
    module.heads.kd_head = G.Heads(width, WIDTH)
    G.fill(module.heads.double())
    return module.to(dtype).train()


def named(module):
    return {k: p for m in (module.net, module.heads) for k, p in m.named_parameters()}


def train(make, features, width, pixels, norm, side, dtype):
    module = student(make, width, dtype)
    n, params = len(pixels), named(module)
    x = G.normalized(pixels, *norm).to(dtype)
    target = {"cls": torch.from_numpy(G.unit("target.cls", n * WIDTH).astype(np.float32)).to(dtype).reshape(n, WIDTH),
              "patch": torch.from_numpy(G.unit("target.patch", n * side * side * WIDTH).astype(np.float32)).to(dtype).reshape(n, side, side, WIDTH)}
    start = {k: p.detach().clone() for k, p in params.items()}
    decayed = [p for k, p in params.items() if p.ndim >= 2 and not k.endswith(("token", "pos_embed"))]
    rest = [p for p in params.values() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}], lr=LR)
    losses = []
    for step in range(STEPS):
        pooled, fmap = features(module.net, x)
        pred = module.heads.kd_head("patch", fmap)
        if pred.shape[1:3] != (side, side):
            pred = F.interpolate(pred.permute(0, 3, 1, 2), (side, side), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        terms = F.mse_loss(module.heads.kd_head("cls", pooled), target["cls"]), F.mse_loss(pred, target["patch"])
        optimizer.zero_grad()
        (terms[0] + terms[1]).backward()
        trained = {k: p for k, p in params.items() if p.grad is not None}
        if step == 0:
            gradients = {k: p.grad.clone() for k, p in trained.items()}
        torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)
        for g in optimizer.param_groups:
            g["lr"] = LR * (step + 1) / STEPS
        optimizer.step()
        losses.append([t.item() for t in terms])
    return np.array(losses), gradients, {k: p.detach().double() - start[k].double() for k, p in trained.items()}


def choose_pictures(make, features, width, n, size, norm):
    best = (0.0, 0)
    for candidate in range(CANDIDATES):
        module = student(make, width, torch.float64)
        margin = Margin(module.net)
        if not margin.hooks:
            return 0, float("inf")
        with torch.no_grad():
            features(module.net, G.normalized(pictures(candidate, n, size), *norm))
        best = max(best, (margin.least, candidate))
    return best[1], best[0]


def golden(name, make, features, width, n, size, norm, side):
    candidate, margin = choose_pictures(make, features, width, n, size, norm)
    pixels = pictures(candidate, n, size)
    (loss, gradient, way), (loss32, gradient32, way32) = (train(make, features, width, pixels, norm, side, d) for d in (torch.float64, torch.float32))
    out = {k: np.array(summary(k, gradient[k], gradient32[k]) + summary(k, way[k], way32[k]), np.float32) for k in gradient}
    for i, term in enumerate(("cls", "patch")):
        out["loss_" + term], out["f32/loss_" + term] = loss[:, i].astype(np.float32), loss32[:, i].astype(np.float32)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, "steps_%s.safetensors" % name)
    total = np.sqrt(sum(v[0] ** 2 for k, v in out.items() if len(v) == 20))
    worst = max((v[9], k) for k, v in out.items() if len(v) == 20 and v[0] > 1e-6 * total)
    moved = np.sqrt(sum((v[10] * v[19]) ** 2 for v in out.values() if len(v) == 20) / sum(v[10] ** 2 for v in out.values() if len(v) == 20))
    print(name, "pictures", candidate, "margin %.2g" % margin, loss.sum(1), "f32 differs by %.2g;" % np.abs(loss - loss32).max(), "gradient at worst %.2g (%s)," % worst, "way %.2g" % moved, flush=True)
    return candidate


def yolo_backbone():
    net = torch.nn.Module()
    net.model = YOLO("yolov8n.yaml").model.model[:10]
    return net


def yolo_features(net, x):
    for layer in net.model:
        x = layer(x)
    return x.mean((2, 3)), x.permute(0, 2, 3, 1)


STUDENTS = {
    "resnet18": (torchvision.models.resnet18, G.resnet_features, 512, 4, 64, G.IMAGENET, 4),
    "vit_small_patch16_224": (lambda: timm.create_model("vit_small_patch16_224", num_classes=0), lambda m, x: G.token_features(m.forward_features(x)), 384, 2, 224, G.HALF, 16),
    "yolov8n": (yolo_backbone, yolo_features, 256, 4, 64, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 4),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chosen = {k: golden(k, *v) for k, v in STUDENTS.items() if len(sys.argv) == 1 or k in sys.argv[1:]}
    if chosen.keys() == STUDENTS.keys():
        json.dump({"command": "python generate_steps.py", "pictures": chosen, "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
                   "timm": timm.__version__, "ultralytics": ultralytics.__version__, "numpy": np.__version__}, open("recipe_steps.json", "w"), indent=1)
