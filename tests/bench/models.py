"""Speed of the models on this machine beside PyTorch at its best: forward passes of teachers, training steps of students; ours and theirs in turn in one run. Writes tests/bench/results/models.md.

    make bench BENCH=models [PYTHON=interpreter with torch, torchvision, timm, ultralytics]

From the environment: TURNS=5; CORES=0,1 (the first is what one thread is pinned to); MODELS="resnet18 ..." only these; PRECISIONS="f32 bf16"; LIMIT=900 seconds for a step (a peer's start with its compilation, a
measurement); OUT=another file; for a trial BATCH=2 (of every model) and HOWS=eager (the ways that are tried of the peer). README.md here says how to read the table.
"""
import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.environ.get("KD_TEST_DIR") or sys.exit("run me through make bench")
TURNS, LIMIT = int(os.environ.get("TURNS") or 5), float(os.environ.get("LIMIT") or 900)
HOWS = (os.environ.get("HOWS") or "eager compile autotune").split()
OUT = os.environ.get("OUT") or os.path.join(HERE, "results", "models.md")
CORES = os.environ.get("CORES") or ",".join(str(c) for c in sorted(os.sched_getaffinity(0))[:2])
TURN_SECONDS = 3  # a side's measured part of a turn, at least a round
# Model, batch, and GFLOP of an image for the estimate of the whole run.
TEACHERS = [("dinov2_vits14", 4, 12), ("dinov2_vitb14", 4, 46), ("dinov2_vitl14", 4, 162)]
STUDENTS = [("resnet18", 16, 11), ("resnet50", 16, 25), ("vit_small_patch16_224", 16, 28), ("yolov8n", 16, 2)]
SIZE = 224
# Settings of the peer's process. "heap kept": freed memory stays with the process (glibc) and large tensors are on huge pages.
SETTINGS = {"": {}, "OMP passive": {"OMP_WAIT_POLICY": "passive"}, "heap kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 33), "THP_MEM_ALLOC_ENABLE": "1"}}


class Failed(Exception):
    pass


def say(text):
    print(text, file=sys.stderr, flush=True)


def cores(threads):
    return ",".join(CORES.split(",")[:threads])


def run_ours(program, threads, *words):
    """The JSON line of a bench program, pinned."""
    command = ["taskset", "-c", cores(threads), os.path.join(TESTS, "bench", program), *map(str, words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "GOMP_SPINCOUNT": "1000"})
    except subprocess.TimeoutExpired:
        raise Failed("more than %.0f s" % LIMIT)
    if done.returncode == 15:
        return None  # this processor can't
    if done.returncode != 0:
        raise Failed((done.stderr.strip().splitlines() or ["status %d" % done.returncode])[-1])
    return json.loads(done.stdout)


# ---- the roof ----

peaks = {}  # (f32|bf16|triad, threads): the best seen so far, GFLOP/s or GB/s


def look_at_roof(*kinds):
    """For the facts above the tables. Between the measurements again and again: on a machine that others use too, the best counts."""
    for kind in kinds:
        for threads in THREADS:
            try:
                found = run_ours("bench_peak", threads, kind, threads)
            except Failed as e:
                say("%s: %s" % (kind, e))
                continue
            if found:
                peaks["isa", kind] = found.get("isa", "")
                peaks[kind, threads] = max(peaks.get((kind, threads), 0), found.get("gflops", found.get("gb_s")))


def peak_now(precision, threads):
    """GFLOP/s. A processor's clock changes by a tenth within minutes: a share of the peak is one of what it could do at that time."""
    found = run_ours("bench_peak", threads, precision, threads)
    return found["gflops"] if found else None


def mean_of(before, after):
    return (before + after) / 2 if before and after else None


# ---- the peer ----

class Peer:
    """A process of peer_torch.py that is warm and answers. way: (how, format, names of settings)."""

    def __init__(self, row, way):
        self.way, how, layout, settings = way, *way
        self.errors = tempfile.TemporaryFile("w+")
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        for s in settings:
            env.update(SETTINGS[s])
        command = [sys.executable, os.path.join(HERE, "peer_torch.py"), row.model, row.batch, SIZE, row.precision, row.mode, row.threads, cores(row.threads), how, layout]
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=env, start_new_session=True)
        self.buffer = b""
        try:
            self.warm_s = self.read()["warm_s"]
            first = self.ask(1)["ms"]
            self.rounds = rounds_for(first)
            self.ms = min(first, self.ask(min(self.rounds, 5))["ms"])
        except Failed:
            self.end()
            raise

    def read(self):
        """The next JSON line; what else is printed is left out."""
        until = time.monotonic() + LIMIT
        while True:
            line, newline, rest = self.buffer.partition(b"\n")
            if newline:
                self.buffer = rest
                if line.startswith(b"{"):
                    return json.loads(line)
                continue
            if not select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                raise Failed("more than %.0f s" % LIMIT)
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                self.process.wait()
                self.errors.seek(0)
                raise Failed((self.errors.read().strip().splitlines() or ["status %d" % self.process.returncode])[-1])
            self.buffer += more

    def ask(self, what):
        try:
            self.process.stdin.write(b"%s\n" % str(what).encode())
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended; read says why
        return self.read()

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)  # its session: compilers too
        self.process.wait()


def rounds_for(ms):
    return max(1, min(20, round(TURN_SECONDS * 1e3 / ms)))


def way_name(way):
    how, layout, settings = way
    return ", ".join([how, layout.replace("_", " "), *settings])


known_ways = {}  # (model, mode, precision): (how, format) from the fastest on, found with the first number of threads


class Search:
    """The fastest way for a row: every way of running with the settings as installed, then settings one after the other. With more threads only the two best ways of one thread are tried."""

    def __init__(self, row):
        self.row, self.best, self.error, self.tried = row, None, "", {}

    def attempt(self, how, layout, settings=()):
        way = (how, layout, settings)
        try:
            peer = Peer(self.row, way)
        except Failed as e:
            self.error = str(e)
            say("  %s: %s" % (way_name(way), e))
            return
        say("  %s: %.0f ms, warm after %.0f s" % (way_name(way), peer.ms, peer.warm_s))
        self.tried[how, layout] = min(peer.ms, self.tried.get((how, layout), peer.ms))
        if self.best and self.best.ms <= peer.ms:
            peer.end()
            return
        if self.best:
            self.best.end()
        self.best = peer

    def ways(self):
        key = self.row.model, self.row.mode, self.row.precision
        if key in known_ways:
            yield from known_ways[key][:2]
            return
        for how in (h for h in HOWS if h != "autotune"):
            for layout in ("channels_last", "contiguous"):
                yield how, layout
        if "autotune" in HOWS and self.row.mode == "infer":  # slow to start: in the better format only; of training's products, whose weights change, it has nothing to choose
            yield "autotune", self.best.way[1] if self.best else "contiguous"

    def run(self):
        for how, layout in self.ways():
            self.attempt(how, layout)
        if not self.best:
            raise Failed(self.error)
        known_ways.setdefault((self.row.model, self.row.mode, self.row.precision), sorted(self.tried, key=self.tried.get))
        for s in SETTINGS:
            if s and (self.row.threads > 1 or not s.startswith("OMP")):
                self.attempt(*self.best.way[:2], self.best.way[2] + (s,))
        return self.best


# ---- rows ----

class Row:
    def __init__(self, model, batch, mode, precision, threads):
        self.model, self.batch, self.mode, self.precision, self.threads = model, batch, mode, precision, threads
        self.ours, self.theirs = [], []  # of each turn: bench_model's JSON; milliseconds
        self.ours_peak, self.theirs_peak = [], []  # of each turn: the mean of the peaks before and after it
        self.failed = self.peer_failed = self.way = ""
        self.peer_mib = None

    def title(self):
        return "%s %s %s, %d thread%s" % (self.model, self.mode, self.precision, self.threads, "s" if self.threads > 1 else "")

    def turn_of_ours(self, rounds):
        words = [self.model, self.batch, SIZE, self.precision, self.mode, self.threads, "cpu", rounds] + (["profile"] if self.mode == "train" else [])
        found = run_ours("bench_model", self.threads, *words)
        if found is None:
            raise Failed("not on this processor")
        return found

    def measure(self, peer_there):
        peer = None
        look_at_roof("f32", "bf16")
        if peer_there:
            try:
                peer = Search(self).run()
                self.way = way_name(peer.way)
            except Failed as e:
                self.peer_failed = str(e)
        try:
            rounds = rounds_for(self.turn_of_ours(1)["ms"])
            for turn in range(TURNS):
                before = peak_now(self.precision, self.threads)
                self.ours.append(self.turn_of_ours(rounds))
                after = peak_now(self.precision, self.threads)
                self.ours_peak.append(mean_of(before, after))
                if peer:
                    self.theirs.append(peer.ask(peer.rounds)["ms"])
                    self.theirs_peak.append(mean_of(after, peak_now(self.precision, self.threads)))
                say("  turn %d: %.0f ms, PyTorch %s" % (turn + 1, self.ours[-1]["ms"], "%.0f ms" % self.theirs[-1] if self.theirs else "-"))
        except Failed as e:
            if peer and len(self.ours) > len(self.theirs):
                self.peer_failed = str(e)
            else:
                self.failed = str(e)
        if peer and self.mode == "train" and not self.peer_failed:
            try:
                self.peer_mib = peer.ask("memory")["mib"]
            except Failed as e:
                say("  memory: %s" % e)
        if peer:
            peer.end()

    # -- what the table says --
    def of_ours(self, what):
        return statistics.median(o[what] for o in self.ours)

    def of_peak(self, gflop, ms, peaks_then):
        """gflop: of a pass or step; of each turn milliseconds and peak."""
        shares = [gflop / t * 1e3 / p for t, p in zip(ms, peaks_then) if p]
        return "%.0f %%" % (100 * statistics.median(shares)) if shares else "-"

    def ratio(self):
        if not self.theirs or not self.ours:
            return "-", "-"
        each = sorted(t / o["ms"] for o, t in zip(self.ours, self.theirs))
        return "**%.2f**" % (statistics.median(self.theirs) / self.of_ours("ms")), "%.2f-%.2f" % (each[0], each[-1])

    def gflop(self):
        return self.of_ours("gflops") * self.of_ours("ms") * 1e-3

    def cells(self):
        speed = "%.2f" % (1e3 * self.batch / self.of_ours("ms")) if self.ours and not self.failed else "failed: " + self.failed
        peer = "%.2f" % (1e3 * self.batch / statistics.median(self.theirs)) if self.theirs and not self.peer_failed else "failed: " + self.peer_failed if self.peer_failed else "-"
        ok = self.ours and not self.failed
        cells = [self.model, self.precision, str(self.threads), *(self.ratio() if ok and not self.peer_failed else ("-", "-"))]
        if self.mode == "infer":
            ours = self.of_peak(self.gflop(), [o["ms"] for o in self.ours], self.ours_peak) if ok else "-"
            theirs = self.of_peak(self.gflop(), self.theirs, self.theirs_peak) if ok else "-"
            return cells + [ours, theirs, speed, peer, str(self.batch), self.way or "-"]
        if not ok:
            return cells + ["-", speed, peer] + ["-"] * 7 + [self.way or "-"]
        over = statistics.median(o["mean_ms"] / o["floor_ms"] for o in self.ours)
        parts = [self.of_ours("ms"), self.of_ours("floor_ms"), statistics.median(o["ops_ms"] - o["floor_ms"] for o in self.ours), statistics.median(o["mean_ms"] - o["ops_ms"] for o in self.ours)]
        return cells + ["%.2f" % over, speed, peer, *("%.0f" % p for p in parts), self.of_peak(self.gflop(), [o["floor_ms"] for o in self.ours], self.ours_peak),
                        "%.0f" % self.of_ours("device_mib"), "%.0f" % self.peer_mib if self.peer_mib else "-", self.way or "-"]


# ---- facts and table ----

PROBE = """
import importlib.metadata as m, re, torch
version = lambda n: next((n + " " + m.version(n) for _ in [0] if n in have), n + " not installed")
have = {d.metadata["Name"] for d in m.distributions()}
backends = re.findall(r"(?:MKL-DNN|oneMKL|Math Kernel Library|CPU capability usage)[^\\n]*", torch.__config__.show())
print("; ".join([", ".join(["PyTorch " + torch.__version__] + [version(n) for n in ("torchvision", "timm", "ultralytics")]), *backends]))
"""


def peer_versions():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=LIMIT)
    return done.stdout.strip() if done.returncode == 0 else ""


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.machine())


def compiler():
    try:
        return subprocess.run([os.environ.get("CC") or "cc", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "unknown compiler"


def roof_text():
    lines = []
    for kind, name, unit in (("f32", "f32 multiply-adds", "GFLOP/s"), ("bf16", "bf16 multiply-adds", "GFLOP/s"), ("triad", "triad in memory", "GB/s")):
        found = ["%.0f %s on %s" % (peaks[kind, t], unit, "one core" if t == 1 else "%d" % t) for t in THREADS if (kind, t) in peaks]
        if found:
            lines.append("%s%s: %s" % (name, " (%s)" % peaks["isa", kind] if peaks["isa", kind] else "", ", ".join(found)))
    return "; ".join(lines)


INFER_HEAD = ["model", "precision", "threads", "ratio", "of the turns", "of the peak", "PyTorch", "kdcache, images/s", "PyTorch, images/s", "batch", "PyTorch's best", "day"]
TRAIN_HEAD = ["student", "precision", "threads", "ratio", "of the turns", "step / floor", "kdcache, images/s", "PyTorch, images/s", "step, ms", "floor, ms", "other ops, ms", "rest, ms", "floor of the peak",
              "MiB", "PyTorch, MiB", "PyTorch's best", "day"]
HEADS = {"infer": INFER_HEAD, "train": TRAIN_HEAD}
TODAY = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def earlier_rows():
    """Rows of the table that is there, by mode and model, precision, threads: they stay until they are measured again."""
    found, mode = {}, ""
    if os.path.exists(OUT):
        with open(OUT) as f:
            for line in f:
                mode = "infer" if line.startswith("## Teachers") else "train" if line.startswith("## Students") else mode
                cells = [c.strip() for c in line.strip().strip("|").split(" | ")]
                if mode and line.startswith("|") and len(cells) == len(HEADS[mode]) and cells[2].isdigit():
                    found[(mode, *cells[:3])] = cells
    return found


def table(rows, earlier, mode):
    found = {k: cells for k, cells in earlier.items() if k[0] == mode}
    found.update({(r.mode, r.model, r.precision, str(r.threads)): r.cells() + [TODAY] for r in rows if r.mode == mode})
    order = [m for m, _, _ in TEACHERS + STUDENTS]
    lines = sorted(found.values(), key=lambda c: (order.index(c[0]) if c[0] in order else len(order), *c[:3]))
    return ["| " + " | ".join(cells) + " |" for cells in [HEADS[mode], ["---"] * len(HEADS[mode])] + lines] if lines else ["None yet."]


def write(facts, done, rows, earlier):
    text = ["# Models: images per second, beside PyTorch at its best", "", *facts, "", "Measured in this run: %s." % roof_text(), ""]
    if len(done) < len(rows):
        text += ["**Cut short: %d of %d rows.**" % (len(done), len(rows)), ""]
    text += ["## Teachers: forward pass at %d px" % SIZE, "", *table(done, earlier, "infer"), "", "## Students: training step at %d px" % SIZE, "", *table(done, earlier, "train"), "",
             "What the columns mean and what was done on each side: [README](../README.md)."]
    with open(OUT + ".new", "w") as f:
        f.write("\n".join(text) + "\n")
    os.replace(OUT + ".new", OUT)


def choose_rows(precisions):
    wanted = os.environ.get("MODELS", "").split()
    rows = [Row(m, int(os.environ.get("BATCH") or batch), mode, p, t) for models, mode in ((TEACHERS, "infer"), (STUDENTS, "train")) for p in precisions for m, batch, _ in models for t in THREADS]
    return [r for r in rows if not wanted or r.model in wanted]


def estimate(rows, peer_there):
    """Minutes: steps at two thirds of the peak, a start of the peer each half a minute, a minute of compilation."""
    gflop, seconds = {m: g for m, _, g in TEACHERS + STUDENTS}, 0
    for r in rows:
        step = gflop[r.model] * r.batch / (peaks.get((r.precision, r.threads)) or peaks.get(("f32", r.threads)) or 50) * 1.5
        turn = max(step, TURN_SECONDS)
        tries = (2 * len(HOWS) - ("autotune" in HOWS) * (1 if r.mode == "infer" else 2) if r.threads == 1 else 2) + len(SETTINGS) - 1 if peer_there else 0
        seconds += (TURNS + 1) * (2 * step + turn) + (TURNS * turn if peer_there else 0) + tries * (30 + 5 * step + (60 if len(HOWS) > 1 else 0))
    return seconds / 60


THREADS = [1, 2] if len(CORES.split(",")) > 1 else [1]


def main():
    peer = peer_versions()
    ours = run_ours("bench_model", 1, "resnet18", 1, 32, "f32", "infer", 1, "cpu", 1)
    precisions = (os.environ.get("PRECISIONS") or "f32 bf16").split()
    no_bf16 = "bf16" in precisions and run_ours("bench_model", 1, "resnet18", 1, 32, "bf16", "infer", 1, "cpu", 1) is None
    look_at_roof("f32", "bf16", "triad")
    rows = choose_rows([p for p in precisions if p == "f32" or not no_bf16])
    facts = ["%s (other rows: as their day says). %s, %d processors, load %.1f at the start, Linux %s. Ours: %s; %s. Peer: %s." % (
        TODAY, processor(), os.cpu_count(), os.getloadavg()[0], platform.release(), ours["library"].rsplit(",", 1)[0], compiler(),
        peer or "PyTorch is not installed here"),
        "One thread is pinned to processor %s%s. Medians of %d turn%s, ours and theirs one after the other." % (cores(1), ", two to %s" % cores(2) if len(THREADS) > 1 else "", TURNS, "s" if TURNS > 1 else "")]
    if no_bf16:
        facts.append("bf16 is left out: oneDNN has no bf16 on this processor (%s)." % ours["library"].split(", ")[1])
    if len(THREADS) == 1:
        facts.append("Two threads are left out: one processor.")
    say("models: %d rows, about %.0f minutes (less once torch.compile's cache is warm)" % (len(rows), estimate(rows, peer != "")))
    done, earlier = [], earlier_rows()
    for r in rows:
        say("%d/%d %s" % (len(done) + 1, len(rows), r.title()))
        r.measure(peer != "")
        done.append(r)
        if r is rows[-1]:
            look_at_roof("triad")
        write(facts, done, rows, earlier)
    with open(OUT) as f:
        print(f.read(), end="")
    return 1 if any(r.failed or r.peer_failed for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
