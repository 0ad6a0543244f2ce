/* Teacher: a frozen ViT from a weight file, prepared for one batch size, that turns uint8 views into encoded features.
 *
 * Third station of the way of the data: views -> features -> payloads, ready for the records of a cache, or in f32 for a student that learns from the teacher itself.
 *
 *     kd_teacher_config c = {.model = &model, .choice = &plan.choice, .height = 224, .width = 224, .batch = 16, .precision = KD_BF16,
 *                            .target = targets, .targets = 2, .store = KD_I8};
 *     kd_teacher_open(&t, backend, weights, &c, err);
 *     kd_teacher_run(t, views, count, err);                              // count <= batch; missing rows are padded with zeros
 *     kd_teacher_encode(t, KD_FEATURE_CLS, 1, 0, count, payload, stats, err);
 *     kd_teacher_encode(t, KD_FEATURE_PATCH, 1, 1, count, payload, stats, err);   // the patch tokens in the form targets[1]
 *
 * Or, so that a device works on the next batch while this one's features come back, each kind of record through a fetch of its own:
 *
 *     kd_teacher_run(t, views, count, err);
 *     kd_teacher_fetch_begin(f, count, err);          // and then the next kd_teacher_run
 *     kd_teacher_fetch_end(f, &payload, &stats, err); // of the first one
 *
 * The batch is always padded to its full size, so that what shares a batch with a view can't change the view's bits.
 * Thread rule: one thread. */
#ifndef KD_KERNELS_NN_TEACHER_H
#define KD_KERNELS_NN_TEACHER_H

#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/tensor/encode.h"
#include "common/tensor/feature.h"
#include "kernels/nn/models.h"

typedef struct kd_teacher_config {
    const kd_model_info *model;     /* of these weights: kd_model_find_teacher */
    const kd_layer_choice *choice;
    int height, width, batch;
    kd_dtype precision;
    const kd_target *target; /* the forms in which patch tokens will be encoded, `targets` of them; 0: full alone */
    int targets;
    kd_dtype store; /* KD_F16, KD_BF16, KD_I8: of every record; KD_F32: values as the teacher gives them */
} kd_teacher_config;

typedef struct kd_teacher kd_teacher;

/* Reads every weight once and keeps it in the backend's layout alone. Borrows backend; weights and config only until return. KD_ENODEVICE: no bf16 here. KD_EFAIL: damaged weights, memory. */
kd_status kd_teacher_open(kd_teacher **out, kd_backend *backend, const kd_weights *weights, const kd_teacher_config *config, kd_err *err);
void kd_teacher_close(kd_teacher *t); /* accepts NULL */

/* One record as it is encoded: f is an output of the teacher (below KD_OUTPUTS); target: of PATCH, the index in the config's list, else 0. Bytes: kd_encode_bytes. */
kd_encode_spec kd_teacher_spec(const kd_teacher *t, kd_feature f, int target);
/* The model in the backend's layout, and what a pass needs beside it: activations, scratch, encoded records. */
size_t kd_teacher_model_bytes(const kd_teacher *t);
size_t kd_teacher_work_bytes(const kd_teacher *t);
double kd_teacher_flops(const kd_teacher *t); /* of one view */

/* views: count x height x width x 3. */
kd_status kd_teacher_run(kd_teacher *t, const uint8_t *views, int count, kd_err *err);
/* After run: `count` records of output f of a chosen layer (the smallest number when layers are joined), kd_encode_bytes of their kd_teacher_spec each, and their statistics.
 * KD_ENONFINITE, naming the row, when a value is NaN, infinite or beyond what the stored type holds. */
kd_status kd_teacher_encode(kd_teacher *t, kd_feature f, uint16_t layer, int target, int count, uint8_t *payload, kd_encode_stats *stats, kd_err *err);

/* One kind of record, with room for a batch on the host: f, layer and target as for kd_teacher_encode. Borrows t. */
typedef struct kd_teacher_fetch kd_teacher_fetch;
kd_status kd_teacher_fetch_create(kd_teacher_fetch **out, kd_teacher *t, kd_feature f, uint16_t layer, int target, kd_err *err);
void kd_teacher_fetch_destroy(kd_teacher_fetch *f); /* accepts NULL; before the teacher is closed */
/* After run: queues the encoding of the first `count` rows and their way to the host. */
kd_status kd_teacher_fetch_begin(kd_teacher_fetch *f, int count, kd_err *err);
/* Waits for them: `count` records and their statistics, valid until the next begin. Errors of kd_teacher_encode. */
kd_status kd_teacher_fetch_end(kd_teacher_fetch *f, const uint8_t **payload, const kd_encode_stats **stats, kd_err *err);

/* What a recipe says of the teacher (cache/identity.h). New reference; NULL when memory is out. */
json_t *kd_teacher_json(const kd_model_info *model, const kd_sha256 *weights);

#endif
