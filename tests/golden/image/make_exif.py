#!/usr/bin/env python3
"""EXIF blocks with the orientation that Pillow finds in them, and a picture turned by Pillow: tests/golden/image/exif.txt.

    python3 tests/golden/image/make_exif.py

Lines "block ORIENTATION HEX": a TIFF block, whole, odd or damaged, as the payload of a PNG's eXIf chunk; the orientation is 1 where Pillow finds none or raises.
Lines "turned ORIENTATION WIDTH HEIGHT HEX": what ImageOps.exif_transpose makes of the picture of line "picture WIDTH HEIGHT HEX" (RGB bytes).
Made with Pillow 13.0.0 (older releases let the last of two equal tags win, and stop at data longer than the block). Never imports code of the project.
"""
import io
import os
import random
import struct
import warnings

from PIL import Image, ImageOps

warnings.simplefilter("ignore")
rng = random.Random(5)
picture = Image.frombytes("RGB", (5, 3), bytes(rng.randrange(256) for _ in range(45)))


def block(order, entries, extra=b"", magic=None, at=8):
    """entries: (tag, type, count, 4 bytes)."""
    e = "<" if order == "II" else ">"
    b = order.encode() + (magic or struct.pack(e + "H", 42)) + struct.pack(e + "L", at) + b"\0" * (at - 8) + struct.pack(e + "H", len(entries))
    return b + b"".join(struct.pack(e + "HHL", *entry[:3]) + entry[3] for entry in entries) + struct.pack(e + "L", 0) + extra


def as_png(data):
    out = io.BytesIO()
    picture.save(out, "PNG", exif=b"Exif\0\0" + data)
    return Image.open(io.BytesIO(out.getvalue()))


def orientation(data):
    im = as_png(data)
    try:
        turned = ImageOps.exif_transpose(im)
    except Exception:
        return 1
    found = [n for n in range(1, 9) if (turned.size, turned.tobytes()) == TURNED[n]]
    assert len(found) == 1
    return found[0]


TURNED = {}
for n in range(1, 9):
    t = ImageOps.exif_transpose(as_png(block("II", [(0x112, 3, 1, struct.pack("<HH", n, 0))])))
    TURNED[n] = (t.size, t.tobytes())
assert len(set(TURNED.values())) == 8

cases = []
for order, e in (("II", "<"), ("MM", ">")):
    def short(v, tag=0x112, order=e):
        return (tag, 3, 1, struct.pack(order + "HH", v, 0))
    text = (0x10F, 2, 4, b"abc\0")
    for v in list(range(12)) + [255, 65535]:
        cases += [block(order, [short(v)]), block(order, [text, short(v)])]
    v, outside = 6, struct.pack(e + "L", 26)  # 26: behind a directory of one entry
    for kind, value in ((4, struct.pack(e + "L", v)), (4, struct.pack(e + "L", 1 << 31 | v)), (6, bytes([v, 0, 0, 0])), (1, bytes([v, 0, 0, 0])), (7, bytes([v, 0, 0, 0])), (2, b"6\0\0\0"),
                        (8, struct.pack(e + "hh", v, 0)), (8, struct.pack(e + "hh", -v, 0)), (9, struct.pack(e + "l", v)), (9, struct.pack(e + "l", -v)),
                        (11, struct.pack(e + "f", v)), (11, struct.pack(e + "f", v + 0.5)), (13, struct.pack(e + "L", v)), (14, struct.pack(e + "L", v)),
                        (0, struct.pack(e + "L", v)), (17, struct.pack(e + "L", v)), (99, struct.pack(e + "L", v))):
        cases += [block(order, [(0x112, kind, 1, value)]), block(order, [(0x112, kind, 1, value), short(3)])]
    for kind, data in ((5, struct.pack(e + "LL", v, 1)), (5, struct.pack(e + "LL", 2 * v, 2)), (5, struct.pack(e + "LL", v, 0)), (5, struct.pack(e + "LL", 13, 2)),
                       (10, struct.pack(e + "ll", -v, -1)), (10, struct.pack(e + "ll", v, -1)), (12, struct.pack(e + "d", v)), (12, struct.pack(e + "d", float("nan"))), (16, struct.pack(e + "Q", v))):
        cases.append(block(order, [(0x112, kind, 1, outside)], extra=data))
    cases += [
        block(order, [(0x112, 3, 2, struct.pack(e + "HH", v, 3))]),
        block(order, [(0x112, 3, 0, struct.pack(e + "HH", v, 3))]),
        block(order, [(0x112, 3, 3, outside)], extra=struct.pack(e + "HHH", v, 3, 1)),
        block(order, [(0x112, 3, 3, struct.pack(e + "L", 27))], extra=struct.pack(e + "HHH", v, 3, 1)),
        block(order, [(0x112, 3, 0x80000001, outside)], extra=struct.pack(e + "HHH", v, 3, 1)),
        block(order, [(0x10F, 2, 20, struct.pack(e + "L", 38)), short(v)]),
        block(order, [(0x10F, 2, 2000, struct.pack(e + "L", 38)), short(v)]),
        block(order, [(0x10F, 5, 0xFFFFFFFF, struct.pack(e + "L", 38)), short(v)]),
        block(order, [short(v), short(3)]), block(order, [short(v)])[:-4], block(order, [short(v)])[:-5], block(order, [short(v)])[:-6],
        block(order, [short(v)], at=50), block(order, [short(v)], at=9), block(order, [short(v)], magic=b"\0*"), block(order, [short(v)], magic=b"*\0"),
        block(order, [short(v)], magic=b"+\0"), block(order, [short(v)], magic=b"\0+"), block(order, [short(v)], magic=b"xx"),
        b"Exif\0\0" + block(order, [short(v)]), b"\0" + block(order, [short(v)]),
    ]
cases += [b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0", b"II*\0\0\0\0\0", b"MM\0*\0\0\0\x02", b"garbage garbage"]
made = len(cases)
for _ in range(250):
    c = bytearray(rng.choice(cases[:made]))
    for _ in range(rng.randint(1, 4)):
        c[rng.randrange(len(c))] = rng.choice([0, 1, 3, 6, 8, 255, rng.randrange(256)])
    cases.append(bytes(c))

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "exif.txt"), "w") as f:
    print("picture", *picture.size, picture.tobytes().hex(), file=f)
    for n in range(1, 9):
        print("turned", n, *TURNED[n][0], TURNED[n][1].hex(), file=f)
    counts = [0] * 9
    for c in cases:
        n = orientation(c)
        counts[n] += 1
        print("block", n, c.hex(), file=f)
print(Image.__version__, len(cases), "blocks; of each orientation", counts[1:])
