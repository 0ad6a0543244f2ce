/* Frozen parameters: they belong to no array, they pass through. A program that is made from them reads each parameter from its source, packs it into the backend's layout, and
 * keeps as f32 only what op_forward still reads (gains, biases, tokens: thousandths of a model). So the model exists once, in the type that it is computed in, and beside it during the
 * loading one parameter: in a host buffer as the source gives it, and in a device buffer from which op_pack reads.
 *
 *     source --read--> host buffer --upload--> | KD_ARENA_PARAMETERS: stays          |
 *                                              | staging: the consumed ones of a node | --op_pack--> KD_ARENA_PACKED */
#include "kernels/nn/graph_impl.h"

static size_t aligned(size_t bytes) {
    return (bytes + KD_ALIGN_BYTES - 1) / KD_ALIGN_BYTES * KD_ALIGN_BYTES;
}

static size_t param_bytes(const kd_exec *e, int i) {
    return aligned(e->p->params[i].info.count * sizeof(float));
}

static int is_consumed(const kd_pnode *n, int k) {
    return (int)(n->needs.consumed >> k & 1);
}

static void keep(kd_exec *e, int i) {
    if (i < 0 || e->kept_at[i] != KD_NOT_KEPT)
        return;
    e->kept_at[i] = e->bytes[KD_ARENA_PARAMETERS];
    e->bytes[KD_ARENA_PARAMETERS] += param_bytes(e, i);
}

kd_status kd_frozen_plan(kd_exec *e, kd_err *err) {
    KD_TRY(kd_alloc_array(&e->kept_at, (size_t)e->p->count + 1, sizeof *e->kept_at, err));
    for (int i = 0; i < e->p->count; i++)
        e->kept_at[i] = KD_NOT_KEPT;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        for (int k = 0; k < KD_OP_MAX_PARAM; k++)
            if (!is_consumed(n, k))
                keep(e, n->param[k]);
        for (int k = 0; k < KD_OP_MAX_STATE; k++)
            keep(e, n->state[k]);
    }
    return KD_OK;
}

static float *kept_address(const kd_exec *e, int i) {
    return (float *)(void *)(e->arena[KD_ARENA_PARAMETERS] + e->kept_at[i]);
}

void kd_frozen_bind(kd_exec *e, kd_pnode *n) {
    for (int k = 0; k < KD_OP_MAX_PARAM; k++)
        if (n->param[k] >= 0 && !is_consumed(n, k))
            n->args.param[k] = kept_address(e, n->param[k]);
    for (int k = 0; k < KD_OP_MAX_STATE; k++)
        if (n->state[k] >= 0)
            n->args.state[k] = kept_address(e, n->state[k]);
}

/* ---- loading ---- */

typedef struct buffers {
    float *host;   /* the largest parameter of the program */
    char *staging; /* device: what one node consumes */
} buffers;

static void sizes(const kd_exec *e, size_t *host, size_t *staging) {
    *host = 1;
    *staging = 0;
    for (int i = 0; i < e->p->count; i++)
        if (e->kept_at[i] != KD_NOT_KEPT && e->p->params[i].info.count > *host)
            *host = e->p->params[i].info.count;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        size_t sum = 0;
        for (int k = 0; k < KD_OP_MAX_PARAM; k++) {
            if (n->param[k] < 0 || !is_consumed(n, k))
                continue;
            sum += param_bytes(e, n->param[k]);
            if (e->p->params[n->param[k]].info.count > *host)
                *host = e->p->params[n->param[k]].info.count;
        }
        if (sum > *staging)
            *staging = sum;
    }
}

static kd_status fetch(const kd_exec *e, const buffers *b, int i, void *device, kd_err *err) {
    const kd_param_info *info = &e->p->params[i].info;
    KD_TRY(e->p->source.read(e->p->source.ctx, info->name, b->host, info->count, err));
    return e->b->v->upload(e->b, device, b->host, info->count * sizeof(float), err);
}

static kd_status pack_node(kd_exec *e, const buffers *b, kd_pnode *n, kd_err *err) {
    size_t at = 0;
    for (int k = 0; k < KD_OP_MAX_PARAM; k++) {
        if (n->param[k] < 0 || !is_consumed(n, k))
            continue;
        n->args.param[k] = (const float *)(const void *)(b->staging + at);
        KD_TRY(fetch(e, b, n->param[k], b->staging + at, err));
        at += param_bytes(e, n->param[k]);
    }
    KD_TRY(e->b->v->op_pack(e->b, n->op, &n->args, err));
    for (int k = 0; k < KD_OP_MAX_PARAM; k++)
        if (is_consumed(n, k))
            n->args.param[k] = NULL;
    return KD_OK;
}

static kd_status load(kd_exec *e, const buffers *b, kd_err *err) {
    for (int i = 0; i < e->p->count; i++)
        if (e->kept_at[i] != KD_NOT_KEPT)
            KD_TRY(fetch(e, b, i, kept_address(e, i), err));
    for (int i = 0; i < e->node_count; i++)
        KD_TRY(pack_node(e, b, &e->nodes[i], err));
    return e->b->v->sync(e->b, err);
}

kd_status kd_frozen_load(kd_exec *e, kd_err *err) {
    buffers b = {0};
    size_t host, staging;
    kd_status status;
    void *device = NULL;
    sizes(e, &host, &staging);
    KD_TRY_TO(end, status, kd_alloc_array(&b.host, host, sizeof *b.host, err));
    if (staging > 0)
        KD_TRY_TO(end, status, e->b->v->alloc(e->b, &device, staging, err));
    b.staging = device;
    status = load(e, &b, err);
    e->packed_version = e->p->version;
    e->packed_state_version = e->p->state_version;
end:
    kd_free(b.host);
    e->b->v->release(e->b, device);
    return status;
}
