#include "train/live_config.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/augment.h"

static kd_status add_form(kd_target form[KD_MAX_TARGETS], int *forms, const char *text, kd_err *err) {
    kd_target t;
    if (strcmp(text, "auto") == 0)
        return KD_OK;
    KD_TRY(kd_target_parse(&t, text, "--patch-target", err));
    for (int i = 0; i < *forms; i++)
        if (kd_target_equal(&form[i], &t))
            return KD_OK;
    if (*forms == KD_MAX_TARGETS)
        return kd_fail(err, KD_EUSAGE, "--patch-target %s: a live teacher gives patches in at most %d forms, of which full is one; train some of the students in a run of their own", text, KD_MAX_TARGETS);
    form[(*forms)++] = t;
    return KD_OK;
}

static kd_dtype precision_of(const kd_train_config *c) {
    const char *text = strcmp(c->teacher_precision, "auto") == 0 ? c->precision : c->teacher_precision;
    return strcmp(text, "bf16") == 0 ? KD_BF16 : KD_F32;
}

kd_status kd_live_from_config(kd_live **out, kd_train_config *c, const kd_student_choice *students, int threads, kd_err *err) {
    kd_target form[KD_MAX_TARGETS] = {{.kind = KD_TARGET_FULL}};
    int forms = 1, height, width;
    KD_TRY(add_form(form, &forms, c->patch_target, err));
    for (size_t i = 0; i < c->students.count; i++)
        KD_TRY(add_form(form, &forms, students[i].config.patch_target, err));
    KD_TRY(kd_image_size_parse(strcmp(c->image_size, "0") == 0 ? "224" : c->image_size, "--image-size", &height, &width, err));
    if (c->views == 0)
        c->views = c->epochs;
    kd_live_options o = {.weights = c->live_teacher, .teacher = c->teacher, .choice = {c->weights_key, c->positions, c->normalize}, .images = c->images,
                         .list = c->null ? KD_LIST_NUL : KD_LIST_LINES, .augment = c->augment, .exif = c->exif, .image_h = height, .image_w = width, .max_pixels = c->max_pixels,
                         .seed = (uint64_t)c->view_seed, .views = (uint32_t)c->views, .selection = {"cls,patch,mean", c->layers, c->layer_norm, c->layer_concat}, .target = form,
                         .targets = forms, .batch = (int)c->teacher_batch, .precision = precision_of(c), .threads = threads, .json = c->json, .plan_only = c->dry_run};
    int kept = !kd_train_touches_nothing(c);
    char *statistics = kept ? kd_asprintf("%s/live-statistics.safetensors", c->out) : NULL, *checked = kept ? kd_asprintf("%s/live-skipped.json", c->out) : NULL;
    o.statistics = statistics;
    o.checked = checked;
    kd_status status = !kept || (statistics != NULL && checked != NULL) ? kd_live_open(out, &o, err) : kd_fail(err, KD_EFAIL, "out of memory for the live teacher");
    kd_free(statistics);
    kd_free(checked);
    return status;
}
