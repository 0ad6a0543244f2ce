#include "train/report_charts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

enum { MAX_SERIES = 64, MAX_ROLES = 3, STEP_POINTS = 300 /* of a curve with a value for every step or so: more couldn't be seen */, KEY = 96 };

/* Told apart with every kind of colour vision (Okabe and Ito's set without its yellow, darkened where needed on white). */
static const char *const palette[] = {"#0072b2", "#d55e00", "#009e73", "#b8569b", "#7f6a00", "#56b4e9", "#4b4b4b", "#e69f00"};

const char *kd_report_colour(size_t i) {
    return palette[i % (sizeof palette / sizeof palette[0])];
}

/* How a key's curve is drawn and called. */
typedef enum style { STEPS, HELD_OUT, SEEN, MARKS } style;
typedef struct role {
    char key[KEY + 8];
    const char *label;
    style style;
} role;

typedef struct plot {
    const char *title, *note;
    role role[MAX_ROLES];
    int roles;
    int log_y, percent;
    double floor, ceiling;
} plot;

typedef struct drawing {
    kd_text *out;
    const kd_curves *curves;
    const char *const *name;
    size_t students;
    int charts;            /* so far: ids */
    kd_point *thinned;     /* [MAX_SERIES][STEP_POINTS] */
} drawing;

static const char *colour_of(const drawing *d, size_t student, style s) {
    static const char *const alone[] = {[STEPS] = "#64748b", [HELD_OUT] = "#0072b2", [SEEN] = "#d55e00", [MARKS] = "#c00000"};
    return d->students > 1 && s != MARKS ? kd_report_colour(student) : alone[s];
}

static size_t collect(const drawing *d, const plot *p, kd_series *series) {
    size_t n = 0;
    for (int r = 0; r < p->roles; r++)
        for (size_t i = 0; i < d->students && n < MAX_SERIES; i++) {
            const kd_curve *c = kd_curves_find(d->curves, d->name[i], p->role[r].key);
            style s = p->role[r].style;
            if (c == NULL)
                continue;
            kd_series *x = &series[n];
            *x = (kd_series){.label = p->role[r].label, .colour = colour_of(d, i, s), .dashed = s == SEEN, .faint = s == STEPS && p->roles > 1, .dots = s == HELD_OUT && c->count <= 100,
                             .only_dots = s == MARKS, .point = c->point, .count = c->count};
            if (s == STEPS) {
                x->point = d->thinned + n * STEP_POINTS;
                x->count = kd_curve_thin(c, d->thinned + n * STEP_POINTS, STEP_POINTS);
            }
            n++;
        }
    return n;
}

/* What the roles mean; with several students colours are explained once, above all charts. */
static void draw_key(const drawing *d, const plot *p, const kd_series *series, size_t n) {
    for (int r = 0; r < p->roles; r++) {
        const kd_series *first = NULL;
        for (size_t k = 0; k < n && first == NULL; k++)
            first = series[k].label == p->role[r].label ? &series[k] : NULL;
        if (first == NULL || p->roles == 1)
            continue;
        const char *colour = d->students > 1 && p->role[r].style != MARKS ? "#475569" : first->colour;
        kd_text_printf(d->out, "<span class=\"key\"><svg width=\"26\" height=\"10\" viewBox=\"0 0 26 10\">");
        if (first->only_dots)
            kd_text_printf(d->out, "<circle cx=\"13\" cy=\"5\" r=\"4\" fill=\"%s\"/>", colour);
        else
            kd_text_printf(d->out, "<path d=\"M0 5H26\" stroke=\"%s\" stroke-width=\"%s\"%s%s/>", colour, first->faint ? "1" : "2", first->faint ? " stroke-opacity=\"0.6\"" : "",
                           first->dashed ? " stroke-dasharray=\"5 4\"" : "");
        kd_text_printf(d->out, "</svg>%s</span>", p->role[r].label);
    }
}

static void draw(drawing *d, const plot *p) {
    kd_series series[MAX_SERIES];
    char id[24];
    size_t n = collect(d, p, series);
    if (n == 0)
        return;
    snprintf(id, sizeof id, "c%d", d->charts++);
    kd_text_printf(d->out, "<figure><figcaption><b>");
    kd_text_html(d->out, p->title);
    kd_text_printf(d->out, "</b>");
    draw_key(d, p, series, n);
    kd_text_printf(d->out, "</figcaption>");
    kd_svg_chart(d->out, &(kd_chart){.id = id, .series = series, .count = n, .x_label = "epoch", .log_y = p->log_y, .percent = p->percent, .floor = p->floor, .ceiling = p->ceiling});
    kd_text_printf(d->out, "<p>%s</p></figure>\n", p->note);
}

static void add_role(plot *p, style s, const char *label, const char *prefix, const char *rest) {
    role *r = &p->role[p->roles++];
    *r = (role){.label = label, .style = s};
    snprintf(r->key, sizeof r->key, "%s%s", prefix, rest);
}

/* One value per epoch, on held-out and on seen views. */
static void draw_validated(drawing *d, const char *title, const char *note, const char *rest, double floor, double ceiling) {
    plot p = {.title = title, .note = note, .floor = floor, .ceiling = ceiling};
    add_role(&p, HELD_OUT, "held out", "val_", rest);
    add_role(&p, SEEN, "seen in training", "seen_", rest);
    draw(d, &p);
}

/* The loss ("") or one of its terms ("_cls"), step by step and as validated. */
static void draw_loss(drawing *d, const char *term) {
    char title[KEY + 8], rest[KEY];
    plot p = {.title = title, .floor = NAN, .ceiling = NAN,
              .note = *term ? "One term of the loss, before its weight." : "What is minimised. Held out far above seen: the student remembers instead of learning; more images or views help."};
    snprintf(title, sizeof title, *term ? "Loss term %s" : "Loss%s", *term ? term + 1 : "");
    snprintf(rest, sizeof rest, "loss%s", term);
    add_role(&p, STEPS, "each step", "", rest);
    add_role(&p, HELD_OUT, "held out", "val_", rest);
    add_role(&p, SEEN, "seen in training", "seen_", rest);
    draw(d, &p);
}

static void draw_one(drawing *d, const char *title, const char *note, const char *key, int log_y, int percent) {
    plot p = {.title = title, .note = note, .floor = NAN, .ceiling = NAN, .log_y = log_y, .percent = percent};
    add_role(&p, STEPS, title, "", key);
    draw(d, &p);
}

/* For every different key that begins with prefix: each once, whatever student logged it. */
static void for_keys(drawing *d, const char *prefix, void (*fn)(drawing *d, const char *rest)) {
    for (size_t i = 0; i < d->curves->count; i++) {
        const char *key = d->curves->curve[i].key;
        size_t first = 0;
        while (strcmp(d->curves->curve[first].key, key) != 0)
            first++;
        if (first == i && strncmp(key, prefix, strlen(prefix)) == 0)
            fn(d, key + strlen(prefix));
    }
}

static void draw_term(drawing *d, const char *rest) {
    char term[KEY];
    snprintf(term, sizeof term, "_%s", rest);
    draw_loss(d, term);
}

/* "CLS" is an abbreviation, "patch" a word. */
static const char *feature_name(const char *key) {
    return strcmp(key, "cls") == 0 ? "CLS" : key;
}

static void draw_r2(drawing *d, const char *rest) {
    char title[KEY], key[KEY];
    snprintf(title, sizeof title, "R\xc2\xb2 of %s features", feature_name(rest));
    snprintf(key, sizeof key, "r2_%s", rest);
    draw_validated(d, title, "Share of the teacher's variance that the student explains: 1 = all, 0 = no better than predicting the mean.", key, -0.25, 1);
}

static void draw_cosine(drawing *d, const char *rest) {
    char title[KEY], key[KEY];
    snprintf(title, sizeof title, "Cosine to the teacher's %s features", feature_name(rest));
    snprintf(key, sizeof key, "cos_%s", rest);
    draw_validated(d, title, "After taking off the mean: 1 = the same direction, 0 = unrelated.", key, NAN, 1);
}

static void draw_knn(drawing *d, const char *rest) {
    char title[KEY], key[KEY];
    plot p = {.title = title, .note = "Labelled images classified by their neighbours' labels, from features alone: what the backbone is worth without fine-tuning.", .floor = 0, .ceiling = 1, .percent = 1};
    snprintf(title, sizeof title, "k-NN top-1, k = %s", rest);
    snprintf(key, sizeof key, "knn_top1_k%s", rest);
    add_role(&p, HELD_OUT, "top-1", "", key);
    snprintf(key, sizeof key, "knn_top5_k%s", rest);
    add_role(&p, SEEN, "top-5", "", key);
    snprintf(title, sizeof title, "k-NN, k = %s", rest);
    draw(d, &p);
}

static void draw_gradient(drawing *d) {
    plot p = {.title = "Norm of the gradient", .note = "Before clipping, logarithmic. It should fall or stay; rising for long asks for a lower learning rate.", .floor = NAN, .ceiling = NAN, .log_y = 1};
    add_role(&p, STEPS, "gradient", "", "grad_norm");
    draw(d, &p);
}

static void draw_outliers(drawing *d) {
    plot p = {.title = "Outliers", .note = "Steps whose loss or gradient was more than ten times the median of the hundred before. A few are strange batches.", .floor = NAN, .ceiling = NAN, .log_y = 1};
    int any = 0;
    for (size_t i = 0; i < d->students; i++)
        any |= kd_curves_find(d->curves, d->name[i], "outlier") != NULL;
    if (!any)
        return;
    add_role(&p, STEPS, "loss", "", "loss");
    add_role(&p, MARKS, "outlier", "", "outlier");
    draw(d, &p);
}

/* With several students: whose colour is whose. */
static void draw_students(const drawing *d) {
    if (d->students < 2)
        return;
    kd_text_printf(d->out, "<p class=\"students\">");
    for (size_t i = 0; i < d->students; i++) {
        kd_text_printf(d->out, "<span class=\"key\"><svg width=\"14\" height=\"14\" viewBox=\"0 0 14 14\"><rect width=\"14\" height=\"14\" rx=\"3\" fill=\"%s\"/></svg>", kd_report_colour(i));
        kd_text_html(d->out, d->name[i]);
        kd_text_printf(d->out, "</span>");
    }
    kd_text_printf(d->out, "</p>\n");
}

void kd_report_charts(kd_text *out, const kd_curves *c, const char *const *names, size_t n, kd_err *err) {
    drawing d = {.out = out, .curves = c, .name = names, .students = n};
    if (kd_alloc_array(&d.thinned, MAX_SERIES, STEP_POINTS * sizeof *d.thinned, err) != KD_OK) {
        out->failed = 1;
        return;
    }
    draw_students(&d);
    kd_text_printf(out, "<div class=\"charts\">\n");
    draw_loss(&d, "");
    for_keys(&d, "loss_", draw_term);
    for_keys(&d, "seen_r2_", draw_r2);
    for_keys(&d, "seen_cos_", draw_cosine);
    draw_validated(&d, "Neighbourhood agreement", "Of each image's 20 nearest (of few images: a quarter of the others) by the teacher's class token, the share that are so by the student's pooled feature too.", "agreement", 0, 1);
    for_keys(&d, "knn_top1_k", draw_knn);
    draw_one(&d, "Learning rate", "Linear warm-up, then half a cosine.", "lr", 0, 0);
    draw_gradient(&d);
    draw_outliers(&d);
    d.students = 1; /* what follows is of the run: the same for all */
    draw_one(&d, "Images per second", "Of training, without validation.", "images_per_s", 0, 0);
    draw_one(&d, "Waiting for data", "Share of the time in which the students waited for images: high means that more --threads, or more --view-memory, would help.", "data_wait", 0, 1);
    kd_text_printf(out, "</div>\n");
    kd_free(d.thinned);
}
