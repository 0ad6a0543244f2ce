#include "cache/digest.h"

#include <string.h>

#include "cache/entry.h"
#include "common/base/mem.h"

static void add_number(kd_sha256 *sum, const kd_sha256 *x)
{
    unsigned carry = 0;
    for (int i = 31; i >= 0; i--) {
        carry += (unsigned)sum->b[i] + x->b[i];
        sum->b[i] = (uint8_t)carry;
        carry >>= 8;
    }
}

/* Of an image: its facts and path, but not which of its views are here. */
static size_t image_content(uint8_t *out, const uint8_t *value, size_t size)
{
    size_t rel = (size_t)kd_get_le(value + KD_IMAGE_REL_SIZE_AT, 2);
    if (rel > KD_MAX_REL || KD_IMAGE_VALUE_HEAD + rel > size)
        rel = 0; /* damaged, which the entry's own checksum says */
    memcpy(out, value + KD_IMAGE_FACTS_AT, KD_IMAGE_FACTS_BYTES);
    memcpy(out + KD_IMAGE_FACTS_BYTES, value + KD_IMAGE_VALUE_HEAD, rel);
    return KD_IMAGE_FACTS_BYTES + rel;
}

kd_status kd_digest_add(kd_digest *d, kd_db db, kd_bytes key, kd_bytes value, const char *file, kd_err *err)
{
    uint8_t entry[1 + KD_KEY_BYTES + KD_IMAGE_FACTS_BYTES + KD_MAX_REL];
    size_t least = db == KD_DB_IMAGES ? KD_IMAGE_VALUE_HEAD : db == KD_DB_VIEWS ? KD_VIEW_VALUE_BYTES : KD_RECORD_HEADER_BYTES, n = 1;
    kd_sha256 sha;
    if (value.size < least || key.size > KD_KEY_BYTES || (db == KD_DB_VIEWS && value.size > KD_MIXED_VALUE_BYTES))
        return kd_fail(err, KD_EDAMAGED, "%s: an entry of `%s` has a key of %zu and a value of %zu bytes", file, kd_db_names[db], key.size, value.size);
    entry[0] = (uint8_t)db;
    memcpy(entry + n, key.data, key.size);
    n += key.size;
    if (db == KD_DB_IMAGES) {
        n += image_content(entry + n, value.data, value.size);
    } else if (db == KD_DB_VIEWS) {
        memcpy(entry + n, value.data, value.size);
        n += value.size;
    } else {
        kd_record_content(entry + n, value.data);
        n += KD_RECORD_CONTENT_BYTES;
    }
    sha = kd_sha256_of(entry, n);
    add_number(&d->sum, &sha);
    return KD_OK;
}
