/* Views: drawing a seeded augmentation plan and applying it. Precompute draws and applies; training re-applies the stored plan with the
 * same function. This is the only place where a view is made.
 *
 *     kd_policy policy;  KD_TRY(kd_policy_load(&policy, "lightly", 224, 224, err));
 *     kd_plan plan = kd_plan_draw(&policy, seed, image_id, view, img.width, img.height);
 *     KD_TRY(kd_plan_apply(&plan, &img, out, &scratch, err));      // out: plan.out_h x plan.out_w x 3
 *     kd_hash128 h = kd_view_hash(out, plan.out_w, plan.out_h);
 *
 * A plan is complete: with the file and the plan a Pillow user can rebuild the view (tests/golden shows how). Draws use Philox and the exact
 * functions of rng.h, so plans are equal on every machine. Thread rule: pure functions; scratch belongs to one thread. */
#ifndef KD_COMMON_IMAGE_AUGMENT_H
#define KD_COMMON_IMAGE_AUGMENT_H

#include "common/base/json.h"
#include "common/image/blur.h"
#include "common/image/resample.h"

enum { KD_PLAN_BYTES = 192, KD_PLAN_VERSION = 1, KD_POLICY_VERSION = 2, KD_SOLARIZE_OFF = 256, KD_VIEW_MAX_SIDE = 4096, KD_SIZE_TEXT = 24 };
enum { KD_JITTER_BRIGHTNESS = 0, KD_JITTER_CONTRAST = 1, KD_JITTER_SATURATION = 2, KD_JITTER_HUE = 3, KD_JITTER_NONE = 255 };

/* What may be drawn. What can't happen has its parameters at 0 (probability 0: no kernel, no sigma, no threshold), so that equal policies have equal descriptions.
 * Presets (DESIGN section 5):
 *     lightly         LightlyTrain's distillation transform with bicubic in place of its INTER_AREA
 *     lightly+mixup   the same, every view mixed with that of another image (LightlyTrain mixes always)
 *     dino            the second global crop of DINOv2's training as its code really runs: its GaussianBlur(p=0.1) hands 1 - p to RandomApply, so 0.9 of the views are blurred
 *     dino-1          the first global crop as it really runs: its GaussianBlur(p=1.0) never blurs
 *     crop-flip       the crop and flip of "lightly", no change of colour
 *     eval            the middle of the picture, nothing random */
typedef struct kd_policy {
    char name[32];
    int image_h, image_w;        /* size of the view */
    int cover_h, cover_w;        /* eval: the whole picture is resized so that it just covers this, else 0 (then a random resized crop) */
    double scale_min, scale_max; /* area share of the crop */
    double ratio_min, ratio_max; /* aspect ratio of the crop */
    kd_filter filter;
    double hflip_p, vflip_p;
    double jitter_p;             /* probability that the four jitters are applied */
    double brightness, contrast, saturation, hue; /* half widths, torchvision's ColorJitter arguments */
    double gray_p;
    double blur_p;
    int blur_kernel;             /* odd, 3 .. 2 KD_BLUR_MAX_RADIUS + 1; 0 when blur_p is 0 */
    double sigma_min, sigma_max; /* of the blur */
    double solarize_p;
    int solarize_threshold;      /* 0 .. 255 */
    double mix_p;                /* probability that the view is mixed with that of another image */
} kd_policy;

/* The policy of views of image_h rows and image_w columns: a preset, or a YAML file (its name ends in .yaml or .yml; format: docs/augment.md). "eval" covers 256/224 of each side (rounded), keeping the picture's aspect ratio, and crops the middle: for squares exactly
 * torchvision's Resize(S * 256 / 224), CenterCrop(S); for others Pillow's resize to the smallest size of that ratio that covers, then CenterCrop((h, w)).
 * KD_EUSAGE: unknown preset (naming the nearest), what a file says wrongly (naming file, key and value), a side outside 1..KD_VIEW_MAX_SIDE, a side that isn't longer than the radius of the policy's blur (torchvision refuses it as well). */
kd_status kd_policy_load(kd_policy *p, const char *name, int image_h, int image_w, kd_err *err);

/* The value of an option such as --image-size: "224" (224 x 224) or "112x168" (rows x columns, as PyTorch has it), sides 1..KD_VIEW_MAX_SIDE; "0" gives 0 and 0, for options where that
 * has a meaning (elsewhere kd_policy_load refuses it). `option` with its dashes, for the sentence. KD_EUSAGE: anything else. */
kd_status kd_image_size_parse(const char *text, const char *option, int *height, int *width, kd_err *err);
/* "224" or "112x168": the shortest text that parses to the same. out holds KD_SIZE_TEXT bytes; returned. */
const char *kd_image_size_text(int height, int width, char out[KD_SIZE_TEXT]);

/* Canonical description, part of a cache's identity: every field, the policy version and the RNG. New reference. */
json_t *kd_policy_json(const kd_policy *p);

/* The plan of one view. The record form (kd_plan_encode) has room for every operation of the design from the first version on; a field that isn't
 * used means identity: flips 0, order NONE, gray 0, solarize 256, blur radius, sigma and weights 0, mix_lambda 1, partner and view 0. */
typedef struct kd_plan {
    int32_t crop_x, crop_y, crop_w, crop_h; /* box in the decoded image */
    int32_t resize_w, resize_h;             /* size to which the box is resized */
    int32_t out_x, out_y, out_w, out_h;     /* box of the resized image that is the view */
    uint8_t filter;                         /* kd_filter */
    uint8_t hflip, vflip;
    uint8_t jitter_order[4];                /* KD_JITTER_*, applied left to right, NONE after the last; all NONE when the jitter wasn't drawn */
    float jitter_factor[4];                 /* indexed by KD_JITTER_*, not by position; always drawn */
    uint8_t gray;
    uint16_t solarize;                      /* threshold; KD_SOLARIZE_OFF = off */
    uint8_t blur_radius;                    /* 0 = off */
    float blur_sigma;
    uint32_t blur_weight[KD_BLUR_MAX_RADIUS + 1]; /* half kernel, centre first, in 2^-24 (blur.h); 0 beyond the radius */
    float mix_lambda;                       /* this picture's share, a multiple of 2^-16; 1 = off */
    kd_hash128 mix_partner;
    uint32_t mix_view;
} kd_plan;

/* Pure function of its arguments; width and height are those of the decoded image (both > 0). Every variable has its own numbers in the random
 * stream, so the outcome of one never shifts another. The mix isn't drawn here but by kd_mix_draw (mix.h): its partner is one of all images. */
kd_plan kd_plan_draw(const kd_policy *p, uint64_t seed, const kd_hash128 *image_id, uint32_t view, int width, int height);

/* Little-endian record of exactly KD_PLAN_BYTES (layout: cache/FORMAT.md). Decoding checks version and every field's range, that
 * a blur's kernel sums to one and fits the view, and that bytes without a meaning are 0: KD_EDAMAGED otherwise. */
void kd_plan_encode(const kd_plan *plan, uint8_t out[KD_PLAN_BYTES]);
kd_status kd_plan_decode(kd_plan *plan, const uint8_t in[KD_PLAN_BYTES], kd_err *err);
/* Every parameter by name, for `kd-cache list --json`; of a mixed view also the partner's plan, as "plan" of its "mix" (`partner` isn't read otherwise). New reference. */
json_t *kd_plan_json(const kd_plan *plan, const kd_plan *partner);

typedef struct kd_view_scratch {
    kd_resample_scratch resample;
    kd_blur_scratch blur;
    kd_image partner; /* the partner's view of a mixed one */
} kd_view_scratch;
void kd_view_scratch_free(kd_view_scratch *s);

/* For kd_image_decode_box: the smallest box that holds the crops of all plans (`plans` is a kd_plans); the whole picture when there are none or one of them
 * doesn't lie inside, so that kd_plan_apply can say so. Views of one file are then made from one decode. */
typedef struct kd_plans {
    const kd_plan *plan;
    size_t count;
} kd_plans;
kd_box kd_plans_box(void *plans, int width, int height);

/* Applies, in this order: crop and resize, horizontal flip, vertical flip, jitters, gray, blur, solarize: everything but the mix, which needs the partner's view, made from its own
 * plan by this same function. out = plan.out_h x plan.out_w x 3 RGB. The plan is one that was drawn or decoded
 * here (asserted). img is the picture, or the part of it that kd_image_decode_box gave. KD_EMISMATCH when the crop box doesn't lie inside img (the file isn't the one that was planned). */
kd_status kd_plan_apply(const kd_plan *plan, const kd_image *img, uint8_t *out, kd_view_scratch *scratch, kd_err *err);

/* XXH3-128 of u32 width, u32 height (little endian), then the pixels. */
kd_hash128 kd_view_hash(const uint8_t *rgb, int width, int height);

#endif
