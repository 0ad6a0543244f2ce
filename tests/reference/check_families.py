#!/usr/bin/env python3
"""Every teacher family, in every layout and container, against its original implementation: full-size networks with random weights, the same uint8 pixels, three sizes.

    KD_DINOV2=checkout KD_DINOV3=checkout check_families.py [--only WORD,WORD] [--out table.md] [--max-ram-gb 6]

The originals are the official repositories (facebookresearch/dinov2, dinov3), transformers, timm and, where it is installed, lightly-train. Each writes its own files (torch.save,
save_pretrained, safetensors) into a temporary folder; run_teacher (built by `make KD_WITH_TOOLS=1 build`) reads them through detection and computes CLS, registers and patches after the final norm.
Networks that don't fit an ordinary machine are cut to two blocks at full width (the row says so).

A row is one network, layout, container and size. Columns: largest difference to the original's f32 for CLS, registers and patches; how far the original's f32 is from the original in
double; smallest cosine over all tokens; smallest cosine in bf16; the largest resident memory of run_teacher in f32, with the bytes that hold the model and all other planned ones.
Fails above 1e-4 or below 0.999999 (bf16 0.999). A second container of the same weights must give the same bits, and has one row for all sizes.
"""
import argparse
import collections
import functools
import gc
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "golden", "teachers"))

import numpy as np
import timm
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import families as fam

LIMIT_DIFFERENCE, LIMIT_COSINE, LIMIT_BF16 = 1e-4, 0.999999, 0.999
SAT = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))


# ---- networks: each gives (Original, state as the library names it) ---------------------------------------------------------

def fit(module, values):
    """Gives a module that was built without memory its weights."""
    state = values(fam.shapes_of(module.state_dict()))
    module.load_state_dict(state, strict=True, assign=True)
    return state


def official(values, which, name, depth=None, pixels=fam.IMAGENET, **options):
    with torch.device("meta"):
        module = getattr(fam.official(which), name)(pretrained=False, **options)
    if depth:
        module.blocks = module.blocks[:depth]
        module.n_blocks = depth
    state = fit(module, values)
    for part in module.modules():  # the meaning of masks that aren't set; the state keeps its NaNs
        if hasattr(part, "bias_mask") and bool(torch.isnan(part.bias_mask).any()):
            part.bias_mask = fam.bias_mask(len(part.bias_mask), "usual")
    return fam.wrap_official(module, pixels), state


def of_timm(values, name, **options):
    module = timm.create_model(name, pretrained=False, dynamic_img_size=True, **options)
    state = fit(module, values)
    return fam.wrap_timm(module, (module.pretrained_cfg["mean"], module.pretrained_cfg["std"])), state


def hf(values, kind, folder, config, **options):
    module = fam.hf_files(kind(kind.config_class(**config)), folder, values, **options)
    state = {}
    for f in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with safe_open(f, "pt") as g:
            state.update((k, g.get_tensor(k)) for k in g.keys())
    return fam.wrap_hf(module), state


# ---- containers: each writes `state` into a new folder and returns the path to give to --weights -----------------------------

def file_in(folder, name):
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def pth(state, folder, wrap=lambda s: s, **options):
    path = file_in(folder, "weights.pth")
    torch.save(wrap(collections.OrderedDict(state)), path, **options)
    return path


def safetensors_file(state, folder):
    path = file_in(folder, "weights.safetensors")
    save_file(state, path, metadata={"format": "pt"})
    return path


def shards(state, folder, count=3):
    """As transformers and huggingface_hub name them."""
    names, index = list(state), {}
    for i in range(count):
        shard = "model-%05d-of-%05d.safetensors" % (i + 1, count)
        part = {n: state[n] for n in names[i * len(names) // count:(i + 1) * len(names) // count]}
        save_file(part, file_in(folder, shard), metadata={"format": "pt"})
        index.update((n, shard) for n in part)
    total = sum(t.numel() * t.element_size() for t in state.values())
    with open(file_in(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)
    return folder


def bin_folder(state, folder):
    torch.save(state, file_in(folder, "pytorch_model.bin"))
    return folder


def prefixed(text, state):
    return collections.OrderedDict((text + k, v) for k, v in state.items())


def heads():
    return {"dino_head.mlp.0.weight": torch.zeros(8, 4), "dino_head.mlp.0.bias": torch.zeros(8), "dino_head.last_layer.weight_g": torch.ones(8, 1), "ibot_head.mlp.0.weight": torch.zeros(8, 4)}


def dinov2_training(state):
    """eval/.../teacher_checkpoint.pth of dinov2/train/train.py."""
    return {"teacher": {**prefixed("backbone.", state), **heads()}}


def dino_checkpoint(state):
    """checkpoint.pth of DINO: a student that isn't the teacher, an optimizer, arguments."""
    wrong = collections.OrderedDict(("module.backbone." + k, torch.ones_like(v)) for k, v in state.items())
    return {"student": wrong, "teacher": prefixed("backbone.", state), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}, "epoch": 7,
            "args": argparse.Namespace(arch="vit_small", lr=np.float64(1e-4)), "loss": {"center": torch.zeros(1, 8)}}


def chunked(state, depth, chunks=4):
    """Names of a training run with block_chunks: blocks.CHUNK.BLOCK."""
    out, size = collections.OrderedDict(), depth // chunks
    for k, v in state.items():
        words = k.split(".")
        if words[0] == "blocks":
            words.insert(1, str(int(words[1]) // size))
        out[".".join(words)] = v
    return {"teacher": prefixed("backbone.", out)}


def strided(state):
    """All tensors are views of one storage; square matrices lie transposed in it."""
    flat, at = torch.empty(sum(t.numel() for t in state.values())), 0
    out = collections.OrderedDict()
    for k, t in state.items():
        view = flat[at:at + t.numel()].view(t.shape)
        if t.dim() == 2 and t.shape[0] == t.shape[1]:
            view = view.t()
        out[k] = view.copy_(t)
        at += t.numel()
    return out


def timm_folder(state, folder, config):
    """What timm's push_to_hf_hub puts beside the weights."""
    save_file(state, file_in(folder, "model.safetensors"), metadata={"format": "pt"})
    with open(file_in(folder, "config.json"), "w") as f:
        json.dump(config, f)
    return folder


# ---- our side ----------------------------------------------------------------------------------------------------------------

class Ours:
    def __init__(self, program, work, threads):
        self.program, self.work, self.threads = program, work, threads

    def __call__(self, weights, pixels_file, precision, words):
        """(arrays by "HxW/name", facts)."""
        out = os.path.join(self.work, "out.safetensors")
        command = [self.program, "weights=" + weights, "pixels=" + pixels_file, "out=" + out, "precision=" + precision, "threads=%d" % self.threads] + words
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise RuntimeError("status %d: %s" % (done.returncode, done.stderr.decode(errors="replace").strip()))
        with safe_open(out, "np") as f:
            arrays = {k: f.get_tensor(k) for k in f.keys()}
        os.unlink(out)
        return arrays, json.loads(done.stdout)


def tokens(arrays, size, layer):
    """[1 + R + patches, D] of one size, and how many registers."""
    key = "%dx%d/" % size
    cls, patch = arrays[key + "cls.%d" % layer], arrays[key + "patch.%d" % layer]
    registers = arrays.get(key + "registers.%d" % layer, np.zeros((0, cls.shape[-1]), np.float32))
    return np.concatenate([cls.reshape(1, -1), registers, patch.reshape(-1, cls.shape[-1])]).astype(np.float64), len(registers)


def worst(a):
    return float(a.max()) if a.size else 0.0


def memory(facts):
    mib = [facts[k] / 2**20 for k in ("peak_rss", "model", "planned")]
    return "%.0f (%.0f + %.0f)" % (mib[0], mib[1], mib[2] - mib[1])


def smallest_cosine(a, b):
    return float(((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).min())


# ---- the comparison -----------------------------------------------------------------------------------------------------------

class Table:
    """The rows as they come, and the summary: a line per network and layout."""
    HEAD = ["network", "layout", "container", "size", "CLS", "registers", "patches", "original's own f32", "cosine", "bf16 cosine", "peak MiB (model + rest)"]

    def __init__(self, out):
        self.count, self.failed, self.out, self.groups = 0, 0, out, {}
        self.line(self.HEAD)
        self.line(["---"] * len(self.HEAD))

    def line(self, cells):
        text = "| " + " | ".join(str(c) for c in cells) + " |"
        print(text, flush=True)
        if self.out:
            with open(self.out, "a") as f:
                f.write(text + "\n")

    def row(self, good, network, layout, container, size, facts=None, measured=None, note=""):
        """measured: CLS, registers (None without), patches, own, cosine, bf16 cosine (None when it wasn't run)."""
        self.count += 1
        self.failed += not good
        cells = shown(measured) if measured else [note] + [""] * 5
        self.line([network, layout, container, size] + cells + [memory(facts) if facts else ""] + ([] if good else ["**outside the limits**"]))
        g = self.groups.setdefault((network, layout), {"containers": {}, "sizes": [], "measured": [], "facts": [], "good": True})
        g["containers"][container] = g["containers"].get(container, True) and good
        g["good"] &= good
        if facts:
            g["facts"].append(facts)
        if measured:
            g["sizes"] += [size] if size not in g["sizes"] else []
            g["measured"].append(measured)

    def summary(self, path):
        with open(path, "w") as f:
            f.write("| network | layout | containers | sizes | CLS | registers | patches | original's own f32 | cosine | bf16 cosine | peak MiB (model + rest) |\n" + "|---" * 11 + "|\n")
            for (network, layout), g in self.groups.items():
                m = [[v for v in column if v is not None] for column in zip(*g["measured"])] if g["measured"] else [[]] * 6
                worst_of = [max(c) if c else None for c in m[:4]] + [min(c) if c else None for c in m[4:]]
                containers = "; ".join(c if ok else "**%s: outside the limits**" % c for c, ok in g["containers"].items())
                peak = max(g["facts"], key=lambda v: v["peak_rss"]) if g["facts"] else None
                f.write("| " + " | ".join([network, layout, containers, ", ".join(g["sizes"])] + shown(worst_of) + [memory(peak) if peak else ""]) + " |\n")


def shown(measured):
    cls, registers, patches, own, cosine, low = measured
    number = lambda v, none: none if v is None else "%.1e" % v
    return [number(cls, ""), number(registers, "" if cls is None else "none"), number(patches, ""), number(own, ""), "" if cosine is None else "1 - %.0e" % max(0, 1 - cosine), "" if low is None else "%.6f" % low]


def picture(height, width, seed):
    """uint8: waves of several lengths, an edge and noise, so that patches differ from each other."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        for length in (9, 31, 97, 300):
            a, b = g.uniform(0, 6.28, 2)
            out[..., c] += np.sin((np.cos(a) * x + np.sin(a) * y) * 6.28 / length + b)
    out += 2 * (x * 0.7 + y > g.uniform(0.4, 1.2) * height)[..., None] + g.normal(0, 0.5, out.shape)
    return np.clip(128 + 34 * out, 0, 255).astype(np.uint8)


class Check:
    def __init__(self, ours, table, work, bf16):
        self.ours, self.table, self.work, self.bf16 = ours, table, work, bf16

    def network(self, label, layout, original, sizes, containers, words=(), double=True):
        """containers: [(text, function of a folder that writes the file and returns its path, words)]."""
        double &= CUT is not None
        depth = len(original.blocks)
        layers = [1, min(2, depth)]
        images = {s: picture(*s, seed=s[0] * 1000 + s[1]) for s in sizes}
        pixels = os.path.join(self.work, "pixels.safetensors")
        save_file({"%dx%d" % s: torch.from_numpy(v).float() for s, v in images.items()}, pixels)
        single = {s: original(v) for s, v in images.items()}
        want = {s: {k: single[s][-k][1].numpy().astype(np.float64) for k in layers} for s in sizes}
        del single
        own = {s: None for s in sizes}
        if double:
            original.double()
            for s, v in images.items():
                exact = original(v, torch.float64)
                own[s] = max(worst(np.abs(want[s][k] - exact[-k][1].numpy())) for k in layers)
                del exact
            original.single()
        gc.collect()
        first = None
        for text, write, more in containers:
            folder = os.path.join(self.work, "weights")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                path = write(folder)
                arrays, facts = self.ours(path, pixels, "f32", ["layers=%s" % ",".join(map(str, sorted(set(layers))))] + list(words) + more)
                half = self.ours(path, pixels, "bf16", ["layers=1"] + list(words) + more)[0] if self.bf16 and first is None else None
            except RuntimeError as e:
                self.table.row(False, label, layout, text, "", note=str(e).replace("|", "/").replace("\n", " "))
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if first is not None and all(np.array_equal(arrays[k], first[k]) for k in first):
                self.table.row(True, label, layout, text, "all %d" % len(sizes), facts, note="the same bits")
                continue
            for s in sizes:
                self.compare(label, layout, text, s, layers, arrays, half, want[s], own[s], facts)
            if first is None:
                first = arrays
            else:
                self.table.row(False, label, layout, text, "all %d" % len(sizes), facts, note="other bits than the first container")

    def joined(self, label, original, size, write):
        """The target of LightlyTrain's distillationv2: get_intermediate_layers of the last two blocks, joined along the channels."""
        image, folder, pixels = picture(*size, seed=7), os.path.join(self.work, "weights"), os.path.join(self.work, "pixels.safetensors")
        save_file({"%dx%d" % size: torch.from_numpy(image).float()}, pixels)
        with torch.no_grad():
            want = torch.cat(original.module.get_intermediate_layers(original.input(image), n=2), dim=-1)[0].numpy().astype(np.float64)
        arrays, facts = self.ours(write(folder), pixels, "f32", ["layers=1,2", "concat=1"])
        shutil.rmtree(folder, ignore_errors=True)
        got = arrays["%dx%d/patch.1" % size].reshape(want.shape).astype(np.float64)
        d, cosine = worst(np.abs(got - want)), smallest_cosine(got, want)
        self.table.row(d <= LIMIT_DIFFERENCE and cosine >= LIMIT_COSINE, label + ", last two blocks joined", "LightlyTrain", "exported, model", "%dx%d" % size, facts, [None, None, d, None, cosine, None])

    def compare(self, label, layout, text, size, layers, arrays, half, want, own, facts):
        differences, cosine = np.zeros(3), 1.0
        for k in layers:
            got, registers = tokens(arrays, size, k)
            if got.shape != want[k].shape:
                self.table.row(False, label, layout, text, "%dx%d" % size, facts, note="shape %s instead of %s" % (got.shape, want[k].shape))
                return
            d = np.abs(got - want[k])
            differences = np.maximum(differences, [worst(d[:1]), worst(d[1:1 + registers]), worst(d[1 + registers:])])
            cosine = min(cosine, smallest_cosine(got, want[k]))
        low = None if half is None else smallest_cosine(tokens(half, size, 1)[0], want[1])
        # NaN must never pass.
        good = bool((differences <= LIMIT_DIFFERENCE).all()) and cosine >= LIMIT_COSINE and (low is None or low >= LIMIT_BF16)
        self.table.row(good, label, layout, text, "%dx%d" % size, facts, [differences[0], differences[1] if registers else None, differences[2], own, cosine, low])


# ---- the list -------------------------------------------------------------------------------------------------------------------

# DINOv2's own grid is that of 518 pixels; 574 has more positions than the file.
P14, P14_NATIVE = [(224, 224), (280, 280), (154, 238)], [(224, 224), (518, 518), (154, 574)]
P16, P8 = [(224, 224), (320, 320), (160, 240)], [(224, 224), (160, 160), (96, 136)]
CUT = None if "--full" in sys.argv else 2  # blocks that large networks keep; read before the options because the lists below use it


def seed_of(text):
    h = 0
    for c in text.encode():
        h = (h * 31 + c) % 2**31
    return h


def values_for(text, mask="usual"):
    return lambda shapes: fam.random_state(shapes, seed_of(text), mask, 2.0 if "sharp" in text else 1.0)


def zip_and(*more):
    """Containers of an official network: the released kind first."""
    return lambda state: [(".pth", functools.partial(pth, state), [])] + [m(state) for m in more]


def as_legacy(state):
    return (".pth, legacy", functools.partial(pth, state, _use_new_zipfile_serialization=False), [])


def as_safetensors(state):
    return (".safetensors", functools.partial(safetensors_file, state), [])


def as_wrapped(text, wrap, words=()):
    return lambda state: (text, functools.partial(pth, state, wrap=wrap), list(words))


def in_two(text, write):
    return lambda state: (text, functools.partial(write, state), [])


NESTED = [
    as_wrapped("{teacher: backbone., heads}", dinov2_training),
    as_wrapped("{student, teacher, optimizer, args}", dino_checkpoint),
    as_wrapped("{model: module.}", lambda s: {"model": prefixed("module.", s)}),
    as_wrapped("{state_dict: _orig_mod.}", lambda s: {"state_dict": prefixed("_orig_mod.", s)}),
    as_wrapped("{state_dict: module._orig_mod.backbone.}", lambda s: {"state_dict": prefixed("module._orig_mod.backbone.", s)}),
    as_wrapped("chunked blocks", lambda s: chunked(s, 12)),
    as_wrapped("one storage, strided", strided),
    as_wrapped("parameters and metadata", lambda s: collections.OrderedDict((k, torch.nn.Parameter(v)) for k, v in s.items())),
]


def official_cases():
    """(label, sizes, network with values and the state, containers, words)."""
    for reg in ("", "_reg"):
        for size, depth in (("s", None), ("b", None), ("l", None), ("g", CUT)):
            name = "dinov2_vit%s14%s" % (size, reg)
            more = {"s": [as_legacy, as_safetensors] + (NESTED if not reg else []), "b": [as_legacy]}.get(size, [])
            yield name, P14_NATIVE if size == "s" else P14, functools.partial(official, which="dinov2", name=name, depth=depth), zip_and(*more), [], "usual"
    for name, depth in (("vits16", None), ("vits16plus", None), ("vitb16", None), ("vitl16", None), ("vitl16plus", CUT), ("vith16plus", CUT), ("vit7b16", CUT)):
        more = [as_legacy, as_safetensors] + NESTED if name == "vits16" else []
        yield "dinov3_" + name, P16, functools.partial(official, which="dinov3", name="dinov3_" + name, depth=depth), zip_and(*more), [], "usual"
    for name, which, sizes in (("dinov2_vits14", "dinov2", P14), ("dinov3_vits16", "dinov3", P16)):
        yield name + ", sharp attention", sizes, functools.partial(official, which=which, name=name), zip_and(), [], "usual"
    for mask in ("zero", "nan"):
        yield "dinov3_vits16, bias mask " + mask, P16, functools.partial(official, which="dinov3", name="dinov3_vits16"), zip_and(), [], mask
    yield ("dinov3_vitl16 SAT", P16, functools.partial(official, which="dinov3", name="dinov3_vitl16", depth=CUT, pixels=SAT, weights=fam.official("dinov3").Weights.SAT493M), zip_and(),
           ["normalize=dinov3-sat"], "usual")


def run_official(check, wanted):
    for label, sizes, build, containers, words, mask in official_cases():
        if wanted(label + " official"):
            original, state = build(values_for(label, mask))
            check.network(label + cut_text(original, label), "official", original, sizes, containers(state), words)
    for dtype, name in ((torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")):
        for label, sizes in (("dinov2_vits14", P14), ("dinov3_vits16", P16)):
            if wanted("%s official %s" % (label, name)):
                def values(shapes):
                    state = values_for(label)(shapes)
                    if dtype == torch.float64:  # digits below f32's, which rounding to f32 must drop as torch does
                        generator = torch.Generator().manual_seed(1)
                        stored.update((k, v.double() * (1 + 1e-9 * torch.rand(v.shape, generator=generator, dtype=torch.float64)) if v.numel() > 16 else v.double()) for k, v in state.items())
                    else:
                        stored.update((k, v.to(dtype)) for k, v in state.items())
                    return {k: v.float() for k, v in stored.items()}
                stored = {}
                original, _ = official(values, label[:6], label)
                check.network(label, "official", original, sizes[:1] + sizes[2:], [(".pth, " + name, functools.partial(pth, stored), []), (".safetensors, " + name, functools.partial(safetensors_file, stored), [])])


def cut_text(original, label):
    full = {"dinov2_vitg": 40, "dinov2_vitl": 24, "dinov3_vitl": 24, "dinov3_vith": 32, "dinov3_vit7": 40}.get(label[:11], 12)
    return "" if len(original.blocks) == full else ", %d of %d blocks" % (len(original.blocks), full)


HF2 = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, CUT or 40, 24)}
HF3 = {"s": (384, 12, 6, 1536, False), "splus": (384, 12, 6, 1536, True), "b": (768, 12, 12, 3072, False), "l": (1024, 24, 16, 4096, False), "lplus": (1024, CUT or 24, 16, 4096, True),
       "hplus": (1280, CUT or 32, 20, 5120, True), "7b": (4096, CUT or 40, 32, 8192, True)}


def run_hf(check, wanted, work):
    t = transformers
    for size, (width, depth, heads_, ) in HF2.items():
        for reg, kind, head in (("", t.Dinov2Model, t.Dinov2ForImageClassification), ("_reg", t.Dinov2WithRegistersModel, t.Dinov2WithRegistersForImageClassification)):
            label = "dinov2_vit%s14%s" % (size, reg)
            config = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads_, image_size=518, patch_size=14, use_swiglu_ffn=size == "g")
            if wanted(label + " hf"):
                hf_case(check, work, label, kind, config, P14_NATIVE if size == "s" else P14, more=size == "s")
            if size == "s" and wanted(label + " hf classifier"):
                hf_case(check, work, label, head, dict(config, num_labels=10), P14, text=head.__name__)
    for size, (width, depth, heads_, hidden, gated) in HF3.items():
        label = "dinov3_vit%s16%s" % (size.replace("plus", ""), "plus" if "plus" in size else "")
        config = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads_, intermediate_size=hidden, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu", num_register_tokens=4,
                      query_bias=size != "7b", value_bias=size != "7b")
        if wanted(label + " hf"):
            hf_case(check, work, label, t.DINOv3ViTModel, config, P16, more=size == "s")


def hf_case(check, work, label, kind, config, sizes, more=False, text="save_pretrained"):
    folder = os.path.join(work, "hf")
    original, state = hf(values_for(label + kind.__name__), kind, folder, config)
    kept = dict(state)
    config_json = os.path.join(folder, "config.json")
    with open(config_json) as f:
        beside = f.read()

    def with_config(write):
        def run(where):
            path = write(kept, where)
            with open(file_in(where, "config.json"), "w") as f:
                f.write(beside)
            return path
        return run

    def sharded(where):
        fresh = kind(kind.config_class(**config))
        fam.hf_files(fresh, where, lambda shapes: kept, max_shard_size="20MB")
        return where

    def single(where):
        save_file(kept, file_in(where, "model.safetensors"), metadata={"format": "pt"})
        return where
    shutil.rmtree(folder, ignore_errors=True)
    containers = [(text + ", folder", with_config(lambda s, where: single(where)), [])]
    if more:
        containers += [(text + ", shards", sharded, []), ("3 shards, index file", with_config(lambda s, where: os.path.join(shards(s, where), "model.safetensors.index.json")), []),
                       ("pytorch_model.bin, folder", with_config(bin_folder), []), (".safetensors alone", functools.partial(safetensors_file, kept), []),
                       ("prefix model.", lambda where: safetensors_file(dict(prefixed("model.", kept)), where), [])]
    check.network(label + cut_text(original, label), "HF", original, sizes, containers)


def run_timm(check, wanted):
    names = []
    for size, depth in (("small", None), ("base", None), ("large", None), ("giant", CUT)):
        names += [("vit_%s_patch14%s_dinov2" % (size, r), P14_NATIVE if size == "small" else P14, dict(depth=depth, img_size=518)) for r in ("", "_reg4")]
    for size, depth in (("small", None), ("small_plus", None), ("base", None), ("large", None), ("huge_plus", CUT)):
        names += [("vit_%s_patch16_dinov3%s" % (size, q), P16, dict(depth=depth)) for q in ("", "_qkvb")]
    names += [("vit_7b_patch16_dinov3", P16, dict(depth=CUT))]
    names += [("vit_tiny_patch16_dinov3_qkvb", P16, {})]
    plain = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224", "large": "vit_large_patch16_224"}
    sizes = {8: P8, 14: P14, 16: P16}
    for size, name in plain.items():
        for patch in (8, 14, 16):
            names.append((name.replace("16", str(patch), 1), sizes[patch], dict(base=name, patch_size=patch, depth=CUT if size == "large" and patch == 8 else None)))
    names += [("deit_%s_patch16_224" % s, P16, {}) for s in ("tiny", "small", "base")]
    names += [("deit3_small_patch16_224", P16, {})]
    for name, at, options in names:
        if not wanted(name + " timm"):
            continue
        options = {k: v for k, v in options.items() if v is not None}
        # timm has no function for some patch sizes; the same class is made from the sixteen's.
        original, state = of_timm(values_for(name), options.pop("base", name), **options)
        config = {"architecture": name, "num_classes": original.module.num_classes, "pretrained_cfg": {"mean": original.pixels[0], "std": original.pixels[1], "input_size": [3, 224, 224]}}
        containers = [("folder", functools.partial(timm_folder, state, config=config), [])]
        # A plain ViT without config.json is taken for one of timm's own trainings; DeiT and DINO (patch 8) used ImageNet's mean.
        known = ["normalize=imagenet"] if "dino" not in name and original.pixels == fam.IMAGENET else []
        if "small" in name or "tiny" in name:
            containers += [(".safetensors alone", functools.partial(safetensors_file, state), known), (".pth", functools.partial(pth, state), known)]
        text = ", %d blocks" % options["depth"] if "depth" in options else ""
        check.network(name + text, "timm", original, at, containers)


def run_lightly(check, wanted, work):
    """What LightlyTrain exports for a ViT (the network alone, its wrapper, the embedding model), with its own classes as the original."""
    try:
        from lightly_train._commands.common_helpers import ModelFormat, export_model
        from lightly_train._models import package_helpers
        from lightly_train._models.embedding_model import EmbeddingModel
    except ImportError as e:
        print("lightly-train isn't here (%s)" % e)
        return
    from pathlib import Path
    for name, sizes in (("dinov2/vits14", P14), ("dinov2/vits14-noreg", P14), ("dinov3/vits16", P16), ("dinov3/vits16plus", P16), ("dinov3/vitt16", P16)):
        if not wanted(name + " lightly"):
            continue
        wrapped = package_helpers.get_wrapped_model(name, num_input_channels=3, load_weights=False)
        module = wrapped.get_model()
        module.load_state_dict(values_for(name)(fam.shapes_of(module.state_dict())), strict=True)
        kinds = [("exported, model", module), ("exported, wrapped model", wrapped), ("exported, embedding model", EmbeddingModel(wrapped))]

        def write(where, which):
            path = Path(file_in(where, "exported_last.pt"))
            export_model(which, ModelFormat.TORCH_STATE_DICT, path)
            return str(path)
        check.joined(name, fam.wrap_official(module), sizes[0], lambda where: write(where, module))
        check.network(name, "LightlyTrain", fam.wrap_official(module), sizes, [(text, functools.partial(write, which=which), []) for text, which in kinds])


def find_program():
    found = sorted(glob.glob(os.path.join(TOP, "build", "obj", "release-*", "tests", "reference", "run_teacher")), key=os.path.getmtime)
    return found[-1] if found else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", default=find_program(), help="run_teacher; default: the newest in build/")
    p.add_argument("--only", default="", help="words; a row whose network or layout contains one of them is run")
    p.add_argument("--skip", default="", help="words, of what isn't run")
    p.add_argument("--layouts", default="official,hf,timm,lightly")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--no-bf16", action="store_true")
    p.add_argument("--full", action="store_true", help="large networks with all their blocks, without the run in double: up to twice the file's size of memory (ViT-g 9 GB, 7B 54 GB)")
    p.add_argument("--out", help="file that the table is appended to")
    p.add_argument("--summary", help="file for a table with a line per network and layout")
    p.add_argument("--work", help="folder for the temporary files (up to 1.5 GB at a time)")
    a = p.parse_args()
    if not a.program:
        sys.exit("run_teacher is not built: make KD_WITH_TOOLS=1 build")
    torch.set_num_threads(a.threads)
    only, skip = a.only.split(",") if a.only else [], a.skip.split(",") if a.skip else []

    def wanted(label):
        return (not only or any(w in label for w in only)) and not any(w in label for w in skip)
    work = tempfile.mkdtemp(prefix="kd-families.", dir=a.work)
    began = time.time()
    print("torch %s, transformers %s, timm %s" % (torch.__version__, transformers.__version__, timm.__version__))
    try:
        check = Check(Ours(a.program, work, a.threads), Table(a.out), work, not a.no_bf16)
        for layout, run in (("official", run_official), ("hf", functools.partial(run_hf, work=work)), ("timm", run_timm), ("lightly", functools.partial(run_lightly, work=work))):
            if layout in a.layouts.split(","):
                run(check, wanted)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if a.summary:
        check.table.summary(a.summary)
    print("%d rows, %d outside the limits, %.0f s" % (check.table.count, check.table.failed, time.time() - began))
    sys.exit(1 if check.table.failed or not check.table.count else 0)


main()
