/* The registry: names and files to networks, what sizes and layers they take, their graphs. */
#include "kernels/nn/models.h"

#include <stdio.h>
#include <string.h>

#include "kernels/nn/model_builders.h"

static const float IMAGENET_MEAN[3] = {0.485f, 0.456f, 0.406f}, IMAGENET_STD[3] = {0.229f, 0.224f, 0.225f};
enum { MAX_WIDTH = 8192, MAX_DEPTH = 1024, HEAD_WIDTH = 64, LARGEST_SIDE = 8192 };

/* What kd_vit_names doesn't have. */
static const char *const other_names[] = {"resnet18", "dinov2_wW_dD"};

/* ---- by name ---- */

static void set_resnet18(kd_model_info *m) {
    memset(m, 0, sizeof *m);
    snprintf(m->name, sizeof m->name, "resnet18");
    m->kind = KD_MODEL_RESNET;
    for (int i = 0; i < 4; i++)
        m->blocks[i] = 2;
    m->width = 512;
    m->multiple = 1; /* torchvision takes any size; below 32 its strides leave nothing of the picture */
    m->smallest = 32;
    memcpy(m->mean, IMAGENET_MEAN, sizeof m->mean);
    memcpy(m->std, IMAGENET_STD, sizeof m->std);
    m->library = "torchvision";
}

/* The rest of a ViT's entry, from its spec. */
static void set_vit(kd_model_info *m, const kd_vit_spec *spec, const char *name) {
    memset(m, 0, sizeof *m);
    snprintf(m->name, sizeof m->name, "%s", name);
    m->kind = KD_MODEL_VIT;
    m->vit = *spec;
    m->width = spec->width;
    m->multiple = m->smallest = spec->patch;
    memcpy(m->mean, spec->mean, sizeof m->mean);
    memcpy(m->std, spec->std, sizeof m->std);
    m->library = kd_vit_family_name(spec->family);
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

static int distance(const char *a, const char *b) {
    enum { CAP = 64 };
    int row[CAP + 1];
    size_t na = strlen(a), nb = strlen(b);
    if (na > CAP || nb > CAP)
        return CAP;
    for (size_t j = 0; j <= nb; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int swap = diagonal + (a[i - 1] != b[j - 1]), best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = swap < best ? swap : best;
        }
    }
    return row[nb];
}

static const char *nearest(const char *name) {
    const char *const *vits, *best = other_names[0];
    size_t count = kd_vit_names(&vits);
    if (distance(name, other_names[1]) < distance(name, best))
        best = other_names[1];
    for (size_t i = 0; i < count; i++)
        if (distance(name, vits[i]) < distance(name, best))
            best = vits[i];
    return best;
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

static kd_status find_by_name(kd_model_info *m, const char *name, kd_err *err) {
    int width, depth;
    kd_vit_spec s;
    if (strcmp(name, "resnet18") == 0) {
        set_resnet18(m);
        return KD_OK;
    }
    if (kd_vit_named(name, &s)) {
        set_vit(m, &s, name);
        return KD_OK;
    }
    if (!parse_free_vit(name, &width, &depth))
        return kd_fail(err, KD_EUSAGE, "unknown model \"%s\"; the nearest name is %s (dinov2_wW_dD: width W, depth D, such as dinov2_w192_d6)", name, nearest(name));
    if (width < HEAD_WIDTH || width % HEAD_WIDTH || width > MAX_WIDTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": width %d isn't a multiple of %d between %d and %d", name, width, HEAD_WIDTH, HEAD_WIDTH, MAX_WIDTH);
    if (depth < 1 || depth > MAX_DEPTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": depth %d isn't between 1 and %d", name, depth, MAX_DEPTH);
    set_free_vit(m, name, width, depth);
    return KD_OK;
}

/* ---- by file ---- */

/* torchvision's own names, possibly behind a wrapper's prefix. */
static const char *const resnet_prefixes[] = {"", "module.", "backbone.", "model."};

static int find_prefixed(const kd_weights *w, const char *prefix, const char *name) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return kd_weights_find(w, full);
}

const char *kd_resnet_prefix(const kd_weights *w) {
    for (size_t i = 0; i < sizeof resnet_prefixes / sizeof *resnet_prefixes; i++)
        if (find_prefixed(w, resnet_prefixes[i], "layer1.0.conv1.weight") >= 0)
            return resnet_prefixes[i];
    return NULL;
}

static int is_resnet18(const kd_weights *w) {
    const char *p = kd_resnet_prefix(w);
    return p && find_prefixed(w, p, "layer4.1.bn2.weight") >= 0 && find_prefixed(w, p, "layer3.2.conv1.weight") < 0 && find_prefixed(w, p, "layer1.0.conv3.weight") < 0;
}

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

kd_status kd_model_find(kd_model_info *m, const char *name, const kd_weights *weights, kd_err *err) {
    int any = strcmp(name, "auto") == 0;
    kd_vit_spec spec;
    if (!any)
        KD_TRY(find_by_name(m, name, err));
    if (!weights && any)
        return kd_fail(err, KD_EUSAGE, "model \"auto\" is read from a weight file, and none was given; name the model or add the weights");
    if (!weights)
        return kd_model_check_student(m, err);
    if (is_resnet18(weights)) {
        if (!any && m->kind != KD_MODEL_RESNET)
            return kd_fail(err, KD_EUSAGE, "%s holds resnet18, not %s; give the matching name or auto", kd_weights_path(weights), name);
        set_resnet18(m);
        m->from_file = 1;
        return KD_OK;
    }
    if (!any && m->kind == KD_MODEL_RESNET)
        return kd_fail(err, KD_EUSAGE, "%s has no tensors of torchvision's resnet18 (layer1.0.conv1.weight ... layer4.1.bn2.weight)", kd_weights_path(weights));
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

/* ---- sizes and layers ---- */

static kd_status check_side(const kd_model_info *m, int side, const char *which, kd_err *err) {
    int fitting = (side + m->multiple / 2) / m->multiple * m->multiple, largest = LARGEST_SIDE / m->multiple * m->multiple;
    fitting = fitting < m->smallest ? m->smallest : fitting > largest ? largest : fitting;
    if (side != fitting)
        return kd_fail(err, KD_EUSAGE, "%s: image %s %d isn't a multiple of %d from %d to %d; the nearest is %d", m->name, which, side, m->multiple, m->smallest, LARGEST_SIDE, fitting);
    return KD_OK;
}

kd_status kd_model_check_size(const kd_model_info *m, int height, int width, kd_err *err) {
    int fixed = m->kind == KD_MODEL_VIT && m->vit.family == KD_VIT_TIMM && !m->from_file, side = fixed ? m->vit.pos_grid * m->vit.patch : 0;
    KD_TRY(check_side(m, height, height == width ? "size" : "height", err));
    KD_TRY(check_side(m, width, "width", err));
    if (fixed && (height != side || width != side))
        return kd_fail(err, KD_EUSAGE, "%s without a weight file is made for images of %dx%d pixels, not %dx%d; a dinov2_wW_dD student takes any multiple of 14", m->name, side, side,
                       height, width);
    return KD_OK;
}

kd_status kd_model_check_layers(const kd_model_info *m, const kd_layer_choice *c, kd_err *err) {
    if (c->features == 0 || c->layers < 1)
        return kd_fail(err, KD_EUSAGE, "nothing is asked of the teacher: name at least one feature and one layer");
    if (c->layers > KD_LAYERS_MAX)
        return kd_fail(err, KD_EUSAGE, "%d layers are asked for, and at most %d can be", c->layers, KD_LAYERS_MAX);
    if ((c->features & KD_WANT_REGISTERS) && m->vit.registers == 0)
        return kd_fail(err, KD_EUSAGE, "%s has no register tokens; leave \"registers\" out of the features", m->name);
    for (int i = 0; i < c->layers; i++) {
        if (c->layer[i] < 1 || c->layer[i] > m->vit.depth)
            return kd_fail(err, KD_EUSAGE, "layer %d isn't one of %s, which has %d blocks (1 is the last, %d the first)", c->layer[i], m->name, m->vit.depth, m->vit.depth);
        if (i > 0 && c->layer[i] <= c->layer[i - 1])
            return kd_fail(err, KD_EUSAGE, "layers %d, %d aren't in ascending order", c->layer[i - 1], c->layer[i]);
    }
    return KD_OK;
}

/* ---- building ---- */

static kd_val images(kd_graph *g, const kd_model_info *m, int height, int width) {
    KD_ASSERT(height >= m->smallest && height % m->multiple == 0 && width >= m->smallest && width % m->multiple == 0);
    return kd_graph_normalize(g, kd_graph_images(g, height, width), m->mean, m->std);
}

kd_model_taps kd_model_build(kd_graph *g, const kd_model_info *m, int height, int width) {
    kd_val x = images(g, m, height, width);
    kd_model_taps taps = m->kind == KD_MODEL_RESNET ? kd_resnet_build(g, x, m) : kd_vit_build(g, x, m);
    kd_graph_output(g, taps.pooled, "pooled");
    kd_graph_output(g, taps.cls, "cls");
    kd_graph_output(g, taps.map, "map");
    return taps;
}

void kd_model_build_layers(kd_graph *g, const kd_model_info *m, int height, int width, const kd_layer_choice *choice) {
    KD_ASSERT(m->kind == KD_MODEL_VIT && kd_model_check_layers(m, choice, NULL) == KD_OK);
    kd_vit_build_layers(g, images(g, m, height, width), m, choice);
}

kd_status kd_model_graph(kd_graph **out, const kd_model_info *m, kd_err *err) {
    *out = kd_graph_create();
    if (!*out)
        return kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name);
    kd_model_build(*out, m, m->smallest, m->smallest); /* names don't depend on the size */
    return KD_OK;
}

