#include "train/eval/features.h"

#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/image/augment.h"

/* Outputs that kd_model_build names. */
static const char *const tap_name[KD_TAPS] = {"pooled", "cls", "map"};

struct kd_extractor {
    kd_extractor_options options;
    kd_network network;     /* of what follows */
    char sha256[65];        /* of the weights, hex */
    kd_backend *backend;
    kd_model_info model;
    kd_graph *graph;
    kd_params *params;
    kd_exec *exec;
};

/* ---- network ---- */

/* From a file they only pass through on their way into the program, so that a big teacher needs no second copy. */
static kd_status open_parameters(kd_extractor *x, const kd_weights *weights, kd_err *err) {
    if (weights != NULL)
        return kd_model_params_frozen(&x->params, x->graph, x->backend, &x->model, weights, x->network.height, x->network.width, err);
    KD_TRY(kd_params_create(&x->params, x->graph, x->backend, err));
    return kd_params_init(x->params, x->options.seed, err);
}

/* How an exported file's student was trained (train/export); NULL, 0 where the file doesn't say. */
typedef struct trained {
    const char *model;
    int view_h, view_w, input_h, input_w;
} trained;

static trained trained_of(const kd_weights *weights) {
    trained t = {0};
    if (weights == NULL)
        return t;
    const json_t *said = kd_weights_metadata(weights);
    const char *view = json_string_value(json_object_get(said, "kdcache_view_size")), *input = json_string_value(json_object_get(said, "kdcache_image_size"));
    t.model = json_string_value(json_object_get(said, "kdcache_student"));
    if (view == NULL || kd_image_size_parse(view, "kdcache_view_size", &t.view_h, &t.view_w, NULL) != KD_OK)
        t.view_h = t.view_w = 0;
    if (input == NULL || kd_image_size_parse(input, "kdcache_image_size", &t.input_h, &t.input_w, NULL) != KD_OK)
        t.input_h = t.input_w = 0;
    return t;
}

/* Sizes of the view and of what the network sees of it. */
static kd_status choose_sizes(kd_extractor *x, const trained *t, kd_err *err) {
    enum { USUAL = 224 };
    kd_extractor_options *o = &x->options;
    if (o->image_h == KD_AS_TRAINED) {
        o->image_h = t->view_h > 0 ? t->view_h : USUAL;
        o->image_w = t->view_h > 0 ? t->view_w : USUAL;
    }
    if (o->student_h == KD_AS_TRAINED) {
        int same = o->image_h == t->view_h && o->image_w == t->view_w;
        o->student_h = same ? t->input_h : 0;
        o->student_w = same ? t->input_w : 0;
    }
    kd_network *n = &x->network;
    n->image_h = o->image_h;
    n->image_w = o->image_w;
    n->height = o->student_h > 0 ? o->student_h : o->image_h;
    n->width = o->student_h > 0 ? o->student_w : o->image_w;
    if (n->height > n->image_h || n->width > n->image_w)
        return kd_fail(err, KD_EUSAGE, "--student-size %dx%d: the view measures %dx%d and can only be reduced", n->height, n->width, n->image_h, n->image_w);
    return KD_OK;
}

static kd_status build(kd_extractor *x, const kd_weights *weights, kd_err *err) {
    const kd_extractor_options *o = &x->options;
    trained t = trained_of(weights);
    KD_TRY(choose_sizes(x, &t, err));
    KD_TRY(kd_model_find(&x->model, strcmp(o->model, "auto") == 0 && t.model != NULL ? t.model : o->model, weights, err));
    KD_TRY(kd_model_check_size(&x->model, x->network.height, x->network.width, err));
    KD_TRY(kd_backend_open(&x->backend, o->device, o->threads, err));
    if (o->precision == KD_BF16)
        KD_TRY(x->backend->v->check_bf16(x->backend, err));
    x->graph = kd_graph_create();
    if (x->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", x->model.name);
    kd_model_taps taps = kd_model_build(x->graph, &x->model, x->network.height, x->network.width);
    x->network.map_h = taps.map_h;
    x->network.map_w = taps.map_w;
    x->network.patches = (size_t)taps.map_h * (size_t)taps.map_w;
    KD_TRY(open_parameters(x, weights, err));
    KD_TRY(kd_exec_create(&x->exec, x->graph, x->params, &(kd_exec_config){.batch = o->batch, .precision = o->precision}, err));
    x->network.exec = x->exec;
    return KD_OK;
}

/* Of the very file that the parameters come from, which is still open. */
static kd_status hash_weights(kd_extractor *x, kd_weights *weights, kd_err *err) {
    kd_sha256 sha;
    if (weights == NULL)
        return KD_OK;
    KD_TRY(kd_weights_sha256(weights, &sha, err));
    kd_hex(x->sha256, sha.b, sizeof sha.b);
    return KD_OK;
}

kd_status kd_extractor_open(kd_extractor **out, const kd_extractor_options *options, kd_err *err) {
    *out = NULL;
    kd_extractor *x = kd_calloc(1, sizeof *x);
    if (x == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    x->options = *options;
    if (x->options.threads <= 0)
        x->options.threads = kd_cpu_count();
    x->network = (kd_network){.model = &x->model, .batch = options->batch, .threads = x->options.threads, .progress = "features", .json = options->json};
    kd_weights *weights = NULL;
    kd_status status = KD_OK;
    if (strcmp(options->weights, "random") != 0)
        status = kd_weights_open(&weights, options->weights, err);
    if (status == KD_OK)
        status = build(x, weights, err);
    if (status == KD_OK)
        status = hash_weights(x, weights, err);
    kd_weights_close(weights);
    if (status != KD_OK) {
        kd_extractor_close(x);
        return status;
    }
    *out = x;
    return KD_OK;
}

void kd_extractor_close(kd_extractor *x) {
    if (x == NULL)
        return;
    kd_exec_destroy(x->exec);
    kd_params_destroy(x->params);
    kd_graph_destroy(x->graph);
    kd_backend_close(x->backend);
    kd_free(x);
}

const kd_network *kd_extractor_network(const kd_extractor *x) {
    return &x->network;
}

const kd_extractor_options *kd_extractor_asked(const kd_extractor *x) {
    return &x->options;
}

const char *kd_extractor_device(const kd_extractor *x) {
    return x->backend->v->describe(x->backend);
}

const char *kd_extractor_weights_sha256(const kd_extractor *x) {
    return x->sha256;
}

/* ---- images: file -> pixels of the network's size, on loader threads ---- */

typedef struct eval_item {
    size_t file;
    kd_hash128 id;
    kd_err problem;
    uint8_t *pixels;
} eval_item;

typedef struct eval_worker {
    uint8_t *bytes;
    size_t cap;
    kd_image image, view;
    kd_view_scratch scratch;
} eval_worker;

typedef struct eval_stage {
    const kd_dataset *data;
    kd_policy policy;
    int height, width; /* of the pixels */
    eval_worker *worker;
} eval_stage;

static kd_status read_view(const eval_stage *s, eval_worker *w, eval_item *item, kd_err *err) {
    char path[KD_DATA_NAME];
    size_t size = 0;
    KD_TRY(kd_dataset_read(s->data, item->file, &w->bytes, &w->cap, &size, err));
    KD_TRY(kd_dataset_path(s->data, item->file, path, sizeof path, err));
    item->id = kd_image_id(w->bytes, size);
    KD_TRY(kd_image_decode(&w->image, w->bytes, size, path, NULL, err));
    kd_plan plan = kd_plan_draw(&s->policy, 0, &item->id, 0, w->image.width, w->image.height);
    if (s->height == s->policy.image_h && s->width == s->policy.image_w)
        return kd_plan_apply(&plan, &w->image, item->pixels, &w->scratch, err);
    KD_TRY(kd_image_resize_buffer(&w->view, plan.out_w, plan.out_h, err));
    KD_TRY(kd_plan_apply(&plan, &w->image, w->view.rgb, &w->scratch, err));
    return kd_resample(item->pixels, s->width, s->height, &w->view, 0, 0, plan.out_w, plan.out_h, KD_FILTER_BOX, &w->scratch.resample, err);
}

static void free_worker(eval_worker *w) {
    kd_free(w->bytes);
    kd_image_free(&w->image);
    kd_image_free(&w->view);
    kd_view_scratch_free(&w->scratch);
}

static kd_status make_item(void *ctx, int worker, uint64_t index, void *slot, kd_err *err) {
    eval_stage *s = ctx;
    eval_item *item = slot;
    if (item->pixels == NULL)
        KD_TRY(kd_alloc_array(&item->pixels, (size_t)s->height * (size_t)s->width, 3, err));
    item->file = (size_t)index;
    kd_status status = read_view(s, &s->worker[worker], item, &item->problem);
    item->problem.status = status;
    return KD_OK;
}

static void free_item(void *ctx, void *slot) {
    (void)ctx;
    kd_free(((eval_item *)slot)->pixels);
}

/* ---- running ---- */

static size_t tap_values(const kd_feature_set *set, int tap) {
    return tap == KD_TAP_PATCH ? set->patches * set->width : set->width;
}

static kd_status run_batch(const kd_network *x, int rows, unsigned taps, kd_feature_set *set, kd_err *err) {
    KD_TRY(kd_exec_forward(x->exec, err));
    for (int t = 0; t < KD_TAPS; t++)
        if (taps & 1u << t)
            KD_TRY(kd_exec_download(x->exec, tap_name[t], rows, set->values[t] + set->count * tap_values(set, t), err));
    set->count += (size_t)rows;
    return KD_OK;
}

static kd_status run_all(const kd_network *x, kd_ordered *q, kd_progress *progress, unsigned taps, kd_feature_set *set, kd_err *err) {
    int rows = 0;
    kd_status status;
    for (uint64_t done = 1;; done++) {
        void *slot;
        status = kd_ordered_next(q, &slot, err);
        if (status != KD_OK)
            break;
        const eval_item *item = slot;
        if (item->problem.status != KD_OK) {
            kd_log(KD_LOG_WARN, "skipped: %s", item->problem.msg);
            set->skipped++;
        } else {
            set->file[set->count + (size_t)rows] = item->file;
            set->id[set->count + (size_t)rows] = item->id;
            status = kd_exec_upload_rows(x->exec, "images", rows++, 1, item->pixels, err);
        }
        kd_ordered_release(q, slot);
        if (status == KD_OK && rows == x->batch) {
            status = run_batch(x, rows, taps, set, err);
            rows = 0;
        }
        KD_TRY(status);
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted while features were computed");
        kd_progress_update(progress, done, kd_ordered_wait_seconds(q), NULL);
    }
    if (status == KD_DONE)
        status = rows > 0 ? run_batch(x, rows, taps, set, err) : KD_OK;
    return status;
}

static kd_status reserve(const kd_network *x, unsigned taps, kd_feature_set *set, kd_err *err) {
    set->width = (size_t)x->model->width;
    set->patches = x->patches;
    KD_TRY(kd_alloc_array(&set->file, set->data.count, sizeof *set->file, err));
    KD_TRY(kd_alloc_array(&set->id, set->data.count, sizeof *set->id, err));
    for (int t = 0; t < KD_TAPS; t++)
        if (taps & 1u << t)
            KD_TRY(kd_alloc_array(&set->values[t], set->data.count, tap_values(set, t) * sizeof(float), err));
    return KD_OK;
}

static kd_status extract(const kd_network *x, const char *images, unsigned taps, kd_feature_set *set, kd_err *err) {
    int threads = x->threads;
    kd_status status;
    eval_stage stage = {.data = &set->data, .height = x->height, .width = x->width};
    KD_TRY(kd_policy_load(&stage.policy, "eval", x->image_h, x->image_w, err));
    KD_TRY(reserve(x, taps, set, err));
    KD_TRY(kd_alloc_array(&stage.worker, (size_t)threads, sizeof *stage.worker, err));
    kd_ordered *q = NULL;
    status = kd_ordered_create(&q, threads, (size_t)threads + 8, sizeof(eval_item), set->data.count, make_item, free_item, &stage, err);
    if (status == KD_OK) {
        kd_progress *progress = x->progress != NULL ? kd_progress_create(x->progress, "image", set->data.count, 0, x->json) : NULL;
        status = run_all(x, q, progress, taps, set, err);
        kd_progress_finish(progress);
    }
    kd_ordered_destroy(q);
    for (int i = 0; i < threads; i++)
        free_worker(&stage.worker[i]);
    kd_free(stage.worker);
    KD_TRY(status);
    if (set->count == 0)
        return kd_fail(err, KD_EFAIL, "%s: none of the %zu files could be read as an image; the reasons are listed above", images, set->data.count);
    return KD_OK;
}

kd_status kd_features_run_over(const kd_network *x, kd_dataset *data, const char *images, unsigned taps, kd_feature_set *set, kd_err *err) {
    *set = (kd_feature_set){.data = *data};
    *data = (kd_dataset){0};
    kd_status status = extract(x, images, taps, set, err);
    if (status != KD_OK)
        kd_feature_set_free(set);
    return status;
}

kd_status kd_features_run(const kd_network *x, const char *images, kd_list_format list, unsigned taps, kd_feature_set *set, kd_err *err) {
    kd_dataset data;
    memset(set, 0, sizeof *set);
    KD_TRY(kd_dataset_open(&data, images, list, err));
    return kd_features_run_over(x, &data, images, taps, set, err);
}

void kd_feature_set_free(kd_feature_set *set) {
    for (int t = 0; t < KD_TAPS; t++)
        kd_free(set->values[t]);
    kd_free(set->file);
    kd_free(set->id);
    kd_dataset_close(&set->data);
    memset(set, 0, sizeof *set);
}

kd_status kd_features_view(uint8_t *rgb, const kd_dataset *data, size_t file, int image_h, int image_w, kd_err *err) {
    eval_stage stage = {.data = data, .height = image_h, .width = image_w};
    eval_worker w = {0};
    eval_item item = {.file = file, .pixels = rgb};
    KD_TRY(kd_policy_load(&stage.policy, "eval", image_h, image_w, err));
    kd_status status = read_view(&stage, &w, &item, err);
    free_worker(&w);
    return status;
}
