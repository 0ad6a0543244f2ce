#include "common/base/err.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at s (1..4), or 0. Overlong forms, surrogates and values above U+10FFFF are not
 * well-formed; the terminating NUL stops every look-ahead because it is no continuation byte. */
static size_t utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xC2 && s[0] <= 0xDF)
        return (s[1] & 0xC0) == 0x80 ? 2 : 0;
    if ((s[0] & 0xF0) == 0xE0) {
        if ((s[1] & 0xC0) != 0x80 || (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F))
            return 0;
        return (s[2] & 0xC0) == 0x80 ? 3 : 0;
    }
    if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        if ((s[1] & 0xC0) != 0x80 || (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
            return 0;
        return (s[2] & 0xC0) == 0x80 && (s[3] & 0xC0) == 0x80 ? 4 : 0;
    }
    return 0;
}

char *kd_text_escape(char *dst, size_t cap, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t used = 0;
    KD_ASSERT(cap > 0);
    while (*s) {
        char piece[5];
        size_t taken = utf8_length(s), n;
        /* U+0080..U+009F (0xC2 0x80..0x9F) are control characters too. */
        int control = s[0] < 0x20 || s[0] == 0x7F || (s[0] == 0xC2 && taken == 2 && s[1] < 0xA0);
        if (taken > 0 && !control) {
            n = taken;
            memcpy(piece, s, n);
        } else if (*s == '\n' || *s == '\t' || *s == '\r') {
            taken = 1;
            n = 2;
            piece[0] = '\\';
            piece[1] = *s == '\n' ? 'n' : *s == '\t' ? 't' : 'r';
        } else {
            taken = 1;
            n = (size_t)snprintf(piece, sizeof piece, "\\x%02x", *s);
        }
        if (used + n + 1 > cap)
            break;
        memcpy(dst + used, piece, n);
        used += n;
        s += taken;
    }
    dst[used] = '\0';
    return dst;
}

static void set(kd_err *err, kd_status status, const char *file, int line, const char *text)
{
    err->status = status;
    err->file = file;
    err->line = line;
    kd_text_escape(err->msg, sizeof err->msg, text);
}

kd_status kd_err_set(kd_err *err, kd_status status, const char *file, int line, const char *fmt, ...)
{
    if (err) {
        char text[sizeof err->msg]; /* arguments may point into err->msg, so it is written last */
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        set(err, status, file, line, text);
    }
    return status;
}

kd_status kd_err_set_errno(kd_err *err, kd_status status, const char *file, int line, const char *fmt, ...)
{
    int error = errno;
    if (error == ENOSPC || error == EDQUOT)
        status = KD_ENOSPACE;
    if (err) {
        char text[sizeof err->msg], reason[128];
        size_t n;
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        n = strlen(text);
        snprintf(text + n, sizeof text - n, ": %s", strerror_r(error, reason, sizeof reason));
        set(err, status, file, line, text);
    }
    errno = error;
    return status;
}

int kd_exit_code(kd_status status)
{
    return status == KD_OK || status == KD_DONE ? 0 : -(int)status;
}

const char *kd_status_name(kd_status status)
{
    switch (status) {
    case KD_DONE: return "done";
    case KD_OK: return "ok";
    case KD_EFAIL: return "failure";
    case KD_EUSAGE: return "usage or configuration";
    case KD_ESKIPPED: return "inputs skipped";
    case KD_ENOTFOUND: return "not found";
    case KD_ELOCKED: return "cache locked";
    case KD_EDAMAGED: return "cache damaged";
    case KD_EMISMATCH: return "identity mismatch";
    case KD_ENOSPACE: return "no space";
    case KD_ENODEVICE: return "device not available";
    case KD_ENONFINITE: return "non-finite numbers";
    case KD_ESIGINT: return "interrupted";
    case KD_ESIGTERM: return "terminated";
    }
    return "unknown status";
}

void kd_assert_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "%s:%d: this is a bug in kdcache: the assertion \"%s\" failed\n", file, line, expr);
    abort();
}
