#!/usr/bin/env python3
"""A cache against Python from end to end: the reader of cache/python, views rebuilt by Pillow, features computed by the official model on those views.

    check_cache.py --weights dinov2.pth --images DIR [--bin bin] [--photos 12] [--views 2] [--augment lightly] [--precision f32]
                   [--features cls,patch,mean] [--layers 1,4] [--layer-norm on] [--layer-concat off]

For every view: the reader's plan and hash are those of `kd-cache list --json`; Pillow and torchvision rebuild the pixels from the plan alone, with the same hash, and equal to
those of `kd-cache view`; `kd-cache dump` and the reader give the same features, and PyTorch's on the rebuilt pixels are the same up to storage in f16, in every
layer. The statistics too.
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
from pillow_views import apply_plan, mix_plan, view_hash

WORST = {"f32": 1e-5, "bf16": 0.1}  # 1 - cosine of the worst token; bf16 is measured against PyTorch's own in check_teacher.py


class Layers:
    """What the blocks of the network gave in its last pass, as get_intermediate_layers(norm) of the official code gives it: [1, 1 + N, D] by layer, 1 = last."""

    def __init__(self, module, norm):
        self.module, self.norm, self.out = module, norm, []
        for block in module.blocks:
            block.register_forward_hook(lambda _, __, y: self.out.append(y))
        module.register_forward_pre_hook(lambda *_: self.out.clear())

    @torch.no_grad()
    def features(self, layers):
        """{"cls", "patch", "mean"} of the layers, joined as torch.cat does, earlier block first."""
        x = [self.module.norm(self.out[-k]) if self.norm else self.out[-k] for k in sorted(layers, reverse=True)]
        x = torch.cat(x, -1).numpy()[0]
        return {"cls": x[:1], "patch": x[1:], "mean": x[1:].mean(0, keepdims=True)}


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True)
    p.add_argument("--images", required=True)
    p.add_argument("--photos", type=int, default=12)
    p.add_argument("--views", type=int, default=2)
    p.add_argument("--augment", default="lightly")
    p.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    p.add_argument("--features", default="cls,patch,mean")
    p.add_argument("--layers", default="1,2")
    p.add_argument("--layer-norm", default="on", choices=("on", "off"))
    p.add_argument("--layer-concat", default="off", choices=("on", "off"))
    b = r.Bench(p.parse_args())
    a = b.args
    names, chosen = a.features.split(","), [int(k) for k in a.layers.split(",")]
    sources = {min(chosen): chosen} if a.layer_concat == "on" else {k: [k] for k in chosen}
    photos, file = r.some_photos(b, a.images, a.photos, "photos"), b.path("small.kdc")
    b.run("kd-precompute", "--images", photos, "--weights", a.weights, "--cache", file, "--views", a.views, "--augment", a.augment, "--precision", a.precision, "--features", a.features,
          "--layers", a.layers, "--layer-norm", a.layer_norm, "--layer-concat", a.layer_concat)
    records = [json.loads(line) for line in b.run("kd-cache", "list", file, "--json", computes=False).splitlines()]
    records = [x for x in records if "plan" in x]
    state = load_torch(a.weights) if a.weights.endswith(".safetensors") else torch.load(a.weights, map_location="cpu")
    net = r.Network("dinov2", state)
    net.module.double()
    taps = Layers(net.module, a.layer_norm == "on")
    count = {k: 0 for k in ("plans", "hashes", "replays", "pixels", "dumps")}
    each = [(name, layer) for name in names for layer in sorted(sources)]
    worst, total, tokens, values = dict.fromkeys(each, 0.0), dict.fromkeys(each, 0.0), dict.fromkeys(each, 0), {k: [] for k in each}
    cache = kdcache.Cache(file)
    b.check("layers of the reader that aren't the stored ones", len(set(cache.layers) ^ set(sources)), 0)
    items = {(x["id"], x["view"]): x for x in cache}
    paths = {x["id"]: x["path"] for x in items.values()}
    for x in records:
        at, stored = cache.find(bytes.fromhex(x["id"]), x["view"]), items[x["id"], x["view"]]
        plan, picture = kdcache.decode_plan(stored["plan"]), Image.open(os.path.join(photos, paths[x["id"]]))
        count["plans"] += plan != x["plan"]
        pixels, mix, partner = apply_plan(picture.convert("RGB"), plan), plan["mix"], None
        if mix["lambda"] != 1:
            partner = Image.open(os.path.join(photos, paths[mix["partner"]]))
            pixels = mix_plan(pixels, apply_plan(partner.convert("RGB"), mix["plan"]), mix)
        count["hashes"] += view_hash(pixels) != stored["hash"] or stored["hash"] != x["hash"]
        count["replays"] += not np.array_equal(kdcache.replay(picture, plan, partner), np.asarray(pixels))
        b.run("kd-cache", "view", file, "--images", photos, "--id", x["id"], "--view", x["view"], "--out", b.path("view.png"), computes=False)
        count["pixels"] += not np.array_equal(np.asarray(Image.open(b.path("view.png"))), np.asarray(pixels))
        b.run("kd-cache", "dump", file, "--id", x["id"], "--view", x["view"], "--out", b.path("view.safetensors"), computes=False)
        dumped = load_file(b.path("view.safetensors"))
        net(np.asarray(pixels)[None], torch.float64)
        for i, layer in enumerate(sorted(sources)):
            theirs = taps.features(sources[layer])
            for name in names:
                ours = cache.record(name, at, layer)[0]
                count["dumps"] += dumped["layers"][i] != layer or not np.array_equal(dumped[name][i].reshape(ours.shape), ours)
                ours = ours.reshape(theirs[name].shape)
                away = 1 - r.cosines(ours, theirs[name])
                k = (name, layer)
                worst[k], total[k], tokens[k] = max(worst[k], away.max()), total[k] + away.sum(), tokens[k] + away.size
                values[k].append(ours.astype(np.float64))
    b.check("views", len(records), a.photos * a.views, most=False)
    for k, what in (("plans", "plans that the reader and kd-cache list tell differently"), ("hashes", "views that Pillow rebuilds with another hash"), ("replays", "views that the reader replays otherwise"),
                    ("pixels", "views whose pixels differ from kd-cache view's"), ("dumps", "views whose features differ between the reader and kd-cache dump")):
        b.check(what, count[k], 0)
    for k in each:
        of = "%s of layer %d" % k
        b.check("%s, %s: largest 1 - cosine to PyTorch, %d tokens (mean %.3g)" % (a.precision, of, tokens[k], total[k] / tokens[k]), worst[k], WORST[a.precision])
        all_values = np.concatenate(values[k])
        mean, std = cache.statistics(*k)
        b.check("%s: largest difference of the mean vector" % of, np.abs(mean - all_values.mean(0)).max(), 1e-4)
        b.check("%s: relative difference of the scalar deviation" % of, abs(std / np.sqrt(all_values.var(0).mean()) - 1), 1e-4)
    b.finish()


main()
