"""Rebuilds views from their recorded plans with Pillow and torchvision alone. Never imports code of this project.

A plan is the object that `kd-cache list --json` prints: crop [x, y, w, h], resize [w, h], out [x, y, w, h], filter, hflip, jitter_order (names),
jitter_factor (by name), gray.
"""
import struct

import xxhash
from PIL import Image
from torchvision.transforms import functional as F

FILTERS = {"box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
JITTERS = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "saturation": F.adjust_saturation, "hue": F.adjust_hue}


def resize(image, size, kernel):
    """Columns first, then rows: the order of Pillow up to 12, whose bits the views have. Pillow 13 takes the rows first when the width grows and the height
    shrinks, which gives other pixels, so the passes are asked for one by one."""
    return image.resize((size[0], image.height), kernel).resize(size, kernel)


def apply_plan(image, plan):
    """image: PIL RGB image as opened. Returns the view as a PIL image."""
    if plan.get("vflip") or plan.get("solarize", 256) != 256 or plan.get("blur", {}).get("radius") or plan.get("mix", {}).get("lambda", 1) != 1:
        raise ValueError("the plan uses an operation that this script doesn't know: %r" % plan)
    x, y, w, h = plan["crop"]
    image = F.crop(image, y, x, h, w)
    image = resize(image, tuple(plan["resize"]), FILTERS[plan["filter"]])
    x, y, w, h = plan["out"]
    image = F.crop(image, y, x, h, w)
    if plan["hflip"]:
        image = F.hflip(image)
    for name in plan["jitter_order"]:
        image = JITTERS[name](image, plan["jitter_factor"][name])
    if plan["gray"]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    return image


def view_hash(image):
    """XXH3-128 of u32 width, u32 height (little endian), then the pixels."""
    return xxhash.xxh3_128_hexdigest(struct.pack("<II", *image.size) + image.tobytes())
