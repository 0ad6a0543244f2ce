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

/* Pickled modules, whole or in a checkpoint of ultralytics' layout: what state_dict() gives. */
static void pickled_modules_equal_torchs_state_dict(void **state)
{
    (void)state;
    static const char *const files[] = {"whole_module.pth", "module_alone.pt", "module_legacy.pt", "module_ema.pt", "module_model.pt", "module_both.pt"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        wf_equals_torch(files[i]);
}

/* A state_dict under "ema" is a dictionary as ever, and a module that lies elsewhere is passed over. */
static void modules_that_are_not_the_checkpoints_are_passed_over(void **state) { (void)state; wf_equals_torch("module_ignored.pt"); }

static void the_container_says_which_module_was_read(void **state)
{
    (void)state;
    static const struct { const char *file, *container; } cases[] = {
        {GOLDEN "plain.pth", "PyTorch .pth (zip)"}, {GOLDEN "legacy_types.pth", "PyTorch .pth (legacy)"},
        {GOLDEN "module_ignored.pt", "PyTorch .pth (zip)"}, {GOLDEN "module_alone.pt", "PyTorch .pth (zip), a pickled module"},
        {GOLDEN "module_legacy.pt", "PyTorch .pth (legacy), a pickled module"}, {GOLDEN "module_both.pt", "PyTorch .pth (zip), the pickled module under 'ema'"},
        {GOLDEN "module_model.pt", "PyTorch .pth (zip), the pickled module under 'model'"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kd_err err = {0};
        kd_weights *w = NULL;
        assert_int_equal(kd_weights_open(&w, cases[i].file, &err), KD_OK);
        assert_string_equal(kd_weights_container(w), cases[i].container);
        kd_weights_close(w);
    }
}

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
        {GOLDEN "bare_tensor.pth", "holds a tensor"}, {GOLDEN "bare_tensor.pth", "state_dict()"},
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
    RAW_REFUSED("](K\x01\x90.", "isn't a set");
    RAW_REFUSED("\x8f(K\x01" "e.", "isn't a list");
    RAW_REFUSED("cbuiltins\nset\nK\x01\x85R.", "set from something");
    RAW_REFUSED("c__builtin__\nset\n]]\x86R.", "set from something");
    RAW_REFUSED("cm\nC\n)\x81}b}b.", "builds an object twice");
    RAW_REFUSED("b.", "empty stack");
    RAW_REFUSED("}b.", "empty stack");
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

/* A list of 100,000 items, 70,000 times in another: seven thousand million items to look at, in a file of 240 kB. */
static void what_is_shared_is_not_walked_without_bound(void **state)
{
    (void)state;
    pickle.size = 0;
    wf_op(&pickle, "](");
    for (int i = 0; i < 100000; i++)
        wf_op(&pickle, "N");
    wf_op(&pickle, "eq");
    wf_number(&pickle, 0, 1);
    wf_op(&pickle, "0](");
    for (int i = 0; i < 70000; i++) {
        wf_op(&pickle, "h");
        wf_number(&pickle, 0, 1);
    }
    wf_op(&pickle, "e.");
    pickle_refused("refer to themselves");
}

/* -- modules that no torch.save would write ---------------------------------------------------------------------------------- */

/* An object of an unknown class, its state begun; "ub" ends it. */
static void begin_module(void)
{
    wf_op(&pickle, "cultralytics.nn.tasks\nDetectionModel\n)\x81}(");
}

static void put_dictionary(const char *name)
{
    wf_text(&pickle, name);
    wf_op(&pickle, "}");
}

/* {"_parameters": {"w": tensor}, "_buffers": {}, "_modules": {}, as they are given. */
static void put_parts(void)
{
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    put_dictionary("_parameters");
    wf_text(&pickle, "w");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "s");
    put_dictionary("_buffers");
    put_dictionary("_modules");
}

static void opened_names(const char *const *names, int count)
{
    kd_err err = {0};
    kd_weights *w = NULL;
    wf_pth(&zip, &pickle);
    if (wf_open(&w, zip.out.data, zip.out.size, &err) != KD_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(kd_weights_count(w), count);
    for (int i = 0; i < count; i++)
        assert_string_equal(kd_weights_info(w, i).name, names[i]);
    kd_weights_close(w);
}

/* Python's rules: of two values under one key the later one; a state of two parts is __dict__ and slots; an object without the three dictionaries is no
 * module; what isn't a tensor or a module is passed over. */
static void a_modules_state_is_read_as_python_would(void **state)
{
    (void)state;
    const wf_tensor t = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}};
    pickle.size = 0;
    begin_module();
    put_dictionary("_parameters");
    wf_text(&pickle, "gone");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "s");
    put_parts();
    wf_text(&pickle, "_modules"); /* a third time: None, a number, an object without a state, a module */
    wf_op(&pickle, "}(");
    wf_text(&pickle, "none");
    wf_op(&pickle, "N");
    wf_text(&pickle, "number");
    wf_op(&pickle, "K\x05");
    wf_text(&pickle, "object");
    wf_op(&pickle, "cm\nC\n)\x81");
    wf_text(&pickle, "list");
    wf_op(&pickle, "](");
    wf_push_tensor(&pickle, &t);
    wf_op(&pickle, "e");
    wf_text(&pickle, "inner");
    begin_module();
    put_parts();
    wf_op(&pickle, "ub");
    wf_op(&pickle, "u");
    wf_op(&pickle, "u}\x86" "b."); /* the state with slots */
    opened_names((const char *const[]){"w", "inner.w"}, 2);

    pickle.size = 0; /* only two of the three: an object like any other */
    begin_module();
    put_dictionary("_parameters");
    put_dictionary("_modules");
    wf_op(&pickle, "ub.");
    wf_pth(&zip, &pickle);
    wf_wrong(zip.out.data, zip.out.size, "a Python object");
}

static void modules_without_tensors_are_named(void **state)
{
    (void)state;
    pickle.size = 0;
    wf_op(&pickle, "}");
    wf_text(&pickle, "model");
    begin_module();
    put_dictionary("_parameters");
    put_dictionary("_buffers");
    put_dictionary("_modules");
    wf_op(&pickle, "ubs.");
    wf_pth(&zip, &pickle);
    wf_wrong(zip.out.data, zip.out.size, "module has no parameters");
}

static void a_set_of_left_out_buffers_must_be_a_set(void **state)
{
    (void)state;
    pickle.size = 0;
    begin_module();
    put_parts();
    wf_text(&pickle, "_non_persistent_buffers_set");
    wf_op(&pickle, "]ub.");
    pickle_refused("isn't a set");
}

static void a_module_may_not_hold_itself(void **state)
{
    (void)state;
    pickle.size = 0; /* modules[0] = the module that is being built, from the memo */
    wf_op(&pickle, "cm\nM\n)\x81q");
    wf_number(&pickle, 0, 1);
    wf_op(&pickle, "}(");
    put_parts();
    wf_text(&pickle, "_modules");
    wf_op(&pickle, "}");
    wf_text(&pickle, "self");
    wf_op(&pickle, "h");
    wf_number(&pickle, 0, 1);
    wf_op(&pickle, "sub.");
    pickle_refused("nested deeper");

    pickle.size = 0; /* m0 without modules; m1 holds m0 twice; ... 2^40 paths without one tensor */
    for (int i = 0; i <= 40; i++) {
        wf_op(&pickle, "cm\nM\n)\x81q");
        wf_number(&pickle, (uint64_t)i, 1);
        wf_op(&pickle, "}(");
        put_dictionary("_parameters");
        put_dictionary("_buffers");
        put_dictionary("_modules");
        for (int k = 0; k < 2 && i > 0; k++) {
            wf_text(&pickle, k == 0 ? "a" : "b");
            wf_op(&pickle, "h");
            wf_number(&pickle, (uint64_t)i - 1, 1);
            wf_op(&pickle, "s");
        }
        wf_op(&pickle, "ub");
    }
    wf_op(&pickle, ".");
    pickle_refused("refer to themselves");
}

/* 20,000 buffers against 20,000 names that leave some out: a product that is bounded too. */
static void the_names_of_left_out_buffers_are_bounded(void **state)
{
    (void)state;
    pickle.size = 0;
    begin_module();
    put_dictionary("_parameters");
    wf_text(&pickle, "_buffers");
    wf_op(&pickle, "}(");
    for (int i = 0; i < 20000; i++)
        wf_op(&pickle, "NN");
    wf_op(&pickle, "u");
    put_dictionary("_modules");
    wf_text(&pickle, "_non_persistent_buffers_set");
    wf_op(&pickle, "\x8f(");
    for (int i = 0; i < 20000; i++)
        wf_op(&pickle, "N");
    wf_op(&pickle, "\x90ub.");
    pickle_refused("refer to themselves");
}

/* What the file executes when Python loads it: a module whose class is a function of the system. */
static void a_malicious_class_is_a_name(void **state)
{
    (void)state;
    pickle.size = 0;
    wf_op(&pickle, "}");
    wf_text(&pickle, "model");
    wf_op(&pickle, "cos\nsystem\n");
    wf_text(&pickle, "touch EXECUTED");
    wf_op(&pickle, "\x85R}(");
    put_parts();
    wf_op(&pickle, "ubs.");
    opened_names((const char *const[]){"w"}, 1);
    assert_int_not_equal(access("EXECUTED", F_OK), 0);
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

static void out_of_memory_is_an_error(const char *file_name, size_t count)
{
    for (size_t n = 1;; n++) {
        kd_weights *w = NULL;
        kd_err err = {0};
        float x[15];
        size_t live = kd_mem_live_bytes();
        kd_mem_fail_after(n);
        kd_status status = kd_weights_open(&w, file_name, &err);
        if (status == KD_OK)
            status = kd_weights_read_f32(w, 0, x, count, &err);
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

static void running_out_of_memory_is_an_error(void **state)
{
    (void)state;
    out_of_memory_is_an_error(GOLDEN "plain.pth", 15);
    out_of_memory_is_an_error(GOLDEN "module_ema.pt", 2);
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
        cmocka_unit_test(pickled_modules_equal_torchs_state_dict),
        cmocka_unit_test(modules_that_are_not_the_checkpoints_are_passed_over),
        cmocka_unit_test(the_container_says_which_module_was_read),
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
        cmocka_unit_test(what_is_shared_is_not_walked_without_bound),
        cmocka_unit_test(a_modules_state_is_read_as_python_would),
        cmocka_unit_test(modules_without_tensors_are_named),
        cmocka_unit_test(a_set_of_left_out_buffers_must_be_a_set),
        cmocka_unit_test(a_module_may_not_hold_itself),
        cmocka_unit_test(the_names_of_left_out_buffers_are_bounded),
        cmocka_unit_test(a_malicious_class_is_a_name),
        cmocka_unit_test(copying_is_bounded),
        cmocka_unit_test(unknown_classes_and_calls_are_opaque),
        cmocka_unit_test(python_2_dictionaries_and_byte_strings_are_read),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("pth", tests, NULL, NULL);
}
