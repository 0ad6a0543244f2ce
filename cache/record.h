/* Records: the bytes of one stored feature, and the keys that order them. Byte layouts are specified in cache/FORMAT.md.
 *
 * Encoding (precompute, on worker threads): byte planes from the teacher's encode op -> zstd frame with checksum -> header -> kd_writer_add_view.
 * Decoding (train, on loader threads): bytes from the store -> every check -> f32.
 * Thread rule: pure functions; a scratch belongs to one thread. */
#ifndef KD_CACHE_RECORD_H
#define KD_CACHE_RECORD_H

#include "common/base/hash.h"
#include "common/tensor/dtype.h"

/* cls: the class token. patch: the patch tokens. registers: the register (storage) tokens. mean: the mean of the patch tokens. */
typedef enum kd_feature { KD_FEATURE_CLS = 0, KD_FEATURE_PATCH = 1, KD_FEATURE_REGISTERS = 2, KD_FEATURE_MEAN = 3, KD_FEATURES = 4 } kd_feature;
const char *kd_feature_name(kd_feature f); /* "cls", "patch", "registers", "mean": also the names of the databases */

/* Key = image id 16 bytes | view u32 | layer u16, big endian, so that memcmp order is (id, view, layer). The views database uses the first 20 bytes, images the first 16. */
enum { KD_KEY_BYTES = 22, KD_VIEW_KEY_BYTES = 20, KD_IMAGE_KEY_BYTES = 16 };
typedef struct kd_key {
    kd_hash128 image;
    uint32_t view;
    uint16_t layer; /* counted from the end of the teacher: 1 = last */
} kd_key;
void kd_key_encode(uint8_t out[KD_KEY_BYTES], const kd_key *k);
void kd_key_decode(kd_key *k, const uint8_t in[KD_KEY_BYTES]);

/* What a feature record says about itself. */
typedef struct kd_record_head {
    kd_feature feature;
    kd_key key;
    uint32_t rows, width;     /* tokens (1 for cls and mean) x dimension */
    kd_dtype dtype;           /* stored as: KD_F16 */
    uint8_t identity[8];      /* first 8 bytes of the recipe identity */
    kd_hash128 view_hash;     /* of the uint8 view that the teacher saw */
} kd_record_head;

typedef struct kd_record_buf {
    uint8_t *bytes;
    size_t size, cap;
} kd_record_buf;
void kd_record_buf_free(kd_record_buf *b);

/* Per-thread zstd contexts and buffers. Zero-initialise. */
typedef struct kd_record_scratch {
    void *cctx, *dctx;
    uint8_t *raw;
    size_t raw_cap;
} kd_record_scratch;
void kd_record_scratch_free(kd_record_scratch *s);

enum { KD_RECORD_HEADER_BYTES = 128 };

/* planes: rows*width high bytes, then rows*width low bytes of f16 (kernels' encode_f16). out is grown as needed. */
kd_status kd_record_encode(kd_record_buf *out, const kd_record_head *head, const uint8_t *planes, int zstd_level, kd_record_scratch *scratch, kd_err *err);

/* Checks magic, version, sizes, XXH3-128 over header and payload, then that the record is the one asked for: feature, key, identity, rows and width of `expect`
 * (its view_hash is an output: filled in from the record). KD_EDAMAGED with what differs. */
kd_status kd_record_check(const uint8_t *bytes, size_t size, kd_record_head *expect, kd_err *err);
/* kd_record_check, then decompresses into rows*width f32. */
kd_status kd_record_decode(float *out, const uint8_t *bytes, size_t size, kd_record_head *expect, kd_record_scratch *scratch, kd_err *err);

#endif
