#!/usr/bin/env python3
"""20 training steps on a CUDA device against the same steps on another device of this project, and a killed run against an uninterrupted one.

    check_training_gpu.py --bin DIR --cache X.kdc --images DIR --work DIR [--against cpu|ref] [--students resnet18,vit_tiny_patch16_224]

steps   f32, the same seed: every loss within 1e-4 relative, all weights together within 1e-3 relative L2 (batch norm and AdamW amplify rounding; what the two CPU backends differ by is printed by the same
        comparison with --device cpu --against ref)
resume  bf16 and f32: a run that is killed (SIGKILL) in the middle and started again ends in the bytes of the uninterrupted one, and a second uninterrupted one in the same
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from safetensors import safe_open

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--bin", required=True)
p.add_argument("--cache", required=True)
p.add_argument("--images", required=True)
p.add_argument("--work", required=True)
p.add_argument("--device", default="cuda")
p.add_argument("--against", default="cpu")
p.add_argument("--students", default="resnet18,vit_tiny_patch16_224")
p.add_argument("--size", type=int, default=112)
p.add_argument("--epochs", type=int, default=6)
a = p.parse_args()
failed = checked = 0


def check(what, good, value):
    global failed, checked
    checked += 1
    failed += not good
    print("%-6s %-80s %s" % ("ok" if good else "NOT OK", what, value), flush=True)


def command(student, out, device, precision, *more):
    return [os.path.join(a.bin, "kd-train"), "--cache", a.cache, "--images", a.images, "--student", student, "--student-size", str(a.size), "--out", out, "--device", device, "--precision", precision,
            "--batch-size", "16", "--log-every", "1", "-q", *map(str, more)]


def run(*args):
    done = subprocess.run(command(*args), stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit("%s\nended with status %d: %s" % (" ".join(command(*args)), done.returncode, done.stderr.decode(errors="replace")))


def losses(out):
    with open(os.path.join(out, "metrics.jsonl")) as f:
        return [line["loss"] for line in map(json.loads, f) if "lr" in line]


def weights(out):
    target = out + ".safetensors"
    subprocess.run([os.path.join(a.bin, "kd-export"), "--run", out, "--checkpoint", "latest", "--out", target, "-q"], check=True)
    with safe_open(target, "np") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, open(target, "rb").read()


def distance(x, y):
    keys = [k for k in x if x[k].dtype.kind == "f"]
    difference = sum(float(np.square(x[k].astype(np.float64) - y[k]).sum()) for k in keys)
    return (difference / sum(float(np.square(y[k].astype(np.float64)).sum()) for k in keys)) ** 0.5


def compare_steps(student):
    outs = [os.path.join(a.work, "steps-%s-%s" % (student, device)) for device in (a.device, a.against)]
    for out, device in zip(outs, (a.device, a.against)):
        run(student, out, device, "f32", "--epochs", 100, "--warmup-epochs", 50, "--val-fraction", 0, "--steps", 20)
    x, y = losses(outs[0]), losses(outs[1])
    worst = max(abs(u - v) / abs(v) for u, v in zip(x, y)) if len(x) == len(y) == 20 else float("nan")
    check("%s f32: 20 losses on %s and %s, largest relative difference (limit 1e-4)" % (student, a.device, a.against), worst <= 1e-4, "%.2e" % worst)
    far = distance(weights(outs[0])[0], weights(outs[1])[0])
    check("%s f32: weights after 20 steps, relative L2 (limit 1e-3)" % student, far <= 1e-3, "%.2e" % far)


def compare_resume(student, precision):
    whole, again, killed = (os.path.join(a.work, "%s-%s-%s" % (x, student, precision)) for x in ("whole", "again", "killed"))
    options = ("--epochs", a.epochs, "--val-fraction", 0.1)
    begin = time.time()
    run(student, whole, a.device, precision, *options)
    seconds = time.time() - begin
    run(student, again, a.device, precision, *options)
    victim = subprocess.Popen(command(student, killed, a.device, precision, *options), stderr=subprocess.DEVNULL)
    while victim.poll() is None and (not os.path.exists(os.path.join(killed, "metrics.jsonl")) or len(losses(killed)) < len(losses(whole)) // 2):
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    check("%s %s: the run was killed before its end" % (student, precision), victim.returncode == -signal.SIGKILL, "%d of %d steps" % (len(losses(killed)), len(losses(whole))))
    run(student, killed, a.device, precision, *options)
    want = weights(whole)[1]
    check("%s %s: a second run ends in the same bytes" % (student, precision), weights(again)[1] == want, "%.1f s each" % seconds)
    check("%s %s: the killed run, started again, ends in the same bytes" % (student, precision), weights(killed)[1] == want, "")


shutil.rmtree(a.work, ignore_errors=True)
os.makedirs(a.work)
for s in a.students.split(","):
    compare_steps(s)
    for precision in ("f32", "bf16") if a.device.startswith("cuda") else ("f32",):
        compare_resume(s, precision)
print("%d checked, %d failed" % (checked, failed))
sys.exit(1 if failed or not checked else 0)
