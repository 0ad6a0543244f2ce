#!/usr/bin/env python3
"""Checks a cache's views with Pillow and torchvision: rebuilds each view from the image file and the recorded plan, and compares.

    replay_with_pillow.py --cache F.kdc --images DIR [--kd-cache bin/kd-cache] [--limit N] [--pixels N]
    replay_with_pillow.py --list LINES.jsonl --images DIR

Every view's hash is compared; for the first N of --pixels also the pixels that `kd-cache view` writes. --list takes lines that
`kd-cache list --json` printed before. Ends with status 1 when anything differs. Needs Pillow, torchvision, numpy and xxhash.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from pillow_views import apply_plan, view_hash


def lines(args):
    if args.list:
        with open(args.list, encoding="utf-8") as f:
            yield from f
    else:
        with subprocess.Popen([args.kd_cache, "list", args.cache, "--json"], stdout=subprocess.PIPE, text=True) as p:
            yield from p.stdout
        if p.returncode:
            sys.exit("kd-cache list ended with status %d" % p.returncode)


def differing_bytes(args, record, view):
    with tempfile.TemporaryDirectory() as folder:
        png = os.path.join(folder, "view.png")
        subprocess.run([args.kd_cache, "view", args.cache, "--images", args.images, "--id", record["id"], "--view", str(record["view"]), "--out", png], check=True)
        ours = np.asarray(Image.open(png))
    theirs = np.asarray(view)
    return theirs.size if ours.shape != theirs.shape else int((ours != theirs).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--list")
    parser.add_argument("--images", required=True)
    parser.add_argument("--kd-cache", default="bin/kd-cache")
    parser.add_argument("--limit", type=int, default=0, help="check only the first N views")
    parser.add_argument("--pixels", type=int, default=0, help="compare the pixels of the first N views")
    args = parser.parse_args()
    if bool(args.cache) == bool(args.list):
        parser.error("give one of --cache and --list")

    checked = wrong = pixels = different = 0
    path, image = None, None
    for line in lines(args):
        record = json.loads(line)
        if "plan" not in record:
            continue
        if record["path"] != path:
            path = record["path"]
            image = Image.open(os.path.join(args.images, path)).convert("RGB")
        view = apply_plan(image, record["plan"])
        if view_hash(view) != record["hash"]:
            wrong += 1
            print("differs: %s view %d, plan %s" % (path, record["view"], json.dumps(record["plan"])))
        if args.cache and pixels < args.pixels:
            different += differing_bytes(args, record, view)
            pixels += 1
        checked += 1
        if checked == args.limit:
            break
    print("%d views checked, %d with another hash; %d views compared pixel by pixel, %d bytes differ" % (checked, wrong, pixels, different))
    sys.exit(1 if wrong or different or not checked else 0)


main()
