/* A quarter of the op cases: the cuda backend's own code against the reference backend on an emulated device (tests/gpu/emulator): indices, barriers, plans, copies. What only a device can show is
 * test_ops_cuda's. */
#include "tests/ops/harness.h"

int main(void) {
    return ops_emulated_main(0, 4);
}
