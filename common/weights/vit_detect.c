/* Which ViT a weight file holds. First the anchor (the patch embedding) with the prefix before it, then the numbers from shapes, then
 * every tensor by name: each expected one exactly once with its shape, and nothing unexpected. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/weights/vit_parts.h"

/* Generous bounds (ViT-7B: width 4096, depth 40), so that later products stay small whatever a file claims. */
enum { MAX_WIDTH = 16384, MAX_DEPTH = 256, MAX_PATCH = 64, MAX_GRID = 1024, MAX_HIDDEN = 65536, HEAD_WIDTH = 64, LISTED = 4 };

static const char anchor[] = "patch_embed.proj.weight";

/* -- small helpers ----------------------------------------------------------------------------------------------------------- */

static int has_prefix(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

static int has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n >= k && strcmp(name + n - k, suffix) == 0;
}

/* Ends in `tail`, which begins a dotted component: "a.patch_embed.x" but not "my_patch_embed.x". */
static int ends_in_path(const char *name, const char *tail)
{
    size_t n = strlen(name), k = strlen(tail);
    return has_suffix(name, tail) && (n == k || name[n - k - 1] == '.');
}

static int find_prefixed(const kd_weights *w, const kd_vit_spec *s, const char *name)
{
    char full[sizeof s->prefix + 128];
    snprintf(full, sizeof full, "%s%s", s->prefix, name);
    return kd_weights_find(w, full);
}

/* The tensor PREFIX+name, which must be there and hold floating-point numbers. */
static kd_status require(const kd_weights *w, const kd_vit_spec *s, const char *name, kd_tensor *t, kd_err *err)
{
    int i = find_prefixed(w, s, name);
    if (i < 0)
        return kd_fail(err, KD_EUSAGE, "%s: tensor '%s%s' is missing; the file isn't a complete ViT of the DINOv2 or timm layout",
                       kd_weights_path(w), s->prefix, name);
    *t = kd_weights_info(w, i);
    if (t->dtype != KD_F32 && t->dtype != KD_F16 && t->dtype != KD_BF16 && t->dtype != KD_F64)
        return kd_fail(err, KD_EUSAGE, "%s: tensor '%s' is %s; weights must be floating point", kd_weights_path(w), t->name,
                       kd_dtype_name(t->dtype));
    return KD_OK;
}

static kd_status require_shape(const kd_weights *w, const kd_vit_spec *s, const char *name, const int64_t *shape, int rank, kd_err *err)
{
    kd_tensor t;
    char got[128], want[128];
    KD_TRY(require(w, s, name, &t, err));
    if (!kd_shape_equal(t.shape, t.rank, shape, rank))
        return kd_fail(err, KD_EUSAGE, "%s: tensor '%s' has shape %s, expected %s for a ViT of width %d and patch %d", kd_weights_path(w), t.name,
                       kd_shape_text(t.shape, t.rank, got, sizeof got), kd_shape_text(shape, rank, want, sizeof want), s->width, s->patch);
    return KD_OK;
}

static kd_status bad_shape(const kd_weights *w, const kd_tensor *t, const char *why, kd_err *err)
{
    char shape[128];
    return kd_fail(err, KD_EUSAGE, "%s: tensor '%s' has shape %s: %s", kd_weights_path(w), t->name,
                   kd_shape_text(t->shape, t->rank, shape, sizeof shape), why);
}

/* -- families that are known but not read ------------------------------------------------------------------------------------ */

static const struct other_family {
    const char *tail; /* a tensor name that only this family has */
    const char *what;
} other_families[] = {
    {"embeddings.patch_embeddings.projection.weight",
     "has the Hugging Face layout (encoder.layer.N ...), which isn't read yet; use the official .pth of the same model"},
    {"embeddings.patch_embeddings.weight", "is a DINOv3 model in the Hugging Face layout, which isn't read yet; use a DINOv2 model without registers"},
    {"rope_embed.periods", "is a DINOv3 model, which isn't read yet; use a DINOv2 model without registers"},
    {"storage_tokens", "is a DINOv3 model, which isn't read yet; use a DINOv2 model without registers"},
    {"register_tokens", "is a DINOv2 model with registers, which isn't read yet; use the model without registers (file name without _reg4)"},
    {"reg_token", "is a timm ViT with register tokens, which isn't read yet; use a model without registers"},
    {"rope.periods", "is a ViT with rotary positions (DINOv3 or EVA), which isn't read yet; use a DINOv2 model without registers"},
    {"blocks.0.gamma_1", "is a timm EVA or DINOv3 model, which isn't read yet; use a DINOv2 model without registers"},
    {"blocks.0.0.norm1.weight",
     "is a DINOv2 training checkpoint with chunked blocks (block_chunks), which isn't read yet; use the released backbone file"},
};

static kd_status refuse_other_families(const kd_weights *w, kd_err *err)
{
    for (size_t f = 0; f < sizeof other_families / sizeof other_families[0]; f++)
        for (int i = 0; i < kd_weights_count(w); i++) {
            kd_tensor t = kd_weights_info(w, i);
            if (ends_in_path(t.name, other_families[f].tail))
                return kd_fail(err, KD_EUSAGE, "%s: %s (it has the tensor '%s')", kd_weights_path(w), other_families[f].what, t.name);
        }
    return KD_OK;
}

/* -- anchor and numbers ------------------------------------------------------------------------------------------------------ */

/* A training checkpoint holds student and teacher; the teacher's (averaged) weights are the ones meant. */
static kd_status find_prefix(const kd_weights *w, const char *prefix, kd_vit_spec *s, kd_err *err)
{
    if (prefix != NULL) {
        size_t given = strlen(prefix);
        int dotted = given > 0 && prefix[given - 1] != '.';
        if (snprintf(s->prefix, sizeof s->prefix, "%s%s", prefix, dotted ? "." : "") >= (int)sizeof s->prefix)
            return kd_fail(err, KD_EUSAGE, "prefix '%.64s...' is longer than %zu bytes", prefix, sizeof s->prefix - 1);
        return KD_OK;
    }
    int first = -1, teacher = -1, found = 0, teachers = 0;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        if (!ends_in_path(name, anchor))
            continue;
        found++;
        if (first < 0)
            first = i;
        if (has_prefix(name, "teacher.")) {
            teachers++;
            teacher = i;
        }
    }
    if (found == 0)
        return kd_fail(err, KD_EUSAGE, "%s: no tensor '%s': the file holds no ViT of the DINOv2 or timm layout", kd_weights_path(w), anchor);
    if (found > 1 && teachers != 1)
        return kd_fail(err, KD_EUSAGE, "%s: %d patch embeddings (one is '%s'): the file holds several ViTs; save the one you mean alone",
                       kd_weights_path(w), found, kd_weights_info(w, first).name);
    const char *name = kd_weights_info(w, found > 1 ? teacher : first).name;
    size_t n = strlen(name) - strlen(anchor);
    if (n >= sizeof s->prefix)
        return kd_fail(err, KD_EUSAGE, "%s: the text before '%s' in the tensor names has %zu bytes; the limit is %zu", kd_weights_path(w), anchor,
                       n, sizeof s->prefix - 1);
    memcpy(s->prefix, name, n);
    s->prefix[n] = '\0';
    return KD_OK;
}

/* Block number of "blocks.N.rest" (rest given back), or -1: another name, a leading zero, a number beyond MAX_DEPTH. */
static int block_number(const char *name, const char **rest)
{
    int n = 0;
    if (!has_prefix(name, "blocks."))
        return -1;
    const char *p = name + strlen("blocks.");
    if (*p == '0' && p[1] != '.')
        return -1;
    const char *start = p;
    for (; *p >= '0' && *p <= '9'; p++)
        if ((n = n * 10 + (*p - '0')) >= MAX_DEPTH)
            return -1;
    if (p == start || *p != '.')
        return -1;
    *rest = p + 1;
    return n;
}

static kd_status read_patch_embed(const kd_weights *w, kd_vit_spec *s, kd_err *err)
{
    kd_tensor t;
    KD_TRY(require(w, s, anchor, &t, err));
    if (t.rank != 4 || t.shape[1] != 3 || t.shape[2] != t.shape[3] || t.shape[2] < 1 || t.shape[2] > MAX_PATCH)
        return bad_shape(w, &t, "a patch embedding is [width, 3, patch, patch] with patch at most 64", err);
    if (t.shape[0] < HEAD_WIDTH || t.shape[0] > MAX_WIDTH || t.shape[0] % HEAD_WIDTH != 0)
        return bad_shape(w, &t, "the width must be a multiple of 64 (heads are 64 wide), at most 16384", err);
    s->width = (int)t.shape[0];
    s->heads = s->width / HEAD_WIDTH;
    s->patch = (int)t.shape[2];
    return KD_OK;
}

static kd_status read_positions(const kd_weights *w, kd_vit_spec *s, kd_err *err)
{
    kd_tensor t;
    KD_TRY(require(w, s, "pos_embed", &t, err));
    if (t.rank != 3 || t.shape[0] != 1 || t.shape[2] != s->width)
        return bad_shape(w, &t, "positions are [1, 1 + grid * grid, width]", err);
    int grid = 1;
    while (grid < MAX_GRID && (int64_t)grid * grid < t.shape[1] - 1)
        grid++;
    if ((int64_t)grid * grid != t.shape[1] - 1)
        return bad_shape(w, &t, "the number of positions isn't one class token plus a square grid", err);
    s->pos_grid = grid;
    return KD_OK;
}

static kd_status read_blocks(const kd_weights *w, kd_vit_spec *s, kd_err *err)
{
    kd_tensor t;
    const char *rest = NULL;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        int n = has_prefix(name, s->prefix) ? block_number(name + strlen(s->prefix), &rest) : -1;
        if (n >= s->depth)
            s->depth = n + 1;
    }
    if (s->depth == 0)
        return kd_fail(err, KD_EUSAGE, "%s: tensor '%sblocks.0.norm1.weight' is missing: the file has no transformer blocks", kd_weights_path(w),
                       s->prefix);
    s->layer_scale = find_prefixed(w, s, "blocks.0.ls1.gamma") >= 0 || find_prefixed(w, s, "blocks.0.ls2.gamma") >= 0;
    s->family = s->layer_scale ? KD_VIT_DINOV2 : KD_VIT_TIMM;
    s->ffn = find_prefixed(w, s, "blocks.0.mlp.w12.weight") >= 0 ? KD_FFN_SWIGLU : KD_FFN_GELU;
    KD_TRY(require(w, s, s->ffn == KD_FFN_GELU ? "blocks.0.mlp.fc1.weight" : "blocks.0.mlp.w12.weight", &t, err));
    int64_t rows = t.rank == 2 ? t.shape[0] : 0;
    if (rows < 2 || rows > MAX_HIDDEN || (s->ffn == KD_FFN_SWIGLU && rows % 2 != 0))
        return bad_shape(w, &t, "the hidden width of the feed-forward layer must be 1 to 65536", err);
    s->ffn_hidden = (int)(s->ffn == KD_FFN_GELU ? rows : rows / 2);
    return KD_OK;
}

/* -- the list of names ------------------------------------------------------------------------------------------------------- */

typedef struct expected {
    const char *name;
    int rank;
    int64_t shape[4];
} expected;

/* The tensors of one block, names without "blocks.N."; returns how many. */
static int block_tensors(const kd_vit_spec *s, expected out[16])
{
    const int64_t d = s->width, h = s->ffn_hidden;
    const expected common[] = {
        {"norm1.weight", 1, {d}},       {"norm1.bias", 1, {d}},     {"attn.qkv.weight", 2, {3 * d, d}},
        {"attn.qkv.bias", 1, {3 * d}},  {"norm2.weight", 1, {d}},   {"attn.proj.weight", 2, {d, d}},
        {"attn.proj.bias", 1, {d}},     {"norm2.bias", 1, {d}},
    };
    const expected gelu[] = {{"mlp.fc1.weight", 2, {h, d}}, {"mlp.fc1.bias", 1, {h}}, {"mlp.fc2.weight", 2, {d, h}}, {"mlp.fc2.bias", 1, {d}}};
    const expected swiglu[] = {
        {"mlp.w12.weight", 2, {2 * h, d}}, {"mlp.w12.bias", 1, {2 * h}}, {"mlp.w3.weight", 2, {d, h}}, {"mlp.w3.bias", 1, {d}}};
    const expected scale[] = {{"ls1.gamma", 1, {d}}, {"ls2.gamma", 1, {d}}};
    memcpy(out, common, sizeof common);
    memcpy(out + 8, s->ffn == KD_FFN_GELU ? gelu : swiglu, sizeof gelu);
    memcpy(out + 12, scale, sizeof scale);
    return s->layer_scale ? 14 : 12;
}

static int stem_tensors(const kd_vit_spec *s, expected out[8])
{
    const int64_t d = s->width, p = s->patch, g = s->pos_grid;
    const expected stem[] = {
        {"cls_token", 3, {1, 1, d}}, {"pos_embed", 3, {1, 1 + g * g, d}}, {"patch_embed.proj.weight", 4, {d, 3, p, p}},
        {"patch_embed.proj.bias", 1, {d}}, {"norm.weight", 1, {d}}, {"norm.bias", 1, {d}},
    };
    memcpy(out, stem, sizeof stem);
    return 6;
}

/* Tensors that belong to training or classification and take no part in features. */
static int is_ignorable(const char *name)
{
    return strcmp(name, "mask_token") == 0 || has_prefix(name, "head.") || has_prefix(name, "dino_head.") || has_prefix(name, "ibot_head.");
}

static int is_expected(const char *name, const expected *stem, int stem_count, const expected *block, int block_count)
{
    const char *rest = NULL;
    const expected *list = stem;
    int n = stem_count;
    if (block_number(name, &rest) >= 0) {
        list = block;
        n = block_count;
        name = rest;
    }
    for (int i = 0; i < n; i++)
        if (strcmp(name, list[i].name) == 0)
            return 1;
    return 0;
}

/* Everything under the prefix must be known. What lies outside (a checkpoint's student, heads, optimizer) is another object. */
static kd_status refuse_unexpected(const kd_weights *w, const kd_vit_spec *s, const expected *stem, int stem_count, const expected *block,
                                   int block_count, kd_err *err)
{
    char list[400] = "";
    int count = 0;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *full = kd_weights_info(w, i).name;
        if (!has_prefix(full, s->prefix))
            continue;
        const char *name = full + strlen(s->prefix);
        if (is_ignorable(name) || is_expected(name, stem, stem_count, block, block_count))
            continue;
        size_t used = strlen(list);
        if (count++ < LISTED)
            snprintf(list + used, sizeof list - used, "%s'%.80s'", used > 0 ? ", " : "", full);
    }
    if (count == 0)
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "%s: %d unexpected tensor%s: %s%s; the file isn't a plain ViT of the %s layout", kd_weights_path(w), count,
                   count > 1 ? "s" : "", list, count > LISTED ? ", ..." : "", s->family == KD_VIT_DINOV2 ? "DINOv2" : "timm");
}

static kd_status check_all(const kd_weights *w, const kd_vit_spec *s, kd_err *err)
{
    expected stem[8], block[16];
    char name[64];
    int stem_count = stem_tensors(s, stem), block_count = block_tensors(s, block);
    for (int i = 0; i < stem_count; i++)
        KD_TRY(require_shape(w, s, stem[i].name, stem[i].shape, stem[i].rank, err));
    for (int b = 0; b < s->depth; b++)
        for (int i = 0; i < block_count; i++) {
            snprintf(name, sizeof name, "blocks.%d.%s", b, block[i].name);
            KD_TRY(require_shape(w, s, name, block[i].shape, block[i].rank, err));
        }
    return refuse_unexpected(w, s, stem, stem_count, block, block_count, err);
}

kd_status kd_vit_detect(const kd_weights *w, const char *prefix, kd_vit_spec *spec, kd_err *err)
{
    kd_vit_spec s = {0};
    KD_TRY(refuse_other_families(w, err));
    KD_TRY(find_prefix(w, prefix, &s, err));
    KD_TRY(read_patch_embed(w, &s, err));
    KD_TRY(read_positions(w, &s, err));
    KD_TRY(read_blocks(w, &s, err));
    KD_TRY(check_all(w, &s, err));
    int timm = s.family == KD_VIT_TIMM;
    s.layout = timm ? KD_VIT_LAYOUT_TIMM : KD_VIT_LAYOUT_OFFICIAL;
    s.positions = timm ? KD_POS_TIMM : KD_POS_OFFICIAL;
    s.normalisation = timm ? "half" : "imagenet";
    kd_vit_set_defaults(&s);
    kd_vit_set_name(&s);
    *spec = s;
    return KD_OK;
}

kd_status kd_vit_inspect(const kd_weights *w, const char *prefix, kd_vit_report *r, kd_err *err)
{
    kd_err found = {0};
    memset(r, 0, sizeof *r);
    r->names = kd_arena_create();
    if (r->names == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the report", kd_weights_path(w));
    r->have_spec = kd_vit_detect(w, prefix, &r->spec, &found) == KD_OK;
    if (!r->have_spec)
        snprintf(r->problem, sizeof r->problem, "%s", found.msg);
    return KD_OK;
}

void kd_vit_report_free(kd_vit_report *r)
{
    kd_arena_destroy(r->names);
    r->names = NULL;
}
