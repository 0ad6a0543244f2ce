/* What a file is that holds no teacher, told by a tensor that only that kind of network has. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/weights/vit_parts.h"

#define USE_TIMM "; the same model in timm's layout (patch_embed.proj, blocks.N) works"
#define USE_OTHER "; use a DINOv2, DINOv3 or plain ViT"

/* The first that matches names the file, so special marks stand before general ones. A mark matches at the start of a dotted component: "wte.weight" in "transformer.wte.weight". */
static const struct mark {
    const char *mark;
    const char *what; /* after "the file" */
} marks[] = {
    /* ViTs that compute something else */
    {"patch_embed.backbone.stem.conv.weight", "is a hybrid of a ResNet and a ViT" USE_OTHER},
    {"dist_token", "is a distilled DeiT with a distillation token, which isn't read" USE_OTHER ", or a DeiT without _distilled in its name"},
    {"embeddings.distillation_token", "is a distilled DeiT in the Hugging Face layout, which isn't read; use timm's deit_..._patch16_224"},
    {"norm_pre.weight", "is a CLIP image tower (a ViT with a norm before its blocks), which isn't read" USE_OTHER},
    {"attn_pool.kv.weight", "is a SigLIP image tower (no class token, attention pooling), which isn't read" USE_OTHER},
    {"attn_pool.mlp.fc1.weight", "is a SigLIP image tower (no class token, attention pooling), which isn't read" USE_OTHER},
    {"blocks.0.attn.relative_position_bias_table", "is a BEiT (relative position bias), which isn't read" USE_OTHER},
    {"rel_pos_bias.relative_position_bias_table", "is a BEiT (relative position bias), which isn't read" USE_OTHER},
    {"blocks.0.attn.rel_pos_h", "is SAM's image encoder (relative positions, windows), which isn't read" USE_OTHER},
    {"blocks.0.attn.q_norm.weight", "is a ViT with query and key norms, which isn't read" USE_OTHER},
    {"cls_norm.weight", "is a DINOv3 with a norm of its own for the class token (untie_cls_and_patch_norms), which isn't read; the released DINOv3 models have one norm"},
    {"blocks.0.ffn.w12.weight", "is a Sapiens model, which isn't read" USE_OTHER},
    {"fc_norm.weight", "is a ViT that pools patch tokens before its norm (fc_norm: MAE fine-tuned, BEiT, EVA or a _gap_ model), which isn't read" USE_OTHER},
    {"layers.0.blocks.0.attn.relative_position_bias_table", "is a Swin transformer, which isn't read" USE_OTHER},
    {"encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table", "is a Swin transformer, which isn't read" USE_OTHER},
    {"encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", "is a Swin transformer, which isn't read" USE_OTHER},
    {"encoder.layers.0.blocks.0.attention.q_proj.weight", "is a Swin transformer, which isn't read" USE_OTHER},
    {"features.1.0.attn.relative_position_bias_table", "is torchvision's Swin transformer, which isn't read" USE_OTHER},
    {"layers.0.lambda_1", "is a BEiT in the Hugging Face layout, which isn't read" USE_OTHER},
    {"encoder.layer.0.lambda_1", "is a BEiT in the Hugging Face layout, which isn't read" USE_OTHER},
    {"encoder.layer.0.layernorm_before.weight", "is a plain ViT in the Hugging Face layout, which isn't read" USE_TIMM},
    {"layers.0.layernorm_before.weight", "is a plain ViT in the Hugging Face layout, which isn't read" USE_TIMM},
    {"encoder.stages.0.layers.0.dwconv.weight", "is a ConvNeXt, which isn't read" USE_OTHER},
    {"encoder.layers.encoder_layer_0.ln_1.weight", "is torchvision's ViT, which isn't read" USE_TIMM},
    /* networks of convolutions */
    {"stages.0.layers.0.depthwise_conv.weight", "is a ConvNeXt (DINOv3's convolutional models too), which isn't read" USE_OTHER},
    {"stages.0.0.dwconv.weight", "is a ConvNeXt (DINOv3's convolutional models too), which isn't read" USE_OTHER},
    {"stages.0.blocks.0.conv_dw.weight", "is a ConvNeXt, which isn't read" USE_OTHER},
    {"features.1.0.layer_scale", "is torchvision's ConvNeXt, which isn't read as a teacher" USE_OTHER},
    {"layer1.0.conv1.weight", "is a ResNet, which isn't a teacher" USE_OTHER},
    {"embedder.embedder.convolution.weight", "is a ResNet in the Hugging Face layout, which isn't a teacher" USE_OTHER},
    {"s1.b1.conv1.conv.weight", "is a RegNet, which isn't a teacher" USE_OTHER},
    {"model.0.conv.weight", "is a YOLO, which isn't a teacher" USE_OTHER},
    {"conv_stem.weight", "is an EfficientNet or MobileNet, which isn't a teacher" USE_OTHER},
    {"features.0.0.weight", "is a MobileNet, EfficientNet or another network of convolutions, which isn't a teacher" USE_OTHER},
    /* text, sound and both */
    {"logit_bias", "is a SigLIP, which isn't read" USE_OTHER},
    {"vision_model.embeddings.patch_embedding.weight", "is a CLIP or SigLIP, which isn't read" USE_OTHER},
    {"visual.conv1.weight", "is a CLIP, which isn't read" USE_OTHER},
    {"text_model.embeddings.token_embedding.weight", "is a CLIP, which isn't read" USE_OTHER},
    {"embeddings.word_embeddings.weight", "is a text model (BERT or alike), not a ViT" USE_OTHER},
    {"wte.weight", "is a text model (GPT-2 or alike), not a ViT" USE_OTHER},
    {"encoder.block.0.layer.0.SelfAttention.q.weight", "is a text model (T5), not a ViT" USE_OTHER},
    {"encoder.embed_positions.weight", "is a speech or translation model (Whisper, BART), not a ViT" USE_OTHER},
    {"embed_tokens.weight", "is a text model (a language model such as LLaMA), not a ViT" USE_OTHER},
    {"tok_embeddings.weight", "is a text model (a language model such as LLaMA), not a ViT" USE_OTHER},
};

/* The mark stands in the name from the start of a component on, and ends with the name. */
static const char *marked(const kd_weights *w, const char *prefix, const struct mark **which)
{
    for (size_t m = 0; m < sizeof marks / sizeof *marks; m++)
        for (int i = 0; i < kd_weights_count(w); i++) {
            const char *name = kd_weights_info(w, i).name;
            if (prefix == NULL ? kd_vit_ends_in_path(name, marks[m].mark) : kd_vit_starts(name, prefix) && strcmp(name + strlen(prefix), marks[m].mark) == 0) {
                *which = &marks[m];
                return name;
            }
        }
    return NULL;
}

static int is_adapter(const char *name) { return strstr(name, ".lora_A.") != NULL || strstr(name, ".lora_down.") != NULL; }

void kd_vit_foreign(const kd_weights *w, const char *prefix, int at_any_rate, kd_vit_report *r)
{
    const struct mark *which = NULL;
    const char *name = marked(w, prefix, &which);
    if (name != NULL) {
        kd_vit_problem(r, "%s: the file %s (it has the tensor '%.100s')", kd_weights_path(w), which->what, name);
        return;
    }
    if (!at_any_rate)
        return;
    int n = kd_weights_count(w);
    name = n > 0 ? kd_weights_info(w, 0).name : "";
    if (is_adapter(name))
        kd_vit_problem(r, "%s: the file is a LoRA adapter, not a whole model (it has the tensor '%.100s')" USE_OTHER, kd_weights_path(w), name);
    else
        kd_vit_problem(r, "%s: the file holds no ViT: none of its %d tensors is a patch embedding (the first is '%.100s')" USE_OTHER, kd_weights_path(w), n, name);
}

/* "model-00001-of-00002.safetensors": 1 and 2. */
static int shard_numbers(const char *path, int *number, int *of)
{
    const char *base = strrchr(path, '/');
    const char *at = strstr(base != NULL ? base : path, "-of-");
    char *end;
    if (at == NULL || at - path < 5 || !isdigit((unsigned char)at[4]))
        return 0;
    const char *digits = at;
    while (digits > path && isdigit((unsigned char)digits[-1]))
        digits--;
    if (digits == at || at - digits > 6)
        return 0;
    *number = (int)strtol(digits, NULL, 10);
    long n = strtol(at + 4, &end, 10);
    *of = n < 100000 ? (int)n : 0;
    return *end == '.' && *of > 1 && *number <= *of;
}

void kd_vit_lone_shard(const kd_weights *w, kd_vit_report *r)
{
    int number, of;
    if (kd_weights_files(w) == 1 && shard_numbers(kd_weights_path(w), &number, &of))
        snprintf(r->problem, sizeof r->problem, "%s: the file is shard %d of %d and holds a part of the model; pass the folder, or the index beside the shards (such as model.safetensors.index.json)", kd_weights_path(w), number, of);
}
