/* Gradients of weights as sums over pixels of outer products (f32.h).
 *
 * The lines of the result (rows of the map; for a window of one pixel, runs of pixels) are divided among the threads, or where there are few pixels and many weights, the output channels; and taken some hundred pixels
 * at a time. The source pixels under them are copied into panels of 6 channels,
 * with the padding, and the gradient's into panels of 16; so a tap is an offset, and every value that a sum reads lies in the first-level cache or streams from the second. Sums of a part start at 0 and are added to
 * those of the thread's earlier parts in f32, so that the error grows with the number of parts, not of pixels. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/f32.h"
#include "kernels/cpu/f32_tile.h"

enum {
    ROWS = KD_F32_ROWS,
    COLUMNS = KD_F32_COLUMNS,
    PART_PIXELS = 384,
    MOST_PIXELS = PART_PIXELS + PART_PIXELS / 4,
    MAX_LINES = MOST_PIXELS /* of a part: a line has a pixel at least */
};

/* Threads' sums together take no more than this, if need be by leaving threads idle. */
static const size_t SUMS_BYTES = (size_t)256 << 20;

/* What is summed, seen as lines of pixels. A window of one pixel has neither padding nor neighbours, so all its pixels in a row are cut into lines anywhere. */
typedef struct geometry {
    int flat, merged;
    size_t all, lines, pixels;     /* of the result, and of a line (flat: the last may be shorter) */
    size_t lines_per_part;
    int by_output;                 /* threads share the output channels: no thread needs sums of all weights, but each copies all of the source */
    size_t taps, taps_x;           /* merged: a tap is a row of the window */
    size_t width;                  /* values of a tap: input channels, or those of a row of the window */
    size_t in_blocks, out_blocks;
    size_t line_width;             /* source pixels under a line, with the padding */
    size_t pixel, row;             /* floats from source pixel to source pixel, and from row to row */
    size_t source;                 /* floats of a part's source, at most */
    size_t sums;                   /* floats: [out_blocks][in_blocks][taps][6][16] */
    size_t threads;                /* that work */
    size_t thread_blocks;          /* output blocks of a thread, at most */
    size_t copies;                 /* of the sums: one for each thread, or one */
} geometry;

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Rows of the source under the lines of a part: an image's first line needs all of its window, every other one only what is new. */
static size_t source_rows(const kd_f32_shape *s, size_t lines) {
    size_t k = (size_t)s->kernel, fresh = smaller(k, (size_t)s->stride), images = lines / (size_t)s->ho + 2;
    return lines * fresh + images * (k - fresh);
}

static size_t divided(size_t a, size_t b) {
    return (a + b - 1) / b;
}

/* n in equal parts of at most `most`: how many a part has. */
static size_t equal_part(size_t n, size_t most) {
    return divided(n, divided(n, most));
}

/* What a thread takes at once: of PART_PIXELS, or up to a quarter more, since every part reads and writes all sums. */
static void cut_lines(geometry *g, const kd_f32_shape *s, size_t threads) {
    if (g->flat) {
        g->pixels = equal_part(divided(g->all, threads), MOST_PIXELS);
        g->lines = divided(g->all, g->pixels);
        g->lines_per_part = 1;
        g->line_width = g->pixels;
    } else {
        g->pixels = (size_t)s->wo;
        g->lines = g->all / g->pixels;
        g->lines_per_part = g->pixels < MOST_PIXELS ? equal_part(divided(g->lines, threads), MOST_PIXELS / g->pixels) : 1;
        g->line_width = (size_t)((s->wo - 1) * s->stride + s->kernel);
    }
}

static geometry geometry_of(const kd_f32_shape *s, int threads) {
    geometry g = {.flat = s->kernel == 1 && s->stride == 1 && s->pad == 0, .merged = kd_f32_merges(s), .all = (size_t)(s->images * s->ho * s->wo)};
    size_t k = (size_t)s->kernel, t = (size_t)threads;
    g.taps = g.merged ? k : k * k;
    g.taps_x = g.merged ? 1 : k;
    g.width = g.merged ? k * (size_t)s->in : (size_t)s->in;
    g.in_blocks = divided(g.width, ROWS);
    g.out_blocks = divided((size_t)s->out, COLUMNS);
    g.sums = g.out_blocks * g.in_blocks * g.taps * KD_F32_TILE;
    g.by_output = t > 1 && g.out_blocks >= t && g.all < (size_t)s->out * k * k;
    cut_lines(&g, s, g.by_output ? 1 : t);
    g.threads = g.by_output ? t : smaller(g.lines, t);
    if (!g.by_output && g.threads * g.sums * sizeof(float) > SUMS_BYTES)
        g.threads = SUMS_BYTES / (g.sums * sizeof(float));
    g.threads = g.threads > 0 ? g.threads : 1;
    g.thread_blocks = g.by_output ? divided(g.out_blocks, g.threads) : g.out_blocks;
    g.copies = g.by_output ? 1 : g.threads;
    g.pixel = g.merged ? (size_t)s->in : ROWS;
    g.row = g.line_width * g.pixel;
    g.source = (g.flat ? 1 : source_rows(s, g.lines_per_part)) * g.row;
    g.source = g.merged ? g.source + KD_F32_TILE : g.source * g.in_blocks; /* merged: the last block reads beyond its row's end */
    return g;
}

/* Byte offsets in scratch: a thread's regions and the distance to the next thread's, and the first sums and the distance to the next. */
typedef struct layout {
    size_t source, gradient, thread;
    size_t sums, copy;
} layout;

static layout layout_of(const geometry *g) {
    layout l;
    size_t at = 0, copy = 0;
    l.source = kd_cpu_region(&at, g->source * sizeof(float));
    l.gradient = kd_cpu_region(&at, g->thread_blocks * g->lines_per_part * g->pixels * COLUMNS * sizeof(float));
    l.thread = at;
    kd_cpu_region(&copy, g->sums * sizeof(float));
    l.copy = copy;
    l.sums = g->threads * l.thread;
    return l;
}

size_t kd_f32_dw_bytes(const kd_f32_shape *s, int threads) {
    geometry g = geometry_of(s, threads);
    layout l = layout_of(&g);
    return l.sums + g.copies * l.copy;
}

/* ---- a part: some lines of one thread ---- */

typedef struct dw_ctx {
    const kd_f32_shape *s;
    geometry g;
    layout l;
    const float *x, *gradient;
    float *dw;
    char *scratch;
} dw_ctx;

typedef struct part {
    float *source, *gradient, *sums;       /* sums: of the first of the blocks */
    size_t first_block, blocks;            /* of the output */
    size_t first, pixels;                  /* of the result; `pixels` of a line */
    size_t lines, line[MAX_LINES];         /* where each line begins in a source panel, in floats */
    size_t panel;                          /* floats from source panel to source panel */
    size_t step;                           /* floats from the source of a pixel to that of its neighbour */
    int add;                               /* not the thread's first */
} part;

static void add_products(const geometry *g, const part *p) {
    size_t panel = p->lines * p->pixels * COLUMNS;
    float *sums = p->sums;
    for (size_t o = 0; o < p->blocks; o++)
        for (size_t i = 0; i < g->in_blocks; i++)
            for (size_t t = 0; t < g->taps; t++, sums += KD_F32_TILE)
                kd_f32_tile_outer(sums, p->add, p->line, p->lines, p->pixels, p->step, p->source + i * p->panel + t / g->taps_x * g->row + t % g->taps_x * g->pixel, p->gradient + o * panel);
}

/* n <= `whole` floats, and zeros up to it. */
static inline __attribute__((always_inline)) void copy_block(float *to, const float *from, size_t n, size_t whole) {
    if (n == whole) {
        memcpy(to, from, whole * sizeof *to);
        return;
    }
    memset(to, 0, whole * sizeof *to);
    memcpy(to, from, n * sizeof *to);
}

KD_AVX2 static void copy_gradient(const dw_ctx *c, const part *p) {
    size_t out = (size_t)c->s->out, count = p->lines * p->pixels;
    for (size_t o = 0; o < p->blocks; o++) {
        size_t column = (p->first_block + o) * COLUMNS, n = smaller(out - column, COLUMNS);
        float *to = p->gradient + o * count * COLUMNS;
        const float *from = c->gradient + p->first * out + column;
        for (size_t i = 0; i < count; i++, to += COLUMNS, from += out)
            copy_block(to, from, n, COLUMNS);
    }
}

KD_AVX2 static void copy_flat(const dw_ctx *c, part *p) {
    size_t in = (size_t)c->s->in;
    for (size_t b = 0; b < c->g.in_blocks; b++) {
        size_t n = smaller(in - b * ROWS, ROWS);
        float *to = p->source + b * p->pixels * ROWS;
        const float *from = c->x + p->first * in + b * ROWS;
        for (size_t i = 0; i < p->pixels; i++, to += ROWS, from += in)
            copy_block(to, from, n, ROWS);
    }
    p->panel = p->pixels * ROWS;
    p->line[0] = 0;
}

/* Row y of image n with its padding (outside of the map: zeros) into row `at` of block b. */
KD_AVX2 static void copy_row(const dw_ctx *c, const part *p, size_t b, size_t at, int64_t n, int64_t y) {
    const kd_f32_shape *s = c->s;
    const geometry *g = &c->g;
    size_t channels = g->merged ? g->pixel : smaller((size_t)s->in - b * ROWS, ROWS);
    float *to = p->source + b * p->panel + at * g->row;
    const float *from = c->x + ((n * s->h + y) * s->w - s->pad) * s->in + (int64_t)b * ROWS;
    int64_t left = s->pad, right = s->w + s->pad, width = (int64_t)g->line_width;
    if (y < 0 || y >= s->h)
        left = width;
    for (int64_t i = 0; i < width; i++, to += g->pixel, from += s->in) {
        if (i < left || i >= right)
            memset(to, 0, g->pixel * sizeof *to);
        else if (g->pixel == ROWS)
            copy_block(to, from, channels, ROWS);
        else
            memcpy(to, from, g->pixel * sizeof *to);
    }
}

/* The rows of the source under the part's lines, those of an image once. */
static void copy_rows(const dw_ctx *c, part *p) {
    const kd_f32_shape *s = c->s;
    size_t rows = 0, first = p->first / p->pixels, blocks = c->g.merged ? 1 : c->g.in_blocks;
    int64_t image = -1, next = 0; /* the image whose rows come last, and its first row that isn't there yet */
    p->panel = c->g.merged ? ROWS : source_rows(s, c->g.lines_per_part) * c->g.row;
    for (size_t i = 0; i < p->lines; i++) {
        int64_t n = (int64_t)(first + i) / s->ho, top = (int64_t)(first + i) % s->ho * s->stride - s->pad;
        if (n != image || next < top)
            next = top;
        image = n;
        for (; next < top + s->kernel; next++, rows++)
            for (size_t b = 0; b < blocks; b++)
                copy_row(c, p, b, rows, n, next);
        p->line[i] = (rows - (size_t)(next - top)) * c->g.row;
    }
}

static void run_part(const dw_ctx *c, part *p) {
    if (c->g.flat)
        copy_flat(c, p);
    else
        copy_rows(c, p);
    copy_gradient(c, p);
    add_products(&c->g, p);
}

/* Lines begin .. end-1 for the thread's output blocks. */
static void run_lines(const dw_ctx *c, part p, int slice, size_t begin, size_t end) {
    const geometry *g = &c->g;
    char *mine = c->scratch + (size_t)slice * c->l.thread;
    p.source = kd_cpu_at(mine, c->l.source);
    p.gradient = kd_cpu_at(mine, c->l.gradient);
    p.step = (size_t)c->s->stride * g->pixel;
    for (size_t line = begin; line < end; line += g->lines_per_part) {
        p.add = line > begin;
        p.lines = smaller(end - line, g->lines_per_part);
        p.first = line * g->pixels;
        p.pixels = g->flat ? smaller(g->all - p.first, g->pixels) : g->pixels;
        run_part(c, &p);
    }
}

static void lines_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    run_lines(c, (part){.sums = kd_cpu_at(c->scratch, c->l.sums + (size_t)slice * c->l.copy), .blocks = c->g.out_blocks}, slice, begin, end);
}

static void blocks_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    float *sums = kd_cpu_at(c->scratch, c->l.sums);
    run_lines(c, (part){.sums = sums + begin * c->g.in_blocks * c->g.taps * KD_F32_TILE, .first_block = begin, .blocks = end - begin}, slice, 0, c->g.lines);
}

/* ---- the sum over threads ---- */

/* out[16] = the threads' sums of value v of a tap's input and output block o. */
KD_AVX2 static void sum_threads(const dw_ctx *c, float *out, size_t o, size_t v, size_t tap) {
    const geometry *g = &c->g;
    size_t copy = c->l.copy / sizeof(float);
    const float *from = (const float *)kd_cpu_at(c->scratch, c->l.sums) + ((o * g->in_blocks + v / ROWS) * g->taps + tap) * KD_F32_TILE + v % ROWS * COLUMNS;
    memcpy(out, from, COLUMNS * sizeof *out);
    for (size_t i = 1; i < g->copies; i++)
        for (size_t j = 0; j < COLUMNS; j++)
            out[j] += from[i * copy + j];
}

/* Eight weights of each of 16 output channels, which lie side by side in dw; few channels have other numbers. */
KD_AVX2 static void gather8(const dw_ctx *c, float *dw, size_t o, size_t weight, size_t distance) {
    _Alignas(32) float sums[8][COLUMNS], turned[COLUMNS][8];
    for (size_t i = 0; i < 8; i++)
        sum_threads(c, sums[i], o, (weight + i) / c->g.taps, (weight + i) % c->g.taps);
    kd_f32_turn8(turned[0], 8, sums[0], COLUMNS);
    kd_f32_turn8(turned[8], 8, sums[0] + 8, COLUMNS);
    for (size_t j = 0; j < COLUMNS; j++)
        for (size_t i = 0; i < 8; i++)
            dw[j * distance + weight + i] += turned[j][i];
}

/* Output blocks begin .. end-1. */
KD_AVX2 static void gather_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    const geometry *g = &c->g;
    size_t in = (size_t)c->s->in, k = (size_t)c->s->kernel, out = (size_t)c->s->out, weights = g->width * g->taps;
    (void)slice;
    for (size_t o = begin; o < end; o++) {
        float *dw = c->dw + o * COLUMNS * weights;
        size_t channels = smaller(out - o * COLUMNS, COLUMNS), w = 0;
        for (; !g->merged && channels == COLUMNS && w + 8 <= weights; w += 8)
            gather8(c, dw, o, w, weights);
        for (; w < weights; w++) {
            float sum[COLUMNS];
            size_t v = w / g->taps, t = w % g->taps, to = g->merged ? (v % in * k + t) * k + v / in : w;
            sum_threads(c, sum, o, v, t);
            for (size_t j = 0; j < channels; j++)
                dw[j * weights + to] += sum[j];
        }
    }
}

void kd_f32_dw(int threads, const kd_f32_shape *s, float *dw, const float *x, const float *g, void *scratch) {
    dw_ctx c = {.s = s, .g = geometry_of(s, threads), .x = x, .gradient = g, .dw = dw, .scratch = scratch};
    c.l = layout_of(&c.g);
    /* Always in parallel: the bits follow from the number of threads alone. */
    if (c.g.by_output)
        kd_cpu_parallel((int)c.g.threads, c.g.out_blocks, (size_t)1 << 20, blocks_range, &c);
    else
        kd_cpu_parallel((int)c.g.threads, c.g.lines, (size_t)1 << 20, lines_range, &c);
    kd_cpu_parallel(threads, c.g.out_blocks, c.g.width * c.g.taps * COLUMNS, gather_range, &c);
}
