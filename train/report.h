/* Report: report.html of the run directory: curves, maps, settings and identity of a run on one page that needs no script, no network and no program but a browser.
 *
 *     KD_TRY(kd_report_write(&setup, step, &maps, err));
 *
 * Curves come from metrics.jsonl and nothing else, and no time of day is written, so the report of a resumed run equals that of an uninterrupted one but for speeds. */
#ifndef KD_TRAIN_REPORT_H
#define KD_TRAIN_REPORT_H

#include "train/maps.h"

/* Replaces OUT/report.html atomically. step: done so far. KD_EFAIL: metrics.jsonl can't be read, memory. KD_ENOSPACE. */
kd_status kd_report_write(const kd_setup *setup, int64_t step, const kd_maps *maps, kd_err *err);

#endif
