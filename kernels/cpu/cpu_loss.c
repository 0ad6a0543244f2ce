/* Products of one thread each, for the losses over similarities (cpu_loss.h). */
#include <omp.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu_loss.h"

kd_status kd_cpu_products_create(kd_cpu_products *p, kd_cpu *b, const kd_dnn_matmul_desc *list, int count, const char *what, kd_op_needs *needs, kd_err *err) {
    kd_status status = KD_OK;
    p->slices = b->base.threads < KD_CPU_MAX_THREADS ? b->base.threads : KD_CPU_MAX_THREADS;
    p->count = count;
    KD_TRY(kd_alloc_array(&p->of, (size_t)(p->slices * count), sizeof *p->of, err));
    omp_set_num_threads(1); /* oneDNN prepares a primitive for the number of threads at its creation */
    for (int i = 0; i < p->slices * count && status == KD_OK; i++)
        status = kd_dnn_matmul(&p->of[i], b->engine, &list[i % count], what, err);
    omp_set_num_threads(b->base.threads);
    KD_TRY(status);
    for (int k = 0; k < count; k++)
        if (kd_dnn_scratch_bytes(p->of[k]) > p->work_bytes)
            p->work_bytes = kd_dnn_scratch_bytes(p->of[k]);
    p->work_bytes = (p->work_bytes + 63) / 64 * 64;
    p->work = kd_cpu_region(&needs->scratch, (size_t)p->slices * p->work_bytes);
    return KD_OK;
}

void kd_cpu_products_destroy(kd_cpu_products *p) {
    for (int i = 0; p->of && i < p->slices * p->count; i++)
        kd_dnn_destroy(p->of[i]);
    kd_free(p->of);
}

kd_status kd_cpu_product_run(const kd_cpu_products *p, int slice, int which, void *scratch, const float *a, const float *b, float *c) {
    void *work = kd_cpu_at(scratch, p->work + (size_t)slice * p->work_bytes);
    return kd_dnn_run(p->of[slice * p->count + which],
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)(uintptr_t)a, [KD_DNN_WEIGHTS] = (void *)(uintptr_t)b, [KD_DNN_DST] = c, [KD_DNN_SCRATCH] = work}, NULL);
}

void kd_cpu_products_parallel(const kd_cpu_products *p, size_t n, kd_cpu_range fn, const void *ctx) {
    kd_cpu_parallel(p->slices, n, (size_t)1 << 20, fn, ctx);
}
