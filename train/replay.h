/* Replay: from cached views back to pixels and targets. Fourth station of the way of the data: cache + images -> samples for the students. Where a live teacher stands in for the cache, its views are made and its
 * targets computed here: loader threads make pixels, the calling thread runs the teacher on a batch of them when their first sample is asked for.
 *
 * Every sample is proven: the view that is rebuilt from the image file and the recorded plan has the hash of the view that the teacher saw, and so has every feature
 * record that is used with it. A view that was proven in this process may be kept in memory (reduced, as the students see it); its bytes are the same.
 *
 *     KD_TRY(kd_replay_create(&r, &options, err));
 *     KD_TRY(kd_replay_begin(r, items, count, err));                     // items must live until kd_replay_end
 *     while ((st = kd_replay_next(r, &sample, err)) == KD_OK) { ...; kd_replay_release(r, &sample); }
 *     kd_replay_end(r);                                                  // also in the middle
 *
 * Samples arrive in the order of the items whatever the thread count. Thread rule: one thread; loader threads are inside. */
#ifndef KD_TRAIN_REPLAY_H
#define KD_TRAIN_REPLAY_H

#include "common/data/views.h"
#include "train/source.h"

enum { KD_REPLAY_TARGETS = 32 };

/* A stored feature of a layer of the teacher, and how it is given out: as it is, or standardised, (x - mean) / std; an adjoint target becomes that of the standardised grid. */
typedef struct kd_replay_target {
    kd_feature feature;
    uint16_t layer;    /* counted from the end, 1 = last */
    int raw;           /* mean and std are there but not applied */
    const float *mean; /* [width]; borrowed */
    float std;
} kd_replay_target;
/* Feature f of a layer, standardised by the source's own statistics. KD_EUSAGE: it doesn't hold it. KD_EDAMAGED: it doesn't vary. */
kd_status kd_replay_target_of(kd_replay_target *t, const kd_source *s, kd_feature f, uint16_t layer, kd_err *err);
/* Place of an equal target among n, or n. */
int kd_replay_target_find(const kd_replay_target *list, int n, const kd_replay_target *t);

typedef struct kd_replay_options {
    kd_source source;        /* borrowed for the life of the replay; a live teacher has been started and has its images: images, list, index_path, allow_missing and view_memory aren't read then */
    const char *images;      /* folder, tar or list */
    kd_list_format list;
    const char *index_path;  /* where to keep (path, size, mtime -> id) when files had to be hashed; NULL: nowhere */
    int threads;
    int student_h, student_w; /* of the samples; each at most the view's */
    kd_replay_target target[KD_REPLAY_TARGETS]; /* all different */
    int targets;             /* in use, at least 1 */
    int allow_missing;
    uint64_t view_memory;    /* bytes for kept views */
    size_t ahead;            /* samples that loaders may prepare ahead */
} kd_replay_options;

typedef struct kd_replay kd_replay;

/* Finds every image of the cache by recorded path and size, and hashes the folder's files only when some are missing. KD_EMISMATCH: this program's decoder
 * makes other pixels, or images are missing (without allow_missing), or none is there at all, with the likely cause. KD_EUSAGE: kd_replay_check_size. */
kd_status kd_replay_create(kd_replay **out, const kd_replay_options *options, kd_err *err);
void kd_replay_destroy(kd_replay *r); /* accepts NULL */
/* KD_EUSAGE: views of this recipe can't be reduced to student_h x student_w. */
kd_status kd_replay_check_size(const kd_recipe *r, int student_h, int student_w, kd_err *err);

/* Images of the source that were found, in the order of their ids. */
size_t kd_replay_images(const kd_replay *r);
const kd_image_entry *kd_replay_image(const kd_replay *r, size_t i);
/* Its recorded path; where that is a hidden one, the path of its file. Borrowed. */
const char *kd_replay_name(const kd_replay *r, size_t i);
size_t kd_replay_missing(const kd_replay *r); /* of the cache: changed, or not in the folder */
size_t kd_replay_extra(const kd_replay *r);   /* files of the folder that no image of the cache needs */

const kd_replay_target *kd_replay_target_at(const kd_replay *r, int i); /* target i of the options */

typedef struct kd_replay_item {
    uint32_t image; /* index as in kd_replay_image */
    uint32_t view;  /* index among the image's views (kd_image_view) */
} kd_replay_item;

/* Borrowed until released. */
typedef struct kd_sample {
    const uint8_t *pixels; /* student_h x student_w x 3 */
    const float *target[KD_REPLAY_TARGETS]; /* [rows, width], in the order of the options; NULL behind the last */
    const float *square;   /* of adjoint targets |t|^2 of the grid as it is given out, in the order of the options; 0 for others */
    void *slot;
} kd_sample;

kd_status kd_replay_begin(kd_replay *r, const kd_replay_item *items, size_t count, kd_err *err);
/* KD_DONE after the last. Of a live teacher: errors of kd_live_view, kd_live_run, kd_live_target. KD_EMISMATCH: the pixels aren't the teacher's (image, view, both hashes, likely causes). KD_EFAIL: an image that can't be read or
 * decoded. KD_EDAMAGED: the cache. */
kd_status kd_replay_next(kd_replay *r, kd_sample *sample, kd_err *err);
void kd_replay_release(kd_replay *r, kd_sample *sample);
void kd_replay_end(kd_replay *r); /* nothing when no pass is open */

/* Memory that a pass takes beside what the replay holds, without views that are kept: its samples, and for each thread a picture as large as the source's largest with its view. */
size_t kd_replay_pass_bytes(const kd_replay *r);
double kd_replay_wait_seconds(const kd_replay *r); /* time that kd_replay_next has waited for loaders, over all passes; a live teacher's work isn't part of it */
/* Adds the processor seconds of loader threads over all passes, by stage: those of views.h and KD_REPLAY_CACHE, reading and decoding records. No pass may be open. */
enum { KD_REPLAY_CACHE = 3 };
void kd_replay_add_work(const kd_replay *r, double seconds[KD_STAGES]);
uint64_t kd_replay_decoded(const kd_replay *r);    /* views rebuilt from files so far; the others came from memory */

#endif
