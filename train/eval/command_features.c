/* kd-eval features: a network's features of every image, in a file. */
#include <string.h>

#include "common/base/csv.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/tensor/npy.h"
#include "common/weights/safetensors.h"
#include "train/eval/command.h"

typedef struct config {
    kd_eval_network network;
    const char *images, *out, *format, *features;
    int null, json;
} config;

#define T config
static const kd_option features_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "images, taken in path order: a folder, a .tar, a list of paths, or - for such a list on stdin"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_STRING(T, out, "out", "FILE", NULL, KD_OPT_REQUIRED,
                     "file to write. X.safetensors: tensors pooled, cls, patch, the paths in its metadata. X.npy: an array for numpy.load in a file of its own for each feature, X.pooled.npy and so on, and "
                     "the paths in X.paths.json. X.csv: a line for each image, path and values"),
    KD_OPTION_CHOICE(T, format, "format", "auto|safetensors|npy|csv", "auto", "of --out; auto: by the ending of its name"),
    KD_OPTION_STRING(T, features, "features", "auto|LIST", "auto", 0,
                     "what to write, names separated by commas: pooled (what the library's classifier reads), cls (class token; of a CNN the same as pooled), patch (every position of the map, not in a CSV); "
                     "auto: all three, in a CSV pooled"),
    KD_OPTION_END,
};

static const kd_program features_program = {
    .name = "kd-eval features",
    .summary = "Features of a teacher or student for every image, with the evaluation transform.",
    .examples = "  $ kd-eval features --weights dinov2_vits14_pretrain.pth --images photos --out photos.safetensors\n"
                "  $ kd-eval features --model resnet18 --weights run/exported/resnet18.safetensors --images photos --out student.npy --features pooled\n"
                "  $ kd-eval features --model resnet18 --weights run/exported/resnet18.safetensors --images photos --out student.csv\n",
    .options = features_table,
};

/* ---- what and how ---- */

typedef enum form { FORM_SAFETENSORS, FORM_NPY, FORM_CSV, FORMS } form;
static const char *const ending[FORMS] = {".safetensors", ".npy", ".csv"};
static const char *const feature_name[KD_TAPS] = {"pooled", "cls", "patch"};

static int ends_in(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

static kd_status form_of(form *f, const config *c, kd_err *err) {
    for (int i = 0; i < FORMS; i++)
        if (strcmp(c->format, "auto") == 0 ? ends_in(c->out, ending[i]) : strcmp(c->format, ending[i] + 1) == 0) {
            *f = (form)i;
            return KD_OK;
        }
    return kd_fail(err, KD_EUSAGE, "--out %s: the name ends in none of .safetensors, .npy and .csv; give it one of these endings, or say --format", c->out);
}

static kd_status add_feature(unsigned *taps, const char *name, size_t n, kd_err *err) {
    for (int t = 0; t < KD_TAPS; t++)
        if (strlen(feature_name[t]) == n && strncmp(feature_name[t], name, n) == 0) {
            *taps |= 1u << t;
            return KD_OK;
        }
    return kd_fail(err, KD_EUSAGE, "--features: '%.*s' is no feature; choose from pooled, cls and patch, separated by commas", (int)n, name);
}

static kd_status taps_of(unsigned *taps, const config *c, form f, kd_err *err) {
    *taps = f == FORM_CSV ? 1u << KD_TAP_POOLED : (1u << KD_TAPS) - 1;
    if (strcmp(c->features, "auto") == 0)
        return KD_OK;
    *taps = 0;
    for (const char *at = c->features;; at++) {
        size_t n = strcspn(at, ",");
        KD_TRY(add_feature(taps, at, n, err));
        at += n;
        if (*at == '\0')
            break;
    }
    if (f == FORM_CSV && (*taps & 1u << KD_TAP_PATCH))
        return kd_fail(err, KD_EUSAGE, "--features patch: a CSV has one line for each image and no place for its patches; write .safetensors or .npy");
    return KD_OK;
}

/* ---- writing ---- */

static json_t *paths_of(const kd_feature_set *set) {
    json_t *paths = json_array();
    for (size_t i = 0; i < set->count; i++) {
        const char *rel = set->data.file[set->file[i]].rel;
        json_array_append_new(paths, kd_json_bytes(rel, strlen(rel)));
    }
    return paths;
}

static kd_tensor tensor_of(const kd_feature_set *set, int tap) {
    int64_t n = (int64_t)set->count, w = (int64_t)set->width;
    kd_tensor t = {.name = feature_name[tap], .dtype = KD_F32, .rank = 2, .shape = {n, w}, .data = set->values[tap]};
    if (tap == KD_TAP_PATCH) {
        t.rank = 3;
        t.shape[1] = (int64_t)set->patches;
        t.shape[2] = w;
    }
    return t;
}

static kd_status write_safetensors(const char *path, const kd_feature_set *set, unsigned taps, const kd_model_info *model, kd_err *err) {
    kd_tensor tensors[KD_TAPS];
    size_t n = 0;
    json_t *paths = paths_of(set);
    char *text = kd_json_canonical(paths);
    json_t *metadata = json_pack("{s:s, s:s}", "paths", text != NULL ? text : "[]", "model", model->name);
    for (int t = 0; t < KD_TAPS; t++)
        if (taps & 1u << t)
            tensors[n++] = tensor_of(set, t);
    kd_status status = text == NULL || metadata == NULL ? kd_fail(err, KD_EFAIL, "out of memory for the paths in %s", path) : kd_safetensors_write(path, tensors, n, metadata, err);
    kd_free(text);
    json_decref(paths);
    json_decref(metadata);
    return status;
}

/* out without its .npy (or the whole, when it doesn't end so), with another ending. NULL: memory. */
static char *beside(const char *out, const char *feature, const char *end) {
    size_t n = strlen(out);
    if (ends_in(out, ".npy"))
        n -= strlen(".npy");
    return kd_asprintf("%.*s.%s%s", (int)n, out, feature, end);
}

static kd_status write_paths(const char *out, const kd_feature_set *set, kd_err *err) {
    json_t *paths = paths_of(set);
    char *text = kd_json_canonical(paths), *name = beside(out, "paths", ".json");
    kd_status status = text == NULL || name == NULL ? kd_fail(err, KD_EFAIL, "out of memory for the paths of %s", out) : kd_io_write_atomic(name, text, strlen(text), err);
    kd_free(name);
    kd_free(text);
    json_decref(paths);
    return status;
}

static kd_status write_npy(const char *out, const kd_feature_set *set, unsigned taps, kd_err *err) {
    for (int t = 0; t < KD_TAPS; t++) {
        if (!(taps & 1u << t))
            continue;
        kd_tensor tensor = tensor_of(set, t);
        char *name = beside(out, feature_name[t], ".npy");
        kd_status status = name == NULL ? kd_fail(err, KD_EFAIL, "out of memory for a name beside %s", out) : kd_npy_write(name, &tensor, err);
        kd_free(name);
        KD_TRY(status);
    }
    return write_paths(out, set, err);
}

/* Line 0 is the header; line i + 1 of image i. Nine digits give the same float back. */
static void put_line(kd_text *t, const kd_feature_set *set, unsigned taps, size_t line) {
    kd_csv_put(t, line == 0 ? "path" : set->data.file[set->file[line - 1]].rel);
    for (int tap = 0; tap < KD_TAPS; tap++)
        for (size_t k = 0; k < set->width && (taps & 1u << tap); k++) {
            if (line == 0)
                kd_csv_printf(t, "%s_%zu", feature_name[tap], k);
            else
                kd_csv_printf(t, "%.9g", (double)set->values[tap][(line - 1) * set->width + k]);
        }
    kd_csv_end(t);
}

static kd_status write_csv(const char *out, const kd_feature_set *set, unsigned taps, kd_err *err) {
    kd_replace *file;
    kd_status status = KD_OK;
    KD_TRY(kd_io_replace_begin(&file, out, err));
    for (size_t line = 0; line <= set->count && status == KD_OK; line++) {
        kd_text t = {0};
        put_line(&t, set, taps, line);
        status = kd_text_check(&t, out, err);
        if (status == KD_OK)
            status = kd_io_replace_write(file, t.at, t.size, err);
        kd_text_free(&t);
    }
    if (status == KD_OK)
        return kd_io_replace_commit(file, err);
    kd_io_replace_abort(file);
    return status;
}

static kd_status write_features(const config *c, form f, const kd_feature_set *set, unsigned taps, const kd_model_info *model, kd_err *err) {
    switch (f) {
    case FORM_NPY: return write_npy(c->out, set, taps, err);
    case FORM_CSV: return write_csv(c->out, set, taps, err);
    default: return write_safetensors(c->out, set, taps, model, err);
    }
}

/* ---- the command ---- */

static kd_status report(const config *c, const kd_extractor *x, const kd_feature_set *set, unsigned taps, kd_err *err) {
    kd_log(KD_LOG_INFO, "%s: %zu images, width %zu, %zu patches", c->out, set->count, set->width, set->patches);
    if (!c->json)
        return KD_OK;
    json_t *result = kd_eval_result("features", x, NULL), *features = json_array();
    for (int t = 0; t < KD_TAPS; t++)
        if (taps & 1u << t)
            json_array_append_new(features, json_string(feature_name[t]));
    kd_status status = kd_eval_result_images(result, set, err);
    json_object_set_new(result, "features", features);
    json_object_set_new(result, "width", json_integer((json_int_t)set->width));
    json_object_set_new(result, "patches", json_integer((json_int_t)set->patches));
    json_object_set_new(result, "path", json_string(c->out));
    if (status == KD_OK)
        kd_json_line(result);
    json_decref(result);
    return status;
}

static kd_status run_features(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL;
    kd_feature_set set = {0};
    form f = FORM_SAFETENSORS;
    unsigned taps;
    KD_TRY(form_of(&f, c, err));
    KD_TRY(taps_of(&taps, c, f, err));
    kd_status status = kd_io_check_target(c->out, err);
    if (status == KD_OK)
        status = kd_eval_open(&x, &c->network, c->json, arena, err);
    if (status == KD_OK)
        status = kd_features_run(kd_extractor_network(x), c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, taps, &set, err);
    if (status == KD_OK)
        status = write_features(c, f, &set, taps, kd_extractor_network(x)->model, err);
    if (status == KD_OK)
        status = report(c, x, &set, taps, err);
    if (status == KD_OK)
        status = kd_eval_skipped(set.skipped, set.count, c->images, err);
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
