#include "common/tensor/npy.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"

enum { ALIGN = 64, PRELUDE = 10 /* magic, version, length */, GROWTH = 21 /* digits that numpy leaves room for in the first axis */, HEADER = 512 };

static const char *descr(kd_dtype t) {
    switch (t) {
    case KD_F32: return "<f4";
    case KD_F16: return "<f2";
    case KD_F64: return "<f8";
    case KD_U8: return "|u1";
    case KD_I8: return "|i1";
    case KD_I16: return "<i2";
    case KD_I32: return "<i4";
    case KD_I64: return "<i8";
    case KD_BOOL: return "|b1";
    case KD_BF16: break;
    }
    KD_ASSERT(!"NumPy has no bf16");
    return "";
}

/* The whole header into `out`, padded so that the data are aligned; returns its length. */
static size_t make_header(char out[HEADER], const kd_tensor *t) {
    char *text = out + PRELUDE;
    size_t cap = HEADER - PRELUDE, n = (size_t)snprintf(text, cap, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr(t->dtype));
    for (int i = 0; i < t->rank; i++)
        n += (size_t)snprintf(text + n, cap - n, i > 0 ? ", %lld" : "%lld", (long long)t->shape[i]);
    n += (size_t)snprintf(text + n, cap - n, t->rank == 1 ? ",), }" : "), }");
    if (t->rank > 0)
        n += (size_t)snprintf(text + n, cap - n, "%*s", GROWTH - snprintf(NULL, 0, "%lld", (long long)t->shape[0]), "");
    size_t whole = (PRELUDE + n + 1 + ALIGN - 1) / ALIGN * ALIGN;
    memset(text + n, ' ', whole - PRELUDE - n - 1);
    out[whole - 1] = '\n';
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)((whole - PRELUDE) & 255);
    out[9] = (char)((whole - PRELUDE) >> 8);
    return whole;
}

kd_status kd_npy_write(const char *path, const kd_tensor *t, kd_err *err) {
    char header[HEADER]; /* 8 axes of 20 characters and 60 more */
    kd_replace *file;
    size_t size = make_header(header, t);
    KD_TRY(kd_io_replace_begin(&file, path, err));
    kd_status status = kd_io_replace_write(file, header, size, err);
    if (status == KD_OK)
        status = kd_io_replace_write(file, t->data, kd_tensor_numel(t) * kd_dtype_size(t->dtype), err);
    if (status == KD_OK)
        return kd_io_replace_commit(file, err);
    kd_io_replace_abort(file);
    return status;
}
