/* .pth files as they are written: byte for byte those of the specification, which PyTorch has read (tests/golden/weights/make_export.py), and back through the project's own reader. */
#include "common/weights/pth.h"

#include <errno.h>

#include "tests/weight_files.h"

static const float conv[6] = {1.0f, -2.5f, 3.25f, 0.0f, 1e-8f, 65504.0f};
static const int64_t counter[1] = {12345678901};
static const uint16_t half[3] = {0x3C00, 0xC000, 0x3800}, brain[2] = {0x3F80, 0x4040};
static const double dbl[1] = {0.1};
static const int32_t int32[1] = {-3};
static const int16_t shrt[3] = {-4, 5, 6};
static const int8_t chr[1] = {-5};
static const uint8_t byte[3] = {250, 1, 2}, flag[2] = {1, 0};

/* What make_export.py writes. */
static const kd_tensor tensors[] = {
    {"conv.weight", KD_F32, 2, {2, 3}, conv}, {"bn.num_batches_tracked", KD_I64, 0, {0}, counter}, {"half", KD_F16, 1, {3}, half}, {"brain", KD_BF16, 1, {2}, brain}, {"double", KD_F64, 1, {1}, dbl},
    {"int", KD_I32, 1, {1}, int32}, {"short", KD_I16, 1, {3}, shrt}, {"char", KD_I8, 1, {1}, chr}, {"byte", KD_U8, 1, {3}, byte}, {"flag", KD_BOOL, 1, {2}, flag}, {"none", KD_F32, 2, {0, 3}, conv},
};
enum { COUNT = sizeof tensors / sizeof tensors[0] };

static kd_err err;

static const char *written(const json_t *metadata)
{
    const char *path = wf_path("written.pth");
    assert_int_equal(kd_pth_write(path, tensors, COUNT, metadata, &err), KD_OK);
    return path;
}

static json_t *golden_metadata(void)
{
    return json_pack("{s:s, s:s, s:s}", "\xc3\xa4", "sorted by bytes", "model", "test \xc3\xbc", "image_mean", "[0.5, 0.5, 0.5]");
}

static void writes_the_bytes_that_pytorch_has_read(void **state)
{
    (void)state;
    static wf_bytes got, want;
    json_t *metadata = golden_metadata();
    const char *path = written(metadata);
    json_decref(metadata);
    wf_load(path, &got);
    unlink(path);
    wf_load("tests/golden/weights/export.pth", &want);
    assert_int_equal(got.size, want.size);
    assert_memory_equal(got.data, want.data, want.size);
}

static void comes_back_with_its_values_and_its_metadata(void **state)
{
    (void)state;
    json_t *metadata = golden_metadata();
    const char *path = written(metadata);
    kd_weights *w;
    float f[6];
    int64_t n;
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    unlink(path);
    assert_int_equal(kd_weights_count(w), COUNT);
    for (int i = 0; i < COUNT; i++) {
        kd_tensor t = kd_weights_info(w, i);
        assert_string_equal(t.name, tensors[i].name);
        assert_int_equal(t.dtype, tensors[i].dtype);
        assert_true(kd_shape_equal(t.shape, t.rank, tensors[i].shape, tensors[i].rank));
    }
    assert_int_equal(kd_weights_read_f32(w, 0, f, 6, &err), KD_OK);
    assert_memory_equal(f, conv, sizeof f);
    assert_int_equal(kd_weights_read_i64(w, 1, &n, 1, &err), KD_OK);
    assert_true(n == counter[0]);
    assert_true(json_equal(kd_weights_metadata(w), metadata));
    json_decref(metadata);
    kd_weights_close(w);
}

static void a_file_without_strings_has_empty_metadata(void **state)
{
    (void)state;
    const char *path = written(NULL);
    kd_weights *w;
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    unlink(path);
    assert_int_equal(json_object_size(kd_weights_metadata(w)), 0);
    kd_weights_close(w);
}

static void what_cannot_be_written_is_refused_and_leaves_no_file(void **state)
{
    (void)state;
    const char *path = wf_path("refused.pth");
    kd_tensor twice[2] = {tensors[0], tensors[0]}, not_utf8 = tensors[0];
    json_t *number = json_pack("{s:i}", "steps", 3);
    not_utf8.name = "\xff";
    assert_int_equal(kd_pth_write(path, twice, 2, NULL, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "conv.weight"));
    assert_int_equal(kd_pth_write(path, &not_utf8, 1, NULL, &err), KD_EFAIL);
    assert_int_equal(kd_pth_write(path, tensors, COUNT, number, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "steps"));
    kd_io_fail_after(3, ENOSPC);
    assert_int_equal(kd_pth_write(path, tensors, COUNT, NULL, &err), KD_ENOSPACE);
    kd_io_fail_after(0, 0);
    assert_int_equal(access(path, F_OK), -1);
    json_decref(number);
}

static void metadata_refused(const char *json, const char *why)
{
    static wf_zip zip;
    memset(&zip, 0, sizeof zip);
    wf_zip_add(&zip, "archive/data.pkl", "", 0);
    wf_zip_add(&zip, "archive/kdcache.json", json, strlen(json));
    wf_zip_end(&zip);
    wf_refused(zip.out.data, zip.out.size, why);
}

static void metadata_that_are_no_strings_are_a_damaged_file(void **state)
{
    (void)state;
    metadata_refused("[\"model\"]", "isn't an object");
    metadata_refused("{\"steps\": 3}", "'steps' isn't a string");
    metadata_refused("{\"model\": ", "JSON");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_the_bytes_that_pytorch_has_read),
        cmocka_unit_test(comes_back_with_its_values_and_its_metadata),
        cmocka_unit_test(a_file_without_strings_has_empty_metadata),
        cmocka_unit_test(what_cannot_be_written_is_refused_and_leaves_no_file),
        cmocka_unit_test(metadata_that_are_no_strings_are_a_damaged_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
