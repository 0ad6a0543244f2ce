#include "train/eval/agreement.h"

#include "common/base/mem.h"
#include "train/eval/neighbours.h"

/* nearest[n][k + 1]: one more than wanted, because an image finds itself too, unless as many of its equals come before it. */
static kd_status find(kd_neighbour **nearest, kd_backend *b, const float *features, size_t width, size_t n, size_t k, kd_err *err) {
    KD_TRY(kd_alloc_array(nearest, n, (k + 1) * sizeof **nearest, err));
    return kd_neighbours_find(*nearest, b, &(kd_neighbours_task){features, features, n, n, width, (int)k + 1}, err);
}

/* Of k + 1 neighbours those k that aren't image i itself, to the front. */
static void leave_out(kd_neighbour *list, size_t k, size_t i) {
    size_t kept = 0;
    for (size_t x = 0; x <= k && kept < k; x++)
        if (list[x].index != i)
            list[kept++] = list[x];
}

static size_t in_common(const kd_neighbour *a, const kd_neighbour *b, size_t k) {
    size_t count = 0;
    for (size_t x = 0; x < k; x++)
        for (size_t y = 0; y < k; y++)
            count += a[x].index == b[y].index;
    return count;
}

kd_status kd_agreement(double *share, double *each, kd_backend *b, const float *teacher, size_t teacher_width, const float *student, size_t student_width, size_t n, int k, kd_err *err) {
    KD_ASSERT(n >= 2 && k >= 1);
    size_t most = n > 2 ? n - 2 : 1; /* with all others as neighbours there would be nothing to tell */
    size_t used = (size_t)k < most ? (size_t)k : most, kept = 0;
    kd_neighbour *of_teacher = NULL, *of_student = NULL;
    kd_status status = find(&of_teacher, b, teacher, teacher_width, n, used, err);
    if (status == KD_OK)
        status = find(&of_student, b, student, student_width, n, used, err);
    for (size_t i = 0; i < n && status == KD_OK; i++) {
        kd_neighbour *x = of_teacher + i * (used + 1), *y = of_student + i * (used + 1);
        leave_out(x, used, i);
        leave_out(y, used, i);
        size_t both = in_common(x, y, used);
        kept += both;
        if (each != NULL)
            each[i] = (double)both / (double)used;
    }
    *share = (double)kept / ((double)n * (double)used);
    kd_free(of_teacher);
    kd_free(of_student);
    return status;
}

int kd_agreement_neighbours(size_t n, int k) {
    size_t quarter = (n - 1) / 4;
    return quarter < 1 ? 1 : quarter < (size_t)k ? (int)quarter : k;
}
