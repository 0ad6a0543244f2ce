/* Labelled images: classes of folders, tars and CSV files; what is no such file refused by line; digests that name a set of images whatever its order. (The images of a cache: tests/cli/test_evaluation.sh.) */
#include "tests/unit/unit.h"

#include <sys/stat.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/tar_file.h"
#include "train/eval/labelled.h"

static kd_err err;
static char *folder;

static int begin(void **state) {
    (void)state;
    kd_log_set_level(KD_LOG_ERROR);
    folder = unit_folder();
    return 0;
}

static int end(void **state) {
    (void)state;
    free(folder);
    return 0;
}

static const char *in(const char *name) {
    static char path[4][4300];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

static void put(const char *name, const char *text) {
    char path[4300];
    snprintf(path, sizeof path, "%s", in(name));
    for (char *slash = path + strlen(folder) + 1; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = '\0';
        mkdir(path, 0755);
    }
    unit_write(path, text, strlen(text));
}

static void put_tar(const char *name, const char *const *members, size_t n) {
    tar_file t = {0};
    for (size_t i = 0; i < n; i++) {
        tar_header(&t, members[i], '0', 3, "");
        tar_append(&t, "jpg", 3);
    }
    t.bytes = realloc(t.bytes, t.size + 1024);
    memset(t.bytes + t.size, 0, 1024);
    unit_write(in(name), t.bytes, t.size + 1024);
    free(t.bytes);
}

/* "path=class ..." in order; "-" for no class. */
static const char *labels(const char *source) {
    static char out[4096];
    kd_label_source s;
    size_t n = 0;
    out[0] = '\0';
    if (kd_label_source_open(&s, source, NULL, KD_LIST_LINES, 1, &err) != KD_OK)
        return NULL;
    for (size_t i = 0; i < s.data.count; i++)
        n += (size_t)snprintf(out + n, sizeof out - n, "%s%s=%s", i > 0 ? " " : "", s.data.file[i].rel, s.label[i] != NULL ? s.label[i] : "-");
    kd_label_source_close(&s);
    return out;
}

static void a_class_is_the_first_folder_of_the_path(void **state) {
    (void)state;
    put("set/cat/1.jpg", "");
    put("set/cat/deep/er/2.jpg", "");
    put("set/cat-like/3.jpg", "");
    put("set/loose.jpg", "");
    assert_string_equal(labels(in("set")), "cat-like/3.jpg=cat-like cat/1.jpg=cat cat/deep/er/2.jpg=cat loose.jpg=-");
    put("list.txt", "./set/cat/1.jpg\nset/loose.jpg\n");
    assert_string_equal(labels(in("list.txt")), "./set/cat/1.jpg=set set/loose.jpg=set");
}

static void in_a_tar_it_is_the_first_folder_there_or_the_tar(void **state) {
    (void)state;
    static const char *const members[] = {"dog/1.jpg", "./cat/2.jpg", "3.jpg"};
    mkdir(in("tars"), 0755);
    put_tar("tars/bird.tar", members, 3);
    assert_string_equal(labels(in("tars")), "bird.tar/./cat/2.jpg=cat bird.tar/3.jpg=bird bird.tar/dog/1.jpg=dog");
    put("tars.csv", "tars/bird.tar,anything\n");
    assert_string_equal(labels(in("tars.csv")), "tars/bird.tar/./cat/2.jpg=anything tars/bird.tar/3.jpg=anything tars/bird.tar/dog/1.jpg=anything");
    put("member.csv", "tars/bird.tar/3.jpg,eagle\ntars/bird.tar/dog/1.jpg,wolf\n");
    assert_string_equal(labels(in("member.csv")), "tars/bird.tar/3.jpg=eagle tars/bird.tar/dog/1.jpg=wolf");
}

static void a_csv_has_a_path_and_a_label_for_each_image(void **state) {
    (void)state;
    static const char *const same[] = {
        "p/b.jpg,cat\np/a.jpg,\"dog, wet\"\n",                                         /* without header; sorted by path */
        "path,label\np/a.jpg,\"dog, wet\"\np/b.jpg,cat\n",
        "\xef\xbb\xbf" "id,Class,x, File \r\n1,\"dog, wet\",,p/a.jpg\r\n\r\n2,cat,\"\"\"\",p/b.jpg\r\n", /* columns in any order, among others; CR LF */
        "filename,species\np/a.jpg,\"dog, wet\"\np/b.jpg,cat",                         /* one column that is known says what the other is */
        "p/a.jpg,\"dog, wet\"\np/b.jpg,cat\np/a.jpg,\"dog, wet\"\n",                   /* twice the same counts once */
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        put("labels.csv", same[i]);
        assert_string_equal(labels(in("labels.csv")), "p/a.jpg=dog, wet p/b.jpg=cat");
    }
    put("UPPER.CSV", "/abs/x.jpg,1\n");
    assert_string_equal(labels(in("UPPER.CSV")), "/abs/x.jpg=1");
}

static void a_csv_that_is_wrong_is_refused_by_line(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"", "has no images"},
        {"path,label\n", "has no images"},
        {"a.jpg\n", "line 1: has 1 fields; expected path,label"},
        {"a,b,c\n", "line 1: has 3 fields; expected path,label"},
        {"path,x,y\na.jpg,1,2\n", "line 1: has 3 fields"},
        {"a.jpg,cat\nb.jpg,cat,black\n", "line 2: has 3 fields where the first line has 2"},
        {"a.jpg,cat\n\n\"b\n.jpg\",dog\nc.jpg,\n", "line 5: the label is empty"},
        {"path,label\n,cat\n", "line 2: the path is empty"},
        {"a.jpg,cat\nb.jpg,cat\na.jpg,dog\n", "line 3: a.jpg is a dog here and a cat on line 1"},
        {"a.jpg,cat\nb\"b.jpg,cat\n", "line 2: a double quote"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put("wrong.csv", wrong[i][0]);
        assert_null(labels(in("wrong.csv")));
        assert_int_equal(err.status, KD_EUSAGE);
        assert_contains(err.msg, "wrong.csv");
        assert_contains(err.msg, wrong[i][1]);
    }
    assert_null(labels(in("not-there.csv")));
    assert_int_equal(err.status, KD_EUSAGE);
}

static void names_alone_tell_what_a_training_run_needs(void **state) {
    (void)state;
    kd_label_counts n;
    put("a/cat/1.jpg", "");
    put("a/dog/2.jpg", "");
    put("a/cat-like/3.jpg", "");
    put("b/dog/1.jpg", "");
    put("b/cow/1.jpg", "");
    put("b/none.jpg", "");
    assert_ok(kd_labelled_check(&n, &(kd_label_files){.train = in("a"), .test = in("b")}, 1, &err));
    assert_true(n.classes == 3 && n.train == 3 && n.test == 3);
    assert_int_equal(kd_labelled_check(&n, &(kd_label_files){.train = in("b"), .test = in("a")}, 1, &err), KD_EUSAGE);
    assert_contains(err.msg, "none.jpg lies in no class folder");
    assert_int_equal(kd_labelled_check(&n, &(kd_label_files){.train = in("a"), .test = in("x.kdc")}, 1, &err), KD_EUSAGE);
    assert_contains(err.msg, "--images");
}

/* Against sha256sum of the entries as labelled.h describes them:
 * printf '\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0cat\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' | sha256sum */
static void a_digest_names_images_and_classes_in_any_order(void **state) {
    (void)state;
    const kd_hash128 id[] = {{{2}}, {{1}}}, turned[] = {{{1}}, {{2}}};
    const char *const label[] = {NULL, "cat"}, *const turned_label[] = {"cat", ""}, *const other[] = {"cat", "cat"};
    char a[KD_DIGEST_TEXT], b[KD_DIGEST_TEXT];
    assert_ok(kd_labels_digest(a, id, label, 2, &err));
    assert_string_equal(a, "8fb7a83c7ffdf834ff4b7a9dddf698615eb2810049c059ad4ddc3638e6738512");
    assert_ok(kd_labels_digest(b, turned, turned_label, 2, &err));
    assert_string_equal(a, b);
    assert_ok(kd_labels_digest(b, id, other, 2, &err));
    assert_string_not_equal(a, b);
    assert_ok(kd_labels_digest(b, id, NULL, 2, &err));
    assert_string_not_equal(a, b);
    assert_ok(kd_labels_digest(b, NULL, NULL, 0, &err));
    assert_string_equal(b, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"); /* of nothing */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_class_is_the_first_folder_of_the_path),
        cmocka_unit_test(in_a_tar_it_is_the_first_folder_there_or_the_tar),
        cmocka_unit_test(a_csv_has_a_path_and_a_label_for_each_image),
        cmocka_unit_test(a_csv_that_is_wrong_is_refused_by_line),
        cmocka_unit_test(names_alone_tell_what_a_training_run_needs),
        cmocka_unit_test(a_digest_names_images_and_classes_in_any_order),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
