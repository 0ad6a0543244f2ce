/* Identity: the recipe that says what made a cache, its SHA-256, and the comparison that names what differs.
 *
 * The recipe is canonical JSON of everything that is known before the first record and must be equal for shards to belong together:
 *   {"format_version":0, "teacher":{"sha256","family","width","depth","heads","patch","interpolation"}, "layers":[1], "layer_norm":true,
 *    "augment":{...kd_policy_json}, "seed":0, "image_size":224, "decoder":"<kd_decoder_hash hex>", "exif":"ignore", "features":["cls","patch"],
 *    "grid":[16,16], "width":384, "patch_target":"full", "store":{"dtype":"f16","zstd_level":1}}
 * Library versions, device, precision and batch size are provenance: recorded beside it, never compared. */
#ifndef KD_CACHE_IDENTITY_H
#define KD_CACHE_IDENTITY_H

#include "common/base/hash.h"
#include "common/base/json.h"

enum { KD_MAX_LAYERS = 64 };

typedef struct kd_recipe {
    json_t *json;      /* owned */
    kd_sha256 sha;     /* of its canonical text */
    uint64_t seed;
    int image_size, width, grid_h, grid_w;
    int layers;        /* number of stored layers (1 here) */
    uint16_t layer[KD_MAX_LAYERS]; /* their numbers, ascending, counted from the end of the teacher: 1 = last */
    int has_cls, has_patch;
} kd_recipe;

/* Takes over json (also on failure). KD_EDAMAGED when a field is missing or out of range; `what` names the source. */
kd_status kd_recipe_from_json(kd_recipe *r, json_t *json, const char *what, kd_err *err);
void kd_recipe_free(kd_recipe *r);
/* KD_EMISMATCH naming the first differing field with both values ("teacher.sha256 is 12ab.. in X, 98cd.. in Y") and what to do. */
kd_status kd_recipe_compare(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err);

#endif
