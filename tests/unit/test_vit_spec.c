/* Which ViT a file holds, whatever its layout calls the tensors; and one sentence for everything else. */
#include "tests/vit_files.h"

/* -- what is read ------------------------------------------------------------------------------------------------------------ */

static const struct expected {
    kd_vit_family family;
    kd_vit_layout layout;
    double eps;
} expected_of[VF_KINDS] = {
    [VF_DINOV2_OFFICIAL] = {KD_VIT_DINOV2, KD_VIT_LAYOUT_OFFICIAL, 1e-6}, [VF_DINOV2_HF] = {KD_VIT_DINOV2, KD_VIT_LAYOUT_HF, 1e-6}, [VF_DINOV2_HF5] = {KD_VIT_DINOV2, KD_VIT_LAYOUT_HF, 1e-6},
    [VF_DINOV2_TIMM] = {KD_VIT_DINOV2, KD_VIT_LAYOUT_TIMM, 1e-6},         [VF_DINOV3_OFFICIAL] = {KD_VIT_DINOV3, KD_VIT_LAYOUT_OFFICIAL, 1e-5},
    [VF_DINOV3_HF] = {KD_VIT_DINOV3, KD_VIT_LAYOUT_HF, 1e-5},             [VF_DINOV3_HF5] = {KD_VIT_DINOV3, KD_VIT_LAYOUT_HF, 1e-5},
    [VF_DINOV3_TIMM] = {KD_VIT_DINOV3, KD_VIT_LAYOUT_TIMM, 1e-5},         [VF_PLAIN] = {KD_VIT_TIMM, KD_VIT_LAYOUT_TIMM, 1e-6},
};

static void check_numbers(const kd_vit_spec *s, vf_kind k, int registers, int swiglu)
{
    const struct expected *e = &expected_of[k];
    assert_int_equal(s->family, e->family);
    assert_int_equal(s->layout, e->layout);
    assert_int_equal(s->positions, e->layout == KD_VIT_LAYOUT_OFFICIAL ? KD_POS_OFFICIAL : e->layout == KD_VIT_LAYOUT_HF ? KD_POS_HF : KD_POS_TIMM);
    assert_true(s->ln_eps == e->eps);
    assert_int_equal(s->width, VF_D);
    assert_int_equal(s->depth, VF_DEPTH);
    assert_int_equal(s->heads, 1);
    assert_int_equal(s->patch, vf_patch(k));
    assert_int_equal(s->ffn, swiglu ? KD_FFN_SWIGLU : KD_FFN_GELU);
    assert_int_equal(s->ffn_hidden, VF_HIDDEN);
    assert_int_equal(s->layer_scale, k != VF_PLAIN);
    assert_int_equal(s->registers, registers ? VF_REGISTERS : 0);
    assert_int_equal(s->pos_grid, vf_is_dinov3(k) ? 0 : VF_GRID);
    assert_int_equal(s->periods, vf_is_dinov3(k) ? 16 : 0);
    assert_int_equal(s->periods_from_file, k == VF_DINOV3_OFFICIAL);
    assert_string_equal(s->normalisation, k == VF_PLAIN ? "half" : "imagenet");
    assert_true(s->mean[0] == (k == VF_PLAIN ? 0.5f : 0.485f) && s->std[2] == (k == VF_PLAIN ? 0.5f : 0.225f));
}

/* Calls f for every family, layout, with and without registers and gate. */
static void for_every_file(void (*f)(vf_kind k, int registers, int swiglu))
{
    for (int k = 0; k < VF_KINDS; k++)
        for (int registers = 0; registers < 2; registers++)
            for (int swiglu = 0; swiglu < 2; swiglu++)
                if (k != VF_PLAIN || (!registers && !swiglu))
                    f((vf_kind)k, registers, swiglu);
}

static void numbers_of(vf_kind k, int registers, int swiglu)
{
    kd_vit_spec s;
    vf_clear();
    vf_model("", k, registers, swiglu);
    if (k == VF_DINOV2_OFFICIAL || k == VF_DINOV2_TIMM || k == VF_PLAIN)
        vf_add_pair("", "head", 10, VF_D);
    vf_accepted(NULL, &s);
    check_numbers(&s, k, registers, swiglu);
    assert_string_equal(s.prefix, "");
}

static void every_family_is_read_in_every_layout(void **state)
{
    (void)state;
    for_every_file(numbers_of);
}

static void prefixed(vf_kind k, int registers, int swiglu)
{
    static const char *const prefixes[] = {"module.", "backbone.", "teacher.backbone.", "_orig_mod.", "state_dict.module.model.", "dinov2.", "model."};
    kd_vit_spec s;
    if (swiglu)
        return;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        vf_clear();
        vf_model(prefixes[i], k, registers, swiglu);
        VF_ADD("", "optimizer.state.0.exp_avg", 64);
        vf_accepted(NULL, &s);
        assert_string_equal(s.prefix, prefixes[i]);
        if (k != VF_PLAIN || strstr(prefixes[i], "teacher") == NULL) /* DINO's ViT, with ImageNet's normalisation */
            check_numbers(&s, k, registers, swiglu);
    }
}

static void prefixes_are_found(void **state)
{
    (void)state;
    for_every_file(prefixed);
}

static void names_say_width_depth_and_patch(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
    vf_accepted(NULL, &s);
    assert_string_equal(s.name, "dinov2 d64 depth2 patch14");
    vf_clear();
    vf_model("", VF_DINOV3_HF, 1, 1);
    vf_accepted(NULL, &s);
    assert_string_equal(s.name, "dinov3 d64 depth2 patch16");
}

static void deit_iii_is_a_plain_vit_with_layer_scale(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("", VF_PLAIN, 0, 0);
    for (int i = 0; i < VF_DEPTH; i++) {
        char p[32];
        snprintf(p, sizeof p, "blocks.%d.", i);
        VF_ADD(p, "ls1.gamma", VF_D);
        VF_ADD(p, "ls2.gamma", VF_D);
    }
    vf_tensor("pos_embed")->shape[1] = VF_GRID * VF_GRID;
    vf_accepted(NULL, &s);
    assert_int_equal(s.family, KD_VIT_TIMM);
    assert_int_equal(s.layer_scale, 1);
    assert_int_equal(s.pos_grid, VF_GRID);
}

static void every_floating_point_type_is_read(void **state)
{
    (void)state;
    static const kd_dtype types[] = {KD_F16, KD_BF16, KD_F64};
    for (int i = 0; i < 3; i++) {
        kd_vit_spec s;
        vf_clear();
        vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
        for (int k = 0; k < vf.count; k++)
            vf.t[k].dtype = k % 2 == 0 ? types[i] : KD_F32;
        vf_accepted(NULL, &s);
        check_numbers(&s, VF_DINOV2_OFFICIAL, 0, 0);
    }
}

/* Both libraries use the same names for DINOv2 without registers, but resize positions differently. */
static void official_and_timm_files_are_told_apart(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
    vf_remove("mask_token");
    vf_accepted(NULL, &s);
    assert_int_equal(s.layout, KD_VIT_LAYOUT_TIMM);
    vf_add_pair("", "head", 10, 2 * VF_D); /* DINOv2's linear classifiers */
    vf_accepted(NULL, &s);
    assert_int_equal(s.layout, KD_VIT_LAYOUT_OFFICIAL);
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 1);
    vf_remove("mask_token");
    vf_accepted(NULL, &s);
    assert_int_equal(s.layout, KD_VIT_LAYOUT_OFFICIAL);
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 1, 0);
    vf_remove("mask_token");
    vf_accepted(NULL, &s);
    assert_int_equal(s.layout, KD_VIT_LAYOUT_OFFICIAL);
}

static void chunked_blocks_are_read(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_stem("teacher.backbone.", VF_DINOV2_OFFICIAL, 0);
    vf_block("teacher.backbone.", "blocks.0.0.", VF_DINOV2_OFFICIAL, 0);
    vf_block("teacher.backbone.", "blocks.0.1.", VF_DINOV2_OFFICIAL, 0);
    vf_block("teacher.backbone.", "blocks.1.2.", VF_DINOV2_OFFICIAL, 0);
    vf_block("teacher.backbone.", "blocks.1.3.", VF_DINOV2_OFFICIAL, 0);
    vf_accepted(NULL, &s);
    assert_int_equal(s.depth, 4);
    vf_block("teacher.backbone.", "blocks.1.0.", VF_DINOV2_OFFICIAL, 0); /* block 0 again */
    vf_refused(NULL, "14 unexpected tensors: 'teacher.backbone.blocks.1.0.norm1.weight'");
}

/* -- several models in a file ------------------------------------------------------------------------------------------------- */

static void the_teacher_of_a_training_checkpoint_is_taken(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("student.module.backbone.", VF_PLAIN, 0, 0); /* DINO v1 */
    vf_model("teacher.backbone.", VF_PLAIN, 0, 0);
    VF_ADD("", "teacher.head.mlp.0.weight", 4, 64);
    VF_ADD("", "dino_loss.center", 1, 4);
    vf_accepted(NULL, &s);
    assert_string_equal(s.prefix, "teacher.backbone.");
    assert_string_equal(s.normalisation, "imagenet");
    vf_clear(); /* DINOv2 and DINOv3: heads beside the backbone */
    vf_model("teacher.backbone.", VF_DINOV3_OFFICIAL, 1, 0);
    VF_ADD("", "teacher.dino_head.mlp.0.weight", 4, 64);
    VF_ADD("", "teacher.ibot_head.last_layer.weight", 4, 64);
    vf_accepted(NULL, &s);
    assert_string_equal(s.prefix, "teacher.backbone.");
    vf_clear(); /* LightlyTrain's checkpoints */
    vf_model("state_dict.teacher_embedding_model.wrapped_model._model.", VF_DINOV2_OFFICIAL, 0, 0);
    vf_model("state_dict.student_embedding_model.wrapped_model._model.", VF_DINOV2_OFFICIAL, 0, 0);
    VF_ADD("", "state_dict.student_head.dino_head.layers.0.weight", 4, 64);
    vf_accepted(NULL, &s);
    assert_string_equal(s.prefix, "state_dict.teacher_embedding_model.wrapped_model._model.");
}

static void the_user_chooses_among_several(void **state)
{
    (void)state;
    kd_vit_spec s;
    vf_clear();
    vf_model("state_dict.", VF_PLAIN, 0, 0);
    vf_model("state_dict_ema.", VF_PLAIN, 0, 0);
    vf_refused(NULL, "the file holds 2 ViTs; choose one with --weights-key: 'state_dict', 'state_dict_ema'");
    vf_refused("model", "no ViT under 'model'; --weights-key takes one of 'state_dict', 'state_dict_ema'");
    vf_accepted("state_dict_ema", &s);
    assert_string_equal(s.prefix, "state_dict_ema.");
    vf_accepted("state_dict.", &s);
    assert_string_equal(s.prefix, "state_dict.");
    vf_clear();
    vf_model("student.backbone.", VF_DINOV2_OFFICIAL, 0, 0);
    vf_model("teacher.backbone.", VF_DINOV2_OFFICIAL, 0, 0);
    vf_accepted("student", &s);
    assert_string_equal(s.prefix, "student.backbone.");
    vf_refused("stud", "no ViT under 'stud'");
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
    vf_accepted("", &s);
    assert_string_equal(s.prefix, "");
}

static void many_models_are_listed_in_part(void **state)
{
    (void)state;
    char name[300];
    vf_clear();
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "a%d.patch_embed.proj.weight", i);
        VF_ADD("", name, 64, 3, 2, 2);
    }
    vf_refused(NULL, "the file holds 40 ViTs; choose one with --weights-key: 'a0', 'a1', 'a2', 'a3', 'a4', 'a5', ...");
    vf_clear();
    memset(name, 'p', 140);
    snprintf(name + 140, sizeof name - 140, ".patch_embed.proj.weight");
    VF_ADD("", name, 64, 3, 14, 14);
    vf_refused(NULL, "the limit is 127");
}

/* -- what is refused --------------------------------------------------------------------------------------------------------- */

static int is_optional(const char *name)
{
    static const char *const alone[] = {"mask_token", "rope_embed.periods", "register_tokens", "storage_tokens", "reg_token"}; /* without them it is another whole model */
    for (size_t i = 0; i < sizeof alone / sizeof *alone; i++)
        if (strstr(name, alone[i]) != NULL)
            return 1;
    return 0;
}

static char all_names[200][VF_NAME];

static int remember_names(void)
{
    for (int i = 0; i < vf.count; i++)
        memcpy(all_names[i], vf.names[i], VF_NAME);
    return vf.count;
}

static void each_missing(vf_kind k, int registers, int swiglu)
{
    vf_clear();
    vf_model("", k, registers, swiglu);
    int count = remember_names();
    for (int i = 0; i < count; i++) {
        kd_vit_spec s;
        kd_err err = {0};
        vf_clear();
        vf_model("", k, registers, swiglu);
        vf_remove(all_names[i]);
        kd_status status = vf_detect(NULL, &s, &err);
        if (is_optional(all_names[i]) && status == KD_OK)
            continue;
        assert_int_equal(status, KD_EUSAGE);
        if (strstr(all_names[i], "patch_embed") != NULL && strstr(all_names[i], "weight") != NULL)
            assert_non_null(strstr(err.msg, "the file holds no ViT"));
        else if (strstr(err.msg, all_names[i]) == NULL)
            fail_msg("'%s' isn't named in: %s", all_names[i], err.msg);
    }
}

static void every_missing_tensor_is_named(void **state)
{
    (void)state;
    vf_holes = 1;
    for_every_file(each_missing);
    vf_holes = 0;
}

static void each_misshapen(vf_kind k, int registers, int swiglu)
{
    vf_clear();
    vf_model("", k, registers, swiglu);
    int count = remember_names();
    for (int i = 0; i < count; i++) {
        kd_vit_spec s;
        kd_err err = {0};
        if (strstr(all_names[i], "mask_token") != NULL)
            continue;
        vf_clear();
        vf_model("", k, registers, swiglu);
        vf.t[i].shape[vf.t[i].rank - 1] += 1;
        assert_int_equal(vf_detect(NULL, &s, &err), KD_EUSAGE);
        assert_non_null(strstr(err.msg, "has shape"));
        if (strstr(err.msg, all_names[i]) == NULL && strstr(all_names[i], "fc1") == NULL) /* timm: fc1 of another size may be meant as the gate's */
            fail_msg("'%s' isn't named in: %s", all_names[i], err.msg);
    }
}

static void every_wrong_shape_is_named(void **state)
{
    (void)state;
    vf_holes = 1;
    for_every_file(each_misshapen);
    vf_holes = 0;
}

static void unexpected_tensors_are_named(void **state)
{
    (void)state;
    static const char *const names[] = {"extra", "blocks.01.norm1.weight", "blocks.-1.norm1.weight", "blocks.4000000000.norm1.weight", "blocks.0.attn.k_norm.weight", "blocks.0.norm1.weight.x"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char why[100];
        vf_clear();
        vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
        VF_ADD("", names[i], 64);
        snprintf(why, sizeof why, "1 unexpected tensor: '%s'", names[i]);
        vf_refused(NULL, why);
    }
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "extra%d", i);
        VF_ADD("", name, 1);
    }
    vf_refused(NULL, "7 unexpected tensors: 'blocks.0.norm1.weight.x', 'extra0', 'extra1', 'extra2', ...");
}

static void a_hole_between_blocks_is_missing_tensors(void **state)
{
    (void)state;
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
    vf_block("", "blocks.3.", VF_DINOV2_OFFICIAL, 0);
    vf_refused(NULL, "14 missing tensors: 'blocks.2.norm1.weight'");
}

static void numbers_out_of_bounds_are_refused(void **state)
{
    (void)state;
    static const struct { const char *name; int dimension; int64_t value; const char *why; } cases[] = {
        {"patch_embed.proj.weight", 0, 65, "multiple of 32"},  {"patch_embed.proj.weight", 1, 4, "[width, 3, patch, patch]"},
        {"patch_embed.proj.weight", 2, 7, "[width, 3, patch, patch]"}, {"pos_embed", 1, 8, "square grid"},
        {"pos_embed", 2, 63, "square grid"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vf_clear();
        vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
        vf_tensor(cases[i].name)->shape[cases[i].dimension] = cases[i].value;
        vf_refused(NULL, cases[i].why);
    }
    vf_clear();
    vf_model("", VF_DINOV2_OFFICIAL, 0, 0);
    vf_tensor("norm.weight")->dtype = KD_I16;
    vf_refused(NULL, "'norm.weight' is i16; weights must be floating point");
}

static void lone_shards_say_that_they_are_one_of_several(void **state)
{
    (void)state;
    kd_vit_spec s;
    kd_err err = {0};
    const char *part = wf_path("model-00001-of-00002.safetensors");
    vf_clear();
    vf_model("", VF_DINOV2_HF, 0, 0);
    vf_remove_all("encoder.layer.1.");
    vf_remove("layernorm.weight");
    assert_int_equal(vf_detect_as(part, NULL, &s, &err), KD_EUSAGE);
    assert_non_null(strstr(err.msg, "is shard 1 of 2 and holds a part of the model; pass the folder, or the index"));
    vf_clear();
    VF_ADD("", "encoder.layer.1.norm1.weight", VF_D);
    assert_int_equal(vf_detect_as(wf_path("model-00002-of-00002.safetensors"), NULL, &s, &err), KD_EUSAGE);
    assert_non_null(strstr(err.msg, "is shard 2 of 2"));
    vf_clear();
    vf_model("", VF_DINOV2_HF, 0, 0);
    assert_int_equal(vf_detect_as(wf_path("model-00001-of-00001.safetensors"), NULL, &s, &err), KD_OK);
}

static void other_networks_are_named(void **state)
{
    (void)state;
    static const struct { const char *name, *why; } cases[] = {
        {"model.0.conv.weight", "is a YOLO"},        {"model.model.0.conv.weight", "is a YOLO"}, {"layer1.0.conv1.weight", "is a ResNet"}, {"bert.embeddings.word_embeddings.weight", "is a text model"},
        {"transformer.wte.weight", "is a text model"}, {"base_model.model.q.lora_A.weight", "is a LoRA adapter"}, {"a", "the file holds no ViT: none of its 1 tensors is a patch embedding (the first is 'a')"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vf_clear();
        VF_ADD("", cases[i].name, 4);
        vf_refused(NULL, cases[i].why);
    }
    static const struct { const char *name, *why; } beside[] = {
        {"dist_token", "is a distilled DeiT"},    {"norm_pre.weight", "is a CLIP image tower"},   {"blocks.0.attn.q_norm.weight", "query and key norms"}, {"fc_norm.weight", "pools patch tokens"},
        {"attn_pool.kv.weight", "is a SigLIP"}, {"blocks.0.attn.relative_position_bias_table", "is a BEiT"}, {"cls_norm.weight", "norm of its own for the class token"},
    };
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        vf_clear();
        vf_model("model.", VF_PLAIN, 0, 0);
        VF_ADD("model.", beside[i].name, 64);
        vf_refused(NULL, beside[i].why);
    }
}

/* -- the report ---------------------------------------------------------------------------------------------------------------- */

static void the_report_counts_everything(void **state)
{
    (void)state;
    kd_weights *weights;
    const char *path;
    kd_vit_report r;
    kd_err err = {0};
    vf_clear();
    vf_model("m.", VF_DINOV2_OFFICIAL, 0, 0);
    VF_ADD("", "m.head.weight", 4, 64);
    VF_ADD("", "optimizer.a", 4);
    VF_ADD("", "optimizer.b", 4);
    vf_remove("m.blocks.0.ls1.gamma");
    vf_tensor("m.norm.bias")->shape[0] = 60;
    for (int i = 0; i < 30; i++) {
        char name[32];
        snprintf(name, sizeof name, "m.extra%d", i);
        VF_ADD("", name, 1);
    }
    path = wf_path("vit.safetensors");
    weights = vf_open(path);
    unlink(path);
    size_t live = kd_mem_live_bytes();
    assert_int_equal(kd_vit_inspect(weights, NULL, &r, &err), KD_OK);
    assert_true(r.have_spec);
    assert_int_equal(r.used, 6 + 2 * 14 - 1);
    assert_int_equal(r.missing.count, 1);
    assert_string_equal(r.missing.name[0], "m.blocks.0.ls1.gamma");
    assert_int_equal(r.misshapen.count, 1);
    assert_string_equal(r.misshapen.name[0], "'m.norm.bias' has shape [60], expected [64]");
    assert_int_equal(r.unexpected.count, 30);
    assert_string_equal(r.unexpected.name[19], "m.extra19");
    assert_int_equal(r.ignored.count, 2);
    assert_int_equal(r.outside, 2);
    assert_non_null(strstr(r.problem, "looks like dinov2 d64 depth2 patch14 in the official layout, but has 1 missing tensor: 'm.blocks.0.ls1.gamma'; 1 wrong tensor: 'm.norm.bias' has shape"));
    kd_vit_report_free(&r);
    assert_int_equal(kd_mem_live_bytes(), live);
    kd_weights_close(weights);
}

static void every_failed_allocation_is_a_clean_error(void **state)
{
    (void)state;
    kd_vit_spec spec;
    kd_weights *weights;
    const char *path;
    vf_clear();
    vf_model("", VF_DINOV3_OFFICIAL, 1, 0);
    path = wf_path("vit.safetensors");
    weights = vf_open(path);
    unlink(path);
    size_t live = kd_mem_live_bytes();
    kd_status status = KD_EFAIL;
    for (size_t n = 1; status != KD_OK; n++) {
        kd_err err = {0};
        assert_true(n < 1000);
        kd_mem_fail_after(n);
        status = kd_vit_detect(weights, NULL, &spec, &err);
        kd_mem_fail_after(0);
        assert_true(status == KD_OK || (status == KD_EFAIL && err.msg[0] != '\0'));
        assert_int_equal(kd_mem_live_bytes(), live);
    }
    kd_weights_close(weights);
}

/* -- words -------------------------------------------------------------------------------------------------------------------------- */

static void normalisations_are_parsed(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "imagenet ", "0.1,0.2,0.3", "0.1,0.2,0.3/0.4,0.5", "0.1,0.2,0.3/0.4,0.5,0", "1,2,3/4,5,6,7", "nan,0,0/1,1,1", "1,2,3/inf,1,1", "1, 2,3/1,1,1", "1,2,3/-1,1,1"};
    float mean[3], std[3];
    kd_err err = {0};
    assert_int_equal(kd_normalisation_parse("imagenet", mean, std, &err), KD_OK);
    assert_true(mean[0] == 0.485f && std[0] == 0.229f);
    assert_int_equal(kd_normalisation_parse("half", mean, std, &err), KD_OK);
    assert_true(mean[0] == 0.5f && std[2] == 0.5f);
    assert_int_equal(kd_normalisation_parse("dinov3-sat", mean, std, &err), KD_OK);
    assert_true(mean[0] == 0.430f && std[2] == 0.143f);
    assert_int_equal(kd_normalisation_parse("0.1,-0.2,.3/1,2e-1,3", mean, std, &err), KD_OK);
    assert_true(mean[1] == -0.2f && mean[2] == 0.3f && std[1] == 0.2f && std[2] == 3);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kd_normalisation_parse(bad[i], mean, std, &err), KD_EUSAGE);
        assert_non_null(strstr(err.msg, "six numbers"));
    }
}

static void profiles_have_names(void **state)
{
    (void)state;
    kd_pos_profile p;
    for (int i = 0; i < 3; i++) {
        assert_true(kd_pos_profile_parse(kd_pos_profile_name((kd_pos_profile)i), &p));
        assert_int_equal(p, i);
    }
    assert_false(kd_pos_profile_parse("auto", &p));
}

/* -- real files (KD_TEST_DATA) ------------------------------------------------------------------------------------------------ */

static void detect_real(const char *file_name, kd_vit_spec *s)
{
    char file[1024];
    const char *data = getenv("KD_TEST_DATA");
    kd_err err = {0};
    kd_weights *w = NULL;
    snprintf(file, sizeof file, "%s/teachers/%s", data != NULL ? data : "", file_name);
    if (data == NULL || !kd_io_exists(file)) {
        print_message("skipped: KD_TEST_DATA isn't set to a folder with teachers/%s\n", file_name);
        skip();
    }
    assert_int_equal(kd_weights_open(&w, file, &err), KD_OK);
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
        cmocka_unit_test(every_family_is_read_in_every_layout),
        cmocka_unit_test(prefixes_are_found),
        cmocka_unit_test(names_say_width_depth_and_patch),
        cmocka_unit_test(deit_iii_is_a_plain_vit_with_layer_scale),
        cmocka_unit_test(every_floating_point_type_is_read),
        cmocka_unit_test(official_and_timm_files_are_told_apart),
        cmocka_unit_test(chunked_blocks_are_read),
        cmocka_unit_test(the_teacher_of_a_training_checkpoint_is_taken),
        cmocka_unit_test(the_user_chooses_among_several),
        cmocka_unit_test(many_models_are_listed_in_part),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(every_wrong_shape_is_named),
        cmocka_unit_test(unexpected_tensors_are_named),
        cmocka_unit_test(a_hole_between_blocks_is_missing_tensors),
        cmocka_unit_test(numbers_out_of_bounds_are_refused),
        cmocka_unit_test(lone_shards_say_that_they_are_one_of_several),
        cmocka_unit_test(other_networks_are_named),
        cmocka_unit_test(the_report_counts_everything),
        cmocka_unit_test(every_failed_allocation_is_a_clean_error),
        cmocka_unit_test(normalisations_are_parsed),
        cmocka_unit_test(profiles_have_names),
        cmocka_unit_test(real_dinov2_layout_pth_is_recognised),
        cmocka_unit_test(real_timm_safetensors_is_recognised),
    };
    return cmocka_run_group_tests_name("vit_spec", tests, NULL, NULL);
}
