#include "train/eval/command.h"

#include <string.h>

#include "common/image/augment.h"

kd_status kd_eval_open(kd_extractor **x, const kd_eval_network *n, int json, kd_err *err) {
    kd_extractor_options o = {.model = n->model, .weights = n->weights, .seed = (uint64_t)n->seed, .batch = (int)n->batch_size, .threads = (int)n->threads,
                              .device = n->device, .precision = strcmp(n->precision, "bf16") == 0 ? KD_BF16 : KD_F32, .json = json};
    *x = NULL;
    KD_TRY(kd_image_size_parse(n->image_size, "--image-size", &o.image_h, &o.image_w, err));
    KD_TRY(kd_image_size_parse(n->student_size, "--student-size", &o.student_h, &o.student_w, err));
    return kd_extractor_open(x, &o, err);
}

kd_status kd_eval_skipped(size_t skipped, size_t count, const char *images, kd_err *err) {
    if (skipped == 0)
        return KD_OK;
    return kd_fail(err, KD_ESKIPPED, "%s: %zu files could not be read (listed above); the result is over the other %zu", images, skipped, count);
}
