/* Hashes: XXH3-128 for ids, views and records; XXH3-64 for small things; SHA-256 for identities and files.
 * The only file that includes xxhash.h and OpenSSL is hash.c. 128-bit hashes are stored big endian ("canonical" in xxHash),
 * so that their hex text is what `xxhsum -H2` prints. */
#ifndef KD_COMMON_BASE_HASH_H
#define KD_COMMON_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_hash128 {
    uint8_t b[16]; /* canonical big-endian order; memcmp gives the numeric order */
} kd_hash128;

typedef struct kd_sha256 {
    uint8_t b[32];
} kd_sha256;

kd_hash128 kd_xxh128(const void *data, size_t size);
/* Hash of two pieces as if they were contiguous (record header, then payload). */
kd_hash128 kd_xxh128_2(const void *a, size_t na, const void *b, size_t nb);
uint64_t kd_xxh64(const void *data, size_t size); /* XXH3, 64 bits */
uint64_t kd_hash128_low64(const kd_hash128 *h);   /* the low 64 bits as a number: what Philox counters use */

kd_sha256 kd_sha256_of(const void *data, size_t size);
kd_status kd_sha256_file(const char *path, kd_sha256 *out, kd_err *err);

/* Incremental SHA-256. create returns NULL when memory is out; final frees. */
typedef struct kd_sha256_ctx kd_sha256_ctx;
kd_sha256_ctx *kd_sha256_begin(void);
void kd_sha256_update(kd_sha256_ctx *c, const void *data, size_t size);
kd_sha256 kd_sha256_final(kd_sha256_ctx *c);

/* Lower-case hex; out has 2n+1 bytes. Parsing: exactly 2n hex digits, returns 0 on success. */
void kd_hex(char *out, const void *bytes, size_t n);
int kd_unhex(void *out, const char *hex, size_t n);

#endif
