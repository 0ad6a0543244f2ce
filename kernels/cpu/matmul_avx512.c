/* matmul.h with AVX-512: f32, and bf16 with AVX512-BF16's dot products.
 *
 * Everything is counted in steps of four bytes: one f32, or a pair of bf16 that lie one after the other in depth. A panel of b is [step][48 columns] of them, and a tile of the result is 8 x 48:
 * 24 sums in registers, for a step three vectors of the panel and eight values of a, each spread over a vector. A processor does one or two such multiply-adds a cycle and needs up to six cycles for one: twelve sums would do.
 * Eight rows, because a first-level cache has eight ways or more: rows whose distance is a multiple of 4 KiB (1,024 or 4,096 columns are common) compete for one set of it. Twelve rows of 32 columns, which need as many
 * registers, took 7 % longer there, and no less elsewhere.
 *
 * The columns that are left over have a narrower panel, of one or two vectors; 64 are two of two, since eight sums are too few to keep the processor busy.
 *
 * a's rows are read where they lie. If a is transposed, eight of its columns (and as many more) are copied into a strip [step][16] first; if fewer than eight rows are left, they are copied, too, so that nothing
 * behind them is read. */
#include <string.h>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul.h"

enum { ROWS = KD_MATMUL_ROWS, LANES = KD_LANES16, VECTORS = 3, COLUMNS = KD_MATMUL_COLUMNS, STEP = 4, VECTOR = LANES * STEP };
_Static_assert(COLUMNS == VECTORS * LANES, "a panel is three vectors wide");

static size_t element(const kd_matmul *m) {
    return kd_dtype_size(m->type);
}

static size_t steps_of(const kd_matmul *m) {
    size_t at_once = STEP / element(m);
    return ((size_t)m->depth + at_once - 1) / at_once;
}

/* Of the panel that begins where `left` columns are left. */
static int64_t panel_columns(int64_t left) {
    if (left > COLUMNS && left <= 4 * LANES)
        return 2 * LANES;
    return left < COLUMNS ? left : COLUMNS;
}

static size_t vectors_of(int64_t columns) {
    return (size_t)(columns + LANES - 1) / LANES;
}

static size_t panels_bytes(const kd_matmul *m) {
    return vectors_of(m->columns) * steps_of(m) * VECTOR;
}

/* Eight rows of a, as a strip or one after the other. */
static size_t strip_bytes(const kd_matmul *m) {
    return steps_of(m) * VECTOR;
}

/* ---- copying ---- */

/* The steps [step][16] of rows k (and k + 1) that have n columns side by side; beyond them, and beyond the depth, zeros. `to` has a step every to_step bytes. */
KD_WIDE static void copy_columns(const kd_matmul *m, char *to, size_t to_step, const char *from, size_t row, int64_t n) {
    __mmask16 mask = kd_first16((size_t)n);
    if (m->type == KD_F32) {
        for (int64_t k = 0; k < m->depth; k++, from += row, to += to_step)
            _mm512_store_si512(to, _mm512_maskz_loadu_epi32(mask, from));
        return;
    }
    for (int64_t k = 0; k < m->depth; k += 2, from += 2 * row, to += to_step) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), high = _mm512_setzero_si512();
        if (k + 1 < m->depth)
            high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + row));
        _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* As copy_columns of n columns whose depth lies side by side; `column` bytes from one to the next. */
KD_WIDE static void turn_columns(const kd_matmul *m, char *to, size_t to_step, const char *from, size_t column, int64_t n) {
    int left = (int)steps_of(m);
    for (; left > 0; left -= LANES, from += LANES * STEP, to += LANES * to_step) {
        __mmask16 mask = kd_first16((size_t)left);
        __m512i rows[LANES], columns[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            rows[i] = i < n ? _mm512_maskz_loadu_epi32(mask, from + (size_t)i * column) : _mm512_setzero_si512();
        kd_turn16(columns, rows);
        for (int i = 0; i < left && i < LANES; i++)
            _mm512_store_si512(to + (size_t)i * to_step, columns[i]);
    }
}

static void matmul_pack(const kd_matmul *m, const void *b, void *panels) {
    char *panel = panels;
    for (int64_t first = 0, columns; first < m->columns; first += columns) {
        columns = panel_columns(m->columns - first);
        size_t panel_step = vectors_of(columns) * VECTOR;
        for (int64_t j = 0; j < columns; j += LANES) {
            int64_t n = columns - j < LANES ? columns - j : LANES;
            const char *from = (const char *)b + (size_t)((first + j) * m->b_column) * element(m);
            if (m->b_column == 1)
                copy_columns(m, panel + j * STEP, panel_step, from, (size_t)m->b_row * element(m), n);
            else
                turn_columns(m, panel + j * STEP, panel_step, from, (size_t)m->b_column * element(m), n);
        }
        panel += steps_of(m) * panel_step;
    }
}

/* ---- tiles ---- */

/* Eight rows of a: row m of step k begins at a + m row + k step (bytes). */
typedef struct strip {
    const char *a;
    size_t row;
    int turned; /* a [step][16]: row is STEP, step is VECTOR; else step is STEP */
} strip;

/* Row m of a tile += the value at `at` times b. */
#define ROW(madd, m, at) \
    do { \
        __m512i value_ = _mm512_set1_epi32(*(const kd_any32 *)(at)); \
        _Pragma("GCC unroll 3") for (int v_ = 0; v_ < vectors; v_++) madd(sum[m][v_], value_, b[v_]); \
    } while (0)

/* Addresses that the processor adds up itself, from four registers. */
#define TURN_ROWS(madd) \
    do { \
        ROW(madd, 0, a); \
        ROW(madd, 1, a + row); \
        ROW(madd, 2, a + 2 * row); \
        ROW(madd, 3, a + row3); \
        ROW(madd, 4, a + 4 * row); \
        ROW(madd, 5, a + row5); \
        ROW(madd, 6, a + 2 * row3); \
        ROW(madd, 7, a + row7); \
    } while (0)

#define TURN_STRIP(madd) \
    do { \
        _Pragma("GCC unroll 8") for (int m_ = 0; m_ < ROWS; m_++) ROW(madd, m_, a + m_ * STEP); \
    } while (0)

/* sum[8][vectors] of sixteen = first[vectors] + the strip times a panel of as many. One step a turn: the multiplications wait for nothing else, and a second loop for what four at a time leave over would move every sum. */
#define SUMS(name, isa, madd) \
    __attribute__((target(isa), always_inline)) static inline void name(__m512 sum[ROWS][VECTORS], const __m512 first[VECTORS], const strip *s, const char *panel, size_t steps, const int vectors, const int turned) { \
        const char *a = s->a; \
        size_t row = s->row, row3 = 3 * row, row5 = 5 * row, row7 = 7 * row; \
        __asm__("" : "+r"(row), "+r"(row3), "+r"(row5), "+r"(row7)); \
        _Pragma("GCC unroll 8") for (int m = 0; m < ROWS; m++) _Pragma("GCC unroll 3") for (int v = 0; v < vectors; v++) sum[m][v] = first[v]; \
        for (size_t k = 0; k < steps; k++, panel += vectors * VECTOR, a += turned ? VECTOR : STEP) { \
            __m512i b[VECTORS]; \
            _Pragma("GCC unroll 3") for (int v = 0; v < vectors; v++) b[v] = _mm512_load_si512(panel + v * VECTOR); \
            if (turned) \
                TURN_STRIP(madd); \
            else \
                TURN_ROWS(madd); \
        } \
    }
SUMS(sums_f32, KD_AVX512, KD_MADD_F32)
SUMS(sums_bf16, KD_AVX512_BF16, KD_MADD_BF16)

/* ---- what becomes of the sums ---- */

/* Phi(-a), the normal distribution's tail, in 32 pieces: around a = 6 k / 31 polynomials of degree 4 in f = 31 a / 6 - k, least squares for the smallest error (5e-9, and in proportion where the tail is small).
 * row: a power of f; column: k. */
static _Alignas(64) const float TAIL[5][32] = {
    {0.5f, 0.42326477f, 0.34934229f, 0.28073981f, 0.21940817f, 0.16658664f, 0.12276193f, 0.087734476f, 0.060764562f, 0.040759865f, 0.026465474f, 0.016625796f, 0.010100845f, 0.0059325867f, 0.0033674338f, 0.0018467011f, 0.00097819418f, 0.00050036295f, 0.00024710887f, 0.00011780277f, 5.4202075e-05f, 2.4066108e-05f, 1.0310225e-05f, 4.2613865e-06f, 1.699055e-06f, 6.5342425e-07f, 2.4236826e-07f, 8.6698918e-08f, 2.9907284e-08f, 9.9480104e-09f, 3.1905416e-09f, 9.8659014e-10f},
    {-0.077214584f, -0.075781778f, -0.071640931f, -0.065236188f, -0.05721987f, -0.048343278f, -0.039341979f, -0.030839493f, -0.023285689f, -0.016935648f, -0.011864388f, -0.0080060754f, -0.0052038496f, -0.0032580707f, -0.0019648389f, -0.0011413635f, -0.00063863338f, -0.00034419913f, -0.00017868922f, -8.9354697e-05f, -4.303945e-05f, -1.9968542e-05f, -8.9239311e-06f, -3.8414587e-06f, -1.5928181e-06f, -6.3615977e-07f, -2.4473499e-07f, -9.0689241e-08f, -3.2370181e-08f, -1.1129206e-08f, -3.6856382e-09f, -1.1756841e-09f},
    {0, 0.0014194266f, 0.0026837336f, 0.0036657096f, 0.0042870166f, 0.0045274585f, 0.0044213608f, 0.0040434673f, 0.0034892166f, 0.0028549163f, 0.0022222588f, 0.0016495365f, 0.0011696498f, 0.00079333055f, 0.00051523547f, 0.00032067607f, 0.00019139187f, 0.00010960017f, 6.0245438e-05f, 3.1799853e-05f, 1.612322e-05f, 7.854559e-06f, 3.6773604e-06f, 1.6549413e-06f, 7.1604035e-07f, 2.9789817e-07f, 1.1918808e-07f, 4.5865367e-08f, 1.697738e-08f, 6.0454961e-09f, 2.0711248e-09f, 6.8269607e-10f},
    {0.0004812438f, 0.00045465108f, 0.00037971107f, 0.0002697208f, 0.00014317254f, 1.9465962e-05f, -8.5156091e-05f, -0.0001603664f, -0.00020269516f, -0.00021473489f, -0.00020318164f, -0.00017648202f, -0.00014276932f, -0.00010850051f, -7.7896941e-05f, -5.3035874e-05f, -3.4338591e-05f, -2.1186368e-05f, -1.2476182e-05f, -7.0210281e-06f, -3.7796281e-06f, -1.9479692e-06f, -9.6181998e-07f, -4.5522981e-07f, -2.066339e-07f, -8.9988077e-08f, -3.761274e-08f, -1.5093343e-08f, -5.81639e-09f, -2.152992e-09f, -7.656733e-10f, -2.6166044e-10f},
    {0, -1.3091971e-05f, -2.3816699e-05f, -3.039892e-05f, -3.2059757e-05f, -2.911412e-05f, -2.2768196e-05f, -1.4697881e-05f, -6.5818217e-06f, 2.7621905e-07f, 5.1440206e-06f, 7.8654393e-06f, 8.7237077e-06f, 8.2380975e-06f, 6.9804073e-06f, 5.4354773e-06f, 3.9409915e-06f, 2.6821779e-06f, 1.7226899e-06f, 1.048081e-06f, 6.0568357e-07f, 3.3317005e-07f, 1.7472749e-07f, 8.7477069e-08f, 4.1852523e-08f, 1.9152269e-08f, 8.388902e-09f, 3.5191907e-09f, 1.4146896e-09f, 5.4520105e-10f, 2.0151175e-10f, 7.1456514e-11f},
};
static const float PIECES = 31.0f / 6, LAST = 6.09f; /* pieces of a 1; what is beyond counts as this */

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|). Half as many instructions as by way of an exponential. A NaN stays. */
KD_WIDE_LANE __m512 gelu(__m512 x) {
    const __m512 round = _mm512_set1_ps(12582912.0f), scale = _mm512_set1_ps(PIECES); /* 1.5 2^23: adding it leaves the nearest integer in the low bits */
    __m512 a = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(LAST)), shifted = _mm512_fmadd_ps(a, scale, round);
    __m512 f = _mm512_fmsub_ps(a, scale, _mm512_sub_ps(shifted, round));
    __m512i k = _mm512_castps_si512(shifted); /* a permutation looks at the lowest five bits */
#define COEFFICIENT(i) _mm512_permutex2var_ps(_mm512_load_ps(TAIL[i]), k, _mm512_load_ps(TAIL[i] + KD_LANES16))
    __m512 tail = _mm512_fmadd_ps(COEFFICIENT(4), f, COEFFICIENT(3));
    tail = _mm512_fmadd_ps(tail, f, COEFFICIENT(2));
    tail = _mm512_fmadd_ps(tail, f, COEFFICIENT(1));
    tail = _mm512_fmadd_ps(tail, f, COEFFICIENT(0));
#undef COEFFICIENT
    return _mm512_fnmadd_ps(a, tail, _mm512_max_ps(_mm512_setzero_ps(), x)); /* of a NaN and a number the second */
}

/* Where a tile's sums go. */
typedef struct place {
    void *c;              /* its first element */
    kd_dtype type;        /* of c */
    size_t row;           /* from row to row of c, in elements */
    int64_t rows, columns;
    kd_matmul_finish f;   /* of the tile's first column and element */
} place;

/* Asks for a tile of the residual, so that it comes while the tile is summed. Asking for c, or for a's next rows, costs more than it saves. */
KD_WIDE_LANE void fetch(const float *residual, size_t row, const size_t vectors) {
#pragma GCC unroll 8
    for (size_t r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (size_t v = 0; v < vectors; v++)
            __builtin_prefetch(residual + r * row + v * LANES);
}

/* Lanes i .. of p, or, where there is none, `otherwise` in each. */
KD_WIDE_LANE __m512 lanes_or(const float *p, size_t i, int64_t columns, float otherwise) {
    return p ? _mm512_maskz_loadu_ps(kd_first16((size_t)columns > i ? (size_t)columns - i : 0), p + i) : _mm512_set1_ps(otherwise);
}

KD_WIDE_LANE __m512 load_any(const void *p, kd_dtype type, size_t i, __mmask16 here) {
    return type == KD_F32 ? _mm512_maskz_loadu_ps(here, (const float *)p + i) : kd_widen16(here, (const uint16_t *)p + i);
}

KD_WIDE_LANE __m512 activated(kd_act act, __m512 v) {
    if (act == KD_ACT_RELU)
        return _mm512_max_ps(_mm512_setzero_ps(), v); /* in this order: of a NaN and a zero the second */
    return act == KD_ACT_GELU ? gelu(v) : v;
}

#define STORE_F32(i, here, v) _mm512_mask_storeu_ps((float *)c + (i), here, v)
#define STORE_BF16(i, here, v) kd_narrow16((uint16_t *)c + (i), here, v)

/* For a type of operands, and one of c, whose instructions the other may not have. A whole tile goes out of registers, and what becomes of its sums is known here: a processor that holds the end of one tile and the
 * beginning of the next at once, some hundred instructions, has no gap between them. Other tiles, which are few, go by way of memory; the arithmetic is the same. */
#define TILE(name, isa, sums, store) \
    __attribute__((target(isa), always_inline)) static inline void name##_whole(const place *o, kd_act act, const int join, const strip *s, const char *panel, size_t steps, const int vectors, const int turned) { \
        const float *x = o->f.residual; \
        void *c = o->c; \
        const size_t row = o->row; \
        __m512 first[VECTORS], gamma[VECTORS], sum[ROWS][VECTORS]; \
        _Pragma("GCC unroll 3") for (int v = 0; v < vectors; v++) first[v] = lanes_or(o->f.bias, (size_t)v * LANES, COLUMNS, 0), gamma[v] = lanes_or(o->f.gamma, (size_t)v * LANES, COLUMNS, 1); \
        if (join) \
            fetch(x, row, (size_t)vectors); \
        sums(sum, first, s, panel, steps, vectors, turned); \
        _Pragma("GCC unroll 8") for (size_t r = 0; r < ROWS; r++) _Pragma("GCC unroll 3") for (size_t v = 0; v < (size_t)vectors; v++) { \
            size_t i = r * row + v * LANES; \
            __m512 y = join ? _mm512_fmadd_ps(sum[r][v], gamma[v], _mm512_loadu_ps(x + i)) : activated(act, sum[r][v]); \
            store(i, 0xffff, y); \
        } \
    } \
    __attribute__((target(isa), always_inline)) static inline void name##_sums(float *out, const __m512 first[VECTORS], const strip *s, const char *panel, size_t steps, const int vectors, const int turned) { \
        __m512 sum[ROWS][VECTORS]; \
        sums(sum, first, s, panel, steps, vectors, turned); \
        _Pragma("GCC unroll 8") for (size_t r = 0; r < ROWS; r++) _Pragma("GCC unroll 3") for (size_t v = 0; v < (size_t)vectors; v++) _mm512_store_ps(out + r * COLUMNS + v * LANES, sum[r][v]); \
    } \
    __attribute__((target(isa), noinline)) static void name##_part(const place *o, const strip *s, const char *panel, size_t steps) { \
        _Alignas(64) float sum[ROWS * COLUMNS]; \
        __m512 first[VECTORS]; \
        _Pragma("GCC unroll 3") for (size_t v = 0; v < VECTORS; v++) first[v] = lanes_or(o->f.bias, v * LANES, o->columns, 0); \
        void *c = o->c; \
        switch (2 * (int)vectors_of(o->columns) + s->turned) { \
        case 2: name##_sums(sum, first, s, panel, steps, 1, 0); break; \
        case 3: name##_sums(sum, first, s, panel, steps, 1, 1); break; \
        case 4: name##_sums(sum, first, s, panel, steps, 2, 0); break; \
        case 5: name##_sums(sum, first, s, panel, steps, 2, 1); break; \
        case 6: name##_sums(sum, first, s, panel, steps, 3, 0); break; \
        default: name##_sums(sum, first, s, panel, steps, 3, 1); break; \
        } \
        for (size_t r = 0; r < (size_t)o->rows; r++) \
            for (size_t j = 0; j < (size_t)o->columns; j += LANES) { \
                __mmask16 here = kd_first16((size_t)o->columns - j); \
                size_t i = r * o->row + j; \
                __m512 y = activated(o->f.act, _mm512_load_ps(sum + r * COLUMNS + j)); \
                if (o->f.residual) \
                    y = _mm512_fmadd_ps(y, lanes_or(o->f.gamma, j, o->columns, 1), load_any(o->f.residual, o->f.residual_type, i, here)); \
                store(i, here, y); \
            } \
    } \
    __attribute__((target(isa))) static void name(const place *o, const strip *s, const char *panel, size_t steps) { \
        int join = o->f.residual != NULL, linear = o->f.act == KD_ACT_NONE; \
        if (o->rows < ROWS || o->columns < 2 * LANES || o->columns % LANES != 0 || (!linear && (s->turned || o->columns < COLUMNS)) || (join && o->f.residual_type != KD_F32)) \
            name##_part(o, s, panel, steps); \
        else if (o->f.act == KD_ACT_GELU) \
            name##_whole(o, KD_ACT_GELU, 0, s, panel, steps, 3, 0); \
        else if (o->f.act == KD_ACT_RELU) \
            name##_whole(o, KD_ACT_RELU, 0, s, panel, steps, 3, 0); \
        else \
            switch (4 * (o->columns == COLUMNS) + 2 * join + s->turned) { \
            case 0: name##_whole(o, KD_ACT_NONE, 0, s, panel, steps, 2, 0); break; \
            case 1: name##_whole(o, KD_ACT_NONE, 0, s, panel, steps, 2, 1); break; \
            case 2: name##_whole(o, KD_ACT_NONE, 1, s, panel, steps, 2, 0); break; \
            case 3: name##_whole(o, KD_ACT_NONE, 1, s, panel, steps, 2, 1); break; \
            case 4: name##_whole(o, KD_ACT_NONE, 0, s, panel, steps, 3, 0); break; \
            case 5: name##_whole(o, KD_ACT_NONE, 0, s, panel, steps, 3, 1); break; \
            case 6: name##_whole(o, KD_ACT_NONE, 1, s, panel, steps, 3, 0); break; \
            default: name##_whole(o, KD_ACT_NONE, 1, s, panel, steps, 3, 1); break; \
            } \
    }
TILE(f32_to_f32, KD_AVX512, sums_f32, STORE_F32)
TILE(f32_to_bf16, KD_AVX512_BF16, sums_f32, STORE_BF16)
TILE(bf16_to_f32, KD_AVX512_BF16, sums_bf16, STORE_F32)
TILE(bf16_to_bf16, KD_AVX512_BF16, sums_bf16, STORE_BF16)

/* ---- the whole product ---- */

/* The first eight of a's rows, of which there are n. */
static strip strip_of(const kd_matmul *m, const char *a, int64_t n, char *copy) {
    size_t row = (size_t)m->a_row * element(m), used = steps_of(m) * STEP;
    if (m->a_column != 1) {
        copy_columns(m, copy, VECTOR, a, (size_t)m->a_column * element(m), n); /* a strip has room for more than eight */
        return (strip){copy, STEP, 1};
    }
    if (n >= ROWS)
        return (strip){a, row, 0};
    memset(copy, 0, ROWS * used);
    for (int64_t i = 0; i < n; i++)
        memcpy(copy + (size_t)i * used, a + (size_t)i * row, used);
    return (strip){copy, used, 0};
}

static size_t size_of(kd_dtype type) {
    return type == KD_F32 ? sizeof(float) : sizeof(uint16_t);
}

typedef void tile_fn(const place *o, const strip *s, const char *panel, size_t steps);

static tile_fn *tile_of(const kd_matmul *m) {
    if (m->type == KD_F32)
        return m->c_type == KD_F32 ? f32_to_f32 : f32_to_bf16;
    return m->c_type == KD_F32 ? bf16_to_f32 : bf16_to_bf16;
}

/* The strip times every panel; o: the place of the first tile. */
static void tiles(const kd_matmul *m, place o, const strip *s, const char *panel) {
    tile_fn *tile = tile_of(m);
    size_t steps = steps_of(m);
    for (int64_t left = m->columns, columns; left > 0; left -= columns) {
        columns = panel_columns(left);
        o.columns = m->pads ? (int64_t)vectors_of(columns) * LANES : columns;
        tile(&o, s, panel, steps);
        panel += vectors_of(columns) * steps * VECTOR;
        o.c = (char *)o.c + (size_t)columns * size_of(o.type);
        o.f.bias += o.f.bias ? columns : 0;
        o.f.gamma += o.f.gamma ? columns : 0;
        o.f.residual = o.f.residual ? (const char *)o.f.residual + (size_t)columns * size_of(o.f.residual_type) : NULL;
    }
}

void kd_matmul_rows_avx512(const kd_matmul *m, const kd_matmul_finish *finish, void *c, const void *a, int64_t rows, const void *panels, void *strip_work) {
    place o = {.type = m->c_type, .row = (size_t)m->c_row};
    if (finish)
        o.f = *finish;
    if (m->add) {
        o.f.residual = c;
        o.f.residual_type = m->c_type;
    }
    const char *residual = o.f.residual;
    for (int64_t r = 0; r < rows; r += ROWS) {
        strip s = strip_of(m, (const char *)a + (size_t)(r * m->a_row) * element(m), rows - r, strip_work);
        size_t at = (size_t)(r * m->c_row);
        o.c = (char *)c + at * size_of(o.type);
        o.rows = rows - r < ROWS ? rows - r : ROWS;
        o.f.residual = residual ? residual + at * size_of(o.f.residual_type) : NULL;
        tiles(m, o, &s, panels);
    }
}

static void matmul_rows(const kd_matmul *m, void *c, const void *a, int64_t rows, const void *panels, void *strip_work) {
    kd_matmul_rows_avx512(m, NULL, c, a, rows, panels, strip_work);
}

const kd_matmul_kind kd_matmul_avx512 = {ROWS, panels_bytes, strip_bytes, matmul_pack, matmul_rows};

const kd_matmul_kind *kd_matmul_here(kd_dtype type) {
    if (kd_dnn_instructions() == KD_DNN_AVX512 && (type == KD_F32 || __builtin_cpu_supports("avx512bf16")))
        return &kd_matmul_avx512;
    return type == KD_F32 && kd_cpu_f32_here() ? &kd_matmul_avx2 : NULL;
}
