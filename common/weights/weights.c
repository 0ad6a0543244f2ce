/* The public face of weight files: which container it is, and from entries to numbers. */
#include "common/weights/weights.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "common/weights/container.h"
#include "common/weights/unpickle.h"

/* -- what is this file ------------------------------------------------------------------------------------------------------- */

static int starts_with(const kd_map *m, const void *magic, size_t n)
{
    return m->size >= n && memcmp(m->data, magic, n) == 0;
}

/* Files that people pass by mistake, by their first bytes, with what to do. */
static const struct foreign {
    const char *magic;
    size_t size;
    const char *what;
} foreign_files[] = {
    {"\x80\x02", 2, "is a bare Python pickle, not a .pth made by torch.save; save the tensors with torch.save or safetensors"},
    {"\x80\x03", 2, "is a bare Python pickle, not a .pth made by torch.save; save the tensors with torch.save or safetensors"},
    {"\x80\x04", 2, "is a bare Python pickle, not a .pth made by torch.save; save the tensors with torch.save or safetensors"},
    {"\x80\x05", 2, "is a bare Python pickle, not a .pth made by torch.save; save the tensors with torch.save or safetensors"},
    {"version https://git-lfs", 23, "is a Git LFS pointer, not the weights; fetch the real file with `git lfs pull`"},
    {"<!DOCTYPE", 9, "is a web page, not a weight file; download it again with the direct link"},
    {"<!doctype", 9, "is a web page, not a weight file; download it again with the direct link"},
    {"<html", 5, "is a web page, not a weight file; download it again with the direct link"},
    {"\x1f\x8b", 2, "is gzip-compressed; unpack it first (gunzip)"},
    {"\x28\xb5\x2f\xfd", 4, "is zstd-compressed; unpack it first (unzstd)"},
    {"\x89HDF", 4, "is an HDF5 file; only .safetensors and PyTorch .pth are read"},
    {"GGUF", 4, "is a GGUF file; only .safetensors and PyTorch .pth are read"},
    {"\x93NUMPY", 6, "is a NumPy array; only .safetensors and PyTorch .pth are read"},
};

static kd_status refuse_foreign(const char *path, const kd_map *m, kd_err *err)
{
    if (m->size == 0)
        return kd_fail(err, KD_EFAIL, "%s: the file is empty (0 bytes); download or copy it again", path);
    for (size_t i = 0; i < sizeof foreign_files / sizeof foreign_files[0]; i++)
        if (starts_with(m, foreign_files[i].magic, foreign_files[i].size))
            return kd_fail(err, KD_EUSAGE, "%s: the file %s", path, foreign_files[i].what);
    if (m->size >= 262 && memcmp(m->data + 257, "ustar", 5) == 0)
        return kd_fail(err, KD_EUSAGE,
                       "%s: the file is a tar archive (or a tar .pth from before PyTorch 0.1.12); unpack it, or re-save it where you trust it: "
                       "python -c \"import torch; torch.save(torch.load('OLD.pth', map_location='cpu'), 'NEW.pth')\"", path);
    return KD_OK;
}

/* JSON text: '{' first, and not a .safetensors whose header size happens to look like that (sizes have zero bytes, text has none). */
static int looks_like_json(const kd_map *m)
{
    size_t at = 0;
    while (at < m->size && at < 8 && memchr(" \t\r\n", m->data[at], 4) != NULL)
        at++;
    return at < m->size && m->data[at] == '{' && memchr(m->data, '\0', m->size < 8 ? m->size : 8) == NULL;
}

/* The first look at the mapped bytes runs under kd_io_guard: a file on a broken mount must not end in a signal. */
typedef struct open_job {
    kd_weights *w;
    enum { SAFETENSORS, ZIP, LEGACY, INDEX } kind;
} open_job;

static kd_status sniff(void *arg, kd_err *err)
{
    open_job *job = arg;
    kd_weights *w = job->w;
    if (starts_with(&w->map, "PK\x03\x04", 4) || starts_with(&w->map, "PK\x05\x06", 4))
        job->kind = ZIP;
    else if (kd_legacy_pth_sniff(w->map.data, w->map.size))
        job->kind = LEGACY;
    else if (looks_like_json(&w->map))
        job->kind = INDEX;
    return job->kind == SAFETENSORS ? refuse_foreign(w->path, &w->map, err) : KD_OK;
}

kd_status kd_weights_guarded(const kd_weights *w, kd_status (*fn)(void *, kd_err *), void *arg, kd_err *err)
{
    kd_status status = kd_io_guard(w->map.data, w->map.size, w->path, fn, arg, err);
    if (status == KD_EDAMAGED) {
        status = KD_EFAIL;
        if (err != NULL)
            err->status = KD_EFAIL;
    }
    return status;
}

typedef struct copy_job {
    const uint8_t *from;
    void *to;
    size_t size;
} copy_job;

static kd_status copy_bytes(void *arg, kd_err *err)
{
    (void)err;
    const copy_job *job = arg;
    memcpy(job->to, job->from, job->size);
    return KD_OK;
}

kd_status kd_weights_copy(const kd_weights *w, size_t at, void *out, size_t n, kd_err *err)
{
    copy_job job = {w->map.data + at, out, n};
    KD_ASSERT(at <= w->map.size && n <= w->map.size - at);
    return kd_weights_guarded(w, copy_bytes, &job, err);
}

/* The text is copied out of the mapping first, so that the parser (which owns memory) never touches pages that may be gone. */
kd_status kd_weights_json_text(const kd_weights *w, const char *text, size_t n, json_t **out, kd_err *err)
{
    kd_status status = kd_json_parse(text, n, w->path, out, err);
    if (status == KD_EDAMAGED) { /* that is kd_json_parse's word for a bad cache; a bad weight file is a plain failure */
        status = KD_EFAIL;
        if (err != NULL)
            err->status = KD_EFAIL;
    }
    return status;
}

kd_status kd_weights_json(const kd_weights *w, size_t at, size_t n, json_t **out, kd_err *err)
{
    char *text = NULL;
    KD_TRY(kd_alloc_array(&text, n + 1, 1, err));
    kd_status status = kd_weights_copy(w, at, text, n, err);
    if (status == KD_OK)
        status = kd_weights_json_text(w, text, n, out, err);
    kd_free(text);
    return status;
}

static kd_status build_index(kd_weights *w, kd_err *err)
{
    KD_TRY(kd_name_map_create(&w->names, w->count, err));
    for (size_t i = 0; i < w->count; i++)
        if (kd_name_map_add(w->names, w->entries[i].name, (int)i) >= 0)
            return kd_fail(err, KD_EFAIL, "%s: two tensors are named '%s'; the file is damaged or was made by a faulty writer",
                           w->path, w->entries[i].name);
    return KD_OK;
}

/* The folder that holds path: "." for a bare name. NULL when memory is out. */
static const char *folder_of(kd_arena *arena, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return ".";
    return slash == path ? "/" : kd_arena_printf(arena, "%.*s", (int)(slash - path), path);
}

static kd_status open_container(kd_weights *w, int is_shard, kd_err *err)
{
    KD_TRY(kd_io_map(w->path, &w->map, err));
    open_job job = {w, SAFETENSORS};
    KD_TRY(kd_weights_guarded(w, sniff, &job, err));
    if (job.kind == INDEX && is_shard)
        return kd_fail(err, KD_EFAIL, "%s: is JSON, where an index names it as a shard with tensors; download the set again", w->path);
    switch (job.kind) {
    case SAFETENSORS: KD_TRY(kd_safetensors_parse(w, err)); break;
    case ZIP: KD_TRY(kd_pth_parse(w, err)); break;
    case LEGACY: KD_TRY(kd_legacy_pth_parse(w, err)); break;
    case INDEX: KD_TRY(kd_shards_open(w, err)); break;
    }
    kd_io_map_release(&w->map, 0, w->map.size); /* what was looked at: headers all over a large legacy file, for example */
    return build_index(w, err);
}

kd_status kd_weights_open_file(kd_weights **out, const char *path, int is_shard, kd_err *err)
{
    kd_weights *w = NULL;
    KD_TRY(kd_alloc_array(&w, 1, sizeof *w, err));
    pthread_mutex_init(&w->lock, NULL);
    w->arena = kd_arena_create();
    w->path = w->arena != NULL ? kd_arena_strdup(w->arena, path) : NULL;
    w->dir = w->path != NULL ? folder_of(w->arena, path) : NULL;
    kd_status status = w->dir != NULL ? open_container(w, is_shard, err)
                                      : kd_fail(err, KD_EFAIL, "%s: out of memory while opening the weight file", path);
    if (status == KD_OK)
        *out = w;
    else
        kd_weights_close(w);
    return status;
}

kd_status kd_weights_open(kd_weights **out, const char *path, kd_err *err)
{
    if (!kd_io_is_dir(path))
        return kd_weights_open_file(out, path, 0, err);
    const char *file = NULL;
    kd_arena *arena = kd_arena_create();
    if (arena == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening the weight file", path);
    kd_status status = kd_shards_choose(arena, path, &file, err);
    if (status == KD_OK)
        status = kd_weights_open_file(out, file, 0, err);
    kd_arena_destroy(arena);
    return status;
}

void kd_weights_close(kd_weights *w)
{
    if (w == NULL)
        return;
    for (int i = 0; i < w->shard_count; i++)
        kd_weights_close(w->shards[i]);
    kd_pth_close(w->pth);
    kd_name_map_destroy(w->names);
    json_decref(w->metadata);
    kd_io_unmap(&w->map);
    kd_arena_destroy(w->arena);
    pthread_mutex_destroy(&w->lock);
    kd_free(w);
}

/* -- descriptions ------------------------------------------------------------------------------------------------------------ */

const char *kd_weights_path(const kd_weights *w) { return w->path; }

const char *kd_weights_dir(const kd_weights *w) { return w->dir; }

int kd_weights_files(const kd_weights *w) { return w->shards != NULL ? w->shard_count : 1; }

const char *kd_weights_container(const kd_weights *w) { return w->shards != NULL ? w->shards[0]->container : w->container; }

kd_status kd_weights_set_container(kd_weights *w, const char *kind, const char *module, kd_err *err)
{
    if (module == NULL)
        w->container = kd_arena_printf(w->arena, "PyTorch .pth (%s)", kind);
    else if (module[0] == '\0')
        w->container = kd_arena_printf(w->arena, "PyTorch .pth (%s), a pickled module", kind);
    else
        w->container = kd_arena_printf(w->arena, "PyTorch .pth (%s), the pickled module under '%s'", kind, module);
    return w->container != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory while opening the weight file", w->path);
}

uint64_t kd_weights_bytes(const kd_weights *w)
{
    uint64_t bytes = w->map.size;
    for (int i = 0; i < w->shard_count; i++)
        bytes += w->shards[i]->map.size;
    return bytes;
}

int kd_weights_count(const kd_weights *w) { return (int)w->count; }

const json_t *kd_weights_metadata(const kd_weights *w) { return w->metadata; }

int kd_weights_find(const kd_weights *w, const char *name) { return kd_name_map_find(w->names, name); }

static const kd_weight_entry *entry_at(const kd_weights *w, int i)
{
    KD_ASSERT(i >= 0 && (size_t)i < w->count);
    return &w->entries[i];
}

kd_tensor kd_weights_info(const kd_weights *w, int i)
{
    const kd_weight_entry *e = entry_at(w, i);
    kd_tensor t = {.name = e->name, .dtype = e->dtype, .rank = e->rank, .data = NULL};
    memcpy(t.shape, e->shape, sizeof t.shape);
    return t;
}

kd_status kd_entry_set_numel(kd_weight_entry *e, const char *path, kd_err *err)
{
    int64_t n = 1;
    int empty = 0;
    for (int d = 0; d < e->rank; d++) {
        int64_t size = e->shape[d];
        if (size < 0)
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s': size %" PRId64 " of dimension %d is negative", path, e->name, size, d);
        if (size == 0) {
            empty = 1;
            continue;
        }
        if (n > KD_WEIGHTS_MAX_NUMEL / size)
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s' claims more than %" PRId64 " elements; the file is damaged", path, e->name,
                           KD_WEIGHTS_MAX_NUMEL);
        n *= size;
    }
    e->numel = empty ? 0 : (size_t)n;
    return KD_OK;
}

kd_status kd_entry_set_pickled(kd_weights *w, kd_weight_entry *e, const kd_pickle_tensor *t, uint64_t storage, kd_err *err)
{
    e->name = kd_arena_strdup(w->arena, t->name);
    if (e->name == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the names of its tensors", w->path);
    e->dtype = t->storage.dtype;
    e->rank = t->rank;
    memcpy(e->shape, t->shape, sizeof e->shape);
    memcpy(e->stride, t->stride, sizeof e->stride);
    e->offset = t->offset;
    e->storage = storage;
    return kd_entry_set_numel(e, w->path, err);
}

void kd_entry_set_dense_strides(kd_weight_entry *e)
{
    int64_t step = 1;
    for (int d = e->rank - 1; d >= 0; d--) {
        e->stride[d] = step;
        step *= e->shape[d] > 0 ? e->shape[d] : 1;
    }
}

kd_status kd_weights_check_metadata(const kd_weights *w, kd_err *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(w->metadata))
        return kd_fail(err, KD_EFAIL, "%s: its metadata isn't an object of strings", w->path);
    json_object_foreach (w->metadata, key, value)
        if (!json_is_string(value))
            return kd_fail(err, KD_EFAIL, "%s: its metadata entry '%s' isn't a string", w->path, key);
    return KD_OK;
}

kd_status kd_weights_check_strings(const char *path, const json_t *metadata, kd_err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach ((json_t *)metadata, key, value)
        if (!json_is_string(value))
            return kd_fail(err, KD_EFAIL, "%s: metadata '%s' isn't a string; a weight file's metadata are strings", path, key);
    return KD_OK;
}

/* -- from storage bytes to numbers ------------------------------------------------------------------------------------------- */

enum { GATHER_ELEMENTS = 4096, PIECE_ELEMENTS = 1 << 20 };

/* Where an element goes after conversion: f32 or i64, `n` at a time. */
typedef struct read_job {
    const kd_weights *w;
    const kd_weight_entry *e;
    float *f32;
    int64_t *i64;
} read_job;

static int64_t one_i64(const uint8_t *p, kd_dtype t)
{
    union { int16_t i16; int32_t i32; int64_t i64; } v = {.i64 = 0};
    memcpy(&v, p, kd_dtype_size(t));
    switch (t) {
    case KD_I8: return (int8_t)p[0];
    case KD_I16: return v.i16;
    case KD_I32: return v.i32;
    case KD_I64: return v.i64;
    default: return p[0]; /* KD_U8, KD_BOOL */
    }
}

static void convert(const read_job *job, size_t first, const void *src, size_t n)
{
    if (job->f32 != NULL) {
        kd_convert_to_f32(job->f32 + first, src, job->e->dtype, n);
        return;
    }
    size_t size = kd_dtype_size(job->e->dtype);
    for (size_t i = 0; i < n; i++)
        job->i64[first + i] = one_i64((const uint8_t *)src + i * size, job->e->dtype);
}

static int is_dense(const kd_weight_entry *e)
{
    int64_t step = 1;
    for (int d = e->rank - 1; d >= 0; d--) {
        if (e->shape[d] != 1 && e->stride[d] != step)
            return 0;
        step *= e->shape[d];
    }
    return 1;
}

/* Walks the view in row-major order and converts in pieces, through a staging buffer so that unaligned bytes are fine too. */
static void gather(const read_job *job, const uint8_t *storage)
{
    const kd_weight_entry *e = job->e;
    _Alignas(64) uint8_t staging[GATHER_ELEMENTS * 8];
    size_t size = kd_dtype_size(e->dtype), first = 0, held = 0;
    int64_t index[KD_MAX_RANK] = {0};
    int64_t at = e->offset;
    for (size_t i = 0; i < e->numel; i++) {
        memcpy(staging + held * size, storage + (size_t)at * size, size);
        if (++held == GATHER_ELEMENTS) {
            convert(job, first, staging, held);
            first += held;
            held = 0;
        }
        for (int d = e->rank - 1; d >= 0; d--) {
            at += e->stride[d];
            if (++index[d] < e->shape[d])
                break;
            at -= e->stride[d] * e->shape[d];
            index[d] = 0;
        }
    }
    convert(job, first, staging, held);
}

/* Elements from the view's first to its last, of a view that isn't empty. */
static size_t reach_of(const kd_weight_entry *e)
{
    int64_t last = 0;
    for (int d = 0; d < e->rank; d++)
        last += (e->shape[d] - 1) * e->stride[d];
    return (size_t)last + 1;
}

/* n dense elements; bytes that no element may be loaded from directly go through a staging buffer. */
static void convert_dense(const read_job *job, size_t first, const uint8_t *src, size_t n)
{
    _Alignas(64) uint8_t staging[GATHER_ELEMENTS * 8];
    size_t size = kd_dtype_size(job->e->dtype);
    if ((uintptr_t)src % size == 0) {
        convert(job, first, src, n);
        return;
    }
    for (size_t at = 0, piece; at < n; at += piece) {
        piece = n - at < GATHER_ELEMENTS ? n - at : GATHER_ELEMENTS;
        memcpy(staging, src + at * size, piece * size);
        convert(job, first + at, staging, piece);
    }
}

static kd_status read_storage(void *arg, const uint8_t *bytes, size_t bytes_size, kd_err *err)
{
    (void)bytes_size; /* the reader of the container has checked that the view lies inside */
    (void)err;
    const read_job *job = arg;
    const kd_weight_entry *e = job->e;
    if (is_dense(e))
        convert_dense(job, 0, bytes + (size_t)e->offset * kd_dtype_size(e->dtype), e->numel);
    else
        gather(job, bytes);
    return KD_OK;
}

/* What has been converted is given back at once: a file of many gigabytes must not become resident because its pages were read once. */
static kd_status read_mapped(void *arg, kd_err *err)
{
    (void)err;
    const read_job *job = arg;
    const kd_weight_entry *e = job->e;
    const kd_map *map = &job->w->map;
    size_t size = kd_dtype_size(e->dtype), start = (size_t)e->storage + (size_t)e->offset * size;
    if (!is_dense(e)) {
        gather(job, map->data + e->storage);
        kd_io_map_release(map, start, reach_of(e) * size);
        return KD_OK;
    }
    for (size_t first = 0, n; first < e->numel; first += n) {
        n = e->numel - first < PIECE_ELEMENTS ? e->numel - first : PIECE_ELEMENTS;
        convert_dense(job, first, map->data + start + first * size, n);
        kd_io_map_release(map, start + first * size, n * size);
    }
    return KD_OK;
}

static kd_status read_entry(read_job *job, size_t n, kd_err *err)
{
    const kd_weight_entry *e = job->e;
    if (n != e->numel) {
        char shape[128];
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s' has shape %s, that is %zu elements, where %zu were expected", job->w->path, e->name,
                       kd_shape_text(e->shape, e->rank, shape, sizeof shape), e->numel, n);
    }
    if (n == 0)
        return KD_OK;
    if (job->w->pth != NULL)
        return kd_pth_with_storage(job->w->pth, e->storage, (uint64_t)n * kd_dtype_size(e->dtype), read_storage, job, err);
    return kd_weights_guarded(job->w, read_mapped, job, err);
}

kd_status kd_weights_read_f32_any(const kd_weights *w, int i, float *out, size_t n, kd_err *err)
{
    const kd_weight_entry *e = entry_at(w, i);
    if (w->shards != NULL)
        return kd_weights_read_f32_any(w->shards[e->shard], (int)e->storage, out, n, err);
    read_job job = {.w = w, .e = e, .f32 = out};
    return read_entry(&job, n, err);
}

kd_status kd_weights_read_f32(const kd_weights *w, int i, float *out, size_t n, kd_err *err)
{
    const kd_weight_entry *e = entry_at(w, i);
    if (w->shards != NULL)
        return kd_weights_read_f32(w->shards[e->shard], (int)e->storage, out, n, err);
    KD_TRY(kd_weights_read_f32_any(w, i, out, n, err));
    size_t bad = kd_first_nonfinite(out, n);
    if (bad < n)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s' holds %s at element %zu of %zu; the weights are damaged or from a diverged run",
                       w->path, e->name, isnan(out[bad]) ? "NaN" : "infinity", bad, n);
    return KD_OK;
}

kd_status kd_weights_read_i64(const kd_weights *w, int i, int64_t *out, size_t n, kd_err *err)
{
    const kd_weight_entry *e = entry_at(w, i);
    if (w->shards != NULL)
        return kd_weights_read_i64(w->shards[e->shard], (int)e->storage, out, n, err);
    if (e->dtype == KD_F32 || e->dtype == KD_F16 || e->dtype == KD_BF16 || e->dtype == KD_F64)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s' is %s where integers were expected", w->path, e->name, kd_dtype_name(e->dtype));
    read_job job = {.w = w, .e = e, .i64 = out};
    return read_entry(&job, n, err);
}

/* -- identity ---------------------------------------------------------------------------------------------------------------- */

enum { HASH_CHUNK = 1 << 20 };

/* In pieces through a buffer: the hash owns memory, which must not happen while pages may turn out to be gone. */
static kd_status hash_mapped(const kd_weights *w, kd_sha256 *out, kd_err *err)
{
    uint8_t *buffer = NULL;
    kd_status status = KD_OK;
    KD_TRY(kd_alloc_array(&buffer, HASH_CHUNK, 1, err));
    kd_sha256_ctx *hash = kd_sha256_begin();
    if (hash == NULL)
        status = kd_fail(err, KD_EFAIL, "%s: out of memory for its SHA-256", w->path);
    for (size_t at = 0; status == KD_OK && at < w->map.size; at += HASH_CHUNK) {
        size_t n = w->map.size - at < HASH_CHUNK ? w->map.size - at : HASH_CHUNK;
        status = kd_weights_copy(w, at, buffer, n, err);
        kd_io_map_release(&w->map, at, n);
        if (status == KD_OK)
            kd_sha256_update(hash, buffer, n);
    }
    if (hash != NULL)
        *out = kd_sha256_final(hash);
    kd_free(buffer);
    return status;
}

kd_status kd_weights_sha256(kd_weights *w, kd_sha256 *out, kd_err *err)
{
    kd_status status = KD_OK;
    pthread_mutex_lock(&w->lock);
    if (!w->have_sha256) {
        status = w->shards != NULL ? kd_shards_sha256(w, &w->sha256, err) : hash_mapped(w, &w->sha256, err);
        w->have_sha256 = status == KD_OK;
    }
    if (status == KD_OK)
        *out = w->sha256;
    pthread_mutex_unlock(&w->lock);
    return status;
}
