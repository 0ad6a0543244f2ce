/* The cuda backend's own code against the reference backend on an emulated device (tests/gpu/emulator): indices, barriers, plans, copies. What only a device can show is test_ops_cuda's. */
#include <stdio.h>

#include "tests/ops/harness.h"

int main(void) {
    kd_err err = {0};
    kd_backend *b = NULL;
    ops_use_emulated();
    if (kd_backend_open(&b, "cuda", 1, &err) != KD_OK) { /* it is built with the tests: its absence is a failure, and no reason to skip */
        printf("not ok - %s\n", err.msg);
        return 1;
    }
    kd_backend_close(b);
    return ops_backend_main("cuda");
}
