/* Inside of common/weights only: values from a PyTorch pickle, without executing anything.
 *
 * Python's pickle is a program for a stack machine that may call any function. This machine knows numbers, strings, tuples, lists, sets,
 * dictionaries and PyTorch's tensors; names of classes and functions are only compared with a short list, never looked up, and every other
 * call gives an opaque object: its arguments are dropped, and the state that it is built with is kept as data. So a malicious file can at
 * worst be refused. An object whose state has the three dictionaries of a torch.nn.Module is read as one, whatever its class.
 *
 * Every quantity is bounded (bytes, stack, memo, values, depth); a bound that is hit is an error with a sentence. unpickle.c is the machine,
 * pickle_tensors.c the walk over its result. */
#ifndef KD_COMMON_WEIGHTS_UNPICKLE_H
#define KD_COMMON_WEIGHTS_UNPICKLE_H

#include "common/base/mem.h"
#include "common/tensor/tensor.h"

enum { KD_PICKLE_MAX_BYTES = 64 << 20 };

/* What a persistent id names: a run of numel elements under a key, in the zip's entry PREFIX/data/KEY or in the legacy file's tail. */
typedef struct kd_pickle_storage {
    const char *key; /* at most 64 bytes */
    kd_dtype dtype;
    int64_t numel;
} kd_pickle_storage;

/* A tensor as the pickle describes it: a view into a storage, all numbers checked against the storage's numel. */
typedef struct kd_pickle_tensor {
    const char *name; /* path through the nested dictionaries, joined with '.' */
    kd_pickle_storage storage;
    int64_t offset; /* elements */
    int rank;
    int64_t shape[KD_MAX_RANK], stride[KD_MAX_RANK];
} kd_pickle_tensor;

typedef enum kd_pickle_kind {
    KD_PICKLE_NONE,
    KD_PICKLE_BOOLEAN,
    KD_PICKLE_INTEGER,
    KD_PICKLE_REAL,
    KD_PICKLE_TEXT,
    KD_PICKLE_BYTES,
    KD_PICKLE_TUPLE,
    KD_PICKLE_LIST,
    KD_PICKLE_DICT,
    KD_PICKLE_GLOBAL, /* the name of a class or function */
    KD_PICKLE_STORAGE,
    KD_PICKLE_TENSOR,
    KD_PICKLE_SET,
    KD_PICKLE_OPAQUE /* the result of an unknown call: an object of which only the state is known */
} kd_pickle_kind;

typedef struct kd_pickle_value kd_pickle_value;
struct kd_pickle_value {
    kd_pickle_kind kind;
    union {
        int64_t integer; /* also BOOLEAN */
        double real;
        struct {
            const char *at; /* NUL-terminated copy */
            size_t size;
        } text; /* TEXT, BYTES */
        struct {
            kd_pickle_value **items;
            size_t count, capacity;
        } seq; /* TUPLE, LIST, SET; DICT: key, value, key, value, ... */
        struct {
            const char *module, *name;
        } global;
        struct {
            const kd_pickle_storage *of;
            int64_t offset, numel; /* the part that is meant: all of it, but for the storage views of PyTorch before 0.4 */
        } storage;
        kd_pickle_tensor *tensor; /* without a name */
        const kd_pickle_value *state; /* OPAQUE: the dictionary that BUILD gave it (its __dict__), or NULL */
    } as;
};

/* What a run leaves, in the arena that it was given. */
typedef struct kd_pickle_result {
    const kd_pickle_value *root;
    size_t end;                   /* where the pickle ended: the byte after its STOP */
    kd_pickle_storage **storages; /* one for each persistent id, in order; a key may come many times */
    size_t storage_count;
} kd_pickle_result;

/* Runs the pickle that begins at bytes[start]. `what` names the source in sentences.
 * KD_EFAIL: malformed, a bound, a view outside its storage. KD_EUSAGE: an element type that isn't read. */
kd_status kd_pickle_run(const uint8_t *bytes, size_t size, size_t start, const char *what, kd_arena *arena, kd_pickle_result *out, kd_err *err);

/* The tensors of a checkpoint. */
typedef struct kd_pickle_list {
    kd_pickle_tensor *tensors;
    size_t count;
    const char *module; /* a torch.nn.Module was read: "ema" or "model", the key that it stood under, or "" when it is all that the file holds; else NULL */
} kd_pickle_list;

/* Lists the tensors of root, everything in arena:
 *   - A module: what its state_dict() has, with these names, in this order: parameters, persistent buffers, then those of the modules in it.
 *   - A dictionary with a module under "ema" or, when that is None or absent, under "model" (ultralytics' checkpoints): that module alone.
 *   - Else what its nested dictionaries and lists hold, in their order; modules among them are passed over.
 * KD_EFAIL: a bound; a module whose parts aren't what PyTorch makes. KD_EUSAGE: root is something else, or holds no tensors. */
kd_status kd_pickle_collect(const kd_pickle_value *root, const char *what, kd_arena *arena, kd_pickle_list *out, kd_err *err);

/* Both for one pickle. */
kd_status kd_unpickle_tensors(const uint8_t *bytes, size_t size, const char *what, kd_arena *arena, kd_pickle_list *out, kd_err *err);

#endif
