/* Memory of a program: one arena per lifetime, and an address for every value, gradient and region of an op.
 *
 *     activations      inputs, values, what ops save from forward to backward, gradients of values, loss weights; what is never alive together shares bytes. So gradients of a network's first layers,
 *                      which are the largest, lie where the values of its last layers were
 *     param gradients  same layout as kd_params' trained array
 *     parameters       frozen ones that ops still read as f32 (frozen.c)
 *     packed           re-ordered weights, until the parameters change
 *     scratch          the largest op's, shared by all */
#include "kernels/nn/graph_impl.h"

#include <stdlib.h>
#include <string.h>

static size_t aligned(size_t bytes) {
    return (bytes + KD_ALIGN_BYTES - 1) / KD_ALIGN_BYTES * KD_ALIGN_BYTES;
}

static int overlap_in_time(const kd_span *a, const kd_span *b) {
    return a->first <= b->last && b->first <= a->last;
}

static int larger_first(const void *pa, const void *pb) {
    const kd_span *a = *(kd_span *const *)pa, *b = *(kd_span *const *)pb;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    return a < b ? -1 : a > b; /* same array: the order of building decides */
}

/* Lowest offset where s fits beside the spans already placed, which are kept sorted by offset. */
static size_t lowest_gap(kd_span *const *placed, size_t count, const kd_span *s) {
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (!overlap_in_time(placed[i], s))
            continue;
        if (placed[i]->offset >= at + s->bytes)
            break;
        if (placed[i]->offset + placed[i]->bytes > at)
            at = placed[i]->offset + placed[i]->bytes;
    }
    return at;
}

kd_status kd_plan_place(kd_span *spans, size_t count, size_t *total, kd_err *err) {
    kd_span **order = NULL, **placed = NULL;
    *total = 0;
    KD_TRY(kd_alloc_array(&order, 2 * count + 1, sizeof(*order), err));
    placed = order + count;
    for (size_t i = 0; i < count; i++) {
        spans[i].bytes = aligned(spans[i].bytes);
        order[i] = &spans[i];
    }
    qsort(order, count, sizeof(*order), larger_first);
    for (size_t i = 0; i < count; i++) {
        kd_span *s = order[i];
        s->offset = lowest_gap(placed, i, s);
        size_t k = i;
        for (; k > 0 && placed[k - 1]->offset > s->offset; k--)
            placed[k] = placed[k - 1];
        placed[k] = s;
        if (s->offset + s->bytes > *total)
            *total = s->offset + s->bytes;
    }
    kd_free(order);
    return KD_OK;
}

/* ---- lifetimes ---- */

static void live_at(kd_span *s, int t) {
    if (s->first > s->last) { /* not seen yet */
        s->first = s->last = t;
        return;
    }
    if (t < s->first)
        s->first = t;
    if (t > s->last)
        s->last = t;
}

/* Time: node i runs forward at i and backward at 2 count - 1 - i. Its backward pass may read what it saved, and of its inputs and its result what its op doesn't say to be unread (ops.h). */
static int backward_time(const kd_exec *e, int i) {
    return 2 * e->node_count - 1 - i;
}

/* A node's inputs and result are alive while it runs forward, and a trained one's that it still reads until its backward pass. */
static void value_lifetimes(kd_exec *e) {
    for (int v = 0; v < e->val_count; v++)
        e->vals[v].mem.first = 0, e->vals[v].mem.last = -1;
    for (int i = 0; i < e->node_count; i++) {
        kd_pnode *n = &e->nodes[i];
        int last = n->backward ? backward_time(e, i) : i;
        n->saved = (kd_span){.bytes = n->needs.saved, .first = i, .last = n->needs.saved > 0 ? last : -1};
        for (int k = -1; k < n->desc.inputs; k++) {
            kd_span *s = &e->vals[k < 0 ? n->y : n->x[k]].mem;
            live_at(s, i);
            if (!(n->needs.unread & (k < 0 ? KD_OP_UNREAD_Y : 1u << k)))
                live_at(s, last);
        }
    }
    for (int v = 0; v < e->val_count; v++) {
        kd_span *s = &e->vals[v].mem;
        if (e->vals[v].live && (e->vals[v].kept || (e->config.keep_values && s->first <= s->last))) {
            s->first = -1;
            s->last = 2 * e->node_count;
        }
    }
}

/* A gradient lives from its first contribution until the producer of its value has read it. */
static void gradient_lifetimes(kd_exec *e) {
    for (int v = 0; v < e->val_count; v++)
        e->vals[v].grad.first = 0, e->vals[v].grad.last = -1;
    for (int i = e->node_count - 1; i >= 0; i--) {
        const kd_pnode *n = &e->nodes[i];
        int t = backward_time(e, i);
        if (!n->backward)
            continue;
        if (!kd_is_loss(n->desc.kind)) /* a loss's gradient is its weight, a constant */
            live_at(&e->vals[e->vals[n->y].grad_root].grad, t);
        for (int k = 0; k < n->desc.inputs; k++)
            if (n->desc.need_dx >> k & 1) {
                kd_val r = e->vals[n->x[k]].grad_root;
                live_at(&e->vals[r].grad, t);
                e->vals[r].grad.bytes = kd_tdesc_bytes(&n->desc.x[k]);
            }
    }
}

static void list_span(kd_span **list, size_t *count, kd_span *s) {
    if (s->first <= s->last)
        list[(*count)++] = s;
}

static size_t list_spans(kd_exec *e, kd_span **list) {
    size_t count = 0;
    for (int v = 0; v < e->val_count; v++) {
        list_span(list, &count, &e->vals[v].mem);
        list_span(list, &count, &e->vals[v].grad);
    }
    for (int i = 0; i < e->node_count; i++)
        list_span(list, &count, &e->nodes[i].saved);
    return count;
}

static kd_status place_all(kd_exec *e, size_t *total, kd_err *err) {
    kd_span **list = NULL, *spans = NULL;
    size_t most = 2 * (size_t)e->val_count + (size_t)e->node_count + 1;
    KD_TRY(kd_alloc_array(&list, most, sizeof(*list), err));
    kd_status status = kd_alloc_array(&spans, most, sizeof *spans, err);
    if (status == KD_OK) {
        size_t count = list_spans(e, list);
        for (size_t i = 0; i < count; i++)
            spans[i] = *list[i];
        status = kd_plan_place(spans, count, total, err);
        for (size_t i = 0; i < count && status == KD_OK; i++)
            *list[i] = spans[i];
    }
    kd_free(spans);
    kd_free(list);
    return status;
}

/* ---- addresses ---- */

static char *region(const kd_exec *e, kd_arena_kind kind, size_t *at, size_t bytes) {
    char *p = bytes ? e->arena[kind] + *at : NULL;
    *at += aligned(bytes);
    return p;
}

static void *value_address(const kd_exec *e, kd_val v) {
    return e->arena[KD_ARENA_ACTIVATIONS] + e->vals[v].mem.offset;
}

static void *gradient_address(const kd_exec *e, kd_val v) {
    return e->arena[KD_ARENA_ACTIVATIONS] + e->vals[e->vals[v].grad_root].grad.offset;
}

static void bind_params(kd_exec *e, kd_pnode *n) {
    if (kd_is_frozen(e->p)) {
        kd_frozen_bind(e, n);
        return;
    }
    float *gradients = kd_exec_gradients(e);
    for (int k = 0; k < KD_OP_MAX_PARAM; k++) {
        if (n->param[k] < 0)
            continue;
        n->args.param[k] = e->p->trained + e->p->offset[n->param[k]];
        if (n->desc.need_dparam)
            n->args.dparam[k] = gradients + e->p->offset[n->param[k]];
    }
    for (int k = 0; k < KD_OP_MAX_STATE; k++)
        if (n->state[k] >= 0)
            n->args.state[k] = e->p->states + e->p->offset[n->state[k]];
}

static kd_status bind(kd_exec *e, kd_err *err) {
    size_t packed = 0, scratch, constants = e->loss_weights_at;
    for (int i = 0; i < e->node_count; i++) {
        kd_pnode *n = &e->nodes[i];
        for (int k = 0; k < n->desc.inputs; k++) {
            n->args.x[k] = value_address(e, n->x[k]);
            if (n->desc.need_dx >> k & 1)
                n->args.dx[k] = gradient_address(e, n->x[k]);
        }
        n->args.y = value_address(e, n->y);
        n->args.saved = n->needs.saved > 0 ? e->arena[KD_ARENA_ACTIVATIONS] + n->saved.offset : NULL;
        n->args.packed = region(e, KD_ARENA_PACKED, &packed, n->needs.packed);
        scratch = 0;
        n->args.scratch = region(e, KD_ARENA_SCRATCH, &scratch, n->needs.scratch);
        bind_params(e, n);
        if (!n->backward)
            continue;
        n->args.dy = gradient_address(e, n->y);
        if (kd_is_loss(n->desc.kind)) {
            char *weight = region(e, KD_ARENA_ACTIVATIONS, &constants, sizeof(float));
            n->args.dy = weight;
            KD_TRY(e->b->v->upload(e->b, weight, &n->loss_weight, sizeof(float), err));
        }
    }
    for (int i = 0; i < e->input_count; i++)
        e->inputs[i].data = value_address(e, e->inputs[i].val);
    for (int i = 0; i < e->output_count; i++)
        e->outputs[i].data = value_address(e, e->outputs[i].val);
    return KD_OK;
}

/* The plan doesn't fit: what it wants, what there is, and the batch that would fit. Everything but parameters, their gradients and what they are packed into grows with the batch,
 * but not quite evenly, since spans find other places: a 64th less. */
static kd_status too_large(const kd_exec *e, size_t left, kd_err *err) {
    size_t fixed = e->bytes[KD_ARENA_PARAMETERS] + e->bytes[KD_ARENA_PACKED] + e->bytes[KD_ARENA_PARAM_GRADIENTS], all = kd_exec_device_bytes(e), growing = all - fixed;
    double mib = 1 << 20;
    int batch = left > fixed && growing > 0 ? (int)((double)(left - fixed) / (double)growing * e->config.batch * 63 / 64) : 0;
    char advice[80] = "no batch fits beside the parameters; use a smaller model";
    if (batch > 0)
        snprintf(advice, sizeof advice, "a batch of %d would fit (--batch-size)", batch);
    return kd_fail(err, KD_ENODEVICE, "the plan of a batch of %d takes %.0f MiB of the device's memory (parameters, their gradients and packed weights %.0f, activations and their gradients %.0f, scratch %.0f), and %.0f MiB are free; %s",
                   e->config.batch, (double)all / mib, (double)fixed / mib, (double)e->bytes[KD_ARENA_ACTIVATIONS] / mib, (double)e->bytes[KD_ARENA_SCRATCH] / mib, (double)left / mib, advice);
}

static void borrow(kd_exec *e, kd_arena_kind kind, size_t room) {
    if (e->bytes[kind] > room)
        return;
    e->borrowed |= 1u << kind;
    e->arena[kind] = e->config.values->arena[kind];
    e->bytes[kind] = 0;
}

/* Validation never runs in the middle of a step, so its values and its scratch take no memory of their own. The lender's loss weights, written once, lie behind its values. */
static void borrow_memory(kd_exec *e) {
    const kd_exec *lender = e->config.values;
    if (lender == NULL)
        return;
    borrow(e, KD_ARENA_ACTIVATIONS, lender->loss_weights_at);
    borrow(e, KD_ARENA_SCRATCH, lender->bytes[KD_ARENA_SCRATCH]);
}

static kd_status make_arenas(kd_exec *e, kd_err *err) {
    size_t left, total;
    borrow_memory(e);
    if (e->b->v->memory != NULL) {
        KD_TRY(e->b->v->memory(e->b, &left, &total, err));
        if (kd_exec_device_bytes(e) > left)
            return too_large(e, left, err);
    }
    for (int k = 0; k < KD_ARENA_KINDS; k++) {
        void *p = NULL;
        if (e->bytes[k] == 0)
            continue;
        KD_TRY(e->b->v->alloc(e->b, &p, e->bytes[k], err));
        e->arena[k] = p;
    }
    return KD_OK;
}

kd_status kd_plan_memory(kd_exec *e, kd_err *err) {
    size_t losses = 0;
    value_lifetimes(e);
    gradient_lifetimes(e);
    KD_TRY(place_all(e, &e->bytes[KD_ARENA_ACTIVATIONS], err));
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        e->bytes[KD_ARENA_PACKED] += aligned(n->needs.packed);
        if (aligned(n->needs.scratch) > e->bytes[KD_ARENA_SCRATCH])
            e->bytes[KD_ARENA_SCRATCH] = aligned(n->needs.scratch);
        losses += (size_t)kd_is_loss(n->desc.kind);
    }
    if (kd_is_frozen(e->p))
        KD_TRY(kd_frozen_plan(e, err));
    if (e->config.train && e->config.gradients == NULL)
        e->bytes[KD_ARENA_PARAM_GRADIENTS] = e->p->trained_total * sizeof(float);
    e->loss_weights_at = e->bytes[KD_ARENA_ACTIVATIONS];
    e->bytes[KD_ARENA_ACTIVATIONS] += losses * KD_ALIGN_BYTES;
    KD_TRY(make_arenas(e, err));
    return bind(e, err);
}
