/* Applying a plan, and the hash of the result. */
#include "common/image/augment.h"

#include <string.h>

#include "common/image/color.h"

void kd_view_scratch_free(kd_view_scratch *s) {
    kd_resample_scratch_free(&s->resample);
    kd_blur_scratch_free(&s->blur);
}

static void apply_jitter(const kd_plan *plan, uint8_t *rgb, size_t n) {
    static void (*const op[4])(uint8_t *, size_t, float) = {kd_color_brightness, kd_color_contrast, kd_color_saturation, kd_color_hue};
    for (int i = 0; i < 4 && plan->jitter_order[i] != KD_JITTER_NONE; i++) {
        int which = plan->jitter_order[i];
        KD_ASSERT(which <= KD_JITTER_HUE);
        op[which](rgb, n, plan->jitter_factor[which]);
    }
}

kd_status kd_plan_apply(const kd_plan *plan, const kd_image *img, uint8_t *out, kd_view_scratch *scratch, kd_err *err) {
    if (plan->crop_x < 0 || plan->crop_y < 0 || plan->crop_w <= 0 || plan->crop_h <= 0 || plan->crop_w > img->width || plan->crop_h > img->height ||
        plan->crop_x > img->width - plan->crop_w || plan->crop_y > img->height - plan->crop_h)
        return kd_fail(err, KD_EMISMATCH, "the crop box %d,%d %d x %d doesn't lie inside the image of %d x %d pixels; this isn't the file that was planned",
                       plan->crop_x, plan->crop_y, plan->crop_w, plan->crop_h, img->width, img->height);
    kd_box window = {plan->out_x, plan->out_y, plan->out_w, plan->out_h}, box = {plan->crop_x, plan->crop_y, plan->crop_w, plan->crop_h};
    KD_TRY(kd_resample_window(out, window, plan->resize_w, plan->resize_h, img, box, (kd_filter)plan->filter, &scratch->resample, err));
    if (plan->hflip)
        kd_color_hflip(out, plan->out_w, plan->out_h);
    if (plan->vflip)
        kd_color_vflip(out, plan->out_w, plan->out_h);
    size_t n = (size_t)plan->out_w * (size_t)plan->out_h;
    apply_jitter(plan, out, n);
    if (plan->gray)
        kd_color_grayscale(out, n);
    if (plan->blur_radius > 0)
        KD_TRY(kd_blur(out, plan->out_w, plan->out_h, plan->blur_weight, plan->blur_radius, &scratch->blur, err));
    if (plan->solarize != KD_SOLARIZE_OFF)
        kd_color_solarize(out, n, plan->solarize);
    return KD_OK;
}

kd_hash128 kd_view_hash(const uint8_t *rgb, int width, int height) {
    uint8_t size[8];
    for (int i = 0; i < 4; i++) {
        size[i] = (uint8_t)((uint32_t)width >> (8 * i));
        size[4 + i] = (uint8_t)((uint32_t)height >> (8 * i));
    }
    return kd_xxh128_2(size, sizeof size, rgb, (size_t)width * (size_t)height * 3);
}
