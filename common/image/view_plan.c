/* Drawing a plan, and its record. */
#include <math.h>
#include <string.h>

#include "common/base/rng.h"
#include "common/image/augment.h"

/* Places of the variables in the random stream of a view: part of the format, never moved. 14 .. 16 belong to the mix (whether, lambda,
 * partner: mix.c); 17 .. 23 are for operations to come. */
enum { U_FLIP = 0, U_JITTER = 1, U_ORDER = 2, U_FACTOR = 5, U_GRAY = 9, U_VFLIP = 10, U_BLUR = 11, U_SIGMA = 12, U_SOLARIZE = 13, U_CROP = 24, CROP_TRIES = 10, U_COUNT = U_CROP + 4 * CROP_TRIES };

/* Python's round() for 0 <= x < 2^31: halves to even. */
static int round_half_even(double x) {
    int whole = (int)x;
    double rest = x - whole;
    return whole + (rest > 0.5 || (rest == 0.5 && (whole & 1)));
}

/* Uniform in 0 .. n-1 from one number. */
static int below(double u, int n) { return (int)(u * n); }

/* torchvision RandomResizedCrop.get_params, in double. */
static void draw_crop(kd_plan *plan, const kd_policy *p, const double *u, int width, int height) {
    double area = (double)width * height, log_min = kd_exact_log(p->ratio_min), log_max = kd_exact_log(p->ratio_max);
    for (int i = 0; i < CROP_TRIES; i++, u += 4) {
        double target = area * (p->scale_min + (p->scale_max - p->scale_min) * u[0]);
        double ratio = kd_exact_exp(log_min + (log_max - log_min) * u[1]);
        int w = round_half_even(sqrt(target * ratio)), h = round_half_even(sqrt(target / ratio));
        if (w > 0 && w <= width && h > 0 && h <= height) {
            plan->crop_y = below(u[2], height - h + 1);
            plan->crop_x = below(u[3], width - w + 1);
            plan->crop_w = w;
            plan->crop_h = h;
            return;
        }
    }
    /* The largest central box of an allowed shape; of a pixel at least, where torchvision would cut out nothing and fail. */
    double ratio = (double)width / height;
    int w = width, h = height;
    if (ratio < p->ratio_min)
        h = round_half_even(w / p->ratio_min);
    else if (ratio > p->ratio_max)
        w = round_half_even(h * p->ratio_max);
    w = w < 1 ? 1 : w;
    h = h < 1 ? 1 : h;
    plan->crop_x = (width - w) / 2;
    plan->crop_y = (height - h) / 2;
    plan->crop_w = w;
    plan->crop_h = h;
}

/* The whole picture, resized to just cover the policy's size: one side fits, the other is at least as long (its length rounded down, as torchvision's Resize(int) does, to which this is equal for
 * squares). Then torchvision's CenterCrop. */
static void plan_center(kd_plan *plan, const kd_policy *p, int width, int height) {
    int rows_fit = (int64_t)p->cover_h * width >= (int64_t)p->cover_w * height;
    plan->crop_w = width;
    plan->crop_h = height;
    plan->resize_w = rows_fit ? (int32_t)((int64_t)p->cover_h * width / height) : p->cover_w;
    plan->resize_h = rows_fit ? p->cover_h : (int32_t)((int64_t)p->cover_w * height / width);
    plan->out_x = round_half_even((plan->resize_w - p->image_w) / 2.0);
    plan->out_y = round_half_even((plan->resize_h - p->image_h) / 2.0);
}

static void draw_jitter(kd_plan *plan, const kd_policy *p, const double *u) {
    const double width[4] = {p->brightness, p->contrast, p->saturation, p->hue};
    for (int i = 0; i < 4; i++) {
        double lo = i == KD_JITTER_HUE ? -width[i] : 1.0 - width[i] < 0.0 ? 0.0 : 1.0 - width[i];
        double hi = i == KD_JITTER_HUE ? width[i] : 1.0 + width[i];
        plan->jitter_factor[i] = (float)(lo + (hi - lo) * u[U_FACTOR + i]);
    }
    uint8_t order[4] = {KD_JITTER_BRIGHTNESS, KD_JITTER_CONTRAST, KD_JITTER_SATURATION, KD_JITTER_HUE};
    for (int i = 3; i > 0; i--) { /* Fisher-Yates */
        int k = below(u[U_ORDER + 3 - i], i + 1);
        uint8_t t = order[i];
        order[i] = order[k];
        order[k] = t;
    }
    memset(plan->jitter_order, KD_JITTER_NONE, 4);
    if (u[U_JITTER] < p->jitter_p) {
        int n = 0;
        for (int i = 0; i < 4; i++)
            if (width[order[i]] > 0.0) /* as ColorJitter: a jitter of width 0 isn't applied (hue by 0 would change pixels) */
                plan->jitter_order[n++] = order[i];
    }
}

static void draw_blur(kd_plan *plan, const kd_policy *p, const double *u) {
    if (!(u[U_BLUR] < p->blur_p))
        return;
    plan->blur_radius = (uint8_t)(p->blur_kernel / 2);
    plan->blur_sigma = (float)(p->sigma_min + (p->sigma_max - p->sigma_min) * u[U_SIGMA]);
    kd_blur_weights(plan->blur_weight, plan->blur_radius, plan->blur_sigma);
}

kd_plan kd_plan_draw(const kd_policy *p, uint64_t seed, const kd_hash128 *image_id, uint32_t view, int width, int height) {
    KD_ASSERT(width > 0 && height > 0 && p->image_h > 0 && p->image_w > 0);
    double u[U_COUNT];
    kd_rng rng = kd_rng_make(seed, kd_hash128_low64(image_id), view, KD_RNG_AUGMENT);
    for (int i = 0; i < U_COUNT; i++)
        u[i] = kd_rng_unit(&rng);

    kd_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.out_w = p->image_w;
    plan.out_h = p->image_h;
    if (p->cover_h > 0) {
        plan_center(&plan, p, width, height);
    } else {
        draw_crop(&plan, p, u + U_CROP, width, height);
        plan.resize_w = p->image_w;
        plan.resize_h = p->image_h;
    }
    plan.filter = (uint8_t)p->filter;
    plan.hflip = u[U_FLIP] < p->hflip_p;
    plan.vflip = u[U_VFLIP] < p->vflip_p;
    draw_jitter(&plan, p, u);
    plan.gray = u[U_GRAY] < p->gray_p;
    draw_blur(&plan, p, u);
    plan.solarize = u[U_SOLARIZE] < p->solarize_p ? (uint16_t)p->solarize_threshold : KD_SOLARIZE_OFF;
    plan.mix_lambda = 1.0f;
    return plan;
}

/* ---- record ----
 *   0 u32 version                        52 f32 jitter factor [4] (brightness, contrast, saturation, hue)
 *   4 i32 crop x, y, w, h                68 u16 solarize    70 u8 blur radius    71 u8 zero
 *  20 i32 resize w, h                    72 f32 blur sigma
 *  28 i32 out x, y, w, h                 76 u32 blur weight [12]
 *  44 u8 filter, hflip, vflip, gray     124 f32 mix lambda
 *  48 u8 jitter order [4]               128 16 bytes mix partner   144 u32 mix view   148 zeros to 192 */
enum { AT_FIELDS = 4, FIELDS = 10, AT_FLAGS = 44, AT_ORDER = 48, AT_FACTOR = 52, AT_SOLARIZE = 68, AT_RADIUS = 70, AT_SIGMA = 72, AT_WEIGHT = 76, AT_LAMBDA = 124,
       AT_PARTNER = 128, AT_MIX_VIEW = 144 };

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get_u32(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

static void put_f32(uint8_t *p, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    put_u32(p, bits);
}

static float get_f32(const uint8_t *p) {
    uint32_t bits = get_u32(p);
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

void kd_plan_encode(const kd_plan *plan, uint8_t out[KD_PLAN_BYTES]) {
    const int32_t field[FIELDS] = {plan->crop_x, plan->crop_y, plan->crop_w, plan->crop_h, plan->resize_w, plan->resize_h, plan->out_x, plan->out_y, plan->out_w, plan->out_h};
    memset(out, 0, KD_PLAN_BYTES);
    put_u32(out, KD_PLAN_VERSION);
    for (int i = 0; i < FIELDS; i++)
        put_u32(out + AT_FIELDS + 4 * i, (uint32_t)field[i]);
    out[AT_FLAGS] = plan->filter;
    out[AT_FLAGS + 1] = plan->hflip;
    out[AT_FLAGS + 2] = plan->vflip;
    out[AT_FLAGS + 3] = plan->gray;
    memcpy(out + AT_ORDER, plan->jitter_order, 4);
    for (int i = 0; i < 4; i++)
        put_f32(out + AT_FACTOR + 4 * i, plan->jitter_factor[i]);
    out[AT_SOLARIZE] = (uint8_t)plan->solarize;
    out[AT_SOLARIZE + 1] = (uint8_t)(plan->solarize >> 8);
    out[AT_RADIUS] = plan->blur_radius;
    put_f32(out + AT_SIGMA, plan->blur_sigma);
    for (int i = 0; i <= KD_BLUR_MAX_RADIUS; i++)
        put_u32(out + AT_WEIGHT + 4 * i, plan->blur_weight[i]);
    put_f32(out + AT_LAMBDA, plan->mix_lambda);
    memcpy(out + AT_PARTNER, plan->mix_partner.b, 16);
    put_u32(out + AT_MIX_VIEW, plan->mix_view);
}

static int box_fits(int32_t x, int32_t y, int32_t w, int32_t h, int32_t width, int32_t height) {
    return x >= 0 && y >= 0 && w > 0 && h > 0 && w <= width && h <= height && x <= width - w && y <= height - h;
}

/* Radius, sigma and half kernel, of which nothing may be set when there is no blur. */
static int blur_fits(const kd_plan *p) {
    uint64_t sum = p->blur_weight[0];
    uint32_t beyond = 0;
    for (int i = 1; i <= KD_BLUR_MAX_RADIUS; i++) {
        sum += 2 * (uint64_t)p->blur_weight[i];
        beyond |= i > p->blur_radius ? p->blur_weight[i] : 0;
    }
    if (p->blur_radius == 0)
        return sum == 0 && p->blur_sigma == 0.0f && !signbit(p->blur_sigma);
    return p->blur_radius <= KD_BLUR_MAX_RADIUS && p->out_w > p->blur_radius && p->out_h > p->blur_radius && beyond == 0 && sum == KD_BLUR_ONE && p->blur_sigma > 0.0f &&
           isfinite(p->blur_sigma);
}

/* A share in 2^-16, and a partner only when there is something left for it. */
static int mix_fits(const kd_plan *p) {
    static const kd_hash128 nobody;
    float l = p->mix_lambda * 65536.0f;
    if (!(l >= 0.0f && l <= 65536.0f) || signbit(l) || l != (float)(int)l)
        return 0;
    return l < 65536.0f || (p->mix_view == 0 && memcmp(&p->mix_partner, &nobody, sizeof nobody) == 0);
}

/* Name of the first field whose value no plan of this version has, or NULL. */
static const char *wrong_field(const kd_plan *p) {
    if (!box_fits(p->crop_x, p->crop_y, p->crop_w, p->crop_h, KD_IMAGE_MAX_SIDE, KD_IMAGE_MAX_SIDE))
        return "crop box";
    if (p->resize_w <= 0 || p->resize_h <= 0)
        return "size";
    if (!box_fits(p->out_x, p->out_y, p->out_w, p->out_h, p->resize_w, p->resize_h) || p->out_w > KD_VIEW_MAX_SIDE || p->out_h > KD_VIEW_MAX_SIDE)
        return "output box";
    if (p->filter > KD_FILTER_BICUBIC)
        return "filter";
    if (p->hflip > 1 || p->vflip > 1 || p->gray > 1)
        return "flag";
    if (p->solarize > KD_SOLARIZE_OFF)
        return "solarize threshold";
    if (!blur_fits(p))
        return "blur";
    if (!mix_fits(p))
        return "mix";
    unsigned seen = 0, end = 0;
    for (int i = 0; i < 4; i++) {
        unsigned j = p->jitter_order[i];
        if (j == KD_JITTER_NONE)
            end = 1;
        else if (j > KD_JITTER_HUE || end || (seen >> j & 1))
            return "jitter order";
        else
            seen |= 1u << j;
        /* Written so that NaN fails. */
        float f = p->jitter_factor[i];
        if (!(i == KD_JITTER_HUE ? f >= -0.5f && f <= 0.5f : f >= 0.0f && f <= 100.0f))
            return "jitter factor";
    }
    return NULL;
}

kd_status kd_plan_decode(kd_plan *plan, const uint8_t in[KD_PLAN_BYTES], kd_err *err) {
    uint32_t version = get_u32(in);
    if (version != KD_PLAN_VERSION)
        return kd_fail(err, KD_EDAMAGED, "the plan of the view has version %u, this program reads %d; update the program, or the record is damaged", version, KD_PLAN_VERSION);
    memset(plan, 0, sizeof *plan);
    int32_t *const field[FIELDS] = {&plan->crop_x, &plan->crop_y, &plan->crop_w, &plan->crop_h, &plan->resize_w, &plan->resize_h, &plan->out_x, &plan->out_y, &plan->out_w, &plan->out_h};
    for (int i = 0; i < FIELDS; i++)
        *field[i] = (int32_t)get_u32(in + AT_FIELDS + 4 * i);
    plan->filter = in[AT_FLAGS];
    plan->hflip = in[AT_FLAGS + 1];
    plan->vflip = in[AT_FLAGS + 2];
    plan->gray = in[AT_FLAGS + 3];
    memcpy(plan->jitter_order, in + AT_ORDER, 4);
    for (int i = 0; i < 4; i++)
        plan->jitter_factor[i] = get_f32(in + AT_FACTOR + 4 * i);
    plan->solarize = (uint16_t)(in[AT_SOLARIZE] | in[AT_SOLARIZE + 1] << 8);
    plan->blur_radius = in[AT_RADIUS];
    plan->blur_sigma = get_f32(in + AT_SIGMA);
    for (int i = 0; i <= KD_BLUR_MAX_RADIUS; i++)
        plan->blur_weight[i] = get_u32(in + AT_WEIGHT + 4 * i);
    plan->mix_lambda = get_f32(in + AT_LAMBDA);
    memcpy(plan->mix_partner.b, in + AT_PARTNER, 16);
    plan->mix_view = get_u32(in + AT_MIX_VIEW);
    const char *wrong = wrong_field(plan);
    if (wrong)
        return kd_fail(err, KD_EDAMAGED, "the plan of the view has an impossible %s; the record is damaged", wrong);
    /* What wasn't read above must be 0: otherwise a newer program wrote an operation that this one would silently leave out. */
    uint8_t again[KD_PLAN_BYTES];
    kd_plan_encode(plan, again);
    for (int i = 0; i < KD_PLAN_BYTES; i++)
        if (again[i] != in[i])
            return kd_fail(err, KD_EDAMAGED, "the plan of the view uses an operation that this program doesn't know (byte %d); update the program, or the record is damaged", i);
    return KD_OK;
}

json_t *kd_plan_json(const kd_plan *p, const kd_plan *partner_plan) {
    static const char *const jitter[4] = {"brightness", "contrast", "saturation", "hue"};
    static const char *const filter[3] = {"box", "bilinear", "bicubic"};
    json_t *order = json_array(), *weights = json_array();
    for (int i = 0; i < 4 && p->jitter_order[i] != KD_JITTER_NONE; i++)
        json_array_append_new(order, json_string(jitter[p->jitter_order[i]]));
    for (int i = 0; i <= p->blur_radius && p->blur_radius > 0; i++)
        json_array_append_new(weights, json_integer(p->blur_weight[i]));
    char partner[33];
    kd_hex(partner, p->mix_partner.b, 16);
    json_t *mix = json_pack("{s:f, s:s, s:I}", "lambda", (double)p->mix_lambda, "partner", partner, "view", (json_int_t)p->mix_view);
    if (p->mix_lambda < 1.0f)
        json_object_set_new(mix, "plan", kd_plan_json(partner_plan, NULL));
    return json_pack("{s:[i,i,i,i], s:[i,i], s:[i,i,i,i], s:s, s:b, s:b, s:o, s:{s:f, s:f, s:f, s:f}, s:b, s:i, s:{s:i, s:f, s:o}, s:o}",
                     "crop", p->crop_x, p->crop_y, p->crop_w, p->crop_h, "resize", p->resize_w, p->resize_h, "out", p->out_x, p->out_y, p->out_w, p->out_h,
                     "filter", filter[p->filter], "hflip", p->hflip, "vflip", p->vflip, "jitter_order", order, "jitter_factor", jitter[0],
                     (double)p->jitter_factor[0], jitter[1], (double)p->jitter_factor[1], jitter[2], (double)p->jitter_factor[2], jitter[3],
                     (double)p->jitter_factor[3], "gray", p->gray, "solarize", p->solarize, "blur", "radius", p->blur_radius, "sigma", (double)p->blur_sigma,
                     "weights", weights, "mix", mix);
}
