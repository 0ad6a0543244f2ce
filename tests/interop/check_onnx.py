"""Opens ONNX files of students with onnx and onnxruntime, and compares what they compute with kdcache and with the library that the student comes from.

    make KD_WITH_TOOLS=1                                     # build/obj/*/tests/interop/run_onnx writes the files
    python check_onnx.py [--report onnx.md] [STUDENT...]     # without names: every one of kd-train --list-students, and two of dinov2_wW_dD

For every student, with weights and pictures made of a formula:

 * onnx.checker accepts the file, shapes inferred strictly, and onnx writes the same bytes again for it;
 * its initializers are the tensors that kd-export writes as .safetensors, name by name and bit by bit, and constants under const/;
 * onnxruntime's pooled, cls and patch differ from kdcache's, and from those of torchvision, timm, ultralytics or DINOv2's code with these weights loaded strictly, by at most 1e-4 of the largest
   value (or of 1), for batches of 1, 2 and 3;
 * where the size may be any: the same of dynamic.onnx, for this size and for one that is twice as high.

Pictures are normalised as metadata_props say. Needs onnx, onnxruntime, torch, torchvision, timm, ultralytics, lightly_train (for Meta's DINOv2 code), safetensors. Exit status 1 when anything differs.
"""
import argparse
import functools
import glob
import json
import math
import os
import subprocess
import sys
import tempfile

import lightly_train
import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import timm
import torch
import torchvision
import ultralytics
from lightly_train._models.dinov2_vit.dinov2_vit_src.layers import MemEffAttention, NestedTensorBlock
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer
from safetensors import safe_open
from safetensors.numpy import load_file
from timm.models.vision_transformer import VisionTransformer

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
LIMIT = 1e-4
TAPS = ("pooled", "cls", "patch")
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # timm's ViTs by width


# ---- the libraries: module, and a function to pooled, cls, patch as ONNX has them ----


def torchvision_student(name):
    m = getattr(torchvision.models, name)()
    if name.startswith("resnet"):
        stem = torch.nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4)
        after = torch.nn.Flatten()
    else:
        stem, after = m.features, torch.nn.Sequential(m.classifier[0], torch.nn.Flatten()) if name.startswith("convnext") else torch.nn.Flatten()

    def run(x):
        fmap = stem(x)
        pooled = after(m.avgpool(fmap))
        return pooled, pooled, fmap

    return m, run


def ultralytics_student(name):
    layers = ultralytics.YOLO(name + ".yaml").model.model
    m = torch.nn.Module()
    m.model = layers[: 10 if name.startswith("yolov8") else 11]
    m.model[9].cv1.act = torch.nn.SiLU()  # recent releases leave it out of SPPF; the released weights were trained with it

    def run(x):
        for layer in m.model:
            x = layer(x)
        pooled = x.mean((2, 3))
        return pooled, pooled, x

    return m, run


def dinov2_student(state):
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    swiglu = "blocks.0.mlp.w12.weight" in state
    grid = math.isqrt(state["pos_embed"].shape[1] - 1)
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    m = DinoVisionTransformer(img_size=grid * patch, patch_size=patch, embed_dim=width, depth=depth, num_heads=width // 64, mlp_ratio=4, init_values=1.0, block_chunks=0, num_register_tokens=registers,
                              ffn_layer="swiglufused" if swiglu else "mlp", block_fn=functools.partial(NestedTensorBlock, attn_class=MemEffAttention))

    def run(x):
        out = m.forward_features(x)
        return m(x), out["x_norm_clstoken"], out["x_norm_patchtokens"]

    return m, run


def timm_student(name, state):
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    if name in timm.list_models():
        m = timm.create_model(name, num_classes=0)
    else:  # sizes that timm has no name for
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        m = VisionTransformer(img_size=224, patch_size=patch, embed_dim=width, depth=depth, num_heads=HEADS[width], num_classes=0)

    def run(x):
        tokens = m.forward_features(x)
        return m.forward_head(tokens), tokens[:, 0], tokens[:, 1:]

    return m, run


def library_student(name, library, state):
    if library == "torchvision":
        m, run = torchvision_student(name)
    elif library == "ultralytics":
        m, run = ultralytics_student(name)
    else:
        m, run = dinov2_student(state) if library == "dinov2" else timm_student(name, state)
    wanted = m.state_dict()
    missing = [k for k in wanted if k not in state and not k.startswith(("fc.", "classifier.", "head."))]
    extra = [k for k in state if k not in wanted]
    assert not missing and not extra, f"{name}: {library} lacks {extra[:3]}, the file lacks {missing[:3]}"
    m.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    return m.eval(), run


# ---- checks ----


def is_outside(t):
    return t.data_location == onnx.TensorProto.EXTERNAL


def check_file(path, state):
    """The checker, the bytes, the initializers; the metadata."""
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert model.ir_version == 8 and [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    with open(path, "rb") as f:
        assert model.SerializeToString(deterministic=True) == f.read(), f"{path}: onnx writes other bytes for this model"
    seen = 0
    for t in model.graph.initializer:
        if t.name.startswith("const/"):
            continue
        values = onnx.numpy_helper.to_array(t, os.path.dirname(path))
        assert values.dtype == state[t.name].dtype and values.shape == state[t.name].shape and np.array_equal(values, state[t.name]), f"{path}: {t.name}"
        seen += 1
    unread = [k for k in state if k not in {t.name for t in model.graph.initializer}]
    rest = [k for k in unread if not k.endswith("num_batches_tracked") and not k.startswith(("fc.", "classifier.", "mask_token"))]
    assert not rest, f"{path}: no node reads {rest[:3]}"
    return {p.key: p.value for p in model.metadata_props}, seen, len(model.graph.node), any(is_outside(t) for t in model.graph.initializer)


def worst(got, want):
    """Largest difference, of the largest value or of 1."""
    assert got.shape == want.shape, f"shapes {got.shape} and {want.shape}"
    d = np.abs(got.astype(np.float64) - want.astype(np.float64)).max() / max(1.0, float(np.abs(want).max()))
    return d if np.isfinite(d) else np.inf


def normalised(images, metadata):
    mean, std = (np.array(json.loads(metadata[k]), np.float32).reshape(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    return (images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - mean) / std


def as_onnx(patch, shape):
    """kdcache's [n,h,w,D] as a map or as tokens."""
    return patch.transpose(0, 3, 1, 2) if len(shape) == 4 else patch.reshape(patch.shape[0], -1, patch.shape[-1])


def compare(path, outputs, metadata, run):
    """The largest difference from kdcache and from the library, over all outputs and batches."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == list(TAPS)
    assert session.get_modelmeta().custom_metadata_map == metadata
    ours, theirs, values = 0.0, 0.0, 0.0
    x = normalised(outputs["images"], metadata)
    with torch.no_grad():
        library = [t.numpy() for t in run(torch.from_numpy(x))]
    for batch in (1, 2, 3):
        got = dict(zip(TAPS, session.run(list(TAPS), {"images": x[:batch]})))
        for tap, want in zip(TAPS, library):
            mine = outputs[tap][:batch]
            ours = max(ours, worst(got[tap], as_onnx(mine, got[tap].shape) if tap == "patch" else mine))
            theirs = max(theirs, worst(got[tap], want[:batch]))
            values = max(values, float(np.abs(want).max()))
    return ours, theirs, values


def check(tool, name, folder):
    size = (64, 96) if not name.startswith(("vit_", "deit_", "dinov2_")) else (224, 224) if not name.startswith("dinov2_") else (56, 56)
    subprocess.run([tool, name, str(size[0]), str(size[1]), folder], check=True)
    weights = os.path.join(folder, "weights.safetensors")
    state = load_file(weights)
    with safe_open(weights, "np") as f:
        library = f.metadata()["library"]
    module, run = library_student(name, library, state)
    fixed = os.path.join(folder, "fixed.onnx")
    metadata, tensors, nodes, outside = check_file(fixed, state)
    rows = [(f"{size[0]}x{size[1]}", *compare(fixed, load_file(os.path.join(folder, "outputs.safetensors")), metadata, run))]
    dynamic = os.path.join(folder, "dynamic.onnx")
    if os.path.exists(dynamic):
        check_file(dynamic, state)
        for what, file in (("any", "outputs"), ("any, twice as high", "taller")):
            rows.append((what, *compare(dynamic, load_file(os.path.join(folder, file + ".safetensors")), metadata, run)))
    bytes_of = sum(os.path.getsize(p) for p in glob.glob(fixed + "*"))
    return [dict(student=name, library=library, size=s, tensors=tensors, nodes=nodes, mb=bytes_of / 1e6, outside=outside, ours=o, theirs=t, values=v) for s, o, t, v in rows]


def versions():
    return ", ".join(f"{m.__name__} {m.__version__}" for m in (onnx, onnxruntime, torch, torchvision, timm, ultralytics, lightly_train))


def line(r):
    return (f"| {r['student']} | {r['library']} | {r['size']} | {r['tensors']} | {r['nodes']} | {r['mb']:.1f}{' in two files' if r['outside'] else ''} | {r['values']:.3g} | {r['ours']:.1e} | "
            f"{r['theirs']:.1e} |")


def report(rows, path):
    with open(path, "w") as f:
        f.write("# ONNX: what onnx and onnxruntime make of every student\n\n"
                "Written by `check_onnx.py` (what it checks stands at its head): " + versions() + ", one CPU thread.\n"
                "Differences are the largest over `pooled`, `cls`, `patch` and batches of 1, 2, 3, divided by the largest value where that is above 1; the limit is 1e-4.\n\n"
                "| student | library | images | parameters' tensors | nodes | MB | largest value | onnxruntime and kdcache | onnxruntime and the library |\n|---|---|---|---|---|---|---|---|---|\n")
        f.write("".join(line(r) + "\n" for r in rows))
        f.write(f"\n{len({r['student'] for r in rows})} students, {len(rows)} files and sizes, largest difference {max(max(r['ours'], r['theirs']) for r in rows):.1e}.\n")
        left = [name for name in listed() if name not in {r["student"] for r in rows}]
        if left:
            f.write(f"Not run this time: {', '.join(left)}.\n")


def listed():
    text = subprocess.run([os.path.join(TOP, "bin", "kd-train"), "--list-students"], check=True, stdout=subprocess.PIPE, text=True).stdout
    names = [row.split()[0] for row in text.splitlines()[1:] if len(row.split()) > 6 and row.split()[1] in ("torchvision", "ultralytics", "dinov2", "timm")]
    return names + ["dinov2_w64_d2", "dinov2_w192_d4"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("students", nargs="*")
    p.add_argument("--report", help="Markdown file to write")
    p.add_argument("--tool", default=next(iter(glob.glob(os.path.join(TOP, "build/obj/*/tests/interop/run_onnx"))), None), help="run_onnx")
    args = p.parse_args()
    os.environ.setdefault("KD_LIB_DIR", os.path.join(TOP, "lib"))
    torch.set_num_threads(1)
    rows, bad = [], 0
    for name in args.students or listed():
        with tempfile.TemporaryDirectory() as folder:
            new = check(args.tool, name, folder)
        rows += new
        for r in new:
            good = r["ours"] <= LIMIT and r["theirs"] <= LIMIT
            bad += not good
            print("ok    " if good else "NOT OK", line(r), flush=True)
    if args.report:
        report(rows, args.report)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
