/* Tars written header by header, as POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU define them, so that a test can write what no tool would. */
#ifndef KD_TESTS_TAR_FILE_H
#define KD_TESTS_TAR_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tar_file {
    uint8_t *bytes;
    size_t size;
} tar_file;

static inline void tar_append(tar_file *t, const void *bytes, size_t n)
{
    size_t padded = (n + 511) / 512 * 512;
    t->bytes = realloc(t->bytes, t->size + padded + 1);
    memset(t->bytes + t->size, 0, padded);
    if (n)
        memcpy(t->bytes + t->size, bytes, n);
    t->size += padded;
}

static inline void tar_checksum(uint8_t *header)
{
    unsigned sum = 0;
    memset(header + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += header[i];
    snprintf((char *)header + 148, 8, "%06o", sum);
    header[155] = ' ';
}

/* A header that says `size` bytes follow; the bytes are appended by tar_append. */
static inline void tar_header(tar_file *t, const char *name, char type, uint64_t size, const char *link)
{
    uint8_t h[512] = {0};
    size_t n = strlen(name), m = strlen(link);
    memcpy(h, name, n < 100 ? n : 100);
    memcpy(h + 100, "0000644", 8);
    memcpy(h + 108, "0000000", 8);
    memcpy(h + 116, "0000000", 8);
    snprintf((char *)h + 124, 12, "%011llo", (unsigned long long)(size & 077777777777));
    snprintf((char *)h + 136, 12, "%011o", 0u);
    h[156] = (uint8_t)type;
    memcpy(h + 157, link, m < 100 ? m : 100);
    memcpy(h + 257, "ustar\00000", 8);
    tar_checksum(h);
    tar_append(t, h, sizeof h);
}

static inline void tar_add(tar_file *t, const char *name, const void *bytes, size_t size)
{
    tar_header(t, name, '0', size, "");
    tar_append(t, bytes, size);
}

/* Pax records "LENGTH KEY=VALUE\n" before the member that follows: key, value, key, value, ..., NULL. */
static inline void tar_pax_records(tar_file *t, const char *const *pairs)
{
    char *body = NULL;
    size_t size = 0;
    for (; pairs[0]; pairs += 2) {
        size_t rest = strlen(pairs[0]) + strlen(pairs[1]) + 3, n = rest + 1;
        while ((size_t)snprintf(NULL, 0, "%zu", n) + rest != n)
            n = (size_t)snprintf(NULL, 0, "%zu", n) + rest;
        body = realloc(body, size + n + 1);
        snprintf(body + size, n + 1, "%zu %s=%s\n", n, pairs[0], pairs[1]);
        size += n;
    }
    tar_header(t, "PaxHeaders/x", 'x', size, "");
    tar_append(t, body, size);
    free(body);
}

static inline void tar_pax(tar_file *t, const char *key, const char *value)
{
    tar_pax_records(t, (const char *const[]){key, value, NULL});
}

/* GNU's long name before the member that follows. */
static inline void tar_long_name(tar_file *t, const char *name)
{
    tar_header(t, "././@LongLink", 'L', strlen(name) + 1, "");
    memcpy(t->bytes + t->size - 512 + 257, "ustar  ", 8);
    tar_checksum(t->bytes + t->size - 512);
    tar_append(t, name, strlen(name) + 1);
}

static inline void tar_end(tar_file *t)
{
    tar_append(t, "", 1);
    tar_append(t, "", 1);
}

static inline void tar_free(tar_file *t)
{
    free(t->bytes);
    *t = (tar_file){0};
}

#endif
