#!/usr/bin/env python3
"""Makes export.pth: a .pth as kd_pth_write is specified to write it (common/weights/pth.h), put together here byte by byte from the zip specification (PKWARE APPNOTE) and the pickle opcodes (pickletools), and
read back with torch.load(weights_only=True), also mapped, with zipfile and with PyTorch's own reader of records, before it is kept.

Usage: python3 make_export.py    (in this folder; needs torch, numpy; the versions are written to VERSIONS.export)
"""
import collections
import json
import platform
import struct
import zipfile
import zlib

import numpy as np
import torch

METADATA = {"image_mean": "[0.5, 0.5, 0.5]", "model": "test \u00fc", "\u00e4": "sorted by bytes"}
TENSORS = collections.OrderedDict(
    [("conv.weight", torch.tensor([[1.0, -2.5, 3.25], [0.0, 1e-8, 65504.0]])), ("bn.num_batches_tracked", torch.tensor(12345678901)), ("half", torch.tensor([1.0, -2.0, 0.5], dtype=torch.float16)),
     ("brain", torch.tensor([1.0, 3.0], dtype=torch.bfloat16)), ("double", torch.tensor([0.1], dtype=torch.float64)), ("int", torch.tensor([-3], dtype=torch.int32)),
     ("short", torch.tensor([-4, 5, 6], dtype=torch.int16)), ("char", torch.tensor([-5], dtype=torch.int8)), ("byte", torch.tensor([250, 1, 2], dtype=torch.uint8)), ("flag", torch.tensor([True, False])),
     ("none", torch.zeros(0, 3))])
STORAGE = {torch.float32: "FloatStorage", torch.float64: "DoubleStorage", torch.float16: "HalfStorage", torch.bfloat16: "BFloat16Storage", torch.int64: "LongStorage", torch.int32: "IntStorage",
           torch.int16: "ShortStorage", torch.int8: "CharStorage", torch.uint8: "ByteStorage", torch.bool: "BoolStorage"}


def text(s):
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def number(x):
    return b"J" + struct.pack("<i", x)


def numbers(xs):
    return b"(" + b"".join(map(number, xs)) + b"t"


def pickle():
    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, t) in enumerate(TENSORS.items()):
        strides = [int(np.prod([max(n, 1) for n in t.shape[d + 1:]])) for d in range(t.dim())]
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\n" + STORAGE[t.dtype].encode() + b"\n" + text(str(key)) + text("cpu") + number(t.numel()) + b"tQ"
        out += number(0) + numbers(t.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u."


def archive(entries):
    out, central = b"", b""
    for name, data in entries:
        name, start = ("archive/" + name).encode(), len(out)
        common = struct.pack("<HHHHHIII", 45, 0, 0, 0, 0x21, zlib.crc32(data), 0xFFFFFFFF, 0xFFFFFFFF)
        padding = -(start + 30 + len(name) + 20 + 4) % 64
        extra = struct.pack("<HHQQ", 1, 16, len(data), len(data)) + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        out += b"PK\3\4" + common + struct.pack("<HH", len(name), len(extra)) + name + extra
        assert len(out) % 64 == 0
        out += data
        extra = struct.pack("<HHQQQ", 1, 24, len(data), len(data), start)
        central += b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHHHII", len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + name + extra
    start, size, n = len(out), len(central), len(entries)
    out += central + b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, size, start)
    return out + b"PK\6\7" + struct.pack("<IQI", 0, start + size, 1) + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def raw(t):
    return (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes()


metadata = json.dumps(METADATA, sort_keys=True, indent=1, ensure_ascii=False).encode()
entries = [("data.pkl", pickle()), ("byteorder", b"little")] + [("data/%d" % i, raw(t)) for i, t in enumerate(TENSORS.values())] + [("version", b"3\n"), ("kdcache.json", metadata)]
open("export.pth", "wb").write(archive(entries))

for mapped in (False, True):
    got = torch.load("export.pth", weights_only=True, mmap=mapped)
    assert type(got) is collections.OrderedDict and list(got) == list(TENSORS)
    assert all(got[k].dtype == t.dtype and got[k].shape == t.shape and torch.equal(got[k], t) for k, t in TENSORS.items())
with zipfile.ZipFile("export.pth") as z:
    assert z.testzip() is None and json.loads(z.read("archive/kdcache.json")) == METADATA
assert json.loads(torch._C.PyTorchFileReader("export.pth").get_record("kdcache.json")) == METADATA
open("VERSIONS.export", "w").write("made by make_export.py with python %s, torch %s, numpy %s\n" % (platform.python_version(), torch.__version__, np.__version__))
