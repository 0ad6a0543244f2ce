"""What kd-precompute does, in PyTorch as a user would write it: a DataLoader with workers, Pillow, torchvision's transforms, a ViT of timm with fused attention, features saved as float16.

    python peer_precompute.py weights WIDTH OUT.pth                               a ViT/14 of 12 blocks with random values under DINOv2's official names
    python peer_precompute.py run WEIGHTS DIR OUT BATCH THREADS WORKERS f32|bf16  images per second, without start-up: from the first image asked for to the closed file

WORKERS is a list such as 0,1,2: a pass and an answer for each. One view of 224 px of each image, with the parameters of kd-precompute's "lightly".
"""
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import numpy as np  # noqa: E402
import torch  # noqa: E402

DEPTH, PATCH, GRID, PX = 12, 14, 37, 224


def make_weights(width, out):
    g = torch.Generator().manual_seed(1)

    def noise(*shape):
        return 0.02 * torch.randn(*shape, generator=g)

    w = {"cls_token": noise(1, 1, width), "pos_embed": noise(1, 1 + GRID * GRID, width), "mask_token": torch.zeros(1, width),
         "patch_embed.proj.weight": noise(width, 3, PATCH, PATCH), "patch_embed.proj.bias": torch.zeros(width), "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    for i in range(DEPTH):
        for name, rows, columns in (("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
            w[f"blocks.{i}.{name}.weight"], w[f"blocks.{i}.{name}.bias"] = noise(rows, columns), torch.zeros(rows)
        for k in (1, 2):
            w[f"blocks.{i}.norm{k}.weight"], w[f"blocks.{i}.norm{k}.bias"], w[f"blocks.{i}.ls{k}.gamma"] = torch.ones(width), torch.zeros(width), torch.ones(width)
    torch.save(w, out)


def teacher(path):
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    w = torch.load(path, weights_only=True)
    width = w["cls_token"].shape[-1]
    model = VisionTransformer(img_size=PX, patch_size=PATCH, embed_dim=width, depth=DEPTH, num_heads=width // 64, init_values=1.0, num_classes=0)
    w["pos_embed"] = resample_abs_pos_embed(w["pos_embed"], [PX // PATCH, PX // PATCH])
    del w["mask_token"]
    model.load_state_dict(w)
    return model.eval()


class Photos(torch.utils.data.Dataset):
    def __init__(self, folder):
        from torchvision import transforms as T

        self.files = sorted(os.path.join(at, f) for at, _, files in os.walk(folder) for f in files)
        self.transform = T.Compose([T.RandomResizedCrop(PX, scale=(0.14, 1.0), interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip(),
                                    T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), T.RandomGrayscale(0.2), T.ToTensor(),
                                    T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from PIL import Image

        with open(self.files[i], "rb") as f:
            return self.transform(Image.open(f).convert("RGB"))


def speed(model, photos, out, batch, workers, precision):
    begin, done = time.perf_counter(), 0
    tokens = 1 + (PX // PATCH) ** 2
    features = np.lib.format.open_memmap(out, "w+", np.float16, (len(photos), tokens, model.embed_dim))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for x in torch.utils.data.DataLoader(photos, batch, num_workers=workers):
            features[done:done + len(x)] = model.forward_features(x).half().numpy()
            done += len(x)
    features.flush()
    del features
    return done / (time.perf_counter() - begin)


def main():
    if sys.argv[1] == "weights":
        make_weights(int(sys.argv[2]), sys.argv[3])
        return
    weights, folder, out, batch, threads, workers, precision = sys.argv[2:9]
    torch.set_num_threads(int(threads))
    model, photos = teacher(weights), Photos(folder)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(torch.zeros(int(batch), 3, PX, PX))  # as a warm program would be
    print(" ".join("%.2f" % speed(model, photos, out, int(batch), int(w), precision) for w in workers.split(",")))


if __name__ == "__main__":
    main()
