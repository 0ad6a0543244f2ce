"""Golden values for torchvision's CNNs beside resnet18: a step of training, and the first picture's features in evaluation mode.

    python families.py

Weights, pictures and targets are those of the formula in generate.py, whose training_step this uses; families.json records the versions. ConvNeXt's step is one with stochastic depth (rate 0.1 in the last
block) whose draws are given: branch i is dropped for image n when the formula's "drop_path.i"[n] is negative. What is called pooled is what the library's classifier reads, which is checked here.
"""
import json
import platform

import numpy as np
import torch
import torchvision
from safetensors.numpy import load_file, save_file
from torchvision.ops import StochasticDepth

from generate import IMAGENET, fill, normalized, pictures, resnet_features, training_step, unit

BATCH, SIDE = 3, 3
DROP_PATH = 0.1


def mobilenet_features(m, x):
    fmap = m.features(x)
    return m.avgpool(fmap).flatten(1), fmap.permute(0, 2, 3, 1)


def convnext_features(m, x):
    fmap = m.features(x)
    return m.classifier[0](m.avgpool(fmap)).flatten(1), fmap.permute(0, 2, 3, 1)


def without_classifier(name):
    m = getattr(torchvision.models, name)()
    if name.startswith("resnet"):
        m.fc = torch.nn.Identity()
    elif name.startswith("mobilenet"):
        m.classifier = torch.nn.Identity()
    else:
        m.classifier[2] = torch.nn.Identity()
    return fill(m.double()).eval()


class GivenDrop(torch.nn.Module):
    """Stochastic depth whose draws are given: a factor for every image."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.from_numpy(scale.astype(np.float32)).double().reshape(-1, 1, 1, 1)

    def forward(self, x):
        return x * self.scale


def give_drops(m):
    blocks = [b for b in m.modules() if isinstance(getattr(b, "stochastic_depth", None), StochasticDepth)]
    for i, b in enumerate(blocks):
        chance = DROP_PATH * i / (len(blocks) - 1)
        assert abs(b.stochastic_depth.p - chance) < 1e-12
        if chance > 0:
            b.stochastic_depth = GivenDrop(np.where(unit(f"drop_path.{i}", BATCH) < 0, 0, 1 / (1 - chance)))


def golden(name, features, width):
    size = 64
    path = f"train_{name}.safetensors"
    x = normalized(pictures(BATCH, size), *IMAGENET)
    m = getattr(torchvision.models, name)(**({"stochastic_depth_prob": DROP_PATH} if name.startswith("convnext") else {}))
    with torch.no_grad():
        pooled, fmap = features(fill(m.double()).eval(), x[:1])
        assert torch.equal(pooled, without_classifier(name)(x[:1]))
    if name.startswith("convnext"):
        give_drops(m)
    training_step(path, m, features, pictures(BATCH, size), IMAGENET, width, SIDE)
    out = load_file(path)
    out["eval/pooled"], out["eval/map"] = pooled.float().numpy(), np.ascontiguousarray(fmap.float().numpy())
    save_file(out, path)


def main():
    golden("resnet50", resnet_features, 2048)
    golden("mobilenet_v3_small", mobilenet_features, 576)
    golden("mobilenet_v3_large", mobilenet_features, 960)
    golden("convnext_tiny", convnext_features, 768)
    json.dump({"command": "python families.py", "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
              open("families.json", "w"), indent=1)


if __name__ == "__main__":
    main()
