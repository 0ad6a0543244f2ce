#include "train/student.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "common/image/augment.h"

/* --patch-target, which binds the first group and those of the others that hold it. */
static kd_status choose_form(kd_student *s, const kd_train_config *c, const kd_model_taps *taps, int k, int pair, kd_err *err) {
    kd_student_program *p = &s->program[k];
    const kd_student_view *v = &p->view;
    kd_patch_learner learner = {.student = s->name, .loss = s->loss.name, .pair = s->loss.pair[pair].name, .compares = kd_pair_single_tokens(&s->loss, pair), .image_h = v->image_h, .image_w = v->image_w};
    const char *wish = c->patch_target;
    kd_target t;
    KD_TRY(kd_pair_map(&s->loss.pair[pair], taps, s->name, &learner.map_h, &learner.map_w, err));
    if (k > 0 && strcmp(wish, "auto") != 0) {
        KD_TRY(kd_target_parse(&t, wish, "--patch-target", err));
        wish = kd_patch_target_find(&v->offer, &t) >= 0 ? wish : "auto";
    }
    KD_TRY(kd_patch_target_choose(&p->form[pair], &v->offer, wish, &learner, err));
    p->target[pair].form = v->offer.target[p->form[pair]];
    return KD_OK;
}

static kd_status choose_targets(kd_student *s, const kd_train_config *c, const kd_model_taps *taps, int k, kd_err *err) {
    kd_student_program *p = &s->program[k];
    const kd_student_view *v = &p->view;
    for (int i = 0; i < s->loss.pairs; i++) {
        p->sample[i] = i;
        p->target[i] = (kd_pair_target){.width = v->width, .grid_h = v->grid_h, .grid_w = v->grid_w};
        if (!kd_pair_is_grid(&s->loss.pair[i]))
            continue;
        p->target[i].form = v->target;
        if (v->offer.count > 0)
            KD_TRY(choose_form(s, c, taps, k, i, err));
    }
    return KD_OK;
}

/* The network at the size of group k. The losses of a step's groups and batches are averaged, so each has its share of the weight. */
static kd_status build_graph(kd_student *s, const kd_student_spec *spec, int k, kd_err *err) {
    kd_student_program *p = &s->program[k];
    p->view = spec->view[k];
    p->graph = kd_graph_create();
    s->programs = k + 1;
    if (p->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", spec->name);
    kd_model_taps taps = kd_model_build_with(p->graph, &s->model, p->view.image_h, p->view.image_w, &(kd_model_options){.drop_path = s->drop_path});
    KD_TRY(choose_targets(s, spec->config, &taps, k, err));
    return kd_loss_build(p->graph, &taps, &s->loss, p->target, 1.0 / (spec->views * s->accumulate), s->name, err);
}

/* What is validated: the first group's network as it will be used. */
static kd_status build_infer_graph(kd_student *s, kd_err *err) {
    const kd_student_program *p = &s->program[0];
    s->infer_graph = kd_graph_create();
    if (s->infer_graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", s->name);
    kd_model_taps taps = kd_model_build(s->infer_graph, &s->model, p->view.image_h, p->view.image_w);
    return kd_loss_build(s->infer_graph, &taps, &s->loss, p->target, 1, s->name, err);
}

static kd_status stop_when_marked(void *ctx, kd_err *err) {
    const kd_student *s = ctx;
    kd_status status = s->mark.set ? kd_stop_requested() : KD_OK;
    return status == KD_OK ? KD_OK : kd_fail(err, status, "interrupted inside a step");
}

static kd_status stop_always(void *ctx, kd_err *err) {
    (void)ctx;
    kd_status status = kd_stop_requested();
    return status == KD_OK ? KD_OK : kd_fail(err, status, "interrupted during validation");
}

static kd_status build(kd_student *s, const kd_student_spec *spec, const kd_weights *weights, kd_err *err) {
    const kd_student_view *first = &spec->view[0];
    for (int k = 0; k < spec->views; k++)
        KD_TRY(build_graph(s, spec, k, err));
    KD_TRY(build_infer_graph(s, err));
    KD_TRY(kd_params_create(&s->params, s->program[0].graph, s->backend, err));
    KD_TRY(kd_params_init(s->params, spec->seed, err));
    if (weights != NULL)
        KD_TRY(kd_model_load(s->params, &s->model, weights, first->image_h, first->image_w, err));
    if (spec->config->ema > 0)
        KD_TRY(kd_ema_create(&s->ema, s->backend, s->program[0].graph, s->params, spec->config->ema, err));
    kd_exec_config config = {.batch = spec->batch, .precision = spec->precision, .train = 1, .keep_values = spec->config->dump != NULL, .stop = stop_when_marked, .stop_ctx = s};
    for (int k = 0; k < spec->views; k++) {
        KD_TRY(kd_exec_create(&s->program[k].train, s->program[k].graph, s->params, &config, err));
        config.gradients = s->program[0].train;
    }
    config = (kd_exec_config){.batch = spec->batch, .precision = spec->precision, .losses = 1, .values = s->program[0].train, .stop = stop_always};
    KD_TRY(kd_exec_create(&s->infer, s->infer_graph, s->ema.average != NULL ? s->ema.average : s->params, &config, err));
    kd_params_states(s->params, &s->mark.count);
    if (s->drop_path > 0)
        KD_TRY(kd_alloc_array(&s->keep, (size_t)s->batch, sizeof *s->keep, err));
    KD_TRY(kd_alloc_array(&s->mark.states, s->mark.count, sizeof *s->mark.states, err));
    return kd_optim_create(&s->optim, s->backend, s->params, &s->hyper.optim, err);
}

kd_status kd_student_check_views(const kd_model_info *m, const kd_student_view *views, int count, kd_err *err) {
    char a[KD_SIZE_TEXT], b[KD_SIZE_TEXT];
    for (int k = 0; k < count; k++) {
        const kd_student_view *v = &views[k];
        KD_TRY(kd_model_check_size(m, v->image_h, v->image_w, err));
        if (m->one_size && (v->image_h != views[0].image_h || v->image_w != views[0].image_w))
            return kd_fail(err, KD_EUSAGE, "--student %s: the caches' recipes show it views of %s and of %s px, and a ViT learns one position for every patch of one size; give it caches of one "
                           "view size, or train a convolutional student (resnet18), which takes every size", m->name, kd_image_size_text(views[0].image_h, views[0].image_w, a),
                           kd_image_size_text(v->image_h, v->image_w, b));
    }
    return KD_OK;
}

static kd_status describe(kd_student *s, const kd_student_spec *spec, const kd_weights *weights, kd_err *err) {
    KD_ASSERT(spec->views >= 1 && spec->views <= KD_MAX_GROUPS);
    KD_TRY(kd_model_find(&s->model, spec->name, weights, err));
    KD_TRY(kd_model_check_student(&s->model, err));
    KD_TRY(kd_student_check_views(&s->model, spec->view, spec->views, err));
    if (spec->precision == KD_BF16)
        KD_TRY(s->backend->v->check_bf16(s->backend, err));
    s->name = spec->label != NULL ? spec->label : s->model.name;
    s->loss = *spec->loss;
    s->teacher_head = spec->teacher_head;
    if (s->teacher_head != NULL)
        KD_TRY(kd_alloc_array(&s->logits, (size_t)s->teacher_head->classes, sizeof *s->logits, err));
    s->batch = spec->batch;
    s->accumulate = (int)spec->config->accumulate;
    KD_ASSERT(s->accumulate >= 1);
    s->seed = spec->seed;
    s->drop_path = spec->config->drop_path;
    if (s->drop_path > 0 && s->model.branches == 0)
        return kd_fail(err, KD_EUSAGE, "--drop-path %g: %s has no residual branches that are dropped; ViTs and ConvNeXt have", s->drop_path, s->model.name);
    s->best_loss = INFINITY;
    return kd_train_hyper(&s->hyper, spec->config, &s->model, err);
}

kd_status kd_student_create(kd_student **out, kd_backend *backend, const kd_student_spec *spec, kd_err *err) {
    kd_weights *weights = NULL;
    kd_student *s;
    *out = NULL;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    s->backend = backend;
    kd_status status = spec->init != NULL ? kd_weights_open(&weights, spec->init, err) : KD_OK;
    if (status == KD_OK)
        status = describe(s, spec, weights, err);
    if (status == KD_OK)
        status = build(s, spec, weights, err);
    if (status == KD_OK && weights != NULL) /* a checkpoint may hold several models: which one was taken */
        kd_log(KD_LOG_INFO, "%s starts with the weights of %s (%s)", s->name, kd_weights_path(weights), kd_weights_container(weights));
    kd_weights_close(weights);
    if (status != KD_OK) {
        kd_student_destroy(s);
        return status;
    }
    *out = s;
    return KD_OK;
}

void kd_student_retire(kd_student *s) {
    kd_optim_destroy(&s->optim);
    kd_exec_destroy(s->infer);
    s->infer = NULL;
    kd_ema_destroy(&s->ema);
    for (int k = s->programs - 1; k >= 0; k--) { /* the first, whose gradients the others use, at last */
        kd_exec_destroy(s->program[k].train);
        s->program[k].train = NULL;
    }
}

void kd_student_destroy(kd_student *s) {
    if (s == NULL)
        return;
    kd_student_retire(s);
    kd_graph_destroy(s->infer_graph);
    kd_free(s->mark.states);
    kd_free(s->keep);
    for (int k = s->programs - 1; k >= 0; k--)
        kd_graph_destroy(s->program[k].graph);
    kd_params_destroy(s->params);
    kd_free(s->logits);
    kd_free(s);
}

size_t kd_student_device_bytes(const kd_student *s) {
    size_t states, programs = 0, copies = s->ema.average != NULL ? 2 : 1;
    kd_params_states(s->params, &states);
    for (int k = 0; k < s->programs; k++)
        programs += kd_exec_device_bytes(s->program[k].train);
    return programs + kd_exec_device_bytes(s->infer) + kd_optim_device_bytes(&s->optim) + copies * (s->optim.total + states) * sizeof(float);
}

/* Pixels and targets of group k as row `row` of program e. */
static kd_status put(kd_student *s, int k, kd_exec *e, int row, const kd_sample *sample, kd_err *err) {
    const kd_student_program *p = &s->program[k];
    char input[2 * KD_TERM_NAME];
    KD_TRY(kd_exec_upload_rows(e, "images", row, 1, sample->pixels, err));
    for (int i = 0; i < s->loss.pairs; i++) {
        const kd_pair *pair = &s->loss.pair[i];
        const float *values = sample->target[p->sample[i]];
        if (pair->classes > 0) {
            kd_teacher_head_logits(s->teacher_head, values, s->logits);
            values = s->logits;
        }
        snprintf(input, sizeof input, "target.%s", pair->name);
        KD_TRY(kd_exec_upload_rows(e, input, row, 1, values, err));
        if (p->target[i].form.kind != KD_TARGET_ADJOINT)
            continue;
        snprintf(input, sizeof input, "target.%s.square", pair->name);
        KD_TRY(kd_exec_upload_rows(e, input, row, 1, &sample->square[p->sample[i]], err));
    }
    return KD_OK;
}

kd_status kd_student_put(kd_student *s, int group, int row, const kd_sample *sample, kd_err *err) {
    return put(s, group, s->program[group].train, row, sample, err);
}

kd_status kd_student_show(kd_student *s, int row, const kd_sample *sample, kd_err *err) {
    return put(s, 0, s->infer, row, sample, err);
}

kd_status kd_student_drop_paths(kd_student *s, int group, uint64_t batch, kd_err *err) {
    for (int branch = 0; branch < s->model.branches && s->drop_path > 0; branch++) {
        double chance = kd_model_drop_chance(&s->model, s->drop_path, branch);
        kd_rng r = kd_rng_make(s->seed, batch, (uint32_t)group << 16 | (uint32_t)branch, KD_RNG_DROP_PATH);
        char input[32];
        if (!(chance > 0))
            continue;
        for (int row = 0; row < s->batch; row++)
            s->keep[row] = kd_rng_unit(&r) < chance ? 0 : (float)(1 / (1 - chance));
        snprintf(input, sizeof input, "drop_path.%d", branch);
        KD_TRY(kd_exec_upload(s->program[group].train, input, s->keep, err));
    }
    return KD_OK;
}

kd_status kd_student_set_mark(kd_student *s, kd_err *err) {
    s->mark.set = 1;
    s->mark.counter = kd_params_counter(s->params);
    return s->backend->v->download(s->backend, s->mark.states, kd_params_states(s->params, NULL), s->mark.count * sizeof *s->mark.states, err);
}

void kd_student_drop_mark(kd_student *s) {
    s->mark.set = 0;
}

kd_status kd_student_rewind(kd_student *s, kd_err *err) {
    KD_ASSERT(s->mark.set);
    s->mark.set = 0;
    kd_params_set_counter(s->params, s->mark.counter);
    kd_params_changed(s->params);
    return s->backend->v->upload(s->backend, kd_params_states(s->params, NULL), s->mark.states, s->mark.count * sizeof *s->mark.states, err);
}
