/* Passes as recorded sequences: on a device, launching some hundred kernels one by one takes the host longer than the device takes to run them. */
#include "kernels/nn/graph_impl.h"

static kd_status record(kd_exec *e, kd_pass pass, kd_err *err) {
    kd_err ignored = {0};
    KD_TRY(e->b->v->record_begin(e->b, err));
    kd_status status = kd_run_ops(e, pass, err);
    if (status != KD_OK) {
        e->b->v->record_end(e->b, NULL, &ignored);
        return status;
    }
    return e->b->v->record_end(e->b, &e->recorded[pass].r, err);
}

kd_status kd_run_pass(kd_exec *e, kd_pass pass, kd_err *err) {
    kd_recorded *x = &e->recorded[pass];
    if (e->b->v->record_begin == NULL || e->profile || e->looked_at != NULL || x->runs == 0) { /* the first time, libraries still load and allocate */
        x->runs++;
        return kd_run_ops(e, pass, err);
    }
    if (x->r == NULL)
        KD_TRY(record(e, pass, err));
    if (e->config.stop != NULL)
        KD_TRY(e->config.stop(e->config.stop_ctx, err));
    return e->b->v->replay(e->b, x->r, err);
}

void kd_recorded_drop(kd_exec *e) {
    for (int i = 0; i < KD_PASSES; i++)
        if (e->recorded[i].r != NULL)
            e->b->v->recording_destroy(e->b, e->recorded[i].r);
}
