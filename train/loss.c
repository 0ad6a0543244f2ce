#include "train/loss.h"

#include <stdio.h>
#include <string.h>

static const float HEAD_NORM_EPS = 1e-6f;

static const kd_term_facts facts[KD_TERM_KINDS] = {
    [KD_TERM_MSE] = {.name = "mse", .regresses = 1, .aligns = 1, .vectors = 1, .grids = 1},
    [KD_TERM_COSINE] = {.name = "cosine", .single_tokens = 1, .aligns = 1, .vectors = 1, .grids = 1},
    [KD_TERM_SMOOTH_L1] = {.name = "smooth-l1", .single_tokens = 1, .regresses = 1, .aligns = 1, .vectors = 1, .grids = 1},
    [KD_TERM_KL_QUEUE] = {.name = "kl-queue", .aligns = 1, .vectors = 1},
    [KD_TERM_KL_INTRA] = {.name = "kl-intra", .single_tokens = 1, .grids = 1},
    [KD_TERM_GRAM] = {.name = "gram", .single_tokens = 1, .grids = 1},
    [KD_TERM_KL_LOGITS] = {.name = "kl-logits", .vectors = 1},
    [KD_TERM_KOLEO] = {.name = "koleo", .vectors = 1},
};

const kd_term_facts *kd_term_facts_of(kd_term_kind kind) {
    return &facts[kind];
}

int kd_term_kind_find(const char *name) {
    for (int k = 0; k < KD_TERM_KINDS; k++)
        if (strcmp(facts[k].name, name) == 0)
            return k;
    return -1;
}

int kd_loss_add_pair(kd_loss *l, const kd_pair *p) {
    if (l->pairs == KD_MAX_PAIRS)
        return -1;
    l->pair[l->pairs] = *p;
    return l->pairs++;
}

int kd_loss_add_term(kd_loss *l, const kd_term *t) {
    if (l->terms == KD_MAX_TERMS)
        return -1;
    l->term[l->terms] = *t;
    return l->terms++;
}

const char *kd_pair_single_tokens(const kd_loss *l, int pair) {
    for (int i = 0; i < l->terms; i++)
        if (l->term[i].pair == pair && facts[l->term[i].kind].single_tokens)
            return facts[l->term[i].kind].name;
    return l->pair[pair].scaling == KD_SCALING_UNIT ? "unit lengths" : NULL;
}

int kd_pair_is_grid(const kd_pair *p) {
    return p->feature == KD_FEATURE_PATCH;
}

int kd_loss_representative(const kd_loss *l, kd_feature f, int *regresses) {
    for (int p = 0; p < l->pairs; p++) {
        int aligns = 0;
        *regresses = 0;
        for (int i = 0; i < l->terms && l->pair[p].feature == f; i++) {
            const kd_term_facts *k = &facts[l->term[i].kind];
            aligns |= l->term[i].pair == p && k->aligns;
            *regresses |= l->term[i].pair == p && k->regresses && l->pair[p].scaling != KD_SCALING_UNIT;
        }
        if (aligns)
            return p;
    }
    *regresses = 0;
    return -1;
}

/* ---- the student's side ---- */

static kd_status refuse_tap(const kd_pair *p, const kd_model_taps *taps, const char *student, kd_err *err) {
    char list[400] = "";
    int grid = kd_pair_is_grid(p);
    for (int i = 0; i < taps->maps; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), ", %s", taps->tap[i].name);
    return kd_fail(err, KD_EUSAGE, "pair %s: \"%s\" isn't a feature of %s that can learn %s; it has %s%s", p->name, p->tap, student, grid ? "patches" : "one vector",
                   grid ? "map" : "cls, pooled, mean", list);
}

/* The feature that a pair reads. */
static kd_status tap_of(kd_graph *g, const kd_pair *p, const kd_model_taps *taps, const char *student, kd_val *x, kd_err *err) {
    int grid = kd_pair_is_grid(p);
    const kd_model_tap *t = kd_model_tap_find(taps, p->tap);
    if (!grid && strcmp(p->tap, "cls") == 0)
        *x = taps->cls;
    else if (!grid && strcmp(p->tap, "pooled") == 0)
        *x = taps->pooled;
    else if (strcmp(p->tap, "map") == 0 || (!grid && strcmp(p->tap, "mean") == 0))
        *x = grid ? taps->map : kd_graph_mean_tokens(g, taps->map);
    else if (t != NULL)
        *x = grid ? t->val : kd_graph_mean_tokens(g, t->val);
    else
        return refuse_tap(p, taps, student, err);
    return KD_OK;
}

kd_status kd_pair_map(const kd_pair *p, const kd_model_taps *taps, const char *student, int *h, int *w, kd_err *err) {
    const kd_model_tap *t = kd_model_tap_find(taps, p->tap);
    int last = strcmp(p->tap, "map") == 0;
    *h = *w = 0;
    if (!kd_pair_is_grid(p))
        return KD_OK;
    if (!last && t == NULL)
        return refuse_tap(p, taps, student, err);
    *h = last ? taps->map_h : t->h;
    *w = last ? taps->map_w : t->w;
    return KD_OK;
}

static const char *part(char name[2 * KD_TERM_NAME], const kd_pair *p, const char *what) {
    snprintf(name, 2 * KD_TERM_NAME, KD_HEAD_PREFIX "%s.%s", p->name, what);
    return name;
}

static kd_val head(kd_graph *g, kd_val x, const kd_pair *p, int width) {
    char name[2 * KD_TERM_NAME];
    switch (p->head) {
    case KD_HEAD_NORM_LINEAR:
        x = kd_graph_layer_norm(g, x, part(name, p, "norm"), HEAD_NORM_EPS);
        return kd_graph_linear(g, x, part(name, p, "linear"), width, 1);
    case KD_HEAD_LINEAR:
        return kd_graph_linear(g, x, part(name, p, "linear"), width, 1);
    case KD_HEAD_MLP:
        x = kd_graph_linear(g, x, part(name, p, "fc1"), p->hidden, 1);
        x = kd_graph_act(g, x, KD_ACT_RELU);
        return kd_graph_linear(g, x, part(name, p, "fc2"), width, 1);
    case KD_HEAD_MLP_GELU:
        x = kd_graph_linear(g, x, part(name, p, "fc1"), p->hidden, 1);
        x = kd_graph_layer_norm(g, x, part(name, p, "norm"), HEAD_NORM_EPS);
        x = kd_graph_act(g, x, KD_ACT_GELU);
        return kd_graph_linear(g, x, part(name, p, "fc2"), width, 1);
    }
    return x;
}

/* ---- pairs and terms ---- */

/* Prediction and target of a pair, as its terms read them. square: of adjoint targets. */
typedef struct sides {
    kd_val pred, target, square;
    int adjoint;
} sides;

static kd_val input(kd_graph *g, const kd_pair *p, const char *suffix, int rank, const int64_t *shape) {
    char name[2 * KD_TERM_NAME];
    snprintf(name, sizeof name, "target.%s%s", p->name, suffix);
    return kd_graph_input(g, name, rank, shape);
}

/* The last steps of either side: the output's name, unit lengths. */
static sides finish(kd_graph *g, const kd_pair *p, sides s) {
    char name[2 * KD_TERM_NAME];
    s.pred = kd_graph_as_f32(g, s.pred);
    snprintf(name, sizeof name, "pred.%s", p->name);
    kd_graph_output(g, s.pred, name);
    if (p->scaling == KD_SCALING_UNIT) {
        s.pred = kd_graph_l2_normalize(g, s.pred);
        s.target = kd_graph_l2_normalize(g, s.target);
    }
    return s;
}

static kd_status vector_pair(kd_graph *g, const kd_pair *p, const kd_model_taps *taps, const kd_pair_target *t, const char *student, sides *s, kd_err *err) {
    int64_t shape[1] = {p->classes > 0 ? p->classes : t->width};
    kd_val x;
    KD_TRY(tap_of(g, p, taps, student, &x, err));
    *s = (sides){.pred = head(g, x, p, (int)shape[0]), .target = input(g, p, "", 1, shape)};
    *s = finish(g, p, *s);
    return KD_OK;
}

static kd_status grid_pair(kd_graph *g, const kd_pair *p, const kd_model_taps *taps, const kd_pair_target *t, const char *student, sides *s, kd_err *err) {
    int full = t->form.kind == KD_TARGET_FULL, h, w;
    int64_t shape[3] = {full ? t->grid_h : t->form.h, full ? t->grid_w : t->form.w, t->width}, one = 1;
    kd_val x;
    KD_TRY(tap_of(g, p, taps, student, &x, err));
    KD_TRY(kd_pair_map(p, taps, student, &h, &w, err));
    *s = (sides){.pred = head(g, x, p, t->width), .adjoint = t->form.kind == KD_TARGET_ADJOINT};
    KD_ASSERT(!s->adjoint || (h == shape[0] && w == shape[1]));
    s->pred = kd_graph_resize_bilinear(g, s->pred, (int)shape[0], (int)shape[1]);
    s->target = input(g, p, "", 3, shape);
    if (s->adjoint)
        s->square = input(g, p, ".square", 1, &one);
    *s = finish(g, p, *s);
    return KD_OK;
}

static void add_term(kd_graph *g, const kd_term *t, const sides *s, const kd_pair_target *to, float weight) {
    char name[2 * KD_TERM_NAME];
    snprintf(name, sizeof name, "loss.%s", t->name);
    switch (t->kind) {
    case KD_TERM_MSE:
        if (s->adjoint)
            kd_graph_mse_adjoint(g, s->pred, s->target, s->square, to->grid_h, to->grid_w, weight, name);
        else
            kd_graph_mse(g, s->pred, s->target, weight, name);
        break;
    case KD_TERM_COSINE:
        kd_graph_cosine(g, s->pred, s->target, weight, name);
        break;
    case KD_TERM_SMOOTH_L1:
        kd_graph_smooth_l1(g, s->pred, s->target, (float)t->beta, weight, name);
        break;
    case KD_TERM_KL_QUEUE:
        kd_graph_kl_queue(g, s->pred, s->target, t->queue_rows, (float)t->temperature, weight, name);
        break;
    case KD_TERM_KL_INTRA:
        kd_graph_kl_intra(g, s->pred, s->target, (float)t->temperature, weight, name);
        break;
    case KD_TERM_GRAM:
        kd_graph_gram(g, s->pred, s->target, weight, name);
        break;
    case KD_TERM_KL_LOGITS:
        kd_graph_kl_logits(g, s->pred, s->target, (float)t->temperature, weight, name);
        break;
    case KD_TERM_KOLEO:
        kd_graph_koleo(g, s->pred, weight, name);
        break;
    case KD_TERM_KINDS:
        break;
    }
}

kd_status kd_loss_build(kd_graph *g, const kd_model_taps *taps, const kd_loss *l, const kd_pair_target *target, double share, const char *student, kd_err *err) {
    sides s[KD_MAX_PAIRS];
    kd_graph_set_init(g, KD_INIT_TRUNC_NORMAL_02);
    for (int i = 0; i < l->pairs; i++)
        KD_TRY((kd_pair_is_grid(&l->pair[i]) ? grid_pair : vector_pair)(g, &l->pair[i], taps, &target[i], student, &s[i], err));
    for (int i = 0; i < l->terms; i++)
        add_term(g, &l->term[i], &s[l->term[i].pair], &target[l->term[i].pair], (float)(l->term[i].weight * share));
    return KD_OK;
}
