/* kl_intra and gram: the P x P similarities inside each image. An image is one thread's from beginning to end, so its similarities stay in that thread's cache and the bits don't depend on
 * the number of threads.
 *
 *     scratch, per slice   s, t [P, D]: normalised rows;  like_s, like_t [P, ld]: similarities      and one f64 per image
 *     saved                [N, P, ld]: derivative of the loss's sum by the prediction's similarities, plus its transpose      ld = P rounded up */
#include "common/base/mem.h"
#include "kernels/cpu/cpu_loss.h"

enum { LIKE, DS }; /* products: s s^T (and t t^T), and the gradient [P,P] times s */

typedef struct patches_loss {
    kd_cpu_products products;
    size_t n, patches, width, ld;
    size_t at_part, at_rows, rows_bytes, at_like, like_bytes; /* offsets in args->scratch, and the distance to the next slice's */
} patches_loss;

static void patches_destroy(void *impl) {
    patches_loss *m = impl;
    if (!m)
        return;
    kd_cpu_products_destroy(&m->products);
    kd_free(m);
}

static kd_status patches_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    patches_loss *m = NULL;
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    op->impl = m;
    m->n = (size_t)d->x[0].shape[0], m->width = kd_cpu_width(&d->x[0]), m->patches = kd_cpu_rows(&d->x[0]) / m->n;
    m->ld = kd_cpu_padded(m->patches);
    kd_dnn_tensor rows = kd_dnn_rows(KD_F32, (int64_t)m->patches, (int64_t)m->width);
    kd_dnn_tensor like = {.dtype = KD_F32, .rank = 2, .dim = {(int64_t)m->patches, (int64_t)m->patches}, .stride = {(int64_t)m->ld, 1}};
    kd_dnn_matmul_desc list[] = {[LIKE] = {.a = rows, .b = kd_dnn_transposed(rows), .c = like}, [DS] = {.a = like, .b = rows, .c = rows}};
    KD_TRY(kd_cpu_products_create(&m->products, b, list, d->need_dx & 1 ? 2 : 1, d->name, needs, err));
    size_t slices = (size_t)m->products.slices;
    m->rows_bytes = kd_cpu_padded(m->patches * m->width) * sizeof(float);
    m->like_bytes = m->patches * m->ld * sizeof(float);
    m->at_part = kd_cpu_region(&needs->scratch, m->n * sizeof(double));
    m->at_rows = kd_cpu_region(&needs->scratch, slices * 2 * m->rows_bytes);
    m->at_like = kd_cpu_region(&needs->scratch, slices * 2 * m->like_bytes);
    needs->saved = d->need_dx & 1 ? m->n * m->patches * m->ld * sizeof(float) : 0;
    return KD_OK;
}

typedef struct patches_ctx {
    const patches_loss *m;
    const kd_op_desc *d;
    const kd_op_args *a;
    double factor;     /* of gradients */
    kd_status *status; /* per slice */
} patches_ctx;

/* Side 0: the prediction, 1: the target. */
static float *rows_at(const patches_ctx *c, int slice, int side) {
    return kd_cpu_at(c->a->scratch, c->m->at_rows + (size_t)(2 * slice + side) * c->m->rows_bytes);
}

static float *like_at(const patches_ctx *c, int slice, int side) {
    return kd_cpu_at(c->a->scratch, c->m->at_like + (size_t)(2 * slice + side) * c->m->like_bytes);
}

static float *saved_at(const patches_ctx *c, size_t image) {
    return (float *)c->a->saved + image * c->m->patches * c->m->ld;
}

KD_HOT static void normalize_image(const patches_loss *m, float *y, const float *x) {
    for (size_t i = 0; i < m->patches; i++)
        kd_normalize_row(y + i * m->width, x + i * m->width, m->width, KD_OP_L2_EPS);
}

/* Both compare an image's similarities row by row and return the sum; out, unless NULL, becomes its derivative by s, [P, ld]. */
KD_HOT static double kl_image(const patches_ctx *c, float *out, const float *s, const float *t) {
    size_t patches = c->m->patches, ld = c->m->ld;
    float scale = 1 / c->d->temperature;
    double sum = 0;
    for (size_t i = 0; i < patches * ld; i += ld) {
        kd_softmax_row of_s, of_t;
        sum += kd_kl_row(&of_s, &of_t, s + i, t + i, patches, scale);
        if (out)
            kd_kl_row_grad(out + i, &of_s, &of_t, s + i, t + i, patches, scale, (double)scale, 0);
    }
    return sum;
}

KD_HOT static double gram_image(const patches_ctx *c, float *out, const float *s, const float *t) {
    size_t patches = c->m->patches, ld = c->m->ld;
    double total = 0;
    for (size_t i = 0; i < patches * ld; i += ld) {
        kd_vf sum = {0};
        for (size_t j = 0; j < patches; j += KD_VF) {
            int n = kd_lanes(patches - j);
            kd_vf e = kd_load_f32(s + i + j, n) - kd_load_f32(t + i + j, n);
            sum += e * e;
            if (out)
                kd_store_f32(out + i + j, e + e, n);
        }
        total += (double)kd_sum(sum);
    }
    return total;
}

static void add_transpose(float *g, size_t n, size_t ld) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++)
            g[i * ld + j] = g[j * ld + i] = g[i * ld + j] + g[j * ld + i];
}

static kd_status image_forward(const patches_ctx *c, int slice, size_t image) {
    const patches_loss *m = c->m;
    for (int side = 0; side < 2; side++) {
        float *rows = rows_at(c, slice, side);
        normalize_image(m, rows, (const float *)c->a->x[side] + image * m->patches * m->width);
        KD_TRY(kd_cpu_product_run(&m->products, slice, LIKE, c->a->scratch, rows, rows, like_at(c, slice, side)));
    }
    double *part = kd_cpu_at(c->a->scratch, m->at_part);
    float *out = m->products.count > DS ? saved_at(c, image) : NULL;
    part[image] = (c->d->kind == KD_OP_GRAM ? gram_image : kl_image)(c, out, like_at(c, slice, 0), like_at(c, slice, 1));
    if (out)
        add_transpose(out, m->patches, m->ld);
    return KD_OK;
}

KD_HOT static void image_grad(const patches_ctx *c, float *s, const float *ds, size_t image) {
    size_t width = c->m->width, first = image * c->m->patches;
    for (size_t i = 0; i < c->m->patches; i++) {
        size_t at = (first + i) * width;
        double norm = kd_normalize_row(s, (const float *)c->a->x[0] + at, width, KD_OP_L2_EPS);
        kd_normalize_row_grad((float *)c->a->dx[0] + at, ds + i * width, s, norm, width, KD_OP_L2_EPS, c->factor, (c->d->add_dx & 1) != 0);
    }
}

static kd_status image_backward(const patches_ctx *c, int slice, size_t image) {
    const patches_loss *m = c->m;
    float *s = rows_at(c, slice, 0), *ds = rows_at(c, slice, 1);
    normalize_image(m, s, (const float *)c->a->x[0] + image * m->patches * m->width);
    KD_TRY(kd_cpu_product_run(&m->products, slice, DS, c->a->scratch, saved_at(c, image), s, ds));
    image_grad(c, s, ds, image);
    return KD_OK;
}

static void forward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const patches_ctx *c = ctx;
    for (size_t i = begin; i < end && c->status[slice] == KD_OK; i++)
        c->status[slice] = image_forward(c, slice, i);
}

static void backward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const patches_ctx *c = ctx;
    for (size_t i = begin; i < end && c->status[slice] == KD_OK; i++)
        c->status[slice] = image_backward(c, slice, i);
}

static kd_status run_images(const patches_ctx *c, kd_cpu_range fn, kd_err *err) {
    kd_status status[KD_CPU_MAX_THREADS] = {KD_OK};
    patches_ctx own = *c;
    own.status = status;
    kd_cpu_products_parallel(&c->m->products, c->m->n, fn, &own);
    for (int i = 0; i < c->m->products.slices; i++)
        if (status[i] != KD_OK)
            return kd_fail(err, status[i], "oneDNN failed in part %d of %d of a %s loss", i, c->m->products.slices, kd_op_kind_name(c->d->kind));
    return KD_OK;
}

/* What the sum is divided by: rows, or similarities. */
static double count(const patches_ctx *c) {
    double rows = (double)(c->m->n * c->m->patches);
    return c->d->kind == KD_OP_GRAM ? rows * (double)c->m->patches : rows;
}

static kd_status patches_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    patches_ctx c = {.m = op->impl, .d = &op->desc, .a = a};
    (void)b;
    KD_TRY(run_images(&c, forward_range, err));
    *(float *)a->y = (float)(kd_cpu_total(kd_cpu_at(a->scratch, c.m->at_part), c.m->n) / count(&c));
    return KD_OK;
}

static kd_status patches_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    patches_ctx c = {.m = op->impl, .d = &op->desc, .a = a};
    (void)b;
    c.factor = (double)*(const float *)a->dy / count(&c);
    return c.m->products.count > DS ? run_images(&c, backward_range, err) : KD_OK;
}

const kd_cpu_kind kd_cpu_kl_intra = {patches_create, patches_destroy, NULL, patches_forward, patches_backward};
const kd_cpu_kind kd_cpu_gram = {patches_create, patches_destroy, NULL, patches_forward, patches_backward};
