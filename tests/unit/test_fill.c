/* The list of views that a damaged cache lacks: what lines may look like, what it says, and which files are chosen for it. */
#include "tests/unit/unit.h"

#include "common/base/log.h"
#include "common/base/mem.h"
#include "precompute/fill.h"

static kd_err err;

#define ID_A "0123456789abcdef0123456789abcdef"
#define ID_B "fedcba9876543210fedcba9876543210"

static const char *list_path(void) {
    static char path[4300];
    static char *folder;
    if (folder == NULL)
        folder = unit_folder();
    snprintf(path, sizeof path, "%s/missing.txt", folder);
    return path;
}

static kd_status read_text(kd_fill *f, const char *text) {
    unit_write(list_path(), text, strlen(text));
    return kd_fill_read(f, list_path(), &err);
}

static kd_hash128 id_of(const char *hex) {
    kd_hash128 h;
    assert_int_equal(kd_unhex(h.b, hex, sizeof h.b), 0);
    return h;
}

static void a_list_says_which_views_are_missing(void **state) {
    (void)state;
    kd_fill f;
    kd_hash128 a = id_of(ID_A), b = id_of(ID_B), other = id_of("00000000000000000000000000000001");
    assert_ok(read_text(&f, "# from kd-cache repair\n\n" ID_B " 7 dog/with space.jpg\n" ID_A " 0-2 a.jpg\r\n  # more\n" ID_A "\t5   a.jpg\n" ID_A " 2-3 xxh128:" ID_B));
    assert_int_equal(f.count, 4);
    assert_int_equal(f.views, 8);
    assert_int_equal(kd_fill_view_count(&f), 6); /* 0, 1, 2, 3, 5 of a, 7 of b */
    for (uint32_t v = 0; v < 9; v++) {
        assert_int_equal(kd_fill_has(&f, &a, v), v <= 3 || v == 5);
        assert_int_equal(kd_fill_has(&f, &b, v), v == 7);
        assert_int_equal(kd_fill_has(&f, &other, v), 0);
    }
    assert_string_equal(f.row[0].path, "a.jpg");
    assert_string_equal(f.row[1].path, "xxh128:" ID_B);
    assert_string_equal(f.row[3].path, "dog/with space.jpg");
    kd_fill_free(&f);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"cat.jpg 0 x\n", "line 1"},
        {"# c\n" ID_A "0 1 a.jpg\n", "line 2"}, /* a digit too many */
        {"0123456789abcdef0123456789abcde 1 a.jpg\n", "line 1"},
        {ID_A "\n", "\"\" isn't a view"},
        {ID_A " x a.jpg\n", "\"x\" isn't a view"},
        {ID_A " -1 a.jpg\n", "\"-1\" isn't a view"},
        {ID_A " 3-1 a.jpg\n", "\"3-1\" isn't a view"},
        {ID_A " 1-2-3 a.jpg\n", "\"1-2-3\" isn't a view"},
        {ID_A " 1- a.jpg\n", "\"1-\" isn't a view"},
        {ID_A " 65536 a.jpg\n", "below 65536"},
        {ID_A " 1\n", "without the image's path"},
        {ID_A " 1 \n", "without the image's path"},
        {"", "lists no views"},
        {"# nothing\n\n", "lists no views"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kd_fill f;
        if (read_text(&f, bad[i].text) != KD_EUSAGE)
            fail_msg("\"%s\" was accepted", bad[i].text);
        assert_contains(err.msg, bad[i].says);
        assert_contains(err.msg, "missing.txt");
    }
    kd_fill f;
    unit_write(list_path(), ID_A " 1 a\0b\n", 38);
    assert_int_equal(kd_fill_read(&f, list_path(), &err), KD_EUSAGE);
    assert_int_equal(kd_fill_read(&f, "/no/such/list", &err), KD_EFAIL);
}

/* ---- files ---- */

static void put(const char *folder, const char *name, const char *text) {
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unit_write(path, text, strlen(text));
}

/* One at its path, one at its hidden path, one moved, one changed and nowhere else. */
static void files_are_found_by_path_and_by_content(void **state) {
    (void)state;
    char *folder = unit_folder(), text[1000], hidden[KD_HIDDEN_PATH], hex[4][33];
    static const char *const content[] = {"picture a", "picture b", "picture c", "picture d"};
    size_t n = 0;
    kd_log_set_level(KD_LOG_ERROR);
    for (int i = 0; i < 4; i++) {
        kd_hash128 id = kd_image_id((const uint8_t *)content[i], strlen(content[i]));
        kd_hex(hex[i], id.b, sizeof id.b);
    }
    put(folder, "a.jpg", content[0]);
    put(folder, "b.jpg", content[1]);
    put(folder, "c-moved.jpg", content[2]);
    put(folder, "d.jpg", "edited since");
    put(folder, "unconcerned.jpg", "picture e");
    kd_hidden_path(hidden, "b.jpg");
    n = (size_t)snprintf(text, sizeof text, "%s 0 a.jpg\n%s 1 a.jpg\n%s 0 %s\n%s 0-1 c.jpg\n%s 3 d.jpg\n", hex[0], hex[0], hex[1], hidden, hex[2], hex[3]);
    assert_true(n < sizeof text);
    kd_fill f;
    kd_dataset data, todo;
    assert_ok(read_text(&f, text));
    assert_ok(kd_dataset_open(&data, folder, KD_LIST_LINES, &err));
    assert_ok(kd_fill_select(&f, &todo, &data, 1, &err));
    assert_int_equal(todo.count, 3);
    assert_string_equal(todo.file[0].rel, "a.jpg");
    assert_string_equal(todo.file[1].rel, "b.jpg");
    assert_string_equal(todo.file[2].rel, "c-moved.jpg");
    for (size_t i = 0; i < f.count; i++)
        assert_int_equal(f.row[i].lost, strcmp(f.row[i].path, "d.jpg") == 0);
    kd_dataset_close(&todo);
    kd_dataset_close(&data);
    kd_fill_free(&f);
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_says_which_views_are_missing),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(files_are_found_by_path_and_by_content),
    };
    return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
