#!/usr/bin/env python3
"""`kd-eval knn` again in NumPy, from the features that `kd-eval features` writes: every predicted class, what is counted from them, and the digests of the sets.

    check_knn.py --weights FILE --train DIR --test DIR [--model auto] [--classes N] [--k 10,20] [--temperature 0.07] [--bin bin]

Takes the first N classes (folders) or, without N, all. The protocol is DINO's: cosine similarity, weights exp(s / temperature), the class with the largest sum; ties go to the lower index. Here everything is
computed in double, one test image at a time, all classes and all training images sorted.
"""
import csv
import hashlib
import json
import os
import shutil

import numpy as np
import xxhash

import reference as r


def subset(b, folder, classes, name):
    if not classes:
        return folder
    out = b.path(name)
    for c in sorted(os.listdir(folder))[:classes]:
        shutil.copytree(os.path.join(folder, c), os.path.join(out, c))
    return out


def unit_rows(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def classify(train, train_label, test, k, classes, temperature):
    """The classes of each test row, best first, and by how much the best is ahead of the second (share of all votes)."""
    s = test @ train.T
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(test), classes))
    for i, neighbours in enumerate(order):
        np.add.at(votes[i], train_label[neighbours], np.exp(s[i, neighbours] / temperature))
    best = -np.sort(-votes, axis=1)
    return np.argsort(-votes, axis=1, kind="stable"), (best[:, 0] - best[:, 1]) / votes.sum(axis=1)


def digest(folder, paths):
    """As train/eval/labelled.h describes it: SHA-256 of [id][class][0], sorted."""
    entries = []
    for q in paths:
        with open(os.path.join(folder, q), "rb") as f:
            entries.append((xxhash.xxh3_128_digest(f.read()), q.split("/")[0].encode()))
    return hashlib.sha256(b"".join(i + c + b"\0" for i, c in sorted(entries))).hexdigest()


def table(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as f:
        return list(csv.DictReader(f))


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True)
    p.add_argument("--model", default="auto")
    p.add_argument("--train", required=True)
    p.add_argument("--test", required=True)
    p.add_argument("--classes", type=int, default=0)
    p.add_argument("--k", default="10,20")
    p.add_argument("--temperature", default="0.07")
    p.add_argument("--student-size", default="auto")
    b = r.Bench(p.parse_args())
    a = b.args
    train, test = subset(b, a.train, a.classes, "train"), subset(b, a.test, a.classes, "test")
    network = ["--model", a.model, "--weights", a.weights, "--student-size", a.student_size]
    files = b.path("predictions.csv"), b.path("classes.csv")
    said = b.run("kd-eval", "knn", *network, "--train", train, "--test", test, "--k", a.k, "--temperature", a.temperature, "--predictions", files[0], "--per-class", files[1], "--json")
    results = {line["k"]: line for line in map(json.loads, said.splitlines()) if line.get("type") == "result"}
    predicted, counted = (table(f) for f in files)
    x, x_paths = b.features("train", *network, "--images", train)
    y, y_paths = b.features("test", *network, "--images", test)
    names = sorted({q.split("/")[0] for q in x_paths}, key=os.fsencode)
    x_label, y_label = (np.array([names.index(q.split("/")[0]) for q in paths]) for paths in (x_paths, y_paths))
    assert [row["path"] for row in predicted] == y_paths and [row["label"] for row in predicted] == [names[c] for c in y_label]
    assert [row["class"] for row in counted] == names
    line = next(iter(results.values()))
    b.check("digests of the sets that differ", (line["train_digest"] != digest(train, x_paths)) + (line["test_digest"] != digest(test, y_paths)), 0)
    for k in (int(v) for v in a.k.split(",")):
        ranked, ahead = classify(unit_rows(x["pooled"]), x_label, unit_rows(y["pooled"]), k, len(names), float(a.temperature))
        right = ranked[:, 0] == y_label
        top5 = (ranked[:, :5] == y_label[:, None]).any(1).sum()
        line, n = results[k], len(y_label)
        print("       k = %d: kd-eval %.2f %% and %.2f %%, NumPy %.2f %% and %.2f %% (top-1, top-5; %d training, %d test images, %d classes); the closest vote is decided by %.2g of the votes" %
              (k, 100 * line["top1"], 100 * line["top5"], 100 * right.mean(), 100 * top5 / n, len(x_label), n, len(names), ahead.min()))
        assert (line["train"], line["test"], line["classes"]) == (len(x_label), n, len(names))
        b.check("k = %d: predictions that differ, of %d" % (k, n), sum(row["k%d" % k] != names[c] for row, c in zip(predicted, ranked[:, 0])), 0)
        b.check("k = %d: top-5 answers that differ in number" % k, abs(round(line["top5"] * n) - top5), 0)
        by_class = [(int((x_label == c).sum()), int((y_label == c).sum()), int(right[y_label == c].sum())) for c in range(len(names))]
        b.check("k = %d: classes whose counts differ, of %d" % (k, len(names)),
                sum((int(row["train"]), int(row["test"]), int(row["correct_k%d" % k])) != mine for row, mine in zip(counted, by_class)), 0)
        b.check("k = %d: mean of the classes' top-1, difference" % k, abs(line["mean_class_top1"] - np.mean([c[2] / c[1] for c in by_class if c[1]])), 1e-12)
    b.finish()


main()
