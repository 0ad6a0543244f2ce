/* Large weight files: resident memory stays near one tensor, and zip containers beyond 4 GiB are read. The files are sparse: they cost no disk. */
#include <fcntl.h>

#include "tests/weight_files.h"

enum { MIB = 1 << 20, TENSORS = 4, EACH = 12 * MIB /* elements: 48 MiB */, SLACK = 12 * MIB };

static float *out;

/* A line of /proc/self/status in bytes. */
static size_t status_bytes(const char *field)
{
    char line[200];
    size_t kib = 0, n = strlen(field);
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, field, n) == 0)
            kib = strtoul(line + n, NULL, 10);
    fclose(f);
    assert_true(kib > 0);
    return kib * 1024;
}

/* From here on VmHWM is the peak of resident memory. */
static size_t begin_peak(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    assert_true(fd >= 0 && write(fd, "5", 1) == 1);
    close(fd);
    return status_bytes("VmRSS:");
}

static void peak_is_small(size_t before, const char *when)
{
    size_t peak = status_bytes("VmHWM:");
    if (peak > before + SLACK)
        fail_msg("%s: resident memory rose by %zu MiB", when, (peak - before) / MIB);
}

static int make_buffer(void **state)
{
    (void)state;
    out = kd_malloc(EACH * sizeof *out);
    if (out == NULL)
        return -1;
    memset(out, 1, EACH * sizeof *out); /* resident before anything is measured */
    return 0;
}

static int free_buffer(void **state)
{
    (void)state;
    kd_free(out);
    return 0;
}

static void put(int fd, uint64_t at, const void *bytes, size_t n) { assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n); }

static int create(const char *path)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* Reads every tensor of zeros and the file's hash; the pages of 192 MiB may not gather. */
static void reads_in_little_memory(const char *path)
{
    kd_err err = {0};
    kd_weights *w = NULL;
    kd_sha256 sum;
    size_t before = begin_peak();
    if (kd_weights_open(&w, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
    peak_is_small(before, "after opening");
    assert_int_equal(kd_weights_count(w), TENSORS);
    assert_true(kd_weights_bytes(w) > (uint64_t)TENSORS * EACH * sizeof *out);
    for (int pass = 0; pass < 2; pass++) { /* the second time the file is in the page cache */
        for (int i = 0; i < TENSORS; i++)
            assert_int_equal(kd_weights_read_f32(w, i, out, EACH, &err), KD_OK);
        assert_true(out[0] == 0 && out[EACH - 1] == 0);
        peak_is_small(before, "after reading all tensors");
    }
    assert_int_equal(kd_weights_sha256(w, &sum, &err), KD_OK);
    peak_is_small(before, "after hashing");
    kd_weights_close(w);
    unlink(path);
}

static void a_large_safetensors_is_read_in_little_memory(void **state)
{
    (void)state;
    char header[600] = {0};
    size_t n = 8, bytes = EACH * sizeof *out;
    const char *path = wf_path("large.safetensors");
    int fd = create(path);
    for (int i = 0; i < TENSORS; i++)
        n += (size_t)snprintf(header + n, sizeof header - n, "%s\"t%d\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[%zu,%zu]}", i == 0 ? "{" : ",", i,
                              EACH, (size_t)i * bytes, (size_t)(i + 1) * bytes);
    header[n++] = '}';
    while (n % 8 != 0)
        header[n++] = ' ';
    header[0] = (char)((n - 8) & 0xff);
    header[1] = (char)((n - 8) >> 8);
    put(fd, 0, header, n);
    assert_int_equal(ftruncate(fd, (off_t)(n + TENSORS * bytes)), 0);
    close(fd);
    reads_in_little_memory(path);
}

/* One tensor per storage. (Of a transposed view all pages are needed at once; it costs its own size.) */
static void a_large_legacy_pth_is_read_in_little_memory(void **state)
{
    (void)state;
    static const char start[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s.\x80\x02}";
    static wf_bytes b;
    const char *path = wf_path("large.pth");
    char name[2] = "0";
    int fd = create(path);
    b.size = 0;
    wf_add(&b, start, sizeof start - 1);
    for (int i = 0; i < TENSORS; i++) {
        const wf_tensor t = {"FloatStorage", name, EACH, 0, 1, 1, {EACH}, {1}};
        name[0] = (char)('0' + i);
        wf_text(&b, name);
        wf_push_tensor(&b, &t);
        wf_op(&b, "s");
    }
    wf_add(&b, ".\x80\x02](", 5);
    for (int i = 0; i < TENSORS; i++) {
        name[0] = (char)('0' + i);
        wf_text(&b, name);
    }
    wf_op(&b, "e.");
    put(fd, 0, b.data, b.size);
    uint64_t at = b.size, count = EACH;
    for (int i = 0; i < TENSORS; i++, at += 8 + EACH * sizeof *out)
        put(fd, at, &count, 8);
    assert_int_equal(ftruncate(fd, (off_t)at), 0);
    close(fd);
    reads_in_little_memory(path);
}

/* A storage that belongs to one tensor isn't kept after the read; one that others share is, until the next. */
static void a_zip_pth_holds_at_most_one_storage(void **state)
{
    (void)state;
    static wf_zip zip;
    static wf_bytes pickle;
    const wf_tensor whole = {"FloatStorage", "0", 16, 0, 1, 1, {16}, {1}}, part = {"FloatStorage", "0", 16, 0, 1, 1, {4}, {1}},
                    other = {"FloatStorage", "1", 2, 0, 1, 1, {2}, {1}};
    kd_err err = {0};
    kd_weights *w = NULL;
    pickle.size = 0;
    wf_add(&pickle, "\x80\x02}", 3);
    const struct { const char *name; const wf_tensor *t; } items[] = {{"whole", &whole}, {"part", &part}, {"other", &other}};
    for (int i = 0; i < 3; i++) {
        wf_text(&pickle, items[i].name);
        wf_push_tensor(&pickle, items[i].t);
        wf_op(&pickle, "s");
    }
    wf_op(&pickle, ".");
    wf_pth(&zip, &pickle);
    assert_int_equal(wf_open(&w, zip.out.data, zip.out.size, &err), KD_OK);
    size_t live = kd_mem_live_bytes();
    assert_int_equal(kd_weights_read_f32(w, 0, out, 16, &err), KD_OK);
    assert_int_equal(kd_mem_live_bytes(), live);
    assert_int_equal(kd_weights_read_f32(w, 1, out, 4, &err), KD_OK);
    assert_true(kd_mem_live_bytes() > live && out[3] == 3);
    assert_int_equal(kd_weights_read_f32(w, 2, out, 2, &err), KD_OK);
    assert_int_equal(kd_mem_live_bytes(), live);
    kd_weights_close(w);
}

/* -- ZIP64: a storage of more than 4 GiB and one behind it, headers as torch writes them ----------------------------------------- */

typedef struct large_zip {
    int fd;
    uint64_t at;
    wf_bytes directory;
    int count;
} large_zip;

static void add_entry(large_zip *z, const char *name, const void *data, uint64_t size, uint32_t crc)
{
    static wf_bytes b;
    uint64_t start = z->at, name_length = strlen(name);
    b.size = 0;
    wf_add(&b, "PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0", 14); /* bit 3: sizes come later, bit 11: UTF-8 */
    wf_add(&b, "\0\0\0\0\0\0\0\0\0\0\0\0", 12);           /* CRC and sizes are zero here */
    wf_number(&b, name_length, 2);
    wf_number(&b, 4, 2);
    wf_add(&b, name, name_length);
    wf_add(&b, "FB\0\0", 4); /* torch's padding, empty */
    put(z->fd, z->at, b.data, b.size);
    z->at += b.size;
    if (data != NULL)
        put(z->fd, z->at, data, (size_t)size);
    z->at += size;
    b.size = 0;
    wf_add(&b, "PK\x07\x08", 4);
    wf_number(&b, crc, 4);
    wf_number(&b, size, size > UINT32_MAX ? 8 : 4);
    wf_number(&b, size, size > UINT32_MAX ? 8 : 4);
    put(z->fd, z->at, b.data, b.size);
    z->at += b.size;

    wf_bytes *d = &z->directory;
    int big_size = size > UINT32_MAX, big_offset = start > UINT32_MAX, extra = 16 * big_size + 8 * big_offset;
    wf_add(d, "PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0", 16);
    wf_number(d, crc, 4);
    wf_number(d, big_size ? UINT32_MAX : size, 4);
    wf_number(d, big_size ? UINT32_MAX : size, 4);
    wf_number(d, name_length, 2);
    wf_number(d, extra > 0 ? 4 + (uint64_t)extra : 0, 2);
    wf_add(d, "\0\0\0\0\0\0\0\0\0\0", 10);
    wf_number(d, big_offset ? UINT32_MAX : start, 4);
    wf_add(d, name, name_length);
    if (extra > 0) {
        wf_number(d, 1, 2);
        wf_number(d, (uint64_t)extra, 2);
        for (int i = 0; i < 2 * big_size; i++)
            wf_number(d, size, 8);
        if (big_offset)
            wf_number(d, start, 8);
    }
    z->count++;
}

static void end_zip(large_zip *z)
{
    static wf_bytes b;
    uint64_t directory_at = z->at, directory_size = z->directory.size;
    b.size = 0;
    wf_add(&b, z->directory.data, z->directory.size);
    wf_add(&b, "PK\x06\x06", 4); /* ZIP64 end of central directory, locator, end */
    wf_number(&b, 44, 8);
    wf_add(&b, "\x1e\x03\x2d\0\0\0\0\0\0\0\0\0", 12);
    wf_number(&b, (uint64_t)z->count, 8);
    wf_number(&b, (uint64_t)z->count, 8);
    wf_number(&b, directory_size, 8);
    wf_number(&b, directory_at, 8);
    wf_add(&b, "PK\x06\x07\0\0\0\0", 8);
    wf_number(&b, directory_at + directory_size, 8);
    wf_number(&b, 1, 4);
    wf_add(&b, "PK\x05\x06\0\0\0\0", 8);
    wf_number(&b, (uint64_t)z->count, 2);
    wf_number(&b, (uint64_t)z->count, 2);
    wf_number(&b, directory_size, 4);
    wf_number(&b, UINT32_MAX, 4);
    wf_number(&b, 0, 2);
    put(z->fd, z->at, b.data, b.size);
}

static void a_zip_beyond_4_gib_is_read(void **state)
{
    (void)state;
    static large_zip z;
    static wf_bytes pickle;
    const int64_t huge = (int64_t)1100 * MIB; /* elements: 4.3 GiB */
    const wf_tensor first = {"FloatStorage", "0", huge, huge - 1, 1, 1, {1}, {1}}, second = {"FloatStorage", "1", 4, 0, 1, 1, {4}, {1}};
    const float values[4] = {1, 2, 3, 4};
    const char *path = wf_path("zip64.pth");
    kd_err err = {0};
    kd_weights *w = NULL;
    pickle.size = 0;
    wf_add(&pickle, "\x80\x02}", 3);
    wf_text(&pickle, "huge");
    wf_push_tensor(&pickle, &first);
    wf_op(&pickle, "s");
    wf_text(&pickle, "behind");
    wf_push_tensor(&pickle, &second);
    wf_op(&pickle, "s.");
    z.fd = create(path);
    add_entry(&z, "stem/data.pkl", pickle.data, pickle.size, wf_crc32(pickle.data, pickle.size));
    add_entry(&z, "stem/data/0", NULL, (uint64_t)huge * 4, 0);
    add_entry(&z, "stem/data/1", values, sizeof values, wf_crc32((const uint8_t *)values, sizeof values));
    add_entry(&z, "stem/version", "3\n", 2, wf_crc32((const uint8_t *)"3\n", 2));
    end_zip(&z);
    close(z.fd);
    size_t before = begin_peak();
    if (kd_weights_open(&w, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
    unlink(path);
    assert_true(kd_weights_bytes(w) > (uint64_t)4 << 30);
    assert_int_equal(kd_weights_count(w), 2);
    assert_int_equal(kd_weights_read_f32(w, kd_weights_find(w, "behind"), out, 4, &err), KD_OK);
    assert_memory_equal(out, values, sizeof values);
    kd_weights_close(w);
    peak_is_small(before, "after reading what lies behind 4 GiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_large_safetensors_is_read_in_little_memory),
        cmocka_unit_test(a_large_legacy_pth_is_read_in_little_memory),
        cmocka_unit_test(a_zip_pth_holds_at_most_one_storage),
        cmocka_unit_test(a_zip_beyond_4_gib_is_read),
    };
    return cmocka_run_group_tests_name("weights_large", tests, make_buffer, free_buffer);
}
