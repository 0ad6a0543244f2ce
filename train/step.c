#include "train/step.h"

#include <math.h>

static kd_status read_term(kd_student *s, const char *name, double weight, double *term, double *sum, kd_err *err) {
    float value = 0;
    if (weight > 0)
        KD_TRY(kd_exec_download(s->train, name, 1, &value, err));
    *term = (double)value;
    *sum += weight * (double)value;
    return KD_OK;
}

kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *result, kd_err *err) {
    *result = (kd_step_result){0};
    KD_TRY(kd_exec_forward(s->train, err));
    KD_TRY(kd_exec_backward(s->train, 0, err));
    KD_TRY(read_term(s, "loss.cls", s->loss.cls_weight, &result->cls, &result->loss, err));
    KD_TRY(read_term(s, "loss.patch", s->loss.patch_weight, &result->patch, &result->loss, err));
    if (isfinite(result->loss))
        KD_TRY(kd_optim_step(&s->optim, kd_exec_gradients(s->train), lr, clip, &result->grad_norm, err));
    if (!isfinite(result->loss) || !isfinite(result->grad_norm))
        return kd_fail(err, KD_ENONFINITE, "%s: %s is %g at learning rate %.3g; try a lower --lr, a longer --warmup-epochs, a smaller --clip or --precision f32", s->name,
                       isfinite(result->loss) ? "the gradient's norm" : "the loss", isfinite(result->loss) ? result->grad_norm : result->loss, lr);
    s->sum[0] += result->loss;
    s->sum[1] += result->cls;
    s->sum[2] += result->patch;
    s->summed++;
    return KD_OK;
}
