/* batch_norm with AVX-512's own instructions (simd.h). */
#define KD_FOR_AVX512
#define kd_cpu_batch_norm kd_cpu_batch_norm_avx512
#include "kernels/cpu/cpu_batch_norm.c"
