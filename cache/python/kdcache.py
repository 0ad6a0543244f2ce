"""Reads kdcache files (format version 0, see FORMAT.md) with lmdb, zstandard and numpy; checks records when xxhash is there.

    import kdcache
    with kdcache.Cache("photos.kdc") as cache:
        for image in cache.images():
            cls = cache.feature("cls", image.id, view=0)        # [D] float32
            patch = cache.feature("patch", image.id, view=0)    # [N, D] float32
            view = cache.view(image.id, 0)                      # plan, hash

LMDB trusts the file that it opens: run `kd-cache check FILE` first on caches from others.
"""
import collections
import hashlib
import json
import os
import struct

import lmdb
import numpy as np
import zstandard

try:
    import xxhash
except ImportError:  # then the zstd checksum and the key copy are what is checked
    xxhash = None

Image = collections.namedtuple("Image", "id path file_size width height views")
View = collections.namedtuple("View", "hash plan")

_DATABASES = (b"meta", b"images", b"views", b"cls", b"patch", b"registers", b"mean")
_JITTER = ("brightness", "contrast", "saturation", "hue")
_FILTER = ("box", "bilinear", "bicubic")


class Damaged(Exception):
    """Bytes of the cache fail a check."""


def _hash(*parts):
    h = xxhash.xxh3_128()
    for p in parts:
        h.update(p)
    return h.digest()


def decode_record(value, key=None, identity=None):
    """Decodes one feature record into float32 [rows, width]. key (22 bytes) and identity (8 bytes) are compared when given."""
    if len(value) < 128 or value[:4] != b"KDFR":
        raise Damaged("not a feature record")
    version, _, dtype, codec, _ = struct.unpack_from("<HBBBB", value, 4)
    rows, width, raw, packed = struct.unpack_from("<IIQQ", value, 32)
    if (version, dtype, codec) != (0, 1, 1):
        raise Damaged("record of an unknown version, type or codec: %d, %d, %d" % (version, dtype, codec))
    if packed != len(value) - 128 or raw != 2 * rows * width:
        raise Damaged("record sizes don't agree")
    if xxhash and _hash(value[:112], value[128:]) != value[112:128]:
        raise Damaged("record fails its checksum")
    if key is not None and value[10:32] != key:
        raise Damaged("record belongs to another key")
    if identity is not None and value[56:64] != identity[:8]:
        raise Damaged("record was made under another recipe")
    planes = zstandard.ZstdDecompressor().decompress(value[128:], max_output_size=raw)
    if len(planes) != raw:
        raise Damaged("record unpacks to %d bytes instead of %d" % (len(planes), raw))
    high, low = np.frombuffer(planes, np.uint8).reshape(2, rows, width)
    return (high.astype(np.uint16) << 8 | low).view(np.float16).astype(np.float32)


def decode_plan(b):
    """The plan of a view as a dict with the names of `kd-cache list --json`."""
    v = struct.unpack_from("<I10i4B4B4fHBxf12If16sI", b)
    if v[0] != 1:
        raise Damaged("plan of version %d" % v[0])
    radius = v[24]
    return {
        "crop": list(v[1:5]), "resize": list(v[5:7]), "out": list(v[7:11]), "filter": _FILTER[v[11]], "hflip": bool(v[12]), "vflip": bool(v[13]), "gray": bool(v[14]),
        "jitter_order": [_JITTER[i] for i in v[15:19] if i != 255], "jitter_factor": dict(zip(_JITTER, v[19:23])), "solarize": v[23],
        "blur": {"radius": radius, "sigma": v[25], "weights": list(v[26:27 + radius]) if radius else []},
        "mix": {"lambda": v[38], "partner": v[39].hex(), "view": v[40]},
    }


class Cache:
    """One sealed shard."""

    def __init__(self, path):
        self.path = os.fspath(path)
        with open(self.path + ".json", "rb") as f:
            self.manifest = json.load(f)
        if os.path.getsize(self.path) != self.manifest["content"]["bytes"]:
            raise Damaged("%s: its size isn't the one in its manifest" % self.path)
        self._env = lmdb.open(self.path, subdir=False, readonly=True, lock=False, max_dbs=len(_DATABASES), readahead=False)
        self._db = {name.decode(): self._env.open_db(name, create=False) for name in _DATABASES}
        recipe = self._meta("recipe")
        self.identity = hashlib.sha256(recipe).digest()
        if self.identity.hex() != self.manifest["identity"]:
            raise Damaged("%s: its manifest belongs to another recipe" % self.path)
        self.recipe = json.loads(recipe)
        self.layers = self.recipe["layers"][:1] if self.recipe["layer_concat"] else self.recipe["layers"]  # joined layers are stored under the smallest number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._env.close()

    def _get(self, database, key):
        with self._env.begin(db=self._db[database]) as txn:
            value = txn.get(key)
        if value is None:
            raise KeyError("%s: no entry %s in %s" % (self.path, key.hex(), database))
        return value

    @staticmethod
    def _checked(key, value):
        if xxhash and _hash(key, value[16:]) != value[:16]:
            raise Damaged("entry %s fails its checksum" % key.hex())
        return value

    def _meta(self, key):
        return self._checked(key.encode(), self._get("meta", key.encode()))[16:]

    def images(self):
        """Every image, sorted by id."""
        with self._env.begin(db=self._db["images"]) as txn:
            for key, value in txn.cursor():
                self._checked(key, value)
                size, width, height, views, n, _ = struct.unpack_from("<QIIIHH", value, 24)
                yield Image(bytes(key), value[48:48 + n], size, width, height, views)

    def view(self, image_id, view):
        """Hash and plan of one view; of a mixed one also the partner's plan, as plan["mix"]["plan"]."""
        key = bytes(image_id) + struct.pack(">I", view)
        value = self._checked(key, self._get("views", key))
        plan = decode_plan(value[48:240])
        if plan["mix"]["lambda"] != 1:
            plan["mix"]["plan"] = decode_plan(value[240:432])
        return View(value[32:48], plan)

    def feature(self, name, image_id, view, layer=None):
        """float32: [D] for "cls" and "mean", [N, D] for "patch" and "registers". layer counts from the end of the teacher; the default is the first stored one."""
        key = bytes(image_id) + struct.pack(">IH", view, self.layers[0] if layer is None else layer)
        x = decode_record(self._get(name, key), key, self.identity)
        return x[0] if name in ("cls", "mean") else x

    def statistics(self, name, layer=None):
        """(mean [D], scalar standard deviation) that training standardises the feature of a layer with."""
        b = self._meta("stats/%s/%d" % (name, self.layers[0] if layer is None else layer))
        _, width, std = struct.unpack_from("<QIf", b)
        return np.frombuffer(b, "<f4", width, 16).copy(), std
