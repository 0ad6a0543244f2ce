#!/usr/bin/env python3
"""Writes timm_convnext_tiny.txt: the tensors of timm's convnext_tiny without a classifier, a line each (name, then sizes), sorted; and timm_architectures.txt: for each student that timm loads, which function of timm's with
which arguments is that network, its width and its parameters at 224 px without a classifier, as timm builds it.

Usage: python3 make_timm_names.py    (in this folder; needs timm; the version is written to recipe.json)"""
import json
import platform

import timm
import torch

# student, what timm calls it, arguments
STUDENTS = [
    ("resnet18", "resnet18", {}), ("convnext_small", "convnext_small", {}), ("vit_tiny_patch16_224", "vit_tiny_patch16_224", {}), ("vit_base_patch8_224", "vit_base_patch8_224", {}),
    ("vit_tiny_patch8_224", "vit_tiny_patch16_224", {"patch_size": 8}), ("vit_tiny_patch14_224", "vit_tiny_patch16_224", {"patch_size": 14}), ("deit_small_patch16_224", "deit_small_patch16_224", {}),
    ("dinov2_vitb14", "vit_base_patch14_dinov2", {}), ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2", {}), ("dinov2_w192_d6", "vit_small_patch14_dinov2", {"embed_dim": 192, "depth": 6, "num_heads": 3}),
]

model = timm.create_model("convnext_tiny", num_classes=0)
with open("timm_convnext_tiny.txt", "w") as f:
    for name, t in sorted(model.state_dict().items()):
        f.write(" ".join([name] + [str(n) for n in t.shape]) + "\n")
with open("timm_architectures.txt", "w") as f:
    for student, name, args in STUDENTS:
        with torch.device("meta"):
            m = timm.create_model(name, num_classes=0, **args, **({"img_size": 224} if "vit" in name or "deit" in name else {}))
        patch = getattr(m, "patch_embed", None)
        if patch is not None and "_patch" in student:
            assert patch.patch_size[0] == int(student.split("_patch")[1].split("_")[0])
        f.write("%s %s %d %d %s\n" % (student, name, m.num_features, sum(p.numel() for p in m.parameters()), json.dumps(args)))
json.dump({"command": "python3 make_timm_names.py", "python": platform.python_version(), "timm": timm.__version__, "torch": torch.__version__}, open("recipe.json", "w"), indent=1)
