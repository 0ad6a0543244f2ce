"""The same work as bench_model in PyTorch on a CUDA device, at its best: bf16, channels_last, fused AdamW, scaled_dot_product_attention, pinned copies that overlap.

    python peer_torch_gpu.py NAME BATCH SIZE MODE eager|compile [ROUNDS]

MODE features: pixels from pinned uint8, normalised on the device, class and patch tokens copied to pinned memory while the next batch runs. train: forward, backward, clip, AdamW on resident pixels with the
same heads and losses. files:DIR: features of the JPEG files below DIR, decoded and transformed by torchvision in as many workers as there are processors, as users do it. online:TEACHER: that step with the teacher's forward pass of the same batch in it, which is LightlyTrain's way. Names: resnet18, resnet50 (torchvision), vit_small_patch16_224 (timm),
dinov2_vits14, dinov2_vitb14, dinov2_vitl14, dinov2_vitg14 (the architecture of tests/golden/models/generate.py, random weights). Prints one JSON line with the median of the rounds.
"""
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models"))
from generate import Block, DinoV2  # noqa: E402

name, batch, size, mode, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
rounds = int(sys.argv[6]) if len(sys.argv) > 6 else 20
DINOV2 = {"dinov2_vits14": (384, 12, 1536, False), "dinov2_vitb14": (768, 12, 3072, False), "dinov2_vitl14": (1024, 24, 4096, False), "dinov2_vitg14": (1536, 40, 4096, True)}
TARGET = 192  # width of the features that students learn, as in bench_model
torch.manual_seed(0)
torch.backends.cudnn.benchmark = True


def attention(self, x):
    n, t, d = x.shape
    q, k, v = self.attn.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    return self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


Block.attention = attention


def compiled(module, graphs):
    if how != "compile":
        return module
    return torch.compile(module, mode="reduce-overhead" if graphs else None)


def dinov2(n):
    width, depth, hidden, swiglu = DINOV2[n]
    return DinoV2(width, depth, width // 64, 14, size // 14, hidden, swiglu).cuda().to(torch.bfloat16).eval()


class Normalised(torch.nn.Module):
    """From uint8 [n,h,w,3] on the device."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).cuda())
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1).cuda())

    def forward(self, pixels):
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.net(x.to(self.dtype))


class Student(torch.nn.Module):
    """(pooled, map as tokens) through LayerNorm -> Linear heads."""

    def __init__(self):
        super().__init__()
        if name.startswith("resnet"):
            import torchvision

            net = torchvision.models.get_model(name, weights=None)
            self.body = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)
            width = net.fc.in_features
        else:
            import timm

            self.body = timm.create_model(name, num_classes=0)
            width = self.body.num_features
        self.vit = not name.startswith("resnet")
        self.cls = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Linear(width, TARGET))
        self.patch = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Linear(width, TARGET))

    def forward(self, x):
        if self.vit:
            tokens = self.body.forward_features(x)
            return self.cls(tokens[:, 0]), self.patch(tokens[:, 1:])
        fmap = self.body(x)
        return self.cls(fmap.mean((2, 3))), self.patch(fmap.flatten(2).transpose(1, 2))


def time_rounds(step):
    """Seconds of each round; step(i) queues round i and waits for the one before it."""
    for i in range(6):
        step(i)
    torch.cuda.synchronize()
    seconds = []
    for i in range(rounds):
        begin = time.perf_counter()
        step(6 + i)
        seconds.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return seconds


def features():
    net = compiled(Normalised(dinov2(name), torch.bfloat16), False)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).pin_memory()
    host, done = [None, None], [torch.cuda.Event(), torch.cuda.Event()]

    @torch.inference_mode()
    def step(i):
        tokens = net(pixels.cuda(non_blocking=True))
        if host[i % 2] is None:
            host[i % 2] = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host[i % 2].copy_(tokens, non_blocking=True)
        done[i % 2].record()
        if i > 0:
            done[(i - 1) % 2].synchronize()

    return step


def train():
    student = Student().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3, fused=True)
    forward = compiled(Normalised(student, torch.float32), False)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).cuda()
    teacher = compiled(Normalised(dinov2(mode.split(":")[1]), torch.bfloat16), False) if mode.startswith("online:") else None
    done = [torch.cuda.Event(), torch.cuda.Event()]
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        cls, patch = forward(pixels)
    target = torch.randn_like(cls.float()), torch.randn_like(patch.float())

    def step(i):
        if teacher is not None:
            with torch.inference_mode():
                teacher(pixels)  # its projection to the target's width is left out: nothing beside the rest
        with torch.autocast("cuda", dtype=torch.bfloat16):
            cls, patch = forward(pixels)
        loss = F.mse_loss(cls.float(), target[0]) + F.mse_loss(patch.float(), target[1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done[i % 2].record()
        if i > 0:
            done[(i - 1) % 2].synchronize()

    return step


def from_files():
    """Images per second over all files, one view each."""
    from PIL import Image
    from torchvision import transforms

    folder = mode.split(":", 1)[1]
    files = sorted(os.path.join(r, f) for r, _, names in os.walk(folder) for f in names if f.endswith(".jpg"))
    view = transforms.Compose([transforms.RandomResizedCrop(size, scale=(0.14, 1), interpolation=transforms.InterpolationMode.BICUBIC), transforms.RandomHorizontalFlip(),
                               transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), transforms.RandomGrayscale(0.2), transforms.PILToTensor()])

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, i):
            return view(Image.open(files[i]).convert("RGB")).permute(1, 2, 0).contiguous()

    net = compiled(Normalised(dinov2(name), torch.bfloat16), False)
    loader = torch.utils.data.DataLoader(Files(), batch_size=batch, num_workers=os.cpu_count(), pin_memory=True, drop_last=True)
    with torch.inference_mode():
        net(torch.zeros(batch, size, size, 3, dtype=torch.uint8).cuda())
        torch.cuda.synchronize()
        begin, n = time.perf_counter(), 0
        for pixels in loader:
            net(pixels.cuda(non_blocking=True)).cpu()
            n += batch
    return [(time.perf_counter() - begin) * batch / max(n, 1)]


seconds = from_files() if mode.startswith("files:") else time_rounds(features() if mode == "features" else train())
median = statistics.median(seconds)
print(json.dumps({"model": name, "mode": mode, "how": how, "batch": batch, "ms": 1e3 * median, "images_per_s": batch / median, "mib": torch.cuda.max_memory_allocated() / 2**20,
                  "torch": torch.__version__, "device": torch.cuda.get_device_name()}))
