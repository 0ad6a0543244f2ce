/* The same with AVX-512's own instructions (simd.h). */
#define KD_FOR_AVX512
#define kd_cpu_streams_any kd_cpu_streams_avx512
#include "kernels/cpu/cpu_streams.c"
