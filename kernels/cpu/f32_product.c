/* Products of gathered rows: forward passes and gradients of x (f32.h).
 *
 * The pixels of the result are walked in lattices: all of them in a forward pass; for the gradient of x of a convolution with stride s one lattice for each of the s x s remainders of (y, x), because pixels of one remainder see the same
 * taps. A lattice is cut into blocks of pixels whose rows of the source stay in the second-level cache while the weights stream by, 16 columns (a panel) at a time. */
#include "kernels/cpu/f32.h"

#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_act.h"
#include "kernels/cpu/f32_tile.h"

enum {
    ROWS = KD_F32_ROWS,
    COLUMNS = KD_F32_COLUMNS,
    MAX_TAPS = 64,
    BLOCK_PIXELS = 192,
    MERGED_IN = 8       /* input channels below which a row of the window is one tap */
};

int kd_f32_runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int kd_f32_merges(const kd_f32_shape *s) {
    return s->in < MERGED_IN && s->kernel > 1;
}

static int64_t forward_taps(const kd_f32_shape *s) {
    return kd_f32_merges(s) ? s->kernel : s->kernel * s->kernel;
}

/* Of the pixels of one remainder. */
static int64_t dx_taps(const kd_f32_shape *s) {
    int64_t across = (s->kernel + s->stride - 1) / s->stride;
    return across * across;
}

int kd_f32_takes(const kd_f32_shape *s) {
    return forward_taps(s) <= MAX_TAPS && dx_taps(s) <= MAX_TAPS;
}

/* ---- merged windows: a copy of x with its padding left and right, so that no run crosses a border ---- */

static int64_t padded_width(const kd_f32_shape *s) {
    return s->w + 2 * s->pad;
}

static size_t padded_bytes(const kd_f32_shape *s) {
    return (size_t)(s->images * s->h * padded_width(s) * s->in) * sizeof(float);
}

typedef struct pad_ctx {
    const kd_f32_shape *s;
    float *out;
    const float *x;
} pad_ctx;

static void pad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pad_ctx c = *(const pad_ctx *)ctx;
    size_t row = (size_t)(c.s->w * c.s->in), pad = (size_t)(c.s->pad * c.s->in), padded = row + 2 * pad;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        float *out = c.out + r * padded;
        memset(out, 0, pad * sizeof *out);
        memcpy(out + pad, c.x + r * row, row * sizeof *out);
        memset(out + pad + row, 0, pad * sizeof *out);
    }
}

static void pad_rows(int threads, const kd_f32_shape *s, float *out, const float *x) {
    kd_cpu_parallel(threads, (size_t)(s->images * s->h), (size_t)(s->w * s->in), pad_range, &(pad_ctx){s, out, x});
}

/* ---- a product ---- */

typedef struct window_tap {
    int64_t dy, dx;   /* of the source pixel */
    size_t at;        /* of its weights in a panel */
    int64_t distance; /* of the source pixel, in floats; set by run_lattice */
} window_tap;

typedef struct lattice {
    int64_t rows, cols;              /* pixels of one image */
    int64_t first_y, first_x, step;  /* of the result: (first_y + step y, first_x + step x) */
    int64_t stride;                  /* the source pixel of a tap is (stride y + dy, stride x + dx) */
    int taps;
    window_tap tap[MAX_TAPS];
    int64_t low_y, high_y, low_x, high_x; /* of the taps; set by run_lattice */
} lattice;

struct product;
typedef void (*end_fn)(const struct product *p, const float *sum, const size_t *out, int rows, size_t column, int n);

typedef struct product {
    int64_t images;
    const float *source;                       /* [images, source_h, source_w, step between pixels: source_step] */
    int64_t source_h, source_w, source_row;    /* source_row: pixels from row to row, of which source_w may be the first of a tap */
    int64_t source_step;
    float *out;                                /* [images, out_h, out_w, columns] */
    int64_t out_h, out_w, columns;
    size_t depth, panel_floats;
    const float *packed, *zeros;
    const kd_f32_finish *finish; /* forward */
    end_fn end;
    const lattice *l;
    size_t pixels, block, blocks, panels, column_parts;
    kd_f32_tap *taps; /* of a thread's block, taps_per_thread apart */
    size_t taps_per_thread;
} product;

static size_t panels_of(int64_t columns) {
    return (size_t)((columns + COLUMNS - 1) / COLUMNS);
}

/* The addresses of every tap for pixel (y, x) of image n: slot m of taps. Few pixels lie so near to a border that a tap is outside. */
static void locate_pixel(const product *p, kd_f32_tap *taps, int m, int64_t n, int64_t y, int64_t x) {
    const lattice *l = p->l;
    int64_t sy = l->stride * y, sx = l->stride * x, first = ((n * p->source_h + sy) * p->source_row + sx) * p->source_step;
    if (sy + l->low_y >= 0 && sy + l->high_y < p->source_h && sx + l->low_x >= 0 && sx + l->high_x < p->source_w) {
        for (int i = 0; i < l->taps; i++)
            taps[i].row[m] = p->source + (first + l->tap[i].distance);
        return;
    }
    for (int i = 0; i < l->taps; i++) {
        int64_t ty = sy + l->tap[i].dy, tx = sx + l->tap[i].dx;
        int inside = ty >= 0 && ty < p->source_h && tx >= 0 && tx < p->source_w;
        taps[i].row[m] = inside ? p->source + (first + l->tap[i].distance) : p->zeros;
    }
}

/* Where the six pixels from `pixel` on lie: taps[taps of the lattice] for kd_f32_tile_sum, out[6] in floats. Those beyond `end` repeat the last. */
static void locate(const product *p, kd_f32_tap *taps, size_t *out, size_t pixel, size_t end) {
    const lattice *l = p->l;
    int64_t q = (int64_t)pixel, n = q / (l->rows * l->cols), y = q / l->cols % l->rows, x = q % l->cols;
    for (int i = 0; i < l->taps; i++)
        taps[i].at = l->tap[i].at;
    for (int m = 0; m < ROWS; m++) {
        out[m] = (size_t)(((n * p->out_h + l->first_y + l->step * y) * p->out_w + l->first_x + l->step * x) * p->columns);
        locate_pixel(p, taps, m, n, y, x);
        if (pixel + (size_t)m + 1 < end && ++x == l->cols) {
            x = 0;
            if (++y == l->rows)
                y = 0, n++;
        }
    }
}

/* What happens to a finished tile. Constants, like the activation and whether the tile is whole: simd.h says why. */
typedef enum ending { OVERWRITE, ADD, APPLY, APPLY_AND_SAVE, JOIN } ending;

KD_LANE kd_vf channels(const float *values, float absent, size_t column, int n) {
    const kd_vf same = kd_splat(absent);
    const float *from = values ? values + column : (const float *)&same;
    return kd_load_f32(from, n);
}

KD_LANE void end_tile(const product *p, ending e, kd_act act, const float *sum, const size_t *out, int rows, size_t column, int n) {
    const kd_f32_finish *f = p->finish;
    const kd_vf bias = e >= APPLY ? channels(f->bias, 0, column, n) : kd_splat(0), gamma = e == JOIN ? channels(f->gamma, 1, column, n) : kd_splat(1);
    for (int m = 0; m < rows; m++) {
        size_t at = out[m] + column;
        kd_vf v = kd_load_f32(sum + m * COLUMNS, KD_VF) + bias;
        if (e == ADD)
            v += kd_load_f32(p->out + at, n);
        if (e == APPLY_AND_SAVE)
            kd_store_f32(f->before_act + at, v, n);
        if (e == APPLY || e == APPLY_AND_SAVE)
            v = kd_act_value(act, v);
        if (e == JOIN)
            v = kd_load_f32(f->residual + at, n) + v * gamma;
        kd_store_f32(p->out + at, v, n);
    }
}

#define ENDS(name, e, act) \
    KD_AVX2 static void name(const product *p, const float *sum, const size_t *out, int rows, size_t column, int n) { \
        if (n == KD_VF) \
            end_tile(p, e, act, sum, out, rows, column, KD_VF); \
        else \
            end_tile(p, e, act, sum, out, rows, column, n); \
    }

ENDS(overwrite, OVERWRITE, KD_ACT_NONE)
ENDS(add_to, ADD, KD_ACT_NONE)
ENDS(apply, APPLY, KD_ACT_NONE)
ENDS(apply_relu, APPLY, KD_ACT_RELU)
ENDS(apply_gelu, APPLY, KD_ACT_GELU)
ENDS(save_and_apply_gelu, APPLY_AND_SAVE, KD_ACT_GELU)
ENDS(join, JOIN, KD_ACT_NONE)

static end_fn ending_of(const kd_f32_finish *f) {
    if (f->residual)
        return join;
    if (f->before_act)
        return save_and_apply_gelu;
    return f->act == KD_ACT_GELU ? apply_gelu : f->act == KD_ACT_RELU ? apply_relu : apply;
}

enum { GROUPS = BLOCK_PIXELS / ROWS };

static void run_block(const product *p, kd_f32_tap *taps, size_t first, size_t last, size_t panel, size_t panel_end) {
    _Alignas(64) float sum[KD_F32_TILE];
    size_t out[GROUPS][ROWS], per_group = (size_t)p->l->taps;
    for (size_t g = 0, pixel = first; pixel < last; g++, pixel += ROWS)
        locate(p, taps + g * per_group, out[g], pixel, last);
    for (; panel < panel_end; panel++)
        for (size_t g = 0, pixel = first; pixel < last; g++, pixel += ROWS) {
            for (int m = 0; m < ROWS; m++) /* lines of memory that the tile will have filled, asked for before it would wait for them */
                __builtin_prefetch(p->out + out[g][m] + panel * COLUMNS, 1);
            kd_f32_tile_sum(sum, COLUMNS, taps + g * per_group, per_group, p->depth, p->packed + panel * p->panel_floats);
            p->end(p, sum, out[g], last - pixel < ROWS ? (int)(last - pixel) : ROWS, panel * COLUMNS, kd_lanes((size_t)p->columns - panel * COLUMNS));
        }
}

/* Task i: block i / column_parts, part i % column_parts of the panels. */
static void product_range(const void *ctx, int slice, size_t begin, size_t end) {
    const product *p = ctx;
    for (size_t i = begin; i < end; i++) {
        size_t first = i / p->column_parts * p->block, last = first + p->block < p->pixels ? first + p->block : p->pixels, part = i % p->column_parts;
        if (first < last)
            run_block(p, p->taps + (size_t)slice * p->taps_per_thread, first, last, p->panels * part / p->column_parts, p->panels * (part + 1) / p->column_parts);
    }
}

static void measure_taps(const product *p, lattice *l) {
    for (int i = 0; i < l->taps; i++) {
        window_tap *t = &l->tap[i];
        t->distance = (t->dy * p->source_row + t->dx) * p->source_step;
        l->low_y = i == 0 || t->dy < l->low_y ? t->dy : l->low_y;
        l->high_y = i == 0 || t->dy > l->high_y ? t->dy : l->high_y;
        l->low_x = i == 0 || t->dx < l->low_x ? t->dx : l->low_x;
        l->high_x = i == 0 || t->dx > l->high_x ? t->dx : l->high_x;
    }
}

/* Every block reads all weights. Where those stay in the third-level cache, blocks of a quarter are faster by a tenth (vit_small, resnet18): their rows leave room in the second-level cache. */
enum { NEAR_WEIGHTS = 3 << 20 };

/* Blocks of at most BLOCK_PIXELS, as many for every thread; where there are fewer than threads, they share the columns too. No choice here changes a bit. */
static void run_lattice(int threads, product *p, lattice *l) {
    size_t t = (size_t)threads;
    measure_taps(p, l);
    p->l = l;
    p->pixels = (size_t)(p->images * l->rows * l->cols);
    p->panels = panels_of(p->columns);
    size_t most = p->panels * p->panel_floats * sizeof(float) <= NEAR_WEIGHTS ? BLOCK_PIXELS / 4 : BLOCK_PIXELS;
    p->blocks = (p->pixels + most - 1) / most;
    if (p->blocks >= t)
        p->blocks = (p->blocks + t - 1) / t * t;
    p->block = (p->pixels + p->blocks * ROWS - 1) / (p->blocks * ROWS) * ROWS;
    p->column_parts = p->blocks >= t ? 1 : (t + p->blocks - 1) / p->blocks;
    if (p->column_parts > p->panels)
        p->column_parts = p->panels;
    kd_cpu_share(threads, p->blocks * p->column_parts, p->block * (size_t)p->columns, product_range, p);
}

static size_t product_bytes(size_t taps, size_t depth, int threads) {
    size_t at = 0;
    kd_cpu_region(&at, depth * sizeof(float));
    kd_cpu_region(&at, (size_t)threads * GROUPS * taps * sizeof(kd_f32_tap));
    return at;
}

/* Sets p's scratch: zeros and the threads' taps. */
static void use_scratch(product *p, size_t taps, void *scratch) {
    size_t at = 0;
    float *zeros = kd_cpu_at(scratch, kd_cpu_region(&at, p->depth * sizeof(float)));
    memset(zeros, 0, p->depth * sizeof *zeros);
    p->zeros = zeros;
    p->taps = kd_cpu_at(scratch, at);
    p->taps_per_thread = GROUPS * taps;
}

/* ---- forward ---- */

static size_t forward_depth(const kd_f32_shape *s) {
    return (size_t)(kd_f32_merges(s) ? s->kernel * s->in : s->in);
}

/* Whether x must be copied: rows of a window that reach over the border. */
static int pads_rows(const kd_f32_shape *s) {
    return kd_f32_merges(s) && s->pad > 0;
}

size_t kd_f32_forward_bytes(const kd_f32_shape *s, int threads) {
    size_t at = 0;
    kd_cpu_region(&at, pads_rows(s) ? padded_bytes(s) : 0);
    return at + product_bytes((size_t)forward_taps(s), forward_depth(s), threads);
}

static lattice forward_lattice(const kd_f32_shape *s) {
    lattice l = {.rows = s->ho, .cols = s->wo, .step = 1, .stride = s->stride};
    int64_t across = kd_f32_merges(s) ? 1 : s->kernel;
    for (int64_t y = 0; y < s->kernel; y++)
        for (int64_t x = 0; x < across; x++)
            l.tap[l.taps++] = (window_tap){.dy = y - s->pad, .dx = kd_f32_merges(s) ? 0 : x - s->pad, .at = (size_t)((y * s->kernel + x) * s->in) * COLUMNS};
    return l;
}

void kd_f32_forward(int threads, const kd_f32_shape *s, float *y, const float *x, const float *packed, const kd_f32_finish *f, void *scratch) {
    lattice l = forward_lattice(s);
    product p = {.images = s->images, .source = x, .source_h = s->h, .source_w = s->w, .source_row = s->w, .source_step = s->in, .out = y, .out_h = s->ho, .out_w = s->wo, .columns = s->out,
                 .depth = forward_depth(s), .panel_floats = (size_t)(s->kernel * s->kernel * s->in) * COLUMNS, .packed = packed, .finish = f, .end = ending_of(f)};
    size_t at = 0;
    if (pads_rows(s)) {
        float *padded = kd_cpu_at(scratch, kd_cpu_region(&at, padded_bytes(s)));
        pad_rows(threads, s, padded, x);
        p.source = padded;
        p.source_w = p.source_row = padded_width(s);
    }
    use_scratch(&p, (size_t)forward_taps(s), kd_cpu_at(scratch, at));
    run_lattice(threads, &p, &l);
}

/* ---- gradient of x ---- */

size_t kd_f32_dx_bytes(const kd_f32_shape *s, int threads) {
    return product_bytes((size_t)dx_taps(s), (size_t)s->out, threads);
}

/* Pixels (py + s y, px + s x) of the map; tap (ky, kx) reads the gradient at ((py + pad - ky) / s + y, ..) where that divides. */
static lattice dx_lattice(const kd_f32_shape *s, int64_t py, int64_t px) {
    lattice l = {.rows = (s->h - py + s->stride - 1) / s->stride, .cols = (s->w - px + s->stride - 1) / s->stride, .first_y = py, .first_x = px, .step = s->stride, .stride = 1};
    for (int64_t ky = 0; ky < s->kernel; ky++)
        for (int64_t kx = 0; kx < s->kernel; kx++) {
            int64_t y = py + s->pad - ky, x = px + s->pad - kx;
            if (y % s->stride == 0 && x % s->stride == 0)
                l.tap[l.taps++] = (window_tap){.dy = y / s->stride, .dx = x / s->stride, .at = (size_t)((ky * s->kernel + kx) * s->out) * COLUMNS};
        }
    return l;
}

void kd_f32_dx(int threads, const kd_f32_shape *s, float *dx, const float *g, const float *packed, int add, void *scratch) {
    product p = {.images = s->images, .source = g, .source_h = s->ho, .source_w = s->wo, .source_row = s->wo, .source_step = s->out, .out = dx, .out_h = s->h, .out_w = s->w, .columns = s->in,
                 .depth = (size_t)s->out, .panel_floats = (size_t)(s->kernel * s->kernel * s->out) * COLUMNS, .packed = packed, .end = add ? add_to : overwrite};
    use_scratch(&p, (size_t)dx_taps(s), scratch);
    for (int64_t py = 0; py < s->stride && py < s->h; py++)
        for (int64_t px = 0; px < s->stride && px < s->w; px++) {
            lattice l = dx_lattice(s, py, px);
            run_lattice(threads, &p, &l); /* pixels that no tap reaches become 0 */
        }
}

/* ---- weights ---- */

size_t kd_f32_packed_bytes(const kd_f32_shape *s) {
    return panels_of(s->out) * (size_t)(s->kernel * s->kernel * s->in) * COLUMNS * sizeof(float);
}

size_t kd_f32_packed_dx_bytes(const kd_f32_shape *s) {
    return panels_of(s->in) * (size_t)(s->kernel * s->kernel * s->out) * COLUMNS * sizeof(float);
}

typedef struct pack_ctx {
    const kd_f32_shape *s;
    const float *w;
    float *packed;
} pack_ctx;

/* packed[panel][tap][in][16 of out] */
KD_AVX2 static void pack_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pack_ctx c = *(const pack_ctx *)ctx;
    size_t taps = (size_t)(c.s->kernel * c.s->kernel), in = (size_t)c.s->in, out = (size_t)c.s->out;
    (void)slice;
    for (size_t panel = begin; panel < end; panel++) {
        float *to = c.packed + panel * taps * in * COLUMNS;
        for (size_t i = 0; i < in; i++)
            for (size_t t = 0; t < taps; t++)
                for (size_t o = 0; o < COLUMNS; o++) {
                    size_t channel = panel * COLUMNS + o;
                    to[(t * in + i) * COLUMNS + o] = channel < out ? c.w[(channel * in + i) * taps + t] : 0;
                }
    }
}

void kd_f32_pack(int threads, const kd_f32_shape *s, const float *w, float *packed) {
    kd_cpu_parallel(threads, panels_of(s->out), (size_t)(s->kernel * s->kernel * s->in) * COLUMNS, pack_range, &(pack_ctx){s, w, packed});
}

/* packed[panel][tap][out][16 of in] */
KD_AVX2 static void pack_dx_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pack_ctx c = *(const pack_ctx *)ctx;
    size_t taps = (size_t)(c.s->kernel * c.s->kernel), in = (size_t)c.s->in, out = (size_t)c.s->out;
    (void)slice;
    for (size_t panel = begin; panel < end; panel++) {
        float *to = c.packed + panel * taps * out * COLUMNS;
        for (size_t o = 0; o < out; o++)
            for (size_t t = 0; t < taps; t++)
                for (size_t i = 0; i < COLUMNS; i++) {
                    size_t channel = panel * COLUMNS + i;
                    to[(t * out + o) * COLUMNS + i] = channel < in ? c.w[(o * in + channel) * taps + t] : 0;
                }
    }
}

void kd_f32_pack_dx(int threads, const kd_f32_shape *s, const float *w, float *packed) {
    kd_cpu_parallel(threads, panels_of(s->in), (size_t)(s->kernel * s->kernel * s->out) * COLUMNS, pack_dx_range, &(pack_ctx){s, w, packed});
}
