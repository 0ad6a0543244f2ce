#include "train/eval/classifier.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

typedef struct draw {
    uint64_t value;
    size_t index;
} draw;

static int by_value(const void *a, const void *b) {
    const draw *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* index: those of `fit` ascending, then the held out ones ascending. */
static void draw_split(size_t *index, draw *draws, unsigned char *held, size_t count, uint64_t seed) {
    size_t first = 0, second = count - count / 10;
    for (size_t i = 0; i < count; i++) {
        kd_rng r = kd_rng_make(seed, i, 0, KD_RNG_SPLIT);
        uint64_t high = kd_rng_u32(&r);
        draws[i] = (draw){high << 32 | kd_rng_u32(&r), i};
    }
    qsort(draws, count, sizeof *draws, by_value);
    for (size_t i = 0; i < count / 10; i++)
        held[draws[i].index] = 1;
    for (size_t i = 0; i < count; i++)
        index[held[i] ? second++ : first++] = i;
}

static kd_status draw_parts(kd_parts *p, size_t count, uint64_t seed, kd_err *err) {
    draw *draws = NULL;
    unsigned char *held = NULL;
    kd_status status = kd_alloc_array(&draws, count, sizeof *draws, err);
    if (status == KD_OK)
        status = kd_alloc_array(&held, count, 1, err);
    if (status == KD_OK)
        draw_split(p->index, draws, held, count, seed);
    kd_free(draws);
    kd_free(held);
    return status;
}

static kd_status count_lacking(kd_parts *p, size_t classes, kd_err *err) {
    unsigned char *seen = NULL;
    KD_TRY(kd_alloc_array(&seen, classes, 1, err));
    for (size_t i = 0; i < p->fit.count; i++)
        seen[p->fit.label[i]] = 1;
    for (size_t c = 0; c < classes; c++)
        p->lacking += !seen[c];
    kd_free(seen);
    if (p->lacking > 0)
        kd_log(KD_LOG_WARN, "%zu of %zu classes have no image in the nine tenths of the training set whose fits choose: held-out images of theirs count as wrong whatever is tried", p->lacking, classes);
    return KD_OK;
}

kd_status kd_parts_make(kd_parts *p, const kd_knn_data *train, size_t width, size_t classes, uint64_t seed, kd_err *err) {
    const size_t count = train->count, fits = count - count / 10;
    if (count < 10)
        return kd_fail(err, KD_EUSAGE, "%zu training images: at least 10 are needed to hold out a tenth that chooses", count);
    KD_TRY(kd_alloc_array(&p->index, count, sizeof *p->index, err));
    KD_TRY(kd_alloc_array(&p->features, count, width * sizeof *p->features, err));
    KD_TRY(kd_alloc_array(&p->label, count, sizeof *p->label, err));
    KD_TRY(draw_parts(p, count, seed, err));
    for (size_t i = 0; i < count; i++) {
        memcpy(p->features + i * width, train->features + p->index[i] * width, width * sizeof *p->features);
        p->label[i] = train->label[p->index[i]];
    }
    p->fit = (kd_knn_data){p->features, p->label, fits};
    p->choose = (kd_knn_data){p->features + fits * width, p->label + fits, count - fits};
    return count_lacking(p, classes, err);
}

void kd_parts_free(kd_parts *p) {
    kd_free(p->index);
    kd_free(p->features);
    kd_free(p->label);
    *p = (kd_parts){0};
}

void kd_top_classes(int32_t top[KD_TOP], const double *score, size_t classes) {
    int filled = 0;
    for (size_t c = 0; c < classes; c++) {
        if (score[c] == -HUGE_VAL || (filled == KD_TOP && !(score[c] > score[top[KD_TOP - 1]])))
            continue;
        int at = filled < KD_TOP ? filled++ : KD_TOP - 1;
        for (; at > 0 && score[c] > score[top[at - 1]]; at--)
            top[at] = top[at - 1];
        top[at] = (int32_t)c;
    }
    while (filled < KD_TOP)
        top[filled++] = -2; /* never equal to a label */
}

kd_shares kd_top_shares(const int32_t *top, const int32_t *label, size_t count) {
    size_t right1 = 0, right5 = 0;
    KD_ASSERT(count > 0);
    for (size_t i = 0; i < count; i++) {
        right1 += top[i * KD_TOP] == label[i];
        for (size_t rank = 0; rank < KD_TOP; rank++)
            right5 += top[i * KD_TOP + rank] == label[i];
    }
    return (kd_shares){(double)right1 / (double)count, (double)right5 / (double)count};
}
