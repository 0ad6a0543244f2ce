/* What may be drawn: the presets and their canonical description. */
#include <string.h>

#include "common/base/options.h"
#include "common/image/augment.h"

/* The numbers of "lightly" are LightlyTrain's distillation transform (version 1); it resizes with INTER_AREA, we with bicubic. "crop-flip" keeps its crop. */
static const kd_policy presets[] = {
    {.name = "lightly", .scale_min = 0.14, .scale_max = 1.0, .ratio_min = 3.0 / 4.0, .ratio_max = 4.0 / 3.0, .filter = KD_FILTER_BICUBIC, .hflip_p = 0.5,
     .jitter_p = 0.8, .brightness = 0.4, .contrast = 0.4, .saturation = 0.2, .hue = 0.1, .gray_p = 0.2},
    {.name = "crop-flip", .scale_min = 0.14, .scale_max = 1.0, .ratio_min = 3.0 / 4.0, .ratio_max = 4.0 / 3.0, .filter = KD_FILTER_BICUBIC, .hflip_p = 0.5},
    {.name = "eval", .scale_min = 1.0, .scale_max = 1.0, .ratio_min = 1.0, .ratio_max = 1.0, .filter = KD_FILTER_BICUBIC},
};
enum { PRESETS = sizeof presets / sizeof *presets };

kd_status kd_policy_load(kd_policy *p, const char *preset, int image_size, kd_err *err) {
    if (image_size < 1 || image_size > KD_VIEW_MAX_SIDE)
        return kd_fail(err, KD_EUSAGE, "image size %d is outside 1..%d", image_size, KD_VIEW_MAX_SIDE);
    const char *names[PRESETS];
    for (size_t i = 0; i < PRESETS; i++) {
        names[i] = presets[i].name;
        if (strcmp(preset, presets[i].name) != 0)
            continue;
        *p = presets[i];
        p->image_size = image_size;
        if (strcmp(preset, "eval") == 0)
            p->resize_short = (image_size * 256 + 112) / 224; /* the usual 256 for 224, in proportion, rounded */
        return KD_OK;
    }
    const char *nearest = kd_nearest_name(preset, names, PRESETS);
    return kd_fail(err, KD_EUSAGE, "unknown augmentation \"%s\"%s%s%s; there are lightly, crop-flip and eval", preset, nearest ? ", did you mean \"" : "",
                   nearest ? nearest : "", nearest ? "\"?" : "");
}

static const char *filter_name(kd_filter f) { return f == KD_FILTER_BICUBIC ? "bicubic" : f == KD_FILTER_BILINEAR ? "bilinear" : "box"; }

json_t *kd_policy_json(const kd_policy *p) {
    return json_pack("{s:s, s:i, s:s, s:i, s:i, s:[f,f], s:[f,f], s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "name", p->name, "version", KD_POLICY_VERSION, "rng",
                     "philox4x32-10", "image_size", p->image_size, "resize_short", p->resize_short, "scale", p->scale_min, p->scale_max, "ratio", p->ratio_min,
                     p->ratio_max, "interpolation", filter_name(p->filter), "hflip_p", p->hflip_p, "jitter_p", p->jitter_p, "brightness", p->brightness,
                     "contrast", p->contrast, "saturation", p->saturation, "hue", p->hue, "gray_p", p->gray_p);
}
