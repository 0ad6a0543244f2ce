#include "kernels/cuda/transfer.h"

enum { SLOTS = 4 };
static const size_t SLOT_BYTES = (size_t)16 << 20;

typedef struct slot {
    void *pinned, *device;
    cudaEvent_t copied; /* pinned memory -> device slot is done */
    cudaEvent_t taken;  /* device slot -> its destination is done: the slot is free */
} slot;

struct kd_transfer {
    kd_cuda *b;
    cudaStream_t in, out;
    slot slot[SLOTS];
    int next;
};

struct kd_fetch {
    size_t capacity;
    void *pinned, *device;
    cudaEvent_t ready; /* src -> device buffer is done */
    cudaEvent_t done;  /* device buffer -> pinned buffer is done */
};

static kd_status create_event(cudaEvent_t *out, kd_err *err) {
    return kd_cuda_check(cudaEventCreateWithFlags(out, cudaEventDisableTiming), "cuda: an event", err);
}

static kd_status create_pair(void **pinned, void **device, size_t bytes, kd_err *err) {
    KD_TRY(kd_cuda_check(cudaMallocHost(pinned, bytes), "cuda: pinned memory for copies", err));
    return kd_cuda_check(cudaMalloc(device, bytes), "cuda: device memory for copies", err);
}

static kd_status create_slots(kd_transfer *t, kd_err *err) {
    KD_TRY(kd_cuda_check(cudaStreamCreateWithFlags(&t->in, cudaStreamNonBlocking), "cuda: a stream for uploads", err));
    KD_TRY(kd_cuda_check(cudaStreamCreateWithFlags(&t->out, cudaStreamNonBlocking), "cuda: a stream for downloads", err));
    for (int i = 0; i < SLOTS; i++) {
        KD_TRY(create_pair(&t->slot[i].pinned, &t->slot[i].device, SLOT_BYTES, err));
        KD_TRY(create_event(&t->slot[i].copied, err));
        KD_TRY(create_event(&t->slot[i].taken, err));
        KD_TRY(kd_cuda_check(cudaEventRecord(t->slot[i].taken, t->b->stream), "cuda: an event", err));
    }
    return KD_OK;
}

kd_status kd_transfer_create(kd_transfer **out, kd_cuda *b, kd_err *err) {
    kd_transfer *t = NULL;
    KD_TRY(kd_alloc_array(&t, 1, sizeof *t, err));
    t->b = b;
    kd_status status = create_slots(t, err);
    if (status != KD_OK) {
        kd_transfer_destroy(t);
        return status;
    }
    *out = t;
    return KD_OK;
}

static void destroy_event(cudaEvent_t e) {
    if (e != NULL)
        cudaEventDestroy(e);
}

static void destroy_pair(void *pinned, void *device) {
    if (pinned != NULL)
        cudaFreeHost(pinned);
    if (device != NULL)
        cudaFree(device);
}

void kd_transfer_destroy(kd_transfer *t) {
    if (!t)
        return;
    for (int i = 0; i < SLOTS; i++) {
        destroy_pair(t->slot[i].pinned, t->slot[i].device);
        destroy_event(t->slot[i].copied);
        destroy_event(t->slot[i].taken);
    }
    if (t->in != NULL)
        cudaStreamDestroy(t->in);
    if (t->out != NULL)
        cudaStreamDestroy(t->out);
    kd_free(t);
}

/* ---- to the device ---- */

static cudaError_t upload_piece(kd_transfer *t, slot *s, void *dst, const void *src, size_t bytes) {
    cudaError_t e = cudaEventSynchronize(s->taken); /* until the slot's last piece has reached its destination */
    if (e != cudaSuccess)
        return e;
    memcpy(s->pinned, src, bytes);
    if ((e = cudaMemcpyAsync(s->device, s->pinned, bytes, cudaMemcpyHostToDevice, t->in)) != cudaSuccess)
        return e;
    if ((e = cudaEventRecord(s->copied, t->in)) != cudaSuccess)
        return e;
    if ((e = cudaStreamWaitEvent(t->b->stream, s->copied, 0)) != cudaSuccess)
        return e;
    if ((e = cudaMemcpyAsync(dst, s->device, bytes, cudaMemcpyDeviceToDevice, t->b->stream)) != cudaSuccess)
        return e;
    return cudaEventRecord(s->taken, t->b->stream);
}

kd_status kd_transfer_upload(kd_transfer *t, void *dst, const void *src, size_t bytes, kd_err *err) {
    for (size_t at = 0; at < bytes; at += SLOT_BYTES) {
        size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
        KD_TRY(kd_cuda_check(upload_piece(t, &t->slot[t->next], (char *)dst + at, (const char *)src + at, n), "cuda: a copy to the device", err));
        t->next = (t->next + 1) % SLOTS;
    }
    return KD_OK;
}

/* ---- from the device ---- */

static cudaError_t download_piece(kd_transfer *t, slot *s, void *dst, const void *src, size_t bytes) {
    cudaError_t e = cudaEventSynchronize(s->taken);
    if (e != cudaSuccess)
        return e;
    if ((e = cudaMemcpyAsync(s->pinned, src, bytes, cudaMemcpyDeviceToHost, t->b->stream)) != cudaSuccess)
        return e;
    if ((e = cudaStreamSynchronize(t->b->stream)) != cudaSuccess)
        return e;
    memcpy(dst, s->pinned, bytes);
    return cudaSuccess;
}

kd_status kd_transfer_download(kd_transfer *t, void *dst, const void *src, size_t bytes, kd_err *err) {
    for (size_t at = 0; at < bytes; at += SLOT_BYTES) {
        size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
        KD_TRY(kd_cuda_check(download_piece(t, &t->slot[0], (char *)dst + at, (const char *)src + at, n), "cuda: a copy from the device", err));
    }
    return KD_OK;
}

static kd_status create_fetch(kd_fetch *f, kd_err *err) {
    KD_TRY(create_pair(&f->pinned, &f->device, f->capacity, err));
    KD_TRY(create_event(&f->ready, err));
    return create_event(&f->done, err);
}

kd_status kd_transfer_fetch_create(kd_transfer *t, kd_fetch **out, size_t capacity, kd_err *err) {
    kd_fetch *f = NULL;
    KD_TRY(kd_alloc_array(&f, 1, sizeof *f, err));
    f->capacity = capacity;
    kd_status status = create_fetch(f, err);
    if (status != KD_OK) {
        kd_transfer_fetch_destroy(t, f);
        return status;
    }
    *out = f;
    return KD_OK;
}

void kd_transfer_fetch_destroy(kd_transfer *t, kd_fetch *f) {
    if (!f)
        return;
    cudaStreamSynchronize(t->out); /* a copy into its memory may be under way */
    destroy_pair(f->pinned, f->device);
    destroy_event(f->ready);
    destroy_event(f->done);
    kd_free(f);
}

static cudaError_t begin_fetch(kd_transfer *t, kd_fetch *f, const void *src, size_t bytes) {
    cudaError_t e = cudaMemcpyAsync(f->device, src, bytes, cudaMemcpyDeviceToDevice, t->b->stream);
    if (e != cudaSuccess)
        return e;
    if ((e = cudaEventRecord(f->ready, t->b->stream)) != cudaSuccess)
        return e;
    if ((e = cudaStreamWaitEvent(t->out, f->ready, 0)) != cudaSuccess)
        return e;
    if ((e = cudaMemcpyAsync(f->pinned, f->device, bytes, cudaMemcpyDeviceToHost, t->out)) != cudaSuccess)
        return e;
    return cudaEventRecord(f->done, t->out);
}

kd_status kd_transfer_fetch_begin(kd_transfer *t, kd_fetch *f, const void *src, size_t bytes, kd_err *err) {
    KD_ASSERT(bytes <= f->capacity);
    return kd_cuda_check(begin_fetch(t, f, src, bytes), "cuda: a copy from the device", err);
}

kd_status kd_transfer_fetch_end(kd_transfer *t, kd_fetch *f, const void **data, kd_err *err) {
    (void)t;
    *data = f->pinned;
    return kd_cuda_check(cudaEventSynchronize(f->done), "cuda: a copy from the device", err);
}
