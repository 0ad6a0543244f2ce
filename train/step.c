#include "train/step.h"

#include <math.h>
#include <stdio.h>

#include "common/base/mem.h"

/* Adds a program's terms to term[], and gives their weighted sum. */
static kd_status read_terms(const kd_student *s, kd_exec *e, double term[KD_MAX_TERMS], double *sum, kd_err *err) {
    char output[2 * KD_TERM_NAME];
    *sum = 0;
    for (int i = 0; i < s->loss.terms; i++) {
        float value;
        snprintf(output, sizeof output, "loss.%s", s->loss.term[i].name);
        KD_TRY(kd_exec_download(e, output, 1, &value, err));
        term[i] += (double)value;
        *sum += s->loss.term[i].weight * (double)value;
    }
    return KD_OK;
}

static kd_status not_finite(const kd_student *s, const char *what, double value, kd_err *err) {
    return kd_fail(err, KD_ENONFINITE, "%s: %s is %g; try a lower --lr, a longer --warmup-epochs, a smaller --clip or --precision f32", s->name, what, value);
}

/* Gradients of all groups and batches are summed; their weights, 1 / (programs x batches) each, stand in the graphs. */
kd_status kd_step_begin(kd_student *s, int micro, kd_stages *stages, kd_err *err) {
    KD_ASSERT(micro >= 0 && micro < s->accumulate);
    int before = kd_stages_enter(stages, KD_SPENT_FORWARD);
    for (int k = 0; k < s->programs; k++) {
        kd_exec *e = s->program[k].train;
        kd_stages_enter(stages, KD_SPENT_FORWARD);
        KD_TRY(kd_student_drop_paths(s, k, (uint64_t)(s->optim.steps * s->accumulate + micro), err));
        KD_TRY(kd_exec_forward(e, err));
        kd_stages_enter(stages, KD_SPENT_BACKWARD);
        KD_TRY(kd_exec_backward(e, micro > 0 || k > 0, err));
    }
    kd_stages_enter(stages, before);
    return KD_OK;
}

/* Until the last batch *x holds sums. */
kd_status kd_step_losses(kd_student *s, int micro, kd_step_result *x, kd_err *err) {
    if (micro == 0)
        *x = (kd_step_result){0};
    for (int k = 0; k < s->programs; k++) {
        double loss = 0;
        KD_TRY(read_terms(s, s->program[k].train, x->term, &loss, err));
        x->group[k] += loss;
        x->loss += loss;
    }
    if (!isfinite(x->loss))
        return not_finite(s, "the loss", x->loss, err);
    if (micro + 1 < s->accumulate)
        return KD_OK;
    for (int k = 0; k < s->programs; k++)
        x->group[k] /= s->accumulate;
    x->loss /= s->programs * s->accumulate;
    for (int i = 0; i < s->loss.terms; i++)
        x->term[i] /= s->programs * s->accumulate;
    return KD_OK;
}

kd_status kd_step_backward(kd_student *s, int micro, kd_step_result *x, kd_err *err) {
    KD_TRY(kd_step_begin(s, micro, NULL, err));
    return kd_step_losses(s, micro, x, err);
}

kd_status kd_step_update(kd_student *s, double lr, double clip, kd_step_result *x, kd_err *err) {
    KD_TRY(kd_optim_step(&s->optim, kd_exec_gradients(s->program[0].train), lr, clip, &x->grad_norm, err));
    if (!isfinite(x->grad_norm))
        return not_finite(s, "the gradient's norm", x->grad_norm, err);
    kd_student_drop_mark(s);
    if (s->ema.average != NULL)
        KD_TRY(kd_ema_update(&s->ema, err));
    s->sum[0] += x->loss;
    for (int i = 0; i < s->loss.terms; i++)
        s->sum[1 + i] += x->term[i];
    s->summed++;
    return KD_OK;
}

kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *x, kd_err *err) {
    for (int micro = 0; micro < s->accumulate; micro++)
        KD_TRY(kd_step_backward(s, micro, x, err));
    return kd_step_update(s, lr, clip, x, err);
}
