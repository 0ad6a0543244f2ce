/* The wire format of protocol buffers: the published examples byte for byte, messages inside messages, memory that runs out. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "common/base/protobuf.h"

static void check(kd_proto *m, const uint8_t *want, size_t n) {
    assert_false(m->failed);
    assert_int_equal(m->size, n);
    assert_memory_equal(m->bytes, want, n);
    kd_proto_clear(m);
}
#define CHECK(m, ...) check((m), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void fields_are_the_published_examples(void **state) {
    kd_proto m = {0};
    (void)state;
    kd_proto_int(&m, 1, 150); /* protobuf.dev/programming-guides/encoding: Test1 */
    CHECK(&m, 0x08, 0x96, 0x01);
    kd_proto_text(&m, 2, "testing"); /* Test2 */
    CHECK(&m, 0x12, 0x07, 't', 'e', 's', 't', 'i', 'n', 'g');
    size_t opened = kd_proto_open(&m, 3); /* Test3 */
    kd_proto_int(&m, 1, 150);
    kd_proto_close(&m, opened);
    CHECK(&m, 0x1a, 0x03, 0x08, 0x96, 0x01);
    kd_proto_int(&m, 1, -2); /* the two's complement of 64 bits */
    CHECK(&m, 0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01);
    kd_proto_free(&m);
}

static void numbers_are_little_endian(void **state) {
    kd_proto m = {0};
    (void)state;
    kd_proto_float(&m, 2, 0.5f);
    CHECK(&m, 0x15, 0, 0, 0, 0x3f);
    kd_proto_double(&m, 1, 2.0);
    CHECK(&m, 0x09, 0, 0, 0, 0, 0, 0, 0, 0x40);
    kd_proto_int(&m, 1, 0);
    CHECK(&m, 0x08, 0x00);
    kd_proto_int(&m, 20, 7); /* from number 16 on a key has two bytes */
    CHECK(&m, 0xa0, 0x01, 7);
    kd_proto_head(&m, 9, (uint64_t)5 << 32);
    CHECK(&m, 0x4a, 0x80, 0x80, 0x80, 0x80, 0x50);
    kd_proto_free(&m);
}

/* Lengths of one and of two bytes, for a message that ends in a message. */
static void messages_nest_whatever_their_length(void **state) {
    kd_proto m = {0}, inner = {0};
    uint8_t text[300], want[310] = {0x3a, 0xb2, 0x02, 0x0a, 0xaf, 0x02, 0x12, 0xac, 0x02};
    (void)state;
    memset(text, 'x', sizeof text);
    memset(want + 9, 'x', sizeof text);
    size_t graph = kd_proto_open(&m, 7), node = kd_proto_open(&m, 1);
    kd_proto_bytes(&m, 2, text, sizeof text);
    kd_proto_close(&m, node);
    kd_proto_close(&m, graph);
    check(&m, want, 9 + sizeof text);
    kd_proto_bytes(&inner, 2, text, sizeof text); /* the same from fields that were written elsewhere */
    graph = kd_proto_open(&m, 7);
    node = kd_proto_open(&m, 1);
    kd_proto_append(&m, &inner);
    kd_proto_close(&m, node);
    kd_proto_close(&m, graph);
    check(&m, want, 9 + sizeof text);
    size_t empty = kd_proto_open(&m, 5);
    kd_proto_close(&m, empty);
    CHECK(&m, 0x2a, 0x00);
    kd_proto_free(&m);
    kd_proto_free(&inner);
}

static void memory_that_runs_out_is_remembered(void **state) {
    kd_proto m = {0}, outer = {0};
    (void)state;
    kd_mem_fail_after(1);
    size_t opened = kd_proto_open(&m, 1);
    kd_mem_fail_after(0);
    kd_proto_int(&m, 1, 1);
    kd_proto_close(&m, opened);
    assert_true(m.failed);
    kd_proto_append(&outer, &m);
    assert_true(outer.failed);
    kd_proto_free(&m);
    kd_proto_free(&outer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_the_published_examples),
        cmocka_unit_test(numbers_are_little_endian),
        cmocka_unit_test(messages_nest_whatever_their_length),
        cmocka_unit_test(memory_that_runs_out_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
