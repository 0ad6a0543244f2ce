#include "cache/export.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/base/threads.h"
#include "common/data/tar_write.h"
#include "common/weights/safetensors.h"

/* ---- what both kinds of files need ---- */

int kd_export_is_token(kd_feature f)
{
    return f == KD_FEATURE_CLS || f == KD_FEATURE_MEAN;
}

size_t kd_export_values(const kd_export *x, kd_feature f)
{
    const kd_recipe *r = kd_cache_recipe(x->cache);
    return (size_t)x->layers * kd_recipe_rows(r, f) * (size_t)r->width;
}

kd_dtype kd_export_dtype(const kd_export *x)
{
    return kd_cache_recipe(x->cache)->dtype == KD_F16 ? KD_F16 : KD_F32;
}

const char *kd_export_square_name(const kd_export *x, kd_feature f)
{
    return kd_recipe_target(kd_cache_recipe(x->cache), f).kind == KD_TARGET_ADJOINT ? kd_square_name(kd_feature_target(f)) : NULL;
}

uint64_t kd_export_view_bytes(const kd_export *x)
{
    uint64_t bytes = 0;
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        if (x->features & 1u << f)
            bytes += kd_export_values(x, f) * kd_dtype_size(kd_export_dtype(x)) + (kd_export_square_name(x, f) ? (size_t)x->layers * sizeof(double) : 0);
    }
    return bytes;
}

kd_status kd_export_each(const kd_export *x, kd_status (*use)(void *ctx, const kd_image_entry *e, uint32_t view, kd_err *err), void *ctx, kd_err *err)
{
    for (size_t i = 0; i < kd_cache_images(x->cache); i++) {
        const kd_image_entry *e = kd_cache_image(x->cache, i);
        for (uint32_t k = 0; k < e->views; k++) {
            if (kd_view_ranges_have(x->views, kd_image_view(e, k)))
                KD_TRY(use(ctx, e, kd_image_view(e, k), err));
        }
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "interrupted after %zu of %zu images; nothing of the file that was being written is left", i + 1, kd_cache_images(x->cache));
    }
    return KD_OK;
}

static kd_status count_view(void *ctx, const kd_image_entry *e, uint32_t view, kd_err *err)
{
    (void)e, (void)view, (void)err;
    ++*(uint64_t *)ctx;
    return KD_OK;
}

uint64_t kd_export_views(const kd_export *x)
{
    uint64_t n = 0;
    return kd_export_each(x, count_view, &n, NULL) == KD_OK ? n : 0;
}

kd_status kd_export_read(const kd_export *x, kd_reader *r, kd_feature f, const kd_image_entry *e, uint32_t view, void *out, double *squares, kd_err *err)
{
    size_t each = kd_export_values(x, f) / (size_t)x->layers;
    float *value = out;
    uint16_t *half = out;
    for (int l = 0; l < x->layers; l++) {
        kd_record_facts facts;
        KD_TRY(kd_reader_feature(r, f, &e->image, view, x->layer[l], value + (size_t)l * each, &facts, err));
        if (squares)
            squares[l] = facts.square;
    }
    /* Exact: the values were f16. In place and ascending, a half never lies on a float that is still to be read. */
    for (size_t i = 0; kd_export_dtype(x) == KD_F16 && i < each * (size_t)x->layers; i++) {
        uint16_t h = kd_f32_to_f16(value[i]);
        memcpy(half + i, &h, sizeof h);
    }
    return KD_OK;
}

/* Room for the largest feature of a view, as f32. */
static kd_status alloc_values(void **out, const kd_export *x, kd_err *err)
{
    size_t most = 1;
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        if (x->features & 1u << f && kd_export_values(x, f) > most)
            most = kd_export_values(x, f);
    }
    return kd_alloc_array(out, most, sizeof(float), err);
}

static kd_status check_space(const char *out, uint64_t need, kd_err *err)
{
    uint64_t room;
    char a[32], b[32];
    KD_TRY(kd_io_free_bytes(out, &room, err));
    if (need <= room)
        return KD_OK;
    return kd_fail(err, KD_ENOSPACE, "%s: about %s will be written and %s are free; export fewer --views, --features or --layers, or write to a larger disk", out,
                   kd_io_size_text(need, a, sizeof a), kd_io_size_text(room, b, sizeof b));
}

/* ---- WebDataset ---- */

enum { NPY_HEADER = 128, TAR_RECORD = 512, VIEW_DIGITS = 5, NUMBER_DIGITS = 6 };

typedef struct tar_export {
    const kd_export *x;
    kd_reader *reader;
    void *values;
    const char *prefix, *suffix; /* around the tar's number */
    int prefix_bytes, digits;
    uint64_t shard_bytes;
    kd_tar_writer *tar; /* NULL: the next view opens one */
    size_t tars;
    uint8_t *npy;       /* header and array */
} tar_export;

/* NPY version 1.0: magic, version, length of a text that ends in a newline; numpy.lib.format. shape: "(2, 48)". */
static void npy_header(uint8_t out[NPY_HEADER], const char *descr, const int64_t *shape, int rank)
{
    char dims[100] = "";
    size_t n = 0;
    for (int i = 0; i < rank && n < sizeof dims; i++)
        n += (size_t)snprintf(dims + n, sizeof dims - n, "%" PRId64 "%s", shape[i], i + 1 < rank ? ", " : rank == 1 ? "," : "");
    memset(out, ' ', NPY_HEADER);
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = NPY_HEADER - 10;
    out[9] = 0;
    n = (size_t)snprintf((char *)out + 10, NPY_HEADER - 10, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, dims);
    KD_ASSERT(n < NPY_HEADER - 11);
    out[10 + n] = ' ';
    out[NPY_HEADER - 1] = '\n';
}

static kd_status put_npy(tar_export *t, const char *stem, const char *name, const char *descr, const int64_t *shape, int rank, const void *data, size_t bytes, kd_err *err)
{
    char member[80];
    snprintf(member, sizeof member, "%s.%s.npy", stem, name);
    npy_header(t->npy, descr, shape, rank);
    memcpy(t->npy + NPY_HEADER, data, bytes);
    return kd_tar_put(t->tar, member, t->npy, NPY_HEADER + bytes, err);
}

static kd_status put_feature(tar_export *t, const char *stem, kd_feature f, const kd_image_entry *e, uint32_t view, double squares[KD_MAX_LAYERS], kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(t->x->cache);
    int64_t shape[3] = {t->x->layers};
    int rank = 1;
    if (!kd_export_is_token(f))
        shape[rank++] = kd_recipe_rows(r, f);
    shape[rank++] = r->width;
    KD_TRY(kd_export_read(t->x, t->reader, f, e, view, t->values, squares, err));
    return put_npy(t, stem, kd_feature_name(f), kd_export_dtype(t->x) == KD_F16 ? "<f2" : "<f4", shape, rank, t->values, kd_export_values(t->x, f) * kd_dtype_size(kd_export_dtype(t->x)), err);
}

static kd_status put_json(tar_export *t, const char *stem, const char *id, const kd_image_entry *e, uint32_t view, kd_err *err)
{
    kd_view_entry v;
    char hash[33], member[80], *text;
    json_t *layers = json_array(), *o;
    kd_status status;
    KD_TRY(kd_reader_view(t->reader, &e->image, view, &v, err));
    kd_hex(hash, v.view_hash.b, 16);
    for (int l = 0; l < t->x->layers; l++)
        json_array_append_new(layers, json_integer(t->x->layer[l]));
    o = json_pack("{s:s,s:I,s:s,s:o,s:o,s:o}", "id", id, "view", (json_int_t)view, "hash", hash, "layers", layers, "path", kd_json_bytes(e->rel, strlen(e->rel)), "plan",
                  kd_plan_json(&v.plan, &v.partner));
    text = o ? kd_json_canonical(o) : NULL;
    json_decref(o);
    if (!text)
        return kd_fail(err, KD_EFAIL, "out of memory for the JSON of a view");
    snprintf(member, sizeof member, "%s.json", stem);
    status = kd_tar_put(t->tar, member, text, strlen(text), err);
    kd_free(text);
    return status;
}

static kd_status open_tar(tar_export *t, kd_err *err)
{
    char *path = kd_asprintf("%.*s%0*zu%s", t->prefix_bytes, t->prefix, t->digits, t->tars, t->suffix);
    kd_status status = path ? kd_tar_create(&t->tar, path, err) : kd_fail(err, KD_EFAIL, "out of memory");
    kd_free(path);
    t->tars += status == KD_OK;
    return status;
}

static kd_status close_tar(tar_export *t, kd_err *err)
{
    kd_tar_writer *tar = t->tar;
    t->tar = NULL;
    return tar ? kd_tar_finish(tar, err) : KD_OK;
}

/* Members in the order of their names, as the library's own writer has them. */
static kd_status export_view(void *ctx, const kd_image_entry *e, uint32_t view, kd_err *err)
{
    static const kd_feature order[] = {KD_FEATURE_MEAN, KD_FEATURE_PATCH, KD_FEATURE_PATCH2, KD_FEATURE_PATCH3, KD_FEATURE_PATCH4, KD_FEATURE_REGISTERS};
    tar_export *t = ctx;
    double square[KD_FEATURES][KD_MAX_LAYERS];
    char id[33], stem[60];
    int64_t layers = t->x->layers;
    kd_hex(id, e->image.b, 16);
    snprintf(stem, sizeof stem, "%s-%0*" PRIu32, id, VIEW_DIGITS, view);
    if (!t->tar)
        KD_TRY(open_tar(t, err));
    if (t->x->features & 1u << KD_FEATURE_CLS)
        KD_TRY(put_feature(t, stem, KD_FEATURE_CLS, e, view, square[KD_FEATURE_CLS], err));
    KD_TRY(put_json(t, stem, id, e, view, err));
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        if (t->x->features & 1u << order[i])
            KD_TRY(put_feature(t, stem, order[i], e, view, square[order[i]], err));
    }
    for (int i = 0; i < KD_MAX_TARGETS; i++) {
        kd_feature f = kd_patch_feature(i);
        const char *name = t->x->features & 1u << f ? kd_export_square_name(t->x, f) : NULL;
        if (name)
            KD_TRY(put_npy(t, stem, name, "<f8", &layers, 1, square[f], (size_t)layers * sizeof(double), err));
    }
    return kd_tar_written(t->tar) >= t->shard_bytes ? close_tar(t, err) : KD_OK;
}

/* Splits "a-%06d.tar" around its number. */
static kd_status parse_pattern(tar_export *t, const char *out, kd_err *err)
{
    const char *percent = strchr(out, '%'), *end = percent;
    t->prefix = out;
    t->prefix_bytes = percent ? (int)(percent - out) : 0;
    t->digits = 1;
    if (percent && percent[1] == '0' && percent[2] >= '1' && percent[2] <= '9') {
        t->digits = percent[2] - '0';
        end = percent + 2;
    }
    if (!percent || end[1] != 'd' || strchr(end + 1, '%'))
        return kd_fail(err, KD_EUSAGE, "--webdataset %s: expected a folder, or a name with a place for the number of the tar, such as features-%%06d.tar", out);
    t->suffix = end + 2;
    return KD_OK;
}

static kd_status run_tars(tar_export *t, kd_err *err)
{
    size_t most = 1;
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        size_t bytes = t->x->features & 1u << f ? kd_export_values(t->x, f) * sizeof(float) : 0;
        most = bytes > most ? bytes : most;
    }
    most = most < KD_MAX_LAYERS * sizeof(double) ? KD_MAX_LAYERS * sizeof(double) : most;
    KD_TRY(kd_alloc_array(&t->npy, NPY_HEADER + most, 1, err));
    KD_TRY(alloc_values(&t->values, t->x, err));
    KD_TRY(kd_reader_create(&t->reader, t->x->cache, err));
    KD_TRY(kd_export_each(t->x, export_view, t, err));
    return close_tar(t, err);
}

kd_status kd_export_webdataset(const kd_export *x, const char *out, uint64_t shard_bytes, size_t *tars, kd_err *err)
{
    enum { MEMBERS = KD_FEATURES + KD_MAX_TARGETS + 1 };
    tar_export t = {.x = x, .shard_bytes = shard_bytes};
    char *pattern = strchr(out, '%') || !(kd_io_is_dir(out) || out[strlen(out) - 1] == '/') ? kd_strdup(out) : kd_asprintf("%s/views-%%0%dd.tar", out, NUMBER_DIGITS);
    kd_status status = pattern ? parse_pattern(&t, pattern, err) : kd_fail(err, KD_EFAIL, "out of memory");
    if (status == KD_OK && out[strlen(out) - 1] == '/')
        status = kd_io_mkdirs(out, err);
    if (status == KD_OK)
        status = check_space(out, kd_export_views(x) * (kd_export_view_bytes(x) + MEMBERS * (uint64_t)TAR_RECORD), err);
    if (status == KD_OK)
        status = run_tars(&t, err);
    *tars = t.tars;
    kd_tar_discard(t.tar);
    kd_reader_destroy(t.reader);
    kd_free(t.values);
    kd_free(t.npy);
    kd_free(pattern);
    return status;
}

/* ---- safetensors ---- */

typedef enum column_kind { COLUMN_ID, COLUMN_VIEW, COLUMN_FEATURE, COLUMN_SQUARE } column_kind;

typedef struct column {
    column_kind kind;
    kd_feature feature;
} column;

enum { MAX_COLUMNS = 2 + KD_FEATURES + KD_MAX_TARGETS };

typedef struct flat_export {
    const kd_export *x;
    kd_reader *reader;
    void *values;
    kd_tensor tensor[MAX_COLUMNS];
    column column[MAX_COLUMNS];
    size_t columns;
    const column *now; /* the one that is being written */
    kd_replace *file;
} flat_export;

static kd_tensor *add_column(flat_export *t, column_kind kind, kd_feature f, const char *name, kd_dtype dtype, uint64_t views)
{
    kd_tensor *tensor = &t->tensor[t->columns];
    t->column[t->columns++] = (column){kind, f};
    *tensor = (kd_tensor){.name = name, .dtype = dtype, .rank = 1, .shape = {(int64_t)views}};
    return tensor;
}

static void add_columns(flat_export *t, uint64_t views)
{
    const kd_recipe *r = kd_cache_recipe(t->x->cache);
    kd_tensor *tensor = add_column(t, COLUMN_ID, 0, "id", KD_U8, views);
    tensor->shape[tensor->rank++] = 16;
    add_column(t, COLUMN_VIEW, 0, "view", KD_I32, views);
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        if (!(t->x->features & 1u << f))
            continue;
        tensor = add_column(t, COLUMN_FEATURE, f, kd_feature_name(f), kd_export_dtype(t->x), views);
        tensor->shape[tensor->rank++] = t->x->layers;
        if (!kd_export_is_token(f))
            tensor->shape[tensor->rank++] = kd_recipe_rows(r, f);
        tensor->shape[tensor->rank++] = r->width;
        if (kd_export_square_name(t->x, f)) {
            tensor = add_column(t, COLUMN_SQUARE, f, kd_export_square_name(t->x, f), KD_F64, views);
            tensor->shape[tensor->rank++] = t->x->layers;
        }
    }
}

static kd_status put_row(void *ctx, const kd_image_entry *e, uint32_t view, kd_err *err)
{
    flat_export *t = ctx;
    double square[KD_MAX_LAYERS];
    int32_t number = (int32_t)view;
    if (t->now->kind == COLUMN_ID)
        return kd_io_replace_write(t->file, e->image.b, 16, err);
    if (t->now->kind == COLUMN_VIEW && view > INT32_MAX)
        return kd_fail(err, KD_EFAIL, "view %" PRIu32 " of %s: its number doesn't fit in 32 bits with a sign; leave it out with --views", view, e->rel);
    if (t->now->kind == COLUMN_VIEW)
        return kd_io_replace_write(t->file, &number, sizeof number, err);
    KD_TRY(kd_export_read(t->x, t->reader, t->now->feature, e, view, t->values, square, err));
    if (t->now->kind == COLUMN_SQUARE)
        return kd_io_replace_write(t->file, square, (size_t)t->x->layers * sizeof square[0], err);
    return kd_io_replace_write(t->file, t->values, kd_export_values(t->x, t->now->feature) * kd_dtype_size(kd_export_dtype(t->x)), err);
}

static kd_status put_column(void *ctx, const kd_tensor *tensor, kd_replace *file, kd_err *err)
{
    flat_export *t = ctx;
    t->now = &t->column[tensor - t->tensor];
    t->file = file;
    return kd_export_each(t->x, put_row, t, err);
}

/* New reference; NULL when memory is out. */
static json_t *file_metadata(const kd_export *x)
{
    const kd_recipe *r = kd_cache_recipe(x->cache);
    char hex[65], layers[KD_MAX_LAYERS * 6] = "", *recipe = kd_json_canonical(r->json);
    size_t n = 0;
    json_t *m;
    kd_hex(hex, r->sha.b, sizeof r->sha.b);
    for (int l = 0; l < x->layers; l++)
        n += (size_t)snprintf(layers + n, sizeof layers - n, "%s%u", l ? "," : "", x->layer[l]);
    m = recipe ? json_pack("{s:s,s:s,s:s,s:s}", "kdcache", kd_version, "identity", hex, "layers", layers, "recipe", recipe) : NULL;
    kd_free(recipe);
    return m;
}

static kd_status run_flat(flat_export *t, const char *out, kd_err *err)
{
    json_t *metadata = file_metadata(t->x);
    kd_status status;
    if (!metadata)
        return kd_fail(err, KD_EFAIL, "out of memory for the recipe");
    status = alloc_values(&t->values, t->x, err);
    if (status == KD_OK)
        status = kd_reader_create(&t->reader, t->x->cache, err);
    if (status == KD_OK)
        status = kd_safetensors_stream(out, t->tensor, t->columns, metadata, put_column, t, err);
    json_decref(metadata);
    return status;
}

kd_status kd_export_safetensors(const kd_export *x, const char *out, kd_err *err)
{
    enum { VIEW_BYTES = 16 + 4, HEADER_BYTES = 1 << 16 };
    flat_export t = {.x = x};
    uint64_t views = kd_export_views(x), bytes;
    kd_status status;
    if (__builtin_mul_overflow(views, kd_export_view_bytes(x) + VIEW_BYTES, &bytes) || bytes > INT64_MAX - HEADER_BYTES)
        return kd_fail(err, KD_EFAIL, "%s: %" PRIu64 " views of %" PRIu64 " bytes are more than a file can have; export fewer --views, --features or --layers", out, views, kd_export_view_bytes(x));
    KD_TRY(check_space(out, bytes + HEADER_BYTES, err));
    add_columns(&t, views);
    status = run_flat(&t, out, err);
    kd_reader_destroy(t.reader);
    kd_free(t.values);
    return status;
}
