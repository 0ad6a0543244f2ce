/* Parameters: where each one lies in the two flat device arrays, how it starts, host access by index.
 *
 *     trained: | decayed parameters, in order of building | the rest |      every parameter starts at a multiple of 64 bytes;
 *     states:  | running statistics | carried parameters  |                 the padding between them is zero and stays zero
 *
 * Padding stays zero because its gradient is zero, and every optimizer leaves w = g = 0 with no history at 0. */
#include "kernels/nn/graph_impl.h"

#include <math.h>
#include <string.h>

#include "common/base/hash.h"
#include "common/base/rng.h"

static size_t padded(size_t n) {
    return (n + KD_ALIGN_FLOATS - 1) / KD_ALIGN_FLOATS * KD_ALIGN_FLOATS;
}

static int in_states(const kd_param_info *i) {
    return i->is_state || i->carried;
}

/* One pass of the layout: parameters of one class get the next offsets. */
static size_t lay_out(kd_params *p, size_t at, int states, int decay, int carried) {
    for (int i = 0; i < p->count; i++) {
        const kd_param_info *info = &p->params[i].info;
        if (info->is_counter || in_states(info) != states || (states ? info->carried : info->decay) != (states ? carried : decay))
            continue;
        p->offset[i] = at;
        at += padded(info->count);
    }
    return at;
}

static kd_status copy_infos(kd_params *p, const kd_graph *g, kd_err *err) {
    KD_TRY(kd_alloc_array(&p->params, (size_t)g->param_count, sizeof *p->params, err));
    KD_TRY(kd_alloc_array(&p->offset, (size_t)g->param_count, sizeof *p->offset, err));
    p->names = kd_arena_create();
    if (!p->names)
        return kd_fail(err, KD_EFAIL, "out of memory for the names of %d parameters", g->param_count);
    p->count = g->param_count;
    for (int i = 0; i < p->count; i++) {
        p->params[i] = g->params[i];
        p->params[i].info.name = kd_arena_strdup(p->names, g->params[i].info.name);
        if (!p->params[i].info.name)
            return kd_fail(err, KD_EFAIL, "out of memory for the names of %d parameters", g->param_count);
    }
    return KD_OK;
}

static kd_status create(kd_params *p, const kd_graph *g, kd_err *err) {
    KD_TRY(copy_infos(p, g, err));
    p->decayed = lay_out(p, 0, 0, 1, 0);
    p->trained_total = lay_out(p, p->decayed, 0, 0, 0);
    p->states_total = lay_out(p, lay_out(p, 0, 1, 0, 0), 1, 0, 1);
    void *device = NULL;
    KD_TRY(p->b->v->alloc(p->b, &device, p->trained_total * sizeof(float), err));
    p->trained = device;
    KD_TRY(p->b->v->alloc(p->b, &device, p->states_total * sizeof(float), err));
    p->states = device;
    return KD_OK;
}

static kd_status create_any(kd_params **out, const kd_graph *g, kd_backend *b, const kd_param_source *source, kd_err *err) {
    *out = NULL;
    if (g->failed)
        return kd_fail(err, KD_EFAIL, "out of memory while building the model");
    kd_params *p = kd_calloc(1, sizeof *p);
    if (!p)
        return kd_fail(err, KD_EFAIL, "out of memory for the parameters");
    p->b = b;
    p->version = p->state_version = 1;
    if (source)
        p->source = *source;
    kd_status status = source ? copy_infos(p, g, err) : create(p, g, err);
    if (status != KD_OK) {
        kd_params_destroy(p);
        return status;
    }
    *out = p;
    return KD_OK;
}

kd_status kd_params_create(kd_params **out, const kd_graph *g, kd_backend *b, kd_err *err) {
    return create_any(out, g, b, NULL, err);
}

kd_status kd_params_create_frozen(kd_params **out, const kd_graph *g, kd_backend *b, const kd_param_source *source, kd_err *err) {
    KD_ASSERT(source->read != NULL);
    return create_any(out, g, b, source, err);
}

void kd_params_destroy(kd_params *p) {
    if (!p)
        return;
    p->b->v->release(p->b, p->trained);
    p->b->v->release(p->b, p->states);
    kd_arena_destroy(p->names);
    kd_free(p->params);
    kd_free(p->offset);
    kd_free(p);
}

int kd_params_fit(const kd_params *p, const kd_graph *g) {
    if (p->count != g->param_count)
        return 0;
    for (int i = 0; i < p->count; i++) {
        const kd_param_info *a = &p->params[i].info, *b = &g->params[i].info;
        if (strcmp(a->name, b->name) != 0 || a->rank != b->rank || memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) != 0)
            return 0;
    }
    return 1;
}

/* ---- initial values ---- */

/* Segments of a parameter draw from their own streams, because a Philox stream is bounded (rng.h). */
enum { SEGMENT = 1 << 16 };

static void draw_segment(float *out, size_t n, const kd_gparam *p, uint64_t seed, uint32_t segment) {
    kd_rng r = kd_rng_make(seed, kd_xxh64(p->info.name, strlen(p->info.name)), segment, KD_RNG_INIT);
    for (size_t i = 0; i < n; i++) {
        double x = p->fill == KD_FILL_UNIFORM ? kd_rng_uniform(&r, -p->amount, p->amount) : p->amount * kd_rng_normal(&r);
        out[i] = (float)(x < -2 ? -2 : x > 2 ? 2 : x); /* the reference's cut at +-2 absolute; out of reach at std 0.02 */
    }
}

static void draw(float *out, const kd_gparam *p, uint64_t seed) {
    size_t n = p->info.count;
    if (p->fill == KD_FILL_CONST) {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)p->amount;
        return;
    }
    for (size_t begin = 0; begin < n; begin += SEGMENT)
        draw_segment(out + begin, n - begin < SEGMENT ? n - begin : SEGMENT, p, seed, (uint32_t)(begin / SEGMENT));
}

kd_status kd_params_init(kd_params *p, uint64_t seed, kd_err *err) {
    size_t largest = 1;
    for (int i = 0; i < p->count; i++)
        if (p->params[i].info.count > largest)
            largest = p->params[i].info.count;
    float *values = NULL;
    KD_TRY(kd_alloc_array(&values, largest, sizeof *values, err));
    kd_status status = KD_OK;
    for (int i = 0; i < p->count && status == KD_OK; i++) {
        draw(values, &p->params[i], seed);
        status = kd_params_set(p, i, values, err);
    }
    kd_free(values);
    return status;
}

/* ---- access ---- */

int kd_params_count(const kd_params *p) {
    return p->count;
}

kd_param_info kd_params_info(const kd_params *p, int i) {
    KD_ASSERT(i >= 0 && i < p->count);
    return p->params[i].info;
}

int kd_params_find(const kd_params *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (strcmp(p->params[i].info.name, name) == 0)
            return i;
    return -1;
}

static float *address(const kd_params *p, int i) {
    KD_ASSERT(!kd_is_frozen(p)); /* they have no values of their own */
    return (in_states(&p->params[i].info) ? p->states : p->trained) + p->offset[i];
}

size_t kd_params_offset(const kd_params *p, int i) {
    KD_ASSERT(i >= 0 && i < p->count && !p->params[i].info.is_counter);
    return p->offset[i];
}

kd_status kd_params_set(kd_params *p, int i, const float *values, kd_err *err) {
    kd_param_info info = kd_params_info(p, i);
    if (info.is_counter) {
        kd_params_set_counter(p, (int64_t)values[0]);
        return KD_OK;
    }
    kd_params_changed(p);
    return p->b->v->upload(p->b, address(p, i), values, info.count * sizeof(float), err);
}

kd_status kd_params_get(kd_params *p, int i, float *values, kd_err *err) {
    kd_param_info info = kd_params_info(p, i);
    if (info.is_counter) {
        values[0] = (float)p->counter;
        return KD_OK;
    }
    return p->b->v->download(p->b, values, address(p, i), info.count * sizeof(float), err);
}

int64_t kd_params_counter(const kd_params *p) {
    return p->counter;
}

void kd_params_set_counter(kd_params *p, int64_t n) {
    p->counter = n;
}

float *kd_params_trained(kd_params *p, size_t *decayed, size_t *total) {
    if (decayed)
        *decayed = p->decayed;
    if (total)
        *total = p->trained_total;
    return p->trained;
}

float *kd_params_states(kd_params *p, size_t *total) {
    if (total)
        *total = p->states_total;
    return p->states;
}

void kd_params_changed(kd_params *p) {
    KD_ASSERT(!kd_is_frozen(p));
    p->version++;
    p->state_version++;
}
