/* For the tests of ViT detection: weight files of every family and layout, as small as can be, tensor by tensor, with values of their own. */
#ifndef KD_TESTS_VIT_FILES_H
#define KD_TESTS_VIT_FILES_H

#include "common/base/json.h"
#include "common/weights/vit_spec.h"
#include "tests/weight_files.h"

enum { VF_TENSORS = 800, VF_NAME = 256, VF_VALUES = 1 << 21 };

typedef struct vf_file {
    kd_tensor t[VF_TENSORS];
    char names[VF_TENSORS][VF_NAME];
    int count;
    size_t values;
} vf_file;

static vf_file vf;
static float vf_pool[VF_VALUES];
static int vf_holes; /* large tensors are left as holes: for tests that look at names and shapes only */

static inline void vf_clear(void) { vf.count = 0, vf.values = 0; }

/* F32 with values that differ from tensor to tensor and inside a tensor. */
static inline kd_tensor *vf_add(const char *prefix, const char *name, int rank, const int64_t *shape)
{
    assert_true(vf.count < VF_TENSORS);
    kd_tensor *t = &vf.t[vf.count];
    assert_true(snprintf(vf.names[vf.count], VF_NAME, "%s%s", prefix, name) < VF_NAME);
    *t = (kd_tensor){.name = vf.names[vf.count], .dtype = KD_F32, .rank = rank, .data = vf_pool + vf.values};
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    size_t n = kd_tensor_numel(t);
    assert_true(n <= VF_VALUES - vf.values);
    for (size_t i = 0; i < n; i++)
        vf_pool[vf.values + i] = (float)(vf.count + 1) + (float)(i % 4096) / 4096.0f;
    vf.values += n;
    vf.count++;
    return t;
}
#define VF_ADD(prefix, name, ...) vf_add(prefix, name, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})

static inline void vf_add_pair(const char *prefix, const char *name, int64_t rows, int64_t columns)
{
    char full[VF_NAME];
    snprintf(full, sizeof full, "%s.weight", name);
    if (columns > 0)
        VF_ADD(prefix, full, rows, columns);
    else
        VF_ADD(prefix, full, rows);
    snprintf(full, sizeof full, "%s.bias", name);
    VF_ADD(prefix, full, rows);
}

/* -- whole models -------------------------------------------------------------------------------------------------------------------- */

/* 64 wide, 2 blocks, grid 3 x 3, hidden 96. */
enum { VF_D = 64, VF_DEPTH = 2, VF_GRID = 3, VF_HIDDEN = 96, VF_REGISTERS = 4 };

typedef enum vf_kind {
    VF_DINOV2_OFFICIAL, VF_DINOV2_HF, VF_DINOV2_HF5, VF_DINOV2_TIMM, VF_DINOV3_OFFICIAL, VF_DINOV3_HF, VF_DINOV3_HF5, VF_DINOV3_TIMM, VF_PLAIN, VF_KINDS
} vf_kind;

static inline int vf_is_hf(vf_kind k) { return k == VF_DINOV2_HF || k == VF_DINOV2_HF5 || k == VF_DINOV3_HF || k == VF_DINOV3_HF5; }
static inline int vf_is_dinov3(vf_kind k) { return k >= VF_DINOV3_OFFICIAL && k <= VF_DINOV3_TIMM; }
static inline int64_t vf_patch(vf_kind k) { return vf_is_dinov3(k) || k == VF_PLAIN ? 16 : 14; }

static inline void vf_stem_hf(const char *prefix, vf_kind k, int registers)
{
    int v3 = vf_is_dinov3(k);
    int64_t p = vf_patch(k);
    VF_ADD(prefix, "embeddings.cls_token", 1, 1, VF_D);
    if (v3)
        VF_ADD(prefix, "embeddings.mask_token", 1, 1, VF_D);
    else
        VF_ADD(prefix, "embeddings.mask_token", 1, VF_D);
    if (registers)
        VF_ADD(prefix, "embeddings.register_tokens", 1, VF_REGISTERS, VF_D);
    if (!v3)
        VF_ADD(prefix, "embeddings.position_embeddings", 1, 1 + VF_GRID * VF_GRID, VF_D);
    VF_ADD(prefix, v3 ? "embeddings.patch_embeddings.weight" : "embeddings.patch_embeddings.projection.weight", VF_D, 3, p, p);
    VF_ADD(prefix, v3 ? "embeddings.patch_embeddings.bias" : "embeddings.patch_embeddings.projection.bias", VF_D);
    vf_add_pair(prefix, v3 ? "norm" : "layernorm", VF_D, 0);
}

static inline void vf_stem(const char *prefix, vf_kind k, int registers)
{
    int64_t p = vf_patch(k);
    VF_ADD(prefix, "cls_token", 1, 1, VF_D);
    if (k == VF_DINOV2_OFFICIAL || k == VF_DINOV3_OFFICIAL)
        VF_ADD(prefix, "mask_token", 1, VF_D);
    if (!vf_is_dinov3(k))
        VF_ADD(prefix, "pos_embed", 1, (k == VF_DINOV2_TIMM && registers ? 0 : 1) + VF_GRID * VF_GRID, VF_D);
    if (registers)
        VF_ADD(prefix, k == VF_DINOV2_OFFICIAL ? "register_tokens" : k == VF_DINOV3_OFFICIAL ? "storage_tokens" : "reg_token", 1, VF_REGISTERS, VF_D);
    if (k == VF_DINOV3_OFFICIAL) {
        kd_tensor *t = VF_ADD(prefix, "rope_embed.periods", VF_D / 4);
        for (int i = 0; i < VF_D / 4; i++)
            ((float *)t->data)[i] = (float)(1 + i);
    }
    VF_ADD(prefix, "patch_embed.proj.weight", VF_D, 3, p, p);
    VF_ADD(prefix, "patch_embed.proj.bias", VF_D);
    vf_add_pair(prefix, "norm", VF_D, 0);
}

static inline void vf_ffn(const char *p, vf_kind k, int swiglu)
{
    if (!swiglu && (k == VF_DINOV3_HF || k == VF_DINOV3_HF5)) {
        vf_add_pair(p, "mlp.up_proj", VF_HIDDEN, VF_D);
        vf_add_pair(p, "mlp.down_proj", VF_D, VF_HIDDEN);
    } else if (!swiglu) {
        vf_add_pair(p, "mlp.fc1", VF_HIDDEN, VF_D);
        vf_add_pair(p, "mlp.fc2", VF_D, VF_HIDDEN);
    } else if (k == VF_DINOV2_OFFICIAL || k == VF_DINOV2_HF || k == VF_DINOV2_TIMM || k == VF_PLAIN) {
        vf_add_pair(p, k == VF_DINOV2_OFFICIAL ? "mlp.w12" : k == VF_DINOV2_HF ? "mlp.weights_in" : "mlp.fc1", 2 * VF_HIDDEN, VF_D);
        vf_add_pair(p, k == VF_DINOV2_OFFICIAL ? "mlp.w3" : k == VF_DINOV2_HF ? "mlp.weights_out" : "mlp.fc2", VF_D, VF_HIDDEN);
    } else {
        vf_add_pair(p, k == VF_DINOV3_OFFICIAL ? "mlp.w1" : k == VF_DINOV3_TIMM ? "mlp.fc1_g" : "mlp.gate_proj", VF_HIDDEN, VF_D);
        vf_add_pair(p, k == VF_DINOV3_OFFICIAL ? "mlp.w2" : k == VF_DINOV3_TIMM ? "mlp.fc1_x" : "mlp.up_proj", VF_HIDDEN, VF_D);
        vf_add_pair(p, k == VF_DINOV3_OFFICIAL ? "mlp.w3" : k == VF_DINOV3_TIMM ? "mlp.fc2" : "mlp.down_proj", VF_D, VF_HIDDEN);
    }
}

static inline void vf_attention(const char *p, vf_kind k)
{
    if (k == VF_DINOV2_HF) {
        vf_add_pair(p, "attention.attention.query", VF_D, VF_D);
        vf_add_pair(p, "attention.attention.key", VF_D, VF_D);
        vf_add_pair(p, "attention.attention.value", VF_D, VF_D);
        vf_add_pair(p, "attention.output.dense", VF_D, VF_D);
    } else if (vf_is_hf(k)) {
        vf_add_pair(p, "attention.q_proj", VF_D, VF_D);
        if (vf_is_dinov3(k))
            VF_ADD(p, "attention.k_proj.weight", VF_D, VF_D);
        else
            vf_add_pair(p, "attention.k_proj", VF_D, VF_D);
        vf_add_pair(p, "attention.v_proj", VF_D, VF_D);
        vf_add_pair(p, "attention.o_proj", VF_D, VF_D);
    } else {
        VF_ADD(p, "attn.qkv.weight", 3 * VF_D, VF_D);
        if (k == VF_DINOV3_TIMM) {
            VF_ADD(p, "attn.q_bias", VF_D);
            VF_ADD(p, "attn.v_bias", VF_D);
        } else {
            VF_ADD(p, "attn.qkv.bias", 3 * VF_D);
        }
        if (k == VF_DINOV3_OFFICIAL) {
            kd_tensor *t = VF_ADD(p, "attn.qkv.bias_mask", 3 * VF_D);
            for (int i = 0; i < 3 * VF_D; i++)
                ((float *)t->data)[i] = i / VF_D == 1 ? 0 : 1;
        }
        vf_add_pair(p, "attn.proj", VF_D, VF_D);
    }
}

/* numbered: "blocks.0.", "layer.1." and so on. */
static inline void vf_block(const char *prefix, const char *numbered, vf_kind k, int swiglu)
{
    char p[VF_NAME];
    assert_true(snprintf(p, sizeof p, "%s%s", prefix, numbered) < (int)sizeof p);
    vf_add_pair(p, "norm1", VF_D, 0);
    vf_attention(p, k);
    vf_add_pair(p, "norm2", VF_D, 0);
    vf_ffn(p, k, swiglu);
    if (k == VF_PLAIN)
        return;
    VF_ADD(p, vf_is_hf(k) ? "layer_scale1.lambda1" : k == VF_DINOV3_TIMM ? "gamma_1" : "ls1.gamma", VF_D);
    VF_ADD(p, vf_is_hf(k) ? "layer_scale2.lambda1" : k == VF_DINOV3_TIMM ? "gamma_2" : "ls2.gamma", VF_D);
}

static inline const char *vf_blocks(vf_kind k)
{
    return k == VF_DINOV2_HF || k == VF_DINOV2_HF5 ? "encoder.layer." : k == VF_DINOV3_HF ? "layer." : k == VF_DINOV3_HF5 ? "model.layer." : "blocks.";
}

/* Appends a whole model. */
static inline void vf_model(const char *prefix, vf_kind k, int registers, int swiglu)
{
    char numbered[64];
    if (vf_is_hf(k))
        vf_stem_hf(prefix, k, registers);
    else
        vf_stem(prefix, k, registers);
    for (int i = 0; i < VF_DEPTH; i++) {
        snprintf(numbered, sizeof numbered, "%s%d.", vf_blocks(k), i);
        vf_block(prefix, numbered, k, swiglu);
    }
}

/* -- changing and looking ------------------------------------------------------------------------------------------------------------ */

static inline kd_tensor *vf_tensor(const char *name)
{
    for (int i = 0; i < vf.count; i++)
        if (strcmp(vf.names[i], name) == 0)
            return &vf.t[i];
    fail_msg("no tensor %s in the file", name);
    return NULL;
}

static inline void vf_remove(const char *name)
{
    for (int i = (int)(vf_tensor(name) - vf.t); i + 1 < vf.count; i++) {
        memcpy(vf.names[i], vf.names[i + 1], VF_NAME);
        vf.t[i] = vf.t[i + 1];
        vf.t[i].name = vf.names[i];
    }
    vf.count--;
}

/* Takes every tensor away whose name contains the text. */
static inline void vf_remove_all(const char *text)
{
    for (int i = vf.count - 1; i >= 0; i--)
        if (strstr(vf.names[i], text) != NULL)
            vf_remove(vf.names[i]);
}

static inline const char *vf_dtype(kd_dtype t) { return t == KD_F32 ? "F32" : t == KD_F16 ? "F16" : t == KD_BF16 ? "BF16" : t == KD_F64 ? "F64" : "I16"; }

/* Writes the file under this name (it may contain folders that exist) and opens it; the caller removes it. Written here, since thousands of files needn't reach the disk as kd_safetensors_write
 * makes sure of. */
static inline kd_weights *vf_open(const char *path)
{
    json_t *header = json_object();
    size_t end = 0;
    for (int i = 0; i < vf.count; i++) {
        const kd_tensor *t = &vf.t[i];
        json_t *shape = json_array();
        for (int d = 0; d < t->rank; d++)
            json_array_append_new(shape, json_integer(t->shape[d]));
        size_t bytes = kd_tensor_numel(t) * kd_dtype_size(t->dtype);
        assert_int_equal(json_object_set_new(header, t->name, json_pack("{s:s, s:o, s:[I,I]}", "dtype", vf_dtype(t->dtype), "shape", shape, "data_offsets", (json_int_t)end, (json_int_t)(end + bytes))), 0);
        end += bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t size = strlen(text);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(&size, 1, 8, f), 8);
    assert_int_equal(fwrite(text, 1, size, f), size);
    for (int i = 0; i < vf.count; i++) {
        size_t n = kd_tensor_numel(&vf.t[i]);
        size_t each = kd_dtype_size(vf.t[i].dtype);
        if (vf_holes && n > 3 * VF_D)
            assert_int_equal(fseek(f, (long)(n * each), SEEK_CUR), 0);
        else
            assert_int_equal(fwrite(vf.t[i].data, each, n, f), n);
    }
    assert_int_equal(fflush(f), 0);
    assert_int_equal(ftruncate(fileno(f), (off_t)(8 + size + end)), 0);
    assert_int_equal(fclose(f), 0);
    free(text);
    json_decref(header);
    kd_err err = {0};
    kd_weights *w = NULL;
    if (kd_weights_open(&w, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
    return w;
}

static inline kd_status vf_detect_as(const char *path, const char *prefix, kd_vit_spec *s, kd_err *err)
{
    kd_weights *w = vf_open(path);
    unlink(path);
    kd_status status = kd_vit_detect(w, prefix, s, err);
    kd_weights_close(w);
    return status;
}

static inline kd_status vf_detect(const char *prefix, kd_vit_spec *s, kd_err *err) { return vf_detect_as(wf_path("vit.safetensors"), prefix, s, err); }

static inline void vf_accepted(const char *prefix, kd_vit_spec *s)
{
    kd_err err = {0};
    memset(s, 0xff, sizeof *s);
    if (vf_detect(prefix, s, &err) != KD_OK)
        fail_msg("refused: %s", err.msg);
}

static inline void vf_refused(const char *prefix, const char *why)
{
    kd_vit_spec s;
    kd_err err = {0};
    kd_status status = vf_detect(prefix, &s, &err);
    if (status != KD_EUSAGE)
        fail_msg("expected a refusal with '%s', got status %d: %s", why, (int)status, err.msg);
    if (strstr(err.msg, why) == NULL)
        fail_msg("expected '%s' in: %s", why, err.msg);
}

#endif
