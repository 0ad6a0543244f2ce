/* View set: which (image, view) pairs a partial cache already has, in memory. Inside cache/ only. One thread. */
#ifndef KD_CACHE_VIEW_SET_H
#define KD_CACHE_VIEW_SET_H

#include <stdint.h>

#include "common/base/hash.h"

/* Zero-initialise. */
typedef struct kd_view_set {
    struct kd_view_slot *slot;
    size_t capacity, count;
} kd_view_set;

enum { KD_VIEW_ANY = -1 }; /* the view number under which an image itself is entered */

/* *added = 0 when it was there already. */
kd_status kd_view_set_add(kd_view_set *s, const kd_hash128 *image, int64_t view, int *added, kd_err *err);
int kd_view_set_has(const kd_view_set *s, const kd_hash128 *image, int64_t view);
void kd_view_set_free(kd_view_set *s);

#endif
