/* Derive: the recipe of a cache that is made from another one, and where each of its records comes from. Between the options of kd-cache extract and the copying (copy.h).
 *
 * What only leaves something out (features, patch targets, layers) gives the recipe of a direct run with less, so that the result can be joined with the shards of such a run. What rounds numbers
 * again (another element type, a reduction of the full grid) adds "source" to the recipe: the form that they had in the first parent.
 * Inside cache/ only. Pure functions. */
#ifndef KD_CACHE_DERIVE_H
#define KD_CACHE_DERIVE_H

#include "cache/identity.h"

/* Texts of options; NULL: as in the parent. */
typedef struct kd_derive_options {
    const char *features; /* "cls,patch", in any order */
    const char *targets;  /* "adjoint:7,full": forms of the patches, in the order in which they are stored */
    const char *layers;   /* "1,4": some of the stored ones */
    const char *dtype;    /* "f16", "bf16", "i8" */
} kd_derive_options;

typedef struct kd_derived {
    kd_recipe recipe; /* of the result */
    struct kd_origin {
        kd_feature from;  /* the parent's feature */
        int encode;       /* 0: its records are taken over as they are; 1: read and stored anew */
        kd_target reduce; /* encode: applied to its rows, which are then the full grid; full: the rows stay */
    } origin[KD_FEATURES];  /* of the result's features */
} kd_derived;

/* KD_EUSAGE naming the option, what was asked for and what the parent has. */
kd_status kd_derive(kd_derived *d, const kd_recipe *parent, const kd_derive_options *o, kd_err *err);
void kd_derived_free(kd_derived *d);

#endif
