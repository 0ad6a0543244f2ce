"""Golden position embeddings of other grids, from the libraries' own functions.

    python positions.py DINOV2      # DINOV2: a checkout of facebookresearch/dinov2

Writes positions.safetensors and positions.json (versions). The table in the file comes from a formula (unit() below, as in generate.py and tests/unit/formula.h). Three ways exist:
"offset" (scale_factor with 0.1, no antialiasing), "size" (no antialiasing), "antialias"; which library uses which, with and without registers, is asserted here by calling all of them.
Keys: WAY_GRID_HxW.
"""
import importlib
import json
import platform
import subprocess
import sys

import numpy as np
import timm
import torch
import transformers
from safetensors.numpy import save_file
from timm.layers import resample_abs_pos_embed
from transformers import Dinov2Config, Dinov2WithRegistersConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEmbeddings

PATCH, WIDTH = 14, 2
TARGETS = ((37, 16, 16), (5, 9, 9), (14, 7, 7), (14, 20, 20), (37, 16, 11), (5, 5, 7), (5, 8, 3), (14, 10, 14))


def unit(name, n):
    """In [-1, 1)."""
    h = 2166136261
    for c in name.encode():
        h = ((h ^ c) * 16777619) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        x = np.uint32(h) + np.arange(n, dtype=np.uint32) * np.uint32(2654435761)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x2C1B3C6D)
        x ^= x >> np.uint32(12)
        x *= np.uint32(0x297A2D39)
        x ^= x >> np.uint32(15)
    return x.astype(np.float64) / 2147483648.0 - 1.0


def official(module, pos, grid, h, w, registers):
    """dinov2/hub/backbones.py: the hubs with registers have interpolate_antialias True and interpolate_offset 0."""
    vit = module.DinoVisionTransformer(img_size=grid * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=0, num_heads=1, block_chunks=0,
                                       num_register_tokens=4 if registers else 0, interpolate_antialias=registers, interpolate_offset=0.0 if registers else 0.1)
    vit.pos_embed.data.copy_(pos)
    return vit.interpolate_pos_encoding(torch.zeros(1, 1 + h * w, WIDTH), h * PATCH, w * PATCH)  # they call the height w


def hf(pos, grid, h, w, registers):
    config = (Dinov2WithRegistersConfig if registers else Dinov2Config)(hidden_size=WIDTH, image_size=grid * PATCH, patch_size=PATCH, num_attention_heads=1)
    embeddings = (Dinov2WithRegistersEmbeddings if registers else Dinov2Embeddings)(config)
    embeddings.position_embeddings.data.copy_(pos)
    return embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + h * w, WIDTH), h * PATCH, w * PATCH)


def main():
    folder = sys.argv[1]
    sys.path.insert(0, folder)
    module = importlib.import_module("dinov2.models.vision_transformer")
    out = {}
    for grid, h, w in TARGETS:
        pos = torch.from_numpy((0.5 * unit("pos_embed", (1 + grid * grid) * WIDTH)).astype(np.float32)).reshape(1, -1, WIDTH)
        ways = {"offset": official(module, pos, grid, h, w, False), "size": hf(pos, grid, h, w, False),
                "antialias": resample_abs_pos_embed(pos, [h, w], [grid, grid], num_prefix_tokens=1)}
        for other in (official(module, pos, grid, h, w, True), hf(pos, grid, h, w, True)):
            assert torch.equal(other, ways["antialias"])
        for a, b in (("offset", "size"), ("size", "antialias")):
            assert (ways[a] - ways[b]).abs().max() > 1e-3, "the file couldn't tell two ways apart"
        out.update({f"{way}_{grid}_{h}x{w}": np.ascontiguousarray(y[0].detach().numpy()) for way, y in ways.items()})
        same = torch.from_numpy(np.zeros((1, 1 + grid * grid, WIDTH), np.float32)) + pos
        for y in (official(module, pos, grid, grid, grid, False), official(module, pos, grid, grid, grid, True), hf(pos, grid, grid, grid, False), hf(pos, grid, grid, grid, True),
                  resample_abs_pos_embed(pos, [grid, grid], [grid, grid], num_prefix_tokens=1)):
            assert torch.equal(y, same)
    save_file(out, "positions.safetensors")
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or "not a git checkout"
    json.dump({"command": "python positions.py DINOV2", "dinov2": commit, "python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
               "transformers": transformers.__version__, "numpy": np.__version__}, open("positions.json", "w"), indent=1)


if __name__ == "__main__":
    main()
