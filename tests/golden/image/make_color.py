#!/usr/bin/env python3
"""The colour operations on all 2^24 colours at once: color.txt has operation, factor and XXH3-128 of the 4096 x 4096 result's pixels.

    python3 tests/golden/image/make_color.py

Pixel i of the picture has the bytes of i, red highest. Made with Pillow 9.4.0, torchvision 0.14.1, xxhash 3.2. Never imports code of the project.
"""
import os

import numpy as np
import xxhash
from PIL import Image
from torchvision.transforms import functional as F

i = np.arange(1 << 24, dtype=np.uint32)
colours = Image.fromarray(np.stack([i >> 16, i >> 8 & 255, i & 255], -1).astype(np.uint8).reshape(4096, 4096, 3))
OPERATIONS = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "saturation": F.adjust_saturation, "hue": F.adjust_hue}

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "color.txt"), "w") as f:
    for name, factors in (("brightness", (0.6, 1.37)), ("contrast", (0.63, 1.4)), ("saturation", (0.81, 1.2)), ("hue", (-0.5, -0.1, -0.003, 0, 0.0371, 0.1, 0.5))):
        for factor in factors:
            factor = float(np.float32(factor))
            result = np.asarray(OPERATIONS[name](colours, factor))
            print(name, repr(factor), xxhash.xxh3_128_hexdigest(np.ascontiguousarray(result)), file=f)
    print("grayscale", 0.0, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(np.asarray(F.rgb_to_grayscale(colours, 3)))), file=f)
    for threshold in (0, 128, 200):
        print("solarize", float(threshold), xxhash.xxh3_128_hexdigest(np.ascontiguousarray(np.asarray(F.solarize(colours, threshold)))), file=f)
