/* A policy from a YAML file: torchvision's names of transforms and parameters, its defaults, its meaning (docs/augment.md).
 * One table says which transforms there are, in which order they stand and what reads their parameters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"
#include "common/base/yaml.h"
#include "common/image/augment.h"
#include "common/image/policy_file.h"

enum { MAX_JITTER = 99, MAX_COVER = 2 * KD_VIEW_MAX_SIDE, VALUE_TEXT = 80 };

/* Where the reader is: the number and name of the transform, and its parameters (NULL: none). */
typedef struct step {
    const char *path;
    size_t at;
    const char *name;
    const json_t *given;
    kd_err *err;
} step;

/* ---- saying what is wrong ---- */

/* A value as one short line; the file's own text may be long. */
static const char *value_text(char out[VALUE_TEXT], const json_t *v) {
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    snprintf(out, VALUE_TEXT, "%.*s%s", VALUE_TEXT - 4, text ? text : "?", text && strlen(text) > VALUE_TEXT - 4 ? "..." : "");
    free(text); /* jansson's allocation */
    return out;
}

static kd_status refuse(const step *s, const char *key, const json_t *v, const char *expected) {
    char text[VALUE_TEXT];
    return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu]: %s.%s is %s; %s", s->path, s->at, s->name, key, value_text(text, v), expected);
}

static kd_status missing(const step *s, const char *key, const char *expected) {
    return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu]: %s has no %s; %s", s->path, s->at, s->name, key, expected);
}

/* "name, name and name" of a NULL-terminated list. */
static const char *joined(char *out, size_t cap, const char *const *names) {
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; names[i] && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i == 0 ? "" : names[i + 1] ? ", " : " and ", names[i]);
    return out;
}

/* An object has no keys but these. `what` is its place in the file. */
static kd_status only_keys(const json_t *object, const char *const *keys, const char *path, const char *what, kd_err *err) {
    size_t n = 0;
    char list[200], name[VALUE_TEXT];
    const char *key;
    json_t *v;
    while (keys[n])
        n++;
    json_object_foreach((json_t *)(uintptr_t)object, key, v) {
        size_t i = 0;
        while (i < n && strcmp(key, keys[i]) != 0)
            i++;
        if (i < n)
            continue;
        const char *nearest = kd_nearest_name(key, keys, n);
        snprintf(name, sizeof name, "%s", key);
        return kd_fail(err, KD_EUSAGE, "%s: %s has no parameter \"%s\"%s%s%s; there %s %s", path, what, name, nearest ? ", did you mean \"" : "", nearest ? nearest : "",
                       nearest ? "\"?" : "", n == 1 ? "is" : "are", joined(list, sizeof list, keys));
    }
    return KD_OK;
}

/* ---- parameters: *out keeps its value, the default, when the key is absent ---- */

static int number_in(const json_t *v, double lo, double hi, double *out) {
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= lo && x <= hi))
        return 0;
    *out = x + 0.0; /* -0 becomes 0: equal policies have one text */
    return 1;
}

static kd_status read_number(const step *s, const char *key, double lo, double hi, double *out, const char *expected) {
    const json_t *v = json_object_get(s->given, key);
    return !v || number_in(v, lo, hi, out) ? KD_OK : refuse(s, key, v, expected);
}

/* Two numbers, the first not above the second. */
static kd_status read_range(const step *s, const char *key, double lo, double hi, double *min, double *max, const char *expected) {
    const json_t *v = json_object_get(s->given, key);
    if (v && (json_array_size(v) != 2 || !number_in(json_array_get(v, 0), lo, hi, min) || !number_in(json_array_get(v, 1), lo, hi, max) || *min > *max))
        return refuse(s, key, v, expected);
    return KD_OK;
}

static kd_status read_probability(const step *s, double *out) { return read_number(s, "p", 0.0, 1.0, out, "a probability from 0 to 1 is expected"); }

static int integer_in(const json_t *v, int lo, int hi, int *out) {
    double x;
    if (!number_in(v, lo, hi, &x) || x != (int)x)
        return 0;
    *out = (int)x;
    return 1;
}

static kd_status read_interpolation(const step *s, kd_filter *out) {
    static const struct { const char *name; kd_filter filter; } known[] = {{"bilinear", KD_FILTER_BILINEAR}, {"bicubic", KD_FILTER_BICUBIC}, {"box", KD_FILTER_BOX}};
    const json_t *v = json_object_get(s->given, "interpolation");
    *out = KD_FILTER_BILINEAR; /* torchvision's default */
    if (!v)
        return KD_OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (json_is_string(v) && strcmp(json_string_value(v), known[i].name) == 0) {
            *out = known[i].filter;
            return KD_OK;
        }
    return refuse(s, "interpolation", v, "bilinear, bicubic or box is expected");
}

/* The size of the view is --image-size; a size in the file may only say the same. */
static kd_status read_view_size(const step *s, const kd_policy *p) {
    const json_t *v = json_object_get(s->given, "size");
    char size[KD_SIZE_TEXT], expected[120];
    int h = 0, w = 0;
    if (!v)
        return KD_OK;
    if (integer_in(v, 1, KD_VIEW_MAX_SIDE, &h))
        w = h;
    else if (json_array_size(v) != 2 || !integer_in(json_array_get(v, 0), 1, KD_VIEW_MAX_SIDE, &h) || !integer_in(json_array_get(v, 1), 1, KD_VIEW_MAX_SIDE, &w))
        return refuse(s, "size", v, "a side or [rows, columns] is expected");
    if (h == p->image_h && w == p->image_w)
        return KD_OK;
    snprintf(expected, sizeof expected, "the views are %s: leave it out, or change --image-size", kd_image_size_text(p->image_h, p->image_w, size));
    return refuse(s, "size", v, expected);
}

/* ---- transforms ---- */

static kd_status read_crop(const step *s, kd_policy *p) {
    p->scale_min = 0.08;
    p->scale_max = 1.0;
    p->ratio_min = 3.0 / 4.0;
    p->ratio_max = 4.0 / 3.0;
    KD_TRY(read_view_size(s, p));
    KD_TRY(read_range(s, "scale", 1e-6, 1.0, &p->scale_min, &p->scale_max, "[smallest, largest] share of the area is expected, above 0 and at most 1"));
    KD_TRY(read_range(s, "ratio", 0.01, 100.0, &p->ratio_min, &p->ratio_max, "[smallest, largest] width by height is expected, from 0.01 to 100"));
    return read_interpolation(s, &p->filter);
}

static kd_status read_resize(const step *s, kd_policy *p) {
    const json_t *v = json_object_get(s->given, "size");
    char expected[200];
    int side, longer = p->image_h > p->image_w ? p->image_h : p->image_w;
    p->scale_min = p->scale_max = p->ratio_min = p->ratio_max = 1.0;
    if (!v)
        return missing(s, "size", "the length of the shorter side is expected, such as size: 256");
    if (!integer_in(v, longer, MAX_COVER, &side)) {
        snprintf(expected, sizeof expected, "the length of the shorter side is expected, one number from %d (the view's longer side) to %d; two would change the picture's shape", longer, MAX_COVER);
        return refuse(s, "size", v, expected);
    }
    p->cover_h = p->cover_w = side;
    return read_interpolation(s, &p->filter);
}

static kd_status read_center(const step *s, kd_policy *p) { return read_view_size(s, p); }

static kd_status read_hflip(const step *s, kd_policy *p) {
    p->hflip_p = 0.5;
    return read_probability(s, &p->hflip_p);
}

static kd_status read_vflip(const step *s, kd_policy *p) {
    p->vflip_p = 0.5;
    return read_probability(s, &p->vflip_p);
}

static kd_status read_jitter(const step *s, kd_policy *p) {
    static const char *const half = "half a width from 0 to 99 is expected (factors from 1 - x to 1 + x), one number";
    KD_TRY(read_number(s, "brightness", 0.0, MAX_JITTER, &p->brightness, half));
    KD_TRY(read_number(s, "contrast", 0.0, MAX_JITTER, &p->contrast, half));
    KD_TRY(read_number(s, "saturation", 0.0, MAX_JITTER, &p->saturation, half));
    KD_TRY(read_number(s, "hue", 0.0, 0.5, &p->hue, "half a width from 0 to 0.5 is expected, one number"));
    p->jitter_p = 1.0;
    KD_TRY(read_probability(s, &p->jitter_p));
    if (p->jitter_p == 0.0)
        p->brightness = p->contrast = p->saturation = p->hue = 0.0;
    if (p->brightness == 0.0 && p->contrast == 0.0 && p->saturation == 0.0 && p->hue == 0.0)
        p->jitter_p = 0.0;
    return KD_OK;
}

static kd_status read_gray(const step *s, kd_policy *p) {
    p->gray_p = 0.1;
    return read_probability(s, &p->gray_p);
}

static kd_status read_blur(const step *s, kd_policy *p) {
    const json_t *kernel = json_object_get(s->given, "kernel_size"), *sigma = json_object_get(s->given, "sigma");
    static const char *const sides = "an odd number of pixels from 3 to 23 is expected, or two that are equal";
    const json_t *first = json_is_array(kernel) && json_array_size(kernel) == 2 && json_equal(json_array_get(kernel, 0), json_array_get(kernel, 1)) ? json_array_get(kernel, 0) : kernel;
    if (!kernel)
        return missing(s, "kernel_size", sides);
    if (!integer_in(first, 3, 2 * KD_BLUR_MAX_RADIUS + 1, &p->blur_kernel) || p->blur_kernel % 2 == 0)
        return refuse(s, "kernel_size", kernel, sides);
    p->sigma_min = 0.1;
    p->sigma_max = 2.0;
    if (json_is_number(sigma)) {
        KD_TRY(read_number(s, "sigma", 0.001, 1000.0, &p->sigma_min, "a number from 0.001 to 1000 or [smallest, largest] is expected"));
        p->sigma_max = p->sigma_min;
    } else {
        KD_TRY(read_range(s, "sigma", 0.001, 1000.0, &p->sigma_min, &p->sigma_max, "a number from 0.001 to 1000 or [smallest, largest] is expected"));
    }
    p->blur_p = 1.0;
    KD_TRY(read_probability(s, &p->blur_p));
    if (p->blur_p == 0.0) {
        p->blur_kernel = 0;
        p->sigma_min = p->sigma_max = 0.0;
    }
    return KD_OK;
}

static kd_status read_solarize(const step *s, kd_policy *p) {
    static const char *const range = "a whole number from 0 to 255 is expected";
    const json_t *v = json_object_get(s->given, "threshold");
    if (!v)
        return missing(s, "threshold", range);
    if (!integer_in(v, 0, 255, &p->solarize_threshold))
        return refuse(s, "threshold", v, range);
    p->solarize_p = 0.5;
    KD_TRY(read_probability(s, &p->solarize_p));
    if (p->solarize_p == 0.0)
        p->solarize_threshold = 0;
    return KD_OK;
}

static kd_status read_mixup(const step *s, kd_policy *p) {
    p->mix_p = 1.0;
    return read_probability(s, &p->mix_p);
}

/* In the order in which they are applied; Resize stands for the crop, so both have the first place. */
static const struct {
    const char *name;
    int place;
    kd_status (*read)(const step *s, kd_policy *p);
    const char *const keys[6];
} transforms[] = {
    {"RandomResizedCrop", 0, read_crop, {"size", "scale", "ratio", "interpolation"}},
    {"Resize", 0, read_resize, {"size", "interpolation"}},
    {"CenterCrop", 1, read_center, {"size"}},
    {"RandomHorizontalFlip", 2, read_hflip, {"p"}},
    {"RandomVerticalFlip", 3, read_vflip, {"p"}},
    {"ColorJitter", 4, read_jitter, {"brightness", "contrast", "saturation", "hue", "p"}},
    {"RandomGrayscale", 5, read_gray, {"p"}},
    {"GaussianBlur", 6, read_blur, {"kernel_size", "sigma", "p"}},
    {"RandomSolarize", 7, read_solarize, {"threshold", "p"}},
    {"Mixup", 8, read_mixup, {"p"}},
};
enum { TRANSFORMS = sizeof transforms / sizeof *transforms, CROP = 0, RESIZE = 1, CENTER = 2 };

#define ORDER "RandomResizedCrop (or Resize, CenterCrop), RandomHorizontalFlip, RandomVerticalFlip, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize, Mixup"

/* ---- the file ---- */

/* Name and parameters of an entry: "Name", or {Name: parameters or nothing}. */
static kd_status open_entry(step *s, const json_t *entry) {
    char text[VALUE_TEXT];
    s->name = json_string_value(entry);
    s->given = NULL;
    if (s->name)
        return KD_OK;
    void *first = json_object_iter((json_t *)(uintptr_t)entry);
    if (json_object_size(entry) != 1)
        return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu] is %s; one transform with its parameters (indented further than its name) is expected, such as RandomHorizontalFlip: {p: 0.5}",
                       s->path, s->at, value_text(text, entry));
    s->name = json_object_iter_key(first);
    const json_t *given = json_object_iter_value(first);
    if (json_is_object(given))
        s->given = given;
    else if (!json_is_null(given))
        return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu]: %.40s is %s; its parameters by name are expected, such as {p: 0.5}", s->path, s->at, s->name, value_text(text, given));
    return KD_OK;
}

static kd_status unknown(const step *s) {
    const char *names[TRANSFORMS];
    char name[VALUE_TEXT];
    for (size_t i = 0; i < TRANSFORMS; i++)
        names[i] = transforms[i].name;
    const char *nearest = kd_nearest_name(s->name, names, TRANSFORMS);
    snprintf(name, sizeof name, "%s", s->name);
    return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu]: unknown transform \"%s\"%s%s%s; there are, in this order, " ORDER, s->path, s->at, name, nearest ? ", did you mean \"" : "",
                   nearest ? nearest : "", nearest ? "\"?" : "");
}

/* One entry; *last is the transform before it (-1: none). */
static kd_status read_entry(kd_policy *p, step *s, const json_t *entry, int *last) {
    char what[100];
    KD_TRY(open_entry(s, entry));
    int i = 0;
    while (i < TRANSFORMS && strcmp(s->name, transforms[i].name) != 0)
        i++;
    if (i == TRANSFORMS)
        return unknown(s);
    if (*last >= 0 && transforms[i].place <= transforms[*last].place)
        return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu]: %s can't follow %s; the order is " ORDER, s->path, s->at, s->name, transforms[*last].name);
    if (i == CENTER ? *last != RESIZE : i != CROP && i != RESIZE && (*last < 0 || *last == RESIZE))
        return kd_fail(s->err, KD_EUSAGE, "%s: transforms[%zu] is %s; first the views get their size: by RandomResizedCrop, or by Resize and then CenterCrop", s->path, s->at, s->name);
    snprintf(what, sizeof what, "transforms[%zu]: %s", s->at, s->name);
    if (s->given)
        KD_TRY(only_keys(s->given, transforms[i].keys, s->path, what, s->err));
    *last = i;
    return transforms[i].read(s, p);
}

static kd_status read_name(kd_policy *p, const json_t *file, const char *path, kd_err *err) {
    const json_t *v = json_object_get(file, "name");
    const char *name = json_string_value(v);
    char text[VALUE_TEXT];
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-") : 0;
    if (n == 0 || n >= sizeof p->name || name[n] != '\0')
        return kd_fail(err, KD_EUSAGE, "%s: name is %s; up to %zu letters, digits and . _ + - are expected", path, v ? value_text(text, v) : "absent", sizeof p->name - 1);
    memcpy(p->name, name, n + 1);
    return KD_OK;
}

static kd_status read_policy(kd_policy *p, const json_t *file, const char *path, kd_err *err) {
    static const char *const keys[] = {"name", "transforms", NULL};
    const json_t *list = json_object_get(file, "transforms");
    char text[VALUE_TEXT];
    KD_TRY(only_keys(file, keys, path, "the file", err));
    KD_TRY(read_name(p, file, path, err));
    if (json_array_size(list) == 0)
        return kd_fail(err, KD_EUSAGE, "%s: transforms is %s; a list is expected: " ORDER, path, list ? value_text(text, list) : "absent");
    int last = -1;
    for (size_t i = 0; i < json_array_size(list); i++) {
        step s = {.path = path, .at = i, .err = err};
        KD_TRY(read_entry(p, &s, json_array_get(list, i), &last));
    }
    if (last == RESIZE)
        return kd_fail(err, KD_EUSAGE, "%s: transforms ends with Resize; CenterCrop must follow, since all views have one size", path);
    return KD_OK;
}

kd_status kd_policy_read_file(kd_policy *p, const char *path, int image_h, int image_w, kd_err *err) {
    json_t *file;
    KD_TRY(kd_yaml_read_file(path, &file, err));
    *p = (kd_policy){.image_h = image_h, .image_w = image_w};
    kd_status status = read_policy(p, file, path, err);
    json_decref(file);
    return status;
}
