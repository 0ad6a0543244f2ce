/* Running a compiled program: the list of ops forwards, the list backwards, and the doors for data. Nothing here allocates after kd_exec_create. */
#include "kernels/nn/graph_impl.h"

#include <string.h>
#include <time.h>

static kd_status create_ops(kd_exec *e, kd_err *err) {
    for (int i = 0; i < e->node_count; i++) {
        kd_pnode *n = &e->nodes[i];
        KD_TRY(e->b->v->op_create(e->b, &n->op, &n->desc, &n->needs, err));
    }
    return KD_OK;
}

static kd_status create_rows(kd_exec *e, kd_err *err) {
    for (int i = 0; i < e->input_count && !e->b->v->host_memory; i++)
        KD_TRY(kd_alloc_array(&e->inputs[i].rows, kd_tdesc_bytes(&e->inputs[i].desc), 1, err));
    return KD_OK;
}

static kd_status build(kd_exec *e, const kd_graph *g, kd_err *err) {
    if (e->config.precision == KD_BF16)
        KD_TRY(e->b->v->check_bf16(e->b, err));
    e->names = kd_arena_create();
    if (!e->names)
        return kd_fail(err, KD_EFAIL, "out of memory for the plan of %d nodes", g->node_count);
    KD_TRY(kd_plan_nodes(e, g, err));
    KD_TRY(create_ops(e, err));
    KD_TRY(kd_plan_memory(e, err));
    KD_TRY(create_rows(e, err));
    return kd_is_frozen(e->p) ? kd_frozen_load(e, err) : KD_OK;
}

kd_status kd_exec_create(kd_exec **out, const kd_graph *g, kd_params *p, const kd_exec_config *config, kd_err *err) {
    *out = NULL;
    KD_ASSERT(config->precision == KD_F32 || config->precision == KD_BF16);
    KD_ASSERT(!kd_is_frozen(p) || !config->train);
    KD_ASSERT(config->values == NULL || (!config->train && config->values->config.train && config->values->b == p->b));
    KD_ASSERT(config->gradients == NULL || (config->train && config->gradients->config.train && config->gradients->p == p));
    if (g->failed)
        return kd_fail(err, KD_EFAIL, "out of memory while building the model");
    KD_ASSERT(kd_params_fit(p, g));
    if (config->batch < 1)
        return kd_fail(err, KD_EUSAGE, "batch size %d is below 1", config->batch);
    kd_exec *e = kd_calloc(1, sizeof *e);
    if (!e)
        return kd_fail(err, KD_EFAIL, "out of memory for the plan of %d nodes", g->node_count);
    e->b = p->b;
    e->p = p;
    e->config = *config;
    kd_status status = build(e, g, err);
    if (status != KD_OK) {
        kd_exec_destroy(e);
        return status;
    }
    *out = e;
    return KD_OK;
}

void kd_exec_destroy(kd_exec *e) {
    if (!e)
        return;
    kd_recorded_drop(e);
    for (int i = 0; i < e->node_count; i++)
        if (e->nodes[i].op)
            e->b->v->op_destroy(e->b, e->nodes[i].op);
    for (int k = 0; k < KD_ARENA_KINDS; k++)
        if (!(e->borrowed >> k & 1u))
            e->b->v->release(e->b, e->arena[k]);
    for (int i = 0; i < e->input_count; i++)
        kd_free(e->inputs[i].rows);
    kd_arena_destroy(e->names);
    kd_free(e->vals);
    kd_free(e->nodes);
    kd_free(e->inputs);
    kd_free(e->outputs);
    kd_free(e->kept_at);
    kd_free(e->looked_at);
    kd_free(e);
}

/* ---- running ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A training program computes batch statistics itself, so only parameters matter to it; an inference program may have packed the running ones too. */
static int is_packed(const kd_exec *e) {
    return e->packed_version == e->p->version && (e->config.train || e->packed_state_version == e->p->state_version);
}

static size_t row_bytes(const kd_exec *e, const kd_ptap *t) {
    return kd_tdesc_bytes(&t->desc) / (size_t)e->config.batch;
}

static kd_status send_rows(kd_exec *e, kd_ptap *t, kd_err *err) {
    size_t row = row_bytes(e, t), at = (size_t)t->first_row * row, count = (size_t)(t->end_row - t->first_row);
    t->first_row = t->end_row = 0;
    return count > 0 ? e->b->v->upload(e->b, (char *)t->data + at, t->rows + at, count * row, err) : KD_OK;
}

kd_status kd_run_begin(kd_exec *e, kd_err *err) {
    for (int i = 0; i < e->input_count; i++)
        KD_TRY(send_rows(e, &e->inputs[i], err));
    if (is_packed(e))
        return KD_OK;
    KD_TRY(kd_run_pass(e, KD_PASS_PACK, err));
    e->packed_version = e->p->version;
    e->packed_state_version = e->p->state_version;
    return KD_OK;
}

static kd_status run_profiled(kd_exec *e, kd_pnode *n, int backward, kd_err *err) {
    kd_status (*run)(kd_backend *, kd_op *, const kd_op_args *, kd_err *) = backward ? e->b->v->op_backward : e->b->v->op_forward;
    if (!e->profile)
        return run(e->b, n->op, &n->args, err);
    double begin = now();
    KD_TRY(run(e->b, n->op, &n->args, err));
    KD_TRY(e->b->v->sync(e->b, err));
    n->seconds[backward] += now() - begin;
    return KD_OK;
}

kd_status kd_run_node(kd_exec *e, kd_pnode *n, int backward, kd_err *err) {
    if (e->config.stop != NULL)
        KD_TRY(e->config.stop(e->config.stop_ctx, err));
    KD_TRY(run_profiled(e, n, backward, err));
    return e->looked_at != NULL ? kd_check_written(e, n, backward, err) : KD_OK;
}

void kd_run_end(kd_exec *e) {
    e->profiled_passes += e->profile;
    if (!e->config.train)
        return;
    e->p->counter++;
    if (e->has_batch_norm)
        e->p->state_version++;
}

kd_status kd_exec_forward(kd_exec *e, kd_err *err) {
    KD_TRY(kd_run_begin(e, err));
    KD_TRY(kd_run_pass(e, KD_PASS_FORWARD, err));
    kd_run_end(e);
    e->forwarded = 1;
    return KD_OK;
}

int kd_has_backward_work(const kd_pnode *n) {
    return n->backward && (n->desc.need_dx || n->desc.need_dparam);
}

kd_status kd_run_zero_gradients(kd_exec *e, kd_err *err) {
    return e->b->v->zero(e->b, kd_exec_gradients(e), e->p->trained_total * sizeof(float), err);
}

kd_status kd_exec_backward(kd_exec *e, int accumulate, kd_err *err) {
    KD_ASSERT(e->config.train && e->forwarded); /* its values' memory isn't theirs any more after a backward pass */
    e->forwarded = 0;
    return kd_run_pass(e, accumulate ? KD_PASS_BACKWARD_ADDED : KD_PASS_BACKWARD, err);
}

static kd_status pack_all(kd_exec *e, kd_err *err) {
    for (int i = 0; i < e->node_count; i++)
        KD_TRY(e->b->v->op_pack(e->b, e->nodes[i].op, &e->nodes[i].args, err));
    return KD_OK;
}

static kd_status forward_all(kd_exec *e, kd_err *err) {
    for (int i = 0; i < e->node_count; i++)
        KD_TRY(kd_run_node(e, &e->nodes[i], 0, err));
    return KD_OK;
}

static kd_status backward_all(kd_exec *e, kd_err *err) {
    for (int i = e->node_count - 1; i >= 0; i--)
        if (kd_has_backward_work(&e->nodes[i]))
            KD_TRY(kd_run_node(e, &e->nodes[i], 1, err));
    return KD_OK;
}

kd_status kd_run_ops(kd_exec *e, kd_pass pass, kd_err *err) {
    if (pass == KD_PASS_PACK)
        return pack_all(e, err);
    if (pass == KD_PASS_FORWARD)
        return forward_all(e, err);
    if (pass == KD_PASS_BACKWARD)
        KD_TRY(kd_run_zero_gradients(e, err));
    return backward_all(e, err);
}

float *kd_exec_gradients(kd_exec *e) {
    const kd_exec *owner = e->config.gradients != NULL ? e->config.gradients : e;
    return (float *)(void *)owner->arena[KD_ARENA_PARAM_GRADIENTS];
}

/* ---- data in and out ---- */

static kd_ptap *find_tap(kd_ptap *taps, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (strcmp(taps[i].name, name) == 0)
            return &taps[i];
    return NULL;
}

kd_status kd_exec_upload_rows(kd_exec *e, const char *input, int first, int count, const void *data, kd_err *err) {
    kd_ptap *t = find_tap(e->inputs, e->input_count, input);
    if (!t)
        return kd_fail(err, KD_EFAIL, "the compiled %s program has no input \"%s\"", e->config.train ? "training" : "inference", input);
    KD_ASSERT(first >= 0 && count >= 0 && count <= e->config.batch - first);
    size_t row = row_bytes(e, t), at = (size_t)first * row;
    int adjoins = t->end_row == t->first_row || (first <= t->end_row && first + count >= t->first_row);
    if (count == e->config.batch)
        t->first_row = t->end_row = 0; /* what waits is overtaken */
    if (t->rows == NULL || count == 0 || count == e->config.batch)
        return e->b->v->upload(e->b, (char *)t->data + at, data, (size_t)count * row, err);
    if (!adjoins)
        KD_TRY(send_rows(e, t, err));
    memcpy(t->rows + at, data, (size_t)count * row);
    if (t->end_row == t->first_row)
        t->first_row = first, t->end_row = first;
    t->first_row = first < t->first_row ? first : t->first_row;
    t->end_row = first + count > t->end_row ? first + count : t->end_row;
    return t->end_row - t->first_row == e->config.batch ? send_rows(e, t, err) : KD_OK;
}

kd_status kd_exec_upload(kd_exec *e, const char *input, const void *data, kd_err *err) {
    return kd_exec_upload_rows(e, input, 0, e->config.batch, data, err);
}

const void *kd_exec_output(const kd_exec *e, const char *name, kd_tdesc *desc) {
    const kd_ptap *t = find_tap(e->outputs, e->output_count, name);
    if (!t)
        return NULL;
    if (desc)
        *desc = t->desc;
    return t->data;
}

/* bf16 values lie in the second half of out and are widened from the front: the read position stays ahead of the write position. */
static void widen_in_place(float *out, size_t n) {
    const char *src = (const char *)out + n * sizeof(uint16_t);
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + i * sizeof h, sizeof h);
        out[i] = kd_bf16_to_f32(h);
    }
}

kd_status kd_exec_download(kd_exec *e, const char *output, int rows, float *out, kd_err *err) {
    kd_ptap *t = find_tap(e->outputs, e->output_count, output);
    if (!t)
        return kd_fail(err, KD_EFAIL, "the compiled %s program has no output \"%s\"", e->config.train ? "training" : "inference", output);
    KD_ASSERT(rows >= 0 && rows <= t->desc.shape[0]);
    size_t n = kd_tdesc_numel(&t->desc) / (size_t)t->desc.shape[0] * (size_t)rows;
    if (t->desc.dtype == KD_F32)
        return e->b->v->download(e->b, out, t->data, n * sizeof(float), err);
    KD_TRY(e->b->v->download(e->b, (char *)out + n * sizeof(uint16_t), t->data, n * sizeof(uint16_t), err));
    widen_in_place(out, n);
    return KD_OK;
}

kd_backend *kd_exec_backend(const kd_exec *e) {
    return e->b;
}

/* ---- what it costs ---- */

size_t kd_exec_device_bytes(const kd_exec *e) {
    size_t sum = 0;
    for (int k = 0; k < KD_ARENA_KINDS; k++)
        sum += e->bytes[k];
    return sum;
}

size_t kd_exec_model_bytes(const kd_exec *e) {
    return e->bytes[KD_ARENA_PARAMETERS] + e->bytes[KD_ARENA_PACKED];
}

double kd_exec_flops(const kd_exec *e) {
    double sum = 0;
    for (int i = 0; i < e->node_count; i++)
        sum += kd_op_flops(&e->nodes[i].desc);
    return sum;
}

static void shape_text(const kd_tdesc *t, char *buf, size_t cap) {
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i < t->rank && at < cap; i++)
        at += (size_t)snprintf(buf + at, cap - at, "%s%lld", i ? "x" : "", (long long)t->shape[i]);
}

void kd_exec_print_plan(const kd_exec *e, FILE *out, int nodes) {
    static const char *const names[KD_ARENA_KINDS] = {"activations", "parameter gradients", "parameters", "packed weights", "scratch"};
    const char *comma = "";
    fprintf(out, "%s program, batch %d, %s: %d ops, ", e->config.train ? "training" : "inference", e->config.batch, kd_dtype_name(e->config.precision), e->node_count);
    for (int k = 0; k < KD_ARENA_KINDS; k++)
        if (e->bytes[k]) {
            fprintf(out, "%s%s %.1f MiB", comma, names[k], (double)e->bytes[k] / (1 << 20));
            comma = ", ";
        }
    fprintf(out, "\n");
    if (!nodes)
        return;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        char shape[100];
        shape_text(&n->desc.y, shape, sizeof shape);
        fprintf(out, "  %-16s %-28s %-4s %-20s %9.1f MFLOP\n", kd_op_kind_name(n->desc.kind), n->desc.name, kd_dtype_name(n->desc.y.dtype), shape,
                kd_op_flops(&n->desc) * 1e-6);
    }
}
