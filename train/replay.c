#include "train/replay.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/threads.h"
#include "common/image/mix.h"
#include "train/adjoint.h"

/* What a loader thread re-uses from view to view. */
typedef struct worker {
    kd_reader *reader;
    kd_image image, view; /* decoded file; full-size view */
    kd_view_scratch scratch;
    kd_resample_scratch reduce;
    uint8_t *file;
    size_t file_cap;
    char path[KD_DATA_NAME];
    kd_stages time; /* stage 0 between samples */
} worker;

/* Why a view came out differently, as far as the files tell. */
typedef enum kd_culprit {
    CULPRIT_UNKNOWN = 0, /* the files are the right ones */
    CULPRIT_FILE,        /* the image's file holds other bytes */
    CULPRIT_PARTNER      /* the partner's file isn't there; the error says so */
} kd_culprit;

/* The samples whose views went through the live teacher together: given out one by one, in their order. */
typedef struct block {
    void **slot;      /* [batch] */
    int count, next;  /* in slot; the next one to be given out */
    uint8_t *views;   /* [batch] full-size views */
    float *values;    /* [batch] of the largest target */
    double *square;   /* [batch] */
} block;

struct kd_replay {
    kd_replay_options o;
    const kd_recipe *recipe;
    kd_locator *locator;
    uint32_t *cache_index;          /* replay image -> image of the source */
    _Atomic int64_t *file;          /* replay image -> file of the locator */
    size_t *first_view;             /* replay image -> its first place in `kept` */
    uint8_t *_Atomic *kept;         /* proven, reduced views; NULL = not yet. Of a cache, as all above but cache_index */
    size_t images, missing, extra, views;
    worker *workers;
    pthread_mutex_t hashing;
    int hashed;                     /* the folder's files have ids; guarded by `hashing` */
    atomic_uint_fast64_t kept_bytes, decoded;
    kd_ordered *queue;              /* the open pass */
    const kd_replay_item *items;
    size_t count;                   /* of items */
    size_t target_floats[KD_REPLAY_TARGETS], floats, pixel_bytes; /* floats: of all targets of a sample, with a square for each */
    kd_adjoint adjoint[KD_REPLAY_TARGETS]; /* of those targets that are */
    double waited;                  /* of passes that ended */
    block block;                    /* of a live teacher */
};

/* ---- finding the files ---- */

static kd_status refuse_missing(const kd_replay *r, const kd_search *search, size_t total, kd_err *err) {
    char text[600];
    if (r->missing < total)
        return kd_fail(err, KD_EMISMATCH, "%s: of the cache's %zu images %s; restore those that are changed or missing, or train on the rest with --allow-missing", r->o.images, total,
                       kd_search_text(search, text, sizeof text));
    if (search->count[KD_CHANGED] > 0)
        return kd_fail(err, KD_EMISMATCH,
                       "%s: none of the cache's %zu images is there as it was: %s; most likely the files were re-encoded, resized or edited after the cache was made: use the originals, or make "
                       "the cache again from these", r->o.images, total, kd_search_text(search, text, sizeof text));
    return kd_fail(err, KD_EMISMATCH,
                   "%s: none of the cache's %zu images is among its %zu image files, by path or by content; most likely this is another folder, or the "
                   "files were renamed and re-encoded after the cache was made (the first one sought: %s)",
                   r->o.images, total, kd_locator_files(r->locator), search->example[KD_MISSING]);
}

/* How many images are in place, as far as paths and sizes tell. */
static size_t count_in_place(const kd_replay *r, size_t total) {
    size_t n = 0;
    for (size_t i = 0; i < total; i++) {
        const kd_image_entry *e = kd_cache_image(r->o.source.cache, i);
        n += kd_locator_by_path(r->locator, e->rel, e->file_size) >= 0;
    }
    return n;
}

/* Whether the files of all images that this one is mixed with are there. The folder's files have ids. */
static kd_status has_partners(const kd_replay *r, kd_reader *reader, const kd_image_entry *e, int *all, kd_err *err) {
    *all = 1;
    for (uint32_t i = 0; i < e->views && *all; i++) {
        kd_view_entry v;
        KD_TRY(kd_reader_view(reader, &e->image, kd_image_view(e, i), &v, err));
        *all = !kd_plan_is_mixed(&v.plan) || kd_locator_by_id(r->locator, &v.plan.mix_partner) >= 0;
    }
    return KD_OK;
}

/* Leaves out the images that were found but are mixed with some that weren't. */
static kd_status drop_without_partner(kd_replay *r, kd_err *err) {
    size_t found = r->images;
    kd_reader *reader;
    kd_status status = KD_OK;
    KD_TRY(kd_reader_create(&reader, r->o.source.cache, err));
    r->images = r->views = 0;
    for (size_t i = 0; i < found && status == KD_OK; i++) {
        const kd_image_entry *e = kd_cache_image(r->o.source.cache, r->cache_index[i]);
        int all;
        status = has_partners(r, reader, e, &all, err);
        if (status != KD_OK || !all)
            continue;
        r->cache_index[r->images] = r->cache_index[i];
        atomic_store(&r->file[r->images], atomic_load(&r->file[i]));
        r->first_view[r->images] = r->views;
        r->views += e->views;
        r->images++;
    }
    kd_reader_destroy(reader);
    r->missing += found - r->images;
    if (status == KD_OK && found > r->images)
        kd_log(KD_LOG_WARN, "%zu more images are left out because views of theirs are mixed with missing ones", found - r->images);
    if (status == KD_OK && r->images == 0)
        status = kd_fail(err, KD_EMISMATCH, "%s: each of the %zu images that are there has views that are mixed with missing ones, so none can be trained on; restore the missing ones", r->o.images, found);
    return status;
}

/* Fills file[] and cache_index[] with the images that are there. */
static kd_status find_files(kd_replay *r, kd_err *err) {
    size_t total = kd_cache_images(r->o.source.cache), in_place = count_in_place(r, total);
    kd_search search = {0};
    char text[600];
    if (in_place < total) {
        kd_log(KD_LOG_INFO, "%zu of the cache's %zu images aren't at their recorded path; looking for them by content among %zu files", total - in_place, total,
               kd_locator_files(r->locator));
        KD_TRY(kd_locator_hash_all(r->locator, r->o.threads, r->o.index_path, err));
        r->hashed = 1;
    }
    for (size_t i = 0; i < total; i++) {
        const kd_image_entry *e = kd_cache_image(r->o.source.cache, i);
        int64_t file;
        kd_whereabouts where = kd_locator_find(r->locator, &e->image, e->rel, e->file_size, &file);
        kd_search_count(&search, where, kd_locator_show(r->locator, file, e->rel));
        if (where == KD_CHANGED || where == KD_MISSING) {
            r->missing++;
            continue;
        }
        r->cache_index[r->images] = (uint32_t)i;
        atomic_init(&r->file[r->images], file);
        r->first_view[r->images] = r->views;
        r->views += e->views;
        r->images++;
    }
    if (r->hashed)
        kd_log(KD_LOG_INFO, "of the cache's %zu images %s", total, kd_search_text(&search, text, sizeof text));
    r->extra = kd_locator_files(r->locator) > r->images ? kd_locator_files(r->locator) - r->images : 0;
    if (r->missing > 0 && (!r->o.allow_missing || r->missing == total))
        return refuse_missing(r, &search, total, err);
    return r->missing > 0 && r->recipe->mixed ? drop_without_partner(r, err) : KD_OK;
}

/* ---- one view ---- */

static const kd_image_entry *entry_of(const kd_replay *r, uint32_t image) {
    return kd_source_image(&r->o.source, r->cache_index[image]);
}

static kd_status relocate(kd_replay *r, const kd_hash128 *id, int64_t *file, kd_err *err);

/* The bytes of file `file` in w->file, if it has this id. KD_DONE: it hasn't, or can't be read. */
static kd_status read_by_id(kd_replay *r, worker *w, int64_t file, const kd_hash128 *id, size_t *size) {
    kd_err unreadable;
    if (file < 0 || kd_locator_read(r->locator, file, &w->file, &w->file_cap, size, &unreadable) != KD_OK)
        return KD_DONE;
    kd_hash128 have = kd_image_id(w->file, *size);
    return memcmp(&have, id, sizeof have) == 0 ? KD_OK : KD_DONE;
}

/* Blends the partner's view into w->view. Its file is proven by its id, for the view's hash couldn't tell which of the two files is another one. */
static kd_status mix(kd_replay *r, worker *w, const kd_view_entry *v, kd_culprit *culprit, kd_err *err) {
    const kd_hash128 *id = &v->plan.mix_partner;
    const kd_image_entry *e = kd_cache_find_image(r->o.source.cache, id); /* NULL: it was skipped for a partner of its own, and is found by id alone */
    int64_t file = e != NULL ? kd_locator_by_path(r->locator, e->rel, e->file_size) : -1;
    char path[KD_DATA_NAME], hex[33], own[33];
    size_t size = 0;
    kd_status status = read_by_id(r, w, file, id, &size);
    if (status == KD_DONE) {
        KD_TRY(relocate(r, id, &file, err));
        status = read_by_id(r, w, file, id, &size);
    }
    if (status == KD_DONE) {
        *culprit = CULPRIT_PARTNER;
        kd_hex(hex, id->b, 16);
        kd_hex(own, v->image.b, 16);
        return kd_fail(err, KD_EMISMATCH, "%s: image %s, view %" PRIu32 " is mixed with image %s%s%s%s, which is nowhere in --images: removed, or changed (re-encoded, edited) after the cache was "
                       "made; restore it, or make the cache again", w->path, own, v->view, hex, e != NULL ? " (" : "", e != NULL ? e->rel : "", e != NULL ? ")" : "");
    }
    KD_TRY(kd_locator_path(r->locator, file, path, sizeof path, err));
    kd_decode_options options = kd_recipe_decode_options(r->recipe, KD_IMAGE_MAX_SIDE, KD_IMAGE_MAX_SIDE); /* these bytes were decoded before */
    KD_TRY(kd_image_decode_box(&w->image, w->file, size, path, &options, kd_plans_box, &(kd_plans){&v->partner, 1}, err));
    return kd_view_mix(w->view.rgb, &v->plan, &v->partner, &w->image, &w->scratch, err);
}

static int is_other_file(const worker *w, size_t size, const kd_hash128 *id) {
    kd_hash128 have = kd_image_id(w->file, size);
    return memcmp(&have, id, sizeof have) != 0;
}

/* Rebuilds the view from the file `file` into w->view. KD_EMISMATCH: other pixels than the teacher's; *culprit then says what of the files is to blame. */
static kd_status rebuild(kd_replay *r, worker *w, int64_t file, const kd_image_entry *e, const kd_view_entry *v, kd_culprit *culprit, kd_err *err) {
    size_t size;
    int mixed = kd_plan_is_mixed(&v->plan);
    *culprit = CULPRIT_UNKNOWN;
    kd_stages_enter(&w->time, KD_VIEW_DECODE);
    KD_TRY(kd_locator_path(r->locator, file, w->path, sizeof w->path, err));
    KD_TRY(kd_locator_read(r->locator, file, &w->file, &w->file_cap, &size, err));
    if (mixed && is_other_file(w, size, &v->image)) /* asked now: the partner's bytes take this place */
        *culprit = CULPRIT_FILE;
    kd_decode_options options = kd_recipe_decode_options(r->recipe, e->width, e->height);
    kd_status status = kd_image_decode_box(&w->image, w->file, size, w->path, &options, kd_plans_box, &(kd_plans){&v->plan, 1}, err);
    kd_stages_enter(&w->time, KD_VIEW_REPLAY);
    if (status == KD_OK)
        status = kd_image_resize_buffer(&w->view, v->plan.out_w, v->plan.out_h, err);
    if (status == KD_OK)
        status = kd_plan_apply(&v->plan, &w->image, w->view.rgb, &w->scratch, err);
    if (status == KD_OK && mixed) {
        kd_stages_enter(&w->time, KD_VIEW_DECODE); /* the partner's file; blending it in is little beside that */
        status = mix(r, w, v, culprit, err);
        kd_stages_enter(&w->time, KD_VIEW_REPLAY);
    }
    if (status == KD_OK) {
        kd_hash128 got = kd_view_hash(w->view.rgb, w->view.width, w->view.height);
        if (memcmp(&got, &v->view_hash, sizeof got) == 0)
            return KD_OK;
        char want_hex[33], got_hex[33];
        kd_hex(want_hex, v->view_hash.b, 16);
        kd_hex(got_hex, got.b, 16);
        status = kd_fail(err, KD_EMISMATCH, "the view's hash is %s and the teacher saw %s", got_hex, want_hex);
    }
    if (!mixed && is_other_file(w, size, &v->image))
        *culprit = CULPRIT_FILE;
    return status;
}

/* The file of this image by content, after hashing the folder if that hasn't been done; -1 when it isn't there. */
static kd_status relocate(kd_replay *r, const kd_hash128 *id, int64_t *file, kd_err *err) {
    kd_status status = KD_OK;
    pthread_mutex_lock(&r->hashing);
    if (!r->hashed) {
        kd_log(KD_LOG_WARN, "an image file isn't the one that the cache was made from; looking for the right one by content");
        status = kd_locator_hash_all(r->locator, 1, r->o.index_path, err);
        r->hashed = status == KD_OK;
    }
    if (status == KD_OK)
        *file = kd_locator_by_id(r->locator, id);
    pthread_mutex_unlock(&r->hashing);
    return status;
}

static kd_status explain(const worker *w, const kd_view_entry *v, kd_culprit culprit, const kd_err *cause, kd_err *err) {
    char id[33], first[600];
    kd_hex(id, v->image.b, 16);
    snprintf(first, sizeof first, "%.590s", cause->msg);
    if (culprit == CULPRIT_FILE)
        return kd_fail(err, KD_EMISMATCH, "%s: image %s, view %" PRIu32 ": %s, because the file was changed (re-encoded, edited or replaced) after the cache was made "
                       "and the original is nowhere in --images; restore it, or make the cache again", w->path, id, v->view, first);
    return kd_fail(err, KD_EMISMATCH, "%s: image %s, view %" PRIu32 ": %s, although the file is the same and the decoder makes the same reference pictures; most likely this version "
                   "augments differently from the one that made the cache (compare kd-cache info with kd-train --version), or the cache was changed (kd-cache check)", w->path, id, v->view, first);
}

/* w->view = the proven view, from the recorded path or from wherever the same bytes lie now. */
static kd_status prove(kd_replay *r, worker *w, uint32_t image, const kd_view_entry *v, kd_err *err) {
    kd_err cause = {0};
    kd_culprit culprit;
    int64_t file = atomic_load(&r->file[image]), other = -1;
    kd_status status = rebuild(r, w, file, entry_of(r, image), v, &culprit, &cause);
    if (status != KD_OK && culprit != CULPRIT_PARTNER && (culprit == CULPRIT_FILE || status == KD_EFAIL)) {
        KD_TRY(relocate(r, &v->image, &other, err));
        if (other >= 0 && other != file) {
            atomic_store(&r->file[image], other);
            status = rebuild(r, w, other, entry_of(r, image), v, &culprit, &cause);
        }
    }
    atomic_fetch_add(&r->decoded, 1);
    if (culprit != CULPRIT_PARTNER && (status == KD_EMISMATCH || (status != KD_OK && culprit == CULPRIT_FILE)))
        return explain(w, v, culprit, &cause, err);
    if (status != KD_OK && err != NULL)
        *err = cause;
    return status;
}

/* Pixels as the student sees them: Pillow's box filter over the view. */
static kd_status reduce(const kd_replay *r, worker *w, const kd_image *view, uint8_t *out, kd_err *err) {
    if (r->o.student_w != view->width || r->o.student_h != view->height)
        return kd_resample(out, r->o.student_w, r->o.student_h, view, 0, 0, view->width, view->height, KD_FILTER_BOX, &w->reduce, err);
    memcpy(out, view->rgb, r->pixel_bytes);
    return KD_OK;
}

/* The same of a cached view, proven or known to be. */
static kd_status load_pixels(kd_replay *r, worker *w, const kd_replay_item *item, const kd_view_entry *v, uint8_t *out, kd_err *err) {
    uint8_t *_Atomic *place = &r->kept[r->first_view[item->image] + item->view];
    const uint8_t *known = atomic_load(place);
    if (known != NULL) {
        memcpy(out, known, r->pixel_bytes);
        return KD_OK;
    }
    KD_TRY(prove(r, w, item->image, v, err));
    KD_TRY(reduce(r, w, &w->view, out, err));
    if (atomic_fetch_add(&r->kept_bytes, r->pixel_bytes) + r->pixel_bytes > r->o.view_memory) {
        atomic_fetch_sub(&r->kept_bytes, r->pixel_bytes);
        return KD_OK;
    }
    uint8_t *copy = kd_malloc(r->pixel_bytes), *none = NULL;
    if (copy == NULL)
        return KD_OK; /* a convenience: without memory the view is rebuilt next time */
    memcpy(copy, out, r->pixel_bytes);
    if (!atomic_compare_exchange_strong(place, &none, copy))
        kd_free(copy); /* the same view twice in one pass */
    return KD_OK;
}

/* Values as they are stored. */
static kd_status read_target(worker *w, const kd_replay_target *t, const kd_view_entry *v, float *out, double *square, kd_err *err) {
    kd_record_facts facts;
    KD_TRY(kd_reader_feature(w->reader, t->feature, &v->image, v->view, t->layer, out, &facts, err));
    *square = facts.square;
    if (memcmp(&facts.view_hash, &v->view_hash, sizeof facts.view_hash) == 0)
        return KD_OK;
    char id[33], a[33], b[33];
    kd_hex(id, v->image.b, 16);
    kd_hex(a, facts.view_hash.b, 16);
    kd_hex(b, v->view_hash.b, 16);
    return kd_fail(err, KD_EMISMATCH, "image %s, view %" PRIu32 ": the %s features were computed from view %s and the plan makes view %s; the cache mixes two runs, make it again",
                   id, v->view, kd_feature_name(t->feature), a, b);
}

static void standardise(const kd_replay_target *t, size_t floats, size_t width, float *out) {
    float inverse = 1.0f / t->std;
    for (size_t row = 0; row < floats; row += width)
        for (size_t c = 0; c < width; c++)
            out[row + c] = (out[row + c] - t->mean[c]) * inverse;
}

/* Turns values as the teacher gave them, with their |t|^2 of adjoint targets, into what is given out. */
static void finish_target(const kd_replay *r, int i, float *out, double stored, float *square) {
    const kd_replay_target *t = &r->o.target[i];
    size_t width = (size_t)r->recipe->width;
    *square = (float)stored;
    if (t->raw)
        return;
    if (r->adjoint[i].tokens > 0)
        *square = (float)kd_adjoint_standardise(&r->adjoint[i], out, stored, t->mean, t->std, width);
    else
        standardise(t, r->target_floats[i], width, out);
}

static kd_status load_target(kd_replay *r, worker *w, int i, const kd_view_entry *v, float *out, float *square, kd_err *err) {
    double stored;
    KD_TRY(read_target(w, &r->o.target[i], v, out, &stored, err));
    finish_target(r, i, out, stored, square);
    return KD_OK;
}

/* A slot is targets | squares | pixels, and of a live teacher the full-size view. */
static uint8_t *pixels_of(const kd_replay *r, void *slot) {
    return (uint8_t *)((float *)slot + r->floats);
}

static kd_sample sample_of(const kd_replay *r, void *slot) {
    float *next = slot;
    kd_sample s = {.slot = slot};
    for (int i = 0; i < r->o.targets; i++) {
        s.target[i] = next;
        next += r->target_floats[i];
    }
    s.square = next;
    s.pixels = pixels_of(r, slot);
    return s;
}

/* Lets the kernel fetch the records of the sample READ_AHEAD further on, at the start of a pass those of all up to there, so that a cold cache is read at the disk's rate. What goes wrong is said
 * when the record is read. */
enum { READ_AHEAD = 64 };

static void ask_ahead(kd_replay *r, worker *w, uint64_t index) {
    uint64_t last = index + READ_AHEAD < r->count ? index + READ_AHEAD : r->count - 1;
    for (uint64_t i = index == 0 ? 0 : index + READ_AHEAD; i <= last; i++) {
        const kd_image_entry *e = entry_of(r, r->items[i].image);
        uint32_t view = kd_image_view(e, r->items[i].view);
        for (int k = 0; k < r->o.targets; k++)
            (void)kd_reader_will_need(w->reader, r->o.target[k].feature, &e->image, view, r->o.target[k].layer, NULL);
    }
}

static kd_status fill_sample(kd_replay *r, worker *w, uint64_t index, void *slot, kd_err *err) {
    const kd_replay_item *item = &r->items[index];
    kd_view_entry v;
    if (w->reader == NULL)
        KD_TRY(kd_reader_create(&w->reader, r->o.source.cache, err));
    ask_ahead(r, w, index);
    const kd_image_entry *e = entry_of(r, item->image);
    KD_TRY(kd_reader_view(w->reader, &e->image, kd_image_view(e, item->view), &v, err));
    if (v.plan.out_w != r->recipe->image_w || v.plan.out_h != r->recipe->image_h)
        return kd_fail(err, KD_EDAMAGED, "%s: view %" PRIu32 " measures %dx%d in its plan and the recipe says %dx%d; check the cache with kd-cache check",
                       kd_cache_shard_path(r->o.source.cache, 0), v.view, v.plan.out_h, v.plan.out_w, r->recipe->image_h, r->recipe->image_w);
    float *next = slot;
    kd_stages_enter(&w->time, KD_VIEW_REPLAY);
    KD_TRY(load_pixels(r, w, item, &v, pixels_of(r, slot), err));
    kd_stages_enter(&w->time, KD_REPLAY_CACHE);
    float *square = (float *)slot + r->floats - r->o.targets;
    for (int i = 0; i < r->o.targets; next += r->target_floats[i++])
        KD_TRY(load_target(r, w, i, &v, next, &square[i], err));
    return KD_OK;
}

static kd_status make_sample(void *ctx, int thread, uint64_t index, void *slot, kd_err *err) {
    kd_replay *r = ctx;
    worker *w = &r->workers[thread];
    kd_stages_enter(&w->time, KD_REPLAY_CACHE);
    kd_status status = fill_sample(r, w, index, slot, err);
    kd_stages_enter(&w->time, 0);
    return status;
}

/* ---- live ---- */

static size_t view_bytes(const kd_replay *r) {
    return (size_t)r->recipe->image_h * (size_t)r->recipe->image_w * 3;
}

/* Pixels alone: the targets follow when the teacher has seen them. */
static kd_status make_live_sample(void *ctx, int thread, uint64_t index, void *slot, kd_err *err) {
    kd_replay *r = ctx;
    const kd_replay_item *item = &r->items[index];
    kd_image picture;
    uint8_t *pixels = pixels_of(r, slot);
    KD_TRY(kd_live_view(r->o.source.live, thread, item->image, item->view, &picture, NULL, err));
    memcpy(pixels + r->pixel_bytes, picture.rgb, view_bytes(r));
    atomic_fetch_add(&r->decoded, 1);
    kd_stages_enter(&r->workers[thread].time, KD_VIEW_REPLAY);
    kd_status status = reduce(r, &r->workers[thread], &picture, pixels, err);
    kd_stages_enter(&r->workers[thread].time, 0);
    return status;
}

static kd_status teach_target(kd_replay *r, int i, size_t offset, kd_err *err) {
    block *b = &r->block;
    const kd_replay_target *t = &r->o.target[i];
    KD_TRY(kd_live_target(r->o.source.live, t->feature, t->layer, b->count, b->values, b->square, err));
    for (int row = 0; row < b->count; row++) {
        float *slot = b->slot[row];
        memcpy(slot + offset, b->values + (size_t)row * r->target_floats[i], r->target_floats[i] * sizeof *slot);
        finish_target(r, i, slot + offset, b->square[row], slot + r->floats - r->o.targets + i);
    }
    return KD_OK;
}

/* Takes as many samples as the teacher sees at once, or what is left of the pass, and fills in their targets. KD_DONE: none was left. */
static kd_status teach_block(kd_replay *r, kd_err *err) {
    block *b = &r->block;
    kd_live *live = r->o.source.live;
    size_t offset = 0;
    b->count = b->next = 0;
    while (b->count < kd_live_batch(live)) {
        kd_status status = kd_ordered_next(r->queue, &b->slot[b->count], err);
        if (status == KD_DONE && b->count > 0)
            break;
        if (status != KD_OK)
            return status;
        memcpy(b->views + (size_t)b->count * view_bytes(r), pixels_of(r, b->slot[b->count]) + r->pixel_bytes, view_bytes(r));
        b->count++;
    }
    KD_TRY(kd_live_run(live, b->views, b->count, err));
    for (int i = 0; i < r->o.targets; offset += r->target_floats[i++])
        KD_TRY(teach_target(r, i, offset, err));
    return KD_OK;
}

static kd_status next_slot(kd_replay *r, void **slot, kd_err *err) {
    if (r->o.source.live == NULL)
        return kd_ordered_next(r->queue, slot, err);
    if (r->block.next == r->block.count) {
        kd_status status = teach_block(r, err);
        if (status != KD_OK) {
            r->block.count = r->block.next = 0; /* nothing of it is given out */
            return status;
        }
    }
    *slot = r->block.slot[r->block.next++];
    return KD_OK;
}

/* ---- life ---- */

kd_status kd_replay_target_of(kd_replay_target *t, const kd_source *s, kd_feature f, uint16_t layer, kd_err *err) {
    const char *path = kd_source_name(s), *name = kd_feature_name(f);
    *t = (kd_replay_target){.feature = f, .layer = layer};
    if (!kd_recipe_has(kd_source_recipe(s), f))
        return kd_fail(err, KD_EUSAGE, "%s: the cache holds no %s features; give --%s-weight 0, or make a cache with --features cls,patch", path, name, name);
    KD_TRY(kd_source_mean(s, f, layer, &t->mean, &t->std, err));
    if (!(t->std > 0))
        return kd_fail(err, KD_EDAMAGED, "%s: the %s features of layer %u have standard deviation %g; there is nothing to learn from them", path, name, layer, (double)t->std);
    return KD_OK;
}

int kd_replay_target_find(const kd_replay_target *list, int n, const kd_replay_target *t) {
    int i = 0;
    while (i < n && (list[i].feature != t->feature || list[i].layer != t->layer || list[i].raw != t->raw || list[i].mean != t->mean))
        i++;
    return i;
}

kd_status kd_replay_check_size(const kd_recipe *r, int student_h, int student_w, kd_err *err) {
    if (student_h >= 1 && student_h <= r->image_h && student_w >= 1 && student_w <= r->image_w)
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "--student-size %dx%d: the cache's views measure %dx%d and can only be reduced", student_h, student_w, r->image_h, r->image_w);
}

static kd_status prepare_cache(kd_replay *r, kd_err *err) {
    size_t total = kd_cache_images(r->o.source.cache);
    KD_TRY(kd_recipe_check_decoder(r->recipe, err));
    KD_TRY(kd_alloc_array(&r->file, total, sizeof *r->file, err));
    KD_TRY(kd_alloc_array(&r->first_view, total, sizeof *r->first_view, err));
    KD_TRY(kd_locator_create(&r->locator, r->o.images, r->o.list, err));
    KD_TRY(find_files(r, err));
    return kd_alloc_array(&r->kept, r->views, sizeof *r->kept, err);
}

/* The teacher has found its images. Views aren't kept: each goes through the teacher whole. */
static kd_status prepare_live(kd_replay *r, kd_err *err) {
    size_t batch = (size_t)kd_live_batch(r->o.source.live), largest = 0;
    for (int i = 0; i < r->o.targets; i++)
        largest = r->target_floats[i] > largest ? r->target_floats[i] : largest;
    r->images = kd_live_images(r->o.source.live);
    r->extra = kd_live_extra(r->o.source.live);
    for (size_t i = 0; i < r->images; i++)
        r->cache_index[i] = (uint32_t)i;
    KD_TRY(kd_alloc_array(&r->block.slot, batch, sizeof *r->block.slot, err));
    KD_TRY(kd_alloc_array(&r->block.views, batch, view_bytes(r), err));
    KD_TRY(kd_alloc_array(&r->block.square, batch, sizeof *r->block.square, err));
    return kd_alloc_array(&r->block.values, batch, largest * sizeof *r->block.values, err);
}

static kd_status prepare(kd_replay *r, kd_err *err) {
    size_t width = (size_t)r->recipe->width;
    KD_TRY(kd_replay_check_size(r->recipe, r->o.student_h, r->o.student_w, err));
    for (int i = 0; i < r->o.targets; i++) {
        r->target_floats[i] = kd_recipe_rows(r->recipe, r->o.target[i].feature) * width;
        r->floats += r->target_floats[i] + 1;
        kd_target t = kd_recipe_target(r->recipe, r->o.target[i].feature);
        if (t.kind == KD_TARGET_ADJOINT)
            KD_TRY(kd_adjoint_create(&r->adjoint[i], &t, r->recipe->grid_h, r->recipe->grid_w, err));
    }
    r->pixel_bytes = (size_t)r->o.student_h * (size_t)r->o.student_w * 3;
    KD_TRY(kd_alloc_array(&r->workers, (size_t)r->o.threads, sizeof *r->workers, err));
    KD_TRY(kd_alloc_array(&r->cache_index, kd_source_images(&r->o.source), sizeof *r->cache_index, err));
    return r->o.source.live != NULL ? prepare_live(r, err) : prepare_cache(r, err);
}

kd_status kd_replay_create(kd_replay **out, const kd_replay_options *options, kd_err *err) {
    *out = NULL;
    KD_ASSERT(options->threads >= 1 && options->ahead >= 1 && options->targets >= 1 && options->targets <= KD_REPLAY_TARGETS);
    kd_replay *r;
    KD_TRY(kd_alloc_array(&r, 1, sizeof *r, err));
    r->o = *options;
    r->o.index_path = NULL; /* needed for as long as files may be searched: an own copy */
    r->recipe = kd_source_recipe(&options->source);
    pthread_mutex_init(&r->hashing, NULL);
    kd_status status = KD_OK;
    if (options->index_path != NULL && (r->o.index_path = kd_strdup(options->index_path)) == NULL)
        status = kd_fail(err, KD_EFAIL, "out of memory for the image index's path");
    if (status == KD_OK)
        status = prepare(r, err);
    if (status != KD_OK) {
        kd_replay_destroy(r);
        return status;
    }
    *out = r;
    return KD_OK;
}

void kd_replay_destroy(kd_replay *r) {
    if (r == NULL)
        return;
    kd_replay_end(r);
    for (int i = 0; r->workers != NULL && i < r->o.threads; i++) {
        worker *w = &r->workers[i];
        kd_reader_destroy(w->reader);
        kd_image_free(&w->image);
        kd_image_free(&w->view);
        kd_view_scratch_free(&w->scratch);
        kd_resample_scratch_free(&w->reduce);
        kd_free(w->file);
    }
    for (size_t i = 0; r->kept != NULL && i < r->views; i++)
        kd_free(atomic_load(&r->kept[i]));
    for (int i = 0; i < r->o.targets; i++)
        kd_adjoint_free(&r->adjoint[i]);
    kd_locator_destroy(r->locator);
    pthread_mutex_destroy(&r->hashing);
    kd_free((void *)(uintptr_t)r->o.index_path);
    kd_free(r->workers);
    kd_free(r->cache_index);
    kd_free(r->file);
    kd_free(r->first_view);
    kd_free(r->kept);
    kd_free(r->block.slot);
    kd_free(r->block.views);
    kd_free(r->block.values);
    kd_free(r->block.square);
    kd_free(r);
}

size_t kd_replay_images(const kd_replay *r) {
    return r->images;
}

const kd_image_entry *kd_replay_image(const kd_replay *r, size_t i) {
    KD_ASSERT(i < r->images);
    return entry_of(r, (uint32_t)i);
}

const char *kd_replay_name(const kd_replay *r, size_t i) {
    const char *rel = kd_replay_image(r, i)->rel;
    return r->o.source.live != NULL ? rel : kd_locator_show(r->locator, atomic_load(&r->file[i]), rel); /* a live teacher reads names from the folder itself: none is hidden */
}

size_t kd_replay_missing(const kd_replay *r) {
    return r->missing;
}

size_t kd_replay_extra(const kd_replay *r) {
    return r->extra;
}

const kd_replay_target *kd_replay_target_at(const kd_replay *r, int i) {
    KD_ASSERT(i >= 0 && i < r->o.targets);
    return &r->o.target[i];
}

/* Of a pass: how many samples are in flight, and what each takes. */
static size_t slot_count(const kd_replay *r) {
    return r->o.ahead + (r->o.source.live != NULL ? (size_t)kd_live_batch(r->o.source.live) : 0);
}

static size_t slot_bytes(const kd_replay *r) {
    return r->floats * sizeof(float) + r->pixel_bytes + (r->o.source.live != NULL ? view_bytes(r) : 0);
}

size_t kd_replay_pass_bytes(const kd_replay *r) {
    size_t largest = 0;
    for (uint32_t i = 0; i < r->images; i++) {
        const kd_image_entry *e = entry_of(r, i);
        size_t bytes = (size_t)e->width * (size_t)e->height * 3;
        largest = bytes > largest ? bytes : largest;
    }
    return slot_count(r) * slot_bytes(r) + (size_t)r->o.threads * (largest + view_bytes(r));
}

kd_status kd_replay_begin(kd_replay *r, const kd_replay_item *items, size_t count, kd_err *err) {
    KD_ASSERT(r->queue == NULL);
    for (size_t i = 0; i < count; i++)
        KD_ASSERT(items[i].image < r->images && items[i].view < entry_of(r, items[i].image)->views);
    r->items = items;
    r->count = count;
    r->block.count = r->block.next = 0;
    return kd_ordered_create(&r->queue, r->o.threads, slot_count(r), slot_bytes(r), count, r->o.source.live != NULL ? make_live_sample : make_sample, NULL, r, err);
}

kd_status kd_replay_next(kd_replay *r, kd_sample *sample, kd_err *err) {
    void *slot;
    *sample = (kd_sample){0};
    kd_status status = next_slot(r, &slot, err);
    if (status != KD_OK)
        return status;
    *sample = sample_of(r, slot);
    return KD_OK;
}

void kd_replay_release(kd_replay *r, kd_sample *sample) {
    kd_ordered_release(r->queue, sample->slot);
    *sample = (kd_sample){0};
}

void kd_replay_end(kd_replay *r) {
    if (r->queue == NULL)
        return;
    r->waited += kd_ordered_wait_seconds(r->queue);
    kd_ordered_destroy(r->queue);
    r->queue = NULL;
}

double kd_replay_wait_seconds(const kd_replay *r) {
    return r->waited + (r->queue != NULL ? kd_ordered_wait_seconds(r->queue) : 0);
}

void kd_replay_add_work(const kd_replay *r, double seconds[KD_STAGES]) {
    KD_ASSERT(r->queue == NULL);
    for (int i = 0; i < r->o.threads; i++)
        kd_stages_add(seconds, &r->workers[i].time);
    if (r->o.source.live != NULL)
        kd_live_add_work(r->o.source.live, seconds);
}

uint64_t kd_replay_decoded(const kd_replay *r) {
    return atomic_load(&((kd_replay *)(uintptr_t)r)->decoded);
}
