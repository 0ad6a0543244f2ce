/* Models: the registry of networks that can be a teacher or a student, built as graphs with the reference library's parameter names.
 *
 *     kd_model_info m;                                                        // a student, or any network to look at:
 *     KD_TRY(kd_model_find(&m, "resnet18", NULL, err));                       // by name, or "auto" with a weight file
 *     kd_model_taps taps = kd_model_build(g, &m, 224, 224);                   // height, width
 *     KD_TRY(kd_params_create(&p, g, backend, err));
 *     KD_TRY(kd_model_load(p, &m, weights, 224, 224, err));                   // or kd_params_init
 *
 *     KD_TRY(kd_model_find_teacher(&m, "auto", weights, &choice, err));       // a teacher: chosen features of chosen layers, parameters that only pass through
 *     kd_model_build_layers(g, &m, 224, 224, &(kd_layer_choice){.layers = 1, .layer = {1}, .norm = 1, .features = KD_WANT_CLS | KD_WANT_PATCH});
 *     KD_TRY(kd_model_params_frozen(&p, g, backend, &m, weights, 224, 224, err));
 *     KD_TRY(kd_exec_create(&e, g, p, &config, err));                         // reads and packs; weights may be closed now
 *     KD_TRY(kd_exec_download(e, "patch.1", rows, out, err));
 *
 * Names of students: torchvision's CNNs and ultralytics' YOLO backbones (kd_model_students lists them), DINOv2's and timm's ViTs as kd_vit_names has them, and "dinov2_wW_dD" for a ViT in DINOv2 layout with width W (a multiple
 * of 64, heads = W/64), depth D, patch 14. Teachers: kd_vit_names and "dinov2_wW_dD". DINOv3 can be looked at and teach, but isn't a student: nothing exports it.
 * A new family of CNNs is a file with its builder and its table of names (kd_model_family in model_builders.h). */
#ifndef KD_KERNELS_NN_MODELS_H
#define KD_KERNELS_NN_MODELS_H

#include "common/weights/vit_spec.h"
#include "kernels/nn/graph.h"

typedef enum kd_model_kind {
    KD_MODEL_VIT,
    KD_MODEL_RESNET,
    KD_MODEL_MOBILENET,
    KD_MODEL_CONVNEXT,
    KD_MODEL_YOLO,
} kd_model_kind;
/* By what most of a model's layers normalise: optimisation has other defaults for each (train/config.h). */
typedef enum kd_model_norm { KD_MODEL_BATCH_NORM, KD_MODEL_LAYER_NORM } kd_model_norm;
enum { KD_MODEL_PREFIX = 128 };

typedef struct kd_model_info {
    char name[64];
    kd_model_kind kind;
    const void *config;    /* numbers of the builder, static; NULL for KD_MODEL_VIT */
    kd_vit_spec vit;       /* for KD_MODEL_VIT; mean, std and positions as chosen */
    int width;             /* channels of pooled, cls and map: 512 for resnet18 */
    int multiple;          /* image sides must be multiples of this: the patch, or 1 */
    int smallest;          /* smallest image side: the patch, or 32 */
    int usual;             /* side of the library's default input: 224 */
    int one_size;          /* its parameters fit one image size (learnt positions): a student of it sees all its views at that size */
    int branches;          /* residual branches that drop path works on: two per block of a ViT; 0 for models without drop path */
    int block_branches;    /* of them in one block */
    kd_model_norm norm;
    int from_file;         /* found with the weights: vit and prefix are the file's, and reading them needs no second look */
    char prefix[KD_MODEL_PREFIX]; /* text before a CNN's names (for a YOLO without their "model.") in that file ("", "module.", "state_dict.backbone."); a ViT's is vit.prefix */
    float mean[3], std[3]; /* normalisation, applied to the uint8 view */
    const char *library;   /* "torchvision", "ultralytics", "timm", "dinov2", "dinov3" */
} kd_model_info;

enum { KD_MODEL_TAPS = 64, KD_MODEL_TAP_NAME = 24 };
/* A map inside the model by the library's name for the layer that makes it: what a hook on that layer sees, channels last. */
typedef struct kd_model_tap {
    char name[KD_MODEL_TAP_NAME];
    kd_val val; /* [h,w,channels]; F32 or the precision: kd_graph_as_f32 before it leaves the device */
    int h, w, channels;
} kd_model_tap;

/* Values in the graph. pooled [C]: what the library's classifier reads (global average; for ConvNeXt that through the norm that torchvision calls classifier.0; class token after the final norm).
 * cls [C]: the class token after the final norm, for CNNs the same value as pooled. map [h,w,C]: the feature map, patch tokens after the final norm in row-major order. These three are F32 outputs,
 * named as here. tap: maps by name in order of depth: ResNet "layer1" .. "layer4"; MobileNet "features.0" to the last;
 * ConvNeXt "features.1", .3, .5, .7; YOLO the maps that detection uses, "model.4", "model.6" and "model.9" (YOLO11: "model.10"); ViT "blocks.0" ..
 * (patch tokens as the block leaves them, without the final norm; of more than
 * KD_MODEL_TAPS blocks the last ones). A tap is no output and costs nothing until something reads it. */
typedef struct kd_model_taps {
    kd_val pooled, cls, map;
    int map_h, map_w;
    int maps;
    kd_model_tap tap[KD_MODEL_TAPS];
} kd_model_taps;
/* The tap of this name, or NULL. */
const kd_model_tap *kd_model_tap_find(const kd_model_taps *taps, const char *name);

/* name "auto" needs weights and infers everything from the file; with a name and weights the two are checked against each other. The position grid isn't: it is the file's. A timm ViT's
 * name also says the normalisation, unless a file beside the weights does. KD_EUSAGE: unknown name (nearest one given), a name that isn't what the file holds, a file that holds no model (kd_vit_detect).
 * weights may be NULL: then the name must be a student's, and a DINOv2 layout's position grid will be that of the image it is built for. */
kd_status kd_model_find(kd_model_info *m, const char *name, const kd_weights *weights, kd_err *err);
/* KD_EUSAGE when m can't be trained and exported (DINOv3). */
kd_status kd_model_check_student(const kd_model_info *m, kd_err *err);
/* Name of student i, CNNs first; NULL behind the last. "dinov2_wW_dD" isn't among them. */
const char *kd_model_students(size_t i);

/* What a user may say about a teacher beside its name; NULL and "auto" leave it to the file. */
typedef struct kd_teacher_choice {
    const char *prefix;    /* which model of a checkpoint: --weights-key */
    const char *positions; /* "official", "hf", "timm" */
    const char *normalize; /* "imagenet", "half", "dinov3-sat", "M,M,M/S,S,S" */
} kd_teacher_choice;
/* The ViT in a file, with the user's choices. name "auto", or one that only checks: nothing is taken from it. KD_EUSAGE beside kd_model_find's causes: an unknown profile or normalisation; positions
 * for a model whose positions are rotary; a name whose normalisation differs from what was guessed, where nothing in or beside the file says it (a DeiT's weights look like a ViT's). */
kd_status kd_model_find_teacher(kd_model_info *m, const char *name, const kd_weights *weights, const kd_teacher_choice *choice, kd_err *err);

/* KD_EUSAGE when a side isn't a multiple of m->multiple, below m->smallest or above 8192. */
kd_status kd_model_check_size(const kd_model_info *m, int height, int width, kd_err *err);
/* Adds the network to g, from input "images" [height,width,3] on, with its initialisation. */
kd_model_taps kd_model_build(kd_graph *g, const kd_model_info *m, int height, int width);

/* What is only for training. Zeros: nothing of it. */
typedef struct kd_model_options {
    double drop_path; /* chance that a residual branch is dropped for an image, in the last block; less before it (kd_model_drop_chance). Below 1 */
} kd_model_options;
/* The same with these options; the parameters are the same ones. Every residual branch i that may be dropped is multiplied by the F32 input "drop_path.i" [1]: for each image 0 or
 * 1 / (1 - chance), so that the mean stays (timm DropPath, torchvision StochasticDepth "row"). For the graph of a training program. */
kd_model_taps kd_model_build_with(kd_graph *g, const kd_model_info *m, int height, int width, const kd_model_options *o);
/* The chance of branch i < m->branches: grows linearly with the block from 0 in the first to drop_path in the last (timm vision_transformer.py, torchvision convnext.py). With 0 there is no input. */
double kd_model_drop_chance(const kd_model_info *m, double drop_path, int branch);

/* What a model costs and gives at one image size, counted from its graph; nothing is allocated on a device. */
typedef struct kd_model_facts {
    size_t parameters;  /* trained: heads and carried parameters excluded */
    double flops;       /* of one image forward, 2 per multiply-add (kd_op_flops) */
    kd_model_taps taps; /* sizes; the values belong to a graph that is gone */
} kd_model_facts;
/* The size must have passed kd_model_check_size. KD_EFAIL: memory. */
kd_status kd_model_measure(kd_model_facts *f, const kd_model_info *m, int height, int width, kd_err *err);

/* ---- teachers ---- */

enum { KD_LAYERS_MAX = 64 };
/* Bits of features; 1 << KD_FEATURE_* of cache/record.h, which kernels can't include. */
enum { KD_WANT_CLS = 1, KD_WANT_PATCH = 2, KD_WANT_REGISTERS = 4, KD_WANT_MEAN = 8 };
typedef struct kd_layer_choice {
    int layers;
    uint16_t layer[KD_LAYERS_MAX]; /* from the end, ascending: 1 = the last block's output, depth = the first's (DINOv2 get_intermediate_layers) */
    int norm;                      /* through the final norm, all of them through the same; 0: the block's output as it is */
    int concat;                    /* one feature set of width layers * D, earlier blocks first (torch.cat of get_intermediate_layers; LightlyTrain v2 joins the last two) */
    unsigned features;             /* KD_WANT_* */
} kd_layer_choice;
/* KD_EUSAGE: no feature, no layer, more than KD_LAYERS_MAX, a number above the depth or out of order; registers of a model without. */
kd_status kd_model_check_layers(const kd_model_info *m, const kd_layer_choice *choice, kd_err *err);
/* Adds a ViT from input "images" [height,width,3] on up to the last block that is asked for. F32 outputs, per chosen layer K: "cls.K" [D], "patch.K" [h,w,D] in row-major order, "registers.K" [R,D],
 * "mean.K" [D] (over the patches, after the norm if any). With concat one set, under the smallest K. Size and choice must have passed their checks. */
void kd_model_build_layers(kd_graph *g, const kd_model_info *m, int height, int width, const kd_layer_choice *choice);
/* Frozen parameters (graph.h) whose values come from w, for a graph of kd_model_build_layers or kd_model_build alone, found with w (from_file). Borrows w and m until kd_exec_create has returned for the last program.
 * kd_exec_create then adds kd_model_load's errors to its own. */
kd_status kd_model_params_frozen(kd_params **out, const kd_graph *g, kd_backend *b, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err);

/* ---- weights in and out ---- */

/* Fills every parameter of the model from the file, whatever its layout; others (heads) keep their values. m must have been found with w (from_file), else w is detected and compared with m.
 * Positions are interpolated from the file's grid to the image's, by m->vit.positions (pos_embed.c). KD_EFAIL naming the tensor: missing, wrong shape, non-finite. Carried parameters may be missing. */
kd_status kd_model_load(kd_params *p, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err);

/* The model's parameters as the reference library's state_dict has them, in its order, with its names, without heads and classifiers: for weight files that load strictly into the library's backbone. int64
 * num_batches_tracked included. dtype F32 or F16. Names are p's and live as long; the tensors are freed with kd_model_state_free. KD_ENONFINITE naming parameter and index: NaN or infinite, or above what F16 holds. */
typedef struct kd_model_state {
    kd_tensor *tensor;
    size_t count;
} kd_model_state;
kd_status kd_model_state_read(kd_model_state *s, kd_params *p, const kd_model_info *m, kd_dtype dtype, kd_err *err);
void kd_model_state_free(kd_model_state *s);

/* The caller's strings (or NULL) and what a user needs to feed the model: its name and library, image_mean, image_std and how they are applied. New object of strings; NULL when memory is out. */
json_t *kd_model_metadata(const kd_model_info *m, const json_t *metadata);

/* Writes both as .safetensors. */
kd_status kd_model_export(kd_params *p, const kd_model_info *m, const char *path, kd_dtype dtype, const json_t *metadata, kd_err *err);

#endif
