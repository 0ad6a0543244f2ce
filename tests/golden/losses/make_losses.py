"""Writes losses.safetensors: values and gradients of the distillation losses, computed by PyTorch in double and stored as f32.

    python3 tests/golden/losses/make_losses.py        (from the repository's root; about 2 s)

Needs torch, numpy and safetensors; the versions that made the committed file stand in its metadata. Tensor names as in tests/golden/ops/make_ops.py: CASE.x0 (prediction), CASE.x1 (target),
CASE.dy, CASE.y, CASE.dx0; for a queue CASE.state0 (before) and CASE.state0_after. A case without dy is an evaluation: nothing is pushed, no gradient. tests/ops/test_ops_golden.c knows each
case's attributes. Values of inputs are f32 (widened), so the double results are exact up to their own rounding.

Where the formulas come from: torch.nn.functional (normalize, cosine_similarity, smooth_l1_loss, kl_div); LightlyTrain's distillation methods as described (queue: FIFO of normalised targets,
zeros at the start, pushed before the loss, newest first; temperature without T^2; patches: rows of the Gram matrices); DINOv3's loss/gram_loss.py and DINOv2's loss/koleo_loss.py.
"""
import json
import os

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.manual_seed(20261128)
out = {}


def rand(*shape, scale=1.0):
    """f32 values held in double, so that what is stored is what was computed with."""
    return (torch.randn(*shape, dtype=torch.float32) * scale).double()


def put(name, tensor):
    out[name] = np.ascontiguousarray(tensor.detach().float().numpy())


def case(name, loss, *inputs, dy=None):
    """loss(prediction, *others); the gradient of the prediction for an upstream gradient of 0.75, or a given one."""
    s = inputs[0].clone().requires_grad_()
    y = loss(s, *inputs[1:])
    dy = torch.tensor(0.75, dtype=torch.float64) if dy is None else dy
    (ds,) = torch.autograd.grad(y, s, dy)
    for i, x in enumerate(inputs):
        put(f"{name}.x{i}", x)
    for key, value in (("y", y), ("dy", dy), ("dx0", ds)):
        put(f"{name}.{key}", value if value.dim() else value[None])


def kl(scores_t, scores_s):
    return F.kl_div(F.log_softmax(scores_s, -1), F.softmax(scores_t, -1), reduction="batchmean")


def rows():
    case("l2_normalize", lambda x: F.normalize(x, dim=-1), rand(2, 3, 17), dy=rand(2, 3, 17))
    x = rand(3, 5)
    x[1] = 0
    case("l2_normalize_zero", lambda x: F.normalize(x, dim=-1), x, dy=rand(3, 5))
    case("cosine", lambda s, t: (1 - F.cosine_similarity(s, t, dim=-1)).mean(), rand(2, 7, 33), rand(2, 7, 33))
    x = rand(3, 5)
    x[2] = 0
    case("cosine_zero", lambda s, t: (1 - F.cosine_similarity(s, t, dim=-1)).mean(), x, rand(3, 5))
    case("smooth_l1", lambda s, t: F.smooth_l1_loss(s, t, beta=1.0), rand(4, 33), rand(4, 33))
    case("smooth_l1_beta2", lambda s, t: F.smooth_l1_loss(s, t, beta=2.0), rand(2, 3, 9), rand(2, 3, 9))
    t = 4.0
    case("kl_logits", lambda a, b: t * t * kl(b / t, a / t), rand(5, 40, scale=3), rand(5, 40, scale=3))
    case("kl_logits_cold", lambda a, b: kl(b, a), rand(3, 10, scale=50), rand(3, 10, scale=50))  # probabilities that underflow f32


def f32(x):
    """0.07 is stored in an op's description as f32."""
    return float(np.float32(x))


def queues():
    """Three steps each: a queue that fills and wraps, one of the batch's size, one smaller than the batch. Then what validation sees."""
    for name, n, length, width in (("wrap", 3, 8, 5), ("equal", 4, 4, 6), ("short", 5, 3, 7)):
        temperature = f32(0.07)
        queue = torch.zeros(length, width, dtype=torch.float64)
        for step in range(1, 4):
            s, t = rand(n, width), rand(n, width)
            put(f"kl_queue_{name}_{step}.state0", queue)
            queue = torch.cat([F.normalize(t, dim=-1), queue])[:length].float().double()  # the state is f32
            case(f"kl_queue_{name}_{step}", lambda s, t: kl(F.normalize(t, dim=-1) @ queue.T / temperature, F.normalize(s, dim=-1) @ queue.T / temperature), s, t)
            put(f"kl_queue_{name}_{step}.state0_after", queue)
        s, t = rand(n, width), rand(n, width)
        y = kl(F.normalize(t, dim=-1) @ queue.T / temperature, F.normalize(s, dim=-1) @ queue.T / temperature)
        for key, value in (("x0", s), ("x1", t), ("y", y[None]), ("state0", queue), ("state0_after", queue)):
            put(f"kl_queue_{name}_eval.{key}", value)


def similarities(x):
    x = F.normalize(x.flatten(1, -2), dim=-1)
    return x @ x.transpose(1, 2)


def patches():
    t = f32(0.07)

    def intra(a, b):
        n = a.flatten(1, -2).shape[1]
        return kl(similarities(b).reshape(-1, n) / t, similarities(a).reshape(-1, n) / t)

    case("kl_intra", intra, rand(2, 9, 12), rand(2, 9, 12))
    case("kl_intra_map", intra, rand(2, 3, 5, 8), rand(2, 3, 5, 8))
    case("gram", lambda a, b: F.mse_loss(similarities(a), similarities(b)), rand(2, 9, 12), rand(2, 9, 12))
    case("gram_map", lambda a, b: F.mse_loss(similarities(a), similarities(b)), rand(2, 3, 5, 8), rand(2, 3, 5, 8))


def koleo(x, eps=1e-8):
    x = F.normalize(x, eps=eps, p=2, dim=-1)
    dots = x @ x.T
    dots.view(-1)[:: x.shape[0] + 1].fill_(-1)
    nearest = dots.detach().max(dim=1).indices
    return -torch.log(torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[nearest]) + eps).mean()


def batches():
    case("koleo", koleo, rand(9, 16))
    twins = rand(5, 8)
    twins[3] = twins[1]  # at distance 0: only PairwiseDistance's eps parts them
    case("koleo_twins", koleo, twins)


for make in (rows, queues, patches, batches):
    make()
versions = dict(torch=torch.__version__, numpy=np.__version__, safetensors=safetensors.__version__)
here = os.path.dirname(os.path.abspath(__file__))
save_file(out, os.path.join(here, "losses.safetensors"), metadata={"made_by": "make_losses.py with " + json.dumps(versions)})
print(f"{len(out)} tensors, {sum(t.nbytes for t in out.values())} bytes; {versions}")
