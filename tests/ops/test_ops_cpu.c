/* The cpu backend (lib/libkd_cpu.so) against the reference backend, over the whole case list. */
#include "tests/ops/harness.h"

int main(void) {
    return ops_backend_main("cpu");
}
