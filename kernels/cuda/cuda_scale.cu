/* Ops that multiply: channels by a parameter (scale_add), channels of an image by the image's gate (channel_gate), images by a number (row_scale).
 *
 * The first two are one pass each way: y = [base +] x * factor; backward dbase = dy, dx = dy * factor and the sum over rows of dy * x together. factor [images][width]; scale_add is one image. */
#include "kernels/cuda/columns.cuh"

enum { THREADS = 256, AT_ONCE = 2 /* rows whose loads are under way together */ };

typedef struct scale_args {
    const void *base, *x, *factor; /* base: NULL for channel_gate */
    void *y;
    int base_bf16, x_bf16, factor_bf16, y_bf16;
} scale_args;

static __global__ void __launch_bounds__(KD_TILE_THREADS) scale_kernel(scale_args a, kd_tile t) {
    kd_lane l = kd_lane_of(t);
    if (l.first >= l.last)
        return;
    size_t image = l.image * t.rows * t.width + l.i;
    kd_f8 factor = kd_load_some(a.factor, a.factor_bf16, l.image * t.width + l.i, l.n, t.whole);
    for (size_t r = l.first; r < l.last; r += AT_ONCE * t.down) {
        kd_raw8 x[AT_ONCE], base[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down, at = image + (row < l.last ? row : r) * t.width;
            x[u] = kd_load_raw(a.x, a.x_bf16, at, l.n, t.whole);
            base[u] = x[u];
            if (a.base)
                base[u] = kd_load_raw(a.base, a.base_bf16, at, l.n, t.whole);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down;
            kd_f8 v = kd_values(x[u], a.x_bf16, t.whole), c = kd_values(base[u], a.base_bf16, t.whole);
            for (int k = 0; k < 8; k++)
                v.v[k] = a.base ? fmaf(v.v[k], factor.v[k], c.v[k]) : v.v[k] * factor.v[k];
            if (row < l.last)
                kd_store_some(a.y, a.y_bf16, image + row * t.width, v, l.n, t.whole);
        }
    }
}

typedef struct scale_grad_args {
    const void *x, *factor, *dy;
    void *dbase, *dx; /* NULL: not wanted */
    double *part;     /* NULL: no sums */
    int base_bf16, x_bf16, factor_bf16, dy_bf16, add_base, add_x;
} scale_grad_args;

/* One row at `at`; what it adds to the sums. */
static __device__ __forceinline__ void scale_grad_row(float *s, const scale_grad_args &a, const kd_f8 &factor, size_t at, int n, int whole) {
    kd_raw8 dy = kd_load_raw(a.dy, a.dy_bf16, at, n, whole), x = dy;
    if (a.part)
        x = kd_load_raw(a.x, a.x_bf16, at, n, whole);
    kd_f8 d = kd_values(dy, a.dy_bf16, whole), v = kd_values(x, a.x_bf16, whole);
    for (int k = 0; k < 8; k++) {
        s[k] = fmaf(d.v[k], v.v[k], s[k]);
        v.v[k] = d.v[k] * factor.v[k];
    }
    if (a.dbase)
        kd_store_grad_some(a.dbase, a.base_bf16, at, d, n, whole, a.add_base);
    if (a.dx)
        kd_store_grad_some(a.dx, a.x_bf16, at, v, n, whole, a.add_x);
}

static __global__ void __launch_bounds__(KD_TILE_THREADS, 3) scale_grad_kernel(scale_grad_args a, kd_tile t) {
    __shared__ double sum[8 * KD_TILE_THREADS];
    kd_lane l = kd_lane_of(t);
    size_t image = l.image * t.rows * t.width + l.i, r = l.first;
    kd_f8 factor = kd_load_some(a.factor, a.factor_bf16, l.image * t.width + l.i, l.n, t.whole && l.n == 8);
    kd_clear8(sum);
    while (r < l.last) {
        float s[8] = {};
        for (int round = 0; round < KD_TILE_FOLD_ROWS && r < l.last; round++, r += t.down)
            scale_grad_row(s, a, factor, image + r * t.width, l.n, t.whole);
        kd_fold8(sum, s);
    }
    kd_tile_sum(sum, 8, t);
    if (a.part)
        kd_store_part(a.part, sum, t, l, 0, 1);
}

static __global__ void __launch_bounds__(KD_PARTS_THREADS) factor_grad_kernel(void *out, int bf16, int add, kd_parts p) {
    __shared__ double sum[KD_PARTS_THREADS];
    kd_column l = kd_parts_sum(sum, p);
    if (l.here)
        kd_store_grad1(out, bf16, l.image * p.width + l.c, (float)sum[threadIdx.x], add);
}

static kd_status scale(kd_cuda *b, const scale_args *a, kd_tile t, size_t images, kd_err *err) {
    t = kd_tile_spread(b, t, images);
    return kd_launch(b, "scaling of channels", scale_kernel, kd_tile_grid(&t, images), KD_TILE_THREADS, err, *a, t);
}

/* dfactor: NULL or as factor. */
static kd_status scale_grad(kd_cuda *b, scale_grad_args *a, kd_tile t, size_t images, void *dfactor, int add, void *scratch, kd_err *err) {
    if (!a->dbase && !a->dx && !dfactor)
        return KD_OK;
    kd_parts sums = kd_parts_of(scratch, &t, 1);
    a->part = dfactor ? (double *)scratch : NULL;
    KD_TRY(kd_launch(b, "gradient of a scaling of channels", scale_grad_kernel, kd_tile_grid(&t, images), KD_TILE_THREADS, err, *a, t));
    if (!dfactor)
        return KD_OK;
    KD_ASSERT(images <= INT32_MAX / sums.blocks);
    return kd_launch(b, "gradient of a scaling of channels", factor_grad_kernel, (unsigned)images * sums.blocks, KD_PARTS_THREADS, err, dfactor, a->factor_bf16, add, sums);
}

/* ---- scale_add ---- */

static kd_tile scale_add_tile(const kd_op_desc *d) {
    return kd_tile_of(1, kd_cuda_rows(&d->y), kd_cuda_width(&d->y));
}

static kd_status scale_add_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    kd_tile t = scale_add_tile(&op->desc);
    (void)b, (void)err;
    if (op->desc.train && op->desc.need_dparam)
        needs->scratch = kd_parts_bytes(&t, 1, 1);
    return KD_OK;
}

static kd_status scale_add_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    scale_args a = {p->x[0], p->x[1], p->param[0], p->y, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype), 0, kd_is_bf16(d->y.dtype)};
    return scale(b, &a, scale_add_tile(d), 1, err);
}

static kd_status scale_add_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    scale_grad_args a = {p->x[1], p->param[0], p->dy, d->need_dx & 1 ? p->dx[0] : NULL, d->need_dx & 2 ? p->dx[1] : NULL, NULL, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype), 0,
                         kd_is_bf16(d->y.dtype), (d->add_dx & 1) != 0, (d->add_dx & 2) != 0};
    return scale_grad(b, &a, scale_add_tile(d), 1, d->need_dparam ? p->dparam[0] : NULL, 1, p->scratch, err);
}

extern "C" const kd_cuda_kind kd_cuda_scale_add = {scale_add_create, NULL, NULL, scale_add_forward, scale_add_backward};

/* ---- channel_gate ---- */

static size_t images_of(const kd_op_desc *d) {
    return (size_t)d->y.shape[0];
}

static kd_tile gate_tile(const kd_op_desc *d) {
    return kd_tile_of(images_of(d), kd_cuda_rows(&d->y) / images_of(d), kd_cuda_width(&d->y));
}

static kd_status gate_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    kd_tile t = gate_tile(&op->desc);
    (void)b, (void)err;
    if (op->desc.train && (op->desc.need_dx & 2))
        needs->scratch = kd_parts_bytes(&t, images_of(&op->desc), 1);
    return KD_OK;
}

static kd_status gate_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    scale_args a = {NULL, p->x[0], p->x[1], p->y, 0, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype), kd_is_bf16(d->y.dtype)};
    return scale(b, &a, gate_tile(d), images_of(d), err);
}

static kd_status gate_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    scale_grad_args a = {p->x[0], p->x[1], p->dy, NULL, d->need_dx & 1 ? p->dx[0] : NULL, NULL, 0, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype), kd_is_bf16(d->y.dtype), 0,
                         (d->add_dx & 1) != 0};
    return scale_grad(b, &a, gate_tile(d), images_of(d), d->need_dx & 2 ? p->dx[1] : NULL, (d->add_dx & 2) != 0, p->scratch, err);
}

extern "C" const kd_cuda_kind kd_cuda_channel_gate = {gate_create, NULL, NULL, gate_forward, gate_backward};

/* ---- row_scale ---- */

static __global__ void __launch_bounds__(THREADS) row_scale_kernel(void *to, int to_bf16, const void *from, int from_bf16, const float *factor, size_t images, size_t size, int whole, int add) {
    kd_grid_stride(g, images * kd_groups(size)) {
        kd_place p = kd_place_of(g, size);
        kd_f8 v = kd_load_some(from, from_bf16, p.row * size + p.i, p.n, whole);
        float f = factor[p.row];
        for (int k = 0; k < 8; k++)
            v.v[k] *= f;
        kd_store_grad_some(to, to_bf16, p.row * size + p.i, v, p.n, whole, add);
    }
}

static kd_status row_scale(kd_cuda *b, const kd_op_desc *d, void *to, kd_dtype to_type, const void *from, kd_dtype from_type, const void *factor, int add, kd_err *err) {
    size_t images = images_of(d), size = kd_tdesc_numel(&d->y) / images;
    return kd_launch(b, "scaling of images", row_scale_kernel, kd_blocks(b, images * kd_groups(size), THREADS), THREADS, err, to, kd_is_bf16(to_type), from, kd_is_bf16(from_type),
                     (const float *)factor, images, size, size % 8 == 0, add);
}

static kd_status row_scale_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    return row_scale(b, d, p->y, d->y.dtype, p->x[0], d->x[0].dtype, p->x[1], 0, err);
}

static kd_status row_scale_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    return d->need_dx & 1 ? row_scale(b, d, p->dx[0], d->x[0].dtype, p->dy, d->y.dtype, p->x[1], (d->add_dx & 1) != 0, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_row_scale = {NULL, NULL, NULL, row_scale_forward, row_scale_backward};
