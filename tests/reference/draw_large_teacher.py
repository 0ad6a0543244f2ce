#!/usr/bin/env python3
"""A teacher of full size with random values, for measuring memory and start-up: DINOv2 ViT-g/14 with 4 registers, official names, 4.5 GB in f32.

    draw_large_teacher.py OUT.pth|OUT.safetensors [--depth 40] [--registers 4]

.pth is written by torch.save (zip, ZIP64 beyond 4 GiB, one storage per tensor), .safetensors by the safetensors library. Needs torch, safetensors and 5 GB of memory.
"""
import argparse

import torch
from safetensors.torch import save_file

WIDTH, HIDDEN, PATCH, GRID = 1536, 4096, 14, 37


def shapes(depth, registers):
    yield "cls_token", (1, 1, WIDTH)
    yield "pos_embed", (1, 1 + GRID * GRID, WIDTH)
    if registers:
        yield "register_tokens", (1, registers, WIDTH)
    yield "mask_token", (1, WIDTH)
    yield "patch_embed.proj.weight", (WIDTH, 3, PATCH, PATCH)
    yield "patch_embed.proj.bias", (WIDTH,)
    for i in range(depth):
        b = "blocks.%d." % i
        for name in ("norm1", "norm2"):
            yield b + name + ".weight", (WIDTH,)
            yield b + name + ".bias", (WIDTH,)
        for name, out, inputs in (("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH), ("mlp.w12", 2 * HIDDEN, WIDTH), ("mlp.w3", WIDTH, HIDDEN)):
            yield b + name + ".weight", (out, inputs)
            yield b + name + ".bias", (out,)
        yield b + "ls1.gamma", (WIDTH,)
        yield b + "ls2.gamma", (WIDTH,)
    yield "norm.weight", (WIDTH,)
    yield "norm.bias", (WIDTH,)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--depth", type=int, default=40)
    p.add_argument("--registers", type=int, default=4)
    a = p.parse_args()
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    state, at = {}, 0
    for name, shape in shapes(a.depth, a.registers):
        n = torch.Size(shape).numel()
        values = noise.repeat(-(-n // len(noise)))[:n].roll(at).reshape(shape)
        at += 7919  # so that no two tensors are equal
        state[name] = values + 1 if "norm" in name and name.endswith("weight") else values.clone()
    if a.out.endswith(".pth"):
        torch.save(state, a.out)
    else:
        save_file(state, a.out)
    print("%s: %d tensors, %d parameters" % (a.out, len(state), sum(t.numel() for t in state.values())))


main()
