/* Inspect: what a weight file is, without running it (kd-precompute --inspect FILE).
 *
 * Prints on stdout, for people or as one JSON object: container, family, layout, shapes, parameters, which tensors are missing or unexpected, positions, normalisation, and what a view costs. */
#ifndef KD_PRECOMPUTE_INSPECT_H
#define KD_PRECOMPUTE_INSPECT_H

#include "precompute/config.h"

/* KD_OK: usable as a teacher with these options. KD_EUSAGE: it isn't, after everything that is known has been printed; the sentence is the first problem. KD_EFAIL: damaged. */
kd_status kd_inspect_run(const kd_precompute_config *config, kd_err *err);

#endif
