"""What the DINOv2 architecture in PyTorch says about the demo teacher on three drawn pictures.

    python make_golden.py          # torch, torchvision, timm, Pillow, safetensors: see ../models/recipe.json for versions

Reads demo_teacher.safetensors and pictures/*.jpg, writes golden.safetensors: class token and patch tokens after the final norm, computed in float64 from the file's weights.
The network is ../models/generate.py's DinoV2, which is written from the published architecture and checked there against timm's.
"""
import glob
import os
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torchvision import transforms as T

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "models"))
from generate import IMAGENET, DinoV2, check_own_vit, normalized  # noqa: E402

check_own_vit()
state = {k: v.double() for k, v in load_file(os.path.join(here, "demo_teacher.safetensors")).items()}
depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
model = DinoV2(128, depth, 2, 14, 16, 512).double().eval()
model.load_state_dict(state, strict=True)
crop = T.Compose([T.Resize(256, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224)])
files = sorted(glob.glob(os.path.join(here, "pictures", "*.jpg")))
pixels = np.stack([np.asarray(crop(Image.open(f).convert("RGB"))) for f in files])
with torch.no_grad():
    y = model(normalized(pixels, *IMAGENET)).float().numpy()
save_file({"cls": np.ascontiguousarray(y[:, 0]), "patch": np.ascontiguousarray(y[:, 1::5])}, os.path.join(here, "golden.safetensors"))
