/* What a ViT weight file is: family, shape numbers, where every parameter lies, inferred from the file alone.
 *
 * Stands between weights.h (named tensors) and kernels/nn (a graph whose parameters carry canonical names). Three families in the three layouts that people have on disk:
 * DINOv2 (with or without register tokens), DINOv3 and the plain ViT of timm and DeiT; official names, Hugging Face's and timm's. What the file calls its tensors, splits or leaves out
 * ends here: kd_vit_read gives every parameter under its canonical name.
 *
 *     kd_vit_spec s;
 *     KD_TRY(kd_vit_detect(w, NULL, &s, err));                              // s.name "dinov3_vitb16", s.layout KD_VIT_LAYOUT_HF, ...
 *     KD_TRY(kd_vit_read(w, &s, "blocks.0.attn.qkv.weight", out, (size_t)3 * s.width * s.width, err)); // joined from q_proj, k_proj, v_proj
 *
 * Canonical names (official DINOv2's), whatever the layout: cls_token [1,1,D]; pos_embed [1,1+g*g,D] (learned positions only, in the file's grid g; row 0 is zero where the file's class token
 * already contains it); register_tokens [1,R,D] (with registers; DINOv3's storage tokens); patch_embed.proj.weight [D,3,P,P], .bias [D]; per block N: blocks.N.norm1.weight, .bias,
 * blocks.N.attn.qkv.weight [3D,D], .bias [3D] (zeros where the file has none; for DINOv3 masked, with the k third zero), blocks.N.attn.proj.*, blocks.N.ls1.gamma and ls2.gamma (with layer_scale),
 * blocks.N.norm2.*, and blocks.N.mlp.fc1.*, fc2.* or, for SwiGLU, blocks.N.mlp.w12.* [2F,D] (gate rows, then value rows) and w3.*; norm.weight, norm.bias.
 *
 * Thread rule: a spec is plain data; reading follows weights.h. */
#ifndef KD_COMMON_WEIGHTS_VIT_SPEC_H
#define KD_COMMON_WEIGHTS_VIT_SPEC_H

#include "common/base/mem.h"
#include "common/weights/weights.h"

typedef enum kd_vit_family { KD_VIT_DINOV2 = 0, KD_VIT_TIMM = 1 /* plain timm or DeiT ViT */, KD_VIT_DINOV3 = 2 } kd_vit_family;
/* Whose names the tensors in the file have. */
typedef enum kd_vit_layout { KD_VIT_LAYOUT_OFFICIAL = 0, KD_VIT_LAYOUT_HF = 1, KD_VIT_LAYOUT_TIMM = 2 } kd_vit_layout;
typedef enum kd_ffn_kind { KD_FFN_GELU = 0, KD_FFN_SWIGLU = 1 } kd_ffn_kind;
/* How learned positions are resized to another grid: official DINOv2 (bicubic; without registers offset 0.1 and no antialiasing, with registers antialiased), Hugging Face (bicubic by size,
 * antialiased only with registers), timm (bicubic, antialiased). Without registers the official and timm's DINOv2 share their names: a file is official when it has mask_token, mlp.w12, chunked blocks
 * or a classifier over 2 * width (all official files have mask_token), else timm's; --positions overrides what follows from it. Rotary positions have no profile; the field is then the layout's own and unused. */
typedef enum kd_pos_profile { KD_POS_OFFICIAL = 0, KD_POS_HF = 1, KD_POS_TIMM = 2 } kd_pos_profile;
enum { KD_VIT_MAX_PERIODS = 64 };

typedef struct kd_vit_spec {
    kd_vit_family family;
    kd_vit_layout layout;
    int width, depth, heads, patch;
    kd_ffn_kind ffn;
    int ffn_hidden;                   /* swiglu: after the gate */
    int layer_scale;                  /* blocks have ls1.gamma, ls2.gamma */
    int registers;
    int pos_grid;                     /* side of the learned square grid in the file: 37 for DINOv2, 14 for patch16_224; 0 = rotary positions */
    int pos_columns;                  /* 0; or that grid isn't square: pos_grid rows of so many columns (our own students: metadata "kdcache_image_size") */
    kd_pos_profile positions;         /* the layout's own; --positions overrides it */
    int periods;                      /* rotary: head width / 4, else 0 */
    float period[KD_VIT_MAX_PERIODS]; /* from the file (official DINOv3: rounded to bf16), else 100^(2i / (head width / 2)) in f32 */
    int periods_from_file;
    double ln_eps;                    /* 1e-6; DINOv3 1e-5; Hugging Face: config.json's */
    float mean[3], std[3];            /* normalisation of the teacher's input, for pixels in 0..1 */
    const char *normalisation;        /* static text: "imagenet", "half", "dinov3-sat", "from preprocessor_config.json", "from config.json" */
    int64_t parameters;               /* used in inference: no mask token, heads, buffers */
    char name[64];                    /* the hub's ("dinov2_vits14_reg", "dinov3_vitb16", "vit_tiny_patch16_224") or a description ("dinov2 d128 depth6 patch14") */
    char prefix[128];                 /* text before the model's names in this file ("", "module.", "teacher.backbone."...) */
} kd_vit_spec;

/* Columns of the learned grid. */
static inline int kd_vit_pos_columns(const kd_vit_spec *s) { return s->pos_columns > 0 ? s->pos_columns : s->pos_grid; }

/* Which ViT w holds. prefix NULL: found (in a checkpoint with a student and a teacher, the teacher); else the model whose names begin with this text, as --weights-key gives it (a final dot may be
 * left out). Every tensor of the model must be there once with its shape and a floating-point type, and nothing unknown may stand beside it under the prefix but mask tokens and training heads.
 * KD_EUSAGE with a sentence that says what the file seems to be and what would work: no ViT, a ViT that isn't read, several models, missing or unexpected tensors. KD_EFAIL: damaged values, memory. */
kd_status kd_vit_detect(const kd_weights *w, const char *prefix, kd_vit_spec *spec, kd_err *err);

/* Reads one canonical parameter as `count` f32 values. The spec is kd_vit_detect's for the same w; name and count must be its (KD_EFAIL naming both otherwise). KD_EFAIL: damaged or non-finite values. */
kd_status kd_vit_read(const kd_weights *w, const kd_vit_spec *s, const char *name, float *out, size_t count, kd_err *err);

/* Everything about a file at once, for --inspect. */
enum { KD_VIT_LISTED = 20 };
typedef struct kd_vit_list {
    size_t count;
    const char *name[KD_VIT_LISTED]; /* the first ones, owned by the report */
} kd_vit_list;
typedef struct kd_vit_report {
    kd_vit_spec spec;
    int have_spec;         /* the numbers in spec are known; the file is usable when also problem is empty */
    size_t used;           /* tensors in the file that inference needs */
    kd_vit_list missing, unexpected;
    kd_vit_list misshapen; /* "NAME has shape ..., expected ..." */
    kd_vit_list ignored;   /* under the prefix, known and unused: mask token, heads, buffers */
    size_t outside;        /* tensors of other objects in the file: student, optimizer */
    char problem[1200];    /* the sentence of kd_vit_detect, or "" */
    kd_arena *names;
} kd_vit_report;
/* KD_OK also when the file isn't a teacher: then r->problem says why. KD_EFAIL: damaged values, memory; r needs no free then. */
kd_status kd_vit_inspect(const kd_weights *w, const char *prefix, kd_vit_report *r, kd_err *err);
void kd_vit_report_free(kd_vit_report *r);

/* The models with a name, as their official file would be described (no prefix; normalisation and positions of that library). 0 when the name isn't known.
 * Names: dinov2_vit{s,b,l,g}14[_reg], dinov3_vit{s16,s16plus,b16,l16,l16plus,h16plus,7b16}, vit_{tiny,small,base,large}_patch{8,14,16}_224, deit_{tiny,small,base}_patch16_224. */
int kd_vit_named(const char *name, kd_vit_spec *spec);
size_t kd_vit_names(const char *const **names);

const char *kd_vit_family_name(kd_vit_family f);      /* "dinov2", "timm", "dinov3" */
const char *kd_vit_layout_name(kd_vit_layout l);      /* "official", "Hugging Face", "timm" */
const char *kd_pos_profile_name(kd_pos_profile p);    /* "official", "hf", "timm" */
int kd_pos_profile_parse(const char *text, kd_pos_profile *p); /* 0 for another text */
/* "imagenet", "half" (0.5), "dinov3-sat" or "M,M,M/S,S,S" (finite, S > 0); KD_EUSAGE quoting the text. */
kd_status kd_normalisation_parse(const char *text, float mean[3], float std[3], kd_err *err);

#endif
