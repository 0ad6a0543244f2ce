/* What every unit test includes: cmocka in the order that it asks for, and a folder that is empty at the start. */
#ifndef KD_TESTS_UNIT_UNIT_H
#define KD_TESTS_UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/err.h"

/* A fresh folder under TMPDIR; the runner removes what is in TMPDIR. Free with free(). */
static inline char *unit_folder(void)
{
    const char *base = getenv("TMPDIR");
    char *path = malloc(4096);
    assert_non_null(path);
    snprintf(path, 4096, "%s/unit.XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void unit_write(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

/* Passes when the call succeeded; prints the sentence when it did not. */
#define assert_ok(call)                                   \
    do {                                                  \
        kd_status unit_status_ = (call);                  \
        if (unit_status_ != KD_OK)                        \
            print_error("%s\n", err.msg);                 \
        assert_int_equal(unit_status_, KD_OK);            \
    } while (0)

#define assert_contains(text, part)                                        \
    do {                                                                   \
        if (!strstr((text), (part)))                                       \
            fail_msg("\"%s\" does not contain \"%s\"", (text), (part));    \
    } while (0)

#endif
