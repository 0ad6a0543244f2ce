/* Export: from a checkpoint to weight files that the student's own library loads strictly. Last station of training.
 *
 *     KD_TRY(kd_export_checkpoint(backend, "runs/r18/checkpoints/best-resnet18.kdt", NULL, "r18.safetensors", KD_F32, err));   // what kd-train does when it ends
 *
 *     KD_TRY(kd_checkpoint_open(&c, path, err));                                                                               // what kd-export does (export_run.h)
 *     KD_TRY(kd_export_student_open(&x, backend, c, index, err));
 *     ... kd_model_state_read(&s, x.params, &x.model, KD_F32, err) and a writer: safetensors.h, pth.h, hf.h, onnx.h
 *     kd_export_student_close(&x);
 */
#ifndef KD_TRAIN_EXPORT_H
#define KD_TRAIN_EXPORT_H

#include "kernels/nn/models.h"
#include "train/checkpoint.h"

/* A student out of a checkpoint: its network at the size it was trained at, with its values (of the moving average, if it has one). */
typedef struct kd_export_student {
    kd_model_info model;
    int height, width;    /* of the images that it was trained on */
    kd_graph *graph;      /* without heads; input "images" [height,width,3] */
    kd_model_taps taps;
    kd_params *params;
    json_t *metadata;     /* kd_model_metadata with what the checkpoint knows: cache, teacher, loss, steps. Strings only */
    const json_t *run, *student; /* kd_checkpoint_run, kd_checkpoint_student: borrowed, as long as the checkpoint is open */
} kd_export_student;
/* KD_EFAIL: memory, a damaged checkpoint. To be closed also after a failure. */
kd_status kd_export_student_open(kd_export_student *x, kd_backend *backend, const kd_checkpoint *c, size_t index, kd_err *err);
void kd_export_student_close(kd_export_student *x);

/* Writes a student as .safetensors. student NULL: the only one. */
kd_status kd_export_checkpoint(kd_backend *backend, const char *checkpoint, const char *student, const char *out, kd_dtype dtype, kd_err *err);

/* RUN/checkpoints/latest.kdt for latest, RUN/checkpoints/best-STUDENT.kdt for best. New string, NULL when memory is out. */
char *kd_checkpoint_path(const char *run, const char *which, const char *student);

#endif
