"""Writes cnn.safetensors: inputs, outputs and gradients of the ops of convolutional students, computed by PyTorch in double and stored as f32.

    python3 tests/golden/ops/make_cnn.py        (from the repository's root; about 2 s)

Needs torch, numpy and safetensors; the versions that made the committed file stand in its metadata. Names and layout as in make_ops.py.
"""
import json
import os

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.manual_seed(20251128)
out = {}


def rand(*shape, scale=1.0):
    """f32 values held in double, so that what is stored is what was computed with."""
    return (torch.randn(*shape, dtype=torch.float32) * scale).double().requires_grad_()


def put(name, tensor, is_map=False):
    t = tensor.detach()
    out[name] = np.ascontiguousarray((t.permute(0, 2, 3, 1) if is_map and t.dim() == 4 else t).float().numpy())


def case(name, y, inputs, params=(), maps=False):
    """Stores y for a random dy, and the gradients of every input and parameter that has one."""
    dy = rand(*y.shape)
    wanted = [t for t in list(inputs) + list(params) if t.requires_grad]
    grads = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, dy)))
    put(f"{name}.y", y, maps)
    put(f"{name}.dy", dy, maps)
    for i, t in enumerate(inputs):
        put(f"{name}.x{i}", t, maps)
        if t.requires_grad:
            put(f"{name}.dx{i}", grads[id(t)], maps)
    for i, t in enumerate(params):
        put(f"{name}.param{i}", t)
        put(f"{name}.dparam{i}", grads[id(t)])


def convolutions():
    x, w, b = rand(2, 6, 9, 7), rand(6, 1, 5, 5, scale=0.2), rand(6)
    case("conv_depthwise", F.conv2d(x, w, b, stride=2, padding=2, groups=6), [x], [w, b], maps=True)
    x, w = rand(1, 6, 5, 4), rand(9, 2, 3, 3, scale=0.2)
    case("conv_groups", F.conv2d(x, w, stride=1, padding=1, groups=3), [x], [w], maps=True)


def activations():
    """Values on both sides of and at the corners of the hard ones."""
    corners = torch.tensor([[-3.0, 3.0, 0.0, -3.5, 3.5, -2.9990234375, 2.9990234375, -1.5]])
    for name, f in (("silu", F.silu), ("hardswish", F.hardswish), ("hardsigmoid", F.hardsigmoid)):
        x = torch.cat([corners, torch.randn(6, 8) * 3]).double().requires_grad_()
        case(name, f(x), [x])
    for name, f in (("batch_norm_silu", F.silu), ("batch_norm_hardswish", F.hardswish)):
        x, w, b = rand(3, 5, 4, 3), rand(5, scale=2), rand(5)
        mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
        put(f"{name}.state0", mean), put(f"{name}.state1", var)
        momentum, eps = float(np.float32(0.03)), float(np.float32(1e-3))  # as the C code has them
        case(name, f(F.batch_norm(x, mean, var, w, b, True, momentum, eps)), [x], [w, b], maps=True)
        put(f"{name}.state0_after", mean), put(f"{name}.state1_after", var)


def channels():
    x, s = rand(2, 7, 4, 3), rand(2, 7, 1, 1)
    case("channel_gate", x * s, [x, s], maps=True)
    x = rand(2, 9, 3, 2)
    case("channel_slice", x[:, 4:7], [x], maps=True)
    parts = [rand(2, c, 3, 2) for c in (3, 1, 4, 5)]
    case("concat", torch.cat(parts, 1), parts, maps=True)
    x, keep = rand(3, 5, 2), (torch.tensor([[1.0], [0.0], [1.0]]) / np.float32(0.75)).double()  # timm's drop_path with scale_by_keep
    case("row_scale", x * keep[:, :, None], [x, keep])


def attention_by_head():
    """ultralytics' Attention: qkv viewed as (heads, key + key + head, positions), its product scaled by key^-1/2."""
    n, t, heads, key, head = 2, 6, 2, 3, 5
    x = rand(n, t, heads * (2 * key + head))
    q, k, v = x.transpose(1, 2).view(n, heads, 2 * key + head, t).split([key, key, head], dim=2)
    want = (v @ ((q.transpose(-2, -1) @ k) * key**-0.5).softmax(-1).transpose(-2, -1)).reshape(n, heads * head, t).transpose(1, 2)
    scale = float(np.float32((head / key) ** 0.5))
    fill = lambda z: F.pad(z, (0, 0, 0, head - key))
    rows = [z.reshape(n, heads * head, t).transpose(1, 2) for z in (fill(q) * scale, fill(k), v)]
    q, k, v = (z.view(n, t, heads, head).transpose(1, 2) for z in rows)
    got = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, heads * head)
    assert torch.allclose(got, want, atol=1e-6)
    case("qkv_by_head", torch.cat(rows, -1), [x])


for make in (convolutions, activations, channels, attention_by_head):
    make()
versions = dict(torch=torch.__version__, numpy=np.__version__, safetensors=safetensors.__version__)
here = os.path.dirname(os.path.abspath(__file__))
save_file(out, os.path.join(here, "cnn.safetensors"), metadata={"made_by": "make_cnn.py with " + json.dumps(versions)})
print(f"{len(out)} tensors, {sum(t.nbytes for t in out.values())} bytes; {versions}")
