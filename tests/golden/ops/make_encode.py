"""Writes encode.safetensors: what PyTorch makes of the reductions and element types in which teacher tokens are stored (common/tensor/target.h, common/tensor/encode.h).

    python3 tests/golden/ops/make_encode.py        (from the repository's root; about 2 s)

Needs torch, numpy and safetensors; versions stand in the file's metadata. Maps are channels-last.

pool_* and adjoint_*: CASE.x grids [N,H,W,D] (f32) and CASE.y [N,K,L,D], computed in double and rounded once to f32: torch.nn.functional.adaptive_avg_pool2d, and the transpose of
torch.nn.functional.interpolate(mode="bilinear", align_corners=False), which is what autograd sends back through it. CASE.square: |t|^2 of each grid.
mse_adjoint: torch.nn.functional.mse_loss of an upsampled prediction x0 and a grid t of which only x1 = U^T t and x2 = |t|^2 are stored; y, dy, dx0 as in make_ops.py.
f16, bf16: CASE.x and CASE.y, the values after torch's conversion there and back. i8: x [rows, width], rotated by Sylvester's matrix in double; scale, q and the rounded values y. Inputs whose
code lies within 1e-3 of a rounding border would let f32 and double differ; there is none (asserted).
tests/ops/test_ops_encode.c and test_ops_golden.c know the cases' attributes.
"""
import json
import os

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.manual_seed(20241128)
out = {}


def put(name, tensor):
    out[name] = np.ascontiguousarray(tensor.detach().float().numpy())


def rand(*shape):
    """f32 values held in double."""
    return torch.randn(*shape, dtype=torch.float32).double()


def first(x):
    return x.permute(0, 3, 1, 2)


def last(x):
    return x.permute(0, 2, 3, 1)


def up(s, size):
    return F.interpolate(first(s), size, mode="bilinear", align_corners=False)


def transpose(t, size):
    """U^T t: the gradient of <U s, t> by s."""
    s = torch.zeros(t.shape[0], *size, t.shape[3], dtype=torch.float64, requires_grad=True)
    (a,) = torch.autograd.grad(up(s, t.shape[1:3]), s, first(t))
    return a


def reduction(name, shape, size):
    x = rand(*shape)
    put(f"{name}.x", x)
    put(f"{name}.y", last(F.adaptive_avg_pool2d(first(x), size)) if name.startswith("pool") else transpose(x, size))
    put(f"{name}.square", (x * x).sum((1, 2, 3)))


def mse_adjoint():
    s, t = rand(2, 4, 6, 5).requires_grad_(), rand(2, 9, 7, 5)
    dy = torch.tensor(0.75, dtype=torch.float64)
    y = F.mse_loss(up(s, (9, 7)), first(t))
    (ds,) = torch.autograd.grad(y, s, dy)
    for key, value in (("x0", s), ("x1", transpose(t, (4, 6))), ("x2", (t * t).sum((1, 2, 3))[:, None]), ("y", y[None]), ("dy", dy[None]), ("dx0", ds)):
        put(f"mse_adjoint.{key}", value)


def halves():
    """Every exponent of f32, with mantissas that lie on, beside and between the borders of both types."""
    exponents = torch.arange(1, 255, dtype=torch.int64)[:, None] << 23
    mantissas = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x5A5A5A, 0x7FFFFF], dtype=torch.int64)
    bits = (exponents | mantissas).flatten()
    x = torch.cat([bits, bits | 0x80000000]).numpy().astype(np.uint32).view(np.float32)
    x = torch.from_numpy(x)
    small, large = x[x.abs() <= 65504], x[x.abs() <= 3.38e38]
    put("f16.x", small), put("f16.y", small.half())
    put("bf16.x", large), put("bf16.y", large.bfloat16())


def sylvester(order):
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < order:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / order**0.5


def codes(name, rows, blocks, order):
    x = rand(rows, blocks * order)
    h = torch.block_diag(*[sylvester(order)] * blocks)
    v = x @ h.T
    scale = v.abs().amax(1, keepdim=True) / 127
    q = torch.round(v / scale)
    assert ((v / scale - torch.floor(v / scale) - 0.5).abs() > 1e-3).all()
    for key, value in (("x", x), ("scale", scale[:, 0]), ("q", q), ("y", (q * scale) @ h)):
        put(f"{name}.{key}", value)


reduction("pool_7", (2, 16, 16, 5), (7, 7))
reduction("pool_odd", (1, 9, 7, 3), (4, 3))
reduction("pool_up", (1, 3, 2, 7), (5, 4))
reduction("adjoint_7", (2, 16, 16, 5), (7, 7))
reduction("adjoint_14", (1, 16, 16, 3), (14, 14))
reduction("adjoint_odd", (1, 9, 7, 40), (4, 6))
reduction("adjoint_down", (1, 4, 3, 7), (6, 5))
reduction("adjoint_same", (1, 5, 5, 2), (5, 5))
mse_adjoint()
halves()
codes("i8_16", 3, 3, 16)
codes("i8_4", 2, 5, 4)
codes("i8_64", 2, 1, 64)
codes("i8_1", 3, 7, 1)
versions = dict(torch=torch.__version__, numpy=np.__version__, safetensors=safetensors.__version__)
here = os.path.dirname(os.path.abspath(__file__))
save_file(out, os.path.join(here, "encode.safetensors"), metadata={"made_by": "make_encode.py with " + json.dumps(versions)})
print(f"{len(out)} tensors, {sum(t.nbytes for t in out.values())} bytes; {versions}")
