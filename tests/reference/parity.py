#!/usr/bin/env python3
"""Training steps against PyTorch: replays what `kd-train --dump` wrote with the reference library's network, PyTorch's losses and its AdamW, from the same weights on the same inputs.

    kd-train --cache C --images I --student resnet18 --out RUN --epochs 100 --warmup-epochs 66.6667 --batch-size 16 --val-fraction 0 --steps 20 --dump DUMP
    parity.py DUMP/resnet18 [DUMP/vit_small_patch16_224 ...] [--threads 1] [--exact]

Everything in f32. Checked for each student:
  gradients  of step 1, relative L2 per tensor at most 1e-4 from PyTorch's in f64 (tensors below 1e-6 of the whole gradient's norm excepted: they are rounding). PyTorch's own f32 is printed beside it: where
             batch norm amplifies rounding it is farther away than 1e-4 itself, and farther still from itself with the batch reversed.
  losses     of every step, relative difference at most 1e-4 from PyTorch's in f32
  weights    after the last step at most 3 times as far from PyTorch's as PyTorch's are from those of PyTorch with each batch reversed, or (--exact) at most 3 times as far from PyTorch's in f64 as its f32 is:
             the second counts where reversing a batch changes hardly any sum. The bias of a ViT's keys has no gradient but rounding, which AdamW turns into steps, and is left out.
In f64 a ReLU's gradient is still all or nothing, so values within rounding of 0 decide it by chance: in a ResNet-18 two correct programs in f32 (PyTorch and itself with the batch reversed) are some 1e-2 apart
in the gradient of step 1. It is compared with PyTorch in f32 that is made to choose the sides (and the places of max pooling) that our program chose; then 1e-4 holds again.
The first tensor that diverges is named, in the order of computing: features, predictions, losses, gradients from the loss back to the first layer, running statistics and weights after the step.
--exact runs all steps in f64 too. Ends with status 1 when a check fails.
"""
import argparse
import json
import os
import platform
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

GRADIENT, LOSS, TIMES_REVERSED, NOISE = 1e-4, 1e-4, 3.0, 1e-6


class Heads(torch.nn.Module):
    """LayerNorm -> Linear for each term that the dump has."""

    def __init__(self, params):
        super().__init__()
        for term in ("cls", "patch"):
            weight = params.get("kd_head.%s.linear.weight" % term)
            if weight is None:
                continue
            head = torch.nn.Module()
            head.norm, head.linear = torch.nn.LayerNorm(weight.shape[1], eps=1e-6), torch.nn.Linear(weight.shape[1], weight.shape[0])
            self.add_module(term, head)

    def forward(self, term, x):
        head = getattr(self, term)
        return head.linear(head.norm(x))


def resnet(name):
    import torchvision

    net = torchvision.models.get_model(name, weights=None)

    def features(x):
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        fmap = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return net.avgpool(fmap).flatten(1), fmap.permute(0, 2, 3, 1)

    return net, features


class OurSide(torch.nn.Module):
    """A ReLU that lets through what the program's did, whatever the rounding of this one's input: a value within rounding of 0 is on either side by chance, and its gradient all or nothing."""

    def __init__(self, results):
        super().__init__()
        self.results = results  # of the program, in the order of the calls

    def forward(self, x):
        return x * (self.results.pop(0).permute(0, 3, 1, 2) > 0).to(x.dtype)


class OurPlace(torch.nn.Module):
    """The max pool that takes the value at the place where the program's input had its largest."""

    def __init__(self, pool, given):
        super().__init__()
        self.at = F.max_pool2d(given.permute(0, 3, 1, 2), pool.kernel_size, pool.stride, pool.padding, return_indices=True)[1]

    def forward(self, x):
        return x.flatten(2).gather(2, self.at.flatten(2)).reshape(*x.shape[:2], *self.at.shape[2:])


def impose_pattern(net, ops):
    """Gives a torchvision ResNet the ReLU and max-pool choices of the program's step."""
    by_name = {k.split(" ", 1)[1]: v for k, v in ops.items()}
    net.relu, net.maxpool = OurSide([by_name["bn1"]]), OurPlace(net.maxpool, by_name["bn1"])
    for name, block in net.named_modules():
        if name.startswith("layer") and hasattr(block, "relu"):
            block.relu = OurSide([by_name["%s.bn%d" % (name, i)] for i in (1, 2, 3) if hasattr(block, "bn%d" % i)])


def vit(name):
    import timm

    net = timm.create_model(name, num_classes=0)

    def features(x):
        tokens = net.forward_features(x)
        side = net.patch_embed.grid_size
        return tokens[:, 0], tokens[:, 1:].reshape(len(x), *side, -1)

    return net, features


def yolo(name):
    """The backbone of a detector: layers 0 to 9."""
    from ultralytics import YOLO

    net = torch.nn.Module()
    net.model = YOLO(name + ".yaml").model.model[:10]

    def features(x):
        for layer in net.model:
            x = layer(x)
        return x.mean((2, 3)), x.permute(0, 2, 3, 1)

    return net, features


class Student(torch.nn.Module):
    def __init__(self, start, params):
        super().__init__()
        name = start["student"]
        net, self.features = {"torchvision": resnet, "timm": vit, "ultralytics": yolo}[start["library"]](name)
        self.net, self.heads = net, torch.nn.Module()
        self.heads.kd_head = Heads(params)
        self.load(net, {k: v for k, v in params.items() if not k.startswith("kd_head.")})
        self.load(self.heads, {k: v for k, v in params.items() if k.startswith("kd_head.")})
        self.mean, self.std = torch.tensor(json.loads(start["mean"])), torch.tensor(json.loads(start["std"]))
        self.train()

    @staticmethod
    def load(module, params):
        """Every parameter of both, and nothing else; the counters of batch norms aren't in dumps."""
        missing, unexpected = module.load_state_dict(params, strict=False)
        missing = [k for k in missing if not k.endswith("num_batches_tracked")]
        if missing or unexpected:
            sys.exit("the dump lacks %s and has %s, which the library's network doesn't" % (missing, unexpected))

    def forward(self, inputs, weights):
        """Outputs by the names of the dump, in the order of computing."""
        x = inputs["images"].permute(0, 3, 1, 2).float().div(255)
        x = ((x - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)).to(next(self.parameters()).dtype)
        out = {}
        out["cls"], out["map"] = self.features(x)
        total = 0
        for term, tap in (("cls", "cls"), ("patch", "map")):
            if "target." + term not in inputs:
                continue
            target = inputs["target." + term].to(x.dtype)
            pred = self.heads.kd_head(term, out[tap])
            if pred.ndim == 4 and pred.shape[1:3] != target.shape[1:3]:
                pred = F.interpolate(pred.permute(0, 3, 1, 2), target.shape[1:3], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
            out["pred." + term], out["loss." + term] = pred, F.mse_loss(pred, target)
            total = total + weights[term] * out["loss." + term]
        return total, out

    def named(self):
        """Trained parameters by the names of the dump."""
        return {k: p for m in (self.net, self.heads) for k, p in m.named_parameters()}

    def states(self):
        return {k: b for k, b in self.net.named_buffers() if k.endswith(("running_mean", "running_var"))}


class Trainer:
    """PyTorch's run from the dump's start. backwards: each batch in reversed order."""

    def __init__(self, start, params, backwards=False):
        options = json.loads(start["options"])
        if options["loss"] != "std-mse" or options["optimizer"] != "adamw":
            sys.exit("--loss %s with --optimizer %s isn't replayed here" % (options["loss"], options["optimizer"]))
        self.student, self.backwards, self.clip = Student(start, params), backwards, float(start["clip"])
        self.weights = {t["name"]: t["weight"] for t in json.loads(start["terms"])}
        decayed, named = set(json.loads(start["decayed"])), self.student.named()
        groups = [{"params": [p for k, p in named.items() if k in decayed], "weight_decay": float(start["weight_decay"])},
                  {"params": [p for k, p in named.items() if k not in decayed], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0)

    def gradients(self, inputs):
        if self.backwards:
            inputs = {k: v.flip(0) for k, v in inputs.items()}
        self.optimizer.zero_grad()
        total, out = self.student(inputs, self.weights)
        total.backward()
        self.out = out
        return total.item()

    def step(self, inputs, lr):
        loss = self.gradients(inputs)
        self.grads = {k: p.grad.clone() for k, p in self.student.named().items() if p.grad is not None}
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_([p for p in self.student.parameters() if p.grad is not None], self.clip)
        for g in self.optimizer.param_groups:
            g["lr"] = lr
        self.optimizer.step()
        return loss


class Dump:
    def __init__(self, path):
        self.file = safe_open(path, "pt")
        self.meta = self.file.metadata()

    def group(self, name):
        return {k[len(name) + 1:]: self.file.get_tensor(k) for k in self.file.keys() if k.startswith(name + "/")}


def distance(a, b):
    """Relative L2 of a against b, in f64."""
    a, b = a.detach().double().reshape(-1), b.detach().double().reshape(-1)
    norm = b.norm().item()
    return (a - b).norm().item() / norm if norm > 0 else float((a - b).norm() > 0)


def whole(tensors, names):
    return torch.cat([tensors[k].detach().double().reshape(-1) for k in names])


class Report:
    def __init__(self):
        self.failed = 0

    def check(self, what, value, limit, note=""):
        good = value <= limit
        self.failed += not good
        print("%-6s %-62s %-10.3g limit %-8g %s" % ("ok" if good else "NOT OK", what, value, limit, note), flush=True)


def first_divergence(ours, torch_run, dump_params):
    """(name, distance) of the first tensor beyond its limit, in the order of computing, or None."""
    for k, v in torch_run.out.items():
        if k in ours["output"]:
            d = distance(ours["output"][k], v)
            if d > GRADIENT:
                return "output/" + k, d
    total = whole(torch_run.grads, torch_run.grads).norm().item()
    for k, g in reversed(list(torch_run.grads.items())):
        d = distance(ours["grad"][k], g)
        if d > GRADIENT and g.norm().item() > NOISE * total:
            return "grad/" + k, d
    after = {**torch_run.student.states(), **torch_run.student.named()}
    for k, v in after.items():
        d = distance(dump_params[k], v)
        if d > GRADIENT:
            return "param/" + k, d
    return None


def gradients_with_pattern(start, params, inputs, ops):
    run = Trainer(start, params)
    impose_pattern(run.student.net, ops)
    run.gradients(inputs)
    return {k: p.grad for k, p in run.student.named().items() if p.grad is not None}


def check_gradients(report, student, ours, run, other, exact, pattern):
    whole_norm = whole(run.grads, run.grads).norm().item()
    names = [k for k, g in run.grads.items() if g.norm().item() > NOISE * whole_norm]
    if pattern is not None:
        report.check("%s: gradient of step 1, same ReLU choices, worst of %d" % (student, len(names)), *max((distance(ours[k], pattern[k]), k) for k in names)[:1], GRADIENT)
    d, k = max((distance(ours[k], exact[k]), k) for k in names)
    apart = [max(distance(a[k], b[k]) for k in names) for a, b in ((ours, run.grads), (run.grads, exact), (run.grads, other.grads))]
    text = "%s: gradient of step 1 against f64, worst of %d tensors" % (student, len(names))
    note = "%s; worst of: ours to PyTorch f32 %.2g, PyTorch f32 to f64 %.2g, to its reversed %.2g; %d left out" % (k, *apart, len(run.grads) - len(names))
    if pattern is None:
        report.check(text, d, GRADIENT, note)
    else:
        report.check(text, d, apart[1], note)


def without_rounding(tensors, names):
    """All values in one vector, without biases of keys."""
    parts = []
    for k in names:
        t = tensors[k].detach().double().reshape(-1)
        if k.endswith("attn.qkv.bias"):
            t = torch.cat([t[: len(t) // 3], t[2 * len(t) // 3:]])
        parts.append(t)
    return torch.cat(parts)


def check_weights(report, student, steps, ours, run, other, exact, params):
    names = list(run.grads)
    mine, w, reverse, start = (without_rounding(x, names) for x in (ours, run.student.named(), other.student.named(), params))
    ratio, note = ((mine - w).norm() / (reverse - w).norm()).item(), "%.3g over %.3g; they moved by %.3g" % ((mine - w).norm(), (reverse - w).norm(), (w - start).norm())
    if exact is not None:
        e = without_rounding(exact.student.named(), names)
        to_exact = ((mine - e).norm() / (w - e).norm()).item()
        note += "; to f64: ours %.3g, PyTorch %.3g, %.2f times" % ((mine - e).norm(), (w - e).norm(), to_exact)
        ratio = min(ratio, to_exact)
    report.check("%s: weights after %d steps, distance over PyTorch's own" % (student, steps), ratio, TIMES_REVERSED, note)


def replay(folder, want_exact, report):
    files = sorted(f for f in os.listdir(folder) if f.startswith("step-"))
    start = Dump(os.path.join(folder, files[0]))
    if float(start.meta["step"]) != 0:
        sys.exit("%s: the dump begins after step %s; PyTorch can only replay from the beginning, where AdamW's moments are 0" % (folder, start.meta["step"]))
    params, student = start.group("param"), start.meta["student"]
    run, other, exact = Trainer(start.meta, params), Trainer(start.meta, params, backwards=True), Trainer(start.meta, params)
    exact.student.double()
    worst_loss, divergence = (0.0, 0), None
    for n, f in enumerate(files[1:], 1):
        d = Dump(os.path.join(folder, f))
        inputs, lr = d.group("input"), float(d.meta["lr"])
        if n == 1 or want_exact:
            exact.step(inputs, lr)
        loss, reversed_loss = run.step(inputs, lr), other.step(inputs, lr)
        ours = {g: d.group(g) for g in ("output", "grad", "param")}
        worst_loss = max(worst_loss, (abs(float(d.meta["loss"]) - loss) / abs(loss), n))
        print("       step %2d: loss %.8f, PyTorch %.8f, reversed %.8f" % (n, float(d.meta["loss"]), loss, reversed_loss), flush=True)
        if n == 1:
            pattern = gradients_with_pattern(start.meta, params, inputs, d.group("op")) if start.meta["library"] == "torchvision" else None
            check_gradients(report, student, ours["grad"], run, other, exact.grads, pattern)
        if divergence is None:
            first = first_divergence(ours, run, ours["param"])
            divergence = first and (n, *first)
    report.check("%s: loss of %d steps, worst relative difference" % (student, n), worst_loss[0], LOSS, "step %d" % worst_loss[1])
    check_weights(report, student, n, ours["param"], run, other, exact if want_exact else None, params)
    states = run.student.states()
    if states:
        mine, own = (max((distance(a[k], states[k]), k) for k in states) for a in (ours["param"], other.student.states()))
        print("       running statistics, worst relative difference %.2g (%s); PyTorch reversed %.2g" % (*mine, own[0]))
    print("       first divergence beyond %g: %s" % (GRADIENT, "none" if divergence is None else "step %d, %s, %.2g" % divergence), flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("dumps", nargs="+")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--exact", action="store_true")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print("python %s, torch %s, numpy %s" % (platform.python_version(), torch.__version__, np.__version__))
    report = Report()
    for folder in args.dumps:
        replay(folder.rstrip("/"), args.exact, report)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
