#!/usr/bin/env python3
"""Golden views: small drawn JPEGs, plans, and the hash of what Pillow and torchvision make of them.

    python3 tests/golden/image/make_views.py        rewrites views/*.jpg and views/views.jsonl

Made with Pillow 9.4.0 (libjpeg-turbo 2.1.5), torchvision 0.14.1, numpy 1.24, xxhash 3.2; torchvision 0.29 with Pillow 13.0 give
the same lines. A blur is that of pillow_views.blur_exact,
which stays within 1 of torchvision's (checked here). Two kinds of lines in views.jsonl:
* "drawn": preset, seed, view and image size (a side, or rows and columns) are given and the plan is drawn here, by an implementation of the rules of its own
  (Philox4x32-10, torchvision's get_params), so that a change of the draws can't hide behind a change of the goldens;
* "given": plans at the edges (one pixel, enlarging, factors 0 and 1, every order of the jitters, the smallest picture of a blur, every end of the threshold).
Never imports code of the project.
"""
import itertools
import json
import math
import os
import random
import sys
from fractions import Fraction

import numpy as np
import xxhash
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pillow_views import apply_plan, blur_torchvision, view_hash  # noqa: E402
from torchvision import transforms  # noqa: E402

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "views")
JITTERS = ["brightness", "contrast", "saturation", "hue"]


# ---- pictures ----

def picture(w, h, seed, channels=3):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    a = np.stack([128 + 90 * np.sin(x / rng.uniform(5, 40) + y / rng.uniform(5, 40) + c) for c in range(channels)], -1)
    for _ in range(6):
        cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.05, 0.25) * min(w, h)
        a[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, channels)
    a += rng.normal(0, 6, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8)


PICTURES = {
    "landscape.jpg": (lambda: Image.fromarray(picture(300, 200, 1)), dict(quality=60, subsampling=2)),
    "portrait.jpg": (lambda: Image.fromarray(picture(180, 270, 2)), dict(quality=60, subsampling=1, progressive=True)),
    "small.jpg": (lambda: Image.fromarray(picture(61, 47, 3)), dict(quality=92, subsampling=0)),
    "gray.jpg": (lambda: Image.fromarray(picture(150, 140, 4, 1)[:, :, 0]), dict(quality=70)),
    "cmyk.jpg": (lambda: Image.fromarray(picture(110, 90, 5, 4), "CMYK"), dict(quality=50)),
    "strip.jpg": (lambda: Image.fromarray(picture(400, 20, 6)), dict(quality=75, subsampling=2)),
}

# ---- drawing plans ----

M32 = 0xFFFFFFFF


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & M32, (p0 >> 32) ^ c[3] ^ k[1], p0 & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def numbers(seed, image_id, view, n=64):
    low = image_id & 0xFFFFFFFFFFFFFFFF
    out = []
    for block in range(n // 4):
        out += philox([low & M32, low >> 32, view, 1 << 16 | block], [seed & M32, seed >> 32])
    return [v / 2.0 ** 32 for v in out]


PRESETS = {
    "lightly": dict(scale=(0.14, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, jitter_p=0.8, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2),
    "crop-flip": dict(scale=(0.14, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, jitter_p=0.0, jitter=(0, 0, 0, 0), gray=0.0),
    "eval": None,
    "dino": dict(scale=(0.32, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, jitter_p=0.8, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=(0.9, 9, 0.1, 2.0), solarize=(0.2, 128)),
    "dino-1": dict(scale=(0.32, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, jitter_p=0.8, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2),
}


def plan_of(crop, resize, out, **more):
    plan = dict(crop=crop, resize=resize, out=out, filter="bicubic", hflip=False, jitter_order=[], jitter_factor=dict(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0), gray=False)
    plan.update(more)
    return plan


def crop_of(p, u, width, height):
    for i in range(10):
        a, r, top, left = u[24 + 4 * i:28 + 4 * i]
        target = width * height * (p["scale"][0] + (p["scale"][1] - p["scale"][0]) * a)
        lo, hi = math.log(p["ratio"][0]), math.log(p["ratio"][1])
        ratio = math.exp(lo + (hi - lo) * r)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(left * (width - w + 1)), int(top * (height - h + 1)), w, h]
    w, h = width, height
    if width / height < p["ratio"][0]:
        h = round(w / p["ratio"][0])
    elif width / height > p["ratio"][1]:
        w = round(h * p["ratio"][1])
    return [(width - w) // 2, (height - h) // 2, w, h]


def half_kernel(radius, sigma):
    """In 2^-24; the centre takes the rest."""
    e = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    w = [math.floor(x / (2 * sum(e) - e[0]) * 2 ** 24 + 0.5) for x in e]
    return [2 ** 24 - 2 * sum(w[1:])] + w[1:]


def blur_of(radius, sigma):
    sigma = float(np.float32(sigma))
    return dict(radius=radius, sigma=sigma, weights=half_kernel(radius, sigma))


def covering(width, height, rows, columns):
    """The smallest [w, h] of the picture's aspect ratio, in whole pixels, with h >= rows and w >= columns, one of them equal."""
    if Fraction(rows, height) >= Fraction(columns, width):
        return [rows * width // height, rows]
    return [columns, columns * height // width]


def draw(preset, seed, image_id, view, width, height, size):
    p = PRESETS[preset]
    rows, columns = (size, size) if isinstance(size, int) else size
    if p is None:
        w, h = covering(width, height, (rows * 256 + 112) // 224, (columns * 256 + 112) // 224)
        return plan_of([0, 0, width, height], [w, h], [round((w - columns) / 2), round((h - rows) / 2), columns, rows])
    u = numbers(seed, image_id, view)
    order = [0, 1, 2, 3]
    for i, at in ((3, 2), (2, 3), (1, 4)):
        k = int(u[at] * (i + 1))
        order[i], order[k] = order[k], order[i]
    factor = {}
    for i, name in enumerate(JITTERS):
        x = p["jitter"][i]
        lo, hi = (-x, x) if name == "hue" else (max(0.0, 1 - x), 1 + x)
        factor[name] = float(np.float32(lo + (hi - lo) * u[5 + i]))
    jitter = [JITTERS[i] for i in order] if u[1] < p["jitter_p"] else []
    plan = plan_of(crop_of(p, u, width, height), [columns, rows], [0, 0, columns, rows], hflip=u[0] < p["hflip"], jitter_order=jitter, jitter_factor=factor, gray=u[9] < p["gray"])
    if "blur" in p:
        probability, side, lo, hi = p["blur"]
        if u[11] < probability:
            plan["blur"] = blur_of(side // 2, lo + (hi - lo) * u[12])
    if "solarize" in p and u[13] < p["solarize"][0]:
        plan["solarize"] = p["solarize"][1]
    return plan


def check_eval(image, plan, size):
    """The plan of "eval" makes what torchvision's own transforms make."""
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows == columns:
        first = transforms.Resize((size * 256 + 112) // 224, transforms.InterpolationMode.BICUBIC)
    else:
        first = transforms.Lambda(lambda i: i.resize(tuple(plan["resize"]), Image.BICUBIC))
    wanted = transforms.Compose([first, transforms.CenterCrop((rows, columns))])(image)
    assert wanted.size == (columns, rows) and wanted.tobytes() == apply_plan(image, plan).tobytes(), plan


def given():
    r = random.Random(5)
    f32 = lambda x: float(np.float32(x))
    for order in itertools.permutations(JITTERS):
        factors = dict(brightness=f32(r.uniform(0.6, 1.4)), contrast=f32(r.uniform(0.6, 1.4)), saturation=f32(r.uniform(0.8, 1.2)), hue=f32(r.uniform(-0.1, 0.1)))
        yield "portrait.jpg", plan_of([3, 5, 150, 170], [64, 64], [0, 0, 64, 64], jitter_order=list(order), jitter_factor=factors, gray=r.random() < 0.2)
    for name, values in (("brightness", (0, 0.5, 1, 1.9, 2.5)), ("contrast", (0, 0.5, 1, 1.9, 2.5)), ("saturation", (0, 0.5, 1, 1.9, 2.5)), ("hue", (-0.5, -0.25, 0, 0.1, 0.5))):
        for v in values:
            plan = plan_of([0, 0, 300, 200], [96, 80], [0, 0, 96, 80], jitter_order=[name])
            plan["jitter_factor"][name] = f32(v)
            yield "landscape.jpg", plan
    for file, crop, resize, out in (
            ("small.jpg", [0, 0, 61, 47], [61, 47], [0, 0, 61, 47]), ("small.jpg", [60, 46, 1, 1], [224, 224], [0, 0, 224, 224]),
            ("small.jpg", [7, 3, 40, 41], [40, 112], [0, 0, 40, 112]), ("small.jpg", [7, 3, 40, 41], [112, 41], [5, 6, 100, 30]),
            ("small.jpg", [0, 0, 61, 47], [1, 1], [0, 0, 1, 1]), ("strip.jpg", [0, 0, 400, 20], [5120, 256], [2448, 16, 224, 224]),
            ("strip.jpg", [399, 0, 1, 20], [3, 500], [0, 100, 3, 200]), ("landscape.jpg", [0, 0, 300, 200], [31, 17], [2, 3, 20, 10])):
        for name in ("box", "bilinear", "bicubic"):
            yield file, plan_of(crop, resize, out, filter=name, hflip=name == "bilinear")


    whole = lambda side, **more: plan_of([0, 0, 180, 270], side, [0, 0] + side, **more)
    for radius, sigma, side in ((1, 0.1, [40, 30]), (1, 5, [2, 2]), (4, 0.1, [5, 5]), (4, 2, [5, 90]), (4, 1.3, [90, 5]), (7, 1, [33, 64]), (11, 3, [12, 12]), (11, 100, [65, 40]), (11, 0.01, [23, 24])):
        yield "portrait.jpg", whole(side, blur=blur_of(radius, sigma))
    for threshold in (0, 1, 77, 128, 255, 256):
        yield "portrait.jpg", whole([50, 40], solarize=threshold, vflip=threshold % 2 == 1)
    for side in ([64, 1], [1, 64], [300, 7], [7, 8]):
        yield "portrait.jpg", whole(side, vflip=True, hflip=side[0] == 7)
    everything = dict(brightness=f32(0.7), contrast=f32(1.3), saturation=f32(1.1), hue=f32(0.05))
    yield "portrait.jpg", whole([80, 70], hflip=True, vflip=True, jitter_order=JITTERS, jitter_factor=everything, gray=True, blur=blur_of(4, 1.7), solarize=90)
    yield "portrait.jpg", whole([80, 70], vflip=True, jitter_order=JITTERS[::-1], jitter_factor=everything, blur=blur_of(3, 0.8), solarize=128)


def check_blur(image, plan):
    """torchvision's blur is at most 1 away, before what follows it. Returns bytes and differing bytes."""
    if "blur" not in plan:
        return 0, 0
    plan = dict(plan, solarize=256)
    ours, theirs = (np.asarray(apply_plan(image, plan, *how)).astype(int) for how in ((), (blur_torchvision,)))
    assert abs(ours - theirs).max() <= 1, plan
    return ours.size, int((ours != theirs).sum())


# View, seed, size.
CASES = {
    "drawn": [(0, 0, 224), (1, 0, 224), (2, 1, 98), (70000, 2 ** 63 + 5, 64), (4, 123456789012, 224), (3, 0, [112, 168]), (1, 0, [98, 42])],
    "eval": [(0, 0, 224), (0, 0, [112, 168]), (0, 0, [224, 98]), (0, 0, [70, 71]), (0, 0, [48, 160])],
}


def main():
    os.makedirs(HERE, exist_ok=True)
    ids, images = {}, {}
    for name, (make, options) in PICTURES.items():
        path = os.path.join(HERE, name)
        make().save(path, "JPEG", **options)
        with open(path, "rb") as f:
            ids[name] = xxhash.xxh3_128_intdigest(f.read())
        images[name] = Image.open(path).convert("RGB")
    blurred = different = 0
    with open(os.path.join(HERE, "views.jsonl"), "w") as f:
        for preset in PRESETS:
            for name in PICTURES:
                for view, seed, size in CASES["eval" if preset == "eval" else "drawn"]:
                    plan = draw(preset, seed, ids[name], view, *images[name].size, size)
                    if preset == "eval":
                        check_eval(images[name], plan, size)
                    n, d = check_blur(images[name], plan)
                    blurred, different = blurred + n, different + d
                    print(json.dumps(dict(kind="drawn", file=name, preset=preset, seed=str(seed), view=view, size=size, plan=plan, hash=view_hash(apply_plan(images[name], plan)))), file=f)
        for name, plan in given():
            n, d = check_blur(images[name], plan)
            blurred, different = blurred + n, different + d
            print(json.dumps(dict(kind="given", file=name, plan=plan, hash=view_hash(apply_plan(images[name], plan)))), file=f)
    print("%d of %d bytes of blurred views are 1 away from torchvision's" % (different, blurred))


main()
