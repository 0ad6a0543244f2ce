"""Students x losses for equal time, and cached views at equal steps, on real photos: what the defaults of kd-train rest on.

    make bench-losses KD_TEST_DATA=DIR WORK=DIR     (hours; running it again goes on where it stopped)

KD_TEST_DATA holds caltech101.tar and teachers/vitt14_dinov2_layout.pth; WORK keeps caches and runs. Writes tests/bench/results/losses.md.

Equal time means equal time on a quiet machine: all runs train on one pinned core each, two at a time. Each is first timed for some seconds (TIMING, default 45; nothing else should run then), and then trains as many
whole epochs as that speed allows in MINUTES (default 10). So what else the machine does later changes no result, and a repetition gives the same bits.
"""
import json
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time

WORK, DATA, BIN = os.environ["WORK"], os.environ["KD_TEST_DATA"], os.environ["KD_BIN"]
MINUTES, TIMING = float(os.environ.get("MINUTES", 10)), float(os.environ.get("TIMING", 45))
STUDENTS = {"resnet18": 64, "mobilenet_v3_small": 112, "vit_tiny_patch16_224": 112, "yolov8n": 128}  # the size at which each sees the views of 224 px
LOSSES = ["std-mse", "mse", "kl-queue+intra"]
VIEWS, VIEWS_STUDENT, VIEWS_SIZE, VIEWS_EPOCHS = [1, 2, 4, 8], "mobilenet_v3_small", 112, [8, 24]  # of 8 epochs with 8 views each shows a view that no other has shown
TRAIN, TEST = os.path.join(WORK, "caltech101/train"), os.path.join(WORK, "caltech101/test")
TEACHER = os.path.join(DATA, "teachers/vitt14_dinov2_layout.pth")
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results/losses.md")
ENVIRONMENT = dict(os.environ, GOMP_SPINCOUNT="1000", OMP_WAIT_POLICY="passive")


def program(name, *options, core=None, **more):
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    return subprocess.run([*pinned, os.path.join(BIN, name), *map(str, options), "--device", "cpu", "-q"], check=True, env=ENVIRONMENT, **more)


def train_command(core, source, student, size, loss, out, *options):
    return ["taskset", "-c", str(core), os.path.join(BIN, "kd-train"), *source, "--images", TRAIN, "--student", student, "--student-size", str(size), "--loss", loss, "--batch-size", "32",
            "--val-fraction", "0.05", "--threads", "1", "--device", "cpu", "-q", "--out", out, *map(str, options)]


def lines(out):
    with open(os.path.join(out, "metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


def at_once(function, jobs):
    """function(core, *job) for every job: two at a time, each on a core of its own, the next one when a core is free."""
    waiting, failed = queue.Queue(), []
    for job in jobs:
        waiting.put(job)

    def work(core):
        while not failed:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                function(core, *job)
            except Exception as problem:
                failed.append(problem)

    workers = [threading.Thread(target=work, args=(core,)) for core in (0, 1)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    if failed:
        raise failed[0]


def prepare():
    if not os.path.isdir(TEST):
        with tarfile.open(os.path.join(DATA, "caltech101.tar")) as tar:
            tar.extractall(WORK)
    cache = os.path.join(WORK, "views-8.kdc")
    if not os.path.exists(cache):
        program("kd-precompute", "--images", TRAIN, "--weights", TEACHER, "--cache", cache, "--views", 8, "--layers", "1,2")
    for n in VIEWS[:-1]:
        smaller = os.path.join(WORK, f"views-{n}.kdc")
        if not os.path.exists(smaller):
            subprocess.run([os.path.join(BIN, "kd-cache"), "extract", cache, "--views", f"0-{n - 1}" if n > 1 else "0", "--out", smaller, "-q"], check=True)


def cached(n):
    return ["--cache", os.path.join(WORK, f"views-{n}.kdc")]


def rate_file(student, loss):
    return os.path.join(WORK, f"rate-{student}-{loss}.json")


def measure_rate(core, student, loss):
    if os.path.exists(rate_file(student, loss)):
        return
    out = os.path.join(WORK, f"timing-{student}-{loss}")
    shutil.rmtree(out, ignore_errors=True)
    run = subprocess.Popen(train_command(core, cached(8), student, STUDENTS[student], loss, out, "--log-every", 1), env=ENVIRONMENT)
    time.sleep(TIMING)
    run.send_signal(signal.SIGTERM)
    if run.wait() != 143:
        raise RuntimeError(f"{out}: kd-train didn't end as SIGTERM ends it")
    speeds = [line["images_per_s"] for line in lines(out) if "images_per_s" in line]
    with open(rate_file(student, loss), "w") as f:
        json.dump(statistics.median(speeds[len(speeds) // 4:]), f)  # the first steps warm caches up
    shutil.rmtree(out)


def rate(student, loss):
    with open(rate_file(student, loss)) as f:
        return json.load(f)


def images_of_an_epoch():
    return 0.95 * sum(len(files) for _, _, files in os.walk(TRAIN))


def epochs_of(student, loss):
    return max(1, round(60 * MINUTES * rate(student, loss) / images_of_an_epoch()))


def train(core, source, student, size, loss, name, epochs):
    subprocess.run(train_command(core, source, student, size, loss, os.path.join(WORK, name), "--epochs", epochs, "--knn-train", TRAIN, "--knn-test", TEST, "--knn-every", 1000000), env=ENVIRONMENT, check=True)


def measure_before(core, student):
    out = os.path.join(WORK, f"before-{student}.json")
    if not os.path.exists(out):
        text = program("kd-eval", "knn", "--model", student, "--weights", "random", "--student-size", STUDENTS[student], "--train", TRAIN, "--test", TEST, "--threads", 1, "--json", core=core,
                       stdout=subprocess.PIPE, text=True).stdout
        with open(out, "w") as f:
            f.write(text)


def before(student):
    with open(os.path.join(WORK, f"before-{student}.json")) as f:
        return {r["k"]: r["top1"] for r in map(json.loads, f) if r.get("type") == "result"}


def last(name):
    return [line for line in lines(os.path.join(WORK, name)) if "knn_top1_k10" in line][-1]


def number(line, key, form):
    return form.format(line[key]) if line.get(key) is not None else "-"


def table_of_losses(jobs):
    yield "| student | px | loss | images/s, one core | epochs | minutes | k-NN before, k = 10 | after | after, k = 20 | R2 CLS | R2 patches | cosine CLS | cosine patches | agreement |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for student, loss in jobs:
        line, n = last(f"run-{student}-{loss}"), epochs_of(student, loss)
        yield (f"| {student} | {STUDENTS[student]} | {loss} | {rate(student, loss):.1f} | {n} | {n * images_of_an_epoch() / rate(student, loss) / 60:.1f} | {100 * before(student)[10]:.2f} % | "
               f"**{100 * line['knn_top1_k10']:.2f} %** | {100 * line['knn_top1_k20']:.2f} % | {number(line, 'val_r2_cls', '{:.3f}')} | {number(line, 'val_r2_patch', '{:.3f}')} | "
               f"{number(line, 'val_cos_cls', '{:.3f}')} | {number(line, 'val_cos_patch', '{:.3f}')} | {number(line, 'val_agreement', '{:.3f}')} |")


def table_of_views(names):
    yield "| epochs | views of an image | each shown | k-NN, k = 10 | k = 20 | loss, held out | loss, seen | R2 CLS, held out | seen | agreement |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for epochs, n in names:
        line = last(f"views-{n}-{epochs}")
        yield (f"| {epochs} | {n} | {epochs / n:g} times | **{100 * line['knn_top1_k10']:.2f} %** | {100 * line['knn_top1_k20']:.2f} % | {line['val_loss']:.4f} | {line['seen_loss']:.4f} | {line['val_r2_cls']:.3f} | "
               f"{line['seen_r2_cls']:.3f} | {line['val_agreement']:.3f} |")


def main():
    os.makedirs(WORK, exist_ok=True)
    jobs = [(s, l) for s in STUDENTS for l in LOSSES]
    prepare()
    at_once(measure_rate, jobs)
    at_once(measure_before, [(s,) for s in STUDENTS])
    at_once(lambda core, s, l: train(core, cached(8), s, STUDENTS[s], l, f"run-{s}-{l}", epochs_of(s, l)), jobs)
    curve = [(e, n) for e in VIEWS_EPOCHS for n in VIEWS]
    at_once(lambda core, e, n: train(core, cached(n), VIEWS_STUDENT, VIEWS_SIZE, "std-mse", f"views-{n}-{e}", e), curve)
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    with open(RESULTS, "w") as f:
        print("# Losses for equal time, views at equal steps\n", file=f)
        print(f"{time.strftime('%Y-%m-%d')}, {processor}; f32, every run on one pinned core. 2,914 training photos of Caltech-101 (5 % held out for R2, cosine and agreement), lightly views of 224 px seen at the sizes below,", file=f)
        print(f"teacher ViT-Ti/14 in DINOv2's layout (its own k-NN: 89.84 %, 89.70 %), batch 32, random weights, the defaults of kd-train. k-NN on 1,456 test photos. Made by `make bench-losses` (tests/bench/losses.py).\n", file=f)
        print(f"## Every student and loss for {MINUTES:g} minutes\n", file=f)
        print("\n".join(table_of_losses(jobs)), file=f)
        print(f"\n## Cached views: {VIEWS_STUDENT} at {VIEWS_SIZE} px, std-mse\n", file=f)
        print("\n".join(table_of_views(curve)), file=f)
    sys.stdout.write(open(RESULTS).read())


if __name__ == "__main__":
    main()
