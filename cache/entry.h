/* Entries: the bytes of the values of `images`, `views` and `meta`. Each starts with the XXH3-128 of its key and of all that follows, so that
 * neither a changed byte nor a value under another's key is believed. Layouts: FORMAT.md. Inside cache/ only. */
#ifndef KD_CACHE_ENTRY_H
#define KD_CACHE_ENTRY_H

#include "cache/store.h"
#include "cache/store_lmdb.h"

enum { KD_VALUE_HASH_BYTES = 16, KD_VIEW_VALUE_BYTES = 48 + KD_PLAN_BYTES, KD_MIXED_VALUE_BYTES = KD_VIEW_VALUE_BYTES + KD_PLAN_BYTES, KD_IMAGE_VALUE_HEAD = 48, KD_MAX_REL = 4095 };

void kd_view_key(uint8_t out[KD_VIEW_KEY_BYTES], const kd_hash128 *image, uint32_t view);
/* Returns the size: KD_VIEW_VALUE_BYTES, of a mixed view KD_MIXED_VALUE_BYTES. */
size_t kd_view_value_encode(uint8_t out[KD_MIXED_VALUE_BYTES], const uint8_t identity[8], const kd_view_entry *v);
/* Image and view number come from the key. KD_EDAMAGED: size, hash, identity or a field of the plan. `file` names the cache. */
kd_status kd_view_value_decode(kd_view_entry *v, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err);

/* out has room for KD_IMAGE_VALUE_HEAD + KD_MAX_REL bytes; returns the size. */
size_t kd_image_value_encode(uint8_t *out, const uint8_t identity[8], const kd_image_entry *e);
/* e->rel points into value and isn't terminated: *rel_size bytes. */
kd_status kd_image_value_decode(kd_image_entry *e, size_t *rel_size, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err);

/* meta: key is text. Encoding allocates *out (kd_free). Decoding gives the payload inside value. */
kd_status kd_meta_encode(uint8_t **out, size_t *size, const char *key, const void *payload, size_t payload_size, kd_err *err);
kd_status kd_meta_decode(kd_bytes *payload, const char *key, kd_bytes value, const char *file, kd_err *err);

void kd_put_le(uint8_t *p, uint64_t v, int bytes);
uint64_t kd_get_le(const uint8_t *p, int bytes);

#endif
