"""Golden ONNX models, made with the onnx package alone, node by node from the ops of kernels/ops.h; tests/unit/test_onnx.c writes the same bytes.

    python make_onnx.py

    maps.onnx      a CNN of every op that works on maps, for any image size          maps.safetensors     what onnxruntime computes with them from the formula's pictures
    tokens.onnx    the same with a ViT behind it, registers, gated FFN: one size      tokens.safetensors   (3 of 16x16): pooled, cls, patch
    outside.onnx   two tensors in outside.onnx.data, one too small for that

Weights and pictures are those of the formula in ../models/generate.py. recipe.json records the versions.
"""
import json
import math
import os
import platform
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "models"))

import numpy as np
import onnx
import onnxruntime
from generate import pictures, value
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save_file

MEAN, STD = np.array([0.5, 0.25, 0.75], np.float32), np.array([0.5, 0.25, 0.125], np.float32)


class Graph:
    """Nodes are called NUMBER/NODE OF kdcache/OP, as their results are; constants const/THEIR NUMBERS."""

    def __init__(self):
        self.nodes, self.tensors, self.node = [], {}, ""

    def emit(self, op, *inputs, outputs=None, **attributes):
        name = f"{len(self.nodes)}/{self.node}/{op}"
        made = helper.make_node(op, list(inputs), outputs or [name], name=name)
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(made)
        return name

    def tensor(self, name, values):
        self.tensors[name] = numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def ints(self, *values):
        return self.tensor("const/" + ",".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, v):
        return self.tensor("const/f32/%.9g" % np.float32(v), np.array(v, np.float32))

    def param(self, name, *shape):
        return self.tensor(name, value(name, shape).float().numpy())

    # ---- the ops ----

    def split(self, x, axis, sizes):
        name = f"{len(self.nodes)}/{self.node}/Split"
        parts = [f"{name}.{i}" for i in range(len(sizes))]
        self.emit("Split", x, self.ints(*sizes), outputs=parts, axis=axis)
        return parts

    def reshape(self, x, *shape):
        return self.emit("Reshape", x, self.ints(*shape))

    def transpose(self, x, *perm):
        return self.emit("Transpose", x, perm=perm)

    def slice(self, x, begin, count, axis):
        return self.emit("Slice", x, self.ints(begin), self.ints(begin + count), self.ints(axis))

    def conv(self, x, node, out, inp, kernel, stride, pad, group=1, bias=True):
        self.node = node
        more = [self.param(node + ".bias", out)] if bias else []
        return self.emit("Conv", x, self.param(node + ".weight", out, inp // group, kernel, kernel), *more, group=group, kernel_shape=[kernel, kernel], pads=[pad] * 4, strides=[stride, stride])

    def batch_norm(self, x, node, c):
        self.node = node
        return self.emit("BatchNormalization", x, *[self.param(f"{node}.{p}", c) for p in ("weight", "bias", "running_mean", "running_var")], epsilon=1e-3)

    def silu(self, x):
        return self.emit("Mul", x, self.emit("Sigmoid", x))

    def gelu(self, x):
        e = self.emit("Erf", self.emit("Div", x, self.scalar(math.sqrt(2))))
        return self.emit("Mul", self.emit("Mul", x, self.emit("Add", e, self.scalar(1))), self.scalar(0.5))

    def linear(self, x, node, out, inp):
        self.node = node
        y = self.emit("MatMul", x, self.transpose(self.param(node + ".weight", out, inp), 1, 0))
        return self.emit("Add", y, self.param(node + ".bias", out))

    def layer_norm(self, x, node, d):
        self.node = node
        return self.emit("LayerNormalization", x, self.param(node + ".weight", d), self.param(node + ".bias", d), axis=-1, epsilon=1e-6)

    def attention(self, x, heads, width):
        self.node = "attention"
        dim = width // heads
        q, k, v = self.split(x, -1, (width,) * 3)
        q = self.transpose(self.reshape(q, 0, 0, heads, dim), 0, 2, 1, 3)
        q = self.emit("Mul", q, self.scalar(1 / math.sqrt(dim)))
        k = self.transpose(self.reshape(k, 0, 0, heads, dim), 0, 2, 3, 1)
        p = self.emit("Softmax", self.emit("MatMul", q, k), axis=-1)
        v = self.transpose(self.reshape(v, 0, 0, heads, dim), 0, 2, 1, 3)
        return self.reshape(self.transpose(self.emit("MatMul", p, v), 0, 2, 1, 3), 0, 0, width)

    def for_batch(self, name, shape, x):
        batch = self.emit("Shape", x, start=0, end=1)
        return self.emit("Expand", self.param(name, 1, *shape), self.emit("Concat", batch, self.ints(*shape), axis=0))


def maps(g, any_size):
    """[batch,16,4,4] of pictures [batch,3,16,16]. any_size: tokens become a map of what size it then is."""
    x = g.conv("images", "stem", 8, 3, 3, 2, 1)
    r = g.silu(g.batch_norm(x, "bn1", 8))
    y = g.batch_norm(g.conv(r, "dw", 8, 8, 3, 1, 1, group=4, bias=False), "bn2", 8)
    x = g.emit("Relu", g.emit("Add", y, r))
    g.node = "max_pool"
    x = g.emit("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    g.node = "mean_tokens"
    s = g.emit("ReduceMean", x, axes=[2, 3], keepdims=0)
    g.node = "fc1"
    s = g.conv(g.reshape(s, 0, 8, 1, 1), "fc1", 4, 8, 1, 1, 0)
    g.node = "relu"
    s = g.conv(g.emit("Relu", s), "fc2", 8, 4, 1, 1, 0)
    g.node = "hardsigmoid"
    s = g.emit("HardSigmoid", s, alpha=float(np.float32(1) / np.float32(6)), beta=0.5)
    g.node = "channel_gate"
    x = g.batch_norm(g.emit("Mul", x, s), "bn3", 8)
    x = g.emit("HardSwish", x)
    g.node = "ln"
    y = g.linear(g.layer_norm(g.transpose(x, 0, 2, 3, 1), "ln", 8), "pw", 8, 8)
    g.node = "gelu"
    y = g.gelu(y)
    g.node = "layer_scale"
    y = g.emit("Mul", g.transpose(y, 0, 3, 1, 2), g.param("layer_scale", 8, 1, 1))
    x = g.emit("Add", x, y)
    qkv = g.conv(x, "qkv", 16, 8, 1, 1, 0)
    g.node = "qkv_by_head"  # 2 heads of 4, whose keys have 2
    rows = g.transpose(g.reshape(qkv, 0, 16, -1), 0, 2, 1)
    q, k, v = g.split(g.reshape(rows, 0, 0, 2, 8), -1, (2, 2, 4))
    pads = g.ints(0, 0, 0, 0, 0, 0, 0, 2)
    q = g.emit("Mul", q, g.scalar(math.sqrt(2)))
    q = g.reshape(g.emit("Pad", q, pads), 0, 0, 8)
    k = g.reshape(g.emit("Pad", k, pads), 0, 0, 8)
    qkv_rows = g.emit("Concat", q, k, g.reshape(v, 0, 0, 8), axis=-1)
    g.node = "channel_slice"
    v = g.slice(qkv_rows, 16, 8, -1)
    a = g.attention(qkv_rows, 2, 8)

    def as_map(t):
        if not any_size:
            return g.reshape(g.transpose(t, 0, 2, 1), 0, 8, 4, 4)
        shape = g.emit("Concat", g.ints(0, 8), g.emit("Shape", qkv, start=2, end=4), axis=0)
        return g.emit("Reshape", g.transpose(t, 0, 2, 1), shape)

    g.node = "add"
    y = g.emit("Add", as_map(a), as_map(v))
    g.node = "concat"
    y = g.emit("Concat", x, y, axis=1)
    g.node = "silu"
    return g.silu(y)


def tokens(g, x):
    """(class token [batch,8], patches [batch,4,8]) of a map [batch,16,4,4]."""
    x = g.conv(x, "patch", 8, 16, 2, 2, 0)
    g.node = "tokens"
    x = g.transpose(g.reshape(x, 0, 8, -1), 0, 2, 1)
    y = g.emit("Concat", g.for_batch("cls_token", (1, 8), x), x, axis=1)
    y = g.emit("Add", y, g.param("pos_embed", 1, 5, 8))
    first, rest = g.split(y, 1, (1, 4))
    x = g.emit("Concat", first, g.for_batch("register_tokens", (2, 8), x), rest, axis=1)
    y = g.attention(g.linear(g.layer_norm(x, "norm1", 8), "attn", 24, 8), 2, 8)
    y = g.linear(y, "proj", 8, 8)
    g.node = "ls.gamma"
    x = g.emit("Add", x, g.emit("Mul", y, g.param("ls.gamma", 8)))
    y = g.linear(x, "w12", 16, 8)
    g.node = "silu_gate"
    a, b = g.split(y, -1, (8, 8))
    y = g.emit("Mul", g.silu(a), b)
    g.node = "add"
    x = g.layer_norm(g.emit("Add", x, y), "norm", 8)
    g.node = "token_slice"
    cls, patch = g.slice(x, 0, 1, 1), g.slice(x, 3, 4, 1)
    g.node = "output"
    return cls, patch


def save(name, g, sides, patch_shape, metadata):
    info = lambda what, shape: helper.make_tensor_value_info(what, TensorProto.FLOAT, ["batch"] + list(shape))
    outputs = [info("pooled", [patch_shape["D"]]), info("cls", [patch_shape["D"]]), info("patch", patch_shape["shape"])]
    graph = helper.make_graph(g.nodes, name, [info("images", [3] + sides)], outputs, [g.tensors[k] for k in sorted(g.tensors, key=str.encode)])
    model = helper.make_model(graph, producer_name="kdcache", ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    for k, v in metadata.items():
        model.metadata_props.add(key=k, value=v)
    onnx.checker.check_model(model, full_check=True)
    with open(name + ".onnx", "wb") as f:
        f.write(model.SerializeToString(deterministic=True))
    pixels = np.asarray(pictures(3, 16), np.uint8).reshape(3, 16, 16, 3)
    x = ((pixels.astype(np.float32) / np.float32(255)) - MEAN) / STD
    session = onnxruntime.InferenceSession(name + ".onnx", providers=["CPUExecutionProvider"])
    out = session.run(None, {"images": x.transpose(0, 3, 1, 2)})
    save_file(dict(zip(("pooled", "cls", "patch"), out)), name + ".safetensors")


def outputs(g, pooled, cls, patch):
    for name, v in (("pooled", pooled), ("cls", cls), ("patch", patch)):
        g.nodes.append(helper.make_node("Identity", [v], [name], name=name))


def outside():
    g = Graph()
    g.node = "sum"
    big = [("a", np.arange(300, dtype=np.float32)), ("b", np.arange(1200, dtype=np.float32) / 4)]
    data = b""
    for name, values in big:
        g.tensor(name, values)
        data += b"\0" * (-len(data) % 4096)
        raw = values.tobytes()
        set_external_data(g.tensors[name], "outside.onnx.data", len(data), len(raw))
        g.tensors[name].ClearField("raw_data")
        data += raw
    g.tensor("c", np.arange(255, dtype=np.float32))
    total = [g.emit("ReduceSum", name, keepdims=0) for name in ("a", "b", "c")]
    g.emit("Sum", *total, outputs=["total"])
    graph = helper.make_graph(g.nodes, "outside", [], [helper.make_tensor_value_info("total", TensorProto.FLOAT, [])], [g.tensors[k] for k in sorted(g.tensors)])
    model = helper.make_model(graph, producer_name="kdcache", ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    for name, content in (("outside.onnx", model.SerializeToString(deterministic=True)), ("outside.onnx.data", data)):
        with open(name, "wb") as f:
            f.write(content)
    onnx.checker.check_model("outside.onnx", full_check=True)
    got = onnxruntime.InferenceSession("outside.onnx", providers=["CPUExecutionProvider"]).run(None, {})[0]
    assert got == sum(v.sum() for _, v in big) + np.arange(255).sum()


def main():
    os.chdir(HERE)
    metadata = {"kdcache_cache": "aa", "model": "", "library": "none", "image_mean": "[0.5, 0.25, 0.75]", "image_std": "[0.5, 0.25, 0.125]", "normalisation": "RGB: (pixel / 255 - image_mean) / image_std"}
    g = Graph()
    y = maps(g, True)
    g.node = "mean_tokens"
    pooled = g.emit("ReduceMean", y, axes=[2, 3], keepdims=0)
    outputs(g, pooled, pooled, y)
    save("maps", g, ["height", "width"], {"D": 16, "shape": [16, "map_height", "map_width"]}, {**metadata, "model": "maps"})
    g = Graph()
    cls, patch = tokens(g, maps(g, False))
    cls = g.reshape(cls, 0, 8)
    outputs(g, cls, cls, patch)
    save("tokens", g, [16, 16], {"D": 8, "shape": [4, 8]}, {**metadata, "model": "tokens"})
    outside()
    with open("recipe.json", "w") as f:
        json.dump({"command": "python make_onnx.py", "python": platform.python_version(), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}, f, indent=1)


if __name__ == "__main__":
    main()
