/* Bench of the cache as a store: durable writing and cold or warm random reads of records of one size, ours beside plain LMDB on the same file.
 *
 *     bench_cache write FILE.kdc KB COUNT        writes COUNT views of one record of KB kilobytes of noise (f16) and seals; MB/s of record bytes, writing and sealing apart
 *     bench_cache read FILE.kdc HOW [COUNT]      random order, every byte looked at; HOW: lmdb (plain, MDB_NORDAHEAD), raw (checked, read ahead), decoded (to f32, read ahead)
 *     bench_cache decode DTYPE ROWS WIDTH        unpacks one record again and again on one thread: GB/s of f16-equivalent output
 *
 * Reads are cold when the caller has dropped the file from the page cache (tests/bench/cache.sh). One JSON line each. */
#include <fcntl.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/store.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/rng.h"

enum { WIDTH = 256, AHEAD = 64, PAGE = 4096 };

static kd_err err;

static kd_recipe recipe_of(const char *dtype, int rows, int width)
{
    json_t *j = json_pack("{s:i,s:{s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:s,s:f,s:[f,f,f],s:[f,f,f]},s:[i],s:b,s:b,s:{s:s},s:i,s:[i,i],s:s,s:s,s:[s],s:[i,i],s:i,s:i,s:[s],s:{s:s}}", "format_version", KD_FORMAT_VERSION,
                          "teacher", "sha256", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "tensors", "", "family", "dinov2", "width", width, "depth", 12, "heads", 1, "patch", 14,
                          "registers", 0, "positions", "official", "layer_norm_eps", 1e-6, "mean", 0.5, 0.5, 0.5, "std", 0.5, 0.5, 0.5, "layers", 1, "layer_norm", 1, "layer_concat", 0, "augment", "name", "bench",
                          "seed", 0, "image_size", 224, 224, "decoder", "0123456789abcdef0123456789abcdef", "exif", "ignore", "features", "patch", "grid", 1, rows, "registers", 0, "width", width,
                          "patch_targets", "full", "store", "dtype", dtype);
    kd_recipe r;
    if (kd_recipe_from_json(&r, j, "the bench's recipe", &err) != KD_OK) {
        kd_log_error("bench_cache", &err, 0);
        memset(&r, 0, sizeof r);
    }
    return r;
}

static kd_hash128 id_of(uint64_t i)
{
    return kd_xxh128(&i, sizeof i);
}

/* xorshift: noise that no codec makes smaller. */
static void noise(uint8_t *out, size_t n, uint64_t seed)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out[i] = (uint8_t)(x >> 56);
    }
}

/* ---- writing ---- */

static kd_status add(kd_writer *w, const kd_recipe *r, uint64_t i, uint8_t *payload, kd_record_buf *buf, kd_record_scratch *scratch)
{
    kd_view_entry v = {.image = id_of(i), .view_hash = id_of(i + 1)};
    kd_image_entry e = {.image = v.image, .rel = "noise.jpg", .file_size = 1, .width = 224, .height = 224};
    kd_policy policy;
    kd_record_head head = kd_recipe_head(r, KD_FEATURE_PATCH, &v.image, 0, 1);
    size_t n = kd_stored_bytes(r->dtype, head.rows, head.width);
    KD_TRY(kd_policy_load(&policy, "eval", 224, 224, &err));
    v.plan = kd_plan_draw(&policy, 0, &v.image, 0, 224, 224);
    head.view_hash = v.view_hash;
    noise(payload, n, i);
    for (size_t k = 0; k < n / 2; k++)
        payload[k] &= 0x7b; /* the high bytes: finite halves */
    KD_TRY(kd_record_encode(buf, &head, payload, 1, scratch, &err));
    return kd_writer_add_view(w, &e, &v, &(kd_record_ref){KD_FEATURE_PATCH, 1, buf->bytes, buf->size}, 1, &err);
}

static kd_status write_file(const char *path, int kilobytes, uint64_t count)
{
    int rows = kilobytes * 1000 / (2 * WIDTH);
    kd_recipe r = recipe_of("f16", rows, WIDTH);
    uint8_t *payload = kd_malloc((size_t)rows * WIDTH * 2);
    kd_record_buf buf = {0};
    kd_record_scratch scratch = {0};
    kd_writer *w;
    double written = 0, sealed, bytes, encode = 0;
    KD_TRY(kd_writer_open(&w, path, &r, NULL, 0, &err));
    kd_status status = KD_OK;
    double begin = kd_now();
    for (uint64_t i = 0; i < count && status == KD_OK; i++)
        status = add(w, &r, i, payload, &buf, &scratch);
    if (status == KD_OK)
        status = kd_writer_commit(w, &err);
    written = kd_now() - begin;
    bytes = (double)kd_writer_value_bytes(w);
    begin = kd_now();
    for (uint64_t i = 0; i < count && status == KD_OK; i += 16) { /* what drawing and compressing took, from a sample, to be taken off */
        kd_record_head head = kd_recipe_head(&r, KD_FEATURE_PATCH, &(kd_hash128){{0}}, 0, 1);
        noise(payload, (size_t)rows * WIDTH * 2, i);
        status = kd_record_encode(&buf, &head, payload, 1, &scratch, &err);
    }
    encode = 16 * (kd_now() - begin);
    begin = kd_now();
    if (status == KD_OK)
        status = kd_writer_seal(w, &err);
    sealed = kd_now() - begin;
    kd_writer_close(w);
    printf("{\"write_mb_s\": %.0f, \"write_with_encoding_mb_s\": %.0f, \"seal_mb_s\": %.0f, \"bytes\": %.0f}\n", 1e-6 * bytes / (written - encode), 1e-6 * bytes / written, 1e-6 * bytes / sealed, bytes);
    kd_free(payload);
    kd_record_buf_free(&buf);
    kd_record_scratch_free(&scratch);
    kd_recipe_free(&r);
    return status;
}

/* ---- reading ---- */

static void shuffle(uint32_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        uint64_t x = kd_xxh64(&i, sizeof i);
        uint32_t t = order[i - 1];
        order[i - 1] = order[x % i];
        order[x % i] = t;
    }
}

static uint64_t touch(const uint8_t *p, size_t n)
{
    return kd_xxh64(p, n);
}

typedef struct tally {
    uint64_t bytes, hash;
} tally;

static kd_status use_record(void *ctx, const uint8_t *bytes, size_t size, kd_err *e)
{
    tally *t = ctx;
    (void)e;
    t->bytes += size;
    t->hash ^= bytes[size - 1]; /* the check has read all of it */
    return KD_OK;
}

static kd_status read_ours(const char *path, int decoded, size_t most, tally *t, double *seconds)
{
    kd_cache *c;
    kd_reader *r;
    KD_TRY(kd_cache_open(&c, &path, 1, &err));
    KD_TRY(kd_reader_create(&r, c, &err));
    size_t images = kd_cache_images(c), n = most && most < images ? most : images;
    uint32_t *order = kd_malloc(images * sizeof *order);
    float *out = kd_malloc(kd_recipe_largest(kd_cache_recipe(c)) * sizeof *out);
    kd_status status = KD_OK;
    shuffle(order, images);
    double begin = kd_now();
    for (size_t i = 0; i < n + AHEAD && status == KD_OK; i++) {
        if (i < n)
            status = kd_reader_will_need(r, KD_FEATURE_PATCH, &kd_cache_image(c, order[i])->image, 0, 1, &err);
        if (i < AHEAD || status != KD_OK)
            continue;
        const kd_hash128 *id = &kd_cache_image(c, order[i - AHEAD])->image;
        if (decoded) {
            status = kd_reader_feature(r, KD_FEATURE_PATCH, id, 0, 1, out, NULL, &err);
            t->bytes += 2 * kd_recipe_largest(kd_cache_recipe(c));
        } else {
            status = kd_reader_record(r, KD_FEATURE_PATCH, id, 0, 1, use_record, t, &err);
        }
    }
    *seconds = kd_now() - begin;
    kd_free(order);
    kd_free(out);
    kd_reader_destroy(r);
    kd_cache_close(c);
    return status;
}

/* What anybody would write with LMDB for reads larger than memory: no readahead, a get, a look at the value. */
static kd_status read_lmdb(const char *path, size_t most, tally *t, double *seconds)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_stat st;
    int rc = mdb_env_create(&env);
    rc = rc ? rc : mdb_env_set_maxdbs(env, 16);
    rc = rc ? rc : mdb_env_set_mapsize(env, (size_t)1 << 40);
    rc = rc ? rc : mdb_env_open(env, path, MDB_NOSUBDIR | MDB_RDONLY | MDB_NOLOCK | MDB_NORDAHEAD, 0);
    rc = rc ? rc : mdb_txn_begin(env, NULL, MDB_RDONLY, &txn);
    rc = rc ? rc : mdb_dbi_open(txn, "patch", 0, &dbi);
    rc = rc ? rc : mdb_stat(txn, dbi, &st);
    if (rc)
        return kd_fail(&err, KD_EFAIL, "%s: %s", path, mdb_strerror(rc));
    size_t n = most && most < st.ms_entries ? most : st.ms_entries;
    uint32_t *order = kd_malloc(st.ms_entries * sizeof *order);
    shuffle(order, st.ms_entries);
    double begin = kd_now();
    for (size_t i = 0; i < n && !rc; i++) {
        uint8_t key[KD_KEY_BYTES];
        kd_key k = {id_of(order[i]), 0, 1};
        MDB_val mk = {sizeof key, key}, v;
        kd_key_encode(key, &k);
        rc = mdb_get(txn, dbi, &mk, &v);
        if (!rc) {
            t->bytes += v.mv_size;
            t->hash ^= touch(v.mv_data, v.mv_size);
        }
    }
    *seconds = kd_now() - begin;
    kd_free(order);
    mdb_txn_abort(txn);
    mdb_env_close(env);
    return rc ? kd_fail(&err, KD_EFAIL, "%s: %s", path, mdb_strerror(rc)) : KD_OK;
}

static kd_status read_file(const char *path, const char *how, size_t most)
{
    tally t = {0};
    double seconds = 0;
    if (strcmp(how, "lmdb") == 0)
        KD_TRY(read_lmdb(path, most, &t, &seconds));
    else
        KD_TRY(read_ours(path, strcmp(how, "decoded") == 0, most, &t, &seconds));
    printf("{\"how\": \"%s\", \"mb_s\": %.1f, \"bytes\": %llu, \"check\": %u}\n", how, 1e-6 * (double)t.bytes / seconds, (unsigned long long)t.bytes, (unsigned)(t.hash & 255));
    return KD_OK;
}

/* ---- decoding ---- */

/* Values as a Hadamard rotation leaves them: a bell over the bytes. */
static void bell(uint8_t *out, size_t n)
{
    noise(out, n, 1);
    for (size_t i = 0; i + 4 <= n; i++)
        out[i] = (uint8_t)(int8_t)((out[i] % 64 + out[i + 1] % 64 + out[i + 2] % 64 + out[i + 3] % 64) - 126);
}

/* Of this thread: what else the machine does doesn't count. */
static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static kd_status decode(const char *dtype, int rows, int width)
{
    kd_recipe r = recipe_of(dtype, rows, width);
    kd_record_head head = kd_recipe_head(&r, KD_FEATURE_PATCH, &(kd_hash128){{0}}, 0, 1);
    size_t raw = kd_stored_bytes(r.dtype, (size_t)rows, (size_t)width), n = (size_t)rows * (size_t)width, times = 0;
    uint8_t *payload = kd_malloc(raw);
    float *out = kd_malloc(n * sizeof *out), one = 0.01f;
    kd_record_buf buf = {0};
    kd_record_scratch scratch = {0};
    noise(payload, raw, 1);
    for (size_t i = 0; i < n && r.dtype != KD_I8; i++)
        payload[i] = (uint8_t)(0x3a + payload[i] % 6); /* exponents of a narrow range, as features have */
    if (r.dtype == KD_I8) {
        bell(payload + 4 * rows, n);
        for (int i = 0; i < rows; i++)
            memcpy(payload + 4 * i, &one, 4);
    }
    KD_TRY(kd_record_encode(&buf, &head, payload, 1, &scratch, &err));
    double begin = cpu_seconds(), seconds;
    do {
        KD_TRY(kd_record_decode(out, buf.bytes, buf.size, &head, &scratch, &err));
        times++;
    } while ((seconds = cpu_seconds() - begin) < 1);
    printf("{\"dtype\": \"%s\", \"gb_s_f16\": %.3f, \"stored_share\": %.3f}\n", dtype, 2e-9 * (double)(n * times) / seconds, (double)buf.size / (2.0 * (double)n));
    kd_free(payload);
    kd_free(out);
    kd_record_buf_free(&buf);
    kd_record_scratch_free(&scratch);
    kd_recipe_free(&r);
    return KD_OK;
}

int main(int argc, char **argv)
{
    kd_status status = KD_EUSAGE;
    kd_log_set_level(KD_LOG_WARN);
    if (argc == 5 && strcmp(argv[1], "write") == 0)
        status = write_file(argv[2], atoi(argv[3]), strtoull(argv[4], NULL, 10));
    else if (argc >= 4 && strcmp(argv[1], "read") == 0)
        status = read_file(argv[2], argv[3], argc > 4 ? strtoull(argv[4], NULL, 10) : 0);
    else if (argc == 5 && strcmp(argv[1], "decode") == 0)
        status = decode(argv[2], atoi(argv[3]), atoi(argv[4]));
    else
        kd_fail(&err, KD_EUSAGE, "usage: bench_cache write|read|decode ..: see the head of bench_cache.c");
    if (status != KD_OK)
        kd_log_error("bench_cache", &err, 0);
    return kd_exit_code(status);
}
