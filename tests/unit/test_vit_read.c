/* The parameters of a ViT under their canonical names, whatever the file calls, splits or leaves out. */
#include <math.h>

#include "tests/vit_files.h"

/* -- values ------------------------------------------------------------------------------------------------------------------ */

enum { LARGEST = VF_D * 3 * 16 * 16 + 3 * VF_D * VF_D };
static float got[LARGEST];

/* A canonical parameter is these tensors one after the other; "" stands for VF_D zeros. */
static void joined(const kd_weights *w, const kd_vit_spec *s, const char *name, int parts, const char *const *part)
{
    kd_err err = {0};
    size_t total = 0, at = 0;
    for (int i = 0; i < parts; i++) {
        const kd_tensor *t = part[i][0] != '\0' ? vf_tensor(part[i]) : NULL;
        total += t != NULL ? kd_tensor_numel(t) : VF_D;
    }
    assert_true(total <= LARGEST);
    if (kd_vit_read(w, s, name, got, total, &err) != KD_OK)
        fail_msg("%s: %s", name, err.msg);
    for (int i = 0; i < parts; i++) {
        const kd_tensor *t = part[i][0] != '\0' ? vf_tensor(part[i]) : NULL;
        size_t n = t != NULL ? kd_tensor_numel(t) : VF_D;
        for (size_t k = 0; k < n; k++)
            if (got[at + k] != (t != NULL ? ((const float *)t->data)[k] : 0))
                fail_msg("%s: value %zu differs from %s[%zu]", name, at + k, t != NULL ? part[i] : "zeros", k);
        at += n;
    }
    assert_int_equal(kd_vit_read(w, s, name, got, total + 1, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, name));
}
#define JOINED(w, s, name, ...) joined(w, s, name, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *const[]){__VA_ARGS__})

static const char *path;
static kd_weights *weights;
static kd_vit_spec spec;

static void open_model(vf_kind k, int registers, int swiglu)
{
    kd_err err = {0};
    vf_clear();
    vf_model("m.", k, registers, swiglu);
    path = wf_path("vit.safetensors");
    weights = vf_open(path);
    unlink(path);
    if (kd_vit_detect(weights, NULL, &spec, &err) != KD_OK)
        fail_msg("%s", err.msg);
}

static void official_parameters_are_read(void **state)
{
    (void)state;
    open_model(VF_DINOV2_OFFICIAL, 1, 1);
    JOINED(weights, &spec, "cls_token", "m.cls_token");
    JOINED(weights, &spec, "pos_embed", "m.pos_embed");
    JOINED(weights, &spec, "register_tokens", "m.register_tokens");
    JOINED(weights, &spec, "patch_embed.proj.weight", "m.patch_embed.proj.weight");
    JOINED(weights, &spec, "blocks.1.attn.qkv.bias", "m.blocks.1.attn.qkv.bias");
    JOINED(weights, &spec, "blocks.1.mlp.w12.weight", "m.blocks.1.mlp.w12.weight");
    JOINED(weights, &spec, "blocks.0.mlp.w3.bias", "m.blocks.0.mlp.w3.bias");
    JOINED(weights, &spec, "blocks.0.ls2.gamma", "m.blocks.0.ls2.gamma");
    JOINED(weights, &spec, "norm.bias", "m.norm.bias");
    kd_weights_close(weights);
}

static void hugging_face_query_key_value_are_joined(void **state)
{
    (void)state;
    open_model(VF_DINOV2_HF, 1, 1);
    JOINED(weights, &spec, "pos_embed", "m.embeddings.position_embeddings");
    JOINED(weights, &spec, "register_tokens", "m.embeddings.register_tokens");
    JOINED(weights, &spec, "patch_embed.proj.bias", "m.embeddings.patch_embeddings.projection.bias");
    JOINED(weights, &spec, "blocks.1.attn.qkv.weight", "m.encoder.layer.1.attention.attention.query.weight", "m.encoder.layer.1.attention.attention.key.weight",
           "m.encoder.layer.1.attention.attention.value.weight");
    JOINED(weights, &spec, "blocks.0.attn.qkv.bias", "m.encoder.layer.0.attention.attention.query.bias", "m.encoder.layer.0.attention.attention.key.bias",
           "m.encoder.layer.0.attention.attention.value.bias");
    JOINED(weights, &spec, "blocks.0.attn.proj.weight", "m.encoder.layer.0.attention.output.dense.weight");
    JOINED(weights, &spec, "blocks.0.mlp.w12.bias", "m.encoder.layer.0.mlp.weights_in.bias");
    JOINED(weights, &spec, "blocks.1.mlp.w3.weight", "m.encoder.layer.1.mlp.weights_out.weight");
    JOINED(weights, &spec, "blocks.1.ls1.gamma", "m.encoder.layer.1.layer_scale1.lambda1");
    JOINED(weights, &spec, "norm.weight", "m.layernorm.weight");
    kd_weights_close(weights);
}

static void hugging_face_names_of_version_5_are_read(void **state)
{
    (void)state;
    open_model(VF_DINOV2_HF5, 0, 1);
    JOINED(weights, &spec, "blocks.1.attn.qkv.bias", "m.encoder.layer.1.attention.q_proj.bias", "m.encoder.layer.1.attention.k_proj.bias", "m.encoder.layer.1.attention.v_proj.bias");
    JOINED(weights, &spec, "blocks.0.mlp.w12.weight", "m.encoder.layer.0.mlp.gate_proj.weight", "m.encoder.layer.0.mlp.up_proj.weight");
    kd_weights_close(weights);
    open_model(VF_DINOV3_HF5, 1, 0);
    JOINED(weights, &spec, "blocks.1.attn.qkv.weight", "m.model.layer.1.attention.q_proj.weight", "m.model.layer.1.attention.k_proj.weight", "m.model.layer.1.attention.v_proj.weight");
    kd_weights_close(weights);
}

static void dinov3_of_hugging_face_has_no_key_bias(void **state)
{
    (void)state;
    open_model(VF_DINOV3_HF, 1, 1);
    JOINED(weights, &spec, "register_tokens", "m.embeddings.register_tokens");
    JOINED(weights, &spec, "patch_embed.proj.weight", "m.embeddings.patch_embeddings.weight");
    JOINED(weights, &spec, "blocks.0.attn.qkv.bias", "m.layer.0.attention.q_proj.bias", "", "m.layer.0.attention.v_proj.bias");
    JOINED(weights, &spec, "blocks.1.mlp.w12.weight", "m.layer.1.mlp.gate_proj.weight", "m.layer.1.mlp.up_proj.weight");
    JOINED(weights, &spec, "blocks.1.mlp.w3.bias", "m.layer.1.mlp.down_proj.bias");
    JOINED(weights, &spec, "norm.weight", "m.norm.weight");
    kd_weights_close(weights);
    open_model(VF_DINOV3_HF, 1, 0);
    JOINED(weights, &spec, "blocks.0.mlp.fc1.weight", "m.layer.0.mlp.up_proj.weight");
    JOINED(weights, &spec, "blocks.0.mlp.fc2.bias", "m.layer.0.mlp.down_proj.bias");
    kd_weights_close(weights);
}

static void timm_parameters_are_read(void **state)
{
    (void)state;
    open_model(VF_DINOV2_TIMM, 1, 1);
    JOINED(weights, &spec, "pos_embed", "", "m.pos_embed"); /* the class token has its row already */
    JOINED(weights, &spec, "register_tokens", "m.reg_token");
    JOINED(weights, &spec, "blocks.0.mlp.w12.weight", "m.blocks.0.mlp.fc1.weight");
    JOINED(weights, &spec, "blocks.0.mlp.w3.weight", "m.blocks.0.mlp.fc2.weight");
    kd_weights_close(weights);
    open_model(VF_DINOV3_TIMM, 1, 1);
    JOINED(weights, &spec, "blocks.1.attn.qkv.bias", "m.blocks.1.attn.q_bias", "", "m.blocks.1.attn.v_bias");
    JOINED(weights, &spec, "blocks.0.mlp.w12.bias", "m.blocks.0.mlp.fc1_g.bias", "m.blocks.0.mlp.fc1_x.bias");
    JOINED(weights, &spec, "blocks.1.ls2.gamma", "m.blocks.1.gamma_2");
    kd_weights_close(weights);
    open_model(VF_PLAIN, 0, 0);
    JOINED(weights, &spec, "pos_embed", "m.pos_embed");
    JOINED(weights, &spec, "blocks.1.mlp.fc2.weight", "m.blocks.1.mlp.fc2.weight");
    kd_weights_close(weights);
}

static void absent_biases_are_zeros(void **state)
{
    (void)state;
    static const vf_kind kinds[] = {VF_DINOV3_OFFICIAL, VF_DINOV3_HF, VF_DINOV3_TIMM, VF_PLAIN, VF_DINOV2_HF};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        vf_clear();
        vf_model("", kinds[i], 0, 0);
        vf_remove_all("attn.qkv.bias"); /* and its mask */
        vf_remove_all("q_bias");
        vf_remove_all("v_bias");
        for (int b = 0; b < 3; b++) {
            static const char *const names[] = {"q_proj.bias", "k_proj.bias", "v_proj.bias"}, *const old[] = {"query.bias", "key.bias", "value.bias"};
            vf_remove_all(names[b]);
            vf_remove_all(old[b]);
        }
        path = wf_path("vit.safetensors");
        weights = vf_open(path);
        unlink(path);
        kd_err err = {0};
        assert_int_equal(kd_vit_detect(weights, NULL, &spec, &err), KD_OK);
        JOINED(weights, &spec, "blocks.1.attn.qkv.bias", "", "", "");
        kd_weights_close(weights);
    }
}

static void the_key_third_of_dinov3_is_masked(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) { /* as made, NaN, all zero (the released files), no mask at all */
        kd_err err = {0};
        vf_clear();
        vf_model("", VF_DINOV3_OFFICIAL, 1, 0);
        float *mask = (float *)vf_tensor("blocks.1.attn.qkv.bias_mask")->data;
        const float *bias = vf_tensor("blocks.1.attn.qkv.bias")->data;
        for (int i = 0; i < 3 * VF_D && variant > 0; i++)
            mask[i] = variant == 1 ? NAN : 0;
        if (variant == 3)
            vf_remove_all("bias_mask");
        path = wf_path("vit.safetensors");
        weights = vf_open(path);
        unlink(path);
        assert_int_equal(kd_vit_detect(weights, NULL, &spec, &err), KD_OK);
        assert_int_equal(kd_vit_read(weights, &spec, "blocks.1.attn.qkv.bias", got, 3 * VF_D, &err), KD_OK);
        for (int i = 0; i < 3 * VF_D; i++) {
            int key = i / VF_D == 1;
            assert_true(got[i] == (variant == 3 ? bias[i] : variant == 2 || key ? 0 : bias[i]));
        }
        kd_weights_close(weights);
    }
}

static void chunked_blocks_are_gathered(void **state)
{
    (void)state;
    kd_err err = {0};
    vf_clear();
    vf_stem("", VF_DINOV2_OFFICIAL, 0);
    vf_block("", "blocks.0.0.", VF_DINOV2_OFFICIAL, 0);
    vf_block("", "blocks.1.1.", VF_DINOV2_OFFICIAL, 0);
    path = wf_path("vit.safetensors");
    weights = vf_open(path);
    unlink(path);
    assert_int_equal(kd_vit_detect(weights, NULL, &spec, &err), KD_OK);
    JOINED(weights, &spec, "blocks.1.mlp.fc1.weight", "blocks.1.1.mlp.fc1.weight");
    kd_weights_close(weights);
}

static void parameters_that_do_not_exist_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"mask_token", "blocks.2.norm1.weight", "blocks.0.mlp.w12.weight", "blocks.x.norm1.weight", "register_tokens", ""};
    kd_err err = {0};
    open_model(VF_DINOV2_OFFICIAL, 0, 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(kd_vit_read(weights, &spec, names[i], got, VF_D, &err), KD_EFAIL);
        assert_non_null(strstr(err.msg, "has no parameter"));
    }
    kd_weights_close(weights);
}

static void periods_come_from_the_file_or_the_formula(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("", VF_DINOV3_OFFICIAL, 1, 0);
    vf_accepted(NULL, &s);
    assert_true(s.periods_from_file && s.period[0] == 1 && s.period[15] == 16);
    vf_remove("rope_embed.periods");
    vf_accepted(NULL, &s);
    assert_true(!s.periods_from_file && s.periods == 16 && s.period[0] == 1 && fabsf(s.period[15] - 74.98942f) < 1e-4f);
}

static void damaged_periods_are_refused(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, 0, -1};
    for (int i = 0; i < 4; i++) {
        kd_vit_spec s;
        kd_err err = {0};
        vf_clear();
        vf_model("", VF_DINOV3_OFFICIAL, 1, 0);
        ((float *)vf_tensor("rope_embed.periods")->data)[3] = bad[i];
        assert_int_equal(vf_detect(NULL, &s, &err), KD_EFAIL);
        assert_non_null(strstr(err.msg, "rope_embed.periods"));
    }
    vf_clear();
    vf_model("", VF_DINOV3_OFFICIAL, 1, 0);
    vf_tensor("rope_embed.periods")->shape[0] = 7;
    vf_refused(NULL, "a quarter of a head's width");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(official_parameters_are_read),
        cmocka_unit_test(hugging_face_query_key_value_are_joined),
        cmocka_unit_test(hugging_face_names_of_version_5_are_read),
        cmocka_unit_test(dinov3_of_hugging_face_has_no_key_bias),
        cmocka_unit_test(timm_parameters_are_read),
        cmocka_unit_test(absent_biases_are_zeros),
        cmocka_unit_test(the_key_third_of_dinov3_is_masked),
        cmocka_unit_test(chunked_blocks_are_gathered),
        cmocka_unit_test(parameters_that_do_not_exist_are_refused),
        cmocka_unit_test(periods_come_from_the_file_or_the_formula),
        cmocka_unit_test(damaged_periods_are_refused),
    };
    return cmocka_run_group_tests_name("vit_read", tests, NULL, NULL);
}
