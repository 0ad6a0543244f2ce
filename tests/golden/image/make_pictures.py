#!/usr/bin/env python3
"""Small pictures of every kind that is read, with the hash of what Pillow decodes: pictures/* and pictures/expected.txt (name, width, height, hash).

    python3 tests/golden/image/make_pictures.py

Made with Pillow 9.4.0 (libjpeg-turbo 2.1.5, libwebp 1.2.4), numpy 1.24, xxhash 3.0, and cjpeg of libjpeg-turbo 2.1.5 for the JPEGs that Pillow can't write.
Transparent pictures are laid over white; of 16-bit samples the high byte counts (Pillow does that for colour itself; for gray it clips). PNGs named
png-* are written from samples here, and the expected pixels are made from the samples by the PNG specification; Pillow must agree with every one
but those in PILLOW_DIFFERS. Never imports code of the project.
"""
import io
import os
import struct
import subprocess
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
    """The expression of common/image/image.h."""
    white = Image.new("RGB", im.size, "white")
    white.paste(im.convert("RGB"), mask=im.convert("RGBA").getchannel("A"))
    return white


def packed(samples, bits):
    """Rows of samples (h, w, channels) as bytes, each with filter 0."""
    h, w, c = samples.shape
    if bits >= 8:
        return b"".join(b"\0" + r.astype(">u2" if bits == 16 else "u1").tobytes() for r in samples)
    out = b""
    for r in samples.reshape(h, w):
        padded = np.concatenate([r, np.zeros(-w % (8 // bits), r.dtype)]).reshape(-1, 8 // bits)
        out += b"\0" + sum(padded[:, i].astype(int) << (8 - bits * (i + 1)) for i in range(8 // bits)).astype("u1").tobytes()
    return out


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_of(samples, bits, colour, adam7=False, chunks=b""):
    """Any PNG: samples (h, w, channels), colour type 0 gray, 2 RGB, 3 palette, 4 gray + alpha, 6 RGBA."""
    h, w, _ = samples.shape
    parts = [samples[y0::dy, x0::dx] for x0, y0, dx, dy in ADAM7] if adam7 else [samples]
    rows = b"".join(packed(p, bits) for p in parts if p.size)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, int(adam7)))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png_pixels(samples, bits, colour, palette=None, clear=None, alphas=None):
    """The pixels by the PNG specification: clear = the transparent colour in full depth, alphas = of the palette's entries."""
    a = samples.astype(int)
    if colour == 3:
        rgb = np.array(palette)[a[:, :, 0]]
        alpha = np.array(list(alphas or ()) + [255] * 256)[a[:, :, 0]]
    else:
        colours = a[:, :, :1 if colour in (0, 4) else 3]
        alpha = a[:, :, -1] if colour in (4, 6) else np.full(a.shape[:2], (1 << bits) - 1)
        if clear is not None:
            alpha = np.where((colours == np.array(clear)).all(-1), 0, alpha)
        to8 = (lambda v: v >> 8) if bits == 16 else (lambda v: v * 255 // ((1 << bits) - 1))
        rgb, alpha = np.broadcast_to(to8(colours), a.shape[:2] + (3,)), to8(alpha)
    rgb, alpha = Image.fromarray(rgb.astype(np.uint8)), Image.fromarray(alpha.astype(np.uint8))
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def cjpeg(a, *options):
    h, w = a.shape[:2]
    ppm = (b"P5 %d %d 255\n" if a.ndim == 2 else b"P6 %d %d 255\n") % (w, h) + a.tobytes()
    return subprocess.run(["cjpeg", *options], input=ppm, stdout=subprocess.PIPE, check=True).stdout


def trns(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


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

# Later additions draw from their own generator, so that the files above stay as they are.
rng = np.random.default_rng(12)
PILLOW_DIFFERS = set()


def add_png(name, channels, bits, colour, adam7=False, clear=None, palette=None, alphas=None, size=(11, 9)):
    samples = rng.integers(0, 1 << bits, size + (channels,), dtype=np.uint16)
    chunks = b""
    if palette is not None:
        chunks += chunk(b"PLTE", np.array(palette, np.uint8).tobytes())
    if clear is not None:
        clear = samples[1, 2, :len(clear)].tolist()
        samples[3:5, 1:6] = clear  # several pixels with it
        samples[6, 1:6] = [min(v + 1, (1 << bits) - 1) for v in clear]  # and some beside it
        chunks += trns(*clear)
    if alphas is not None:
        chunks += chunk(b"tRNS", bytes(alphas))
    FILES[name] = (png_of(samples, bits, colour, adam7, chunks), png_pixels(samples, bits, colour, palette, clear, alphas))


def colours(n):
    return rng.integers(0, 256, (n, 3)).tolist()


for bits in (1, 2, 4, 8, 16):
    add_png(f"png-gray-{bits}.png", 1, bits, 0)
    add_png(f"png-gray-{bits}-clear.png", 1, bits, 0, clear=(0,))
for bits in (1, 2, 4, 8):
    add_png(f"png-palette-{bits}.png", 1, bits, 3, palette=colours(1 << bits))
    add_png(f"png-palette-{bits}-alpha.png", 1, bits, 3, palette=colours(1 << bits), alphas=rng.integers(0, 256, max(2, (1 << bits) - 3)).tolist())
for bits in (8, 16):
    add_png(f"png-rgb-{bits}.png", 3, bits, 2)
    add_png(f"png-rgb-{bits}-clear.png", 3, bits, 2, clear=(0, 0, 0))
    add_png(f"png-gray-alpha-{bits}.png", 2, bits, 4)
    add_png(f"png-rgb-alpha-{bits}.png", 4, bits, 6)
for bits, channels, colour in ((1, 1, 0), (16, 1, 0), (8, 2, 4), (16, 3, 2), (16, 4, 6)):
    add_png(f"png-interlaced-{bits}-{channels}.png", channels, bits, colour, adam7=True)
add_png("png-interlaced-palette.png", 1, 4, 3, adam7=True, palette=colours(16), alphas=range(0, 256, 17))
add_png("png-one-pixel.png", 4, 8, 6, size=(1, 1))
add_png("png-one-column.png", 3, 8, 2, adam7=True, size=(13, 1))
FILES["png-gamma.png"] = (png_of(smooth(12, 7, 3), 8, 2, chunks=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"cHRM", struct.pack(">8I", *range(1000, 9000, 1000)))), None)
# Pillow clips 16-bit gray at 255, and compares a transparent colour with samples that it has already made 8 bits wide.
PILLOW_DIFFERS |= {"gray-16-bits.png", "png-gray-16.png", "png-gray-16-clear.png", "png-interlaced-16-1.png", "png-rgb-16-clear.png", "png-gray-4-clear.png"}

pairs = np.zeros((256, 256, 4), np.uint8)  # every value under every alpha
pairs[:, :, 0] = np.arange(256)[None, :]
pairs[:, :, 1] = 255 - pairs[:, :, 0]
pairs[:, :, 2] = pairs[:, :, 0] ^ 0x5A
pairs[:, :, 3] = np.arange(256)[:, None]
every = Image.fromarray(pairs)
FILES["png-every-alpha.png"] = (saved(every, format="PNG", optimize=True), over_white(every))
composite = np.asarray(Image.alpha_composite(Image.new("RGBA", every.size, "white"), every).convert("RGB")).astype(int)
print("Image.alpha_composite over white differs from Image.paste with a mask in", (composite != np.asarray(over_white(every))).sum(), "of", composite.size, "bytes")

landscape = smooth(53, 34, 3)
FILES["restarts.jpg"] = (cjpeg(landscape, "-quality", "80", "-restart", "1"), None)
FILES["arithmetic.jpg"] = (cjpeg(landscape, "-quality", "80", "-arithmetic"), None)
FILES["arithmetic-progressive.jpg"] = (cjpeg(landscape, "-quality", "80", "-arithmetic", "-progressive"), None)
FILES["rgb-stored.jpg"] = (cjpeg(landscape, "-quality", "80", "-rgb"), None)
FILES["gray-progressive.jpg"] = (cjpeg(landscape[:, :, 1].copy(), "-quality", "80", "-progressive"), None)
FILES["sampling-3x1.jpg"] = (cjpeg(landscape, "-quality", "80", "-sample", "3x1,1x1,1x1"), None)
FILES["sampling-2x2-chroma.jpg"] = (cjpeg(landscape, "-quality", "80", "-sample", "1x1,2x2,1x1"), None)
FILES["one-pixel.jpg"] = (cjpeg(landscape[:1, :1].copy(), "-quality", "80"), None)
FILES["quality-100.jpg"] = (cjpeg(landscape, "-quality", "100", "-optimize", "-sample", "1x1"), None)
FILES["two-pictures.jpg"] = (saved(Image.fromarray(landscape), format="MPO", save_all=True, append_images=[Image.fromarray(255 - landscape)], quality=70), None)

meadow, glass = smooth(47, 31, 3), smooth(29, 26, 4)
exif[0x0112] = 8
FILES["lossy.webp"] = (saved(Image.fromarray(meadow), format="WEBP", quality=75), None)
FILES["lossy-small.webp"] = (saved(Image.fromarray(meadow[:1, :1].copy()), format="WEBP", quality=75), None)
FILES["lossy-strong-filter.webp"] = (saved(Image.fromarray(meadow), format="WEBP", quality=5, method=6), None)
FILES["lossy-alpha.webp"] = (saved(Image.fromarray(glass), format="WEBP", quality=75), over_white)
FILES["lossless.webp"] = (saved(Image.fromarray(meadow), format="WEBP", lossless=True), None)
FILES["lossless-palette.webp"] = (saved(Image.fromarray(meadow).quantize(7).convert("RGB"), format="WEBP", lossless=True), None)
FILES["lossless-alpha.webp"] = (saved(Image.fromarray(glass), format="WEBP", lossless=True, exact=True), over_white)
FILES["exif-rotated.webp"] = (saved(Image.fromarray(meadow), format="WEBP", quality=75, exif=exif, icc_profile=bytes(300)), None)
FILES["trailing-bytes.webp"] = (FILES["lossy.webp"][0] + b"more" * 9, None)

os.makedirs(HERE, exist_ok=True)
with open(os.path.join(HERE, "animated.webp"), "wb") as g:  # refused
    g.write(saved(Image.fromarray(meadow[:9, :9].copy()), format="WEBP", save_all=True, append_images=[Image.fromarray(meadow[9:18, :9].copy())]))
wrong = []
with open(os.path.join(HERE, "expected.txt"), "w") as f:
    for name, (data, expected) in FILES.items():
        with open(os.path.join(HERE, name), "wb") as g:
            g.write(data)
        im = Image.open(io.BytesIO(data))
        if expected is None:
            expected = im.convert("RGB")
        elif callable(expected):
            expected = expected(im)
        pillow = over_white(im) if "A" in im.getbands() or "transparency" in im.info else im.convert("RGB")
        if (np.asarray(pillow) != np.asarray(expected)).any() != (name in PILLOW_DIFFERS):
            wrong.append(f"{name}: Pillow {'agrees' if name in PILLOW_DIFFERS else 'differs'}")
        digest = xxhash.xxh3_128_hexdigest(struct.pack("<II", *expected.size) + expected.tobytes())
        print(name, *expected.size, digest, file=f)
if wrong:
    raise SystemExit("\n".join(wrong))
