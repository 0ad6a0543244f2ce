"""The same work as bench_model in PyTorch, as a user would write it: channels_last, bf16 autocast, AdamW, clip 1.0.

    python peer_torch.py NAME BATCH SIZE f32|bf16 infer|train THREADS [ROUNDS]

Prints images per second (median of the rounds). Names: resnet18 (torchvision), dinov2_wW_dD, dinov2_vits14, dinov2_vitb14 (the DINOv2 architecture of
tests/golden/models/generate.py in float32, with fused attention where torch has it).
"""
import os
import re
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models"))
name, batch, size, precision, mode, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6])
rounds = int(sys.argv[7]) if len(sys.argv) > 7 else 9
torch.set_num_threads(threads)
torch.manual_seed(0)


def make():
    if name == "resnet18":
        import torchvision

        model = torchvision.models.resnet18()
        model.fc = torch.nn.Identity()
        return model
    from generate import Block, DinoV2

    if hasattr(F, "scaled_dot_product_attention"):
        def attention(self, x):
            n, t, d = x.shape
            q, k, v = self.attn.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            return self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))

        Block.attention = attention
    known = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12)}
    width, depth = known[name] if name in known else map(int, re.fullmatch(r"dinov2_w(\d+)_d(\d+)", name).groups())
    return DinoV2(width, depth, width // 64, 14, size // 14, 4 * width)


model = make().to(memory_format=torch.channels_last)
x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
if mode == "train":
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)


def step():
    if mode == "infer":
        with torch.no_grad(), autocast:
            return model(x)
    with autocast:
        loss = model(x).float().square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


if mode == "infer":
    model.eval()
for _ in range(2):
    step()
times = []
for _ in range(rounds):
    begin = time.perf_counter()
    step()
    times.append(time.perf_counter() - begin)
print("%.2f" % (batch / statistics.median(times)))
