#include "train/maps.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "train/adjoint.h"
#include "train/eval/pca.h"

enum { PHOTOS = -1, TEACHER = -2 };

/* What of a student is shown: its prediction `output` against a sample's target. */
typedef struct subject {
    char output[2 * KD_TERM_NAME];
    int sample;         /* place among the sample's targets; students of one place share a teacher column and a basis */
    int h, w;           /* of both */
    size_t width;
    kd_target form;
    int grid_h, grid_w; /* of the teacher */
    int lengths_open;   /* the prediction's lengths mean nothing */
    char title[KD_MAPS_TITLE]; /* of the teacher's column */
} subject;

typedef struct making {
    kd_maps *maps;
    kd_setup *setup;
    float *teacher[KD_REPLAY_TARGETS]; /* by sample place: [photos][h * w][width], ready to be looked at; NULL: not wanted */
    kd_adjoint adjoint[KD_REPLAY_TARGETS];
    kd_pca pca[KD_REPLAY_TARGETS];
} making;

/* 0: the student learns no patches that could be looked at: none at all, only how they are alike, or what a teacher's head makes of them. */
static int subject_of(subject *x, const kd_student *s) {
    const kd_student_program *p = &s->program[0];
    char form[KD_TARGET_TEXT];
    int regresses, pair = kd_loss_representative(&s->loss, KD_FEATURE_PATCH, &regresses);
    if (pair < 0 || s->loss.pair[pair].classes > 0)
        return 0;
    const kd_pair_target *t = &p->target[pair];
    *x = (subject){.sample = p->sample[pair], .h = t->grid_h, .w = t->grid_w, .width = (size_t)t->width, .form = t->form, .grid_h = t->grid_h, .grid_w = t->grid_w, .lengths_open = !regresses};
    snprintf(x->output, sizeof x->output, "pred.%s", s->loss.pair[pair].name);
    if (t->form.kind != KD_TARGET_FULL) {
        x->h = t->form.h;
        x->w = t->form.w;
    }
    snprintf(x->title, sizeof x->title, "teacher, layer %d, %d x %d patches (%s%s)", s->loss.pair[pair].layer, x->h, x->w, kd_target_text(&x->form, form),
             s->loss.pair[pair].scaling == KD_SCALING_STANDARD ? "" : ", not standardised");
    return 1;
}

/* ---- photos and teacher ---- */

static kd_status add_column(kd_maps *m, int student, int h, int w, const char *title, kd_err *err) {
    kd_maps_column *c = &m->column[m->columns++];
    *c = (kd_maps_column){.student = student, .h = h, .w = w};
    snprintf(c->title, sizeof c->title, "%s", title);
    for (int i = 0; i < m->photos; i++)
        KD_TRY(kd_alloc_array(&c->tile[i], (size_t)h * (size_t)w, 3, err));
    return KD_OK;
}

/* The teacher's patches of a sample as they are looked at. */
static void take_teacher(making *g, const subject *x, int photo, const kd_sample *sample) {
    size_t values = (size_t)x->h * (size_t)x->w * x->width;
    float *to = g->teacher[x->sample] + (size_t)photo * values;
    memcpy(to, sample->target[x->sample], values * sizeof *to);
    if (x->form.kind == KD_TARGET_ADJOINT)
        kd_adjoint_means(&g->adjoint[x->sample], to, x->width);
}

static kd_status take_sample(making *g, int photo, const kd_sample *sample, kd_err *err) {
    kd_maps_column *photos = &g->maps->column[0];
    memcpy(photos->tile[photo], sample->pixels, (size_t)photos->h * (size_t)photos->w * 3);
    for (size_t i = 0; i < g->setup->count; i++) {
        subject x;
        if (!subject_of(&x, g->setup->students[i]))
            continue;
        take_teacher(g, &x, photo, sample);
        KD_TRY(kd_student_show(g->setup->students[i], photo, sample, err));
    }
    return KD_OK;
}

static kd_status take_photos(making *g, const kd_replay_item *items, kd_err *err) {
    kd_replay *replay = g->setup->groups.group[0].replay;
    KD_TRY(kd_replay_begin(replay, items, (size_t)g->maps->photos, err));
    kd_status status = KD_OK;
    for (int i = 0; i < g->maps->photos && status == KD_OK; i++) {
        kd_sample sample;
        status = kd_replay_next(replay, &sample, err);
        if (status != KD_OK)
            break;
        status = take_sample(g, i, &sample, err);
        kd_replay_release(replay, &sample);
    }
    kd_replay_end(replay);
    return status;
}

/* Memory for the teacher's patches of every kind that is learnt. */
static kd_status want_teachers(making *g, kd_err *err) {
    for (size_t i = 0; i < g->setup->count; i++) {
        subject x;
        if (!subject_of(&x, g->setup->students[i]) || g->teacher[x.sample] != NULL)
            continue;
        KD_TRY(kd_alloc_array(&g->teacher[x.sample], (size_t)g->maps->photos * (size_t)x.h * (size_t)x.w, x.width * sizeof(float), err));
        if (x.form.kind == KD_TARGET_ADJOINT)
            KD_TRY(kd_adjoint_create(&g->adjoint[x.sample], &x.form, x.grid_h, x.grid_w, err));
    }
    return KD_OK;
}

/* ---- students ---- */

static double length(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void give_lengths(const subject *x, float *y, const float *t) {
    for (int k = 0; k < x->h * x->w; k++, y += x->width, t += x->width) {
        double own = length(y, x->width), scale = own > 0 ? length(t, x->width) / own : 0;
        for (size_t c = 0; c < x->width; c++)
            y[c] = (float)((double)y[c] * scale);
    }
}

/* Without the mean of the teacher's patches, which alone would make everything alike. */
static double mean_cosine(const subject *x, const float *y, const float *t, const double *mean) {
    double sum = 0;
    for (int k = 0; k < x->h * x->w; k++, y += x->width, t += x->width) {
        double yy = 0, tt = 0, yt = 0;
        for (size_t c = 0; c < x->width; c++) {
            double a = (double)y[c] - mean[c], b = (double)t[c] - mean[c];
            yy += a * a;
            tt += b * b;
            yt += a * b;
        }
        sum += yy > 0 && tt > 0 ? yt / sqrt(yy * tt) : 0;
    }
    return sum / (x->h * x->w);
}

static kd_status show_teacher(making *g, const subject *x, kd_err *err) {
    kd_maps *m = g->maps;
    size_t tokens = (size_t)x->h * (size_t)x->w;
    KD_TRY(kd_pca_fit(&g->pca[x->sample], g->teacher[x->sample], (size_t)m->photos * tokens, x->width, err));
    KD_TRY(add_column(m, TEACHER, x->h, x->w, x->title, err));
    for (int i = 0; i < m->photos; i++)
        kd_pca_colour(&g->pca[x->sample], g->teacher[x->sample] + (size_t)i * tokens * x->width, tokens, m->column[m->columns - 1].tile[i]);
    return KD_OK;
}

static kd_status show_student(making *g, int student, const subject *x, float *y, float *spare, kd_err *err) {
    kd_maps *m = g->maps;
    kd_student *s = g->setup->students[student];
    size_t tokens = (size_t)x->h * (size_t)x->w, values = tokens * x->width;
    KD_TRY(kd_exec_forward(s->infer, err));
    KD_TRY(kd_exec_download(s->infer, x->output, m->photos, y, err));
    KD_TRY(add_column(m, student, x->h, x->w, s->name, err));
    kd_maps_column *c = &m->column[m->columns - 1];
    for (int i = 0; i < m->photos; i++) {
        const float *t = g->teacher[x->sample] + (size_t)i * values, *shown = y + (size_t)i * values;
        if (x->form.kind == KD_TARGET_ADJOINT) {
            kd_adjoint_of_prediction(&g->adjoint[x->sample], spare, shown, x->width);
            kd_adjoint_means(&g->adjoint[x->sample], spare, x->width);
        } else {
            memcpy(spare, shown, values * sizeof *spare);
        }
        if (x->lengths_open)
            give_lengths(x, spare, t);
        kd_pca_colour(&g->pca[x->sample], spare, tokens, c->tile[i]);
        c->cosine[i] = mean_cosine(x, spare, t, g->pca[x->sample].mean);
    }
    return KD_OK;
}

/* A column for each student, behind the teacher that it is compared with. */
static kd_status show_all(making *g, kd_err *err) {
    for (size_t i = 0; i < g->setup->count; i++) {
        subject x;
        float *y, *spare = NULL;
        if (!subject_of(&x, g->setup->students[i]))
            continue;
        if (g->pca[x.sample].axis == NULL)
            KD_TRY(show_teacher(g, &x, err));
        size_t values = (size_t)x.h * (size_t)x.w * x.width;
        KD_TRY(kd_alloc_array(&y, (size_t)g->maps->photos, values * sizeof *y, err));
        kd_status status = kd_alloc_array(&spare, values, sizeof *spare, err);
        if (status == KD_OK)
            status = show_student(g, (int)i, &x, y, spare, err);
        kd_free(spare);
        kd_free(y);
        KD_TRY(status);
    }
    return KD_OK;
}

/* ---- all together ---- */

/* The photos: of those that validation shows, evenly spread. */
static void choose_items(const making *g, const kd_replay_item *from, size_t count, kd_replay_item *items) {
    const kd_replay *replay = g->setup->groups.group[0].replay;
    for (int i = 0; i < g->maps->photos; i++) {
        items[i] = from[(size_t)i * count / (size_t)g->maps->photos];
        items[i].view = 0;
        g->maps->name[i] = kd_replay_name(replay, items[i].image);
    }
}

static kd_status make(making *g, kd_err *err) {
    kd_setup *u = g->setup;
    kd_maps *m = g->maps;
    kd_replay_item items[KD_MAPS_PHOTOS];
    const kd_student_view *view = &u->students[0]->program[0].view;
    size_t learners = 0, count = u->held_count > 0 ? u->held_count : u->seen_count, most = count < KD_MAPS_PHOTOS ? count : KD_MAPS_PHOTOS;
    for (size_t i = 0; i < u->count; i++) {
        subject x;
        learners += (size_t)subject_of(&x, u->students[i]);
    }
    if (learners == 0)
        return KD_OK;
    m->held = u->held_count > 0;
    m->photos = most < (size_t)u->config->batch_size ? (int)most : (int)u->config->batch_size;
    choose_items(g, m->held ? u->held : u->seen, count, items);
    KD_TRY(kd_alloc_array(&m->column, 1 + 2 * learners, sizeof *m->column, err));
    KD_TRY(add_column(m, PHOTOS, view->image_h, view->image_w, m->held ? "photo, held out" : "photo, trained on", err));
    KD_TRY(want_teachers(g, err));
    KD_TRY(take_photos(g, items, err));
    return show_all(g, err);
}

kd_status kd_maps_make(kd_maps *m, kd_setup *setup, kd_err *err) {
    making g = {.maps = m, .setup = setup};
    kd_status status = make(&g, err);
    for (int i = 0; i < KD_REPLAY_TARGETS; i++) {
        kd_free(g.teacher[i]);
        kd_adjoint_free(&g.adjoint[i]);
        kd_pca_free(&g.pca[i]);
    }
    return status;
}

static void draw_tile(uint8_t *rgb, int stride, const kd_maps_column *c, int photo) {
    for (int y = 0; y < KD_MAPS_TILE; y++)
        for (int x = 0; x < KD_MAPS_TILE; x++)
            memcpy(rgb + (size_t)y * (size_t)stride + 3 * x, c->tile[photo] + 3 * (y * c->h / KD_MAPS_TILE * c->w + x * c->w / KD_MAPS_TILE), 3);
}

kd_status kd_maps_strip(const kd_maps *m, int student, uint8_t **rgb, int *height, int *width, kd_err *err) {
    const kd_maps_column *teacher = NULL, *own = NULL;
    *rgb = NULL;
    for (size_t i = 0; i < m->columns && own == NULL; i++) {
        teacher = m->column[i].student == TEACHER ? &m->column[i] : teacher;
        own = m->column[i].student == student ? &m->column[i] : NULL;
    }
    if (own == NULL)
        return KD_OK;
    *height = m->photos * KD_MAPS_TILE;
    *width = 3 * KD_MAPS_TILE;
    KD_TRY(kd_alloc_array(rgb, (size_t)*height, (size_t)*width * 3, err));
    for (int i = 0; i < m->photos; i++) {
        uint8_t *row = *rgb + (size_t)i * KD_MAPS_TILE * (size_t)*width * 3;
        draw_tile(row, 3 * *width, &m->column[0], i);
        draw_tile(row + 3 * KD_MAPS_TILE, 3 * *width, teacher, i);
        draw_tile(row + 6 * KD_MAPS_TILE, 3 * *width, own, i);
    }
    return KD_OK;
}

void kd_maps_free(kd_maps *m) {
    for (size_t c = 0; c < m->columns; c++)
        for (int i = 0; i < KD_MAPS_PHOTOS; i++)
            kd_free(m->column[c].tile[i]);
    kd_free(m->column);
    *m = (kd_maps){0};
}
