#!/usr/bin/env python3
"""Makes cases.txt and golden.safetensors: small random teachers of every family and layout, run by their original implementations.

    KD_DINOV2=checkout KD_DINOV3=checkout make_golden.py OUT_FOLDER

Weights and pixels aren't stored: both are a formula of their name and index that C and NumPy compute to the same bits (see README.md); cases.txt lists names, shapes and ranges.
Layouts are the libraries' own: names come from what each of them saves, and each loads strictly what the formula gives.
"""
import functools
import os
import sys
import tempfile

import numpy as np
import safetensors
import timm
import torch
import transformers
from safetensors.numpy import save_file

import families as fam

WIDTH, DEPTH, PATCH_ROWS = 128, 2, 4


# ---- the formula ------------------------------------------------------------------------------------------------------

def hashed(name, count):
    """uint32 [count]: FNV-1a of the name, plus the golden ratio times the index, through the last mixing steps of MurmurHash3."""
    h = 2166136261
    for byte in name.encode():
        h = (h ^ byte) * 16777619 % 2**32
    with np.errstate(over="ignore"):
        x = np.uint32(h) + np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def formula(name, shape, offset, scale):
    """offset + scale * u with u in [-1, 1) of 24 bits; each operation rounds to float32 once."""
    u = ((hashed(name, int(np.prod(shape))) >> np.uint32(8)).astype(np.int32) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
    return (np.float32(offset) + np.float32(scale) * u).reshape(shape)


def pixels(height, width):
    """uint8 [H,W,3]: noise of half the range on slopes to the right and down."""
    noise = (hashed("pixels", height * width * 3) >> np.uint32(25)).reshape(height, width, 3)
    down, right = np.arange(height)[:, None, None] * 64 // height, np.arange(width)[None, :, None] * 64 // width
    return (noise + down + right).astype(np.uint8)


class Values:
    """Gives a network its weights and remembers how, for cases.txt."""

    def __init__(self, mask="usual"):
        self.mask, self.lines = mask, []

    def __call__(self, shapes):
        state = {}
        for name in sorted(shapes):
            shape, value = tuple(shapes[name]), fam.special(name, shapes[name], self.mask)
            words = "  tensor %s %s" % (name, ",".join(map(str, shape)))
            if name.endswith("bias_mask"):
                words += " mask " + self.mask
            elif value is not None:
                words += " values " + " ".join("%.9g" % v for v in value)
            else:
                offset, scale = fam.role(name, shape)
                words += " uniform %.9g %.9g" % (offset, scale)
                value = torch.from_numpy(formula(name, shape, offset, scale))
            state[name] = value
            self.lines.append(words)
        return state

    def into(self, module):
        module.load_state_dict(self(fam.shapes_of(module.state_dict())), strict=True)
        if self.mask == "nan":  # what the official code means before a mask is set
            for name, buffer in module.named_buffers():
                if name.endswith("bias_mask"):
                    buffer.copy_(fam.bias_mask(len(buffer), "usual"))
        return module


# ---- the networks -----------------------------------------------------------------------------------------------------

def dinov2(values, registers=0, ffn="mlp", chunks=0):
    fam.official("dinov2")
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer
    # As hub/backbones.py makes them: the networks with registers interpolate positions in another way.
    return fam.wrap_official(values.into(DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=WIDTH, depth=DEPTH, num_heads=2, init_values=1.0, ffn_layer=ffn, block_chunks=chunks, num_register_tokens=registers,
        interpolate_antialias=registers > 0, interpolate_offset=0.0 if registers else 0.1, block_fn=functools.partial(NestedTensorBlock, attn_class=MemEffAttention))))


def dinov3(values, width=WIDTH, ffn="mlp", ratio=4, **options):
    fam.official("dinov3")
    from dinov3.models.vision_transformer import DinoVisionTransformer
    return fam.wrap_official(values.into(DinoVisionTransformer(
        img_size=224, patch_size=16, pos_embed_rope_base=100, pos_embed_rope_normalize_coords="separate", pos_embed_rope_dtype="fp32", embed_dim=width, depth=DEPTH, num_heads=2,
        ffn_ratio=ratio, layerscale_init=1e-5, norm_layer="layernormbf16", ffn_layer=ffn, n_storage_tokens=4, mask_k_bias=True, **{"qkv_bias": True, **options})))


def hf(values, kind, **options):
    config = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, **options}
    with tempfile.TemporaryDirectory() as folder:
        return fam.wrap_hf(fam.hf_files(kind(kind.config_class(**config)), folder, values))


def of_timm(values, name, **options):
    config = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "dynamic_img_size": True, **options}
    module = timm.create_model(name, pretrained=False, **config)
    return fam.wrap_timm(values.into(module), (module.pretrained_cfg["mean"], module.pretrained_cfg["std"]))


SIZES = {14: [(224, 224), (84, 84), (70, 126)], 16: [(224, 224), (80, 80), (64, 112)], 8: [(224, 224), (64, 64), (40, 72)]}
V2, V2R, V3 = transformers.Dinov2Model, transformers.Dinov2WithRegistersModel, transformers.DINOv3ViTModel
GATED3 = {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 256}
# name, patch, words for the test, network
CASES = [
    ("dinov2-official", 14, "", dinov2),
    ("dinov2-official-registers", 14, "prefix=module.backbone.", functools.partial(dinov2, registers=4)),
    ("dinov2-official-swiglu", 14, "", functools.partial(dinov2, ffn="swiglufused")),
    ("dinov2-official-swiglu-registers-chunked", 14, "prefix=teacher.backbone.", functools.partial(dinov2, ffn="swiglufused", registers=4, chunks=2)),
    ("dinov2-hf", 14, "", functools.partial(hf, kind=V2, image_size=518, patch_size=14)),
    ("dinov2-hf-registers", 14, "", functools.partial(hf, kind=V2R, image_size=518, patch_size=14)),
    ("dinov2-hf-swiglu", 14, "", functools.partial(hf, kind=V2, image_size=518, patch_size=14, use_swiglu_ffn=True)),
    ("dinov2-hf-classifier-registers", 14, "", functools.partial(hf, kind=transformers.Dinov2WithRegistersForImageClassification, image_size=518, patch_size=14, num_labels=3)),
    ("dinov2-timm", 14, "", functools.partial(of_timm, name="vit_small_patch14_dinov2")),
    ("dinov2-timm-registers", 14, "", functools.partial(of_timm, name="vit_small_patch14_reg4_dinov2")),
    ("dinov2-timm-swiglu", 14, "", functools.partial(of_timm, name="vit_giant_patch14_dinov2")),
    ("dinov2-timm-swiglu-registers", 14, "", functools.partial(of_timm, name="vit_giant_patch14_reg4_dinov2")),
    ("dinov3-official", 16, "", dinov3),
    ("dinov3-official-mask-nan", 16, "", dinov3),
    ("dinov3-official-mask-zero", 16, "prefix=model.", dinov3),
    ("dinov3-official-swiglu", 16, "", functools.partial(dinov3, ffn="swiglu", ratio=6)),
    ("dinov3-official-head-128", 16, "", functools.partial(dinov3, width=256, ffn="swiglu64", ratio=3, qkv_bias=False, untie_global_and_local_cls_norm=True)),
    ("dinov3-hf", 16, "", functools.partial(hf, kind=V3, num_register_tokens=4, intermediate_size=512)),
    ("dinov3-hf-swiglu", 16, "", functools.partial(hf, kind=V3, **GATED3)),
    ("dinov3-hf-swiglu-no-bias", 16, "", functools.partial(hf, kind=V3, query_bias=False, value_bias=False, **GATED3)),
    ("dinov3-timm", 16, "", functools.partial(of_timm, name="vit_small_patch16_dinov3")),
    ("dinov3-timm-qkvb", 16, "", functools.partial(of_timm, name="vit_small_patch16_dinov3_qkvb")),
    ("dinov3-timm-swiglu", 16, "", functools.partial(of_timm, name="vit_small_plus_patch16_dinov3")),
    ("dinov3-timm-swiglu-qkvb", 16, "", functools.partial(of_timm, name="vit_small_plus_patch16_dinov3_qkvb")),
    ("timm-patch16", 16, "", functools.partial(of_timm, name="vit_tiny_patch16_224", embed_dim=192, num_heads=3, num_classes=3)),
    ("timm-patch8", 8, "normalize=imagenet", functools.partial(of_timm, name="vit_small_patch8_224", num_classes=0)),
    ("timm-patch14", 14, "", functools.partial(of_timm, name="vit_large_patch14_224", num_classes=0)),
    ("timm-deit", 16, "normalize=imagenet", functools.partial(of_timm, name="deit_tiny_patch16_224", num_classes=3)),
]
# What is kept: (size index, layer from the end, through the final norm)
KEPT = [(0, 1, 1), (1, 1, 1), (2, 1, 1), (2, 1, 0), (2, 2, 1), (2, 2, 0)]


def rows_of(tokens, registers):
    """[1 + registers + 4 + 1, width]: class token, registers, four patches (first, last, two between), mean of the patches."""
    patches = tokens[1 + registers:]
    picked = [i * (len(patches) - 1) // (PATCH_ROWS - 1) for i in range(PATCH_ROWS)]
    return torch.cat([tokens[:1 + registers], patches[picked], patches.mean(0, keepdim=True)])


def main():
    out, kept, worst = sys.argv[1], {}, 0.0
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "timm": timm.__version__, "safetensors": safetensors.__version__, "numpy": np.__version__}
    lines = ["# Made by make_golden.py; README.md explains the format. " + " ".join("%s %s" % v for v in versions.items())]
    for name, patch, words, build in CASES:
        torch.set_num_threads(1)
        values = Values(name.split("-mask-")[1] if "-mask-" in name else "usual")
        net = build(values)
        assert next(m for m in net.module.modules() if isinstance(m, torch.nn.Conv2d)).kernel_size == (patch, patch)
        lines.append(("case %s patch=%d width=%d registers=%d depth=%d %s" % (name, patch, net.norm.weight.shape[0], net.registers, len(net.blocks), words)).rstrip())
        lines += values.lines
        single = {s: net(pixels(*s)) for s in SIZES[patch]}
        net.double()
        for s in SIZES[patch]:
            exact = net(pixels(*s), torch.float64)
            for size, layer, normed in KEPT:
                if SIZES[patch][size] == s:
                    rows, truth = (rows_of(t[-layer][normed], net.registers).double() for t in (single[s], exact))
                    kept["%s/%dx%d/%d/%s" % (name, *s, layer, "norm" if normed else "raw")] = rows.float().numpy()
                    own = float((rows - truth).abs().max())
                    worst = max(worst, own)
                    print("%-42s %dx%d layer %d %s: values to %.3g, the original's own f32 error %.2g" % (name, *s, layer, "norm" if normed else "raw ", rows.abs().max(), own), flush=True)
    with open(os.path.join(out, "cases.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    save_file(kept, os.path.join(out, "golden.safetensors"), metadata={"generator": "tests/golden/teachers/make_golden.py", **versions})
    print("%d networks, %d tensors; largest f32 error of an original %.2g" % (len(CASES), len(kept), worst))


main()
