#include "train/ema.h"

#include <string.h>

#include "common/base/mem.h"

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int is_averaged(const kd_param_info *info) {
    return info->is_state && (ends_with(info->name, ".running_mean") || ends_with(info->name, ".running_var"));
}

/* The states in the order of their places: neighbours of one kind become one span, with the padding behind them. States in order of building come first, then carried parameters. */
static kd_status find_spans(kd_ema *e, kd_err *err) {
    size_t total;
    int count = kd_params_count(e->params);
    kd_params_states(e->params, &total);
    KD_TRY(kd_alloc_array(&e->span, (size_t)count + 1, sizeof *e->span, err));
    for (int carried = 0; carried < 2; carried++)
        for (int i = 0; i < count; i++) {
            kd_param_info info = kd_params_info(e->params, i);
            kd_ema_span *last = e->spans > 0 ? &e->span[e->spans - 1] : NULL;
            if (info.is_counter || info.carried != carried || (!carried && !info.is_state) || (last != NULL && last->averaged == is_averaged(&info)))
                continue;
            size_t at = kd_params_offset(e->params, i);
            if (last != NULL)
                last->end = at;
            e->span[e->spans++] = (kd_ema_span){.begin = at, .end = total, .averaged = is_averaged(&info)};
        }
    return KD_OK;
}

static kd_status follow(kd_ema *e, double decay, kd_err *err) {
    const kd_backend_table *v = e->backend->v;
    size_t trained;
    const float *w = kd_params_trained(e->params, NULL, &trained), *s = kd_params_states(e->params, NULL);
    float *average = kd_params_states(e->average, NULL);
    KD_TRY(v->ema(e->backend, kd_params_trained(e->average, NULL, NULL), w, trained, (float)decay, err));
    for (size_t i = 0; i < e->spans; i++) {
        const kd_ema_span *p = &e->span[i];
        KD_TRY(v->ema(e->backend, average + p->begin, s + p->begin, p->end - p->begin, p->averaged ? (float)decay : 0, err));
    }
    kd_params_set_counter(e->average, kd_params_counter(e->params));
    kd_params_changed(e->average);
    return KD_OK;
}

kd_status kd_ema_create(kd_ema *e, kd_backend *backend, const kd_graph *graph, kd_params *params, double decay, kd_err *err) {
    *e = (kd_ema){.backend = backend, .params = params, .decay = decay};
    kd_status status = kd_params_create(&e->average, graph, backend, err);
    if (status == KD_OK)
        status = find_spans(e, err);
    if (status == KD_OK)
        status = follow(e, 0, err);
    if (status != KD_OK)
        kd_ema_destroy(e);
    return status;
}

void kd_ema_destroy(kd_ema *e) {
    kd_params_destroy(e->average);
    kd_free(e->span);
    *e = (kd_ema){0};
}

kd_status kd_ema_update(kd_ema *e, kd_err *err) {
    return follow(e, e->decay, err);
}
