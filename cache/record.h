/* Records: the bytes of one stored feature, and the keys that order them. Byte layouts are specified in cache/FORMAT.md.
 *
 * Encoding (precompute, on worker threads): payload from the teacher's encode op -> zstd frame with checksum -> header -> kd_writer_add_view.
 * Decoding (train, on loader threads): bytes from the store -> every check -> f32.
 * Thread rule: pure functions; a scratch belongs to one thread. */
#ifndef KD_CACHE_RECORD_H
#define KD_CACHE_RECORD_H

#include "common/base/hash.h"
#include "common/tensor/feature.h"
#include "common/tensor/target.h"

/* Key = image id 16 bytes | view u32 | layer u16, big endian, so that memcmp order is (id, view, layer). The views database uses the first 20 bytes, images the first 16. */
enum { KD_KEY_BYTES = 22, KD_VIEW_KEY_BYTES = 20, KD_IMAGE_KEY_BYTES = 16 };
typedef struct kd_key {
    kd_hash128 image;
    uint32_t view;
    uint16_t layer; /* counted from the end of the teacher: 1 = last */
} kd_key;
void kd_key_encode(uint8_t out[KD_KEY_BYTES], const kd_key *k);
void kd_key_decode(kd_key *k, const uint8_t in[KD_KEY_BYTES]);

/* How true the stored values of one record, or of many together, are. */
typedef struct kd_fidelity {
    double xx, qq, err2; /* sums of squares: of the values before they were rounded for storage, of what a reader decodes, of the differences */
    double worst;        /* largest relative L2 error of a token: sqrt(err2 / xx) of its values */
} kd_fidelity;

double kd_fidelity_cosine(const kd_fidelity *f);      /* between values before and after; 1 when all are 0 */
double kd_fidelity_relative_l2(const kd_fidelity *f); /* sqrt(err2 / xx); 0 when all are 0 */

/* What a feature record says about itself. */
typedef struct kd_record_head {
    kd_feature feature;
    kd_key key;
    uint32_t rows, width;     /* tokens (1 for cls and mean) x dimension, as stored */
    kd_dtype dtype;           /* stored as: KD_F16, KD_BF16 or KD_I8 */
    kd_target_kind target;    /* KD_TARGET_FULL where nothing was reduced */
    uint8_t identity[8];      /* first 8 bytes of the recipe identity */
    kd_hash128 view_hash;     /* of the uint8 view that the teacher saw */
    double square;            /* adjoint targets: sum of squares of the full grid's values; else 0 */
    kd_fidelity fidelity;     /* of this record; stored as f32 */
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

/* The version of the format, for people; its major number stands in records and recipes. FORMAT.md has the rule. */
#define KD_FORMAT_TEXT "1.0"
enum { KD_FORMAT_VERSION = 1, KD_RECORD_HEADER_BYTES = 128 };

/* payload: kd_stored_bytes(dtype, rows, width) bytes, as the kernels' encode gives them. out is grown as needed. */
kd_status kd_record_encode(kd_record_buf *out, const kd_record_head *head, const uint8_t *payload, int zstd_level, kd_record_scratch *scratch, kd_err *err);

/* Checks magic, version, sizes, XXH3-128 over header and payload, then that the record is the one asked for: feature, key, identity, element type, target, rows and width of `expect`
 * (its view_hash, square and fidelity are outputs: filled in from the record). KD_EDAMAGED with what differs. */
kd_status kd_record_check(const uint8_t *bytes, size_t size, kd_record_head *expect, kd_err *err);
/* kd_record_check, then unpacks: *payload has kd_stored_bytes bytes in the scratch, until its next use. */
kd_status kd_record_unpack(const uint8_t **payload, const uint8_t *bytes, size_t size, kd_record_head *expect, kd_record_scratch *scratch, kd_err *err);
/* The same, as rows*width f32. */
kd_status kd_record_decode(float *out, const uint8_t *bytes, size_t size, kd_record_head *expect, kd_record_scratch *scratch, kd_err *err);

/* What KD_RECORD_HEADER_BYTES bytes say about the record that they begin, to be proven by kd_record_check: for finding records whose index is lost. 0: they begin none. */
typedef struct kd_record_place {
    kd_feature feature;
    kd_key key;
    uint64_t size; /* header and frame */
} kd_record_place;
int kd_record_locate(kd_record_place *p, const uint8_t *bytes);

/* A copy of a record for another recipe, or as another feature (the parent's patch2 may be patch in a cache that was made from it): the frame and all else in the header stay, the checksum is
 * made anew. bytes: a record that passed kd_record_check. out is grown as needed. */
kd_status kd_record_readdress(kd_record_buf *out, const uint8_t *bytes, size_t size, kd_feature feature, const uint8_t identity[8], kd_err *err);

/* What of a record's header counts as content (digest.h): everything but the format version, the size of the frame, the fidelity and the checksum that covers them. bytes: a record's header. */
enum { KD_RECORD_CONTENT_BYTES = 112 };
void kd_record_content(uint8_t out[KD_RECORD_CONTENT_BYTES], const uint8_t *bytes);

#endif
