/* kd-cache prepare: images reduced and re-encoded into one tar, whose members then carry the ids. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "cache/commands.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/data/skip_list.h"
#include "common/data/tar_write.h"
#include "common/image/resample.h"

static const kd_option table[] = {
    KD_OPTION_STRING(kd_cache_config, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "images: a folder (tar shards in it are read in place), a .tar, a list of paths, or - for such a list on stdin"),
    KD_CACHE_NULL,
    KD_OPTION_INT(kd_cache_config, short_side, "short-side", "N", "384", 16, 65500, "pixels of the shorter side; larger images are reduced to it, smaller ones keep their size"),
    KD_OPTION_INT(kd_cache_config, quality, "quality", "N", "92", 1, 100, "JPEG quality"),
    KD_OPTION_CHOICE(kd_cache_config, exif, "exif", "ignore|apply", "ignore", "orientation of photos: as the pixels are stored, or turned upright; the result has no EXIF either way"),
    KD_OPTION_INT(kd_cache_config, max_pixels, "max-pixels", "N", "89478485", 1, 4290250000.0, "pictures with more pixels are skipped (sides end at 65500)"),
    KD_OPTION_STRING(kd_cache_config, out, "out", "FILE.tar", NULL, KD_OPT_REQUIRED, "tar to write; --images of the other programs reads it in place"),
    KD_OPTION_INT(kd_cache_config, threads, "threads", "N", "0", 0, 1024, "threads; 0 = every processor"),
    KD_OPTION_END,
};
const kd_program kd_cache_prepare_program = {
    .name = "kd-cache prepare",
    .summary = "Reduces and re-encodes images into one tar that is smaller to share and faster to decode; caches are then made from it.",
    .examples = "  $ kd-cache prepare --images photos --short-side 384 --quality 92 --out photos384.tar\n"
                "  $ kd-precompute --images photos384.tar --weights vits14.pth --cache photos384.kdc\n",
    .epilog = "An image becomes a baseline JPEG (4:2:0) under its relative path with the suffix .jpg. The reduction is Pillow's BICUBIC; PNG and WebP lose their transparency over white.\n"
              "The same images give the same bytes with any number of threads, and so the same ids, as long as the JPEG library is the same: share the tar, not the command.\n"
              "The pixels are others than the originals': a cache belongs to the tar or to the originals, and kd-train needs the one that it was made from.\n"
              "Files: FILE.tar; FILE.tar.skipped.tsv lists the inputs that could not be used, each with the reason.\n"
              "Exit codes: 0 ok; 1 failure; 2 usage; 3 done, but inputs were skipped; 14 disk full.\n",
    .options = table,
};

/* ---- names ---- */

/* The relative path without what leads out of an unpacking folder; of the only tar's members the name in it. */
static const char *plain_name(const kd_dataset *d, size_t i)
{
    const char *name = d->tars == 1 && d->file[i].tar ? kd_dataset_inner_name(d, i) : d->file[i].rel;
    for (;;) {
        size_t n = strspn(name, "/");
        if (n == 0 && strncmp(name, "./", 2) == 0)
            n = 2;
        if (n == 0 && strncmp(name, "../", 3) == 0)
            n = 3;
        if (n == 0)
            return name;
        name += n;
    }
}

/* Length of name without its image suffix. */
static size_t stem_length(const char *name)
{
    static const char *const suffix[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof suffix / sizeof *suffix; i++) {
        if (strcasecmp(dot, suffix[i]) == 0)
            return (size_t)(dot - name);
    }
    return strlen(name);
}

typedef struct named {
    char *name;
    size_t file;
} named;

static int by_name(const void *a, const void *b)
{
    const named *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->file > y->file) - (x->file < y->file);
}

/* a.png beside a.jpg: the one that isn't called so already becomes a.png.jpg. *again: some name was changed. */
static kd_status part_names(const kd_dataset *d, named *n, int *again, kd_arena *arena, kd_err *err)
{
    *again = 0;
    qsort(n, d->count, sizeof *n, by_name);
    for (size_t i = 0, end; i < d->count; i = end) {
        for (end = i + 1; end < d->count && strcmp(n[end].name, n[i].name) == 0; end++)
            ;
        for (size_t k = i; k < end && end - i > 1; k++) {
            const char *plain = plain_name(d, n[k].file);
            if (strcmp(plain, n[k].name) == 0)
                continue;
            n[k].name = kd_arena_printf(arena, "%s.jpg", plain);
            if (!n[k].name)
                return kd_fail(err, KD_EFAIL, "out of memory for the names of %zu images", d->count);
            *again = 1;
        }
    }
    return KD_OK;
}

/* name[file] for every file of the data set; strings in the arena. */
static kd_status make_names(const kd_dataset *d, const char **name, named *n, kd_arena *arena, kd_err *err)
{
    int again = 1;
    for (size_t i = 0; i < d->count; i++) {
        const char *plain = plain_name(d, i);
        n[i] = (named){kd_arena_printf(arena, "%.*s.jpg", (int)stem_length(plain), plain), i};
        if (!n[i].name)
            return kd_fail(err, KD_EFAIL, "out of memory for the names of %zu images", d->count);
    }
    for (int round = 0; round < 2 && again; round++)
        KD_TRY(part_names(d, n, &again, arena, err));
    qsort(n, d->count, sizeof *n, by_name);
    for (size_t i = 0; i < d->count; i++) {
        if (i > 0 && strcmp(n[i].name, n[i - 1].name) == 0)
            return kd_fail(err, KD_EUSAGE, "%s and %s would both become %s in the tar; rename one of them", d->file[n[i - 1].file].rel, d->file[n[i].file].rel, n[i].name);
        name[n[i].file] = n[i].name;
    }
    return KD_OK;
}

/* ---- one image ---- */

typedef struct item {
    size_t file;
    kd_err problem;
    uint8_t *jpeg;
    size_t capacity, size, original;
    int width, height, was_width, was_height;
    double decode_original, decode_prepared; /* seconds of one thread */
} item;

typedef struct worker {
    uint8_t *bytes;
    size_t capacity;
    kd_image image, reduced, back;
    kd_resample_scratch scratch;
} worker;

typedef struct prepare {
    const kd_cache_config *config;
    kd_dataset data;
    const char **name;
    worker *workers;
    int threads;
    kd_tar_writer *tar;
    kd_skip_list *skips;
    uint64_t images, skipped, reduced, bytes_in, bytes_out, pixels_in, pixels_out;
    double decode_in, decode_out, seconds;
} prepare;

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Size after the reduction: the shorter side becomes `side`, the other one is cut to an integer as torchvision's Resize does. */
static void target_size(int width, int height, int64_t side, int *out_w, int *out_h)
{
    int64_t shorter = width < height ? width : height, longer = width < height ? height : width;
    *out_w = width;
    *out_h = height;
    if (shorter <= side)
        return;
    longer = longer * side / shorter;
    *out_w = (int)(width < height ? side : longer);
    *out_h = (int)(width < height ? longer : side);
}

/* What is written is decoded again: it proves the bytes, and its time is reported. */
static kd_status read_back(worker *w, item *it, const char *name, kd_err *err)
{
    double begin = thread_seconds();
    KD_TRY(kd_image_decode(&w->back, it->jpeg, it->size, name, NULL, err));
    it->decode_prepared = thread_seconds() - begin;
    if (w->back.width != it->width || w->back.height != it->height)
        return kd_fail(err, KD_EFAIL, "%s: re-encoded as %d x %d pixels and read back as %d x %d", name, it->width, it->height, w->back.width, w->back.height);
    return KD_OK;
}

static kd_status prepare_image(const prepare *p, worker *w, item *it, kd_err *err)
{
    const kd_cache_config *c = p->config;
    kd_decode_options options = {.exif_apply = strcmp(c->exif, "apply") == 0, .max_pixels = c->max_pixels};
    char name[KD_DATA_NAME];
    const kd_image *source = &w->image;
    KD_TRY(kd_dataset_read(&p->data, it->file, &w->bytes, &w->capacity, &it->original, err));
    KD_TRY(kd_dataset_path(&p->data, it->file, name, sizeof name, err));
    double begin = thread_seconds();
    KD_TRY(kd_image_decode(&w->image, w->bytes, it->original, name, &options, err));
    it->decode_original = thread_seconds() - begin;
    it->was_width = w->image.width;
    it->was_height = w->image.height;
    target_size(it->was_width, it->was_height, c->short_side, &it->width, &it->height);
    if (it->width != it->was_width || it->height != it->was_height) {
        KD_TRY(kd_image_resize_buffer(&w->reduced, it->width, it->height, err));
        KD_TRY(kd_resample(w->reduced.rgb, it->width, it->height, &w->image, 0, 0, it->was_width, it->was_height, KD_FILTER_BICUBIC, &w->scratch, err));
        source = &w->reduced;
    }
    KD_TRY(kd_jpeg_encode(&it->jpeg, &it->capacity, &it->size, source->rgb, it->width, it->height, (int)c->quality, name, err));
    return read_back(w, it, name, err);
}

static kd_status make_item(void *ctx, int thread, uint64_t index, void *slot, kd_err *err)
{
    prepare *p = ctx;
    item *it = slot;
    kd_status status;
    (void)err;
    it->file = (size_t)index;
    status = prepare_image(p, &p->workers[thread], it, &it->problem);
    it->problem.status = status;
    return KD_OK;
}

static void free_item(void *ctx, void *slot)
{
    (void)ctx;
    kd_free(((item *)slot)->jpeg);
}

/* ---- all ---- */

static kd_status take_item(prepare *p, const item *it, kd_err *err)
{
    if (it->problem.status != KD_OK) {
        p->skipped++;
        kd_log(KD_LOG_WARN, "skipped: %s", it->problem.msg);
        return kd_skip_list_add(p->skips, p->data.file[it->file].rel, it->problem.msg, err);
    }
    p->images++;
    p->reduced += it->width != it->was_width || it->height != it->was_height;
    p->bytes_in += it->original;
    p->bytes_out += it->size;
    p->pixels_in += (uint64_t)it->was_width * (uint64_t)it->was_height;
    p->pixels_out += (uint64_t)it->width * (uint64_t)it->height;
    p->decode_in += it->decode_original;
    p->decode_out += it->decode_prepared;
    return kd_tar_put(p->tar, p->name[it->file], it->jpeg, it->size, err);
}

static kd_status take_all(prepare *p, kd_ordered *q, kd_err *err)
{
    kd_progress *progress = kd_progress_create("preparing", "image", p->data.count, 0, p->config->json);
    kd_status status;
    for (uint64_t done = 1;; done++) {
        void *slot;
        status = kd_stop_requested();
        if (status != KD_OK) {
            kd_fail(err, status, "interrupted after %llu of %zu images; %s was not written", (unsigned long long)done - 1, p->data.count, p->config->out);
            break;
        }
        status = kd_ordered_next(q, &slot, err);
        if (status != KD_OK)
            break;
        status = take_item(p, slot, err);
        kd_ordered_release(q, slot);
        if (status != KD_OK)
            break;
        kd_progress_update(progress, done, 0, NULL);
    }
    kd_progress_finish(progress);
    return status == KD_DONE ? KD_OK : status;
}

/* A tar that lies among its own sources would double at every run. */
static kd_status check_target(const prepare *p, kd_err *err)
{
    const char *out = p->config->out;
    size_t n = strlen(out);
    struct stat mine, theirs;
    if (n < 5 || strcasecmp(out + n - 4, ".tar") != 0)
        return kd_fail(err, KD_EUSAGE, "--out %s: the name must end in .tar", out);
    if (stat(out, &mine) != 0)
        return kd_io_check_target(out, err);
    for (size_t i = 0; i < p->data.tars; i++) {
        if (stat(p->data.tar[i].path, &theirs) == 0 && theirs.st_dev == mine.st_dev && theirs.st_ino == mine.st_ino)
            return kd_fail(err, KD_EUSAGE, "--out %s is one of the tars under --images %s; write it elsewhere", out, p->config->images);
    }
    return kd_io_check_target(out, err);
}

static kd_status open_inputs(prepare *p, kd_arena *arena, kd_err *err)
{
    named *names;
    kd_status status;
    KD_TRY(kd_dataset_open(&p->data, p->config->images, kd_cache_list_format(p->config), err));
    KD_TRY(check_target(p, err));
    KD_TRY(kd_alloc_array(&p->name, p->data.count, sizeof *p->name, err));
    KD_TRY(kd_alloc_array(&names, p->data.count, sizeof *names, err));
    status = make_names(&p->data, p->name, names, arena, err);
    kd_free(names);
    KD_TRY(status);
    KD_TRY(kd_alloc_array(&p->workers, (size_t)p->threads, sizeof *p->workers, err));
    KD_TRY(kd_skip_list_create(&p->skips, p->config->out, err));
    return kd_tar_create(&p->tar, p->config->out, err);
}

static kd_status finish(prepare *p, kd_err *err)
{
    kd_skip_list *skips = p->skips;
    kd_tar_writer *tar = p->tar;
    p->skips = NULL;
    KD_TRY(kd_skip_list_finish(skips, err));
    if (p->images == 0)
        return kd_fail(err, KD_EFAIL, "%s: none of the %zu files could be read as an image; the reasons are in %s.skipped.tsv", p->config->images, p->data.count, p->config->out);
    p->tar = NULL;
    return kd_tar_finish(tar, err);
}

static void report(const prepare *p)
{
    double n = (double)p->images, in = 1e3 * p->decode_in / n, out = 1e3 * p->decode_out / n;
    char a[32], b[32];
    json_t *line;
    if (!p->config->json) {
        printf("%llu images, %llu of them reduced, %llu skipped\n", (unsigned long long)p->images, (unsigned long long)p->reduced, (unsigned long long)p->skipped);
        printf("bytes    %s -> %s (%.3f of the originals)\n", kd_io_size_text(p->bytes_in, a, sizeof a), kd_io_size_text(p->bytes_out, b, sizeof b), (double)p->bytes_out / (double)p->bytes_in);
        printf("pixels   %.3f -> %.3f million an image\n", 1e-6 * (double)p->pixels_in / n, 1e-6 * (double)p->pixels_out / n);
        printf("decode   %.2f -> %.2f ms an image on one thread (%.2f x as fast)\n", in, out, in / out);
        printf("%s: %.1f images/s\n", p->config->out, n / p->seconds);
        return;
    }
    line = json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f}", "type", "summary", "out", p->config->out, "images", (json_int_t)p->images, "reduced", (json_int_t)p->reduced,
                     "skipped", (json_int_t)p->skipped, "bytes_in", (json_int_t)p->bytes_in, "bytes_out", (json_int_t)p->bytes_out, "pixels_in", (json_int_t)p->pixels_in, "pixels_out",
                     (json_int_t)p->pixels_out, "decode_ms_in", in, "decode_ms_out", out, "seconds", p->seconds);
    kd_json_line(line);
    json_decref(line);
}

static kd_status run(prepare *p, kd_arena *arena, kd_err *err)
{
    kd_ordered *q = NULL;
    double begin;
    kd_status status;
    KD_TRY(open_inputs(p, arena, err));
    begin = kd_now();
    status = kd_ordered_create(&q, p->threads, (size_t)p->threads + 4, sizeof(item), p->data.count, make_item, free_item, p, err);
    if (status == KD_OK)
        status = take_all(p, q, err);
    kd_ordered_destroy(q);
    KD_TRY(status);
    KD_TRY(finish(p, err));
    p->seconds = kd_now() - begin;
    report(p);
    if (p->skipped)
        return kd_fail(err, KD_ESKIPPED, "%llu images were skipped (listed in %s.skipped.tsv); %s was written without them", (unsigned long long)p->skipped, p->config->out, p->config->out);
    return KD_OK;
}

kd_status kd_cache_prepare_run(const kd_cache_config *config, kd_err *err)
{
    prepare p = {.config = config, .threads = config->threads > 0 ? (int)config->threads : kd_cpu_count()};
    kd_arena *arena = kd_arena_create();
    kd_status status = arena ? run(&p, arena, err) : kd_fail(err, KD_EFAIL, "out of memory");
    for (int i = 0; p.workers && i < p.threads; i++) {
        worker *w = &p.workers[i];
        kd_free(w->bytes);
        kd_image_free(&w->image);
        kd_image_free(&w->reduced);
        kd_image_free(&w->back);
        kd_resample_scratch_free(&w->scratch);
    }
    kd_free(p.workers);
    kd_free((void *)p.name);
    kd_tar_discard(p.tar);
    kd_skip_list_discard(p.skips);
    kd_dataset_close(&p.data);
    kd_arena_destroy(arena);
    return status;
}
