#include "train/step.h"

#include <math.h>

/* Adds the unweighted term to *term and the weighted one to *sum. */
static kd_status read_term(kd_exec *e, const char *name, double weight, double *term, double *sum, kd_err *err) {
    float value = 0;
    if (weight > 0)
        KD_TRY(kd_exec_download(e, name, 1, &value, err));
    *term += (double)value;
    *sum += weight * (double)value;
    return KD_OK;
}

/* Gradients of all groups are summed; their weights, 1 / programs each, stand in the graphs. */
static kd_status run_programs(kd_student *s, kd_step_result *x, kd_err *err) {
    for (int k = 0; k < s->programs; k++) {
        const kd_student_program *p = &s->program[k];
        KD_TRY(kd_exec_forward(p->train, err));
        KD_TRY(kd_exec_backward(p->train, k > 0, err));
        KD_TRY(read_term(p->train, "loss.cls", p->view.loss.cls_weight, &x->cls, &x->group[k], err));
        KD_TRY(read_term(p->train, "loss.patch", p->view.loss.patch_weight, &x->patch, &x->group[k], err));
        x->loss += x->group[k];
    }
    x->loss /= s->programs;
    x->cls /= s->programs;
    x->patch /= s->programs;
    return KD_OK;
}

kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *result, kd_err *err) {
    *result = (kd_step_result){0};
    KD_TRY(run_programs(s, result, err));
    if (isfinite(result->loss))
        KD_TRY(kd_optim_step(&s->optim, kd_exec_gradients(s->program[0].train), lr, clip, &result->grad_norm, err));
    if (!isfinite(result->loss) || !isfinite(result->grad_norm))
        return kd_fail(err, KD_ENONFINITE, "%s: %s is %g at learning rate %.3g; try a lower --lr, a longer --warmup-epochs, a smaller --clip or --precision f32", s->name,
                       isfinite(result->loss) ? "the gradient's norm" : "the loss", isfinite(result->loss) ? result->grad_norm : result->loss, lr);
    s->sum[0] += result->loss;
    s->sum[1] += result->cls;
    s->sum[2] += result->patch;
    s->summed++;
    return KD_OK;
}
