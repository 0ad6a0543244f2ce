/* EXIF orientation: where it stands in a file, and turning a picture upright.
 *
 * The readers follow Pillow (JpegImagePlugin.APP, PngImagePlugin.chunk_eXIf, WebPImagePlugin, TiffImagePlugin.ImageFileDirectory_v2.load): an EXIF block is a
 * small TIFF file, and whatever is wrong with it ends the search. Where Pillow raises an exception for a block that isn't TIFF, the picture stays as it is. */
#include <string.h>

#include "common/image/codecs.h"

typedef struct block {
    const uint8_t *bytes;
    size_t size;
    int big; /* big-endian */
} block;

static uint32_t number(const block *b, size_t at, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint32_t)b->bytes[at + (size_t)i] << 8 * (b->big ? bytes - 1 - i : i);
    return v;
}

static int starts(const block *b, size_t at, const char *what, size_t n) {
    return b->size >= n && at <= b->size - n && memcmp(b->bytes + at, what, n) == 0;
}

/* ---- the tag ---- */

/* The value at `at` when it is a whole number of 0 to 8 in any numeric type, as Python's comparison takes 6.0 and 12/2 for 6; else 0 (strings and bytes among them). */
static int tag_value(const block *b, size_t at, unsigned type) {
    double v = 0;
    float f;
    uint32_t word = number(b, at, type == 6 ? 1 : type == 3 || type == 8 ? 2 : 4), next = type == 5 || type == 10 || type == 12 || type == 16 ? number(b, at + 4, 4) : 0;
    uint64_t wide = b->big ? (uint64_t)word << 32 | next : (uint64_t)next << 32 | word;
    switch (type) {
    case 3: case 4: case 6: case 8: case 9: case 13: /* integers; a negative one is large here */
        v = word;
        break;
    case 5: /* fractions */
        v = next != 0 ? (double)word / next : 0;
        break;
    case 10:
        v = next != 0 ? (double)(int32_t)word / (int32_t)next : 0;
        break;
    case 11:
        memcpy(&f, &word, sizeof f);
        v = (double)f;
        break;
    case 12:
        memcpy(&v, &wide, sizeof v);
        break;
    case 16: /* 64 bits */
        v = (double)wide;
        break;
    default:;
    }
    return v >= 0 && v <= 8 && v == (int)v ? (int)v : 0;
}

/* Entries of 12 bytes: tag, type, count, and the value when it fits into 4 bytes, else where it lies. Data beyond the end stop the reading, data larger than the
 * block are passed over: so does Pillow. */
static int tiff_orientation(block b) {
    static const uint8_t unit[17] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8}; /* bytes of one value, by type */
    if (b.size < 8)
        return 1;
    /* A 42 in the other byte order is taken for what the letters say, and the big-endian 43 of BigTIFF for a 42: so does Pillow. */
    b.big = starts(&b, 0, "MM\0*", 4) || starts(&b, 0, "MM*\0", 4) || starts(&b, 0, "MM\0+", 4);
    if (!b.big && !starts(&b, 0, "II*\0", 4) && !starts(&b, 0, "II\0*", 4))
        return 1;
    size_t at = number(&b, 4, 4);
    if (at > b.size - 2)
        return 1;
    uint64_t outside = 0; /* bytes of values that don't stand in their entries */
    unsigned entries = number(&b, at, 2);
    for (at += 2; entries > 0 && at + 12 <= b.size; entries--, at += 12) {
        unsigned type = number(&b, at + 2, 2);
        if (type >= sizeof unit || unit[type] == 0)
            continue;
        uint64_t size = (uint64_t)number(&b, at + 4, 4) * unit[type], where = at + 8;
        if (size > 4) {
            where = number(&b, at + 8, 4);
            outside += size;
            if (outside > b.size)
                continue;
            if (where + size > b.size)
                return 1;
        }
        if (size == 0 || number(&b, at, 2) != 0x0112)
            continue;
        int value = tag_value(&b, (size_t)where, type);
        return value >= 1 ? value : 1;
    }
    return 1;
}

/* ---- the block ---- */

static block part(const block *b, size_t at, size_t n) { return (block){.bytes = b->bytes + at, .size = n}; }

/* Some programs write the prefix twice. */
static int exif_orientation(block b) {
    for (int i = 0; i < 2 && starts(&b, 0, "Exif\0\0", 6); i++)
        b = part(&b, 6, b.size - 6);
    return tiff_orientation(b);
}

/* The first APP1 segment with "Exif", before the first scan. */
static int jpeg_orientation(const block *b) {
    size_t at = 2, n;
    for (int marker; (marker = kd_jpeg_next_segment(b->bytes, b->size, &at, &n)) != 0; at += n)
        if (marker == 0xE1 && n >= 6 && starts(b, at, "Exif\0\0", 6))
            return exif_orientation(part(b, at, n));
    return 1;
}

/* The last eXIf chunk: Pillow overwrites. It may follow the pixels. */
static int png_orientation(const block *b) {
    int orientation = 1;
    for (size_t at = 8; at + 12 <= b->size;) {
        size_t n = number(b, at, 4);
        if (n > b->size - at - 12 || starts(b, at + 4, "IEND", 4))
            break;
        if (starts(b, at + 4, "eXIf", 4))
            orientation = exif_orientation(part(b, at + 8, n));
        at += 12 + n;
    }
    return orientation;
}

/* The first EXIF chunk, where the extended header announces one (its flag 8). */
static int webp_orientation(const block *b) {
    if (!starts(b, 12, "VP8X", 4) || b->size < 30 || (b->bytes[20] & 8) == 0)
        return 1;
    for (size_t at = 12; at + 8 <= b->size;) {
        size_t n = number(b, at + 4, 4);
        if (n > b->size - at - 8)
            break;
        if (starts(b, at, "EXIF", 4))
            return exif_orientation(part(b, at + 8, n));
        at += 8 + n + (n & 1);
    }
    return 1;
}

int kd_exif_orientation(const uint8_t *bytes, size_t size) {
    block b = {.bytes = bytes, .size = size, .big = 1};
    if (starts(&b, 0, "\xFF\xD8\xFF", 3))
        return jpeg_orientation(&b);
    if (starts(&b, 0, "\x89PNG\r\n\x1A\n", 8))
        return png_orientation(&b);
    b.big = 0;
    return starts(&b, 0, "RIFF", 4) && starts(&b, 8, "WEBP", 4) ? webp_orientation(&b) : 1;
}

/* ---- turning ---- */

/* Every turn is a walk over the source with one step to the right and one down. Orientation o says where the stored row 0 and column 0 belong. */
kd_status kd_image_turn(kd_image *img, int orientation, kd_err *err) {
    KD_ASSERT(orientation >= 1 && orientation <= 8);
    if (orientation == 1)
        return KD_OK;
    ptrdiff_t w = img->width, h = img->height;
    int sideways = orientation >= 5;
    int from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    int from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    KD_TRY(kd_image_reserve_spare(img, (size_t)w * (size_t)h * 3, err));
    ptrdiff_t column = from_right ? -3 : 3, row = from_below ? -3 * w : 3 * w;
    const uint8_t *origin = img->rgb + (from_right ? 3 * (w - 1) : 0) + (from_below ? 3 * w * (h - 1) : 0);
    ptrdiff_t right = sideways ? row : column, down = sideways ? column : row;
    ptrdiff_t out_w = sideways ? h : w, out_h = sideways ? w : h;
    uint8_t *dst = img->spare;
    for (ptrdiff_t y = 0; y < out_h; y++)
        for (ptrdiff_t x = 0; x < out_w; x++, dst += 3) {
            const uint8_t *src = origin + y * down + x * right;
            dst[0] = src[0];
            dst[1] = src[1];
            dst[2] = src[2];
        }
    uint8_t *turned = img->spare;
    size_t capacity = img->spare_capacity;
    img->spare = img->rgb;
    img->spare_capacity = img->capacity;
    img->rgb = turned;
    img->capacity = capacity;
    img->width = (int)out_w;
    img->height = (int)out_h;
    return KD_OK;
}
