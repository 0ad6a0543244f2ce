#include "train/svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 560, HEIGHT = 240, LEFT = 54, RIGHT = 14, TOP = 10, BOTTOM = 34, TICKS_X = 9, TICKS_Y = 6 };

/* Data to pixels. */
typedef struct scale {
    double x0, x1, y0, y1;
    int log_y;
} scale;

const char *kd_svg_number(double v, char buf[KD_SVG_NUMBER]) {
    double a = fabs(v);
    if (v == 0)
        return strcpy(buf, "0");
    if (a >= 1e-3 && a < 1e6) {
        snprintf(buf, KD_SVG_NUMBER, "%.4g", v);
        if (strchr(buf, 'e') != NULL) /* 12345 would be 1.234e+04 */
            snprintf(buf, KD_SVG_NUMBER, "%.0f", v);
        return buf;
    }
    char digits[KD_SVG_NUMBER];
    snprintf(digits, sizeof digits, "%.2e", v); /* rounds first: 9.999e-4 is 1e-3 */
    int power = atoi(strchr(digits, 'e') + 1);
    *strchr(digits, 'e') = '\0';
    size_t n = strlen(digits);
    while (digits[n - 1] == '0')
        n--;
    n -= digits[n - 1] == '.';
    snprintf(buf, KD_SVG_NUMBER, "%.*se%d", (int)n, digits, power);
    return buf;
}

int kd_svg_ticks(double *ticks, double lo, double hi, int most) {
    static const double step_of[] = {1, 2, 5, 10};
    double rough = (hi - lo) / most, power = pow(10, floor(log10(rough))), step = 0, first = 0;
    int n = most + 1;
    for (size_t i = 0; n > most; i++) { /* may need one more decade */
        step = power * step_of[i % 4] * (i >= 4 ? 10 : 1);
        first = ceil(lo / step - 1e-9) * step;
        n = (int)floor((hi - first) / step + 1e-9) + 1;
    }
    for (int i = 0; i < n; i++) {
        double t = first + i * step;
        ticks[i] = fabs(t) < step * 1e-9 ? 0 : t;
    }
    return n;
}

/* Ticks of a logarithmic axis between the powers lo and hi of ten: 1, 2, 5, 10, ... where they fit, else every decade or every few. */
static int log_ticks(double *ticks, double lo, double hi, int most) {
    static const double mantissa[] = {1, 2, 5};
    int n = 0, first = (int)floor(lo), last = (int)floor(hi);
    for (int k = first; k <= last && n <= most; k++)
        for (int m = 0; m < 3 && n <= most; m++) {
            double t = k + log10(mantissa[m]);
            if (t >= lo && t <= hi)
                ticks[n++] = mantissa[m] * pow(10, k);
        }
    if (n >= 2 && n <= most)
        return n;
    if (n < 2) { /* within a decade: as on a linear axis */
        double from = pow(10, lo), to = pow(10, hi);
        return kd_svg_ticks(ticks, from, to, most);
    }
    int step = (last - first) / most + 1;
    n = 0;
    for (int k = (int)ceil(lo); k <= last && n < most; k += step)
        ticks[n++] = pow(10, k);
    return n;
}

static int shown(const kd_chart *c, const kd_point *p) {
    return isfinite(p->y) && (!c->log_y || p->y > 0);
}

/* The range of all points, widened to something that has an extent. 0: there are none. */
static int find_scale(scale *s, const kd_chart *c) {
    *s = (scale){INFINITY, -INFINITY, INFINITY, -INFINITY, c->log_y};
    for (size_t i = 0; i < c->count; i++)
        for (size_t k = 0; k < c->series[i].count; k++) {
            const kd_point *p = &c->series[i].point[k];
            if (!shown(c, p))
                continue;
            double y = c->log_y ? log10(p->y) : p->y;
            s->x0 = fmin(s->x0, p->x);
            s->x1 = fmax(s->x1, p->x);
            s->y0 = fmin(s->y0, y);
            s->y1 = fmax(s->y1, y);
        }
    if (!(s->x0 <= s->x1))
        return 0;
    s->x0 = fmin(s->x0, 0);
    if (!(s->x1 > s->x0))
        s->x1 = s->x0 + 1;
    double pad = (s->y1 - s->y0) * 0.05 + (s->y1 > s->y0 ? 0 : fabs(s->y1) * 0.1 + 1e-6);
    if (!c->log_y && s->y0 >= 0 && s->y0 < 0.6 * s->y1)
        s->y0 = 0; /* an axis that nearly reaches zero should */
    else
        s->y0 -= pad;
    s->y1 += pad;
    s->y0 = fmax(s->y0, isnan(c->floor) ? -INFINITY : c->floor);
    s->y1 = fmin(s->y1, isnan(c->ceiling) ? INFINITY : c->ceiling);
    if (!(s->y1 > s->y0)) /* all points lie beyond a limit */
        s->y1 = s->y0 + 1;
    return 1;
}

static double pixel_x(const scale *s, double x) {
    return LEFT + (x - s->x0) / (s->x1 - s->x0) * (WIDTH - LEFT - RIGHT);
}

/* Far outside the axis is still a number that every viewer can draw. */
static double pixel_y(const scale *s, double y) {
    double v = s->log_y ? log10(y) : y, share = (v - s->y0) / (s->y1 - s->y0);
    return TOP + (1 - fmin(fmax(share, -2), 3)) * (HEIGHT - TOP - BOTTOM);
}

static void tick_text(kd_text *out, const kd_chart *c, double v) {
    char number[KD_SVG_NUMBER];
    kd_text_printf(out, c->percent ? "%s%%" : "%s", kd_svg_number(c->percent ? 100 * v : v, number));
}

static void draw_axes(kd_text *out, const kd_chart *c, const scale *s) {
    double ticks[16];
    char number[KD_SVG_NUMBER];
    int n = kd_svg_ticks(ticks, s->x0, s->x1, TICKS_X);
    for (int i = 0; i < n; i++)
        if (s->x1 - s->x0 < 2 || ticks[i] == floor(ticks[i])) /* epochs are counted in whole ones */
            kd_text_printf(out, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>", pixel_x(s, ticks[i]), HEIGHT - BOTTOM + 15, kd_svg_number(ticks[i], number));
    n = c->log_y ? log_ticks(ticks, s->y0, s->y1, TICKS_Y) : kd_svg_ticks(ticks, s->y0, s->y1, TICKS_Y);
    for (int i = 0; i < n; i++) {
        double v = ticks[i], y = pixel_y(s, v);
        kd_text_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4);
        tick_text(out, c, v);
        kd_text_printf(out, "</text>");
    }
    kd_text_printf(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/><text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT, WIDTH - RIGHT, HEIGHT - 3);
    kd_text_html(out, c->x_label);
    kd_text_printf(out, "</text>");
}

static void draw_line(kd_text *out, const kd_chart *c, const kd_series *s, const scale *at) {
    int begun = 0;
    for (size_t i = 0; i < s->count; i++) {
        if (!shown(c, &s->point[i]))
            continue;
        if (!begun)
            kd_text_printf(out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"%s\"%s%s stroke-linejoin=\"round\" d=\"", s->colour, s->faint ? "1" : "2", s->faint ? " stroke-opacity=\"0.45\"" : "",
                           s->dashed ? " stroke-dasharray=\"5 4\"" : "");
        kd_text_printf(out, "%s%.1f %.1f", begun ? "L" : "M", pixel_x(at, s->point[i].x), pixel_y(at, s->point[i].y));
        begun = 1;
    }
    if (begun)
        kd_text_printf(out, "\"/>");
}

static void draw_dots(kd_text *out, const kd_chart *c, const kd_series *s, const scale *at) {
    char x[KD_SVG_NUMBER];
    for (size_t i = 0; i < s->count; i++) {
        const kd_point *p = &s->point[i];
        if (!shown(c, p))
            continue;
        kd_text_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%s\" fill=\"%s\"><title>", pixel_x(at, p->x), pixel_y(at, p->y), s->only_dots ? "4" : "2.6", s->colour);
        kd_text_html(out, s->label);
        kd_text_printf(out, ", ");
        kd_text_html(out, c->x_label);
        kd_text_printf(out, " %s: ", kd_svg_number(p->x, x));
        tick_text(out, c, p->y);
        kd_text_printf(out, "</title></circle>");
    }
}

void kd_svg_chart(kd_text *out, const kd_chart *c) {
    scale at;
    kd_text_printf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\">", WIDTH, HEIGHT);
    if (!find_scale(&at, c)) {
        kd_text_printf(out, "<text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">nothing yet</text></svg>\n", WIDTH / 2, HEIGHT / 2);
        return;
    }
    draw_axes(out, c, &at);
    kd_text_printf(out, "<clipPath id=\"clip_%s\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath><g clip-path=\"url(#clip_%s)\">", c->id, LEFT - 4, TOP - 4,
                   WIDTH - LEFT - RIGHT + 8, HEIGHT - TOP - BOTTOM + 8, c->id);
    for (size_t i = 0; i < c->count; i++)
        if (!c->series[i].only_dots)
            draw_line(out, c, &c->series[i], &at);
    for (size_t i = 0; i < c->count; i++)
        if (c->series[i].dots || c->series[i].only_dots)
            draw_dots(out, c, &c->series[i], &at);
    kd_text_printf(out, "</g></svg>\n");
}
