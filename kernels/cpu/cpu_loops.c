#include <omp.h>

#include "kernels/cpu/cpu_streams.h"
#include "kernels/cpu/simd.h"

/* Below this many elements, waking other threads costs more than it saves. */
enum { SERIAL_ELEMENTS = 16384 };

void kd_cpu_parallel(int threads, size_t n, size_t unit, kd_cpu_range fn, const void *ctx) {
    size_t grain = unit == 1 ? KD_VF : 1, grains = (n + grain - 1) / grain, slices = (size_t)threads;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1 && n * unit >= SERIAL_ELEMENTS)
    for (size_t i = 0; i < slices; i++) {
        size_t begin = grains * i / slices * grain, end = grains * (i + 1) / slices * grain;
        if (end > n)
            end = n;
        if (begin < end)
            fn(ctx, (int)i, begin, end);
    }
}

void kd_cpu_share(int threads, size_t n, size_t unit, kd_cpu_range fn, const void *ctx) {
    enum { RANGES = 8 }; /* of a thread: few enough that neighbours in a range still share what is in its cache */
    size_t ranges = (size_t)threads * RANGES < n ? (size_t)threads * RANGES : n;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && n * unit >= SERIAL_ELEMENTS)
    for (size_t i = 0; i < ranges; i++)
        fn(ctx, omp_get_thread_num(), n * i / ranges, n * (i + 1) / ranges);
}

size_t kd_cpu_width(const kd_tdesc *t) {
    return (size_t)t->shape[t->rank - 1];
}

size_t kd_cpu_rows(const kd_tdesc *t) {
    return kd_tdesc_numel(t) / kd_cpu_width(t);
}

size_t kd_cpu_region(size_t *at, size_t bytes) {
    size_t offset = *at;
    *at += (bytes + 63) / 64 * 64;
    return offset;
}

void *kd_cpu_at(void *base, size_t offset) {
    return (char *)base + offset;
}

static const kd_cpu_streams *streams(void) {
    return kd_dnn_instructions() == KD_DNN_AVX512 ? &kd_cpu_streams_avx512 : &kd_cpu_streams_any;
}

void kd_cpu_copy(int threads, void *dst, kd_dtype dst_type, const void *src, kd_dtype src_type, size_t n, int add) {
    kd_cpu_parallel(threads, n, 1, streams()->copy, &(kd_cpu_copy_args){dst, src, dst_type, src_type, add});
}

void kd_cpu_add_columns(int threads, const kd_cpu_columns *c) {
    kd_cpu_parallel(threads, (c->width + KD_CPU_TASK_COLUMNS - 1) / KD_CPU_TASK_COLUMNS, c->rows * KD_CPU_TASK_COLUMNS, streams()->columns, c);
}

void kd_cpu_add_bias_gradient(int threads, const kd_op_desc *d, float *db, const void *dy, const void *g) {
    size_t width = kd_cpu_width(&d->y);
    int plain = d->act == KD_ACT_NONE;
    kd_cpu_add_columns(threads, &(kd_cpu_columns){.out = db, .g = plain ? dy : g, .g_type = plain ? d->y.dtype : d->x[0].dtype, .rows = kd_cpu_rows(&d->y), .stride = width, .width = width});
}

void kd_cpu_act_backward(int threads, const kd_cpu_act_grad *c, size_t n) {
    kd_cpu_parallel(threads, n, 1, streams()->act_grad, c);
}

void kd_cpu_act_forward(int threads, void *y, kd_dtype y_type, const void *x, kd_dtype x_type, kd_act act, size_t n) {
    kd_cpu_parallel(threads, n, 1, streams()->act, &(kd_cpu_act_args){y, x, y_type, x_type, act});
}
