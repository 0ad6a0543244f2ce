#include "train/loss_named.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One side, CLS or patches, of a named loss: up to two terms on one pair. */
typedef struct side {
    const char *name, *tap;
    double weight;         /* unless the user says another */
    kd_term_kind kind[2];
    double share[2];       /* of the weight; 0: no second term. SHARE: --cosine-share and the rest */
} side;

typedef struct named {
    const char *name;
    kd_scaling scaling;
    kd_head head;
    side cls, patch;
    int last_two; /* learns the last two layers that are stored */
} named;

#define SHARE -1.0
#define ONE(kind) {kind}, {1, 0}
static const named known[] = {
    {"std-mse", KD_SCALING_STANDARD, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, ONE(KD_TERM_MSE)}, {"patch", "map", 1, ONE(KD_TERM_MSE)}, 0},
    {"mse", KD_SCALING_RAW, KD_HEAD_LINEAR, {"cls", "pooled", 0, ONE(KD_TERM_MSE)}, {"patch", "map", 1, ONE(KD_TERM_MSE)}, 1},
    {"kl-queue", KD_SCALING_RAW, KD_HEAD_LINEAR, {"global", "pooled", 1, ONE(KD_TERM_KL_QUEUE)}, {"local", "map", 0, ONE(KD_TERM_KL_INTRA)}, 0},
    {"kl-queue+intra", KD_SCALING_RAW, KD_HEAD_LINEAR, {"global", "pooled", 1, ONE(KD_TERM_KL_QUEUE)}, {"local", "map", 1, ONE(KD_TERM_KL_INTRA)}, 0},
    {"mse-normalized", KD_SCALING_UNIT, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, ONE(KD_TERM_MSE)}, {"patch", "map", 0.5, ONE(KD_TERM_MSE)}, 0},
    {"cosine", KD_SCALING_RAW, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, ONE(KD_TERM_COSINE)}, {"patch", "map", 1, ONE(KD_TERM_COSINE)}, 0},
    {"cos-sl1", KD_SCALING_STANDARD, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, {KD_TERM_COSINE, KD_TERM_SMOOTH_L1}, {SHARE, SHARE}},
     {"patch", "map", 1, {KD_TERM_COSINE, KD_TERM_SMOOTH_L1}, {SHARE, SHARE}}, 0},
    {"radio", KD_SCALING_RAW, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, ONE(KD_TERM_COSINE)}, {"patch", "map", 1, {KD_TERM_COSINE, KD_TERM_SMOOTH_L1}, {0.9, 0.1}}, 0},
    {"unic", KD_SCALING_STANDARD, KD_HEAD_NORM_LINEAR, {"cls", "cls", 0.5, {KD_TERM_COSINE, KD_TERM_SMOOTH_L1}, {0.5, 0.5}},
     {"patch", "map", 0.5, {KD_TERM_COSINE, KD_TERM_SMOOTH_L1}, {0.5, 0.5}}, 0},
    {"smooth-l1", KD_SCALING_STANDARD, KD_HEAD_NORM_LINEAR, {"cls", "cls", 1, ONE(KD_TERM_SMOOTH_L1)}, {"patch", "map", 1, ONE(KD_TERM_SMOOTH_L1)}, 0},
    {"gram", KD_SCALING_RAW, KD_HEAD_LINEAR, {"cls", "cls", 0, ONE(KD_TERM_MSE)}, {"patch", "map", 1, ONE(KD_TERM_GRAM)}, 0},
    {"kl-logits", KD_SCALING_RAW, KD_HEAD_LINEAR, {"logits", "pooled", 1, ONE(KD_TERM_KL_LOGITS)}, {"patch", "map", 0, ONE(KD_TERM_MSE)}, 0},
    {"none", KD_SCALING_STANDARD, KD_HEAD_NORM_LINEAR, {"cls", "cls", 0, ONE(KD_TERM_MSE)}, {"patch", "map", 0, ONE(KD_TERM_MSE)}, 0},
};

static const char *const head_names[] = {"norm-linear", "linear", "mlp", "mlp-gelu"};
static const char *const scaling_names[] = {"standard", "raw", "unit"};

static int index_of(const char *name, const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return (int)i;
    return -1;
}

/* What all of it reads. */
typedef struct build {
    kd_loss *loss;
    const kd_train_config *c;
    const kd_loss_offer *offer;
    kd_err *err;
} build;

int kd_loss_queue_rows(size_t images) {
    static const struct {
        size_t below;
        int rows;
    } table[] = {{50, 16}, {100, 32}, {250, 64}, {500, 128}, {1000, 256}, {2000, 512}, {4000, 1024}, {10000, 2048}, {20000, 4096}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (images < table[i].below)
            return table[i].rows;
    return 8192;
}

/* A number above `above`, whole text. */
static int number(const char *text, double above, double *out) {
    char *end = NULL;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && *out > above && *out <= 1e6;
}

/* pair: "--pair ..." when that says it, NULL for --queue-size. */
static kd_status queue_rows(const build *b, const char *text, const char *pair, int *rows) {
    const char *where = pair != NULL ? pair : "", *option = pair != NULL ? ": queue-size" : "--queue-size";
    double v;
    *rows = kd_loss_queue_rows(b->offer->images);
    if (strcmp(text, "auto") == 0)
        return KD_OK;
    if (!number(text, 0, &v) || v != floor(v))
        return kd_fail(b->err, KD_EUSAGE, "%s%s %s: expected a whole number from 1 on, or auto", where, option, text);
    if (v >= (double)b->offer->images)
        return kd_fail(b->err, KD_EUSAGE, "%s%s %s: %s has %zu images, and a queue must be shorter than the data set, or every image would meet itself in it; give a smaller one, or auto (%d)", where, option,
                       text, b->offer->cache, b->offer->images, *rows);
    *rows = (int)v;
    return KD_OK;
}

/* ---- pairs and terms, checked ---- */

static kd_status add_pair(const build *b, const kd_pair *p, int from_pair_option, int *at) {
    const kd_recipe *r = b->offer->recipe;
    if (!kd_recipe_has(r, p->feature)) {
        const char *name = kd_feature_name(p->feature);
        char without[40] = "leave the pair out";
        if (!from_pair_option)
            snprintf(without, sizeof without, "give --%s-weight 0", name);
        return kd_fail(b->err, KD_EUSAGE, "%s: the cache holds no %s features, which pair %s of loss %s learns; %s, or make a cache that has them with kd-precompute --features", b->offer->cache, name,
                       p->name, b->loss->name, without);
    }
    if (kd_recipe_layer_index(r, p->layer) < 0)
        return kd_fail(b->err, KD_EUSAGE, "pair %s: %s holds no layer %u; kd-cache info lists those that it has", p->name, b->offer->cache, p->layer);
    for (int i = 0; i < b->loss->pairs; i++)
        if (strcmp(b->loss->pair[i].name, p->name) == 0)
            return kd_fail(b->err, KD_EUSAGE, "two pairs are called %s; add name=... to one", p->name);
    *at = kd_loss_add_pair(b->loss, p);
    return *at >= 0 ? KD_OK : kd_fail(b->err, KD_EUSAGE, "loss %s has more than %d pairs", b->loss->name, KD_MAX_PAIRS);
}

static kd_status add_term(const build *b, const kd_term *t) {
    const kd_pair *p = &b->loss->pair[t->pair];
    const kd_term_facts *f = kd_term_facts_of(t->kind);
    if (kd_pair_is_grid(p) ? !f->grids : !f->vectors)
        return kd_fail(b->err, KD_EUSAGE, "pair %s: loss %s is for %s, and its teacher feature is %s", p->name, f->name, f->grids ? "patches" : "features that are one vector",
                       kd_feature_name(p->feature));
    if (t->kind == KD_TERM_KOLEO && b->c->batch_size < 2)
        return kd_fail(b->err, KD_EUSAGE, "koleo spreads the images of a batch, and --batch-size is %lld; give at least 2, or leave koleo out", (long long)b->c->batch_size);
    for (int i = 0; i < b->loss->terms; i++)
        if (strcmp(b->loss->term[i].name, t->name) == 0)
            return kd_fail(b->err, KD_EUSAGE, "two terms are called %s; name each loss of a pair once, and give pairs names that differ", t->name);
    return kd_loss_add_term(b->loss, t) >= 0 ? KD_OK : kd_fail(b->err, KD_EUSAGE, "loss %s has more than %d terms", b->loss->name, KD_MAX_TERMS);
}

/* name of the pair, or pair_kind where it has several terms. */
static void name_term(kd_term *t, const kd_pair *p, int several) {
    snprintf(t->name, sizeof t->name, "%.30s%s%s", p->name, several ? "_" : "", several ? kd_term_facts_of(t->kind)->name : "");
    for (char *c = t->name; *c != '\0'; c++)
        *c = *c == '-' ? '_' : *c;
}

static kd_status fill_term(const build *b, kd_term *t) {
    const char *temperature = b->c->temperature;
    t->beta = b->c->beta;
    t->temperature = t->kind == KD_TERM_KL_LOGITS ? 1 : 0.07;
    if (strcmp(temperature, "auto") != 0 && !number(temperature, 0, &t->temperature))
        return kd_fail(b->err, KD_EUSAGE, "--temperature %s: expected a number above 0, or auto", temperature);
    return queue_rows(b, b->c->queue_size, NULL, &t->queue_rows); /* checked whatever the kind is, as the temperature is */
}

/* ---- the named ones ---- */

/* A weight, or the loss's own for auto. */
static kd_status weight_of(const build *b, const char *text, const char *option, double automatic, double *w) {
    *w = automatic;
    if (strcmp(text, "auto") == 0 || number(text, -1e-300, w))
        return *w >= 0 ? KD_OK : kd_fail(b->err, KD_EUSAGE, "--%s %s: expected a number from 0 on, or auto", option, text);
    return kd_fail(b->err, KD_EUSAGE, "--%s %s: expected a number from 0 on, or auto", option, text);
}

/* --head, or for auto what the loss is defined with. */
static kd_head head_of(const build *b, kd_head automatic) {
    int chosen = index_of(b->c->head, head_names, sizeof head_names / sizeof head_names[0]);
    return chosen >= 0 ? (kd_head)chosen : automatic;
}

static kd_status add_side(const build *b, const named *n, const side *s, kd_feature feature, uint16_t layer, const char *suffix, double weight) {
    kd_pair p = {.feature = feature, .layer = layer, .scaling = n->scaling, .head = head_of(b, n->head), .hidden = (int)b->c->head_hidden};
    int at;
    snprintf(p.name, sizeof p.name, "%s%s", s->name, suffix);
    snprintf(p.tap, sizeof p.tap, "%s", s->tap);
    if (s->kind[0] == KD_TERM_KL_LOGITS) {
        if (b->offer->classes == 0)
            return kd_fail(b->err, KD_EUSAGE, "--loss kl-logits compares class probabilities and needs --teacher-head FILE with the teacher's classifier: weight [classes, width] and bias [classes]");
        p.classes = b->offer->classes;
    }
    KD_TRY(add_pair(b, &p, 0, &at));
    for (int i = 0; i < 2 && s->share[i] != 0; i++) {
        kd_term t = {.kind = s->kind[i], .pair = at};
        double share = s->share[i] == SHARE ? (i == 0 ? b->c->cosine_share : 1 - b->c->cosine_share) : s->share[i];
        t.weight = weight * share;
        name_term(&t, &p, s->share[1] != 0);
        KD_TRY(fill_term(b, &t));
        if (t.weight > 0)
            KD_TRY(add_term(b, &t));
    }
    return KD_OK;
}

/* Layers that "the last two" are: those with the two lowest numbers. One where they are joined, or no more are stored. */
static int last_layers(const build *b, uint16_t layer[2]) {
    const kd_recipe *r = b->offer->recipe;
    layer[0] = (uint16_t)b->c->teacher_layer;
    if (r->concat || r->layers < 2 || layer[0] != r->layer[0])
        return 1;
    layer[1] = r->layer[1];
    return 2;
}

static kd_status add_named(const build *b, const named *n) {
    double cls, patch;
    uint16_t layer[2] = {(uint16_t)b->c->teacher_layer};
    int layers = n->last_two ? last_layers(b, layer) : 1;
    char suffix[16] = "";
    KD_TRY(weight_of(b, b->c->cls_weight, "cls-weight", n->cls.weight, &cls));
    KD_TRY(weight_of(b, b->c->patch_weight, "patch-weight", n->patch.weight, &patch));
    if (cls > 0)
        KD_TRY(add_side(b, n, &n->cls, KD_FEATURE_CLS, layer[0], "", cls));
    for (int i = 0; i < layers && patch > 0; i++) {
        if (layers > 1)
            snprintf(suffix, sizeof suffix, "_%u", layer[i]);
        KD_TRY(add_side(b, n, &n->patch, KD_FEATURE_PATCH, layer[i], suffix, patch / layers));
    }
    if (n->last_two && patch > 0 && layers == 1 && !b->offer->recipe->concat)
        snprintf(b->loss->warning, sizeof b->loss->warning,
                 "--loss %s: LightlyTrain learns the last two blocks; of those that %.100s holds, layer %u is learnt alone (both: a cache of kd-precompute --layers 1,2, and no --teacher-layer but 1)",
                 n->name, b->offer->cache, layer[0]);
    return KD_OK;
}

/* --gram-weight, --koleo-weight: terms on a prediction that the loss has. */
static kd_status add_extra(const build *b, kd_term_kind kind, double weight) {
    const kd_term_facts *f = kd_term_facts_of(kind);
    kd_term t = {.kind = kind, .weight = weight, .pair = -1};
    if (!(weight > 0))
        return KD_OK;
    for (int i = b->loss->pairs - 1; i >= 0; i--)
        if (kd_pair_is_grid(&b->loss->pair[i]) ? f->grids : f->vectors)
            t.pair = i;
    if (t.pair < 0)
        return kd_fail(b->err, KD_EUSAGE, "--%s-weight %g: loss %s learns no %s to add it to", f->name, weight, b->loss->name, f->grids ? "patches" : "feature that is one vector");
    snprintf(t.name, sizeof t.name, "%s", f->name);
    KD_TRY(fill_term(b, &t));
    return add_term(b, &t);
}

/* ---- --pair ---- */

/* What a --pair says beside the pair itself. */
typedef struct pair_text {
    const char *where; /* "--pair ..." */
    const char *losses;
    double weight, temperature, beta;
    int queue_rows; /* 0: as --queue-size says */
} pair_text;

static kd_status parse_feature(const build *b, kd_pair *p, const pair_text *x, char *value) {
    char *layer = strchr(value, ':');
    double v = (double)b->c->teacher_layer;
    if (layer != NULL)
        *layer++ = '\0';
    if (layer != NULL && (!number(layer, 0, &v) || v != floor(v) || v > UINT16_MAX))
        return kd_fail(b->err, KD_EUSAGE, "%s: teacher layer \"%s\" isn't a whole number from 1 (the last) on", x->where, layer);
    p->layer = (uint16_t)v;
    if (strcmp(value, "cls") == 0)
        p->feature = KD_FEATURE_CLS;
    else if (strcmp(value, "patch") == 0)
        p->feature = KD_FEATURE_PATCH;
    else if (strcmp(value, "mean") == 0)
        p->feature = KD_FEATURE_MEAN;
    else
        return kd_fail(b->err, KD_EUSAGE, "%s: teacher feature \"%s\" isn't cls, patch or mean (and :LAYER behind it)", x->where, value);
    return KD_OK;
}

static kd_status parse_choice(const build *b, const pair_text *x, const char *key, const char *value, const char *const *names, size_t n, int *out) {
    const char *near = kd_nearest_name(value, names, n);
    *out = index_of(value, names, n);
    if (*out >= 0)
        return KD_OK;
    return kd_fail(b->err, KD_EUSAGE, "%s: %s \"%s\" is unknown%s%s; it is one of %s, %s, %s%s%s", x->where, key, value, near != NULL ? ", did you mean " : "", near != NULL ? near : "", names[0], names[1],
                   names[2], n > 3 ? ", " : "", n > 3 ? names[3] : "");
}

static kd_status parse_number(const build *b, const pair_text *x, const char *key, const char *value, double *out) {
    return number(value, 0, out) ? KD_OK : kd_fail(b->err, KD_EUSAGE, "%s: %s \"%s\" isn't a number above 0", x->where, key, value);
}

static kd_status parse_key(const build *b, kd_pair *p, pair_text *x, const char *key, char *value) {
    static const char *const keys[] = {"name", "student", "teacher", "loss", "weight", "scaling", "head", "hidden", "temperature", "beta", "queue-size"};
    int choice = 0;
    double hidden = 0;
    kd_status status = KD_OK;
    switch (index_of(key, keys, sizeof keys / sizeof keys[0])) {
    case 0:
        snprintf(p->name, sizeof p->name, "%s", value);
        return strlen(value) < 30 && value[0] != '\0' && strncmp(value, "recipe_", 7) != 0 && strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == strlen(value)
                   ? KD_OK
                   : kd_fail(b->err, KD_EUSAGE, "%s: name \"%s\" must be 1 to 29 letters, digits or '_', and not begin with recipe_, as other metrics do", x->where, value);
    case 1:
        if (snprintf(p->tap, sizeof p->tap, "%s", value) >= (int)sizeof p->tap)
            return kd_fail(b->err, KD_EUSAGE, "%s: no student has a feature called \"%s\"", x->where, value);
        return KD_OK;
    case 2: return parse_feature(b, p, x, value);
    case 3: x->losses = value; return KD_OK;
    case 4: return parse_number(b, x, key, value, &x->weight);
    case 5:
        status = parse_choice(b, x, key, value, scaling_names, sizeof scaling_names / sizeof scaling_names[0], &choice);
        p->scaling = (kd_scaling)choice;
        return status;
    case 6:
        status = parse_choice(b, x, key, value, head_names, sizeof head_names / sizeof head_names[0], &choice);
        p->head = (kd_head)choice;
        return status;
    case 7:
        KD_TRY(parse_number(b, x, key, value, &hidden));
        p->hidden = (int)hidden;
        return hidden >= 1 && hidden <= 65536 && hidden == floor(hidden) ? KD_OK : kd_fail(b->err, KD_EUSAGE, "%s: hidden \"%s\" isn't a whole number from 1 to 65536", x->where, value);
    case 8: return parse_number(b, x, key, value, &x->temperature);
    case 9: return parse_number(b, x, key, value, &x->beta);
    case 10: return queue_rows(b, value, x->where, &x->queue_rows);
    default: break;
    }
    const char *near = kd_nearest_name(key, keys, sizeof keys / sizeof keys[0]);
    return kd_fail(b->err, KD_EUSAGE, "%s: unknown key \"%s\"%s%s", x->where, key, near != NULL ? "; did you mean " : "", near != NULL ? near : "");
}

/* "cosine:0.9+smooth-l1:0.1" */
static kd_status add_pair_terms(const build *b, int at, const pair_text *x, char *losses) {
    const kd_pair *p = &b->loss->pair[at];
    int several = strchr(losses, '+') != NULL;
    for (char *one; (one = strsep(&losses, "+")) != NULL;) {
        char *share = strchr(one, ':');
        double part = 1;
        if (share != NULL)
            *share++ = '\0';
        if (share != NULL)
            KD_TRY(parse_number(b, x, "share", share, &part));
        int kind = kd_term_kind_find(one);
        if (kind < 0 || kind == KD_TERM_KL_LOGITS)
            return kd_fail(b->err, KD_EUSAGE, "%s: loss \"%s\" isn't one of mse, cosine, smooth-l1, kl-queue, kl-intra, gram, koleo", x->where, one);
        kd_term t = {.kind = (kd_term_kind)kind, .pair = at, .weight = x->weight * part};
        name_term(&t, p, several);
        KD_TRY(fill_term(b, &t));
        t.temperature = x->temperature > 0 ? x->temperature : t.temperature;
        t.beta = x->beta > 0 ? x->beta : t.beta;
        t.queue_rows = x->queue_rows > 0 ? x->queue_rows : t.queue_rows;
        KD_TRY(add_term(b, &t));
    }
    return KD_OK;
}

static kd_status add_explicit(const build *b, const char *text, size_t number_of, double *sum) {
    char copy[600], losses[200], where[640], *rest = copy;
    pair_text x = {.where = where, .losses = "mse", .weight = 1};
    kd_pair p = {.tap = "", .feature = KD_FEATURE_PATCH, .layer = (uint16_t)b->c->teacher_layer, .scaling = KD_SCALING_STANDARD, .head = head_of(b, KD_HEAD_NORM_LINEAR), .hidden = (int)b->c->head_hidden};
    int at;
    snprintf(where, sizeof where, "--pair %.600s", text);
    snprintf(p.name, sizeof p.name, "pair%zu", number_of);
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return kd_fail(b->err, KD_EUSAGE, "--pair %.60s...: is longer than %zu characters", text, sizeof copy - 1);
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(item, '=');
        if (value == NULL)
            return kd_fail(b->err, KD_EUSAGE, "%s: \"%s\" isn't key=value", where, item);
        *value++ = '\0';
        KD_TRY(parse_key(b, &p, &x, item, value));
    }
    if (p.tap[0] == '\0')
        snprintf(p.tap, sizeof p.tap, "%s", kd_pair_is_grid(&p) ? "map" : "cls");
    if (snprintf(losses, sizeof losses, "%s", x.losses) >= (int)sizeof losses)
        return kd_fail(b->err, KD_EUSAGE, "%s: too many losses", where);
    KD_TRY(add_pair(b, &p, 1, &at));
    KD_TRY(add_pair_terms(b, at, &x, losses));
    *sum += x.weight;
    return KD_OK;
}

/* ---- all of it ---- */

kd_status kd_loss_from_config(kd_loss *out, const kd_train_config *c, const kd_loss_offer *offer, kd_err *err) {
    build b = {.loss = out, .c = c, .offer = offer, .err = err};
    size_t n = 0;
    double sum = 0;
    *out = (kd_loss){0};
    while (strcmp(known[n].name, c->loss) != 0) {
        n++;
        KD_ASSERT(n < sizeof known / sizeof known[0]); /* the option has these choices alone */
    }
    snprintf(out->name, sizeof out->name, "%s", c->loss);
    KD_TRY(add_named(&b, &known[n]));
    for (size_t i = 0; i < c->pairs.count; i++)
        KD_TRY(add_explicit(&b, c->pairs.item[i], i + 1, &sum));
    if (c->pairs.count > 0 && strcmp(c->loss, "none") == 0 && fabs(sum - 1) > 1e-6)
        snprintf(out->warning, sizeof out->warning, "the weights of the pairs sum to %g and not to 1: the scale of the loss and the clipping of gradients follow them", sum);
    KD_TRY(add_extra(&b, KD_TERM_GRAM, c->gram_weight));
    KD_TRY(add_extra(&b, KD_TERM_KOLEO, c->koleo_weight));
    if (out->terms == 0)
        return kd_fail(err, KD_EUSAGE, "--loss %s with --cls-weight %s and --patch-weight %s leaves nothing to learn; give one of them a weight, or a --pair", c->loss, c->cls_weight, c->patch_weight);
    return KD_OK;
}

const char *kd_loss_text(const kd_loss *l, char *buf, size_t cap) {
    size_t used = (size_t)snprintf(buf, cap, "%s:", l->name);
    for (int i = 0; i < l->terms && used < cap; i++)
        used += (size_t)snprintf(buf + used, cap - used, "%s %s %.3g", i > 0 ? "," : "", l->term[i].name, l->term[i].weight);
    return buf;
}
