"""LightlyTrain's distillation of a ResNet-18 at 224 px by a ViT/14 with given weights, as its users call it.

    python peer_lightly.py WEIGHTS DIR OUT BATCH THREADS WORKERS|auto PRECISION|auto SKIP

One epoch over DIR. Prints images per second in the steady state: from the end of optimizer step SKIP to the end of the last one, waiting for images included; start-up, workers' start and checkpoints not.
WEIGHTS: from peer_precompute.py. PRECISION: as LightlyTrain names them (32-true, bf16-mixed). What isn't said here is its default.
"""
import os
import sys
import time

weights, folder, out, batch, threads, workers, precision, skip = sys.argv[1:9]
os.environ["OMP_NUM_THREADS"] = threads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # it would report to its makers
os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = out + "-cache"
import torch  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import lightly_train  # noqa: E402
from lightly_train._models.dinov2_vit.dinov2_vit_src.layers import MemEffAttention, NestedTensorBlock  # noqa: E402
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer  # noqa: E402

torch.set_num_threads(int(threads))


def block(**k):
    return NestedTensorBlock(attn_class=MemEffAttention, **k)


def teacher():
    w = torch.load(weights, weights_only=True)
    width = w["cls_token"].shape[-1]
    model = DinoVisionTransformer(img_size=518, patch_size=14, embed_dim=width, depth=12, num_heads=width // 64, init_values=1.0, block_fn=block, block_chunks=0)
    model.load_state_dict(w)
    return model


if __name__ == "__main__":
    ends = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    train = getattr(lightly_train, "pretrain", None) or lightly_train.train
    train(out=out, data=folder, model="torchvision/resnet18", method="distillation", method_args={"teacher": teacher()}, epochs=1, batch_size=int(batch),
          num_workers=workers if workers == "auto" else int(workers), precision=precision, accelerator="cpu", devices=1, overwrite=True)
    first = int(skip) - 1
    print("%.3f" % (int(batch) * (len(ends) - 1 - first) / (ends[-1] - ends[first])))
