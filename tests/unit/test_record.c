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
    for (unsigned i = 0; i < 65536; i++) {
        float want = kd_f16_to_f32((uint16_t)i);
        assert_true(x[i] == want || (x[i] != x[i] && want != want));
    }
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
    static const size_t at[] = {4, 7, 8, 9, 40, 80, 111};
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
    static const char record[] = "4b444652000000010100000102030405" "060708090a0b0c0d0e0f000000010001" "01000000040000000800000000000000" "1500000000000000a0a1a2a3a4a5a6a7"
                                 "101112131415161718191a1b1c1d1e1f" "00000000000000000000000000000000" "00000000000000000000000000000000" "8b6d5c96bc4c9c8ada0c67412b29b1d9"
                                 "28b52ffd24084100003cc0387b000000" "ffca7b969a";
    static const char registers[] = "4b444652000002010100000102030405" "060708090a0b0c0d0e0f000000010004" "02000000020000000800000000000000" "1500000000000000a0a1a2a3a4a5a6a7"
                                    "101112131415161718191a1b1c1d1e1f" "00000000000000000000000000000000" "00000000000000000000000000000000" "8f5b5615ef88af47475587dd9c5f28c2"
                                    "28b52ffd24084100003cc0387b000000" "ffca7b969a";
    static const char stats[] = "34a41a30316d1e33785d3612009ffa9d" "0020000000000000020000000000003f" "0000803f000000c0";
    static const char view[] = "7971100d10c746fd39bdff0040cdf53b" "a0a1a2a3a4a5a6a70000000000000000" "101112131415161718191a1b1c1d1e1f" "010000000a000000140000002c010000"
                               "c8000000e0000000e000000000000000" "00000000e0000000e000000002010000" "010002030000a03f0000403f0000803f" "000080bd000100000000000000000000"
                               "00000000000000000000000000000000" "00000000000000000000000000000000" "0000000000000000000000000000803f";
    static const char image[] = "1ef880a397b46e8b6964ab3f7f324d24" "a0a1a2a3a4a5a6a77011010000000000" "80020000e0010000080000000a000000" "636174732f612e6a7067";
    static const float want[4] = {1, -2, 0.5f, 65504};
    kd_record_head h = {.feature = KD_FEATURE_CLS, .rows = 1, .width = 4, .dtype = KD_F16};
    kd_record_scratch s = {0};
    kd_view_entry v;
    kd_image_entry e;
    kd_bytes payload;
    uint8_t bytes[256] = {0}, key[KD_VIEW_KEY_BYTES];
    size_t n, rel;
    float x[4];
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
    must(kd_image_value_decode(&e, &rel, (kd_bytes){key, 16}, (kd_bytes){bytes, n}, h.identity, "example", &fx_err));
    assert_int_equal(rel, 10);
    assert_memory_equal(e.rel, "cats/a.jpg", 10);
    assert_int_equal(e.file_size, 70000);
    assert_int_equal(e.views, 8);
    kd_record_scratch_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_sort_by_image_view_layer), cmocka_unit_test(values_survive_encoding), cmocka_unit_test(all_f16_values_survive),
        cmocka_unit_test(every_flipped_bit_is_noticed), cmocka_unit_test(a_record_is_bound_to_its_place), cmocka_unit_test(crafted_headers_are_refused_before_unpacking),
        cmocka_unit_test(the_examples_of_the_specification_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
