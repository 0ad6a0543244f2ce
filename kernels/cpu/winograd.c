/* winograd.h: tiles, their transforms and who does what.
 *
 * A forward pass takes some tiles at a time, all of one thread: their 4 x 4 windows become 16 matrices [tiles, in], those 16 matrices [tiles, out], and those the tiles of y; between, they stay in the second-level cache where channels
 * are few.
 *
 * In the gradient of the weights of few channels each thread sums over tiles of its own, because matrices that the others made would have to come from their caches. Where channels are many, so are the sums: there is one copy of them,
 * all threads transform the same tiles, and then each multiplies at some of the points. */
#include "kernels/cpu/winograd.h"

#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd.h"

enum {
    POINTS = 16,
    TAPS = 9,
    SIDE = 4,               /* of a window */
    STEP = 2,               /* from tile to tile */
    GAP = 32,               /* floats between the matrices of two points, so that 16 stores don't compete for one set of the first-level cache */
    NEAR_FLOATS = 640 << 8, /* of the matrices of a thread's tiles, 640 KiB; but */
    LEAST_TILES = 128,      /* at least, because all weights pass by them; likewise all sums for the weights */
    MOST_TILES = 512,
    OWN_SUMS = 1 << 18      /* floats: as many sums for the weights, or fewer, a thread has of its own */
};

typedef struct tiles {
    int64_t down, across, all; /* of an image, and of all images */
    int64_t block;             /* that are taken at once, at most */
} tiles;

static int64_t divided(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t within(int64_t n, int64_t least, int64_t most) {
    return n < least ? least : n < most ? n : most;
}

/* In blocks of about `floats` floats, and where tiles are few, as many blocks as threads. */
static tiles tiles_of(const kd_window *s, int64_t floats, int threads) {
    tiles t = {.down = divided(s->h, STEP), .across = divided(s->w, STEP)};
    t.all = s->images * t.down * t.across;
    t.block = within(floats / (POINTS * (s->in + s->out)), LEAST_TILES, MOST_TILES);
    t.block = divided(within(divided(t.all, threads), 1, t.block), 8) * 8;
    return t;
}

static tiles forward_tiles(const kd_window *s, int threads) {
    return tiles_of(s, NEAR_FLOATS, threads);
}

/* As many that their matrices are twice as large as the sums, which are read and written once for each block. */
static tiles sum_tiles(const kd_window *s) {
    return tiles_of(s, POINTS * 2 * s->in * s->out, 1);
}

/* Floats from one point's matrix to the next, of `rows` rows. */
static size_t point_distance(int64_t rows, int64_t width) {
    return (size_t)(rows * width) + GAP;
}

int kd_winograd_takes(const kd_window *s, kd_dtype type, kd_dtype y_type) {
    return type == KD_F32 && y_type == KD_F32 && s->kernel == 3 && s->stride == 1 && s->pad == 1 && s->in % KD_VF == 0 && s->out % KD_VF == 0 && kd_matmul_here(KD_F32) != NULL;
}

kd_window kd_winograd_back(const kd_window *s) {
    kd_window back = *s;
    back.in = s->out;
    back.out = s->in;
    return back;
}

/* ---- transforms of four, three or two values ---- */

KD_LANE void window_line(kd_vf to[4], const kd_vf d[4]) {
    to[0] = d[0] - d[2];
    to[1] = d[1] + d[2];
    to[2] = d[2] - d[1];
    to[3] = d[1] - d[3];
}

KD_LANE void weight_line(kd_vf to[4], const kd_vf g[3]) {
    kd_vf sum = (g[0] + g[2]) * 0.5f, middle = g[1] * 0.5f;
    to[0] = g[0];
    to[1] = sum + middle;
    to[2] = sum - middle;
    to[3] = g[2];
}

KD_LANE void result_line(kd_vf to[2], const kd_vf m[4]) {
    to[0] = m[0] + m[1] + m[2];
    to[1] = m[1] - m[2] - m[3];
}

KD_LANE void gradient_line(kd_vf to[4], const kd_vf dy[2]) {
    to[0] = dy[0];
    to[1] = dy[0] + dy[1];
    to[2] = dy[0] - dy[1];
    to[3] = kd_splat(0) - dy[1];
}

KD_LANE void weight_gradient_line(kd_vf to[3], const kd_vf u[4]) {
    kd_vf sum = (u[1] + u[2]) * 0.5f;
    to[0] = u[0] + sum;
    to[1] = (u[1] - u[2]) * 0.5f;
    to[2] = sum + u[3];
}

/* to[outs][outs] = the lines' transform of from[ins][ins], of its columns and then of its rows. */
#define BOTH_WAYS(name, line, ins, outs) \
    KD_LANE void name(kd_vf *to, const kd_vf *from) { \
        kd_vf half[(outs) * (ins)], column[(outs) > (ins) ? (outs) : (ins)], turned[(outs) > (ins) ? (outs) : (ins)]; \
        _Pragma("GCC unroll 4") for (int j = 0; j < (ins); j++) { \
            _Pragma("GCC unroll 4") for (int i = 0; i < (ins); i++) column[i] = from[i * (ins) + j]; \
            line(turned, column); \
            _Pragma("GCC unroll 4") for (int i = 0; i < (outs); i++) half[i * (ins) + j] = turned[i]; \
        } \
        _Pragma("GCC unroll 4") for (int i = 0; i < (outs); i++) line(to + i * (outs), half + i * (ins)); \
    }
BOTH_WAYS(transform_window, window_line, 4, 4)
BOTH_WAYS(transform_weights, weight_line, 3, 4)
BOTH_WAYS(transform_result, result_line, 4, 2)
BOTH_WAYS(transform_gradient, gradient_line, 2, 4)
BOTH_WAYS(transform_weight_gradient, weight_gradient_line, 4, 3)

/* ---- tiles ---- */

/* Where a tile's result begins. */
typedef struct tile_place {
    int64_t image, row, column;
} tile_place;

static tile_place place_of(const tiles *t, int64_t i) {
    return (tile_place){i / (t->down * t->across), i / t->across % t->down * STEP, i % t->across * STEP};
}

/* The channels of side x side pixels from row, column on, of a map [images,h,w,width]; beyond it: otherwise. */
static void pixels_of(const float **p, int side, const float *map, const float *otherwise, const kd_window *s, tile_place at, int64_t width) {
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            int64_t r = at.row + i, c = at.column + j;
            int inside = r >= 0 && r < s->h && c >= 0 && c < s->w;
            p[i * side + j] = inside ? map + ((at.image * s->h + r) * s->w + c) * width : otherwise;
        }
}

typedef struct source {
    const kd_window *s;
    const tiles *t;
    const float *map, *zeros;
    int64_t width;       /* channels of the map */
    float *to;           /* [point][tile][width] */
    size_t distance;     /* of points */
    int64_t first;       /* tile, which is row 0 of `to` */
} source;

/* Windows of tiles begin .. end-1 of the source, which its first tile precedes. */
KD_HOT static void transform_windows(const source *c, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
        tile_place at = place_of(c->t, t);
        const float *p[POINTS];
        at.row--;
        at.column--;
        pixels_of(p, SIDE, c->map, c->zeros, c->s, at, c->width);
        float *to = c->to + (t - c->first) * c->width;
        for (int64_t i = 0; i < c->width; i += KD_VF) {
            kd_vf d[POINTS], v[POINTS];
#pragma GCC unroll 16
            for (int k = 0; k < POINTS; k++)
                d[k] = kd_load_f32(p[k] + i, KD_VF);
            transform_window(v, d);
#pragma GCC unroll 16
            for (int k = 0; k < POINTS; k++)
                kd_store_f32(to + (size_t)k * c->distance + i, v[k], KD_VF);
        }
    }
}

/* Likewise 2 x 2 values of the result's gradient. */
KD_HOT static void transform_gradients(const source *c, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
        const float *p[STEP * STEP];
        pixels_of(p, STEP, c->map, c->zeros, c->s, place_of(c->t, t), c->width);
        float *to = c->to + (t - c->first) * c->width;
        for (int64_t i = 0; i < c->width; i += KD_VF) {
            kd_vf d[STEP * STEP], v[POINTS];
#pragma GCC unroll 4
            for (int k = 0; k < STEP * STEP; k++)
                d[k] = kd_load_f32(p[k] + i, KD_VF);
            transform_gradient(v, d);
#pragma GCC unroll 16
            for (int k = 0; k < POINTS; k++)
                kd_store_f32(to + (size_t)k * c->distance + i, v[k], KD_VF);
        }
    }
}

/* ---- weights ---- */

/* Columns of a product that are packed and multiplied at once: a panel's, or all where they are two narrow ones. */
static int64_t column_block(const kd_window *s) {
    return s->out <= 64 ? s->out : KD_MATMUL_COLUMNS;
}

static int64_t column_blocks(const kd_window *s) {
    return divided(s->out, column_block(s));
}

/* The product at a point for the block's columns; *panels: where its panels begin among the point's, in bytes. */
static kd_matmul product_of(const kd_window *s, int64_t block, size_t *panels) {
    int64_t width = column_block(s), column = block * width;
    kd_matmul m = {.type = KD_F32, .c_type = KD_F32, .depth = s->in, .columns = column, .a_row = s->in, .a_column = 1, .b_row = width, .b_column = 1, .c_row = s->out};
    *panels = kd_matmul_here(KD_F32)->panels_bytes(&m);
    m.columns = within(s->out - column, 1, width);
    return m;
}

static size_t point_bytes(const kd_window *s) {
    kd_matmul m = {.type = KD_F32, .depth = s->in, .columns = s->out};
    return kd_matmul_here(KD_F32)->panels_bytes(&m);
}

size_t kd_winograd_packed_bytes(const kd_window *s) {
    return POINTS * point_bytes(s);
}

/* Of transformed weights, before they are packed: [point][in][block of columns]. */
static size_t raw_distance(const kd_window *s) {
    return point_distance(s->in, column_block(s));
}

typedef struct pack_ctx {
    const kd_window *s;
    int back;
    const float *w;
    char *packed;
    float *raw;
} pack_ctx;

/* Weights of columns first .. first + columns - 1 of every point. */
KD_HOT static void transform_columns(const pack_ctx *c, float *raw, int64_t first, int64_t columns) {
    int64_t in = c->s->in, per_column = TAPS * (c->back ? 1 : in), per_depth = TAPS * (c->back ? c->s->out : 1), width = column_block(c->s);
    size_t distance = raw_distance(c->s);
    for (int64_t i = 0; i < in; i++)
        for (int64_t j = 0; j < columns; j += KD_VF) {
            const float *w = c->w + (first + j) * per_column + i * per_depth;
            float taps[TAPS][KD_VF];
            kd_vf g[TAPS], u[POINTS];
            for (int lane = 0; lane < KD_VF; lane++)
                for (int t = 0; t < TAPS; t++)
                    taps[c->back ? TAPS - 1 - t : t][lane] = w[lane * per_column + t];
            memcpy(g, taps, sizeof g);
            transform_weights(u, g);
#pragma GCC unroll 16
            for (int k = 0; k < POINTS; k++)
                kd_store_f32(raw + (size_t)k * distance + i * width + j, u[k], KD_VF);
        }
}

/* Blocks of columns begin .. end-1. */
static void pack_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pack_ctx *c = ctx;
    float *raw = c->raw + (size_t)slice * POINTS * raw_distance(c->s);
    for (size_t b = begin; b < end; b++) {
        size_t panels;
        kd_matmul m = product_of(c->s, (int64_t)b, &panels);
        transform_columns(c, raw, (int64_t)b * column_block(c->s), m.columns);
        for (size_t k = 0; k < POINTS; k++)
            kd_matmul_here(KD_F32)->pack(&m, raw + k * raw_distance(c->s), c->packed + k * point_bytes(c->s) + panels);
    }
}

void kd_winograd_pack(int threads, const kd_window *s, int back, const float *w, void *packed, void *scratch) {
    kd_cpu_parallel(threads, (size_t)column_blocks(s), (size_t)(s->in * column_block(s)), pack_range, &(pack_ctx){s, back, w, packed, scratch});
}

/* ---- forward ---- */

/* Byte offsets in scratch: of zeros, and of the first thread's regions and their distance. */
typedef struct forward_layout {
    size_t zeros, windows, results, strip, thread;
} forward_layout;

static forward_layout forward_layout_of(const kd_window *s, const tiles *t, size_t *all, int threads) {
    forward_layout l = {0};
    kd_matmul m = {.type = KD_F32, .depth = s->in};
    *all = 0;
    l.zeros = kd_cpu_region(all, (size_t)s->in * sizeof(float));
    size_t at = *all;
    l.windows = kd_cpu_region(&at, POINTS * point_distance(t->block, s->in) * sizeof(float));
    l.results = kd_cpu_region(&at, POINTS * point_distance(t->block, s->out) * sizeof(float));
    l.strip = kd_cpu_region(&at, kd_matmul_here(KD_F32)->strip_bytes(&m));
    l.thread = at - *all;
    *all += (size_t)threads * l.thread;
    return l;
}

size_t kd_winograd_forward_bytes(const kd_window *s, int threads) {
    tiles t = forward_tiles(s, threads);
    size_t all, pack = (size_t)threads * POINTS * raw_distance(s) * sizeof(float);
    forward_layout_of(s, &t, &all, threads);
    return all > pack ? all : pack;
}

typedef struct forward_ctx {
    const kd_window *s;
    tiles t;
    forward_layout l;
    float *y;
    const float *x, *bias;
    const char *packed;
    kd_act act;
    int add;
    char *scratch;
} forward_ctx;

/* Tiles begin .. end-1 of y from the 16 matrices. */
KD_HOT static void finish_tiles(const forward_ctx *c, const float *results, int64_t begin, int64_t end) {
    const kd_window *s = c->s;
    size_t distance = point_distance(c->t.block, s->out);
    for (int64_t t = begin; t < end; t++) {
        const float *p[STEP * STEP], *from = results + (t - begin) * s->out;
        pixels_of(p, STEP, c->y, NULL, s, place_of(&c->t, t), s->out);
        for (int64_t i = 0; i < s->out; i += KD_VF) {
            kd_vf m[POINTS], y[STEP * STEP];
#pragma GCC unroll 16
            for (int k = 0; k < POINTS; k++)
                m[k] = kd_load_f32(from + (size_t)k * distance + i, KD_VF);
            transform_result(y, m);
            kd_vf bias = c->bias ? kd_load_f32(c->bias + i, KD_VF) : kd_splat(0);
#pragma GCC unroll 4
            for (int k = 0; k < STEP * STEP; k++) {
                float *to = (float *)p[k] + i;
                if (!p[k])
                    continue;
                kd_vf v = y[k] + bias;
                if (c->act == KD_ACT_RELU)
                    v = kd_relu(v);
                if (c->add)
                    v += kd_load_f32(to, KD_VF);
                kd_store_f32(to, v, KD_VF);
            }
        }
    }
}

/* Blocks of tiles begin .. end-1. */
static void forward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const forward_ctx *c = ctx;
    const kd_window *s = c->s;
    char *mine = c->scratch + (size_t)slice * c->l.thread;
    float *windows = kd_cpu_at(mine, c->l.windows), *results = kd_cpu_at(mine, c->l.results);
    size_t from = point_distance(c->t.block, s->in), to = point_distance(c->t.block, s->out);
    for (size_t b = begin; b < end; b++) {
        int64_t first = (int64_t)b * c->t.block, n = within(c->t.all - first, 1, c->t.block);
        transform_windows(&(source){s, &c->t, c->x, kd_cpu_at(c->scratch, c->l.zeros), s->in, windows, from, first}, first, first + n);
        for (size_t k = 0; k < POINTS; k++)
            for (int64_t j = 0; j < column_blocks(s); j++) {
                size_t panels;
                kd_matmul m = product_of(s, j, &panels);
                kd_matmul_here(KD_F32)->rows(&m, results + k * to + j * column_block(s), windows + k * from, n, c->packed + k * point_bytes(s) + panels, kd_cpu_at(mine, c->l.strip));
            }
        finish_tiles(c, results, first, first + n);
    }
}

void kd_winograd_forward(int threads, const kd_window *s, float *y, const float *x, const void *packed, const float *bias, kd_act act, int add, void *scratch) {
    forward_ctx c = {.s = s, .t = forward_tiles(s, threads), .y = y, .x = x, .bias = bias, .packed = packed, .act = act, .add = add, .scratch = scratch};
    size_t all;
    c.l = forward_layout_of(s, &c.t, &all, threads);
    memset(kd_cpu_at(scratch, c.l.zeros), 0, (size_t)s->in * sizeof(float));
    kd_cpu_share(threads, (size_t)divided(c.t.all, c.t.block), (size_t)1 << 20, forward_range, &c);
}

/* ---- the gradient of the weights ---- */

/* Byte offsets in scratch. A copy: tiles' matrices and sums, of all threads or of one; work: a thread's. */
typedef struct dw_layout {
    int copies;
    size_t zeros, windows, gradients, sums, copy, work, work_bytes;
} dw_layout;

/* At a point: sums [out,in] = or += of n tiles' gradients and windows. */
static kd_matmul sum_product(const kd_window *s, int64_t n, int add) {
    return (kd_matmul){.type = KD_F32, .c_type = KD_F32, .rows = s->out, .depth = n, .columns = s->in, .a_row = 1, .a_column = s->out, .b_row = s->in, .b_column = 1, .c_row = s->in, .add = add};
}

static dw_layout dw_layout_of(const kd_window *s, const tiles *t, size_t *all, int threads) {
    kd_matmul m = sum_product(s, t->block, 0);
    int64_t wider = s->in > s->out ? s->in : s->out;
    int apart = POINTS * s->in * s->out <= OWN_SUMS && t->all >= threads * LEAST_TILES;
    dw_layout l = {.copies = apart ? threads : 1};
    *all = 0;
    l.zeros = kd_cpu_region(all, (size_t)wider * sizeof(float));
    size_t at = *all;
    l.windows = kd_cpu_region(&at, POINTS * point_distance(t->block, s->in) * sizeof(float));
    l.gradients = kd_cpu_region(&at, POINTS * point_distance(t->block, s->out) * sizeof(float));
    l.sums = kd_cpu_region(&at, POINTS * point_distance(s->out, s->in) * sizeof(float));
    l.copy = at - *all;
    *all += (size_t)l.copies * l.copy;
    kd_cpu_region(&l.work_bytes, kd_matmul_work_bytes(kd_matmul_here(KD_F32), &m));
    l.work = kd_cpu_region(all, (size_t)threads * l.work_bytes);
    return l;
}

size_t kd_winograd_dw_bytes(const kd_window *s, int threads) {
    tiles t = sum_tiles(s);
    size_t all;
    dw_layout_of(s, &t, &all, threads);
    return all;
}

typedef struct dw_ctx {
    const kd_window *s;
    tiles t;
    dw_layout l;
    float *dw;
    const float *x, *g;
    char *scratch;
    /* Of a block of tiles: */
    int copy;         /* whose matrices and sums */
    int64_t first, n; /* tiles */
    int add;          /* to sums of earlier blocks */
} dw_ctx;

static void *copy_at(const dw_ctx *c, size_t offset) {
    return kd_cpu_at(c->scratch, offset + (size_t)c->copy * c->l.copy);
}

/* Tiles begin .. end-1 of the block. */
static void transform_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    const kd_window *s = c->s;
    const float *zeros = kd_cpu_at(c->scratch, c->l.zeros);
    int64_t from = c->first + (int64_t)begin, to = c->first + (int64_t)end;
    (void)slice;
    transform_windows(&(source){s, &c->t, c->x, zeros, s->in, copy_at(c, c->l.windows), point_distance(c->t.block, s->in), c->first}, from, to);
    transform_gradients(&(source){s, &c->t, c->g, zeros, s->out, copy_at(c, c->l.gradients), point_distance(c->t.block, s->out), c->first}, from, to);
}

/* Points begin .. end-1. */
static void sum_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    const kd_window *s = c->s;
    kd_matmul m = sum_product(s, c->n, c->add);
    const kd_matmul_kind *kind = kd_matmul_here(KD_F32);
    void *panels = kd_cpu_at(c->scratch, c->l.work + (size_t)slice * c->l.work_bytes), *strip = kd_cpu_at(panels, kd_matmul_strip_offset(kind, &m));
    const float *windows = copy_at(c, c->l.windows), *gradients = copy_at(c, c->l.gradients);
    float *sums = copy_at(c, c->l.sums);
    for (size_t k = begin; k < end; k++) {
        kind->pack(&m, windows + k * point_distance(c->t.block, s->in), panels);
        kind->rows(&m, sums + k * point_distance(s->out, s->in), gradients + k * point_distance(c->t.block, s->out), s->out, panels, strip);
    }
}

/* Sums of copies begin .. end-1, each of its share of the tiles. */
static void copies_range(const void *ctx, int slice, size_t begin, size_t end) {
    dw_ctx c = *(const dw_ctx *)ctx;
    for (size_t i = begin; i < end; i++) {
        int64_t own = c.t.all * (int64_t)i / c.l.copies, last = c.t.all * (int64_t)(i + 1) / c.l.copies;
        c.copy = (int)i;
        for (c.first = own; c.first < last; c.first += c.t.block) {
            c.n = within(last - c.first, 1, c.t.block);
            c.add = c.first > own;
            transform_range(&c, slice, 0, (size_t)c.n);
            sum_range(&c, slice, 0, POINTS);
        }
    }
}

/* All threads at one block after the other. */
static void sum_together(dw_ctx *c, int threads) {
    for (c->first = 0; c->first < c->t.all; c->first += c->t.block) {
        c->n = within(c->t.all - c->first, 1, c->t.block);
        c->add = c->first > 0;
        kd_cpu_parallel(threads, (size_t)c->n, (size_t)(POINTS * (c->s->in + c->s->out)), transform_range, c);
        kd_cpu_share(threads, POINTS, (size_t)1 << 20, sum_range, c);
    }
}

/* Output channels begin .. end-1. */
KD_HOT static void finish_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    size_t in = (size_t)c->s->in, distance = point_distance(c->s->out, c->s->in), copy = c->l.copy / sizeof(float);
    (void)slice;
    for (size_t o = begin; o < end; o++)
        for (size_t i = 0; i < in; i += KD_VF) {
            const float *from = (const float *)kd_cpu_at(c->scratch, c->l.sums) + o * in + i;
            float *dw = c->dw + (o * in + i) * TAPS, taps[TAPS][KD_VF];
            kd_vf u[POINTS], g[TAPS];
            for (int k = 0; k < POINTS; k++) {
                u[k] = kd_load_f32(from + (size_t)k * distance, KD_VF);
                for (size_t j = 1; j < (size_t)c->l.copies; j++)
                    u[k] += kd_load_f32(from + j * copy + (size_t)k * distance, KD_VF);
            }
            transform_weight_gradient(g, u);
            memcpy(taps, g, sizeof g);
            for (int lane = 0; lane < KD_VF; lane++)
                for (int t = 0; t < TAPS; t++)
                    dw[lane * TAPS + t] += taps[t][lane];
        }
}

void kd_winograd_dw(int threads, const kd_window *s, float *dw, const float *x, const float *g, void *scratch) {
    dw_ctx c = {.s = s, .t = sum_tiles(s), .dw = dw, .x = x, .g = g, .scratch = scratch};
    size_t all;
    c.l = dw_layout_of(s, &c.t, &all, threads);
    memset(kd_cpu_at(scratch, c.l.zeros), 0, c.l.windows - c.l.zeros);
    if (c.l.copies > 1)
        kd_cpu_parallel(threads, (size_t)c.l.copies, (size_t)1 << 20, copies_range, &c);
    else
        sum_together(&c, threads);
    kd_cpu_parallel(threads, (size_t)s->out, (size_t)(s->in * TAPS), finish_range, &c);
}
