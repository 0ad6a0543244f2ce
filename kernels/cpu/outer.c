/* outer.h: the work and its division.
 *
 * The lines of the result (rows of the map; for a window of one pixel, runs of pixels) are divided among the threads, or where there are few pixels and many weights, the output channels; and taken some hundred steps
 * at a time. The source rows under such a part are copied into panels of R channels, the gradient into one panel of C after the other; so a tap is an offset, and what a tile reads lies in the first- or second-level cache.
 * Sums of a part start at 0 and are added to those of the thread's earlier parts in f32, so that the error grows with the number of parts, not of pixels. */
#include "kernels/cpu/outer.h"

#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    STEP = 4,
    PART_STEPS = 512,         /* at most */
    NEAR_SUMS = 1 << 20,      /* bytes of sums that stay in the second-level cache from part to part. Then a part is also */
    PART_BYTES = 448 << 10,   /* of its source in panels and of what the next part will copy, which is fetched meanwhile; but */
    LEAST_STEPS = 128,        /* at least */
    LINE = 64,
    MOST_COLUMNS = 32
};

/* Threads' sums together take no more than this, if need be by leaving threads idle. */
static const size_t SUMS_BYTES = (size_t)256 << 20;

/* What is summed, seen as lines of steps. A window of one pixel has neither padding nor neighbours, so all its pixels in a row are cut into lines anywhere. Sizes in bytes. */
typedef struct geometry {
    const kd_outer_kind *kind;
    size_t at_once;                /* values of a step */
    int flat, merged;
    size_t groups;                 /* of at_once images; flat: one */
    size_t all, lines, pixels;     /* steps of the result, lines, steps of a line (flat: the last may be shorter) */
    size_t lines_per_part;
    int by_output;                 /* threads share the output channels: no thread needs sums of all weights, but each copies all of the source */
    size_t taps, taps_x;           /* merged: a tap is a row of the window */
    size_t width;                  /* values of a tap: input channels, or those of a row of the window */
    size_t rows, in_blocks, out_blocks;
    size_t tile;                   /* floats */
    size_t skip;                   /* of the source's pixels every which is copied: a window of one pixel sees no others */
    size_t pixel, row;             /* from source pixel to source pixel, and from row to row */
    size_t source, panel;          /* a part's source, at most, and from panel to panel of it */
    size_t sums;                   /* [out_blocks][in_blocks][taps][rows][columns] */
    size_t threads;                /* that work */
    size_t copies;                 /* of the sums: one for each thread, or one */
} geometry;

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t divided(size_t a, size_t b) {
    return (a + b - 1) / b;
}

/* n in equal parts of at most `most`: how many a part has. */
static size_t equal_part(size_t n, size_t most) {
    return divided(n, divided(n, most));
}

/* Rows of the source under the lines of a part, at most: an image's first line needs all of its window, every other one only what is new. */
static size_t source_rows(const kd_window *s, size_t lines) {
    size_t k = (size_t)s->kernel, fresh = smaller(k, (size_t)s->stride), images = lines / (size_t)s->ho + 2;
    return lines * fresh + images * (k - fresh);
}

static size_t most_steps(const geometry *g, const kd_window *s) {
    size_t pixels = (size_t)(s->stride * s->stride) / (g->skip * g->skip), panels = pixels * (g->merged ? (size_t)s->in : g->rows * g->in_blocks), next = pixels * (size_t)s->in + (size_t)s->out;
    size_t steps = PART_BYTES / ((panels + next) * STEP);
    if (g->sums > NEAR_SUMS)
        return PART_STEPS;
    return steps < LEAST_STEPS ? LEAST_STEPS : smaller(steps, PART_STEPS);
}

static void cut_lines(geometry *g, const kd_window *s, size_t threads) {
    size_t most = most_steps(g, s);
    if (g->flat) {
        g->pixels = equal_part(divided(g->all, threads), most);
        g->lines = divided(g->all, g->pixels);
        g->lines_per_part = 1;
    } else {
        g->pixels = (size_t)s->wo;
        g->lines = g->all / g->pixels;
        g->lines_per_part = g->pixels < most ? equal_part(divided(g->lines, threads), most / g->pixels) : 1;
    }
}

static const kd_outer_kind *kind_here(void) {
    return kd_dnn_instructions() == KD_DNN_AVX512 ? &kd_outer_avx512 : &kd_outer_avx2;
}

static geometry geometry_of(const kd_window *s, kd_dtype type, int threads) {
    geometry g = {.kind = kind_here(), .at_once = STEP / kd_dtype_size(type), .flat = s->kernel == 1 && s->stride == 1, .merged = kd_product_merges(s)};
    size_t k = (size_t)s->kernel, t = (size_t)threads, map = (size_t)(s->ho * s->wo), images = (size_t)s->images;
    g.groups = g.flat ? 1 : divided(images, g.at_once);
    g.all = g.flat ? divided(images * map, g.at_once) : g.groups * map;
    g.taps = g.merged ? k : k * k;
    g.taps_x = g.merged ? 1 : k;
    g.width = g.merged ? k * (size_t)s->in : (size_t)s->in;
    g.rows = g.kind->rows(g.width);
    g.in_blocks = divided(g.width, g.rows);
    g.out_blocks = divided((size_t)s->out, g.kind->columns);
    g.tile = g.rows * g.kind->columns;
    g.sums = g.out_blocks * g.in_blocks * g.taps * g.tile * sizeof(float);
    g.skip = k == 1 ? (size_t)s->stride : 1;
    g.by_output = t > 1 && g.out_blocks >= t && images * map < (size_t)s->out * k * k;
    cut_lines(&g, s, g.by_output ? 1 : t);
    g.threads = g.by_output ? t : smaller(g.lines, t);
    if (!g.by_output && g.threads * g.sums > SUMS_BYTES)
        g.threads = SUMS_BYTES / g.sums;
    g.threads = g.threads > 0 ? g.threads : 1;
    g.copies = g.by_output ? 1 : g.threads;
    g.pixel = (g.merged ? (size_t)s->in : g.rows) * STEP;
    g.row = (g.merged ? (size_t)(s->w + 2 * s->pad) : divided((size_t)s->w, g.skip)) * g.pixel;
    g.source = g.flat ? g.pixels * g.pixel : source_rows(s, g.lines_per_part) * g.row;
    g.panel = g.merged ? g.rows * STEP : (g.source + KD_OUTER_SPILL + 63) / 64 * 64;
    g.source = g.merged ? g.source + g.rows * STEP + KD_OUTER_SPILL : g.panel * g.in_blocks; /* merged: the last block reads beyond its row's end */
    return g;
}

/* Byte offsets in scratch: a thread's regions and the distance to the next thread's, and the first sums and the distance to the next. */
typedef struct layout {
    size_t source, gradient, taps, runs, thread;
    size_t sums, copy;
} layout;

static layout layout_of(const geometry *g) {
    layout l;
    size_t at = 0, copy = 0;
    l.source = kd_cpu_region(&at, g->source);
    l.gradient = kd_cpu_region(&at, g->lines_per_part * g->pixels * g->kind->columns * STEP + KD_OUTER_SPILL);
    l.taps = kd_cpu_region(&at, g->taps * sizeof(kd_outer_tap));
    l.runs = kd_cpu_region(&at, g->taps * g->lines_per_part * sizeof(kd_outer_run));
    l.thread = at;
    kd_cpu_region(&copy, g->sums);
    l.copy = copy;
    l.sums = g->threads * l.thread;
    return l;
}

size_t kd_outer_dw_bytes(const kd_window *s, kd_dtype type, int threads) {
    geometry g = geometry_of(s, type, threads);
    layout l = layout_of(&g);
    return l.sums + g.copies * l.copy;
}

/* ---- a part: some lines of one thread ---- */

typedef struct dw_ctx {
    const kd_window *s;
    geometry g;
    layout l;
    kd_dtype type;
    size_t element;
    const char *x, *gradient;
    float *dw;
    char *scratch;
} dw_ctx;

/* Memory that the next part will copy, and how much of it each tile asks for. */
typedef struct ahead {
    struct {
        const char *from;
        size_t bytes;
    } range[4]; /* of x and of the gradient, for the two halves of pairs */
    size_t ranges, at, done, per_tile;
} ahead;

typedef struct part {
    char *source, *gradient;
    kd_outer_tap *taps;
    float *sums;                           /* of the first of the blocks */
    size_t first_block, blocks;            /* of the output */
    size_t first, lines, pixels;           /* line of the result, how many, and steps of each */
    int add;                               /* not the thread's first */
    ahead ahead;
} part;

static void add_range(ahead *a, const char *from, const char *end) {
    a->range[a->ranges].from = from;
    a->range[a->ranges++].bytes = (size_t)(end - from);
}

/* What lines first .. last need of a tensor whose images have `rows` rows of `row` bytes: of image rows top .. end-1 of the first and of the last line. */
static void add_ranges(const dw_ctx *c, ahead *a, const char *tensor, size_t rows, size_t row, size_t first, size_t last, int64_t top, int64_t end) {
    size_t ho = (size_t)c->s->ho, image = rows * row, n = first / ho * c->g.at_once, m = last / ho * c->g.at_once, images = (size_t)c->s->images;
    top = top > 0 ? top : 0;
    end = end < (int64_t)rows ? end : (int64_t)rows;
    size_t extra = smaller(c->g.at_once - 1, images - 1 - m);
    if (n != m)
        add_range(a, tensor + n * image + (size_t)top * row, tensor + (m + extra) * image + (size_t)end * row);
    for (size_t i = 0; n == m && i <= extra; i++)
        add_range(a, tensor + (n + i) * image + (size_t)top * row, tensor + (n + i) * image + (size_t)end * row);
}

/* The part after p, which ends before line `end`. */
static void look_ahead(const dw_ctx *c, part *p, size_t end) {
    const kd_window *s = c->s;
    const geometry *g = &c->g;
    size_t first = p->first + p->lines, last = smaller(first + g->lines_per_part, end) - 1, x = (size_t)s->in * c->element, y = (size_t)s->out * c->element;
    p->ahead.ranges = p->ahead.at = p->ahead.done = 0;
    p->ahead.per_tile = 0;
    if (first >= end || g->by_output || g->skip > 1 || g->sums > NEAR_SUMS)
        return;
    if (g->flat) {
        size_t begin = first * g->pixels * g->at_once, pixels = smaller(g->pixels * g->at_once, (size_t)(s->images * s->ho * s->wo) - begin);
        add_range(&p->ahead, c->x + begin * x, c->x + (begin + pixels) * x);
        add_range(&p->ahead, c->gradient + begin * y, c->gradient + (begin + pixels) * y);
    } else {
        int64_t top = (int64_t)(first % (size_t)s->ho), bottom = (int64_t)(last % (size_t)s->ho);
        add_ranges(c, &p->ahead, c->x, (size_t)s->h, (size_t)s->w * x, first, last, top * s->stride - s->pad, bottom * s->stride - s->pad + s->kernel);
        add_ranges(c, &p->ahead, c->gradient, (size_t)s->ho, (size_t)s->wo * y, first, last, top, bottom + 1);
    }
    size_t bytes = 0;
    for (size_t i = 0; i < p->ahead.ranges; i++)
        bytes += p->ahead.range[i].bytes;
    p->ahead.per_tile = divided(bytes, p->blocks * g->in_blocks * g->taps * LINE);
}

static void fetch_ahead(ahead *a) {
    for (size_t i = 0; i < a->per_tile && a->at < a->ranges; i++) {
        __builtin_prefetch(a->range[a->at].from + a->done, 0, 2);
        a->done += LINE;
        if (a->done >= a->range[a->at].bytes) {
            a->done = 0;
            a->at++;
        }
    }
}

/* Steps first .. of a flat map of `width` channels, which begins at copy.from: pairs of neighbours, of which the very last may lack its second. */
static void copy_flat(const dw_ctx *c, kd_outer_copy copy, size_t width, size_t first, size_t steps) {
    size_t value = width * c->element, pixels = (size_t)(c->s->images * c->s->ho * c->s->wo), at = first * c->g.at_once;
    size_t whole = smaller(steps, (pixels - at) / c->g.at_once);
    copy.pixel = c->g.at_once * value;
    copy.from += at * value;
    copy.second = c->g.at_once > 1 ? copy.from + value : NULL;
    copy.pixels = whole;
    c->g.kind->copy(c->type, &copy);
    if (whole < steps) {
        copy.from += whole * copy.pixel;
        copy.to += whole * copy.rows * STEP;
        copy.second = NULL;
        copy.pixels = 1;
        c->g.kind->copy(c->type, &copy);
    }
}

/* Row y of the images of a group, of `rows` x `pixels` each, from copy.from on in the first image of all: pairs of the same pixel of two images, of every skip-th pixel. */
static void copy_row(const dw_ctx *c, kd_outer_copy copy, size_t group, size_t y, size_t rows, size_t pixels, size_t width, size_t skip) {
    size_t first = group * c->g.at_once, row = pixels * width * c->element, image = rows * row;
    copy.pixel = skip * width * c->element;
    copy.pixels = divided(pixels, skip);
    copy.from += first * image + y * row;
    copy.second = c->g.at_once > 1 && first + 1 < (size_t)c->s->images ? copy.from + image : NULL;
    c->g.kind->copy(c->type, &copy);
}

static void copy_gradient(const dw_ctx *c, const part *p, size_t block) {
    size_t columns = c->g.kind->columns, out = (size_t)c->s->out, column = (p->first_block + block) * columns, wo = (size_t)c->s->wo, ho = (size_t)c->s->ho;
    kd_outer_copy copy = {.to = p->gradient, .rows = columns, .from = c->gradient + column * c->element, .channels = smaller(out - column, columns)};
    if (c->g.flat) {
        copy_flat(c, copy, out, p->first * c->g.pixels, p->pixels);
        return;
    }
    for (size_t i = 0; i < p->lines; i++, copy.to += wo * columns * STEP)
        copy_row(c, copy, (p->first + i) / ho, (p->first + i) % ho, ho, wo, out, 1);
}

/* Row y of group n of the source into row `at` of the panels; merged: as one run of values between its padding. */
static void copy_source_row(const dw_ctx *c, const part *p, size_t at, size_t n, size_t y) {
    const kd_window *s = c->s;
    size_t in = (size_t)s->in, w = (size_t)s->w, pad = c->g.merged ? (size_t)s->pad * c->g.pixel : 0;
    kd_outer_copy copy = {.to = p->source + at * c->g.row, .panel = c->g.panel, .rows = c->g.rows, .from = c->x, .channels = in};
    if (!c->g.merged) {
        copy_row(c, copy, n, y, (size_t)s->h, w, in, c->g.skip);
        return;
    }
    memset(copy.to, 0, pad);
    copy.to += pad;
    copy.rows = copy.channels = w * in;
    copy_row(c, copy, n, y, (size_t)s->h, 1, w * in, 1);
    memset(copy.to + c->g.row - 2 * pad, 0, pad); /* the right end after the values, which spill over it */
}

/* Pixels of a line that tap column tx sees inside of the map: the first, and how many. */
static size_t first_inside(const dw_ctx *c, int64_t tx, size_t *count) {
    const kd_window *s = c->s;
    int64_t left = s->pad - tx, last = s->w - 1 + left, first = left > 0 ? (left + s->stride - 1) / s->stride : 0;
    last = last < 0 ? -1 : last / s->stride < s->wo ? last / s->stride : s->wo - 1;
    *count = last >= first ? (size_t)(last - first + 1) : 0;
    return (size_t)first;
}

/* Line number i of the part, of row y of the result, for every tap whose row is inside of the map; row r of its image is row r + shift of the panels. */
static void add_line(const dw_ctx *c, const part *p, size_t i, int64_t y, int64_t shift) {
    const kd_window *s = c->s;
    for (size_t t = 0; t < c->g.taps; t++) {
        int64_t row = y * s->stride + (int64_t)(t / c->g.taps_x) - s->pad, tx = (int64_t)(t % c->g.taps_x);
        kd_outer_tap *tap = &p->taps[t];
        if (row < 0 || row >= s->h)
            continue;
        size_t first = c->g.merged ? 0 : first_inside(c, tx, &tap->steps), pixel = first * (size_t)s->stride;
        if (!c->g.merged)
            pixel = pixel + (size_t)tx - (size_t)s->pad;
        tap->run[tap->lines++] = (kd_outer_run){(size_t)(row + shift) * c->g.row + pixel / c->g.skip * c->g.pixel, (i * p->pixels + first) * c->g.kind->columns * STEP};
    }
}

static void begin_taps(const dw_ctx *c, const part *p) {
    for (size_t t = 0; t < c->g.taps; t++) {
        p->taps[t].lines = 0;
        p->taps[t].steps = p->pixels;
        p->taps[t].step = (size_t)c->s->stride / c->g.skip * c->g.pixel;
    }
}

/* The rows of the source under the part's lines, those of an image once, and what the taps see of them. */
static void copy_source(const dw_ctx *c, const part *p) {
    const kd_window *s = c->s;
    int64_t rows = 0, next = 0, shift = 0; /* next: the image's first row that isn't there yet */
    size_t group = SIZE_MAX, ho = (size_t)s->ho;
    for (size_t i = 0; i < p->lines; i++) {
        size_t n = (p->first + i) / ho;
        int64_t y = (int64_t)((p->first + i) % ho), top = y * s->stride - s->pad, bottom = top + s->kernel;
        top = top > 0 ? top : 0;
        if (n != group || next < top) {
            next = top;
            shift = rows - next;
        }
        group = n;
        for (; next < bottom && next < s->h; next++, rows++)
            copy_source_row(c, p, (size_t)rows, n, (size_t)next);
        add_line(c, p, i, y, shift);
    }
}

static void copy_flat_source(const dw_ctx *c, const part *p) {
    size_t in = (size_t)c->s->in;
    copy_flat(c, (kd_outer_copy){.to = p->source, .panel = c->g.panel, .rows = c->g.rows, .from = c->x, .channels = in}, in, p->first * c->g.pixels, p->pixels);
    p->taps[0].run[p->taps[0].lines++] = (kd_outer_run){0, 0};
}

static void run_part(const dw_ctx *c, part *p) {
    const geometry *g = &c->g;
    float *sums = p->sums;
    size_t columns = g->kind->columns;
    begin_taps(c, p);
    if (g->flat)
        copy_flat_source(c, p);
    else
        copy_source(c, p);
    for (size_t o = 0; o < p->blocks; o++) {
        copy_gradient(c, p, o);
        for (size_t i = 0; i < g->in_blocks; i++)
            for (size_t t = 0; t < g->taps; t++, sums += g->tile) {
                fetch_ahead(&p->ahead);
                g->kind->tile(c->type, sums, p->add, &p->taps[t], p->source + i * g->panel, p->gradient, g->rows, smaller((size_t)c->s->out - (p->first_block + o) * columns, columns));
            }
    }
}

/* Lines begin .. end-1 for the thread's output blocks. */
static void run_lines(const dw_ctx *c, part p, int slice, size_t begin, size_t end) {
    const geometry *g = &c->g;
    char *mine = c->scratch + (size_t)slice * c->l.thread;
    p.source = kd_cpu_at(mine, c->l.source);
    p.gradient = kd_cpu_at(mine, c->l.gradient);
    p.taps = kd_cpu_at(mine, c->l.taps);
    for (size_t t = 0; t < g->taps; t++)
        p.taps[t].run = (kd_outer_run *)kd_cpu_at(mine, c->l.runs) + t * g->lines_per_part;
    for (p.first = begin; p.first < end; p.first += g->lines_per_part) {
        p.add = p.first > begin;
        p.lines = smaller(end - p.first, g->lines_per_part);
        p.pixels = g->flat ? smaller(g->all - p.first * g->pixels, g->pixels) : g->pixels;
        look_ahead(c, &p, end);
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
    run_lines(c, (part){.sums = sums + begin * c->g.in_blocks * c->g.taps * c->g.tile, .first_block = begin, .blocks = end - begin}, slice, 0, c->g.lines);
}

/* ---- the sum over threads ---- */

/* The sums of value v of a tap's input and output block o; of several threads in out. */
static const float *sum_threads(const dw_ctx *c, float *out, size_t o, size_t v, size_t tap) {
    const geometry *g = &c->g;
    size_t copy = c->l.copy / sizeof(float), columns = g->kind->columns;
    const float *from = (const float *)kd_cpu_at(c->scratch, c->l.sums) + ((o * g->in_blocks + v / g->rows) * g->taps + tap) * g->tile + v % g->rows * columns;
    if (g->copies == 1)
        return from;
    memcpy(out, from, columns * sizeof *out);
    for (size_t i = 1; i < g->copies; i++)
        for (size_t j = 0; j < columns; j++)
            out[j] += from[i * copy + j];
    return out;
}

/* n weights, which lie side by side in dw, of all of a block's output channels. */
static void gather(const dw_ctx *c, float *dw, size_t o, size_t weight, size_t n, size_t distance, size_t channels) {
    _Alignas(64) float sums[KD_OUTER_TURN][MOST_COLUMNS];
    const float *from[KD_OUTER_TURN];
    for (size_t i = 0; i < n; i++)
        from[i] = sum_threads(c, sums[i], o, (weight + i) / c->g.taps, (weight + i) % c->g.taps);
    c->g.kind->add_turned(dw + weight, distance, from, n, channels);
}

/* Output blocks begin .. end-1. */
static void gather_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *c = ctx;
    const geometry *g = &c->g;
    size_t in = (size_t)c->s->in, k = (size_t)c->s->kernel, columns = g->kind->columns, weights = g->width * g->taps;
    (void)slice;
    for (size_t o = begin; o < end; o++) {
        float *dw = c->dw + o * columns * weights;
        size_t channels = smaller((size_t)c->s->out - o * columns, columns);
        for (size_t w = 0; !g->merged && w < weights; w += KD_OUTER_TURN)
            gather(c, dw, o, w, smaller(weights - w, KD_OUTER_TURN), weights, channels);
        for (size_t w = 0; g->merged && w < weights; w++) { /* another order in dw, and few */
            float sum[MOST_COLUMNS];
            size_t v = w / g->taps, t = w % g->taps;
            const float *from = sum_threads(c, sum, o, v, t);
            for (size_t j = 0; j < channels; j++)
                dw[j * weights + (v % in * k + t) * k + v / in] += from[j];
        }
    }
}

void kd_outer_dw(int threads, const kd_window *s, kd_dtype type, float *dw, const void *x, const void *g, void *scratch) {
    dw_ctx c = {.s = s, .g = geometry_of(s, type, threads), .type = type, .element = kd_dtype_size(type), .x = x, .gradient = g, .dw = dw, .scratch = scratch};
    c.l = layout_of(&c.g);
    /* Always in parallel: the bits follow from the number of threads alone. */
    if (c.g.by_output)
        kd_cpu_parallel((int)c.g.threads, c.g.out_blocks, (size_t)1 << 20, blocks_range, &c);
    else
        kd_cpu_parallel((int)c.g.threads, c.g.lines, (size_t)1 << 20, lines_range, &c);
    kd_cpu_parallel(threads, c.g.out_blocks, c.g.width * c.g.taps * c.g.kind->columns, gather_range, &c);
}
