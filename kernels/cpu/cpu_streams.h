/* What cpu_loops.c runs in ranges over whole tensors: copies between types, column sums, activations. cpu_streams.c has the ranges, compiled twice (simd.h). Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_CPU_STREAMS_H
#define KD_KERNELS_CPU_CPU_STREAMS_H

#include "kernels/cpu/cpu.h"

enum { KD_CPU_TASK_COLUMNS = 128 }; /* index of `columns`: as many of the tensor's */

typedef struct kd_cpu_copy_args {
    void *dst;
    const void *src;
    kd_dtype dst_type, src_type;
    int add;
} kd_cpu_copy_args;

typedef struct kd_cpu_act_args {
    void *y;
    const void *x;
    kd_dtype y_type, x_type;
    kd_act act;
} kd_cpu_act_args;

typedef struct kd_cpu_streams {
    kd_cpu_range copy, columns, act, act_grad; /* of kd_cpu_copy_args, kd_cpu_columns, kd_cpu_act_args, kd_cpu_act_grad */
} kd_cpu_streams;

extern const kd_cpu_streams kd_cpu_streams_any, kd_cpu_streams_avx512;

#endif
