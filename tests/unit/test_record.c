#include "tests/cache_fixture.h"

#include "cache/entry.h"
#include "cache/stats.h"

static const uint8_t identity[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static kd_record_head make_head(kd_feature f, uint32_t rows, uint32_t width)
{
    kd_record_head h = {.feature = f, .key = {fx_image_id(3), 0x01020304, 0x0506}, .rows = rows, .width = width, .dtype = KD_F16, .view_hash = fx_image_id(4)};
    memcpy(h.identity, identity, 8);
    return h;
}

static void encode(kd_record_buf *out, const kd_record_head *h, kd_record_scratch *s)
{
    size_t n = (size_t)h->rows * h->width;
    uint8_t *planes = kd_malloc(2 * n);
    for (size_t i = 0; i < n; i++) {
        uint16_t v = kd_f32_to_f16(fx_value(1, 2, h->feature, i));
        planes[i] = (uint8_t)(v >> 8);
        planes[n + i] = (uint8_t)v;
    }
    must(kd_record_encode(out, h, planes, 1, s, &fx_err));
    kd_free(planes);
}

/* Makes a changed header believable again. */
static void rehash(kd_record_buf *b)
{
    kd_hash128 h = kd_xxh128_2(b->bytes, 112, b->bytes + 128, b->size - 128);
    memcpy(b->bytes + 112, h.b, 16);
}

static void keys_sort_by_image_view_layer(void **state)
{
    kd_key k = {fx_image_id(1), 258, 3}, back;
    uint8_t a[KD_KEY_BYTES], b[KD_KEY_BYTES];
    (void)state;
    kd_key_encode(a, &k);
    kd_key_decode(&back, a);
    assert_memory_equal(back.image.b, k.image.b, 16);
    assert_int_equal(back.view, 258);
    assert_int_equal(back.layer, 3);
    k.layer = 4;
    kd_key_encode(b, &k);
    assert_true(memcmp(a, b, sizeof a) < 0);
    k.view = 259;
    k.layer = 1;
    kd_key_encode(b, &k);
    assert_true(memcmp(a, b, sizeof a) < 0);
    k.view = 65536;
    kd_key_encode(a, &k);
    assert_true(memcmp(a, b, sizeof a) > 0);
}

static void values_survive_encoding(void **state)
{
    static const uint32_t shape[][2] = {{1, 1}, {1, 7}, {1, 384}, {3, 33}, {256, 384}, {257, 17}};
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    (void)state;
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        kd_record_head h = make_head(KD_FEATURE_PATCH, shape[i][0], shape[i][1]), got;
        size_t n = (size_t)h.rows * h.width;
        float *x = kd_malloc(n * sizeof *x);
        encode(&b, &h, &s);
        got = h;
        memset(got.view_hash.b, 0, 16);
        must(kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
        assert_memory_equal(got.view_hash.b, h.view_hash.b, 16);
        for (size_t k = 0; k < n; k++)
            assert_true(x[k] == fx_value(1, 2, KD_FEATURE_PATCH, k));
        kd_free(x);
    }
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

static void all_f16_values_survive(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_PATCH, 256, 256), got = h;
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    static uint8_t planes[2 * 65536];
    static float x[65536];
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        planes[i] = (uint8_t)(i >> 8);
        planes[65536 + i] = (uint8_t)i;
    }
    must(kd_record_encode(&b, &h, planes, 1, &s, &fx_err));
    must(kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
    assert_int_equal(got.target, KD_TARGET_FULL);
    for (unsigned i = 0; i < 65536; i++) {
        float want = kd_f16_to_f32((uint16_t)i);
        assert_true(x[i] == want || (x[i] != x[i] && want != want));
    }
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

/* Blocks of 1 to 1024, below and above what 16-bit sums hold; the extreme bytes. */
static void i8_is_the_hadamard_sum_times_one_factor(void **state)
{
    static const int width[] = {1, 7, 24, 48, 96, 192, 384, 512, 768, 1024, 1536};
    static int8_t q[3 * 1536];
    static uint8_t payload[3 * (4 + 1536)];
    static float x[3 * 1536];
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    (void)state;
    for (size_t i = 0; i < sizeof width / sizeof width[0]; i++) {
        kd_record_head h = make_head(KD_FEATURE_PATCH, 3, (uint32_t)width[i]);
        int n = 3 * width[i], block = width[i] & -width[i];
        h.dtype = KD_I8;
        for (int k = 0; k < n; k++)
            q[k] = k < width[i] ? 127 : k < 2 * width[i] ? -127 : (int8_t)fx_byte(1, 2, KD_FEATURE_PATCH, 1, (size_t)k);
        for (size_t r = 0; r < 3; r++) {
            float scale = fx_scale(r);
            memcpy(payload + 4 * r, &scale, 4);
        }
        memcpy(payload + 12, q, (size_t)n);
        must(kd_record_encode(&b, &h, payload, 1, &s, &fx_err));
        must(kd_record_decode(x, b.bytes, b.size, &h, &s, &fx_err));
        for (int k = 0; k < n; k++) {
            long sum = 0;
            int first = k - k % width[i] % block;
            for (int j = 0; j < block; j++)
                sum += __builtin_popcount((unsigned)((k - first) & j)) & 1 ? -q[first + j] : q[first + j];
            assert_true(x[k] == (float)sum * (fx_scale((size_t)(k / width[i])) * (float)(1 / sqrt((double)block))));
        }
    }
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

static void what_stands_beside_the_values_survives(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_PATCH2, 4, 48), got;
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    float x[4 * 48];
    (void)state;
    h.target = KD_TARGET_ADJOINT;
    h.square = 12345.6789;
    h.fidelity = (kd_fidelity){.xx = 100, .qq = 98, .err2 = 0.25, .worst = 0.125};
    encode(&b, &h, &s);
    got = h;
    got.square = 0;
    got.fidelity = (kd_fidelity){0};
    must(kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
    assert_true(got.square == h.square && got.fidelity.xx == 100 && got.fidelity.qq == 98 && got.fidelity.err2 == 0.25 && got.fidelity.worst == 0.125);
    assert_true(fabs(kd_fidelity_relative_l2(&got.fidelity) - 0.05) < 1e-12);
    assert_true(fabs(kd_fidelity_cosine(&got.fidelity) - 197.75 / 2 / sqrt(9800)) < 1e-12);
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

/* What the digest of a cache is made of: two zstd levels give the same. */
static void the_content_of_a_record_does_not_know_its_compression(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_PATCH, 64, 48);
    kd_record_scratch s = {0};
    kd_record_buf a = {0}, b = {0};
    uint8_t x[KD_RECORD_CONTENT_BYTES], y[KD_RECORD_CONTENT_BYTES];
    static uint8_t planes[2 * 64 * 48];
    (void)state;
    for (size_t i = 0; i < sizeof planes; i++)
        planes[i] = (uint8_t)(i % 251 % 13);
    must(kd_record_encode(&a, &h, planes, 1, &s, &fx_err));
    h.fidelity.xx = 1;
    must(kd_record_encode(&b, &h, planes, 19, &s, &fx_err));
    assert_int_not_equal(a.size, b.size);
    kd_record_content(x, a.bytes);
    kd_record_content(y, b.bytes);
    assert_memory_equal(x, y, sizeof x);
    planes[77] ^= 1;
    must(kd_record_encode(&b, &h, planes, 19, &s, &fx_err));
    kd_record_content(y, b.bytes);
    assert_memory_not_equal(x, y, sizeof x);
    kd_record_buf_free(&a);
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

static void every_flipped_bit_is_noticed(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_CLS, 1, 48);
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    float x[48];
    (void)state;
    encode(&b, &h, &s);
    for (size_t bit = 0; bit < 8 * b.size; bit++) {
        kd_record_head got = h;
        b.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        must_be(KD_EDAMAGED, kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
        b.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t n = 0; n < b.size; n++) {
        kd_record_head got = h;
        must_be(KD_EDAMAGED, kd_record_decode(x, b.bytes, n, &got, &s, &fx_err));
    }
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

static void a_record_is_bound_to_its_place(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_CLS, 1, 48), got;
    kd_record_scratch s = {0};
    kd_record_buf b = {0};
    (void)state;
    encode(&b, &h, &s);
#define refused(change, text)                                                 \
    do {                                                                      \
        got = h;                                                              \
        change;                                                               \
        must_be(KD_EDAMAGED, kd_record_check(b.bytes, b.size, &got, &fx_err)); \
        must_say(text);                                                       \
    } while (0)
    refused(got.key.view++, "belongs to key");
    refused(got.key.layer++, "belongs to key");
    refused(got.key.image.b[15] ^= 1, "belongs to key");
    refused(got.identity[0] ^= 1, "recipe");
    refused(got.feature = KD_FEATURE_PATCH, "feature 0 where patch");
    refused(got.feature = KD_FEATURE_MEAN, "feature 0 where mean");
    refused(got.rows = 2, "1 x 48 values where 2 x 48");
    refused(got.width = 47, "1 x 48 values where 1 x 47");
    refused(got.dtype = KD_BF16, "element type 1 and target 0 where 2 and 0");
    refused(got.target = KD_TARGET_POOL, "element type 1 and target 0 where 1 and 1");
    got = h;
    must(kd_record_check(b.bytes, b.size, &got, &fx_err));
    kd_record_buf_free(&b);
    kd_record_scratch_free(&s);
}

/* Headers that were made to look right: their checksum holds, what they say doesn't. */
static void crafted_headers_are_refused_before_unpacking(void **state)
{
    kd_record_head h = make_head(KD_FEATURE_CLS, 1, 48), got;
    kd_record_scratch s = {0};
    kd_record_buf b = {0}, other = {0};
    static const size_t at[] = {4, 7, 8, 9, 40, 111};
    float x[48];
    (void)state;
    encode(&b, &h, &s);
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        b.bytes[at[i]] ^= 2;
        rehash(&b);
        got = h;
        must_be(KD_EDAMAGED, kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
        b.bytes[at[i]] ^= 2;
    }
    b.bytes[87] ^= 0xf0; /* the square of 0 becomes a negative number */
    rehash(&b);
    got = h;
    must_be(KD_EDAMAGED, kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
    b.bytes[87] ^= 0xf0;
    for (int i = 0; i < 4; i++) { /* a fidelity of NaN would read as a perfect one */
        memset(b.bytes + 88 + 4 * i, 0xff, 4);
        rehash(&b);
        got = h;
        must_be(KD_EDAMAGED, kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
        memset(b.bytes + 88 + 4 * i, 0, 4);
    }
    rehash(&b);
    got = h;
    must(kd_record_decode(x, b.bytes, b.size, &got, &s, &fx_err));
    /* A frame that unpacks to more than the header says must not be unpacked. */
    h = make_head(KD_FEATURE_PATCH, 500, 48);
    encode(&other, &h, &s);
    memcpy(other.bytes, b.bytes, 128);
    for (int i = 0; i < 8; i++)
        other.bytes[48 + i] = (uint8_t)((other.size - 128) >> (8 * i));
    rehash(&other);
    got = make_head(KD_FEATURE_CLS, 1, 48);
    must_be(KD_EDAMAGED, kd_record_decode(x, other.bytes, other.size, &got, &s, &fx_err));
    must_say("exactly one zstd frame");
    /* Neither may bytes follow the frame. */
    got = make_head(KD_FEATURE_CLS, 1, 48);
    other.size = b.size + 4;
    memcpy(other.bytes, b.bytes, b.size);
    memset(other.bytes + b.size, 0, 4);
    other.bytes[48] = (uint8_t)(other.size - 128);
    rehash(&other);
    must_be(KD_EDAMAGED, kd_record_decode(x, other.bytes, other.size, &got, &s, &fx_err));
    must_say("exactly one zstd frame");
    kd_record_buf_free(&b);
    kd_record_buf_free(&other);
    kd_record_scratch_free(&s);
}

static size_t unhex(uint8_t *out, const char *text)
{
    size_t n = strlen(text) / 2;
    assert_int_equal(kd_unhex(out, text, n), 0);
    return n;
}

/* The worked examples of cache/FORMAT.md. */
static void the_examples_of_the_specification_hold(void **state)
{
    static const char record[] = "4b444652010000010100000102030405" "060708090a0b0c0d0e0f000000010001" "01000000040000000800000000000000" "1500000000000000a0a1a2a3a4a5a6a7" "101112131415161718191a1b1c1d1e1f" "000000000000000004c07f4f04c07f4f" "0000000000000000d40515af9c90707d" "6131f76a8c9ba5c84fb6cc101287bf75" "28b52ffd24084100003cc0387b000000" "ffca7b969a";
    static const char registers[] = "4b444652010002010100000102030405" "060708090a0b0c0d0e0f000000010004" "02000000020000000800000000000000" "1500000000000000a0a1a2a3a4a5a6a7" "101112131415161718191a1b1c1d1e1f" "000000000000000004c07f4f04c07f4f" "0000000000000000d40515af9c90707d" "554306921de7088b78f6eaf788a8560c" "28b52ffd24084100003cc0387b000000" "ffca7b969a";
    static const char second[] = "4b444652010004050102000102030405" "060708090a0b0c0d0e0f000000010001" "02000000040000001000000000000000" "1d00000000000000a0a1a2a3a4a5a6a7" "101112131415161718191a1b1c1d1e1f" "000000000040454000207c4500187c45" "0000803e0000003cc9ab36f79348ae1c" "ef3b2ef525c233c1898eb746801162b8" "28b52ffd24108100000000003f000080" "3e7f0100fe0303037f47264f7b";
    static const char stats[] = "34a41a30316d1e33785d3612009ffa9d" "0020000000000000020000000000003f" "0000803f000000c0";
    static const char view[] = "7971100d10c746fd39bdff0040cdf53b" "a0a1a2a3a4a5a6a70000000000000000" "101112131415161718191a1b1c1d1e1f" "010000000a000000140000002c010000"
                               "c8000000e0000000e000000000000000" "00000000e0000000e000000002010000" "010002030000a03f0000403f0000803f" "000080bd000100000000000000000000"
                               "00000000000000000000000000000000" "00000000000000000000000000000000" "0000000000000000000000000000803f";
    static const char image[] = "b9a469d7fc4b991435d75f3b5b1edb71" "a0a1a2a3a4a5a6a77011010000000000" "80020000e0010000080000000a000100" "636174732f612e6a7067000000000800" "0000";
    static const float want[4] = {1, -2, 0.5f, 65504}, rotated[8] = {31.5f, 32, 32.5f, 31, 17, -15.5f, -15.5f, 15.5f};
    kd_record_head h = {.feature = KD_FEATURE_CLS, .rows = 1, .width = 4, .dtype = KD_F16};
    kd_record_scratch s = {0};
    kd_view_entry v;
    kd_image_entry e;
    kd_bytes payload;
    uint8_t bytes[256] = {0}, key[KD_VIEW_KEY_BYTES];
    kd_image_tail tail;
    size_t n;
    float x[8];
    (void)state;
    h.key.view = h.key.layer = 1;
    for (int i = 0; i < 16; i++)
        h.key.image.b[i] = (uint8_t)i;
    for (int i = 0; i < 8; i++)
        h.identity[i] = (uint8_t)(0xa0 + i);
    n = unhex(bytes, record);
    must(kd_record_decode(x, bytes, n, &h, &s, &fx_err));
    assert_memory_equal(x, want, sizeof want);
    assert_int_equal(h.view_hash.b[15], 0x1f);
    h.feature = KD_FEATURE_REGISTERS;
    h.rows = h.width = 2;
    h.key.layer = 4;
    n = unhex(bytes, registers);
    must(kd_record_decode(x, bytes, n, &h, &s, &fx_err));
    assert_memory_equal(x, want, sizeof want);
    h.feature = KD_FEATURE_PATCH2;
    h.width = 4;
    h.key.layer = 1;
    h.dtype = KD_I8;
    h.target = KD_TARGET_ADJOINT;
    n = unhex(bytes, second);
    must(kd_record_decode(x, bytes, n, &h, &s, &fx_err));
    assert_memory_equal(x, rotated, sizeof rotated);
    assert_true(h.square == 42.5 && h.fidelity.worst == 0.0078125);
    n = unhex(bytes, stats);
    must(kd_meta_decode(&payload, "stats/registers/4", (kd_bytes){bytes, n}, "example", &fx_err));
    assert_int_equal(payload.size, 24);
    assert_int_equal(kd_get_le(payload.data, 8), KD_STATS_VIEWS);
    kd_view_key(key, &h.key.image, 1);
    memset(bytes, 0, sizeof bytes);
    unhex(bytes, view);
    must(kd_view_value_decode(&v, (kd_bytes){key, sizeof key}, (kd_bytes){bytes, 240}, h.identity, "example", &fx_err));
    assert_int_equal(v.plan.crop_w, 300);
    assert_int_equal(v.plan.jitter_order[0], KD_JITTER_CONTRAST);
    assert_true(v.plan.jitter_factor[KD_JITTER_HUE] == -0.0625f && v.plan.hflip == 1);
    n = unhex(bytes, image);
    must(kd_image_value_decode(&e, &tail, (kd_bytes){key, 16}, (kd_bytes){bytes, n}, h.identity, "example", &fx_err));
    assert_int_equal(tail.rel_size, 10);
    assert_memory_equal(e.rel, "cats/a.jpg", 10);
    assert_int_equal(e.file_size, 70000);
    assert_int_equal(e.views, 8);
    assert_int_equal(e.runs, 1);
    assert_true(kd_image_run(&tail, 0).first == 0 && kd_image_run(&tail, 0).count == 8);
    kd_record_scratch_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_sort_by_image_view_layer), cmocka_unit_test(values_survive_encoding), cmocka_unit_test(all_f16_values_survive), cmocka_unit_test(i8_is_the_hadamard_sum_times_one_factor),
        cmocka_unit_test(what_stands_beside_the_values_survives), cmocka_unit_test(the_content_of_a_record_does_not_know_its_compression),
        cmocka_unit_test(every_flipped_bit_is_noticed), cmocka_unit_test(a_record_is_bound_to_its_place), cmocka_unit_test(crafted_headers_are_refused_before_unpacking),
        cmocka_unit_test(the_examples_of_the_specification_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
