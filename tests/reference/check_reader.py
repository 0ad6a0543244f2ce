#!/usr/bin/env python3
"""The Python reader (cache/python/kdcache.py) against the C reader, bit for bit, in every element type and patch target.

    check_reader.py [--kd-cache bin/kd-cache] --draw build/obj/.../tests/cli/draw_cache

Caches are drawn without a teacher. Of every view: id, path, hash and plan are those of `kd-cache list --json`, every feature of every layer and |t|^2 those of `kd-cache dump`; where Pillow is
installed, the pixels that it rebuilds from the plan are those that `kd-cache view` writes. The golden shards give what stands beside them, with statistics over several shards. A Cache is used by
worker processes, forked and spawned, after its parent has read from it, and by torch's DataLoader where torch is installed. Damaged files are refused. Needs lmdb, zstandard, numpy; with xxhash more is checked.
"""
import argparse
import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(TOP, "cache", "python")]

import kdcache
import numpy as np

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("xxhash", "PIL", "torch")}
TARGETS = ("full", "pool:3", "pool:2x4", "adjoint:2", "adjoint:3x1", "full,pool:4,adjoint:2,adjoint:4x5")
DTYPES = ("f16", "bf16", "i8")


def load(path):
    """Tensors of a .safetensors file."""
    with open(path, "rb") as f:
        b = f.read()
    n = struct.unpack("<Q", b[:8])[0]
    types = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}
    return {k: np.frombuffer(b[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]], types[v["dtype"]]).reshape(v["shape"])
            for k, v in json.loads(b[8:8 + n]).items() if k != "__metadata__"}


class Run:
    def __init__(self, args):
        self.args, self.work, self.failed, self.checked = args, tempfile.mkdtemp(prefix="kd-reader."), 0, 0

    def check(self, what, good):
        self.checked += 1
        self.failed += not good
        print("%s %s" % ("ok" if good else "NOT OK", what), flush=True)

    def kd(self, *words):
        return subprocess.run([self.args.kd_cache] + [str(w) for w in words], stdout=subprocess.PIPE, check=True).stdout

    def draw(self, name, *words):
        subprocess.run([self.args.draw, os.path.join(self.work, name)] + list(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return os.path.join(self.work, name, "photos.kdc")


def equal_features(run, cache, i):
    """A view's features in all layers, and |t|^2, against kd-cache dump's."""
    item, out = cache[i], os.path.join(run.work, "view.safetensors")
    run.kd("dump", *cache.paths, "--id", item["id"], "--view", item["view"], "--out", out)
    theirs = load(out)
    good = theirs["layers"].tolist() == cache.layers and set(theirs) == set(k for k in item if isinstance(item[k], (np.ndarray, float))) | {"layers"}
    for name in cache.stored:
        square = theirs.get(name.replace("patch", "square")) if name.startswith("patch") else None
        for at, layer in enumerate(cache.layers):
            x, t2, _ = cache.record(name, i, layer)
            good = good and x.tobytes() == theirs[name][at].tobytes() and t2 == (0 if square is None else square[at])
        good = good and item[name].tobytes() == theirs[name][0].tobytes() and item[name].shape == theirs[name].shape[1:]
    return good


def check_cache(run, file, images, what):
    cache, lines = kdcache.Cache(file), [json.loads(x) for x in run.kd("list", file, "--json").splitlines()]
    same = [(item["id"], item["view"], item["hash"], kdcache.decode_plan(item["plan"])) == (x["id"], x["view"], x["hash"], x["plan"]) and
            cache.find(bytes.fromhex(x["id"]), x["view"]) == i for i, (item, x) in enumerate(zip(cache, lines))]
    run.check("%s: ids, views, hashes and plans" % what, len(same) == len(lines) == len(cache) > 0 and all(same))
    run.check("%s: features" % what, all(equal_features(run, cache, i) for i in range(len(cache))))
    if images and HAVE["PIL"]:
        run.check("%s: pixels" % what, all(pixels_equal(run, cache, i, images) for i in range(len(cache))))
    return cache


def pixels_equal(run, cache, i, images):
    from PIL import Image
    item, out = cache[i], os.path.join(run.work, "view.png")
    run.kd("view", *cache.paths, "--images", images, "--id", item["id"], "--view", item["view"], "--out", out)
    ours = kdcache.replay(Image.open(os.path.join(images, item["path"])), kdcache.decode_plan(item["plan"]))
    return np.array_equal(ours, np.asarray(Image.open(out)))


def digest_of(cache, i):
    """What a worker makes of one view."""
    item = cache[i]
    return i, os.getpid(), [item[k].tobytes() if isinstance(item[k], np.ndarray) else item[k] for k in sorted(item)]


def check_workers(run, cache):
    here = [digest_of(cache, i)[2] for i in range(len(cache))]  # the environment is open now
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            there = pool.starmap(digest_of, [(cache, i) for i in range(len(cache))], chunksize=1)
        run.check("%s: %d worker processes read the same" % (method, len(set(pid for _, pid, _ in there))), [x for _, _, x in there] == here and
                  os.getpid() not in [pid for _, pid, _ in there])
    run.check("the parent reads on", [digest_of(cache, i)[2] for i in range(len(cache))] == here)
    run.check("two of one file in a process", digest_of(kdcache.Cache(*cache.paths, features=["cls"]), 0)[2] != here[0] and digest_of(pickle.loads(pickle.dumps(cache)), 0)[2] == here[0])
    if HAVE["torch"]:
        from torch.utils.data import DataLoader
        for method in ("fork", "spawn"):
            batches = list(DataLoader(cache, batch_size=3, num_workers=2, multiprocessing_context=method))
            run.check("torch's DataLoader, %s" % method, torch_equal(batches, cache))


def torch_equal(batches, cache):
    at, good = 0, True
    for b in batches:
        for k in range(len(b["id"])):
            item = cache[at]
            good = good and all(b[n][k].numpy().tobytes() == item[n].tobytes() if isinstance(item[n], np.ndarray) else b[n][k] == item[n] for n in item)
            at += 1
    return good and at == len(cache)


def check_golden(run):
    """The golden shards, and what a reader must give for them (tests/golden/cache/make_golden.py)."""
    folder = os.path.join(TOP, "tests", "golden", "cache")
    for name in sorted(f[:-12] for f in os.listdir(folder) if f.endswith(".safetensors")):
        want, path = load(os.path.join(folder, name + ".safetensors")), os.path.join(folder, name)
        cache = kdcache.Cache(path if os.path.isdir(path) else path + ".kdc")
        items, n = list(cache), range(len(cache))
        ids, paths = [x.tobytes().hex() for x in want["ids"]], want["paths"].tobytes().split(b"\0")
        good = [(ids[i], paths[i], v) for i, v in want["views"].tolist()] == [(x["id"], os.fsencode(x["path"]), x["view"]) for x in items]
        good = good and b"".join(bytes.fromhex(x["hash"]) + x["plan"].ljust(384, b"\0") for x in items) == b"".join(h.tobytes() + p.tobytes() for h, p in zip(want["hashes"], want["plans"]))
        for f in cache.stored:
            records = [[cache.record(f, i, layer) for layer in cache.layers] for i in n]
            good = good and np.array([[x for x, _, _ in r] for r in records]).tobytes() == want[f].tobytes()
            if f.startswith("patch"):
                good = good and np.array([[t2 for _, t2, _ in r] for r in records]).tobytes() == want[f.replace("patch", "square")].tobytes()
            statistics = [cache.statistics(f, layer) for layer in cache.layers]
            good = good and np.array([m for m, _ in statistics]).tobytes() == want["mean/" + f].tobytes()
            good = good and np.array([d for _, d in statistics], np.float32).tobytes() == want["std/" + f].tobytes()
        run.check("golden %s" % name, good and len(cache) == len(want["views"]) > 0)


def refuses(file):
    try:
        for _ in kdcache.Cache(file):
            pass
    except kdcache.Damaged:
        return True
    except Exception as e:  # zstandard's own, where a frame is broken and xxhash isn't there to see it first
        return type(e).__name__ == "ZstdError"
    return False


def check_damage(run, file):
    with open(file, "rb") as f:
        sound = f.read()
    bad = os.path.join(run.work, "bad.kdc")
    shutil.copy(file + ".json", bad + ".json")
    places, caught = {}, 0
    for at in (i for i in range(len(sound)) if sound[i:i + 4] == b"KDFR" and sound[i + 30:i + 32] == b"\0\1"):  # of the last layer, which is what a Cache reads
        places.setdefault(sound[at + 6:at + 32], []).append(at)  # a split page keeps its old bytes in what is free
    for n, copies in enumerate(places.values()):
        flipped, file = bytearray(sound), "%s.%d" % (bad, n)
        for at in copies:
            flipped[at + (4, 12, 40, 57, 130, 150)[n % 6]] ^= 1 << n % 8
        with open(file, "wb") as f:
            f.write(flipped)
        os.rename(bad + ".json", file + ".json")
        caught += refuses(file)
        os.rename(file + ".json", bad + ".json")
        os.remove(file)
    run.check("%d of %d records with a flipped bit are refused" % (caught, len(places)), caught == len(places) > 0)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kd-cache", default=os.path.join(TOP, "bin", "kd-cache"))
    p.add_argument("--draw", required=True)
    run = Run(p.parse_args())
    print("with %s; without %s" % tuple(", ".join(k for k in HAVE if HAVE[k] == w) or "none" for w in (True, False)))
    for dtype in DTYPES:
        for k, targets in enumerate(TARGETS):
            name = "%s-%d" % (dtype, k)
            file = run.draw(name, dtype, targets)
            cache = check_cache(run, file, os.path.join(run.work, name, "images") if k == 0 else None, "%s of %s" % (dtype, targets))
    check_golden(run)
    check_workers(run, cache)
    check_damage(run, file)
    check_cache(run, run.draw("joined", "joined"), None, "joined layers")
    shutil.rmtree(run.work, ignore_errors=True)
    print("%d checked, %d failed" % (run.checked, run.failed))
    sys.exit(1 if run.failed or not run.checked else 0)


if __name__ == "__main__":
    main()
