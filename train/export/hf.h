/* A folder as the Hugging Face Hub has them: model.safetensors, config.json in timm's layout, and README.md, the model card, with how to load it, the recipe and the measured figures. timm loads the folder
 * (create_model("local-dir:FOLDER", pretrained=True)), or its upload by "hf-hub:NAME"; of what timm doesn't have (timm_layout.h) the card says which library loads it. */
#ifndef KD_TRAIN_HF_H
#define KD_TRAIN_HF_H

#include "train/export/export.h"

/* Makes the folder if it isn't there and replaces these three files in it. run: directory of the run, of which metrics.jsonl is read (figures of the last epoch up to the checkpoint); without the file the card has none.
 * license: an identifier such as "apache-2.0", or NULL: the card says that none is stated.
 * KD_EFAIL: the folder can't be made, memory, a damaged metrics.jsonl. KD_ENONFINITE, KD_ENOSPACE as kd_model_export. */
kd_status kd_hf_write(const char *folder, const kd_export_student *x, kd_dtype dtype, const char *run, const char *license, kd_err *err);

#endif
