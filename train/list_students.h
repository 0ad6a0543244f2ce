/* The students that kd-train knows, for --list-students: what each costs and gives, counted from its graph. */
#ifndef KD_TRAIN_LIST_STUDENTS_H
#define KD_TRAIN_LIST_STUDENTS_H

#include "common/base/err.h"

/* A table on stdout or, with json, one object per line:
 *     {"student", "library", "parameters", "flops", "flops_size", "width", "multiple", "smallest", "only", "maps_224": [{"tap", "h", "w", "channels"}, ..]}
 * parameters: trained ones, without heads and classifier. flops: one image forward at the library's usual size, 2 per multiply-add, matrix work only. width: of the pooled feature and the last map.
 * A side is a multiple of `multiple` from `smallest` on; `only`: without --init it must be this one (0: any). maps_224: at 224 px, of every resolution the deepest map. KD_EFAIL: memory. */
kd_status kd_list_students(int json, kd_err *err);

#endif
