#!/usr/bin/env python3
"""`kd-eval knn` again in NumPy, from the features that `kd-eval features` writes: the same number of right answers for every k.

    check_knn.py --weights FILE --train DIR --test DIR [--model auto] [--classes 10] [--k 10,20] [--bin bin]

Takes the first classes (folders). The protocol is DINO's: cosine similarity, weights exp(s / 0.07), the class with the largest sum; ties go to the lower class.
"""
import json
import os
import shutil

import numpy as np

import reference as r


def subset(b, folder, classes, name):
    out = b.path(name)
    for c in sorted(os.listdir(folder))[:classes]:
        shutil.copytree(os.path.join(folder, c), os.path.join(out, c))
    return out


def unit_rows(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def classify(train, train_label, test, k, classes):
    """The classes of each test row, best first."""
    s = test @ train.T
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(test), classes))
    for i, neighbours in enumerate(order):
        np.add.at(votes[i], train_label[neighbours], np.exp(s[i, neighbours] / 0.07))
    return np.argsort(-votes, axis=1, kind="stable")


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True)
    p.add_argument("--model", default="auto")
    p.add_argument("--train", required=True)
    p.add_argument("--test", required=True)
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--k", default="10,20")
    p.add_argument("--student-size", type=int, default=0)
    b = r.Bench(p.parse_args())
    a = b.args
    train, test = subset(b, a.train, a.classes, "train"), subset(b, a.test, a.classes, "test")
    network = ["--model", a.model, "--weights", a.weights, "--student-size", a.student_size]
    said = [json.loads(line) for line in b.run("kd-eval", "knn", *network, "--train", train, "--test", test, "--k", a.k, "--json").splitlines()]
    x, x_paths = b.features("train", *network, "--images", train)
    y, y_paths = b.features("test", *network, "--images", test)
    names = sorted({q.split("/")[0] for q in x_paths})
    x_label, y_label = (np.array([names.index(q.split("/")[0]) for q in paths]) for paths in (x_paths, y_paths))
    results = {line["k"]: line for line in said if line.get("type") == "result"}
    for k in (int(v) for v in a.k.split(",")):
        ranked = classify(unit_rows(x["pooled"]), x_label, unit_rows(y["pooled"]), k, len(names))
        top1, top5 = (ranked[:, 0] == y_label).sum(), (ranked[:, :5] == y_label[:, None]).any(1).sum()
        line, n = results[k], len(y_label)
        print("       k = %d: kd-eval %.2f %% and %.2f %%, NumPy %.2f %% and %.2f %% (top-1, top-5; %d training, %d test images)" %
              (k, 100 * line["top1"], 100 * line["top5"], 100 * top1 / n, 100 * top5 / n, len(x_label), n))
        assert (line["train"], line["test"], line["classes"]) == (len(x_label), n, len(names))
        b.check("k = %d: top-1 answers that differ in number" % k, abs(round(line["top1"] * n) - top1), 0)
        b.check("k = %d: top-5 answers that differ in number" % k, abs(round(line["top5"] * n) - top5), 0)
    b.finish()


main()
