#include "train/export/export.h"

#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/image/augment.h"
#include "train/checkpoint.h"

static const char *text_of(const json_t *object, const char *key) {
    const char *s = json_string_value(json_object_get(object, key));
    return s != NULL ? s : "unknown";
}

/* Strings only, as the format demands. */
static json_t *metadata_of(const json_t *run, const json_t *student, int height, int width) {
    char step[32], best[32], size[KD_SIZE_TEXT];
    const json_t *options = json_object_get(run, "options");
    snprintf(step, sizeof step, "%lld", (long long)json_integer_value(json_object_get(student, "steps")));
    snprintf(best, sizeof best, "%.6g", json_number_value(json_object_get(student, "best_loss")));
    kd_image_size_text(height, width, size);
    json_t *metadata = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "kdcache_version", kd_version, "kdcache_cache", text_of(run, "cache"), "kdcache_teacher_sha256",
                     text_of(run, "teacher"), "kdcache_student", text_of(student, "model"), "kdcache_image_size", size, "kdcache_steps", step, "kdcache_best_val_loss", best,
                     "kdcache_loss", text_of(options, "loss"), "kdcache_precision", text_of(options, "precision"));
    const json_t *view = json_object_get(run, "view_size"); /* the evaluation looks at views of this size, reduced as the student's were */
    if (json_array_size(view) == 2)
        json_object_set_new(metadata, "kdcache_view_size",
                            json_string(kd_image_size_text((int)json_integer_value(json_array_get(view, 0)), (int)json_integer_value(json_array_get(view, 1)), size)));
    return metadata;
}

static int fits(const kd_model_info *m, json_int_t side) {
    return side >= m->smallest && side <= KD_VIEW_MAX_SIDE && side % m->multiple == 0;
}

static kd_status export_student(kd_backend *backend, const kd_checkpoint *c, size_t index, const char *out, kd_dtype dtype, kd_err *err) {
    const json_t *j = kd_checkpoint_student(c, index);
    kd_model_info model;
    kd_params *params = NULL;
    kd_graph *graph = NULL;
    json_t *metadata = NULL;
    const json_t *size = json_object_get(j, "image_size");
    json_int_t height = json_integer_value(json_array_get(size, 0)), width = json_integer_value(json_array_get(size, 1));
    KD_TRY(kd_model_find(&model, text_of(j, "model"), NULL, err));
    if (!fits(&model, height) || !fits(&model, width))
        return kd_fail(err, KD_EFAIL, "the checkpoint's image size %lldx%lld isn't one of %s; the file is damaged", (long long)height, (long long)width, model.name);
    graph = kd_graph_create();
    kd_status status = graph != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", model.name);
    if (status == KD_OK) {
        kd_model_build(graph, &model, (int)height, (int)width);
        status = kd_params_create(&params, graph, backend, err);
    }
    if (status == KD_OK)
        status = kd_checkpoint_restore_model(c, index, params, err);
    if (status == KD_OK && (metadata = metadata_of(kd_checkpoint_run(c), j, (int)height, (int)width)) == NULL)
        status = kd_fail(err, KD_EFAIL, "out of memory for the metadata of %s", out);
    if (status == KD_OK)
        status = kd_model_export(params, &model, out, dtype, metadata, err);
    json_decref(metadata);
    kd_params_destroy(params);
    kd_graph_destroy(graph);
    return status;
}

kd_status kd_export_checkpoint(kd_backend *backend, const char *checkpoint, const char *student, const char *out, kd_dtype dtype, kd_err *err) {
    kd_checkpoint *c;
    size_t index;
    KD_TRY(kd_checkpoint_open(&c, checkpoint, err));
    kd_status status = kd_checkpoint_find(c, student, &index, err);
    if (status == KD_OK)
        status = export_student(backend, c, index, out, dtype, err);
    kd_checkpoint_close(c);
    return status;
}

char *kd_checkpoint_path(const char *run, const char *which, const char *student) {
    return strcmp(which, "best") == 0 ? kd_asprintf("%s/checkpoints/best-%s.kdt", run, student) : kd_asprintf("%s/checkpoints/latest.kdt", run);
}

/* ---- kd-export ---- */

#define T kd_export_config

static const kd_option table[] = {
    KD_OPTION_STRING(T, run, "run", "DIR", NULL, KD_OPT_REQUIRED, "run directory of kd-train"),
    KD_OPTION_STRING(T, checkpoint, "checkpoint", "latest|best|FILE", "latest", 0, "which state: the latest, the best validation loss, or a .kdt file"),
    KD_OPTION_STRING(T, student, "student", "NAME", NULL, 0, "which student of the run; may be left out when there is one"),
    KD_OPTION_CHOICE(T, format, "format", "safetensors", "safetensors", "safetensors: loads strictly in the student's library (torchvision, timm, DINOv2)"),
    KD_OPTION_CHOICE(T, dtype, "dtype", "f32|f16", "f32", "type of the exported weights"),
    KD_OPTION_STRING(T, out, "out", "PATH", NULL, KD_OPT_REQUIRED, "file to write"),
    KD_OPTION_END,
};

const kd_program kd_export_program = {
    .name = "kd-export",
    .summary = "Writes a trained student as a weight file for its own library.",
    .examples = "  $ kd-export --run runs/r18 --out r18.safetensors\n  $ kd-export --run runs/two --student resnet18 --checkpoint best --dtype f16 --out r18.safetensors\n",
    .epilog = "Exit codes: 0 done; 1 failure, e.g. a damaged checkpoint; 2 usage; 14 disk full.\n",
    .options = table,
};

/* The name of the run's only student, from its latest checkpoint: the file of its best state is named after it. */
static kd_status only_student(const char *run, char *name, size_t cap, kd_err *err) {
    char *latest = kd_checkpoint_path(run, "latest", NULL);
    kd_checkpoint *c = NULL;
    size_t index;
    kd_status status = latest != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory");
    if (status == KD_OK && !kd_io_exists(latest))
        status = kd_fail(err, KD_EUSAGE, "%s: no checkpoint there yet; give the --out directory of a kd-train run", latest);
    if (status == KD_OK)
        status = kd_checkpoint_open(&c, latest, err);
    if (status == KD_OK)
        status = kd_checkpoint_find(c, NULL, &index, err);
    if (status == KD_OK)
        snprintf(name, cap, "%s", text_of(kd_checkpoint_student(c, index), "name"));
    kd_checkpoint_close(c);
    kd_free(latest);
    return status;
}

kd_status kd_export_run(const kd_export_config *c, kd_err *err) {
    char name[64] = "";
    int named = strcmp(c->checkpoint, "best") == 0, file = !named && strcmp(c->checkpoint, "latest") != 0;
    kd_backend *backend;
    if (c->student != NULL)
        snprintf(name, sizeof name, "%s", c->student);
    else if (named)
        KD_TRY(only_student(c->run, name, sizeof name, err));
    char *path = file ? kd_strdup(c->checkpoint) : kd_checkpoint_path(c->run, c->checkpoint, name);
    if (path == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    if (!kd_io_exists(path)) {
        kd_status status = kd_fail(err, KD_EUSAGE, "%s: no such checkpoint; --run is the --out directory of a kd-train run, and %s/checkpoints holds what it saved", path, c->run);
        kd_free(path);
        return status;
    }
    kd_status status = kd_backend_open(&backend, "ref", 1, err);
    if (status == KD_OK) {
        status = kd_export_checkpoint(backend, path, name[0] != '\0' ? name : NULL, c->out, strcmp(c->dtype, "f16") == 0 ? KD_F16 : KD_F32, err);
        kd_backend_close(backend);
    }
    if (status == KD_OK) {
        kd_log(KD_LOG_INFO, "wrote %s from %s", c->out, path);
        if (c->json) {
            json_t *line = json_pack("{s:s, s:s, s:s}", "type", "result", "path", c->out, "checkpoint", path);
            kd_json_line(line);
            json_decref(line);
        }
    }
    kd_free(path);
    return status;
}
