#!/usr/bin/env python3
"""Small pictures of every kind that is read, with the hash of what Pillow decodes: pictures/* and pictures/expected.txt (name, width, height, hash).

    python3 tests/golden/image/make_pictures.py

Made with Pillow 9.4.0, numpy 1.24, xxhash 3.2. Transparent pictures are laid over white; of 16-bit samples the high byte counts (Pillow does
that for colour itself; for gray it clips, so the expected bytes are made from the samples here). Never imports code of the project.
"""
import io
import os
import struct
import zlib

import numpy as np
import xxhash
from PIL import Image

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures")
rng = np.random.default_rng(11)


def smooth(w, h, channels):
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    a = np.stack([127 + 120 * np.sin(x / (4.0 + c) + y / (9.0 - c)) for c in range(channels)], -1)
    return np.clip(a + rng.normal(0, 8, a.shape), 0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(samples):
    """samples: (h, w, channels) uint16; gray, RGB or RGBA."""
    h, w, c = samples.shape
    rows = b"".join(b"\0" + samples[y].astype(">u2").tobytes() for y in range(h))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {1: 0, 3: 2, 4: 6}[c], 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def interlaced(a):
    """8-bit RGB with Adam7, which Pillow doesn't write."""
    h, w, _ = a.shape
    rows = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        part = a[y0::dy, x0::dx]
        if part.size:
            rows += b"".join(b"\0" + r.tobytes() for r in part)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 1)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def over_white(im):
    im = im.convert("RGBA")
    white = Image.new("RGB", im.size, "white")
    white.paste(im, mask=im.getchannel("A"))
    return white


def saved(im, **options):
    out = io.BytesIO()
    im.save(out, **options)
    return out.getvalue()


rgb, gray, rgba = smooth(33, 21, 3), smooth(25, 30, 1)[:, :, 0], smooth(20, 19, 4)
palette = Image.fromarray(rgb).quantize(200)
few = Image.fromarray(rgb).quantize(4)
deep = rng.integers(0, 65536, (9, 14, 3), dtype=np.uint16)
deep_gray = rng.integers(0, 65536, (8, 15, 1), dtype=np.uint16)
exif = Image.Exif()
exif[0x0112] = 6  # orientation: rotate; ignored
jpeg = saved(Image.fromarray(rgb), format="JPEG", quality=85)

FILES = {  # name: (bytes, expected RGB image or None for Pillow's convert)
    "rgb.png": (saved(Image.fromarray(rgb), format="PNG"), None),
    "gray.png": (saved(Image.fromarray(gray), format="PNG"), None),
    "bilevel.png": (saved(Image.fromarray(gray).convert("1"), format="PNG"), None),
    "palette.png": (saved(palette, format="PNG"), None),
    "palette-2-bits.png": (saved(few, format="PNG", bits=2), None),
    "interlaced.png": (interlaced(rgb), None),
    "rgb-16-bits.png": (png16(deep), None),
    "gray-16-bits.png": (png16(deep_gray), Image.fromarray((deep_gray[:, :, 0] >> 8).astype(np.uint8)).convert("RGB")),
    "alpha.png": (saved(Image.fromarray(rgba), format="PNG"), over_white(Image.fromarray(rgba))),
    "gray-alpha.png": (saved(Image.fromarray(rgba[:, :, :2], "LA"), format="PNG"), over_white(Image.fromarray(rgba[:, :, :2], "LA"))),
    "palette-transparent.png": (saved(palette, format="PNG", transparency=3), over_white(Image.open(io.BytesIO(saved(palette, format="PNG", transparency=3))))),
    "rgb.jpg": (jpeg, None),
    "named-jpeg-is-png.jpg": (saved(Image.fromarray(rgb), format="PNG"), None),
    "exif-rotated.jpg": (saved(Image.fromarray(rgb), format="JPEG", quality=85, exif=exif), None),
    "trailing-bytes.jpg": (jpeg + b"the camera wrote this after the picture" * 20, None),
    "icc-profile.jpg": (saved(Image.fromarray(smooth(48, 32, 3)), format="JPEG", quality=85, icc_profile=bytes(range(256)) * 20), None),
}

os.makedirs(HERE, exist_ok=True)
with open(os.path.join(HERE, "expected.txt"), "w") as f:
    for name, (data, expected) in FILES.items():
        with open(os.path.join(HERE, name), "wb") as g:
            g.write(data)
        if expected is None:
            expected = Image.open(io.BytesIO(data)).convert("RGB")
        digest = xxhash.xxh3_128_hexdigest(struct.pack("<II", *expected.size) + expected.tobytes())
        print(name, *expected.size, digest, file=f)
