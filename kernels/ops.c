#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>

#include "common/base/err.h"

static const char *const kind_names[KD_OP_KINDS] = {
    [KD_OP_NORMALIZE] = "normalize",
    [KD_OP_CONV2D] = "conv2d",
    [KD_OP_LINEAR] = "linear",
    [KD_OP_BATCH_NORM] = "batch_norm",
    [KD_OP_LAYER_NORM] = "layer_norm",
    [KD_OP_RELU] = "relu",
    [KD_OP_GELU] = "gelu",
    [KD_OP_SILU] = "silu",
    [KD_OP_HARDSWISH] = "hardswish",
    [KD_OP_HARDSIGMOID] = "hardsigmoid",
    [KD_OP_SILU_GATE] = "silu_gate",
    [KD_OP_ADD] = "add",
    [KD_OP_SCALE_ADD] = "scale_add",
    [KD_OP_MAX_POOL] = "max_pool",
    [KD_OP_MEAN_TOKENS] = "mean_tokens",
    [KD_OP_ATTENTION] = "attention",
    [KD_OP_ROPE] = "rope",
    [KD_OP_TOKENS] = "tokens",
    [KD_OP_TOKEN_SLICE] = "token_slice",
    [KD_OP_CONCAT] = "concat",
    [KD_OP_CHANNEL_SLICE] = "channel_slice",
    [KD_OP_CHANNEL_GATE] = "channel_gate",
    [KD_OP_ROW_SCALE] = "row_scale",
    [KD_OP_QKV_BY_HEAD] = "qkv_by_head",
    [KD_OP_RESIZE_BILINEAR] = "resize_bilinear",
    [KD_OP_MSE] = "mse",
    [KD_OP_MSE_ADJOINT] = "mse_adjoint",
    [KD_OP_L2_NORMALIZE] = "l2_normalize",
    [KD_OP_COSINE] = "cosine",
    [KD_OP_SMOOTH_L1] = "smooth_l1",
    [KD_OP_KL_LOGITS] = "kl_logits",
    [KD_OP_KL_QUEUE] = "kl_queue",
    [KD_OP_KL_INTRA] = "kl_intra",
    [KD_OP_GRAM] = "gram",
    [KD_OP_KOLEO] = "koleo",
};

const char *kd_op_kind_name(kd_op_kind k) {
    return (unsigned)k < KD_OP_KINDS ? kind_names[k] : "unknown op";
}

size_t kd_tdesc_numel(const kd_tdesc *t) {
    size_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= (size_t)t->shape[i];
    return n;
}

size_t kd_tdesc_bytes(const kd_tdesc *t) {
    return kd_tdesc_numel(t) * kd_dtype_size(t->dtype);
}

static int64_t last_dim(const kd_tdesc *t) {
    return t->shape[t->rank - 1];
}

size_t kd_op_param_numel(const kd_op_desc *d, int i) {
    size_t in = (size_t)last_dim(&d->x[0]), out = (size_t)last_dim(&d->y);
    switch (d->kind) {
    case KD_OP_CONV2D:
        return i == 0 ? out * (in / (size_t)kd_op_groups(d)) * (size_t)d->kernel * (size_t)d->kernel : i == 1 && d->bias ? out : 0;
    case KD_OP_LINEAR:
        return i == 0 ? out * in : (i == 1 && d->bias) || (i == 2 && d->residual) ? out : 0;
    case KD_OP_BATCH_NORM:
    case KD_OP_LAYER_NORM:
        return i < 2 ? in : 0;
    case KD_OP_SCALE_ADD:
        return i == 0 ? in : 0;
    case KD_OP_TOKENS:
        return i == 0 ? in : i == 1 && d->positions ? (1 + (size_t)d->x[0].shape[1]) * in : i == 2 ? (size_t)d->registers * in : 0;
    default:
        return 0;
    }
}

size_t kd_op_state_numel(const kd_op_desc *d, int i) {
    if (d->kind == KD_OP_KL_QUEUE)
        return i == 0 ? (size_t)d->queue_rows * (size_t)last_dim(&d->x[0]) : 0;
    return d->kind == KD_OP_BATCH_NORM && i < KD_OP_MAX_STATE ? (size_t)last_dim(&d->x[0]) : 0;
}

/* --- checks --- */

#define CHECK(d, cond) ((cond) ? (void)0 : violated((d), #cond, __LINE__))

static void violated(const kd_op_desc *d, const char *what, int line) {
    char text[300];
    snprintf(text, sizeof text, "%s (%s): %s", d->name ? d->name : "op without a name", kd_op_kind_name(d->kind), what);
    kd_assert_failed(text, __FILE__, line);
}

static int same_shape(const kd_tdesc *a, const kd_tdesc *b) {
    if (a->rank != b->rank)
        return 0;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] != b->shape[i])
            return 0;
    return 1;
}

static int is_activation(const kd_tdesc *t) {
    return t->dtype == KD_F32 || t->dtype == KD_BF16;
}

/* The product of the n factors has room in memory as elements of any type. */
static int countable(const int64_t *factor, int n) {
    size_t product = 1;
    for (int i = 0; i < n; i++) {
        if ((size_t)factor[i] > SIZE_MAX / 16 / product)
            return 0;
        product *= (size_t)factor[i];
    }
    return 1;
}

static void check_tensor(const kd_op_desc *d, const kd_tdesc *t) {
    CHECK(d, t->rank >= 1 && t->rank <= KD_OP_MAX_RANK);
    for (int i = 0; i < t->rank; i++)
        CHECK(d, t->shape[i] >= 1);
    CHECK(d, countable(t->shape, t->rank));
    CHECK(d, t->dtype == KD_F32 || t->dtype == KD_BF16 || t->dtype == KD_U8);
}

static int64_t window_out(int64_t in, const kd_op_desc *d) {
    return (in + 2 * (int64_t)d->pad - d->kernel) / d->stride + 1;
}

/* conv2d and max_pool: y is what kernel, stride and pad make of x. */
static void check_window(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0], *y = &d->y;
    CHECK(d, x->rank == 4 && y->rank == 4);
    CHECK(d, d->kernel >= 1 && d->stride >= 1 && d->pad >= 0 && d->pad < d->kernel);
    CHECK(d, x->shape[1] + 2 * (int64_t)d->pad >= d->kernel && x->shape[2] + 2 * (int64_t)d->pad >= d->kernel);
    CHECK(d, y->shape[0] == x->shape[0]);
    CHECK(d, y->shape[1] == window_out(x->shape[1], d) && y->shape[2] == window_out(x->shape[2], d));
}

static void check_conv2d(const kd_op_desc *d) {
    int64_t in = d->x[0].shape[3], out = d->y.shape[3];
    check_window(d);
    CHECK(d, d->groups >= 0 && in % kd_op_groups(d) == 0 && out % kd_op_groups(d) == 0);
    CHECK(d, countable((int64_t[]){in, out, d->kernel, d->kernel}, 4));
}

static void check_linear(const kd_op_desc *d) {
    CHECK(d, countable((int64_t[]){last_dim(&d->x[0]), last_dim(&d->y)}, 2));
    CHECK(d, d->x[0].rank == d->y.rank);
    for (int i = 0; i + 1 < d->y.rank; i++)
        CHECK(d, d->x[0].shape[i] == d->y.shape[i]);
    if (d->residual) {
        CHECK(d, !d->train && d->act == KD_ACT_NONE);
        CHECK(d, same_shape(&d->x[1], &d->y) && d->x[1].dtype == d->y.dtype);
    }
}

static void check_batch_norm(const kd_op_desc *d) {
    CHECK(d, same_shape(&d->x[0], &d->y) && d->y.rank == 4);
    CHECK(d, d->inputs == 1 || same_shape(&d->x[1], &d->y));
    CHECK(d, d->eps > 0 && d->momentum >= 0 && d->momentum <= 1);
    /* The unbiased variance of one value doesn't exist (torch refuses it too). */
    CHECK(d, !d->train || kd_tdesc_numel(&d->y) > (size_t)d->y.shape[3]);
}

static void check_rope(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0];
    CHECK(d, same_shape(x, &d->y) && x->dtype == d->y.dtype && x->rank == 3);
    CHECK(d, d->heads >= 1 && x->shape[2] % (3 * (int64_t)d->heads) == 0);
    CHECK(d, d->periods >= 1 && d->periods <= KD_OP_MAX_PERIODS && x->shape[2] / (3 * (int64_t)d->heads) == 4 * (int64_t)d->periods);
    for (int i = 0; i < d->periods; i++)
        CHECK(d, d->period[i] > 0);
    CHECK(d, d->begin >= 0 && d->grid_h >= 1 && d->grid_w >= 1 && x->shape[1] - d->begin == (int64_t)d->grid_h * d->grid_w);
}

/* Same rank, the same dimensions but the last. */
static int same_rows(const kd_tdesc *a, const kd_tdesc *b) {
    kd_tdesc c = *a;
    c.shape[c.rank - 1] = last_dim(b);
    return same_shape(&c, b);
}

static void check_concat(const kd_op_desc *d) {
    int64_t left = last_dim(&d->y);
    for (int i = 0; i < d->inputs; i++) {
        CHECK(d, same_rows(&d->x[i], &d->y) && d->x[i].dtype == d->y.dtype);
        CHECK(d, last_dim(&d->x[i]) <= left);
        left -= last_dim(&d->x[i]);
    }
    CHECK(d, left == 0);
}

static void check_channels(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0], *s = &d->x[1], *y = &d->y;
    switch (d->kind) {
    case KD_OP_CHANNEL_SLICE:
        CHECK(d, same_rows(x, y) && x->dtype == y->dtype);
        CHECK(d, d->begin >= 0 && d->begin + last_dim(y) <= last_dim(x));
        break;
    case KD_OP_CHANNEL_GATE:
        CHECK(d, same_shape(x, y) && x->rank >= 2);
        CHECK(d, s->shape[0] == x->shape[0] && last_dim(s) == last_dim(x) && kd_tdesc_numel(s) == (size_t)s->shape[0] * (size_t)last_dim(s));
        break;
    default: /* row_scale */
        CHECK(d, same_shape(x, y) && x->rank >= 2 && s->dtype == KD_F32 && s->rank == 2 && s->shape[0] == x->shape[0] && s->shape[1] == 1);
        CHECK(d, (d->need_dx & 2u) == 0);
    }
}

static void check_qkv_by_head(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0], *y = &d->y;
    CHECK(d, x->rank == 3 && same_rows(x, y) && x->dtype == y->dtype);
    CHECK(d, d->heads >= 1 && d->key_dim >= 1 && y->shape[2] % (3 * (int64_t)d->heads) == 0);
    int64_t head = y->shape[2] / (3 * (int64_t)d->heads);
    CHECK(d, d->key_dim <= head && x->shape[2] == d->heads * (2 * (int64_t)d->key_dim + head));
}

static void check_tokens(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0], *y = &d->y;
    CHECK(d, x->rank == 3 && y->rank == 3);
    CHECK(d, x->shape[0] == y->shape[0]);
    switch (d->kind) {
    case KD_OP_ATTENTION:
        CHECK(d, x->shape[1] == y->shape[1] && x->shape[2] == 3 * y->shape[2]);
        CHECK(d, d->heads >= 1 && y->shape[2] % d->heads == 0);
        CHECK(d, countable((int64_t[]){y->shape[0], d->heads, y->shape[1], y->shape[1]}, 4)); /* scores */
        break;
    case KD_OP_TOKENS:
        CHECK(d, d->registers >= 0 && y->shape[1] == x->shape[1] + 1 + d->registers && x->shape[2] == y->shape[2]);
        break;
    default:
        CHECK(d, d->begin >= 0 && d->begin + y->shape[1] <= x->shape[1] && x->shape[2] == y->shape[2]);
    }
}

static void check_mean_tokens(const kd_op_desc *d) {
    CHECK(d, d->x[0].rank == 3 || d->x[0].rank == 4);
    CHECK(d, d->y.rank == 2 && d->y.shape[0] == d->x[0].shape[0] && d->y.shape[1] == last_dim(&d->x[0]));
}

static void check_mse_adjoint(const kd_op_desc *d) {
    const kd_tdesc *s = &d->x[0], *square = &d->x[2];
    CHECK(d, s->rank == 4 && same_shape(s, &d->x[1]) && square->rank == 2 && square->shape[0] == s->shape[0] && square->shape[1] == 1 && kd_tdesc_numel(&d->y) == 1);
    CHECK(d, s->dtype == KD_F32 && d->x[1].dtype == KD_F32 && square->dtype == KD_F32 && d->y.dtype == KD_F32);
    CHECK(d, d->grid_h >= 1 && d->grid_w >= 1 && countable((int64_t[]){s->shape[0], d->grid_h, d->grid_w, s->shape[3]}, 4));
    CHECK(d, (d->need_dx & 6u) == 0);
}

/* The losses over a prediction and a target of its shape. */
static int is_pair_loss(kd_op_kind k) {
    return k == KD_OP_MSE || (k >= KD_OP_COSINE && k <= KD_OP_GRAM);
}

static void check_pair_loss(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0];
    CHECK(d, same_shape(x, &d->x[1]) && kd_tdesc_numel(&d->y) == 1);
    CHECK(d, x->dtype == KD_F32 && d->x[1].dtype == KD_F32 && d->y.dtype == KD_F32);
    CHECK(d, (d->need_dx & 2u) == 0);
    if (d->kind == KD_OP_SMOOTH_L1)
        CHECK(d, d->beta > 0);
    if (d->kind == KD_OP_KL_LOGITS || d->kind == KD_OP_KL_QUEUE || d->kind == KD_OP_KL_INTRA)
        CHECK(d, d->temperature > 0);
    if (d->kind == KD_OP_KL_QUEUE) {
        CHECK(d, x->rank == 2 && d->queue_rows >= 1);
        CHECK(d, countable((int64_t[]){d->queue_rows, x->shape[0]}, 2) && countable((int64_t[]){d->queue_rows, x->shape[1]}, 2));
    }
    if (d->kind == KD_OP_KL_INTRA || d->kind == KD_OP_GRAM) {
        int64_t patches = x->rank == 4 ? x->shape[1] * x->shape[2] : x->shape[1];
        CHECK(d, x->rank == 3 || x->rank == 4);
        CHECK(d, countable((int64_t[]){x->shape[0], patches, patches}, 3));
    }
}

static void check_koleo(const kd_op_desc *d) {
    const kd_tdesc *x = &d->x[0];
    CHECK(d, x->rank == 2 && x->shape[0] >= 2 && kd_tdesc_numel(&d->y) == 1);
    CHECK(d, x->dtype == KD_F32 && d->y.dtype == KD_F32);
}

static int fewest_inputs(const kd_op_desc *d) {
    if (is_pair_loss(d->kind))
        return 2;
    switch (d->kind) {
    case KD_OP_MSE_ADJOINT:
        return 3;
    case KD_OP_ADD:
    case KD_OP_SCALE_ADD:
    case KD_OP_CONCAT:
    case KD_OP_CHANNEL_GATE:
    case KD_OP_ROW_SCALE:
        return 2;
    case KD_OP_LINEAR:
        return d->residual ? 2 : 1;
    default:
        return 1;
    }
}

static int most_inputs(const kd_op_desc *d) {
    return d->kind == KD_OP_CONCAT ? KD_OP_MAX_X : d->kind == KD_OP_BATCH_NORM ? 2 : fewest_inputs(d);
}

static void check_inputs(const kd_op_desc *d) {
    CHECK(d, d->inputs >= fewest_inputs(d) && d->inputs <= most_inputs(d));
    CHECK(d, (d->need_dx >> d->inputs) == 0 && (d->add_dx >> d->inputs) == 0);
    CHECK(d, (d->add_dx & ~d->need_dx) == 0);
    for (int i = 0; i < d->inputs; i++)
        check_tensor(d, &d->x[i]);
    check_tensor(d, &d->y);
    CHECK(d, is_activation(&d->y));
    if (d->kind == KD_OP_NORMALIZE)
        CHECK(d, d->x[0].dtype == KD_U8 && d->need_dx == 0);
    else
        for (int i = 0; i < d->inputs; i++)
            CHECK(d, is_activation(&d->x[i]));
}

static void check_act(const kd_op_desc *d) {
    switch (d->kind) {
    case KD_OP_LINEAR:
        CHECK(d, d->act == KD_ACT_NONE || d->act == KD_ACT_RELU || d->act == KD_ACT_GELU);
        break;
    case KD_OP_BATCH_NORM:
        CHECK(d, d->act == KD_ACT_NONE || d->act == KD_ACT_RELU || (d->inputs == 1 && (d->act == KD_ACT_SILU || d->act == KD_ACT_HARDSWISH)));
        break;
    case KD_OP_CONV2D:
    case KD_OP_ADD:
        CHECK(d, d->act == KD_ACT_NONE || d->act == KD_ACT_RELU);
        break;
    default:
        CHECK(d, d->act == KD_ACT_NONE);
    }
}

void kd_op_check(const kd_op_desc *d) {
    CHECK(d, (unsigned)d->kind < KD_OP_KINDS);
    check_inputs(d);
    check_act(d);
    const kd_tdesc *x = &d->x[0], *y = &d->y;
    switch (d->kind) {
    case KD_OP_NORMALIZE:
        CHECK(d, same_shape(x, y) && x->rank == 4 && x->shape[3] == 3);
        CHECK(d, d->std[0] > 0 && d->std[1] > 0 && d->std[2] > 0);
        break;
    case KD_OP_CONV2D:
        check_conv2d(d);
        break;
    case KD_OP_MAX_POOL:
        check_window(d);
        CHECK(d, x->shape[3] == y->shape[3]);
        CHECK(d, 2 * d->pad <= d->kernel); /* so that every window holds a value, as torch demands */
        break;
    case KD_OP_LINEAR:
        check_linear(d);
        break;
    case KD_OP_BATCH_NORM:
        check_batch_norm(d);
        break;
    case KD_OP_LAYER_NORM:
        CHECK(d, same_shape(x, y) && d->eps > 0);
        break;
    case KD_OP_RELU:
    case KD_OP_GELU:
    case KD_OP_L2_NORMALIZE:
    case KD_OP_SILU:
    case KD_OP_HARDSWISH:
    case KD_OP_HARDSIGMOID:
        CHECK(d, same_shape(x, y));
        break;
    case KD_OP_SILU_GATE:
        CHECK(d, last_dim(x) == 2 * last_dim(y) && kd_tdesc_numel(x) == 2 * kd_tdesc_numel(y));
        break;
    case KD_OP_ADD:
    case KD_OP_SCALE_ADD:
        CHECK(d, same_shape(x, y) && same_shape(&d->x[1], y));
        break;
    case KD_OP_MEAN_TOKENS:
        check_mean_tokens(d);
        break;
    case KD_OP_ATTENTION:
    case KD_OP_TOKENS:
    case KD_OP_TOKEN_SLICE:
        check_tokens(d);
        break;
    case KD_OP_ROPE:
        check_rope(d);
        break;
    case KD_OP_CONCAT:
        check_concat(d);
        break;
    case KD_OP_CHANNEL_SLICE:
    case KD_OP_CHANNEL_GATE:
    case KD_OP_ROW_SCALE:
        check_channels(d);
        break;
    case KD_OP_QKV_BY_HEAD:
        check_qkv_by_head(d);
        break;
    case KD_OP_RESIZE_BILINEAR:
        CHECK(d, x->rank == 4 && y->rank == 4 && x->shape[0] == y->shape[0] && x->shape[3] == y->shape[3]);
        break;
    case KD_OP_MSE:
    case KD_OP_COSINE:
    case KD_OP_SMOOTH_L1:
    case KD_OP_KL_LOGITS:
    case KD_OP_KL_QUEUE:
    case KD_OP_KL_INTRA:
    case KD_OP_GRAM:
        check_pair_loss(d);
        break;
    case KD_OP_MSE_ADJOINT:
        check_mse_adjoint(d);
        break;
    case KD_OP_KOLEO:
        check_koleo(d);
        break;
    case KD_OP_KINDS:
        break;
    }
}

unsigned kd_op_unread(const kd_op_desc *d) {
    const unsigned x0 = 1, x1 = 2, every = KD_OP_UNREAD_Y - 1, y = KD_OP_UNREAD_Y;
    switch (d->kind) {
    case KD_OP_CONV2D:
    case KD_OP_LINEAR:
        return d->act == KD_ACT_NONE ? y : 0;
    case KD_OP_BATCH_NORM: /* behind a join the sign of y is a ReLU's derivative; otherwise what was before the activation is computed again */
        return d->inputs == 2 && d->act == KD_ACT_RELU ? x1 : x1 | y;
    case KD_OP_LAYER_NORM:
    case KD_OP_RELU:
    case KD_OP_GELU:
    case KD_OP_SILU:
    case KD_OP_HARDSWISH:
    case KD_OP_HARDSIGMOID:
    case KD_OP_SILU_GATE:
    case KD_OP_CHANNEL_GATE:
    case KD_OP_ATTENTION:
        return y;
    case KD_OP_ADD:
        return d->act == KD_ACT_NONE ? every | y : every;
    case KD_OP_SCALE_ADD:
    case KD_OP_ROW_SCALE:
        return x0 | y;
    case KD_OP_MAX_POOL: /* it has saved who won */
    case KD_OP_MEAN_TOKENS:
    case KD_OP_ROPE:
    case KD_OP_TOKENS:
    case KD_OP_TOKEN_SLICE:
    case KD_OP_CONCAT:
    case KD_OP_CHANNEL_SLICE:
    case KD_OP_QKV_BY_HEAD:
    case KD_OP_RESIZE_BILINEAR:
        return every | y;
    default:
        return 0;
    }
}

double kd_op_flops(const kd_op_desc *d) {
    double out = (double)kd_tdesc_numel(&d->y), in = (double)last_dim(&d->x[0]);
    switch (d->kind) {
    case KD_OP_CONV2D:
        return 2.0 * out * (in / kd_op_groups(d)) * d->kernel * d->kernel;
    case KD_OP_LINEAR:
        return 2.0 * out * in;
    case KD_OP_ATTENTION:
        return 4.0 * out * (double)d->y.shape[1];
    case KD_OP_KL_QUEUE: /* both sides with the queue */
        return 4.0 * (double)kd_tdesc_numel(&d->x[0]) * d->queue_rows;
    case KD_OP_KL_INTRA:
    case KD_OP_GRAM: /* both sides with themselves, image by image */
        return 4.0 * (double)kd_tdesc_numel(&d->x[0]) * ((double)kd_tdesc_numel(&d->x[0]) / (in * (double)d->x[0].shape[0]));
    case KD_OP_KOLEO:
        return 2.0 * (double)kd_tdesc_numel(&d->x[0]) * (double)d->x[0].shape[0];
    default:
        return 0.0;
    }
}

/* --- rope --- */

size_t kd_op_rope_table_floats(const kd_op_desc *d) {
    return ((size_t)d->grid_h + (size_t)d->grid_w) * 2 * (size_t)d->periods;
}

/* One side of the grid. Every step rounds to f32, in the order of rope_position_encoding.py. */
static float *rope_side(const kd_op_desc *d, float *line, int side) {
    const float turn = 6.283185307179586f;
    for (int i = 0; i < side; i++, line += 2 * d->periods) {
        float unit = ((float)i + 0.5f) / (float)side, place = 2.0f * unit - 1.0f;
        for (int j = 0; j < d->periods; j++) {
            float angle = turn * place / d->period[j];
            line[j] = (float)cos((double)angle);
            line[d->periods + j] = (float)sin((double)angle);
        }
    }
    return line;
}

void kd_op_rope_table(const kd_op_desc *d, float *table) {
    rope_side(d, rope_side(d, table, d->grid_h), d->grid_w);
}
