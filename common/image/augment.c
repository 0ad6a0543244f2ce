/* Applying a plan, and the hash of the result. */
#include "common/image/augment.h"

#include <string.h>

#include "common/image/color.h"

void kd_view_scratch_free(kd_view_scratch *s) {
    kd_resample_scratch_free(&s->resample);
    kd_blur_scratch_free(&s->blur);
    kd_image_free(&s->partner);
}

static void apply_jitter(const kd_plan *plan, uint8_t *rgb, size_t n) {
    static void (*const op[4])(uint8_t *, size_t, float) = {kd_color_brightness, kd_color_contrast, kd_color_saturation, kd_color_hue};
    for (int i = 0; i < 4 && plan->jitter_order[i] != KD_JITTER_NONE; i++) {
        int which = plan->jitter_order[i];
        KD_ASSERT(which <= KD_JITTER_HUE);
        op[which](rgb, n, plan->jitter_factor[which]);
    }
}

static int lies_inside(kd_box b, int width, int height) {
    return b.x >= 0 && b.y >= 0 && b.w > 0 && b.h > 0 && b.w <= width && b.h <= height && b.x <= width - b.w && b.y <= height - b.h;
}

static kd_box crop_of(const kd_plan *p) { return (kd_box){p->crop_x, p->crop_y, p->crop_w, p->crop_h}; }

kd_box kd_plans_box(void *plans, int width, int height) {
    const kd_plans *list = plans;
    kd_box all = {0, 0, width, height}, box = all;
    for (size_t i = 0; i < list->count; i++) {
        kd_box b = crop_of(&list->plan[i]);
        if (!lies_inside(b, width, height))
            return all;
        if (i == 0) {
            box = b;
            continue;
        }
        int right = box.x + box.w > b.x + b.w ? box.x + box.w : b.x + b.w, bottom = box.y + box.h > b.y + b.h ? box.y + box.h : b.y + b.h;
        box.x = box.x < b.x ? box.x : b.x;
        box.y = box.y < b.y ? box.y : b.y;
        box.w = right - box.x;
        box.h = bottom - box.y;
    }
    return box;
}

kd_status kd_plan_apply(const kd_plan *plan, const kd_image *img, uint8_t *out, kd_view_scratch *scratch, kd_err *err) {
    kd_box window = {plan->out_x, plan->out_y, plan->out_w, plan->out_h}, box = crop_of(plan);
    box.x -= img->x;
    box.y -= img->y;
    if (!lies_inside(box, img->width, img->height))
        return kd_fail(err, KD_EMISMATCH, "the crop box %d,%d %d x %d doesn't lie inside the image of %d x %d pixels; this isn't the file that was planned",
                       plan->crop_x, plan->crop_y, plan->crop_w, plan->crop_h, img->width, img->height);
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
