/* The builders behind the registry (model_find.c, models.c). Each adds one network to a graph, from the normalised images on, and returns its taps (not yet outputs).
 *
 * A family of CNNs is one file that ends in a kd_model_family: its names, their numbers, its builder, and how to tell its members apart in a weight file. Parameters have the names of the library's
 * state_dict, so loading and exporting need nothing else; what the state_dict has and no feature reads (classifiers) is carried (kd_graph_carry_linear). A new family is such a file, its kind in models.h and
 * a line in model_find.c. */
#ifndef KD_KERNELS_NN_MODEL_BUILDERS_H
#define KD_KERNELS_NN_MODEL_BUILDERS_H

#include "kernels/nn/models.h"

typedef struct kd_model_entry {
    const char *name;
    int width;
    const void *config; /* what build and matches read: kd_model_info.config */
    int branches;       /* residual branches for drop path, one in a block; 0: none */
} kd_model_entry;

typedef struct kd_model_family {
    kd_model_kind kind;
    const char *library;
    kd_model_norm norm;
    int multiple, smallest, usual; /* kd_model_info's */
    float mean[3], std[3];
    const kd_model_entry *entries;
    size_t count;
    /* What all names of the state_dict begin with and a file of a part of the model may lack ("model." of a YOLO, gone from model.model[:10].state_dict()); NULL: nothing. In files such names are
     * looked for behind the prefix without it. */
    const char *stem;
    /* A tensor that every member has and no other family does, without the stem: where it stands tells the prefix. */
    const char *anchor;
    /* Whether the file holds this member behind the prefix, whole but perhaps for classifiers and counters: decided by a few tensors, so that a damaged file is still recognised and then refused by name. */
    int (*matches)(const kd_weights *w, const char *prefix, const kd_model_entry *e);
    /* x: normalised images [H,W,3]. */
    kd_model_taps (*build)(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o);
} kd_model_family;

extern const kd_model_family kd_resnet_family, kd_mobilenet_family, kd_convnext_family, kd_yolo_family;
/* The family of m; NULL for a ViT, which has builders of its own. */
const kd_model_family *kd_model_family_of(const kd_model_info *m);

/* Mean and deviation of torchvision's weights. */
#define KD_IMAGENET_MEAN {0.485f, 0.456f, 0.406f}
#define KD_IMAGENET_STD {0.229f, 0.224f, 0.225f}

/* Whether the file has the tensor prefix + name, of this shape (rank 0: of any). */
int kd_model_file_has(const kd_weights *w, const char *prefix, const char *name, int rank, const int64_t *shape);

/* Appends x [h,w,C] to the taps under the name that the format gives; beyond KD_MODEL_TAPS the first one goes. */
void kd_model_add_tap(kd_graph *g, kd_model_taps *taps, kd_val x, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* map, its size, and pooled = cls = its global average: how most CNNs end. */
void kd_model_set_map(kd_graph *g, kd_model_taps *taps, kd_val x);

/* y, the result of residual branch i before its join, through drop path; y itself where its chance is 0. */
kd_val kd_model_drop_path(kd_graph *g, kd_val y, const kd_model_info *m, const kd_model_options *o, int branch);

kd_model_taps kd_vit_build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o);
void kd_vit_build_layers(kd_graph *g, kd_val x, const kd_model_info *m, const kd_layer_choice *choice); /* names its outputs */

/* pos_embed [1 + from_h*from_w, width] of a file, for an image of to_h*to_w patches: out [1 + to_h*to_w, width]. The class token's row is copied; when the target is the file's own grid,
 * everything is. registers: whether the model has some (official and hf choose their filter by it). KD_EFAIL: memory. */
kd_status kd_pos_embed_resize(float *out, const float *in, int from_h, int from_w, int to_h, int to_w, int width, kd_pos_profile profile, int registers, kd_err *err);

/* A graph with this model alone: its parameters are the reference library's state_dict, heads excluded. Freed by the caller. */
kd_status kd_model_graph(kd_graph **out, const kd_model_info *m, kd_err *err);

#endif
