/* Export: from a checkpoint to a weight file that the student's own library loads strictly. Last station of training.
 *
 *     KD_TRY(kd_export_checkpoint(backend, "runs/r18/checkpoints/best-resnet18.kdt", NULL, "r18.safetensors", KD_F32, err));
 */
#ifndef KD_TRAIN_EXPORT_H
#define KD_TRAIN_EXPORT_H

#include "common/base/options.h"
#include "kernels/nn/models.h"

/* student NULL: the only one. Metadata: what the checkpoint knows about cache, teacher, loss, steps. The heads are left out. */
kd_status kd_export_checkpoint(kd_backend *backend, const char *checkpoint, const char *student, const char *out, kd_dtype dtype, kd_err *err);

typedef struct kd_export_config {
    const char *run, *checkpoint, *format, *student, *out, *dtype;
    int json;
} kd_export_config;
extern const kd_program kd_export_program;
/* kd-export. Needs no device: ref. */
kd_status kd_export_run(const kd_export_config *c, kd_err *err);

/* RUN/checkpoints/latest.kdt for latest, RUN/checkpoints/best-STUDENT.kdt for best. New string, NULL when memory is out. */
char *kd_checkpoint_path(const char *run, const char *which, const char *student);

#endif
