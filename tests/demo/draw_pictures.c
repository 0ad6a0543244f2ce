/* Draws the demo's labelled pictures: OUT/train/CLASS/NNN.jpg and OUT/test/CLASS/NNN.jpg.
 *
 *     draw_pictures OUT [TRAIN_PER_CLASS TEST_PER_CLASS]
 *
 * Twelve classes that differ in shape or texture. Colour, size, place, rotation, background and clutter vary and say nothing about the class. Every picture is a pure function of
 * (class, split, number), so a machine draws the same files every time. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/image/image.h"

static const double pi = 3.14159265358979323846;

typedef struct colour {
    double r, g, b;
} colour;

/* What is drawn; (u, v) are coordinates in the figure's own frame, where the figure fills about the unit disc. */
typedef struct scene {
    int cls, width, height;
    double cx, cy, scale, angle;
    colour figure, accent, back0, back1;
    double back_angle, noise, phase, frequency;
    double clutter[6][4]; /* x, y, radius, shade */
    int clutters;
    kd_rng rng;
} scene;

static double length2(double x, double y) {
    return sqrt(x * x + y * y);
}

static int in_polygon(double u, double v, int corners, double radius) {
    double a = atan2(v, u), sector = 2 * pi / corners;
    double off = a - sector * floor(a / sector) - sector / 2;
    return length2(u, v) * cos(off) <= radius * cos(sector / 2);
}

static int in_star(double u, double v) {
    double a = atan2(v, u), sector = 2 * pi / 5;
    double t = fabs(a - sector * floor(a / sector + 0.5)) / (sector / 2);
    return length2(u, v) <= 1.0 - 0.62 * t;
}

/* 0 outside, 1 the figure's colour, 2 its accent. */
static int figure_at(const scene *s, double u, double v) {
    double d = length2(u, v), f = s->frequency;
    switch (s->cls) {
    case 0: return d <= 0.85;                                                     /* disc */
    case 1: return d <= 0.95 && d >= 0.6;                                         /* ring */
    case 2: return fabs(u) <= 0.72 && fabs(v) <= 0.72;                            /* square */
    case 3: return in_polygon(u, v, 3, 1.0);                                      /* triangle */
    case 4: return in_star(u, v);                                                 /* star */
    case 5: return (fabs(u) <= 0.26 && fabs(v) <= 0.95) || (fabs(v) <= 0.26 && fabs(u) <= 0.95); /* cross */
    case 6: return d <= 0.9 && length2(u - 0.45, v) > 0.72;                       /* crescent */
    case 7: return d > 0.95 ? 0 : 1 + (sin(f * u * 2 * pi + s->phase) > 0);       /* stripes */
    case 8: return fabs(u) > 0.8 || fabs(v) > 0.8 ? 0 : 1 + ((sin(f * u * pi) > 0) != (sin(f * v * pi) > 0)); /* checks */
    case 9: {                                                                     /* dots */
        double p = 0.42, x = u - p * floor(u / p + 0.5), y = v - p * floor(v / p + 0.5);
        return d > 1.0 ? 0 : (length2(x, y) < 0.13 ? 2 : 1);
    }
    case 10: {                                                                    /* spiral */
        double turn = atan2(v, u) / (2 * pi) + d * 2.2;
        return d <= 1.0 && turn - floor(turn) < 0.5;
    }
    default: return d > 1.0 ? 0 : 1 + (sin(f * pi * v + 2.2 * sin(5 * u)) > 0.35); /* waves */
    }
}
static const char *const class_name[] = {"disc", "ring", "square", "triangle", "star", "cross", "crescent", "stripes", "checks", "dots", "spiral", "waves"};
enum { CLASSES = sizeof class_name / sizeof class_name[0] };

static colour random_colour(kd_rng *r) {
    return (colour){kd_rng_uniform(r, 0, 255), kd_rng_uniform(r, 0, 255), kd_rng_uniform(r, 0, 255)};
}

/* Backgrounds are paler than figures. */
static colour muted(colour c) {
    return (colour){150 + 0.4 * c.r, 150 + 0.4 * c.g, 150 + 0.4 * c.b};
}

static double contrast(colour a, colour b) {
    return fabs(0.3 * (a.r - b.r) + 0.59 * (a.g - b.g) + 0.11 * (a.b - b.b));
}

static scene make_scene(int cls, int split, int number) {
    scene s = {.cls = cls, .rng = kd_rng_make((uint64_t)cls, (uint64_t)number, (uint32_t)split, KD_RNG_TEST)};
    kd_rng *r = &s.rng;
    s.width = 200 + (int)kd_rng_below(r, 100);
    s.height = 200 + (int)kd_rng_below(r, 100);
    double side = s.width < s.height ? s.width : s.height;
    s.scale = side * kd_rng_uniform(r, 0.34, 0.46);
    s.cx = kd_rng_uniform(r, s.scale * 0.9, s.width - s.scale * 0.9);
    s.cy = kd_rng_uniform(r, s.scale * 0.9, s.height - s.scale * 0.9);
    s.angle = kd_rng_uniform(r, -0.4, 0.4);
    s.back0 = muted(random_colour(r));
    s.back1 = muted(random_colour(r));
    do
        s.figure = random_colour(r);
    while (contrast(s.figure, s.back0) < 60 || contrast(s.figure, s.back1) < 40);
    do
        s.accent = random_colour(r);
    while (contrast(s.accent, s.figure) < 70);
    s.back_angle = kd_rng_uniform(r, 0, 2 * pi);
    s.noise = kd_rng_uniform(r, 2, 14);
    s.phase = kd_rng_uniform(r, 0, 2 * pi);
    s.frequency = kd_rng_uniform(r, 2.4, 4.2);
    s.clutters = (int)kd_rng_below(r, 7);
    for (int i = 0; i < s.clutters; i++) {
        s.clutter[i][0] = kd_rng_uniform(r, 0, s.width);
        s.clutter[i][1] = kd_rng_uniform(r, 0, s.height);
        s.clutter[i][2] = kd_rng_uniform(r, 6, 40);
        s.clutter[i][3] = kd_rng_uniform(r, -40, 40);
    }
    return s;
}

static colour colour_at(const scene *s, double x, double y) {
    double u = ((x - s->cx) * cos(s->angle) + (y - s->cy) * sin(s->angle)) / s->scale;
    double v = (-(x - s->cx) * sin(s->angle) + (y - s->cy) * cos(s->angle)) / s->scale;
    int part = figure_at(s, u, v);
    if (part > 0)
        return part == 1 ? s->figure : s->accent;
    double t = 0.5 + ((x - s->width / 2.0) * cos(s->back_angle) + (y - s->height / 2.0) * sin(s->back_angle)) / (s->width + s->height);
    colour c = {s->back0.r + t * (s->back1.r - s->back0.r), s->back0.g + t * (s->back1.g - s->back0.g), s->back0.b + t * (s->back1.b - s->back0.b)};
    for (int i = 0; i < s->clutters; i++) {
        double d = length2(x - s->clutter[i][0], y - s->clutter[i][1]) / s->clutter[i][2], shade = s->clutter[i][3] * exp(-d * d);
        c = (colour){c.r + shade, c.g + shade, c.b + shade};
    }
    return c;
}

static uint8_t to_byte(double v) {
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v + 0.5);
}

static void paint(const scene *s, uint8_t *rgb) {
    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++) {
            colour sum = {0, 0, 0};
            for (int k = 0; k < 4; k++) {
                colour c = colour_at(s, x + 0.25 + 0.5 * (k & 1), y + 0.25 + 0.5 * (k >> 1));
                sum = (colour){sum.r + c.r / 4, sum.g + c.g / 4, sum.b + c.b / 4};
            }
            /* One Philox block per pixel: the picture's own stream would be too short. */
            kd_rng grain = kd_rng_make((uint64_t)s->cls, (uint64_t)(y * s->width + x), s->rng.buf[0], KD_RNG_TEST);
            double n = s->noise * (kd_rng_unit(&grain) - 0.5);
            uint8_t *p = rgb + 3 * ((size_t)y * (size_t)s->width + (size_t)x);
            p[0] = to_byte(sum.r + n);
            p[1] = to_byte(sum.g + n);
            p[2] = to_byte(sum.b + n);
        }
}

static kd_status draw(const char *out, int split, int cls, int number, kd_err *err) {
    scene s = make_scene(cls, split, number);
    uint8_t *rgb = NULL;
    char *dir = kd_asprintf("%s/%s/%s", out, split == 0 ? "train" : "test", class_name[cls]);
    char *path = kd_asprintf("%s/%03d.jpg", dir != NULL ? dir : "", number);
    kd_status status = dir == NULL || path == NULL ? kd_fail(err, KD_EFAIL, "out of memory") : kd_io_mkdirs(dir, err);
    if (status == KD_OK)
        status = kd_alloc_array(&rgb, (size_t)s.width * (size_t)s.height, 3, err);
    if (status == KD_OK) {
        paint(&s, rgb);
        status = kd_jpeg_write(path, rgb, s.width, s.height, 88, err);
    }
    kd_free(rgb);
    kd_free(path);
    kd_free(dir);
    return status;
}

int main(int argc, char **argv) {
    kd_err err = {0};
    int count[2] = {argc > 2 ? atoi(argv[2]) : 40, argc > 3 ? atoi(argv[3]) : 20};
    if (argc < 2 || argv[1][0] == '-' || count[0] < 1 || count[1] < 1) {
        fprintf(stderr, "usage: draw_pictures OUT [TRAIN_PER_CLASS TEST_PER_CLASS]\n");
        return 2;
    }
    for (int split = 0; split < 2; split++)
        for (int cls = 0; cls < CLASSES; cls++)
            for (int i = 0; i < count[split]; i++)
                if (draw(argv[1], split, cls, i, &err) != KD_OK) {
                    fprintf(stderr, "draw_pictures: %s\n", err.msg);
                    return 1;
                }
    return 0;
}
