/* See unpickle.h: from the nested dictionaries of a checkpoint to a flat list of named tensors. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/weights/container.h"
#include "common/weights/unpickle.h"

enum {
    MAX_VISITS = 4 << 20, /* a list that holds itself twice would be walked for ever */
    MAX_DEPTH = 64
};

typedef struct walk {
    const char *what;
    kd_arena *arena;
    kd_err *err;
    kd_pickle_tensor *tensors;
    size_t count, capacity, visits;
    char name[KD_WEIGHTS_MAX_NAME + 1];
} walk;

static kd_status no_memory(const walk *w) { return kd_fail(w->err, KD_EFAIL, "%s: out of memory while reading the pickle", w->what); }

static kd_status found(walk *w, size_t length, const kd_pickle_tensor *t)
{
    if (w->count == KD_WEIGHTS_MAX_TENSORS)
        return kd_fail(w->err, KD_EFAIL, "%s: more than %d tensors", w->what, KD_WEIGHTS_MAX_TENSORS);
    if (w->count == w->capacity) {
        size_t capacity = w->capacity > 0 ? 2 * w->capacity : 256;
        kd_pickle_tensor *p = kd_arena_alloc(w->arena, capacity * sizeof *p);
        if (p == NULL)
            return no_memory(w);
        if (w->count > 0)
            memcpy(p, w->tensors, w->count * sizeof *p);
        w->tensors = p;
        w->capacity = capacity;
    }
    kd_pickle_tensor *out = &w->tensors[w->count++];
    *out = *t;
    w->name[length] = '\0';
    out->name = kd_arena_strdup(w->arena, w->name);
    return out->name != NULL ? KD_OK : no_memory(w);
}

/* Adds ".key" to the name. The new length is 0 for a key that can't be part of a name (a tuple, None). */
static kd_status extend_name(walk *w, size_t length, const kd_pickle_value *key, size_t *out)
{
    char number[32];
    const char *text = number;
    size_t n = 0;
    *out = 0;
    if (key->kind == KD_PICKLE_TEXT) {
        text = key->as.text.at;
        n = key->as.text.size;
        if (memchr(text, '\0', n) != NULL)
            return kd_fail(w->err, KD_EFAIL, "%s: the pickle has a dictionary key with a NUL byte; the file is damaged", w->what);
    } else if (key->kind == KD_PICKLE_INTEGER) {
        n = (size_t)snprintf(number, sizeof number, "%" PRId64, key->as.integer);
    }
    if (n == 0)
        return KD_OK;
    if (length + 1 + n > KD_WEIGHTS_MAX_NAME)
        return kd_fail(w->err, KD_EFAIL, "%s: the name of a tensor has more than %d bytes", w->what, KD_WEIGHTS_MAX_NAME);
    if (length > 0)
        w->name[length++] = '.';
    memcpy(w->name + length, text, n);
    *out = length + n;
    return KD_OK;
}

static int may_hold_tensors(const kd_pickle_value *v)
{
    return v->kind == KD_PICKLE_TENSOR || v->kind == KD_PICKLE_DICT || v->kind == KD_PICKLE_LIST || v->kind == KD_PICKLE_TUPLE;
}

static kd_status flatten(walk *w, size_t length, int depth, const kd_pickle_value *v)
{
    if (++w->visits > MAX_VISITS || depth > MAX_DEPTH)
        return kd_fail(w->err, KD_EFAIL, "%s: its dictionaries are nested deeper than %d or refer to themselves", w->what, MAX_DEPTH);
    if (v->kind == KD_PICKLE_TENSOR)
        return found(w, length, v->as.tensor);
    size_t step = v->kind == KD_PICKLE_DICT ? 2 : 1;
    for (size_t i = 0; i < v->as.seq.count; i += step) {
        const kd_pickle_value position = {.kind = KD_PICKLE_INTEGER, .as.integer = (int64_t)i}, *item = v->as.seq.items[i + step - 1];
        size_t longer = 0;
        if (!may_hold_tensors(item))
            continue;
        KD_TRY(extend_name(w, length, v->kind == KD_PICKLE_DICT ? v->as.seq.items[i] : &position, &longer));
        if (longer > 0)
            KD_TRY(flatten(w, longer, depth + 1, item));
    }
    return KD_OK;
}

kd_status kd_pickle_collect(const kd_pickle_value *root, const char *what, kd_arena *arena, kd_pickle_tensor **tensors, size_t *count, kd_err *err)
{
    static const char *const kind_names[] = {"None", "a bool", "an integer", "a float", "a string", "bytes", "a tuple", "a list", "a dictionary",
                                             "a class or function", "a storage", "a tensor", "a Python object"};
    walk w = {.what = what, .arena = arena, .err = err};
    if (!may_hold_tensors(root) || root->kind == KD_PICKLE_TENSOR)
        return kd_fail(err, KD_EUSAGE, "%s: it holds %s, not a dictionary of tensors; save the weights with torch.save(model.state_dict(), FILE)",
                       what, kind_names[root->kind]);
    KD_TRY(flatten(&w, 0, 0, root));
    if (w.count == 0)
        return kd_fail(err, KD_EUSAGE, "%s: its dictionaries hold no tensors; save the weights with torch.save(model.state_dict(), FILE)", what);
    *tensors = w.tensors;
    *count = w.count;
    return KD_OK;
}

kd_status kd_unpickle_tensors(const uint8_t *bytes, size_t size, const char *what, kd_arena *arena, kd_pickle_tensor **tensors, size_t *count,
                              kd_err *err)
{
    kd_pickle_result result;
    if (size > KD_PICKLE_MAX_BYTES)
        return kd_fail(err, KD_EFAIL, "%s: its pickle has %zu bytes; the limit is %d; save the state_dict alone", what, size, KD_PICKLE_MAX_BYTES);
    KD_TRY(kd_pickle_run(bytes, size, 0, what, arena, &result, err));
    return kd_pickle_collect(result.root, what, arena, tensors, count, err);
}
