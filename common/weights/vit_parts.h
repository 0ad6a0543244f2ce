/* Inside of common/weights only: what the pieces of ViT detection share.
 *
 * vit_detect.c finds the model in the file and its numbers, vit_tensors.c knows where every canonical parameter lies in each layout, vit_sidecar.c reads the configuration files beside it,
 * vit_foreign.c says what a file is that holds no teacher, vit_named.c knows the published models. */
#ifndef KD_COMMON_WEIGHTS_VIT_PARTS_H
#define KD_COMMON_WEIGHTS_VIT_PARTS_H

#include "common/weights/vit_spec.h"

/* Generous bounds (ViT-7B: width 4096, depth 40), so that later products stay small whatever a file claims. */
enum { KD_VIT_MAX_WIDTH = 16384, KD_VIT_MAX_DEPTH = 256, KD_VIT_MAX_PATCH = 64, KD_VIT_MAX_GRID = 1024, KD_VIT_MAX_HIDDEN = 65536, KD_VIT_MAX_REGISTERS = 256 };
enum { KD_VIT_FULL_NAME = 320, KD_VIT_PARTS = 3, KD_VIT_STEM_PARAMS = 8, KD_VIT_BLOCK_PARAMS = 16 };

/* -- names of a layout (vit_tensors.c) ------------------------------------------------------------------------------------------ */

/* What one layout calls the tensors; block tensors without "blocks.N.". NULL: this layout has no such tensor. */
typedef struct kd_vit_style {
    const char *blocks; /* before the block's number */
    const char *patch_weight, *patch_bias, *cls, *positions, *registers, *norm_weight, *norm_bias;
    const char *qkv_weight[3], *qkv_bias[3]; /* one joined tensor when only [0] is set */
    const char *proj_weight, *proj_bias, *scale1, *scale2;
    const char *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
    const char *gate_weight[2], *gate_bias[2], *out_weight, *out_bias; /* SwiGLU: gate and value, joined when only [0] is set */
    const char *bias_mask, *periods;
} kd_vit_style;

/* What reading needs to know of the file beyond the spec. */
typedef struct kd_vit_file {
    const kd_weights *w;
    const kd_vit_spec *s;
    const kd_vit_style *style;
    const char *blocks; /* the style's, or another that this file uses */
    int chunked;        /* blocks.CHUNK.N instead of blocks.N (dinov2 block_chunks) */
    int class_row;      /* pos_embed has the class token's row */
    int has_bias[3];    /* style->qkv_bias[i] is in the file */
    int has_mask;
} kd_vit_file;

/* Needs family, layout, prefix and depth in s. */
void kd_vit_look(kd_vit_file *f, const kd_weights *w, const kd_vit_spec *s);

/* A tensor of the file, or zeros when name is NULL. */
typedef struct kd_vit_source {
    const char *name;
    int rank;
    int64_t shape[4];
} kd_vit_source;

/* A canonical parameter: its parts one after the other. */
typedef struct kd_vit_param {
    const char *name; /* without "blocks.N." */
    int parts;
    kd_vit_source part[KD_VIT_PARTS];
} kd_vit_param;

int kd_vit_stem_params(const kd_vit_file *f, kd_vit_param out[KD_VIT_STEM_PARAMS]); /* returns how many */
int kd_vit_block_params(const kd_vit_file *f, kd_vit_param out[KD_VIT_BLOCK_PARAMS]);

/* Index of the tensor PREFIX+name, or of a block's; -1 when absent. */
int kd_vit_find(const kd_weights *w, const kd_vit_spec *s, const char *name);
int kd_vit_find_in_block(const kd_vit_file *f, int block, const char *name);
int kd_vit_find_in_any_block(const kd_vit_file *f, const char *name);
/* PREFIX+name or PREFIX+blocks.N.name as the file would call it; block -1 for the former. */
const char *kd_vit_full_name(const kd_vit_file *f, int block, const char *name, char out[KD_VIT_FULL_NAME]);
/* Number of the block in a name without the prefix, with the text after it in *rest; -1: another name, a leading zero, KD_VIT_MAX_DEPTH or more. */
int kd_vit_block_number(const kd_vit_file *f, const char *name, const char **rest);
int kd_vit_is_float(kd_dtype t);

/* -- words ---------------------------------------------------------------------------------------------------------------------- */

/* r->problem = the sentence, unless there is one already. */
void kd_vit_problem(kd_vit_report *r, const char *fmt, ...) KD_PRINTF(2, 3);
int kd_vit_starts(const char *name, const char *prefix);
/* Ends in `tail`, which begins a dotted component: "a.patch_embed.x" but not "my_patch_embed.x". */
int kd_vit_ends_in_path(const char *name, const char *tail);

/* -- other files (vit_foreign.c) -------------------------------------------------------------------------------------------------- */

/* Sets r->problem when the file (prefix NULL), or what lies under prefix, has a tensor that marks another network; at_any_rate: also when nothing is recognised. */
void kd_vit_foreign(const kd_weights *w, const char *prefix, int at_any_rate, kd_vit_report *r);
/* A better r->problem when the file's name says that it is one of several shards. */
void kd_vit_lone_shard(const kd_weights *w, kd_vit_report *r);

/* -- configuration beside the file (vit_sidecar.c) -------------------------------------------------------------------------------- */

/* Reads config.json and preprocessor_config.json for the Hugging Face and timm layouts: heads, ln_eps, normalisation, and values that aren't read (r->problem). Needs the shape numbers;
 * heads 0 = not yet known. KD_EFAIL: memory. */
kd_status kd_vit_sidecars(const kd_weights *w, kd_vit_report *r, kd_err *err);

/* -- what follows from the numbers (vit_named.c) ---------------------------------------------------------------------------------- */

/* Fills what follows from the shape numbers: ln_eps when 0, rotary periods unless from the file, parameters, and mean and std from a named normalisation. */
void kd_vit_set_defaults(kd_vit_spec *s);
/* s->name from the table of known models, or a description. */
void kd_vit_set_name(kd_vit_spec *s);

#endif
