/* Report charts: which curves a report shows, and in which charts; the part of report.c that knows the keys of metrics.jsonl (logbook.h). */
#ifndef KD_TRAIN_REPORT_CHARTS_H
#define KD_TRAIN_REPORT_CHARTS_H

#include "train/curves.h"

/* The charts as <figure> elements: the loss and each of its terms, R2, cosine and agreement on held-out and on seen views, k-NN, learning rate, gradient, speeds; those of which nothing was logged are
 * left out. With one student colours tell the curves apart, with several the students. names [n]: the students. */
void kd_report_charts(kd_text *out, const kd_curves *c, const char *const *names, size_t n, kd_err *err);
/* A CSS colour for student i. */
const char *kd_report_colour(size_t i);

#endif
