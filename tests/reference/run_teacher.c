/* run_teacher weights=FILE|DIR pixels=FILE out=FILE [layers=1] [norm=1] [concat=0] [precision=f32] [device=cpu] [threads=1] [name=auto] [prefix=P] [positions=auto] [normalize=auto]
 *
 * Runs a teacher on given pixels, for check_families.py: no images are decoded, nothing is stored in half precision. pixels: .safetensors of F32
 * tensors [H,W,3] with values 0 to 255; out: .safetensors with
 * "NAME/cls.K", "NAME/registers.K", "NAME/patch.K", "NAME/mean.K" in F32 for each of them and each layer from the end. Facts as one JSON object on stdout; peak_rss is the kernel's
 * high-water mark of this process, planned what the largest program takes, model the part of it that holds the weights; all in bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/models.h"

enum { MAX_OUTPUTS = 512 };

typedef struct options {
    const char *weights, *pixels, *out, *layers, *norm, *concat, *precision, *device, *threads, *name, *prefix, *positions, *normalize;
} options;

typedef struct outputs {
    kd_arena *arena;
    kd_tensor tensor[MAX_OUTPUTS];
    size_t count;
    size_t planned, model; /* bytes of the largest program; of those, what holds the model */
} outputs;

static kd_status parse(options *o, int argc, char **argv, kd_err *err) {
    *o = (options){.layers = "1", .norm = "1", .concat = "0", .precision = "f32", .device = "cpu", .threads = "1", .name = "auto", .positions = "auto", .normalize = "auto"};
    const struct {
        const char *key;
        const char **at;
    } known[] = {{"weights", &o->weights}, {"pixels", &o->pixels}, {"out", &o->out}, {"layers", &o->layers}, {"norm", &o->norm}, {"concat", &o->concat}, {"precision", &o->precision},
                 {"device", &o->device}, {"threads", &o->threads}, {"name", &o->name}, {"prefix", &o->prefix}, {"positions", &o->positions}, {"normalize", &o->normalize}};
    for (int i = 1; i < argc; i++) {
        size_t k = 0, n = sizeof known / sizeof *known;
        while (k < n && (strncmp(argv[i], known[k].key, strlen(known[k].key)) != 0 || argv[i][strlen(known[k].key)] != '='))
            k++;
        if (k == n)
            return kd_fail(err, KD_EUSAGE, "%s: unknown word; known ones are in the source's first lines", argv[i]);
        *known[k].at = argv[i] + strlen(known[k].key) + 1;
    }
    if (o->weights == NULL || o->pixels == NULL || o->out == NULL)
        return kd_fail(err, KD_EUSAGE, "weights=, pixels= and out= are needed");
    return KD_OK;
}

static void choose(const options *o, const kd_model_info *m, kd_layer_choice *c) {
    *c = (kd_layer_choice){.norm = atoi(o->norm), .concat = atoi(o->concat), .features = KD_WANT_CLS | KD_WANT_PATCH | KD_WANT_MEAN};
    if (m->vit.registers > 0)
        c->features |= KD_WANT_REGISTERS;
    for (const char *p = o->layers; p != NULL; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        c->layer[c->layers++] = (uint16_t)atoi(p);
}

static kd_status keep(outputs *out, kd_exec *e, const char *image, const char *tap, int layer, kd_err *err) {
    char name[32];
    kd_tdesc desc;
    snprintf(name, sizeof name, "%s.%d", tap, layer);
    if (kd_exec_output(e, name, &desc) == NULL)
        return KD_OK; /* a network without registers */
    if (out->count == MAX_OUTPUTS)
        return kd_fail(err, KD_EUSAGE, "more than %d outputs; give fewer pictures or layers", MAX_OUTPUTS);
    kd_tensor *t = &out->tensor[out->count++];
    *t = (kd_tensor){.name = kd_arena_printf(out->arena, "%s/%s", image, name), .dtype = KD_F32, .rank = desc.rank - 1};
    for (int i = 1; i < desc.rank; i++)
        t->shape[i - 1] = desc.shape[i];
    float *values = kd_arena_alloc(out->arena, kd_tensor_numel(t) * sizeof *values);
    if (values == NULL || t->name == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the outputs");
    t->data = values;
    return kd_exec_download(e, name, 1, values, err);
}

static kd_status run_picture(outputs *out, const kd_tensor *picture, const unsigned char *pixels, const kd_model_info *m, const kd_weights *w, kd_backend *b, const kd_layer_choice *choice,
                             kd_dtype precision, kd_err *err) {
    static const char *const taps[] = {"cls", "registers", "patch", "mean"};
    int height = (int)picture->shape[0], width = (int)picture->shape[1];
    KD_TRY(kd_model_check_size(m, height, width, err));
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_model_build_layers(g, m, height, width, choice);
    kd_status status = kd_model_params_frozen(&p, g, b, m, w, height, width, err);
    if (status == KD_OK)
        status = kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1, .precision = precision}, err);
    if (status == KD_OK)
        status = kd_exec_upload(e, "images", pixels, err);
    if (status == KD_OK)
        status = kd_exec_forward(e, err);
    for (int i = 0; status == KD_OK && i < (choice->concat ? 1 : choice->layers); i++)
        for (size_t k = 0; status == KD_OK && k < sizeof taps / sizeof *taps; k++)
            status = keep(out, e, picture->name, taps[k], choice->layer[i], err);
    if (status == KD_OK && kd_exec_device_bytes(e) > out->planned) {
        out->planned = kd_exec_device_bytes(e);
        out->model = kd_exec_model_bytes(e);
    }
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    return status;
}

static kd_status run_pictures(outputs *out, const options *o, const kd_model_info *m, const kd_weights *w, kd_backend *b, kd_err *err) {
    kd_layer_choice choice;
    kd_weights *pictures = NULL;
    kd_dtype precision = strcmp(o->precision, "bf16") == 0 ? KD_BF16 : KD_F32;
    choose(o, m, &choice);
    if (precision == KD_BF16)
        KD_TRY(b->v->check_bf16(b, err));
    KD_TRY(kd_weights_open(&pictures, o->pixels, err));
    kd_status status = KD_OK;
    for (int i = 0; status == KD_OK && i < kd_weights_count(pictures); i++) {
        kd_tensor t = kd_weights_info(pictures, i);
        size_t n = kd_tensor_numel(&t);
        float *values = kd_arena_alloc(out->arena, n * sizeof *values);
        unsigned char *pixels = kd_arena_alloc(out->arena, n);
        if (values == NULL || pixels == NULL || t.rank != 3 || t.shape[2] != 3)
            status = kd_fail(err, KD_EUSAGE, "%s: %s isn't a picture [H,W,3] that fits into memory", o->pixels, t.name);
        else
            status = kd_weights_read_f32(pictures, i, values, n, err);
        for (size_t k = 0; status == KD_OK && k < n; k++)
            pixels[k] = (unsigned char)values[k];
        if (status == KD_OK)
            status = run_picture(out, &t, pixels, m, w, b, &choice, precision, err);
    }
    kd_weights_close(pictures);
    return status;
}

static long long high_water_mark(void) {
    char line[256];
    long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        sscanf(line, "VmHWM: %lld kB", &kib);
    if (f != NULL)
        fclose(f);
    return kib * 1024;
}

static kd_status run(const options *o, outputs *out, kd_err *err) {
    kd_weights *w = NULL;
    kd_backend *b = NULL;
    kd_model_info m;
    KD_TRY(kd_weights_open(&w, o->weights, err));
    kd_status status = kd_model_find_teacher(&m, o->name, w, &(kd_teacher_choice){.prefix = o->prefix, .positions = o->positions, .normalize = o->normalize}, err);
    if (status == KD_OK)
        status = kd_backend_open(&b, o->device, atoi(o->threads), err);
    if (status == KD_OK)
        status = run_pictures(out, o, &m, w, b, err);
    long long peak = high_water_mark();
    if (status == KD_OK)
        status = kd_safetensors_write(o->out, out->tensor, out->count, NULL, err);
    if (status == KD_OK)
        printf("{\"name\":\"%s\",\"family\":\"%s\",\"layout\":\"%s\",\"prefix\":\"%s\",\"normalisation\":\"%s\",\"periods_from_file\":%d,\"parameters\":%lld,\"planned\":%zu,\"model\":%zu,\"peak_rss\":%lld}\n", m.name,
               kd_vit_family_name(m.vit.family), kd_vit_layout_name(m.vit.layout), m.vit.prefix, m.vit.normalisation, m.vit.periods_from_file, (long long)m.vit.parameters, out->planned, out->model, peak);
    kd_backend_close(b);
    kd_weights_close(w);
    return status;
}

int main(int argc, char **argv) {
    kd_err err = {0};
    options o;
    outputs out = {.arena = kd_arena_create()};
    kd_status status = parse(&o, argc, argv, &err);
    if (status == KD_OK)
        status = run(&o, &out, &err);
    kd_arena_destroy(out.arena);
    if (status != KD_OK)
        fprintf(stderr, "run_teacher: %s\n", err.msg);
    return status == KD_OK ? 0 : status == KD_EUSAGE ? 2 : 1;
}
