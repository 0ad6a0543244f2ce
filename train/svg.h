/* SVG: line charts as text, for reports that need no program to be looked at. A chart is scaled by whoever shows it (viewBox); its colours and fonts of text come from the page's style sheet
 * (classes: axis, grid, tick), those of lines from the series.
 *
 *     kd_series s[] = {{.label = "held out", .colour = "#2563eb", .point = p, .count = n, .dots = 1}};
 *     kd_svg_chart(&text, &(kd_chart){.id = "loss", .series = s, .count = 1, .x_label = "epoch", .floor = NAN, .ceiling = NAN}); */
#ifndef KD_TRAIN_SVG_H
#define KD_TRAIN_SVG_H

#include "common/base/text.h"

typedef struct kd_point {
    double x, y;
} kd_point;

typedef struct kd_series {
    const char *label;    /* said when the mouse rests on a dot */
    const char *colour;   /* CSS */
    int dashed, faint;
    int dots;             /* a dot at every point, with its numbers as a tooltip */
    int only_dots;        /* no line */
    const kd_point *point; /* x ascending, finite; points whose y isn't finite are left out */
    size_t count;
} kd_series;

typedef struct kd_chart {
    const char *id;       /* unique in the page; letters, digits, _ */
    const kd_series *series;
    size_t count;
    const char *x_label;
    int log_y;            /* values <= 0 are left out */
    int percent;          /* y is written as a percentage */
    double floor, ceiling; /* the axis doesn't go beyond them, whatever the points; NAN: no limit */
} kd_chart;

/* A chart without any point says so. */
void kd_svg_chart(kd_text *out, const kd_chart *chart);

/* Round numbers (1, 2 or 5 times a power of ten apart) from lo to hi, at most `most` (>= 2); returns how many. lo < hi, finite. */
int kd_svg_ticks(double *ticks, double lo, double hi, int most);
/* At most 4 significant digits, without needless zeros: "0.25", "1200", "5e-4". Returns buf. */
enum { KD_SVG_NUMBER = 32 };
const char *kd_svg_number(double v, char buf[KD_SVG_NUMBER]);

#endif
