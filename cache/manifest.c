#include "cache/manifest.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

enum { MAX_MANIFEST_BYTES = 16 << 20 };

char *kd_manifest_path(const char *cache_path)
{
    return kd_asprintf("%s.json", cache_path);
}

/* Hex of the XXH3-128 of json without its "checksum". */
static kd_status checksum(const json_t *json, char hex[33], kd_err *err)
{
    json_t *bare = json_copy((json_t *)(uintptr_t)json);
    char *text = NULL;
    kd_hash128 h;
    if (bare) {
        json_object_del(bare, "checksum");
        text = kd_json_canonical(bare);
        json_decref(bare);
    }
    if (!text)
        return kd_fail(err, KD_EFAIL, "out of memory: a manifest's checksum can't be computed");
    h = kd_xxh128(text, strlen(text));
    kd_free(text);
    kd_hex(hex, h.b, sizeof h.b);
    return KD_OK;
}

kd_status kd_manifest_write(const char *cache_path, json_t *json, kd_err *err)
{
    char hex[33];
    char *path, *text;
    kd_status status;
    KD_TRY(checksum(json, hex, err));
    path = kd_manifest_path(cache_path);
    text = json_object_set_new(json, "checksum", json_string(hex)) == 0 ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17)) : NULL;
    status = path && text ? kd_io_write_atomic(path, text, strlen(text), err) : kd_fail(err, KD_EFAIL, "%s: out of memory while writing its manifest", cache_path);
    free(text); /* jansson's own allocation */
    kd_free(path);
    return status;
}

static kd_status get_count(const json_t *v, const char *key, const char *path, uint64_t *out, kd_err *err)
{
    long long x;
    KD_TRY(kd_json_get_int(v, key, path, &x, err));
    if (x < 0)
        return kd_fail(err, KD_EDAMAGED, "%s: \"%s\" is %lld", path, key, x);
    *out = (uint64_t)x;
    return KD_OK;
}

static kd_status get_sha(const json_t *v, const char *key, const char *path, kd_sha256 *out, kd_err *err)
{
    const char *s;
    KD_TRY(kd_json_get_string(v, key, path, &s, err));
    if (kd_unhex(out->b, s, sizeof out->b) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: \"%s\" isn't a SHA-256", path, key);
    return KD_OK;
}

static kd_status read_fields(kd_manifest *m, const char *path, kd_err *err)
{
    const json_t *content = json_object_get(m->json, "content");
    const char *have;
    char want[33];
    KD_TRY(kd_json_get_string(m->json, "checksum", path, &have, err));
    KD_TRY(checksum(m->json, want, err));
    if (strcmp(have, want) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: its checksum is %s, its content has %s: it was edited or damaged; copy it again from where it came", path, have, want);
    have = json_string_value(json_object_get(m->json, "format"));
    if (!have || strncmp(have, "1.", 2) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: is of format %s and this program reads 1.x: %s", path, have ? have : "0", have ? "a newer kdcache wrote it" : "make the cache again with kd-precompute");
    KD_TRY(get_sha(m->json, "identity", path, &m->identity, err));
    KD_TRY(get_sha(m->json, "sha256", path, &m->file_sha, err));
    KD_TRY(get_count(content, "images", path, &m->images, err));
    KD_TRY(get_count(content, "views", path, &m->views, err));
    for (int f = 0; f < KD_FEATURES; f++)
        KD_TRY(get_count(content, kd_feature_name((kd_feature)f), path, &m->records[f], err));
    KD_TRY(get_count(content, "bytes", path, &m->bytes, err));
    return get_sha(content, "digest", path, &m->digest, err);
}

kd_status kd_manifest_read(kd_manifest *m, const char *cache_path, kd_err *err)
{
    char *path = kd_manifest_path(cache_path);
    kd_status status;
    memset(m, 0, sizeof *m);
    if (!path)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while reading its manifest", cache_path);
    if (!kd_io_exists(path))
        status = kd_fail(err, KD_EDAMAGED, "%s: its manifest %s is missing: copy it from where the cache came, or, where the cache was made, run the same kd-precompute command again",
                         cache_path, path);
    else
        status = kd_json_read_file(path, MAX_MANIFEST_BYTES, &m->json, err);
    if (status == KD_OK)
        status = read_fields(m, path, err);
    if (status != KD_OK)
        kd_manifest_free(m);
    kd_free(path);
    return status;
}

void kd_manifest_free(kd_manifest *m)
{
    json_decref(m->json);
    memset(m, 0, sizeof *m);
}
