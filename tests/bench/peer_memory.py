"""Peak memory of a training step in PyTorch, as kd-train takes it: f32, channels_last, AdamW, squared error on the pooled feature and on the map.

    python peer_memory.py NAME BATCH SIZE

Prints bytes by which the process's own memory (RssAnon) grew at its peak over two steps, from after the imports. One thread.
"""
import sys
import threading
import time

import timm
import torch
import torchvision

name, batch, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)


def anon():
    with open("/proc/self/status") as f:
        return 1024 * next(int(line.split()[1]) for line in f if line.startswith("RssAnon"))


before, peak, done = anon(), 0, False


def watch():
    global peak
    while not done:
        peak = max(peak, anon())
        time.sleep(0.002)


watcher = threading.Thread(target=watch)
watcher.start()
if name.startswith("vit"):
    model = timm.create_model(name, num_classes=0, img_size=size)
    body = model.forward_features
else:
    net = getattr(torchvision.models, name)()
    model = torch.nn.Sequential(net.features) if hasattr(net, "features") else torch.nn.Sequential(*list(net.children())[:-2])
    body = model
model = model.to(memory_format=torch.channels_last).train()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
for _ in range(2):
    y = body(x)
    pooled = y.mean(1) if y.dim() == 3 else y.mean((2, 3))
    loss = y.square().mean() + pooled.square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
done = True
watcher.join()
print(peak - before)
