/* See unpickle.h. The machine has two parts: opcodes (run) and calls (call_global). */
#include "common/weights/unpickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/weights/container.h"

enum {
    MAX_STACK = 1 << 20,
    MAX_MARKS = 4096,
    MAX_MEMO = 1 << 20,
    MAX_VALUES = 4 << 20 /* values plus container slots: bounds memory and the time of every copy */
};

typedef struct machine {
    const uint8_t *bytes;
    size_t size, at, op_at; /* op_at: where the current opcode began, for sentences */
    const char *what;
    kd_arena *arena;
    kd_err *err;
    kd_pickle_value **stack;
    size_t depth, stack_capacity;
    size_t marks[MAX_MARKS];
    size_t mark_count;
    kd_pickle_value **memo;
    size_t memo_capacity, memo_next; /* memo_next: what MEMOIZE uses */
    size_t budget;
    kd_pickle_storage **storages;
    size_t storage_count, storage_capacity;
} machine;

/* -- errors and memory ------------------------------------------------------------------------------------------------------- */

static kd_status malformed(machine *m, const char *why)
{
    return kd_fail(m->err, KD_EFAIL, "%s: the pickle at byte %zu %s; the file is damaged or wasn't written by torch.save", m->what, m->op_at,
                   why);
}

static kd_status no_memory(machine *m)
{
    return kd_fail(m->err, KD_EFAIL, "%s: out of memory while reading the pickle", m->what);
}

static kd_status charge(machine *m, size_t values)
{
    if (values > m->budget)
        return kd_fail(m->err, KD_EFAIL, "%s: the pickle makes more than %d values; save the state_dict alone", m->what, MAX_VALUES);
    m->budget -= values;
    return KD_OK;
}

static kd_status new_value(machine *m, kd_pickle_kind k, kd_pickle_value **out)
{
    KD_TRY(charge(m, 1));
    kd_pickle_value *v = kd_arena_alloc(m->arena, sizeof *v);
    if (v == NULL)
        return no_memory(m);
    v->kind = k;
    *out = v;
    return KD_OK;
}

static kd_status grow(machine *m, kd_pickle_value ***items, size_t *capacity, size_t need, size_t limit, const char *what)
{
    if (need <= *capacity)
        return KD_OK;
    if (need > limit)
        return kd_fail(m->err, KD_EFAIL, "%s: the pickle's %s grows beyond %zu entries; save the state_dict alone", m->what, what, limit);
    size_t size = *capacity > 0 ? *capacity : 256;
    while (size < need)
        size *= 2;
    kd_pickle_value **p = kd_realloc(*items, size * sizeof *p);
    if (p == NULL)
        return no_memory(m);
    memset(p + *capacity, 0, (size - *capacity) * sizeof *p);
    *items = p;
    *capacity = size;
    return KD_OK;
}

/* -- stack and memo ---------------------------------------------------------------------------------------------------------- */

static kd_status push(machine *m, kd_pickle_value *v)
{
    KD_TRY(grow(m, &m->stack, &m->stack_capacity, m->depth + 1, MAX_STACK, "stack"));
    m->stack[m->depth++] = v;
    return KD_OK;
}

static kd_status push_new(machine *m, kd_pickle_kind k, kd_pickle_value **out)
{
    KD_TRY(new_value(m, k, out));
    return push(m, *out);
}

/* Values under the innermost mark belong to whoever set it. */
static size_t floor_of(const machine *m) { return m->mark_count > 0 ? m->marks[m->mark_count - 1] : 0; }

static kd_status pop(machine *m, kd_pickle_value **out)
{
    if (m->depth <= floor_of(m))
        return malformed(m, "takes from an empty stack");
    *out = m->stack[--m->depth];
    return KD_OK;
}

static kd_status top(machine *m, kd_pickle_value **out)
{
    if (m->depth <= floor_of(m))
        return malformed(m, "reads an empty stack");
    *out = m->stack[m->depth - 1];
    return KD_OK;
}

/* Takes everything above the innermost mark: count items at *items, valid until the next push. */
static kd_status pop_to_mark(machine *m, kd_pickle_value ***items, size_t *count)
{
    if (m->mark_count == 0)
        return malformed(m, "misses a mark");
    size_t from = m->marks[--m->mark_count];
    *items = m->stack + from;
    *count = m->depth - from;
    m->depth = from;
    return KD_OK;
}

static kd_status memo_put(machine *m, size_t index)
{
    kd_pickle_value *v = NULL;
    KD_TRY(top(m, &v));
    if (index >= MAX_MEMO)
        return malformed(m, "uses a memo index beyond the limit of 1048576");
    KD_TRY(grow(m, &m->memo, &m->memo_capacity, index + 1, MAX_MEMO, "memo"));
    if (m->memo[index] == NULL)
        m->memo_next++;
    m->memo[index] = v;
    return KD_OK;
}

static kd_status memo_get(machine *m, size_t index)
{
    if (index >= m->memo_capacity || m->memo[index] == NULL)
        return malformed(m, "asks for a memo entry that wasn't stored");
    return push(m, m->memo[index]);
}

/* -- bytes ------------------------------------------------------------------------------------------------------------------- */

static kd_status take(machine *m, size_t n, const uint8_t **out)
{
    if (n > m->size - m->at)
        return malformed(m, "ends in the middle of an opcode");
    *out = m->bytes + m->at;
    m->at += n;
    return KD_OK;
}

/* Little-endian unsigned number of n <= 8 bytes. */
static kd_status take_number(machine *m, size_t n, uint64_t *out)
{
    const uint8_t *p = NULL;
    KD_TRY(take(m, n, &p));
    *out = 0;
    for (size_t i = n; i-- > 0;)
        *out = *out << 8 | p[i];
    return KD_OK;
}

static kd_status copy_text(machine *m, const uint8_t *p, size_t n, const char **out)
{
    char *copy = kd_arena_alloc(m->arena, n + 1);
    if (copy == NULL)
        return no_memory(m);
    memcpy(copy, p, n);
    *out = copy;
    return KD_OK;
}

/* A string or bytes whose length has length_bytes bytes. */
static kd_status push_text(machine *m, kd_pickle_kind k, size_t length_bytes)
{
    uint64_t n = 0;
    const uint8_t *p = NULL;
    kd_pickle_value *v = NULL;
    KD_TRY(take_number(m, length_bytes, &n));
    if (n > m->size)
        return malformed(m, "has a string longer than itself");
    KD_TRY(take(m, (size_t)n, &p));
    KD_TRY(push_new(m, k, &v));
    v->as.text.size = (size_t)n;
    return copy_text(m, p, (size_t)n, &v->as.text.at);
}

static kd_status push_integer(machine *m, kd_pickle_kind k, int64_t i)
{
    kd_pickle_value *v = NULL;
    KD_TRY(push_new(m, k, &v));
    v->as.integer = i;
    return KD_OK;
}

/* Two's complement; numbers beyond 64 bits (random states) are of no use here. */
static kd_status push_long(machine *m, size_t length_bytes)
{
    uint64_t n = 0, bits = 0;
    const uint8_t *p = NULL;
    kd_pickle_value *v = NULL;
    KD_TRY(take_number(m, length_bytes, &n));
    KD_TRY(take(m, (size_t)n, &p));
    if (n > 8)
        return push_new(m, KD_PICKLE_OPAQUE, &v);
    for (size_t i = (size_t)n; i-- > 0;)
        bits = bits << 8 | p[i];
    if (n > 0 && n < 8 && p[n - 1] & 0x80)
        bits |= ~(uint64_t)0 << (8 * n);
    return push_integer(m, KD_PICKLE_INTEGER, (int64_t)bits);
}

/* BINFLOAT is big-endian, unlike everything else. */
static kd_status push_real(machine *m)
{
    const uint8_t *p = NULL;
    uint64_t bits = 0;
    kd_pickle_value *v = NULL;
    KD_TRY(take(m, 8, &p));
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    KD_TRY(push_new(m, KD_PICKLE_REAL, &v));
    memcpy(&v->as.real, &bits, sizeof bits);
    return KD_OK;
}

/* -- containers -------------------------------------------------------------------------------------------------------------- */

static kd_status append(machine *m, kd_pickle_value *list, kd_pickle_value *const *items, size_t n)
{
    size_t need = list->as.seq.count + n;
    KD_TRY(charge(m, n));
    if (need > list->as.seq.capacity) {
        size_t capacity = list->as.seq.capacity > 0 ? 2 * list->as.seq.capacity : 4;
        if (capacity < need)
            capacity = need;
        kd_pickle_value **p = kd_arena_alloc(m->arena, capacity * sizeof *p);
        if (p == NULL)
            return no_memory(m);
        if (list->as.seq.count > 0)
            memcpy(p, list->as.seq.items, list->as.seq.count * sizeof *p);
        list->as.seq.items = p;
        list->as.seq.capacity = capacity;
    }
    if (n > 0)
        memcpy(list->as.seq.items + list->as.seq.count, items, n * sizeof *items);
    list->as.seq.count = need;
    return KD_OK;
}

/* TUPLE1..3 and TUPLE: the last n values of the stack. */
static kd_status make_tuple(machine *m, kd_pickle_value *const *items, size_t n)
{
    kd_pickle_value *t = NULL;
    KD_TRY(new_value(m, KD_PICKLE_TUPLE, &t));
    KD_TRY(append(m, t, items, n));
    return push(m, t);
}

static kd_status make_short_tuple(machine *m, size_t n)
{
    kd_pickle_value *items[3];
    for (size_t i = n; i-- > 0;)
        KD_TRY(pop(m, &items[i]));
    return make_tuple(m, items, n);
}

/* SETITEM(S), APPEND(S) and ADDITEMS on the value at the top; opaque values swallow what they are given. */
static kd_status add_items(machine *m, kd_pickle_kind wanted, kd_pickle_value *const *items, size_t n)
{
    kd_pickle_value *target = NULL;
    KD_TRY(top(m, &target));
    if (target->kind == KD_PICKLE_OPAQUE)
        return KD_OK;
    if (target->kind != wanted || (wanted == KD_PICKLE_DICT && n % 2 != 0))
        return malformed(m, wanted == KD_PICKLE_DICT   ? "sets items of something that isn't a dictionary"
                            : wanted == KD_PICKLE_LIST ? "appends to something that isn't a list"
                                                       : "adds to something that isn't a set");
    return append(m, target, items, n);
}

static kd_status add_marked_items(machine *m, kd_pickle_kind wanted)
{
    kd_pickle_value **items = NULL;
    size_t n = 0;
    KD_TRY(pop_to_mark(m, &items, &n));
    return add_items(m, wanted, items, n);
}

static kd_status add_last_items(machine *m, kd_pickle_kind wanted, size_t n)
{
    kd_pickle_value *items[2];
    for (size_t i = n; i-- > 0;)
        KD_TRY(pop(m, &items[i]));
    return add_items(m, wanted, items, n);
}

/* -- the few calls that mean something --------------------------------------------------------------------------------------- */

static const struct storage_class {
    const char *name;
    kd_dtype dtype;
} storage_classes[] = {{"FloatStorage", KD_F32}, {"HalfStorage", KD_F16},  {"BFloat16Storage", KD_BF16}, {"DoubleStorage", KD_F64},
                       {"LongStorage", KD_I64},  {"IntStorage", KD_I32},   {"ShortStorage", KD_I16},     {"CharStorage", KD_I8},
                       {"ByteStorage", KD_U8},   {"BoolStorage", KD_BOOL}};

static kd_status storage_dtype(machine *m, const kd_pickle_value *cls, kd_dtype *out)
{
    if (strcmp(cls->as.global.module, "torch") == 0 || strcmp(cls->as.global.module, "torch.cuda") == 0)
        for (size_t i = 0; i < sizeof storage_classes / sizeof storage_classes[0]; i++)
            if (strcmp(cls->as.global.name, storage_classes[i].name) == 0) {
                *out = storage_classes[i].dtype;
                return KD_OK;
            }
    return kd_fail(m->err, KD_EUSAGE, "%s: it holds tensors of element type %s.%s, which isn't supported; save plain f32, f16 or bf16 weights",
                   m->what, cls->as.global.module, cls->as.global.name);
}

static int is_count(const kd_pickle_value *v)
{
    return v->kind == KD_PICKLE_INTEGER && v->as.integer >= 0 && v->as.integer <= KD_WEIGHTS_MAX_NUMEL;
}

static kd_status remember_storage(machine *m, kd_pickle_storage *s)
{
    if (m->storage_count == m->storage_capacity) {
        size_t capacity = m->storage_capacity > 0 ? 2 * m->storage_capacity : 256;
        kd_pickle_storage **p = kd_arena_alloc(m->arena, capacity * sizeof *p);
        if (p == NULL)
            return no_memory(m);
        if (m->storage_count > 0)
            memcpy(p, m->storages, m->storage_count * sizeof *p);
        m->storages = p;
        m->storage_capacity = capacity;
    }
    m->storages[m->storage_count++] = s;
    return KD_OK;
}

/* The sixth item of a legacy file's persistent id: None, or (key, offset, size) of a view into the storage. */
static int set_storage_view(kd_pickle_value *s, const kd_pickle_value *view)
{
    if (view->kind == KD_PICKLE_NONE)
        return 1;
    if (view->kind != KD_PICKLE_TUPLE || view->as.seq.count != 3 || !is_count(view->as.seq.items[1]) || !is_count(view->as.seq.items[2]))
        return 0;
    s->as.storage.offset = view->as.seq.items[1]->as.integer;
    s->as.storage.numel = view->as.seq.items[2]->as.integer;
    return s->as.storage.offset + s->as.storage.numel <= s->as.storage.of->numel;
}

/* BINPERSID: ('storage', torch.XStorage, key, location, numel[, view]); a legacy file with a whole model also has ('module', class, ...). */
static kd_status make_storage(machine *m)
{
    kd_pickle_value *pid = NULL, *v = NULL;
    KD_TRY(pop(m, &pid));
    size_t count = pid->kind == KD_PICKLE_TUPLE ? pid->as.seq.count : 0;
    kd_pickle_value *const *item = count > 0 ? pid->as.seq.items : NULL;
    if (count > 0 && item[0]->kind == KD_PICKLE_TEXT && strcmp(item[0]->as.text.at, "module") == 0)
        return push_new(m, KD_PICKLE_OPAQUE, &v);
    if (count < 5 || item[0]->kind != KD_PICKLE_TEXT || strcmp(item[0]->as.text.at, "storage") != 0 || item[1]->kind != KD_PICKLE_GLOBAL ||
        item[2]->kind != KD_PICKLE_TEXT || !is_count(item[4]))
        return malformed(m, "has a persistent id that isn't a storage");
    if (item[2]->as.text.size > 64 || strlen(item[2]->as.text.at) != item[2]->as.text.size)
        return malformed(m, "has a storage key longer than 64 bytes");
    KD_TRY(charge(m, 2));
    kd_pickle_storage *s = kd_arena_alloc(m->arena, sizeof *s);
    if (s == NULL)
        return no_memory(m);
    s->key = item[2]->as.text.at;
    s->numel = item[4]->as.integer;
    KD_TRY(storage_dtype(m, item[1], &s->dtype));
    KD_TRY(remember_storage(m, s));
    KD_TRY(push_new(m, KD_PICKLE_STORAGE, &v));
    v->as.storage.of = s;
    v->as.storage.numel = s->numel;
    return count < 6 || set_storage_view(v, item[5]) ? KD_OK : malformed(m, "has a view of a storage that reaches outside it");
}

/* Whether the view stays inside numel elements: offset + sum((size - 1) * stride) < numel, without overflow. */
static int view_fits(const kd_pickle_tensor *t, int64_t numel)
{
    int64_t last = t->offset;
    for (int d = 0; d < t->rank; d++)
        if (t->shape[d] == 0)
            return t->offset <= numel;
    for (int d = 0; d < t->rank; d++) {
        int64_t reach = 0;
        if (__builtin_mul_overflow(t->shape[d] - 1, t->stride[d], &reach) || __builtin_add_overflow(last, reach, &last))
            return 0;
    }
    return last < numel;
}

static kd_status numbers_of(machine *m, const kd_pickle_value *v, int64_t *out, int *count)
{
    if (v->kind != KD_PICKLE_TUPLE || v->as.seq.count > KD_MAX_RANK)
        return malformed(m, "has a tensor whose size or stride isn't a tuple of at most 8 integers");
    for (size_t i = 0; i < v->as.seq.count; i++) {
        const kd_pickle_value *n = v->as.seq.items[i];
        if (n->kind != KD_PICKLE_INTEGER || n->as.integer < 0)
            return malformed(m, "has a tensor whose size or stride isn't a tuple of non-negative integers");
        out[i] = n->as.integer;
    }
    *count = (int)v->as.seq.count;
    return KD_OK;
}

/* torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...); the first four are what defines the tensor. */
static kd_status rebuild_tensor(machine *m, const kd_pickle_value *args, kd_pickle_value *out)
{
    int strides = 0;
    if (args->as.seq.count < 4)
        return malformed(m, "rebuilds a tensor from fewer than four arguments");
    kd_pickle_value *const *arg = args->as.seq.items;
    if (arg[0]->kind == KD_PICKLE_OPAQUE)
        return KD_OK;
    if (arg[0]->kind != KD_PICKLE_STORAGE || arg[1]->kind != KD_PICKLE_INTEGER || arg[1]->as.integer < 0)
        return malformed(m, "rebuilds a tensor from something that isn't a storage and an offset");
    KD_TRY(charge(m, 4));
    kd_pickle_tensor *t = kd_arena_alloc(m->arena, sizeof *t);
    if (t == NULL)
        return no_memory(m);
    t->storage = *arg[0]->as.storage.of;
    t->offset = arg[1]->as.integer;
    KD_TRY(numbers_of(m, arg[2], t->shape, &t->rank));
    KD_TRY(numbers_of(m, arg[3], t->stride, &strides));
    if (strides != t->rank)
        return malformed(m, "has a tensor whose size and stride differ in length");
    if (!view_fits(t, arg[0]->as.storage.numel))
        return malformed(m, "has a tensor that reaches outside its storage");
    t->offset += arg[0]->as.storage.offset;
    out->kind = KD_PICKLE_TENSOR;
    out->as.tensor = t;
    return KD_OK;
}

/* OrderedDict() or, from Python 2, OrderedDict([[key, value], ...]). */
static kd_status ordered_dict(machine *m, const kd_pickle_value *args, kd_pickle_value *out)
{
    out->kind = KD_PICKLE_DICT;
    if (args->as.seq.count == 0)
        return KD_OK;
    const kd_pickle_value *pairs = args->as.seq.items[0];
    if (args->as.seq.count != 1 || pairs->kind != KD_PICKLE_LIST)
        return malformed(m, "makes an OrderedDict from something that isn't a list of pairs");
    for (size_t i = 0; i < pairs->as.seq.count; i++) {
        const kd_pickle_value *pair = pairs->as.seq.items[i];
        if ((pair->kind != KD_PICKLE_LIST && pair->kind != KD_PICKLE_TUPLE) || pair->as.seq.count != 2)
            return malformed(m, "makes an OrderedDict from something that isn't a list of pairs");
        KD_TRY(append(m, out, pair->as.seq.items, 2));
    }
    return KD_OK;
}

/* set() or, before protocol 4, set([item, ...]). The items are copied: the list may grow later. */
static kd_status make_set(machine *m, const kd_pickle_value *args, kd_pickle_value *out)
{
    out->kind = KD_PICKLE_SET;
    if (args->as.seq.count == 0)
        return KD_OK;
    const kd_pickle_value *items = args->as.seq.items[0];
    if (args->as.seq.count != 1 || items->kind != KD_PICKLE_LIST)
        return malformed(m, "makes a set from something that isn't a list");
    return append(m, out, items->as.seq.items, items->as.seq.count);
}

typedef enum call_kind { CALL_ORDERED_DICT, CALL_TENSOR, CALL_FIRST_TENSOR, CALL_TYPED, CALL_SIZE, CALL_SET } call_kind;

static const struct known_call {
    const char *module, *name;
    call_kind call;
} known_calls[] = {
    {"collections", "OrderedDict", CALL_ORDERED_DICT},
    {"torch._utils", "_rebuild_tensor_v2", CALL_TENSOR},
    {"torch._utils", "_rebuild_tensor", CALL_TENSOR},
    {"torch._utils", "_rebuild_parameter", CALL_FIRST_TENSOR},
    {"torch._utils", "_rebuild_parameter_with_state", CALL_FIRST_TENSOR},
    {"torch.nn.parameter", "Parameter", CALL_FIRST_TENSOR},
    {"torch._tensor", "_rebuild_from_type_v2", CALL_TYPED},
    {"torch", "Size", CALL_SIZE},
    {"builtins", "set", CALL_SET},
    {"__builtin__", "set", CALL_SET}, /* protocols below 3 */
};

static const struct known_call *find_call(const kd_pickle_value *callee)
{
    if (callee->kind == KD_PICKLE_GLOBAL)
        for (size_t i = 0; i < sizeof known_calls / sizeof known_calls[0]; i++)
            if (strcmp(callee->as.global.module, known_calls[i].module) == 0 && strcmp(callee->as.global.name, known_calls[i].name) == 0)
                return &known_calls[i];
    return NULL;
}

/* torch._tensor._rebuild_from_type_v2(function, type, arguments, state): a tensor that carries Python attributes. Only plain tensors and
 * Parameters are looked through, so that a chain of such calls isn't followed. */
static kd_status rebuild_typed(machine *m, const kd_pickle_value *args, kd_pickle_value *out)
{
    if (args->as.seq.count < 3 || args->as.seq.items[2]->kind != KD_PICKLE_TUPLE)
        return KD_OK;
    const struct known_call *inner = find_call(args->as.seq.items[0]);
    const kd_pickle_value *inner_args = args->as.seq.items[2];
    if (inner != NULL && inner->call == CALL_TENSOR)
        return rebuild_tensor(m, inner_args, out);
    if (inner != NULL && inner->call == CALL_FIRST_TENSOR && inner_args->as.seq.count > 0 && inner_args->as.seq.items[0]->kind == KD_PICKLE_TENSOR)
        *out = *inner_args->as.seq.items[0];
    return KD_OK;
}

/* Pushes the result of callee(*args). Nothing is called: an unknown callee gives an opaque value and its arguments are dropped. */
static kd_status call_global(machine *m, const kd_pickle_value *callee, const kd_pickle_value *args)
{
    kd_pickle_value *out = NULL;
    KD_TRY(push_new(m, KD_PICKLE_OPAQUE, &out));
    if (callee->kind != KD_PICKLE_GLOBAL)
        return callee->kind == KD_PICKLE_OPAQUE ? KD_OK : malformed(m, "calls something that isn't a function");
    if (args->kind != KD_PICKLE_TUPLE)
        return args->kind == KD_PICKLE_OPAQUE ? KD_OK : malformed(m, "calls a function without a tuple of arguments");
    const struct known_call *known = find_call(callee);
    if (known == NULL)
        return KD_OK;
    const kd_pickle_value *first = args->as.seq.count > 0 ? args->as.seq.items[0] : NULL;
    switch (known->call) {
    case CALL_ORDERED_DICT: return ordered_dict(m, args, out);
    case CALL_TENSOR: return rebuild_tensor(m, args, out);
    case CALL_TYPED: return rebuild_typed(m, args, out);
    case CALL_SET: return make_set(m, args, out);
    case CALL_FIRST_TENSOR:
        if (first != NULL && first->kind == KD_PICKLE_TENSOR)
            *out = *first;
        return KD_OK;
    case CALL_SIZE:
        if (first != NULL && first->kind == KD_PICKLE_TUPLE)
            *out = *first;
        return KD_OK;
    }
    return KD_OK;
}

static kd_status reduce(machine *m)
{
    kd_pickle_value *args = NULL, *callee = NULL;
    KD_TRY(pop(m, &args));
    KD_TRY(pop(m, &callee));
    return call_global(m, callee, args);
}

/* NEWOBJ_EX has keyword arguments on top; no known class uses them. */
static kd_status new_object_ex(machine *m)
{
    kd_pickle_value *keywords = NULL;
    KD_TRY(pop(m, &keywords));
    return reduce(m);
}

/* BUILD: an object keeps the dictionary that becomes its __dict__ (with slots it is the first of two); what else carries a state, as an
 * OrderedDict or a tensor may, is complete without. */
static kd_status build(machine *m)
{
    kd_pickle_value *state = NULL, *object = NULL;
    KD_TRY(pop(m, &state));
    KD_TRY(top(m, &object));
    if (state->kind == KD_PICKLE_TUPLE && state->as.seq.count == 2)
        state = state->as.seq.items[0];
    if (object->kind != KD_PICKLE_OPAQUE || state->kind != KD_PICKLE_DICT)
        return KD_OK;
    if (object->as.state != NULL)
        return malformed(m, "builds an object twice");
    object->as.state = state;
    return KD_OK;
}

/* GLOBAL: two lines of text, module and name. */
static kd_status global_lines(machine *m)
{
    const char *part[2];
    kd_pickle_value *v = NULL;
    for (int i = 0; i < 2; i++) {
        const uint8_t *start = m->bytes + m->at;
        const uint8_t *end = memchr(start, '\n', m->size - m->at);
        if (end == NULL)
            return malformed(m, "ends in the middle of a name");
        KD_TRY(copy_text(m, start, (size_t)(end - start), &part[i]));
        m->at += (size_t)(end - start) + 1;
    }
    KD_TRY(push_new(m, KD_PICKLE_GLOBAL, &v));
    v->as.global.module = part[0];
    v->as.global.name = part[1];
    return KD_OK;
}

static kd_status stack_global(machine *m)
{
    kd_pickle_value *name = NULL, *module = NULL, *v = NULL;
    KD_TRY(pop(m, &name));
    KD_TRY(pop(m, &module));
    if (name->kind != KD_PICKLE_TEXT || module->kind != KD_PICKLE_TEXT)
        return malformed(m, "names a class by something that isn't a string");
    KD_TRY(push_new(m, KD_PICKLE_GLOBAL, &v));
    v->as.global.module = module->as.text.at;
    v->as.global.name = name->as.text.at;
    return KD_OK;
}

/* -- opcodes (names and bytes: Python's Lib/pickle.py) ----------------------------------------------------------------------- */

static kd_status mark(machine *m)
{
    if (m->mark_count == MAX_MARKS)
        return malformed(m, "nests more than 4096 marks");
    m->marks[m->mark_count++] = m->depth;
    return KD_OK;
}

static kd_status push_kind(machine *m, kd_pickle_kind k)
{
    kd_pickle_value *v = NULL;
    return push_new(m, k, &v);
}

static kd_status step_numbers(machine *m, int op, int *known)
{
    uint64_t n = 0;
    *known = 1;
    switch (op) {
    case 'N': return push_kind(m, KD_PICKLE_NONE);
    case 0x88: return push_integer(m, KD_PICKLE_BOOLEAN, 1);                                                     /* NEWTRUE */
    case 0x89: return push_integer(m, KD_PICKLE_BOOLEAN, 0);                                                     /* NEWFALSE */
    case 'J': KD_TRY(take_number(m, 4, &n)); return push_integer(m, KD_PICKLE_INTEGER, (int32_t)(uint32_t)n);    /* BININT */
    case 'K': KD_TRY(take_number(m, 1, &n)); return push_integer(m, KD_PICKLE_INTEGER, (int64_t)n);              /* BININT1 */
    case 'M': KD_TRY(take_number(m, 2, &n)); return push_integer(m, KD_PICKLE_INTEGER, (int64_t)n);              /* BININT2 */
    case 0x8a: return push_long(m, 1);                                                                           /* LONG1 */
    case 0x8b: return push_long(m, 4);                                                                           /* LONG4 */
    case 'G': return push_real(m);                                                                               /* BINFLOAT */
    case 'X': return push_text(m, KD_PICKLE_TEXT, 4);                                                            /* BINUNICODE */
    case 0x8c: return push_text(m, KD_PICKLE_TEXT, 1);                                                           /* SHORT_BINUNICODE */
    case 0x8d: return push_text(m, KD_PICKLE_TEXT, 8);                                                           /* BINUNICODE8 */
    case 'T': return push_text(m, KD_PICKLE_TEXT, 4);                                                            /* BINSTRING, of Python 2 */
    case 'U': return push_text(m, KD_PICKLE_TEXT, 1);                                                            /* SHORT_BINSTRING */
    case 'B': return push_text(m, KD_PICKLE_BYTES, 4);                                                           /* BINBYTES */
    case 'C': return push_text(m, KD_PICKLE_BYTES, 1);                                                           /* SHORT_BINBYTES */
    case 0x96: return push_text(m, KD_PICKLE_BYTES, 8);                                                          /* BYTEARRAY8 */
    case 0x8e: return push_text(m, KD_PICKLE_BYTES, 8);                                                          /* BINBYTES8 */
    default: *known = 0; return KD_OK;
    }
}

static kd_status step_containers(machine *m, int op, int *known)
{
    kd_pickle_value **items = NULL, *dropped = NULL;
    size_t count = 0;
    *known = 1;
    switch (op) {
    case '(': return mark(m);
    case '0': return pop(m, &dropped);                                                                           /* POP */
    case '1': return pop_to_mark(m, &items, &count);                                                             /* POP_MARK */
    case ')': return push_kind(m, KD_PICKLE_TUPLE);                                                              /* EMPTY_TUPLE */
    case ']': return push_kind(m, KD_PICKLE_LIST);                                                               /* EMPTY_LIST */
    case '}': return push_kind(m, KD_PICKLE_DICT);                                                               /* EMPTY_DICT */
    case 0x8f: return push_kind(m, KD_PICKLE_SET);                                                               /* EMPTY_SET */
    case 0x91: KD_TRY(pop_to_mark(m, &items, &count)); return push_kind(m, KD_PICKLE_OPAQUE);                    /* FROZENSET */
    case 't': KD_TRY(pop_to_mark(m, &items, &count)); return make_tuple(m, items, count);                        /* TUPLE */
    case 0x85: return make_short_tuple(m, 1);
    case 0x86: return make_short_tuple(m, 2);
    case 0x87: return make_short_tuple(m, 3);
    case 'a': return add_last_items(m, KD_PICKLE_LIST, 1);                                                       /* APPEND */
    case 'e': return add_marked_items(m, KD_PICKLE_LIST);                                                        /* APPENDS */
    case 's': return add_last_items(m, KD_PICKLE_DICT, 2);                                                       /* SETITEM */
    case 'u': return add_marked_items(m, KD_PICKLE_DICT);                                                        /* SETITEMS */
    case 0x90: return add_marked_items(m, KD_PICKLE_SET);                                                        /* ADDITEMS */
    default: *known = 0; return KD_OK;
    }
}

static kd_status step_objects(machine *m, int op, int *known)
{
    uint64_t n = 0;
    *known = 1;
    switch (op) {
    case 'c': return global_lines(m);                                                                            /* GLOBAL */
    case 0x93: return stack_global(m);                                                                           /* STACK_GLOBAL */
    case 'R': case 0x81: return reduce(m);                                                                       /* REDUCE, NEWOBJ */
    case 0x92: return new_object_ex(m);                                                                          /* NEWOBJ_EX */
    case 'b': return build(m);                                                                                   /* BUILD */
    case 'Q': return make_storage(m);                                                                            /* BINPERSID */
    case 'q': KD_TRY(take_number(m, 1, &n)); return memo_put(m, (size_t)n);                                      /* BINPUT */
    case 'r': KD_TRY(take_number(m, 4, &n)); return memo_put(m, (size_t)n);                                      /* LONG_BINPUT */
    case 0x94: return memo_put(m, m->memo_next);                                                                 /* MEMOIZE */
    case 'h': KD_TRY(take_number(m, 1, &n)); return memo_get(m, (size_t)n);                                      /* BINGET */
    case 'j': KD_TRY(take_number(m, 4, &n)); return memo_get(m, (size_t)n);                                      /* LONG_BINGET */
    case 0x80: KD_TRY(take_number(m, 1, &n)); return n <= 5 ? KD_OK : malformed(m, "has an unknown protocol version"); /* PROTO */
    case 0x95: KD_TRY(take_number(m, 8, &n)); return n <= m->size - m->at ? KD_OK : malformed(m, "has a frame longer than itself"); /* FRAME */
    default: *known = 0; return KD_OK;
    }
}

static kd_status run(machine *m, kd_pickle_value **root)
{
    for (;;) {
        const uint8_t *op = NULL;
        int known = 0;
        m->op_at = m->at;
        if (m->at == m->size)
            return malformed(m, "ends without STOP");
        KD_TRY(take(m, 1, &op));
        if (*op == '.')
            return m->mark_count > 0 ? malformed(m, "stops inside a mark") : pop(m, root);
        KD_TRY(step_numbers(m, *op, &known));
        if (!known)
            KD_TRY(step_containers(m, *op, &known));
        if (!known)
            KD_TRY(step_objects(m, *op, &known));
        if (!known)
            return kd_fail(m->err, KD_EFAIL, "%s: the pickle at byte %zu has opcode 0x%02x, which torch.save doesn't write; the file is damaged "
                           "or of another kind", m->what, m->op_at, *op);
    }
}

kd_status kd_pickle_run(const uint8_t *bytes, size_t size, size_t start, const char *what, kd_arena *arena, kd_pickle_result *out, kd_err *err)
{
    machine *m = NULL;
    kd_pickle_value *root = NULL;
    KD_ASSERT(start <= size);
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    m->bytes = bytes;
    m->size = size;
    m->at = start;
    m->what = what;
    m->arena = arena;
    m->err = err;
    m->budget = MAX_VALUES;
    /* The stack exists from the start, so that even an empty mark points into it. */
    kd_status status = grow(m, &m->stack, &m->stack_capacity, 1, MAX_STACK, "stack");
    if (status == KD_OK)
        status = run(m, &root);
    if (status == KD_OK)
        *out = (kd_pickle_result){root, m->at, m->storages, m->storage_count};
    kd_free(m->stack);
    kd_free(m->memo);
    kd_free(m);
    return status;
}
