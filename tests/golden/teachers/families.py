"""Random-weight teachers of every family in their original implementations: the official repositories of DINOv2 and DINOv3, transformers, timm.

make_golden.py (small networks, golden files) and tests/reference/check_families.py (full-size networks, live comparison) are built on this. Nothing here imports kdcache.

The official code is read from the folders in KD_DINOV2 and KD_DINOV3 (checkouts of facebookresearch/dinov2 and dinov3).

Weights: default initialisations leave a network near the identity (LayerScale 1e-5, norms 1 and 0, biases 0), so that a mistake in almost any part would be invisible. Here every tensor
is uniform in offset +- scale with role() deciding both from its name: norms have gains 0.5..1.5 and shifts, LayerScale lies in 0.1..2, all biases and tokens are of size 1, and the third of
DINOv3's qkv.bias that must be masked holds garbage.
"""
import importlib
import math
import os
import re
import sys
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore", message="xFormers is not available")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def official(which):
    """The module hub.backbones of dinov2 or dinov3."""
    folder = os.environ.get("KD_" + which.upper())
    if not folder or not os.path.isdir(os.path.join(folder, which)):
        sys.exit("KD_%s must name a checkout of facebookresearch/%s" % (which.upper(), which))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(which + ".hub.backbones")


# ---- weights ----------------------------------------------------------------------------------------------------------

def role(name, shape):
    """(offset, scale): the tensor is uniform in offset - scale .. offset + scale. Linear layers keep the variance of what they read."""
    last = name.rsplit(".", 1)[-1]
    if re.search(r"(gamma(_[12])?|lambda1)$", name):
        return 1.0625, 0.9375                                # LayerScale: 0.125 .. 2
    if re.search(r"(norm\d?|layernorm)\.weight$", name):
        return 1.0, 0.5
    if re.search(r"(norm\d?|layernorm)\.bias$", name):
        return 0.0, 0.25
    if last == "bias" or last in ("q_bias", "v_bias"):
        return 0.0, 0.5
    if re.search(r"(pos_embed|position_embeddings)$", name):
        return 0.0, 0.75
    if re.search(r"token(s)?$", name):
        return 0.0, 1.0
    assert last == "weight" and len(shape) >= 2, name
    return 0.0, float(np.float32(math.sqrt(3 / math.prod(shape[1:]))))


def released_periods(head):
    """As the released DINOv3 files hold them: 100^(2i / (head / 2)), rounded to bfloat16."""
    i = torch.arange(head // 4, dtype=torch.float32)
    return (100.0 ** (2 * i / (head // 2))).bfloat16().float()


def bias_mask(count, kind):
    """The buffer qkv.bias_mask: "usual" masks k; "zero" is what the released distilled files hold; "nan" is how the official code registers it."""
    value = {"usual": 1.0, "zero": 0.0, "nan": math.nan}[kind]
    mask = torch.full((count,), value)
    if kind == "usual":
        mask[count // 3:2 * count // 3] = 0
    return mask


def special(name, shape, mask="usual"):
    """Tensors that aren't random: RoPE periods and bias masks. None for all others."""
    if name.endswith("rope_embed.periods"):
        return released_periods(4 * shape[0])
    if name.endswith("bias_mask"):
        return bias_mask(shape[0], mask)
    return None


def smooth_positions(shape, generator):
    """What learned positions look like: waves over the grid, plus noise."""
    n, width = shape[-2], shape[-1]
    side = math.isqrt(n)
    extra = n - side * side
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    wave = torch.rand(3, 1, 1, width, generator=generator)
    grid = torch.cos(6 * wave[0] * y[..., None] + 6 * wave[1] * x[..., None] + 6.28 * wave[2]) * 0.7
    out = torch.rand(n, width, generator=generator) * 0.5 - 0.25
    out[extra:] += grid.reshape(-1, width)
    return out.reshape(shape)


def random_state(shapes, seed, mask="usual", sharp=1.0):
    """{name: f32 tensor} for {name: shape}. sharp: queries and keys of joined qkv weights times this, so that scores have its square as deviation."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = special(name, shape, mask)
        if value is None and re.search(r"(pos_embed|position_embeddings)$", name):
            value = smooth_positions(tuple(shape), generator)
        if value is None:
            offset, scale = role(name, shape)
            value = torch.rand(tuple(shape), generator=generator).mul_(2 * scale).add_(offset - scale)
            if sharp != 1.0 and name.endswith("qkv.weight"):
                value[:2 * len(value) // 3] *= sharp
        state[name] = value
    return state


def shapes_of(state):
    return {k: tuple(v.shape) for k, v in state.items()}


# ---- the original networks --------------------------------------------------------------------------------------------

class Original:
    """A network of one of the libraries: raw output of every block and the final norm, by hooks, checked against what the library itself returns."""

    def __init__(self, module, blocks, norm, registers, pixels, final):
        self.module, self.blocks, self.norm, self.registers, self.pixels, self.final = module.eval(), blocks, norm, registers, pixels, final

    def input(self, image, dtype=torch.float32):
        """uint8 [H,W,3] as torchvision's ToTensor and Normalize make it."""
        mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in self.pixels)
        return ((torch.from_numpy(image).permute(2, 0, 1).float().div(255) - mean) / std)[None].to(dtype)

    @torch.no_grad()
    def __call__(self, image, dtype=torch.float32):
        """image: uint8 [H,W,3]. Returns [(raw, normed)] for blocks from the first to the last, each [1 + registers + patches, width] in dtype."""
        x, raw = self.input(image, dtype), []

        def keep(_, __, out):
            while not torch.is_tensor(out):
                out = out[0]
            raw.append(out[0])
        hooks = [b.register_forward_hook(keep) for b in self.blocks]
        final = self.final(self.module, x)
        for h in hooks:
            h.remove()
        normed = [self.norm(r[None])[0] for r in raw]
        assert torch.equal(final[0], normed[-1]), "the library's own output isn't the final norm of the last block"
        return list(zip(raw, normed))

    def to(self, dtype):
        self.module.to(dtype)
        rope = getattr(self.module, "rope_embed", None)
        if rope is not None and hasattr(rope, "dtype"):
            rope.dtype = dtype  # the official code keeps RoPE in this dtype whatever the network's
        return self

    def double(self):
        return self.to(torch.float64)

    def single(self):
        return self.to(torch.float32)


def official_tokens(module, x):
    out = module.forward_features(x)
    return torch.cat([out["x_norm_clstoken"][:, None], out.get("x_norm_regtokens", out.get("x_storage_tokens")), out["x_norm_patchtokens"]], 1)


def wrap_official(module, pixels=IMAGENET):
    blocks = [b for c in module.blocks for b in (c if isinstance(c, torch.nn.ModuleList) else [c]) if not isinstance(b, torch.nn.Identity)]
    return Original(module, blocks, module.norm, getattr(module, "num_register_tokens", getattr(module, "n_storage_tokens", 0)), pixels, official_tokens)


def wrap_timm(module, pixels):
    if hasattr(module, "fc_norm") and not isinstance(module.fc_norm, torch.nn.Identity):
        raise ValueError("this timm model applies its norm after pooling")
    return Original(module, list(module.blocks), module.norm, module.num_prefix_tokens - 1, pixels, lambda m, x: m.forward_features(x))


def wrap_hf(module, pixels=IMAGENET):
    body = getattr(module, "dinov2", getattr(module, "dinov2_with_registers", module))
    layers = body.encoder.layer if hasattr(body, "encoder") else body.model.layer
    norm = body.layernorm if hasattr(body, "layernorm") else body.norm
    return Original(body, list(layers), norm, getattr(body.config, "num_register_tokens", 0), pixels, lambda m, x: m(x).last_hidden_state)


def hf_files(module, folder, values, **options):
    """Writes the module as transformers writes it (names, shards, config.json), with values({name: shape}) in place of its weights, and returns what transformers loads from there."""
    import glob
    from safetensors.torch import load_file, save_file
    module.save_pretrained(folder, **options)
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
    parts = {f: shapes_of(load_file(f)) for f in files}
    state = values({k: v for f in files for k, v in parts[f].items()})
    for f in files:
        save_file({k: state[k].contiguous() for k in parts[f]}, f, metadata={"format": "pt"})
    return type(module).from_pretrained(folder)
