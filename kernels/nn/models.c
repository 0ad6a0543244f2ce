/* The registry: names to networks, and filling a network's parameters from a file. */
#include "kernels/nn/models.h"

#include <stdio.h>
#include <string.h>

#include "kernels/nn/model_builders.h"

static const float IMAGENET_MEAN[3] = {0.485f, 0.456f, 0.406f}, IMAGENET_STD[3] = {0.229f, 0.224f, 0.225f};
static const float HALF[3] = {0.5f, 0.5f, 0.5f};

typedef struct vit_row {
    const char *name;
    kd_vit_family family;
    int width, depth, patch;
    kd_ffn_kind ffn;
    int hidden;
} vit_row;

/* timm vision_transformer.py; dinov2/hub/backbones.py. Heads are 64 wide in all of them. */
static const vit_row vits[] = {
    {"vit_tiny_patch16_224", KD_VIT_TIMM, 192, 12, 16, KD_FFN_GELU, 768},
    {"vit_small_patch16_224", KD_VIT_TIMM, 384, 12, 16, KD_FFN_GELU, 1536},
    {"vit_base_patch16_224", KD_VIT_TIMM, 768, 12, 16, KD_FFN_GELU, 3072},
    {"dinov2_vits14", KD_VIT_DINOV2, 384, 12, 14, KD_FFN_GELU, 1536},
    {"dinov2_vitb14", KD_VIT_DINOV2, 768, 12, 14, KD_FFN_GELU, 3072},
    {"dinov2_vitl14", KD_VIT_DINOV2, 1024, 24, 14, KD_FFN_GELU, 4096},
    {"dinov2_vitg14", KD_VIT_DINOV2, 1536, 40, 14, KD_FFN_SWIGLU, 4096},
};
enum { VITS = sizeof vits / sizeof *vits, MAX_WIDTH = 8192, MAX_DEPTH = 1024, TIMM_GRID = 14, HEAD_WIDTH = 64, LARGEST_SIDE = 8192 };

static const char *const names[] = {
    "resnet18", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14",
    "dinov2_wW_dD",
};

size_t kd_model_names(const char *const **out) {
    *out = names;
    return sizeof names / sizeof *names;
}

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
    int timm = spec->family == KD_VIT_TIMM;
    memset(m, 0, sizeof *m);
    snprintf(m->name, sizeof m->name, "%s", name);
    m->kind = KD_MODEL_VIT;
    m->vit = *spec;
    m->width = spec->width;
    m->multiple = m->smallest = spec->patch;
    memcpy(m->mean, spec->mean, sizeof m->mean);
    memcpy(m->std, spec->std, sizeof m->std);
    m->library = timm ? "timm" : "dinov2";
}

static kd_vit_spec spec_of(const vit_row *r) {
    kd_vit_spec s = {.family = r->family, .width = r->width, .depth = r->depth, .heads = r->width / HEAD_WIDTH, .patch = r->patch, .ffn = r->ffn,
                     .ffn_hidden = r->hidden, .layer_scale = r->family == KD_VIT_DINOV2, .pos_grid = r->family == KD_VIT_TIMM ? TIMM_GRID : 0, .ln_eps = 1e-6,
                     .positions = r->family == KD_VIT_TIMM ? KD_POS_TIMM : KD_POS_OFFICIAL, .normalisation = r->family == KD_VIT_TIMM ? "half" : "imagenet"};
    memcpy(s.mean, r->family == KD_VIT_TIMM ? HALF : IMAGENET_MEAN, sizeof s.mean); /* timm's default configuration of these ViTs: IMAGENET_INCEPTION */
    memcpy(s.std, r->family == KD_VIT_TIMM ? HALF : IMAGENET_STD, sizeof s.std);
    snprintf(s.name, sizeof s.name, "%s", r->name);
    return s;
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
    const char *best = names[0];
    for (size_t i = 1; i < sizeof names / sizeof *names; i++)
        if (distance(name, names[i]) < distance(name, best))
            best = names[i];
    return best;
}

static kd_status find_by_name(kd_model_info *m, const char *name, kd_err *err) {
    int width, depth;
    if (strcmp(name, "resnet18") == 0) {
        set_resnet18(m);
        return KD_OK;
    }
    for (int i = 0; i < VITS; i++)
        if (strcmp(name, vits[i].name) == 0) {
            kd_vit_spec s = spec_of(&vits[i]);
            set_vit(m, &s, name);
            return KD_OK;
        }
    if (!parse_free_vit(name, &width, &depth))
        return kd_fail(err, KD_EUSAGE, "unknown model \"%s\"; the nearest name is %s (dinov2_wW_dD: width W, depth D, such as dinov2_w192_d6)", name, nearest(name));
    if (width < HEAD_WIDTH || width % HEAD_WIDTH || width > MAX_WIDTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": width %d isn't a multiple of %d between %d and %d", name, width, HEAD_WIDTH, HEAD_WIDTH, MAX_WIDTH);
    if (depth < 1 || depth > MAX_DEPTH)
        return kd_fail(err, KD_EUSAGE, "model \"%s\": depth %d isn't between 1 and %d", name, depth, MAX_DEPTH);
    vit_row r = {name, KD_VIT_DINOV2, width, depth, 14, KD_FFN_GELU, 4 * width};
    kd_vit_spec s = spec_of(&r);
    set_vit(m, &s, name);
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

/* A registered name for what a file holds, so that a teacher is called dinov2_vits14 and not "w384 d12". */
static void name_of_spec(char name[64], const kd_vit_spec *s) {
    for (int i = 0; i < VITS; i++) {
        const vit_row *r = &vits[i];
        if (r->family == s->family && r->width == s->width && r->depth == s->depth && r->patch == s->patch && r->ffn == s->ffn && r->hidden == s->ffn_hidden) {
            snprintf(name, 64, "%s", r->name);
            return;
        }
    }
    if (s->family == KD_VIT_DINOV2 && s->patch == 14 && s->ffn == KD_FFN_GELU && s->ffn_hidden == 4 * s->width)
        snprintf(name, 64, "dinov2_w%d_d%d", s->width, s->depth);
    else
        snprintf(name, 64, "%s", s->name);
}

static kd_status check_against_file(const kd_model_info *want, const kd_vit_spec *have, const kd_weights *w, kd_err *err) {
    const kd_vit_spec *s = &want->vit;
    if (s->family == have->family && s->width == have->width && s->depth == have->depth && s->patch == have->patch && s->ffn == have->ffn && s->ffn_hidden == have->ffn_hidden &&
        s->layer_scale == have->layer_scale)
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "%s holds %s (width %d, depth %d, patch %d), not %s (width %d, depth %d, patch %d); give the matching name or auto", kd_weights_path(w), have->name,
                   have->width, have->depth, have->patch, want->name, s->width, s->depth, s->patch);
}

kd_status kd_model_find(kd_model_info *m, const char *name, const kd_weights *weights, kd_err *err) {
    int any = strcmp(name, "auto") == 0;
    kd_vit_spec spec;
    if (!any)
        KD_TRY(find_by_name(m, name, err));
    if (!weights)
        return any ? kd_fail(err, KD_EUSAGE, "model \"auto\" is read from a weight file, and none was given; name the model or add the weights") : KD_OK;
    if (is_resnet18(weights)) {
        if (!any && m->kind != KD_MODEL_RESNET)
            return kd_fail(err, KD_EUSAGE, "%s holds resnet18, not %s; give the matching name or auto", kd_weights_path(weights), name);
        set_resnet18(m);
        return KD_OK;
    }
    if (!any && m->kind == KD_MODEL_RESNET)
        return kd_fail(err, KD_EUSAGE, "%s has no tensors of torchvision's resnet18 (layer1.0.conv1.weight ... layer4.1.bn2.weight)", kd_weights_path(weights));
    KD_TRY(kd_vit_detect(weights, NULL, &spec, err));
    if (!any)
        KD_TRY(check_against_file(m, &spec, weights, err));
    char found[64];
    name_of_spec(found, &spec);
    set_vit(m, &spec, any ? found : name);
    m->from_file = 1;
    return KD_OK;
}

static kd_status check_side(const kd_model_info *m, int side, const char *which, kd_err *err) {
    int fitting = side < m->smallest ? m->smallest : (side > LARGEST_SIDE ? LARGEST_SIDE : side) / m->multiple * m->multiple;
    if (side != fitting)
        return kd_fail(err, KD_EUSAGE, "%s: image %s %d isn't a multiple of %d from %d to %d; the nearest is %d", m->name, which, side, m->multiple, m->smallest, LARGEST_SIDE, fitting);
    return KD_OK;
}

kd_status kd_model_check_size(const kd_model_info *m, int height, int width, kd_err *err) {
    int side = m->kind == KD_MODEL_VIT ? m->vit.pos_grid * m->vit.patch : 0;
    KD_TRY(check_side(m, height, height == width ? "size" : "height", err));
    KD_TRY(check_side(m, width, "width", err));
    if (side > 0 && !m->from_file && (height != side || width != side))
        return kd_fail(err, KD_EUSAGE, "%s without a weight file is made for images of %dx%d pixels, not %dx%d; a dinov2_wW_dD student takes any multiple of 14", m->name, side, side,
                       height, width);
    return KD_OK;
}

/* ---- building ---- */

kd_model_taps kd_model_build(kd_graph *g, const kd_model_info *m, int height, int width) {
    KD_ASSERT(height >= m->smallest && height % m->multiple == 0 && width >= m->smallest && width % m->multiple == 0);
    kd_val x = kd_graph_normalize(g, kd_graph_images(g, height, width), m->mean, m->std);
    kd_model_taps taps = m->kind == KD_MODEL_RESNET ? kd_resnet_build(g, x, m) : kd_vit_build(g, x, m);
    kd_graph_output(g, taps.pooled, "pooled");
    kd_graph_output(g, taps.cls, "cls");
    kd_graph_output(g, taps.map, "map");
    return taps;
}

kd_status kd_model_graph(kd_graph **out, const kd_model_info *m, kd_err *err) {
    *out = kd_graph_create();
    if (!*out)
        return kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name);
    kd_model_build(*out, m, m->smallest, m->smallest); /* names don't depend on the size */
    return KD_OK;
}

