/* rope: one pass over the q|k|v rows. The table of a grid is small (its rows and columns, not its patches), made once on the host, and stays in the first-level cache. */
#include "kernels/cuda/images.cuh"

typedef struct rope_args {
    const void *from; /* x or dy */
    void *to;         /* y or dx */
    const float *table;
    size_t width;
    unsigned tokens, first, grid_h, grid_w, heads, periods; /* heads: those of q and k */
    kd_steps steps;                                         /* of `periods` values */
    int bf16, back, add;                                    /* back: by the negative angle */
} rope_args;

/* The values at j and at j + h of a head, h = 2 periods: j lies in the first `periods` values, which turn by the row, or in the second ones, which turn by the column. */
static __device__ __forceinline__ void turn(const rope_args &a, unsigned patch, unsigned quarter, unsigned j, kd_f8 *low, kd_f8 *high) {
    unsigned line = quarter == 0 ? patch / a.grid_w : a.grid_h + patch % a.grid_w;
    const float *at = a.table + (size_t)line * 2 * a.periods;
    kd_f8 cosine = kd_load_some(at, 0, j, a.steps.each, a.steps.whole), sine = kd_load_some(at, 0, a.periods + j, a.steps.each, a.steps.whole);
    for (int k = 0; k < 8; k++) {
        float s = a.back ? -sine.v[k] : sine.v[k], x = low->v[k], y = high->v[k];
        low->v[k] = fmaf(x, cosine.v[k], -(y * s));
        high->v[k] = fmaf(y, cosine.v[k], x * s);
    }
}

/* A thread takes a step of a head and the one it is turned with; v's heads pass through in the same way. */
static __global__ void __launch_bounds__(KD_IMAGE_THREADS) rope_kernel(rope_args a) {
    size_t image = blockIdx.x;
    unsigned of_head = 2 * a.steps.count, of_token = a.heads / 2 * 3 * of_head, each = (unsigned)a.steps.each;
    kd_each_of_image(i, a.tokens * of_token) {
        unsigned token = i / of_token, in_token = i - token * of_token, head = in_token / of_head, step = in_token - head * of_head, quarter = step >= a.steps.count;
        unsigned j = (quarter ? step - a.steps.count : step) * each;
        size_t at = (image * a.tokens + token) * a.width + head * 4 * a.periods + quarter * a.periods + j, beside = at + 2 * a.periods;
        kd_f8 low = kd_load_some(a.from, a.bf16, at, a.steps.each, a.steps.whole), high = kd_load_some(a.from, a.bf16, beside, a.steps.each, a.steps.whole);
        if (token >= a.first && head < a.heads)
            turn(a, token - a.first, quarter, j, &low, &high);
        kd_store_grad_some(a.to, a.bf16, at, low, a.steps.each, a.steps.whole, a.add);
        kd_store_grad_some(a.to, a.bf16, beside, high, a.steps.each, a.steps.whole, a.add);
    }
}

static void rope_destroy(void *table) {
    cudaFree(table);
}

static kd_status rope_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    size_t n = kd_op_rope_table_floats(&op->desc);
    float *host = NULL;
    (void)needs;
    KD_TRY(b->base.v->alloc(&b->base, &op->impl, n * sizeof *host, err));
    KD_TRY(kd_alloc_array(&host, n, sizeof *host, err));
    kd_op_rope_table(&op->desc, host);
    kd_status status = b->base.v->upload(&b->base, op->impl, host, n * sizeof *host, err);
    kd_free(host);
    return status;
}

static kd_status launch(kd_cuda *b, kd_op *op, void *to, const void *from, int back, int add, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    unsigned heads = (unsigned)d->heads;
    rope_args a = {from, to, (const float *)op->impl, kd_cuda_width(&d->y), (unsigned)d->y.shape[1], (unsigned)d->begin, (unsigned)d->grid_h, (unsigned)d->grid_w, 2 * heads, (unsigned)d->periods,
                   kd_steps_of((size_t)d->periods), kd_is_bf16(d->y.dtype), back, add};
    return kd_launch(b, "rope", rope_kernel, kd_image_grid((size_t)d->y.shape[0], (size_t)a.tokens * 6 * heads * a.steps.count), KD_IMAGE_THREADS, err, a);
}

static kd_status rope_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    return launch(b, op, p->y, p->x[0], 0, 0, err);
}

static kd_status rope_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    return op->desc.need_dx & 1 ? launch(b, op, p->dx[0], p->dy, 1, (op->desc.add_dx & 1) != 0, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_rope = {rope_create, rope_destroy, NULL, rope_forward, rope_backward};
