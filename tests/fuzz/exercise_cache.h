/* What the fuzz target and the mutation test do with foreign bytes: take them as a sealed LMDB file (validated, then walked by LMDB), a feature record, a view, an image and a recipe. */
#ifndef KD_TESTS_EXERCISE_CACHE_H
#define KD_TESTS_EXERCISE_CACHE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/entry.h"
#include "cache/identity.h"
#include "cache/validate.h"
#include "common/base/mem.h"

/* Broken promises end the process, so that a fuzzer keeps the input. */
static inline void exercise_require(int condition, const char *promise, const kd_err *err)
{
    if (condition)
        return;
    fprintf(stderr, "broken promise: %s (%s)\n", promise, err->msg);
    abort();
}

typedef struct exercise_walk {
    kd_lmdb *db;
    unsigned long sum;
} exercise_walk;

static inline kd_status exercise_walk_all(void *arg, kd_err *err)
{
    exercise_walk *w = arg;
    for (int db = 0; db < KD_DBS; db++) {
        kd_lmdb_txn *t;
        kd_lmdb_cursor *c;
        kd_bytes key, value;
        kd_status status;
        KD_TRY(kd_lmdb_read(&t, w->db, err));
        status = kd_lmdb_cursor_open(&c, t, (kd_db)db, err);
        while (status == KD_OK && (status = kd_lmdb_cursor_next(c, &key, &value, err)) == KD_OK) {
            kd_bytes same;
            uint8_t copy[512];
            for (size_t i = 0; i < key.size; i++)
                w->sum += copy[i] = key.data[i];
            for (size_t i = 0; i < value.size; i++)
                w->sum += value.data[i];
            status = kd_lmdb_get(t, (kd_db)db, copy, key.size, &same, err);
            exercise_require(status == KD_OK, "every key that a walk finds is found by a search", err);
        }
        kd_lmdb_cursor_close(c);
        kd_lmdb_read_end(t);
        exercise_require(status == KD_DONE, "a validated file can be walked", err);
    }
    return KD_OK;
}

/* Returns 1 when the page walk accepted the bytes; then LMDB must get along with them. */
static inline int exercise_pages(const uint8_t *bytes, size_t size)
{
    kd_lmdb_facts facts;
    kd_err err = {0};
    char path[64];
    exercise_walk w = {0};
    kd_status status = kd_lmdb_validate_bytes(bytes, size, "bytes", 1, &facts, &err);
    int fd;
    exercise_require(status == KD_OK || (status == KD_EDAMAGED && err.msg[0]), "damage is KD_EDAMAGED with a sentence", &err);
    if (status != KD_OK || facts.first_value_at == 0)
        return 0;
    fd = memfd_create("cache", MFD_CLOEXEC);
    exercise_require(fd >= 0 && write(fd, bytes, size) == (ssize_t)size, "a file in memory can be made", &err);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    status = kd_lmdb_open_read(&w.db, path, facts.pages * 4096, facts.first_value_at, &err);
    exercise_require(status == KD_OK, "a validated file can be opened", &err);
    status = kd_lmdb_guard(w.db, exercise_walk_all, &w, &err);
    exercise_require(status == KD_OK, "a validated file holds no page that can't be read", &err);
    kd_lmdb_close(w.db);
    close(fd);
    return 1;
}

static inline void exercise_values(const uint8_t *bytes, size_t size)
{
    static float out[64 * 64];
    static kd_record_scratch scratch;
    uint8_t *copy = kd_malloc(size + 16), key_bytes[KD_KEY_BYTES] = {0};
    kd_record_head head = {.feature = KD_FEATURE_PATCH, .rows = 64, .width = 64, .dtype = KD_F16};
    kd_bytes view_key = {key_bytes, KD_VIEW_KEY_BYTES}, image_key = {key_bytes, KD_IMAGE_KEY_BYTES}, value = {copy, size}, payload;
    kd_view_entry view;
    kd_image_entry image;
    kd_recipe recipe;
    kd_image_tail tail;
    json_t *json;
    kd_err err = {0};
    exercise_require(copy != NULL, "memory", &err);
    memcpy(copy, bytes, size);
    (void)kd_record_decode(out, copy, size, &head, &scratch, &err);
    if (size >= KD_RECORD_HEADER_BYTES) { /* as one who can compute checksums would write it: nothing behind the checksum may trust it */
        kd_hash128 h;
        kd_key k;
        kd_put_le(copy + 48, size - KD_RECORD_HEADER_BYTES, 8);
        h = kd_xxh128_2(copy, 112, copy + 128, size - 128);
        memcpy(copy + 112, h.b, 16);
        kd_key_decode(&k, copy + 10);
        head.key = k;
        memcpy(head.identity, copy + 56, 8);
        head.feature = (kd_feature)(copy[6] % KD_FEATURES);
        head.dtype = copy[7] == KD_I8 || copy[7] == KD_BF16 ? (kd_dtype)copy[7] : KD_F16;
        head.target = (kd_target_kind)(copy[9] % 3);
        head.rows = 1 + copy[32] % 64;
        head.width = 1 + copy[36] % 64;
        (void)kd_record_decode(out, copy, size, &head, &scratch, &err);
    }
    memcpy(copy, bytes, size);
    if (size >= KD_VALUE_HASH_BYTES + 8) {
        kd_hash128 h = kd_xxh128_2(key_bytes, KD_VIEW_KEY_BYTES, copy + 16, size - 16);
        memcpy(copy, h.b, 16);
        (void)kd_view_value_decode(&view, view_key, value, copy + 16, "bytes", &err);
        h = kd_xxh128_2(key_bytes, KD_IMAGE_KEY_BYTES, copy + 16, size - 16);
        memcpy(copy, h.b, 16);
        (void)kd_image_value_decode(&image, &tail, image_key, value, copy + 16, "bytes", &err);
        (void)kd_meta_decode(&payload, "recipe", value, "bytes", &err);
    }
    if (kd_json_parse((const char *)bytes, size, "bytes", &json, &err) == KD_OK && kd_recipe_from_json(&recipe, json, "bytes", &err) == KD_OK)
        kd_recipe_free(&recipe);
    kd_free(copy);
}

#endif
