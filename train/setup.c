#include "train/setup.h"

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "cache/image_list.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/threads.h"
#include "common/image/augment.h"
#include "train/live_config.h"
#include "train/probe.h"

static kd_status lock_run(kd_setup *s, kd_err *err) {
    const char *out = s->config->out;
    char *checkpoints = kd_asprintf("%s/checkpoints", out);
    if (checkpoints == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_status status = kd_io_mkdirs(checkpoints, err);
    kd_free(checkpoints);
    if (status != KD_OK)
        return status;
    s->lock = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->lock < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s can't be opened", out);
    if (flock(s->lock, LOCK_EX | LOCK_NB) != 0)
        return kd_fail(err, KD_ELOCKED, "%s: another kd-train works in this run directory; wait for it, or give another --out", out);
    return KD_OK;
}

/* Replaces --teacher-layer 0 by the number that it stands for. All groups have the same layers. */
static kd_status choose_layer(kd_setup *s, kd_err *err) {
    const kd_source *source = &s->groups.group[0].source;
    const kd_recipe *r = kd_source_recipe(source);
    const char *path = kd_source_name(source);
    char stored[6 * KD_MAX_LAYERS + 1] = "";
    if (!kd_recipe_has(r, KD_FEATURE_CLS) && !kd_recipe_has(r, KD_FEATURE_PATCH))
        return kd_fail(err, KD_EUSAGE, "%s: the cache holds neither cls nor patch features, which are what students learn; make one with --features cls,patch", path);
    if (s->config->teacher_layer == 0)
        s->config->teacher_layer = r->layer[0];
    if (kd_recipe_layer_index(r, (uint16_t)s->config->teacher_layer) >= 0)
        return KD_OK;
    for (int i = 0; i < r->layers; i++)
        snprintf(stored + strlen(stored), sizeof stored - strlen(stored), "%s%u", i > 0 ? ", " : "", r->layer[i]);
    return kd_fail(err, KD_EUSAGE, "--teacher-layer %d: %s holds %s %s (1 = the teacher's last)%s; give one of them, or make a cache with --layers %d", (int)s->config->teacher_layer,
                   path, r->layers == 1 ? "layer" : "layers", stored, r->concat ? ", several joined under the number of the last" : "", (int)s->config->teacher_layer);
}

static kd_status open_caches(kd_setup *s, kd_err *err) {
    const kd_train_config *c = s->config;
    int height, width;
    char have[KD_SIZE_TEXT];
    KD_TRY(kd_groups_open(&s->groups, c->cache.item, c->cache.count, err));
    const kd_recipe *r = kd_source_recipe(&s->groups.group[0].source);
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &height, &width, err));
    if (height != 0 && (height != r->image_h || width != r->image_w))
        return kd_fail(err, KD_EMISMATCH, "image_size is %s in %s and --image-size says %s; leave the option out", kd_image_size_text(r->image_h, r->image_w, have),
                       c->cache.item[0], c->image_size);
    return KD_OK;
}

static kd_status open_live(kd_setup *s, kd_arena *arena, kd_err *err) {
    kd_student_choice *choices;
    kd_live *live;
    KD_TRY(kd_student_choices(&choices, s->config, arena, err));
    KD_TRY(kd_live_from_config(&live, s->config, choices, s->threads, err));
    kd_groups_live(&s->groups, live);
    return KD_OK;
}

static kd_status open_sources(kd_setup *s, kd_arena *arena, kd_err *err) {
    const kd_train_config *c = s->config;
    int height, width;
    KD_TRY(c->live_teacher != NULL ? open_live(s, arena, err) : open_caches(s, err));
    kd_group *first = &s->groups.group[0];
    const kd_recipe *r = kd_source_recipe(&first->source);
    KD_TRY(kd_image_size_parse(c->student_size, "--student-size", &height, &width, err));
    first->student_h = height > 0 ? height : r->image_h;
    first->student_w = height > 0 ? width : r->image_w;
    KD_TRY(kd_replay_check_size(r, first->student_h, first->student_w, err));
    kd_groups_scale(&s->groups);
    return choose_layer(s, err);
}

/* What a student sees of each group. */
static void describe_views(const kd_setup *s, kd_student_view views[KD_MAX_GROUPS]) {
    for (size_t k = 0; k < s->groups.count; k++) {
        const kd_group *g = &s->groups.group[k];
        const kd_recipe *r = kd_source_recipe(&g->source);
        views[k] = (kd_student_view){.image_h = g->student_h, .image_w = g->student_w, .width = r->width, .grid_h = r->grid_h, .grid_w = r->grid_w,
                                     .offer = {kd_source_name(&g->source), r->target, r->targets}};
    }
}

/* Names and sizes, before anything takes time or memory. With an init file, the file has a say too: that is checked when it is opened. */
static kd_status check_students(const kd_setup *s, kd_err *err) {
    kd_student_view views[KD_MAX_GROUPS];
    describe_views(s, views);
    for (size_t i = 0; i < s->config->students.count; i++) {
        kd_model_info m;
        if (s->choices[i].config.init != NULL)
            continue;
        KD_TRY(kd_model_find(&m, s->choices[i].model, NULL, err));
        KD_TRY(kd_student_check_views(&m, views, (int)s->groups.count, err));
    }
    return KD_OK;
}

/* What a student learns, of the caches of all groups. */
static kd_status choose_loss(const kd_setup *s, const kd_student_choice *choice, kd_loss *loss, kd_err *err) {
    for (size_t k = s->groups.count; k-- > 0;) { /* the first group's at last: that is what counts */
        const kd_source *source = &s->groups.group[k].source;
        kd_loss_offer offer = {.recipe = kd_source_recipe(source), .cache = kd_source_name(source), .images = kd_source_images(source),
                               .classes = s->teacher_head != NULL ? s->teacher_head->classes : 0};
        KD_TRY(kd_loss_from_config(loss, &choice->config, &offer, err));
        for (int i = 0; i < loss->pairs; i++) {
            kd_replay_target ignored;
            KD_TRY(kd_replay_target_of(&ignored, source, loss->pair[i].feature, loss->pair[i].layer, err));
        }
    }
    return KD_OK;
}

kd_status kd_setup_create_student(kd_student **out, const kd_setup *s, size_t i, kd_backend *backend, kd_err *err) {
    const kd_train_config *c = s->config;
    const kd_student_choice *choice = &s->choices[i];
    kd_student_spec spec = {.name = choice->model,
                            .label = choice->name,
                            .init = choice->config.init,
                            .config = &choice->config,
                            .loss = &s->losses[i],
                            .teacher_head = s->teacher_head,
                            .views = (int)s->groups.count,
                            .batch = (int)c->batch_size,
                            .precision = strcmp(c->precision, "bf16") == 0 ? KD_BF16 : KD_F32,
                            .seed = (uint64_t)c->seed};
    describe_views(s, spec.view);
    return kd_student_create(out, backend, &spec, err);
}

static kd_status open_students(kd_setup *s, kd_err *err) {
    KD_TRY(kd_alloc_array(&s->students, s->config->students.count, sizeof *s->students, err));
    for (size_t i = 0; i < s->config->students.count; i++) {
        KD_TRY(kd_setup_create_student(&s->students[i], s, i, s->backend, err));
        s->count++;
    }
    return KD_OK;
}

/* Bytes of all views of a group as the students see them. */
static uint64_t pixels_of(const kd_group *g) {
    return kd_source_views(&g->source) * (uint64_t)g->student_h * (uint64_t)g->student_w * 3;
}

/* What a student's pair learns of group k, added to the options when nobody before learns the same. It is standardised by the statistics of what is learnt of the first group, so that a head's
 * prediction means the same in every group. */
static kd_status add_target(const kd_setup *s, kd_student *t, size_t k, int pair, kd_replay_options *o, kd_err *err) {
    const kd_pair *p = &t->loss.pair[pair];
    int grid = kd_pair_is_grid(p);
    kd_replay_target new;
    KD_TRY(kd_replay_target_of(&new, &s->groups.group[0].source, grid ? kd_patch_feature(t->program[0].form[pair]) : p->feature, p->layer, err));
    new.feature = grid ? kd_patch_feature(t->program[k].form[pair]) : p->feature;
    new.raw = p->scaling != KD_SCALING_STANDARD;
    t->program[k].sample[pair] = kd_replay_target_find(o->target, o->targets, &new);
    if (t->program[k].sample[pair] < o->targets)
        return KD_OK;
    if (o->targets == KD_REPLAY_TARGETS)
        return kd_fail(err, KD_EUSAGE, "the students learn more than %d different targets together; train some of them in a run of their own", KD_REPLAY_TARGETS);
    o->target[o->targets++] = new;
    return KD_OK;
}

static kd_status choose_targets(const kd_setup *s, size_t k, kd_replay_options *o, kd_err *err) {
    for (size_t i = 0; i < s->count; i++)
        for (int pair = 0; pair < s->students[i]->loss.pairs; pair++)
            KD_TRY(add_target(s, s->students[i], k, pair, o, err));
    return KD_OK;
}

static kd_status open_replay(kd_setup *s, size_t k, double share, kd_err *err) {
    kd_group *g = &s->groups.group[k];
    const kd_train_config *c = s->config;
    kd_replay_options o = {.source = g->source,
                           .images = c->images,
                           .list = c->null ? KD_LIST_NUL : KD_LIST_LINES,
                           .threads = s->threads,
                           .student_h = g->student_h,
                           .student_w = g->student_w,
                           .allow_missing = c->allow_missing,
                           .view_memory = (uint64_t)((double)s->view_memory * share),
                           .ahead = (size_t)c->batch_size + 2 * (size_t)s->threads};
    KD_TRY(choose_targets(s, k, &o, err));
    char *index = kd_train_touches_nothing(c) ? NULL : kd_asprintf("%s/image-index", c->out);
    o.index_path = index;
    kd_status status = kd_replay_create(&g->replay, &o, err);
    kd_free(index);
    return status;
}

/* The memory for views is shared out by need. */
static kd_status open_replays(kd_setup *s, kd_err *err) {
    double all = 0;
    KD_TRY(kd_train_view_memory(&s->view_memory, s->config, err));
    for (size_t k = 0; k < s->groups.count; k++)
        all += (double)pixels_of(&s->groups.group[k]);
    for (size_t k = 0; k < s->groups.count; k++)
        KD_TRY(open_replay(s, k, (double)pixels_of(&s->groups.group[k]) / all, err));
    return kd_groups_match(&s->groups, err);
}

/* Ids and views, in order: what a resumed run must find again. */
static void hash_images(kd_setup *s) {
    for (size_t i = 0; i < s->groups.images; i++)
        for (size_t k = 0; k < s->groups.count; k++) {
            const kd_image_entry *e = kd_group_image(&s->groups.group[k], i);
            for (uint32_t v = 0; v < e->views; v++) {
                uint8_t next[16 + 16 + 4];
                uint32_t number = kd_image_view(e, v);
                memcpy(next, s->images.b, 16);
                memcpy(next + 16, e->image.b, 16);
                for (int b = 0; b < 4; b++)
                    next[32 + b] = (uint8_t)(number >> (8 * b));
                s->images = kd_xxh128(next, sizeof next);
            }
        }
}

/* --val-list: a byte for each image of the run, 1 = named. */
static kd_status read_val_list(uint8_t **listed, const kd_setup *s, kd_err *err) {
    const kd_source *source = &s->groups.group[0].source;
    const kd_image_set set = {.image = kd_source_image(source, 0), .count = kd_source_images(source), .name = kd_source_name(source), .is_cache = source->cache != NULL};
    const char *path = s->config->val_list;
    uint8_t *chosen;
    size_t unknown, named = 0;
    KD_TRY(kd_image_list_read(&chosen, &set, path, 0, &unknown, err));
    kd_status status = kd_alloc_array(listed, s->groups.images, 1, err);
    for (size_t i = 0; i < s->groups.images && status == KD_OK; i++) {
        (*listed)[i] = chosen[kd_group_image(&s->groups.group[0], i) - set.image];
        named += (*listed)[i];
    }
    kd_free(chosen);
    if (status == KD_OK && unknown > 0)
        kd_log(KD_LOG_WARN, "--val-list %s: %zu entries name no image of %s", path, unknown, set.is_cache ? "the cache" : "--images");
    if (status == KD_OK && named == 0)
        status = kd_fail(err, KD_EUSAGE, "--val-list %s: the images that it names are all missing from --images, so nothing would be held out", path);
    return status;
}

static kd_status split_by(kd_setup *s, uint64_t *key, const uint8_t *listed, kd_err *err) {
    const kd_train_config *c = s->config;
    const kd_group *first = &s->groups.group[0];
    for (size_t i = 0; i < s->groups.images; i++)
        key[i] = kd_split_key(&kd_group_image(first, i)->image, kd_replay_name(first->replay, first->image[i]), (int)c->val_group);
    KD_TRY(kd_split_make(&s->split, s->groups.images, key, listed, c->val_fraction, (uint64_t)c->val_seed, err));
    if (c->val_group > 0 && s->split.groups == 1 && s->split.held_groups == 1)
        return kd_fail(err, KD_EUSAGE, "--val-group %d: all %zu images share the first folders of their paths, so they can't be divided; give a larger number, or leave the option out",
                       (int)c->val_group, s->groups.images);
    return KD_OK;
}

static kd_status make_split(kd_setup *s, kd_err *err) {
    uint64_t *key = NULL;
    uint8_t *listed = NULL;
    kd_status status = s->config->val_list != NULL ? read_val_list(&listed, s, err) : KD_OK;
    if (status == KD_OK)
        status = kd_alloc_array(&key, s->groups.images, sizeof *key, err);
    if (status == KD_OK)
        status = split_by(s, key, listed, err);
    if (status == KD_OK && listed != NULL) /* a resumed run must hold out the same, whatever the file is called and says now */
        for (size_t i = 0; i < s->split.held_count; i++)
            s->images = kd_xxh128_2(s->images.b, sizeof s->images.b, kd_group_image(&s->groups.group[0], s->split.held[i])->image.b, 16);
    kd_free(key);
    kd_free(listed);
    return status;
}

/* Held-out images show view 0 of the first group; as many training images, evenly spread, show what the validated epoch showed of them. */
static kd_status choose_validation(kd_setup *s, kd_err *err) {
    const kd_split *split = &s->split;
    s->held_count = split->held_count < KD_VAL_MAX ? split->held_count : KD_VAL_MAX;
    s->seen_count = s->held_count > 0 ? s->held_count : KD_VAL_MAX / 16;
    if (s->seen_count > split->train_count)
        s->seen_count = split->train_count;
    KD_TRY(kd_alloc_array(&s->held, s->held_count, sizeof *s->held, err));
    KD_TRY(kd_alloc_array(&s->seen, s->seen_count, sizeof *s->seen, err));
    for (size_t i = 0; i < s->held_count; i++)
        s->held[i].image = s->groups.group[0].image[split->held[i]];
    for (size_t i = 0; i < s->seen_count; i++)
        s->seen[i].image = s->groups.group[0].image[split->train[i * split->train_count / s->seen_count]];
    return KD_OK;
}

static kd_status plan_steps(kd_setup *s, kd_err *err) {
    const kd_train_config *c = s->config;
    double warmup;
    hash_images(s);
    KD_TRY(make_split(s, err));
    if (s->split.train_count < (size_t)s->step_images)
        return kd_fail(err, KD_EUSAGE, "%zu images remain to train on (%zu are held out) and a step takes %lld (--batch-size times --accumulate); give a smaller batch or more images",
                       s->split.train_count, s->split.held_count, (long long)s->step_images);
    KD_TRY(choose_validation(s, err));
    KD_TRY(kd_train_warmup(&warmup, c, err));
    s->epoch_steps = (int64_t)(s->split.train_count / (size_t)s->step_images);
    s->steps = s->epoch_steps * c->epochs;
    s->warmup_steps = (int64_t)llround(warmup * (double)s->epoch_steps);
    return KD_OK;
}

/* The form that all patch pairs of all students learn of the first group; NULL: there are several, or none. */
static const kd_target *only_form(const kd_setup *s) {
    const kd_target *only = NULL;
    for (size_t i = 0; i < s->count; i++)
        for (int p = 0; p < s->students[i]->loss.pairs; p++) {
            const kd_target *form = &s->students[i]->program[0].target[p].form;
            if (!kd_pair_is_grid(&s->students[i]->loss.pair[p]))
                continue;
            if (only != NULL && !kd_target_equal(only, form))
                return NULL;
            only = form;
        }
    return only;
}

/* --patch-target auto becomes what it stands for, when that is one thing. */
static kd_status resolve_target(kd_setup *s, kd_arena *arena, kd_err *err) {
    const kd_target *form = s->groups.count == 1 ? only_form(s) : NULL;
    char text[KD_TARGET_TEXT];
    if (form == NULL)
        return KD_OK;
    s->config->patch_target = kd_arena_strdup(arena, kd_target_text(form, text));
    return s->config->patch_target != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the options");
}

static kd_status resolve(kd_setup *s, kd_arena *arena, kd_err *err) {
    kd_hyper *h;
    KD_TRY(resolve_target(s, arena, err));
    KD_TRY(kd_alloc_array(&h, s->count, sizeof *h, err));
    for (size_t i = 0; i < s->count; i++)
        h[i] = s->students[i]->hyper;
    kd_status status = kd_train_resolve(s->config, h, s->count, arena, err);
    kd_free(h);
    if (status != KD_OK)
        return status;
    s->options = kd_options_json(&kd_train_program, s->config);
    return s->options != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the options");
}

/* Before memory for such a batch is asked for; how many of them remain to train on is known later. */
static kd_status check_batch(const kd_setup *s, kd_err *err) {
    size_t images = kd_source_images(&s->groups.group[0].source);
    if (images < (size_t)s->step_images)
        return kd_fail(err, KD_EUSAGE, "there are %zu images and a step takes %lld (--batch-size times --accumulate); give a smaller batch or more images", images, (long long)s->step_images);
    return KD_OK;
}

/* The teacher's classifier, if there is one: for the run, so of the width of its caches. */
static kd_status open_head(kd_setup *s, kd_err *err) {
    if (s->config->teacher_head == NULL)
        return KD_OK;
    return kd_teacher_head_open(&s->teacher_head, s->config->teacher_head, kd_source_recipe(&s->groups.group[0].source)->width, err);
}

/* A live teacher must run before it has statistics, which losses ask for. */
static kd_status start_live(kd_setup *s, kd_err *err) {
    kd_live *live = s->groups.group[0].source.live;
    if (live == NULL)
        return KD_OK;
    KD_TRY(kd_backend_open(&s->backend, s->config->device, s->threads, err));
    return kd_live_start(live, s->backend, err);
}

/* What several students' losses have in common is said once. */
static void warn_of_losses(const kd_setup *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        size_t first = 0;
        while (strcmp(s->losses[first].warning, s->losses[i].warning) != 0)
            first++;
        if (first == i && s->losses[i].warning[0] != '\0')
            kd_log(KD_LOG_WARN, "%s", s->losses[i].warning);
    }
}

/* Losses before students, students before replays: each needs what the one before has chosen. */
static kd_status open_learning(kd_setup *s, kd_err *err) {
    size_t n = s->config->students.count;
    KD_TRY(start_live(s, err));
    KD_TRY(kd_alloc_array(&s->losses, n, sizeof *s->losses, err));
    for (size_t i = 0; i < n; i++)
        KD_TRY(choose_loss(s, &s->choices[i], &s->losses[i], err));
    warn_of_losses(s, n);
    KD_TRY(check_batch(s, err));
    if (s->backend == NULL)
        KD_TRY(kd_backend_open(&s->backend, s->config->device, s->threads, err));
    KD_TRY(open_students(s, err));
    return open_replays(s, err);
}

kd_status kd_setup_open(kd_setup *s, kd_train_config *config, kd_arena *arena, kd_err *err) {
    s->config = config;
    s->lock = -1;
    s->step_images = config->batch_size * config->accumulate;
    s->threads = config->threads > 0 ? (int)config->threads : kd_cpu_count();
    KD_TRY(kd_train_config_check(config, err));
    KD_TRY(open_sources(s, arena, err));
    KD_TRY(kd_student_choices(&s->choices, config, arena, err)); /* copies of the options: after the sources have resolved them */
    KD_TRY(check_students(s, err));
    if (!kd_train_touches_nothing(config))
        KD_TRY(lock_run(s, err));
    if (s->groups.group[0].source.live != NULL && !config->dry_run)
        KD_TRY(kd_live_check_images(s->groups.group[0].source.live, err));
    KD_TRY(kd_probe_check(config, s->threads, err));
    KD_TRY(open_head(s, err));
    KD_TRY(open_learning(s, err));
    KD_TRY(plan_steps(s, err));
    return resolve(s, arena, err);
}

void kd_setup_close(kd_setup *s) {
    json_decref(s->options);
    kd_free(s->held);
    kd_free(s->seen);
    kd_split_free(&s->split);
    for (size_t i = 0; i < s->count; i++)
        kd_student_destroy(s->students[i]);
    kd_free(s->students);
    kd_free(s->losses);
    kd_teacher_head_close(s->teacher_head);
    kd_groups_close(&s->groups); /* a live teacher works on the backend */
    kd_backend_close(s->backend);
    if (s->lock >= 0)
        close(s->lock);
    *s = (kd_setup){.lock = -1};
}

/* ---- the plan in words ---- */

/* How often the training sees each view of a group. */
static void print_views(const kd_setup *s, const kd_group *g, char *text, size_t cap) {
    uint32_t least = UINT32_MAX, most = 0;
    uint64_t views = 0;
    for (size_t i = 0; i < s->split.train_count; i++) {
        uint32_t v = kd_group_image(g, s->split.train[i])->views;
        least = v < least ? v : least;
        most = v > most ? v : most;
        views += v;
    }
    char range[40];
    if (least == most)
        snprintf(range, sizeof range, "%" PRIu32, most);
    else
        snprintf(range, sizeof range, "%" PRIu32 " to %" PRIu32, least, most);
    snprintf(text, cap, "one of its %s views: each view is seen about %.1f times", range, (double)(s->steps * s->step_images) / (double)views);
}

/* Another aspect ratio than the views', by more than rounding a side explains. */
static int squeezed(const kd_group *g, const kd_recipe *r) {
    int64_t difference = (int64_t)g->student_h * r->image_w - (int64_t)g->student_w * r->image_h;
    int longer = r->image_h > r->image_w ? r->image_h : r->image_w;
    return difference > longer || difference < -longer;
}

static void print_group(const kd_setup *s, size_t k) {
    const kd_group *g = &s->groups.group[k];
    const kd_recipe *r = kd_source_recipe(&g->source);
    char sha[13], view[KD_SIZE_TEXT], size[KD_SIZE_TEXT], which[64] = "";
    kd_image_size_text(r->image_h, r->image_w, view);
    kd_image_size_text(g->student_h, g->student_w, size);
    kd_hex(sha, r->sha.b, 6);
    if (s->groups.count > 1)
        snprintf(which, sizeof which, "recipe %zu of %zu: ", k + 1, s->groups.count);
    kd_log(KD_LOG_INFO, "%s%s %s: recipe %s, %zu images, %" PRIu64 " views of %s px, targets of layer %d, width %d%s, patches on %dx%d", which,
           g->source.live != NULL ? "live teacher" : "cache", kd_source_name(&g->source),
           sha, kd_source_images(&g->source), kd_source_views(&g->source), view, (int)s->config->teacher_layer, r->width, r->concat ? " (layers joined)" : "", r->grid_h, r->grid_w);
    kd_log(KD_LOG_INFO, "%simages %s: %zu found, %zu missing, %zu other files ignored", which, s->config->images, kd_replay_images(g->replay), kd_replay_missing(g->replay), kd_replay_extra(g->replay));
    if (g->source.live != NULL && kd_live_skipped(g->source.live) > 0)
        kd_log(KD_LOG_WARN, "%zu pictures that can't be decoded are left out, as kd-precompute would (listed in %s/live-skipped.json)", kd_live_skipped(g->source.live), s->config->out);
    if (squeezed(g, r))
        kd_log(KD_LOG_WARN, "the students see views of %s px squeezed to %s px; --student-size with the same aspect ratio keeps shapes as they are", view, size);
}

static void print_plan(const kd_setup *s) {
    const kd_train_config *c = s->config;
    char memory[32], limit[32], views[120], groups[100] = "", batches[64] = "";
    uint64_t pixels = 0;
    if (s->groups.count > 1)
        kd_log(KD_LOG_INFO, "every step shows the same images once from each recipe and minimises the mean of the %zu losses; validation is on recipe 1; targets of all are standardised by its "
                            "statistics", s->groups.count);
    if (s->groups.left_out > 0)
        kd_log(KD_LOG_WARN, "%zu images are left out because another recipe lacks them", s->groups.left_out);
    if (c->val_group > 0)
        snprintf(groups, sizeof groups, " in %zu of %zu groups (paths that share %d folders)", s->split.held_groups, s->split.groups, (int)c->val_group);
    kd_log(KD_LOG_INFO, "%zu images to train on, %zu held out%s%s", s->split.train_count, s->split.held_count, c->val_list != NULL ? " by --val-list" : "", groups);
    print_views(s, &s->groups.group[0], views, sizeof views);
    if (c->accumulate > 1)
        snprintf(batches, sizeof batches, " (%lld batches of %lld)", (long long)c->accumulate, (long long)c->batch_size);
    kd_log(KD_LOG_INFO, "%lld epochs of %lld steps of %lld images%s = %lld steps, warm-up %lld steps; an epoch shows each image once, with %s", (long long)c->epochs, (long long)s->epoch_steps,
           (long long)s->step_images, batches, (long long)s->steps, (long long)s->warmup_steps, views);
    for (size_t k = 1; k < s->groups.count; k++) {
        print_views(s, &s->groups.group[k], views, sizeof views);
        kd_log(KD_LOG_INFO, "and from recipe %zu with %s", k + 1, views);
    }
    if (s->groups.group[0].source.live != NULL) {
        kd_log(KD_LOG_INFO, "the teacher runs in every step, on %lld views at once in %s, memory %s", (long long)c->teacher_batch, strcmp(c->teacher_precision, "auto") == 0 ? c->precision : c->teacher_precision,
               kd_io_size_text(kd_live_device_bytes(s->groups.group[0].source.live), memory, sizeof memory));
        return;
    }
    for (size_t k = 0; k < s->groups.count; k++)
        pixels += pixels_of(&s->groups.group[k]);
    kd_log(KD_LOG_INFO, "views proven once are kept in memory: %s for all, at most %s (--view-memory)", kd_io_size_text(pixels, memory, sizeof memory),
           kd_io_size_text(s->view_memory, limit, sizeof limit));
}

static void print_student(const kd_setup *s, size_t i) {
    const kd_student *t = s->students[i];
    char memory[32], sizes[KD_MAX_GROUPS * (KD_SIZE_TEXT + 8)] = "", size[KD_SIZE_TEXT], targets[KD_MAX_GROUPS * (KD_TARGET_TEXT + 8)] = "", target[KD_TARGET_TEXT], loss[400];
    double flops = 0;
    int patches = 0; /* the first pair that learns some */
    while (patches < t->loss.pairs && !kd_pair_is_grid(&t->loss.pair[patches]))
        patches++;
    for (int k = 0; k < t->programs; k++) {
        const kd_student_program *p = &t->program[k];
        size_t used = strlen(sizes), learnt = strlen(targets);
        snprintf(sizes + used, sizeof sizes - used, "%s%s", k > 0 ? " and " : "", kd_image_size_text(p->view.image_h, p->view.image_w, size));
        if (patches < t->loss.pairs)
            snprintf(targets + learnt, sizeof targets - learnt, "%s%s", k > 0 ? " and " : ", patch target ", kd_target_text(&p->target[patches].form, target));
        flops += kd_exec_flops(p->train) / (double)t->batch;
    }
    kd_log(KD_LOG_INFO, "student %s at %s px: %.2f M parameters with heads, %s, lr %.3g, weight decay %.3g%s, %s, memory %s, %.2f GFLOP per image and forward pass%s", t->name, sizes,
           (double)t->optim.total * 1e-6, s->choices[i].config.optimizer, t->hyper.lr, t->hyper.optim.weight_decay, t->ema.average != NULL ? ", averaged (--ema)" : "", s->config->precision,
           kd_io_size_text(kd_student_device_bytes(t), memory, sizeof memory), flops * 1e-9, targets);
    kd_log(KD_LOG_INFO, "student %s learns %s", t->name, kd_loss_text(&t->loss, loss, sizeof loss));
}

/* All that a run holds is allocated when the plan is printed, but for the samples and the views that will be kept. */
static void print_memory(const kd_setup *s) {
    char total[32], nets[32], views[32], rest[32];
    uint64_t students = 0, kept = 0, all = kd_mem_live_bytes() + KD_MEM_LIBRARIES;
    if (!s->backend->v->host_memory)
        return;
    for (size_t i = 0; i < s->count; i++)
        students += kd_student_device_bytes(s->students[i]);
    for (size_t k = 0; k < s->groups.count; k++) {
        all += kd_replay_pass_bytes(s->groups.group[k].replay);
        kept += s->groups.group[k].source.live == NULL ? pixels_of(&s->groups.group[k]) : 0;
    }
    kept = kept < s->view_memory ? kept : s->view_memory;
    kd_log(KD_LOG_INFO, "memory at its peak: about %s: students %s, views that are kept %s, images, samples and the program itself %s (own memory; pages of mapped files, such as the cache, come on top and are the "
                        "system's to take back)", kd_io_size_text(all + kept, total, sizeof total), kd_io_size_text(students, nets, sizeof nets), kd_io_size_text(kept, views, sizeof views),
           kd_io_size_text(all > students ? all - students : 0, rest, sizeof rest));
    if (!s->config->json)
        return;
    json_t *line = json_pack("{s:s, s:I, s:I, s:I}", "type", "plan", "peak_bytes", (json_int_t)(all + kept), "students_bytes", (json_int_t)students, "view_bytes", (json_int_t)kept);
    kd_json_line(line);
    json_decref(line);
}

void kd_setup_print(const kd_setup *s) {
    for (size_t k = 0; k < s->groups.count; k++)
        print_group(s, k);
    print_plan(s);
    for (size_t i = 0; i < s->count; i++)
        print_student(s, i);
    print_memory(s);
    kd_log(KD_LOG_INFO, "device: %s", s->backend->v->describe(s->backend));
}
