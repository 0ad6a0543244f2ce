/* .safetensors: the reference writer's bytes, reading back, and every rule that a header can break. */
#include "common/weights/safetensors.h"

#include <math.h>
#include <signal.h>

#include "tests/weight_files.h"

static wf_bytes file;

static void refused_as(kd_status status, const char *header, size_t data_bytes, const char *why)
{
    static const uint8_t zeros[256];
    wf_safetensors(&file, header, zeros, data_bytes);
    wf_refused_as(status, file.data, file.size, why);
}

static void refused(const char *header, size_t data_bytes, const char *why) { refused_as(KD_EFAIL, header, data_bytes, why); }

/* -- writing ----------------------------------------------------------------------------------------------------------------- */

static const float z_f32[6] = {1.0f, -2.5f, 3.25f, 0.0f, 1e-8f, 65504.0f}, a_f32[1] = {7.0f}, nine[1] = {9.0f};
static const uint16_t half[3] = {0x3C00, 0xC000, 0x3800}, brain[2] = {0x3F80, 0x4040};
static const double dbl[1] = {0.1};
static const int64_t lng[2] = {-1, (int64_t)1 << 40};
static const int32_t int32[1] = {-3};
static const int16_t shrt[3] = {-4, 5, 6};
static const int8_t chr[1] = {-5};
static const uint8_t byte[3] = {250, 1, 2}, flag[2] = {1, 0};

/* What make_weights.py hands to the safetensors package. */
static const kd_tensor tensors[] = {
    {"z.f32", KD_F32, 2, {2, 3}, z_f32}, {"a.f32", KD_F32, 0, {0}, a_f32}, {"half", KD_F16, 1, {3}, half}, {"brain", KD_BF16, 1, {2}, brain},
    {"double", KD_F64, 1, {1}, dbl}, {"long", KD_I64, 2, {2, 1}, lng}, {"int", KD_I32, 1, {1}, int32}, {"short", KD_I16, 1, {3}, shrt},
    {"char", KD_I8, 1, {1}, chr}, {"byte", KD_U8, 1, {3}, byte}, {"flag", KD_BOOL, 1, {2}, flag}, {"none", KD_F32, 2, {0, 3}, a_f32},
    {"quote \" and \\ and \xc3\xbc", KD_F32, 1, {1}, nine},
};
enum { COUNT = sizeof tensors / sizeof tensors[0] };

static void writes_the_bytes_of_the_reference_writer(void **state)
{
    (void)state;
    static wf_bytes got, want;
    const char *path = wf_path("written");
    kd_err err = {0};
    assert_int_equal(kd_safetensors_write(path, tensors, COUNT, NULL, &err), KD_OK);
    wf_load(path, &got);
    unlink(path);
    wf_load("tests/golden/weights/reference.safetensors", &want);
    assert_int_equal(got.size, want.size);
    assert_memory_equal(got.data, want.data, want.size);
}

static void same_tensors_in_another_order_give_the_same_bytes(void **state)
{
    (void)state;
    static wf_bytes first, second;
    kd_tensor reversed[COUNT];
    for (int i = 0; i < COUNT; i++)
        reversed[i] = tensors[COUNT - 1 - i];
    json_t *ab = json_pack("{s:s, s:s}", "a", "1", "b", "2"), *ba = json_pack("{s:s, s:s}", "b", "2", "a", "1");
    const char *path = wf_path("order");
    kd_err err = {0};
    assert_int_equal(kd_safetensors_write(path, tensors, COUNT, ab, &err), KD_OK);
    wf_load(path, &first);
    assert_int_equal(kd_safetensors_write(path, reversed, COUNT, ba, &err), KD_OK);
    wf_load(path, &second);
    unlink(path);
    json_decref(ab);
    json_decref(ba);
    assert_int_equal(first.size, second.size);
    assert_memory_equal(first.data, second.data, first.size);
}

static void metadata_comes_back_with_the_format(void **state)
{
    (void)state;
    json_t *metadata = json_pack("{s:s}", "recipe", "demo");
    const char *path = wf_path("metadata");
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_safetensors_write(path, tensors, 1, metadata, &err), KD_OK);
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "recipe")), "demo");
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "format")), "pt");
    kd_weights_close(w);
    unlink(path);
    json_decref(metadata);
}

static void writer_refuses_what_the_format_cannot_hold(void **state)
{
    (void)state;
    const kd_tensor twice[2] = {tensors[0], tensors[0]}, not_utf8 = {"\xff", KD_F32, 0, {0}, a_f32};
    json_t *number = json_pack("{s:i}", "epoch", 3);
    const char *path = wf_path("refused");
    kd_err err = {0};
    assert_int_equal(kd_safetensors_write(path, twice, 2, NULL, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "'z.f32'"));
    assert_int_equal(kd_safetensors_write(path, &not_utf8, 1, NULL, &err), KD_EFAIL);
    assert_int_equal(kd_safetensors_write(path, tensors, 1, number, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "epoch"));
    assert_false(kd_io_exists(path));
    json_decref(number);
}

/* -- reading ----------------------------------------------------------------------------------------------------------------- */

static void reads_every_type_of_the_reference_file(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_weights_open(&w, "tests/golden/weights/reference.safetensors", &err), KD_OK);
    assert_int_equal(kd_weights_count(w), COUNT);
    for (int k = 0; k < COUNT; k++) {
        const kd_tensor *t = &tensors[k];
        int i = kd_weights_find(w, t->name);
        assert_true(i >= 0);
        kd_tensor info = kd_weights_info(w, i);
        assert_int_equal(info.dtype, t->dtype);
        assert_true(kd_shape_equal(info.shape, info.rank, t->shape, t->rank));
        float got[8], want[8];
        size_t n = kd_tensor_numel(t);
        kd_convert_to_f32(want, t->data, t->dtype, n);
        assert_int_equal(kd_weights_read_f32(w, i, got, n, &err), KD_OK);
        assert_memory_equal(got, want, n * sizeof *got);
    }
    int64_t longs[2];
    assert_int_equal(kd_weights_read_i64(w, kd_weights_find(w, "long"), longs, 2, &err), KD_OK);
    assert_memory_equal(longs, lng, sizeof longs);
    assert_int_equal(kd_weights_read_i64(w, kd_weights_find(w, "half"), longs, 2, &err), KD_EFAIL);
    assert_int_equal(kd_weights_find(w, "absent"), -1);
    kd_weights_close(w);
}

static void data_need_not_be_aligned(void **state)
{
    (void)state;
    /* One byte before the floats, and a header of odd length, so that no element is where the processor would like it. */
    uint8_t data[9] = {7};
    const float values[2] = {1.5f, -3.0f};
    float got[2];
    kd_err err = {0};
    kd_weights *w = NULL;
    memcpy(data + 1, values, sizeof values);
    wf_safetensors(&file, "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"f\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}",
                   data, sizeof data);
    assert_int_equal(wf_open(&w, file.data, file.size, &err), KD_OK);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "f"), got, 2, &err), KD_OK);
    assert_memory_equal(got, values, sizeof values);
    kd_weights_close(w);
}

static void entries_are_listed_in_the_order_of_their_data(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    const uint8_t data[3] = {1, 2, 3};
    wf_safetensors(&file, "{\"second\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]},\"first\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                   data, sizeof data);
    assert_int_equal(wf_open(&w, file.data, file.size, &err), KD_OK);
    assert_string_equal(kd_weights_info(w, 0).name, "first");
    assert_string_equal(kd_weights_info(w, 1).name, "second");
    kd_weights_close(w);
}

static void read_refuses_nan_infinity_and_wrong_counts(void **state)
{
    (void)state;
    const float values[3] = {1.0f, NAN, 2.0f};
    const double huge[1] = {1e300};
    const kd_tensor bad[2] = {{"w", KD_F32, 1, {3}, values}, {"d", KD_F64, 1, {1}, huge}};
    const char *path = wf_path("nan");
    float got[4];
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_safetensors_write(path, bad, 2, NULL, &err), KD_OK);
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    unlink(path);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "w"), got, 3, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "'w' holds NaN at element 1"));
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "d"), got, 1, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "infinity"));
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "w"), got, 4, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "3 elements, where 4"));
    kd_weights_close(w);
}

static void sha256_is_that_of_the_file(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    kd_sha256 got, want;
    assert_int_equal(kd_weights_open(&w, "tests/golden/weights/reference.safetensors", &err), KD_OK);
    assert_int_equal(kd_sha256_file("tests/golden/weights/reference.safetensors", &want, &err), KD_OK);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(kd_weights_sha256(w, &got, &err), KD_OK);
        assert_memory_equal(got.b, want.b, sizeof want.b);
    }
    kd_weights_close(w);
}

/* cmocka puts its own SIGBUS handler in place for every test; this is kd_io_guard's, taken before the first. */
static struct sigaction guard_handler;

static kd_status nothing(void *arg, kd_err *err)
{
    (void)arg;
    (void)err;
    return KD_OK;
}

/* A file that shrinks under the reader (a copy in progress, a broken mount) is an error with a sentence, not SIGBUS. */
static void a_file_that_shrinks_is_an_error(void **state)
{
    (void)state;
    static float values[64 * 1024];
    const kd_tensor big = {"w", KD_F32, 1, {64 * 1024}, values};
    const char *path = wf_path("shrink");
    kd_err err = {0};
    kd_weights *w = NULL;
    kd_sha256 sum;
    assert_int_equal(kd_safetensors_write(path, &big, 1, NULL, &err), KD_OK);
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    assert_int_equal(truncate(path, 8192), 0);
    struct sigaction cmocka_handler;
    sigaction(SIGBUS, &guard_handler, &cmocka_handler);
    assert_int_equal(kd_weights_read_f32(w, 0, values, 64 * 1024, &err), KD_EFAIL);
    assert_int_equal(err.status, KD_EFAIL);
    assert_int_equal(kd_weights_sha256(w, &sum, &err), KD_EFAIL);
    sigaction(SIGBUS, &cmocka_handler, NULL);
    kd_weights_close(w);
    unlink(path);
}

/* -- bad files --------------------------------------------------------------------------------------------------------------- */

#define U8(name, shape, begin, end) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"

static void header_size_is_checked_before_use(void **state)
{
    (void)state;
    const uint8_t huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'}, longer[10] = {200, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    const uint8_t over[16] = {0, 0, 0, 0x01, 1};
    wf_refused("", 0, "empty");
    wf_refused("1234567", 7, "too short");
    wf_refused(huge, sizeof huge, "the limit is");
    wf_wrong(over, sizeof over, "neither a PyTorch .pth nor .safetensors");
    wf_wrong("This is not a weight file.", 26, "neither a PyTorch .pth nor .safetensors");
    wf_refused(longer, sizeof longer, "truncated .safetensors");
}

static void header_must_be_strict_json(void **state)
{
    (void)state;
    refused_as(KD_EUSAGE, "", 0, "neither a PyTorch .pth nor .safetensors");
    refused("{", 0, "not valid JSON");
    refused("[]", 0, "isn't a JSON object");
    refused("{} x", 0, "not valid JSON");
    refused("{\"\xff\":{}}", 0, "not valid JSON");
    refused("{" U8("a", "1", "0", "1") "," U8("a", "1", "1", "2") "}", 2, "duplicate");
    refused("{\"a\\u0000b\":{}}", 0, "not valid JSON");
    refused("{\"a\":3}", 0, "'a' isn't an object");
    refused("{\"a\":{}}", 0, "'a' isn't an object");
    refused("{\"__metadata__\":[]}", 0, "its metadata isn't an object");
    refused("{\"__metadata__\":{\"a\":1}}", 0, "'a' isn't a string");
    static char deep[6000];
    memset(deep, '[', sizeof deep - 1);
    refused(deep, 0, "not valid JSON");
}

static void entries_must_be_well_formed(void **state)
{
    (void)state;
    refused_as(KD_EUSAGE, "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "F8_E4M3");
    refused("{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype F33 is none of the format's");
    refused("{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype (missing)");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "the shape is missing");
    refused("{" U8("a", "1,1,1,1,1,1,1,1,1", "0", "1") "}", 1, "more than 8 dimensions");
    refused("{" U8("a", "1.5", "0", "1") "}", 1, "isn't an integer");
    refused("{" U8("a", "-1", "0", "1") "}", 1, "negative");
    refused("{" U8("a", "99999999999999999999", "0", "1") "}", 1, "not valid JSON");
    refused("{" U8("a", "4294967296,4294967296", "0", "1") "}", 1, "claims more than");
    refused("{" U8("a", "9223372036854775807", "0", "1") "}", 1, "claims more than");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "data_offsets");
    refused("{" U8("a", "1", "0.0", "1") "}", 1, "data_offsets");
    static char name[700];
    snprintf(name, sizeof name, "{\"%0600d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0);
    refused(name, 1, "name has 600 bytes");
}

static void offsets_must_tile_the_data(void **state)
{
    (void)state;
    refused("{" U8("a", "4", "0", "4") "}", 3, "outside the file's 3 bytes");
    refused("{" U8("a", "4", "-4", "0") "}", 4, "outside the file");
    refused("{" U8("a", "4", "4", "0") "}", 4, "outside the file");
    refused("{" U8("a", "4", "9223372036854775803", "9223372036854775807") "}", 4, "outside the file");
    refused("{" U8("a", "3", "0", "4") "}", 4, "its shape and dtype need 3 bytes");
    refused("{" U8("a", "1", "1", "2") "}", 2, "follows a hole");
    refused("{" U8("a", "1", "0", "1") "," U8("b", "1", "2", "3") "}", 3, "'b' follows a hole");
    refused("{" U8("a", "2", "0", "2") "," U8("b", "2", "1", "3") "}", 3, "'b' overlaps");
    refused("{" U8("a", "2", "0", "2") "," U8("b", "2", "0", "2") "}", 2, "overlaps");
    refused("{" U8("a", "2", "0", "2") "}", 3, "belong to no tensor");
    refused("{}", 1, "belong to no tensor");
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    static wf_bytes whole;
    wf_load("tests/golden/weights/reference.safetensors", &whole);
    for (size_t n = 0; n < whole.size; n++)
        wf_refused(whole.data, n, "kd-weights");
}

static void other_kinds_of_files_are_named(void **state)
{
    (void)state;
    static uint8_t tar[1024];
    memcpy(tar + 257, "ustar", 5);
    wf_wrong(tar, sizeof tar, "tar archive");
    wf_wrong("<!DOCTYPE html><html>", 21, "web page");
    wf_wrong("version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull");
    wf_wrong("\x1f\x8b\x08\0\0\0\0\0\0", 9, "gzip");
    wf_wrong("\x93NUMPY\x01\0v\0{'descr'", 18, "NumPy");
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_weights_open(&w, "tests/golden/weights/absent.safetensors", &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "absent.safetensors"));
    assert_int_equal(kd_weights_open(&w, "tests/golden/weights", &err), KD_EUSAGE); /* a folder without a model */
}

static void a_file_says_where_it_lies_and_how_large_it_is(void **state)
{
    (void)state;
    const char *path = "tests/golden/weights/reference.safetensors";
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    assert_string_equal(kd_weights_dir(w), "tests/golden/weights");
    assert_int_equal(kd_weights_files(w), 1);
    wf_load(path, &file);
    assert_int_equal(kd_weights_bytes(w), file.size);
    kd_weights_close(w);
}

/* Every allocation may fail: an error with a sentence and no leak, or success. */
static void running_out_of_memory_is_an_error(void **state)
{
    (void)state;
    for (size_t n = 1;; n++) {
        kd_weights *w = NULL;
        kd_err err = {0};
        size_t live = kd_mem_live_bytes();
        kd_mem_fail_after(n);
        kd_status status = kd_weights_open(&w, "tests/golden/weights/reference.safetensors", &err);
        kd_mem_fail_after(0);
        if (status == KD_OK) {
            kd_weights_close(w);
            assert_true(n > 3);
            return;
        }
        assert_int_equal(status, KD_EFAIL);
        assert_int_equal(kd_mem_live_bytes(), live);
    }
}

int main(void)
{
    if (kd_io_guard("", 1, "nothing", nothing, NULL, NULL) != KD_OK)
        return 1;
    sigaction(SIGBUS, NULL, &guard_handler);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_the_bytes_of_the_reference_writer),
        cmocka_unit_test(same_tensors_in_another_order_give_the_same_bytes),
        cmocka_unit_test(metadata_comes_back_with_the_format),
        cmocka_unit_test(writer_refuses_what_the_format_cannot_hold),
        cmocka_unit_test(reads_every_type_of_the_reference_file),
        cmocka_unit_test(data_need_not_be_aligned),
        cmocka_unit_test(entries_are_listed_in_the_order_of_their_data),
        cmocka_unit_test(read_refuses_nan_infinity_and_wrong_counts),
        cmocka_unit_test(sha256_is_that_of_the_file),
        cmocka_unit_test(a_file_that_shrinks_is_an_error),
        cmocka_unit_test(header_size_is_checked_before_use),
        cmocka_unit_test(header_must_be_strict_json),
        cmocka_unit_test(entries_must_be_well_formed),
        cmocka_unit_test(offsets_must_tile_the_data),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(other_kinds_of_files_are_named),
        cmocka_unit_test(a_file_says_where_it_lies_and_how_large_it_is),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
