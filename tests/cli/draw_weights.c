/* draw_weights DIR: draws tiny teachers in the layouts that people have on disk, and files that are no teachers, for the tests of kd-precompute. Values are noise.
 *
 *   dinov2.safetensors      official DINOv2, 2 blocks of width 64, no registers       dinov2_reg.safetensors  the same with 4 registers and its mask token
 *   dinov3.safetensors      official DINOv3, 3 blocks, 4 storage tokens, periods      timm.safetensors        plain timm ViT of width 192 with its head
 *   gated.safetensors       the same with gated FFNs (w1, w2, w3)
 *   nested.safetensors      a training checkpoint: student, teacher, heads            sharded/                Hugging Face DINOv2 in two shards with their index
 *   two.safetensors         two ViTs, "left" and "right"                              half/                   the index with one of its two shards
 *   resnet.safetensors      a ResNet's names      text.safetensors  a BERT's names    lacks.safetensors       DINOv2 without one tensor
 *   more.safetensors        DINOv2 with a tensor that nobody knows                    shape.safetensors       DINOv2 with a turned tensor */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/weights/safetensors.h"

enum { MAX_TENSORS = 400 };

typedef struct model {
    kd_tensor t[MAX_TENSORS];
    size_t count;
    kd_arena *arena;
} model;

static const char *folder;

static void must(kd_status status, const kd_err *err)
{
    if (status == KD_OK)
        return;
    fprintf(stderr, "draw_weights: %s\n", err->msg);
    exit(1);
}

/* A tensor of noise around `middle`; sizes after the last are 0. */
static void add(model *m, const char *prefix, const char *name, float middle, int64_t a, int64_t b, int64_t c, int64_t d)
{
    static uint32_t state = 1;
    const int64_t size[] = {a, b, c, d};
    kd_tensor *t = &m->t[m->count++];
    size_t n = 1;
    if (m->arena == NULL)
        m->arena = kd_arena_create();
    t->name = kd_arena_printf(m->arena, "%s%s", prefix, name);
    t->dtype = KD_F32;
    for (; t->rank < 4 && size[t->rank] > 0; t->rank++) {
        t->shape[t->rank] = size[t->rank];
        n *= (size_t)size[t->rank];
    }
    float *v = kd_arena_alloc(m->arena, n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = middle + ((float)(state >> 8) / (1 << 24) - 0.5f) * 0.2f;
    }
    t->data = v;
}

static void save(model *m, const char *name)
{
    char path[1000];
    kd_err err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    must(kd_safetensors_write(path, m->t, m->count, NULL, &err), &err);
    kd_arena_destroy(m->arena);
    memset(m, 0, sizeof *m);
}

static void drop(model *m, const char *name)
{
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->t[i].name, name) == 0)
            m->t[i--] = m->t[--m->count];
}

static void linear(model *m, const char *prefix, const char *name, int64_t out, int64_t in, int bias)
{
    char full[128];
    snprintf(full, sizeof full, "%s.weight", name);
    add(m, prefix, full, 0, out, in, 0, 0);
    snprintf(full, sizeof full, "%s.bias", name);
    if (bias)
        add(m, prefix, full, 0, out, 0, 0, 0);
}

static void norm(model *m, const char *prefix, const char *name, int64_t width)
{
    char full[128];
    snprintf(full, sizeof full, "%s.weight", name);
    add(m, prefix, full, 1, width, 0, 0, 0);
    snprintf(full, sizeof full, "%s.bias", name);
    add(m, prefix, full, 0, width, 0, 0, 0);
}

static const char *in_block(int block, const char *part)
{
    static char name[128];
    snprintf(name, sizeof name, "blocks.%d.%s", block, part);
    return name;
}

static void feed_forward(model *m, const char *prefix, int block, int64_t width, int gated)
{
    if (gated) {
        linear(m, prefix, in_block(block, "mlp.w1"), 2 * width, width, 1);
        linear(m, prefix, in_block(block, "mlp.w2"), 2 * width, width, 1);
        linear(m, prefix, in_block(block, "mlp.w3"), width, 2 * width, 1);
        return;
    }
    linear(m, prefix, in_block(block, "mlp.fc1"), 4 * width, width, 1);
    linear(m, prefix, in_block(block, "mlp.fc2"), width, 4 * width, 1);
}

/* Official and timm names, which differ in LayerScale. */
static void vit(model *m, const char *prefix, int64_t width, int depth, int64_t patch, int layer_scale, int gated)
{
    add(m, prefix, "cls_token", 0, 1, 1, width, 0);
    add(m, prefix, "patch_embed.proj.weight", 0, width, 3, patch, patch);
    add(m, prefix, "patch_embed.proj.bias", 0, width, 0, 0, 0);
    for (int i = 0; i < depth; i++) {
        norm(m, prefix, in_block(i, "norm1"), width);
        linear(m, prefix, in_block(i, "attn.qkv"), 3 * width, width, 1);
        linear(m, prefix, in_block(i, "attn.proj"), width, width, 1);
        norm(m, prefix, in_block(i, "norm2"), width);
        feed_forward(m, prefix, i, width, gated);
        if (layer_scale) {
            add(m, prefix, in_block(i, "ls1.gamma"), 0.5f, width, 0, 0, 0);
            add(m, prefix, in_block(i, "ls2.gamma"), 0.5f, width, 0, 0, 0);
        }
    }
    norm(m, prefix, "norm", width);
}

static void dinov2(model *m, const char *prefix, int registers)
{
    vit(m, prefix, 64, 2, 14, 1, 0);
    add(m, prefix, "pos_embed", 0, 1, 1 + 5 * 5, 64, 0);
    add(m, prefix, "mask_token", 0, 1, 64, 0, 0);
    if (registers)
        add(m, prefix, "register_tokens", 0, 1, registers, 64, 0);
}

static void dinov3(model *m, int gated)
{
    vit(m, "", 64, 3, 16, 1, gated);
    add(m, "", "storage_tokens", 0, 1, 4, 64, 0);
    add(m, "", "mask_token", 0, 1, 64, 0, 0);
    add(m, "", "rope_embed.periods", 2, 16, 0, 0, 0);
    for (int i = 0; i < 3; i++)
        add(m, "", in_block(i, "attn.qkv.bias_mask"), 1, 3 * 64, 0, 0, 0);
}

static void hugging_face(model *m)
{
    static const char *const third[] = {"query", "key", "value"};
    add(m, "embeddings.", "cls_token", 0, 1, 1, 64, 0);
    add(m, "embeddings.", "mask_token", 0, 1, 64, 0, 0);
    add(m, "embeddings.", "position_embeddings", 0, 1, 1 + 5 * 5, 64, 0);
    add(m, "embeddings.", "patch_embeddings.projection.weight", 0, 64, 3, 14, 14);
    add(m, "embeddings.", "patch_embeddings.projection.bias", 0, 64, 0, 0, 0);
    for (int i = 0; i < 2; i++) {
        char prefix[64], name[64];
        snprintf(prefix, sizeof prefix, "encoder.layer.%d.", i);
        norm(m, prefix, "norm1", 64);
        norm(m, prefix, "norm2", 64);
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "attention.attention.%s", third[k]);
            linear(m, prefix, name, 64, 64, 1);
        }
        linear(m, prefix, "attention.output.dense", 64, 64, 1);
        linear(m, prefix, "mlp.fc1", 256, 64, 1);
        linear(m, prefix, "mlp.fc2", 64, 256, 1);
        add(m, prefix, "layer_scale1.lambda1", 0.5f, 64, 0, 0, 0);
        add(m, prefix, "layer_scale2.lambda1", 0.5f, 64, 0, 0, 0);
    }
    norm(m, "", "layernorm", 64);
}

/* Splits m over two shards (the second only where it is wanted) and writes the index that lists both. */
static void save_shards(model *m, const char *sub, int both)
{
    char path[1000];
    kd_err err = {0};
    model part[2] = {{.count = 0}};
    json_t *map = json_object();
    snprintf(path, sizeof path, "%s/%s", folder, sub);
    must(kd_io_mkdirs(path, &err), &err);
    for (size_t i = 0; i < m->count; i++) {
        size_t which = i >= m->count / 2;
        snprintf(path, sizeof path, "model-%05zu-of-00002.safetensors", which + 1);
        json_object_set_new(map, m->t[i].name, json_string(path));
        part[which].t[part[which].count++] = m->t[i];
    }
    for (size_t k = 0; k < (both ? 2 : 1); k++) {
        snprintf(path, sizeof path, "%s/model-%05zu-of-00002.safetensors", sub, k + 1);
        save(&part[k], path);
    }
    snprintf(path, sizeof path, "%s/%s/model.safetensors.index.json", folder, sub);
    json_t *index = json_pack("{s:{}, s:o}", "metadata", "weight_map", map);
    if (json_dump_file(index, path, JSON_INDENT(2)) != 0)
        exit(1);
    json_decref(index);
    kd_arena_destroy(m->arena);
    memset(m, 0, sizeof *m);
}

static void draw_teachers(model *m)
{
    dinov2(m, "", 0);
    save(m, "dinov2.safetensors");
    dinov2(m, "", 4);
    save(m, "dinov2_reg.safetensors");
    dinov3(m, 0);
    save(m, "dinov3.safetensors");
    dinov3(m, 1);
    save(m, "gated.safetensors");
    vit(m, "", 192, 2, 16, 0, 0);
    add(m, "", "pos_embed", 0, 1, 1 + 14 * 14, 192, 0);
    linear(m, "", "head", 10, 192, 1);
    save(m, "timm.safetensors");
    dinov2(m, "student.backbone.", 0);
    dinov2(m, "teacher.backbone.", 0);
    linear(m, "teacher.dino_head.", "last_layer", 128, 64, 0);
    save(m, "nested.safetensors");
    hugging_face(m);
    save_shards(m, "sharded", 1);
}

static void draw_others(model *m)
{
    dinov2(m, "left.", 0);
    dinov2(m, "right.", 4);
    save(m, "two.safetensors");
    hugging_face(m);
    save_shards(m, "half", 0);
    add(m, "", "conv1.weight", 0, 64, 3, 7, 7);
    norm(m, "", "bn1", 64);
    add(m, "", "layer1.0.conv1.weight", 0, 64, 64, 3, 3);
    norm(m, "", "layer1.0.bn1", 64);
    linear(m, "", "fc", 10, 64, 1);
    save(m, "resnet.safetensors");
    add(m, "bert.embeddings.", "word_embeddings.weight", 0, 100, 64, 0, 0);
    add(m, "bert.embeddings.", "position_embeddings.weight", 0, 32, 64, 0, 0);
    linear(m, "bert.encoder.layer.0.", "attention.self.query", 64, 64, 1);
    norm(m, "bert.embeddings.", "LayerNorm", 64);
    save(m, "text.safetensors");
    dinov2(m, "", 0);
    drop(m, "blocks.1.ls1.gamma");
    save(m, "lacks.safetensors");
    dinov2(m, "", 0);
    add(m, "blocks.1.", "adapter.down.weight", 0, 8, 64, 0, 0);
    save(m, "more.safetensors");
    dinov2(m, "", 0);
    drop(m, "pos_embed");
    add(m, "", "pos_embed", 0, 1, 64, 26, 0);
    save(m, "shape.safetensors");
}

int main(int argc, char **argv)
{
    static model m;
    kd_err err = {0};
    if (argc != 2)
        return 2;
    folder = argv[1];
    must(kd_io_mkdirs(folder, &err), &err);
    draw_teachers(&m);
    draw_others(&m);
    return 0;
}
