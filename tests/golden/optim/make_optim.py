"""Golden steps of the optimizers: five each of torch.optim.AdamW, torch.optim.SGD and LARS, with clipping, and the moving average of AdamW's weights.

    python make_optim.py

LARS isn't in torch; it is written here in numpy, in float64, from its formula (You, Gitman & Ginsburg 2017; facts: trust 1e-3, eps 1e-8, momentum 0.9; tensors without decay take plain SGD).
Four tensors are decayed (the third begins as zeros, the fourth never has a gradient) and one isn't; vectors hold them one after the other. Of every step: the gradient "NAME.g<i>", its norm before
clipping "NAME.norm<i>", and the weights after it "NAME.w<i+1>"; in LARS the tensors' rates "lars.rate<i>". "ema.e<i+1>" averages "adamw.w<i+1>" (decay 0.9, from w0).
"adamw32" and "sgd32" are the same steps in float32 and without clipping, with the moments beside the weights ("NAME.m<i+1>", "NAME.v<i+1>"): they fix the order of roundings.
"""
import json
import platform

import numpy as np
import torch
from safetensors.numpy import save_file

STEPS, CLIP, DECAY, MOMENTUM = 5, 1.0, 0.05, 0.9
SIZES, REST = (12, 35, 21, 16), 9
LR = {"adamw": 2e-3, "sgd": 0.1, "lars": 4.0}
out = {}


def put(name, value):
    out[name] = np.ascontiguousarray(np.asarray(value, dtype=np.float64).astype(np.float32)).reshape(-1)


def start():
    """Weights and gradients of all steps, in values that f32 holds."""
    r = np.random.default_rng(7)
    w = [r.normal(size=n).astype(np.float32).astype(np.float64) for n in SIZES + (REST,)]
    w[2][:] = 0
    g = [[r.normal(size=n).astype(np.float32).astype(np.float64) for n in SIZES + (REST,)] for _ in range(STEPS)]
    for step in g:
        step[3][:] = 0
    return w, g


def with_torch(name, make):
    w, g = start()
    tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in w]
    optimizer = make([{"params": tensors[:4], "weight_decay": DECAY}, {"params": tensors[4:], "weight_decay": 0.0}])
    put(f"{name}.w0", np.concatenate(w))
    for i in range(STEPS):
        for t, x in zip(tensors, g[i]):
            t.grad = torch.from_numpy(x.copy())
        put(f"{name}.g{i}", np.concatenate(g[i]))
        put(f"{name}.norm{i}", [torch.nn.utils.clip_grad_norm_(tensors, CLIP)])
        optimizer.step()
        put(f"{name}.w{i + 1}", np.concatenate([t.detach().numpy() for t in tensors]))


def in_f32(name, make, moments):
    w, g = start()
    tensors = [torch.from_numpy(x.astype(np.float32)).requires_grad_() for x in w]
    optimizer = make([{"params": tensors[:4], "weight_decay": DECAY}, {"params": tensors[4:], "weight_decay": 0.0}])
    put(f"{name}.w0", np.concatenate(w))
    for i in range(STEPS):
        for t, x in zip(tensors, g[i]):
            t.grad = torch.from_numpy(x.astype(np.float32))
        put(f"{name}.g{i}", np.concatenate(g[i]))
        optimizer.step()
        put(f"{name}.w{i + 1}", np.concatenate([t.detach().numpy() for t in tensors]))
        for short, long in moments.items():
            put(f"{name}.{short}{i + 1}", np.concatenate([optimizer.state[t][long].numpy() for t in tensors]))


def lars():
    w, g = start()
    m = [np.zeros_like(x) for x in w]
    trust, eps = 1e-3, 1e-8
    put("lars.w0", np.concatenate(w))
    for i in range(STEPS):
        norm = np.sqrt(sum((x * x).sum() for x in g[i]))
        scale = min(1.0, CLIP / (norm + 1e-6))
        rates = []
        put(f"lars.g{i}", np.concatenate(g[i]))
        put(f"lars.norm{i}", [norm])
        for k in range(len(w)):
            d = scale * g[i][k]
            if k < len(SIZES):
                wn, gn = np.linalg.norm(w[k]), np.linalg.norm(d)
                rate = 1.0 if wn == 0 else 0.0 if gn == 0 else trust * wn / (gn + DECAY * wn + eps)
                rates.append(rate)
                d = rate * (d + DECAY * w[k])
            m[k] = MOMENTUM * m[k] + d
            w[k] = w[k] - LR["lars"] * m[k]
        put(f"lars.rate{i}", rates)
        put(f"lars.w{i + 1}", np.concatenate(w))


torch.set_num_threads(1)
MAKE = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=LR["adamw"], betas=(0.9, 0.999), eps=1e-8),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=LR["sgd"], momentum=MOMENTUM),
}
with_torch("adamw", MAKE["adamw"])
with_torch("sgd", MAKE["sgd"])
in_f32("adamw32", MAKE["adamw"], {"m": "exp_avg", "v": "exp_avg_sq"})
in_f32("sgd32", MAKE["sgd"], {"m": "momentum_buffer"})
lars()
e = out["adamw.w0"].astype(np.float64)
for i in range(STEPS):
    e = 0.9 * e + (1 - 0.9) * out[f"adamw.w{i + 1}"].astype(np.float64)
    put(f"ema.e{i + 1}", e)
save_file(out, "optim.safetensors")
json.dump({"command": "python make_optim.py", "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}, open("recipe.json", "w"), indent=1)
