#include "train/export/export_run.h"

#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/weights/pth.h"
#include "train/export/hf.h"
#include "train/export/onnx.h"

#define T kd_export_config

static const kd_option table[] = {
    KD_OPTION_STRING(T, run, "run", "DIR", NULL, KD_OPT_REQUIRED, "run directory of kd-train"),
    KD_OPTION_STRING(T, checkpoint, "checkpoint", "latest|best|FILE", "latest", 0, "which state: the latest, the best validation loss, or a .kdt file"),
    KD_OPTION_STRING(T, student, "student", "NAME", NULL, 0, "which student of the run; may be left out when there is one"),
    KD_OPTION_CHOICE(T, format, "format", "safetensors|pth|hf|onnx", "safetensors",
                     "safetensors, pth: a state_dict with the names of the student's library (torchvision, timm, DINOv2, ultralytics); hf: a folder for timm and the Hugging Face Hub, with config.json and a model card; onnx: a graph for onnxruntime and its like, from normalised images to features"),
    KD_OPTION_CHOICE(T, dtype, "dtype", "f32|f16", "f32", "type of the exported weights"),
    KD_OPTION_CHOICE(T, onnx_size, "onnx-size", "fixed|dynamic", "fixed", "onnx: images of the size that the student was trained at, or of any size; the batch is always of any"),
    KD_OPTION_STRING(T, license, "license", "NAME", NULL, 0, "hf: license of the weights as the Hub names it, e.g. apache-2.0; without it the card says that none is stated"),
    KD_OPTION_STRING(T, out, "out", "PATH", NULL, KD_OPT_REQUIRED, "file to write; hf: folder"),
    KD_OPTION_END,
};

const kd_program kd_export_program = {
    .name = "kd-export",
    .summary = "Writes a trained student, without heads, for its own library.",
    .examples = "  $ kd-export --run runs/r18 --out r18.safetensors\n  $ kd-export --run runs/two --student resnet18 --checkpoint best --dtype f16 --format pth --out r18.pth\n"
                "  $ kd-export --run runs/r18 --format hf --license apache-2.0 --out r18-distilled\n"
                "  $ kd-export --run runs/r18 --format onnx --onnx-size dynamic --out r18.onnx\n",
    .epilog = "Exit codes: 0 done; 1 failure, e.g. a damaged checkpoint; 2 usage; 14 disk full; 16 weights that aren't finite, or beyond f16.\n",
    .options = table,
};

/* ---- formats ---- */

static kd_dtype dtype_of(const kd_export_config *c) {
    return strcmp(c->dtype, "f16") == 0 ? KD_F16 : KD_F32;
}

static kd_status write_safetensors(const kd_export_student *x, const kd_export_config *c, kd_err *err) {
    return kd_model_export(x->params, &x->model, c->out, dtype_of(c), x->metadata, err);
}

static kd_status write_pth(const kd_export_student *x, const kd_export_config *c, kd_err *err) {
    kd_model_state s;
    KD_TRY(kd_model_state_read(&s, x->params, &x->model, dtype_of(c), err));
    kd_status status = kd_pth_write(c->out, s.tensor, s.count, x->metadata, err);
    kd_model_state_free(&s);
    return status;
}

static kd_status write_hf(const kd_export_student *x, const kd_export_config *c, kd_err *err) {
    return kd_hf_write(c->out, x, dtype_of(c), c->run, c->license, err);
}

static kd_status write_onnx(const kd_export_student *x, const kd_export_config *c, kd_err *err) {
    int fixed = strcmp(c->onnx_size, "fixed") == 0;
    return kd_onnx_write(c->out, x->graph, x->params, &x->model, &x->taps, fixed ? x->height : 0, fixed ? x->width : 0, x->metadata, err);
}

static const struct {
    const char *name;
    kd_status (*write)(const kd_export_student *x, const kd_export_config *c, kd_err *err);
} formats[] = {{"safetensors", write_safetensors}, {"pth", write_pth}, {"hf", write_hf}, {"onnx", write_onnx}};

static kd_status write_format(const kd_export_student *x, const kd_export_config *c, kd_err *err) {
    size_t i = 0;
    while (strcmp(formats[i].name, c->format) != 0) /* one of the option's choices */
        i++;
    return formats[i].write(x, c, err);
}

/* ---- the run ---- */

/* The name of the run's only student, from its latest checkpoint: the file of its best state is named after it. */
static kd_status only_student(const char *run, char *name, size_t cap, kd_err *err) {
    char *latest = kd_checkpoint_path(run, "latest", NULL);
    kd_checkpoint *c = NULL;
    size_t index;
    kd_status status = latest != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory");
    if (status == KD_OK && !kd_io_exists(latest))
        status = kd_fail(err, KD_EUSAGE, "%s: no checkpoint there yet; give the --out directory of a kd-train run", latest);
    if (status == KD_OK)
        status = kd_checkpoint_open(&c, latest, err);
    if (status == KD_OK)
        status = kd_checkpoint_find(c, NULL, &index, err);
    if (status == KD_OK)
        snprintf(name, cap, "%s", json_string_value(json_object_get(kd_checkpoint_student(c, index), "name")));
    kd_checkpoint_close(c);
    kd_free(latest);
    return status;
}

/* Path of the checkpoint that is meant (new string), and in name the student's name, "" for the only one. */
static kd_status choose(const kd_export_config *c, char **path, char *name, size_t cap, kd_err *err) {
    int best = strcmp(c->checkpoint, "best") == 0, file = !best && strcmp(c->checkpoint, "latest") != 0;
    name[0] = '\0';
    if (c->student != NULL)
        snprintf(name, cap, "%s", c->student);
    else if (best)
        KD_TRY(only_student(c->run, name, cap, err));
    *path = file ? kd_strdup(c->checkpoint) : kd_checkpoint_path(c->run, c->checkpoint, name);
    if (*path == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    if (kd_io_exists(*path))
        return KD_OK;
    kd_status status = kd_fail(err, KD_EUSAGE, "%s: no such checkpoint; --run is the --out directory of a kd-train run, and %s/checkpoints holds what it saved", *path, c->run);
    kd_free(*path);
    return status;
}

static kd_status export_from(const kd_export_config *c, const char *path, const char *name, kd_backend *backend, kd_err *err) {
    kd_export_student x = {0};
    kd_checkpoint *checkpoint;
    size_t index;
    KD_TRY(kd_checkpoint_open(&checkpoint, path, err));
    kd_status status = kd_checkpoint_find(checkpoint, name[0] != '\0' ? name : NULL, &index, err);
    if (status == KD_OK)
        status = kd_export_student_open(&x, backend, checkpoint, index, err);
    if (status == KD_OK)
        status = write_format(&x, c, err);
    kd_export_student_close(&x);
    kd_checkpoint_close(checkpoint);
    return status;
}

static void say(const kd_export_config *c, const char *path) {
    kd_log(KD_LOG_INFO, "wrote %s from %s", c->out, path);
    if (c->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:s}", "type", "result", "path", c->out, "checkpoint", path, "format", c->format);
        kd_json_line(line);
        json_decref(line);
    }
}

static kd_status check_options(const kd_export_config *c, kd_err *err) {
    int onnx = strcmp(c->format, "onnx") == 0;
    if (c->license != NULL && strcmp(c->format, "hf") != 0)
        return kd_fail(err, KD_EUSAGE, "--license stands in the model card of --format hf; a %s has none, leave it out", c->format);
    if (!onnx && strcmp(c->onnx_size, "dynamic") == 0)
        return kd_fail(err, KD_EUSAGE, "--onnx-size dynamic is for --format onnx; a %s holds weights alone, leave it out", c->format);
    if (onnx && dtype_of(c) == KD_F16)
        return kd_fail(err, KD_EUSAGE, "--format onnx writes f32, in which its graph computes; leave --dtype f16 out");
    return KD_OK;
}

kd_status kd_export_run(const kd_export_config *c, kd_err *err) {
    char name[64], *path;
    kd_backend *backend;
    KD_TRY(check_options(c, err));
    KD_TRY(choose(c, &path, name, sizeof name, err));
    kd_status status = kd_backend_open(&backend, "ref", 1, err);
    if (status == KD_OK) {
        status = export_from(c, path, name, backend, err);
        kd_backend_close(backend);
    }
    if (status == KD_OK)
        say(c, path);
    kd_free(path);
    return status;
}
