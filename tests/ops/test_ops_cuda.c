/* The cuda backend (lib/libkd_cuda.so) against the reference backend on this machine's device; one skipped test where there is no device or no module. */
#include "tests/ops/harness.h"

int main(void) {
    return ops_backend_main("cuda");
}
