/* What the fuzz targets and the mutation test do with foreign bytes: open them as a weight file, read every tensor, detect the ViT. */
#ifndef KD_TESTS_EXERCISE_WEIGHTS_H
#define KD_TESTS_EXERCISE_WEIGHTS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* What detection accepts can be read, but for damaged values. */
static inline void exercise_vit(kd_weights *w)
{
    static float f32[EXERCISE_MAX_ELEMENTS];
    kd_vit_spec s;
    kd_err err = {0};
    kd_status status = kd_vit_detect(w, NULL, &s, &err);
    exercise_status(status, &err);
    if (status != KD_OK || 3 * s.width > EXERCISE_MAX_ELEMENTS)
        return;
    exercise_status(kd_vit_read(w, &s, "cls_token", f32, (size_t)s.width, &err), &err);
    exercise_status(kd_vit_read(w, &s, "blocks.0.attn.qkv.bias", f32, 3 * (size_t)s.width, &err), &err);
    exercise_status(kd_vit_read(w, &s, "norm.bias", f32, (size_t)s.width, &err), &err);
}

static inline void exercise_tensors(kd_weights *w)
{
    static float f32[EXERCISE_MAX_ELEMENTS];
    static int64_t i64[EXERCISE_MAX_ELEMENTS];
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
    exercise_vit(w);
}

static inline int exercise_file(const void *bytes, size_t size)
{
    int fd = memfd_create("weights", MFD_CLOEXEC);
    exercise_require(fd >= 0 && write(fd, bytes, size) == (ssize_t)size, "a file in memory can be made");
    return fd;
}

/* Returns 1 when the bytes were accepted as a weight file. */
static inline int exercise_weights(const uint8_t *bytes, size_t size)
{
    char path[64];
    kd_err err = {0};
    kd_weights *w = NULL;
    size_t live = kd_mem_live_bytes();
    int fd = exercise_file(bytes, size);
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

/* One .safetensors with n one-byte tensors of these names, as the file descriptor `as`. */
static inline void exercise_make_shard(int as, const char *const *names, int n)
{
    char text[512] = {0};
    size_t at = 8;
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i == 0 ? "{" : ",",
                               names[i], i, i + 1);
    text[at++] = '}';
    text[0] = (char)((at - 8) & 0xff);
    text[1] = (char)((at - 8) >> 8);
    int fd = exercise_file(text, at + (size_t)n);
    exercise_require(dup2(fd, as) == as, "a file descriptor can be placed");
    close(fd);
}

/* The bytes as an index of shards: it lies in /proc/self/fd, and so do the two shards, 500 with tensors a and b.c, 501 with d. */
static inline int exercise_index(const uint8_t *bytes, size_t size)
{
    static const char *const first[] = {"a", "b.c"}, *const second[] = {"d"};
    static int made;
    if (!made) {
        exercise_make_shard(500, first, 2);
        exercise_make_shard(501, second, 1);
        made = 1;
    }
    return exercise_weights(bytes, size);
}

/* The bytes as a legacy .pth: whole when they begin like a pickle, else what follows its fixed beginning. */
static inline int exercise_legacy(const uint8_t *bytes, size_t size)
{
    static const char start[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." /* the magic number */
                                "\x80\x02M\xe9\x03."                                          /* 1001 */
                                "\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    if (size > 0 && bytes[0] == 0x80)
        return exercise_weights(bytes, size);
    uint8_t *whole = malloc(sizeof start - 1 + size);
    exercise_require(whole != NULL, "memory for a file");
    memcpy(whole, start, sizeof start - 1);
    if (size > 0)
        memcpy(whole + sizeof start - 1, bytes, size);
    int accepted = exercise_weights(whole, sizeof start - 1 + size);
    free(whole);
    return accepted;
}

#endif
