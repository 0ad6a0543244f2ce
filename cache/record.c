/* Records: header, checks and the zstd frame. The only file of the project that includes zstd.h. */
#include "cache/record.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define ZSTD_STATIC_LINKING_ONLY /* for ZSTD_d_forceIgnoreChecksum, which a library without it refuses: then it is only slower */
#include <zstd.h>

#include "cache/codec.h"
#include "cache/entry.h"
#include "common/base/mem.h"

/* Offsets inside the header (FORMAT.md, "Feature records"). Everything from HASH_AT back to 0 is covered by the hash, the payload after it. */
enum {
    VERSION_AT = 4, FEATURE_AT = 6, DTYPE_AT = 7, CODEC_AT = 8, TARGET_AT = 9, KEY_AT = 10, ROWS_AT = 32, WIDTH_AT = 36, RAW_AT = 40, PACKED_AT = 48,
    IDENTITY_AT = 56, VIEW_HASH_AT = 64, SQUARE_AT = 80, FIDELITY_AT = 88, CONTENT_AT = 104, HASH_AT = 112
};
enum { CODEC_ZSTD = 1 };
enum { MAX_ROWS = 1 << 20, MAX_WIDTH = 1 << 16 }; /* 2^36 values at most: no size product below can overflow */
static const uint8_t magic[4] = {'K', 'D', 'F', 'R'};

/* <x,q> from |x - q|^2 = |x|^2 - 2 <x,q> + |q|^2. The sums are of rounded numbers, so it may come out a little above 1. */
double kd_fidelity_cosine(const kd_fidelity *f)
{
    double cosine = f->xx > 0 && f->qq > 0 ? (f->xx + f->qq - f->err2) / 2 / sqrt(f->xx * f->qq) : 1;
    return cosine < 1 ? cosine : 1;
}

double kd_fidelity_relative_l2(const kd_fidelity *f)
{
    return f->xx > 0 ? sqrt(f->err2 / f->xx) : 0;
}

void kd_key_encode(uint8_t out[KD_KEY_BYTES], const kd_key *k)
{
    memcpy(out, k->image.b, 16);
    for (int i = 0; i < 4; i++)
        out[16 + i] = (uint8_t)(k->view >> (24 - 8 * i));
    out[20] = (uint8_t)(k->layer >> 8);
    out[21] = (uint8_t)k->layer;
}

void kd_key_decode(kd_key *k, const uint8_t in[KD_KEY_BYTES])
{
    memcpy(k->image.b, in, 16);
    k->view = (uint32_t)in[16] << 24 | (uint32_t)in[17] << 16 | (uint32_t)in[18] << 8 | in[19];
    k->layer = (uint16_t)(in[20] << 8 | in[21]);
}

void kd_record_buf_free(kd_record_buf *b)
{
    kd_free(b->bytes);
    memset(b, 0, sizeof *b);
}

void kd_record_scratch_free(kd_record_scratch *s)
{
    ZSTD_freeCCtx(s->cctx);
    ZSTD_freeDCtx(s->dctx);
    kd_free(s->raw);
    memset(s, 0, sizeof *s);
}

/* Grows a buffer whose old content isn't needed. */
static kd_status reserve(uint8_t **p, size_t *cap, size_t need, kd_err *err)
{
    uint8_t *bigger;
    if (need <= *cap)
        return KD_OK;
    bigger = kd_malloc(need);
    if (!bigger)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for a record of %zu bytes", need);
    kd_free(*p);
    *p = bigger;
    *cap = need;
    return KD_OK;
}

static void put_f32(uint8_t *p, double x)
{
    float f = x < (double)FLT_MAX ? (float)x : FLT_MAX; /* a sum of squares of bf16 values may be larger */
    memcpy(p, &f, 4); /* little endian, as every supported host */
}

static double get_f32(const uint8_t *p)
{
    float f;
    memcpy(&f, p, 4);
    return (double)f;
}

static void head_write(uint8_t *b, const kd_record_head *head, uint64_t raw, uint64_t packed, uint64_t content)
{
    memset(b, 0, KD_RECORD_HEADER_BYTES);
    memcpy(b, magic, sizeof magic);
    kd_put_le(b + VERSION_AT, KD_FORMAT_VERSION, 2);
    b[FEATURE_AT] = (uint8_t)head->feature;
    b[DTYPE_AT] = (uint8_t)head->dtype;
    b[CODEC_AT] = CODEC_ZSTD;
    b[TARGET_AT] = (uint8_t)head->target;
    kd_key_encode(b + KEY_AT, &head->key);
    kd_put_le(b + ROWS_AT, head->rows, 4);
    kd_put_le(b + WIDTH_AT, head->width, 4);
    kd_put_le(b + RAW_AT, raw, 8);
    kd_put_le(b + PACKED_AT, packed, 8);
    memcpy(b + IDENTITY_AT, head->identity, 8);
    memcpy(b + VIEW_HASH_AT, head->view_hash.b, 16);
    memcpy(b + SQUARE_AT, &head->square, 8);
    put_f32(b + FIDELITY_AT, head->fidelity.xx);
    put_f32(b + FIDELITY_AT + 4, head->fidelity.qq);
    put_f32(b + FIDELITY_AT + 8, head->fidelity.err2);
    put_f32(b + FIDELITY_AT + 12, head->fidelity.worst);
    kd_put_le(b + CONTENT_AT, content, 8);
}

void kd_record_content(uint8_t out[KD_RECORD_CONTENT_BYTES], const uint8_t *bytes)
{
    memcpy(out, bytes, KD_RECORD_CONTENT_BYTES);
    memset(out + VERSION_AT, 0, 2);
    memset(out + PACKED_AT, 0, 8);
    memset(out + FIDELITY_AT, 0, 16);
}

static kd_hash128 record_hash(const uint8_t *bytes, size_t packed)
{
    return kd_xxh128_2(bytes, HASH_AT, bytes + KD_RECORD_HEADER_BYTES, packed);
}

kd_status kd_record_encode(kd_record_buf *out, const kd_record_head *head, const uint8_t *payload, int zstd_level, kd_record_scratch *scratch, kd_err *err)
{
    size_t raw = kd_stored_bytes(head->dtype, head->rows, head->width), packed;
    kd_hash128 h;
    KD_ASSERT(head->rows > 0 && head->rows <= MAX_ROWS && head->width > 0 && head->width <= MAX_WIDTH);
    if (!scratch->cctx && !(scratch->cctx = ZSTD_createCCtx()))
        return kd_fail(err, KD_EFAIL, "out of memory: zstd can't create a compression context");
    ZSTD_CCtx_setParameter(scratch->cctx, ZSTD_c_compressionLevel, zstd_level);
    ZSTD_CCtx_setParameter(scratch->cctx, ZSTD_c_checksumFlag, 1);
    KD_TRY(reserve(&out->bytes, &out->cap, KD_RECORD_HEADER_BYTES + ZSTD_compressBound(raw), err));
    packed = ZSTD_compress2(scratch->cctx, out->bytes + KD_RECORD_HEADER_BYTES, out->cap - KD_RECORD_HEADER_BYTES, payload, raw);
    if (ZSTD_isError(packed))
        return kd_fail(err, KD_EFAIL, "zstd can't compress a record of %zu bytes at level %d: %s", raw, zstd_level, ZSTD_getErrorName(packed));
    head_write(out->bytes, head, raw, packed, kd_xxh64(payload, raw));
    h = record_hash(out->bytes, packed);
    memcpy(out->bytes + HASH_AT, h.b, sizeof h.b);
    out->size = KD_RECORD_HEADER_BYTES + packed;
    return KD_OK;
}

int kd_record_locate(kd_record_place *p, const uint8_t *bytes)
{
    uint64_t packed = kd_get_le(bytes + PACKED_AT, 8);
    if (memcmp(bytes, magic, sizeof magic) != 0 || bytes[FEATURE_AT] >= KD_FEATURES || packed > UINT64_MAX - KD_RECORD_HEADER_BYTES)
        return 0;
    p->feature = (kd_feature)bytes[FEATURE_AT];
    kd_key_decode(&p->key, bytes + KEY_AT);
    p->size = KD_RECORD_HEADER_BYTES + packed;
    return 1;
}

kd_status kd_record_readdress(kd_record_buf *out, const uint8_t *bytes, size_t size, kd_feature feature, const uint8_t identity[8], kd_err *err)
{
    kd_hash128 h;
    KD_ASSERT(size >= KD_RECORD_HEADER_BYTES);
    KD_TRY(reserve(&out->bytes, &out->cap, size, err));
    memcpy(out->bytes, bytes, size);
    out->bytes[FEATURE_AT] = (uint8_t)feature;
    memcpy(out->bytes + IDENTITY_AT, identity, 8);
    h = record_hash(out->bytes, size - KD_RECORD_HEADER_BYTES);
    memcpy(out->bytes + HASH_AT, h.b, sizeof h.b);
    out->size = size;
    return KD_OK;
}

/* What the bytes claim to be, before they are believed: only sizes that keep the following checks inside the buffer. */
static kd_status check_frame(const uint8_t *b, size_t size, kd_err *err)
{
    uint64_t packed;
    kd_hash128 h;
    if (size < KD_RECORD_HEADER_BYTES)
        return kd_fail(err, KD_EDAMAGED, "record of %zu bytes is shorter than its header of %d", size, KD_RECORD_HEADER_BYTES);
    if (memcmp(b, magic, sizeof magic) != 0)
        return kd_fail(err, KD_EDAMAGED, "record starts with %02x%02x%02x%02x, not with \"KDFR\"", b[0], b[1], b[2], b[3]);
    packed = kd_get_le(b + PACKED_AT, 8);
    if (packed != size - KD_RECORD_HEADER_BYTES)
        return kd_fail(err, KD_EDAMAGED, "record of %zu bytes says that its payload has %llu bytes", size, (unsigned long long)packed);
    h = record_hash(b, (size_t)packed);
    if (memcmp(h.b, b + HASH_AT, sizeof h.b) != 0)
        return kd_fail(err, KD_EDAMAGED, "record of %zu bytes fails its XXH3-128 checksum: its bytes have changed since they were written", size);
    if (kd_get_le(b + VERSION_AT, 2) != KD_FORMAT_VERSION)
        return kd_fail(err, KD_EDAMAGED, "record has format version %u; this program reads version %d", (unsigned)kd_get_le(b + VERSION_AT, 2), KD_FORMAT_VERSION);
    if (b[CODEC_AT] != CODEC_ZSTD)
        return kd_fail(err, KD_EDAMAGED, "record uses codec %u, which this program doesn't know; a newer kdcache may have written it", b[CODEC_AT]);
    return KD_OK;
}

static int is_size(double x)
{
    return isfinite(x) && x >= 0;
}

kd_status kd_record_check(const uint8_t *b, size_t size, kd_record_head *expect, kd_err *err)
{
    uint8_t key[KD_KEY_BYTES];
    char have[2 * KD_KEY_BYTES + 1], want[2 * KD_KEY_BYTES + 1];
    uint64_t rows, width;
    KD_TRY(check_frame(b, size, err));
    rows = kd_get_le(b + ROWS_AT, 4);
    width = kd_get_le(b + WIDTH_AT, 4);
    if (b[FEATURE_AT] != expect->feature)
        return kd_fail(err, KD_EDAMAGED, "record holds feature %u where %s was expected", b[FEATURE_AT], kd_feature_name(expect->feature));
    kd_key_encode(key, &expect->key);
    if (memcmp(key, b + KEY_AT, sizeof key) != 0) {
        kd_hex(have, b + KEY_AT, sizeof key);
        kd_hex(want, key, sizeof key);
        return kd_fail(err, KD_EDAMAGED, "record belongs to key %s but is stored under %s", have, want);
    }
    if (memcmp(expect->identity, b + IDENTITY_AT, 8) != 0) {
        kd_hex(have, b + IDENTITY_AT, 8);
        kd_hex(want, expect->identity, 8);
        return kd_fail(err, KD_EDAMAGED, "record was made under recipe %s... but the cache's recipe is %s...", have, want);
    }
    if (b[DTYPE_AT] != expect->dtype || b[TARGET_AT] != expect->target)
        return kd_fail(err, KD_EDAMAGED, "record has element type %u and target %u where %u and %u were expected", b[DTYPE_AT], b[TARGET_AT], expect->dtype, expect->target);
    if (rows != expect->rows || width != expect->width)
        return kd_fail(err, KD_EDAMAGED, "record has %llu x %llu values where %u x %u were expected", (unsigned long long)rows, (unsigned long long)width,
                       expect->rows, expect->width);
    if (kd_get_le(b + RAW_AT, 8) != kd_stored_bytes(expect->dtype, (size_t)rows, (size_t)width))
        return kd_fail(err, KD_EDAMAGED, "record of %llu x %llu values says that it unpacks to %llu bytes", (unsigned long long)rows,
                       (unsigned long long)width, (unsigned long long)kd_get_le(b + RAW_AT, 8));
    memcpy(expect->view_hash.b, b + VIEW_HASH_AT, 16);
    memcpy(&expect->square, b + SQUARE_AT, 8);
    expect->fidelity = (kd_fidelity){get_f32(b + FIDELITY_AT), get_f32(b + FIDELITY_AT + 4), get_f32(b + FIDELITY_AT + 8), get_f32(b + FIDELITY_AT + 12)};
    if (!is_size(expect->fidelity.xx) || !is_size(expect->fidelity.qq) || !is_size(expect->fidelity.err2) || !is_size(expect->fidelity.worst))
        return kd_fail(err, KD_EDAMAGED, "record says that its values' squares sum to %g, their errors' to %g", expect->fidelity.xx, expect->fidelity.err2);
    if (!is_size(expect->square))
        return kd_fail(err, KD_EDAMAGED, "record says that the squares of its grid sum to %g", expect->square);
    return KD_OK;
}

kd_status kd_record_unpack(const uint8_t **payload, const uint8_t *b, size_t size, kd_record_head *expect, kd_record_scratch *scratch, kd_err *err)
{
    const uint8_t *frame = b + KD_RECORD_HEADER_BYTES;
    size_t raw, got, packed;
    KD_ASSERT(expect->rows > 0 && expect->rows <= MAX_ROWS && expect->width > 0 && expect->width <= MAX_WIDTH);
    KD_TRY(kd_record_check(b, size, expect, err));
    raw = kd_stored_bytes(expect->dtype, expect->rows, expect->width);
    packed = size - KD_RECORD_HEADER_BYTES;
    if (ZSTD_getFrameContentSize(frame, packed) != raw || ZSTD_findFrameCompressedSize(frame, packed) != packed)
        return kd_fail(err, KD_EDAMAGED, "the payload of a record isn't exactly one zstd frame of %zu bytes", raw);
    if (!scratch->dctx) {
        scratch->dctx = ZSTD_createDCtx();
        if (!scratch->dctx)
            return kd_fail(err, KD_EFAIL, "out of memory: zstd can't create a decompression context");
        /* The frame's own 32 bits are for other readers: the hash of the record has proven the frame, and twice as many bits prove below what came out of it. Saves a tenth. */
        (void)ZSTD_DCtx_setParameter(scratch->dctx, ZSTD_d_forceIgnoreChecksum, ZSTD_d_ignoreChecksum);
    }
    KD_TRY(reserve(&scratch->raw, &scratch->raw_cap, raw, err));
    got = ZSTD_decompressDCtx(scratch->dctx, scratch->raw, raw, frame, packed);
    if (ZSTD_isError(got) || got != raw)
        return kd_fail(err, KD_EDAMAGED, "the zstd frame of a record can't be unpacked: %s", ZSTD_isError(got) ? ZSTD_getErrorName(got) : "it is too short");
    if (kd_xxh64(scratch->raw, raw) != kd_get_le(b + CONTENT_AT, 8))
        return kd_fail(err, KD_EDAMAGED, "the values of a record don't have the hash that its header has");
    *payload = scratch->raw;
    return KD_OK;
}

kd_status kd_record_decode(float *out, const uint8_t *b, size_t size, kd_record_head *expect, kd_record_scratch *scratch, kd_err *err)
{
    const uint8_t *payload;
    KD_TRY(kd_record_unpack(&payload, b, size, expect, scratch, err));
    return kd_codec_decode(out, payload, expect->dtype, expect->rows, expect->width, err);
}
