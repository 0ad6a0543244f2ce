/* Named losses: from the options (--loss and what goes with it, --pair) to the pairs and terms of loss.h. Formulas, sources and defaults: docs/losses.md.
 *
 *     KD_TRY(kd_loss_from_config(&loss, &config, &offer, err));
 *
 * A --pair is written key=value,...: student=layer3,teacher=patch:2,loss=cosine:0.9+smooth-l1:0.1,weight=0.5; in a config file also as a mapping.
 * Thread rule: pure functions. */
#ifndef KD_TRAIN_LOSS_NAMED_H
#define KD_TRAIN_LOSS_NAMED_H

#include "cache/identity.h"
#include "train/config.h"
#include "train/loss.h"

/* What there is to learn. */
typedef struct kd_loss_offer {
    const kd_recipe *recipe;
    const char *cache; /* for messages */
    size_t images;     /* the size of a queue follows from it */
    int classes;       /* of the teacher's head, 0 = none given */
} kd_loss_offer;

/* config->teacher_layer must be one that the cache holds. KD_EUSAGE: a feature or layer that the cache lacks, a weight, queue or pair that can't be, a loss that needs --teacher-head without it,
 * nothing left to learn. out->warning: the weights of explicit pairs don't sum to 1; layers that the loss is defined with aren't stored. */
kd_status kd_loss_from_config(kd_loss *out, const kd_train_config *config, const kd_loss_offer *offer, kd_err *err);

/* Rows of a queue for a data set of that many images (LightlyTrain's table). */
int kd_loss_queue_rows(size_t images);

/* "std-mse: cls 1, patch 1" for the plan. Returns buf. */
const char *kd_loss_text(const kd_loss *l, char *buf, size_t cap);

#endif
