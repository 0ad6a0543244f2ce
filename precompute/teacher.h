/* Teacher: a frozen ViT from a weight file, prepared for one batch size, that turns uint8 views into encoded features.
 *
 * Third station of the way of the data: views -> features -> byte planes ready for cache/record.h.
 *
 *     kd_teacher_open(&t, backend, weights, "auto", 224, 224, 16, KD_F32, 1, 1, err);
 *     kd_teacher_run(t, views, count, err);                              // count <= batch; missing rows are padded with zeros
 *     kd_teacher_planes(t, KD_FEATURE_CLS, count, planes, stats, err);
 *
 * The batch is always padded to its full size, so that what shares a batch with a view can't change the view's bits.
 * Thread rule: one thread. */
#ifndef KD_PRECOMPUTE_TEACHER_H
#define KD_PRECOMPUTE_TEACHER_H

#include "cache/record.h"
#include "kernels/nn/models.h"

typedef struct kd_teacher kd_teacher;

/* Borrows backend and weights (weights only until return). KD_EUSAGE: a side isn't a multiple of the patch, name unknown or not what the file holds. */
kd_status kd_teacher_open(kd_teacher **out, kd_backend *backend, const kd_weights *weights, const char *name, int image_h, int image_w, int batch,
                          kd_dtype precision, int want_cls, int want_patch, kd_err *err);
void kd_teacher_close(kd_teacher *t); /* accepts NULL */

const kd_model_info *kd_teacher_model(const kd_teacher *t);
/* Tokens x width of a feature: 1 x D for CLS, (grid_h * grid_w) x D for patches. */
void kd_teacher_feature_shape(const kd_teacher *t, kd_feature f, uint32_t *rows, uint32_t *width);
size_t kd_teacher_device_bytes(const kd_teacher *t);
double kd_teacher_flops(const kd_teacher *t); /* of one view */

/* views: count x image_h x image_w x 3. */
kd_status kd_teacher_run(kd_teacher *t, const uint8_t *views, int count, kd_err *err);
/* After run: `count` records of rows*width f16 values in byte planes (2*rows*width bytes each) and their statistics. KD_ENONFINITE, naming the row, when a
 * feature is NaN, infinite or beyond what f16 holds. */
kd_status kd_teacher_planes(kd_teacher *t, kd_feature f, int count, uint8_t *planes, kd_encode_stats *stats, kd_err *err);

#endif
