#include "cache/size_model.h"

#include <math.h>
#include <stdio.h>

#include "cache/entry.h"

/* What zstd makes of payloads, per element type.
 *
 * f16 and bf16 lie in two planes, of which only the high bytes (sign, exponent, first bits) repeat. zstd codes blocks of 128 KiB, so what counts is the share p of high bytes in a block: it saves
 * high_plane * p^mixing of it. i8 is one distribution, that of q = H x / scale: the larger the width, the further a token's largest value lies from the others, and the less bits those take.
 * A frame also has a table of codes (TABLE_BYTES), unless storing it as it is (PLAIN_BYTES) is shorter.
 *
 * Measured, frame / payload at level 1 of zstd 1.5.4, on 606 photos of Caltech-101 (one `lightly` view of 224 px each) with ViT-Ti/14 in DINOv2 layout, and in brackets what this table says:
 *   patches [256 x 192]   f16 full 0.922 (0.923), adjoint:14 0.923, adjoint:7 0.926, pool:7 0.926; bf16 full 0.755 (0.759), adjoint:7 0.765, pool:7 0.768; i8 full 0.940 (0.941), adjoint:14 0.939,
 *                         adjoint:7 0.946, pool:7 0.947: a reduced grid compresses as a full one does. Level 3: 0.922 and 0.940
 *   cls [1 x 192]         f16 1.036, bf16 0.970, i8 1.066 (384, 384 and 196 bytes)
 * Widths of other teachers are estimated from two and four joined layers of the same network (120 photos): [256 x 384] f16 0.892 (0.888), bf16 0.728 (0.717), i8 0.926 (0.930);
 * [256 x 768] f16 0.876 (0.876), bf16 0.706 (0.708), i8 0.896 (0.919). For i8 the table follows normal deviates (0.931 and 0.918), since joined layers of unequal size compress better than one wide layer. */
static const struct saving {
    double high_plane, mixing; /* f16, bf16 */
    double saved, per_octave;  /* i8: of the payload at width 192, and more for every doubling */
} saving[] = {
    [KD_F16] = {.high_plane = 0.295, .mixing = 1.93},
    [KD_BF16] = {.high_plane = 0.637, .mixing = 1.4},
    [KD_I8] = {.saved = 0.060, .per_octave = 0.0105},
};
enum { BLOCK_BYTES = 128 << 10, TABLE_BYTES = 75, PLAIN_BYTES = 14, MEASURED_WIDTH = 192 };

/* LMDB's pages: a value takes whole overflow pages of its own, after a header, when it and its key are more than half a page can hold; else it lies with others on a leaf page. */
enum {
    PAGE = 4096, PAGE_HEADER = 16, NODE = 8 + 2 /* header and index entry */, NODE_MAX = 2038, PAGE_NUMBER = 8,
    BRANCHES = 100,          /* leaf pages per branch page, at least */
    FILE_BYTES = 12 * PAGE,  /* meta pages, roots, statistics, recipe */
    PATH_BYTES = 40          /* of an image file, as people name them */
};

static double planes_saved(const struct saving *s, double payload)
{
    double plane = payload / 2, saved = 0;
    for (double at = 0; at < plane; at += BLOCK_BYTES) {
        double block = fmin(BLOCK_BYTES, payload - at), high = fmin(block, plane - at);
        saved += block * s->high_plane * pow(high / block, s->mixing);
    }
    return saved;
}

uint64_t kd_size_record(kd_dtype dtype, uint64_t rows, uint64_t width)
{
    const struct saving *s = &saving[dtype];
    double payload = (double)kd_stored_bytes(dtype, rows, width), saved;
    KD_ASSERT(dtype == KD_F16 || dtype == KD_BF16 || dtype == KD_I8);
    if (dtype == KD_I8)
        saved = payload * fmax(0, s->saved + s->per_octave * log2((double)width / MEASURED_WIDTH));
    else
        saved = planes_saved(s, payload);
    return KD_RECORD_HEADER_BYTES + (uint64_t)ceil(payload + fmin(PLAIN_BYTES, TABLE_BYTES - saved));
}

/* Bytes of file per entry of a database. */
static double entry_bytes(uint64_t key, uint64_t value)
{
    uint64_t node = NODE + key + value, overflow = 0;
    if (node - 2 > NODE_MAX) {
        overflow = (value + PAGE_HEADER + PAGE - 1) / PAGE * PAGE;
        node = NODE + key + PAGE_NUMBER;
    }
    node += node & 1;
    return (double)overflow + (1.0 + 1.0 / BRANCHES) * PAGE / (double)((PAGE - PAGE_HEADER) / node);
}

static double records_bytes(const kd_size_shape *s, const kd_storage *f)
{
    double sum = 0;
    for (kd_feature k = 0; k < KD_OUTPUTS; k++) {
        if (!(s->features & 1u << k))
            continue;
        for (int i = 0; i < (k == KD_FEATURE_PATCH ? f->targets : 1); i++) {
            uint64_t rows = k == KD_FEATURE_PATCH ? kd_target_rows(&f->target[i], s->grid_h, s->grid_w) : k == KD_FEATURE_REGISTERS ? (uint64_t)s->registers : 1;
            sum += entry_bytes(KD_KEY_BYTES, kd_size_record(f->dtype, rows, (uint64_t)s->width));
        }
    }
    return sum * s->layers;
}

static double view_bytes(const kd_size_shape *s, const kd_storage *f, uint32_t views)
{
    double image = entry_bytes(KD_IMAGE_KEY_BYTES, KD_IMAGE_VALUE_HEAD + PATH_BYTES + sizeof(uint64_t)); /* one run of views */
    return records_bytes(s, f) + entry_bytes(KD_VIEW_KEY_BYTES, s->mixed ? KD_MIXED_VALUE_BYTES : KD_VIEW_VALUE_BYTES) + image / views;
}

uint64_t kd_size_view(const kd_size_shape *s, const kd_storage *f, uint32_t views)
{
    return (uint64_t)ceil(view_bytes(s, f, views));
}

uint64_t kd_size_cache(const kd_size_shape *s, const kd_storage *f, uint64_t images, uint32_t views)
{
    double bytes = view_bytes(s, f, views) * views * (double)images + FILE_BYTES;
    return bytes < 18e18 ? (uint64_t)bytes : UINT64_MAX;
}

/* ---- in words ---- */

const char *kd_targets_text(const kd_target *target, int targets, char buf[KD_STORAGE_TEXT])
{
    char one[KD_TARGET_TEXT];
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < targets && n < KD_STORAGE_TEXT; i++)
        n += (size_t)snprintf(buf + n, KD_STORAGE_TEXT - n, "%s%s", i ? "," : "", kd_target_text(&target[i], one));
    return buf;
}

const char *kd_storage_text(const kd_storage *f, unsigned features, char buf[KD_STORAGE_TEXT])
{
    char targets[KD_STORAGE_TEXT];
    int patches = (features & 1u << KD_FEATURE_PATCH) != 0;
    snprintf(buf, KD_STORAGE_TEXT, "%s%s%.*s", kd_dtype_name(f->dtype), patches ? " " : "", patches ? KD_STORAGE_TEXT - 10 : 0, kd_targets_text(f->target, f->targets, targets));
    return buf;
}
