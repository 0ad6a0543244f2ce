/* See unpickle.h: from the nested dictionaries of a checkpoint, or from a module, to a flat list of named tensors. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/weights/container.h"
#include "common/weights/unpickle.h"

enum {
    MAX_VISITS = 4 << 20, /* items looked at: a list that holds itself twice would be walked for ever */
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

/* Before `items` values are looked at. What is shared is walked again each time, so the file's size bounds nothing. */
static kd_status visit(walk *w, size_t items, int depth)
{
    w->visits += 1 + items;
    if (w->visits > MAX_VISITS || depth > MAX_DEPTH)
        return kd_fail(w->err, KD_EFAIL, "%s: its dictionaries or modules are nested deeper than %d, or refer to themselves", w->what, MAX_DEPTH);
    return KD_OK;
}

static size_t items_of(const kd_pickle_value *v) { return v->kind == KD_PICKLE_TENSOR ? 0 : v->as.seq.count; }

static kd_status flatten(walk *w, size_t length, int depth, const kd_pickle_value *v)
{
    KD_TRY(visit(w, items_of(v), depth));
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

/* -- modules (torch/nn/modules/module.py: __setstate__, _save_to_state_dict) ------------------------------------------------- */

static int is_text(const kd_pickle_value *v, const char *text)
{
    return v->kind == KD_PICKLE_TEXT && v->as.text.size == strlen(text) && memcmp(v->as.text.at, text, v->as.text.size) == 0;
}

/* The value under a key, as Python has it: the last one that was set. NULL when there is none. */
static const kd_pickle_value *lookup(const kd_pickle_value *dict, const char *key)
{
    for (size_t i = dict->as.seq.count; i >= 2; i -= 2)
        if (is_text(dict->as.seq.items[i - 2], key))
            return dict->as.seq.items[i - 1];
    return NULL;
}

/* The three dictionaries that make an object a module, and the names of the buffers that its state_dict leaves out (NULL: PyTorch before 1.6). */
typedef struct module_parts {
    const kd_pickle_value *parameters, *buffers, *modules, *not_persistent;
} module_parts;

static int find_parts(const kd_pickle_value *v, module_parts *out)
{
    if (v->kind != KD_PICKLE_OPAQUE || v->as.state == NULL)
        return 0;
    *out = (module_parts){lookup(v->as.state, "_parameters"), lookup(v->as.state, "_buffers"), lookup(v->as.state, "_modules"),
                          lookup(v->as.state, "_non_persistent_buffers_set")};
    return out->parameters != NULL && out->parameters->kind == KD_PICKLE_DICT && out->buffers != NULL && out->buffers->kind == KD_PICKLE_DICT &&
           out->modules != NULL && out->modules->kind == KD_PICKLE_DICT;
}

static int set_has(const kd_pickle_value *set, const kd_pickle_value *name)
{
    for (size_t i = 0; set != NULL && name->kind == KD_PICKLE_TEXT && i < set->as.seq.count; i++)
        if (is_text(set->as.seq.items[i], name->as.text.at))
            return 1;
    return 0;
}

/* The tensors of a module's _parameters or _buffers; None stands for one that the module does without. */
static kd_status flatten_own(walk *w, size_t length, int depth, const kd_pickle_value *dict, const kd_pickle_value *left_out)
{
    for (size_t i = 0; i < dict->as.seq.count; i += 2) {
        const kd_pickle_value *name = dict->as.seq.items[i], *item = dict->as.seq.items[i + 1];
        size_t longer = 0;
        KD_TRY(visit(w, left_out != NULL ? left_out->as.seq.count : 0, depth));
        if (item->kind != KD_PICKLE_TENSOR || set_has(left_out, name))
            continue;
        KD_TRY(extend_name(w, length, name, &longer));
        if (longer > 0)
            KD_TRY(found(w, longer, item->as.tensor));
    }
    return KD_OK;
}

static kd_status flatten_module(walk *w, size_t length, int depth, const kd_pickle_value *v)
{
    module_parts m;
    KD_TRY(visit(w, v->as.state != NULL ? 4 * v->as.state->as.seq.count : 0, depth));
    if (!find_parts(v, &m))
        return KD_OK;
    if (m.not_persistent != NULL && m.not_persistent->kind != KD_PICKLE_SET)
        return kd_fail(w->err, KD_EFAIL, "%s: a module's _non_persistent_buffers_set isn't a set; the file is damaged or wasn't written by torch.save", w->what);
    KD_TRY(flatten_own(w, length, depth, m.parameters, NULL));
    KD_TRY(flatten_own(w, length, depth, m.buffers, m.not_persistent));
    for (size_t i = 0; i < m.modules->as.seq.count; i += 2) {
        const kd_pickle_value *item = m.modules->as.seq.items[i + 1];
        size_t longer = 0;
        KD_TRY(visit(w, 0, depth));
        if (item->kind != KD_PICKLE_OPAQUE)
            continue;
        KD_TRY(extend_name(w, length, m.modules->as.seq.items[i], &longer));
        if (longer > 0)
            KD_TRY(flatten_module(w, longer, depth + 1, item));
    }
    return KD_OK;
}

/* The module that the file is about, or NULL; key as in kd_pickle_list. */
static const kd_pickle_value *find_module(const kd_pickle_value *root, const char **key)
{
    module_parts unused;
    const kd_pickle_value *v = root;
    *key = "";
    if (root->kind == KD_PICKLE_DICT) {
        *key = "ema";
        v = lookup(root, *key);
        if (v == NULL || v->kind == KD_PICKLE_NONE) {
            *key = "model";
            v = lookup(root, *key);
        }
    }
    return v != NULL && find_parts(v, &unused) ? v : NULL;
}

/* -- whole pickles ----------------------------------------------------------------------------------------------------------- */

kd_status kd_pickle_collect(const kd_pickle_value *root, const char *what, kd_arena *arena, kd_pickle_list *out, kd_err *err)
{
    static const char *const kind_names[] = {"None", "a bool", "an integer", "a float", "a string", "bytes", "a tuple", "a list", "a dictionary",
                                             "a class or function", "a storage", "a tensor", "a set", "a Python object"};
    walk w = {.what = what, .arena = arena, .err = err};
    const char *key;
    const kd_pickle_value *module = find_module(root, &key);
    if (module == NULL && (!may_hold_tensors(root) || root->kind == KD_PICKLE_TENSOR))
        return kd_fail(err, KD_EUSAGE, "%s: it holds %s, not a dictionary of tensors or a module; save the weights with torch.save(model.state_dict(), FILE)",
                       what, kind_names[root->kind]);
    KD_TRY(module != NULL ? flatten_module(&w, 0, 0, module) : flatten(&w, 0, 0, root));
    if (w.count == 0)
        return kd_fail(err, KD_EUSAGE, "%s: its %s; save the weights with torch.save(model.state_dict(), FILE)", what,
                       module != NULL ? "module has no parameters" : "dictionaries hold no tensors");
    *out = (kd_pickle_list){w.tensors, w.count, module != NULL ? key : NULL};
    return KD_OK;
}

kd_status kd_unpickle_tensors(const uint8_t *bytes, size_t size, const char *what, kd_arena *arena, kd_pickle_list *out, kd_err *err)
{
    kd_pickle_result result;
    if (size > KD_PICKLE_MAX_BYTES)
        return kd_fail(err, KD_EFAIL, "%s: its pickle has %zu bytes; the limit is %d; save the state_dict alone", what, size, KD_PICKLE_MAX_BYTES);
    KD_TRY(kd_pickle_run(bytes, size, 0, what, arena, &result, err));
    return kd_pickle_collect(result.root, what, arena, out, err);
}
