"""Golden numbers of ridge maps and of likeness: numpy.linalg on features that both sides compute from a formula; bilinear resizing by PyTorch.

    python3 make_likeness.py > likeness_golden.h        (numpy 2, torch 2)
"""
import numpy as np
import torch
import torch.nn.functional as F

IMAGES, ROWS, STUDENT, TEACHER = 26, 3, 9, 5
STRENGTHS = (10, 1, 1e-1, 1e-2, 1e-3, 1e-4)


def sequence(n, seed):  # 32-bit LCG of Numerical Recipes; the C test has the same
    out, x = np.empty(n), seed
    for i in range(n):
        x = (1664525 * x + 1013904223) % 2**32
        out[i] = x / 2**32 - 0.5
    return out


def make():
    """A teacher that is partly a linear function of the student."""
    n = IMAGES * ROWS
    x = (3 * sequence(n * STUDENT, 1).reshape(n, STUDENT)).astype(np.float32)
    x[:, 0] += 1
    noise = sequence(n * TEACHER, 2).reshape(n, TEACHER)
    mix = sequence(TEACHER * STUDENT, 3).reshape(TEACHER, STUDENT)
    y = (x.astype(np.float64) @ mix.T + noise + 0.5).astype(np.float32)
    return x.astype(np.float64), y.astype(np.float64)


def fit(x, y, strength):
    mx, my = x.mean(0), y.mean(0)
    c = (x - mx).T @ (x - mx) / len(x)
    v = np.trace(c) / len(c)
    w = np.linalg.solve(c + strength * v * np.eye(len(c)), (x - mx).T @ (y - my) / len(x)).T
    return w, my - w @ mx, my


def fit_best(x, y, group):
    held = np.arange(len(x)) // group % 4 == 3
    errors = []
    for s in STRENGTHS:
        w, b, _ = fit(x[~held], y[~held], s)
        errors.append((((x[held] @ w.T + b).astype(np.float32) - y[held]) ** 2).sum())
    best = STRENGTHS[int(np.argmin(errors))]
    return best, *fit(x, y, best)


def ratio(a, b):
    value = a.sum() / b.sum()
    margin = 1.96 * np.sqrt(len(a) / (len(a) - 1) * ((a - value * b) ** 2).sum()) / b.sum()
    return value, value - margin, value + margin


def likeness(x, y):
    """x [images, rows, student], y [images, rows, teacher]; every row is fitted."""
    error, spread, cosine, chosen = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x)), []
    for half in (0, 1):
        a, b = x[half::2].reshape(-1, x.shape[2]), y[half::2].reshape(-1, y.shape[2])
        best, w, bias, mean = fit_best(a, b, x.shape[1])
        chosen.append(best)
        for i in range(1 - half, len(x), 2):
            p, t = (x[i] @ w.T + bias).astype(np.float32).astype(np.float64) - mean, y[i] - mean
            error[i], spread[i] = ((p - t) ** 2).sum(), (t**2).sum()
            cosine[i] = ((p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)).mean()
    lost = ratio(error, spread)
    return (1 - lost[0], 1 - lost[2], 1 - lost[1]), ratio(cosine, np.ones(len(x))), chosen


def c_array(name, values):
    values = np.asarray(values, dtype=np.float64).ravel()
    print("static const double %s[] = {%s};" % (name, ", ".join("%.17g" % v for v in values)))


x, y = make()
print("/* Made by make_likeness.py with numpy %s and torch %s; do not edit. */" % (np.__version__, torch.__version__))
print("enum { LIKE_IMAGES = %d, LIKE_ROWS = %d, LIKE_STUDENT = %d, LIKE_TEACHER = %d };" % (IMAGES, ROWS, STUDENT, TEACHER))
w, b, _ = fit(x, y, 0.03)
c_array("ridge_weight", w)
c_array("ridge_bias", b)
best, _, _, _ = fit_best(x, y, ROWS)
c_array("ridge_best", [best])
r2, cosine, chosen = likeness(x.reshape(IMAGES, ROWS, STUDENT), y.reshape(IMAGES, ROWS, TEACHER))
c_array("like_r2", r2)
c_array("like_cosine", cosine)
c_array("like_strength", chosen)
a, t = x[:, :TEACHER].reshape(IMAGES, ROWS, TEACHER), y.reshape(IMAGES, ROWS, TEACHER)
raw = ((a * t).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(t, axis=2)).mean(1)
c_array("like_raw_cosine", ratio(raw, np.ones(IMAGES)))
c_array("like_raw_mse", ratio(((a - t) ** 2).mean((1, 2)), np.ones(IMAGES)))
grid = torch.tensor(sequence(3 * 2 * 4, 4).astype(np.float32).reshape(1, 3, 2, 4)).permute(0, 3, 1, 2)
for h, wide in ((5, 7), (2, 1)):
    out = F.interpolate(grid.double(), size=(h, wide), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    c_array("grid_%dx%d" % (h, wide), out.numpy())
