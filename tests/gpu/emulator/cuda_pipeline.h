/* Copies from device to shared memory that a thread begins and later waits for; see cuda_runtime.h beside this file. As late as possible: the destination is NaN until the wait. */
#ifndef KD_EMULATOR_CUDA_PIPELINE_H
#define KD_EMULATOR_CUDA_PIPELINE_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "cuda_runtime.h"

struct kd_emulator_copy {
    void *dst;
    const void *src;
    size_t bytes, zeros;
    uint64_t group;
    uint3 block;
};
struct kd_emulator_pipeline {
    std::deque<kd_emulator_copy> begun;
    uint64_t groups = 0;
};

static inline void kd_emulator_pipeline_must(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "emulated device: asynchronous copy: %s\n", what);
    abort();
}

static inline kd_emulator_pipeline &kd_emulator_pipeline_mine() {
    static kd_emulator_pipeline all[1024];
    kd_emulator_pipeline &p = all[threadIdx.x];
    if (!p.begun.empty()) {
        const uint3 &b = p.begun.front().block;
        kd_emulator_pipeline_must(b.x == blockIdx.x && b.y == blockIdx.y && b.z == blockIdx.z, "a thread ended without waiting for it");
    }
    return p;
}

/* The last `zeros` of `bytes` are zero-filled instead of read. */
static inline void __pipeline_memcpy_async(void *dst, const void *src, size_t bytes, size_t zeros = 0) {
    kd_emulator_pipeline_must((bytes == 4 || bytes == 8 || bytes == 16) && zeros <= bytes, "of 4, 8 or 16 bytes");
    kd_emulator_pipeline_must((uintptr_t)dst % bytes == 0 && (uintptr_t)src % bytes == 0, "addresses must be multiples of its size");
    kd_emulator_pipeline &p = kd_emulator_pipeline_mine();
    memset(dst, 0xff, bytes);
    p.begun.push_back(kd_emulator_copy{dst, src, bytes, zeros, p.groups, blockIdx});
}
static inline void __pipeline_commit() { kd_emulator_pipeline_mine().groups++; }
/* All groups but the last n. */
static inline void __pipeline_wait_prior(size_t n) {
    kd_emulator_pipeline &p = kd_emulator_pipeline_mine();
    for (; !p.begun.empty() && p.begun.front().group + n < p.groups; p.begun.pop_front()) {
        const kd_emulator_copy &c = p.begun.front();
        memcpy(c.dst, c.src, c.bytes - c.zeros);
        memset((char *)c.dst + c.bytes - c.zeros, 0, c.zeros);
    }
}

#endif
