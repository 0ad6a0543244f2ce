/* What a ViT weight file is: family, shape numbers and the name of every tensor, inferred from the file alone.
 *
 * Stands between weights.h (named tensors) and kernels/nn/vit.h (a graph whose parameters carry the official DINOv2 or timm names).
 * Supported: the official DINOv2 layout without registers (S/B/L/g and any width that is a multiple of its head width), and timm's plain
 * ViT (class token, learned positions, no LayerScale). Detection recipe: the patch embedding is the anchor; width and patch come from its
 * shape, depth from the highest block number, FFN kind and width from the block's tensors, the position grid from pos_embed. */
#ifndef KD_COMMON_WEIGHTS_VIT_NAMES_H
#define KD_COMMON_WEIGHTS_VIT_NAMES_H

#include "common/weights/weights.h"

typedef enum kd_vit_family { KD_VIT_DINOV2 = 0, KD_VIT_TIMM = 1 } kd_vit_family;
typedef enum kd_ffn_kind { KD_FFN_GELU = 0, KD_FFN_SWIGLU_PACKED = 1 /* w12, w3 of DINOv2 g */ } kd_ffn_kind;

typedef struct kd_vit_spec {
    kd_vit_family family;
    int width, depth, heads, patch;
    kd_ffn_kind ffn;
    int ffn_hidden;       /* rows of fc1, or half the rows of w12 */
    int layer_scale;      /* blocks have ls1.gamma, ls2.gamma */
    int pos_grid;         /* side of the square position grid in the file: 37 for DINOv2, 14 for patch16_224 */
    int registers;        /* 0 here */
    double ln_eps;        /* 1e-6 */
    char name[64];        /* "dinov2_vits14", "vit_tiny_patch16_224" or a description "dinov2 d128 depth6 patch14" */
    char prefix[64];      /* text before the official names in this file ("", "module.", "backbone."...) */
} kd_vit_spec;

/* KD_EFAIL naming the tensor: no or several patch embeddings (a teacher beside its student is taken), missing or unexpected tensors,
 * inconsistent shapes, weights that aren't floating point; and, by name, families that aren't read (registers, DINOv3, Hugging Face layout).
 * Unexpected names under the prefix are refused except mask_token, head.*, dino_head.*, ibot_head.*; names outside it are other objects of a
 * checkpoint (student, heads, optimizer) and are ignored. heads: 64-wide heads for DINOv2; timm: 192->3, 384->6, 768->12 (width / 64). */
kd_status kd_vit_detect(const kd_weights *w, kd_vit_spec *spec, kd_err *err);

#endif
