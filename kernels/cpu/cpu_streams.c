/* The ranges of cpu_streams.h. */
#include "kernels/cpu/cpu_streams.h"

#include "kernels/cpu/cpu_act.h"

/* ---- copy ---- */

KD_HOT static void copy_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_cpu_copy_args c = *(const kd_cpu_copy_args *)ctx;
    (void)slice;
    for (size_t i = begin; i < end; i += KD_VF) {
        int n = kd_lanes(end - i);
        kd_store_grad(c.dst, c.dst_type, i, kd_load(c.src, c.src_type, i, n), n, c.add);
    }
}

/* ---- column sums ---- */

enum { COLUMNS = KD_CPU_TASK_COLUMNS, FOLD = 64 }; /* rows summed in f32 before they are folded into f64 */

KD_LANE kd_vf column_value(const kd_cpu_columns *c, size_t at, int n) {
    kd_vf g = kd_load(c->g, c->g_type, at, n);
    return c->times ? g * kd_load(c->times, c->times_type, at, n) : g;
}

/* part = sums of rows r0 .. r1-1 of `count` columns from `first`. */
KD_LANE void sum_rows(float *part, const kd_cpu_columns *c, size_t r0, size_t r1, size_t first, size_t count) {
    if (count == COLUMNS) { /* the usual case keeps its sums in registers */
        kd_vf sum[COLUMNS / KD_VF] = {{0}};
        for (size_t r = r0; r < r1; r++)
            for (size_t i = 0; i < COLUMNS / KD_VF; i++)
                sum[i] += column_value(c, r * c->stride + first + i * KD_VF, KD_VF);
        memcpy(part, sum, sizeof sum);
        return;
    }
    memset(part, 0, COLUMNS * sizeof *part);
    for (size_t r = r0; r < r1; r++)
        for (size_t i = 0; i < count; i += KD_VF)
            kd_store_f32(part + i, kd_load_f32(part + i, KD_VF) + column_value(c, r * c->stride + first + i, kd_lanes(count - i)), KD_VF);
}

KD_HOT static void columns_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_cpu_columns c = *(const kd_cpu_columns *)ctx;
    (void)slice;
    for (size_t block = begin; block < end; block++) {
        size_t first = block * COLUMNS, count = c.width - first < COLUMNS ? c.width - first : COLUMNS;
        double total[COLUMNS] = {0};
        for (size_t r = 0; r < c.rows; r += FOLD) {
            float part[COLUMNS];
            sum_rows(part, &c, r, c.rows - r < FOLD ? c.rows : r + FOLD, first, count);
            for (size_t i = 0; i < count; i++)
                total[i] += (double)part[i];
        }
        for (size_t i = 0; i < count; i++)
            c.out[first + i] += (float)total[i];
    }
}

/* ---- activations. Which one and of which types are constants inside the loops: where paths with vectors of sixteen meet, gcc lets them pass through memory ---- */

KD_LANE void act_grad_loop(const kd_cpu_act_grad *c, kd_act act, kd_dtype g, kd_dtype dy, kd_dtype at, int add, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += KD_VF) {
        kd_vf d = kd_load(c->dy, dy, i, KD_VF);
        if (act != KD_ACT_NONE)
            d = kd_act_gradient(act, d, kd_load(c->at, at, i, KD_VF));
        kd_store_grad(c->g, g, i, d, KD_VF, add);
    }
}

KD_LANE void act_grad_of(const kd_cpu_act_grad *c, kd_act act, size_t begin, size_t end) {
    size_t whole = begin + (end - begin) / KD_VF * KD_VF;
    if (c->g_type == KD_F32 && c->dy_type == KD_F32 && c->at_type == KD_F32 && !c->add)
        act_grad_loop(c, act, KD_F32, KD_F32, KD_F32, 0, begin, whole);
    else
        act_grad_loop(c, act, c->g_type, c->dy_type, c->at_type, c->add, begin, whole);
    if (whole < end) {
        int n = (int)(end - whole);
        kd_vf at = act != KD_ACT_NONE ? kd_load(c->at, c->at_type, whole, n) : (kd_vf){0};
        kd_store_grad(c->g, c->g_type, whole, kd_act_gradient(act, kd_load(c->dy, c->dy_type, whole, n), at), n, c->add);
    }
}

KD_HOT static void act_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_cpu_act_grad c = *(const kd_cpu_act_grad *)ctx;
    (void)slice;
    switch (c.act) {
    case KD_ACT_NONE:
        act_grad_of(&c, KD_ACT_NONE, begin, end);
        break;
    case KD_ACT_RELU:
        act_grad_of(&c, KD_ACT_RELU, begin, end);
        break;
    case KD_ACT_GELU:
        act_grad_of(&c, KD_ACT_GELU, begin, end);
        break;
    case KD_ACT_SILU:
        act_grad_of(&c, KD_ACT_SILU, begin, end);
        break;
    case KD_ACT_HARDSWISH:
        act_grad_of(&c, KD_ACT_HARDSWISH, begin, end);
        break;
    case KD_ACT_HARDSIGMOID:
        act_grad_of(&c, KD_ACT_HARDSIGMOID, begin, end);
        break;
    }
}

KD_LANE void act_loop(const kd_cpu_act_args *c, kd_act act, kd_dtype y, kd_dtype x, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += KD_VF)
        kd_store(c->y, y, i, kd_act_value(act, kd_load(c->x, x, i, KD_VF)), KD_VF);
}

KD_LANE void act_of(const kd_cpu_act_args *c, kd_act act, size_t begin, size_t end) {
    size_t whole = begin + (end - begin) / KD_VF * KD_VF;
    if (c->y_type == KD_F32 && c->x_type == KD_F32)
        act_loop(c, act, KD_F32, KD_F32, begin, whole);
    else
        act_loop(c, act, c->y_type, c->x_type, begin, whole);
    if (whole < end)
        kd_store(c->y, c->y_type, whole, kd_act_value(act, kd_load(c->x, c->x_type, whole, (int)(end - whole))), (int)(end - whole));
}

KD_HOT static void act_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_cpu_act_args c = *(const kd_cpu_act_args *)ctx;
    (void)slice;
    switch (c.act) {
    case KD_ACT_NONE:
        act_of(&c, KD_ACT_NONE, begin, end);
        break;
    case KD_ACT_RELU:
        act_of(&c, KD_ACT_RELU, begin, end);
        break;
    case KD_ACT_GELU:
        act_of(&c, KD_ACT_GELU, begin, end);
        break;
    case KD_ACT_SILU:
        act_of(&c, KD_ACT_SILU, begin, end);
        break;
    case KD_ACT_HARDSWISH:
        act_of(&c, KD_ACT_HARDSWISH, begin, end);
        break;
    case KD_ACT_HARDSIGMOID:
        act_of(&c, KD_ACT_HARDSIGMOID, begin, end);
        break;
    }
}

const kd_cpu_streams kd_cpu_streams_any = {copy_range, columns_range, act_range, act_grad_range};
