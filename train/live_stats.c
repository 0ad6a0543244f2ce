#include "train/live_stats.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/weights/safetensors.h"
#include "common/weights/weights.h"

enum { NAME = 48, MOST = 2 * KD_FEATURES * KD_MAX_LAYERS };

static const char *name_of(char out[NAME], const char *what, kd_feature f, uint16_t layer) {
    snprintf(out, NAME, "%s.%s.%u", what, kd_feature_name(f), (unsigned)layer);
    return out;
}

kd_status kd_live_stats_write(const char *path, const char *of, const kd_recipe *r, const kd_stats *sums, kd_err *err) {
    kd_tensor tensor[MOST];
    char name[MOST][NAME];
    size_t n = 0;
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        for (int i = 0; i < r->layers && kd_recipe_has(r, f); i++) {
            const kd_stats *s = &sums[(int)f * r->layers + i];
            tensor[n] = (kd_tensor){.name = name_of(name[n], "mean", f, r->layer[i]), .dtype = KD_F32, .rank = 1, .shape = {r->width}, .data = s->mean};
            n++;
            tensor[n] = (kd_tensor){.name = name_of(name[n], "std", f, r->layer[i]), .dtype = KD_F32, .rank = 1, .shape = {1}, .data = &s->scalar_std};
            n++;
        }
    json_t *metadata = json_pack("{s:s}", "of", of);
    if (metadata == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory", path);
    kd_status status = kd_safetensors_write(path, tensor, n, metadata, err);
    json_decref(metadata);
    return status;
}

static kd_status read_one(const kd_weights *w, const char *what, kd_feature f, uint16_t layer, float *out, size_t n, kd_err *err) {
    char name[NAME];
    int i = kd_weights_find(w, name_of(name, what, f, layer));
    return i >= 0 ? kd_weights_read_f32(w, i, out, n, err) : kd_fail(err, KD_EFAIL, "%s: no tensor %s; the file is damaged", kd_weights_path(w), name);
}

static kd_status read_all(const kd_weights *w, const char *of, const kd_recipe *r, kd_stats *sums, kd_err *err) {
    const char *have = json_string_value(json_object_get(kd_weights_metadata(w), "of"));
    if (have == NULL || strcmp(have, of) != 0)
        return KD_DONE;
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        for (int i = 0; i < r->layers && kd_recipe_has(r, f); i++) {
            kd_stats *s = &sums[(int)f * r->layers + i];
            KD_TRY(read_one(w, "mean", f, r->layer[i], s->mean, (size_t)r->width, err));
            KD_TRY(read_one(w, "std", f, r->layer[i], &s->scalar_std, 1, err));
        }
    return KD_OK;
}

kd_status kd_live_stats_read(const char *path, const char *of, const kd_recipe *r, kd_stats *sums, kd_err *err) {
    kd_weights *w;
    if (!kd_io_exists(path))
        return KD_DONE;
    KD_TRY(kd_weights_open(&w, path, err));
    kd_status status = read_all(w, of, r, sums, err);
    kd_weights_close(w);
    return status;
}
