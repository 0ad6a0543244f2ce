/* How the image loops become fast without a second version of any of them: the compiler builds each marked function for several instruction
 * sets and the program takes the best one present when it starts. Only integer and IEEE float operations without contraction are used, so
 * all versions give the same bits. Internal to common/image. */
#ifndef KD_COMMON_IMAGE_SIMD_H
#define KD_COMMON_IMAGE_SIMD_H

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define KD_CLONES __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define KD_CLONES
#endif

#endif
