#include "kernels/nn/selection.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

static_assert((int)KD_WANT_CLS == 1 << KD_FEATURE_CLS && (int)KD_WANT_PATCH == 1 << KD_FEATURE_PATCH && (int)KD_WANT_REGISTERS == 1 << KD_FEATURE_REGISTERS &&
                  (int)KD_WANT_MEAN == 1 << KD_FEATURE_MEAN && (int)KD_LAYERS_MAX == KD_MAX_LAYERS,
              "a selection is the same number for the teacher and for the cache");

enum { WIDEST_RECORD = 1 << 16 }; /* cache/identity.h's bound */

kd_status kd_selection_parse(kd_layer_choice *choice, const kd_selection_text *text, const kd_model_info *model, kd_err *err) {
    *choice = (kd_layer_choice){.norm = strcmp(text->layer_norm, "on") == 0, .concat = strcmp(text->layer_concat, "on") == 0};
    KD_TRY(kd_features_parse(text->features, &choice->features, err));
    KD_TRY(kd_layers_parse(text->layers, model->vit.depth, choice->layer, &choice->layers, err));
    if (choice->features & 1u << KD_FEATURE_REGISTERS && model->vit.registers == 0)
        return kd_fail(err, KD_EUSAGE, "--features %s: %s has no register tokens", text->features, model->name);
    if (choice->concat && choice->layers < 2)
        return kd_fail(err, KD_EUSAGE, "--layer-concat on joins layers and --layers %s is one; give two or more, such as --layers 1,2", text->layers);
    if (kd_selection_width(choice, model) > WIDEST_RECORD)
        return kd_fail(err, KD_EUSAGE, "--layer-concat on: %d layers of width %d make records of width %" PRIu32 ", and at most %d can be stored", choice->layers, model->width,
                       kd_selection_width(choice, model), WIDEST_RECORD);
    return KD_OK;
}

int kd_selection_layers(const kd_layer_choice *choice) {
    return choice->concat ? 1 : choice->layers;
}

uint32_t kd_selection_width(const kd_layer_choice *choice, const kd_model_info *model) {
    return (uint32_t)(choice->concat ? choice->layers * model->width : model->width);
}
