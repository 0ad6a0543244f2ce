#include "cache/parent.h"

static json_t *hex_json(const kd_sha256 *sha)
{
    char hex[65];
    kd_hex(hex, sha->b, sizeof sha->b);
    return json_string(hex);
}

/* Files that were written by the same run say the same, once is enough. */
static void add_other(json_t *others, const json_t *first, const json_t *p)
{
    if (!p || json_equal(first, p))
        return;
    for (size_t i = 0; i < json_array_size(others); i++) {
        if (json_equal(json_array_get(others, i), p))
            return;
    }
    json_array_append(others, (json_t *)(uintptr_t)p);
}

static void add_files(json_t *parent, const json_t *first, const json_t *const *manifests, size_t count)
{
    json_t *files = json_array(), *others = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *sha = json_object_get(manifests[i], "sha256");
        if (sha)
            json_array_append(files, sha);
        add_other(others, first, json_object_get(manifests[i], "provenance"));
    }
    json_object_set(parent, "files", files);
    if (json_array_size(others) > 0)
        json_object_set(parent, "others", others);
    json_decref(files);
    json_decref(others);
}

kd_status kd_parent_provenance(json_t **out, const json_t *const *manifests, size_t count, const kd_sha256 *identity, const kd_sha256 *digest, const char *command, kd_err *err)
{
    const json_t *first = NULL;
    json_t *parent = json_pack("{s:o,s:s}", "identity", hex_json(identity), "command", command), *earlier;
    for (size_t i = 0; i < count && !first; i++)
        first = json_object_get(manifests[i], "provenance");
    *out = first ? json_deep_copy(first) : json_object();
    if (!parent || !*out) {
        json_decref(parent);
        json_decref(*out);
        *out = NULL;
        return kd_fail(err, KD_EFAIL, "out of memory while writing down what a cache was made from");
    }
    if (digest)
        json_object_set_new(parent, "digest", hex_json(digest));
    add_files(parent, first, manifests, count);
    earlier = json_object_get(*out, "parent");
    if (earlier)
        json_object_set(parent, "parent", earlier);
    json_object_set_new(*out, "parent", parent);
    return KD_OK;
}
