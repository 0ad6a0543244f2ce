/* Hashes equal the published and independently computed answers; ids depend on this. */
#include "tests/unit/unit.h"

#include "common/base/hash.h"

static void assert_hex(const void *bytes, size_t n, const char *want)
{
    char text[129];
    kd_hex(text, bytes, n);
    assert_string_equal(text, want);
}

/* Answers from the xxhash module of Python (library 0.8.1) over the same bytes. */
static void xxh3_known_answers(void **state)
{
    kd_hash128 h = kd_xxh128("", 0);
    uint8_t ramp[1000];
    (void)state;
    assert_hex(h.b, 16, "99aa06d3014798d86001c324468d497f");
    h = kd_xxh128("abc", 3);
    assert_hex(h.b, 16, "06b05ab6733a618578af5f94892f3950");
    for (int i = 0; i < 1000; i++)
        ramp[i] = (uint8_t)i;
    h = kd_xxh128(ramp, 1000);
    assert_hex(h.b, 16, "076f7e02b7120d2ad33dd80b46f60e50");
    assert_int_equal(kd_xxh64("", 0), 0x2d06800538d394c2ULL);
    assert_int_equal(kd_xxh64("abc", 3), 0x78af5f94892f3950ULL);
    assert_int_equal(kd_xxh64(ramp, 1000), 0xd33dd80b46f60e50ULL);
}

static void two_pieces_hash_like_one(void **state)
{
    uint8_t bytes[3000];
    kd_hash128 whole;
    static const size_t cuts[] = {0, 1, 16, 64, 240, 241, 1024, 2999, 3000};
    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 37 >> 3);
    whole = kd_xxh128(bytes, sizeof bytes);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        kd_hash128 two = kd_xxh128_2(bytes, cuts[i], bytes + cuts[i], sizeof bytes - cuts[i]);
        assert_memory_equal(two.b, whole.b, 16);
    }
}

static void low64_is_the_end_of_the_hex(void **state)
{
    kd_hash128 h = kd_xxh128("abc", 3);
    (void)state;
    assert_int_equal(kd_hash128_low64(&h), 0x78af5f94892f3950ULL);
}

/* FIPS 180-2, appendix B. */
static void sha256_known_answers(void **state)
{
    kd_sha256 h = kd_sha256_of("abc", 3);
    kd_sha256_ctx *c;
    (void)state;
    assert_hex(h.b, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    h = kd_sha256_of("", 0);
    assert_hex(h.b, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    c = kd_sha256_begin();
    assert_non_null(c);
    for (int i = 0; i < 1000; i++) {
        char a[1000];
        memset(a, 'a', sizeof a);
        kd_sha256_update(c, a, sizeof a);
    }
    h = kd_sha256_final(c);
    assert_hex(h.b, 32, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void sha256_of_a_file(void **state)
{
    char *folder = unit_folder(), path[4200];
    kd_sha256 h, want;
    kd_err err;
    size_t n = (3u << 20) + 17;
    char *bytes = malloc(n);
    (void)state;
    memset(bytes, 'q', n);
    snprintf(path, sizeof path, "%s/f", folder);
    unit_write(path, bytes, n);
    assert_ok(kd_sha256_file(path, &h, &err));
    want = kd_sha256_of(bytes, n);
    assert_memory_equal(h.b, want.b, 32);
    assert_int_equal(kd_sha256_file(folder, &h, &err), KD_EFAIL);
    assert_contains(err.msg, "not a regular file");
    free(bytes);
    free(folder);
}

static void hex_is_strict(void **state)
{
    uint8_t b[4];
    (void)state;
    assert_int_equal(kd_unhex(b, "00fF7a9C", 4), 0);
    assert_memory_equal(b, "\x00\xff\x7a\x9c", 4);
    assert_int_not_equal(kd_unhex(b, "00ff7a9", 4), 0);
    assert_int_not_equal(kd_unhex(b, "00ff7a9c1", 4), 0);
    assert_int_not_equal(kd_unhex(b, "00ff7a9g", 4), 0);
    assert_int_not_equal(kd_unhex(b, "", 4), 0);
    assert_int_not_equal(kd_unhex(b, " 0ff7a9c", 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xxh3_known_answers),   cmocka_unit_test(two_pieces_hash_like_one), cmocka_unit_test(low64_is_the_end_of_the_hex),
        cmocka_unit_test(sha256_known_answers), cmocka_unit_test(sha256_of_a_file),         cmocka_unit_test(hex_is_strict),
    };
    return cmocka_run_group_tests_name("hash", tests, NULL, NULL);
}
