"""Reads kdcache caches (format 1, FORMAT.md) with lmdb, zstandard and numpy: a map-style torch Dataset of views.

    cache = kdcache.Cache("photos.kdc")     # or several files and folders of shards, read as one
    item = cache[0]                         # cls [D], patch [N, D] .. float32, square of adjoint targets, id, view, path, hash, plan
    mean, std = cache.statistics("patch")   # kd-train's targets are (x - mean) / std
    loader = torch.utils.data.DataLoader(cache, batch_size=64, shuffle=True, num_workers=4)
    pixels = kdcache.replay(PIL.Image.open("photos/" + item["path"]), kdcache.decode_plan(item["plan"]))  # uint8 [H, W, 3]

Whatever is read is checked: sizes, key, recipe, zstd's checksum, and, where xxhash is installed, the XXH3-128 of entries and records.
LMDB itself trusts the file that it opens: run `kd-cache check FILE` once on a cache from somebody else."""
import bisect
import hashlib
import json
import os
import struct

import lmdb
import numpy as np
import zstandard

try:
    import xxhash
except ImportError:
    xxhash = None

FEATURES = ("cls", "patch", "registers", "mean", "patch2", "patch3", "patch4")
_JITTER, _FILTER = ("brightness", "contrast", "saturation", "hue"), ("box", "bilinear", "bicubic")
_DTYPE, _KIND = {"f16": 1, "bf16": 2, "i8": 5}, {"full": 0, "pool": 1, "adjoint": 2}
_open = {}  # by (inode, device, process): LMDB must not open a file twice in a process, nor use it across a fork

class Damaged(Exception):
    """Bytes of the cache fail a check."""

def _need(ok, *words):
    if not ok:
        raise Damaged(" ".join(str(w) for w in words))

def _environment(path):
    file = (*os.stat(path)[1:3], os.getpid())
    if file not in _open:
        for inherited in [k for k in _open if k[2] != os.getpid()]:
            _open.pop(inherited)[0].close()
        env = lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=16, readahead=False)
        _open[file] = env, {name: env.open_db(name.encode(), create=False) for name in ("meta", "images", "views") + FEATURES}
    return _open[file]

def decode_payload(raw, dtype, rows, width):
    """float32 [rows, width] of what a record's frame unpacks to."""
    if dtype != "i8":
        bits = np.frombuffer(raw, np.uint8).reshape(2, -1)[::-1].T.copy().view("<u2").reshape(rows, width)  # low byte, high byte
        return bits.view("<f2").astype("f4") if dtype == "f16" else (bits.astype(np.uint32) << 16).view("f4")
    scale, x = np.frombuffer(raw, "<f4", rows), np.frombuffer(raw, np.int8, offset=4 * rows).astype(np.int32)
    _need(np.isfinite(scale).all() and (scale >= 0).all(), "a scale isn't a finite number from 0 up")
    block, half = width & -width, 1
    while half < block:  # sums over the rows of the rotation: integers, exact in any order
        x = x.reshape(-1, 2, half)
        x, half = np.stack((x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]), 1), 2 * half
    return x.reshape(rows, width).astype("f4") * (scale * np.float32(1 / np.sqrt(block)))[:, None]

def decode_plan(b):
    """The plan of a view, an item's "plan", as a dict with the names of `kd-cache list --json`."""
    v = struct.unpack_from("<I10i4B4B4fHBxf12If16sI", b)
    _need(v[0] == 1 and v[11] < 3, "a plan of version", v[0])
    mix = {"lambda": v[38], "partner": v[39].hex(), "view": v[40], **({"plan": decode_plan(b[192:])} if v[38] != 1 else {})}
    blur = {"radius": v[24], "sigma": v[25], "weights": list(v[26:27 + v[24]]) if v[24] else []}
    return {"crop": list(v[1:5]), "resize": list(v[5:7]), "out": list(v[7:11]), "filter": _FILTER[v[11]], "hflip": bool(v[12]),
            "vflip": bool(v[13]), "gray": bool(v[14]), "solarize": v[23], "mix": mix, "blur": blur,
            "jitter_order": [_JITTER[i] for i in v[15:19] if i != 255], "jitter_factor": dict(zip(_JITTER, v[19:23]))}

def replay(image, plan, partner=None):
    """uint8 [H, W, 3]: what the teacher saw, from the image as Pillow opened it; of a mixed view also its partner."""
    from PIL import Image, ImageEnhance, ImageOps
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    (x, y, w, h), size, (left, top, width, height) = plan["crop"], plan["resize"], plan["out"]
    kernel = getattr(Image, plan["filter"].upper())
    image = image.convert("RGB").crop((x, y, x + w, y + h)).resize((size[0], h), kernel).resize(size, kernel)  # columns first
    image = image.crop((left, top, left + width, top + height))
    image = ImageOps.mirror(image) if plan["hflip"] else image
    image = ImageOps.flip(image) if plan["vflip"] else image
    for name, factor in ((k, plan["jitter_factor"][k]) for k in plan["jitter_order"]):
        if name == "hue":
            hue, s, v = image.convert("HSV").split()
            hue = Image.fromarray(np.asarray(hue) + np.uint8(int(factor * 255) & 255))  # modulo 256
            image = Image.merge("HSV", (hue, s, v)).convert("RGB")
        else:
            image = enhance[name](image).enhance(factor)
    a = np.asarray(image.convert("L").convert("RGB") if plan["gray"] else image)
    r, weight = plan["blur"]["radius"], plan["blur"]["weights"]
    if r:
        p = np.pad(a.astype(np.int64), ((r, r), (0, 0), (0, 0)), "reflect")
        p = (sum(weight[abs(i)] * p[r + i:r + i + height] for i in range(-r, r + 1)) + 128) >> 8
        p = np.pad(p, ((0, 0), (r, r), (0, 0)), "reflect")
        a = np.rint(sum(weight[abs(i)] * p[:, r + i:r + i + width] for i in range(-r, r + 1)) / 2.0 ** 40).astype(np.uint8)
    a = np.where(a < plan["solarize"], a, 255 - a)
    share = int(plan["mix"]["lambda"] * 65536)
    b = replay(partner, plan["mix"]["plan"]).astype(np.int64) if share < 65536 else 0
    return (a.astype(np.int64) * share + b * (65536 - share) + 32768 >> 16).astype(np.uint8)

class Cache:
    """The views of sealed shards, sorted by image id and number; a map-style Dataset. Every process opens the files for itself.
    features: some of cache.stored (default: all). layer: counts from the end of the teacher (default: the first stored one).
    "plan" is bytes, for decode_plan, so that batches need no collate_fn; |t|^2 of an adjoint target patch2 is "square2"."""

    def __init__(self, *paths, features=None, layer=None):
        self.paths, self.identity, kept, last = [], None, [], (b"", 0)
        for p in map(os.fspath, paths):
            self.paths += sorted(os.path.join(p, f) for f in os.listdir(p) if f.endswith(".kdc") and not f.startswith(".")) if os.path.isdir(p) else [p]
        for image, first, shard, end in sorted(run for shard in range(len(self.paths)) for run in self._add_shard(shard)):
            first = max(first, last[1]) if image == last[0] else first  # a view that is in several shards is read from one
            if first < end:
                kept.append((image, first, end - first, shard))
                last = image, end
        self._run = np.array(kept, [("image", "V16"), ("first", int), ("count", int), ("shard", int)])
        self._end = np.cumsum(self._run["count"])
        self.layers = self.recipe["layers"][:1 if self.recipe["layer_concat"] else None]  # joined layers have the smallest number
        self.layer = layer or self.layers[0]
        self.targets = dict(zip(("patch", "patch2", "patch3", "patch4"), self.recipe["patch_targets"]))
        self.stored = [f for f in FEATURES if f in self.targets or f in self.recipe["features"]]
        self.features = self.stored if features is None else list(features)

    def _add_shard(self, shard):
        """Its runs of views, after a look whether the file, its manifest and the other shards belong together."""
        path, (env, db) = self.paths[shard], _environment(self.paths[shard])
        recipe, content = self._get(shard, "meta", b"recipe")[16:], json.loads(self._get(shard, "meta", b"content")[16:])
        with env.begin() as txn, open(path + ".json", "rb") as f:
            manifest, count = json.load(f), {k: txn.stat(db[k])["entries"] for k in db if k != "meta"}
            keys = list(txn.cursor(db["images"]).iternext(values=False))
        identity, of, count["bytes"] = hashlib.sha256(recipe).digest(), manifest["content"], os.path.getsize(path)
        _need(manifest["format"].startswith("1."), path, "is of format", manifest["format"])
        _need(identity.hex() == manifest["identity"] and {**of, **content, **count} == of, path, "isn't the file of its manifest")
        _need(identity == (self.identity or identity), path, "is of another recipe than", self.paths[0])
        self.identity, self.recipe = identity, json.loads(recipe)
        for key in keys:
            value = self._get(shard, "images", key)
            n, runs = struct.unpack_from("<HH", value, 44)
            yield from ((key, first, shard, first + many) for first, many in struct.iter_unpack("<II", value[48 + n:48 + n + 8 * runs]))

    def _get(self, shard, db, key):
        env, dbs = _environment(self.paths[shard])
        with env.begin(db=dbs[db]) as txn:
            value, what, at = txn.get(key) or b"", "%s: entry %s of %s" % (self.paths[shard], key.hex(), db), 112 if db in FEATURES else 0
        _need(len(value) >= at + 16, what, "is missing")
        _need(not xxhash or value[at:at + 16] == xxhash.xxh3_128_digest((value[:at] or key) + value[at + 16:]), what, "fails its XXH3-128")
        _need(db == "meta" or value[56 if at else 16:][:8] == self.identity[:8], what, "was made under another recipe")
        return value

    def __len__(self):
        return int(self._run["count"].sum())

    def _at(self, i):
        i = range(len(self))[i]
        r = np.searchsorted(self._end, i, "right")
        image, first, count, shard = self._run[r].item()
        return image, int(first + count + i - self._end[r]), shard

    def find(self, image_id, view):
        """Index of the first view from this one on. image_id: 16 bytes."""
        return bisect.bisect_left(range(len(self)), (image_id, view), key=lambda i: self._at(i)[:2])

    def record(self, name, i, layer=None):
        """(float32 [rows, width], |t|^2 or 0, hash of the view): a feature of view i."""
        (image, view, shard), (kind, _, side) = self._at(i), self.targets.get(name, "full").partition(":")
        grid = [int(n) for n in (side.split("x") * 2)[:2]] if side else self.recipe["grid"]
        rows = {"cls": 1, "mean": 1, "registers": self.recipe["registers"]}.get(name, grid[0] * grid[1])
        dtype, width, key = self.recipe["store"]["dtype"], self.recipe["width"], image + struct.pack(">IH", view, layer or self.layer)
        value, size = self._get(shard, name, key), rows * (4 + width if dtype == "i8" else 2 * width)
        what, told = "%s: %s of %s" % (self.paths[shard], name, key.hex()), (FEATURES.index(name), _DTYPE[dtype], 1, _KIND[kind])
        head = struct.pack("<4sHBBBB22sIIQQ", b"KDFR", 1, *told, key, rows, width, size, len(value) - 128)
        _need(value[:56] == head and zstandard.frame_content_size(value[128:]) == size, what, "isn't what its key and recipe say")
        unpack = zstandard.ZstdDecompressor().decompressobj()
        raw = unpack.decompress(value[128:])
        _need(len(raw) == size and not unpack.unused_data, what, "isn't one frame of", size, "bytes")
        return decode_payload(raw, dtype, rows, width), struct.unpack_from("<d", value, 80)[0], value[64:80]

    def statistics(self, name, layer=None):
        """(mean [D], scalar deviation) of a feature: over the first 8,192 views, as stored or, of several shards, computed."""
        if len(self.paths) == 1:
            b = self._get(0, "meta", b"stats/%s/%d" % (name.encode(), layer or self.layer))[16:]
            return np.frombuffer(b, "<f4", offset=16).copy(), struct.unpack_from("<f", b, 12)[0]
        total, n, adjoint = np.zeros((2, self.recipe["width"])), 0, self.targets.get(name, "").startswith("adjoint")
        for i in range(min(8192, len(self))):
            x, square, _ = self.record(name, i, layer)
            x, n = x.astype("f8"), n + (np.prod(self.recipe["grid"]) if adjoint else len(x))
            total = np.cumsum(np.concatenate((total[None], np.stack((x, 0 * x if adjoint else x * x), 1))), 0)[-1]  # row by row
            total[1, 0] += square
        mean = total[0] / n
        return mean.astype("f4"), float(np.sqrt(max(0, np.cumsum(total[1] / n - mean * mean)[-1] / len(mean))).astype("f4"))

    def __getitem__(self, i):
        image, view, shard = self._at(i)
        value, entry = self._get(shard, "views", image + struct.pack(">I", view)), self._get(shard, "images", image)
        item = {"id": image.hex(), "view": view, "hash": value[32:48].hex(), "plan": value[48:],
                "path": os.fsdecode(entry[48:48 + struct.unpack_from("<H", entry, 44)[0]])}
        for name in self.features:
            x, square, seen = self.record(name, i)
            _need(seen == value[32:48], self.paths[shard], name, item["id"], view, "is of another view")
            item[name] = x[0] if name in ("cls", "mean") else x
            if self.targets.get(name, "").startswith("adjoint"):
                item[name.replace("patch", "square")] = square
        return item
