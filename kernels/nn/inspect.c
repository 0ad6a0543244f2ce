/* Every diagnosis rests on one list: what an op has written. */
#include "kernels/nn/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/nn/graph_impl.h"

/* ---- doors ---- */

static kd_exec_tap tap(const kd_ptap *t) {
    return (kd_exec_tap){t->name, t->desc, t->data};
}

int kd_exec_inputs(const kd_exec *e) {
    return e->input_count;
}

int kd_exec_outputs(const kd_exec *e) {
    return e->output_count;
}

kd_exec_tap kd_exec_input_tap(const kd_exec *e, int i) {
    KD_ASSERT(i >= 0 && i < e->input_count);
    return tap(&e->inputs[i]);
}

kd_exec_tap kd_exec_output_tap(const kd_exec *e, int i) {
    KD_ASSERT(i >= 0 && i < e->output_count);
    return tap(&e->outputs[i]);
}

int kd_exec_ops(const kd_exec *e) {
    return e->node_count;
}

kd_exec_tap kd_exec_op_tap(const kd_exec *e, int i) {
    KD_ASSERT(i >= 0 && i < e->node_count);
    return (kd_exec_tap){e->nodes[i].desc.name, e->nodes[i].desc.y, e->nodes[i].args.y};
}

const float *kd_params_data(const kd_params *p, int i) {
    kd_param_info info = kd_params_info(p, i);
    KD_ASSERT(!kd_is_frozen(p));
    if (info.is_counter)
        return NULL;
    return (info.is_state || info.carried ? p->states : p->trained) + p->offset[i];
}

const float *kd_exec_gradient(kd_exec *e, int i) {
    kd_param_info info = kd_params_info(e->p, i);
    return info.is_state || info.carried ? NULL : kd_exec_gradients(e) + e->p->offset[i];
}

/* ---- what an op has written ---- */

typedef struct written {
    char name[400]; /* as kd_exec_pair has it */
    kd_tdesc desc;
    const void *data;
    int parameter_gradient;
} written;

enum { MAX_WRITTEN = 1 + KD_OP_MAX_STATE + KD_OP_MAX_X + KD_OP_MAX_PARAM };

static written *add(written *list, int *count, const kd_pnode *n, const char *what, const char *of, const kd_tdesc *desc, const void *data) {
    written *w = &list[(*count)++];
    *w = (written){.desc = *desc, .data = data};
    snprintf(w->name, sizeof w->name, "%s %.150s%s%.200s", kd_op_kind_name(n->desc.kind), n->desc.name, what, of);
    return w;
}

static kd_tdesc param_desc(const kd_exec *e, int i) {
    const kd_param_info *info = &e->p->params[i].info;
    kd_tdesc t = {.dtype = KD_F32, .rank = info->rank};
    memcpy(t.shape, info->shape, sizeof info->shape);
    return t;
}

static int written_forward(const kd_exec *e, const kd_pnode *n, written list[MAX_WRITTEN]) {
    int count = 0;
    add(list, &count, n, "", "", &n->desc.y, n->args.y);
    for (int k = 0; k < KD_OP_MAX_STATE && e->config.train; k++)
        if (n->state[k] >= 0) {
            kd_tdesc desc = param_desc(e, n->state[k]);
            add(list, &count, n, ", ", e->p->params[n->state[k]].info.name, &desc, n->args.state[k]);
        }
    return count;
}

static int written_backward(const kd_exec *e, const kd_pnode *n, written list[MAX_WRITTEN]) {
    int count = 0;
    for (int k = 0; k < n->desc.inputs; k++)
        if (n->desc.need_dx >> k & 1) {
            char input[24];
            snprintf(input, sizeof input, "input %d", k);
            add(list, &count, n, ", gradient of ", input, &n->desc.x[k], n->args.dx[k]);
        }
    for (int k = 0; k < KD_OP_MAX_PARAM && n->desc.need_dparam; k++)
        if (n->param[k] >= 0) {
            kd_tdesc desc = param_desc(e, n->param[k]);
            add(list, &count, n, ", gradient of ", e->p->params[n->param[k]].info.name, &desc, n->args.dparam[k])->parameter_gradient = 1;
        }
    return count;
}

static int list_written(const kd_exec *e, const kd_pnode *n, int backward, written list[MAX_WRITTEN]) {
    return backward ? written_backward(e, n, list) : written_forward(e, n, list);
}

/* Bytes of the largest tensor that any op writes. */
static size_t largest_written(const kd_exec *e) {
    written list[MAX_WRITTEN];
    size_t most = sizeof(float);
    for (int i = 0; i < e->node_count; i++)
        for (int backward = 0; backward <= e->nodes[i].backward; backward++) {
            int count = list_written(e, &e->nodes[i], backward, list);
            for (int k = 0; k < count; k++)
                most = kd_tdesc_bytes(&list[k].desc) > most ? kd_tdesc_bytes(&list[k].desc) : most;
        }
    return most;
}

static kd_status fetch(const kd_exec *e, const written *w, void *host, kd_tensor *t, kd_err *err) {
    *t = (kd_tensor){.name = w->name, .dtype = w->desc.dtype, .rank = w->desc.rank, .data = host};
    memcpy(t->shape, w->desc.shape, sizeof w->desc.shape);
    return e->b->v->download(e->b, host, w->data, kd_tdesc_bytes(&w->desc), err);
}

/* ---- finite numbers ---- */

kd_status kd_exec_check_finite(kd_exec *e, int on, kd_err *err) {
    kd_free(e->looked_at);
    e->looked_at = NULL;
    return on ? kd_alloc_array(&e->looked_at, largest_written(e), 1, err) : KD_OK;
}

kd_status kd_check_written(kd_exec *e, const kd_pnode *n, int backward, kd_err *err) {
    written list[MAX_WRITTEN];
    int count = list_written(e, n, backward, list);
    for (int k = 0; k < count; k++) {
        kd_tensor t;
        KD_TRY(fetch(e, &list[k], e->looked_at, &t, err));
        size_t elements = kd_tensor_numel(&t), size = kd_dtype_size(t.dtype);
        for (size_t i = 0; i < elements; i++) {
            float x;
            kd_convert_to_f32(&x, e->looked_at + i * size, t.dtype, 1);
            if (!isfinite(x))
                return kd_fail(err, KD_ENONFINITE, "%s is %g at element %zu of %zu, in the %s pass: the first number of this pass that isn't finite", t.name, (double)x, i, elements,
                               backward ? "backward" : "forward");
        }
    }
    return KD_OK;
}

/* ---- two backends ---- */

typedef struct comparing {
    kd_exec *got, *want;
    char *host[2];
    kd_exec_pair_fn pair;
    void *ctx;
} comparing;

static kd_status compare_node(const comparing *c, int i, int backward, kd_err *err) {
    kd_pnode *a = &c->got->nodes[i], *b = &c->want->nodes[i];
    written got[MAX_WRITTEN], want[MAX_WRITTEN];
    KD_ASSERT(a->desc.kind == b->desc.kind);
    KD_TRY(kd_run_node(c->got, a, backward, err));
    KD_TRY(kd_run_node(c->want, b, backward, err));
    int count = list_written(c->got, a, backward, got);
    KD_ASSERT(list_written(c->want, b, backward, want) == count);
    for (int k = 0; k < count; k++) {
        kd_exec_pair pair = {.parameter_gradient = got[k].parameter_gradient};
        KD_TRY(fetch(c->got, &got[k], c->host[0], &pair.got, err));
        KD_TRY(fetch(c->want, &want[k], c->host[1], &pair.want, err));
        KD_TRY(c->pair(c->ctx, &pair, err));
    }
    return KD_OK;
}

static kd_status compare_passes(const comparing *c, kd_err *err) {
    KD_TRY(kd_run_begin(c->got, err));
    KD_TRY(kd_run_begin(c->want, err));
    for (int i = 0; i < c->got->node_count; i++)
        KD_TRY(compare_node(c, i, 0, err));
    kd_run_end(c->got);
    kd_run_end(c->want);
    KD_TRY(kd_run_zero_gradients(c->got, err));
    KD_TRY(kd_run_zero_gradients(c->want, err));
    for (int i = c->got->node_count - 1; i >= 0; i--)
        if (kd_has_backward_work(&c->got->nodes[i]))
            KD_TRY(compare_node(c, i, 1, err));
    return KD_OK;
}

kd_status kd_exec_compare(kd_exec *got, kd_exec *want, kd_exec_pair_fn pair, void *ctx, kd_err *err) {
    comparing c = {.got = got, .want = want, .pair = pair, .ctx = ctx};
    KD_ASSERT(got->config.train && want->config.train && got->node_count == want->node_count);
    kd_status status = kd_alloc_array(&c.host[0], largest_written(got), 1, err);
    if (status == KD_OK)
        status = kd_alloc_array(&c.host[1], largest_written(want), 1, err);
    if (status == KD_OK)
        status = compare_passes(&c, err);
    kd_free(c.host[0]);
    kd_free(c.host[1]);
    return status;
}

/* ---- time ---- */

void kd_exec_profile(kd_exec *e, int on) {
    e->profile = on != 0;
    e->profiled_passes = 0;
    for (int i = 0; i < e->node_count; i++)
        e->nodes[i].seconds[0] = e->nodes[i].seconds[1] = 0;
}

typedef struct timing {
    const kd_pnode *node;
    int backward;
    double seconds, flops; /* of a pass */
} timing;

/* Both gradients of a matrix product cost as much as itself. */
static double flops_of(const kd_pnode *n, int backward) {
    int gradients = n->desc.kind == KD_OP_ATTENTION ? 2 : (n->desc.need_dx != 0) + (n->desc.need_dparam != 0); /* attention multiplies activations: either of a product's has a gradient */
    return kd_op_flops(&n->desc) * (backward ? gradients : 1);
}

static int longer_first(const void *a, const void *b) {
    const timing *x = a, *y = b;
    if (x->seconds != y->seconds)
        return x->seconds < y->seconds ? 1 : -1;
    return x->node != y->node ? (x->node < y->node ? -1 : 1) : x->backward - y->backward;
}

static void print_rate(FILE *out, const timing *t) {
    if (t->flops > 0 && t->seconds > 0)
        fprintf(out, " %9.1f GFLOP/s", t->flops / t->seconds * 1e-9);
    fprintf(out, "\n");
}

static void print_kinds(const timing *list, int count, double sum, FILE *out) {
    timing kind[2 * KD_OP_KINDS] = {{0}};
    for (int i = 0; i < count; i++) {
        timing *k = &kind[2 * (int)list[i].node->desc.kind + list[i].backward];
        k->node = list[i].node;
        k->backward = list[i].backward;
        k->seconds += list[i].seconds;
        k->flops += list[i].flops;
    }
    qsort(kind, 2 * KD_OP_KINDS, sizeof *kind, longer_first);
    fprintf(out, "by kind of op:\n");
    for (int i = 0; i < 2 * KD_OP_KINDS && kind[i].seconds > 0; i++) {
        fprintf(out, "%10.3f ms %5.1f%%  %-8s %-16s", kind[i].seconds * 1e3, 100 * kind[i].seconds / sum, kind[i].backward ? "backward" : "forward", kd_op_kind_name(kind[i].node->desc.kind));
        print_rate(out, &kind[i]);
    }
}

kd_status kd_exec_print_profile(const kd_exec *e, FILE *out, kd_err *err) {
    double passes = e->profiled_passes ? e->profiled_passes : 1, sum = 0;
    timing *list;
    int count = 0;
    KD_TRY(kd_alloc_array(&list, 2 * (size_t)e->node_count, sizeof *list, err));
    for (int i = 0; i < e->node_count; i++)
        for (int backward = 0; backward < 2; backward++) {
            const kd_pnode *n = &e->nodes[i];
            if (n->seconds[backward] <= 0)
                continue;
            list[count++] = (timing){n, backward, n->seconds[backward] / passes, flops_of(n, backward)};
            sum += n->seconds[backward] / passes;
        }
    qsort(list, (size_t)count, sizeof *list, longer_first);
    for (int i = 0; i < count; i++) {
        const kd_op_desc *d = &list[i].node->desc;
        char shape[100];
        kd_shape_text(d->y.shape, d->y.rank, shape, sizeof shape);
        fprintf(out, "%10.3f ms %5.1f%%  %-8s %-16s %-32s %-4s %-22s", list[i].seconds * 1e3, 100 * list[i].seconds / sum, list[i].backward ? "backward" : "forward",
                kd_op_kind_name(d->kind), d->name, kd_dtype_name(d->y.dtype), shape);
        print_rate(out, &list[i]);
    }
    if (count > 0)
        print_kinds(list, count, sum, out);
    fprintf(out, "%10.3f ms a pass of %d\n", sum * 1e3, e->config.batch);
    kd_free(list);
    return KD_OK;
}

kd_exec_times kd_exec_profile_times(const kd_exec *e) {
    double passes = e->profiled_passes ? e->profiled_passes : 1;
    kd_exec_times t = {0};
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        double seconds = (n->seconds[0] + n->seconds[1]) / passes;
        t.ops += seconds;
        if (n->desc.kind == KD_OP_CONV2D || n->desc.kind == KD_OP_LINEAR || n->desc.kind == KD_OP_ATTENTION)
            t.products += seconds;
    }
    return t;
}
