/* Copies between host and device that don't stop the device: through pinned memory, on streams of their own, into and out of device memory that the compute stream doesn't use.
 *
 *     upload:  host --memcpy--> pinned slot --copy stream--> device slot --compute stream--> dst
 *     fetch:   src --compute stream--> device buffer --copy stream--> pinned buffer
 *
 * So an upload waits for its own copy's turn, never for the work that is queued; the compute stream only does the short copy inside the device, in its order. */
#ifndef KD_KERNELS_CUDA_TRANSFER_H
#define KD_KERNELS_CUDA_TRANSFER_H

#include "kernels/cuda/cuda.h"

/* Borrows b, whose stream exists. */
kd_status kd_transfer_create(kd_transfer **out, kd_cuda *b, kd_err *err);
void kd_transfer_destroy(kd_transfer *t); /* accepts NULL */

/* src may be used again when it returns. In pieces of a slot's size. KD_EFAIL: memory, a failed copy. */
kd_status kd_transfer_upload(kd_transfer *t, void *dst, const void *src, size_t bytes, kd_err *err);
/* dst holds the bytes when it returns: waits for all queued work. */
kd_status kd_transfer_download(kd_transfer *t, void *dst, const void *src, size_t bytes, kd_err *err);

/* backend.h: fetch. */
kd_status kd_transfer_fetch_create(kd_transfer *t, kd_fetch **out, size_t capacity, kd_err *err);
void kd_transfer_fetch_destroy(kd_transfer *t, kd_fetch *f);
kd_status kd_transfer_fetch_begin(kd_transfer *t, kd_fetch *f, const void *src, size_t bytes, kd_err *err);
kd_status kd_transfer_fetch_end(kd_transfer *t, kd_fetch *f, const void **data, kd_err *err);

#endif
