/* Inside of common/weights only: values from a PyTorch pickle, without executing anything.
 *
 * Python's pickle is a program for a stack machine that may call any function. This machine knows numbers, strings, tuples, lists,
 * dictionaries and PyTorch's tensors; names of classes and functions are only compared with a short list, never looked up, and every other
 * call gives an opaque value that nobody can use. So a malicious file can at worst be refused.
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
    KD_PICKLE_OPAQUE /* the result of an unknown call: may be passed on, never looked into */
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
        } seq; /* TUPLE, LIST; DICT: key, value, key, value, ... */
        struct {
            const char *module, *name;
        } global;
        struct {
            const kd_pickle_storage *of;
            int64_t offset, numel; /* the part that is meant: all of it, but for the storage views of PyTorch before 0.4 */
        } storage;
        kd_pickle_tensor *tensor; /* without a name */
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

/* Lists the tensors that the dictionaries and lists of root hold, in their order; everything in arena.
 * KD_EFAIL: a bound. KD_EUSAGE: root isn't a dictionary or list, or holds no tensors. */
kd_status kd_pickle_collect(const kd_pickle_value *root, const char *what, kd_arena *arena, kd_pickle_tensor **tensors, size_t *count, kd_err *err);

/* Both for one pickle. */
kd_status kd_unpickle_tensors(const uint8_t *bytes, size_t size, const char *what, kd_arena *arena, kd_pickle_tensor **tensors, size_t *count,
                              kd_err *err);

#endif
