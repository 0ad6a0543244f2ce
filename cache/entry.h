/* Entries: the bytes of the values of `images`, `views` and `meta`. Each starts with the XXH3-128 of its key and of all that follows, so that
 * neither a changed byte nor a value under another's key is believed. Layouts: FORMAT.md. Inside cache/ only. */
#ifndef KD_CACHE_ENTRY_H
#define KD_CACHE_ENTRY_H

#include "cache/store.h"
#include "cache/store_lmdb.h"

enum { KD_VALUE_HASH_BYTES = 16, KD_VIEW_VALUE_BYTES = 48 + KD_PLAN_BYTES, KD_MIXED_VALUE_BYTES = KD_VIEW_VALUE_BYTES + KD_PLAN_BYTES, KD_IMAGE_VALUE_HEAD = 48, KD_MAX_REL = 4095 };
/* Inside an image's value: file size, width and height, which say what the image is; the length of its path. */
enum { KD_IMAGE_FACTS_AT = 24, KD_IMAGE_FACTS_BYTES = 16, KD_IMAGE_REL_SIZE_AT = 44 };

void kd_view_key(uint8_t out[KD_VIEW_KEY_BYTES], const kd_hash128 *image, uint32_t view);
/* Returns the size: KD_VIEW_VALUE_BYTES, of a mixed view KD_MIXED_VALUE_BYTES. */
size_t kd_view_value_encode(uint8_t out[KD_MIXED_VALUE_BYTES], const uint8_t identity[8], const kd_view_entry *v);
/* Image and view number come from the key. KD_EDAMAGED: size, hash, identity or a field of the plan. `file` names the cache. */
kd_status kd_view_value_decode(kd_view_entry *v, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err);

/* out has room for kd_image_value_size(e) bytes; returns that. */
size_t kd_image_value_size(const kd_image_entry *e);
size_t kd_image_value_encode(uint8_t *out, const uint8_t identity[8], const kd_image_entry *e);
/* The parts of an image's value that e has no room for. */
typedef struct kd_image_tail {
    size_t rel_size;     /* e->rel points into value and isn't terminated */
    const uint8_t *runs; /* e->runs pairs of u32: kd_image_run. In value; e->run is NULL */
} kd_image_tail;
kd_status kd_image_value_decode(kd_image_entry *e, kd_image_tail *tail, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err);
kd_view_run kd_image_run(const kd_image_tail *tail, uint32_t i);

/* meta: key is text. Encoding allocates *out (kd_free). Decoding gives the payload inside value. */
kd_status kd_meta_encode(uint8_t **out, size_t *size, const char *key, const void *payload, size_t payload_size, kd_err *err);
kd_status kd_meta_decode(kd_bytes *payload, const char *key, kd_bytes value, const char *file, kd_err *err);

void kd_put_le(uint8_t *p, uint64_t v, int bytes);
uint64_t kd_get_le(const uint8_t *p, int bytes);

#endif
