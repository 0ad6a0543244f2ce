/* Place: whether a cache that is made from others can be written where it is asked for; asked before the first byte. Inside cache/ only. Pure functions. */
#ifndef KD_CACHE_PLACE_H
#define KD_CACHE_PLACE_H

#include <stdint.h>

#include "common/base/err.h"

/* KD_EUSAGE: out is empty, or on a network file system, where a cache that is being written is neither safe nor quick, and force is 0. */
kd_status kd_place_check(const char *out, int force, kd_err *err);
/* KD_ENOSPACE: `need` bytes are more than 80 % of what is free there. advice: what else than a larger disk helps (", or ..."), or "". */
kd_status kd_place_check_room(const char *out, uint64_t need, const char *advice, kd_err *err);

#endif
