#include "precompute/inspect.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/image/augment.h"
#include "kernels/nn/models.h"
#include "precompute/cost.h"

typedef struct inspection {
    const kd_precompute_config *config;
    kd_weights *weights;
    kd_vit_report report;
    kd_vit_spec spec; /* the file's, with the user's choices */
    kd_teacher_cost cost;
    int height, width;
    kd_err problem; /* status KD_OK: usable as asked for */
} inspection;

/* ---- words ---- */

static const char *ffn_name(const kd_vit_spec *s) {
    return s->ffn == KD_FFN_SWIGLU ? "swiglu" : "gelu";
}

static const char *positions_name(const kd_vit_spec *s) {
    return s->pos_grid > 0 ? kd_pos_profile_name(s->positions) : "rope";
}

/* 22058112 -> "22,058,112" */
static const char *grouped(int64_t v, char *buf, size_t cap) {
    char digits[32];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%" PRId64, v), at = 0;
    for (size_t i = 0; i < n && at + 2 < cap; i++) {
        if (i > 0 && (n - i) % 3 == 0)
            buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

/* ---- text ---- */

static void print_list(const char *label, const kd_vit_list *list) {
    size_t shown = list->count < KD_VIT_LISTED ? list->count : KD_VIT_LISTED;
    if (list->count == 0)
        return;
    printf("%-14s %zu\n", label, list->count);
    for (size_t i = 0; i < shown; i++)
        printf("%-14s   %s\n", "", list->name[i]);
    if (shown < list->count)
        printf("%-14s   ... and %zu more\n", "", list->count - shown);
}

static void print_shape(const kd_vit_spec *s) {
    char parameters[32];
    printf("%-14s %s\n", "model", s->name);
    printf("%-14s %s, %s names%s%s\n", "family", kd_vit_family_name(s->family), kd_vit_layout_name(s->layout), s->prefix[0] ? ", under " : "", s->prefix);
    printf("%-14s width %d, depth %d, heads %d, patch %d, %s FFN of %d%s, %d register%s\n", "shape", s->width, s->depth, s->heads, s->patch,
           s->ffn == KD_FFN_SWIGLU ? "SwiGLU" : "GELU", s->ffn_hidden, s->layer_scale ? ", LayerScale" : "", s->registers, s->registers == 1 ? "" : "s");
    if (s->pos_grid > 0)
        printf("%-14s learned on a %d x %d grid; other sizes as %s does (--positions)\n", "positions", s->pos_grid, kd_vit_pos_columns(s), kd_pos_profile_name(s->positions));
    else
        printf("%-14s rotary, %d periods %s\n", "positions", s->periods, s->periods_from_file ? "from the file" : "by the formula");
    printf("%-14s %s: mean %g %g %g, std %g %g %g (--normalize)\n", "normalisation", s->normalisation, (double)s->mean[0], (double)s->mean[1], (double)s->mean[2],
           (double)s->std[0], (double)s->std[1], (double)s->std[2]);
    printf("%-14s eps %g\n", "layer norm", s->ln_eps);
    printf("%-14s %s\n", "parameters", grouped(s->parameters, parameters, sizeof parameters));
}

static void print_cost(const inspection *in) {
    const kd_vit_spec *s = &in->spec;
    char f32[32], bf16[32];
    printf("%-14s %d x %d pixels: %d x %d patches, %" PRId64 " tokens, %.2f GFLOP\n", "a view", in->height, in->width, in->height / s->patch, in->width / s->patch,
           in->cost.tokens, in->cost.flops / 1e9);
    printf("%-14s %s in f32, %s in bf16; with activations: --dry-run\n", "weights", kd_io_size_text(in->cost.model_f32, f32, sizeof f32),
           kd_io_size_text(in->cost.model_bf16, bf16, sizeof bf16));
}

/* What is known of a file that holds one ViT, whole or not. */
static void print_report(const inspection *in) {
    const kd_vit_report *r = &in->report;
    print_shape(&in->spec);
    printf("%-14s %zu used, %zu missing, %zu unexpected, %zu of a wrong shape, %zu not needed, %zu of other objects\n", "tensors", r->used, r->missing.count,
           r->unexpected.count, r->misshapen.count, r->ignored.count, r->outside);
    print_list("missing", &r->missing);
    print_list("unexpected", &r->unexpected);
    print_list("wrong shape", &r->misshapen);
    print_list("not needed", &r->ignored);
    if (in->cost.tokens > 0)
        print_cost(in);
}

static void print_text(const inspection *in) {
    const kd_vit_report *r = &in->report;
    char size[32];
    printf("%-14s %s\n", "file", kd_weights_path(in->weights));
    printf("%-14s %s, ", "container", kd_weights_container(in->weights));
    if (kd_weights_files(in->weights) > 1)
        printf("%d files, ", kd_weights_files(in->weights));
    printf("%s, %d tensors\n", kd_io_size_text(kd_weights_bytes(in->weights), size, sizeof size), kd_weights_count(in->weights));
    if (r->have_spec)
        print_report(in);
    printf("%-14s %s\n", "teacher", in->problem.status == KD_OK ? "yes" : "no");
}

/* ---- JSON ---- */

static json_t *list_json(const kd_vit_list *list) {
    json_t *names = json_array();
    for (size_t i = 0; i < list->count && i < KD_VIT_LISTED; i++)
        json_array_append_new(names, kd_json_bytes(list->name[i], strlen(list->name[i])));
    return json_pack("{s:I, s:o}", "count", (json_int_t)list->count, "names", names);
}

static json_t *floats_json(const float *v, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_real((double)v[i]));
    return list;
}

static void add_shape(json_t *o, const kd_vit_spec *s) {
    json_t *more = json_pack("{s:s, s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:s, s:i, s:b, s:i, s:s, s:[i,i], s:o, s:b, s:s, s:o, s:o, s:f, s:I}", "model", s->name, "family",
                             kd_vit_family_name(s->family), "layout", kd_vit_layout_name(s->layout), "prefix", kd_json_bytes(s->prefix, strlen(s->prefix)), "width",
                             s->width, "depth", s->depth, "heads", s->heads, "patch", s->patch, "ffn", ffn_name(s), "ffn_hidden", s->ffn_hidden, "layer_scale",
                             s->layer_scale, "registers", s->registers, "positions", positions_name(s), "pos_grid", s->pos_grid, kd_vit_pos_columns(s), "periods",
                             floats_json(s->period, s->periods), "periods_from_file", s->periods_from_file, "normalisation", s->normalisation, "mean",
                             floats_json(s->mean, 3), "std", floats_json(s->std, 3), "layer_norm_eps", s->ln_eps, "parameters", (json_int_t)s->parameters);
    json_object_update(o, more);
    json_decref(more);
}

static void print_json(const inspection *in) {
    const kd_vit_report *r = &in->report;
    const char *path = kd_weights_path(in->weights);
    json_t *o = json_pack("{s:s, s:o, s:s, s:i, s:I, s:i, s:b, s:s}", "type", "inspect", "file", kd_json_bytes(path, strlen(path)), "container",
                          kd_weights_container(in->weights), "files", kd_weights_files(in->weights), "bytes", (json_int_t)kd_weights_bytes(in->weights), "tensors",
                          kd_weights_count(in->weights), "usable", in->problem.status == KD_OK, "problem", in->problem.msg);
    if (r->have_spec)
        add_shape(o, &in->spec);
    json_object_set_new(o, "used", json_integer((json_int_t)r->used));
    json_object_set_new(o, "missing", list_json(&r->missing));
    json_object_set_new(o, "unexpected", list_json(&r->unexpected));
    json_object_set_new(o, "misshapen", list_json(&r->misshapen));
    json_object_set_new(o, "ignored", list_json(&r->ignored));
    json_object_set_new(o, "outside", json_integer((json_int_t)r->outside));
    if (in->cost.tokens > 0) {
        json_t *cost = json_pack("{s:[i,i], s:I, s:f, s:{s:I, s:I}}", "image_size", in->height, in->width, "tokens", (json_int_t)in->cost.tokens, "flops", in->cost.flops,
                                 "model_bytes", "f32", (json_int_t)in->cost.model_f32, "bf16", (json_int_t)in->cost.model_bf16);
        json_object_update(o, cost);
        json_decref(cost);
    }
    kd_json_line(o);
    json_decref(o);
}

/* ---- looking ---- */

/* The first reason why a run with these options would refuse the file. */
static kd_status find_problem(inspection *in, kd_err *err) {
    const kd_precompute_config *c = in->config;
    kd_model_info model;
    if (in->report.problem[0] != '\0')
        return kd_fail(err, KD_EUSAGE, "%s", in->report.problem);
    KD_TRY(kd_model_find_teacher(&model, c->teacher, in->weights, &(kd_teacher_choice){c->weights_key, c->positions, c->normalize}, err));
    in->spec = model.vit;
    KD_TRY(kd_model_check_size(&model, in->height, in->width, err));
    in->cost = kd_teacher_cost_of(&in->spec, in->height, in->width);
    return KD_OK;
}

static kd_status look(inspection *in, kd_err *err) {
    const kd_precompute_config *c = in->config;
    const char *path = c->file != NULL ? c->file : c->weights;
    if (path == NULL || (c->file != NULL && c->weights != NULL))
        return kd_fail(err, KD_EUSAGE, "--inspect looks at one weight file: kd-precompute --inspect FILE");
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &in->height, &in->width, err));
    KD_TRY(kd_weights_open(&in->weights, path, err));
    KD_TRY(kd_vit_inspect(in->weights, c->weights_key, &in->report, err));
    in->spec = in->report.spec;
    find_problem(in, &in->problem);
    if (c->json)
        print_json(in);
    else
        print_text(in);
    if (in->problem.status != KD_OK && err != NULL)
        *err = in->problem;
    return in->problem.status;
}

kd_status kd_inspect_run(const kd_precompute_config *config, kd_err *err) {
    inspection in = {.config = config};
    kd_status status = look(&in, err);
    kd_vit_report_free(&in.report);
    kd_weights_close(in.weights);
    return status;
}
