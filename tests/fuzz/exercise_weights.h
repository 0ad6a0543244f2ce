/* What the fuzz targets and the mutation test do with foreign bytes: open them as a weight file, read every tensor, detect the ViT. */
#ifndef KD_TESTS_EXERCISE_WEIGHTS_H
#define KD_TESTS_EXERCISE_WEIGHTS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/weights/vit_spec.h"

enum { EXERCISE_MAX_ELEMENTS = 1 << 16 };

/* Broken promises end the process, so that a fuzzer keeps the input. */
static inline void exercise_require(int condition, const char *promise)
{
    if (condition)
        return;
    fprintf(stderr, "broken promise: %s\n", promise);
    abort();
}

static inline void exercise_status(kd_status status, const kd_err *err)
{
    exercise_require(status == KD_OK || ((status == KD_EFAIL || status == KD_EUSAGE) && err->status == status && err->msg[0] != '\0'),
                     "a bad weight file is KD_EFAIL or KD_EUSAGE with a sentence");
}

static inline void exercise_tensors(kd_weights *w)
{
    static float f32[EXERCISE_MAX_ELEMENTS];
    static int64_t i64[EXERCISE_MAX_ELEMENTS];
    kd_vit_spec spec;
    for (int i = 0; i < kd_weights_count(w); i++) {
        kd_err err = {0};
        kd_tensor t = kd_weights_info(w, i);
        size_t n = kd_tensor_numel(&t);
        exercise_require(kd_weights_find(w, t.name) == i, "every listed name is found");
        if (n > EXERCISE_MAX_ELEMENTS)
            continue;
        exercise_status(kd_weights_read_f32(w, i, f32, n, &err), &err);
        exercise_status(kd_weights_read_i64(w, i, i64, n, &err), &err);
    }
    kd_err err = {0};
    exercise_status(kd_vit_detect(w, NULL, &spec, &err), &err);
}

/* Returns 1 when the bytes were accepted as a weight file. */
static inline int exercise_weights(const uint8_t *bytes, size_t size)
{
    char path[64];
    kd_err err = {0};
    kd_weights *w = NULL;
    size_t live = kd_mem_live_bytes();
    int fd = memfd_create("weights", MFD_CLOEXEC);
    exercise_require(fd >= 0 && write(fd, bytes, size) == (ssize_t)size, "a file in memory can be made");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    kd_status status = kd_weights_open(&w, path, &err);
    exercise_status(status, &err);
    if (status == KD_OK)
        exercise_tensors(w);
    kd_weights_close(w);
    close(fd);
    exercise_require(kd_mem_live_bytes() == live, "nothing leaks");
    return status == KD_OK;
}

#endif
