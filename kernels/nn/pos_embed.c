/* Position embeddings for another grid of patches, each library's way, in f32. All are torch.nn.functional.interpolate(mode="bicubic", align_corners=False) on the file's square grid:
 *
 *   profile    registers   how                               source
 *   official   no          scale_factor = (to + 0.1) / from   dinov2/models/vision_transformer.py interpolate_pos_encoding with interpolate_offset 0.1 (the hubs without registers)
 *   official   yes         size, antialias                    the same with interpolate_offset 0, interpolate_antialias True (the hubs with registers)
 *   hf         no          size                               transformers models/dinov2/modeling_dinov2.py
 *   hf         yes         size, antialias                    transformers models/dinov2_with_registers/modeling_dinov2_with_registers.py
 *   timm       either      size, antialias                    timm/layers/pos_embed.py resample_abs_pos_embed
 *
 * Given a scale_factor torch samples with it, not with to / from: source = (i + 0.5) * from / (to + 0.1) - 0.5. Plain bicubic: four taps, a = -0.75, indexes clamped at the border.
 * antialias: a = -0.5, the kernel stretched by max(1, from / to), weights normalised over the taps inside. All leave the table as it is when the image has exactly the file's grid. */
#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "kernels/nn/model_builders.h"

typedef struct taps {
    int begin, count; /* source indexes before clamping */
    float *weight;
} taps;

/* Keys' cubic convolution kernel. */
static float cubic(float x, float a) {
    x = fabsf(x);
    if (x <= 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* offset: what is added to `to` before a scale factor is made of it; 0: torch is given the size. */
static void taps_plain(taps *t, int i, int from, int to, double offset) {
    float scale = offset > 0 ? (float)(1.0 / (((double)to + offset) / from)) : (float)from / (float)to;
    float source = scale * ((float)i + 0.5f) - 0.5f;
    float below = floorf(source);
    t->begin = (int)below - 1;
    t->count = 4;
    for (int k = 0; k < 4; k++)
        t->weight[k] = cubic(source - below + 1 - (float)k, -0.75f);
}

static void taps_antialias(taps *t, int i, int from, int to) {
    float scale = (float)from / (float)to, stretch = scale > 1 ? scale : 1, support = 2 * stretch;
    float center = scale * ((float)i + 0.5f), sum = 0;
    int begin = (int)(center - support + 0.5f), end = (int)(center + support + 0.5f);
    t->begin = begin > 0 ? begin : 0;
    t->count = (end < from ? end : from) - t->begin;
    for (int k = 0; k < t->count; k++) {
        t->weight[k] = cubic(((float)(k + t->begin) - center + 0.5f) / stretch, -0.5f);
        sum += t->weight[k];
    }
    for (int k = 0; k < t->count; k++)
        t->weight[k] /= sum;
}

/* The taps of every output position along one side, in one block (kd_free). */
static kd_status make_taps(taps **out, int from, int to, kd_pos_profile profile, int registers, kd_err *err) {
    size_t most = 4 * ((size_t)(from / to) + 2); /* of one output: at most 2 * 2 * stretch + 1 */
    KD_TRY(kd_alloc_array(out, (size_t)to, sizeof(taps) + most * sizeof(float), err));
    float *weights = (float *)(void *)(*out + to);
    for (int i = 0; i < to; i++) {
        taps *t = *out + i;
        t->weight = weights + (size_t)i * most;
        if (profile == KD_POS_TIMM || registers)
            taps_antialias(t, i, from, to);
        else
            taps_plain(t, i, from, to, profile == KD_POS_OFFICIAL ? 0.1 : 0.0);
    }
    return KD_OK;
}

static int clamp(int i, int n) {
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

/* One direction: `lines` lines of n_in vectors of `width` floats become n_out; strides in vectors. */
static void resample(float *out, const float *in, const taps *t, int lines, int n_in, int n_out, int line_in, int line_out, int step_in, int step_out, int width) {
    for (int line = 0; line < lines; line++)
        for (int i = 0; i < n_out; i++) {
            float *y = out + ((size_t)line * (size_t)line_out + (size_t)i * (size_t)step_out) * (size_t)width;
            memset(y, 0, (size_t)width * sizeof *y);
            for (int k = 0; k < t[i].count; k++) {
                const float *x = in + ((size_t)line * (size_t)line_in + (size_t)clamp(t[i].begin + k, n_in) * (size_t)step_in) * (size_t)width;
                for (int c = 0; c < width; c++)
                    y[c] += t[i].weight[k] * x[c];
            }
        }
}

kd_status kd_pos_embed_resize(float *out, const float *in, int from_h, int from_w, int to_h, int to_w, int width, kd_pos_profile profile, int registers, kd_err *err) {
    size_t row = (size_t)width * sizeof(float);
    memcpy(out, in, row);
    if (from_h == to_h && from_w == to_w) {
        memcpy(out + width, in + width, (size_t)to_h * (size_t)to_w * row);
        return KD_OK;
    }
    taps *x = NULL, *y = NULL;
    float *half = NULL;
    kd_status status;
    KD_TRY_TO(end, status, make_taps(&x, from_w, to_w, profile, registers, err));
    KD_TRY_TO(end, status, make_taps(&y, from_h, to_h, profile, registers, err));
    KD_TRY_TO(end, status, kd_alloc_array(&half, (size_t)from_h * (size_t)to_w, row, err));
    resample(half, in + width, x, from_h, from_w, to_w, from_w, to_w, 1, 1, width);      /* along x: [from_h,from_w] -> [from_h,to_w] */
    resample(out + width, half, y, to_w, from_h, to_h, 1, 1, to_w, to_w, width);         /* along y: [from_h,to_w] -> [to_h,to_w] */
end:
    kd_free(x);
    kd_free(y);
    kd_free(half);
    return status;
}
