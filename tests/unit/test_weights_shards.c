/* Sets of shards and folders: the tensors of all files under one name, index and shards in agreement, and a missing part said at once. */
#include <sys/stat.h>

#include "common/weights/safetensors.h"
#include "tests/weight_files.h"

#define GOLDEN "tests/golden/weights/"

static char folder[256];

static const char *in_folder(const char *name)
{
    static char path[4][600];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static int make_folder(void **state)
{
    (void)state;
    const char *dir = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/kd-shards-XXXXXX", dir != NULL ? dir : "/tmp");
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"a.safetensors", "b.safetensors", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json", "1.bin", "2.bin"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unlink(in_folder(names[i]));
    return rmdir(folder);
}

/* a.safetensors: x = [1, 2], y = [3]; b.safetensors: z = [4, 5, 6] */
static void write_shards(void)
{
    static const float x[2] = {1, 2}, y[1] = {3}, z[3] = {4, 5, 6};
    const kd_tensor a[2] = {{"x", KD_F32, 1, {2}, x}, {"y", KD_F32, 1, {1}, y}}, b[1] = {{"z", KD_F32, 1, {3}, z}};
    kd_err err = {0};
    assert_int_equal(kd_safetensors_write(in_folder("a.safetensors"), a, 2, NULL, &err), KD_OK);
    assert_int_equal(kd_safetensors_write(in_folder("b.safetensors"), b, 1, NULL, &err), KD_OK);
}

static void write_index(const char *text) { wf_save(in_folder("model.safetensors.index.json"), text, strlen(text)); }

#define WHOLE "{\"metadata\":{\"total_size\":24},\"weight_map\":{\"z\":\"b.safetensors\",\"x\":\"a.safetensors\",\"y\":\"a.safetensors\"}}"

static void opens(kd_weights **w, const char *path)
{
    kd_err err = {0};
    if (kd_weights_open(w, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
}

static void refused(kd_status status, const char *path, const char *why)
{
    kd_weights *w = NULL;
    kd_err err = {0};
    size_t live = kd_mem_live_bytes();
    kd_status got = kd_weights_open(&w, path, &err);
    if (got != status)
        fail_msg("expected status %d with '%s', got %d: %s", status, why, got, err.msg);
    if (strstr(err.msg, why) == NULL)
        fail_msg("expected '%s' in: %s", why, err.msg);
    assert_int_equal(kd_mem_live_bytes(), live);
}

static void index_refused(const char *text, const char *why)
{
    write_index(text);
    refused(KD_EFAIL, folder, why);
}

static void reads_one(const kd_weights *w, const char *name, float first, size_t n)
{
    float out[8];
    kd_err err = {0};
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, name), out, n, &err), KD_OK);
    assert_true(out[0] == first && out[n - 1] == first + (float)(n - 1));
}

/* -- sets -------------------------------------------------------------------------------------------------------------------- */

static void a_set_has_the_tensors_of_all_shards(void **state)
{
    (void)state;
    kd_weights *w = NULL;
    size_t live = kd_mem_live_bytes();
    write_shards();
    write_index(WHOLE);
    opens(&w, in_folder("model.safetensors.index.json"));
    assert_int_equal(kd_weights_count(w), 3);
    assert_int_equal(kd_weights_files(w), 2);
    assert_string_equal(kd_weights_container(w), "safetensors");
    assert_string_equal(kd_weights_dir(w), folder);
    assert_string_equal(kd_weights_path(w), in_folder("model.safetensors.index.json"));
    uint64_t a = 0, b = 0;
    assert_int_equal(kd_io_file_size(in_folder("a.safetensors"), &a, NULL), KD_OK);
    assert_int_equal(kd_io_file_size(in_folder("b.safetensors"), &b, NULL), KD_OK);
    assert_int_equal(kd_weights_bytes(w), a + b);
    reads_one(w, "x", 1, 2);
    reads_one(w, "y", 3, 1);
    reads_one(w, "z", 4, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(kd_weights_find(w, kd_weights_info(w, i).name), i);
    kd_weights_close(w);
    assert_int_equal(kd_mem_live_bytes(), live);
}

/* The set that transformers wrote, against what the safetensors package reads from it. */
static void a_set_of_transformers_has_the_values_that_safetensors_reads(void **state)
{
    (void)state;
    kd_weights *set = NULL, *one = NULL;
    kd_err err = {0};
    opens(&set, GOLDEN "sharded");
    opens(&one, GOLDEN "sharded.expected.safetensors");
    assert_true(kd_weights_files(set) > 1);
    assert_int_equal(kd_weights_count(set), kd_weights_count(one));
    for (int k = 0; k < kd_weights_count(one); k++) {
        float a[2048], b[2048];
        kd_tensor t = kd_weights_info(one, k);
        size_t n = kd_tensor_numel(&t);
        assert_true(n <= 2048);
        int i = kd_weights_find(set, t.name);
        assert_true(i >= 0);
        assert_int_equal(kd_weights_read_f32(set, i, a, n, &err), KD_OK);
        assert_int_equal(kd_weights_read_f32(one, k, b, n, &err), KD_OK);
        assert_memory_equal(a, b, n * sizeof *a);
    }
    kd_weights_close(set);
    kd_weights_close(one);
}

static void shards_of_a_pytorch_model_are_read_too(void **state)
{
    (void)state;
    static wf_bytes pickle;
    static wf_zip zip;
    const wf_tensor t = {"FloatStorage", "0", 16, 4, 1, 1, {3}, {1}};
    const char *index = "{\"weight_map\":{\"one\":\"1.bin\",\"two\":\"2.bin\"}}";
    kd_weights *w = NULL;
    wf_one_tensor(&pickle, "one", &t);
    wf_pth(&zip, &pickle);
    wf_save(in_folder("1.bin"), zip.out.data, zip.out.size);
    wf_one_tensor(&pickle, "two", &t);
    wf_pth(&zip, &pickle);
    wf_save(in_folder("2.bin"), zip.out.data, zip.out.size);
    wf_save(in_folder("pytorch_model.bin.index.json"), index, strlen(index));
    opens(&w, folder);
    assert_int_equal(kd_weights_files(w), 2);
    reads_one(w, "one", 4, 3);
    reads_one(w, "two", 4, 3);
    kd_weights_close(w);
}

static void identity_of_a_set_is_what_sha256sum_prints(void **state)
{
    (void)state;
    kd_weights *w = NULL;
    kd_err err = {0};
    kd_sha256 got, again, want;
    char command[600], text[600];
    write_shards();
    write_index(WHOLE);
    opens(&w, folder);
    assert_int_equal(kd_weights_sha256(w, &got, &err), KD_OK);
    assert_int_equal(kd_weights_sha256(w, &again, &err), KD_OK);
    kd_weights_close(w);
    snprintf(command, sizeof command, "cd '%s' && sha256sum a.safetensors b.safetensors", folder);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text, f);
    pclose(f);
    want = kd_sha256_of(text, n);
    assert_memory_equal(got.b, want.b, sizeof want.b);
    assert_memory_equal(got.b, again.b, sizeof want.b);
}

static void half_a_set_names_the_first_missing_shard(void **state)
{
    (void)state;
    write_shards();
    write_index(WHOLE);
    unlink(in_folder("a.safetensors"));
    refused(KD_EUSAGE, folder, "shard a.safetensors is missing (1 of 2 are there)");
    unlink(in_folder("b.safetensors"));
    refused(KD_EUSAGE, folder, "shard a.safetensors is missing (0 of 2 are there)");
}

static void one_shard_alone_opens_as_what_it_is(void **state)
{
    (void)state;
    kd_weights *w = NULL;
    opens(&w, GOLDEN "sharded/model-00001-of-00003.safetensors");
    assert_int_equal(kd_weights_files(w), 1);
    assert_string_equal(kd_weights_dir(w), GOLDEN "sharded");
    kd_weights_close(w);
}

static void index_and_shards_must_agree(void **state)
{
    (void)state;
    write_shards();
    index_refused("{\"weight_map\":{\"z\":\"b.safetensors\",\"x\":\"a.safetensors\"}}", "a.safetensors holds tensor 'y', which the index doesn't list");
    index_refused("{\"weight_map\":{\"z\":\"a.safetensors\",\"x\":\"a.safetensors\",\"y\":\"a.safetensors\"}}", "tensor 'z' isn't in a.safetensors");
    index_refused("{\"weight_map\":{\"z\":\"b.safetensors\",\"q\":\"b.safetensors\"}}", "tensor 'q' isn't in b.safetensors");
    index_refused("{\"weight_map\":{\"z\":\"model.safetensors.index.json\"}}", "is JSON, where an index names it as a shard");
    wf_save(in_folder("a.safetensors"), "12345678901234567890", 20);
    write_index(WHOLE);
    refused(KD_EUSAGE, folder, "a.safetensors"); /* the sentence names the shard, not the index */
    wf_save(in_folder("a.safetensors"), "", 0);
    refused(KD_EFAIL, folder, "a.safetensors: the file is empty");
}

/* -- the index as foreign bytes ---------------------------------------------------------------------------------------------- */

static void shards_lie_beside_the_index_only(void **state)
{
    (void)state;
    static const char *const names[] = {"../b.safetensors", "/etc/passwd", "", ".", "..", "x\\\\b", "a\\nb", "sub/b.safetensors"};
    char text[200];
    write_shards();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(text, sizeof text, "{\"weight_map\":{\"z\":\"%s\"}}", names[i]);
        index_refused(text, "expected the plain name of a file in the same folder");
    }
    index_refused("{\"weight_map\":{\"z\":7}}", "expected the plain name");
    assert_int_equal(mkdir(in_folder("pytorch_model.bin"), 0700), 0); /* a folder of the name of a shard */
    index_refused("{\"weight_map\":{\"z\":\"pytorch_model.bin\"}}", "pytorch_model.bin");
    rmdir(in_folder("pytorch_model.bin"));
}

static void a_malformed_index_is_refused(void **state)
{
    (void)state;
    index_refused("{\"weight_map\":", "not valid JSON");
    index_refused("{\"weight_map\":{}}", "lists 0 tensors");
    index_refused("{\"weight_map\":{\"z\":\"b\",\"z\":\"c\"}}", "duplicate");
    static char many[20000];
    size_t n = (size_t)snprintf(many, sizeof many, "{\"weight_map\":{");
    for (int i = 0; i < 300; i++)
        n += (size_t)snprintf(many + n, sizeof many - n, "\"%d\":\"%d\",", i, i);
    snprintf(many + n, sizeof many - n, "\"x\":\"x\"}}");
    index_refused(many, "more than 256 shards");
    write_index("{\"hidden_size\": 384}");
    refused(KD_EUSAGE, folder, "has no weight_map");
    write_index("  {\"weight_map\": [1]}");
    refused(KD_EUSAGE, folder, "has no weight_map");
}

/* -- folders ----------------------------------------------------------------------------------------------------------------- */

static void a_folder_means_its_index_then_its_file(void **state)
{
    (void)state;
    static const float one[1] = {1};
    const kd_tensor t = {"alone", KD_F32, 1, {1}, one};
    kd_weights *w = NULL;
    kd_err err = {0};
    char slashed[300];
    refused(KD_EUSAGE, folder, "a folder without model.safetensors.index.json, model.safetensors");
    wf_save(in_folder("pytorch_model.bin"), "<html>", 6);
    refused(KD_EUSAGE, folder, "pytorch_model.bin: the file is a web page");
    assert_int_equal(kd_safetensors_write(in_folder("model.safetensors"), &t, 1, NULL, &err), KD_OK);
    snprintf(slashed, sizeof slashed, "%s/", folder);
    opens(&w, slashed);
    assert_int_equal(kd_weights_find(w, "alone"), 0);
    assert_int_equal(kd_weights_files(w), 1);
    assert_string_equal(kd_weights_dir(w), folder);
    kd_weights_close(w);
    write_shards();
    write_index(WHOLE);
    opens(&w, folder);
    assert_int_equal(kd_weights_count(w), 3);
    kd_weights_close(w);
}

static void running_out_of_memory_is_an_error(void **state)
{
    (void)state;
    write_shards();
    write_index(WHOLE);
    for (size_t n = 1;; n++) {
        kd_weights *w = NULL;
        kd_err err = {0};
        kd_sha256 sum;
        size_t live = kd_mem_live_bytes();
        kd_mem_fail_after(n);
        kd_status status = kd_weights_open(&w, folder, &err);
        if (status == KD_OK)
            status = kd_weights_sha256(w, &sum, &err);
        kd_mem_fail_after(0);
        kd_weights_close(w);
        assert_int_equal(kd_mem_live_bytes(), live);
        if (status == KD_OK) {
            assert_true(n > 10);
            return;
        }
        assert_int_equal(status, KD_EFAIL);
        assert_true(err.msg[0] != '\0');
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(a_set_has_the_tensors_of_all_shards),
        cmocka_unit_test(a_set_of_transformers_has_the_values_that_safetensors_reads),
        TEST(shards_of_a_pytorch_model_are_read_too),
        TEST(identity_of_a_set_is_what_sha256sum_prints),
        TEST(half_a_set_names_the_first_missing_shard),
        cmocka_unit_test(one_shard_alone_opens_as_what_it_is),
        TEST(index_and_shards_must_agree),
        TEST(shards_lie_beside_the_index_only),
        TEST(a_malformed_index_is_refused),
        TEST(a_folder_means_its_index_then_its_file),
        TEST(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("weights_shards", tests, NULL, NULL);
}
