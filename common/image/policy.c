/* What may be drawn: the presets and their canonical description. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"
#include "common/image/augment.h"
#include "common/image/policy_file.h"

/* LightlyTrain's distillation transform (versions 1 to 3); it resizes with INTER_AREA, we with bicubic. Its own blur has a kernel of one pixel. */
#define LIGHTLY_CROP .scale_min = 0.14, .scale_max = 1.0, .ratio_min = 3.0 / 4.0, .ratio_max = 4.0 / 3.0, .filter = KD_FILTER_BICUBIC, .hflip_p = 0.5
#define JITTER .jitter_p = 0.8, .brightness = 0.4, .contrast = 0.4, .saturation = 0.2, .hue = 0.1, .gray_p = 0.2
/* DINOv2 dinov2/data/augmentations.py (DataAugmentationDINO, scale of ssl_default_config.yaml). GaussianBlur of transforms.py takes 9 x 9 pixels, sigma 0.1 .. 2, and
 * applies with probability 1 - p. */
#define DINO_CROP .scale_min = 0.32, .scale_max = 1.0, .ratio_min = 3.0 / 4.0, .ratio_max = 4.0 / 3.0, .filter = KD_FILTER_BICUBIC, .hflip_p = 0.5
#define DINO_BLUR .blur_p = 0.9, .blur_kernel = 9, .sigma_min = 0.1, .sigma_max = 2.0

static const kd_policy presets[] = {
    {.name = "lightly", LIGHTLY_CROP, JITTER},
    {.name = "lightly+mixup", LIGHTLY_CROP, JITTER, .mix_p = 1.0},
    {.name = "dino", DINO_CROP, JITTER, DINO_BLUR, .solarize_p = 0.2, .solarize_threshold = 128},
    {.name = "dino-1", DINO_CROP, JITTER},
    {.name = "crop-flip", LIGHTLY_CROP},
    {.name = "eval", .scale_min = 1.0, .scale_max = 1.0, .ratio_min = 1.0, .ratio_max = 1.0, .filter = KD_FILTER_BICUBIC},
};
enum { PRESETS = sizeof presets / sizeof *presets };

/* The usual 256 for 224, in proportion, rounded. */
static int cover_of(int side) { return (side * 256 + 112) / 224; }

/* A mirror shows at most side - 1 pixels beyond the border (torch.nn.functional.pad refuses more as well). */
static kd_status check_blur(const kd_policy *p, kd_err *err) {
    int radius = p->blur_kernel / 2, side = p->image_h < p->image_w ? p->image_h : p->image_w;
    if (side <= radius)
        return kd_fail(err, KD_EUSAGE, "image size %dx%d: augmentation \"%s\" blurs with %d x %d pixels, which needs sides of at least %d", p->image_h, p->image_w, p->name,
                       p->blur_kernel, p->blur_kernel, radius + 1);
    return KD_OK;
}

static kd_status load_preset(kd_policy *p, const char *preset, int image_h, int image_w, kd_err *err) {
    const char *names[PRESETS];
    for (size_t i = 0; i < PRESETS; i++) {
        names[i] = presets[i].name;
        if (strcmp(preset, presets[i].name) != 0)
            continue;
        *p = presets[i];
        p->image_h = image_h;
        p->image_w = image_w;
        if (strcmp(preset, "eval") == 0) {
            p->cover_h = cover_of(image_h);
            p->cover_w = cover_of(image_w);
        }
        return KD_OK;
    }
    const char *nearest = kd_nearest_name(preset, names, PRESETS);
    return kd_fail(err, KD_EUSAGE, "unknown augmentation \"%s\"%s%s%s; there are lightly, lightly+mixup, dino, dino-1, crop-flip, eval, and files that end in .yaml", preset,
                   nearest ? ", did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

kd_status kd_policy_load(kd_policy *p, const char *name, int image_h, int image_w, kd_err *err) {
    if (image_h < 1 || image_h > KD_VIEW_MAX_SIDE || image_w < 1 || image_w > KD_VIEW_MAX_SIDE)
        return kd_fail(err, KD_EUSAGE, "image size %dx%d: a side is outside 1..%d", image_h, image_w, KD_VIEW_MAX_SIDE);
    if (ends_with(name, ".yaml") || ends_with(name, ".yml"))
        KD_TRY(kd_policy_read_file(p, name, image_h, image_w, err));
    else
        KD_TRY(load_preset(p, name, image_h, image_w, err));
    return check_blur(p, err);
}

static const char *filter_name(kd_filter f) { return f == KD_FILTER_BICUBIC ? "bicubic" : f == KD_FILTER_BILINEAR ? "bilinear" : "box"; }

json_t *kd_policy_json(const kd_policy *p) {
    return json_pack("{s:s, s:i, s:s, s:[i,i], s:[i,i], s:[f,f], s:[f,f], s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:[f,f], s:f, s:i, s:f}",
                     "name", p->name, "version", KD_POLICY_VERSION, "rng", "philox4x32-10", "image_size", p->image_h, p->image_w, "cover", p->cover_h, p->cover_w,
                     "scale", p->scale_min, p->scale_max, "ratio", p->ratio_min, p->ratio_max, "interpolation", filter_name(p->filter), "hflip_p", p->hflip_p,
                     "vflip_p", p->vflip_p, "jitter_p", p->jitter_p, "brightness", p->brightness, "contrast", p->contrast, "saturation", p->saturation, "hue", p->hue,
                     "gray_p", p->gray_p, "blur_p", p->blur_p, "blur_kernel", p->blur_kernel, "blur_sigma", p->sigma_min, p->sigma_max, "solarize_p", p->solarize_p,
                     "solarize_threshold", p->solarize_threshold, "mix_p", p->mix_p);
}

/* A number of digits only, 0 .. KD_VIEW_MAX_SIDE; -1 for anything else. *end: what follows. */
static long side_of(const char *text, const char **end) {
    size_t digits = strspn(text, "0123456789");
    *end = text + digits;
    long v = digits > 0 && digits <= 6 ? strtol(text, NULL, 10) : -1;
    return v <= KD_VIEW_MAX_SIDE ? v : -1;
}

kd_status kd_image_size_parse(const char *text, const char *option, int *height, int *width, kd_err *err) {
    const char *end;
    long h = side_of(text, &end), w = h;
    int two = *end == 'x';
    if (two)
        w = side_of(end + 1, &end);
    if (*end != '\0' || h < 0 || w < 0 || (two && (h == 0 || w == 0)))
        return kd_fail(err, KD_EUSAGE, "%s %s: expected a side such as 224, or rows x columns such as 224x336, each from 1 to %d", option, text, KD_VIEW_MAX_SIDE);
    *height = (int)h;
    *width = (int)w;
    return KD_OK;
}

const char *kd_image_size_text(int height, int width, char out[KD_SIZE_TEXT]) {
    if (height == width)
        snprintf(out, KD_SIZE_TEXT, "%d", height);
    else
        snprintf(out, KD_SIZE_TEXT, "%dx%d", height, width);
    return out;
}
