#!/usr/bin/env python3
"""Writes the golden shards beside it, from cache/FORMAT.md alone: a second writer, which shares no code with the first. Needs lmdb, zstandard, xxhash, numpy.

Beside each shard (or folder of shards) NAME.kdc lies NAME.safetensors with what a reader must give: `views` I64 [V,2] (number of the image in key order, view), `ids` [I,2], `hashes` [V,2],
`plans` [V,48] (own plan, partner's or 0) and `digest` [4], bytes as little-endian I64; each feature F32 [V,L,rows,D], of adjoint targets `square` .. as the I64 bits of an f64 [V,L]; `mean/F` F32 [L,D]
and `std/F` [L] of each feature; `paths` [..], each ended by NUL, filled up with NULs.
"""
import hashlib
import json
import math
import os
import random
import struct

import lmdb
import numpy as np
import xxhash
import zstandard

HERE = os.path.dirname(os.path.abspath(__file__))
DATABASES = ["images", "views", "cls", "patch", "registers", "mean", "patch2", "patch3", "patch4", "meta"]
FEATURES = ["cls", "patch", "registers", "mean", "patch2", "patch3", "patch4"]
DTYPE = {"f16": 1, "bf16": 2, "i8": 5}


def xxh(*parts):
    return xxhash.xxh3_128_digest(b"".join(parts))


def canonical(x):
    if isinstance(x, dict):
        return "{" + ",".join(json.dumps(k) + ":" + canonical(x[k]) for k in sorted(x)) + "}"
    if isinstance(x, list):
        return "[" + ",".join(canonical(v) for v in x) + "]"
    if isinstance(x, float):
        text = "%.17g" % x
        mantissa, e, exponent = text.partition("e")
        return mantissa + "e" + str(int(exponent)) if e else text if "." in text else text + ".0"
    return json.dumps(x)


# ---- what the teacher gave, made up ----

def tokens(image, view, layer, recipe):
    """cls [1,D], patch [H*W,D], registers [R,D]: f32."""
    g = np.random.Generator(np.random.PCG64([11, image, view, layer]))
    (h, w), r, d = recipe["grid"], recipe["registers"], recipe["width"]
    x = (g.standard_normal((1 + r + h * w, d)) * np.exp(g.standard_normal(d))).astype(np.float32)
    return x[:1], x[1 + r:], x[1:1 + r]


def upsampling(n, m):
    u = np.zeros((m, n))
    for i in range(m):
        p = max(0.0, (i + 0.5) * n / m - 0.5)
        j = min(math.floor(p), n - 1)
        u[i, j] += 1 - (p - j)
        u[i, min(j + 1, n - 1)] += p - j
    return u


def reduce(patch, target, grid):
    """(rows [N,D] f32, kind, |t|^2) of a patch target."""
    kind, _, sides = target.partition(":")
    if kind == "full":
        return patch, 0, 0.0
    k, l = ([int(s) for s in sides.split("x")] * 2)[:2]
    (h, w), d = grid, patch.shape[1]
    t = patch.astype(np.float64).reshape(h, w, d)
    if kind == "adjoint":
        u = np.kron(upsampling(k, h), upsampling(l, w))
        return (u.T @ t.reshape(h * w, d)).astype(np.float32), 2, float((t * t).sum())
    cells = [t[i * h // k:-(-(i + 1) * h // k), j * w // l:-(-(j + 1) * w // l)].mean((0, 1)) for i in range(k) for j in range(l)]
    return np.array(cells, np.float32), 1, 0.0


# ---- records ----

def planes(bits):
    return (bits >> 8).astype(np.uint8).tobytes() + (bits & 255).astype(np.uint8).tobytes()


def encode(x, dtype):
    """(bytes, values that a reader decodes)."""
    if dtype == "f16":
        h = x.astype(np.float16)
        return planes(h.view(np.uint16)), h.astype(np.float32)
    if dtype == "bf16":
        b = x.view(np.uint32).astype(np.uint64)
        b = ((b + 0x7FFF + (b >> 16 & 1)) >> 16).astype(np.uint32)
        return planes(b.astype(np.uint16)), (b << 16).view(np.float32)
    rows, width = x.shape
    block = width & -width
    h = np.array([[(-1) ** bin(i & j).count("1") for j in range(block)] for i in range(block)])
    rotated = (x.astype(np.float64).reshape(rows, -1, block) @ h / math.sqrt(block)).reshape(rows, width)
    scale = (np.abs(rotated).max(1) / 127).astype(np.float32)
    q = np.clip(np.rint(rotated / np.where(scale == 0, 1, scale)[:, None].astype(np.float64)), -127, 127).astype(np.int64)
    factor = scale * np.float32(1 / math.sqrt(block))
    out = (q.reshape(rows, -1, block) @ h).reshape(rows, width).astype(np.float32) * factor[:, None]
    return scale.tobytes() + q.astype(np.int8).tobytes(), out


def record(feature, key, x, kind, square, view_hash, recipe, identity, level):
    dtype = recipe["store"]["dtype"]
    raw, out = encode(x, dtype)
    frame = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)
    a, b = x.astype(np.float64), out.astype(np.float64)
    rows, errors = (a * a).sum(1), ((a - b) ** 2).sum(1)
    worst = math.sqrt(max((e / r for e, r in zip(errors, rows) if r), default=0))
    head = b"KDFR" + struct.pack("<HBBBB", 1, FEATURES.index(feature), DTYPE[dtype], 1, kind) + key + struct.pack("<IIQQ", *x.shape, len(raw), len(frame)) + identity[:8] + view_hash
    head += struct.pack("<d4fQ", square, rows.sum(), (b * b).sum(), errors.sum(), worst, xxhash.xxh3_64_intdigest(raw))
    return head + xxh(head, frame) + frame, out


# ---- plans ----

def plan(rnd, width, height, size, mix=None):
    """192 bytes: every operation is on in about half of the plans."""
    cw, ch = rnd.randint(size, width), rnd.randint(size, height)
    jitter = rnd.random() < 0.5
    order = rnd.sample(range(4), 4) if jitter else [255] * 4
    factors = [1 + rnd.randint(-6, 6) / 16 for _ in range(3)] + [rnd.randint(-3, 3) / 32]
    radius = rnd.randint(1, 5) if rnd.random() < 0.5 else 0
    weights = [0] * 12
    for i in range(1, radius + 1):
        weights[i] = (1 << 24) // (2 * radius + 3 + i)
    if radius:
        weights[0] = (1 << 24) - 2 * sum(weights)
    lam, partner, view = mix or (1.0, bytes(16), 0)
    b = struct.pack("<I10i", 1, rnd.randint(0, width - cw), rnd.randint(0, height - ch), cw, ch, size, size, 0, 0, size, size)
    b += bytes([rnd.randint(0, 2), rnd.randint(0, 1), rnd.randint(0, 1), rnd.randint(0, 1)] + order) + struct.pack("<4fHBx", *factors, rnd.choice([256, 256, 128, 0]), radius)
    b += struct.pack("<f12If16sI", 0.5 * radius, *weights, lam, partner, view)
    return b + bytes(192 - len(b))


# ---- shards ----

def recipe_of(dtype, targets, features=("cls", "patch", "registers", "mean"), layers=(1, 4), width=24, grid=(3, 4), concat=False, registers=2, mix=None, **more):
    return {"format_version": 1,
            "teacher": {"sha256": "00112233445566778899aabbccddeeff" * 2, "tensors": "", "family": "dinov2", "width": width, "depth": 6, "heads": 3, "patch": 14, "registers": registers,
                        "positions": "official", "layer_norm_eps": 1e-6, "mean": [float(np.float32(v)) for v in (0.485, 0.456, 0.406)],
                        "std": [float(np.float32(v)) for v in (0.229, 0.224, 0.225)]},
            "layers": list(layers), "layer_norm": True, "layer_concat": concat, "seed": 7, "image_size": [42, 42], "decoder": "235a1a2f9bc911e4888a3c2e3d1e1560", "exif": "ignore",
            "augment": {"name": "golden", "mix_p": 0.5 if mix else 0.0, "version": 2}, "features": list(features), "grid": list(grid), "registers": registers,
            "width": width * (len(layers) if concat else 1), "patch_targets": list(targets), "store": {"dtype": dtype}, **({"dataset": mix} if mix else {}), **more}


class Picture:
    """Image number n of the golden set, and the runs of its views in a shard."""

    def __init__(self, n, runs, path=None):
        self.n, self.runs, self.id = n, runs, xxh(b"golden image %d" % n)
        self.path = path if path is not None else b"some folder/caf\xe9 %d.jpg" % n
        self.size, self.width, self.height = 1000 + n, 100 + n, 90 + n
        self.views = [v for first, count in runs for v in range(first, first + count)]


def features_of(recipe, picture, view, layer):
    """{feature: (rows f32, kind, square)}."""
    if recipe["layer_concat"]:
        one = dict(recipe, width=recipe["teacher"]["width"])
        parts = [tokens(picture.n, view, k, one) for k in sorted(recipe["layers"], reverse=True)]  # the earliest block first
        cls, patch, registers = (np.concatenate([p[i] for p in parts], 1) for i in range(3))
    else:
        cls, patch, registers = tokens(picture.n, view, layer, recipe)
    mean = patch.astype(np.float64).mean(0, keepdims=True).astype(np.float32)
    out = {"cls": (cls, 0, 0.0), "registers": (registers, 0, 0.0), "mean": (mean, 0, 0.0)}
    out = {k: v for k, v in out.items() if k in recipe["features"]}
    for i, target in enumerate(recipe["patch_targets"]):
        out["patch%d" % (i + 1) if i else "patch"] = reduce(patch, target, recipe["grid"])
    return out


class Content:
    """Entries of a shard by database, and what is expected of each view."""

    def __init__(self, recipe, pictures, level=3):
        self.recipe, self.identity = recipe, hashlib.sha256(canonical(recipe).encode()).digest()
        self.pictures, self.entries, self.values, self.fidelity = sorted(pictures, key=lambda p: p.id), {k: {} for k in DATABASES}, {}, {}
        self.layers = recipe["layers"][:1] if recipe["layer_concat"] else recipe["layers"]
        for p in self.pictures:
            rest = self.identity[:8] + struct.pack("<QiiIHH", p.size, p.width, p.height, len(p.views), len(p.path), len(p.runs)) + p.path + b"".join(struct.pack("<II", *r) for r in p.runs)
            self.entries["images"][p.id] = xxh(p.id, rest) + rest
            for v in p.views:
                self.add_view(p, v, level)

    def add_view(self, p, v, level):
        rnd, mix = random.Random("%d %d" % (p.n, v)), None
        if "dataset" in self.recipe and v % 2:
            mix = (rnd.randrange(65536) / 65536, xxh(b"golden image 99"), v)
        plans = plan(rnd, p.width, p.height, 42, mix) + (plan(rnd, 120, 110, 42) if mix else b"")
        key, view_hash = p.id + struct.pack(">I", v), xxh(b"golden view", struct.pack("<II", p.n, v))
        rest = self.identity[:8] + bytes(8) + view_hash + plans
        self.entries["views"][key] = xxh(key, rest) + rest
        self.values[p.id, v] = {"hash": view_hash, "plan": plans.ljust(384, b"\0"), "x": {}, "square": {}}
        for layer in self.layers:
            for f, (x, kind, square) in features_of(self.recipe, p, v, layer).items():
                k = key + struct.pack(">H", layer)
                self.entries[f][k], out = record(f, k, x, kind, square, view_hash, self.recipe, self.identity, level)
                self.values[p.id, v]["x"][f, layer], self.values[p.id, v]["square"][f, layer] = out, square

    def digest(self):
        total = 0
        for number, db in enumerate(DATABASES[:-1], 1):
            for key, value in self.entries[db].items():
                if db == "images":
                    value = value[24:40] + value[48:48 + struct.unpack_from("<H", value, 44)[0]]
                elif db != "views":
                    value = value[:4] + bytes(2) + value[6:48] + bytes(8) + value[56:88] + bytes(16) + value[104:112]
                total += int.from_bytes(hashlib.sha256(bytes([number]) + key + value).digest(), "big")
        return (total % 2 ** 256).to_bytes(32, "big")

    def statistics(self, feature, layer):
        """(views, mean, deviation): in double, in key order, token by token."""
        d = self.recipe["width"]
        sums, squares, n = [0.0] * d, [0.0] * d, 0
        keys = sorted(self.values)[:8192]
        adjoint = False
        if feature.startswith("patch"):
            adjoint = self.recipe["patch_targets"][int(feature[5:] or 1) - 1].startswith("adjoint")
        for k in keys:
            for row in self.values[k]["x"][feature, layer].tolist():
                for c in range(d):
                    sums[c] += row[c]
                    squares[c] += 0.0 if adjoint else row[c] * row[c]
                n += not adjoint
            if adjoint:
                squares[0] += self.values[k]["square"][feature, layer]
                n += self.recipe["grid"][0] * self.recipe["grid"][1]
        variance = 0.0
        for c in range(d):
            variance += squares[c] / n - sums[c] / n * (sums[c] / n)
        return len(keys), np.array([s / n for s in sums], np.float32), np.float32(math.sqrt(max(0.0, variance) / d))

    def features(self):
        return [f for f in FEATURES if self.entries[f]]

    def fidelity_json(self):
        out = {}
        for f in self.features():
            for layer in self.layers:
                heads = [struct.unpack_from("<4f", v, 88) for k, v in sorted(self.entries[f].items()) if k[20:] == struct.pack(">H", layer)]
                xx, qq, err2 = (sum(h[i] for h in heads) for i in range(3))
                cosine = (xx + qq - err2) / 2 / math.sqrt(xx * qq) if xx * qq else 1.0
                out.setdefault(f, {})[str(layer)] = {"cosine": cosine, "relative_l2": math.sqrt(err2 / xx) if xx else 0.0, "worst_token": max(h[3] for h in heads)}
        return out

    def write(self, path):
        content = {"images": len(self.entries["images"]), "views": len(self.values), "digest": self.digest().hex(), **{f: len(self.entries[f]) for f in FEATURES}}
        meta = {"recipe": canonical(self.recipe).encode(), "content": canonical(content).encode(), "fidelity": canonical(self.fidelity_json()).encode()}
        for f in self.features():
            for layer in self.layers:
                views, mean, std = self.statistics(f, layer)
                meta["stats/%s/%d" % (f, layer)] = struct.pack("<QIf", views, len(mean), std) + mean.tobytes()
        self.entries["meta"] = {k.encode(): xxh(k.encode(), v) + v for k, v in meta.items()}
        for name in (path, path + ".json"):
            if os.path.exists(name):
                os.remove(name)
        env = lmdb.open(path, subdir=False, map_size=1 << 27, max_dbs=len(DATABASES), lock=False)
        with env.begin(write=True) as txn:
            for db in DATABASES:
                handle = env.open_db(db.encode(), txn=txn)
                for key in sorted(self.entries[db]):
                    txn.put(key, self.entries[db][key], db=handle, append=True)
        env.close()
        with open(path, "rb") as f:
            sha = hashlib.sha256(f.read()).hexdigest()
        manifest = {"format": "1.0", "identity": self.identity.hex(), "recipe": self.recipe, "sha256": sha, "content": dict(content, bytes=os.path.getsize(path)),
                    "fidelity": self.fidelity_json(), "provenance": {"program": "make_golden.py"}, "created": "2026-11-28T00:00:00Z"}
        manifest["checksum"] = xxh(canonical(manifest).encode()).hex()
        with open(path + ".json", "w") as f:
            f.write(canonical(manifest) + "\n")
        os.chmod(path, 0o444)


def safetensors(path, tensors):
    types, header, data = {"float32": "F32", "int64": "I64"}, {}, b""
    for name in sorted(tensors, key=lambda k: (-tensors[k].itemsize, k)):
        a = np.ascontiguousarray(tensors[name])
        header[name] = {"dtype": types[a.dtype.name], "shape": list(a.shape), "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def expect(path, whole):
    """whole: the Content of all shards together."""
    ids, keys = [p.id for p in whole.pictures], sorted(whole.values)
    paths = b"".join(p.path + b"\0" for p in whole.pictures)
    i64 = lambda parts: np.frombuffer(b"".join(parts), "<i8").reshape(len(parts), -1)
    t = {"ids": i64(ids), "views": np.array([(ids.index(i), v) for i, v in keys], np.int64), "hashes": i64([whole.values[k]["hash"] for k in keys]),
         "plans": i64([whole.values[k]["plan"] for k in keys]), "digest": np.frombuffer(whole.digest(), "<i8"),
         "paths": np.frombuffer(paths + bytes(-len(paths) % 8), "<i8")}
    for f in whole.features():
        t[f] = np.array([[whole.values[k]["x"][f, layer] for layer in whole.layers] for k in keys])
        if f.startswith("patch"):
            t[f.replace("patch", "square")] = np.array([[whole.values[k]["square"][f, layer] for layer in whole.layers] for k in keys]).view(np.int64)
        statistics = [whole.statistics(f, layer) for layer in whole.layers]
        t["mean/" + f], t["std/" + f] = np.array([s[1] for s in statistics]), np.array([s[2] for s in statistics])
    safetensors(path, t)


def one(name, recipe, pictures, level=3):
    content = Content(recipe, pictures, level)
    content.write(os.path.join(HERE, name + ".kdc"))
    expect(os.path.join(HERE, name + ".safetensors"), content)


def main():
    few = lambda: [Picture(1, [(0, 2)]), Picture(2, [(0, 1)])]
    for dtype, level in (("f16", 3), ("bf16", 1), ("i8", 19)):
        one(dtype + "-full", recipe_of(dtype, ["full"]), few(), level)
        one(dtype + "-reduced", recipe_of(dtype, ["adjoint:2", "pool:2", "adjoint:3x1", "pool:2x3"], features=["cls", "patch"]), few(), level)
    one("i8-wide", recipe_of("i8", ["pool:1", "adjoint:1x2"], features=["cls", "patch"], layers=[1], width=384, grid=(2, 2)), [Picture(3, [(0, 2)])])
    one("i8-odd", recipe_of("i8", ["full"], layers=[2], width=21, registers=1), [Picture(3, [(0, 2)])])
    one("joined", recipe_of("f16", ["full", "pool:1"], concat=True, layers=[1, 2, 5]), few())
    one("cls", recipe_of("bf16", [], features=["cls"], layers=[1], registers=0), [Picture(n, [(0, 2)]) for n in range(20)])
    one("derived", recipe_of("i8", ["pool:2"], features=["patch"], layers=[3], source={"dtype": "f16", "patch_target": "full"}), few())
    one("runs", recipe_of("f16", ["full"], features=["cls", "patch"], layers=[1]),
        [Picture(1, [(1, 1), (3, 2), (4294967290, 4)], b"xxh128:" + xxh(b"private/name.jpg").hex().encode()), Picture(2, [(7, 1)], b"b.jpg")])
    ids = sorted(xxh(b"golden image %d" % n) for n in (1, 2, 99))
    one("mixed", recipe_of("f16", ["adjoint:2"], features=["cls", "patch"], layers=[1], mix={"images": 3, "digest": hashlib.sha256(b"".join(ids)).hexdigest()}),
        [Picture(1, [(0, 4)]), Picture(2, [(0, 3)])])
    recipe, folder = recipe_of("i8", ["full", "adjoint:2"], features=["cls", "patch"], layers=[1, 2]), os.path.join(HERE, "shards")
    os.makedirs(folder, exist_ok=True)
    Content(recipe, [Picture(1, [(0, 2)]), Picture(2, [(2, 1)])]).write(os.path.join(folder, "a.kdc"))
    Content(recipe, [Picture(1, [(1, 3)]), Picture(3, [(0, 1)])], 9).write(os.path.join(folder, "b.kdc"))  # view 1 of image 1 is in both
    expect(os.path.join(HERE, "shards.safetensors"), Content(recipe, [Picture(1, [(0, 4)]), Picture(2, [(2, 1)]), Picture(3, [(0, 1)])]))


if __name__ == "__main__":
    main()
