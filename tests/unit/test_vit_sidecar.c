/* What lies beside a weight file and what its name says: config.json, preprocessor_config.json, satellite models, DeiT. */
#include <sys/stat.h>

#include "tests/vit_files.h"

/* -- files beside the weights ------------------------------------------------------------------------------------------------------ */

static char folder[512];

/* The model of this kind in a folder with these two texts (NULL: no such file). */
static kd_status detect_beside(vf_kind k, int swiglu, const char *config, const char *preprocessor, kd_vit_spec *s, kd_err *err)
{
    char file[600];
    vf_clear();
    vf_model("", k, 1, swiglu);
    snprintf(folder, sizeof folder, "%s", wf_path("folder"));
    assert_int_equal(mkdir(folder, 0700), 0);
    if (config != NULL) {
        snprintf(file, sizeof file, "%s/config.json", folder);
        wf_save(file, config, strlen(config));
    }
    if (preprocessor != NULL) {
        snprintf(file, sizeof file, "%s/preprocessor_config.json", folder);
        wf_save(file, preprocessor, strlen(preprocessor));
    }
    snprintf(file, sizeof file, "%s/model.safetensors", folder);
    kd_status status = vf_detect_as(file, NULL, s, err);
    snprintf(file, sizeof file, "%s/config.json", folder);
    unlink(file);
    snprintf(file, sizeof file, "%s/preprocessor_config.json", folder);
    unlink(file);
    assert_int_equal(rmdir(folder), 0);
    return status;
}

static void configuration_gives_heads_epsilon_and_normalisation(void **state)
{
    (void)state;
    kd_vit_spec s;
    kd_err err = {0};
    assert_int_equal(detect_beside(VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"num_attention_heads\":4,\"layer_norm_eps\":1e-5,\"hidden_size\":64,\"patch_size\":14,\"num_hidden_layers\":2,\"hidden_act\":\"gelu\"}",
                                   "{\"image_mean\":[0.1,0.2,0.3],\"image_std\":[0.4,0.5,0.6],\"rescale_factor\":0.00392156862745098}", &s, &err), KD_OK);
    assert_int_equal(s.heads, 4);
    assert_true(s.ln_eps == 1e-5 && s.mean[1] == 0.2f && s.std[2] == 0.6f);
    assert_string_equal(s.normalisation, "from preprocessor_config.json");
    assert_int_equal(detect_beside(VF_DINOV3_HF, 0, "{\"model_type\":\"dinov3_vit\",\"num_attention_heads\":2,\"rope_theta\":100.0,\"num_register_tokens\":4}", "{\"do_normalize\":false}", &s, &err), KD_OK);
    assert_true(s.heads == 2 && s.periods == 8 && s.mean[0] == 0 && s.std[0] == 1);
    assert_int_equal(detect_beside(VF_DINOV3_TIMM, 0, "{\"architecture\":\"x\",\"num_features\":64,\"pretrained_cfg\":{\"mean\":[0.43,0.411,0.296],\"std\":[0.213,0.156,0.143]}}", NULL, &s, &err), KD_OK);
    assert_string_equal(s.normalisation, "from config.json");
    assert_true(s.mean[0] == 0.43f);
    assert_int_equal(detect_beside(VF_DINOV2_HF, 0, "{\"model_type\":\"depth_anything\",\"backbone_config\":{\"model_type\":\"dinov2\",\"num_attention_heads\":8}}", NULL, &s, &err), KD_OK);
    assert_int_equal(s.heads, 8);
    assert_int_equal(detect_beside(VF_DINOV2_HF, 0, "{\"model_type\":\"bert\",\"num_attention_heads\":8,\"hidden_size\":1}", NULL, &s, &err), KD_OK); /* of something else */
    assert_int_equal(s.heads, 1);
}

static void official_files_ignore_what_lies_beside_them(void **state)
{
    (void)state;
    kd_vit_spec s;
    kd_err err = {0};
    assert_int_equal(detect_beside(VF_DINOV2_OFFICIAL, 0, "not JSON", "{", &s, &err), KD_OK);
    assert_int_equal(detect_beside(VF_DINOV3_OFFICIAL, 0, "{\"model_type\":\"dinov3_vit\",\"num_attention_heads\":2}", NULL, &s, &err), KD_OK);
    assert_int_equal(s.heads, 1);
}

static void configurations_that_contradict_or_ask_for_more_are_refused(void **state)
{
    (void)state;
    static const struct { vf_kind kind; int swiglu; const char *config, *preprocessor, *why; } cases[] = {
        {VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"hidden_size\":384}", NULL, "config.json: hidden_size is 384: the tensors say 64"},
        {VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"num_hidden_layers\":12}", NULL, "num_hidden_layers is 12: the tensors say 2"},
        {VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"hidden_act\":\"gelu_new\"}", NULL, "hidden_act is \"gelu_new\": only gelu"},
        {VF_DINOV3_HF, 1, "{\"model_type\":\"dinov3_vit\",\"hidden_act\":\"gelu\"}", NULL, "only silu is read"},
        {VF_DINOV3_HF, 0, "{\"model_type\":\"dinov3_vit\",\"rope_theta\":10000.0}", NULL, "rope_theta is 10000.0: only rotary positions of base 100"},
        {VF_DINOV3_HF, 0, "{\"model_type\":\"dinov3_vit\",\"rope_parameters\":{\"rope_theta\":7}}", NULL, "rope_theta is 7"},
        {VF_DINOV3_HF, 0, "{\"model_type\":\"dinov3_vit\",\"num_attention_heads\":5}", NULL, "width 64 doesn't divide into 5 heads"},
        {VF_DINOV3_HF, 0, "{\"model_type\":\"dinov3_vit\",\"num_attention_heads\":32}", NULL, "as rotary positions need"},
        {VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"num_attention_heads\":\"many\"}", NULL, "expected a number of heads"},
        {VF_DINOV2_HF, 0, "{\"model_type\":\"dinov2\",\"layer_norm_eps\":-1}", NULL, "layer_norm_eps is -1"},
        {VF_DINOV2_HF, 0, "[1]", NULL, "config.json isn't a JSON object"},
        {VF_DINOV2_HF, 0, "{\"model_type\":", NULL, "repair it or move the weights to a folder of their own"},
        {VF_DINOV2_HF, 0, NULL, "{\"image_mean\":[0.1,0.2]}", "preprocessor_config.json: image_mean is [0.1"},
        {VF_DINOV2_HF, 0, NULL, "{\"image_mean\":[0.1,0.2,0.3],\"image_std\":[0.1,0,0.3]}", "image_std is [0.1"},
        {VF_DINOV2_HF, 0, NULL, "{\"rescale_factor\":1}", "rescale_factor is 1: only 1/255"},
        {VF_DINOV2_HF, 0, NULL, "{\"do_rescale\":false}", "do_rescale is false"},
        {VF_DINOV2_TIMM, 0, "{\"num_features\":384,\"pretrained_cfg\":{}}", NULL, "num_features is 384: the tensors say 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kd_vit_spec s;
        kd_err err = {0};
        assert_int_equal(detect_beside(cases[i].kind, cases[i].swiglu, cases[i].config, cases[i].preprocessor, &s, &err), KD_EUSAGE);
        if (strstr(err.msg, cases[i].why) == NULL)
            fail_msg("expected '%s' in: %s", cases[i].why, err.msg);
    }
}

static void file_names_tell_the_normalisation(void **state)
{
    (void)state;
    static const struct { vf_kind kind; const char *name, *normalisation; } cases[] = {
        {VF_DINOV3_OFFICIAL, "dinov3_vit7b16_pretrain_sat493m-a6675841.safetensors", "dinov3-sat"}, {VF_DINOV3_OFFICIAL, "dinov3_vitb16_pretrain_lvd1689m.safetensors", "imagenet"},
        {VF_DINOV3_HF, "DINOv3-SAT493M.safetensors", "dinov3-sat"}, {VF_DINOV3_HF, "sat493m-then-lvd1689m.safetensors", "imagenet"}, {VF_DINOV2_OFFICIAL, "sat493m.safetensors", "imagenet"},
        {VF_PLAIN, "deit_tiny_patch16_224.safetensors", "imagenet"}, {VF_PLAIN, "dino_deitsmall16_pretrain.safetensors", "imagenet"}, {VF_PLAIN, "vit_tiny_patch16_224.safetensors", "half"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kd_vit_spec s;
        kd_err err = {0};
        vf_clear();
        vf_model("", cases[i].kind, 0, 0);
        assert_int_equal(vf_detect_as(wf_path(cases[i].name), NULL, &s, &err), KD_OK);
        assert_string_equal(s.normalisation, cases[i].normalisation);
        assert_true((s.mean[2] == 0.296f) == (strcmp(s.normalisation, "dinov3-sat") == 0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configuration_gives_heads_epsilon_and_normalisation),
        cmocka_unit_test(official_files_ignore_what_lies_beside_them),
        cmocka_unit_test(configurations_that_contradict_or_ask_for_more_are_refused),
        cmocka_unit_test(file_names_tell_the_normalisation),
    };
    return cmocka_run_group_tests_name("vit_sidecar", tests, NULL, NULL);
}
