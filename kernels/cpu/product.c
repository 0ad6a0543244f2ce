/* product.h: the work and its division.
 *
 * The pixels of the result are walked in lattices: all of them in a forward pass; for the gradient of x of a convolution with stride s one lattice for each of the s x s remainders of (y, x), because pixels of one remainder see the same
 * taps. A lattice is cut into blocks of pixels whose rows of the source stay in the second-level cache while the weights stream by, C columns (a panel) at a time. */
#include "kernels/cpu/product.h"

#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    STEP = 4,
    MOST_ROWS = KD_PRODUCT_MOST_ROWS,
    MAX_TAPS = 64,
    BLOCK_PIXELS = 192,     /* at most */
    BLOCK_BYTES = 256 << 10, /* of their rows in the source, at most */
    MOST_TILES = BLOCK_PIXELS / 6,
    AHEAD = 2,              /* tiles: memory that one will write is asked for while those before it are summed */
    LINE = 64,
    SET_DISTANCE = 4096,    /* bytes between addresses of one set of a first-level cache */
    NEAR_WEIGHTS = 3 << 20, /* bytes. Every block reads all weights. Where those stay in the third-level cache, blocks of a quarter are faster by a tenth (vit_small, resnet18): their rows leave room in the second-level cache */
    SMALL_MAP = 14 * 14,    /* pixels, most of which see a border */
    MERGED_IN = 8           /* input channels below which a row of the window is one tap */
};

static const kd_product_kind *kind_here(void) {
    return kd_dnn_instructions() == KD_DNN_AVX512 ? &kd_product_avx512 : &kd_product_avx2;
}

kd_window kd_product_window(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    if (d->kind == KD_OP_CONV2D)
        return (kd_window){x[0], x[1], x[2], x[3], y[1], y[2], y[3], d->kernel, d->stride, d->pad};
    int64_t rows = (int64_t)kd_cpu_rows(&d->y);
    return (kd_window){1, 1, rows, (int64_t)kd_cpu_width(&d->x[0]), 1, rows, (int64_t)kd_cpu_width(&d->y), 1, 1, 0};
}

int kd_product_merges(const kd_window *s) {
    return s->in < MERGED_IN && s->kernel > 1;
}

static size_t forward_taps(const kd_window *s) {
    return (size_t)(kd_product_merges(s) ? s->kernel : s->kernel * s->kernel);
}

/* Of the pixels of one remainder. */
static size_t dx_taps(const kd_window *s) {
    size_t across = (size_t)((s->kernel + s->stride - 1) / s->stride);
    return across * across;
}

static size_t at_once(kd_dtype type) {
    return STEP / kd_dtype_size(type);
}

static size_t steps_of(size_t values, kd_dtype type) {
    return (values + at_once(type) - 1) / at_once(type);
}

int kd_product_runs_here(kd_dtype type) {
    if (kd_dnn_instructions() == KD_DNN_AVX512)
        return type == KD_F32 || __builtin_cpu_supports("avx512bf16");
    return type == KD_F32 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int kd_product_takes(const kd_window *s, kd_dtype type, kd_dtype y_type) {
    return kd_product_runs_here(type) && kd_product_runs_here(y_type) && forward_taps(s) <= MAX_TAPS && (size_t)s->in % at_once(type) == 0;
}

int kd_product_takes_dx(const kd_window *s, kd_dtype type) {
    return kd_product_runs_here(type) && dx_taps(s) <= MAX_TAPS && (size_t)s->out % at_once(type) == 0;
}

/* ---- merged windows: a copy of x with its padding left and right, so that no run crosses a border ---- */

static size_t padded_width(const kd_window *s) {
    return (size_t)(s->w + 2 * s->pad);
}

static size_t padded_bytes(const kd_window *s, kd_dtype type) {
    return (size_t)(s->images * s->h) * padded_width(s) * (size_t)s->in * kd_dtype_size(type);
}

typedef struct pad_ctx {
    size_t row, pad; /* bytes */
    char *out;
    const char *x;
} pad_ctx;

static void pad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pad_ctx c = *(const pad_ctx *)ctx;
    size_t padded = c.row + 2 * c.pad;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        char *out = c.out + r * padded;
        memset(out, 0, c.pad);
        memcpy(out + c.pad, c.x + r * c.row, c.row);
        memset(out + c.pad + c.row, 0, c.pad);
    }
}

static void pad_rows(int threads, const kd_window *s, kd_dtype type, char *out, const char *x) {
    size_t pixel = (size_t)s->in * kd_dtype_size(type);
    kd_cpu_parallel(threads, (size_t)(s->images * s->h), (size_t)(s->w * s->in), pad_range, &(pad_ctx){(size_t)s->w * pixel, (size_t)s->pad * pixel, out, x});
}

/* ---- a product ---- */

typedef struct window_tap {
    int64_t dy, dx;   /* of the source pixel */
    size_t at;        /* of its weights in a panel */
    int64_t distance; /* of the source pixel, in bytes; set by run_lattice */
} window_tap;

typedef struct lattice {
    int64_t rows, cols;              /* pixels of one image */
    int64_t first_y, first_x, step;  /* of the result: (first_y + step y, first_x + step x) */
    int64_t stride;                  /* the source pixel of a tap is (stride y + dy, stride x + dx) */
    size_t taps;
    window_tap tap[MAX_TAPS];
    int64_t low_x, high_x;           /* of the taps; set by run_lattice */
} lattice;

typedef struct product {
    const kd_product_kind *kind;
    kd_dtype type, out_type;
    int64_t images;
    const char *source;                        /* [images, source_h, source_w, step between pixels: source_step bytes] */
    int64_t source_h, source_w, source_row;    /* source_row: pixels from row to row, of which source_w may be the first of a tap */
    int64_t source_step;
    void *out;                                 /* [images, out_h, out_w, columns] */
    int64_t out_h, out_w;
    size_t columns, steps, panel_bytes;        /* steps: of a tap */
    const char *packed, *zeros;
    const kd_product_finish *finish; /* forward */
    int add;
    const lattice *l;
    int64_t together;                          /* images of which a pixel comes after the other; 1: an image after the other */
    size_t rows;                               /* of a tile */
    size_t pixels, block, blocks, panels, column_parts;
    kd_product_tap *taps; /* of a thread's block, taps_per_thread apart */
    size_t taps_per_thread;
} product;

static size_t panels_of(int64_t columns) {
    size_t c = kind_here()->columns;
    return ((size_t)columns + c - 1) / c;
}

/* A pixel of the lattice. */
typedef struct place {
    int64_t n, y, x;
} place;

/* Pixel q in the order of the walk: groups of `together` images (the last may be smaller), in each pixel after pixel, of each the images. */
static place place_of(const product *p, int64_t q) {
    const lattice *l = p->l;
    int64_t map = l->rows * l->cols, group = q / (map * p->together), first = group * p->together, left = p->images - first, size = left < p->together ? left : p->together;
    q -= group * map * p->together;
    return (place){first + q % size, q / size / l->cols, q / size % l->cols};
}

static void next_place(const product *p, place *at) {
    const lattice *l = p->l;
    int64_t group = at->n / p->together, end = (group + 1) * p->together;
    if (++at->n < end && at->n < p->images)
        return;
    at->n = group * p->together;
    if (++at->x < l->cols)
        return;
    at->x = 0;
    if (++at->y < l->rows)
        return;
    at->y = 0;
    at->n = end;
}

/* Pixels m .. end-1 of a tile that lie at equal distances: side by side in a row of the map or, where images are together, one pixel of several of them. */
typedef struct segment {
    place at;      /* the first */
    size_t m, end;
} segment;

/* A tap's addresses for a segment; of those outside of the map, which lie at its ends, the row of zeros. How many are inside. */
static size_t locate_tap(const product *p, const segment *g, const window_tap *t, const char *source, size_t step, const char **row) {
    const lattice *l = p->l;
    int64_t y = l->stride * g->at.y + t->dy, across = p->together > 1 ? 0 : l->stride, x = l->stride * g->at.x + t->dx;
    size_t m = g->m, end = g->end;
    source += t->distance;
    for (size_t i = m; i < end; i++, source += step)
        row[i] = source;
    if (y < 0 || y >= p->source_h) {
        for (; m < end; m++)
            row[m] = p->zeros;
        return 0;
    }
    for (int64_t last = x + across * (int64_t)(end - 1 - m); end > m && last >= p->source_w; last -= across)
        row[--end] = p->zeros;
    for (; m < end && x < 0; x += across)
        row[m++] = p->zeros;
    return end - m;
}

static void locate_out(const product *p, const segment *g, size_t *out) {
    const lattice *l = p->l;
    size_t first = (size_t)((g->at.n * p->out_h + l->first_y + l->step * g->at.y) * p->out_w + l->first_x + l->step * g->at.x) * p->columns;
    size_t step = (size_t)(p->together > 1 ? p->out_h * p->out_w : l->step) * p->columns;
    for (size_t m = g->m; m < g->end; m++, first += step)
        out[m] = first;
}

/* The segment from a tile's pixel m on, and the place behind it. */
static segment next_segment(const product *p, place *at, size_t m, size_t end) {
    int64_t left = p->l->cols - at->x, n = (int64_t)(end - m);
    if (p->together > 1) {
        int64_t group = (at->n / p->together + 1) * p->together;
        left = (group < p->images ? group : p->images) - at->n;
    }
    n = n < left ? n : left;
    segment g = {*at, m, m + (size_t)n};
    if (p->together > 1)
        at->n += n - 1;
    else
        at->x += n - 1;
    next_place(p, at);
    return g;
}

/* The taps of the tile of `pixels` pixels from *at on, and where in out they lie; those that lack to a whole tile repeat the last one. Taps that no pixel sees are left out: how many remain. *at: then the place behind the tile. */
static size_t locate(const product *p, kd_product_tap *taps, size_t *out, place *at, size_t pixels) {
    const lattice *l = p->l;
    size_t seen[MAX_TAPS], count = 0, rows = p->rows;
    size_t step = (size_t)(p->together > 1 ? p->source_h * p->source_row * p->source_step : l->stride * p->source_step);
    for (size_t i = 0; i < l->taps; i++)
        seen[i] = 0;
    for (size_t m = 0; m < pixels;) {
        segment g = next_segment(p, at, m, pixels);
        const char *source = p->source + ((g.at.n * p->source_h + l->stride * g.at.y) * p->source_row + l->stride * g.at.x) * p->source_step;
        for (size_t i = 0; i < l->taps; i++)
            seen[i] += locate_tap(p, &g, &l->tap[i], source, step, taps[i].row);
        locate_out(p, &g, out);
        m = g.end;
    }
    for (size_t m = pixels; m < rows; m++)
        out[m] = out[pixels - 1];
    for (size_t i = 0; i < l->taps; i++) {
        if (seen[i] == 0)
            continue;
        taps[i].at = l->tap[i].at;
        for (size_t m = pixels; m < rows; m++)
            taps[i].row[m] = taps[i].row[pixels - 1];
        if (count < i)
            taps[count] = taps[i];
        count++;
    }
    return count;
}

/* The rows of the source that the tile a block further on will be the first to see, as if the map went on beyond its right end. */
static void fetch_ahead(const product *p, const kd_product_tap *taps, size_t count) {
    const lattice *l = p->l;
    size_t step = (size_t)(l->stride * p->source_step), across = (size_t)(l->high_x - l->low_x + 1);
    for (int64_t q = 1; q <= l->stride && (size_t)q * across <= count; q++)
        for (size_t m = 0; m < p->rows; m++)
            for (size_t b = 0; b < step; b += LINE)
                __builtin_prefetch(taps[count - (size_t)q * across].row[m] + p->block * step + b, 0, 2);
}

/* Lines of memory that a tile will have filled, asked for before it would wait for them. */
static void fetch_out(const product *p, const size_t *out, size_t panel) {
    size_t element = kd_dtype_size(p->out_type), columns = p->kind->columns;
    for (size_t m = 0; m < p->rows; m++)
        for (size_t b = 0; b < columns * element; b += LINE)
            __builtin_prefetch((char *)p->out + (out[m] + panel * columns) * element + b, 1);
}

static void run_block(const product *p, kd_product_tap *taps, size_t first, size_t last, size_t panel, size_t panel_end) {
    size_t out[MOST_TILES][MOST_ROWS], count[MOST_TILES], rows = p->rows, per_tile = p->l->taps, tiles = (last - first + rows - 1) / rows;
    place at = place_of(p, (int64_t)first);
    for (size_t g = 0; g < tiles; g++)
        count[g] = locate(p, taps + g * per_tile, out[g], &at, last - first - g * rows < rows ? last - first - g * rows : rows);
    for (; panel < panel_end; panel++)
        for (size_t g = 0; g < tiles; g++) {
            size_t column = panel * p->kind->columns, left = last - first - g * rows;
            kd_product_tile t = {.tap = taps + g * per_tile, .taps = count[g], .steps = p->steps, .panel = p->packed + panel * p->panel_bytes, .out = p->out, .at = out[g], .type = p->out_type, .column = column,
                                 .rows = left < rows ? left : rows, .columns = p->columns - column < p->kind->columns ? p->columns - column : p->kind->columns, .finish = p->finish, .add = p->add};
            size_t next = g + AHEAD;
            if (next < tiles)
                fetch_out(p, out[next], panel);
            else if (panel + 1 < panel_end)
                fetch_out(p, out[next % tiles], panel + 1);
            if (panel == 0 && p->together == 1)
                fetch_ahead(p, t.tap, t.taps);
            p->kind->tile(p->type, &t);
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
    for (size_t i = 0; i < l->taps; i++) {
        window_tap *t = &l->tap[i];
        t->distance = (t->dy * p->source_row + t->dx) * p->source_step;
        l->low_x = i == 0 || t->dx < l->low_x ? t->dx : l->low_x;
        l->high_x = i == 0 || t->dx > l->high_x ? t->dx : l->high_x;
    }
}

/* Blocks of at most BLOCK_PIXELS, as many for every thread; where there are fewer than threads, they share the columns too. No choice here changes a bit. */
static void run_lattice(int threads, product *p, lattice *l) {
    int together = l->taps > 1 && l->rows * l->cols <= SMALL_MAP;
    size_t t = (size_t)threads, distance = (size_t)((together ? p->source_h * p->source_row : l->stride) * p->source_step), rows = distance % SET_DISTANCE == 0 ? p->kind->competing_rows : p->kind->rows;
    measure_taps(p, l);
    p->l = l;
    p->rows = rows;
    p->together = together ? (int64_t)rows : 1;
    p->pixels = (size_t)(p->images * l->rows * l->cols);
    p->panels = panels_of((int64_t)p->columns);
    size_t most = p->panels * p->panel_bytes <= NEAR_WEIGHTS ? BLOCK_PIXELS / 4 : BLOCK_PIXELS, fit = BLOCK_BYTES / (size_t)(l->stride * l->stride * p->source_step);
    most = fit < most ? (fit > 2 * rows ? fit : 2 * rows) : most;
    p->blocks = (p->pixels + most - 1) / most;
    if (p->blocks >= t)
        p->blocks = (p->blocks + t - 1) / t * t;
    p->block = (p->pixels + p->blocks * rows - 1) / (p->blocks * rows) * rows;
    p->column_parts = p->blocks >= t ? 1 : (t + p->blocks - 1) / p->blocks;
    if (p->column_parts > p->panels)
        p->column_parts = p->panels;
    kd_cpu_share(threads, p->blocks * p->column_parts, p->block * p->columns, product_range, p);
}

static size_t product_bytes(size_t taps, size_t steps, int threads) {
    size_t at = 0;
    kd_cpu_region(&at, steps * STEP);
    kd_cpu_region(&at, (size_t)threads * MOST_TILES * taps * sizeof(kd_product_tap));
    return at;
}

/* Sets p's scratch: zeros and the threads' taps. */
static void use_scratch(product *p, size_t taps, void *scratch) {
    size_t at = 0;
    char *zeros = kd_cpu_at(scratch, kd_cpu_region(&at, p->steps * STEP));
    memset(zeros, 0, p->steps * STEP);
    p->zeros = zeros;
    p->taps = kd_cpu_at(scratch, at);
    p->taps_per_thread = MOST_TILES * taps;
}

/* A window of one pixel sees no borders: a map of one row, whose tiles all look the same. */
static kd_window flattened(const kd_window *s) {
    int64_t pixels = s->images * s->h * s->w;
    return s->kernel == 1 && s->stride == 1 ? (kd_window){1, 1, pixels, s->in, 1, pixels, s->out, 1, 1, 0} : *s;
}

/* ---- forward ---- */

static size_t forward_steps(const kd_window *s, kd_dtype type) {
    return steps_of((size_t)(kd_product_merges(s) ? s->kernel * s->in : s->in), type);
}

/* Whether x must be copied: rows of a window that reach over the border. */
static int pads_rows(const kd_window *s) {
    return kd_product_merges(s) && s->pad > 0;
}

size_t kd_product_forward_bytes(const kd_window *s, kd_dtype type, int threads) {
    size_t at = 0;
    kd_cpu_region(&at, pads_rows(s) ? padded_bytes(s, type) : 0);
    return at + product_bytes(forward_taps(s), forward_steps(s, type), threads);
}

static lattice forward_lattice(const kd_window *s, size_t tap_bytes) {
    lattice l = {.rows = s->ho, .cols = s->wo, .step = 1, .stride = s->stride};
    int64_t across = kd_product_merges(s) ? 1 : s->kernel;
    for (int64_t y = 0; y < s->kernel; y++)
        for (int64_t x = 0; x < across; x++, l.taps++)
            l.tap[l.taps] = (window_tap){.dy = y - s->pad, .dx = kd_product_merges(s) ? 0 : x - s->pad, .at = l.taps * tap_bytes};
    return l;
}

void kd_product_forward(int threads, const kd_window *given, kd_dtype type, kd_dtype y_type, void *y, const void *x, const void *packed, const kd_product_finish *f, void *scratch) {
    const kd_product_kind *kind = kind_here();
    const kd_window window = flattened(given), *s = &window;
    size_t at = 0, steps = forward_steps(s, type), taps = forward_taps(s);
    lattice l = forward_lattice(s, steps * kind->columns * STEP);
    product p = {.kind = kind, .type = type, .out_type = y_type, .images = s->images, .source = x, .source_h = s->h, .source_w = s->w, .source_row = s->w, .source_step = s->in * (int64_t)kd_dtype_size(type), .out = y,
                 .out_h = s->ho, .out_w = s->wo, .columns = (size_t)s->out, .steps = steps, .panel_bytes = taps * steps * kind->columns * STEP, .packed = packed, .finish = f};
    if (pads_rows(s)) {
        char *padded = kd_cpu_at(scratch, kd_cpu_region(&at, padded_bytes(s, type)));
        pad_rows(threads, s, type, padded, x);
        p.source = padded;
        p.source_w = p.source_row = (int64_t)padded_width(s);
    }
    use_scratch(&p, taps, kd_cpu_at(scratch, at));
    run_lattice(threads, &p, &l);
}

/* ---- gradient of x ---- */

size_t kd_product_dx_bytes(const kd_window *s, kd_dtype type, int threads) {
    return product_bytes(dx_taps(s), steps_of((size_t)s->out, type), threads);
}

/* Pixels (py + s y, px + s x) of the map; tap (ky, kx) reads the gradient at ((py + pad - ky) / s + y, ..) where that divides. */
static lattice dx_lattice(const kd_window *s, size_t tap_bytes, int64_t py, int64_t px) {
    lattice l = {.rows = (s->h - py + s->stride - 1) / s->stride, .cols = (s->w - px + s->stride - 1) / s->stride, .first_y = py, .first_x = px, .step = s->stride, .stride = 1};
    for (int64_t ky = s->kernel - 1; ky >= 0; ky--) /* so that the source's rows come from the top */
        for (int64_t kx = s->kernel - 1; kx >= 0; kx--) {
            int64_t y = py + s->pad - ky, x = px + s->pad - kx;
            if (y % s->stride == 0 && x % s->stride == 0)
                l.tap[l.taps++] = (window_tap){.dy = y / s->stride, .dx = x / s->stride, .at = (size_t)(ky * s->kernel + kx) * tap_bytes};
        }
    return l;
}

void kd_product_dx(int threads, const kd_window *given, kd_dtype type, void *dx, const void *g, const void *packed, int add, void *scratch) {
    static const kd_product_finish nothing;
    const kd_product_kind *kind = kind_here();
    const kd_window window = flattened(given), *s = &window;
    size_t steps = steps_of((size_t)s->out, type), tap = steps * kind->columns * STEP;
    product p = {.kind = kind, .type = type, .out_type = type, .images = s->images, .source = g, .source_h = s->ho, .source_w = s->wo, .source_row = s->wo, .source_step = s->out * (int64_t)kd_dtype_size(type), .out = dx,
                 .out_h = s->h, .out_w = s->w, .columns = (size_t)s->in, .steps = steps, .panel_bytes = (size_t)(s->kernel * s->kernel) * tap, .packed = packed, .finish = &nothing, .add = add};
    use_scratch(&p, dx_taps(s), scratch);
    for (int64_t py = 0; py < s->stride && py < s->h; py++)
        for (int64_t px = 0; px < s->stride && px < s->w; px++) {
            lattice l = dx_lattice(s, tap, py, px);
            run_lattice(threads, &p, &l); /* pixels that no tap reaches become 0 */
        }
}

/* ---- weights ---- */

size_t kd_product_packed_bytes(const kd_window *s, kd_dtype type) {
    return panels_of(s->out) * forward_taps(s) * forward_steps(s, type) * kind_here()->columns * STEP;
}

size_t kd_product_packed_dx_bytes(const kd_window *s, kd_dtype type) {
    return panels_of(s->in) * (size_t)(s->kernel * s->kernel) * steps_of((size_t)s->out, type) * kind_here()->columns * STEP;
}

typedef struct pack_ctx {
    const kd_window *s;
    kd_dtype type;
    const float *w;
    char *packed;
    size_t panel_bytes;
} pack_ctx;

static size_t columns_left(int64_t all, size_t panel) {
    size_t columns = kind_here()->columns, left = (size_t)all - panel * columns;
    return left < columns ? left : columns;
}

/* A panel of merged windows: to[row of the window][kernel x in][C]. Few weights. */
static void pack_merged(const pack_ctx *c, char *to, const float *w, size_t columns) {
    size_t k = (size_t)c->s->kernel, in = (size_t)c->s->in, steps = forward_steps(c->s, c->type), all = kind_here()->columns, pair = at_once(c->type);
    memset(to, 0, c->panel_bytes);
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < in; i++)
            for (size_t y = 0; y < k; y++)
                for (size_t x = 0; x < k; x++) {
                    float v = w[((j * in + i) * k + y) * k + x];
                    size_t d = x * in + i, at = ((y * steps + d / pair) * all + j) * pair + d % pair;
                    if (c->type == KD_F32)
                        ((float *)(void *)to)[at] = v;
                    else
                        ((uint16_t *)(void *)to)[at] = kd_f32_to_bf16(v);
                }
}

/* packed[panel][tap][in][C of out] */
static void pack_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pack_ctx c = *(const pack_ctx *)ctx;
    const kd_product_kind *kind = kind_here();
    size_t taps = (size_t)(c.s->kernel * c.s->kernel), in = (size_t)c.s->in;
    (void)slice;
    for (size_t panel = begin; panel < end; panel++) {
        kd_product_weights w = {c.w + panel * kind->columns * in * taps, in * taps, taps, columns_left(c.s->out, panel), in, taps};
        char *to = c.packed + panel * c.panel_bytes;
        if (kd_product_merges(c.s))
            pack_merged(&c, to, w.w, w.columns);
        else
            kind->pack(c.type, to, &w, 0, in);
    }
}

void kd_product_pack(int threads, const kd_window *s, kd_dtype type, const float *w, void *packed) {
    size_t panels = panels_of(s->out), bytes = kd_product_packed_bytes(s, type) / panels;
    kd_cpu_parallel(threads, panels, bytes / STEP, pack_range, &(pack_ctx){s, type, w, packed, bytes});
}

/* packed[panel][tap][out][C of in], of KD_PRODUCT_DEPTHS output channels begin ..: their weights lie side by side in w. */
static void pack_dx_range(const void *ctx, int slice, size_t begin, size_t end) {
    const pack_ctx c = *(const pack_ctx *)ctx;
    const kd_product_kind *kind = kind_here();
    size_t taps = (size_t)(c.s->kernel * c.s->kernel), in = (size_t)c.s->in, out = (size_t)c.s->out;
    (void)slice;
    for (size_t i = begin; i < end; i++)
        for (size_t panel = 0, d = i * KD_PRODUCT_DEPTHS; panel < panels_of(c.s->in); panel++) {
            kd_product_weights w = {c.w + panel * kind->columns * taps, taps, in * taps, columns_left(c.s->in, panel), out, taps};
            kind->pack(c.type, c.packed + panel * c.panel_bytes, &w, d, out - d < KD_PRODUCT_DEPTHS ? out : d + KD_PRODUCT_DEPTHS);
        }
}

void kd_product_pack_dx(int threads, const kd_window *s, kd_dtype type, const float *w, void *packed) {
    size_t panels = panels_of(s->in), bytes = kd_product_packed_dx_bytes(s, type) / panels;
    kd_cpu_parallel(threads, ((size_t)s->out + KD_PRODUCT_DEPTHS - 1) / KD_PRODUCT_DEPTHS, KD_PRODUCT_DEPTHS * (size_t)(s->in * s->kernel * s->kernel), pack_dx_range, &(pack_ctx){s, type, w, packed, bytes});
}
