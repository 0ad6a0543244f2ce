"""Names and shapes of every teacher's tensors, as the original implementations have them.

    python make_names.py --dinov2 DIR --dinov3 DIR     # checkouts of facebookresearch/dinov2 and facebookresearch/dinov3

Models are made on the meta device, at full depth, without weights. Writes official.txt, hf.txt and timm.txt beside this script. A file holds one paragraph per model:

    model D N P NAME
    <tensor name> <shape>            `#` stands for the block number, 0 to D-1

D is the depth; N the number of tensors that inference needs (no mask tokens, no classification heads, not local_cls_norm, which DINOv3 has for training); P the numbers in them, buffers (bias_mask,
periods) left out. foreign.txt holds some tensors of networks that are no teachers, a paragraph each: `foreign WORDS`, where WORDS must stand in the sentence that refuses the file.
VERSIONS says with what the committed files were made.
"""
import argparse
import importlib
import os
import platform
import re
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCK = re.compile(r"^(blocks|encoder\.layer|model\.layer|layer)\.(\d+)\.")
UNUSED = re.compile(r"mask_token$|^head\.|^classifier\.|^local_cls_norm\.")
BUFFER = re.compile(r"bias_mask$|periods$")


def paragraph(name, tensors, depth):
    """tensors: {name: shape}. All blocks must be alike, so that one stands for all."""
    stem = {k: s for k, s in tensors.items() if not BLOCK.match(k)}
    blocks = {}
    for k, s in tensors.items():
        m = BLOCK.match(k)
        if m:
            blocks.setdefault(int(m.group(2)), {})[BLOCK.sub(m.group(1) + ".#.", k)] = s
    assert sorted(blocks) == list(range(depth)), (name, sorted(blocks))
    assert all(b == blocks[0] for b in blocks.values()), name
    used = {k: s for k, s in tensors.items() if not UNUSED.search(k)}
    numbers = sum(torch.Size(s).numel() for k, s in used.items() if not BUFFER.search(k))
    lines = [f"model {depth} {len(used)} {numbers} {name}"]
    for k, s in list(stem.items()) + list(blocks[0].items()):
        lines.append(" ".join([k] + [str(n) for n in s]))
    return "\n".join(lines) + "\n"


def shapes(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def write(name, paragraphs):
    with open(os.path.join(HERE, name), "w") as f:
        f.write("\n".join(paragraphs))


def official(dinov2, dinov3):
    out = []
    sys.path.insert(0, dinov2)
    v2 = importlib.import_module("dinov2.models.vision_transformer")
    # dinov2/hub/backbones.py
    for letter, make in (("s", v2.vit_small), ("b", v2.vit_base), ("l", v2.vit_large), ("g", v2.vit_giant2)):
        for registers in (0, 4):
            with torch.device("meta"):
                m = make(patch_size=14, img_size=518, init_values=1.0, ffn_layer="swiglufused" if letter == "g" else "mlp", block_chunks=0, num_register_tokens=registers,
                         interpolate_antialias=registers > 0, interpolate_offset=0.0 if registers else 0.1)
            out.append(paragraph(f"dinov2_vit{letter}14" + ("_reg" if registers else ""), shapes(m), len(m.blocks)))
    sys.path.insert(0, dinov3)
    v3 = importlib.import_module("dinov3.models.vision_transformer")
    # dinov3/hub/backbones.py; the SAT-493M ViT-L has an extra norm
    common = dict(img_size=224, patch_size=16, layerscale_init=1e-5, norm_layer="layernormbf16", n_storage_tokens=4, mask_k_bias=True, pos_embed_rope_dtype="fp32")
    table = [("vits16", 384, 12, 6, 4, "mlp"), ("vits16plus", 384, 12, 6, 6, "swiglu"), ("vitb16", 768, 12, 12, 4, "mlp"), ("vitl16", 1024, 24, 16, 4, "mlp"),
             ("vitl16", 1024, 24, 16, 4, "mlp"), ("vitl16plus", 1024, 24, 16, 6, "swiglu"), ("vith16plus", 1280, 32, 20, 6, "swiglu"), ("vit7b16", 4096, 40, 32, 3, "swiglu64")]
    for i, (name, width, depth, heads, ratio, ffn) in enumerate(table):
        with torch.device("meta"):
            m = v3.DinoVisionTransformer(embed_dim=width, depth=depth, num_heads=heads, ffn_ratio=ratio, ffn_layer=ffn, qkv_bias=name != "vit7b16",
                                         untie_global_and_local_cls_norm=name == "vit7b16" or i == 4, **common)
        out.append(paragraph("dinov3_" + name, shapes(m), depth))
    write("official.txt", out)


def on_the_hub(tensors):
    """DINOv2 as transformers writes it, whatever it calls the tensors in memory since version 5."""
    out = {}
    for k, s in tensors.items():
        for new, old in (("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
                         ("attention.o_proj", "attention.output.dense"), ("mlp.gate_proj", "mlp.weights_in"), ("mlp.down_proj", "mlp.weights_out")):
            k = k.replace(new, old)
        if "mlp.up_proj" not in k:
            out[k] = (2 * s[0],) + s[1:] if "weights_in" in k else s
    return out


def check_on_the_hub():
    """on_the_hub() against a small file that transformers writes."""
    import tempfile
    from safetensors import safe_open
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    for gated in (False, True):
        m = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, use_swiglu_ffn=gated))
        with tempfile.TemporaryDirectory() as d:
            m.save_pretrained(d)
            with safe_open(os.path.join(d, "model.safetensors"), "pt") as f:
                assert {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()} == on_the_hub(shapes(m))


def hugging_face():
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ViTConfig, DINOv3ViTModel
    check_on_the_hub()
    out = []
    for letter, width, depth, heads in (("s", 384, 12, 6), ("b", 768, 12, 12), ("l", 1024, 24, 16), ("g", 1536, 40, 24)):
        for registers in (0, 4):
            sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, patch_size=14, image_size=518, use_swiglu_ffn=letter == "g")
            with torch.device("meta"):
                m = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **sizes)) if registers else Dinov2Model(Dinov2Config(**sizes))
            for tensors in (shapes(m), on_the_hub(shapes(m))):
                out.append(paragraph(f"dinov2_vit{letter}14" + ("_reg" if registers else ""), tensors, depth))
    # transformers' convert_dinov3_vit_to_hf.py
    for name, width, depth, heads, hidden, gated in (("s16", 384, 12, 6, 1536, False), ("s16plus", 384, 12, 6, 1536, True), ("b16", 768, 12, 12, 3072, False),
                                                     ("l16", 1024, 24, 16, 4096, False), ("l16plus", 1024, 24, 16, 4096, True), ("h16plus", 1280, 32, 20, 5120, True),
                                                     ("7b16", 4096, 40, 32, 8192, True)):
        bias = name != "7b16"
        config = DINOv3ViTConfig(patch_size=16, hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth, num_attention_heads=heads, query_bias=bias, value_bias=bias,
                                 use_gated_mlp=gated, hidden_act="silu" if gated else "gelu", num_register_tokens=4)
        with torch.device("meta"):
            m = DINOv3ViTModel(config)
        tensors = shapes(m)
        out.append(paragraph("dinov3_vit" + name, tensors, depth))
        # the files on the hub: written before version 5 renamed the layers in memory
        out.append(paragraph("dinov3_vit" + name, {re.sub(r"^model\.layer\.", "layer.", k): s for k, s in tensors.items()}, depth))
    write("hf.txt", out)


def timm_models():
    import timm
    out = []
    names = []
    for size, letter in (("small", "s"), ("base", "b"), ("large", "l"), ("giant", "g")):
        names += [(f"dinov2_vit{letter}14", f"vit_{size}_patch14_dinov2"), (f"dinov2_vit{letter}14_reg", f"vit_{size}_patch14_reg4_dinov2")]
    for name, size in (("s16", "small"), ("s16plus", "small_plus"), ("b16", "base"), ("l16", "large"), ("h16plus", "huge_plus")):
        names += [(f"dinov3_vit{name}", f"vit_{size}_patch16_dinov3"), (f"dinov3_vit{name}", f"vit_{size}_patch16_dinov3_qkvb")]
    names += [("dinov3_vit7b16", "vit_7b_patch16_dinov3")]
    names += [(n, n) for n in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224", "vit_small_patch8_224", "vit_base_patch8_224",
                               "vit_large_patch14_224", "vit_huge_patch14_224")]
    names += [(n.replace("deit", "vit"), n) for n in ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")]
    names += [("timm d384 depth12 patch16", "deit3_small_patch16_224"), ("timm d1280 depth32 patch14", "deit3_huge_patch14_224")]
    for name, model in names:
        with torch.device("meta"):
            m = timm.create_model(model)
        out.append(paragraph(name, shapes(m), len(m.blocks)))
    write("timm.txt", out)


def excerpt(words, module):
    """The first and the last tensors: enough to recognise an architecture."""
    tensors = list(shapes(module).items())
    return "\n".join([f"foreign {words}"] + [" ".join([k] + [str(n) for n in s]) for k, s in tensors[:14] + tensors[14:][-6:]]) + "\n"


def foreign():
    import timm
    import torchvision
    import transformers as t
    out = []
    with torch.device("meta"):
        for words, name in (("ResNet", "resnet18"), ("ConvNeXt", "convnext_tiny"), ("Swin", "swin_tiny_patch4_window7_224"), ("EfficientNet", "efficientnet_b0"),
                            ("MobileNet", "mobilenetv3_small_100"), ("BEiT", "beit_base_patch16_224"), ("EVA", "eva02_tiny_patch14_224"), ("CLIP", "vit_base_patch16_clip_224"),
                            ("SigLIP", "vit_base_patch16_siglip_224"), ("distilled", "deit_tiny_distilled_patch16_224"), ("SAM", "samvit_base_patch16"),
                            ("no class token", "vit_base_patch16_gap_224"), ("pools patch tokens", "vit_medium_patch16_reg4_gap_256"), ("no class token", "hiera_tiny_224"),
                            ("RegNet", "regnety_002"), ("hybrid", "vit_base_r50_s16_224")):
            out.append(excerpt(words, timm.create_model(name)))
        for words, make in (("ResNet", torchvision.models.resnet50), ("ConvNeXt", torchvision.models.convnext_tiny), ("torchvision", torchvision.models.vit_b_16),
                            ("Swin", torchvision.models.swin_t), ("MobileNet", torchvision.models.mobilenet_v3_small)):
            out.append(excerpt(words, make()))
        small = dict(num_hidden_layers=2)
        for words, model in (
            ("BERT", t.BertModel(t.BertConfig(**small))), ("language model", t.LlamaForCausalLM(t.LlamaConfig(hidden_size=64, intermediate_size=64, num_attention_heads=2, **small))),
            ("GPT-2", t.GPT2Model(t.GPT2Config(n_layer=2))), ("T5", t.T5Model(t.T5Config(num_layers=2))),
            ("plain ViT in the Hugging Face layout", t.ViTModel(t.ViTConfig(**small))), ("plain ViT in the Hugging Face layout", t.ViTForImageClassification(t.ViTConfig(**small))),
            ("CLIP", t.CLIPModel(t.CLIPConfig(vision_config=small, text_config=small))), ("SigLIP", t.SiglipModel(t.SiglipConfig(vision_config=small, text_config=small))),
            ("Swin", t.SwinModel(t.SwinConfig(depths=[1, 1], num_heads=[1, 1]))), ("ConvNeXt", t.ConvNextModel(t.ConvNextConfig(depths=[1, 1, 1, 1]))), ("BEiT", t.BeitModel(t.BeitConfig(**small))),
            ("ResNet", t.ResNetModel(t.ResNetConfig(depths=[1, 1, 1, 1]))), ("ConvNeXt", t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(depths=[1, 1, 1, 1]))),
            ("Hugging Face layout", t.IJepaModel(t.IJepaConfig(**small))), ("Whisper", t.WhisperModel(t.WhisperConfig(encoder_layers=1, decoder_layers=1))),
        ):
            out.append(excerpt(words, model))
    write("foreign.txt", out)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--dinov2", required=True)
    p.add_argument("--dinov3", required=True)
    a = p.parse_args()
    os.environ["XFORMERS_DISABLED"] = "1"
    official(a.dinov2, a.dinov3)
    hugging_face()
    timm_models()
    foreign()
    import timm
    import transformers
    with open(os.path.join(HERE, "VERSIONS"), "w") as f:
        f.write(f"python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, timm {timm.__version__}\n")
