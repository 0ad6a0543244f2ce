/* run_onnx STUDENT HEIGHT WIDTH FOLDER: a student with the weights and pictures of tests/unit/formula.h, for check_onnx.py. In FOLDER, which exists:
 *
 *   weights.safetensors   as kd-export writes it                  fixed.onnx     for this image size
 *   outputs.safetensors   images U8 [3,H,W,3] and what kdcache's  dynamic.onnx   for any, of students that take any
 *                         own program makes of them: pooled,      taller.safetensors  beside dynamic.onnx: pictures that are twice as high, and their outputs
 *                         cls [3,D], patch [3,h,w,D]
 * Exit status 1 when any of it fails. */
#include <stdio.h>
#include <stdlib.h>

#include "common/base/mem.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/models.h"
#include "tests/unit/formula.h"
#include "train/export/onnx.h"

enum { IMAGES = 3 };

static kd_err err;
static const char *folder;

static void must(kd_status status) {
    if (status == KD_OK)
        return;
    fprintf(stderr, "run_onnx: %s\n", err.msg);
    exit(1);
}

static char *in_folder(const char *name) {
    char *path = kd_asprintf("%s/%s", folder, name);
    if (path == NULL)
        exit(1);
    return path;
}

static void *allocate(size_t count, size_t size) {
    void *p = NULL;
    must(kd_alloc_array(&p, count, size, &err));
    return p;
}

static void set_weights(kd_params *p) {
    size_t largest = 1;
    for (int i = 0; i < kd_params_count(p); i++)
        if (kd_params_info(p, i).count > largest)
            largest = kd_params_info(p, i).count;
    float *buf = allocate(largest, sizeof *buf);
    must(formula_params(p, buf, &err));
    kd_free(buf);
}

static const float *output(const kd_exec *e, const char *name, size_t count) {
    float *values = allocate(count, sizeof *values);
    must(kd_exec_download((kd_exec *)(uintptr_t)e, name, IMAGES, values, &err));
    return values;
}

static void write_outputs(const kd_graph *g, kd_params *p, const kd_model_info *m, const kd_model_taps *taps, int height, int width, const char *name) {
    kd_exec *e;
    size_t pixels = (size_t)IMAGES * (size_t)height * (size_t)width * 3, features = (size_t)IMAGES * (size_t)m->width;
    uint8_t *images = allocate(pixels, 1);
    formula_pictures(images, pixels);
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = IMAGES, .precision = KD_F32}, &err));
    must(kd_exec_upload(e, "images", images, &err));
    must(kd_exec_forward(e, &err));
    const kd_tensor t[4] = {
        {.name = "images", .dtype = KD_U8, .rank = 4, .shape = {IMAGES, height, width, 3}, .data = images},
        {.name = "pooled", .dtype = KD_F32, .rank = 2, .shape = {IMAGES, m->width}, .data = output(e, "pooled", features)},
        {.name = "cls", .dtype = KD_F32, .rank = 2, .shape = {IMAGES, m->width}, .data = output(e, "cls", features)},
        {.name = "patch", .dtype = KD_F32, .rank = 4, .shape = {IMAGES, taps->map_h, taps->map_w, m->width}, .data = output(e, "map", features * (size_t)(taps->map_h * taps->map_w))},
    };
    must(kd_safetensors_write(in_folder(name), t, 4, NULL, &err));
    for (int i = 0; i < 4; i++)
        kd_free((void *)(uintptr_t)t[i].data);
    kd_exec_destroy(e);
}

int main(int argc, char **argv) {
    kd_model_info m;
    kd_backend *b;
    kd_params *p;
    if (argc != 5) {
        fprintf(stderr, "usage: run_onnx STUDENT HEIGHT WIDTH FOLDER\n");
        return 2;
    }
    int height = atoi(argv[2]), width = atoi(argv[3]);
    folder = argv[4];
    must(kd_model_find(&m, argv[1], NULL, &err));
    must(kd_model_check_size(&m, height, width, &err));
    must(kd_backend_open(&b, "cpu", 1, &err));
    kd_graph *g = kd_graph_create();
    if (g == NULL)
        return 1;
    kd_model_taps taps = kd_model_build(g, &m, height, width);
    must(kd_params_create(&p, g, b, &err));
    set_weights(p);
    must(kd_model_export(p, &m, in_folder("weights.safetensors"), KD_F32, NULL, &err));
    must(kd_onnx_write(in_folder("fixed.onnx"), g, p, &m, &taps, height, width, NULL, &err));
    write_outputs(g, p, &m, &taps, height, width, "outputs.safetensors");
    if (!m.one_size) {
        kd_graph *taller = kd_graph_create();
        must(kd_onnx_write(in_folder("dynamic.onnx"), g, p, &m, &taps, 0, 0, NULL, &err));
        taps = kd_model_build(taller, &m, 2 * height, width);
        write_outputs(taller, p, &m, &taps, 2 * height, width, "taller.safetensors");
        kd_graph_destroy(taller);
    }
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_backend_close(b);
    return 0;
}
