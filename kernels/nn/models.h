/* Models: the registry of networks that can be a teacher or a student, built as graphs with the reference library's parameter names.
 *
 *     kd_model_info m;
 *     KD_TRY(kd_model_find(&m, "resnet18", NULL, err));             // by name, or "auto" with a weight file
 *     kd_model_taps taps = kd_model_build(g, &m, 224, 224);         // height, width
 *     KD_TRY(kd_params_create(&p, g, backend, err));
 *     KD_TRY(kd_model_load(p, &m, weights, 224, 224, err));              // or kd_params_init
 *
 * Names: "resnet18" (torchvision), "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224" (timm), "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14",
 * "dinov2_vitg14", and "dinov2_wW_dD" for a ViT in DINOv2 layout with width W (a multiple of 64, heads = W/64), depth D, patch 14. */
#ifndef KD_KERNELS_NN_MODELS_H
#define KD_KERNELS_NN_MODELS_H

#include "common/weights/vit_spec.h"
#include "kernels/nn/graph.h"

typedef enum kd_model_kind { KD_MODEL_RESNET = 0, KD_MODEL_VIT = 1 } kd_model_kind;

typedef struct kd_model_info {
    char name[64];
    kd_model_kind kind;
    kd_vit_spec vit;       /* for KD_MODEL_VIT */
    int blocks[4];         /* for KD_MODEL_RESNET: 2,2,2,2 */
    int width;             /* channels of pooled, cls and map: 512 for resnet18 */
    int multiple;          /* image sides must be multiples of this: the patch, or 1 */
    int smallest;          /* smallest image side: the patch, or 32 */
    int from_file;         /* kd_model_find saw the weights: vit.pos_grid is the file's */
    float mean[3], std[3]; /* the library's normalisation, applied to the uint8 view */
    const char *library;   /* "torchvision", "timm", "dinov2" */
} kd_model_info;

/* Values in the graph; all F32 outputs, named as here. pooled [C]: what the library pools (global average; class token after the final norm). cls [C]: the class token after
 * the final norm, for CNNs the same value as pooled. map [h,w,C]: the feature map, patch tokens after the final norm in row-major order. */
typedef struct kd_model_taps {
    kd_val pooled, cls, map;
    int map_h, map_w;
} kd_model_taps;

/* name "auto" needs weights and infers everything from the file; with a name and weights the two are checked against each other. KD_EUSAGE: unknown name (nearest one given).
 * weights may be NULL: then a DINOv2 layout's position grid is that of the image it will be built for. */
kd_status kd_model_find(kd_model_info *m, const char *name, const kd_weights *weights, kd_err *err);
size_t kd_model_names(const char *const **names);

/* KD_EUSAGE when a side isn't a multiple of m->multiple, below m->smallest or above 8192, or a timm ViT is asked for another size than its grid without weights. */
kd_status kd_model_check_size(const kd_model_info *m, int height, int width, kd_err *err);
/* Adds the network to g, from input "images" [height,width,3] on, with its initialisation. */
kd_model_taps kd_model_build(kd_graph *g, const kd_model_info *m, int height, int width);

/* Fills every parameter of the model from the file by name; others (heads) keep their values. Positions are interpolated from the file's grid to the image's (official DINOv2:
 * bicubic, a = -0.75, offset 0.1, no antialiasing; timm: bicubic a = -0.5 with antialiasing). KD_EFAIL naming the tensor: missing, wrong shape, non-finite. Carried parameters may be missing. */
kd_status kd_model_load(kd_params *p, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err);

/* Writes the model's parameters (not heads; names not in the reference state_dict are left out) as .safetensors that the library loads strictly. metadata: strings or NULL; normalisation is added.
 * ResNet: carried fc and int64 num_batches_tracked included. dtype F32 or F16. */
kd_status kd_model_export(kd_params *p, const kd_model_info *m, const char *path, kd_dtype dtype, const json_t *metadata, kd_err *err);

#endif
