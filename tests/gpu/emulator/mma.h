/* Products of 16 x 16 matrices by a warp (nvcuda::wmma) as kernels/cuda uses them; see cuda_runtime.h beside this file. Where the elements of a fragment lie is unspecified: by default as on the devices
 * so far, with KD_EMULATOR_LAYOUT=other scattered in another way for every kind of fragment, so that a kernel which takes an order for granted fails. All lanes must ask for the same; what a lane loads is read when
 * this lane arrives, so that a missing __syncwarp shows. */
#ifndef KD_EMULATOR_MMA_H
#define KD_EMULATOR_MMA_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"

struct __half { unsigned short bits; };

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a { enum { number = 0, is_b = 0 }; };
struct matrix_b { enum { number = 1, is_b = 1 }; };
struct accumulator { enum { number = 2, is_b = 0 }; };
enum layout_t { mem_row_major, mem_col_major };

template <class T> struct kd_elements { enum { count = 8, multiple = 8 }; };
template <> struct kd_elements<__half> { enum { count = 16, multiple = 8 }; }; /* every element twice */
template <> struct kd_elements<float> { enum { count = 8, multiple = 4 }; };

template <class Use, int m, int n, int k, class T, class Layout = void> class fragment {
    static_assert(m == 16 && n == 16 && k == 16, "only 16 x 16 x 16 is emulated");

public:
    enum { num_elements = kd_elements<T>::count };
    T x[num_elements];
    uint64_t matrix = 0; /* of operands: what was loaded, so that mma_sync sees whether all lanes loaded the same */
    fragment() { memset(x, 0xff, sizeof x); }
};

static inline void kd_must(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "emulated device: wmma: %s\n", what);
    abort();
}

/* Element i of this lane: its place row * 16 + column in the matrix. */
template <class Use, class T> static inline int kd_place(int i) {
    static const bool other = getenv("KD_EMULATOR_LAYOUT") && strcmp(getenv("KD_EMULATOR_LAYOUT"), "other") == 0;
    int lane = kd_emulator_lane(), e = i & 7;
    if (other)
        return ((8 * lane + e) * (37 + 16 * Use::number) + 11 * (int)sizeof(T) + kd_elements<T>::count) & 255;
    int group = lane >> 2, four = lane & 3, first = e >> 1 & 1, second = e >> 2;
    return Use::is_b ? (2 * four + (e & 1) + 8 * first) * 16 + group + 8 * second : (group + 8 * first) * 16 + 2 * four + (e & 1) + 8 * second;
}

static inline uint64_t kd_checked_matrix(const void *p, unsigned ldm, unsigned multiple) {
    kd_must((uintptr_t)p % 32 == 0, "a matrix must begin at a multiple of 32 bytes");
    kd_must(ldm % multiple == 0 && ldm >= 16, "rows must lie a multiple of 16 bytes apart");
    return (uint64_t)(uintptr_t)p + ((uint64_t)ldm << 48);
}
static const char *const kd_different = "the lanes of a warp name different matrices";

template <class T> static inline size_t kd_offset(int place, unsigned ldm, bool columns) {
    int row = place >> 4, column = place & 15;
    return columns ? (size_t)column * ldm + (size_t)row : (size_t)row * ldm + (size_t)column;
}

template <class Use, class T, class Layout> static inline void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout> &f, const T *p, unsigned ldm) {
    for (int i = 0; i < f.num_elements; i++)
        f.x[i] = p[kd_offset<T>(kd_place<Use, T>(i), ldm, std::is_same<Layout, col_major>::value)];
    f.matrix = kd_checked_matrix(p, ldm, kd_elements<T>::multiple);
}

template <class T> static inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, T> &f, const T *p, unsigned ldm, layout_t layout) {
    for (int i = 0; i < f.num_elements; i++)
        f.x[i] = p[kd_offset<T>(kd_place<accumulator, T>(i), ldm, layout == mem_col_major)];
    uint64_t matrix = kd_checked_matrix(p, ldm, kd_elements<T>::multiple);
    kd_must(kd_emulator_shuffle(matrix, 0) == matrix, kd_different);
}

template <class T> static inline void store_matrix_sync(T *p, const fragment<accumulator, 16, 16, 16, T> &f, unsigned ldm, layout_t layout) {
    for (int i = 0; i < f.num_elements; i++)
        p[kd_offset<T>(kd_place<accumulator, T>(i), ldm, layout == mem_col_major)] = f.x[i];
    uint64_t matrix = kd_checked_matrix(p, ldm, kd_elements<T>::multiple);
    kd_must(kd_emulator_shuffle(matrix, 0) == matrix, kd_different);
}

template <class Use, class T, class Layout> static inline void fill_fragment(fragment<Use, 16, 16, 16, T, Layout> &f, const T &value) {
    for (int i = 0; i < f.num_elements; i++)
        f.x[i] = value;
}

/* What a warp's lanes lay out for each other. Two of them in turn: a lane can't be more than one product ahead. */
struct kd_table {
    float left[16][16], right[16][16]; /* rows of a, columns of b */
    uint64_t a, b;
};

/* d = a b + c in f32: the lanes lay their elements out, then each computes its own. */
template <class LayoutA, class LayoutB>
static inline void mma_sync(fragment<accumulator, 16, 16, 16, float> &d, const fragment<matrix_a, 16, 16, 16, __nv_bfloat16, LayoutA> &a,
                            const fragment<matrix_b, 16, 16, 16, __nv_bfloat16, LayoutB> &b, const fragment<accumulator, 16, 16, 16, float> &c) {
    static kd_table tables[32][2];
    static unsigned char turn[1024];
    kd_table &t = tables[threadIdx.x / 32][turn[threadIdx.x] ^= 1];
    for (int i = 0; i < 8; i++) {
        int left = kd_place<matrix_a, __nv_bfloat16>(i), right = kd_place<matrix_b, __nv_bfloat16>(i);
        t.left[left >> 4][left & 15] = __bfloat162float(a.x[i]);
        t.right[right & 15][right >> 4] = __bfloat162float(b.x[i]);
    }
    t.a = a.matrix, t.b = b.matrix;
    __syncwarp();
    kd_must(t.a == a.matrix && t.b == b.matrix, kd_different);
    for (int i = 0; i < 8; i++) {
        int at = kd_place<accumulator, float>(i);
        const float *row = t.left[at >> 4], *column = t.right[at & 15];
        float sum = c.x[i];
        for (int k = 0; k < 16; k++)
            sum += row[k] * column[k];
        d.x[i] = sum;
    }
}

} // namespace wmma
} // namespace nvcuda
#endif
