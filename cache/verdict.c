#include "cache/verdict.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/base/hash.h"
#include "common/base/io.h"
#include "common/base/mem.h"

/* Raised whenever the validator learns to refuse more. */
enum { VALIDATOR = 1, MAX_BYTES = 4096, SETTLED_SECONDS = 2 };

/* What a verdict is about, as text: it is compared as a whole. "" when the file can't be asked, or was changed just now. */
static void describe(char out[256], const char *path)
{
    struct stat st;
    struct timespec now;
    out[0] = 0;
    if (stat(path, &st) != 0 || clock_gettime(CLOCK_REALTIME, &now) != 0 || now.tv_sec - st.st_ctim.tv_sec <= SETTLED_SECONDS)
        return;
    snprintf(out, 256, "kdcache verdict %d %ju %ju %jd %jd.%09ld %jd.%09ld", VALIDATOR, (uintmax_t)st.st_dev, (uintmax_t)st.st_ino, (intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec,
             st.st_mtim.tv_nsec, (intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

/* The file that a verdict about `about` lies in; NULL when there is no place for it. */
static char *verdict_path(const char *about)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    kd_hash128 h = kd_xxh128(about, strlen(about));
    char hex[33];
    kd_hex(hex, h.b, sizeof h.b);
    if (base && base[0] == '/')
        return kd_asprintf("%s/kdcache/verdicts/%s", base, hex);
    return home && home[0] == '/' ? kd_asprintf("%s/.cache/kdcache/verdicts/%s", home, hex) : NULL;
}

/* The numbers behind the first line, closed by their hash: a verdict that was cut or edited is none. */
static int text_of(char *out, size_t cap, const char *about, const kd_lmdb_facts *facts)
{
    int n = snprintf(out, cap, "%s\n%" PRIu64 " %" PRIu64, about, facts->pages, facts->first_value_at);
    for (int i = 0; i < KD_DBS; i++)
        n += snprintf(out + n, cap - (size_t)n, " %" PRIu64, facts->entries[i]);
    n += snprintf(out + n, cap - (size_t)n, "\n");
    return n + snprintf(out + n, cap - (size_t)n, "%016" PRIx64 "\n", kd_xxh64(out, (size_t)n));
}

static int recall(const char *file, const char *about, kd_lmdb_facts *facts)
{
    uint8_t *bytes;
    size_t size;
    char again[MAX_BYTES], *at;
    int known = 0;
    if (kd_io_read_all(file, MAX_BYTES, &bytes, &size, NULL) != KD_OK)
        return 0;
    *facts = (kd_lmdb_facts){0};
    at = strchr((char *)bytes, '\n');
    if (at) {
        facts->pages = strtoull(at, &at, 10);
        facts->first_value_at = strtoull(at, &at, 10);
        for (int i = 0; i < KD_DBS; i++)
            facts->entries[i] = strtoull(at, &at, 10);
        known = (size_t)text_of(again, sizeof again, about, facts) == size && memcmp(again, bytes, size) == 0;
    }
    kd_free(bytes);
    return known;
}

static void remember(const char *file, const char *about, const kd_lmdb_facts *facts)
{
    char text[MAX_BYTES], *slash, *folder = kd_strdup(file);
    int n = text_of(text, sizeof text, about, facts);
    slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) {
        *slash = 0;
        if (kd_io_mkdirs(folder, NULL) == KD_OK) /* a convenience: without it the file is validated again */
            (void)kd_io_write_atomic(file, text, (size_t)n, NULL);
    }
    kd_free(folder);
}

kd_status kd_verdict_validate(const char *path, int anew, kd_lmdb_facts *facts, kd_err *err)
{
    char before[256], after[256], *file = NULL;
    kd_status status = KD_OK;
    describe(before, path);
    if (before[0])
        file = verdict_path(before);
    if (!file || anew || !recall(file, before, facts)) {
        status = kd_lmdb_validate(path, 1, facts, err);
        describe(after, path);
        if (status == KD_OK && file && strcmp(before, after) == 0)
            remember(file, before, facts);
    }
    kd_free(file);
    return status;
}
