/* Student maps: how large the feature map of a student is, which decides what adjoint target serves it. kd-cache can't ask kernels/nn, which builds the networks; tests/unit/test_student_map.c
 * holds this rule to what they build.
 *
 *     KD_TRY(kd_student_map(&map, "resnet18", 224, 224, err));           // 7 x 7 */
#ifndef KD_CACHE_STUDENT_MAP_H
#define KD_CACHE_STUDENT_MAP_H

#include "common/tensor/target.h"

typedef struct kd_map_size {
    int h, w;
} kd_map_size;

/* The map of a student by its name (kernels/nn/models.h) that sees views of height x width pixels: CNNs have a stride of 32, rounded up (ConvNeXt: down; YOLO: multiples of 32 only), ViTs that of their patch. KD_EUSAGE: not a student's name
 * (the nearest is given), or a size that this student can't have. */
kd_status kd_student_map(kd_map_size *map, const char *name, int height, int width, kd_err *err);

/* Names of students to show to people: item i, or NULL behind the last. A name stands for all of its kind: "dinov2_wW_dD". */
const char *kd_student_example(size_t i);

/* The form of a grid_h x grid_w grid of patches that serves a student of this map best for its bytes: adjoint where the map has fewer points than the grid, else full. */
kd_target kd_student_target(const kd_map_size *map, int grid_h, int grid_w);

#endif
