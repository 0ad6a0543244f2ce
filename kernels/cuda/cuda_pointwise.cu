/* Elementwise ops: normalize, activations, silu_gate, add. A thread has eight values. */
#include "kernels/cuda/columns.cuh"

enum { THREADS = 256 };

/* ---- normalize ---- */

typedef struct normalize_args {
    const uint8_t *x;
    void *y;
    size_t n;
    float mean[3], std[3];
    int y_bf16;
} normalize_args;

static __device__ __forceinline__ float pick(const float *v, unsigned i) {
    return i == 0 ? v[0] : i == 1 ? v[1] : v[2];
}

/* Value i has channel i % 3: a group begins with any of the three. Divisions are IEEE's, as torchvision's. */
static __global__ void __launch_bounds__(THREADS) normalize_kernel(normalize_args a) {
    kd_grid_stride(g, kd_groups(a.n)) {
        size_t i = 8 * g;
        int n = a.n - i < 8 ? (int)(a.n - i) : 8;
        unsigned begin = (unsigned)(i % 3);
        uint2 raw = make_uint2(0, 0);
        float mean[3], std[3];
        kd_f8 v;
        if (n == 8)
            raw = *(const uint2 *)(a.x + i);
        else
            for (int k = 0; k < n; k++) {
                unsigned byte = a.x[i + (size_t)k];
                raw.x |= k < 4 ? byte << (8 * k) : 0u;
                raw.y |= k < 4 ? 0u : byte << (8 * (k - 4));
            }
        for (unsigned c = 0; c < 3; c++) {
            mean[c] = pick(a.mean, (begin + c) % 3);
            std[c] = pick(a.std, (begin + c) % 3);
        }
        for (int k = 0; k < 8; k++) {
            float byte = (float)((k < 4 ? raw.x >> (8 * k) : raw.y >> (8 * (k - 4))) & 255u);
            v.v[k] = __fdiv_rn(__fdiv_rn(byte, 255.0f) - mean[k % 3], std[k % 3]);
        }
        kd_store_some(a.y, a.y_bf16, i, v, n, n == 8);
    }
}

static kd_status normalize_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    normalize_args a = {(const uint8_t *)p->x[0], p->y, kd_tdesc_numel(&d->y), {d->mean[0], d->mean[1], d->mean[2]}, {d->std[0], d->std[1], d->std[2]}, kd_is_bf16(d->y.dtype)};
    return kd_launch(b, "normalize", normalize_kernel, kd_blocks(b, kd_groups(a.n), THREADS), THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_normalize = {NULL, NULL, NULL, normalize_forward, NULL};

/* ---- activations ---- */

static kd_act act_of(const kd_op_desc *d) {
    switch (d->kind) {
    case KD_OP_RELU: return KD_ACT_RELU;
    case KD_OP_GELU: return KD_ACT_GELU;
    case KD_OP_SILU: return KD_ACT_SILU;
    case KD_OP_HARDSWISH: return KD_ACT_HARDSWISH;
    default: return KD_ACT_HARDSIGMOID;
    }
}

static kd_status act_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    return kd_cuda_act_forward(b, p->y, d->y.dtype, p->x[0], d->x[0].dtype, NULL, 1, act_of(d), kd_tdesc_numel(&d->y), err);
}

static kd_status act_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    kd_cuda_act_grad c = {p->dx[0], p->dy, p->x[0], d->x[0].dtype, d->y.dtype, d->x[0].dtype, act_of(d), (d->add_dx & 1) != 0};
    return d->need_dx & 1 ? kd_cuda_act_backward(b, &c, kd_tdesc_numel(&d->y), err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_act = {NULL, NULL, NULL, act_forward, act_backward};

/* ---- silu_gate: rows gate | value ---- */

typedef struct gate_args {
    const void *x, *dy;
    void *y, *dx;
    size_t rows, width;
    int x_bf16, y_bf16, whole, add;
} gate_args;

static __global__ void __launch_bounds__(THREADS) silu_gate_kernel(gate_args a) {
    kd_grid_stride(g, a.rows * kd_groups(a.width)) {
        kd_place p = kd_place_of(g, a.width);
        size_t at = 2 * p.row * a.width + p.i;
        kd_raw8 gate = kd_load_raw(a.x, a.x_bf16, at, p.n, a.whole), value = kd_load_raw(a.x, a.x_bf16, at + a.width, p.n, a.whole);
        kd_f8 s = kd_values(gate, a.x_bf16, a.whole), v = kd_values(value, a.x_bf16, a.whole);
        for (int k = 0; k < 8; k++)
            v.v[k] *= kd_act_of(KD_ACT_SILU, s.v[k]);
        kd_store_some(a.y, a.y_bf16, p.row * a.width + p.i, v, p.n, a.whole);
    }
}

static __global__ void __launch_bounds__(THREADS) silu_gate_grad_kernel(gate_args a) {
    kd_grid_stride(g, a.rows * kd_groups(a.width)) {
        kd_place p = kd_place_of(g, a.width);
        size_t at = 2 * p.row * a.width + p.i;
        kd_raw8 gate = kd_load_raw(a.x, a.x_bf16, at, p.n, a.whole), value = kd_load_raw(a.x, a.x_bf16, at + a.width, p.n, a.whole);
        kd_raw8 dy = kd_load_raw(a.dy, a.y_bf16, p.row * a.width + p.i, p.n, a.whole);
        kd_f8 s = kd_values(gate, a.x_bf16, a.whole), v = kd_values(value, a.x_bf16, a.whole), d = kd_values(dy, a.y_bf16, a.whole);
        for (int k = 0; k < 8; k++) {
            float sigmoid = 1.0f / (1.0f + expf(-s.v[k])), silu = s.v[k] * sigmoid;
            s.v[k] = d.v[k] * v.v[k] * (sigmoid + silu * (1.0f - sigmoid));
            v.v[k] = d.v[k] * silu;
        }
        kd_store_grad_some(a.dx, a.x_bf16, at, s, p.n, a.whole, a.add);
        kd_store_grad_some(a.dx, a.x_bf16, at + a.width, v, p.n, a.whole, a.add);
    }
}

static gate_args gate_args_of(const kd_op_desc *d, const kd_op_args *p) {
    size_t width = kd_cuda_width(&d->y);
    gate_args a = {p->x[0], p->dy, p->y, p->dx[0], kd_cuda_rows(&d->y), width, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype), width % 8 == 0, (d->add_dx & 1) != 0};
    return a;
}

static kd_status silu_gate_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    gate_args a = gate_args_of(&op->desc, p);
    return kd_launch(b, "silu gate", silu_gate_kernel, kd_blocks(b, a.rows * kd_groups(a.width), THREADS), THREADS, err, a);
}

static kd_status silu_gate_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    gate_args a = gate_args_of(&op->desc, p);
    if (!(op->desc.need_dx & 1))
        return KD_OK;
    return kd_launch(b, "gradient of silu gate", silu_gate_grad_kernel, kd_blocks(b, a.rows * kd_groups(a.width), THREADS), THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_silu_gate = {NULL, NULL, NULL, silu_gate_forward, silu_gate_backward};

/* ---- add ---- */

typedef struct add_args {
    const void *x[2], *y, *dy; /* y: only for a ReLU's gradient */
    void *out, *dx[2];         /* out: y; dx: NULL where not wanted */
    size_t n;
    int x_bf16[2], y_bf16, add[2], act;
} add_args;

static __global__ void __launch_bounds__(THREADS) add_kernel(add_args a) {
    kd_grid_stride(g, kd_groups(a.n)) {
        size_t i = 8 * g;
        int n = a.n - i < 8 ? (int)(a.n - i) : 8, whole = n == 8;
        kd_raw8 x0 = kd_load_raw(a.x[0], a.x_bf16[0], i, n, whole), x1 = kd_load_raw(a.x[1], a.x_bf16[1], i, n, whole);
        kd_f8 v = kd_values(x0, a.x_bf16[0], whole), w = kd_values(x1, a.x_bf16[1], whole);
        for (int k = 0; k < 8; k++)
            v.v[k] += w.v[k];
        kd_store_some(a.out, a.y_bf16, i, kd_act8(a.act, v), n, whole);
    }
}

/* Both gradients from one reading. */
static __global__ void __launch_bounds__(THREADS) add_grad_kernel(add_args a) {
    kd_grid_stride(g, kd_groups(a.n)) {
        size_t i = 8 * g;
        int n = a.n - i < 8 ? (int)(a.n - i) : 8, whole = n == 8;
        kd_raw8 dy = kd_load_raw(a.dy, a.y_bf16, i, n, whole), y = dy;
        if (a.act == KD_ACT_RELU)
            y = kd_load_raw(a.y, a.y_bf16, i, n, whole);
        kd_f8 v = kd_dact8(a.act, kd_values(dy, a.y_bf16, whole), kd_values(y, a.y_bf16, whole));
        if (a.dx[0])
            kd_store_grad_some(a.dx[0], a.x_bf16[0], i, v, n, whole, a.add[0]);
        if (a.dx[1])
            kd_store_grad_some(a.dx[1], a.x_bf16[1], i, v, n, whole, a.add[1]);
    }
}

static add_args add_args_of(const kd_op_desc *d, const kd_op_args *p) {
    add_args a = {{p->x[0], p->x[1]}, p->y, p->dy, p->y, {d->need_dx & 1 ? p->dx[0] : NULL, d->need_dx & 2 ? p->dx[1] : NULL}, kd_tdesc_numel(&d->y),
                  {kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype)}, kd_is_bf16(d->y.dtype), {(d->add_dx & 1) != 0, (d->add_dx & 2) != 0}, (int)d->act};
    return a;
}

static kd_status add_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    add_args a = add_args_of(&op->desc, p);
    return kd_launch(b, "add", add_kernel, kd_blocks(b, kd_groups(a.n), THREADS), THREADS, err, a);
}

static kd_status add_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    add_args a = add_args_of(&op->desc, p);
    if (!(op->desc.need_dx & 3))
        return KD_OK;
    return kd_launch(b, "gradient of add", add_grad_kernel, kd_blocks(b, kd_groups(a.n), THREADS), THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_add = {NULL, NULL, NULL, add_forward, add_backward};
