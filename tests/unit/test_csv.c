/* CSV: fields as RFC 4180 means them, lines that are counted right, text that isn't CSV refused by line, anything at all survived, and what is written reads back. */
#include "tests/unit/unit.h"

#include "common/base/csv.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

static kd_err err;

/* "[a][b] 1\n" for each record: fields and line; NULL: refused, with the sentence in err. In a buffer of exactly the text's size, so that a sanitizer sees a read behind it. */
static char *records(const char *text, size_t size) {
    static char out[4096];
    char *copy = kd_malloc(size + 1);
    memcpy(copy, text, size);
    copy[size] = '\0';
    kd_csv c = kd_csv_over(copy, size, "x.csv");
    kd_status status;
    size_t n = 0;
    out[0] = '\0';
    while ((status = kd_csv_next(&c, &err)) == KD_OK) {
        for (size_t i = 0; i < c.fields; i++)
            n += (size_t)snprintf(out + n, sizeof out - n, "[%s]", c.field[i]);
        n += (size_t)snprintf(out + n, sizeof out - n, " %zu\n", c.line);
    }
    kd_free(copy);
    return status == KD_DONE ? out : NULL;
}

#define assert_records(text, want) assert_string_equal(records(text, sizeof(text) - 1), want)
#define assert_refused(text, part)                             \
    do {                                                       \
        assert_null(records(text, sizeof(text) - 1));          \
        assert_int_equal(err.status, KD_EUSAGE);               \
        assert_contains(err.msg, "x.csv, line ");              \
        assert_contains(err.msg, part);                        \
    } while (0)

static void fields_are_those_of_rfc_4180(void **state) {
    (void)state;
    assert_records("a,b\nc,d\n", "[a][b] 1\n[c][d] 2\n");
    assert_records("a,b\r\nc,d", "[a][b] 1\n[c][d] 2\n");
    assert_records("\"a,1\",\"say \"\"hi\"\"\"\n", "[a,1][say \"hi\"] 1\n");
    assert_records("\"two\nlines\",b\nc,d\n", "[two\nlines][b] 1\n[c][d] 3\n");
    assert_records(" a ,\tb\n", "[ a ][\tb] 1\n");
    assert_records("a,,\n,\n", "[a][][] 1\n[][] 2\n");
    assert_records("\"\",\"\"\n", "[][] 1\n");
    assert_records("a\rb,c\n", "[a\rb][c] 1\n");
    assert_records("caf\xe9.jpg,x\n", "[caf\xe9.jpg][x] 1\n");
    assert_records("\xef\xbb\xbf" "a,b\n", "[a][b] 1\n");
}

static void empty_lines_are_no_records(void **state) {
    (void)state;
    assert_records("", "");
    assert_records("\n\r\n\n", "");
    assert_records("\na\n\n\r\nb\n", "[a] 2\n[b] 5\n");
}

static void what_is_no_csv_is_refused_by_line(void **state) {
    (void)state;
    assert_refused("a,b\nc,d\"e\n", "line 2");
    assert_refused("a,\"b\"c\n", "text follows the closing quote");
    assert_refused("a,b\n\nc,\"open\n\n", "line 3: a field begins with a double quote that is never closed");
    assert_refused("\"", "never closed");
    assert_refused("\"a\"\"", "never closed");
    assert_refused("a\0b,c\n", "zero byte");
    assert_refused("x,y\n\"a\0b\",c\n", "line 2: has a zero byte");
    char wide[KD_CSV_FIELDS + 1];
    memset(wide, ',', sizeof wide);
    assert_null(records(wide, sizeof wide));
    assert_contains(err.msg, "more than 1024 fields");
}

/* Of 200,000 short texts of the bytes that matter each is read or refused; a line number is never beyond the text's lines. */
static void any_bytes_are_read_or_refused(void **state) {
    (void)state;
    static const char alphabet[] = {'"', '"', ',', '\n', '\r', 'a', '\0', (char)0xef};
    size_t refused = 0;
    for (uint32_t n = 0; n < 200000; n++) {
        kd_rng r = kd_rng_make(1, n, 0, KD_RNG_TEST);
        char text[24], *end;
        size_t size = kd_rng_u32(&r) % sizeof text, lines = 1;
        for (size_t i = 0; i < size; i++) {
            text[i] = alphabet[kd_rng_u32(&r) % sizeof alphabet];
            lines += text[i] == '\n';
        }
        if (records(text, size) != NULL)
            continue;
        refused++;
        assert_int_equal(err.status, KD_EUSAGE);
        assert_contains(err.msg, "x.csv, line ");
        assert_in_range(strtoul(strstr(err.msg, "line ") + 5, &end, 10), 1, lines);
    }
    assert_in_range(refused, 100000, 190000);
}

static void what_is_written_reads_back(void **state) {
    (void)state;
    kd_text t = {0};
    kd_csv_put(&t, "a, \"b\".jpg");
    kd_csv_put(&t, "plain");
    kd_csv_put(&t, "");
    kd_csv_printf(&t, "%.3f", 0.5);
    kd_csv_end(&t);
    kd_csv_put(&t, "");
    kd_csv_end(&t);
    kd_csv_put(&t, "two\nlines");
    kd_csv_end(&t);
    assert_string_equal(t.at, "\"a, \"\"b\"\".jpg\",plain,\"\",0.500\n\"\"\n\"two\nlines\"\n");
    assert_string_equal(records(t.at, t.size), "[a, \"b\".jpg][plain][][0.500] 1\n[] 2\n[two\nlines] 3\n");
    kd_text_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_those_of_rfc_4180), cmocka_unit_test(empty_lines_are_no_records),  cmocka_unit_test(what_is_no_csv_is_refused_by_line),
        cmocka_unit_test(any_bytes_are_read_or_refused), cmocka_unit_test(what_is_written_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
