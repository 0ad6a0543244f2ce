/* Views: from a file of the data set to its augmented views.
 *
 * First and second station of the way of the data. kd-precompute runs it as a stage on loader threads: an item is one image, whose missing views are made from one decode. A live teacher (train/live.h)
 * asks for single views with the same functions, so that both see the same pixels.
 *
 *     kd_view_worker w = {0};
 *     KD_TRY(kd_view_item_reserve(&maker, &item, 1, err));
 *     item.file = file;
 *     KD_TRY(kd_views_read(&maker, &w, &item, err));                     // the file's bytes, and its id
 *     item.view[0] = 5, item.count = 1;
 *     KD_TRY(kd_views_make(&maker, &w, &item, err));                     // plan, hash and pixels of view 5
 *
 * A bad image is not a failure of the stage: the item carries the sentence, so that the run can list it and go on.
 *
 * A mixed view needs its partner's file as well: one more file read and decoded for every view, where the image's own is decoded once for all of its views. An image whose partner can't be
 * read is skipped with that reason. */
#ifndef KD_COMMON_DATA_VIEWS_H
#define KD_COMMON_DATA_VIEWS_H

#include "common/base/stages.h"
#include "common/base/threads.h"
#include "common/data/locate.h"
#include "common/image/augment.h"

typedef struct kd_view_item {
    size_t file;              /* index in the data set */
    kd_hash128 id;
    int width, height;
    uint64_t size;            /* bytes of the file as read */
    kd_err problem;           /* status KD_OK, or why this image is skipped */
    uint32_t count;           /* views made: those that `done` didn't know */
    uint32_t *view;           /* [count] view numbers */
    kd_plan *plan;            /* [count] */
    kd_plan *partner;         /* [count] of mixed views: their partners' plans */
    kd_hash128 *hash;         /* [count] */
    uint8_t *pixels;          /* [count][image_h][image_w][3] */
} kd_view_item;

/* The images that views are mixed with. */
typedef struct kd_mix_set {
    const kd_locator *files; /* over the stage's data, all ids known */
    const kd_hash128 *id;    /* ascending, each once: what partners are drawn from */
    size_t count;
} kd_mix_set;

/* What views are made of and by; all borrowed. */
typedef struct kd_view_maker {
    const kd_dataset *data;
    const kd_policy *policy;
    kd_decode_options decode;
    uint64_t seed;
    const kd_mix_set *mix; /* NULL: the policy mixes nothing */
} kd_view_maker;

/* Stages of a loader thread (stages.h). */
enum { KD_VIEW_DECODE = 1, KD_VIEW_REPLAY = 2 }; /* files read, hashed and decoded; plans applied and the views' hashes */

/* What a thread re-uses from view to view. Zero-initialise. */
typedef struct kd_view_worker {
    uint8_t *bytes;
    size_t bytes_cap;
    kd_image image, partner;
    kd_view_scratch scratch;
    kd_stages time;       /* processor time, in stage 0 between calls */
} kd_view_worker;
void kd_view_worker_free(kd_view_worker *w);

/* Buffers for up to `views` views, unless the (zeroed) item has them already. */
kd_status kd_view_item_reserve(const kd_view_maker *m, kd_view_item *item, uint32_t views, kd_err *err);
void kd_view_item_free(kd_view_item *item);

/* The bytes of item->file in the worker; fills id and size. Errors as kd_dataset_read. */
kd_status kd_views_read(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err);
/* After that, makes the views item->view[0 .. count): plans, hashes, pixels, and the picture's width and height. KD_EFAIL, naming the file: it isn't a picture that can be decoded, it was changed since the mix set was
 * made, or its partner can't be read. */
kd_status kd_views_make(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err);
/* After kd_views_read: KD_EFAIL exactly when kd_views_make would say that the file isn't a picture that can be decoded. Fills width and height and makes nothing. */
kd_status kd_views_check(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err);

typedef struct kd_view_stage {
    kd_view_maker make;
    uint32_t views;
    /* Is this view already stored? Called from loader threads. */
    int (*done)(void *ctx, const kd_hash128 *id, uint32_t view);
    void *ctx;
    kd_view_worker *workers; /* per thread */
    int threads;
    double seconds[KD_STAGES]; /* that the workers took, by their stage; once the stage has been stopped */
} kd_view_stage;

/* Items that may be alive at once, each with all of its views. */
static inline size_t kd_view_stage_slots(int threads) {
    return (size_t)threads + 4;
}
/* Starts the stage over all files of stage->make.data, `threads` wide. The caller fills the fields up to ctx. Items come in file order through kd_ordered_next. */
kd_status kd_view_stage_start(kd_view_stage *stage, kd_ordered **out, int threads, kd_err *err);
void kd_view_stage_stop(kd_view_stage *stage, kd_ordered *q);

#endif
