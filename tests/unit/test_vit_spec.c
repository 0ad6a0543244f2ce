/* Which ViT a file holds: the families that are read, and one sentence for everything else. */
#include "common/weights/vit_spec.h"

#include "common/weights/safetensors.h"
#include "tests/weight_files.h"

/* -- a weight file made of names and shapes ---------------------------------------------------------------------------------- */

enum { MAX_TENSORS = 800, MAX_ELEMENTS = 1 << 16 };

typedef struct list {
    kd_tensor t[MAX_TENSORS];
    char names[MAX_TENSORS][256];
    int count;
} list;

static float values[MAX_ELEMENTS];
static list file;

static kd_tensor *add(const char *prefix, const char *name, int rank, const int64_t *shape)
{
    assert_true(file.count < MAX_TENSORS);
    kd_tensor *t = &file.t[file.count];
    snprintf(file.names[file.count], sizeof file.names[0], "%s%s", prefix, name);
    *t = (kd_tensor){.name = file.names[file.count], .dtype = KD_F16, .rank = rank, .data = values};
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    assert_true(kd_tensor_numel(t) * 2 <= sizeof values);
    file.count++;
    return t;
}
#define ADD(prefix, name, ...) \
    add(prefix, name, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})

static void add_block(const char *prefix, int n, int64_t d, int64_t hidden, int scale, int swiglu)
{
    char p[96];
    snprintf(p, sizeof p, "%sblocks.%d.", prefix, n);
    ADD(p, "norm1.weight", d);
    ADD(p, "norm1.bias", d);
    ADD(p, "attn.qkv.weight", 3 * d, d);
    ADD(p, "attn.qkv.bias", 3 * d);
    ADD(p, "attn.proj.weight", d, d);
    ADD(p, "attn.proj.bias", d);
    ADD(p, "norm2.weight", d);
    ADD(p, "norm2.bias", d);
    ADD(p, swiglu ? "mlp.w12.weight" : "mlp.fc1.weight", swiglu ? 2 * hidden : hidden, d);
    ADD(p, swiglu ? "mlp.w12.bias" : "mlp.fc1.bias", swiglu ? 2 * hidden : hidden);
    ADD(p, swiglu ? "mlp.w3.weight" : "mlp.fc2.weight", d, hidden);
    ADD(p, swiglu ? "mlp.w3.bias" : "mlp.fc2.bias", d);
    if (scale) {
        ADD(p, "ls1.gamma", d);
        ADD(p, "ls2.gamma", d);
    }
}

static void add_vit(const char *prefix, int64_t d, int depth, int64_t patch, int64_t grid, int64_t hidden, int scale, int swiglu)
{
    ADD(prefix, "cls_token", 1, 1, d);
    ADD(prefix, "pos_embed", 1, 1 + grid * grid, d);
    ADD(prefix, "patch_embed.proj.weight", d, 3, patch, patch);
    ADD(prefix, "patch_embed.proj.bias", d);
    for (int i = 0; i < depth; i++)
        add_block(prefix, i, d, hidden, scale, swiglu);
    ADD(prefix, "norm.weight", d);
    ADD(prefix, "norm.bias", d);
}

static void small_dinov2(const char *prefix)
{
    file.count = 0;
    add_vit(prefix, 64, 2, 14, 3, 128, 1, 0);
    ADD(prefix, "mask_token", 1, 64);
}

static kd_tensor *tensor_of(const char *name)
{
    for (int i = 0; i < file.count; i++)
        if (strcmp(file.names[i], name) == 0)
            return &file.t[i];
    fail_msg("no tensor %s to change", name);
    return NULL;
}

static void remove_tensor(const char *name)
{
    int at = (int)(tensor_of(name) - file.t);
    for (int i = at; i + 1 < file.count; i++) {
        memcpy(file.names[i], file.names[i + 1], sizeof file.names[i]);
        file.t[i] = file.t[i + 1];
        file.t[i].name = file.names[i];
    }
    file.count--;
}

static kd_status detect(kd_vit_spec *s, kd_err *err)
{
    const char *path = wf_path("vit.safetensors");
    kd_weights *w = NULL;
    assert_int_equal(kd_safetensors_write(path, file.t, (size_t)file.count, NULL, err), KD_OK);
    assert_int_equal(kd_weights_open(&w, path, err), KD_OK);
    unlink(path);
    kd_status status = kd_vit_detect(w, NULL, s, err);
    kd_weights_close(w);
    return status;
}

static void accepted(kd_vit_spec *s)
{
    kd_err err = {0};
    memset(s, 0xff, sizeof *s);
    if (detect(s, &err) != KD_OK)
        fail_msg("refused: %s", err.msg);
}

static void refused(const char *why)
{
    kd_vit_spec s;
    kd_err err = {0};
    if (detect(&s, &err) != KD_EUSAGE)
        fail_msg("expected a refusal with '%s'", why);
    if (strstr(err.msg, why) == NULL)
        fail_msg("expected '%s' in: %s", why, err.msg);
}

/* -- what is read ------------------------------------------------------------------------------------------------------------ */

static void dinov2_numbers_come_from_the_file(void **state)
{
    (void)state;
    kd_vit_spec s;
    small_dinov2("");
    accepted(&s);
    assert_int_equal(s.family, KD_VIT_DINOV2);
    assert_int_equal(s.width, 64);
    assert_int_equal(s.depth, 2);
    assert_int_equal(s.heads, 1);
    assert_int_equal(s.patch, 14);
    assert_int_equal(s.ffn, KD_FFN_GELU);
    assert_int_equal(s.ffn_hidden, 128);
    assert_int_equal(s.layer_scale, 1);
    assert_int_equal(s.pos_grid, 3);
    assert_int_equal(s.registers, 0);
    assert_true(s.ln_eps == 1e-6);
    assert_string_equal(s.name, "dinov2 d64 depth2 patch14");
    assert_string_equal(s.prefix, "");
}

static void width_128_depth_11_is_read(void **state)
{
    (void)state;
    kd_vit_spec s;
    file.count = 0;
    add_vit("", 128, 11, 14, 5, 64, 1, 0);
    accepted(&s);
    assert_int_equal(s.heads, 2);
    assert_int_equal(s.depth, 11); /* block 10 isn't block 1 with a zero */
    assert_string_equal(s.name, "dinov2 d128 depth11 patch14");
}

static void packed_swiglu_is_half_its_rows(void **state)
{
    (void)state;
    kd_vit_spec s;
    file.count = 0;
    add_vit("", 64, 1, 14, 2, 96, 1, 1);
    accepted(&s);
    assert_int_equal(s.ffn, KD_FFN_SWIGLU);
    assert_int_equal(s.ffn_hidden, 96);
}

static void timm_vit_has_no_layer_scale(void **state)
{
    (void)state;
    kd_vit_spec s;
    file.count = 0;
    add_vit("", 64, 1, 16, 4, 256, 0, 0);
    ADD("", "head.weight", 10, 64);
    ADD("", "head.bias", 10);
    accepted(&s);
    assert_int_equal(s.family, KD_VIT_TIMM);
    assert_int_equal(s.layer_scale, 0);
    assert_int_equal(s.patch, 16);
    assert_string_equal(s.name, "timm d64 depth1 patch16");
}

static void prefixes_are_found(void **state)
{
    (void)state;
    static const char *const prefixes[] = {"module.", "backbone.", "teacher.backbone.", "_orig_mod."};
    kd_vit_spec s;
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        small_dinov2(prefixes[i]);
        accepted(&s);
        assert_string_equal(s.prefix, prefixes[i]);
        assert_int_equal(s.depth, 2);
    }
}

static void the_teacher_of_a_training_checkpoint_is_taken(void **state)
{
    (void)state;
    kd_vit_spec s;
    file.count = 0;
    add_vit("student.module.backbone.", 64, 1, 14, 2, 64, 1, 0);
    add_vit("teacher.backbone.", 64, 2, 14, 2, 64, 1, 0);
    ADD("", "teacher.dino_head.mlp.0.weight", 4, 64);
    ADD("", "optimizer.state.0.exp_avg", 64);
    accepted(&s);
    assert_string_equal(s.prefix, "teacher.backbone.");
    assert_int_equal(s.depth, 2);
}

/* -- what is refused --------------------------------------------------------------------------------------------------------- */

static void every_missing_tensor_is_named(void **state)
{
    (void)state;
    static char name[200][256];
    small_dinov2("");
    int count = file.count;
    for (int i = 0; i < count; i++)
        memcpy(name[i], file.names[i], sizeof name[i]);
    for (int i = 0; i < count; i++) {
        small_dinov2("");
        remove_tensor(name[i]);
        kd_vit_spec s;
        kd_err err = {0};
        if (strcmp(name[i], "mask_token") == 0) { /* unused in inference */
            assert_int_equal(detect(&s, &err), KD_OK);
            continue;
        }
        assert_int_equal(detect(&s, &err), KD_EUSAGE);
        if (strstr(err.msg, name[i]) == NULL)
            fail_msg("'%s' isn't named in: %s", name[i], err.msg);
    }
}

static void every_wrong_shape_is_named(void **state)
{
    (void)state;
    small_dinov2("");
    int count = file.count;
    for (int i = 0; i < count; i++) {
        small_dinov2("");
        if (strcmp(file.names[i], "mask_token") == 0)
            continue;
        file.t[i].shape[file.t[i].rank - 1] += 1;
        kd_vit_spec s;
        kd_err err = {0};
        assert_int_equal(detect(&s, &err), KD_EUSAGE);
        assert_non_null(strstr(err.msg, "has shape"));
        if (strstr(err.msg, file.names[i]) == NULL)
            fail_msg("'%s' isn't named in: %s", file.names[i], err.msg);
    }
}

static void unexpected_tensors_are_named(void **state)
{
    (void)state;
    small_dinov2("");
    ADD("", "blocks.1.attn.q_norm.weight", 64);
    refused("1 unexpected tensor: 'blocks.1.attn.q_norm.weight'");
    small_dinov2("");
    ADD("", "dist_token", 1, 1, 64);
    refused("'dist_token'");
    small_dinov2("");
    ADD("", "blocks.01.norm1.weight", 64);
    refused("'blocks.01.norm1.weight'");
    small_dinov2("");
    ADD("", "blocks.-1.norm1.weight", 64);
    refused("unexpected");
    small_dinov2("");
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "extra%d", i);
        ADD("", name, 1);
    }
    refused("6 unexpected tensors");
}

static void a_hole_between_blocks_is_a_missing_tensor(void **state)
{
    (void)state;
    small_dinov2("");
    add_block("", 3, 64, 128, 1, 0);
    refused("'blocks.2.norm1.weight' is missing");
    small_dinov2("");
    ADD("", "blocks.4000000000.norm1.weight", 64);
    refused("unexpected");
}

static void numbers_out_of_bounds_are_refused(void **state)
{
    (void)state;
    small_dinov2("");
    tensor_of("patch_embed.proj.weight")->shape[0] = 65;
    refused("multiple of 64");
    small_dinov2("");
    tensor_of("patch_embed.proj.weight")->shape[1] = 4;
    refused("[width, 3, patch, patch]");
    small_dinov2("");
    tensor_of("pos_embed")->shape[1] = 9; /* no class token */
    refused("square grid");
    small_dinov2("");
    tensor_of("norm.weight")->dtype = KD_I16;
    refused("must be floating point");
}

static void files_without_or_with_several_vits_are_refused(void **state)
{
    (void)state;
    file.count = 0;
    ADD("", "conv1.weight", 64, 3, 7, 7);
    refused("holds no ViT");
    file.count = 0;
    add_vit("a.", 64, 1, 14, 2, 64, 1, 0);
    add_vit("b.", 64, 1, 14, 2, 64, 1, 0);
    refused("2 patch embeddings");
    file.count = 0;
    ADD("a.prefix.that.goes.on.and.on.and.on.for.sixty.four.bytes.or.more.and.then.again.on.and.on.and.on.until.one.hundred.and.twenty.eight.", "patch_embed.proj.weight", 64, 3, 14, 14);
    refused("the limit is 127");
}

static void families_that_are_not_read_are_named(void **state)
{
    (void)state;
    small_dinov2("");
    ADD("", "register_tokens", 1, 4, 64);
    refused("DINOv2 model with registers");
    small_dinov2("");
    ADD("", "storage_tokens", 1, 4, 64);
    refused("DINOv3");
    small_dinov2("");
    ADD("", "rope_embed.periods", 16);
    refused("DINOv3");
    small_dinov2("");
    ADD("", "reg_token", 1, 4, 64);
    refused("timm ViT with register tokens");
    file.count = 0;
    ADD("", "dinov2.embeddings.patch_embeddings.projection.weight", 64, 3, 14, 14);
    refused("Hugging Face layout");
    file.count = 0;
    ADD("", "embeddings.patch_embeddings.weight", 64, 3, 16, 16);
    refused("DINOv3 model in the Hugging Face layout");
    file.count = 0;
    ADD("", "patch_embed.proj.weight", 64, 3, 14, 14);
    ADD("", "blocks.0.0.norm1.weight", 64);
    refused("chunked blocks");
}

/* -- real files (KD_TEST_DATA) ------------------------------------------------------------------------------------------------ */

static void detect_real(const char *file_name, kd_vit_spec *s)
{
    char path[1024];
    const char *folder = getenv("KD_TEST_DATA");
    kd_err err = {0};
    kd_weights *w = NULL;
    snprintf(path, sizeof path, "%s/teachers/%s", folder != NULL ? folder : "", file_name);
    if (folder == NULL || !kd_io_exists(path)) {
        print_message("skipped: KD_TEST_DATA isn't set to a folder with teachers/%s\n", file_name);
        skip();
    }
    assert_int_equal(kd_weights_open(&w, path, &err), KD_OK);
    assert_int_equal(kd_vit_detect(w, NULL, s, &err), KD_OK);
    kd_weights_close(w);
}

static void real_dinov2_layout_pth_is_recognised(void **state)
{
    (void)state;
    kd_vit_spec s;
    detect_real("vitt14_dinov2_layout.pth", &s);
    assert_int_equal(s.family, KD_VIT_DINOV2);
    assert_int_equal(s.width, 192);
    assert_int_equal(s.heads, 3);
    assert_int_equal(s.depth, 12);
    assert_int_equal(s.patch, 14);
    assert_int_equal(s.pos_grid, 37);
}

static void real_timm_safetensors_is_recognised(void **state)
{
    (void)state;
    kd_vit_spec s;
    detect_real("vit_tiny_patch16_224.safetensors", &s);
    assert_int_equal(s.family, KD_VIT_TIMM);
    assert_string_equal(s.name, "vit_tiny_patch16_224");
    assert_int_equal(s.heads, 3);
    assert_int_equal(s.pos_grid, 14);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dinov2_numbers_come_from_the_file),
        cmocka_unit_test(width_128_depth_11_is_read),
        cmocka_unit_test(packed_swiglu_is_half_its_rows),
        cmocka_unit_test(timm_vit_has_no_layer_scale),
        cmocka_unit_test(prefixes_are_found),
        cmocka_unit_test(the_teacher_of_a_training_checkpoint_is_taken),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(every_wrong_shape_is_named),
        cmocka_unit_test(unexpected_tensors_are_named),
        cmocka_unit_test(a_hole_between_blocks_is_a_missing_tensor),
        cmocka_unit_test(numbers_out_of_bounds_are_refused),
        cmocka_unit_test(files_without_or_with_several_vits_are_refused),
        cmocka_unit_test(families_that_are_not_read_are_named),
        cmocka_unit_test(real_dinov2_layout_pth_is_recognised),
        cmocka_unit_test(real_timm_safetensors_is_recognised),
    };
    return cmocka_run_group_tests_name("vit_spec", tests, NULL, NULL);
}
