#!/usr/bin/env python3
"""Views against Pillow and torchvision: every preset, byte for byte, from the recorded plans alone.

    check_views.py --images DIR [--bin bin] [--photos 250] [--views 10] [--augment NAME|FILE.yaml ...] [--image-size 224] [--sheet DIR]

For each augmentation a cache of class tokens is made with the tiny network of the golden files. Then `kd-cache list --json` gives the plans, Pillow and torchvision rebuild every
view from its image file and its plan (a mixed view from its partner's plan too), and the result is compared with the bytes that `kd-cache view --all` writes and with the recorded
hash. A blur is rebuilt twice: in integers from the recorded weights (equal bytes are demanded) and by torchvision's own gaussian_blur, which sums in float32 (at most 1 away is
demanded, before the view is solarized; the share is printed). --sheet keeps a contact sheet of 8 x 8 views of each augmentation there. Needs numpy, Pillow, torchvision and xxhash; ends with status 1 when
anything differs. Never imports code of the project.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "golden", "image"))

import numpy as np
import PIL
import torch
import torchvision
import xxhash
from PIL import Image, features
from pillow_views import apply_plan, blur_torchvision, mix_plan, view_hash

AUGMENT = os.path.join(HERE, "augment")
PRESETS = ["lightly", "lightly+mixup", "dino", "dino-1", "crop-flip", "eval"]
TEACHER = os.path.join(TOP, "tests", "golden", "models", "tiny_dinov2.pth")


def run(args, program, *words):
    command = [os.path.join(args.bin, program)] + [str(w) for w in words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit("%s\nended with status %d: %s" % (" ".join(command), done.returncode, done.stderr.decode(errors="replace")))
    return done.stdout.decode()


def some_photos(args, work):
    """A list of files spread over the folder; a cache has one record of a file that is there twice."""
    names = {}
    for folder, _, files in os.walk(args.images):
        for f in sorted(files):
            if f.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                path = os.path.join(folder, f)
                with open(path, "rb") as g:
                    names.setdefault(xxhash.xxh3_128_digest(g.read()), path)
    found = sorted(names.values())
    if len(found) < args.photos:
        sys.exit("%s holds %d different images; --photos %d are needed" % (args.images, len(found), args.photos))
    chosen = os.path.join(work, "photos.txt")
    with open(chosen, "w") as f:
        f.writelines(os.path.abspath(found[i * len(found) // args.photos]) + "\n" for i in range(args.photos))
    return chosen


class Rebuilt:
    """Views of a cache as Pillow and torchvision make them from the lines of `kd-cache list --json`."""

    def __init__(self, lines):
        self.plan = {(x["id"], x["view"]): x["plan"] for x in lines}
        self.path = {x["id"]: x["path"] for x in lines}
        self.kept, self.decoded = {}, (None, None)

    def image(self, image_id):
        if self.decoded[0] != image_id:
            self.decoded = image_id, Image.open(self.path[image_id]).convert("RGB")
        return self.decoded[1]

    def unmixed(self, image_id, view, plan):
        key = image_id, view
        if key not in self.kept:
            self.kept[key] = apply_plan(self.image(image_id), plan)
        return self.kept[key]

    def view(self, x):
        """As recorded, to the byte."""
        out = self.unmixed(x["id"], x["view"], x["plan"])
        mix = x["plan"]["mix"]
        if mix["lambda"] != 1:
            own = dict(self.plan[mix["partner"], mix["view"]], mix=mix["plan"]["mix"])
            if own != mix["plan"] or mix["partner"] == x["id"]:
                sys.exit("view %d of %s is mixed with a view that its partner %s doesn't have" % (x["view"], x["id"], mix["partner"]))
            return mix_plan(out, self.unmixed(mix["partner"], mix["view"], mix["plan"]), mix)
        del self.kept[x["id"], x["view"]]  # no other view asks for it
        return out

    def away_from_torchvisions_blur(self, x, ours):
        """Per byte. Of a solarized view before that step, which turns 1 of difference at its threshold into any; ours is then what was rebuilt to the byte."""
        plan = dict(x["plan"], solarize=256)
        if x["plan"]["solarize"] != 256:
            ours = np.asarray(apply_plan(self.image(x["id"]), plan))
        return np.abs(ours.astype(np.int16) - np.asarray(apply_plan(self.image(x["id"]), plan, blur_torchvision)))


def check(args, work, photos, augment):
    cache, raw = os.path.join(work, "views.kdc"), os.path.join(work, "views.rgb")
    run(args, "kd-precompute", "--images", photos, "--weights", TEACHER, "--device", args.device, "--features", "cls", "--views", args.views, "--augment", augment, "--image-size",
        args.image_size, "--cache", cache)
    lines = [json.loads(line) for line in run(args, "kd-cache", "list", cache, "--json").splitlines()]
    run(args, "kd-cache", "view", cache, "--images", photos, "--all", "--out", raw)
    if args.sheet:
        run(args, "kd-cache", "view", cache, "--images", photos, "--grid", "8x%d" % min(8, args.views), "--out",
            os.path.join(args.sheet, os.path.splitext(os.path.basename(augment))[0] + ".png"))
    pixels = np.fromfile(raw, np.uint8).reshape(len(lines), *[int(s) for s in (args.image_size.split("x") * 2)[:2]], 3)
    rebuilt, n = Rebuilt(lines), dict.fromkeys(("bytes", "differing", "hashes", "blurred", "blur_bytes", "blur_differing", "blur_worst"), 0)
    used = dict.fromkeys(("flipped", "jittered", "gray", "blurred", "solarized", "mixed"), 0)
    for x, ours in zip(lines, pixels):
        plan, view = x["plan"], rebuilt.view(x)
        theirs = np.asarray(view)
        n["bytes"] += ours.size
        n["differing"] += int((ours != theirs).sum()) if ours.shape == theirs.shape else ours.size
        n["hashes"] += view_hash(view) != x["hash"]
        for name, is_used in (("flipped", plan["hflip"] or plan["vflip"]), ("jittered", plan["jitter_order"]), ("gray", plan["gray"]), ("blurred", plan["blur"]["radius"]),
                              ("solarized", plan["solarize"] != 256), ("mixed", plan["mix"]["lambda"] != 1)):
            used[name] += bool(is_used)
        if plan["blur"]["radius"] and plan["mix"]["lambda"] == 1:
            away = rebuilt.away_from_torchvisions_blur(x, ours)
            n["blur_bytes"] += away.size
            n["blur_differing"] += int((away != 0).sum())
            n["blur_worst"] = max(n["blur_worst"], int(away.max()))
    os.chmod(cache, 0o600)
    for f in (cache, cache + ".json", raw):
        os.remove(f)
    bad = n["differing"] or n["hashes"] or n["blur_worst"] > 1 or len(lines) != args.photos * args.views
    text = "%-7s %-14s %5d views of %d photos, %d bytes: %d differ, %d hashes differ" % ("NOT OK" if bad else "ok", os.path.basename(augment), len(lines), args.photos, n["bytes"],
                                                                                         n["differing"], n["hashes"])
    if n["blur_bytes"]:
        text += "; torchvision's own blur: %d of %d bytes differ (%.2g), at most by %d" % (n["blur_differing"], n["blur_bytes"], n["blur_differing"] / n["blur_bytes"], n["blur_worst"])
    print("; ".join([text] + ([", ".join("%d %s" % (v, k) for k, v in used.items() if v)] if any(used.values()) else [])), flush=True)
    return bool(bad), n["bytes"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", required=True)
    p.add_argument("--bin", default=os.path.join(TOP, "bin"))
    p.add_argument("--photos", type=int, default=250)
    p.add_argument("--views", type=int, default=10)
    p.add_argument("--augment", action="append", help="preset or YAML file; may be given several times; default: every preset and the files of tests/reference/augment")
    p.add_argument("--image-size", default="224")
    p.add_argument("--device", default="cpu")
    p.add_argument("--sheet")
    args = p.parse_args()
    torch.set_num_threads(1)
    print("Pillow %s (libjpeg-turbo %s), torch %s, torchvision %s" % (PIL.__version__, features.version("libjpeg_turbo"), torch.__version__, torchvision.__version__))
    work = tempfile.mkdtemp(prefix="kd-views.")
    try:
        photos = some_photos(args, work)
        results = [check(args, work, photos, augment) for augment in args.augment or PRESETS + sorted(os.path.join(AUGMENT, f) for f in os.listdir(AUGMENT))]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    failed = sum(bad for bad, _ in results)
    print("%d augmentations, %d bytes compared, %d augmentations failed" % (len(results), sum(b for _, b in results), failed))
    sys.exit(1 if failed or not results else 0)


main()
