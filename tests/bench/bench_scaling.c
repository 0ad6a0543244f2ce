/* Bench of a cache's size: one shard of small records (CLS alone), of 1,000 or 1,000,000 views, made without a teacher.
 *
 *     bench_scaling make FILE.kdc FILE.tar IMAGES VIEWS   a cache and its pictures (32 x 32 JPEGs in a tar, all of the same pixels), so that kd-train can run on them
 *     bench_scaling open FILE.kdc [anew]                  seconds to open, and what a process holds then; anew: walks the pages whatever is known
 *     bench_scaling epoch FILE.kdc                        opens, reads a random sample of 1,000 views, then epochs in kd-train's order, one a second at least: microseconds per view, memory
 *
 * Memory in bytes: rss as the kernel counts it, anon the part that is the process's own; the rest are pages of files, most of them the cache's, which the kernel takes back when it needs room.
 * Times of an epoch are processor time of the one thread, with the file in the page cache. One JSON line each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/store.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/rng.h"
#include "common/data/tar_write.h"
#include "train/schedule.h"

enum { SIDE = 32, WIDTH = 64, AHEAD = 64, SAMPLE = 1000 };

static kd_err err;

/* ---- making ---- */

/* Everything as kd-precompute would say it, so that kd-train accepts the cache; the teacher is none. */
static kd_status make_recipe(kd_recipe *out, const kd_policy *policy)
{
    kd_hash128 decoder;
    char hex[33];
    KD_TRY(kd_decoder_hash(&decoder, &err));
    kd_hex(hex, decoder.b, sizeof decoder.b);
    json_t *j = json_pack("{s:i,s:{s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:s,s:f,s:[f,f,f],s:[f,f,f]},s:[i],s:b,s:b,s:o,s:i,s:[i,i],s:s,s:s,s:[s],s:[i,i],s:i,s:i,s:[],s:{s:s}}", "format_version", KD_FORMAT_VERSION,
                          "teacher", "sha256", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "tensors", "", "family", "dinov2", "width", WIDTH, "depth", 12, "heads", 1, "patch", 16,
                          "registers", 0, "positions", "official", "layer_norm_eps", 1e-6, "mean", 0.5, 0.5, 0.5, "std", 0.5, 0.5, 0.5, "layers", 1, "layer_norm", 1, "layer_concat", 0, "augment",
                          kd_policy_json(policy), "seed", 0, "image_size", SIDE, SIDE, "decoder", hex, "exif", "ignore", "features", "cls", "grid", 2, 2, "registers", 0, "width", WIDTH,
                          "patch_targets", "store", "dtype", "i8");
    return kd_recipe_from_json(out, j, "the bench's recipe", &err);
}

/* The pictures differ in a comment behind the first marker, and so in their ids; their pixels are equal. */
typedef struct picture {
    uint8_t *bytes;
    size_t size, cap;
    kd_hash128 view_hash;
} picture;
enum { COMMENT_AT = 2, COMMENT_BYTES = 12 };

static kd_status draw_picture(picture *p, const kd_policy *policy)
{
    uint8_t rgb[SIDE * SIDE * 3], view[SIDE * SIDE * 3];
    kd_image decoded = {0};
    kd_view_scratch scratch = {0};
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 255 / sizeof rgb);
    KD_TRY(kd_jpeg_encode(&p->bytes, &p->cap, &p->size, rgb, SIDE, SIDE, 90, "the bench's picture", &err));
    uint8_t *with = kd_malloc(p->size + COMMENT_BYTES);
    if (!with)
        return kd_fail(&err, KD_EFAIL, "out of memory");
    memcpy(with, p->bytes, COMMENT_AT);
    memcpy(with + COMMENT_AT, "\xff\xfe\0\x0a", 4); /* COM, 10 bytes: its length's own two and a number */
    memcpy(with + COMMENT_AT + COMMENT_BYTES, p->bytes + COMMENT_AT, p->size - COMMENT_AT);
    kd_free(p->bytes);
    p->bytes = with;
    p->size += COMMENT_BYTES;
    kd_plan plan = kd_plan_draw(policy, 0, &(kd_hash128){{0}}, 0, SIDE, SIDE);
    KD_TRY(kd_image_decode(&decoded, p->bytes, p->size, "the bench's picture", NULL, &err));
    KD_TRY(kd_plan_apply(&plan, &decoded, view, &scratch, &err));
    p->view_hash = kd_view_hash(view, SIDE, SIDE);
    kd_image_free(&decoded);
    kd_view_scratch_free(&scratch);
    return KD_OK;
}

typedef struct maker {
    kd_recipe recipe;
    kd_policy policy;
    picture picture;
    kd_writer *writer;
    kd_tar_writer *tar;
    const char *tar_name; /* without its folder: what the pictures' paths begin with */
    kd_record_buf buf;
    kd_record_scratch scratch;
} maker;

static kd_status add_view(maker *m, const kd_image_entry *e, uint32_t view)
{
    uint8_t payload[WIDTH + sizeof(float)];
    float scale = 0.01f;
    kd_view_entry v = {.image = e->image, .view = view, .view_hash = m->picture.view_hash, .plan = kd_plan_draw(&m->policy, 0, &e->image, view, SIDE, SIDE)};
    kd_record_head head = kd_recipe_head(&m->recipe, KD_FEATURE_CLS, &e->image, view, 1);
    head.view_hash = v.view_hash;
    head.fidelity = (kd_fidelity){.xx = 1, .qq = 1};
    memcpy(payload, &scale, sizeof scale);
    for (int i = 0; i < WIDTH; i++)
        payload[sizeof scale + (size_t)i] = (uint8_t)(e->image.b[i % 16] * (i + 3) + (int)view);
    KD_TRY(kd_record_encode(&m->buf, &head, payload, 1, &m->scratch, &err));
    return kd_writer_add_view(m->writer, e, &v, &(kd_record_ref){KD_FEATURE_CLS, 1, m->buf.bytes, m->buf.size}, 1, &err);
}

static kd_status add_image(maker *m, uint64_t number, uint32_t views)
{
    char rel[100];
    for (int i = 0; i < 8; i++)
        m->picture.bytes[COMMENT_AT + 4 + i] = (uint8_t)(number >> (8 * i));
    snprintf(rel, sizeof rel, "%s/class-%03u/photo-%07u.jpg", m->tar_name, (unsigned)(number % 1000), (unsigned)number);
    kd_image_entry e = {.image = kd_xxh128(m->picture.bytes, m->picture.size), .rel = rel, .file_size = m->picture.size, .width = SIDE, .height = SIDE};
    for (uint32_t v = 0; v < views; v++)
        KD_TRY(add_view(m, &e, v));
    return kd_tar_put(m->tar, rel + strlen(m->tar_name) + 1, m->picture.bytes, m->picture.size, &err);
}

/* A failed bench ends: nothing is freed then. */
static kd_status make(const char *path, const char *tar, uint64_t images, uint32_t views)
{
    const char *slash = strrchr(tar, '/');
    maker m = {.tar_name = slash ? slash + 1 : tar};
    double begin = kd_now();
    KD_TRY(kd_policy_load(&m.policy, "eval", SIDE, SIDE, &err));
    KD_TRY(make_recipe(&m.recipe, &m.policy));
    KD_TRY(draw_picture(&m.picture, &m.policy));
    KD_TRY(kd_tar_create(&m.tar, tar, &err));
    KD_TRY(kd_writer_open(&m.writer, path, &m.recipe, NULL, 0, &err));
    for (uint64_t i = 0; i < images; i++)
        KD_TRY(add_image(&m, i, views));
    KD_TRY(kd_tar_finish(m.tar, &err));
    KD_TRY(kd_writer_seal(m.writer, &err));
    kd_writer_close(m.writer);
    printf("{\"images\": %llu, \"views\": %llu, \"seconds\": %.2f}\n", (unsigned long long)images, (unsigned long long)(images * views), kd_now() - begin);
    kd_free(m.picture.bytes);
    kd_record_buf_free(&m.buf);
    kd_record_scratch_free(&m.scratch);
    kd_recipe_free(&m.recipe);
    return KD_OK;
}

/* ---- reading ---- */

typedef struct memory {
    long rss, anon; /* bytes */
} memory;

static memory memory_now(void)
{
    memory m = {0};
    char line[200];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        (void)sscanf(line, "VmRSS: %ld", &m.rss);
        (void)sscanf(line, "RssAnon: %ld", &m.anon);
    }
    if (f)
        fclose(f);
    return (memory){1024 * m.rss, 1024 * m.anon};
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static kd_status open_once(const char *path, int anew)
{
    kd_cache *c;
    memory before = memory_now(), after;
    double begin = kd_now(), seconds;
    KD_TRY(anew ? kd_cache_open_anew(&c, &path, 1, &err) : kd_cache_open(&c, &path, 1, &err));
    seconds = kd_now() - begin;
    after = memory_now();
    printf("{\"images\": %zu, \"views\": %llu, \"seconds\": %.4f, \"before_anon\": %ld, \"rss\": %ld, \"anon\": %ld}\n", kd_cache_images(c), (unsigned long long)kd_cache_view_total(c), seconds,
           before.anon, after.rss, after.anon);
    kd_cache_close(c);
    return KD_OK;
}

/* Views number from .. to - 1 of an epoch, as replay reads them. */
static kd_status read_range(kd_reader *r, const kd_cache *c, const uint32_t *order, uint32_t epoch, size_t count)
{
    float out[WIDTH];
    kd_view_entry v;
    for (size_t i = 0; i < count + AHEAD; i++) {
        const kd_image_entry *e = kd_cache_image(c, order[i < count ? i : count - 1]);
        if (i < count)
            KD_TRY(kd_reader_will_need(r, KD_FEATURE_CLS, &e->image, kd_image_view(e, kd_epoch_view(&e->image, epoch, e->views)), 1, &err));
        if (i < AHEAD)
            continue;
        e = kd_cache_image(c, order[i - AHEAD]);
        uint32_t view = kd_image_view(e, kd_epoch_view(&e->image, epoch, e->views));
        KD_TRY(kd_reader_view(r, &e->image, view, &v, &err));
        KD_TRY(kd_reader_feature(r, KD_FEATURE_CLS, &e->image, view, 1, out, NULL, &err));
    }
    return KD_OK;
}

static kd_status read_epochs(const char *path)
{
    kd_cache *c;
    kd_reader *r;
    uint32_t *order, epoch = 0;
    memory sampled, after;
    double begin, used;
    KD_TRY(kd_cache_open(&c, &path, 1, &err));
    KD_TRY(kd_reader_create(&r, c, &err));
    size_t images = kd_cache_images(c);
    KD_TRY(kd_alloc_array(&order, images, sizeof *order, &err));
    kd_rng_permutation(0, epoch, order, (uint32_t)images);
    KD_TRY(read_range(r, c, order, epoch, images < SAMPLE ? images : SAMPLE));
    sampled = memory_now();
    begin = cpu_seconds();
    do {
        kd_rng_permutation(0, epoch, order, (uint32_t)images);
        KD_TRY(read_range(r, c, order, epoch++, images));
    } while ((used = cpu_seconds() - begin) < 1);
    after = memory_now();
    printf("{\"views\": %llu, \"us_per_view\": %.3f, \"sample_rss\": %ld, \"sample_anon\": %ld, \"rss\": %ld, \"anon\": %ld}\n", (unsigned long long)kd_cache_view_total(c),
           1e6 * used / ((double)images * epoch), sampled.rss, sampled.anon, after.rss, after.anon);
    kd_free(order);
    kd_reader_destroy(r);
    kd_cache_close(c);
    return KD_OK;
}

int main(int argc, char **argv)
{
    kd_status status = KD_EUSAGE;
    kd_log_set_level(KD_LOG_WARN);
    if (argc == 6 && strcmp(argv[1], "make") == 0)
        status = make(argv[2], argv[3], strtoull(argv[4], NULL, 10), (uint32_t)strtoul(argv[5], NULL, 10));
    else if (argc >= 3 && strcmp(argv[1], "open") == 0)
        status = open_once(argv[2], argc > 3);
    else if (argc == 3 && strcmp(argv[1], "epoch") == 0)
        status = read_epochs(argv[2]);
    else
        kd_fail(&err, KD_EUSAGE, "usage: bench_scaling make|open|epoch ..: see the head of bench_scaling.c");
    if (status != KD_OK)
        kd_log_error("bench_scaling", &err, 0);
    return kd_exit_code(status);
}
