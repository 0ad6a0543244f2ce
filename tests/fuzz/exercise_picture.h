/* What the fuzz targets and the mutation test do with foreign bytes: decode them as a picture and look at every pixel. */
#ifndef KD_TESTS_EXERCISE_PICTURE_H
#define KD_TESTS_EXERCISE_PICTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/augment.h"

/* Enough for every branch of the decoders; larger pictures only make them slower. */
enum { EXERCISE_MAX_PIXELS = 1 << 18 };

/* Broken promises end the process, so that a fuzzer keeps the input. */
static inline void exercise_require(int condition, const char *promise) {
    if (condition)
        return;
    fprintf(stderr, "broken promise: %s\n", promise);
    abort();
}

/* Returns 1 when the bytes were accepted as a picture. *pixels: the hash of what was decoded. */
static inline int exercise_picture_as(const uint8_t *bytes, size_t size, int exif_apply, kd_hash128 *pixels) {
    kd_image img = {0};
    kd_err err = {0};
    kd_decode_options options = {.exif_apply = exif_apply, .max_pixels = EXERCISE_MAX_PIXELS};
    size_t live = kd_mem_live_bytes();
    int is_read;
    exercise_require(kd_image_sniff(bytes, size, &is_read)[0] != '\0', "every file has a kind");
    kd_status status = kd_image_decode(&img, bytes, size, "fuzz", &options, &err);
    exercise_require(status == KD_OK || (status == KD_EFAIL && err.status == KD_EFAIL && strstr(err.msg, "fuzz") != NULL), "a bad picture is KD_EFAIL with a sentence that names it");
    if (status == KD_OK) {
        exercise_require(is_read, "what is decoded was sniffed as readable");
        exercise_require(img.width > 0 && img.height > 0 && (int64_t)img.width * img.height <= EXERCISE_MAX_PIXELS, "the size is within the limit");
        *pixels = kd_view_hash(img.rgb, img.width, img.height);
    }
    kd_image_free(&img);
    exercise_require(kd_mem_live_bytes() == live, "nothing leaks");
    return status == KD_OK;
}

/* Some box of the picture: the eighths of its sides come from the seed. */
static inline kd_box exercise_want(void *ctx, int width, int height) {
    unsigned s = *(const unsigned *)ctx;
    kd_box b = {.x = width * (int)(s & 7) / 8, .y = height * (int)(s >> 3 & 7) / 8};
    b.w = 1 + (width - b.x - 1) * (int)(s >> 6 & 7) / 8;
    b.h = 1 + (height - b.y - 1) * (int)(s >> 9 & 7) / 8;
    return b;
}

/* A part is accepted exactly when the whole is, and has the whole's pixels. */
static inline void exercise_part(const uint8_t *bytes, size_t size, int exif_apply, unsigned seed) {
    kd_image whole = {0}, part = {0};
    kd_err err = {0};
    kd_decode_options options = {.exif_apply = exif_apply, .max_pixels = EXERCISE_MAX_PIXELS};
    size_t live = kd_mem_live_bytes();
    kd_status a = kd_image_decode(&whole, bytes, size, "fuzz", &options, &err);
    kd_status b = kd_image_decode_box(&part, bytes, size, "fuzz", &options, exercise_want, &seed, &err);
    exercise_require(a == b, "a part is accepted when the whole is");
    if (a == KD_OK) {
        kd_box box = exercise_want(&seed, whole.width, whole.height);
        exercise_require(part.x >= 0 && part.x <= box.x && part.y >= 0 && part.y <= box.y && part.x + part.width >= box.x + box.w && part.y + part.height >= box.y + box.h &&
                             part.x + part.width <= whole.width && part.y + part.height <= whole.height, "the part covers the box");
        for (int y = 0; y < part.height; y++)
            exercise_require(memcmp(part.rgb + 3 * (size_t)part.width * (size_t)y, whole.rgb + 3 * ((size_t)whole.width * (size_t)(part.y + y) + (size_t)part.x), 3 * (size_t)part.width) == 0,
                             "the part has the whole's pixels");
    }
    kd_image_free(&whole);
    kd_image_free(&part);
    exercise_require(kd_mem_live_bytes() == live, "nothing leaks");
}

static inline int exercise_picture(const uint8_t *bytes, size_t size) {
    kd_hash128 once, again;
    int orientation = kd_exif_orientation(bytes, size);
    exercise_require(orientation >= 1 && orientation <= 8, "an orientation is 1 to 8");
    int accepted = exercise_picture_as(bytes, size, 0, &once), turned = exercise_picture_as(bytes, size, 1, &again);
    exercise_require(accepted == turned, "turning changes nothing about what is accepted");
    if (accepted && orientation == 1)
        exercise_require(memcmp(&once, &again, sizeof once) == 0, "the same bytes give the same pixels");
    exercise_part(bytes, size, size & 1, (unsigned)size * 2654435761u >> 12);
    return accepted;
}

/* A fuzzer doesn't guess checksums: every chunk of a PNG gets the right one, so that what lies behind it is reached. */
static inline void exercise_png_checksums(uint8_t *bytes, size_t size) {
    for (size_t at = 8; at + 12 <= size;) {
        size_t n = (size_t)bytes[at] << 24 | (size_t)bytes[at + 1] << 16 | (size_t)bytes[at + 2] << 8 | bytes[at + 3];
        if (n > size - at - 12)
            return;
        uint32_t crc = 0xFFFFFFFF; /* of type and data; ISO 3309 */
        for (size_t i = at + 4; i < at + 8 + n; i++) {
            crc ^= bytes[i];
            for (int k = 0; k < 8; k++)
                crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
        }
        for (int i = 0; i < 4; i++)
            bytes[at + 8 + n + (size_t)i] = (uint8_t)(~crc >> (24 - 8 * i));
        at += 12 + n;
    }
}

/* As it is, and with the right checksums. */
static inline int exercise_png(const uint8_t *bytes, size_t size) {
    int accepted = exercise_picture(bytes, size);
    uint8_t *repaired = malloc(size > 0 ? size : 1);
    exercise_require(repaired != NULL, "memory for a file");
    if (size > 0)
        memcpy(repaired, bytes, size);
    exercise_png_checksums(repaired, size);
    accepted |= exercise_picture(repaired, size);
    free(repaired);
    return accepted;
}

#endif
