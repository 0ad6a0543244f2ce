/* Run: the whole of kd-precompute. images -> ids -> seeded views -> teacher -> records -> sealed cache.
 *
 * Loader threads read, hash and decode each image once and make all of its views, at most a few images ahead and delivered in path order; the calling thread
 * runs the teacher on batches of views and hands the encoded features, compressed on all threads, to the writer. So the sealed cache is a function of the files and the options. */
#ifndef KD_PRECOMPUTE_RUN_H
#define KD_PRECOMPUTE_RUN_H

#include "precompute/config.h"

/* KD_OK: sealed (or already sealed by an earlier run). KD_ESKIPPED: sealed, but more inputs were skipped than --max-skipped. KD_ESIGINT/KD_ESIGTERM: stopped after committing; the same
 * command goes on. Otherwise the causes listed in the program's epilog. */
kd_status kd_precompute_run(const kd_precompute_config *config, kd_err *err);

#endif
