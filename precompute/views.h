/* Views stage: from a file of the data set to its augmented views, on loader threads.
 *
 * First and second station of the way of the data. An item is one image; its missing views are made from one decode. A bad image is not a failure of the stage: the item carries
 * the sentence, so that the run can list it and go on.
 *
 * A mixed view needs its partner's file as well: one more file read and decoded for every view, where the image's own is decoded once for all of its views. An image whose partner can't be
 * read is skipped with that reason. */
#ifndef KD_PRECOMPUTE_VIEWS_H
#define KD_PRECOMPUTE_VIEWS_H

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

typedef struct kd_view_stage {
    const kd_dataset *data;
    const kd_policy *policy;
    kd_decode_options decode;
    uint64_t seed;
    uint32_t views;
    const kd_mix_set *mix; /* NULL: the policy mixes nothing */
    /* Is this view already stored? Called from loader threads. */
    int (*done)(void *ctx, const kd_hash128 *id, uint32_t view);
    void *ctx;
    struct kd_view_worker *workers; /* per thread: file bytes, decoded image, scratch */
    int threads;
} kd_view_stage;

/* Items that may be alive at once, each with all of its views. */
static inline size_t kd_view_stage_slots(int threads) {
    return (size_t)threads + 4;
}
/* Starts the stage over all files of stage->data, `threads` wide. The caller fills the fields up to ctx. Items come in file order through kd_ordered_next. */
kd_status kd_view_stage_start(kd_view_stage *stage, kd_ordered **out, int threads, kd_err *err);
void kd_view_stage_stop(kd_view_stage *stage, kd_ordered *q);

#endif
