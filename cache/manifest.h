/* Manifest: the JSON file X.kdc.json beside a sealed X.kdc. It says what is in the file (identity, counts, digest, SHA-256), how true the stored numbers are, and
 * where they come from. Its "checksum" is the XXH3-128 of its canonical text without that field. Inside cache/ only. */
#ifndef KD_CACHE_MANIFEST_H
#define KD_CACHE_MANIFEST_H

#include "cache/record.h"
#include "common/base/hash.h"
#include "common/base/json.h"

typedef struct kd_manifest {
    json_t *json; /* owned */
    uint64_t images, views, records[KD_FEATURES], bytes;
    kd_sha256 identity, digest, file_sha;
} kd_manifest;

/* Path of the manifest of a sealed file; kd_free'd by the caller, NULL when memory is out. */
char *kd_manifest_path(const char *cache_path);
/* Adds the checksum to json and replaces the file atomically. */
kd_status kd_manifest_write(const char *cache_path, json_t *json, kd_err *err);
/* KD_EDAMAGED when it isn't there or doesn't prove itself; the sentence says what completes it. */
kd_status kd_manifest_read(kd_manifest *m, const char *cache_path, kd_err *err);
void kd_manifest_free(kd_manifest *m);

#endif
