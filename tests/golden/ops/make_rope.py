"""Writes rope.safetensors: rotary positions by DINOv3's own code (RopePositionEmbedding, SelfAttention.apply_rope).

    DINOV3=/path/to/dinov3 python3 tests/golden/ops/make_rope.py        (from the repository's root; about 5 s)

DINOV3 is a checkout of github.com/facebookresearch/dinov3. Needs torch, numpy and safetensors; versions and commit stand in the file's metadata.
The table of sines and cosines is f32, as the official model has it. q and k are turned in double by it, so the results are exact up to their own rounding.

CASE.x0, CASE.y, CASE.dy, CASE.dx0: q|k|v rows as kernels/ops.h has them, and CASE.period. TABLE.period and TABLE.lines: (grid_h + grid_w) lines of cosines, then sines,
first of the grid's rows, then of its columns (kd_op_rope_table); that the official table of all patches is made of these lines is checked here.
tests/ops/test_ops_golden.c knows each case's attributes.
"""
import json
import os
import subprocess
import sys

import numpy as np
import safetensors
import torch
from safetensors.numpy import save_file

source = os.environ["DINOV3"]
sys.path.insert(0, source)
from dinov3.layers.attention import SelfAttention  # noqa: E402
from dinov3.layers.rope_position_encoding import RopePositionEmbedding  # noqa: E402

torch.manual_seed(20250814)
out = {}


def put(name, tensor):
    out[name] = np.ascontiguousarray(tensor.detach().float().numpy())


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float32).double().requires_grad_()


def encoding(width, heads, h, w):
    rope = RopePositionEmbedding(width, num_heads=heads, base=100.0, normalize_coords="separate", dtype=torch.float32).eval()
    with torch.no_grad():
        return rope.periods, rope(H=h, W=w)


def case(name, n, begin, h, w, heads, head):
    """x0 [n, T, 3 D] -> y: q and k turned, v as it is."""
    width, tokens = heads * head, begin + h * w
    periods, (sin, cos) = encoding(width, heads, h, w)
    x = rand(n, tokens, 3 * width)
    q, k, v = torch.unbind(x.reshape(n, tokens, 3, heads, head), 2)
    attention = SelfAttention(width, num_heads=heads)
    q, k = attention.apply_rope(q.transpose(1, 2), k.transpose(1, 2), (sin.double(), cos.double()))
    y = torch.stack([q.transpose(1, 2), k.transpose(1, 2), v], 2).reshape(n, tokens, 3 * width)
    dy = rand(*y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    for key, t in (("x0", x), ("y", y), ("dy", dy), ("dx0", dx), ("period", periods)):
        put(f"{name}.{key}", t)


def table(name, h, w, head):
    periods, (sin, cos) = encoding(head, 1, h, w)
    quarter = head // 4
    lines = []
    for t in (cos, sin):
        t = t.reshape(h, w, head)
        rows, columns = t[:, 0, :quarter], t[0, :, quarter : 2 * quarter]
        whole = torch.cat([rows[:, None].expand(h, w, quarter), columns[None].expand(h, w, quarter)], -1)
        assert torch.equal(t, whole.tile(2))
        lines.append(torch.cat([rows, columns], 0))
    put(f"{name}.period", periods)
    put(f"{name}.lines", torch.cat(lines, 1))


case("rope_narrow", 2, 5, 3, 4, 2, 16)
case("rope_wide", 1, 1, 1, 3, 1, 128)
case("rope_no_prefix", 1, 0, 5, 2, 3, 4)
table("table_14x14", 14, 14, 64)
table("table_64x37", 64, 37, 64)
table("table_9x5", 9, 5, 128)
commit = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or os.environ.get("DINOV3_COMMIT", "unknown")
versions = dict(torch=torch.__version__, numpy=np.__version__, safetensors=safetensors.__version__, dinov3=commit)
here = os.path.dirname(os.path.abspath(__file__))
save_file(out, os.path.join(here, "rope.safetensors"), metadata={"made_by": "make_rope.py with " + json.dumps(versions)})
print(f"{len(out)} tensors, {sum(t.nbytes for t in out.values())} bytes; {versions}")
