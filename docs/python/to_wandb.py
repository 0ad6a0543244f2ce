"""Sends a run of kd-train to Weights & Biases: every scalar and map of its TensorBoard events, with the settings.

    python to_wandb.py runs/r18 --project distillation            # once, after or during the run
    python to_wandb.py runs/r18 --project distillation --follow   # goes on until the run has ended

Needs wandb, tensorboard and pillow. WANDB_MODE=offline writes a local folder for a later `wandb sync`.
"""
import argparse
import glob
import io
import os
import time

import PIL.Image
import wandb
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event


def values(summary):
    for value in summary.value:
        if value.HasField("image"):
            yield value.tag, wandb.Image(PIL.Image.open(io.BytesIO(value.image.encoded_image_string)))
        elif value.HasField("simple_value"):
            yield value.tag, value.simple_value


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("run", help="the --out directory of kd-train")
    arguments.add_argument("--project", default="kdcache")
    arguments.add_argument("--follow", action="store_true")
    options = arguments.parse_args()
    events = sorted(glob.glob(os.path.join(options.run, "events.out.tfevents.*")))
    if not events:
        raise SystemExit(f"{options.run}: no events.out.tfevents.* there; give the --out directory of kd-train")
    name = os.path.basename(os.path.normpath(options.run))
    run = wandb.init(project=options.project, name=name, config={"kdcache": open(os.path.join(options.run, "config.resolved.yaml")).read()})
    loader = RawEventFileLoader(events[-1])
    sent = 0
    while True:
        for record in loader.Load():
            event = Event.FromString(record)
            found = dict(values(event.summary))
            if found:
                run.log(found, step=event.step)
            sent += len(found)
        if not options.follow or glob.glob(os.path.join(options.run, "exported", "*.safetensors")):
            break
        time.sleep(10)
    run.finish()
    print(f"{sent} values sent")


if __name__ == "__main__":
    main()
