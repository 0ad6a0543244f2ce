/* max_pool and resize_bilinear with AVX-512's own instructions (simd.h). */
#define KD_FOR_AVX512
#define kd_cpu_max_pool kd_cpu_max_pool_avx512
#define kd_cpu_resize_bilinear kd_cpu_resize_bilinear_avx512
#include "kernels/cpu/cpu_spatial.c"
