#include "train/preset.h"

/* Warm-up min(10, epochs / 10), cosine to a thousandth, clipping at norm 1 and no decay of 1-D parameters are LightlyTrain's too, and the options' defaults. lightly-v3's weight decay is
 * auto: 1e-6 for networks of batch norm, 0.04 for others. */
const kd_preset kd_train_presets[] = {
    {"lightly-v1", {{"loss", "kl-queue"}, {"optimizer", "lars"}, {"lr", "1.8"}, {"lr-scale", "sqrt"}, {"lr-reference-batch", "1536"}, {"weight-decay", "1e-6"}, {"batch-size", "128"},
                    {"epochs", "100"}, {"warmup-epochs", "auto"}, {"clip", "1"}}},
    {"lightly-v2", {{"loss", "mse"}, {"optimizer", "lars"}, {"lr", "9"}, {"lr-scale", "sqrt"}, {"lr-reference-batch", "1536"}, {"weight-decay", "1e-6"}, {"batch-size", "128"},
                    {"epochs", "100"}, {"warmup-epochs", "auto"}, {"clip", "1"}}},
    {"lightly-v3", {{"loss", "kl-queue+intra"}, {"optimizer", "adamw"}, {"lr", "5e-4"}, {"lr-scale", "sqrt"}, {"lr-reference-batch", "1536"}, {"weight-decay", "auto"}, {"batch-size", "128"},
                    {"epochs", "100"}, {"warmup-epochs", "auto"}, {"clip", "1"}}},
    {"vit-kd", {{"loss", "mse-normalized"}, {"optimizer", "adamw"}, {"lr", "5e-4"}, {"lr-scale", "none"}, {"weight-decay", "0.04"}, {"batch-size", "64"}, {"epochs", "100"},
                {"warmup-epochs", "10"}, {"cls-weight", "1"}, {"patch-weight", "0.5"}}},
    {NULL, {{NULL, NULL}}},
};
