/* kd-export: its options, and the run. Needs no device: ref. */
#ifndef KD_TRAIN_EXPORT_RUN_H
#define KD_TRAIN_EXPORT_RUN_H

#include "common/base/options.h"

typedef struct kd_export_config {
    const char *run, *checkpoint, *format, *student, *out, *dtype, *onnx_size, *license;
    int json;
} kd_export_config;
extern const kd_program kd_export_program;

/* KD_EUSAGE: no such checkpoint or student, an option that its format has no use for. Else as the writers. */
kd_status kd_export_run(const kd_export_config *c, kd_err *err);

#endif
