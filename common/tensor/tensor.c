#include "common/tensor/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

size_t kd_tensor_numel(const kd_tensor *t)
{
    size_t n = 1;
    KD_ASSERT(t->rank >= 0 && t->rank <= KD_MAX_RANK);
    for (int i = 0; i < t->rank; i++) {
        int fits = t->shape[i] >= 0 && kd_mul_size(n, (size_t)t->shape[i], &n);
        KD_ASSERT(fits);
    }
    return n;
}

const char *kd_shape_text(const int64_t *shape, int rank, char *buf, size_t cap)
{
    size_t used = (size_t)snprintf(buf, cap, "[");
    for (int i = 0; i < rank && used < cap; i++)
        used += (size_t)snprintf(buf + used, cap - used, "%s%" PRId64, i ? ", " : "", shape[i]);
    if (used < cap)
        snprintf(buf + used, cap - used, "]");
    return buf;
}

int kd_shape_equal(const int64_t *a, int rank_a, const int64_t *b, int rank_b)
{
    return rank_a == rank_b && (rank_a == 0 || memcmp(a, b, (size_t)rank_a * sizeof *a) == 0);
}
