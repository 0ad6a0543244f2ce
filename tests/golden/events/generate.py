"""Golden TensorBoard event file: three events written by TensorBoard's own record writer and protobuf classes. tests/unit/test_events.c makes the same bytes.

    python generate.py
"""
import json
import os
import platform

import tensorboard
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

here = os.path.dirname(os.path.abspath(__file__))
events = [Event(wall_time=1700000000.5, file_version="brain.Event:2"), Event(wall_time=1700000001.5, step=1000), Event(wall_time=1700000002.5, step=2000)]
for tag, value in (("resnet18/loss", 1.25), ("resnet18/lr", 1e-3)):
    events[1].summary.value.add(tag=tag, simple_value=value)
events[2].summary.value.add(tag="resnet18/val_r2_cls", simple_value=-0.75)
image = events[2].summary.value.add(tag="resnet18/maps").image
image.height, image.width, image.colorspace, image.encoded_image_string = 2, 300, 3, b"\x89PNG\r\n\x1a\n"

with open(os.path.join(here, "events.golden"), "wb") as f:
    writer = RecordWriter(f)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    writer.flush()
with open(os.path.join(here, "recipe.json"), "w") as f:
    json.dump({"command": "python generate.py", "python": platform.python_version(), "tensorboard": tensorboard.__version__}, f, indent=1)
