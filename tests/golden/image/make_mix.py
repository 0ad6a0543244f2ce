#!/usr/bin/env python3
"""Mixup: mix.txt has partners and lambdas as drawn from sets of ids, and hashes of blended bytes.

    python3 tests/golden/image/make_mix.py

Lines: `set N DIGEST` (image i of a set has the id XXH3-128("image i"); DIGEST: SHA-256 of the sorted ids), `draw N SEED IMAGE VIEW L PARTNER` (L = lambda * 65536, PARTNER: an id) and
`blend L HASH` (p[i] = 167 i + (i >> 8), q[i] = 91 i + 7 (i >> 8), as bytes, i < 65536: every pair of values is there). Made with Python 3.11, numpy 2.4, python-xxhash 4.1. Philox is written here from its paper
(Salmon et al., SC 2011). Never imports code of the project.
"""
import hashlib
import os

import numpy as np
import xxhash

M32 = (1 << 32) - 1


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & M32, (a >> 32) ^ c[3] ^ k[1], a & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def number(seed, image, view, place):
    """Number `place` of the stream of (seed, image id, view) for views (purpose 1)."""
    low = int.from_bytes(image[8:], "big")
    return philox((low & M32, low >> 32, view, 1 << 16 | place // 4), (seed & M32, seed >> 32))[place % 4]


def draw(ids, seed, image, view):
    others = [i for i in sorted(ids) if i != image]
    return number(seed, image, view, 15) >> 16, others[number(seed, image, view, 16) * len(others) >> 32]


i = np.arange(65536)
p, q = (167 * i + (i >> 8)).astype(np.uint8), (91 * i + 7 * (i >> 8)).astype(np.uint8)
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mix.txt"), "w") as f:
    for n in (2, 3, 10, 1000):
        ids = [xxhash.xxh3_128_digest(b"image %d" % k) for k in range(n)]
        print("set", n, hashlib.sha256(b"".join(sorted(ids))).hexdigest(), file=f)
        for seed in (0, 7, 1 << 40):
            for k in sorted({0, 1, n - 1}):
                for view in (0, 1, 65535):
                    share, partner = draw(ids, seed, ids[k], view)
                    print("draw", n, seed, k, view, share, partner.hex(), file=f)
    for share in (0, 1, 255, 256, 16384, 32767, 32768, 32769, 54321, 65535, 65536):
        blended = np.floor((p.astype(np.float64) * share + q.astype(np.float64) * (65536 - share)) / 65536 + 0.5).astype(np.uint8)
        print("blend", share, xxhash.xxh3_128_hexdigest(blended.tobytes()), file=f)
