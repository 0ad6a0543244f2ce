#include "common/base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

kd_status kd_json_parse(const char *text, size_t n, const char *what, json_t **out, kd_err *err)
{
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (!*out)
        return kd_fail(err, KD_EDAMAGED, "%s: not valid JSON: line %d, column %d: %s", what, e.line, e.column, e.text);
    return KD_OK;
}

kd_status kd_json_read_file(const char *path, size_t max_bytes, json_t **out, kd_err *err)
{
    uint8_t *bytes;
    size_t size;
    kd_status status;
    KD_TRY(kd_io_read_all(path, max_bytes, &bytes, &size, err));
    status = kd_json_parse((const char *)bytes, size, path, out, err);
    kd_free(bytes);
    return status;
}

char *kd_json_canonical(const json_t *v)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    char *copy = text ? kd_strdup(text) : NULL;
    free(text); /* jansson's own allocation */
    return copy;
}

static kd_status missing(const json_t *v, const char *key, const char *what, const char *kind, kd_err *err)
{
    const char *state = !json_is_object(v) ? "is not in an object" : json_object_get(v, key) ? "has another type" : "is missing";
    return kd_fail(err, KD_EDAMAGED, "%s: the %s \"%s\" %s", what, kind, key, state);
}

kd_status kd_json_get_int(const json_t *v, const char *key, const char *what, long long *out, kd_err *err)
{
    const json_t *x = json_object_get(v, key);
    if (!json_is_integer(x))
        return missing(v, key, what, "integer", err);
    *out = json_integer_value(x);
    return KD_OK;
}

kd_status kd_json_get_real(const json_t *v, const char *key, const char *what, double *out, kd_err *err)
{
    const json_t *x = json_object_get(v, key);
    if (!json_is_number(x))
        return missing(v, key, what, "number", err);
    *out = json_number_value(x);
    return KD_OK;
}

kd_status kd_json_get_string(const json_t *v, const char *key, const char *what, const char **out, kd_err *err)
{
    const json_t *x = json_object_get(v, key);
    /* A NUL inside would cut the string where it is used as a C string. */
    if (!json_is_string(x) || strlen(json_string_value(x)) != json_string_length(x))
        return missing(v, key, what, "string", err);
    *out = json_string_value(x);
    return KD_OK;
}

void kd_json_line(const json_t *v)
{
    if (!v)
        return;
    flockfile(stdout);
    json_dumpf(v, stdout, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    putc('\n', stdout);
    fflush(stdout);
    funlockfile(stdout);
}

/* Length of the UTF-8 sequence at s[0..n), or 0 when jansson would refuse it (it is the judge, so that both agree). */
static size_t valid_sequence(const char *s, size_t n)
{
    for (size_t k = 1; k <= 4 && k <= n; k++) {
        json_t *probe = json_stringn(s, k);
        if (probe) {
            json_decref(probe);
            return k;
        }
    }
    return 0;
}

json_t *kd_json_bytes(const void *bytes, size_t n)
{
    const char *s = bytes;
    char *text;
    size_t used = 0;
    json_t *v;
    if (!memchr(s, '\\', n) && !memchr(s, '\0', n) && (v = json_stringn(s, n)))
        return v;
    if (n > (SIZE_MAX - 1) / 4 || !(text = kd_malloc(4 * n + 1)))
        return NULL;
    for (size_t i = 0; i < n;) {
        size_t k = s[i] == '\\' || s[i] == '\0' ? 0 : valid_sequence(s + i, n - i);
        if (k == 0) {
            used += (size_t)sprintf(text + used, "\\x%02x", (unsigned char)s[i]);
            i++;
        } else {
            memcpy(text + used, s + i, k);
            used += k;
            i += k;
        }
    }
    v = json_stringn(text, used);
    kd_free(text);
    return v;
}
