/* A policy from a YAML file. Internal to common/image: everything else calls kd_policy_load, which takes presets and files.
 *
 *     name: mine
 *     transforms:
 *       - RandomResizedCrop: {scale: [0.3, 1.0], interpolation: bicubic}
 *       - RandomHorizontalFlip
 *       - GaussianBlur: {kernel_size: 9, sigma: [0.1, 2.0], p: 0.5}
 *
 * Names, parameters and defaults are torchvision's, plus a probability p where torchvision needs RandomApply (ColorJitter, GaussianBlur: default 1), and Mixup: {p}. The format is
 * described for users in docs/augment.md. */
#ifndef KD_COMMON_IMAGE_POLICY_FILE_H
#define KD_COMMON_IMAGE_POLICY_FILE_H

#include "common/image/augment.h"

/* KD_EUSAGE naming file, key and value: not YAML, an unknown name (with the nearest), a value out of its range, another order than that of application, a size that isn't
 * image_h x image_w. What can't happen has its parameters at 0, so that two files with equal effect give equal policies. */
kd_status kd_policy_read_file(kd_policy *p, const char *path, int image_h, int image_w, kd_err *err);

#endif
