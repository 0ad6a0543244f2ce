#!/usr/bin/env python3
"""describe.py SHARD.kdc OUT.safetensors: what a reader must give for a shard, as make_golden.py writes it for its own. Reads with cache/python/kdcache.py. Needs lmdb, zstandard, xxhash, numpy."""
import json
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(HERE))), "cache", "python"), HERE]

import kdcache
from make_golden import safetensors


def main():
    cache = kdcache.Cache(sys.argv[1])
    items = list(cache)
    paths = {item["id"]: os.fsencode(item["path"]) for item in items}
    ids, every = sorted(paths), range(len(items))
    words = lambda parts: np.frombuffer(b"".join(parts), "<i8").reshape(len(parts), -1)
    text = b"".join(paths[i] + b"\0" for i in ids)
    t = {"ids": words([bytes.fromhex(i) for i in ids]), "views": np.array([(ids.index(x["id"]), x["view"]) for x in items], np.int64),
         "hashes": words([bytes.fromhex(x["hash"]) for x in items]), "plans": words([x["plan"].ljust(384, b"\0") for x in items]),
         "digest": np.frombuffer(bytes.fromhex(json.load(open(sys.argv[1] + ".json"))["content"]["digest"]), "<i8"), "paths": np.frombuffer(text + bytes(-len(text) % 8), "<i8")}
    for f in cache.stored:
        records = [[cache.record(f, i, layer) for layer in cache.layers] for i in every]
        t[f] = np.array([[x for x, _, _ in r] for r in records])
        if f.startswith("patch"):
            t[f.replace("patch", "square")] = np.array([[s for _, s, _ in r] for r in records]).view(np.int64)
        statistics = [cache.statistics(f, layer) for layer in cache.layers]
        t["mean/" + f], t["std/" + f] = np.array([m for m, _ in statistics]), np.array([s for _, s in statistics], np.float32)
    safetensors(sys.argv[2], t)


main()
