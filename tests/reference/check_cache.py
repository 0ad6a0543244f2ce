#!/usr/bin/env python3
"""A cache against Python from end to end: the reader of cache/python, views rebuilt by Pillow, features computed by the official model on those views.

    check_cache.py --weights dinov2.pth --images DIR [--bin bin] [--photos 12] [--views 2] [--augment lightly] [--precision f32]

For every view: the reader's plan and hash are those of `kd-cache list --json`; Pillow and torchvision rebuild the pixels from the plan alone, with the same hash, and equal to
those of `kd-cache view`; `kd-cache dump` and the reader give the same features, and PyTorch's on the rebuilt pixels are the same up to storage in f16. The statistics too.
"""
import json
import os

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import reference as r  # finds the next two
import kdcache
from pillow_views import apply_plan, view_hash

WORST = {"f32": 1e-5, "bf16": 0.1}  # 1 - cosine of the worst token; bf16 is measured against PyTorch's own in check_teacher.py


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True)
    p.add_argument("--images", required=True)
    p.add_argument("--photos", type=int, default=12)
    p.add_argument("--views", type=int, default=2)
    p.add_argument("--augment", default="lightly")
    p.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    b = r.Bench(p.parse_args())
    a = b.args
    photos, file = r.some_photos(b, a.images, a.photos, "photos"), b.path("small.kdc")
    b.run("kd-precompute", "--images", photos, "--weights", a.weights, "--cache", file, "--views", a.views, "--augment", a.augment, "--precision", a.precision)
    records = [json.loads(line) for line in b.run("kd-cache", "list", file, "--json", computes=False).splitlines()]
    records = [x for x in records if "plan" in x]
    state = load_torch(a.weights) if a.weights.endswith(".safetensors") else torch.load(a.weights, map_location="cpu")
    net = r.Network("dinov2", state)
    net.module.double()
    count = {k: 0 for k in ("plans", "hashes", "pixels", "dumps")}
    worst, total, tokens, cls_all, patch_all = {"cls": 0.0, "patch": 0.0}, {"cls": 0.0, "patch": 0.0}, {"cls": 0, "patch": 0}, [], []
    with kdcache.Cache(file) as cache:
        paths = {i.id.hex(): i.path.decode() for i in cache.images()}
        for x in records:
            image_id = bytes.fromhex(x["id"])
            stored = cache.view(image_id, x["view"])
            count["plans"] += stored.plan != x["plan"]
            pixels = apply_plan(Image.open(os.path.join(photos, paths[x["id"]])).convert("RGB"), stored.plan)
            count["hashes"] += view_hash(pixels) != stored.hash.hex() or stored.hash.hex() != x["hash"]
            b.run("kd-cache", "view", file, "--images", photos, "--id", x["id"], "--view", x["view"], "--out", b.path("view.png"), computes=False)
            count["pixels"] += not np.array_equal(np.asarray(Image.open(b.path("view.png"))), np.asarray(pixels))
            b.run("kd-cache", "dump", file, "--id", x["id"], "--view", x["view"], "--out", b.path("view.safetensors"), computes=False)
            dumped = load_file(b.path("view.safetensors"))
            ours = {"cls": cache.feature("cls", image_id, x["view"])[None], "patch": cache.feature("patch", image_id, x["view"])}
            count["dumps"] += any(not np.array_equal(dumped[k][0].reshape(v.shape), v) for k, v in ours.items())
            theirs = net(np.asarray(pixels)[None], torch.float64)
            for k, v in ours.items():
                away = 1 - r.cosines(v, theirs[k].reshape(v.shape))
                worst[k], total[k], tokens[k] = max(worst[k], away.max()), total[k] + away.sum(), tokens[k] + away.size
            cls_all.append(ours["cls"].astype(np.float64))
            patch_all.append(ours["patch"].astype(np.float64))
        b.check("views", len(records), a.photos * a.views, most=False)
        for k, what in (("plans", "plans that the reader and kd-cache list tell differently"), ("hashes", "views that Pillow rebuilds with another hash"),
                        ("pixels", "views whose pixels differ from kd-cache view's"), ("dumps", "views whose features differ between the reader and kd-cache dump")):
            b.check(what, count[k], 0)
        for k in ("cls", "patch"):
            b.check("%s, %s: largest 1 - cosine to PyTorch, %d tokens (mean %.3g)" % (a.precision, k, tokens[k], total[k] / tokens[k]), worst[k], WORST[a.precision])
            values = np.concatenate(cls_all if k == "cls" else patch_all)
            mean, std = cache.statistics(k)
            b.check("%s: largest difference of the mean vector" % k, np.abs(mean - values.mean(0)).max(), 1e-4)
            b.check("%s: relative difference of the scalar deviation" % k, abs(std / np.sqrt(values.var(0).mean()) - 1), 1e-4)
    b.finish()


main()
