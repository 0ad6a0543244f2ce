/* What can go wrong while the cuda backend prepares a linear layer, on an emulated device: no algorithm for a product, no host memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

static kd_backend *backend;

static int open_backend(void **state) {
    kd_err err = {0};
    (void)state;
    ops_use_emulated();
    return kd_backend_open(&backend, "cuda", 1, &err) == KD_OK ? 0 : -1;
}

static int close_backend(void **state) {
    (void)state;
    kd_backend_close(backend);
    return 0;
}

static const kd_op_desc layer = {.kind = KD_OP_LINEAR, .name = "blocks.3.mlp.fc1", .inputs = 1, .x = {{KD_BF16, 2, {5, 7}}}, .y = {KD_BF16, 2, {5, 33}}, .bias = 1, .act = KD_ACT_RELU, .train = 1,
                                 .need_dx = 1, .need_dparam = 1};

static void product_without_algorithm_is_named(void **state) {
    kd_err err = {0};
    kd_op *op = NULL;
    kd_op_needs needs;
    (void)state;
    setenv("KD_EMULATOR_FAULT", "no-gemm", 1);
    assert_int_equal(backend->v->op_create(backend, &op, &layer, &needs, &err), KD_EFAIL);
    unsetenv("KD_EMULATOR_FAULT");
    assert_null(op);
    assert_non_null(strstr(err.msg, "blocks.3.mlp.fc1: cuBLASLt has no algorithm for bf16[5,7] x bf16[7,33] (transposed) = bf16[5,33] + bias, ReLU"));
}

static void shortage_of_memory_is_an_error(void **state) {
    kd_err err = {0};
    kd_op *op = NULL;
    kd_op_needs needs;
    size_t allowed = 1;
    (void)state;
    for (;; allowed++) {
        kd_mem_fail_after(allowed);
        kd_status status = backend->v->op_create(backend, &op, &layer, &needs, &err);
        kd_mem_fail_after(0);
        if (status == KD_OK)
            break;
        assert_int_equal(status, KD_EFAIL);
        assert_null(op);
    }
    assert_int_equal(allowed, 6); /* the op, its state and three products */
    backend->v->op_destroy(backend, op);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(product_without_algorithm_is_named),
        cmocka_unit_test(shortage_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("linear faults", tests, open_backend, close_backend);
}
