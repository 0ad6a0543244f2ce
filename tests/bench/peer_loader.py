"""The same pictures and transforms as bench_loader, with Pillow and torchvision as their users write them.

    python peer_loader.py DIR       then one line per request on stdin: PRESET SIZE      (PRESET: crop-flip, lightly or decode)

Answers each with one line: images per second of wall-clock time with Pillow images (torchvision's default loader and transforms), and with tensors
(torchvision.io.decode_jpeg and transforms v2 on uint8, faster for some; 0 where this torchvision has none). The result is a uint8 view, as ours;
no conversion to float. One thread. The first line printed says which versions these are.
"""
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np  # noqa: E402
import PIL  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms as T  # noqa: E402

try:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2
except ImportError:
    v2 = None

torch.set_num_threads(1)
torch.manual_seed(0)
BICUBIC = T.InterpolationMode.BICUBIC
files = sorted(os.path.join(sys.argv[1], f) for f in os.listdir(sys.argv[1]) if not f.startswith("."))


def steps(t, preset, size, **more):
    crop_flip = [t.RandomResizedCrop(size, scale=(0.14, 1.0), interpolation=BICUBIC, **more), t.RandomHorizontalFlip()]
    jitter = [t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), t.RandomGrayscale(0.2)]
    return {"decode": [], "crop-flip": crop_flip, "lightly": crop_flip + jitter}[preset]


def pillow(path):
    with open(path, "rb") as f:
        return Image.open(f).convert("RGB")


def tensor(path):
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def speed(load, transform):
    begin = time.perf_counter()
    for f in files:
        x = load(f)
        for t in transform:
            x = t(x)
    return len(files) / (time.perf_counter() - begin)


print("Pillow %s, torchvision %s" % (PIL.__version__, torchvision.__version__.split("+")[0]), flush=True)
for line in sys.stdin:
    preset, size = line.split()
    with_pillow = speed(pillow, steps(T, preset, int(size)) + [np.asarray])
    with_tensors = speed(tensor, steps(v2, preset, int(size), antialias=True)) if v2 else 0.0
    print("%.1f %.1f" % (with_pillow, with_tensors), flush=True)
