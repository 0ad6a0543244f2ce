#include "cache/budget.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/image/augment.h"

/* The order of preference. The first row is there to be compared with: the choice starts at START, which is what kd-precompute does when nothing is asked for. */
static const struct rung {
    kd_dtype dtype;
    kd_target_kind kind; /* adjoint: of the maps of the students that are named */
} ladder[] = {
    {KD_F16, KD_TARGET_FULL}, {KD_I8, KD_TARGET_FULL}, {KD_I8, KD_TARGET_ADJOINT}, {KD_I8, KD_TARGET_POOL},
};
enum { START = 1 };
/* Then, without patches. */
static const kd_dtype WITHOUT_PATCHES = KD_I8;

enum { PATCH = 1u << KD_FEATURE_PATCH };

/* ---- the steps ---- */

static int has_target(const kd_storage *f, const kd_target *t)
{
    for (int i = 0; i < f->targets; i++) {
        if (kd_target_equal(&f->target[i], t))
            return 1;
    }
    return 0;
}

/* The adjoint targets of all named students. 0: one of them needs every token, they are too many, or together they save less than a fifth of every token, which is worth less than serving every student. */
static int student_targets(kd_storage *f, const kd_budget_ask *ask)
{
    uint64_t rows = 0;
    f->targets = 0;
    for (int i = 0; i < ask->students; i++) {
        kd_target t = kd_student_target(&ask->student[i], ask->shape.grid_h, ask->shape.grid_w);
        if (t.kind == KD_TARGET_FULL || (!has_target(f, &t) && f->targets == KD_MAX_TARGETS))
            return 0;
        if (has_target(f, &t))
            continue;
        f->target[f->targets++] = t;
        rows += kd_target_rows(&t, ask->shape.grid_h, ask->shape.grid_w);
    }
    return f->targets > 0 && 5 * rows <= 4 * (uint64_t)ask->shape.grid_h * (uint64_t)ask->shape.grid_w;
}

/* The rung's storage, with what the user has fixed in its place. 0: the rung isn't for this ask. */
static int rung_storage(kd_storage *f, const struct rung *rung, const kd_budget_ask *ask)
{
    kd_storage adjoint;
    *f = (kd_storage){.targets = 1, .target = {{.kind = KD_TARGET_FULL}}};
    if (ask->targets > 0) {
        f->targets = ask->targets;
        memcpy(f->target, ask->target, (size_t)ask->targets * sizeof *f->target);
    } else if (rung->kind == KD_TARGET_ADJOINT) {
        if (!student_targets(&adjoint, ask))
            return 0;
        *f = adjoint;
    } else if (rung->kind == KD_TARGET_POOL) {
        f->target[0] = (kd_target){.kind = KD_TARGET_POOL, .h = (ask->shape.grid_h + 1) / 2, .w = (ask->shape.grid_w + 1) / 2};
    }
    f->dtype = ask->dtype ? *ask->dtype : rung->dtype;
    return 1;
}

static int same_storage(const kd_budget_step *s, const kd_storage *f, unsigned features)
{
    if (s->features != features || s->storage.dtype != f->dtype || s->storage.targets != f->targets)
        return 0;
    for (int i = 0; i < f->targets; i++) {
        if (!kd_target_equal(&s->storage.target[i], &f->target[i]))
            return 0;
    }
    return 1;
}

/* The most views of each image whose cache fits; a cache grows with its views. */
static uint32_t views_that_fit(const kd_size_shape *shape, const kd_storage *f, const kd_budget_ask *ask)
{
    uint32_t low = 0, high = ask->views;
    if (ask->budget == 0)
        return ask->views;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (kd_size_cache(shape, f, ask->images, middle) <= ask->budget)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static kd_size_shape step_shape(const kd_budget_step *s, const kd_budget_ask *ask)
{
    kd_size_shape shape = ask->shape;
    shape.features = s->features;
    return shape;
}

/* 0: the ladder has this step already. */
static int add_step(kd_budget_choice *c, const kd_storage *f, unsigned features, const kd_budget_ask *ask)
{
    kd_budget_step *s = &c->step[c->steps];
    kd_size_shape shape;
    for (int i = 0; i < c->steps; i++) {
        if (same_storage(&c->step[i], f, features))
            return 0;
    }
    KD_ASSERT(c->steps < KD_BUDGET_STEPS);
    *s = (kd_budget_step){.storage = *f, .features = features};
    shape = step_shape(s, ask);
    s->view_bytes = kd_size_view(&shape, f, ask->views);
    s->cache_bytes = kd_size_cache(&shape, f, ask->images, ask->views);
    s->fits = views_that_fit(&shape, f, ask);
    c->steps++;
    return 1;
}

static void make_steps(kd_budget_choice *c, const kd_budget_ask *ask)
{
    unsigned rest = ask->shape.features & ~(unsigned)PATCH;
    kd_storage f;
    for (size_t i = 0; i < sizeof ladder / sizeof ladder[0] && ask->shape.features & PATCH; i++) {
        if (!rung_storage(&f, &ladder[i], ask))
            continue;
        if ((i == START && !ask->dtype) || (ladder[i].kind == KD_TARGET_ADJOINT && ask->targets == 0))
            c->first = c->steps;
        if (!add_step(c, &f, ask->shape.features, ask) || ladder[i].kind != KD_TARGET_POOL || ask->targets > 0)
            continue;
        /* Coarser tokens that take no less are no step down: the pooled grid beside the map of a small student. */
        if (c->step[c->steps - 1].view_bytes >= c->step[c->steps - 2].view_bytes)
            c->steps--;
    }
    if (rest) {
        f = (kd_storage){.dtype = ask->dtype ? *ask->dtype : WITHOUT_PATCHES};
        add_step(c, &f, rest, ask);
    }
}

/* ---- the choice ---- */

static void take(kd_budget_choice *c, int step, uint32_t views, const kd_budget_ask *ask)
{
    kd_size_shape shape = step_shape(&c->step[step], ask);
    c->chosen = step;
    c->views = views;
    c->view_bytes = kd_size_view(&shape, &c->step[step].storage, views);
    c->cache_bytes = kd_size_cache(&shape, &c->step[step].storage, ask->images, views);
}

/* Among steps first .. end - 1 of equal features: the first with all views, else the last with as many as fit. 0: not one view does. */
static int choose_among(kd_budget_choice *c, int first, int end, const kd_budget_ask *ask)
{
    for (int i = first; i < end; i++) {
        if (c->step[i].fits == ask->views) {
            take(c, i, ask->views, ask);
            return 1;
        }
    }
    if (first == end || c->step[end - 1].fits == 0)
        return 0;
    take(c, end - 1, c->step[end - 1].fits, ask);
    return 1;
}

kd_status kd_budget_choose(kd_budget_choice *c, const kd_budget_ask *ask, kd_err *err)
{
    char have[32], need[32], text[KD_STORAGE_TEXT];
    int end = 0;
    KD_ASSERT(ask->views > 0 && ask->shape.features != 0);
    *c = (kd_budget_choice){0};
    make_steps(c, ask);
    while (end < c->steps && c->step[end].features == c->step[0].features)
        end++;
    if (choose_among(c, c->first, end, ask) || choose_among(c, end, c->steps, ask))
        return KD_OK;
    take(c, c->steps - 1, 1, ask);
    return kd_fail(err, KD_ENOSPACE, "--budget %s: even one view per image, stored as %s, needs %s for %" PRIu64 " images; raise it to that or pass fewer images",
                   kd_io_size_text(ask->budget, have, sizeof have), kd_storage_text(&c->step[c->chosen].storage, c->step[c->chosen].features, text),
                   kd_io_size_text(c->cache_bytes, need, sizeof need), ask->images);
}

const char *kd_budget_reason(const kd_budget_choice *c, const kd_budget_ask *ask, char *buf, size_t cap)
{
    const kd_budget_step *chosen = &c->step[c->chosen];
    char text[KD_STORAGE_TEXT], size[32];
    int n = snprintf(buf, cap, "%s%s x %" PRIu32 " view%s, %s", kd_storage_text(&chosen->storage, chosen->features, text), chosen->features == ask->shape.features ? "" : " without patches",
                     c->views, c->views == 1 ? "" : "s", kd_io_size_text(c->cache_bytes, size, sizeof size));
    const char *joint = ": ";
    for (int i = c->first; i <= c->chosen && n >= 0 && (size_t)n < cap; i++) {
        if (c->step[i].fits == ask->views)
            continue;
        n += snprintf(buf + n, cap - (size_t)n, "%s%s x %" PRIu32 " would need %s", joint, kd_storage_text(&c->step[i].storage, c->step[i].features, text), ask->views,
                      kd_io_size_text(c->step[i].cache_bytes, size, sizeof size));
        joint = ", ";
    }
    return buf;
}

kd_status kd_for_parse(kd_map_size map[KD_FOR_MAX], int *count, const char *text, const char *student_size, int height, int width, kd_err *err)
{
    char name[64];
    int h, w;
    *count = 0;
    KD_TRY(kd_image_size_parse(student_size, "--student-size", &h, &w, err));
    if (h > height || w > width)
        return kd_fail(err, KD_EUSAGE, "--student-size %s: the views are %d x %d pixels, and students see them as large or smaller", student_size, height, width);
    if (h > 0) {
        height = h;
        width = w;
    }
    for (const char *at = text;; at += strcspn(at, ",") + 1) {
        size_t n = strcspn(at, ",");
        kd_map_size m;
        int known = 0;
        if (n == 0 || n >= sizeof name)
            return kd_fail(err, KD_EUSAGE, "--for %s: expected names of students, separated by commas, such as resnet18,vit_small_patch16_224", text);
        memcpy(name, at, n);
        name[n] = 0;
        KD_TRY(kd_student_map(&m, name, height, width, err));
        for (int i = 0; i < *count; i++)
            known |= map[i].h == m.h && map[i].w == m.w;
        if (!known && *count == KD_FOR_MAX)
            return kd_fail(err, KD_EUSAGE, "--for %s: students of more than %d sizes of maps", text, KD_FOR_MAX);
        if (!known)
            map[(*count)++] = m;
        if (at[n] == 0)
            return KD_OK;
    }
}
