/* The PyTorch .pth container: a zip with PREFIX/data.pkl (a pickle, see unpickle.h) and one stored entry PREFIX/data/KEY per storage.
 * The only file that knows libzip (pth_write.c needs none of it). libzip reads the central directory (ZIP64 included; torch's local headers have zero sizes) and compares
 * an entry's CRC-32 when it has been read to its end. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zip.h>

#include "common/weights/container.h"
#include "common/weights/unpickle.h"

enum { MAX_PREFIX = 300, MAX_ENTRIES = 2 * KD_WEIGHTS_MAX_TENSORS };

struct kd_pth {
    const char *path;
    zip_t *zip;
    kd_name_map *names; /* entry name -> index; libzip's own search is linear in some versions */
    uint64_t file_size;
    pthread_mutex_t lock; /* libzip handles belong to one thread at a time; also guards the three below */
    uint8_t *cached;      /* the storage that was read last, when other tensors may share it */
    uint64_t cached_index, cached_size;
};

/* -- entries ----------------------------------------------------------------------------------------------------------------- */

static kd_status zip_failure(const kd_pth *p, const char *what, zip_error_t *error, kd_err *err)
{
    return kd_fail(err, KD_EFAIL, "%s: %s can't be read from the zip container (%s); the file is truncated or damaged, copy it again", p->path,
                   what, zip_error_strerror(error));
}

/* torch stores entries uncompressed, so that none can be larger than the file: a promise that also stops zip bombs. */
static kd_status stat_entry(const kd_pth *p, uint64_t index, zip_stat_t *st, kd_err *err)
{
    const zip_uint64_t needed = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD | ZIP_STAT_CRC;
    zip_stat_init(st);
    if (zip_stat_index(p->zip, index, ZIP_FL_ENC_RAW, st) != 0 || (st->valid & needed) != needed)
        return zip_failure(p, "the directory", zip_get_error(p->zip), err);
    if (st->comp_method != ZIP_CM_STORE || st->encryption_method != ZIP_EM_NONE)
        return kd_fail(err, KD_EFAIL, "%s: entry '%s' is compressed or encrypted, which torch.save never does; re-save it with torch.save",
                       p->path, st->name);
    if (st->size != st->comp_size || st->size > p->file_size)
        return kd_fail(err, KD_EFAIL, "%s: entry '%s' claims %" PRIu64 " bytes in a file of %" PRIu64 "; the file is damaged", p->path, st->name,
                       (uint64_t)st->size, p->file_size);
    return KD_OK;
}

/* A CRC of 0 means that torch was told not to compute it (torch.serialization.set_crc32_options); then it isn't compared. */
static kd_status read_to_end(const kd_pth *p, zip_file_t *f, const zip_stat_t *st, uint8_t *out, kd_err *err)
{
    uint64_t at = 0;
    uint8_t beyond;
    while (at < st->size) {
        zip_int64_t n = zip_fread(f, out + at, st->size - at);
        if (n < 0)
            return zip_failure(p, st->name, zip_file_get_error(f), err);
        if (n == 0)
            return kd_fail(err, KD_EFAIL, "%s: entry '%s' ends after %" PRIu64 " of %" PRIu64 " bytes; the file is truncated, copy it again",
                           p->path, st->name, at, (uint64_t)st->size);
        at += (uint64_t)n;
    }
    if (st->crc != 0 && zip_fread(f, &beyond, 1) != 0) /* the read at the end is the one that compares */
        return zip_failure(p, st->name, zip_file_get_error(f), err);
    return KD_OK;
}

/* The whole entry, CRC checked, in a fresh buffer. */
static kd_status read_entry(const kd_pth *p, uint64_t index, uint8_t **out, uint64_t *size, kd_err *err)
{
    uint8_t *bytes = NULL;
    zip_stat_t st;
    KD_TRY(stat_entry(p, index, &st, err));
    zip_file_t *f = zip_fopen_index(p->zip, index, 0);
    if (f == NULL)
        return zip_failure(p, st.name, zip_get_error(p->zip), err);
    kd_status status = kd_alloc_array(&bytes, (size_t)st.size + 1, 1, err);
    if (status == KD_OK)
        status = read_to_end(p, f, &st, bytes, err);
    zip_fclose(f);
    if (status == KD_OK) {
        *out = bytes;
        *size = st.size;
    } else {
        kd_free(bytes);
    }
    return status;
}

/* Index of PREFIX/name, or -1. */
static int locate(const kd_pth *p, const char *prefix, const char *name)
{
    char full[MAX_PREFIX + 100];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return kd_name_map_find(p->names, full);
}

/* -- the archive ------------------------------------------------------------------------------------------------------------- */

/* torch puts everything under one folder, named after the file at the time of saving: the text up to the first '/'. */
static kd_status find_prefix(const kd_pth *p, char prefix[MAX_PREFIX + 1], kd_err *err)
{
    const char *first = zip_get_name(p->zip, 0, ZIP_FL_ENC_RAW);
    const char *slash = first != NULL ? strchr(first, '/') : NULL;
    size_t n = slash != NULL ? (size_t)(slash - first) + 1 : 0;
    if (n <= MAX_PREFIX) {
        if (n > 0)
            memcpy(prefix, first, n);
        prefix[n] = '\0';
        if (locate(p, prefix, "data.pkl") >= 0)
            return KD_OK;
    }
    return kd_fail(err, KD_EUSAGE, "%s: is a zip archive but not a PyTorch .pth (it has no data.pkl); unpack it, or pass the .pth or .safetensors inside",
                   p->path);
}

/* Two entries of one name are two truths: which one is read would depend on the reader. */
static kd_status index_names(kd_pth *p, kd_err *err)
{
    zip_int64_t n = zip_get_num_entries(p->zip, 0);
    if (n < 1 || n > MAX_ENTRIES)
        return kd_fail(err, KD_EFAIL, "%s: the zip container has %" PRId64 " entries; expected 1 to %d", p->path, (int64_t)n, MAX_ENTRIES);
    KD_TRY(kd_name_map_create(&p->names, (size_t)n, err));
    for (int i = 0; i < (int)n; i++) {
        const char *name = zip_get_name(p->zip, (zip_uint64_t)i, ZIP_FL_ENC_RAW);
        if (name == NULL)
            return zip_failure(p, "the directory", zip_get_error(p->zip), err);
        if (kd_name_map_add(p->names, name, i) >= 0)
            return kd_fail(err, KD_EFAIL, "%s: two entries of the zip container are named '%s'; the file is damaged or malicious", p->path, name);
    }
    return KD_OK;
}

static kd_status check_kind(const kd_pth *p, const char *prefix, kd_err *err)
{
    if (locate(p, prefix, "constants.pkl") >= 0 || locate(p, prefix, "code/__torch__.py") >= 0)
        return kd_fail(err, KD_EUSAGE,
                       "%s: is a TorchScript program, not weights; save its weights where you trust it: "
                       "python -c \"import torch; torch.save(torch.jit.load('MODEL.pt', map_location='cpu').state_dict(), 'NEW.pth')\"", p->path);
    int order = locate(p, prefix, "byteorder");
    if (order < 0)
        return KD_OK;
    uint8_t *text = NULL;
    uint64_t size = 0;
    KD_TRY(read_entry(p, (uint64_t)order, &text, &size, err));
    int little = size == 6 && memcmp(text, "little", 6) == 0;
    kd_free(text);
    return little ? KD_OK : kd_fail(err, KD_EUSAGE, "%s: was written on a big-endian machine; load and re-save it on a little-endian one", p->path);
}

/* What kd_pth_write leaves beside the tensors; files of PyTorch don't have it. */
static kd_status read_metadata(kd_weights *w, const char *prefix, kd_err *err)
{
    uint8_t *text = NULL;
    uint64_t size = 0;
    int index = locate(w->pth, prefix, "kdcache.json");
    if (index < 0)
        return KD_OK;
    KD_TRY(read_entry(w->pth, (uint64_t)index, &text, &size, err));
    kd_status status = kd_weights_json_text(w, (const char *)text, (size_t)size, &w->metadata, err);
    kd_free(text);
    return status == KD_OK ? kd_weights_check_metadata(w, err) : status;
}

static kd_status make_entry(kd_weights *w, const char *prefix, const kd_pickle_tensor *t, kd_weight_entry *e, kd_err *err)
{
    char file[80];
    zip_stat_t st;
    snprintf(file, sizeof file, "data/%s", t->storage.key);
    int index = locate(w->pth, prefix, file);
    if (index < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s' lies in storage '%s', which the file doesn't have; it is damaged, copy it again", w->path,
                       t->name, t->storage.key);
    KD_TRY(stat_entry(w->pth, (uint64_t)index, &st, err));
    uint64_t need = (uint64_t)t->storage.numel * kd_dtype_size(t->storage.dtype);
    if (need > st.size)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s': its storage '%s' needs %" PRIu64 " bytes, the file has %" PRIu64 "; it is damaged",
                       w->path, t->name, t->storage.key, need, (uint64_t)st.size);
    return kd_entry_set_pickled(w, e, t, (uint64_t)index, err);
}

static kd_status read_tensors(kd_weights *w, const char *prefix, kd_arena *scratch, kd_err *err)
{
    uint8_t *pickle = NULL;
    uint64_t size = 0;
    kd_pickle_list list;
    KD_TRY(read_entry(w->pth, (uint64_t)locate(w->pth, prefix, "data.pkl"), &pickle, &size, err));
    kd_status status = kd_unpickle_tensors(pickle, (size_t)size, w->path, scratch, &list, err);
    kd_free(pickle);
    if (status != KD_OK)
        return status;
    KD_TRY(kd_weights_set_container(w, "zip", list.module, err));
    w->entries = kd_arena_alloc(w->arena, list.count * sizeof *w->entries);
    if (w->entries == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for %zu tensors", w->path, list.count);
    for (; w->count < list.count; w->count++)
        KD_TRY(make_entry(w, prefix, &list.tensors[w->count], &w->entries[w->count], err));
    return KD_OK;
}

kd_status kd_pth_parse(kd_weights *w, kd_err *err)
{
    kd_pth *p = NULL;
    int code = 0;
    char prefix[MAX_PREFIX + 1];
    KD_TRY(kd_alloc_array(&p, 1, sizeof *p, err));
    pthread_mutex_init(&p->lock, NULL);
    p->path = w->path;
    p->file_size = w->map.size;
    w->pth = p;
    p->zip = zip_open(w->path, ZIP_RDONLY, &code);
    if (p->zip == NULL) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        kd_status status = zip_failure(p, "the directory", &error, err);
        zip_error_fini(&error);
        return status;
    }
    KD_TRY(index_names(p, err));
    KD_TRY(find_prefix(p, prefix, err));
    KD_TRY(check_kind(p, prefix, err));
    KD_TRY(read_metadata(w, prefix, err));
    kd_arena *scratch = kd_arena_create();
    if (scratch == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while reading the pickle", w->path);
    kd_status status = read_tensors(w, prefix, scratch, err);
    kd_arena_destroy(scratch);
    return status;
}

kd_status kd_pth_with_storage(kd_pth *p, uint64_t index, uint64_t wanted, kd_storage_use use, void *arg, kd_err *err)
{
    kd_status status = KD_OK;
    pthread_mutex_lock(&p->lock);
    if (p->cached == NULL || p->cached_index != index) {
        kd_free(p->cached);
        p->cached = NULL;
        p->cached_index = index;
        status = read_entry(p, index, &p->cached, &p->cached_size, err);
    }
    if (status == KD_OK)
        status = use(arg, p->cached, (size_t)p->cached_size, err);
    if (wanted >= p->cached_size) { /* nobody else's bytes: the usual case of one tensor per storage */
        kd_free(p->cached);
        p->cached = NULL;
    }
    pthread_mutex_unlock(&p->lock);
    return status;
}

void kd_pth_close(kd_pth *p)
{
    if (p == NULL)
        return;
    if (p->zip != NULL)
        zip_discard(p->zip);
    kd_name_map_destroy(p->names);
    kd_free(p->cached);
    pthread_mutex_destroy(&p->lock);
    kd_free(p);
}
