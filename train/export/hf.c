#include "train/export/hf.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/text.h"
#include "common/weights/safetensors.h"
#include "train/curves.h"
#include "train/export/timm_layout.h"

static kd_status in_folder(char **path, const char *folder, const char *name, kd_err *err) {
    *path = kd_asprintf("%s/%s", folder, name);
    return *path != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory");
}

static kd_status write_text(const char *folder, const char *name, const char *text, kd_err *err) {
    char *path;
    KD_TRY(in_folder(&path, folder, name, err));
    kd_status status = kd_io_write_atomic(path, text, strlen(text), err);
    kd_free(path);
    return status;
}

/* ---- weights ---- */

static kd_status write_renamed(const char *path, const kd_export_student *x, kd_model_state *s, kd_err *err) {
    kd_arena *names = kd_arena_create();
    kd_status status = names != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the names of %s", x->model.name);
    if (status == KD_OK)
        status = kd_timm_rename(s, &x->model, names, err);
    if (status == KD_OK)
        status = kd_safetensors_write(path, s->tensor, s->count, x->metadata, err);
    kd_arena_destroy(names);
    return status;
}

static kd_status write_weights(const char *folder, const kd_export_student *x, kd_dtype dtype, kd_err *err) {
    kd_model_state s;
    char *path;
    KD_TRY(kd_model_state_read(&s, x->params, &x->model, dtype, err));
    kd_status status = in_folder(&path, folder, "model.safetensors", err);
    if (status == KD_OK) {
        status = write_renamed(path, x, &s, err);
        kd_free(path);
    }
    kd_model_state_free(&s);
    return status;
}

/* ---- config.json ---- */

static kd_status write_config(const char *folder, const kd_export_student *x, const char *license, kd_err *err) {
    json_t *config = kd_timm_config(&x->model, x->height, x->width, license);
    char *text = config != NULL && json_object_set(config, "kdcache", x->metadata) == 0 ? json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(7)) : NULL;
    kd_status status = text != NULL ? write_text(folder, "config.json", text, err) : kd_fail(err, KD_EFAIL, "out of memory for config.json");
    free(text);
    json_decref(config);
    return status;
}

/* ---- the card ---- */

static void put_loader(kd_text *t, const kd_export_student *x) {
    const kd_model_info *m = &x->model;
    kd_text_printf(t, "\n## Loading\n\n```python\n");
    if (kd_timm_loads(m))
        kd_text_printf(t, "import timm\nmodel = timm.create_model(\"local-dir:FOLDER\", pretrained=True).eval()   # or \"hf-hub:OWNER/NAME\" after uploading the folder\n"
                          "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
                          "features = model(transform(picture).unsqueeze(0))   # [1, %d]\n", m->width);
    else if (m->kind == KD_MODEL_MOBILENET)
        kd_text_printf(t, "import torch, torchvision\nfrom safetensors.torch import load_file\nmodel = torchvision.models.%s()\nmodel.classifier = torch.nn.Identity()\nmodel.load_state_dict(load_file(\"model.safetensors\"))   # torchvision; timm's network of this name has other layers\n",
                       m->name);
    else
        kd_text_printf(t, "from safetensors.torch import load_file\nfrom ultralytics import YOLO\nbackbone = YOLO(\"%s.yaml\").model.model[:%d]\n"
                          "backbone.load_state_dict({k[len(\"model.\"):]: v for k, v in load_file(\"model.safetensors\").items()})\n",
                       m->name, strncmp(m->name, "yolo11", 6) == 0 ? 11 : 10);
    kd_text_printf(t, "```\n");
}

static void put_preparation(kd_text *t, const kd_export_student *x) {
    const kd_model_info *m = &x->model;
    const char *view = json_string_value(json_object_get(x->metadata, "kdcache_view_size"));
    kd_text_printf(t, "\n## Pictures\n\nRGB, normalised as (pixel / 255 - mean) / std with mean [%g, %g, %g] and std [%g, %g, %g]. It was trained on %dx%d pixels (rows x columns)", (double)m->mean[0], (double)m->mean[1], (double)m->mean[2],
                   (double)m->std[0], (double)m->std[1], (double)m->std[2], x->height, x->width);
    if (view != NULL && strcmp(view, json_string_value(json_object_get(x->metadata, "kdcache_image_size"))) != 0)
        kd_text_printf(t, ", to which views of %s were reduced (Pillow's BOX filter)", view);
    kd_text_printf(t, ". `kd-eval` resizes the shorter side to 256/224 of the view (bicubic) and crops the centre.\n");
}

static void put_recipe(kd_text *t, const kd_export_student *x) {
    static const char *const options[] = {"loss", "cls-weight", "patch-weight", "patch-target", "optimizer", "lr", "weight-decay", "batch-size", "accumulate", "epochs", "warmup-epochs", "clip", "ema", "drop-path", "precision", "seed"};
    const json_t *given = json_object_get(x->run, "options");
    kd_text_printf(t, "\n## Recipe\n\nTrained to imitate the features of a teacher, without labels: `kd-train` of kdcache %s.\n\n| | |\n|---|---|\n", kd_version);
    kd_text_printf(t, "| teacher (SHA-256 of its weights) | `%s` |\n| cache (identity) | `%s` |\n| steps | %s |\n", json_string_value(json_object_get(x->metadata, "kdcache_teacher_sha256")),
                   json_string_value(json_object_get(x->metadata, "kdcache_cache")), json_string_value(json_object_get(x->metadata, "kdcache_steps")));
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        json_t *value = json_object_get(given, options[i]);
        char *text = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(7)) : NULL;
        if (text != NULL)
            kd_text_printf(t, "| %s | %s |\n", options[i], json_is_string(value) ? json_string_value(value) : text);
        free(text);
    }
}

/* The figures of the last epoch that ended up to the checkpoint's step. */
static kd_status put_figures(kd_text *t, const kd_export_student *x, const char *path, kd_err *err) {
    static const struct {
        const char *key, *what;
    } figures[] = {{"val_r2_cls", "R2 of the class token (1: the teacher's; 0: its mean), held-out images"}, {"val_cos_cls", "centred cosine of the class token, held-out images"},
                   {"val_r2_patch", "R2 of the patches, held-out images"}, {"val_cos_patch", "centred cosine of the patches, held-out images"},
                   {"val_agreement", "share of the 20 nearest neighbours that teacher and student agree on, held-out images"}, {"val_loss", "loss, held-out images"},
                   {"seen_r2_cls", "R2 of the class token, training images"}, {"seen_r2_patch", "R2 of the patches, training images"},
                   {"knn_top1_k10", "k-NN top-1, k = 10"}, {"knn_top1_k20", "k-NN top-1, k = 20"}, {"knn_top5_k20", "k-NN top-5, k = 20"}};
    double step = json_number_value(json_object_get(x->run, "step")), measured = 0;
    const char *name = json_string_value(json_object_get(x->student, "name"));
    kd_curves c = {0};
    kd_status status = kd_curves_read(&c, path, 1, err); /* an epoch of one step: x is the step */
    const kd_curve *epochs = status == KD_OK ? kd_curves_find(&c, name, "train_loss") : NULL;
    for (size_t i = 0; epochs != NULL && i < epochs->count; i++)
        if (epochs->point[i].x <= step)
            measured = epochs->point[i].x;
    if (measured > 0)
        kd_text_printf(t, "\n## Measured\n\nBy `kd-train` after step %.0f.\n\n| | |\n|---|---|\n", measured);
    for (size_t f = 0; measured > 0 && f < sizeof figures / sizeof *figures; f++) {
        const kd_curve *curve = kd_curves_find(&c, name, figures[f].key);
        for (size_t i = 0; curve != NULL && i < curve->count; i++)
            if (curve->point[i].x == measured)
                kd_text_printf(t, "| %s | %.4g |\n", figures[f].what, curve->point[i].y);
    }
    kd_curves_free(&c);
    return status;
}

static kd_status make_card(kd_text *t, const kd_export_student *x, const char *run, const char *license, kd_err *err) {
    const kd_model_info *m = &x->model;
    char *metrics;
    kd_status status = KD_OK;
    kd_text_printf(t, "---\nlibrary_name: %s\n", kd_timm_loads(m) ? "timm" : m->library);
    if (license != NULL)
        kd_text_printf(t, "license: %s\n", license);
    kd_text_printf(t, "pipeline_tag: image-feature-extraction\ntags:\n- image-feature-extraction\n- knowledge-distillation\n---\n# %s, distilled\n\n", m->name);
    kd_text_printf(t, "A backbone without a head: %s's %s, %d features.\n", m->library, m->name, m->width);
    if (license == NULL)
        kd_text_printf(t, "\n**License: not stated.** The teacher's and the pictures' terms may bind what was learnt from them; whoever publishes this folder states it (`kd-export --license`).\n");
    put_loader(t, x);
    put_preparation(t, x);
    put_recipe(t, x);
    KD_TRY(in_folder(&metrics, run, "metrics.jsonl", err));
    if (kd_io_exists(metrics))
        status = put_figures(t, x, metrics, err);
    kd_free(metrics);
    return status == KD_OK ? kd_text_check(t, "the model card", err) : status;
}

kd_status kd_hf_write(const char *folder, const kd_export_student *x, kd_dtype dtype, const char *run, const char *license, kd_err *err) {
    kd_text card = {0};
    KD_TRY(kd_io_mkdirs(folder, err));
    kd_status status = make_card(&card, x, run, license, err);
    if (status == KD_OK)
        status = write_weights(folder, x, dtype, err);
    if (status == KD_OK)
        status = write_config(folder, x, license, err);
    if (status == KD_OK)
        status = write_text(folder, "README.md", card.at, err);
    kd_text_free(&card);
    return status;
}
