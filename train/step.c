#include "train/step.h"

#include <math.h>
#include <stdio.h>

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

/* Gradients of all groups are summed; their weights, 1 / programs each, stand in the graphs. */
static kd_status run_programs(kd_student *s, kd_step_result *x, kd_err *err) {
    for (int k = 0; k < s->programs; k++) {
        const kd_student_program *p = &s->program[k];
        KD_TRY(kd_exec_forward(p->train, err));
        KD_TRY(kd_exec_backward(p->train, k > 0, err));
        KD_TRY(read_terms(s, p->train, x->term, &x->group[k], err));
        x->loss += x->group[k];
    }
    x->loss /= s->programs;
    for (int i = 0; i < s->loss.terms; i++)
        x->term[i] /= s->programs;
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
    for (int i = 0; i < s->loss.terms; i++)
        s->sum[1 + i] += result->term[i];
    s->summed++;
    return KD_OK;
}
