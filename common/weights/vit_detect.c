/* Which ViT a weight file holds. First the anchors (patch embeddings) with the text before them, which choose the model; then family and layout by the tensors that only they have; then the numbers
 * from shapes; then every tensor by name: each expected one with its shape, and nothing unexpected.
 *
 * Official or timm's DINOv2? Both call most tensors the same. timm's has reg_token, positions without the class token's row, or SwiGLU as fc1 and fc2; it has no mask_token, which the official files
 * have. So a file is official when it has mask_token, register_tokens, mlp.w12, chunked blocks, or a head over twice the width (the official classifiers); otherwise it is timm's. The
 * difference that remains is how positions are resized, which --positions overrides. */
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/image/augment.h"
#include "common/weights/vit_parts.h"

enum { SENTENCE_NAMES = 4, MAX_CANDIDATES = 16, HEAD_WIDTH = 64 };

static const char anchor_official[] = "patch_embed.proj.weight";
static const char anchor_dinov2_hf[] = "embeddings.patch_embeddings.projection.weight";
static const char anchor_dinov3_hf[] = "embeddings.patch_embeddings.weight";
static const char *const anchors[] = {anchor_official, anchor_dinov2_hf, anchor_dinov3_hf};

void kd_vit_problem(kd_vit_report *r, const char *fmt, ...)
{
    va_list args;
    if (r->problem[0] != '\0')
        return;
    va_start(args, fmt);
    vsnprintf(r->problem, sizeof r->problem, fmt, args);
    va_end(args);
}

/* -- which model in the file ---------------------------------------------------------------------------------------------------- */

typedef struct candidate {
    const char *anchor;
    const char *name; /* the anchor with its prefix */
    size_t prefix;    /* bytes before the anchor */
} candidate;

typedef struct candidates {
    candidate c[MAX_CANDIDATES];
    int count; /* may be above MAX_CANDIDATES */
} candidates;

/* "teacher.", "module.teacher_backbone.": a component of the prefix begins with teacher. */
static int is_teacher(const candidate *c)
{
    for (size_t i = 0; i < c->prefix; i++)
        if ((i == 0 || c->name[i - 1] == '.') && kd_vit_starts(c->name + i, "teacher"))
            return 1;
    return 0;
}

/* The candidate is what the user's text means: the text, with or without its last dot, is the whole prefix or the first components of it. */
static int is_meant(const candidate *c, const char *prefix)
{
    size_t n = strlen(prefix);
    if (n > 0 && prefix[n - 1] == '.')
        n--;
    return n == 0 || (n < c->prefix && strncmp(c->name, prefix, n) == 0 && c->name[n] == '.');
}

static void collect(const kd_weights *w, const char *prefix, candidates *all)
{
    all->count = 0;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        for (size_t a = 0; a < sizeof anchors / sizeof *anchors; a++) {
            if (!kd_vit_ends_in_path(name, anchors[a]))
                continue;
            candidate c = {anchors[a], name, strlen(name) - strlen(anchors[a])};
            if (prefix != NULL && !is_meant(&c, prefix))
                continue;
            if (all->count < MAX_CANDIDATES)
                all->c[all->count] = c;
            all->count++;
        }
    }
}

/* 'a', 'b' and so on for a sentence. */
static const char *list_prefixes(const candidates *all, char text[400])
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < all->count && i < 6 && used < 380; i++) {
        const candidate *c = &all->c[i];
        int n = c->prefix > 0 ? (int)c->prefix - 1 : 0;
        used += (size_t)snprintf(text + used, 400 - used, "%s'%.*s'", i > 0 ? ", " : "", n > 60 ? 60 : n, c->name);
    }
    return text;
}

/* The whole prefix, when a candidate has exactly the user's; else one teacher among several; else NULL. */
static const candidate *choose(const candidates *all, const char *prefix)
{
    const candidate *teacher = NULL;
    int teachers = 0, n = all->count < MAX_CANDIDATES ? all->count : MAX_CANDIDATES;
    size_t given = prefix != NULL ? strlen(prefix) : 0;
    if (given > 0 && prefix[given - 1] == '.')
        given--;
    for (int i = 0; i < n; i++)
        if (prefix != NULL && all->c[i].prefix == (given > 0 ? given + 1 : 0))
            return &all->c[i];
    for (int i = 0; i < n; i++)
        if (is_teacher(&all->c[i])) {
            teachers++;
            teacher = &all->c[i];
        }
    return all->count == 1 ? &all->c[0] : teachers == 1 && all->count <= MAX_CANDIDATES ? teacher : NULL;
}

static void no_candidate(const kd_weights *w, const char *prefix, kd_vit_report *r)
{
    candidates all;
    char text[400];
    collect(w, NULL, &all);
    if (prefix == NULL || all.count == 0) {
        kd_vit_foreign(w, NULL, 1, r);
    } else {
        kd_vit_problem(r, "%s: no ViT under '%.100s'; --weights-key takes one of %s", kd_weights_path(w), prefix, list_prefixes(&all, text));
    }
}

/* Sets r->spec.prefix and returns the anchor, or NULL with a problem. */
static const char *find_model(const kd_weights *w, const char *prefix, kd_vit_report *r)
{
    candidates all;
    char text[400];
    collect(w, prefix, &all);
    const candidate *c = choose(&all, prefix);
    if (all.count == 0) {
        no_candidate(w, prefix, r);
    } else if (c == NULL) {
        kd_vit_problem(r, "%s: the file holds %d ViTs; choose one with --weights-key: %s%s", kd_weights_path(w), all.count, list_prefixes(&all, text), all.count > 6 ? ", ..." : "");
    } else if (c->prefix >= sizeof r->spec.prefix) {
        kd_vit_problem(r, "%s: the text before '%s' in the tensor names has %zu bytes; the limit is %zu", kd_weights_path(w), c->anchor, c->prefix, sizeof r->spec.prefix - 1);
        c = NULL;
    } else {
        memcpy(r->spec.prefix, c->name, c->prefix);
        r->spec.prefix[c->prefix] = '\0';
    }
    return c != NULL ? c->anchor : NULL;
}

/* -- family and layout ------------------------------------------------------------------------------------------------------------ */

static int has(const kd_weights *w, const kd_vit_spec *s, const char *name) { return kd_vit_find(w, s, name) >= 0; }

/* A tensor of any block, by the end of its name: depth and chunks aren't known yet. */
static int has_in_blocks(const kd_weights *w, const kd_vit_spec *s, const char *blocks, const char *tail)
{
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        if (kd_vit_starts(name, s->prefix) && kd_vit_starts(name + strlen(s->prefix), blocks) && kd_vit_ends_in_path(name, tail))
            return 1;
    }
    return 0;
}

/* Rows of the grid of our own exports, which say at what size they were trained (positions may be of a grid that isn't square); 0 when the file is none, or at odds with itself. */
static int own_grid(const kd_weights *w, int64_t rows, kd_vit_report *r)
{
    const char *size = json_string_value(json_object_get(kd_weights_metadata(w), "kdcache_image_size"));
    int height = 0, width = 0;
    if (size == NULL || kd_image_size_parse(size, "kdcache_image_size", &height, &width, NULL) != KD_OK)
        return 0;
    height /= r->spec.patch;
    width /= r->spec.patch;
    if (height < 1 || width < 1 || height > KD_VIT_MAX_GRID || width > KD_VIT_MAX_GRID || 1 + (int64_t)height * width != rows)
        return 0;
    r->spec.pos_columns = height != width ? width : 0;
    return height;
}

/* Side of the learned grid, with whether a row for the class token stands before it. 0 with a problem. */
static int read_grid(const kd_weights *w, const char *positions, int *class_row, kd_vit_report *r)
{
    char shape[128];
    int i = kd_vit_find(w, &r->spec, positions);
    if (i < 0) {
        kd_vit_problem(r, "%s: tensor '%s%s' is missing; the file isn't a complete ViT: use the file as it was published", kd_weights_path(w), r->spec.prefix, positions);
        return 0;
    }
    kd_tensor t = kd_weights_info(w, i);
    int64_t rows = t.rank == 3 && t.shape[0] == 1 && t.shape[2] == r->spec.width ? t.shape[1] : 0;
    int own = own_grid(w, rows, r);
    if (own > 0) {
        *class_row = 1;
        return own;
    }
    for (int grid = 1; grid <= KD_VIT_MAX_GRID && (int64_t)grid * grid <= rows; grid++)
        if ((int64_t)grid * grid == rows || (int64_t)grid * grid == rows - 1) {
            *class_row = (int64_t)grid * grid == rows - 1;
            return grid;
        }
    kd_vit_problem(r, "%s: tensor '%s' has shape %s: positions are [1, 1 + grid * grid, width %d] for a square grid (only such models are read)", kd_weights_path(w), t.name,
                   kd_shape_text(t.shape, t.rank, shape, sizeof shape), r->spec.width);
    return 0;
}

static int wide_head(const kd_weights *w, const kd_vit_spec *s)
{
    int i = kd_vit_find(w, s, "head.weight");
    kd_tensor t = i >= 0 ? kd_weights_info(w, i) : (kd_tensor){0};
    return i >= 0 && t.rank == 2 && t.shape[1] == 2 * (int64_t)s->width; /* class token and mean patch */
}

/* "patch_embed.proj" files: official DINOv2 and DINOv3, and everything of timm. */
static void classify_official_names(const kd_weights *w, kd_vit_report *r)
{
    kd_vit_spec *s = &r->spec;
    int class_row = 1, gamma = has_in_blocks(w, s, "blocks.", "gamma_1") || has_in_blocks(w, s, "blocks.", "gamma_2");
    int scale = has_in_blocks(w, s, "blocks.", "ls1.gamma") || has_in_blocks(w, s, "blocks.", "ls2.gamma"), timm_registers = has(w, s, "reg_token");
    int learned = has(w, s, "pos_embed");
    if (has(w, s, "storage_tokens") || has(w, s, "rope_embed.periods") || (!learned && (has_in_blocks(w, s, "blocks.", "attn.qkv.bias_mask") || has_in_blocks(w, s, "blocks.", "mlp.w1.weight")))) {
        s->family = KD_VIT_DINOV3;
        s->layout = KD_VIT_LAYOUT_OFFICIAL;
        return;
    }
    if (gamma && !learned) {
        s->family = KD_VIT_DINOV3;
        s->layout = KD_VIT_LAYOUT_TIMM;
        return;
    }
    if (gamma) {
        kd_vit_problem(r, "%s: the file is an EVA or BEiT of timm (it has the tensors '%spos_embed' and gamma_1), which isn't read; use a DINOv2, DINOv3 or plain ViT", kd_weights_path(w), s->prefix);
        return;
    }
    s->pos_grid = read_grid(w, "pos_embed", &class_row, r);
    s->family = scale && (class_row || timm_registers) ? KD_VIT_DINOV2 : KD_VIT_TIMM; /* DeiT III has LayerScale, no row and no registers */
    int official = s->family == KD_VIT_DINOV2 && !timm_registers && class_row &&
                   (has(w, s, "mask_token") || has(w, s, "register_tokens") || has_in_blocks(w, s, "blocks.", "mlp.w12.weight") || has(w, s, "blocks.0.0.norm1.weight") || wide_head(w, s));
    s->layout = official ? KD_VIT_LAYOUT_OFFICIAL : KD_VIT_LAYOUT_TIMM;
}

static void classify(const kd_weights *w, const char *anchor, kd_vit_report *r)
{
    kd_vit_spec *s = &r->spec;
    int class_row = 1;
    kd_vit_foreign(w, s->prefix, 0, r);
    if (anchor == anchor_official) {
        classify_official_names(w, r);
    } else if (anchor == anchor_dinov3_hf) {
        s->family = KD_VIT_DINOV3;
        s->layout = KD_VIT_LAYOUT_HF;
    } else {
        s->family = KD_VIT_DINOV2;
        s->layout = KD_VIT_LAYOUT_HF;
        s->pos_grid = read_grid(w, "embeddings.position_embeddings", &class_row, r);
        if (!class_row)
            kd_vit_problem(r, "%s: tensor '%sembeddings.position_embeddings' has no row for a class token; only DINOv2 is read with these names", kd_weights_path(w), s->prefix);
    }
    if (!has(w, s, s->layout == KD_VIT_LAYOUT_HF ? "embeddings.cls_token" : "cls_token"))
        kd_vit_problem(r, "%s: the file is a ViT with no class token ('%s%s' is missing), which isn't read; use a DINOv2, DINOv3 or plain ViT with one", kd_weights_path(w), s->prefix,
                       s->layout == KD_VIT_LAYOUT_HF ? "embeddings.cls_token" : "cls_token");
}

/* -- numbers ------------------------------------------------------------------------------------------------------------------------ */

static void bad_shape(const kd_weights *w, const kd_tensor *t, const char *why, kd_vit_report *r)
{
    char shape[128];
    kd_vit_problem(r, "%s: tensor '%s' has shape %s: %s", kd_weights_path(w), t->name, kd_shape_text(t->shape, t->rank, shape, sizeof shape), why);
}

static void read_patch_embed(const kd_weights *w, const char *anchor, kd_vit_report *r)
{
    kd_tensor t = kd_weights_info(w, kd_vit_find(w, &r->spec, anchor));
    if (t.rank != 4 || t.shape[1] != 3 || t.shape[2] != t.shape[3] || t.shape[2] < 1 || t.shape[2] > KD_VIT_MAX_PATCH) {
        kd_vit_foreign(w, r->spec.prefix, 0, r);
        bad_shape(w, &t, "a patch embedding is [width, 3, patch, patch] with patch at most 64", r);
    } else if (t.shape[0] < HEAD_WIDTH || t.shape[0] > KD_VIT_MAX_WIDTH || t.shape[0] % 32 != 0) {
        kd_vit_foreign(w, r->spec.prefix, 0, r);
        bad_shape(w, &t, "the width must be a multiple of 32 from 64 to 16384", r);
    } else {
        r->spec.width = (int)t.shape[0];
        r->spec.patch = (int)t.shape[2];
    }
}

static void read_depth(const kd_weights *w, kd_vit_report *r)
{
    kd_vit_file f;
    const char *rest;
    char full[KD_VIT_FULL_NAME];
    kd_vit_look(&f, w, &r->spec); /* block names; nothing that needs the depth is used */
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        int n = kd_vit_starts(name, r->spec.prefix) ? kd_vit_block_number(&f, name + strlen(r->spec.prefix), &rest) : -1;
        if (n >= r->spec.depth)
            r->spec.depth = n + 1;
    }
    if (r->spec.depth == 0)
        kd_vit_problem(r, "%s: tensor '%s' is missing: the file has no transformer blocks", kd_weights_path(w), kd_vit_full_name(&f, 0, "norm1.weight", full));
}

/* The FFN's kind and hidden width, from the first block that has the tensor. */
static void read_ffn(const kd_vit_file *f, kd_vit_spec *s, kd_vit_report *r)
{
    const kd_vit_style *y = f->style;
    char full[KD_VIT_FULL_NAME];
    int gate = kd_vit_find_in_any_block(f, y->gate_weight[0]), fc1 = kd_vit_find_in_any_block(f, y->fc1_weight), out = kd_vit_find_in_any_block(f, y->out_weight);
    if (gate == fc1 && gate >= 0) { /* timm's packed SwiGLU has the plain layer's names: the gate shows in the rows */
        kd_tensor a = kd_weights_info(f->w, gate), b = out >= 0 ? kd_weights_info(f->w, out) : a;
        gate = a.rank == 2 && b.rank == 2 && out >= 0 && a.shape[0] == 2 * b.shape[1] ? gate : -1;
    }
    int first = gate >= 0 ? gate : fc1, packed = gate >= 0 && y->gate_weight[1] == NULL;
    if (first < 0) {
        kd_vit_problem(r, "%s: tensor '%s' is missing; the file isn't a complete ViT: use the file as it was published", kd_weights_path(f->w), kd_vit_full_name(f, 0, y->fc1_weight, full));
        return;
    }
    kd_tensor t = kd_weights_info(f->w, first);
    int64_t rows = t.rank == 2 ? t.shape[0] : 0;
    if (rows < 2 || rows > KD_VIT_MAX_HIDDEN || (packed && rows % 2 != 0)) {
        bad_shape(f->w, &t, "the hidden width of the feed-forward layer must be 2 to 65536", r);
        return;
    }
    s->ffn = gate >= 0 ? KD_FFN_SWIGLU : KD_FFN_GELU;
    s->ffn_hidden = (int)(packed ? rows / 2 : rows);
}

static void read_registers(const kd_vit_file *f, kd_vit_spec *s, kd_vit_report *r)
{
    int i = f->style->registers != NULL ? kd_vit_find(f->w, s, f->style->registers) : -1;
    if (i < 0)
        return;
    kd_tensor t = kd_weights_info(f->w, i);
    if (t.rank != 3 || t.shape[1] < 1 || t.shape[1] > KD_VIT_MAX_REGISTERS)
        bad_shape(f->w, &t, "register tokens are [1, registers, width] with at most 256 of them", r);
    else
        s->registers = (int)t.shape[1];
}

/* Rotary periods of official DINOv3 files, which also tell the width of a head. */
static kd_status read_periods(const kd_vit_file *f, kd_vit_spec *s, kd_vit_report *r, kd_err *err)
{
    int i = f->style->periods != NULL ? kd_vit_find(f->w, s, f->style->periods) : -1;
    if (i < 0)
        return KD_OK;
    kd_tensor t = kd_weights_info(f->w, i);
    if (t.rank != 1 || t.shape[0] < 1 || t.shape[0] > KD_VIT_MAX_PERIODS || s->width % (4 * t.shape[0]) != 0 || !kd_vit_is_float(t.dtype)) {
        bad_shape(f->w, &t, "rotary periods are a quarter of a head's width, at most 64 floating-point numbers", r);
        return KD_OK;
    }
    s->periods = (int)t.shape[0];
    KD_TRY(kd_weights_read_f32(f->w, i, s->period, (size_t)s->periods, err));
    for (int k = 0; k < s->periods; k++)
        if (!(s->period[k] > 0))
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s' holds %g at element %d; a period is above 0, so the weights are damaged", kd_weights_path(f->w), t.name, (double)s->period[k], k);
    s->periods_from_file = 1;
    s->heads = s->width / (4 * s->periods);
    return KD_OK;
}

/* Heads are 64 wide in the published models but for DINOv3 ViT-7B (128) and those with 16 heads: SO400M (72 wide) and the plain huge, giant and gigantic ViT (80, 88, 104). */
static int published_heads(const kd_vit_spec *s)
{
    if (s->family == KD_VIT_DINOV3 && s->width == 4096)
        return 32;
    if (s->width == 1152 || (s->family == KD_VIT_TIMM && (s->width == 1280 || s->width == 1408 || s->width == 1664)))
        return 16;
    return s->width % HEAD_WIDTH == 0 ? s->width / HEAD_WIDTH : 0;
}

static void read_heads(const kd_weights *w, kd_vit_report *r)
{
    kd_vit_spec *s = &r->spec;
    if (s->heads == 0)
        s->heads = published_heads(s);
    if (s->heads == 0) {
        kd_vit_problem(r, "%s: width %d isn't a multiple of 64 (the usual width of a head), and neither rotary periods nor a config.json beside the file tell the number of heads", kd_weights_path(w), s->width);
        return;
    }
    int head = s->width / s->heads;
    if (s->width % s->heads != 0 || (s->family == KD_VIT_DINOV3 && (head % 4 != 0 || head / 4 > KD_VIT_MAX_PERIODS)))
        kd_vit_problem(r, "%s: width %d doesn't divide into %d heads%s", kd_weights_path(w), s->width, s->heads,
                       s->family == KD_VIT_DINOV3 ? " of a width that is a multiple of 4, at most 256, as rotary positions need" : "");
}

static kd_status read_numbers(const kd_weights *w, kd_vit_report *r, kd_err *err)
{
    kd_vit_spec *s = &r->spec;
    kd_vit_file f;
    read_depth(w, r);
    if (r->problem[0] != '\0')
        return KD_OK;
    kd_vit_look(&f, w, s);
    s->layer_scale = kd_vit_find_in_any_block(&f, f.style->scale1) >= 0 || kd_vit_find_in_any_block(&f, f.style->scale2) >= 0;
    if (!s->layer_scale && s->layout == KD_VIT_LAYOUT_HF)
        kd_vit_problem(r, "%s: the blocks have no layer scale; only DINOv2 and DINOv3 are read in the Hugging Face layout", kd_weights_path(w));
    read_ffn(&f, s, r);
    read_registers(&f, s, r);
    return read_periods(&f, s, r, err);
}

/* -- the normalisation that the file's name tells ----------------------------------------------------------------------------------- */

/* Where text ends in s, ignoring case, for the last time; NULL when it doesn't occur. */
static const char *last_of(const char *s, const char *text)
{
    const char *found = NULL;
    size_t n = strlen(text);
    for (; *s != '\0'; s++) {
        size_t k = 0;
        while (k < n && tolower((unsigned char)s[k]) == text[k])
            k++;
        if (k == n)
            found = s + n;
    }
    return found;
}

/* SAT-493M models are told by their file's or folder's name (the last of sat493m and lvd1689m in the path), ViT-L also by local_cls_norm, which only its satellite version has. A plain ViT is timm's
 * with 0.5; DeiT and DINO (v1), told by the file's name or by a checkpoint's teacher, use ImageNet's. */
static const char *normalisation_of(const kd_weights *w, const kd_vit_spec *s)
{
    const char *path = kd_weights_path(w), *base = strrchr(path, '/');
    base = base != NULL ? base + 1 : path;
    if (s->family == KD_VIT_TIMM)
        return last_of(base, "deit") != NULL || last_of(base, "dino") != NULL || last_of(s->prefix, "teacher") != NULL ? "imagenet" : "half";
    if (s->family == KD_VIT_DINOV2)
        return "imagenet";
    const char *sat = last_of(path, "sat493m"), *lvd = last_of(path, "lvd1689m");
    int large = s->width == 1024 && s->depth == 24 && s->ffn == KD_FFN_GELU && has(w, s, "local_cls_norm.weight");
    return sat != NULL && (lvd == NULL || sat > lvd) ? "dinov3-sat" : lvd == NULL && large ? "dinov3-sat" : "imagenet";
}

/* -- every tensor by name ----------------------------------------------------------------------------------------------------------- */

typedef struct check {
    const kd_vit_file *f;
    kd_vit_report *r;
    unsigned char *seen; /* per tensor of the file: expected */
    kd_err *err;
    kd_status status;
} check;

static void list_add(check *c, kd_vit_list *list, const char *text)
{
    if (list->count < KD_VIT_LISTED) {
        char *copy = kd_arena_strdup(c->r->names, text);
        if (copy == NULL)
            c->status = kd_fail(c->err, KD_EFAIL, "%s: out of memory for the report", kd_weights_path(c->f->w));
        list->name[list->count] = copy;
    }
    list->count++;
}

static void expect(check *c, int index, int block, const kd_vit_source *want)
{
    char full[KD_VIT_FULL_NAME], text[KD_VIT_FULL_NAME + 320], got[128], need[128];
    if (index < 0) {
        list_add(c, &c->r->missing, kd_vit_full_name(c->f, block, want->name, full));
        return;
    }
    kd_tensor t = kd_weights_info(c->f->w, index);
    c->seen[index] = 1;
    c->r->used++;
    if (!kd_shape_equal(t.shape, t.rank, want->shape, want->rank))
        snprintf(text, sizeof text, "'%s' has shape %s, expected %s", t.name, kd_shape_text(t.shape, t.rank, got, sizeof got), kd_shape_text(want->shape, want->rank, need, sizeof need));
    else if (!kd_vit_is_float(t.dtype))
        snprintf(text, sizeof text, "'%s' is %s; weights must be floating point", t.name, kd_dtype_name(t.dtype));
    else
        return;
    list_add(c, &c->r->misshapen, text);
}

static void expect_params(check *c, const kd_vit_param *list, int n, int block)
{
    for (int i = 0; i < n; i++)
        for (int k = 0; k < list[i].parts; k++) {
            const kd_vit_source *part = &list[i].part[k];
            if (part->name != NULL)
                expect(c, block < 0 ? kd_vit_find(c->f->w, c->f->s, part->name) : kd_vit_find_in_block(c->f, block, part->name), block, part);
        }
}

/* Tensors that belong to training or classification and take no part in features. */
static int is_ignorable(const char *name)
{
    static const char *const whole[] = {"mask_token", "embeddings.mask_token", "precalculated_pos_embed", "rope_embeddings.inv_freq"};
    static const char *const groups[] = {"head.", "dino_head.", "ibot_head.", "local_cls_norm.", "projectors."};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (strcmp(name, whole[i]) == 0)
            return 1;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (kd_vit_starts(name, groups[i]))
            return 1;
    return 0;
}

/* What isn't expected: under the prefix it must be ignorable; outside (a checkpoint's student, heads, optimizer) it is another object. */
static void sort_the_rest(check *c)
{
    const kd_weights *w = c->f->w;
    const char *prefix = c->f->s->prefix;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        if (c->seen[i])
            continue;
        if (!kd_vit_starts(name, prefix))
            c->r->outside++;
        else
            list_add(c, is_ignorable(name + strlen(prefix)) ? &c->r->ignored : &c->r->unexpected, name);
    }
}

static kd_status check_all(const kd_weights *w, kd_vit_report *r, kd_err *err)
{
    const kd_vit_spec *s = &r->spec;
    kd_vit_file f;
    kd_vit_param list[KD_VIT_BLOCK_PARAMS];
    check c = {.f = &f, .r = r, .err = err, .status = KD_OK};
    kd_vit_look(&f, w, s);
    KD_TRY(kd_alloc_array(&c.seen, (size_t)kd_weights_count(w) + 1, 1, err));
    expect_params(&c, list, kd_vit_stem_params(&f, list), -1);
    for (int block = 0; block < s->depth; block++) {
        expect_params(&c, list, kd_vit_block_params(&f, list), block);
        if (f.has_mask)
            expect(&c, kd_vit_find_in_block(&f, block, f.style->bias_mask), block, &(kd_vit_source){f.style->bias_mask, 1, {3 * (int64_t)s->width}});
    }
    if (s->periods_from_file)
        expect(&c, kd_vit_find(w, s, f.style->periods), -1, &(kd_vit_source){f.style->periods, 1, {s->periods}});
    sort_the_rest(&c);
    kd_free(c.seen);
    return c.status;
}

/* -- the sentence ---------------------------------------------------------------------------------------------------------------------- */

static void say(char *text, size_t size, const kd_vit_list *list, const char *one, const char *many, int quoted)
{
    size_t used = strlen(text);
    if (list->count == 0)
        return;
    used += (size_t)snprintf(text + used, size - used, "%s%zu %s: ", used > 0 ? "; " : "", list->count, list->count == 1 ? one : many);
    for (size_t i = 0; i < list->count && i < SENTENCE_NAMES && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, quoted ? "%s'%.90s'" : "%s%.200s", i > 0 ? ", " : "", list->name[i]);
    if (list->count > SENTENCE_NAMES && used < size)
        snprintf(text + used, size - used, ", ...");
}

static void say_what_is_wrong(const kd_weights *w, kd_vit_report *r)
{
    char text[800] = "";
    if (r->missing.count + r->unexpected.count + r->misshapen.count == 0)
        return;
    say(text, sizeof text, &r->missing, "missing tensor", "missing tensors", 1);
    say(text, sizeof text, &r->misshapen, "wrong tensor", "wrong tensors", 0);
    say(text, sizeof text, &r->unexpected, "unexpected tensor", "unexpected tensors", 1);
    kd_vit_problem(r, "%s: the file looks like %s in the %s layout, but has %s; use the complete file as it was published", kd_weights_path(w), r->spec.name, kd_vit_layout_name(r->spec.layout), text);
}

/* -- all together ---------------------------------------------------------------------------------------------------------------------- */

static kd_status inspect(const kd_weights *w, const char *prefix, kd_vit_report *r, kd_err *err)
{
    kd_vit_spec *s = &r->spec;
    const char *anchor = find_model(w, prefix, r);
    if (anchor != NULL)
        read_patch_embed(w, anchor, r);
    if (r->problem[0] == '\0')
        classify(w, anchor, r);
    if (r->problem[0] == '\0')
        KD_TRY(read_numbers(w, r, err));
    if (r->problem[0] != '\0') {
        kd_vit_foreign(w, s->prefix, 0, r);
        return KD_OK;
    }
    s->positions = (kd_pos_profile)s->layout;
    s->normalisation = normalisation_of(w, s);
    KD_TRY(kd_vit_sidecars(w, r, err));
    read_heads(w, r);
    if (r->problem[0] != '\0')
        return KD_OK;
    kd_vit_set_defaults(s);
    kd_vit_set_name(s);
    r->have_spec = 1;
    KD_TRY(check_all(w, r, err));
    say_what_is_wrong(w, r);
    return KD_OK;
}

kd_status kd_vit_inspect(const kd_weights *w, const char *prefix, kd_vit_report *r, kd_err *err)
{
    memset(r, 0, sizeof *r);
    r->names = kd_arena_create();
    if (r->names == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the report", kd_weights_path(w));
    kd_status status = inspect(w, prefix, r, err);
    if (status != KD_OK)
        kd_vit_report_free(r);
    else if (r->problem[0] != '\0')
        kd_vit_lone_shard(w, r);
    return status;
}

void kd_vit_report_free(kd_vit_report *r)
{
    kd_arena_destroy(r->names);
    r->names = NULL;
}

kd_status kd_vit_detect(const kd_weights *w, const char *prefix, kd_vit_spec *spec, kd_err *err)
{
    kd_vit_report r;
    KD_TRY(kd_vit_inspect(w, prefix, &r, err));
    kd_status status = KD_OK;
    if (r.problem[0] != '\0')
        status = kd_fail(err, KD_EUSAGE, "%s", r.problem);
    else
        *spec = r.spec;
    kd_vit_report_free(&r);
    return status;
}
