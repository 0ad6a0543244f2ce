/* Identity: the recipe that says what made a cache, its SHA-256, and the comparison that names what differs.
 *
 * The recipe is canonical JSON of everything that is known before the first record and must be equal for shards to belong together:
 *   {"format_version":1, "teacher":{"sha256", "tensors":"<prefix of the teacher's tensors in its file>", "family", "width":384, "depth":12, "heads":6, "patch":14, "registers":4,
 *    "positions":"official|hf|timm|rope", "layer_norm_eps":1e-6, "mean":[3], "std":[3]}, "layers":[1,4], "layer_norm":true, "layer_concat":false,
 *    "augment":{...kd_policy_json}, "seed":0, "image_size":[224,224], "decoder":"<kd_decoder_hash hex>", "exif":"ignore|apply", "features":["cls","patch","registers","mean"],
 *    "grid":[16,16], "registers":4, "width":384, "patch_targets":["adjoint:7","adjoint:14"], "store":{"dtype":"i8"}}
 * layers: as chosen, counted from the end. layer_norm: each went through the teacher's final norm. layer_concat: they were joined, earlier block first, and stored as one layer under the
 * smallest number. features: in this order. grid, registers, width: the shape of stored records; registers is the teacher's number, width the teacher's or, joined, a multiple.
 * patch_targets: the forms in which patches are stored (common/tensor/target.h), one or more where features has patch, else none; dtype: f16, bf16 or i8.
 * Only in a cache whose numbers were stored in another form before (kd-cache extract) there is also "source":{"dtype":"f16","patch_target":"full"}: what they were rounded to first.
 * Only where the policy mixes views (mix_p above 0) there is also "dataset":{"digest":"<kd_mix_digest hex>","images":1000}, the set that partners were drawn from.
 * Library versions, device, precision, batch size and zstd level are provenance: recorded beside it, never compared. */
#ifndef KD_CACHE_IDENTITY_H
#define KD_CACHE_IDENTITY_H

#include "cache/record.h"
#include "common/base/json.h"
#include "common/image/image.h"

typedef struct kd_recipe {
    json_t *json;      /* owned */
    kd_sha256 sha;     /* of its canonical text */
    uint64_t seed;
    int image_h, image_w; /* of the views */
    int width, grid_h, grid_w, registers;
    int layers;        /* number of stored layers: as chosen, or 1 when they are joined */
    uint16_t layer[KD_MAX_LAYERS]; /* their numbers, ascending, counted from the end of the teacher: 1 = last */
    int concat;
    int exif_apply;    /* pictures were turned upright by their EXIF orientation */
    int mixed;         /* views may be mixed with those of other images */
    unsigned features; /* bits 1 << kd_feature; each patch target is one */
    int targets;       /* of patches; 0 without them */
    kd_target target[KD_MAX_TARGETS];
    kd_dtype dtype;    /* KD_F16, KD_BF16, KD_I8; of a live teacher KD_F32 */
} kd_recipe;

/* Takes over json (also on failure). KD_EDAMAGED when a field is missing, out of range or at odds with another; `what` names the source. */
kd_status kd_recipe_from_json(kd_recipe *r, json_t *json, const char *what, kd_err *err);
/* The same for values that aren't stored: "dtype":"f32", which no cache has. */
kd_status kd_recipe_of_live(kd_recipe *r, json_t *json, const char *what, kd_err *err);
void kd_recipe_free(kd_recipe *r);
/* KD_EMISMATCH naming the first differing field with both values ("teacher.sha256 is 12ab.. in X, 98cd.. in Y") and what to do. */
kd_status kd_recipe_compare(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err);

/* Whether one student can learn from both, whatever pictures and views they show: equal teacher, layers, layer_norm, layer_concat and width. KD_EMISMATCH naming the first of them that
 * differs, with both values. */
kd_status kd_recipe_same_teacher(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err);

/* Whether this program's decoders make the pixels that the cache was made from. KD_EMISMATCH naming both hashes, the library here and what to do. */
kd_status kd_recipe_check_decoder(const kd_recipe *r, kd_err *err);

/* How a picture of this cache is decoded again: as the recipe says, and whatever the pixel limit was, one of the recorded size is accepted. */
kd_decode_options kd_recipe_decode_options(const kd_recipe *r, int width, int height);

int kd_recipe_has(const kd_recipe *r, kd_feature f);
int kd_recipe_layer_index(const kd_recipe *r, uint16_t layer); /* in layer[]; -1 when it isn't stored */
int kd_recipe_records(const kd_recipe *r);                     /* of one view: features x layers */
uint32_t kd_recipe_rows(const kd_recipe *r, kd_feature f);     /* of a record as stored: 1, those of the patch target, registers, 1 */
kd_target kd_recipe_target(const kd_recipe *r, kd_feature f);  /* full for what isn't a patch target */
size_t kd_recipe_largest(const kd_recipe *r);                  /* values (rows x width) of the largest record */
/* The head that a record of this recipe must have; its view_hash is zero. */
kd_record_head kd_recipe_head(const kd_recipe *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer);

#endif
