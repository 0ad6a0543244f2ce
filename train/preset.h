/* Presets: the values that --preset NAME gives to the options of kd-train that aren't given themselves (kd_program.presets).
 *
 * lightly-v1, -v2, -v3: what LightlyTrain trains with by default in its three distillation methods (facts: its sources at 8f5a75c4): loss, optimizer, learning rate at batch 1536 scaled by
 * the root of the batch, batch 128, 100 epochs. vit-kd: the settings of feature distillation into ViTs. default: the options' own defaults. */
#ifndef KD_TRAIN_PRESET_H
#define KD_TRAIN_PRESET_H

#include "common/base/options.h"

extern const kd_preset kd_train_presets[];

#endif
