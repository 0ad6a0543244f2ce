/* linear outside training with AVX-512: the products of matmul.h, each tile of which gets its bias, activation or residual join and its type while it lies in the first-level cache. oneDNN's brgemm is as fast as these products,
 * but its GELU, and a join as a pass of its own, took 7 % of ViT-S's time in bf16.
 *
 * Work is shared in blocks of rows and columns. The order of every sum follows from the input's width alone, so neither threads nor the batch change a bit. */
#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd.h"

enum {
    BLOCK_BYTES = 256 * 1024, /* of panels, at most (or a single one): a quarter of a usual second-level cache */
    ROWS_BYTES = 4 << 20,     /* of a block's rows, at most (or one tile's): every panel passes by them once. Measured: an eighth of it takes a tenth longer where the weights fill the last-level cache */
    BLOCKS = 8                /* for each of several threads, so that none waits long for the last one's; down to blocks of four tiles */
};

typedef struct wide_linear {
    kd_matmul m;                         /* of the whole layer */
    int64_t block_rows, block_columns;   /* multiples of a tile's */
    size_t strip, strip_bytes;           /* offset in args->scratch of the first thread's, and the distance to the next */
    size_t rounded, rounded_bytes;       /* likewise: a block's weights in bf16, while they are packed */
} wide_linear;

/* The largest multiple of `unit` that is at most n, or one unit. */
static int64_t multiple(int64_t n, int64_t unit) {
    return n > unit ? n / unit * unit : unit;
}

static size_t row_blocks(const wide_linear *l) {
    return (size_t)((l->m.rows + l->block_rows - 1) / l->block_rows);
}

static size_t column_blocks(const wide_linear *l) {
    return (size_t)((l->m.columns + l->block_columns - 1) / l->block_columns);
}

/* The product of a block's columns, from `column`; *panels: where its panels begin, in bytes. They are packed block by block. */
static kd_matmul columns_of(const wide_linear *l, int64_t column, size_t *panels) {
    kd_matmul m = l->m;
    m.columns = column;
    *panels = kd_matmul_avx512.panels_bytes(&m);
    m.columns = l->m.columns - column < l->block_columns ? l->m.columns - column : l->block_columns;
    return m;
}

static kd_status wide_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    wide_linear *l = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    op->impl = l;
    int64_t in = (int64_t)kd_cpu_width(&d->x[0]), out = (int64_t)kd_cpu_width(&d->y);
    l->m = (kd_matmul){.type = d->x[0].dtype, .c_type = d->y.dtype, .rows = (int64_t)kd_cpu_rows(&d->y), .depth = in, .columns = out, .a_row = in, .a_column = 1, .b_row = 1, .b_column = in, .c_row = out};
    int64_t row_bytes = in * (int64_t)kd_dtype_size(l->m.type);
    l->block_columns = multiple(BLOCK_BYTES / row_bytes, KD_MATMUL_COLUMNS);
    l->block_rows = multiple(ROWS_BYTES / row_bytes, KD_MATMUL_ROWS);
    while (b->base.threads > 1 && row_blocks(l) * column_blocks(l) < (size_t)(BLOCKS * b->base.threads) && l->block_rows > 4 * KD_MATMUL_ROWS)
        l->block_rows = multiple(l->block_rows / 2, KD_MATMUL_ROWS);
    needs->consumed = 1u;
    needs->packed = kd_matmul_avx512.panels_bytes(&l->m);
    kd_cpu_region(&l->strip_bytes, kd_matmul_avx512.strip_bytes(&l->m));
    kd_cpu_region(&l->rounded_bytes, l->m.type == KD_BF16 ? (size_t)(l->block_columns * in) * sizeof(uint16_t) : 0);
    l->strip = kd_cpu_region(&needs->scratch, (size_t)b->base.threads * l->strip_bytes);
    l->rounded = kd_cpu_region(&needs->scratch, (size_t)b->base.threads * l->rounded_bytes);
    return KD_OK;
}

static void wide_destroy(void *impl) {
    kd_free(impl);
}

typedef struct wide_ctx {
    const wide_linear *l;
    const kd_op_desc *d;
    const kd_op_args *a;
} wide_ctx;

KD_HOT static void round_weights(uint16_t *to, const float *w, size_t n) {
    kd_copy_row(to, KD_BF16, 0, w, KD_F32, 0, n, 0);
}

/* Blocks of columns begin .. end-1. */
static void pack_range(const void *ctx, int slice, size_t begin, size_t end) {
    const wide_ctx *c = ctx;
    uint16_t *rounded = kd_cpu_at(c->a->scratch, c->l->rounded + (size_t)slice * c->l->rounded_bytes);
    for (size_t i = begin; i < end; i++) {
        int64_t column = (int64_t)i * c->l->block_columns;
        size_t panels;
        kd_matmul m = columns_of(c->l, column, &panels);
        const void *w = c->a->param[0] + column * m.depth;
        if (m.type == KD_BF16) {
            round_weights(rounded, w, (size_t)(m.columns * m.depth));
            w = rounded;
        }
        kd_matmul_avx512.pack(&m, w, (char *)c->a->packed + panels);
    }
}

static kd_status wide_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const wide_linear *l = op->impl;
    (void)err;
    kd_cpu_parallel(b->base.threads, column_blocks(l), (size_t)(l->block_columns * l->m.depth), pack_range, &(wide_ctx){l, &op->desc, a});
    return KD_OK;
}

/* Blocks begin .. end-1; those of the same rows one after the other: panels lie in one piece, which a processor fetches ahead more easily than eight rows. */
static void forward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const wide_ctx *w = ctx;
    const wide_linear *l = w->l;
    const kd_op_desc *d = w->d;
    const kd_op_args *a = w->a;
    for (size_t i = begin; i < end; i++) {
        int64_t row = (int64_t)(i / column_blocks(l)) * l->block_rows, column = (int64_t)(i % column_blocks(l)) * l->block_columns, rows = l->m.rows - row < l->block_rows ? l->m.rows - row : l->block_rows;
        size_t at = (size_t)(row * l->m.columns + column), panels;
        kd_matmul m = columns_of(l, column, &panels);
        kd_matmul_finish f = {.bias = d->bias ? a->param[1] + column : NULL, .act = d->act};
        if (d->residual) {
            f.residual_type = d->x[1].dtype;
            f.residual = (const char *)a->x[1] + at * kd_dtype_size(f.residual_type);
            f.gamma = a->param[2] ? a->param[2] + column : NULL;
        }
        kd_matmul_rows_avx512(&m, &f, (char *)a->y + at * kd_dtype_size(m.c_type), (const char *)a->x[0] + (size_t)(row * m.depth) * kd_dtype_size(m.type), rows, (const char *)a->packed + panels,
                              kd_cpu_at(a->scratch, l->strip + (size_t)slice * l->strip_bytes));
    }
}

static kd_status wide_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const wide_linear *l = op->impl;
    (void)err;
    kd_cpu_share(b->base.threads, row_blocks(l) * column_blocks(l), (size_t)(l->block_rows * l->block_columns), forward_range, &(wide_ctx){l, &op->desc, a});
    return KD_OK;
}

static const kd_cpu_kind wide_kind = {wide_create, wide_destroy, wide_pack, wide_forward, NULL};

const kd_cpu_kind *kd_cpu_wide_linear(const kd_op_desc *d) {
    int bf16 = d->x[0].dtype == KD_BF16 || d->y.dtype == KD_BF16 || (d->residual && d->x[1].dtype == KD_BF16);
    if (d->kind != KD_OP_LINEAR || d->train || kd_matmul_here(bf16 ? KD_BF16 : KD_F32) != &kd_matmul_avx512)
        return NULL;
    return d->x[0].dtype == KD_F32 || kd_cpu_width(&d->x[0]) % 2 == 0 ? &wide_kind : NULL; /* bf16 is multiplied in pairs */
}
