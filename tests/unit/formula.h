/* Numbers from a name and an index: the same formula as value() and unit() in tests/golden/models/generate.py, so that goldens need no weight files. */
#ifndef KD_TESTS_UNIT_FORMULA_H
#define KD_TESTS_UNIT_FORMULA_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/nn/graph.h"

/* FNV-1a of the name: the same for all values of a tensor, of which a network has millions. */
static inline uint32_t formula_name(const char *name) {
    uint32_t h = 2166136261u;
    for (const char *c = name; *c; c++)
        h = (h ^ (unsigned char)*c) * 16777619u;
    return h;
}

static inline uint32_t formula_mix(uint32_t name, uint32_t i) {
    uint32_t h = name + i * 2654435761u;
    h ^= h >> 15;
    h *= 0x2C1B3C6Du;
    h ^= h >> 12;
    h *= 0x297A2D39u;
    return h ^ h >> 15;
}

static inline uint32_t formula_bits(const char *name, uint32_t i) {
    return formula_mix(formula_name(name), i);
}

/* In [-1, 1). */
static inline double formula_unit(const char *name, uint32_t i) {
    return formula_bits(name, i) / 2147483648.0 - 1.0;
}

static inline int formula_ends(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* The values of one parameter: times (plus + range u), u in [-1, 1). */
static inline void formula_fill(float *out, const kd_param_info *p) {
    double times = 1, plus = 0, range = 0.1;
    uint32_t name = formula_name(p->name);
    if (p->is_counter) {
        range = 0;
    } else if (formula_ends(p->name, "running_var")) {
        plus = 1, range = 0.5;
    } else if (formula_ends(p->name, "token") || formula_ends(p->name, "pos_embed")) {
        range = 0.5;
    } else if (p->rank >= 2) {
        range = sqrt(4.0 / ((double)p->count / (double)p->shape[0]));
    } else if (formula_ends(p->name, "bn3.weight")) {
        times = 0.25, plus = 1, range = 0.3;
    } else if (formula_ends(p->name, ".weight") || formula_ends(p->name, ".gamma")) {
        plus = 1, range = 0.3;
    }
    for (uint32_t i = 0; i < p->count; i++)
        out[i] = (float)(times * (plus + range * (formula_mix(name, i) / 2147483648.0 - 1.0)));
}

/* Gives every parameter its formula values. buf holds the largest one. */
static inline kd_status formula_params(kd_params *p, float *buf, kd_err *err) {
    for (int i = 0; i < kd_params_count(p); i++) {
        kd_param_info info = kd_params_info(p, i);
        formula_fill(buf, &info);
        KD_TRY(kd_params_set(p, i, buf, err));
    }
    return KD_OK;
}

static inline void formula_pictures(uint8_t *out, size_t n) {
    uint32_t name = formula_name("images");
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(formula_mix(name, (uint32_t)i) >> 24);
}

static inline void formula_targets(float *out, const char *name, size_t n) {
    uint32_t h = formula_name(name);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(formula_mix(h, (uint32_t)i) / 2147483648.0 - 1.0);
}

#endif
