#!/usr/bin/env python3
"""docs/python/to_ultralytics.py in a real installation: `yolo train model=FILE.pt` begins with the exported backbone.

    check_ultralytics.py --images DIR --weights TEACHER [--bin bin] [--students yolov8n,yolo11n]

For each student, exported after some steps as .safetensors and as .pth: the checkpoint that the script writes is trained on four drawn pictures (imgsz 64, one epoch, CPU, nothing is downloaded). When training starts, before the first step, the
tensors of the backbone are the export's, bit for bit, and its features are `kd-eval features`' to 1e-4; the same file goes through the command line. Run it once with each release in question: PYTHONPATH=FOLDER takes ultralytics from there."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))

import numpy as np
import torch
import ultralytics
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from ultralytics import YOLO

import reference as r

SCRIPT = os.path.join(r.TOP, "docs", "python", "to_ultralytics.py")
SIZE, LIMIT = 96, 1e-4
OPTIONS = dict(imgsz=64, epochs=1, batch=2, device="cpu", workers=0, plots=False, val=False, save=False, amp=False, verbose=False, exist_ok=True)


def drawn_dataset(folder):
    """Four pictures with a rectangle each, as ultralytics reads them."""
    for kind in ("images", "labels"):
        os.makedirs(os.path.join(folder, kind))
    for i in range(4):
        picture = Image.new("RGB", (64, 64), (40 * i, 90, 160))
        ImageDraw.Draw(picture).rectangle((16, 16, 48, 40 + 2 * i), fill=(230, 200, 20 * i))
        picture.save(os.path.join(folder, "images", "%d.png" % i))
        with open(os.path.join(folder, "labels", "%d.txt" % i), "w") as f:
            f.write("0 0.5 0.45 0.5 0.4\n")
    path = os.path.join(folder, "data.yaml")
    with open(path, "w") as f:
        f.write("path: %s\ntrain: images\nval: images\nnames: {0: thing}\n" % folder)
    return path


def at_start(checkpoint, data, project, layers, pixels):
    """(tensors of the network, what its first layers make of the pixels) when train() starts, before its first step."""
    held = []

    def keep(trainer):
        training = trainer.model.training
        tensors = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
        trainer.model.eval()
        with torch.no_grad():
            held.extend((tensors, trainer.model.model[:layers](pixels)))
        trainer.model.train(training)
    yolo = YOLO(checkpoint)
    yolo.add_callback("on_train_start", keep)
    yolo.train(data=data, project=project, **OPTIONS)
    return held


def check(b, name, ending, run, data, photos):
    weights, checkpoint = b.path(name + ending), b.path("%s-%s.pt" % (name, ending[1:]))
    b.run("kd-export", "--run", run, "--out", weights, "--format", ending[1:], computes=False)
    print(subprocess.run([sys.executable, SCRIPT, "--weights", weights, "--out", checkpoint], check=True, capture_output=True, text=True).stdout.strip())
    ours, paths = b.features(name + ending[1:], "--model", name, "--weights", weights, "--images", photos, "--student-size", SIZE)
    want = load_file(weights) if ending == ".safetensors" else torch.load(weights, weights_only=True)
    layers = 1 + max(int(k.split(".")[1]) for k in want)
    pixels = r.to_input(np.stack([r.eval_pixels(os.path.join(photos, p), 224, SIZE) for p in paths]), r.PLAIN)
    got, fmap = at_start(checkpoint, data, b.path("runs"), layers, pixels)
    label = "%s%s, ultralytics %s" % (name, ending, ultralytics.__version__)
    b.check(label + ": %d tensors at the start, not the export's" % len(want), sum(not torch.equal(got[k], v) for k, v in want.items()), 0)
    theirs = fmap.permute(0, 2, 3, 1).flatten(1, 2).numpy()
    b.check(label + ": features at the start (largest %.3g)" % np.abs(theirs).max(), r.worst_difference(ours["patch"], theirs), LIMIT * max(1.0, float(np.abs(theirs).max()) / 10))
    return checkpoint


def main():
    p = r.parser(__doc__)
    p.add_argument("--weights", required=True, help="teacher")
    p.add_argument("--images", required=True)
    p.add_argument("--students", default="yolov8n,yolo11n")
    a = p.parse_args()
    b = r.Bench(a)
    photos, train, cache = r.some_photos(b, a.images, 4, "photos"), r.some_photos(b, a.images, 16, "train"), b.path("small.kdc")
    data = drawn_dataset(os.path.abspath(b.path("drawn")))
    b.run("kd-precompute", "--images", train, "--weights", a.weights, "--cache", cache, "--views", 1)
    for name in a.students.split(","):
        run = b.path("run-" + name)
        b.run("kd-train", "--cache", cache, "--images", train, "--student", name, "--out", run, "--epochs", 1, "--batch-size", 4, "--steps", 2, "--lr", 0.003, "--warmup-epochs", 0, "--val-fraction", 0, "--student-size", SIZE)
        for ending in (".safetensors", ".pth"):
            checkpoint = check(b, name, ending, run, data, photos)
        words = ["%s=%s" % i for i in OPTIONS.items()]
        done = subprocess.run(["yolo", "train", "model=" + checkpoint, "data=" + data, "project=" + b.path("runs"), *words], capture_output=True, text=True, env=dict(os.environ, PATH=os.path.dirname(sys.executable) + ":" + os.environ["PATH"]))
        b.check("%s: status of the command yolo train model=FILE.pt" % name, done.returncode, 0)
        if done.returncode:
            print(done.stderr[-2000:])
    b.finish()


main()
