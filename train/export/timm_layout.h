/* timm's view of a student: which of timm's architectures it is, with which arguments, and the names that timm gives its tensors. For kd-export --format hf, whose folders timm loads by their config.json.
 * Facts: timm 1.0 models/_hub.py (_parse_model_cfg, save_config_for_hf), resnet.py, convnext.py, vision_transformer.py.
 *
 * ResNets and timm's ViTs have the same names in both. A ConvNeXt of torchvision's is the same network under other names. DINOv2's layout is converted by timm itself when it loads (checkpoint_filter_fn).
 * MobileNetV3 isn't loaded: timm's has a layer behind the pooling that isn't a classifier to it, so that a headless one lacks tensors. YOLO isn't one of timm's. */
#ifndef KD_TRAIN_TIMM_LAYOUT_H
#define KD_TRAIN_TIMM_LAYOUT_H

#include "kernels/nn/models.h"

/* Whether timm.create_model("local-dir:FOLDER", pretrained=True) loads the folder. */
int kd_timm_loads(const kd_model_info *m);

/* config.json of a headless backbone that was trained at this size: architecture, num_classes 0, num_features, global_pool, model_args, pretrained_cfg with how pictures are prepared (kd-eval's transform). Of a model that
 * timm doesn't load: without an architecture, which timm would look for, but with library and model. New object; NULL when memory is out. license: NULL when it isn't stated. */
json_t *kd_timm_config(const kd_model_info *m, int height, int width, const char *license);

/* Gives the tensors timm's names and shapes. The texts live in arena. KD_EFAIL: memory. */
kd_status kd_timm_rename(kd_model_state *s, const kd_model_info *m, kd_arena *arena, kd_err *err);

#endif
