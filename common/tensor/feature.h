/* Features: the words for what a teacher gives of a view and what a cache stores of it. Used by whoever makes, stores or learns features. Pure functions. */
#ifndef KD_COMMON_TENSOR_FEATURE_H
#define KD_COMMON_TENSOR_FEATURE_H

/* cls: the class token. patch: the patch tokens, in the form of the first patch target; patch2 to patch4 in that of the others. registers: the register (storage) tokens.
 * mean: the mean of the patch tokens. */
typedef enum kd_feature {
    KD_FEATURE_CLS = 0, KD_FEATURE_PATCH = 1, KD_FEATURE_REGISTERS = 2, KD_FEATURE_MEAN = 3,
    KD_OUTPUTS = 4, /* features below this are outputs of a teacher; the others are further forms of its patches */
    KD_FEATURE_PATCH2 = 4, KD_FEATURE_PATCH3 = 5, KD_FEATURE_PATCH4 = 6, KD_FEATURES = 7
} kd_feature;
const char *kd_feature_name(kd_feature f); /* "cls", "patch", "registers", "mean", "patch2", ..: also the names of a cache's databases */

/* The feature that holds patch target i, and the inverse: -1 when f isn't a patch target. */
enum { KD_MAX_TARGETS = 4 };
kd_feature kd_patch_feature(int target);
int kd_feature_target(kd_feature f);
/* The teacher's output that a feature is made from; *target: of patches which of the targets, else 0. */
kd_feature kd_feature_output(kd_feature f, int *target);
const char *kd_square_name(int target); /* "square", "square2", ..: what |t|^2 of adjoint target i is called where features are written out */

/* Layers of a teacher that can be chosen together. */
enum { KD_MAX_LAYERS = 64 };

#endif
