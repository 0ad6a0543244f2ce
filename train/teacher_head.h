/* Teacher head: a linear classifier over the teacher's CLS token, from a weight file. Its logits are computed from cached CLS features, so that a student can learn class probabilities without the
 * teacher (loss kl-logits).
 *
 *     KD_TRY(kd_teacher_head_open(&h, "head.safetensors", 384, err));
 *     kd_teacher_head_logits(h, cls, logits);
 *     kd_teacher_head_close(h); */
#ifndef KD_TRAIN_TEACHER_HEAD_H
#define KD_TRAIN_TEACHER_HEAD_H

#include "common/base/hash.h"
#include "common/weights/weights.h"

typedef struct kd_teacher_head {
    int classes, width;
    float *weight; /* [classes][width] */
    float *bias;   /* [classes]; zeros when the file has none */
    kd_sha256 sha; /* of weight and bias: the same classifier in another file has the same */
} kd_teacher_head;

/* The file's one matrix [classes, width], or of several (in a whole network) the one called head, linear_head, classifier or fc; and the vector [classes] called as it with "bias" in place of "weight" at the end. KD_EUSAGE: no such matrix, or several, naming shapes. */
kd_status kd_teacher_head_open(kd_teacher_head **out, const char *path, int width, kd_err *err);
void kd_teacher_head_close(kd_teacher_head *h); /* accepts NULL */
/* cls [width], raw as the teacher gives it -> logits [classes], each a sum in double in the order of the channels. */
void kd_teacher_head_logits(const kd_teacher_head *h, const float *cls, float *logits);

#endif
