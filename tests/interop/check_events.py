"""Reads a run's event files with TensorBoard's own reader and compares every number with metrics.jsonl.

    python check_events.py RUN_DIRECTORY...

Needs tensorboard (tested with 2.21) and Pillow. Exit status 1 when anything differs. Not part of `make test`; there a golden file written by TensorBoard pins the bytes (tests/unit/test_events.c), and
tests/e2e/test_watching.sh walks the records of a real run.
"""
import glob
import io
import json
import struct
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def expected(run):
    """{tag: {step: [values in order]}} of metrics.jsonl."""
    want = {}
    for line in open(run + "/metrics.jsonl"):
        m = json.loads(line)
        for key, value in m.items():
            if key not in ("step", "epoch", "student") and not isinstance(value, (bool, str)):
                want.setdefault(f"{m['student']}/{key}", {}).setdefault(m["step"], []).append(f32(float(value)))
    return want


def check(run):
    files = glob.glob(run + "/events.out.tfevents.*")
    assert len(files) == 1, f"{run}: {len(files)} event files"
    events = list(EventFileLoader(files[0]).Load())
    assert events[0].file_version == "brain.Event:2", "the first event has no version"
    assert len(events) > 1, "TensorBoard's loader stopped at the first record"
    reader = EventAccumulator(run, size_guidance={SCALARS: 0, IMAGES: 0})
    reader.Reload()
    want, numbers = expected(run), 0
    got = {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}
    assert set(got) == set(want), f"tags differ: {sorted(set(got) ^ set(want))}"
    for tag, points in got.items():
        assert [p.step for p in points] == [s for s in sorted(want[tag]) for _ in want[tag][s]], f"{tag}: steps differ"
        values = [v for s in sorted(want[tag]) for v in want[tag][s]]
        # the events have the number rounded to f32, metrics.jsonl to nine digits, which are rounded to f32 here: an ulp apart at most
        bad = [(a.value, b) for a, b in zip(points, values) if not abs(a.value - b) <= 2**-23 * abs(b)]
        assert not bad, f"{tag}: {bad[0][0]} and {bad[0][1]} in metrics.jsonl"
        numbers += len(values)
    pictures = 0
    for tag in reader.Tags()["images"]:
        for event in reader.Images(tag):
            size = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB").size
            assert size == (event.width, event.height), f"{tag}: {size} is said to be {event.width}x{event.height}"
            pictures += 1
    print(f"{run}: {numbers} numbers of {len(got)} tags and {pictures} pictures are read by TensorBoard as they were written")


for run in sys.argv[1:]:
    check(run)
