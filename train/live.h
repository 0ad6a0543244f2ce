/* Live teacher: what kd-precompute would have cached of a set of images, made when it is asked for. Stands in for a cache where a replay is fed (source.h): the honest baseline for what caching costs in
 * quality and saves in time.
 *
 * Views are those of kd-precompute with the same options, byte for byte (common/data/views.h); targets are what it would have encoded, before the rounding of a codec. The statistics that standardise them
 * are made as a seal makes them: over the first 8,192 views in the order of (image id, view).
 *
 *     KD_TRY(kd_live_open(&live, &options, err));              // reads the set for its ids; the recipe is known
 *     KD_TRY(kd_live_check_images(live, err));                 // decodes it once: the images are known
 *     KD_TRY(kd_live_start(live, backend, err));               // the teacher itself
 *     KD_TRY(kd_live_mean(live, KD_FEATURE_CLS, 1, &mean, &std, err));
 *     KD_TRY(kd_live_view(live, thread, image, view, &picture, err));                 // on a loader thread
 *     KD_TRY(kd_live_run(live, pixels, count, err));                                  // on the training thread: a batch of views
 *     KD_TRY(kd_live_target(live, KD_FEATURE_PATCH, 1, count, values, squares, err));
 *     kd_live_close(live);
 *
 * Pictures that kd-precompute would skip are found before the first step (live_check.h) and left out.
 * Thread rule: kd_live_view from one thread per worker number; everything else from one thread. */
#ifndef KD_TRAIN_LIVE_H
#define KD_TRAIN_LIVE_H

#include "cache/store.h"
#include "common/base/stages.h"
#include "common/data/dataset.h"
#include "kernels/nn/selection.h"

/* As the options of kd-precompute of these names; all borrowed while kd_live_open runs. */
typedef struct kd_live_options {
    const char *weights, *teacher;
    kd_teacher_choice choice; /* of the model in the file, its positions and normalisation */
    const char *images;
    kd_list_format list;
    const char *augment, *exif;
    int image_h, image_w;     /* of the views */
    int64_t max_pixels;
    uint64_t seed;
    uint32_t views;           /* of each image */
    kd_selection_text selection;
    const kd_target *target;  /* the forms in which patches can be learnt, `targets` of them, at least 1 */
    int targets;
    int batch;                /* views that the teacher sees at once; bits may depend on it, as in kd-precompute */
    kd_dtype precision;
    int threads;              /* worker numbers are below it */
    int json;                 /* progress as lines on stdout */
    const char *checked;      /* file that keeps which pictures can't be decoded from one start of a run to the next (live_check.h); NULL: they are looked for each time */
    const char *statistics;   /* file that keeps the statistics from one start of a run to the next (live_stats.h); NULL: they are made each time */
    int plan_only;            /* no statistics are made: means are 0 and deviations 1; for --dry-run */
} kd_live_options;

typedef struct kd_live kd_live;

/* KD_EUSAGE: as kd-precompute's options are refused; a form that is larger than the grid. KD_EFAIL: damaged weights, no file that begins like a picture, memory. */
kd_status kd_live_open(kd_live **out, const kd_live_options *options, kd_err *err);
/* Leaves out the images that can't be decoded, before anything else is asked of them. Without it (a dry run) one of them is an error of kd_live_view. KD_EFAIL: none is left; a file was changed. Errors of
 * kd_live_check. */
kd_status kd_live_check_images(kd_live *l, kd_err *err);
/* Prepares the teacher on a backend, which must outlive it. The weight file is closed then. KD_ENODEVICE: no bf16 here. */
kd_status kd_live_start(kd_live *l, kd_backend *backend, kd_err *err);
void kd_live_close(kd_live *l); /* accepts NULL */

/* The recipe of a cache of the same options, with "dtype":"f32". */
const kd_recipe *kd_live_recipe(const kd_live *l);
const char *kd_live_name(const kd_live *l); /* of the weight file, for messages */
size_t kd_live_device_bytes(const kd_live *l); /* of the teacher, once it is started */

/* Images by ascending id; of files with equal bytes one. Their width and height aren't known: 0. */
size_t kd_live_images(const kd_live *l);
const kd_image_entry *kd_live_image(const kd_live *l, size_t i);
size_t kd_live_extra(const kd_live *l); /* files that are no pictures, or another's duplicates */
size_t kd_live_skipped(const kd_live *l); /* pictures that kd_live_check_images has left out */
size_t kd_live_files(const kd_live *l);   /* all that there are */

/* As kd_cache_mean. The first call runs the teacher over the views that count, unless the file of the statistics has them. KD_ENOTFOUND: a feature or layer that the recipe hasn't. KD_ESIGINT, KD_ESIGTERM: stopped. Errors of the three below. */
kd_status kd_live_mean(kd_live *l, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err);

/* The full-size view, borrowed until the worker's next. hash: of its pixels; may be NULL. KD_EFAIL: a file that can't be read or decoded, or was changed since kd_live_open. */
kd_status kd_live_view(kd_live *l, int worker, size_t image, uint32_t view, kd_image *picture, kd_hash128 *hash, kd_err *err);

/* views: [count, image_h, image_w, 3], count up to the batch. */
kd_status kd_live_run(kd_live *l, const uint8_t *views, int count, kd_err *err);
/* Of those views: values [count, rows, width], and of adjoint targets |t|^2 [count], of others 0. KD_ENONFINITE. */
kd_status kd_live_target(kd_live *l, kd_feature f, uint16_t layer, int count, float *values, double *square, kd_err *err);
/* values [count, rows, width] of any views, made on all loader threads (nobody else may use them meanwhile). KD_ENOTFOUND as kd_live_mean; errors of the three above. */
typedef struct kd_live_item {
    uint32_t image, view;
} kd_live_item;
kd_status kd_live_features(kd_live *l, const kd_live_item *items, size_t count, kd_feature f, uint16_t layer, float *values, kd_err *err);
int kd_live_batch(const kd_live *l);
void kd_live_add_work(const kd_live *l, double seconds[KD_STAGES]); /* adds what kd_live_view has taken, by the stages of views.h; while no thread is in it */
double kd_live_seconds(const kd_live *l); /* that kd_live_run and kd_live_target have taken since the statistics were made */

#endif
