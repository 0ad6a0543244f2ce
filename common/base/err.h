/* Errors: one status, one sentence.
 *
 * Every function that can fail returns a kd_status and takes a kd_err* as its last argument. Whoever detects a failure
 * writes the sentence (file, value, limit, next step) with kd_fail(); whoever merely passes it on adds nothing.
 * Only the mains turn a status into an exit code.
 *
 *     kd_status load(const char *path, kd_err *err) {
 *         if (size > limit)
 *             return kd_fail(err, KD_EUSAGE, "%s: %zu bytes is above the limit of %zu; split the file", path, size, limit);
 *         KD_TRY(kd_io_read_all(path, limit, &bytes, &n, err));
 *         return KD_OK;
 *     }
 *
 * Thread rule: a kd_err belongs to one thread at a time. */
#ifndef KD_COMMON_BASE_ERR_H
#define KD_COMMON_BASE_ERR_H

#include <stdarg.h>
#include <stddef.h>

#ifdef __cplusplus
#define KD_RESTRICT __restrict__
#else
#define KD_RESTRICT restrict
#endif

#ifdef __GNUC__
#define KD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define KD_WARN_UNUSED __attribute__((warn_unused_result))
#else
#define KD_PRINTF(fmt, args)
#define KD_WARN_UNUSED
#endif

/* A status is minus the exit code that the programs end with (command-line contract, README "Exit codes").
 * KD_DONE is not an error: an iterator is exhausted, or --help was printed. */
typedef enum kd_status {
    KD_DONE = 1,
    KD_OK = 0,
    KD_EFAIL = -1,       /* anything without a code of its own: I/O, memory, a bad image or weight file */
    KD_EUSAGE = -2,      /* options, config file */
    KD_ESKIPPED = -3,    /* finished, but more inputs were skipped than --max-skipped allows */
    KD_ENOTFOUND = -10,  /* cache not found; also a key absent from a store */
    KD_ELOCKED = -11,    /* another writer holds the cache */
    KD_EDAMAGED = -12,   /* cache bytes fail a check */
    KD_EMISMATCH = -13,  /* identity mismatch: teacher, augmentation, decoder, view hash */
    KD_ENOSPACE = -14,   /* disk full, or the estimate exceeds the free space */
    KD_ENODEVICE = -15,  /* device or instruction set absent */
    KD_ENONFINITE = -16, /* NaN or infinity where numbers were expected */
    KD_ESIGINT = -130,
    KD_ESIGTERM = -143
} kd_status;

typedef struct kd_err {
    kd_status status;
    const char *file; /* source position of the detection, for bug reports (KD_LOG=debug prints it) */
    int line;
    char msg[1200];   /* one sentence, UTF-8, no newline at the end */
} kd_err;

/* Writes the sentence into err (NULL allowed) and returns status, so that `return kd_fail(...)` reads naturally.
 * A later call overwrites an earlier one. Bytes that would break a terminal line (control characters) are escaped. */
#define kd_fail(err, status, ...) kd_err_set((err), (status), __FILE__, __LINE__, __VA_ARGS__)
kd_status kd_err_set(kd_err *err, kd_status status, const char *file, int line, const char *fmt, ...) KD_PRINTF(5, 6);

/* As kd_fail, with ": <strerror(errno)>" appended. ENOSPC and EDQUOT become KD_ENOSPACE whatever status says. */
#define kd_fail_errno(err, status, ...) kd_err_set_errno((err), (status), __FILE__, __LINE__, __VA_ARGS__)
kd_status kd_err_set_errno(kd_err *err, kd_status status, const char *file, int line, const char *fmt, ...) KD_PRINTF(5, 6);

/* Copies text into dst (cap bytes, always terminated) such that it is one printable line of valid UTF-8: control characters and
 * bytes that are not UTF-8 become "\n", "\t", "\r" or "\xNN". What doesn't fit is cut at a character. Returns dst. */
char *kd_text_escape(char *dst, size_t cap, const char *text);

/* Exit code for a status: 0 for KD_OK and KD_DONE, else its negative. */
int kd_exit_code(kd_status status);

/* Short English name of a status ("cache locked"). Never NULL. */
const char *kd_status_name(kd_status status);

#define KD_TRY(expr)                            \
    do {                                        \
        kd_status kd_try_status_ = (expr);      \
        if (kd_try_status_ != KD_OK)            \
            return kd_try_status_;              \
    } while (0)

/* Same with one exit label: `status` is a kd_status variable of the function. */
#define KD_TRY_TO(label, status, expr)          \
    do {                                        \
        (status) = (expr);                      \
        if ((status) != KD_OK)                  \
            goto label;                         \
    } while (0)

/* Always-on assertion for our own mistakes (never for input): prints the expression and aborts. */
#define KD_ASSERT(cond) ((cond) ? (void)0 : kd_assert_failed(#cond, __FILE__, __LINE__))
void kd_assert_failed(const char *expr, const char *file, int line);

#endif
