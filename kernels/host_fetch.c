/* Downloads in two halves where there is nothing to overlap: the first half copies. */
#include <string.h>

#include "common/base/mem.h"
#include "kernels/backend.h"

struct kd_fetch {
    size_t capacity;
    void *data;
};

kd_status kd_host_fetch_create(kd_backend *b, kd_fetch **out, size_t capacity, kd_err *err) {
    (void)b;
    kd_fetch *f = NULL;
    KD_TRY(kd_alloc_array(&f, 1, sizeof *f, err));
    f->capacity = capacity;
    kd_status status = kd_alloc_array(&f->data, capacity, 1, err);
    if (status != KD_OK) {
        kd_free(f);
        return status;
    }
    *out = f;
    return KD_OK;
}

void kd_host_fetch_destroy(kd_backend *b, kd_fetch *f) {
    (void)b;
    if (f)
        kd_free(f->data);
    kd_free(f);
}

kd_status kd_host_fetch_begin(kd_backend *b, kd_fetch *f, const void *src, size_t bytes, kd_err *err) {
    (void)b, (void)err;
    KD_ASSERT(bytes <= f->capacity);
    if (bytes > 0)
        memcpy(f->data, src, bytes);
    return KD_OK;
}

kd_status kd_host_fetch_end(kd_backend *b, kd_fetch *f, const void **data, kd_err *err) {
    (void)b, (void)err;
    *data = f->data;
    return KD_OK;
}
