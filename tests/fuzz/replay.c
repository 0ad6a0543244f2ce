/* main() for a fuzz target built without libFuzzer: runs the files named on the command line through it, once each. */
#ifndef KD_LIBFUZZER
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/base/io.h"
#include "common/base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        uint8_t *bytes = NULL;
        size_t size = 0;
        kd_err err = {0};
        if (kd_io_read_all(argv[i], (size_t)1 << 30, &bytes, &size, &err) != KD_OK) {
            fprintf(stderr, "%s\n", err.msg);
            return 1;
        }
        LLVMFuzzerTestOneInput(bytes, size);
        kd_free(bytes);
    }
    printf("%d files replayed\n", argc - 1);
    return 0;
}
#else
typedef int kd_replay_is_empty_with_libfuzzer;
#endif
