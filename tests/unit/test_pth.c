/* .pth: the values that torch.load gives, for every kind of file that torch.save makes; refusal of everything else; nothing executed. */
#include "tests/weight_files.h"

#include <pthread.h>

#define GOLDEN "tests/golden/weights/"

static wf_zip zip;
static wf_bytes pickle, file;

/* -- files made by PyTorch --------------------------------------------------------------------------------------------------- */

static void every_element_type_equals_torch(void **state) { (void)state; wf_equals_torch("plain.pth"); }
static void nested_checkpoint_equals_torch(void **state) { (void)state; wf_equals_torch("nested.pth"); }
static void module_state_dict_equals_torch(void **state) { (void)state; wf_equals_torch("module.pth"); }
static void strided_and_shared_views_equal_torch(void **state) { (void)state; wf_equals_torch("views.pth"); }
static void protocol_4_equals_torch(void **state) { (void)state; wf_equals_torch("protocol4.pth"); }

static void protocol_5_equals_torch(void **state) { (void)state; wf_equals_torch("protocol5.pth"); }

/* Parameters, tensors with attributes, tied weights, and the entries .format_version, .storage_alignment and .data/serialization_id. */
static void current_torch_equals_torch(void **state) { (void)state; wf_equals_torch("modern.pth"); }

/* torch.serialization.set_crc32_options(False) */
static void a_file_without_checksums_equals_torch(void **state) { (void)state; wf_equals_torch("without_crc.pth"); }

/* Dictionaries full of foreign classes around the tensors. */
static void lightning_checkpoint_equals_torch(void **state) { (void)state; wf_equals_torch("lightning.ckpt"); }

static void malicious_pickle_runs_nothing(void **state)
{
    (void)state;
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
    wf_equals_torch("malicious.pth");
    wf_equals_torch("malicious_protocol4.pth");
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
    assert_int_not_equal(access(GOLDEN "EXECUTED", F_OK), 0);
}

static void element_types_are_those_of_the_storages(void **state)
{
    (void)state;
    static const struct { const char *name; kd_dtype dtype; } types[] = {
        {"f32", KD_F32}, {"f16", KD_F16}, {"bf16", KD_BF16}, {"f64", KD_F64}, {"i64", KD_I64}, {"i32", KD_I32}, {"i16", KD_I16}, {"i8", KD_I8},
        {"u8", KD_U8}, {"flag", KD_BOOL}};
    kd_err err = {0};
    kd_weights *w = NULL;
    assert_int_equal(kd_weights_open(&w, GOLDEN "plain.pth", &err), KD_OK);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        assert_int_equal(kd_weights_info(w, kd_weights_find(w, types[i].name)).dtype, types[i].dtype);
    assert_string_equal(kd_weights_info(w, 0).name, "f32"); /* the order of the dictionary */
    kd_weights_close(w);
}

static void other_torch_files_are_named_with_what_to_do(void **state)
{
    (void)state;
    static const struct { const char *path, *why; } cases[] = {
        {GOLDEN "script.pt", "TorchScript"},
        {GOLDEN "whole_module.pth", "a Python object"}, {GOLDEN "whole_module.pth", "state_dict()"}, {GOLDEN "bare_tensor.pth", "holds a tensor"},
        {GOLDEN "no_tensors.pth", "no tensors"}, {GOLDEN "bare_pickle.pkl", "bare Python pickle"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wf_load(cases[i].path, &file);
        wf_wrong(file.data, file.size, cases[i].why);
    }
}

static void *read_many(void *arg)
{
    const kd_weights *w = arg;
    float x[512];
    for (int pass = 0; pass < 50; pass++)
        for (int i = 0; i < kd_weights_count(w); i++) {
            kd_tensor t = kd_weights_info(w, i);
            if (kd_tensor_numel(&t) <= 512 && kd_weights_read_f32(w, i, x, kd_tensor_numel(&t), NULL) != KD_OK)
                return arg;
        }
    return NULL;
}

static void several_threads_may_read(void **state)
{
    (void)state;
    static const char *const files[] = {GOLDEN "plain.pth", GOLDEN "legacy_types.pth", GOLDEN "plain.expected.safetensors", GOLDEN "sharded"};
    for (size_t k = 0; k < sizeof files / sizeof files[0]; k++) {
        kd_err err = {0};
        kd_weights *w = NULL;
        pthread_t threads[3];
        assert_int_equal(kd_weights_open(&w, files[k], &err), KD_OK);
        for (int i = 0; i < 3; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, read_many, w), 0);
        for (int i = 0; i < 3; i++) {
            void *failed = NULL;
            pthread_join(threads[i], &failed);
            assert_null(failed);
        }
        kd_weights_close(w);
    }
}

/* -- damaged containers ------------------------------------------------------------------------------------------------------ */

static void every_truncation_is_refused(void **state)
{
    (void)state;
    static wf_bytes whole;
    wf_load(GOLDEN "protocol4.pth", &whole);
    for (size_t n = 0; n < whole.size; n++)
        wf_refused(whole.data, n, "kd-weights");
}

static void damaged_storage_fails_its_crc(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    float x[16];
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    wf_one_tensor(&pickle, "w", &t);
    wf_pth(&zip, &pickle);
    const float eleven = 11.0f;
    uint8_t *at = memmem(zip.out.data, zip.out.size, &eleven, sizeof eleven);
    assert_non_null(at);
    *at ^= 1;
    assert_int_equal(wf_open(&w, zip.out.data, zip.out.size, &err), KD_OK);
    assert_int_equal(kd_weights_read_f32(w, 0, x, 16, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "CRC"));
    kd_weights_close(w);
}

static void damaged_pickle_fails_its_crc(void **state)
{
    (void)state;
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    wf_one_tensor(&pickle, "w", &t);
    wf_pth(&zip, &pickle);
    uint8_t *at = memmem(zip.out.data, zip.out.size, "FloatStorage", 12);
    assert_non_null(at);
    *at = 'f';
    wf_refused(zip.out.data, zip.out.size, "CRC");
}

static void containers_that_are_not_torchs_are_refused(void **state)
{
    (void)state;
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    wf_one_tensor(&pickle, "w", &t);
    memset(&zip, 0, sizeof zip);
    wf_zip_add(&zip, "photo.jpg", "x", 1);
    wf_zip_end(&zip);
    wf_wrong(zip.out.data, zip.out.size, "no data.pkl");

    memset(&zip, 0, sizeof zip);
    wf_zip_end(&zip);
    wf_refused(zip.out.data, zip.out.size, "0 entries");

    memset(&zip, 0, sizeof zip);
    wf_zip_add(&zip, "archive/data.pkl", pickle.data, pickle.size);
    wf_zip_add(&zip, "archive/data.pkl", pickle.data, pickle.size);
    wf_zip_end(&zip);
    wf_refused(zip.out.data, zip.out.size, "two entries");

    memset(&zip, 0, sizeof zip);
    wf_zip_add(&zip, "archive/data.pkl", pickle.data, pickle.size);
    wf_zip_add(&zip, "archive/byteorder", "big", 3);
    wf_zip_end(&zip);
    wf_wrong(zip.out.data, zip.out.size, "big-endian");

    memset(&zip, 0, sizeof zip);
    wf_zip_add_as(&zip, "archive/data.pkl", pickle.data, pickle.size, 8, (uint32_t)pickle.size);
    wf_zip_end(&zip);
    wf_refused(zip.out.data, zip.out.size, "compressed");

    memset(&zip, 0, sizeof zip);
    wf_zip_add_as(&zip, "archive/data.pkl", pickle.data, pickle.size, 0, 0x7fffffff);
    wf_zip_end(&zip);
    wf_refused(zip.out.data, zip.out.size, "kd-weights");
}

/* -- pickles that no torch.save would write ---------------------------------------------------------------------------------- */

static void pickle_refused(const char *why)
{
    wf_pth(&zip, &pickle);
    wf_refused(zip.out.data, zip.out.size, why);
}

static void raw_refused(kd_status status, const char *bytes, size_t n, const char *why)
{
    pickle.size = 0;
    wf_add(&pickle, bytes, n);
    wf_pth(&zip, &pickle);
    wf_refused_as(status, zip.out.data, zip.out.size, why);
}
#define RAW_REFUSED(bytes, why) raw_refused(KD_EFAIL, bytes, sizeof(bytes) - 1, why)
#define RAW_WRONG(bytes, why) raw_refused(KD_EUSAGE, bytes, sizeof(bytes) - 1, why)

static void tensor_refused_as(kd_status status, wf_tensor t, const char *why)
{
    wf_one_tensor(&pickle, "w", &t);
    wf_pth(&zip, &pickle);
    wf_refused_as(status, zip.out.data, zip.out.size, why);
}

static void tensor_refused(wf_tensor t, const char *why) { tensor_refused_as(KD_EFAIL, t, why); }

static void views_must_stay_inside_their_storage(void **state)
{
    (void)state;
    const int64_t big = INT64_MAX;
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 1, 1, {17}, {1}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 1, 1, 1, {16}, {1}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 2, 2, {2, 2}, {15, 1}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 16, 0, 0, {0}, {0}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 17, 1, 1, {0}, {1}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, big, 1, 1, {1}, {1}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 1, 2, 2, {3, 3}, {big / 2, big / 2}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 1, 1, {big}, {big}}, "outside its storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, -1, 1, 1, {1}, {1}}, "a storage and an offset");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 1, 1, {-1}, {1}}, "non-negative");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 1, 1, {1}, {-1}}, "non-negative");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 1, 2, {1}, {1, 1}}, "differ in length");
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 9, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {0}}, "at most 8");
    /* Stride 0 lets a small storage claim any size. */
    tensor_refused((wf_tensor){"FloatStorage", "0", 16, 0, 3, 3, {1 << 20, 1 << 20, 1 << 20}, {0}}, "claims more than");
}

static void storages_must_exist_and_be_large_enough(void **state)
{
    (void)state;
    tensor_refused((wf_tensor){"FloatStorage", "9", 16, 0, 1, 1, {16}, {1}}, "storage '9'");
    tensor_refused((wf_tensor){"FloatStorage", "../version", 16, 0, 1, 1, {16}, {1}}, "storage '../version'");
    tensor_refused((wf_tensor){"FloatStorage", "1", 16, 0, 1, 1, {2}, {1}}, "needs 64 bytes, the file has 8");
    tensor_refused((wf_tensor){"DoubleStorage", "0", 16, 0, 1, 1, {16}, {1}}, "needs 128 bytes, the file has 64");
    tensor_refused((wf_tensor){"FloatStorage", "0", -16, 0, 1, 1, {1}, {1}}, "isn't a storage");
    tensor_refused((wf_tensor){"FloatStorage", "0", INT64_MAX, 0, 1, 1, {1}, {1}}, "isn't a storage");
    tensor_refused_as(KD_EUSAGE, (wf_tensor){"ComplexFloatStorage", "0", 8, 0, 1, 1, {8}, {1}}, "torch.ComplexFloatStorage");
    static char key[100];
    memset(key, '7', sizeof key - 1);
    tensor_refused((wf_tensor){"FloatStorage", key, 16, 0, 1, 1, {16}, {1}}, "64 bytes");
}

static void duplicate_names_are_refused(void **state)
{
    (void)state;
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    pickle.size = 0;
    wf_op(&pickle, "}"); /* {"a.b": t, "a": {"b": t}} */
    wf_text(&pickle, "a.b");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "s");
    wf_text(&pickle, "a");
    wf_op(&pickle, "}");
    wf_text(&pickle, "b");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "ss.");
    pickle_refused("two tensors are named 'a.b'");
}

static void malformed_pickles_are_refused(void **state)
{
    (void)state;
    RAW_REFUSED("", "ends without STOP");
    RAW_REFUSED("}", "ends without STOP");
    RAW_REFUSED(".", "empty stack");
    RAW_REFUSED("(.", "stops inside a mark");
    RAW_REFUSED("u.", "misses a mark");
    RAW_REFUSED("}(K\x01u.", "isn't a dictionary"); /* one item: no pair */
    RAW_REFUSED("K\x01K\x02K\x03s.", "isn't a dictionary");
    RAW_REFUSED("}K\x01" "a.", "isn't a list");
    RAW_REFUSED("}(K\x01K\x02(0.", "empty stack"); /* a pop may not reach below a mark */
    RAW_REFUSED("h\x05.", "memo entry");
    RAW_REFUSED("}r\xff\xff\xff\xff.", "memo index");
    RAW_REFUSED("X\xff\xff\xff\xff" "abc", "longer than itself");
    RAW_REFUSED("\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "longer than itself");
    RAW_REFUSED("X\x06\0\0\0abc", "middle of an opcode");
    RAW_REFUSED("ctorch", "middle of a name");
    RAW_REFUSED("\x80\x09}.", "protocol");
    RAW_REFUSED("\x95\xff\0\0\0\0\0\0\0}.", "frame");
    RAW_REFUSED("K\x01\x85Q.", "persistent id");
    RAW_REFUSED("K\x01)R.", "calls something that isn't a function");
    RAW_REFUSED("ctorch\nSize\nK\x01R.", "without a tuple");
    RAW_REFUSED("ctorch._utils\n_rebuild_tensor_v2\n)R.", "fewer than four");
    RAW_REFUSED("ccollections\nOrderedDict\n(K\x01tR.", "list of pairs");
    RAW_REFUSED("K\x01K\x02\x93.", "isn't a string");
    RAW_REFUSED("}2.", "opcode 0x32");
    RAW_WRONG("cos\nsystem\n(X\x06\0\0\0touch tR.", "a Python object"); /* the call that would run a command */
    RAW_WRONG("N.", "holds None");
    RAW_WRONG("].", "no tensors");
    RAW_WRONG("(t.", "no tensors"); /* a mark on a stack that never held anything */
}

/* Lists that hold themselves or each other many times over must not be walked for ever. */
static void self_reference_ends_with_an_error(void **state)
{
    (void)state;
    RAW_REFUSED("]q\0h\0a.", "nested deeper");
    pickle.size = 0; /* l0 = []; l1 = [l0, l0]; l2 = [l1, l1]; ... 2^40 paths */
    wf_op(&pickle, "]q");
    wf_number(&pickle, 0, 1);
    for (int i = 0; i < 40; i++) {
        wf_op(&pickle, "](h");
        wf_number(&pickle, (uint64_t)i, 1);
        wf_op(&pickle, "h");
        wf_number(&pickle, (uint64_t)i, 1);
        wf_op(&pickle, "eq");
        wf_number(&pickle, (uint64_t)i + 1, 1);
    }
    wf_op(&pickle, ".");
    pickle_refused("refer to themselves");
    pickle.size = 0; /* depth */
    for (int i = 0; i < 200; i++)
        wf_op(&pickle, "](");
    for (int i = 0; i < 200; i++)
        wf_op(&pickle, "e");
    wf_op(&pickle, ".");
    pickle_refused("nested deeper");
}

/* A list of 20,000 pairs copied again and again through OrderedDict(list): quadratic work is cut off by the budget of values. */
static void copying_is_bounded(void **state)
{
    (void)state;
    pickle.size = 0;
    wf_op(&pickle, "](");
    for (int i = 0; i < 20000; i++)
        wf_op(&pickle, "NN\x86");
    wf_op(&pickle, "eq");
    wf_number(&pickle, 0, 1);
    for (int i = 0; i < 1000; i++) {
        wf_op(&pickle, "ccollections\nOrderedDict\nh");
        wf_number(&pickle, 0, 1);
        wf_op(&pickle, "\x85R0");
    }
    wf_op(&pickle, ".");
    pickle_refused("makes more than");
}

static void unknown_classes_and_calls_are_opaque(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    float x[16];
    const wf_tensor t = {"FloatStorage", "0", 16, 4, 2, 2, {3, 2}, {1, 3}};
    pickle.size = 0;
    wf_op(&pickle, "}(");
    wf_text(&pickle, "evil");
    wf_op(&pickle, "cos\nsystem\n");
    wf_text(&pickle, "touch EXECUTED");
    wf_op(&pickle, "\x85R");
    wf_text(&pickle, "object"); /* NEWOBJ, BUILD with a state, items set on it */
    wf_op(&pickle, "cbuiltins\nobject\n)\x81}bK\x01K\x02s");
    wf_text(&pickle, "w");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "u.");
    wf_pth(&zip, &pickle);
    assert_int_equal(wf_open(&w, zip.out.data, zip.out.size, &err), KD_OK);
    assert_int_equal(kd_weights_count(w), 1);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "w"), x, 6, &err), KD_OK);
    const float want[6] = {4, 7, 5, 8, 6, 9};
    assert_memory_equal(x, want, sizeof want);
    kd_weights_close(w);
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
}

static void python_2_dictionaries_and_byte_strings_are_read(void **state)
{
    (void)state;
    kd_err err = {0};
    kd_weights *w = NULL;
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    pickle.size = 0; /* OrderedDict([["w", t]]) with SHORT_BINSTRING */
    wf_add(&pickle, "\x80\x02" "ccollections\nOrderedDict\n]](U\x01w", 33);
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "ea\x85R.");
    wf_pth(&zip, &pickle);
    assert_int_equal(wf_open(&w, zip.out.data, zip.out.size, &err), KD_OK);
    assert_int_equal(kd_weights_find(w, "w"), 0);
    kd_weights_close(w);
}

static void running_out_of_memory_is_an_error(void **state)
{
    (void)state;
    for (size_t n = 1;; n++) {
        kd_weights *w = NULL;
        kd_err err = {0};
        float x[15];
        size_t live = kd_mem_live_bytes();
        kd_mem_fail_after(n);
        kd_status status = kd_weights_open(&w, GOLDEN "plain.pth", &err);
        if (status == KD_OK)
            status = kd_weights_read_f32(w, 0, x, 15, &err);
        kd_mem_fail_after(0);
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
        cmocka_unit_test(nested_checkpoint_equals_torch),
        cmocka_unit_test(module_state_dict_equals_torch),
        cmocka_unit_test(strided_and_shared_views_equal_torch),
        cmocka_unit_test(protocol_4_equals_torch),
        cmocka_unit_test(protocol_5_equals_torch),
        cmocka_unit_test(current_torch_equals_torch),
        cmocka_unit_test(a_file_without_checksums_equals_torch),
        cmocka_unit_test(lightning_checkpoint_equals_torch),
        cmocka_unit_test(malicious_pickle_runs_nothing),
        cmocka_unit_test(element_types_are_those_of_the_storages),
        cmocka_unit_test(other_torch_files_are_named_with_what_to_do),
        cmocka_unit_test(several_threads_may_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(damaged_storage_fails_its_crc),
        cmocka_unit_test(damaged_pickle_fails_its_crc),
        cmocka_unit_test(containers_that_are_not_torchs_are_refused),
        cmocka_unit_test(views_must_stay_inside_their_storage),
        cmocka_unit_test(storages_must_exist_and_be_large_enough),
        cmocka_unit_test(duplicate_names_are_refused),
        cmocka_unit_test(malformed_pickles_are_refused),
        cmocka_unit_test(self_reference_ends_with_an_error),
        cmocka_unit_test(copying_is_bounded),
        cmocka_unit_test(unknown_classes_and_calls_are_opaque),
        cmocka_unit_test(python_2_dictionaries_and_byte_strings_are_read),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("pth", tests, NULL, NULL);
}
