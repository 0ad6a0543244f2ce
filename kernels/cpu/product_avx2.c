/* product.h with AVX2 and FMA, f32: tiles of 6 x 16 (f32_tile.h). */
#include "kernels/cpu/cpu_act.h"
#include "kernels/cpu/f32_tile.h"
#include "kernels/cpu/product.h"

enum { ROWS = KD_F32_ROWS, COLUMNS = KD_F32_COLUMNS };

/* What happens to a finished tile. Constants, like the activation and whether the tile is whole: simd.h says why. */
typedef enum ending { OVERWRITE, ADD, APPLY, APPLY_AND_SAVE, JOIN } ending;

KD_LANE kd_vf channels(const float *values, float absent, size_t column, int n) {
    const kd_vf same = kd_splat(absent);
    const float *from = values ? values + column : (const float *)&same;
    return kd_load_f32(from, n);
}

KD_LANE void end_tile(const kd_product_tile *t, ending e, kd_act act, const float *sum, int n) {
    const kd_product_finish *f = t->finish;
    const kd_vf bias = e >= APPLY ? channels(f->bias, 0, t->column, n) : kd_splat(0), gamma = e == JOIN ? channels(f->gamma, 1, t->column, n) : kd_splat(1);
    float *out = t->out;
    for (size_t m = 0; m < t->rows; m++) {
        size_t at = t->at[m] + t->column;
        kd_vf v = kd_load_f32(sum + m * COLUMNS, KD_VF) + bias;
        if (e == ADD)
            v += kd_load_f32(out + at, n);
        if (e == APPLY_AND_SAVE)
            kd_store_f32(f->before_act + at, v, n);
        if (e == APPLY || e == APPLY_AND_SAVE)
            v = kd_act_value(act, v);
        if (e == JOIN)
            v = kd_load_f32(f->residual + at, n) + v * gamma;
        kd_store_f32(out + at, v, n);
    }
}

#define ENDS(name, e, act) \
    KD_AVX2 static void name(const kd_product_tile *t, const float *sum) { \
        if (t->columns == KD_VF) \
            end_tile(t, e, act, sum, KD_VF); \
        else \
            end_tile(t, e, act, sum, (int)t->columns); \
    }

ENDS(overwrite, OVERWRITE, KD_ACT_NONE)
ENDS(add_to, ADD, KD_ACT_NONE)
ENDS(apply, APPLY, KD_ACT_NONE)
ENDS(apply_relu, APPLY, KD_ACT_RELU)
ENDS(apply_gelu, APPLY, KD_ACT_GELU)
ENDS(save_and_apply_gelu, APPLY_AND_SAVE, KD_ACT_GELU)
ENDS(join, JOIN, KD_ACT_NONE)

static void end(const kd_product_tile *t, const float *sum) {
    const kd_product_finish *f = t->finish;
    if (t->add)
        add_to(t, sum);
    else if (f->residual)
        join(t, sum);
    else if (f->before_act)
        save_and_apply_gelu(t, sum);
    else if (f->act == KD_ACT_GELU)
        apply_gelu(t, sum);
    else if (f->act == KD_ACT_RELU)
        apply_relu(t, sum);
    else if (f->bias)
        apply(t, sum);
    else
        overwrite(t, sum);
}

static void tile(kd_dtype type, const kd_product_tile *t) {
    _Alignas(64) float sum[KD_F32_TILE];
    (void)type;
    kd_f32_tile_sum(sum, COLUMNS, t->tap, t->taps, t->steps, t->panel);
    end(t, sum);
}

KD_AVX2 static void pack(kd_dtype type, void *to, const kd_product_weights *w, size_t begin, size_t end) {
    float *panel = to;
    (void)type;
    for (size_t d = begin; d < end; d++)
        for (size_t t = 0; t < w->taps; t++)
            for (size_t j = 0; j < COLUMNS; j++)
                panel[(t * w->depths + d) * COLUMNS + j] = j < w->columns ? w->w[j * w->column + d * w->depth + t] : 0;
}

const kd_product_kind kd_product_avx2 = {ROWS, COLUMNS, ROWS, tile, pack};
