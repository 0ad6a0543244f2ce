#include "cache/entry.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/mix.h"

/* Offsets in a view's value. */
enum { VIEW_IDENTITY_AT = 16, VIEW_ZERO_AT = 24, VIEW_HASH_AT = 32, VIEW_PLAN_AT = 48, VIEW_PARTNER_AT = KD_VIEW_VALUE_BYTES };
/* Offsets in an image's value. */
enum { IMAGE_IDENTITY_AT = 16, IMAGE_SIZE_AT = KD_IMAGE_FACTS_AT, IMAGE_WIDTH_AT = 32, IMAGE_HEIGHT_AT = 36, IMAGE_VIEWS_AT = 40, IMAGE_RUNS_AT = 46 };
enum { RUN_BYTES = 8 };

void kd_put_le(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

uint64_t kd_get_le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static void value_seal(const void *key, size_t key_size, uint8_t *value, size_t size)
{
    kd_hash128 h = kd_xxh128_2(key, key_size, value + KD_VALUE_HASH_BYTES, size - KD_VALUE_HASH_BYTES);
    memcpy(value, h.b, sizeof h.b);
}

static kd_status value_check(kd_bytes key, kd_bytes value, size_t least, const char *kind, const char *file, kd_err *err)
{
    char hex[2 * KD_VIEW_KEY_BYTES + 1] = "";
    kd_hash128 h;
    if (key.size <= KD_VIEW_KEY_BYTES)
        kd_hex(hex, key.data, key.size);
    if (value.size < least)
        return kd_fail(err, KD_EDAMAGED, "%s: the %s entry %s has %zu bytes, less than %zu", file, kind, hex, value.size, least);
    h = kd_xxh128_2(key.data, key.size, value.data + KD_VALUE_HASH_BYTES, value.size - KD_VALUE_HASH_BYTES);
    if (memcmp(h.b, value.data, sizeof h.b) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: the %s entry %s fails its checksum: its bytes have changed since they were written", file, kind, hex);
    return KD_OK;
}

static kd_status identity_check(const uint8_t have[8], const uint8_t want[8], const char *kind, const char *file, kd_err *err)
{
    char a[17], b[17];
    if (memcmp(have, want, 8) == 0)
        return KD_OK;
    kd_hex(a, have, 8);
    kd_hex(b, want, 8);
    return kd_fail(err, KD_EDAMAGED, "%s: a %s entry was made under recipe %s... but the cache's recipe is %s...", file, kind, a, b);
}

void kd_view_key(uint8_t out[KD_VIEW_KEY_BYTES], const kd_hash128 *image, uint32_t view)
{
    uint8_t full[KD_KEY_BYTES];
    kd_key k = {*image, view, 0};
    kd_key_encode(full, &k);
    memcpy(out, full, KD_VIEW_KEY_BYTES);
}

size_t kd_view_value_encode(uint8_t out[KD_MIXED_VALUE_BYTES], const uint8_t identity[8], const kd_view_entry *v)
{
    uint8_t key[KD_VIEW_KEY_BYTES];
    size_t size = kd_plan_is_mixed(&v->plan) ? KD_MIXED_VALUE_BYTES : KD_VIEW_VALUE_BYTES;
    memset(out, 0, size);
    memcpy(out + VIEW_IDENTITY_AT, identity, 8);
    memcpy(out + VIEW_HASH_AT, v->view_hash.b, 16);
    kd_plan_encode(&v->plan, out + VIEW_PLAN_AT);
    if (kd_plan_is_mixed(&v->plan))
        kd_plan_encode(&v->partner, out + VIEW_PARTNER_AT);
    kd_view_key(key, &v->image, v->view);
    value_seal(key, sizeof key, out, size);
    return size;
}

/* value: of the size that the plan asks for. */
static kd_status partner_decode(kd_view_entry *v, const uint8_t *value, const char *file, kd_err *err)
{
    kd_err inner;
    memset(&v->partner, 0, sizeof v->partner);
    if (!kd_plan_is_mixed(&v->plan))
        return KD_OK;
    if (kd_plan_decode(&v->partner, value + VIEW_PARTNER_AT, &inner) != KD_OK)
        return kd_fail(err, KD_EDAMAGED, "%s: the partner's plan of view %u: %s", file, v->view, inner.msg);
    if (kd_plan_is_mixed(&v->partner) || v->partner.out_w != v->plan.out_w || v->partner.out_h != v->plan.out_h)
        return kd_fail(err, KD_EDAMAGED, "%s: the partner's plan of view %u is mixed itself or of another size; the record is damaged", file, v->view);
    return KD_OK;
}

kd_status kd_view_value_decode(kd_view_entry *v, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err)
{
    uint8_t full[KD_KEY_BYTES] = {0};
    kd_key k;
    kd_err inner;
    if (key.size != KD_VIEW_KEY_BYTES)
        return kd_fail(err, KD_EDAMAGED, "%s: a view entry has a key of %zu bytes", file, key.size);
    KD_TRY(value_check(key, value, KD_VIEW_VALUE_BYTES, "view", file, err));
    if ((value.size != KD_VIEW_VALUE_BYTES && value.size != KD_MIXED_VALUE_BYTES) || kd_get_le(value.data + VIEW_ZERO_AT, 8) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: a view entry of %zu bytes, or with a reserved field in use; a newer kdcache may have written it", file, value.size);
    KD_TRY(identity_check(value.data + VIEW_IDENTITY_AT, identity, "view", file, err));
    memcpy(full, key.data, key.size);
    kd_key_decode(&k, full);
    if (k.view > KD_MAX_VIEW)
        return kd_fail(err, KD_EDAMAGED, "%s: has a view %u, above the largest number of a view, %u", file, k.view, KD_MAX_VIEW);
    v->image = k.image;
    v->view = k.view;
    memcpy(v->view_hash.b, value.data + VIEW_HASH_AT, 16);
    if (kd_plan_decode(&v->plan, value.data + VIEW_PLAN_AT, &inner) != KD_OK)
        return kd_fail(err, KD_EDAMAGED, "%s: the plan of view %u: %s", file, k.view, inner.msg);
    if ((value.size == KD_MIXED_VALUE_BYTES) != kd_plan_is_mixed(&v->plan))
        return kd_fail(err, KD_EDAMAGED, "%s: the entry of view %u has %zu bytes, which its plan, %s, contradicts; the record is damaged", file, k.view, value.size,
                       kd_plan_is_mixed(&v->plan) ? "mixed" : "not mixed");
    return partner_decode(v, value.data, file, err);
}

size_t kd_image_value_size(const kd_image_entry *e)
{
    return KD_IMAGE_VALUE_HEAD + strlen(e->rel) + RUN_BYTES * (size_t)e->runs;
}

size_t kd_image_value_encode(uint8_t *out, const uint8_t identity[8], const kd_image_entry *e)
{
    size_t n = strlen(e->rel), size = kd_image_value_size(e);
    KD_ASSERT(n <= KD_MAX_REL && e->runs <= UINT16_MAX);
    memset(out, 0, KD_IMAGE_VALUE_HEAD);
    memcpy(out + IMAGE_IDENTITY_AT, identity, 8);
    kd_put_le(out + IMAGE_SIZE_AT, e->file_size, 8);
    kd_put_le(out + IMAGE_WIDTH_AT, (uint32_t)e->width, 4);
    kd_put_le(out + IMAGE_HEIGHT_AT, (uint32_t)e->height, 4);
    kd_put_le(out + IMAGE_VIEWS_AT, e->views, 4);
    kd_put_le(out + KD_IMAGE_REL_SIZE_AT, n, 2);
    kd_put_le(out + IMAGE_RUNS_AT, e->runs, 2);
    memcpy(out + KD_IMAGE_VALUE_HEAD, e->rel, n);
    for (uint32_t i = 0; i < e->runs; i++) {
        kd_put_le(out + KD_IMAGE_VALUE_HEAD + n + RUN_BYTES * i, e->run[i].first, 4);
        kd_put_le(out + KD_IMAGE_VALUE_HEAD + n + RUN_BYTES * i + 4, e->run[i].count, 4);
    }
    value_seal(e->image.b, KD_IMAGE_KEY_BYTES, out, size);
    return size;
}

kd_view_run kd_image_run(const kd_image_tail *tail, uint32_t i)
{
    return (kd_view_run){.first = (uint32_t)kd_get_le(tail->runs + RUN_BYTES * i, 4), .count = (uint32_t)kd_get_le(tail->runs + RUN_BYTES * i + 4, 4)};
}

/* Ascending, apart from each other, and as many views as the entry says. */
static int runs_are_sound(const kd_image_entry *e, const kd_image_tail *tail)
{
    uint64_t views = 0, least = 0;
    for (uint32_t i = 0; i < e->runs; i++) {
        kd_view_run r = kd_image_run(tail, i);
        if (r.count == 0 || r.first < least || (uint64_t)r.first + r.count > (uint64_t)KD_MAX_VIEW + 1)
            return 0;
        least = (uint64_t)r.first + r.count + 1;
        views += r.count;
    }
    return views == e->views;
}

kd_status kd_image_value_decode(kd_image_entry *e, kd_image_tail *tail, kd_bytes key, kd_bytes value, const uint8_t identity[8], const char *file, kd_err *err)
{
    const uint8_t *v = value.data;
    if (key.size != KD_IMAGE_KEY_BYTES)
        return kd_fail(err, KD_EDAMAGED, "%s: an image entry has a key of %zu bytes", file, key.size);
    KD_TRY(value_check(key, value, KD_IMAGE_VALUE_HEAD, "image", file, err));
    KD_TRY(identity_check(v + IMAGE_IDENTITY_AT, identity, "image", file, err));
    memcpy(e->image.b, key.data, KD_IMAGE_KEY_BYTES);
    e->file_size = kd_get_le(v + IMAGE_SIZE_AT, 8);
    e->width = (int32_t)kd_get_le(v + IMAGE_WIDTH_AT, 4);
    e->height = (int32_t)kd_get_le(v + IMAGE_HEIGHT_AT, 4);
    e->views = (uint32_t)kd_get_le(v + IMAGE_VIEWS_AT, 4);
    e->runs = (uint32_t)kd_get_le(v + IMAGE_RUNS_AT, 2);
    e->run = NULL;
    e->rel = (const char *)v + KD_IMAGE_VALUE_HEAD;
    tail->rel_size = (size_t)kd_get_le(v + KD_IMAGE_REL_SIZE_AT, 2);
    if (tail->rel_size > KD_MAX_REL || value.size != KD_IMAGE_VALUE_HEAD + tail->rel_size + RUN_BYTES * (size_t)e->runs || memchr(e->rel, 0, tail->rel_size) || e->width < 1 || e->height < 1)
        return kd_fail(err, KD_EDAMAGED, "%s: an image entry with a path of %zu bytes and %u runs of views in %zu bytes, %d x %d pixels", file, tail->rel_size, e->runs, value.size,
                       e->width, e->height);
    tail->runs = v + KD_IMAGE_VALUE_HEAD + tail->rel_size;
    if (!runs_are_sound(e, tail))
        return kd_fail(err, KD_EDAMAGED, "%s: an image entry's %u runs of views overlap, or aren't its %u views", file, e->runs, e->views);
    return KD_OK;
}

uint32_t kd_image_view(const kd_image_entry *e, uint32_t i)
{
    uint32_t r = 0;
    KD_ASSERT(i < e->views);
    while (i >= e->run[r].count)
        i -= e->run[r++].count;
    return e->run[r].first + i;
}

const char *kd_image_views_text(const kd_image_entry *e, char buf[64])
{
    uint32_t first = kd_image_view(e, 0), last = kd_image_view(e, e->views - 1);
    if (last - first == e->views - 1)
        snprintf(buf, 64, "views %u to %u", first, last);
    else
        snprintf(buf, 64, "%u views from %u to %u", e->views, first, last);
    return buf;
}

const kd_view_run *kd_image_find_view(const kd_image_entry *e, uint32_t view)
{
    for (uint32_t i = 0; i < e->runs; i++) {
        if (view >= e->run[i].first && view - e->run[i].first < e->run[i].count)
            return &e->run[i];
    }
    return NULL;
}

kd_status kd_meta_encode(uint8_t **out, size_t *size, const char *key, const void *payload, size_t payload_size, kd_err *err)
{
    *out = kd_malloc(KD_VALUE_HASH_BYTES + payload_size);
    if (!*out)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for a meta entry of %zu bytes", payload_size);
    memcpy(*out + KD_VALUE_HASH_BYTES, payload, payload_size);
    *size = KD_VALUE_HASH_BYTES + payload_size;
    value_seal(key, strlen(key), *out, *size);
    return KD_OK;
}

kd_status kd_meta_decode(kd_bytes *payload, const char *key, kd_bytes value, const char *file, kd_err *err)
{
    kd_bytes k = {(const uint8_t *)key, strlen(key)};
    KD_TRY(value_check(k, value, KD_VALUE_HASH_BYTES, "meta", file, err));
    payload->data = value.data + KD_VALUE_HASH_BYTES;
    payload->size = value.size - KD_VALUE_HASH_BYTES;
    return KD_OK;
}
