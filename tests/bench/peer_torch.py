"""The same work as bench_model in PyTorch, one of the ways in which a user would run it. models.py starts it, tries the ways and keeps the best.

    python peer_torch.py NAME BATCH SIZE f32|bf16 infer|train THREADS CORES HOW FORMAT

HOW: eager; compile (torch.compile, for inference with frozen weights); autotune (the same with mode max-autotune). FORMAT: channels_last or contiguous. CORES ("0,1") are what the process is pinned to once it
is warm; compilers may use more. bf16: inference of a model in bfloat16, training under autocast. Fused AdamW, clip 1.0, inference_mode, scaled_dot_product_attention.

Prints a JSON line when it is warm, then answers each line of stdin with one: a number N with {"ms": median of N rounds}; "memory" with {"mib": ...}, by how much a round's highest resident memory exceeds what
remains between two of them (weights and optimizer's moments don't count, gradients and activations do).
"""
import ctypes
import gc
import json
import os
import statistics
import sys
import time

os.environ["YOLO_OFFLINE"] = "true"
import torch  # noqa: E402

TARGET = 192  # width of the features that students learn, as in bench_model
DINOV2 = {"dinov2_vits14": "vit_small_patch14_dinov2", "dinov2_vitb14": "vit_base_patch14_dinov2", "dinov2_vitl14": "vit_large_patch14_dinov2"}
name, batch, size, precision, mode, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6])
cores, how, layout = {int(c) for c in sys.argv[7].split(",")}, sys.argv[8], getattr(torch, sys.argv[9] + "_format" if sys.argv[9] == "contiguous" else sys.argv[9])


def backbone():
    """The network up to its last features, and their width."""
    if name in DINOV2 or name.startswith("vit_"):
        import timm

        net = timm.create_model(DINOV2.get(name, name), img_size=size, num_classes=0)
        net.forward = net.forward_features
        return net, net.num_features
    if name.startswith("yolo"):
        from ultralytics.nn.tasks import DetectionModel

        net = DetectionModel(name + ".yaml", verbose=False).model[:10]
        return net, net[9].cv2.conv.out_channels
    import torchvision

    net = torchvision.models.get_model(name, weights=None)
    return torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4), net.fc.in_features


class Student(torch.nn.Module):
    """Pooled feature (or class token) and map through heads of LayerNorm and Linear."""

    def __init__(self):
        super().__init__()
        self.body, width = backbone()
        self.cls = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Linear(width, TARGET))
        self.patch = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Linear(width, TARGET))

    def forward(self, x):
        x = self.body(x)
        if x.dim() == 4:
            return self.cls(x.mean((2, 3))), self.patch(x.flatten(2).transpose(1, 2))
        return self.cls(x[:, 0]), self.patch(x[:, 1:])


def compiled(net):
    if how == "eager":
        return net
    import torch._inductor.config as inductor

    inductor.freezing = mode == "infer"
    return torch.compile(net, mode="max-autotune" if how == "autotune" else None)


def make_infer():
    net = backbone()[0].eval().to(memory_format=layout)
    x = torch.rand(batch, 3, size, size).contiguous(memory_format=layout)
    if precision == "bf16":
        net, x = net.bfloat16(), x.bfloat16()
    net = compiled(net)

    @torch.inference_mode()
    def step():
        net(x)

    return step


def make_train():
    student = Student().train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3, weight_decay=0.05, fused=True)
    net, mse = compiled(student), torch.nn.functional.mse_loss
    x = torch.rand(batch, 3, size, size).contiguous(memory_format=layout)
    target = None

    def step():
        nonlocal target
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            cls, patch = net(x)
        if target is None:
            target = torch.randn_like(cls.float()), torch.randn_like(patch.float())
        loss = mse(cls.float(), target[0]) + mse(patch.float(), target[1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def resident(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field)) / 1024


def memory(step):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS:")
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # VmHWM starts again
    step()
    return resident("VmHWM:") - before


torch.set_num_threads(threads)
torch.manual_seed(0)
step = make_infer() if mode == "infer" else make_train()
begin = time.perf_counter()
step()
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), cores)
step()
print(json.dumps({"warm_s": round(time.perf_counter() - begin, 1)}), flush=True)
for line in sys.stdin:
    if line.strip() == "memory":
        print(json.dumps({"mib": round(memory(step), 1)}), flush=True)
    else:
        print(json.dumps({"ms": 1e3 * statistics.median(timed(step) for _ in range(int(line)))}), flush=True)
