/* The registry: names and weight files to models. */
#include <stdio.h>
#include <string.h>

#include "common/base/options.h"
#include "kernels/nn/model_builders.h"

enum { MAX_WIDTH = 8192, MAX_DEPTH = 1024, HEAD_WIDTH = 64 };

static const kd_model_family *const families[] = {
    &kd_resnet_family,
    &kd_mobilenet_family,
    &kd_convnext_family,
    &kd_yolo_family,
};
enum { FAMILIES = sizeof families / sizeof *families };

static const char free_vit_name[] = "dinov2_wW_dD"; /* as it is shown */

const kd_model_family *kd_model_family_of(const kd_model_info *m) {
    for (int i = 0; i < FAMILIES; i++)
        if (families[i]->kind == m->kind)
            return families[i];
    return NULL;
}

const char *kd_model_students(size_t i) {
    const char *const *vits;
    size_t count = kd_vit_names(&vits);
    kd_vit_spec s;
    for (int f = 0; f < FAMILIES; i -= families[f++]->count)
        if (i < families[f]->count)
            return families[f]->entries[i].name;
    for (size_t k = 0; k < count; k++)
        if (kd_vit_named(vits[k], &s) && s.family != KD_VIT_DINOV3 && i-- == 0)
            return vits[k];
    return NULL;
}

/* ---- by name ---- */

static void set_cnn(kd_model_info *m, const kd_model_family *f, const kd_model_entry *e) {
    *m = (kd_model_info){.kind = f->kind, .config = e->config, .width = e->width, .multiple = f->multiple, .smallest = f->smallest, .usual = f->usual, .branches = e->branches, .block_branches = 1, .norm = f->norm,
                          .library = f->library};
    snprintf(m->name, sizeof m->name, "%s", e->name);
    memcpy(m->mean, f->mean, sizeof m->mean);
    memcpy(m->std, f->std, sizeof m->std);
}

/* The rest of a ViT's entry, from its spec. */
static void set_vit(kd_model_info *m, const kd_vit_spec *spec, const char *name) {
    *m = (kd_model_info){.kind = KD_MODEL_VIT, .vit = *spec, .width = spec->width, .multiple = spec->patch, .smallest = spec->patch, .usual = 16 * spec->patch, .branches = 2 * spec->depth, .block_branches = 2, .norm = KD_MODEL_LAYER_NORM,
                         .one_size = spec->periods == 0, .library = kd_vit_family_name(spec->family)};
    if (spec->family == KD_VIT_TIMM)
        m->usual = spec->pos_grid * spec->patch;
    snprintf(m->name, sizeof m->name, "%s", name);
    memcpy(m->mean, spec->mean, sizeof m->mean);
    memcpy(m->std, spec->std, sizeof m->std);
}

/* "dinov2_w128_d6": 1 and the numbers, or 0. */
static int parse_free_vit(const char *name, int *width, int *depth) {
    int used = 0;
    if (sscanf(name, "dinov2_w%5d_d%5d%n", width, depth, &used) != 2 || name[used] != 0)
        return 0;
    char again[64];
    snprintf(again, sizeof again, "dinov2_w%d_d%d", *width, *depth); /* no signs, blanks or leading zeros */
    return strcmp(again, name) == 0;
}

/* A ViT in DINOv2 layout, of any size: the small one, changed. */
static void set_free_vit(kd_model_info *m, const char *name, int width, int depth) {
    kd_vit_spec s;
    int64_t d = width;
    int known = kd_vit_named("dinov2_vits14", &s);
    KD_ASSERT(known);
    s.width = width;
    s.depth = depth;
    s.heads = width / HEAD_WIDTH;
    s.ffn_hidden = 4 * width;
    s.parameters = depth * (12 * d * d + 15 * d) + (5 + 3 * s.patch * s.patch + (int64_t)s.pos_grid * s.pos_grid) * d; /* 5: class token, its position, patch bias, norm */
    snprintf(s.name, sizeof s.name, "%s", name);
    set_vit(m, &s, name);
}

/* Sets m to the CNN of this name; 0 when there is none. */
static int find_cnn(kd_model_info *m, const char *name) {
    for (int f = 0; f < FAMILIES; f++)
        for (size_t i = 0; i < families[f]->count; i++)
            if (strcmp(families[f]->entries[i].name, name) == 0) {
                set_cnn(m, families[f], &families[f]->entries[i]);
                return 1;
            }
    return 0;
}

static kd_status unknown_name(const char *name, kd_err *err) {
    enum { MOST = 128 };
    const char *const *vits, *names[MOST], *near;
    size_t vit_count = kd_vit_names(&vits), count = 0;
    names[count++] = free_vit_name;
    for (int f = 0; f < FAMILIES; f++)
        for (size_t i = 0; i < families[f]->count && count < MOST; i++)
            names[count++] = families[f]->entries[i].name;
    for (size_t i = 0; i < vit_count && count < MOST; i++)
        names[count++] = vits[i];
    near = kd_nearest_name(name, names, count);
    return kd_fail(err, KD_EUSAGE, "unknown model \"%s\"; %s%s (dinov2_wW_dD: width W, depth D, such as dinov2_w192_d6; kd-train --list-students lists those that can be trained)", name,
                   near ? "the nearest name is " : "names are resnet18, vit_tiny_patch16_224, dinov2_vits14, ...", near ? near : "");
}

static kd_status find_by_name(kd_model_info *m, const char *name, kd_err *err) {
    int width, depth;
    kd_vit_spec s;
    if (find_cnn(m, name))
        return KD_OK;
    if (kd_vit_named(name, &s)) {
        set_vit(m, &s, name);
        return KD_OK;
    }
    if (!parse_free_vit(name, &width, &depth))
        return unknown_name(name, err);
    if (width < HEAD_WIDTH || width % HEAD_WIDTH || width > MAX_WIDTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": width %d isn't a multiple of %d between %d and %d", name, width, HEAD_WIDTH, HEAD_WIDTH, MAX_WIDTH);
    if (depth < 1 || depth > MAX_DEPTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": depth %d isn't between 1 and %d", name, depth, MAX_DEPTH);
    set_free_vit(m, name, width, depth);
    return KD_OK;
}

/* ---- CNNs in a file ---- */

int kd_model_file_has(const kd_weights *w, const char *prefix, const char *name, int rank, const int64_t *shape) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    int i = kd_weights_find(w, full);
    if (i < 0 || rank == 0)
        return i >= 0;
    kd_tensor t = kd_weights_info(w, i);
    return kd_shape_equal(t.shape, t.rank, shape, rank);
}

/* Bytes before the anchor in a tensor's name, where it ends in the anchor as whole parts; else -1. */
static int prefix_length(const char *name, const char *anchor) {
    size_t n = strlen(name), a = strlen(anchor);
    if (n < a || strcmp(name + n - a, anchor) != 0 || (n > a && name[n - a - 1] != '.') || n - a >= KD_MODEL_PREFIX)
        return -1;
    return (int)(n - a);
}

/* Of several models in one file the averaged one is meant: the teacher of self-distillation, the EMA of a training run. */
static int is_averaged(const char *prefix) {
    return strstr(prefix, "teacher") != NULL || strstr(prefix, "ema") != NULL;
}

/* Where the file holds a model of the family: found 0 when it doesn't. KD_EUSAGE: several, and none is the averaged one. */
static kd_status find_prefix(const kd_model_family *f, const kd_weights *w, char prefix[KD_MODEL_PREFIX], int *found, kd_err *err) {
    char other[KD_MODEL_PREFIX] = "";
    int rivals = 0;
    *found = 0;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        int n = prefix_length(name, f->anchor);
        char this[KD_MODEL_PREFIX];
        if (n < 0)
            continue;
        snprintf(this, sizeof this, "%.*s", n, name);
        if (*found && is_averaged(this) == is_averaged(prefix)) {
            rivals = 1;
            memcpy(other, this, sizeof other);
        } else if (!*found || is_averaged(this)) {
            rivals = 0;
            memcpy(prefix, this, KD_MODEL_PREFIX);
        }
        *found = 1;
    }
    if (rivals)
        return kd_fail(err, KD_EUSAGE, "%s holds several models, under \"%s\" and \"%s\"; save the one that is meant in a file of its own", kd_weights_path(w), prefix, other);
    return KD_OK;
}

static kd_status unknown_member(const kd_model_family *f, const kd_weights *w, const char *prefix, kd_err *err) {
    char names[256];
    size_t at = 0;
    names[0] = 0;
    for (size_t i = 0; i < f->count && at < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", f->entries[i].name);
    return kd_fail(err, KD_EUSAGE, "%s has %s%s as %s's networks of this kind have, but it is none of %s; students are listed by kd-train --list-students", kd_weights_path(w), prefix, f->anchor, f->library,
                   names);
}

/* The CNN that the file holds; *found 0 when it holds none of a known family. */
static kd_status find_cnn_in_file(kd_model_info *m, const kd_weights *w, int *found, kd_err *err) {
    char prefix[KD_MODEL_PREFIX] = "";
    *found = 0;
    for (int k = 0; k < FAMILIES; k++) {
        const kd_model_family *f = families[k];
        KD_TRY(find_prefix(f, w, prefix, found, err));
        if (!*found)
            continue;
        for (size_t i = 0; i < f->count; i++)
            if (f->matches(w, prefix, &f->entries[i])) {
                set_cnn(m, f, &f->entries[i]);
                memcpy(m->prefix, prefix, sizeof m->prefix);
                m->from_file = 1;
                return KD_OK;
            }
        return unknown_member(f, w, prefix, err);
    }
    return KD_OK;
}

/* ---- ViTs in a file ---- */

/* Equal but for the position grid, which is an image size, and what isn't in the weights (normalisation, layout). */
static int same_shape(const kd_vit_spec *a, const kd_vit_spec *b) {
    return a->family == b->family && a->width == b->width && a->depth == b->depth && a->heads == b->heads && a->patch == b->patch && a->ffn == b->ffn &&
           a->ffn_hidden == b->ffn_hidden && a->layer_scale == b->layer_scale && a->registers == b->registers;
}

/* A registered name for what a file holds, so that a model of another position grid is still called dinov2_vits14 and not "d384 depth12". */
static void name_of_spec(char name[64], const kd_vit_spec *s) {
    const char *const *vits;
    size_t count = kd_vit_names(&vits);
    kd_vit_spec known;
    kd_model_info free_vit;
    snprintf(name, 64, "%s", s->name);
    if (kd_vit_named(name, &known))
        return;
    for (size_t i = 0; i < count; i++)
        if (kd_vit_named(vits[i], &known) && same_shape(s, &known)) {
            snprintf(name, 64, "%s", vits[i]);
            return;
        }
    if (s->width % HEAD_WIDTH)
        return;
    set_free_vit(&free_vit, "", s->width, s->depth);
    if (same_shape(s, &free_vit.vit))
        snprintf(name, 64, "dinov2_w%d_d%d", s->width, s->depth);
}

static kd_status check_against_file(const kd_model_info *want, const kd_vit_spec *have, const char *have_name, const kd_weights *w, kd_err *err) {
    const kd_vit_spec *s = &want->vit;
    if (same_shape(s, have))
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "%s holds %s (%s, width %d, depth %d, patch %d, %d registers), not %s (%s, width %d, depth %d, patch %d, %d registers); give the matching name or auto",
                   kd_weights_path(w), have_name, kd_vit_family_name(have->family), have->width, have->depth, have->patch, have->registers, want->name,
                   kd_vit_family_name(s->family), s->width, s->depth, s->patch, s->registers);
}

/* Whether the normalisation is the family's usual one, because neither the file nor a sidecar says it. */
static int is_guess(const kd_vit_spec *s) {
    return strncmp(s->normalisation, "from ", 5) != 0;
}

static int same_normalisation(const kd_vit_spec *a, const kd_vit_spec *b) {
    return memcmp(a->mean, b->mean, sizeof a->mean) == 0 && memcmp(a->std, b->std, sizeof a->std) == 0;
}

static void set_normalisation(kd_vit_spec *s, const kd_vit_spec *from) {
    memcpy(s->mean, from->mean, sizeof s->mean);
    memcpy(s->std, from->std, sizeof s->std);
    s->normalisation = from->normalisation;
}

/* m: what the name says (unless any), then what the file holds. */
static kd_status set_from_file(kd_model_info *m, const char *name, int any, const kd_vit_spec *spec, const kd_weights *weights, kd_err *err) {
    char found[64];
    name_of_spec(found, spec);
    if (!any)
        KD_TRY(check_against_file(m, spec, found, weights, err));
    set_vit(m, spec, any ? found : name);
    m->from_file = 1;
    return KD_OK;
}

/* ---- both ---- */

kd_status kd_model_find(kd_model_info *m, const char *name, const kd_weights *weights, kd_err *err) {
    int any = strcmp(name, "auto") == 0, is_cnn = 0;
    kd_model_info held;
    kd_vit_spec spec;
    if (!any)
        KD_TRY(find_by_name(m, name, err));
    if (!weights && any)
        return kd_fail(err, KD_EUSAGE, "model \"auto\" is read from a weight file, and none was given; name the model or add the weights");
    if (!weights)
        return kd_model_check_student(m, err);
    KD_TRY(find_cnn_in_file(&held, weights, &is_cnn, err));
    if (is_cnn) {
        if (!any && strcmp(m->name, held.name) != 0)
            return kd_fail(err, KD_EUSAGE, "%s holds %s, not %s; give the matching name or auto", kd_weights_path(weights), held.name, name);
        *m = held;
        return KD_OK;
    }
    if (!any && m->kind != KD_MODEL_VIT)
        return kd_fail(err, KD_EUSAGE, "%s has no tensors of %s's %s (such as %s)", kd_weights_path(weights), m->library, name, kd_model_family_of(m)->anchor);
    KD_TRY(kd_vit_detect(weights, NULL, &spec, err));
    if (!any && spec.family == KD_VIT_TIMM && is_guess(&spec))
        set_normalisation(&spec, &m->vit);
    return set_from_file(m, name, any, &spec, weights, err);
}

kd_status kd_model_check_student(const kd_model_info *m, kd_err *err) {
    if (m->kind == KD_MODEL_VIT && m->vit.family == KD_VIT_DINOV3)
        return kd_fail(err, KD_EUSAGE, "%s can teach but isn't a student, because it couldn't be exported; choose a student such as dinov2_w192_d6, vit_small_patch16_224 or resnet18",
                       m->name);
    return KD_OK;
}

/* ---- teachers ---- */

static int is_auto(const char *text) {
    return text == NULL || strcmp(text, "auto") == 0;
}

static kd_status choose_positions(kd_vit_spec *s, const char *text, kd_err *err) {
    if (is_auto(text))
        return KD_OK;
    if (!kd_pos_profile_parse(text, &s->positions))
        return kd_fail(err, KD_EUSAGE, "positions \"%s\" isn't auto, official, hf or timm", text);
    if (s->periods > 0)
        return kd_fail(err, KD_EUSAGE, "%s has rotary positions, which fit every size; there is nothing to resize the way of \"%s\": leave positions at auto", s->name, text);
    return KD_OK;
}

static kd_status choose_normalisation(kd_vit_spec *s, const char *text, kd_err *err) {
    static const char *const known[] = {"imagenet", "half", "dinov3-sat"};
    if (is_auto(text))
        return KD_OK;
    KD_TRY(kd_normalisation_parse(text, s->mean, s->std, err));
    s->normalisation = "as given";
    for (int i = 0; i < 3; i++)
        if (strcmp(text, known[i]) == 0)
            s->normalisation = known[i];
    return KD_OK;
}

kd_status kd_model_find_teacher(kd_model_info *m, const char *name, const kd_weights *weights, const kd_teacher_choice *choice, kd_err *err) {
    int any = strcmp(name, "auto") == 0;
    kd_vit_spec spec;
    if (!any)
        KD_TRY(find_by_name(m, name, err));
    if (!any && m->kind != KD_MODEL_VIT)
        return kd_fail(err, KD_EUSAGE, "%s isn't a teacher: teachers are DINOv2, DINOv3 and plain ViTs", name);
    KD_TRY(kd_vit_detect(weights, choice->prefix, &spec, err));
    if (!any && is_auto(choice->normalize) && is_guess(&spec) && spec.family == KD_VIT_TIMM && !same_normalisation(&spec, &m->vit))
        return kd_fail(err, KD_EUSAGE, "%s: nothing says how its images are normalised; \"%s\" is likely for %s and \"%s\" is %s's: add --normalize %s or --normalize %s",
                       kd_weights_path(weights), spec.normalisation, spec.name, m->vit.normalisation, name, m->vit.normalisation, spec.normalisation);
    KD_TRY(choose_positions(&spec, choice->positions, err));
    KD_TRY(choose_normalisation(&spec, choice->normalize, err));
    return set_from_file(m, name, any, &spec, weights, err);
}
