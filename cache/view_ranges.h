/* View ranges: the views that an option such as --views 0-3,6 chooses. Inside cache/ only. Pure functions. */
#ifndef KD_CACHE_VIEW_RANGES_H
#define KD_CACHE_VIEW_RANGES_H

#include <stdint.h>

#include "common/base/err.h"

enum { KD_MAX_VIEW_RANGES = 64 };

/* Ranges in any order; they may overlap. None: every view. Zero-initialise. */
typedef struct kd_view_ranges {
    struct { uint32_t first, last; } range[KD_MAX_VIEW_RANGES]; /* both included */
    int count;
} kd_view_ranges;

/* "6", "0-3", "0-3,6". NULL: every view. KD_EUSAGE naming `what` ("--views") and what was expected. */
kd_status kd_view_ranges_parse(kd_view_ranges *v, const char *text, const char *what, kd_err *err);
int kd_view_ranges_have(const kd_view_ranges *v, uint32_t view);

#endif
