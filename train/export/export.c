#include "train/export/export.h"

#include <string.h>

#include "common/base/io.h"
#include "common/image/augment.h"
#include "common/weights/safetensors.h"

static const char *text_of(const json_t *object, const char *key) {
    const char *s = json_string_value(json_object_get(object, key));
    return s != NULL ? s : "unknown";
}

/* Strings only, as weight files demand. */
static json_t *metadata_of(const kd_export_student *x) {
    char step[32], best[32], size[KD_SIZE_TEXT];
    const json_t *options = json_object_get(x->run, "options");
    snprintf(step, sizeof step, "%lld", (long long)json_integer_value(json_object_get(x->student, "steps")));
    snprintf(best, sizeof best, "%.6g", json_number_value(json_object_get(x->student, "best_loss")));
    kd_image_size_text(x->height, x->width, size);
    json_t *own = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "kdcache_version", kd_version, "kdcache_cache", text_of(x->run, "cache"), "kdcache_teacher_sha256",
                            text_of(x->run, "teacher"), "kdcache_student", text_of(x->student, "model"), "kdcache_image_size", size, "kdcache_steps", step, "kdcache_best_val_loss", best,
                            "kdcache_loss", text_of(options, "loss"), "kdcache_precision", text_of(options, "precision"));
    const json_t *view = json_object_get(x->run, "view_size"); /* the evaluation looks at views of this size, reduced as the student's were */
    if (json_array_size(view) == 2)
        json_object_set_new(own, "kdcache_view_size", json_string(kd_image_size_text((int)json_integer_value(json_array_get(view, 0)), (int)json_integer_value(json_array_get(view, 1)), size)));
    json_t *all = own != NULL ? kd_model_metadata(&x->model, own) : NULL;
    json_decref(own);
    return all;
}

static int fits(const kd_model_info *m, json_int_t side) {
    return side >= m->smallest && side <= KD_VIEW_MAX_SIDE && side % m->multiple == 0;
}

kd_status kd_export_student_open(kd_export_student *x, kd_backend *backend, const kd_checkpoint *c, size_t index, kd_err *err) {
    *x = (kd_export_student){.run = kd_checkpoint_run(c), .student = kd_checkpoint_student(c, index)};
    const json_t *size = json_object_get(x->student, "image_size");
    json_int_t height = json_integer_value(json_array_get(size, 0)), width = json_integer_value(json_array_get(size, 1));
    KD_TRY(kd_model_find(&x->model, text_of(x->student, "model"), NULL, err));
    if (!fits(&x->model, height) || !fits(&x->model, width))
        return kd_fail(err, KD_EFAIL, "the checkpoint's image size %lldx%lld isn't one of %s; the file is damaged", (long long)height, (long long)width, x->model.name);
    x->height = (int)height;
    x->width = (int)width;
    if ((x->metadata = metadata_of(x)) == NULL || (x->graph = kd_graph_create()) == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", x->model.name);
    x->taps = kd_model_build(x->graph, &x->model, x->height, x->width);
    KD_TRY(kd_params_create(&x->params, x->graph, backend, err));
    return kd_checkpoint_restore_model(c, index, x->params, err);
}

void kd_export_student_close(kd_export_student *x) {
    json_decref(x->metadata);
    kd_params_destroy(x->params);
    kd_graph_destroy(x->graph);
    *x = (kd_export_student){0};
}

static kd_status export_student(kd_backend *backend, const kd_checkpoint *c, size_t index, const char *out, kd_dtype dtype, kd_err *err) {
    kd_export_student x;
    kd_status status = kd_export_student_open(&x, backend, c, index, err);
    if (status == KD_OK)
        status = kd_model_export(x.params, &x.model, out, dtype, x.metadata, err);
    kd_export_student_close(&x);
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
