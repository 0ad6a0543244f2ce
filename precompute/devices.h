/* Devices: --device cuda:all, one process per CUDA device, each with its part of the images and a shard of its own in the cache's folder.
 *
 * The processes are this program again, with --device cuda:I --shard J/N and its share of the processors: what one job of an array does (part.h). So each keeps its own lock, resumes on its own, and
 * what one device does can't stop another. Their messages come out line by line with the device in front. */
#ifndef KD_PRECOMPUTE_DEVICES_H
#define KD_PRECOMPUTE_DEVICES_H

#include "precompute/config.h"

int kd_devices_all(const kd_precompute_config *config); /* --device cuda:all was given */

/* Runs one process per device and waits for all; SIGINT and SIGTERM are passed on to them. config->argv is the command line. KD_ENODEVICE: no module, no device. KD_EUSAGE: --cache is no folder, or --images
 * is a list on stdin, which only one can read. Else the status of the first device that failed, KD_ESKIPPED where that is the worst. */
kd_status kd_devices_run(const kd_precompute_config *config, kd_err *err);

#endif
