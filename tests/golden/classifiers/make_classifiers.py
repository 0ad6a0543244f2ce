"""Golden classifiers: scikit-learn's LogisticRegression and a linear layer trained by torch.optim.SGD, on features that both sides compute from a formula.

    python make_classifiers.py > classifiers_golden.h

Logistic regression: solver newton-cg with tol 1e-13 (of the lbfgs solver the last digits depend on its start); golden are probabilities of the test features, and for 45 values of C on the documented
split the share of the held-out tenth that is right. Linear: DINOv2's eval/linear.py for one kind of features (SGD momentum 0.9, CosineAnnealingLR over all iterations, learning rate x batch / 256), from
the first weights and with the batches that the documented use of Philox gives (philox.py); golden are weights and biases after the last step, computed in f64 from f32 first weights.
"""
import warnings

import numpy as np
import sklearn
import torch
import xxhash
from sklearn.linear_model import LogisticRegression

from philox import INIT, Stream, permutation, split

TRAIN, TEST, WIDTH, CLASSES = 90, 30, 10, 4
CS = (1e-3, 0.1, 10.0, 1e3)
RATES, BATCH, STEPS, SEED = (0.05, 1.0, 4.0), 16, 40, 5


def sequence(n, seed):  # 32-bit LCG of Numerical Recipes; the C test has the same
    out, x = np.empty(n), seed
    for i in range(n):
        x = (1664525 * x + 1013904223) % 2**32
        out[i] = x / 2**32 - 0.5
    return out


def features(count, seed, labels):
    f = sequence(count * WIDTH, seed).reshape(count, WIDTH).astype(np.float32)
    f[np.arange(count), labels] += np.float32(0.5)  # a little class signal
    return f + np.float32(2)                        # and a mean that isn't 0


def numbers(name, values):
    print("static const double %s[] = {%s};" % (name, ", ".join("%.15g" % v for v in np.asarray(values).ravel())))


def fit(x, y, c):
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-13, max_iter=100000).fit(x, y)


def linear(x, y, head, rate):
    order = np.concatenate([permutation(SEED, e, TRAIN) for e in range(STEPS * BATCH // TRAIN + 1)])
    layer = torch.nn.Linear(WIDTH, CLASSES).double()
    with torch.no_grad():
        layer.bias.zero_()
        for k in range(WIDTH):
            stream = Stream(SEED, xxhash.xxh3_64_intdigest(b"linear.%d.weight" % head), k, INIT)
            for c in range(CLASSES):
                layer.weight[c, k] = float(np.float32(0.01 * stream.normal()))
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * BATCH / 256, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0)
    for t in range(STEPS):
        batch = order[t * BATCH : (t + 1) * BATCH]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
    return np.concatenate([layer.weight.detach().numpy().T, layer.bias.detach().numpy()[None]])


warnings.filterwarnings("ignore", module="sklearn|scipy")  # a line search that ends in rounding
train_label, test_label = np.arange(TRAIN) % CLASSES, (np.arange(TEST) * 5 + 1) % CLASSES
a, b = features(TRAIN, 1, train_label).astype(np.float64), features(TEST, 2, test_label).astype(np.float64)
print("/* Made by make_classifiers.py with scikit-learn %s, torch %s, numpy %s; do not edit. */" % (sklearn.__version__, torch.__version__, np.__version__))
print("enum { CLASSIFIER_TRAIN = %d, CLASSIFIER_TEST = %d, CLASSIFIER_WIDTH = %d, CLASSIFIER_CLASSES = %d };" % (TRAIN, TEST, WIDTH, CLASSES))
numbers("logreg_c", CS)
for i, c in enumerate(CS):
    numbers("logreg_probability_%d" % i, fit(a, train_label, c).predict_proba(b))
two = train_label < 2
numbers("logreg_two_classes", fit(a[two], train_label[two], 1.0).predict_proba(b))  # C = 1, the first two classes
rest, held = split(SEED, TRAIN)
print("static const int logreg_held_out[] = {%s};" % ", ".join(map(str, held)))
shares = [fit(a[rest], train_label[rest], c).score(a[held], train_label[held]) for c in 10 ** np.linspace(-6, 5, 45)]
numbers("logreg_held_out_top1", shares)
best = 10 ** np.linspace(-6, 5, 45)[int(np.argmax(shares))]
numbers("logreg_chosen", [best, fit(a, train_label, best).score(b, test_label)])
print("enum { LINEAR_BATCH = %d, LINEAR_STEPS = %d, CLASSIFIER_SEED = %d };" % (BATCH, STEPS, SEED))
numbers("linear_rate", RATES)
for head, rate in enumerate(RATES):
    numbers("linear_weights_%d" % head, linear(torch.from_numpy(a), torch.from_numpy(train_label), head, rate))
