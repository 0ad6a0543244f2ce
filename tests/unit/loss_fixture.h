/* std-mse as tests that have no options build it. */
#ifndef KD_TESTS_UNIT_LOSS_FIXTURE_H
#define KD_TESTS_UNIT_LOSS_FIXTURE_H

#include "train/loss.h"

/* The order of --loss std-mse: pairs and terms "cls" (place LF_CLS), "patch". A weight of 0 leaves the pair out. */
enum { LF_CLS = 0, LF_PATCH = 1 };
static inline kd_loss lf_std_mse(double cls, double patch) {
    kd_loss l = {.name = "std-mse"};
    if (cls > 0)
        kd_loss_add_term(&l, &(kd_term){.name = "cls", .weight = cls, .pair = kd_loss_add_pair(&l, &(kd_pair){.name = "cls", .tap = "cls", .feature = KD_FEATURE_CLS, .layer = 1})});
    if (patch > 0)
        kd_loss_add_term(&l, &(kd_term){.name = "patch", .weight = patch, .pair = kd_loss_add_pair(&l, &(kd_pair){.name = "patch", .tap = "map", .feature = KD_FEATURE_PATCH, .layer = 1})});
    return l;
}

#endif
