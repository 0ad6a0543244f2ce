#include "common/base/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

/* Room for n more bytes and the NUL. Doubling keeps appending linear. */
static int reserve(kd_text *t, size_t n)
{
    size_t need;
    char *grown;
    if (t->failed || !kd_add_size(t->size, n, &need) || !kd_add_size(need, 1, &need)) {
        t->failed = 1;
        return 0;
    }
    if (need <= t->capacity)
        return 1;
    if (need < 2 * t->capacity)
        need = 2 * t->capacity;
    grown = kd_realloc(t->at, need);
    if (!grown) {
        t->failed = 1;
        return 0;
    }
    t->at = grown;
    t->capacity = need;
    return 1;
}

static void append(kd_text *t, const char *bytes, size_t n)
{
    if (!reserve(t, n))
        return;
    memcpy(t->at + t->size, bytes, n);
    t->size += n;
    t->at[t->size] = '\0';
}

void kd_text_printf(kd_text *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0 || !reserve(t, (size_t)n)) {
        t->failed = 1;
        return;
    }
    va_start(args, fmt);
    vsnprintf(t->at + t->size, (size_t)n + 1, fmt, args);
    va_end(args);
    t->size += (size_t)n;
}

void kd_text_html(kd_text *t, const char *text)
{
    size_t cap = 4 * strlen(text) + 1; /* every byte as \xNN */
    char *line = kd_malloc(cap);
    if (!line) {
        t->failed = 1;
        return;
    }
    kd_text_escape(line, cap, text);
    for (const char *p = line; *p; p++)
        switch (*p) {
        case '&': append(t, "&amp;", 5); break;
        case '<': append(t, "&lt;", 4); break;
        case '>': append(t, "&gt;", 4); break;
        case '"': append(t, "&quot;", 6); break;
        case '\'': append(t, "&#39;", 5); break;
        default: append(t, p, 1);
        }
    kd_free(line);
}

void kd_text_base64(kd_text *t, const void *bytes, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)b[i] << 16 | (i + 1 < n ? (uint32_t)b[i + 1] << 8 : 0) | (i + 2 < n ? b[i + 2] : 0);
        char four[4] = {digit[v >> 18], digit[v >> 12 & 63], i + 1 < n ? digit[v >> 6 & 63] : '=', i + 2 < n ? digit[v & 63] : '='};
        append(t, four, 4);
    }
}

kd_status kd_text_check(const kd_text *t, const char *what, kd_err *err)
{
    return t->failed ? kd_fail(err, KD_EFAIL, "out of memory for %s", what) : KD_OK;
}

void kd_text_free(kd_text *t)
{
    kd_free(t->at);
    *t = (kd_text){0};
}
