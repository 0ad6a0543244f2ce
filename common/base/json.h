/* JSON: jansson, with the strictness that foreign bytes need and the canonical text that identities are hashed over.
 *
 * This header is the project's one door to jansson: other files include it and use json_t directly.
 * Canonical text = keys sorted, no spaces, integers as integers, reals with 17 significant digits: json_dumps with
 * JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17). */
#ifndef KD_COMMON_BASE_JSON_H
#define KD_COMMON_BASE_JSON_H

#include <jansson.h>

#include "common/base/err.h"

/* Parses one JSON value from exactly n bytes. Duplicate keys and trailing bytes are errors. `what` names the source in the sentence. */
kd_status kd_json_parse(const char *text, size_t n, const char *what, json_t **out, kd_err *err);
kd_status kd_json_read_file(const char *path, size_t max_bytes, json_t **out, kd_err *err);

/* Canonical text, kd_free'd by the caller; NULL when memory is out. */
char *kd_json_canonical(const json_t *v);

/* Typed fields of an object; KD_EDAMAGED naming `what` and the key when it is missing or of another type.
 * Strings are borrowed from v. */
kd_status kd_json_get_int(const json_t *v, const char *key, const char *what, long long *out, kd_err *err);
kd_status kd_json_get_real(const json_t *v, const char *key, const char *what, double *out, kd_err *err);
kd_status kd_json_get_string(const json_t *v, const char *key, const char *what, const char **out, kd_err *err);

/* Writes v as one line to stdout and flushes: the --json stream. Steals nothing. */
void kd_json_line(const json_t *v);

/* A JSON string from bytes that may not be UTF-8 (file names): invalid bytes become U+DC80..U+DCFF-free "\xNN" text, so a
 * reader can't mistake it for another name. New reference. */
json_t *kd_json_bytes(const void *bytes, size_t n);

#endif
