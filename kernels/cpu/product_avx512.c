/* product.h with AVX-512: tiles of 12 x 32, 24 sums in registers, or 8 x 32; for a step two vectors of weights and twelve values of the source, each spread over a vector. A processor does two such multiply-adds a cycle. */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"

enum { ROWS = KD_PRODUCT_MOST_ROWS, FEW_ROWS = 8, LANES = KD_LANES16, COLUMNS = 2 * LANES, STEP = 4, PANEL_STEP = COLUMNS * STEP };

/* ---- sums ---- */

#define TURN(madd, u) \
    do { \
        __m512i b0 = _mm512_load_si512(b + (u) * PANEL_STEP), b1 = vectors > 1 ? _mm512_load_si512(b + (u) * PANEL_STEP + LANES * STEP) : b0; \
        KD_ROW(madd, 0, r0 + k + (u) * STEP); \
        KD_ROW(madd, 1, r1 + k + (u) * STEP); \
        KD_ROW(madd, 2, r2 + k + (u) * STEP); \
        KD_ROW(madd, 3, r3 + k + (u) * STEP); \
        KD_ROW(madd, 4, r4 + k + (u) * STEP); \
        KD_ROW(madd, 5, r5 + k + (u) * STEP); \
        KD_ROW(madd, 6, r6 + k + (u) * STEP); \
        KD_ROW(madd, 7, r7 + k + (u) * STEP); \
        if (rows > FEW_ROWS) { \
            KD_ROW(madd, 8, r8 + k + (u) * STEP); \
            KD_ROW(madd, 9, r9 + k + (u) * STEP); \
            KD_ROW(madd, 10, r10 + k + (u) * STEP); \
            KD_ROW(madd, 11, r11 + k + (u) * STEP); \
        } \
    } while (0)

enum { UNROLL = 4 };

/* sum[rows][vectors] of sixteen, rows 12 or 8: as many addresses and the weights' in registers. */
#define SUMS(name, isa, madd) \
    __attribute__((target(isa), always_inline)) static inline void name(__m512 sum[ROWS][2], const kd_product_tile *t, const int rows, const int vectors) { \
        size_t bytes = t->steps * STEP; \
        _Pragma("GCC unroll 12") for (int m = 0; m < rows; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps(); \
        for (size_t i = 0; i < t->taps; i++) { \
            const kd_product_tap *tap = &t->tap[i]; \
            const char *b = t->panel + tap->at; \
            const char *const r0 = tap->row[0], *const r1 = tap->row[1], *const r2 = tap->row[2], *const r3 = tap->row[3], *const r4 = tap->row[4], *const r5 = tap->row[5]; \
            const char *const r6 = tap->row[6], *const r7 = tap->row[7], *const r8 = tap->row[rows > FEW_ROWS ? 8 : 0], *const r9 = tap->row[rows > FEW_ROWS ? 9 : 0], *const r10 = tap->row[rows > FEW_ROWS ? 10 : 0], *const r11 = tap->row[rows > FEW_ROWS ? 11 : 0]; \
            (void)r8, (void)r9, (void)r10, (void)r11; \
            size_t k = 0; \
            for (; k + UNROLL * STEP <= bytes; k += UNROLL * STEP, b += UNROLL * PANEL_STEP) { \
                TURN(madd, 0); \
                TURN(madd, 1); \
                TURN(madd, 2); \
                TURN(madd, 3); \
            } \
            for (; k < bytes; k += STEP, b += PANEL_STEP) \
                TURN(madd, 0); \
        } \
    }
SUMS(sums_f32, KD_AVX512, KD_MADD_F32)
SUMS(sums_bf16, KD_AVX512_BF16, KD_MADD_BF16)

/* ---- what becomes of them ---- */

KD_WIDE_LANE __m512 load_any(const void *p, kd_dtype type, size_t i, __mmask16 here) {
    return type == KD_F32 ? _mm512_maskz_loadu_ps(here, (const float *)p + i) : kd_widen16(here, (const uint16_t *)p + i);
}

KD_WIDE_LANE __m512 finished(const kd_product_tile *t, kd_dtype type, int add, __m512 v, __m512 bias, size_t at, __mmask16 here) {
    if (add)
        return _mm512_add_ps(v, load_any(t->out, type, at, here));
    v = _mm512_add_ps(v, bias);
    return t->finish->act == KD_ACT_RELU ? _mm512_max_ps(_mm512_setzero_ps(), v) : v; /* in this order: of a NaN and a zero the second */
}

#define STORE_F32(at, here, v) _mm512_mask_storeu_ps((float *)t->out + (at), here, v)
#define STORE_BF16(at, here, v) kd_narrow16((uint16_t *)t->out + (at), here, v)

#define BIAS(v, here) (t->finish->bias ? _mm512_maskz_loadu_ps(here, t->finish->bias + t->column + (size_t)(v) * LANES) : _mm512_setzero_ps())

/* A tile of whole rows and vectors out of registers, any other one by way of memory: for a type of operands, and one of the result, whose instructions the other may not have. */
#define TILE(name, isa, sums, type_, store) \
    __attribute__((target(isa), always_inline)) static inline void name##_whole(const kd_product_tile *t, const int rows, const int vectors, const int add) { \
        __m512 sum[ROWS][2], bias[2] = {BIAS(0, 0xffff), vectors > 1 ? BIAS(1, 0xffff) : _mm512_setzero_ps()}; \
        sums(sum, t, rows, vectors); \
        _Pragma("GCC unroll 12") for (size_t r = 0; r < (size_t)rows; r++) _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) { \
            size_t at = t->at[r] + t->column + (size_t)v * LANES; \
            store(at, 0xffff, finished(t, type_, add, sum[r][v], bias[v], at, 0xffff)); \
        } \
    } \
    __attribute__((target(isa), always_inline)) static inline void name##_sums(__m512 out[ROWS][2], const kd_product_tile *t, const int rows, const int vectors) { \
        __m512 sum[ROWS][2]; \
        sums(sum, t, rows, vectors); \
        _Pragma("GCC unroll 12") for (size_t r = 0; r < (size_t)rows; r++) out[r][0] = sum[r][0], out[r][1] = sum[r][1]; \
    } \
    __attribute__((target(isa), noinline)) static void name##_part(const kd_product_tile *t) { \
        _Alignas(64) __m512 sum[ROWS][2]; \
        switch (2 * (t->rows > FEW_ROWS) + (t->columns > LANES)) { \
        case 0: name##_sums(sum, t, FEW_ROWS, 1); break; \
        case 1: name##_sums(sum, t, FEW_ROWS, 2); break; \
        case 2: name##_sums(sum, t, ROWS, 1); break; \
        default: name##_sums(sum, t, ROWS, 2); break; \
        } \
        for (size_t r = 0; r < t->rows; r++) \
            for (size_t j = 0; j < t->columns; j += LANES) { \
                __mmask16 here = kd_first16(t->columns - j); \
                size_t at = t->at[r] + t->column + j; \
                store(at, here, finished(t, type_, t->add, sum[r][j / LANES], BIAS(j / LANES, here), at, here)); \
            } \
    } \
    __attribute__((target(isa))) static void name(const kd_product_tile *t) { \
        int few = t->rows == FEW_ROWS; \
        if ((t->rows < ROWS && !few) || t->columns % LANES) { \
            name##_part(t); \
            return; \
        } \
        switch (4 * few + 2 * (t->columns == COLUMNS) + (t->add != 0)) { \
        case 0: name##_whole(t, ROWS, 1, 0); break; \
        case 1: name##_whole(t, ROWS, 1, 1); break; \
        case 2: name##_whole(t, ROWS, 2, 0); break; \
        case 3: name##_whole(t, ROWS, 2, 1); break; \
        case 4: name##_whole(t, FEW_ROWS, 1, 0); break; \
        case 5: name##_whole(t, FEW_ROWS, 1, 1); break; \
        case 6: name##_whole(t, FEW_ROWS, 2, 0); break; \
        default: name##_whole(t, FEW_ROWS, 2, 1); break; \
        } \
    }
TILE(f32_to_f32, KD_AVX512, sums_f32, KD_F32, STORE_F32)
TILE(f32_to_bf16, KD_AVX512_BF16, sums_f32, KD_BF16, STORE_BF16)
TILE(bf16_to_f32, KD_AVX512_BF16, sums_bf16, KD_F32, STORE_F32)
TILE(bf16_to_bf16, KD_AVX512_BF16, sums_bf16, KD_BF16, STORE_BF16)

static void tile(kd_dtype type, const kd_product_tile *t) {
    if (type == KD_F32)
        t->type == KD_F32 ? f32_to_f32(t) : f32_to_bf16(t);
    else
        t->type == KD_F32 ? bf16_to_f32(t) : bf16_to_bf16(t);
}

/* ---- weights: sixteen rows of steps, one per column, are written as columns. A row has the taps of one depth or, of a 1x1, depths ---- */

/* Sixteen floats as steps; bf16: with another sixteen, of which each is the second of a pair. */
KD_WIDE_LANE __m512i row_f32(const float *first, __mmask16 here, const float *second, __mmask16 second_here, __m512i order) {
    (void)second, (void)second_here, (void)order;
    return _mm512_maskz_loadu_epi32(here, first);
}

KD_WIDE_BF16_LANE __m512i row_bf16(const float *first, __mmask16 here, const float *second, __mmask16 second_here, __m512i order) {
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(second_here, second), _mm512_maskz_loadu_ps(here, first)));
}

/* Of 32 elements, in the order step i, second + step i. */
KD_WIDE_LANE __m512i pairs_of(int step, int second) {
    __m512i first = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(step));
    return _mm512_or_si512(first, _mm512_slli_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(second)), 16));
}

KD_WIDE_LANE void put_columns(char *to, size_t distance, const __m512i row[LANES], size_t count) {
    __m512i column[LANES];
    kd_turn16(column, row);
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES && i < count; i++)
        _mm512_store_si512(to + i * distance, column[i]);
}

/* Columns `first` .. + 15. to: of the first of them. */
#define PACK(name, isa, row, pair) \
    __attribute__((target(isa))) static void name##_taps(char *to, const kd_product_weights *w, size_t first, size_t begin, size_t end) { \
        const size_t n = w->columns > first ? w->columns - first : 0, steps = (w->depths + pair - 1) / pair; \
        const __m512i order = pairs_of(1, LANES); \
        for (size_t d = begin; d < end; d += pair) \
            for (size_t t = 0; t < w->taps; t += LANES) { \
                const float *from = w->w + first * w->column + d * w->depth + t; \
                __mmask16 here = kd_first16(w->taps - t), second_here = d + 1 < end ? here : 0; \
                __m512i rows[LANES]; \
                for (size_t j = 0; j < LANES * w->taps && w->column < w->depth; j += LANES) /* rows of other depths, far apart */ \
                    for (size_t q = 0; q < pair; q++) \
                        __builtin_prefetch(from + (4 * pair + q) * w->depth + j); \
                _Pragma("GCC unroll 16") for (size_t j = 0; j < LANES; j++) \
                    rows[j] = j < n ? row(from + j * w->column, here, from + j * w->column + w->depth, second_here, order) : _mm512_setzero_si512(); \
                put_columns(to + (t * steps + d / pair) * PANEL_STEP, steps * PANEL_STEP, rows, w->taps - t); \
            } \
    } \
    __attribute__((target(isa))) static void name##_depths(char *to, const kd_product_weights *w, size_t first, size_t begin, size_t end) { \
        const size_t n = w->columns > first ? w->columns - first : 0; \
        const __m512i order = pairs_of(2, 1); \
        for (size_t d = begin; d < end; d += LANES * pair) { \
            const float *from = w->w + first * w->column + d; \
            __mmask16 here = kd_first16(end - d), second_here = end - d > LANES ? kd_first16(end - d - LANES) : 0; \
            __m512i rows[LANES]; \
            _Pragma("GCC unroll 16") for (size_t j = 0; j < LANES; j++) \
                rows[j] = j < n ? row(from + j * w->column, here, from + j * w->column + LANES, second_here, order) : _mm512_setzero_si512(); \
            put_columns(to + d / pair * PANEL_STEP, PANEL_STEP, rows, (end - d + pair - 1) / pair); \
        } \
    } \
    __attribute__((target(isa))) static void name##_vectors(char *to, const kd_product_weights *w, size_t first, size_t begin, size_t end) { \
        const __m512i order = pairs_of(1, LANES); \
        __mmask16 here = w->columns > first ? kd_first16(w->columns - first) : 0; \
        for (size_t d = begin; d < end; d += pair) { \
            const float *from = w->w + first + d * w->depth; \
            __builtin_prefetch(from + COLUMNS); /* the next panel's */ \
            __builtin_prefetch(from + w->depth + COLUMNS); \
            _mm512_store_si512(to + d / pair * PANEL_STEP, row(from, here, from + w->depth, d + 1 < end ? here : 0, order)); \
        } \
    } \
    static void name(char *to, const kd_product_weights *w, size_t begin, size_t end) { \
        for (size_t first = 0; first < COLUMNS; first += LANES) \
            if (w->taps > 1) \
                name##_taps(to + first * STEP, w, first, begin, end); \
            else if (w->depth == 1) \
                name##_depths(to + first * STEP, w, first, begin, end); \
            else \
                name##_vectors(to + first * STEP, w, first, begin, end); \
    }
PACK(pack_f32, KD_AVX512, row_f32, 1)
PACK(pack_bf16, KD_AVX512_BF16, row_bf16, 2)

static void pack(kd_dtype type, void *to, const kd_product_weights *w, size_t begin, size_t end) {
    if (type == KD_F32)
        pack_f32(to, w, begin, end);
    else
        pack_bf16(to, w, begin, end);
}

const kd_product_kind kd_product_avx512 = {ROWS, COLUMNS, FEW_ROWS, tile, pack};
