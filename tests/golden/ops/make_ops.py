"""Writes ops.safetensors: inputs, outputs and gradients of single ops, computed by PyTorch in double and stored as f32.

    python3 tests/golden/ops/make_ops.py        (from the repository's root; about 2 s)

Needs torch, timm, numpy and safetensors; the versions that made the committed file stand in its metadata. Maps are stored channels-last, as
kernels/ops.h has them. Tensor names are CASE.x0, CASE.param0, CASE.dy, CASE.y, CASE.dx0, CASE.dparam0, CASE.state0 (before) and CASE.state0_after;
tests/ops/test_ops_golden.c knows each case's attributes. Values of inputs are f32 (widened), so the double results are exact up to their own rounding.
"""
import json
import os

import numpy as np
import safetensors
import timm
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from timm.models.vision_transformer import Attention

torch.manual_seed(20240607)
out = {}


def rand(*shape, scale=1.0):
    """f32 values held in double, so that what is stored is what was computed with."""
    return (torch.randn(*shape, dtype=torch.float32) * scale).double().requires_grad_()


def last(x):
    """[N,C,H,W] -> [N,H,W,C]"""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def put(name, tensor, is_map=False):
    t = last(tensor.detach()) if is_map else tensor.detach()
    out[name] = np.ascontiguousarray(t.float().numpy())


def case(name, y, inputs, params=(), maps=False):
    """Stores y for a random dy, and the gradients of every input and parameter."""
    dy = rand(*y.shape) if y.dim() else torch.tensor(0.75, dtype=torch.float64)
    wanted = [t for t in list(inputs) + list(params) if t.requires_grad]
    grads = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, dy)))
    put(f"{name}.y", y if y.dim() else y[None], maps)
    put(f"{name}.dy", dy if dy.dim() else dy[None], maps)
    for i, t in enumerate(inputs):
        put(f"{name}.x{i}", t, maps)
        if t.requires_grad:
            put(f"{name}.dx{i}", grads[id(t)], maps)
    for i, t in enumerate(params):
        put(f"{name}.param{i}", t)
        put(f"{name}.dparam{i}", grads[id(t)])


def convolutions():
    x, w, b = rand(2, 3, 11, 9), rand(5, 3, 7, 7, scale=0.1), rand(5)
    case("conv_stem", F.relu(F.conv2d(x, w, b, stride=2, padding=3)), [x], [w, b], maps=True)
    x, w = rand(2, 4, 7, 7), rand(6, 4, 3, 3, scale=0.2)
    case("conv_3x3", F.conv2d(x, w, stride=1, padding=1), [x], [w], maps=True)
    x, w, b = rand(1, 3, 15, 14), rand(7, 3, 7, 7, scale=0.1), rand(7)
    case("conv_patch", F.conv2d(x, w, b, stride=7), [x], [w, b], maps=True)


def linears():
    x, w, b = rand(2, 5, 12), rand(9, 12, scale=0.3), rand(9)
    case("linear_gelu", F.gelu(F.linear(x, w, b)), [x], [w, b])
    x, w = rand(4, 7), rand(3, 7, scale=0.3)
    case("linear_plain", F.linear(x, w), [x], [w])


def norms():
    for name, join in (("batch_norm", False), ("batch_norm_join", True)):
        bn = torch.nn.BatchNorm2d(6, eps=1e-5, momentum=0.1).double().train()
        with torch.no_grad():
            bn.weight.copy_(rand(6) + 1), bn.bias.copy_(rand(6))
            bn.weight.copy_(bn.weight.float()), bn.bias.copy_(bn.bias.float())
            bn.running_mean.copy_(rand(6)), bn.running_var.copy_((rand(6).abs() + 0.5).float())
        put(f"{name}.state0", bn.running_mean), put(f"{name}.state1", bn.running_var)
        inputs = [rand(3, 6, 4, 5), rand(3, 6, 4, 5)][: 1 + join]
        y = bn(inputs[0])
        y = F.relu(y + inputs[1]) if join else y
        case(name, y, inputs, [bn.weight, bn.bias], maps=True)
        put(f"{name}.state0_after", bn.running_mean), put(f"{name}.state1_after", bn.running_var)
    x = rand(2, 3, 5, 4)
    mean, var, w, b = rand(3), (rand(3).detach().abs() + 0.5).float().double(), rand(3), rand(3)
    for i, s in enumerate((mean, var)):
        put(f"batch_norm_eval.state{i}", s)
    for n, t in (("x0", x), ("y", F.relu(F.batch_norm(x, mean.detach(), var, w, b, False, 0.1, 1e-5)))):
        put(f"batch_norm_eval.{n}", t, True)
    put("batch_norm_eval.param0", w), put("batch_norm_eval.param1", b)
    x, w, b = rand(3, 5, 13), rand(13), rand(13)
    case("layer_norm", F.layer_norm(x, (13,), w, b, 1e-6), [x], [w, b])


def attention():
    """timm's Attention: hooks take what goes into and comes out of the softmax part."""
    torch.manual_seed(7)
    att = Attention(24, num_heads=3, qkv_bias=True).double()
    seen = {}

    def after_qkv(_m, _i, o):
        o = o.detach().float().double().requires_grad_()
        seen["qkv"] = o
        return o

    att.qkv.register_forward_hook(after_qkv)
    att.proj.register_forward_pre_hook(lambda _m, i: seen.update(y=i[0]))
    att(4 * rand(2, 11, 24))
    case("attention", seen["y"], [seen["qkv"]])


def pointwise():
    x = rand(3, 40, scale=2)
    case("gelu", F.gelu(x), [x])
    x = rand(3, 40)
    case("relu", F.relu(x), [x])
    x = rand(2, 7, 18, scale=2)
    a, b = x.chunk(2, dim=-1)
    case("silu_gate", F.silu(a) * b, [x])
    a, b, g = rand(2, 7, 9), rand(2, 7, 9), rand(9)
    case("scale_add", a + g * b, [a, b], [g])
    a, b = rand(2, 17), rand(2, 17)
    case("add_relu", F.relu(a + b), [a, b])
    a, b = rand(4, 33), rand(4, 33).detach()
    case("mse", F.mse_loss(a, b), [a, b])


def spatial():
    x = rand(2, 3, 9, 8)
    case("max_pool", F.max_pool2d(x, 3, 2, 1), [x], maps=True)
    x = (rand(1, 4, 8, 7).detach() * 2).round().requires_grad_()  # many equal values: which of them gets the gradient?
    case("max_pool_ties", F.max_pool2d(x, 3, 2, 1), [x], maps=True)
    x = rand(2, 3, 5, 4)
    case("resize_up", F.interpolate(x, (12, 9), mode="bilinear", align_corners=False), [x], maps=True)
    x = rand(1, 3, 16, 16)
    case("resize_down", F.interpolate(x, (14, 7), mode="bilinear", align_corners=False), [x], maps=True)
    x = rand(2, 5, 4, 3)
    y = F.adaptive_avg_pool2d(x, 1).flatten(1)
    dy = rand(*y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    for n, t, m in (("x0", x, 1), ("y", y, 0), ("dy", dy, 0), ("dx0", dx, 1)):
        put(f"mean_tokens.{n}", t, bool(m))
    p, c, e = rand(2, 6, 5), rand(1, 1, 5), rand(1, 7, 5)
    case("tokens", torch.cat([c.expand(2, -1, -1), p], 1) + e, [p], [c, e])


def adamw():
    """Ten steps with clipping over both groups: 30 decayed values, 20 that are not. Hyper-parameters are the f32 ones that the C code has."""
    f = lambda v: float(np.float32(v))
    a, b = (torch.nn.Parameter(rand(n).detach()) for n in (30, 20))
    opt = torch.optim.AdamW([dict(params=[a], weight_decay=f(0.05)), dict(params=[b], weight_decay=0.0)], lr=f(2e-3), betas=(f(0.9), f(0.999)), eps=f(1e-8))
    put("adamw.w0", torch.cat([a, b]))
    for step in range(10):
        g = rand(50, scale=0.05 if step % 2 else 0.4).detach()  # norms about 0.35 (not clipped) and 2.8 (clipped)
        put(f"adamw.g{step}", g)
        a.grad, b.grad = g[:30].clone(), g[30:].clone()
        put(f"adamw.norm{step}", torch.nn.utils.clip_grad_norm_([a, b], 1.0)[None])
        opt.step()
        put(f"adamw.w{step + 1}", torch.cat([a, b]))


for make in (convolutions, linears, norms, attention, pointwise, spatial, adamw):
    make()
versions = dict(torch=torch.__version__, timm=timm.__version__, numpy=np.__version__, safetensors=safetensors.__version__)
here = os.path.dirname(os.path.abspath(__file__))
save_file(out, os.path.join(here, "ops.safetensors"), metadata={"made_by": "make_ops.py with " + json.dumps(versions)})
print(f"{len(out)} tensors, {sum(t.nbytes for t in out.values())} bytes; {versions}")
