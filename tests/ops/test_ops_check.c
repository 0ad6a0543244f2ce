/* kd_op_check: descs that break the contract stop the program and name the op; sizes and operation counts of good ones. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/ops.h"

/* In a child process: 1 when the check aborts with a message that has the op's name. */
static int stops(const kd_op_desc *d) {
    int pipe_ends[2], status = 0;
    char text[500] = "";
    assert_int_equal(pipe(pipe_ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(pipe_ends[1], 2);
        kd_op_check(d);
        _exit(0);
    }
    close(pipe_ends[1]);
    size_t have = 0;
    for (ssize_t n; have + 1 < sizeof text && (n = read(pipe_ends[0], text + have, sizeof text - 1 - have)) > 0;)
        have += (size_t)n;
    close(pipe_ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(text, "layer7") != NULL;
}

static const kd_op_desc conv = {.kind = KD_OP_CONV2D, .name = "layer7", .inputs = 1, .kernel = 3, .stride = 2, .pad = 1, .bias = 1, .act = KD_ACT_RELU, .train = 1, .need_dx = 1,
                                .add_dx = 1, .x = {{KD_F32, 4, {2, 9, 9, 4}}}, .y = {KD_F32, 4, {2, 5, 5, 8}}};
static const kd_op_desc attention = {.kind = KD_OP_ATTENTION, .name = "layer7", .inputs = 1, .heads = 3, .x = {{KD_BF16, 3, {2, 5, 36}}}, .y = {KD_BF16, 3, {2, 5, 12}}};
static const kd_op_desc tokens = {.kind = KD_OP_TOKENS, .name = "layer7", .inputs = 1, .positions = 1, .registers = 4, .x = {{KD_F32, 3, {2, 6, 8}}}, .y = {KD_F32, 3, {2, 11, 8}}};
static const kd_op_desc rope = {.kind = KD_OP_ROPE, .name = "layer7", .inputs = 1, .heads = 2, .begin = 5, .grid_h = 2, .grid_w = 3, .periods = 2, .period = {1, 10},
                                .x = {{KD_BF16, 3, {2, 11, 48}}}, .y = {KD_BF16, 3, {2, 11, 48}}};
static const kd_op_desc concat = {.kind = KD_OP_CONCAT, .name = "layer7", .inputs = 2, .x = {{KD_F32, 3, {2, 5, 8}}, {KD_F32, 3, {2, 5, 3}}}, .y = {KD_F32, 3, {2, 5, 11}}};
static const kd_op_desc depthwise = {.kind = KD_OP_CONV2D, .name = "layer7", .inputs = 1, .kernel = 3, .stride = 1, .pad = 1, .groups = 6, .x = {{KD_F32, 4, {2, 9, 9, 6}}},
                                     .y = {KD_F32, 4, {2, 9, 9, 12}}};
static const kd_op_desc silu = {.kind = KD_OP_SILU, .name = "layer7", .inputs = 1, .x = {{KD_F32, 2, {2, 9}}}, .y = {KD_BF16, 2, {2, 9}}};
static const kd_op_desc channels = {.kind = KD_OP_CHANNEL_SLICE, .name = "layer7", .inputs = 1, .begin = 3, .x = {{KD_F32, 3, {2, 5, 8}}}, .y = {KD_F32, 3, {2, 5, 4}}};
static const kd_op_desc gate = {.kind = KD_OP_CHANNEL_GATE, .name = "layer7", .inputs = 2, .train = 1, .need_dx = 3, .x = {{KD_F32, 4, {2, 5, 3, 8}}, {KD_F32, 2, {2, 8}}},
                                .y = {KD_F32, 4, {2, 5, 3, 8}}};
static const kd_op_desc drop = {.kind = KD_OP_ROW_SCALE, .name = "layer7", .inputs = 2, .train = 1, .need_dx = 1, .x = {{KD_BF16, 4, {2, 5, 3, 8}}, {KD_F32, 2, {2, 1}}},
                                .y = {KD_BF16, 4, {2, 5, 3, 8}}};
static const kd_op_desc by_head = {.kind = KD_OP_QKV_BY_HEAD, .name = "layer7", .inputs = 1, .heads = 2, .key_dim = 3, .x = {{KD_F32, 3, {2, 5, 22}}}, .y = {KD_F32, 3, {2, 5, 30}}};
static const kd_op_desc wide = {.kind = KD_OP_LINEAR, .name = "layer7", .inputs = 1, .bias = 1, .x = {{KD_BF16, 2, {1 << 20, 4096}}}, .y = {KD_BF16, 2, {1 << 20, 16384}}};
static const kd_op_desc join = {.kind = KD_OP_LINEAR, .name = "layer7", .inputs = 2, .residual = 1, .x = {{KD_BF16, 3, {2, 5, 8}}, {KD_F32, 3, {2, 5, 4}}}, .y = {KD_F32, 3, {2, 5, 4}}};
static const kd_op_desc norm = {.kind = KD_OP_BATCH_NORM, .name = "layer7", .inputs = 1, .train = 1, .eps = 1e-5f, .momentum = 0.1f, .x = {{KD_F32, 4, {1, 1, 2, 3}}},
                                .y = {KD_F32, 4, {1, 1, 2, 3}}};
static const kd_op_desc adjoint = {.kind = KD_OP_MSE_ADJOINT, .name = "layer7", .inputs = 3, .train = 1, .need_dx = 1, .grid_h = 9, .grid_w = 5,
                                   .x = {{KD_F32, 4, {2, 3, 4, 8}}, {KD_F32, 4, {2, 3, 4, 8}}, {KD_F32, 2, {2, 1}}}, .y = {KD_F32, 1, {1}}};

static const kd_op_desc cosine = {.kind = KD_OP_COSINE, .name = "layer7", .inputs = 2, .train = 1, .need_dx = 1, .x = {{KD_F32, 3, {2, 3, 8}}, {KD_F32, 3, {2, 3, 8}}}, .y = {KD_F32, 1, {1}}};
static const kd_op_desc smooth = {.kind = KD_OP_SMOOTH_L1, .name = "layer7", .inputs = 2, .beta = 1, .x = {{KD_F32, 3, {2, 3, 8}}, {KD_F32, 3, {2, 3, 8}}}, .y = {KD_F32, 1, {1}}};
static const kd_op_desc queue = {.kind = KD_OP_KL_QUEUE, .name = "layer7", .inputs = 2, .train = 1, .need_dx = 1, .temperature = 0.07f, .queue_rows = 16, .x = {{KD_F32, 2, {4, 8}}, {KD_F32, 2, {4, 8}}},
                                 .y = {KD_F32, 1, {1}}};
static const kd_op_desc intra = {.kind = KD_OP_KL_INTRA, .name = "layer7", .inputs = 2, .temperature = 0.07f, .x = {{KD_F32, 4, {2, 3, 5, 8}}, {KD_F32, 4, {2, 3, 5, 8}}}, .y = {KD_F32, 1, {1}}};
static const kd_op_desc koleo = {.kind = KD_OP_KOLEO, .name = "layer7", .inputs = 1, .train = 1, .need_dx = 1, .x = {{KD_F32, 2, {4, 8}}}, .y = {KD_F32, 1, {1}}};
static const kd_op_desc unit = {.kind = KD_OP_L2_NORMALIZE, .name = "layer7", .inputs = 1, .x = {{KD_BF16, 2, {4, 8}}}, .y = {KD_F32, 2, {4, 8}}};

#define WRONG(good, ...)                                \
    do {                                                \
        kd_op_desc d = (good);                          \
        __VA_ARGS__;                                    \
        if (!stops(&d))                                 \
            fail_msg("accepted with %s", #__VA_ARGS__); \
    } while (0)

static void broken_descs_stop_with_the_ops_name(void **state) {
    (void)state;
    WRONG(conv, d.kind = KD_OP_KINDS);
    WRONG(conv, d.inputs = 2);
    WRONG(conv, d.inputs = 0);
    WRONG(conv, d.need_dx = 0);
    WRONG(conv, d.need_dx = 3);
    WRONG(conv, d.act = KD_ACT_GELU);
    WRONG(conv, d.stride = 0);
    WRONG(conv, d.pad = 3);
    WRONG(conv, d.y.shape[1] = 4);
    WRONG(conv, d.y.shape[0] = 1);
    WRONG(conv, d.x[0].shape[3] = 0);
    WRONG(conv, d.x[0].rank = 3);
    WRONG(conv, d.x[0].dtype = KD_U8);
    WRONG(conv, d.y.dtype = KD_F16);
    WRONG(conv, d.x[0].shape[0] = d.y.shape[0] = INT64_MAX / 2);
    WRONG(attention, d.heads = 5);
    WRONG(attention, d.heads = 0);
    WRONG(attention, d.y.shape[2] = 36);
    WRONG(attention, d.act = KD_ACT_RELU);
    WRONG(attention, d.x[0].shape[1] = d.y.shape[1] = INT64_C(1) << 31);
    WRONG(tokens, d.registers = 3);
    WRONG(tokens, d.registers = -1);
    WRONG(tokens, d.y.shape[1] = 7);
    WRONG(rope, d.grid_w = 2);
    WRONG(rope, d.grid_h = 3, d.grid_w = 2, d.begin = 4);
    WRONG(rope, d.grid_h = -2, d.grid_w = -3);
    WRONG(rope, d.heads = 4);
    WRONG(rope, d.heads = 0);
    WRONG(rope, d.periods = 4);
    WRONG(rope, d.periods = 0);
    WRONG(rope, d.period[1] = 0);
    WRONG(rope, d.heads = 1, d.periods = 68, d.x[0].shape[2] = d.y.shape[2] = 816);
    WRONG(rope, d.y.dtype = KD_F32);
    WRONG(rope, d.x[0].shape[2] = 16);
    WRONG(concat, d.inputs = 1);
    WRONG(concat, d.y.shape[2] = 12);
    WRONG(concat, d.x[1].shape[1] = 4);
    WRONG(concat, d.x[1].rank = 2);
    WRONG(concat, d.x[1].dtype = KD_BF16);
    WRONG(concat, d.x[0].shape[2] = 11, d.x[1].shape[2] = 0);
    WRONG(concat, d.inputs = 3, d.x[2] = d.x[1]);
    WRONG(concat, d.inputs = KD_OP_MAX_X + 1);
    WRONG(depthwise, d.groups = 4);
    WRONG(depthwise, d.groups = -1);
    WRONG(depthwise, d.y.shape[3] = 9);
    WRONG(silu, d.inputs = 2);
    WRONG(silu, d.y.shape[1] = 8);
    WRONG(silu, d.act = KD_ACT_SILU);
    WRONG(channels, d.begin = 5);
    WRONG(channels, d.begin = -1);
    WRONG(channels, d.y.shape[1] = 4);
    WRONG(channels, d.y.dtype = KD_BF16);
    WRONG(gate, d.inputs = 1, d.need_dx = 1);
    WRONG(gate, d.x[1].shape[0] = 1);
    WRONG(gate, d.x[1].shape[1] = 4);
    WRONG(gate, d.x[1] = d.x[0]);
    WRONG(gate, d.y.shape[1] = 4);
    WRONG(drop, d.need_dx = 3);
    WRONG(drop, d.x[1].dtype = KD_BF16);
    WRONG(drop, d.x[1].shape[1] = 8);
    WRONG(drop, d.x[1].shape[0] = 1);
    WRONG(by_head, d.heads = 3);
    WRONG(by_head, d.heads = 0);
    WRONG(by_head, d.key_dim = 0);
    WRONG(by_head, d.key_dim = 4);
    WRONG(by_head, d.key_dim = 6, d.x[0].shape[2] = 34);
    WRONG(by_head, d.y.dtype = KD_BF16);
    WRONG(wide, d.x[0].shape[1] = d.y.shape[1] = INT64_C(1) << 35);
    WRONG(conv, d.x[0].shape[3] = d.y.shape[3] = 1 << 30);
    WRONG(join, d.train = 1);
    WRONG(join, d.inputs = 1);
    WRONG(join, d.act = KD_ACT_GELU);
    WRONG(join, d.x[1].dtype = KD_BF16);
    WRONG(adjoint, d.inputs = 2);
    WRONG(adjoint, d.grid_w = 0);
    WRONG(adjoint, d.need_dx = 2);
    WRONG(adjoint, d.need_dx = 5);
    WRONG(adjoint, d.x[1].shape[1] = 4);
    WRONG(adjoint, d.x[2].shape[0] = 1);
    WRONG(adjoint, d.x[2].rank = 1);
    WRONG(adjoint, d.x[2].dtype = KD_BF16);
    WRONG(adjoint, d.y.shape[0] = 2);
    WRONG(adjoint, d.act = KD_ACT_RELU);
    WRONG(adjoint, d.grid_h = d.grid_w = 1 << 30);
    WRONG(cosine, d.inputs = 1);
    WRONG(cosine, d.need_dx = 3);
    WRONG(cosine, d.x[1].shape[2] = 7);
    WRONG(cosine, d.x[0].dtype = KD_BF16);
    WRONG(cosine, d.y.shape[0] = 2);
    WRONG(cosine, d.act = KD_ACT_RELU);
    WRONG(smooth, d.beta = 0);
    WRONG(queue, d.temperature = 0);
    WRONG(queue, d.queue_rows = 0);
    WRONG(queue, d.x[0].rank = d.x[1].rank = 1);
    WRONG(queue, d.x[0].shape[1] = d.x[1].shape[1] = INT64_C(1) << 35, d.queue_rows = 1 << 30);
    WRONG(intra, d.temperature = -1);
    WRONG(intra, d.x[0].rank = d.x[1].rank = 2);
    WRONG(intra, d.x[0].shape[1] = d.x[1].shape[1] = INT64_C(1) << 31);
    WRONG(koleo, d.x[0].shape[0] = 1);
    WRONG(koleo, d.x[0].rank = 3, d.x[0].shape[2] = 2);
    WRONG(koleo, d.inputs = 2, d.x[1] = d.x[0]);
    WRONG(unit, d.y.shape[1] = 7);
    WRONG(norm, d.act = KD_ACT_GELU);
    WRONG(norm, d.inputs = 2, d.x[1] = d.x[0], d.act = KD_ACT_SILU);
    WRONG(norm, d.eps = 0);
    WRONG(norm, d.x[0].shape[2] = d.y.shape[2] = 1);
}

static void good_descs_pass(void **state) {
    (void)state;
    kd_op_check(&conv);
    kd_op_check(&attention);
    kd_op_check(&join);
    kd_op_check(&tokens);
    kd_op_check(&rope);
    kd_op_check(&concat);
    kd_op_check(&depthwise);
    kd_op_check(&silu);
    kd_op_check(&channels);
    kd_op_check(&gate);
    kd_op_check(&drop);
    kd_op_check(&by_head);
    kd_op_check(&wide);
    kd_op_check(&norm);
    kd_op_check(&adjoint);
    kd_op_check(&cosine);
    kd_op_check(&smooth);
    kd_op_check(&queue);
    kd_op_check(&intra);
    kd_op_check(&koleo);
    kd_op_check(&unit);
}

static void sizes_of_parameters_and_states(void **state) {
    (void)state;
    assert_int_equal(kd_op_param_numel(&conv, 0), 8 * 4 * 9);
    assert_int_equal(kd_op_param_numel(&conv, 1), 8);
    assert_int_equal(kd_op_param_numel(&conv, 2), 0);
    assert_int_equal(kd_op_param_numel(&depthwise, 0), 12 * 9);
    assert_int_equal(kd_op_groups(&depthwise), 6);
    assert_int_equal(kd_op_groups(&conv), 1);
    assert_int_equal(kd_op_param_numel(&join, 1), 0);
    assert_int_equal(kd_op_param_numel(&join, 2), 4);
    assert_int_equal(kd_op_param_numel(&attention, 0), 0);
    assert_int_equal(kd_op_param_numel(&adjoint, 0), 0);
    assert_int_equal(kd_op_param_numel(&tokens, 0), 8);
    assert_int_equal(kd_op_param_numel(&tokens, 1), 7 * 8);
    assert_int_equal(kd_op_param_numel(&tokens, 2), 4 * 8);
    assert_int_equal(kd_op_param_numel(&tokens, 3), 0);
    kd_op_desc plain = tokens;
    plain.positions = plain.registers = 0;
    plain.y.shape[1] = 7;
    assert_int_equal(kd_op_param_numel(&plain, 1), 0);
    assert_int_equal(kd_op_param_numel(&plain, 2), 0);
    assert_int_equal(kd_op_param_numel(&rope, 0), 0);
    assert_int_equal(kd_op_rope_table_floats(&rope), (2 + 3) * 2 * 2);
    /* beyond 32 bits */
    assert_int_equal(kd_tdesc_numel(&wide.y), INT64_C(1) << 34);
    assert_int_equal(kd_tdesc_bytes(&wide.y), INT64_C(1) << 35);
    assert_int_equal(kd_op_param_numel(&wide, 0), INT64_C(1) << 26);
    assert_int_equal(kd_op_state_numel(&norm, 1), 3);
    assert_int_equal(kd_op_state_numel(&conv, 0), 0);
    assert_int_equal(kd_op_state_numel(&queue, 0), 16 * 8);
    assert_int_equal(kd_op_state_numel(&queue, 1), 0);
    assert_int_equal(kd_op_state_numel(&koleo, 0), 0);
    assert_int_equal(kd_tdesc_bytes(&attention.y), 2 * 5 * 12 * 2);
}

static void operations_are_two_per_multiply_add(void **state) {
    (void)state;
    assert_true(kd_op_flops(&conv) == 2.0 * (2 * 5 * 5 * 8) * (4 * 9));
    assert_true(kd_op_flops(&depthwise) == 2.0 * (2 * 9 * 9 * 12) * 9);
    assert_true(kd_op_flops(&join) == 2.0 * (2 * 5 * 4) * 8);
    assert_true(kd_op_flops(&attention) == 2 * 2.0 * (2 * 3) * (5 * 5 * 4)); /* two products per image and head: [5,4][4,5] and [5,5][5,4] */
    assert_true(kd_op_flops(&queue) == 2 * 2.0 * (4 * 16) * 8); /* both sides: [4,8][8,16] */
    assert_true(kd_op_flops(&intra) == 2 * 2.0 * (2 * 15 * 15) * 8);
    assert_true(kd_op_flops(&koleo) == 2.0 * (4 * 4) * 8);
    assert_true(kd_op_flops(&wide) == 2.0 * 4096 * 16384 * (1 << 20));
    assert_true(kd_op_flops(&norm) == 0 && kd_op_flops(&adjoint) == 0 && kd_op_flops(&rope) == 0);
}

static void every_kind_has_a_name(void **state) {
    (void)state;
    for (int i = 0; i < KD_OP_KINDS; i++) {
        assert_non_null(kd_op_kind_name((kd_op_kind)i));
        for (int k = 0; k < i; k++)
            assert_string_not_equal(kd_op_kind_name((kd_op_kind)i), kd_op_kind_name((kd_op_kind)k));
    }
    assert_string_equal(kd_op_kind_name(KD_OP_KINDS), "unknown op");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_descs_stop_with_the_ops_name),
        cmocka_unit_test(good_descs_pass),
        cmocka_unit_test(sizes_of_parameters_and_states),
        cmocka_unit_test(operations_are_two_per_multiply_add),
        cmocka_unit_test(every_kind_has_a_name),
    };
    return cmocka_run_group_tests_name("op check", tests, NULL, NULL);
}
