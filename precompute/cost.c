#include "precompute/cost.h"

kd_teacher_cost kd_teacher_cost_of(const kd_vit_spec *s, int height, int width) {
    double patches = (double)(height / s->patch) * (width / s->patch), d = s->width, f = s->ffn_hidden;
    double tokens = 1 + s->registers + patches;
    double embed = 2 * patches * d * 3 * s->patch * s->patch;
    double qkv_and_proj = 2 * tokens * 4 * d * d, attention = 4 * tokens * tokens * d;
    double ffn = 2 * tokens * d * f * (s->ffn == KD_FFN_SWIGLU ? 3 : 2);
    return (kd_teacher_cost){.tokens = (int64_t)tokens,
                             .flops = embed + s->depth * (qkv_and_proj + attention + ffn),
                             .model_f32 = 4 * (uint64_t)s->parameters,
                             .model_bf16 = 2 * (uint64_t)s->parameters};
}
