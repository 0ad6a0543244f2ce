#!/usr/bin/env python3
"""torchvision's Gaussian blur of two small pictures: blur/PICTURE.png and blur/PICTURE_KERNEL_SIGMA.png.

    python3 tests/golden/image/make_blur.py

Made with Pillow 9.4.0, torch 1.13.1, torchvision 0.14.1. Never imports code of the project.
"""
import os

import numpy as np
from PIL import Image
from torchvision.transforms import functional as F

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "blur")
CASES = {
    "edges": (np.random.default_rng(1).choice([0, 3, 128, 252, 255], (31, 40, 3)), [(3, 0.1), (3, 1), (9, 0.1), (9, 0.5), (9, 1.3), (9, 2), (15, 2.5), (23, 4), (23, 50)]),
    "tiny": (np.random.default_rng(2).integers(0, 256, (12, 5, 3)), [(9, 0.3), (9, 2), (3, 0.7)]),
}

os.makedirs(HERE, exist_ok=True)
for name, (pixels, kernels) in CASES.items():
    image = Image.fromarray(pixels.astype(np.uint8))
    image.save(os.path.join(HERE, name + ".png"), optimize=True)
    for side, sigma in kernels:
        F.gaussian_blur(image, [side, side], [sigma, sigma]).save(os.path.join(HERE, "%s_%d_%g.png" % (name, side, sigma)), optimize=True)
