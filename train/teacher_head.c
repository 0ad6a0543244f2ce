#include "train/teacher_head.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

static int is_matrix(const kd_tensor *t, int width) {
    return t->rank == 2 && t->shape[1] == width && t->shape[0] >= 2 && t->shape[0] <= 1 << 20;
}

/* What timm, DINOv2 with its linear head, Hugging Face and torchvision call a classifier. */
static int is_called_classifier(const char *name) {
    static const char *const known[] = {"head.weight", "linear_head.weight", "classifier.weight", "fc.weight"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(name, known[i]) == 0)
            return 1;
    return 0;
}

/* Place of the only matrix [classes, width]; of several, as a whole network has, of the one that is called a classifier. */
static kd_status find_matrix(const kd_weights *w, int width, int *at, kd_err *err) {
    char have[64], seen[300] = "";
    int second = -1, called = 0;
    *at = -1;
    for (int i = 0; i < kd_weights_count(w); i++) {
        kd_tensor t = kd_weights_info(w, i);
        if (t.rank == 2 && strlen(seen) < 200)
            snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s%.60s %s", seen[0] != '\0' ? ", " : "", t.name, kd_shape_text(t.shape, t.rank, have, sizeof have));
        if (!is_matrix(&t, width))
            continue;
        int better = is_called_classifier(t.name);
        if (better > called || *at < 0) {
            *at = i;
            called = better;
            second = -1;
        } else if (better == called) {
            second = i;
        }
    }
    if (second >= 0)
        return kd_fail(err, KD_EUSAGE, "--teacher-head %s: %s and %s are both matrices [classes, %d]; give a file with the classifier alone", kd_weights_path(w), kd_weights_info(w, *at).name,
                       kd_weights_info(w, second).name, width);
    if (*at < 0)
        return kd_fail(err, KD_EUSAGE, "--teacher-head %s: no tensor has the shape [classes, %d] that a classifier over the cached CLS features has (matrices there: %s)", kd_weights_path(w), width,
                       seen[0] != '\0' ? seen : "none");
    return KD_OK;
}

/* The bias beside a matrix "x.weight": -1 when there is none. */
static int find_bias(const kd_weights *w, const char *matrix) {
    char name[300];
    size_t n = strlen(matrix), end = strlen("weight");
    if (n < end || strcmp(matrix + n - end, "weight") != 0 || snprintf(name, sizeof name, "%.*sbias", (int)(n - end), matrix) >= (int)sizeof name)
        return -1;
    return kd_weights_find(w, name);
}

static kd_status hash_values(kd_teacher_head *h, kd_err *err) {
    kd_sha256_ctx *c = kd_sha256_begin();
    if (c == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for --teacher-head");
    kd_sha256_update(c, h->weight, (size_t)h->classes * (size_t)h->width * sizeof *h->weight);
    kd_sha256_update(c, h->bias, (size_t)h->classes * sizeof *h->bias);
    h->sha = kd_sha256_final(c);
    return KD_OK;
}

static kd_status read_head(kd_teacher_head *h, const kd_weights *w, int width, kd_err *err) {
    int at;
    KD_TRY(find_matrix(w, width, &at, err));
    kd_tensor t = kd_weights_info(w, at);
    int bias = find_bias(w, t.name);
    h->classes = (int)t.shape[0];
    h->width = width;
    KD_TRY(kd_alloc_array(&h->weight, (size_t)h->classes * (size_t)width, sizeof(float), err));
    KD_TRY(kd_alloc_array(&h->bias, (size_t)h->classes, sizeof(float), err));
    KD_TRY(kd_weights_read_f32(w, at, h->weight, (size_t)h->classes * (size_t)width, err));
    kd_tensor b = bias >= 0 ? kd_weights_info(w, bias) : (kd_tensor){0};
    if (bias >= 0 && (b.rank != 1 || b.shape[0] != h->classes))
        return kd_fail(err, KD_EUSAGE, "--teacher-head %s: %s has another length than the %d classes of %s", kd_weights_path(w), b.name, h->classes, t.name);
    return bias >= 0 ? kd_weights_read_f32(w, bias, h->bias, (size_t)h->classes, err) : KD_OK;
}

kd_status kd_teacher_head_open(kd_teacher_head **out, const char *path, int width, kd_err *err) {
    kd_weights *w = NULL;
    kd_teacher_head *h;
    *out = NULL;
    KD_TRY(kd_alloc_array(&h, 1, sizeof *h, err));
    kd_status status = kd_weights_open(&w, path, err);
    if (status == KD_OK)
        status = read_head(h, w, width, err);
    kd_weights_close(w);
    if (status == KD_OK)
        status = hash_values(h, err);
    if (status != KD_OK) {
        kd_teacher_head_close(h);
        return status;
    }
    *out = h;
    return KD_OK;
}

void kd_teacher_head_close(kd_teacher_head *h) {
    if (h == NULL)
        return;
    kd_free(h->weight);
    kd_free(h->bias);
    kd_free(h);
}

void kd_teacher_head_logits(const kd_teacher_head *h, const float *cls, float *logits) {
    for (int k = 0; k < h->classes; k++) {
        const float *w = h->weight + (size_t)k * (size_t)h->width;
        double sum = (double)h->bias[k];
        for (int c = 0; c < h->width; c++)
            sum += (double)w[c] * (double)cls[c];
        logits[k] = (float)sum;
    }
}
