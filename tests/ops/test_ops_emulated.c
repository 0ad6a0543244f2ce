/* The cuda backend's own code against the reference backend on an emulated device (tests/gpu/emulator): indices, barriers, plans, copies. What only a device can show is test_ops_cuda's. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/harness.h"

int main(void) {
    char dir[4200];
    const char *tests = getenv("KD_TEST_DIR");
    snprintf(dir, sizeof dir, "%s/gpu/emulator", tests ? tests : "build");
    setenv("KD_LIB_DIR", dir, 1);
    return ops_backend_main("cuda");
}
