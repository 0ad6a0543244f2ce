/* Metrics: metrics.jsonl, one JSON object per line. What lies behind the checkpoint from which a run resumes is dropped, so that the file reads as if the run had
 * never been interrupted.
 *
 *     KD_TRY(kd_metrics_open(&m, "runs/r18/metrics.jsonl", 0, err));
 *     KD_TRY(kd_metrics_write(m, json_pack(...), err));
 *     KD_TRY(kd_metrics_sync(m, &bytes, err));                       // before a checkpoint: `bytes` goes into it
 */
#ifndef KD_TRAIN_METRICS_H
#define KD_TRAIN_METRICS_H

#include <stdint.h>

#include "common/base/json.h"

typedef struct kd_metrics kd_metrics;

/* Cuts the file to its first keep_bytes bytes (less if it is shorter) and appends from there. */
kd_status kd_metrics_open(kd_metrics **out, const char *path, uint64_t keep_bytes, kd_err *err);
/* Takes over `line`; NULL (a failed json_pack) is KD_EFAIL. */
kd_status kd_metrics_write(kd_metrics *m, json_t *line, kd_err *err);
/* Makes what was written durable and gives the length of the file. */
kd_status kd_metrics_sync(kd_metrics *m, uint64_t *bytes, kd_err *err);
void kd_metrics_close(kd_metrics *m); /* accepts NULL */

#endif
