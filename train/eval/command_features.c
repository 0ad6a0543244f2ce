/* kd-eval features: a network's features of every image, in a file. */
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/weights/safetensors.h"
#include "train/eval/command.h"

typedef struct config {
    kd_eval_network network;
    const char *images, *out;
    int null, json;
} config;

#define T config
static const kd_option features_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "images, taken in path order: a folder, a .tar, a list of paths, or - for such a list on stdin"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_STRING(T, out, "out", "FILE.safetensors", NULL, KD_OPT_REQUIRED, "file to write: cls, patch and pooled as F32, the paths in its metadata"),
    KD_OPTION_END,
};

static const kd_program features_program = {
    .name = "kd-eval features",
    .summary = "Features of a teacher or student for every image, with the evaluation transform.",
    .examples = "  $ kd-eval features --weights dinov2_vits14_pretrain.pth --images photos --out photos.safetensors\n"
                "  $ kd-eval features --model resnet18 --weights run/exported/resnet18.safetensors --images photos --out student.safetensors\n",
    .options = features_table,
};

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

static kd_status run_features(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL;
    kd_feature_set set = {0};
    kd_status status = kd_io_check_target(c->out, err);
    if (status == KD_OK)
        status = kd_eval_open(&x, &c->network, c->json, arena, err);
    if (status == KD_OK)
        status = kd_features_run(kd_extractor_network(x), c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, 1u << KD_TAP_POOLED | 1u << KD_TAP_CLS | 1u << KD_TAP_PATCH, &set, err);
    if (status == KD_OK)
        status = write_features(c->out, &set, kd_extractor_network(x)->model, err);
    if (status == KD_OK) {
        kd_log(KD_LOG_INFO, "%s: %zu images, width %zu, %zu patches", c->out, set.count, set.width, set.patches);
        status = kd_eval_skipped(set.skipped, set.count, c->images, err);
    }
    kd_feature_set_free(&set);
    kd_extractor_close(x);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&features_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_features(&c, arena, err);
}

const kd_eval_command kd_eval_features_command = {&features_program, run};
