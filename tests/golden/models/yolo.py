"""Golden values for the YOLO backbones, from ultralytics.

    python yolo.py

Weights, pictures, targets and samples are those of generate.py; everything is computed in float64 from float32 inputs. The backbone is the part of DetectionModel before the neck. ultralytics'
versions since YOLO26 build the first convolution of SPPF without its activation (PR #26040 mends it): here it is put back, as the released weights need it. yolo.json records the versions.

    train_yolov8n, train_yolo11n   one training step (generate.py's training_step)
    yolo_maps                      evaluation at 64x64, "<model>/<layer>": the three maps; in full for n, samples for the others. "<model>/parameters": parameters, tensors of the state_dict
    yolov8n_checkpoint.pt          what ultralytics' trainer saves: the whole model, pickled, in half precision under "ema". Element [o,...] of every tensor is o / 1024 (views of one storage, so that
                                   the file is small), counters are 7
"""
import json
import platform

import numpy as np
import torch
from safetensors.numpy import save_file
import ultralytics
from ultralytics import YOLO
from ultralytics.nn.modules import SPPF

from generate import fill, normalized, pictures, sample, training_step

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # x / 255
MODELS = {"yolov8n": 256, "yolov8s": 512, "yolov8m": 576, "yolov8l": 512, "yolov8x": 640, "yolo11n": 256, "yolo11s": 512}


class Backbone(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        layers = YOLO(name + ".yaml").model.model
        self.taps = (4, 6, 9 if name.startswith("yolov8") else 10)
        self.model = layers[: self.taps[2] + 1]
        sppf = self.model[9]
        assert isinstance(sppf, SPPF) and not getattr(sppf, "add", False)
        sppf.cv1.act = torch.nn.SiLU()
        for m in self.modules():
            assert not isinstance(m, torch.nn.BatchNorm2d) or (m.eps == 1e-3 and m.momentum == 0.03)

    def maps(self, x):
        out = []
        for i, layer in enumerate(self.model):
            x = layer(x)
            if i in self.taps:
                out.append(x.permute(0, 2, 3, 1))
        return out


def features(m, x):
    last = m.maps(x)[-1]
    return last.mean((1, 2)), last


def checkpoint():
    model = YOLO("yolov8n.yaml").model.half()
    base, counter = (torch.arange(1024) / 1024).half(), torch.tensor(7)
    for m in model.modules():
        for name, p in m.named_parameters(recurse=False):
            p.data = base.as_strided(p.shape, (1,) + (0,) * (p.ndim - 1))
        for name, b in m.named_buffers(recurse=False):
            m._buffers[name] = base.as_strided(b.shape, (1,)) if b.ndim else counter
    torch.save({"epoch": 99, "best_fitness": 0.5, "model": None, "ema": model, "updates": 1000, "optimizer": None, "train_args": {"imgsz": 640}, "date": "", "version": ultralytics.__version__},
               "yolov8n_checkpoint.pt")
    again = torch.load("yolov8n_checkpoint.pt", weights_only=False)["ema"].state_dict()
    assert len(again) == 355 and again["model.9.cv2.conv.weight"][255, 100, 0, 0] == 255 / 1024 and again["model.0.bn.num_batches_tracked"] == 7


def main():
    checkpoint()
    for name in ("yolov8n", "yolo11n"):
        training_step(f"train_{name}.safetensors", Backbone(name), features, pictures(3, 64), PLAIN, MODELS[name], 4)
    out = {}
    for name in MODELS:
        model = fill(Backbone(name).double()).eval()
        with torch.no_grad():
            maps = model.maps(normalized(pictures(1, 64), *PLAIN))
        assert maps[-1].shape[-1] == MODELS[name]
        for layer, y in zip(model.taps, maps):
            assert 0.01 < y.std() < 100
            out[f"{name}/model.{layer}"] = y.float().contiguous().numpy() if name[-1] == "n" else sample(y)
        out[f"{name}/parameters"] = np.array([sum(p.numel() for p in model.parameters()), len(model.state_dict())], np.int64)
        print(name, out[f"{name}/parameters"])
    save_file(out, "yolo_maps.safetensors")
    json.dump({"command": "python yolo.py", "python": platform.python_version(), "torch": torch.__version__, "ultralytics": ultralytics.__version__, "numpy": np.__version__}, open("yolo.json", "w"),
              indent=1)


if __name__ == "__main__":
    main()
