#!/usr/bin/env python3
"""`kd-eval logreg` again with scikit-learn's LogisticRegression, on the features that `kd-eval features` writes and the same held-out tenth: accuracies within 0.2 points.

    check_logreg.py --weights FILE --train DIR --test DIR [--model auto] [--classes 10] [--every 11] [--bin bin]
    check_logreg.py --result LINE.json --features DIR [--every 11]

Takes the first classes (folders). scikit-learn's lbfgs solver with DINOv2's tolerance and iterations fits every N-th C of the sweep on nine tenths, and the chosen one on all; it isn't preconditioned, so
that 1000 iterations may leave it short of the minimum where C is large. The second form doesn't run kd-eval: it takes a line of `kd-eval logreg --json` and train.safetensors and test.safetensors.
"""
import json
import os
import shutil
import sys
import time
import warnings

import numpy as np
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

import reference as r

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "classifiers"))
from philox import split  # noqa: E402


def subset(b, folder, classes, name):
    out = b.path(name)
    for c in sorted(os.listdir(folder))[:classes]:
        shutil.copytree(os.path.join(folder, c), os.path.join(out, c))
    return out


def stored(path):
    with safe_open(path, "np") as f:
        return {"pooled": f.get_tensor("pooled")}, json.loads(f.metadata()["paths"])


def fit(x, y, c):
    return LogisticRegression(C=c, tol=1e-12, max_iter=1000).fit(x, y)


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights")
    p.add_argument("--model", default="auto")
    p.add_argument("--train")
    p.add_argument("--test")
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--every", type=int, default=11, help="which values of C of the sweep are fitted here too")
    p.add_argument("--result", help="a line of kd-eval logreg --json, in place of running it")
    p.add_argument("--features", help="folder of train.safetensors and test.safetensors, in place of making them")
    b = r.Bench(p.parse_args())
    a = b.args
    if a.result:
        said = [json.loads(line) for line in open(a.result)]
        (x, x_paths), (y, y_paths) = (stored(os.path.join(a.features, part + ".safetensors")) for part in ("train", "test"))
    else:
        train, test = subset(b, a.train, a.classes, "train"), subset(b, a.test, a.classes, "test")
        network = ["--model", a.model, "--weights", a.weights]
        said = [json.loads(line) for line in b.run("kd-eval", "logreg", *network, "--train", train, "--test", test, "--json").splitlines()]
        x, x_paths = b.features("train", *network, "--images", train)
        y, y_paths = b.features("test", *network, "--images", test)
    line = [q for q in said if q.get("type") == "result"][0]
    names = sorted({q.split("/")[0] for q in x_paths})
    x_label, y_label = (np.array([names.index(q.split("/")[0]) for q in paths]) for paths in (x_paths, y_paths))
    x, y = x["pooled"].astype(np.float64), y["pooled"].astype(np.float64)
    assert (line["train"], line["test"], line["classes"]) == (len(x), len(y), len(names))
    warnings.filterwarnings("ignore", module="sklearn")  # 1000 iterations are the protocol's, converged or not

    rest, held = split(line["training_seed"], len(x))
    assert len(held) == line["held_out"]
    for tried in line["tried"][:: a.every]:
        begun = time.time()
        model = fit(x[rest], x_label[rest], tried["c"])
        right = model.score(x[held], x_label[held]) * len(held)
        print("       C = %.3g: kd-eval %d of %d held-out images, scikit-learn %d (%d iterations beside %d, %.0f s)" %
              (tried["c"], round(tried["top1"] * len(held)), len(held), round(right), model.n_iter_[0], tried["iterations"], time.time() - begun), flush=True)
        b.check("C = %.3g: held-out answers that differ in number" % tried["c"], abs(round(tried["top1"] * len(held)) - right), 0.005 * len(held))
    model = fit(x, x_label, line["c"])
    top1 = model.score(y, y_label)
    top5 = (np.argsort(-model.predict_proba(y), axis=1, kind="stable")[:, :5] == y_label[:, None]).any(1).mean()
    print("       C = %.3g on all %d images: kd-eval top-1 %.2f %%, top-5 %.2f %%; scikit-learn %.2f %%, %.2f %% (%d test images)" %
          (line["c"], len(x), 100 * line["top1"], 100 * line["top5"], 100 * top1, 100 * top5, len(y)))
    b.check("top-1, difference in points", 100 * abs(line["top1"] - top1), 0.2)
    b.check("top-5, difference in points", 100 * abs(line["top5"] - top5), 0.2)
    b.finish()


main()
