#include "common/tensor/feature.h"

#include "common/base/err.h"

const char *kd_feature_name(kd_feature f)
{
    static const char *const name[KD_FEATURES] = {"cls", "patch", "registers", "mean", "patch2", "patch3", "patch4"};
    return (unsigned)f < KD_FEATURES ? name[f] : "unknown";
}

kd_feature kd_patch_feature(int target)
{
    KD_ASSERT(target >= 0 && target < KD_MAX_TARGETS);
    return target == 0 ? KD_FEATURE_PATCH : (kd_feature)(KD_FEATURE_PATCH2 + target - 1);
}

int kd_feature_target(kd_feature f)
{
    return f == KD_FEATURE_PATCH ? 0 : f >= KD_FEATURE_PATCH2 && f < KD_FEATURES ? (int)f - (int)KD_FEATURE_PATCH2 + 1 : -1;
}

kd_feature kd_feature_output(kd_feature f, int *target)
{
    int t = kd_feature_target(f);
    *target = t < 0 ? 0 : t;
    return t < 0 ? f : KD_FEATURE_PATCH;
}

const char *kd_square_name(int target)
{
    static const char *const name[KD_MAX_TARGETS] = {"square", "square2", "square3", "square4"};
    KD_ASSERT(target >= 0 && target < KD_MAX_TARGETS);
    return name[target];
}
