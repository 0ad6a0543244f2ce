/* .pth from before PyTorch 1.6: the values that torch.load gives, bounds of the storages in the file's tail, nothing executed. */
#include "tests/weight_files.h"

static wf_bytes object, file;

/* -- files made by PyTorch --------------------------------------------------------------------------------------------------- */

static void every_element_type_equals_torch(void **state) { (void)state; wf_equals_torch("legacy_types.pth"); }
static void strided_and_shared_views_of_protocol_4_equal_torch(void **state) { (void)state; wf_equals_torch("legacy_views.pth"); }
static void nested_checkpoint_of_protocol_3_equals_torch(void **state) { (void)state; wf_equals_torch("legacy_nested.pth"); }

static void old_torch_is_read(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    float x[4];
    const float want[4] = {0, 1, 2, 3};
    assert_int_equal(kd_weights_open(&w, "tests/golden/weights/legacy.pth", &err), KD_OK);
    assert_int_equal(kd_weights_count(w), 1);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "w"), x, 4, &err), KD_OK);
    assert_memory_equal(x, want, sizeof want);
    kd_weights_close(w);
}

static void malicious_pickle_runs_nothing(void **state)
{
    (void)state;
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
    wf_equals_torch("malicious_legacy.pth");
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    static wf_bytes whole;
    wf_load("tests/golden/weights/legacy_views.pth", &whole);
    for (size_t n = 30; n < whole.size; n++) /* shorter ones don't even have the whole magic number */
        wf_refused(whole.data, n, "kd-weights");
}

/* -- files that no torch.save would write ------------------------------------------------------------------------------------ */

#define MAGIC "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define PROTOCOL "\x80\x02M\xe9\x03."
#define SYSTEM "\x80\x02}X\x0d\0\0\0little_endian\x88s."

static void begin(void)
{
    file.size = 0;
    wf_add(&file, MAGIC PROTOCOL SYSTEM, sizeof(MAGIC PROTOCOL SYSTEM) - 1);
    wf_add(&file, object.data, object.size);
}

static void add_keys(const char *const *keys, int n)
{
    wf_add(&file, "\x80\x02](", 4);
    for (int i = 0; i < n; i++)
        wf_text(&file, keys[i]);
    wf_op(&file, "e.");
}

static void add_storage(int64_t claimed, int n)
{
    wf_number(&file, (uint64_t)claimed, 8);
    for (int i = 0; i < n; i++) {
        float value = (float)i;
        wf_add(&file, &value, sizeof value);
    }
}

static const wf_tensor sixteen = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};

/* {"w": t} with one storage "0" of 16 values 0..15. */
static void make(const wf_tensor *t)
{
    const char *const keys[] = {"0"};
    wf_one_tensor(&object, "w", t);
    begin();
    add_keys(keys, 1);
    add_storage(16, 16);
}

static void refused(const char *why) { wf_refused(file.data, file.size, why); }

static void assembled_file_is_read(void **state)
{
    (void)state;
    const wf_tensor t = {"FloatStorage", "0", 16, 4, 2, 2, {3, 2}, {1, 3}};
    const float want[6] = {4, 7, 5, 8, 6, 9};
    float x[6];
    kd_err err = {0};
    kd_weights *w = NULL;
    kd_sha256 got, sum;
    make(&t);
    assert_int_equal(wf_open(&w, file.data, file.size, &err), KD_OK);
    assert_int_equal(kd_weights_read_f32(w, 0, x, 6, &err), KD_OK);
    assert_memory_equal(x, want, sizeof want);
    assert_int_equal(kd_weights_sha256(w, &got, &err), KD_OK);
    sum = kd_sha256_of(file.data, file.size);
    assert_memory_equal(got.b, sum.b, sizeof sum.b);
    kd_weights_close(w);
}

static void storages_must_lie_in_the_file(void **state)
{
    (void)state;
    const char *const keys[] = {"0", "0"}, *const other[] = {"1"}, *const both[] = {"0", "1"};
    wf_one_tensor(&object, "w", &sixteen);
    begin();
    add_keys(keys, 1);
    add_storage(16, 15);
    refused("storage '0' needs 72 bytes");
    begin();
    add_keys(keys, 1);
    add_storage(17, 17);
    refused("has 17 elements, its tensors expect 16");
    begin();
    add_keys(keys, 1);
    add_storage(-1, 16);
    refused("its tensors expect 16");
    begin();
    add_keys(keys, 2);
    add_storage(16, 16);
    add_storage(16, 16);
    refused("comes twice");
    begin();
    add_keys(other, 1);
    add_storage(16, 16);
    refused("nothing refers to storage '1'");
    begin();
    add_keys(both, 2);
    add_storage(16, 16);
    refused("nothing refers to storage '1'");
    begin();
    add_keys(keys, 0);
    refused("tensor 'w' lies in storage '0', which the file doesn't have");
    const wf_tensor huge = {"FloatStorage", "0", (int64_t)1 << 40, 0, 1, 1, {1}, {1}};
    wf_one_tensor(&object, "w", &huge);
    begin();
    add_keys(keys, 1);
    add_storage((int64_t)1 << 40, 16);
    refused("it is truncated");
}

static void one_key_means_one_storage(void **state)
{
    (void)state;
    const char *const keys[] = {"0"};
    const wf_tensor as_double = {"DoubleStorage", "0", 16, 0, 1, 1, {1}, {1}}, shorter = {"FloatStorage", "0", 8, 0, 1, 1, {1}, {1}};
    for (int i = 0; i < 2; i++) {
        object.size = 0;
        wf_add(&object, "\x80\x02}", 3);
        wf_text(&object, "a");
        wf_push_tensor(&object, &sixteen);
        wf_op(&object, "s");
        wf_text(&object, "b");
        wf_push_tensor(&object, i == 0 ? &as_double : &shorter);
        wf_op(&object, "s.");
        begin();
        add_keys(keys, 1);
        add_storage(16, 32);
        refused("described in two ways");
    }
}

static void views_must_stay_inside_their_storage(void **state)
{
    (void)state;
    const wf_tensor beyond = {"FloatStorage", "0", 16, 1, 1, 1, {16}, {1}}, many = {"FloatStorage", "0", 16, 0, 3, 3, {1 << 20, 1 << 20, 1 << 20}, {0}};
    make(&beyond);
    refused("outside its storage");
    make(&many);
    refused("claims more than");
}

static void push_view(int64_t offset, int64_t size)
{
    object.size = 0;
    wf_add(&object, "\x80\x02}", 3);
    wf_text(&object, "w");
    wf_op(&object, "ctorch._utils\n_rebuild_tensor\n((");
    wf_text(&object, "storage");
    wf_op(&object, "ctorch\nFloatStorage\n");
    wf_text(&object, "0");
    wf_text(&object, "cpu");
    wf_int(&object, 16);
    wf_text(&object, "view");
    wf_int(&object, offset);
    wf_int(&object, size);
    wf_op(&object, "\x87tQ");
    wf_int(&object, 1);
    wf_tuple(&object, (const int64_t[]){2}, 1);
    wf_tuple(&object, (const int64_t[]){1}, 1);
    wf_op(&object, "tRs.");
}

/* PyTorch before 0.4 had storages that are parts of others. */
static void views_of_storages_are_read(void **state)
{
    (void)state;
    const char *const keys[] = {"0"};
    float x[2];
    kd_err err = {0};
    kd_weights *w = NULL;
    push_view(5, 3);
    begin();
    add_keys(keys, 1);
    add_storage(16, 16);
    assert_int_equal(wf_open(&w, file.data, file.size, &err), KD_OK);
    assert_int_equal(kd_weights_read_f32(w, 0, x, 2, &err), KD_OK);
    assert_true(x[0] == 6 && x[1] == 7);
    kd_weights_close(w);
    static const struct { int64_t offset, size; const char *why; } bad[] = {
        {5, 2, "a tensor that reaches outside its storage"}, {14, 3, "a view of a storage that reaches outside it"}, {-1, 3, "a view of a storage"}, {0, -1, "a view of a storage"}, {INT64_MAX, INT64_MAX, "a view of a storage"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        push_view(bad[i].offset, bad[i].size);
        begin();
        add_keys(keys, 1);
        add_storage(16, 16);
        refused(bad[i].why);
    }
}

static void raw(const char *middle, size_t n, kd_status status, const char *why)
{
    file.size = 0;
    wf_add(&file, MAGIC, sizeof(MAGIC) - 1);
    wf_add(&file, middle, n);
    wf_refused_as(status, file.data, file.size, why);
}
#define RAW(status, middle, why) raw(middle, sizeof(middle) - 1, status, why)

static void the_pickles_around_the_object_are_checked(void **state)
{
    (void)state;
    RAW(KD_EFAIL, "", "ends without STOP");
    RAW(KD_EFAIL, "\x80\x02M\xe8\x03.", "protocol 1001");
    RAW(KD_EFAIL, "\x80\x02N.", "protocol 1001");
    RAW(KD_EUSAGE, PROTOCOL "\x80\x02}X\x0d\0\0\0little_endian\x89s.", "big-endian");
    RAW(KD_EFAIL, PROTOCOL "\x80\x02}.", "byte order");
    RAW(KD_EFAIL, PROTOCOL "\x80\x02K\x05.", "byte order");
    RAW(KD_EFAIL, PROTOCOL SYSTEM, "ends without STOP");
    RAW(KD_EUSAGE, PROTOCOL SYSTEM "\x80\x02}.", "no tensors");
    RAW(KD_EUSAGE, PROTOCOL SYSTEM "\x80\x02K\x05.", "holds an integer");
    wf_one_tensor(&object, "w", &sixteen);
    begin();
    refused("ends without STOP");
    begin();
    wf_op(&file, "}.");
    refused("list of at most");
    begin();
    wf_op(&file, "](K\x01" "e.");
    refused("list of at most");
}

/* As in torch.save(model), the class comes as ('module', class, file, source); but the object's state isn't a module's. */
static void an_object_that_is_no_module_is_not_weights(void **state)
{
    (void)state;
    object.size = 0;
    wf_add(&object, "\x80\x02(", 3);
    wf_text(&object, "module");
    wf_op(&object, "ctorch.nn\nLinear\n");
    wf_text(&object, "linear.py");
    wf_text(&object, "class Linear: ...");
    wf_op(&object, "tQ)\x81}");
    wf_text(&object, "weight");
    wf_push_tensor(&object, &sixteen);
    wf_op(&object, "sb.");
    begin();
    wf_wrong(file.data, file.size, "holds a Python object");
}

/* The pickles are read from a short beginning of the file first; here they are longer than that. */
static void long_pickles_are_read(void **state)
{
    (void)state;
    enum { FILLER = 3 << 20 };
    const char *path = wf_path("long"), *const keys[] = {"0"};
    float x[16];
    kd_err err = {0};
    kd_weights *w = NULL;
    char *filler = kd_malloc(FILLER);
    assert_non_null(filler);
    memset(filler, 'x', FILLER);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(MAGIC PROTOCOL SYSTEM, 1, sizeof(MAGIC PROTOCOL SYSTEM) - 1, f), sizeof(MAGIC PROTOCOL SYSTEM) - 1);
    object.size = 0;
    wf_add(&object, "\x80\x02}", 3);
    wf_text(&object, "notes");
    wf_op(&object, "X");
    wf_number(&object, FILLER, 4);
    assert_int_equal(fwrite(object.data, 1, object.size, f), object.size);
    assert_int_equal(fwrite(filler, 1, FILLER, f), FILLER);
    object.size = 0;
    wf_op(&object, "s");
    wf_text(&object, "w");
    wf_push_tensor(&object, &sixteen);
    wf_op(&object, "s.");
    file.size = 0;
    wf_add(&file, object.data, object.size);
    add_keys(keys, 1);
    add_storage(16, 16);
    assert_int_equal(fwrite(file.data, 1, file.size, f), file.size);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "w"), x, 16, &err), KD_OK);
    assert_true(x[15] == 15);
    kd_weights_close(w);
    unlink(path);
    kd_free(filler);
}

static void running_out_of_memory_is_an_error(void **state)
{
    (void)state;
    for (size_t n = 1;; n++) {
        kd_weights *w = NULL;
        kd_err err = {0};
        size_t live = kd_mem_live_bytes();
        kd_mem_fail_after(n);
        kd_status status = kd_weights_open(&w, "tests/golden/weights/legacy_nested.pth", &err);
        kd_mem_fail_after(0);
        if (status == KD_OK)
            kd_weights_close(w);
        assert_int_equal(kd_mem_live_bytes(), live);
        if (status == KD_OK) {
            assert_true(n > 8);
            return;
        }
        assert_int_equal(status, KD_EFAIL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_type_equals_torch),
        cmocka_unit_test(strided_and_shared_views_of_protocol_4_equal_torch),
        cmocka_unit_test(nested_checkpoint_of_protocol_3_equals_torch),
        cmocka_unit_test(old_torch_is_read),
        cmocka_unit_test(malicious_pickle_runs_nothing),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(assembled_file_is_read),
        cmocka_unit_test(storages_must_lie_in_the_file),
        cmocka_unit_test(one_key_means_one_storage),
        cmocka_unit_test(views_must_stay_inside_their_storage),
        cmocka_unit_test(views_of_storages_are_read),
        cmocka_unit_test(the_pickles_around_the_object_are_checked),
        cmocka_unit_test(an_object_that_is_no_module_is_not_weights),
        cmocka_unit_test(long_pickles_are_read),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("legacy_pth", tests, NULL, NULL);
}
