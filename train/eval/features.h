/* Features: a network (teacher or student) run over image files with the evaluation transform.
 *
 * Used by kd-eval, which opens the network from a weight file (kd_extractor), and by kd-train, which has it (kd_network). images -> eval view (the policy "eval" of augment.h) -> optional BOX reduction -> network -> pooled, cls, patch.
 * Bad images are skipped with a warning and counted. Results are in path order and don't depend on the thread count.
 *
 *     kd_extractor *x;
 *     KD_TRY(kd_extractor_open(&x, &options, err));
 *     KD_TRY(kd_features_run(kd_extractor_network(x), "photos", KD_LIST_LINES, KD_TAP_POOLED, &set, err));
 *     ... set.values[KD_TAP_POOLED][i * x_width + c] ...
 *     kd_feature_set_free(&set); kd_extractor_close(x); */
#ifndef KD_TRAIN_FEATURES_H
#define KD_TRAIN_FEATURES_H

#include "common/data/dataset.h"
#include "kernels/nn/models.h"

typedef enum kd_tap { KD_TAP_POOLED = 0, KD_TAP_CLS = 1, KD_TAP_PATCH = 2, KD_TAPS = 3 } kd_tap;

/* A compiled inference program and what it needs to be fed and read. Everything is borrowed. */
typedef struct kd_network {
    kd_exec *exec;         /* input "images" [height,width,3]; outputs as kd_model_build names them */
    const kd_model_info *model;
    size_t patches;        /* positions of the output "map"; 0 where that isn't asked for */
    int map_h, map_w;      /* its rows and columns, likewise */
    int batch;             /* of exec */
    int height, width;     /* of the pixels that the network sees: the eval view's BOX reduction, or the view itself */
    int image_h, image_w;  /* of the eval view */
    int threads;           /* that load images */
    const char *progress;  /* label of progress lines; NULL: none */
    int json;              /* progress as JSON lines */
} kd_network;

enum { KD_AS_TRAINED = -1 };
/* Strings are borrowed for the extractor's life. */
typedef struct kd_extractor_options {
    const char *model;     /* name, or "auto" with a weight file: the student that an exported file names, else the network that its tensors are */
    const char *weights;   /* file, or "random": what kd-train --seed starts from */
    uint64_t seed;         /* for random weights */
    int image_h, image_w;  /* of the eval view; KD_AS_TRAINED: of the views that an exported file's student was trained on, 224 where the file doesn't say */
    int student_h, student_w; /* 0: the view itself; else its BOX reduction; KD_AS_TRAINED: as an exported file's student saw views of this size, the view itself where the file doesn't say */
    int batch, threads;
    const char *device;
    kd_dtype precision;
    int json;              /* progress as JSON lines */
} kd_extractor_options;

typedef struct kd_extractor kd_extractor;
/* KD_EUSAGE: unknown model, size that the model can't take. Otherwise the causes of kd_weights_open, kd_model_params_frozen and kd_backend_open. */
kd_status kd_extractor_open(kd_extractor **out, const kd_extractor_options *options, kd_err *err);
void kd_extractor_close(kd_extractor *x); /* accepts NULL */
const kd_network *kd_extractor_network(const kd_extractor *x); /* borrowed */
const kd_extractor_options *kd_extractor_asked(const kd_extractor *x); /* what it was opened with; borrowed */
const char *kd_extractor_device(const kd_extractor *x); /* the backend's own description; borrowed */
/* kd_weights_sha256 of the weights in hex; "" for random ones. Borrowed. */
const char *kd_extractor_weights_sha256(const kd_extractor *x);

typedef struct kd_feature_set {
    size_t count;               /* images that could be read */
    size_t skipped;
    size_t width, patches;      /* channels; patch positions per image */
    kd_dataset data;            /* owns the paths */
    size_t *file;               /* [count] index in data */
    kd_hash128 *id;             /* [count] kd_image_id of each: what the digests of results are made of */
    float *values[KD_TAPS];     /* NULL, [count][width], [count][width], [count][patches][width] */
} kd_feature_set;

/* taps: bit i set = kd_tap i is wanted. KD_EFAIL when no image could be read; KD_ESIGINT, KD_ESIGTERM when the user asks to stop. Parameters aren't changed. */
kd_status kd_features_run(const kd_network *x, const char *images, kd_list_format list, unsigned taps, kd_feature_set *set, kd_err *err);
/* The same over images that are listed already; *data is taken over, also after a failure. `images` names them in sentences. */
kd_status kd_features_run_over(const kd_network *x, kd_dataset *data, const char *images, unsigned taps, kd_feature_set *set, kd_err *err);
void kd_feature_set_free(kd_feature_set *set);

/* The eval view of one file: rgb [image_h][image_w][3]. KD_EFAIL: it can't be read or decoded. */
kd_status kd_features_view(uint8_t *rgb, const kd_dataset *data, size_t file, int image_h, int image_w, kd_err *err);

#endif
