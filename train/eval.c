#include "train/eval.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/threads.h"
#include "common/image/augment.h"
#include "common/weights/safetensors.h"
#include "train/features.h"
#include "train/knn_folders.h"

typedef struct eval_config {
    const char *model, *weights, *images, *out, *train, *test, *k, *feature, *device, *precision, *image_size, *student_size;
    int64_t seed, batch_size, threads;
    int null, json;
} eval_config;

#define T eval_config
#define NETWORK_OPTIONS                                                                                                                    \
    KD_OPTION_STRING(T, model, "model", "auto|NAME", "auto", 0, "network: a teacher or student name; auto infers a ViT from its weights"), \
    KD_OPTION_STRING(T, weights, "weights", "FILE|random", NULL, KD_OPT_REQUIRED, "weight file, or random for what kd-train --seed starts from"), \
    KD_OPTION_INT(T, seed, "seed", "N", "0", 0, 9007199254740992.0, "seed of random weights"),                                             \
    KD_OPTION_STRING(T, image_size, "image-size", "S|HxW", "224", 0, "size of the eval view, a side or rows x columns: resized to cover 256/224 of it, centre crop"), \
    KD_OPTION_STRING(T, student_size, "student-size", "S|HxW", "0", 0, "reduce the view to this size as kd-train --student-size does; 0 = not"), \
    KD_OPTION_INT(T, batch_size, "batch-size", "N", "16", 1, 4096, "images per pass"),                                                     \
    KD_OPTION_INT(T, threads, "threads", "N", "0", 0, 1024, "threads; 0 = every processor"),                                               \
    KD_OPTION_STRING(T, device, "device", "auto|ref|cpu|cuda[:N]", "auto", 0, "where the network runs"),                                   \
    KD_OPTION_CHOICE(T, precision, "precision", "f32|bf16", "f32", "arithmetic of the matrix products")

static const kd_option knn_table[] = {
    NETWORK_OPTIONS,
    KD_OPTION_STRING(T, train, "train", "DIR|TAR", NULL, KD_OPT_REQUIRED, "training images in one folder per class (in a tar too), or one tar per class"),
    KD_OPTION_STRING(T, test, "test", "DIR|TAR", NULL, KD_OPT_REQUIRED, "test images in the same classes"),
    KD_OPTION_STRING(T, k, "k", "K[,K...]", "10,20", 0, "numbers of neighbours"),
    KD_OPTION_CHOICE(T, feature, "feature", "pooled|cls", "pooled", "what is compared: the library's pooled feature (a ViT's class token, a CNN's average), or the class token"),
    KD_OPTION_END,
};

static const kd_option features_table[] = {
    NETWORK_OPTIONS,
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "images, taken in path order: a folder, a .tar, a list of paths, or - for such a list on stdin"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_STRING(T, out, "out", "FILE.safetensors", NULL, KD_OPT_REQUIRED, "file to write: cls, patch and pooled as F32, the paths in its metadata"),
    KD_OPTION_END,
};

static const kd_program knn_program = {
    .name = "kd-eval knn",
    .summary = "k-nearest-neighbour accuracy of a network's features (the DINO protocol: cosine, temperature 0.07).",
    .examples = "  $ kd-eval knn --model resnet18 --weights run/exported/resnet18.safetensors --train data/train --test data/test\n"
                "  $ kd-eval knn --weights dinov2_vits14_pretrain.pth --train data/train --test data/test --k 10,20,100 --json\n"
                "  $ kd-eval knn --model resnet18 --weights random --train data/train --test data/test\n",
    .options = knn_table,
};
static const kd_program features_program = {
    .name = "kd-eval features",
    .summary = "Features of a teacher or student for every image, with the evaluation transform.",
    .examples = "  $ kd-eval features --weights dinov2_vits14_pretrain.pth --images photos --out photos.safetensors\n"
                "  $ kd-eval features --model resnet18 --weights run/exported/resnet18.safetensors --images photos --out student.safetensors\n",
    .options = features_table,
};

static kd_status open_network(kd_extractor **x, const eval_config *c, kd_err *err) {
    kd_extractor_options o = {.model = c->model, .weights = c->weights, .seed = (uint64_t)c->seed, .batch = (int)c->batch_size, .threads = (int)c->threads,
                              .device = c->device, .precision = strcmp(c->precision, "bf16") == 0 ? KD_BF16 : KD_F32, .json = c->json};
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &o.image_h, &o.image_w, err));
    KD_TRY(kd_image_size_parse(c->student_size, "--student-size", &o.student_h, &o.student_w, err));
    return kd_extractor_open(x, &o, err);
}

static kd_status warn_skipped(size_t skipped, size_t count, const char *images, kd_err *err) {
    if (skipped == 0)
        return KD_OK;
    return kd_fail(err, KD_ESKIPPED, "%s: %zu files could not be read (listed above); the result is over the other %zu", images, skipped, count);
}

/* ---- features ---- */

static json_t *paths_metadata(const kd_feature_set *set, const kd_model_info *model) {
    json_t *paths = json_array();
    for (size_t i = 0; i < set->count; i++) {
        const char *rel = set->data.file[set->file[i]].rel;
        json_array_append_new(paths, kd_json_bytes(rel, strlen(rel)));
    }
    char *text = kd_json_canonical(paths);
    json_t *metadata = json_pack("{s:s, s:s}", "paths", text != NULL ? text : "[]", "model", model->name);
    kd_free(text);
    json_decref(paths);
    return metadata;
}

static kd_status write_features(const char *path, const kd_feature_set *set, const kd_model_info *model, kd_err *err) {
    int64_t n = (int64_t)set->count, w = (int64_t)set->width;
    const kd_tensor tensors[KD_TAPS] = {
        {.name = "pooled", .dtype = KD_F32, .rank = 2, .shape = {n, w}, .data = set->values[KD_TAP_POOLED]},
        {.name = "cls", .dtype = KD_F32, .rank = 2, .shape = {n, w}, .data = set->values[KD_TAP_CLS]},
        {.name = "patch", .dtype = KD_F32, .rank = 3, .shape = {n, (int64_t)set->patches, w}, .data = set->values[KD_TAP_PATCH]},
    };
    json_t *metadata = paths_metadata(set, model);
    kd_status status = kd_safetensors_write(path, tensors, KD_TAPS, metadata, err);
    json_decref(metadata);
    return status;
}

static kd_status run_features(const eval_config *c, kd_err *err) {
    kd_extractor *x = NULL;
    kd_feature_set set = {0};
    kd_status status = kd_io_check_target(c->out, err);
    if (status == KD_OK)
        status = open_network(&x, c, err);
    if (status == KD_OK)
        status = kd_features_run(kd_extractor_network(x), c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, 1u << KD_TAP_POOLED | 1u << KD_TAP_CLS | 1u << KD_TAP_PATCH, &set, err);
    if (status == KD_OK)
        status = write_features(c->out, &set, kd_extractor_network(x)->model, err);
    if (status == KD_OK) {
        kd_log(KD_LOG_INFO, "%s: %zu images, width %zu, %zu patches", c->out, set.count, set.width, set.patches);
        status = warn_skipped(set.skipped, set.count, c->images, err);
    }
    kd_feature_set_free(&set);
    kd_extractor_close(x);
    return status;
}

/* ---- knn ---- */

enum { MAX_KS = 16 };

static kd_status parse_ks(const char *text, int ks[MAX_KS], size_t *n, kd_err *err) {
    *n = 0;
    for (const char *p = text; *n < MAX_KS; p++) {
        char *end = NULL;
        long v = strtol(p, &end, 10);
        if (end == p || v < 1 || v > KD_KNN_MAX_K || (*end != ',' && *end != '\0'))
            break;
        ks[(*n)++] = (int)v;
        if (*end == '\0')
            return KD_OK;
        p = end;
    }
    return kd_fail(err, KD_EUSAGE, "--k %s: expected at most %d numbers from 1 to %d separated by commas, such as 10,20", text, MAX_KS, KD_KNN_MAX_K);
}

static void print_knn(const eval_config *c, const kd_model_info *m, const kd_knn_sets *sets, const kd_knn_result *result, size_t n) {
    if (!c->json)
        printf("%s, %zu classes, %zu training and %zu test images, feature %s of width %d\n", m->name, sets->classes, sets->train, sets->test, c->feature, m->width);
    for (size_t i = 0; i < n; i++) {
        if (!c->json) {
            printf("k = %-3d  top-1 %6.2f %%   top-5 %6.2f %%\n", result[i].k, 100 * result[i].top1, 100 * result[i].top5);
            continue;
        }
        json_t *line = json_pack("{s:s, s:s, s:s, s:s, s:i, s:f, s:f, s:I, s:I, s:I, s:f}", "type", "result", "protocol", "knn", "model", m->name, "feature", c->feature, "k",
                                 result[i].k, "top1", result[i].top1, "top5", result[i].top5, "classes", (json_int_t)sets->classes, "train", (json_int_t)sets->train, "test",
                                 (json_int_t)sets->test, "temperature", 0.07);
        kd_json_line(line);
        json_decref(line);
    }
}

static kd_status run_knn(const eval_config *c, kd_err *err) {
    kd_extractor *x = NULL;
    kd_tap tap = strcmp(c->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED;
    kd_knn_result result[MAX_KS];
    kd_knn_sets sets;
    int ks[MAX_KS];
    size_t n_k = 0;
    KD_TRY(parse_ks(c->k, ks, &n_k, err));
    kd_status status = open_network(&x, c, err);
    if (status == KD_OK)
        status = kd_knn_folders(kd_extractor_network(x), c->train, c->test, tap, ks, n_k, result, &sets, err);
    if (status == KD_OK) {
        print_knn(c, kd_extractor_network(x)->model, &sets, result, n_k);
        status = warn_skipped(sets.train_skipped, sets.train, c->train, err);
    }
    if (status == KD_OK)
        status = warn_skipped(sets.test_skipped, sets.test, c->test, err);
    kd_extractor_close(x);
    return status;
}

/* ---- dispatch ---- */

static const kd_program *const programs[] = {&knn_program, &features_program};
static kd_status (*const runs[])(const eval_config *c, kd_err *err) = {run_knn, run_features};
static const kd_command_set commands = {.name = "kd-eval", .summary = "Measures what a network's frozen features know.", .programs = programs,
                                        .count = sizeof programs / sizeof programs[0]};

kd_status kd_eval_main(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    eval_config c = {0};
    size_t which;
    KD_TRY(kd_options_command(&commands, argc, argv, &which, json, err));
    KD_TRY(kd_options_parse(programs[which], &c, argc - 1, argv + 1, json, arena, err));
    c.json = *json;
    kd_signals_catch();
    return runs[which](&c, err);
}
