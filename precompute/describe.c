#include "precompute/describe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cache/size_model.h"
#include "common/base/io.h"
#include "common/base/log.h"

static void describe_teacher(const kd_run_facts *f) {
    const kd_vit_spec *s = &f->model->vit;
    char sha[65], positions[64];
    kd_hex(sha, f->weights_sha->b, sizeof f->weights_sha->b);
    if (s->pos_grid > 0)
        snprintf(positions, sizeof positions, "%d x %d resized as %s", s->pos_grid, kd_vit_pos_columns(s), kd_pos_profile_name(s->positions));
    else
        snprintf(positions, sizeof positions, "rotary");
    kd_log(KD_LOG_INFO, "teacher   %s: width %d, depth %d, patch %d, %d registers, %s, sha256 %.8s", f->model->name, s->width, s->depth, s->patch, s->registers,
           f->config->precision, sha);
    kd_log(KD_LOG_INFO, "          family %s, %s names, %s; positions %s; normalisation %s", kd_vit_family_name(s->family), kd_vit_layout_name(s->layout),
           kd_weights_container(f->weights), positions, s->normalisation);
}

static void describe_storage(const kd_run_facts *f) {
    const kd_run_plan *p = f->plan;
    char view[32], cache[32], peak[32], space[32], features[64], layers[400], stored[KD_STORAGE_TEXT];
    kd_storage storage = {.dtype = p->dtype, .targets = p->targets};
    memcpy(storage.target, p->target, sizeof storage.target);
    kd_log(KD_LOG_INFO, "storage   %s of layer%s %s%s, %s; %s", kd_features_text(p->choice.features, features, sizeof features), p->choice.layers > 1 ? "s" : "",
           kd_layers_text(p->choice.layer, p->choice.layers, layers, sizeof layers), p->choice.concat ? " joined" : "", p->choice.norm ? "through the final norm" : "before the final norm",
           kd_storage_text(&storage, p->choice.features, stored));
    kd_log(KD_LOG_INFO, "          %s a view, about %s sealed, %s while sealing; %s free", kd_io_size_text(p->bytes_per_view, view, sizeof view),
           kd_io_size_text(p->cache_bytes, cache, sizeof cache), kd_io_size_text(p->peak_bytes, peak, sizeof peak), kd_io_size_text(p->free_bytes, space, sizeof space));
    if (f->config->budget > 0 || f->config->students != NULL)
        kd_log(KD_LOG_INFO, "chosen    %s", p->reason);
}

/* Plain ViTs are trained with either normalisation and look alike on disk. A file beside the weights, a name or --normalize settles it. */
static void warn_about_guess(const kd_run_facts *f) {
    const kd_vit_spec *s = &f->model->vit;
    int asked = strcmp(f->config->normalize, "auto") != 0 || strcmp(f->config->teacher, "auto") != 0;
    if (s->family == KD_VIT_TIMM && !asked && strcmp(s->normalisation, "half") == 0)
        kd_log(KD_LOG_WARN, "%s doesn't say how the teacher's input was normalised; mean 0.5 and std 0.5 are used as most of timm's ViTs have it. For DeiT and others that want ImageNet's give "
                            "--normalize imagenet; to stand by this one, --normalize half", f->config->weights);
}

void kd_describe_plan(const kd_run_facts *f) {
    const kd_run_plan *p = f->plan;
    unsigned wanted = 0;
    char size[KD_SIZE_TEXT], features[64];
    describe_teacher(f);
    char tars[64] = "";
    if (f->data->tars > 0)
        snprintf(tars, sizeof tars, ", %zu tar%s", f->data->tars, f->data->tars == 1 ? "" : "s");
    kd_log(KD_LOG_INFO, "images    %zu files (%zu others ignored%s) x %" PRIu32 " views, augmentation %s, %s px", f->data->count, f->data->ignored, tars, p->views, f->policy->name,
           kd_image_size_text(f->policy->image_h, f->policy->image_w, size));
    describe_storage(f);
    warn_about_guess(f);
    kd_features_parse(f->config->features, &wanted, NULL);
    if (f->config->fill == NULL && (p->views != (uint32_t)f->config->views || p->choice.features != wanted)) /* a list says itself which views */
        kd_log(KD_LOG_WARN, "--budget reduced the run to %" PRIu32 " views of %s", p->views, kd_features_text(p->choice.features, features, sizeof features));
}

static json_t *plan_json(const kd_run_facts *f) {
    const kd_run_plan *p = f->plan;
    json_t *features = json_array(), *layers = json_array();
    for (kd_feature i = 0; i < KD_OUTPUTS; i++)
        if (p->choice.features & 1u << i)
            json_array_append_new(features, json_string(kd_feature_name(i)));
    for (int i = 0; i < p->choice.layers; i++)
        json_array_append_new(layers, json_integer(p->choice.layer[i]));
    json_t *targets = json_array();
    char text[KD_TARGET_TEXT];
    for (int i = 0; i < p->targets; i++)
        json_array_append_new(targets, json_string(kd_target_text(&p->target[i], text)));
    return json_pack("{s:s, s:s, s:o, s:s, s:s, s:I, s:i, s:o, s:o, s:b, s:b, s:I, s:I, s:I}", "type", "plan", "store", kd_dtype_name(p->dtype), "patch_targets", targets, "reason", p->reason, "teacher", f->model->name, "images", (json_int_t)p->images, "views",
                     (int)p->views, "features", features, "layers", layers, "layer_norm", p->choice.norm, "layer_concat", p->choice.concat, "bytes_per_view",
                     (json_int_t)p->bytes_per_view, "cache_bytes", (json_int_t)p->cache_bytes, "peak_bytes", (json_int_t)p->peak_bytes);
}

void kd_describe_memory(const kd_run_facts *f, const kd_teacher *t, uint64_t planned_bytes) {
    uint64_t type_bytes = strcmp(f->config->precision, "bf16") == 0 ? 2 : 4, model = type_bytes * (uint64_t)f->model->vit.parameters;
    char a[32], b[32], c[32], d[32];
    kd_log(KD_LOG_INFO, "memory    model %s in %s (%s as the device holds it) + %s of activations and buffers for batches of %d: about %s at its peak",
           kd_io_size_text(model, a, sizeof a), f->config->precision, kd_io_size_text(kd_teacher_model_bytes(t), b, sizeof b), kd_io_size_text(planned_bytes, c, sizeof c),
           (int)f->config->batch_size, kd_io_size_text(kd_teacher_model_bytes(t) + planned_bytes, d, sizeof d));
    if (!f->config->json)
        return;
    json_t *line = plan_json(f);
    json_object_set_new(line, "model_bytes", json_integer((json_int_t)model));
    json_object_set_new(line, "device_model_bytes", json_integer((json_int_t)kd_teacher_model_bytes(t)));
    json_object_set_new(line, "planned_bytes", json_integer((json_int_t)planned_bytes));
    kd_json_line(line);
    json_decref(line);
}

/* "2.1 h", "12 min", "40 s". */
static const char *duration_text(double seconds, char buf[32]) {
    if (seconds >= 3600)
        snprintf(buf, 32, "%.1f h", seconds / 3600);
    else if (seconds >= 120)
        snprintf(buf, 32, "%.0f min", seconds / 60);
    else
        snprintf(buf, 32, "%.0f s", seconds);
    return buf;
}

void kd_describe_speed(const kd_run_facts *f, const kd_probe_rates *r, const kd_kinds *kinds, uint64_t views, double flops, int threads) {
    const kd_run_plan *p = f->plan;
    double seconds = r->together > 0 ? (double)views / r->together : 0;
    char text[32];
    kd_log(KD_LOG_INFO, "speed     about %s: %.1f views/s together; alone the teacher %.1f (%.2f GFLOP a view), decoding %.1f on %d thread%s, storing %.1f; %s binds", duration_text(seconds, text),
           r->together, r->teacher, flops / 1e9, r->decoding, threads, threads == 1 ? "" : "s", r->storing, r->binds);
    if (r->images == 0)
        kd_log(KD_LOG_WARN, "none of the images that were tried could be decoded, so the time has no decoding in it");
    if (f->policy->mix_p > 0)
        kd_log(KD_LOG_INFO, "          a mixed view also decodes its partner's picture, which isn't in these rates");
    if (!f->config->json)
        return;
    json_t *line = json_pack("{s:s, s:o, s:I, s:I, s:I, s:i, s:I, s:I, s:I, s:f, s:f, s:f}", "type", "result", "kinds", kd_kinds_json(kinds), "looked_at", (json_int_t)kinds->looked_at,
                             "unread", (json_int_t)kinds->unread, "images", (json_int_t)p->images, "views", (int)p->views, "bytes_per_view", (json_int_t)p->bytes_per_view, "cache_bytes",
                             (json_int_t)p->cache_bytes, "peak_bytes", (json_int_t)p->peak_bytes, "flops_per_view", flops, "views_per_s", r->together, "seconds", seconds);
    json_t *rates = json_pack("{s:f, s:f, s:f, s:s}", "teacher_views_per_s", r->teacher, "decoding_views_per_s", r->decoding, "storing_views_per_s", r->storing, "binds", r->binds);
    json_object_update(line, rates);
    json_decref(rates);
    kd_json_line(line);
    json_decref(line);
}

json_t *kd_describe_weights(const kd_run_facts *f) {
    const char *path = f->config->weights, *slash = strrchr(path, '/');
    const char *name = slash != NULL && slash[1] != '\0' ? slash + 1 : path;
    return json_pack("{s:o, s:s, s:i, s:I, s:s, s:s}", "name", kd_json_bytes(name, strlen(name)), "container", kd_weights_container(f->weights), "files",
                     kd_weights_files(f->weights), "bytes", (json_int_t)kd_weights_bytes(f->weights), "layout", kd_vit_layout_name(f->model->vit.layout), "normalisation",
                     f->model->vit.normalisation);
}
