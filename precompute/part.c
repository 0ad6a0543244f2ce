#include "precompute/part.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 99999 };

/* A whole number without sign or blank; *end is behind it. 0: none there. */
static int number(const char *text, const char **end, long *out) {
    char *stop;
    if (text[0] < '0' || text[0] > '9')
        return 0;
    errno = 0;
    *out = strtol(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

static kd_status from_option(kd_part *p, const char *text, kd_err *err) {
    const char *end;
    long i, n;
    if (!number(text, &end, &i) || *end != '/' || !number(end + 1, &end, &n) || *end != '\0' || i < 1 || i > n || n > MAX_PARTS)
        return kd_fail(err, KD_EUSAGE, "--shard %s: expected I/N with I from 1 to N, such as 3/8, and N at most %d", text, MAX_PARTS);
    *p = (kd_part){.part = (uint32_t)i, .parts = (uint32_t)n};
    return KD_OK;
}

static kd_status variable(const char *name, long fallback, long *out, kd_err *err) {
    const char *text = getenv(name), *end;
    *out = fallback;
    if (text == NULL || (number(text, &end, out) && *end == '\0'))
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "%s=%s isn't a number; say which part this is with --shard I/N", name, text);
}

/* Slurm's task ids run from MIN in steps; a list with gaps (--array=1,5,6) has no such order. */
static kd_status from_slurm(kd_part *p, kd_err *err) {
    long id, min, count, step;
    KD_TRY(variable("SLURM_ARRAY_TASK_ID", 0, &id, err));
    KD_TRY(variable("SLURM_ARRAY_TASK_MIN", 0, &min, err));
    KD_TRY(variable("SLURM_ARRAY_TASK_COUNT", 1, &count, err));
    KD_TRY(variable("SLURM_ARRAY_TASK_STEP", 1, &step, err));
    if (step < 1 || id < min || (id - min) % step != 0 || (id - min) / step >= count || count > MAX_PARTS)
        return kd_fail(err, KD_EUSAGE, "Slurm's array task %ld of %ld tasks from %ld in steps of %ld can't be read as one of so many parts; say which part this is with --shard I/N", id, count,
                       min, step);
    *p = (kd_part){.part = (uint32_t)((id - min) / step + 1), .parts = (uint32_t)count, .from_slurm = 1};
    return KD_OK;
}

kd_status kd_part_parse(kd_part *p, const char *text, kd_err *err) {
    *p = (kd_part){.part = 1, .parts = 1};
    if (text != NULL)
        return from_option(p, text, err);
    return getenv("SLURM_ARRAY_TASK_ID") != NULL ? from_slurm(p, err) : KD_OK;
}
