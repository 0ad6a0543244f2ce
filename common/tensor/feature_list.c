#include "common/tensor/feature_list.h"

#include <stdio.h>
#include <string.h>

#include "common/base/options.h"

/* The next piece of a list "a,b,c": its length, and where the rest begins (NULL after the last). */
static size_t piece(const char *at, const char **rest)
{
    size_t n = strcspn(at, ",");
    *rest = at[n] == ',' ? at + n + 1 : NULL;
    return n;
}

static int find_feature(const char *name, size_t n)
{
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        if (strlen(kd_feature_name(f)) == n && strncmp(kd_feature_name(f), name, n) == 0)
            return (int)f;
    return -1;
}

static kd_status unknown_feature(const char *text, const char *name, size_t n, kd_err *err)
{
    const char *names[KD_OUTPUTS], *near;
    char word[64], all[64];
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        names[f] = kd_feature_name(f);
    snprintf(word, sizeof word, "%.*s", (int)n, name);
    near = kd_nearest_name(word, names, KD_OUTPUTS);
    return kd_fail(err, KD_EUSAGE, "--features %s: \"%s\" is not one of %s%s%s%s", text, word, kd_features_text((1u << KD_OUTPUTS) - 1, all, sizeof all),
                   near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

kd_status kd_features_parse(const char *text, unsigned *features, kd_err *err)
{
    *features = 0;
    for (const char *at = text, *rest; at != NULL; at = rest) {
        size_t n = piece(at, &rest);
        int f = find_feature(at, n);
        if (f < 0)
            return unknown_feature(text, at, n, err);
        if (*features & 1u << f)
            return kd_fail(err, KD_EUSAGE, "--features %s: %s is given twice", text, kd_feature_name((kd_feature)f));
        *features |= 1u << f;
    }
    return KD_OK;
}

const char *kd_features_text(unsigned features, char *buf, size_t cap)
{
    size_t n = 0;
    buf[0] = '\0';
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        if (features & 1u << f && n < cap)
            n += (size_t)snprintf(buf + n, cap - n, "%s%s", n > 0 ? "," : "", kd_feature_name(f));
    return buf;
}

/* A number of up to four digits, or -1: the deepest teacher has 40 blocks. */
static int small_number(const char *at, size_t n)
{
    int v = 0;
    if (n == 0 || n > 4 || strspn(at, "0123456789") < n)
        return -1;
    for (size_t i = 0; i < n; i++)
        v = 10 * v + (at[i] - '0');
    return v;
}

/* One number of the list as a layer counted from the end. */
static kd_status layer_number(const char *text, const char *at, size_t n, int from_start, int depth, int *layer, kd_err *err)
{
    int v = small_number(at, n);
    if (v < 0)
        return kd_fail(err, KD_EUSAGE, "--layers %s: \"%.*s\" is not a layer number; write 1,4 (1 is the last layer) or all:8,11 (0 is the first block)", text, (int)n, at);
    *layer = from_start ? depth - v : v;
    if (*layer >= 1 && *layer <= depth)
        return KD_OK;
    if (from_start)
        return kd_fail(err, KD_EUSAGE, "--layers %s: there is no block %d; this teacher has %d blocks, 0 to %d", text, v, depth, depth - 1);
    return kd_fail(err, KD_EUSAGE, "--layers %s: there is no layer %d; this teacher has %d layers, 1 (the last) to %d (the first)", text, v, depth, depth);
}

/* Keeps layer[] ascending. */
static kd_status insert(const char *text, int from_start, int depth, uint16_t layer[KD_MAX_LAYERS], int *count, int v, kd_err *err)
{
    int at = *count;
    if (at == KD_MAX_LAYERS)
        return kd_fail(err, KD_EUSAGE, "--layers %s: at most %d layers can be stored", text, KD_MAX_LAYERS);
    for (; at > 0 && layer[at - 1] >= v; at--)
        if (layer[at - 1] == v)
            return kd_fail(err, KD_EUSAGE, "--layers %s: %s %d of this teacher's %d is given twice", text, from_start ? "block" : "layer", from_start ? depth - v : v, depth);
    memmove(layer + at + 1, layer + at, (size_t)(*count - at) * sizeof *layer);
    layer[at] = (uint16_t)v;
    ++*count;
    return KD_OK;
}

kd_status kd_layers_parse(const char *text, int depth, uint16_t layer[KD_MAX_LAYERS], int *count, kd_err *err)
{
    int from_start = strncmp(text, "all:", 4) == 0;
    *count = 0;
    for (const char *at = text + (from_start ? 4 : 0), *rest; at != NULL; at = rest) {
        size_t n = piece(at, &rest);
        int v = 0;
        KD_TRY(layer_number(text, at, n, from_start, depth, &v, err));
        KD_TRY(insert(text, from_start, depth, layer, count, v, err));
    }
    return KD_OK;
}

const char *kd_layers_text(const uint16_t *layer, int count, char *buf, size_t cap)
{
    size_t n = 0;
    buf[0] = '\0';
    for (int i = 0; i < count && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%u", i > 0 ? "," : "", (unsigned)layer[i]);
    return buf;
}

kd_status kd_targets_parse(kd_target target[KD_MAX_TARGETS], int *count, const char *text, int grid_h, int grid_w, kd_err *err)
{
    *count = 0;
    for (const char *at = text, *rest; at != NULL; at = rest) {
        char word[KD_TARGET_TEXT];
        size_t n = piece(at, &rest);
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), at);
        if (*count == KD_MAX_TARGETS)
            return kd_fail(err, KD_EUSAGE, "--patch-target %s: at most %d targets can be stored", text, KD_MAX_TARGETS);
        kd_target *t = &target[(*count)++];
        KD_TRY(kd_target_parse(t, word, "--patch-target", err));
        if (t->h > grid_h || t->w > grid_w)
            return kd_fail(err, KD_EUSAGE, "--patch-target %s: the grid of patches is %d x %d, and %s is larger", text, grid_h, grid_w, word);
        for (int i = 0; i + 1 < *count; i++)
            if (kd_target_equal(&target[i], t))
                return kd_fail(err, KD_EUSAGE, "--patch-target %s: %s is given twice", text, word);
    }
    return KD_OK;
}
