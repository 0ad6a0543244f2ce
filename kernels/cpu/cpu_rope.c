/* rope: one pass over the q|k|v rows. The table of a grid is small (its rows and columns, not its patches), so it stays in the first-level cache. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct rope_ctx {
    const kd_op_desc *d;
    const float *table;
    const void *from; /* x or dy */
    void *to;         /* y or dx */
    int back, add;    /* back: by the negative angle */
} rope_ctx;

static kd_status rope_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b, (void)err;
    needs->packed = kd_op_rope_table_floats(&op->desc) * sizeof(float);
    return KD_OK;
}

static kd_status rope_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)b, (void)err;
    kd_op_rope_table(&op->desc, a->packed);
    return KD_OK;
}

KD_LANE void copy_part(const rope_ctx *c, kd_dtype type, size_t at, size_t count) {
    for (size_t i = 0; i < count; i += KD_VF) {
        int n = kd_lanes(count - i);
        kd_store_grad(c->to, type, at + i, kd_load(c->from, type, at + i, n), n, c->add);
    }
}

/* Pairs (at + j, at + half + j) for j < count, by one line of the table. */
KD_LANE void turn(const rope_ctx *c, kd_dtype type, size_t at, size_t half, const float *line, size_t count) {
    for (size_t j = 0; j < count; j += KD_VF) {
        int n = kd_lanes(count - j);
        kd_vf cosine = kd_load_f32(line + j, n), sine = kd_load_f32(line + count + j, n);
        kd_vf a = kd_load(c->from, type, at + j, n), b = kd_load(c->from, type, at + half + j, n);
        if (c->back)
            sine = -sine;
        kd_store_grad(c->to, type, at + j, a * cosine - b * sine, n, c->add);
        kd_store_grad(c->to, type, at + half + j, b * cosine + a * sine, n, c->add);
    }
}

KD_HOT static void rope_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rope_ctx c = *(const rope_ctx *)ctx;
    const kd_op_desc *d = c.d;
    size_t tokens = (size_t)d->y.shape[1], width = (size_t)d->y.shape[2], first = (size_t)d->begin, grid_w = (size_t)d->grid_w, heads = (size_t)d->heads;
    size_t quarter = (size_t)d->periods, head = 4 * quarter, qk = 2 * heads * head;
    kd_dtype type = d->y.dtype;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        size_t token = r % tokens, at = r * width, patch = token - first;
        if (token < first) {
            copy_part(&c, type, at, width);
            continue;
        }
        const float *row = c.table + patch / grid_w * 2 * quarter, *column = c.table + ((size_t)d->grid_h + patch % grid_w) * 2 * quarter;
        for (size_t h = 0; h < 2 * heads; h++) { /* the heads of q, then of k */
            turn(&c, type, at + h * head, 2 * quarter, row, quarter);
            turn(&c, type, at + h * head + quarter, 2 * quarter, column, quarter);
        }
        copy_part(&c, type, at + qk, width - qk);
    }
}

static kd_status rope_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    rope_ctx c = {.d = &op->desc, .table = a->packed, .from = a->x[0], .to = a->y};
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y), rope_range, &c);
    return KD_OK;
}

static kd_status rope_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    rope_ctx c = {.d = &op->desc, .table = a->packed, .from = a->dy, .to = a->dx[0], .back = 1, .add = (op->desc.add_dx & 1) != 0};
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y), rope_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_rope = {rope_create, NULL, rope_pack, rope_forward, rope_backward};
