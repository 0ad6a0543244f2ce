"""Rebuilds views from their recorded plans with Pillow, torchvision and numpy alone. Never imports code of this project.

A plan is the object that `kd-cache list --json` prints: crop [x, y, w, h], resize [w, h], out [x, y, w, h], filter, hflip, vflip, jitter_order (names),
jitter_factor (by name), gray, blur {radius, sigma, weights}, solarize (256 = off), mix {lambda, partner, view, plan} (lambda 1 = off, then
without plan).
"""
import struct

import numpy as np
import xxhash
from PIL import Image
from torchvision.transforms import functional as F

FILTERS = {"box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
JITTERS = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "saturation": F.adjust_saturation, "hue": F.adjust_hue}


def resize(image, size, kernel):
    """Columns first, then rows: the order of Pillow up to 12, whose bits the views have. Pillow 13 takes the rows first when the width grows and the height
    shrinks, which gives other pixels, so the passes are asked for one by one."""
    return image.resize((size[0], image.height), kernel).resize(size, kernel)


def blur_exact(image, blur):
    """The blur of the views, in integers (common/image/blur.h): mirrored borders, half kernel in 2^-24, column sums rounded to 2^-16, the end result with halves to even."""
    r, w = blur["radius"], blur["weights"]
    a = np.asarray(image).astype(np.int64)
    rows, columns = a.shape[:2]
    p = np.pad(a, ((r, r), (0, 0), (0, 0)), "reflect")
    t = (sum(w[abs(i)] * p[r + i:r + i + rows] for i in range(-r, r + 1)) + 128) >> 8
    t = np.pad(t, ((0, 0), (r, r), (0, 0)), "reflect")
    s = sum(w[abs(i)] * t[:, r + i:r + i + columns] for i in range(-r, r + 1))
    return Image.fromarray(np.rint(s / 2.0 ** 40).astype(np.uint8))  # s < 2^48: the quotient is exact


def blur_torchvision(image, blur):
    """torchvision's own, with float32 sums: at most 1 away from blur_exact."""
    side = 2 * blur["radius"] + 1
    return F.gaussian_blur(image, [side, side], [blur["sigma"], blur["sigma"]])


def mix_plan(view, partner, mix):
    """The last step of a mixed view: `view` and `partner` are apply_plan's of this plan and of mix["plan"] (on the image with the id mix["partner"]). Weights in 2^-16, per byte."""
    share = round(mix["lambda"] * 65536)
    a, b = np.asarray(view).astype(np.int64), np.asarray(partner).astype(np.int64)
    return Image.fromarray(((a * share + b * (65536 - share) + 32768) >> 16).astype(np.uint8))


def apply_plan(image, plan, blur=blur_exact):
    """image: PIL RGB image as opened. Returns the view as a PIL image; of a mixed view what mix_plan starts from."""
    x, y, w, h = plan["crop"]
    image = F.crop(image, y, x, h, w)
    image = resize(image, tuple(plan["resize"]), FILTERS[plan["filter"]])
    x, y, w, h = plan["out"]
    image = F.crop(image, y, x, h, w)
    if plan["hflip"]:
        image = F.hflip(image)
    if plan.get("vflip"):
        image = F.vflip(image)
    for name in plan["jitter_order"]:
        image = JITTERS[name](image, plan["jitter_factor"][name])
    if plan["gray"]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if plan.get("blur", {}).get("radius"):
        image = blur(image, plan["blur"])
    if plan.get("solarize", 256) != 256:
        image = F.solarize(image, plan["solarize"])
    return image


def view_hash(image):
    """XXH3-128 of u32 width, u32 height (little endian), then the pixels."""
    return xxhash.xxh3_128_hexdigest(struct.pack("<II", *image.size) + image.tobytes())
