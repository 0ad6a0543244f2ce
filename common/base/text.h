/* Text: a growing string, for files that are put together piece by piece (reports).
 *
 *     kd_text t = {0};
 *     kd_text_printf(&t, "<p>%d images", n);  kd_text_html(&t, name);  kd_text_base64(&t, png, size);
 *     KD_TRY(kd_text_check(&t, "the report", err));            // once, at the end: calls after an allocation that failed do nothing
 *     ... t.at, t.size ...  kd_text_free(&t);
 *
 * Thread rule: no shared state. */
#ifndef KD_COMMON_BASE_TEXT_H
#define KD_COMMON_BASE_TEXT_H

#include "common/base/err.h"

typedef struct kd_text {
    char *at;        /* NUL-terminated; NULL while empty */
    size_t size;     /* without the NUL */
    size_t capacity;
    int failed;      /* an allocation failed */
} kd_text;

void kd_text_printf(kd_text *t, const char *fmt, ...) KD_PRINTF(2, 3);
/* With & < > " ' as entities, and bytes that aren't printable UTF-8 escaped as by kd_text_escape: safe in HTML and SVG, in attributes too. */
void kd_text_html(kd_text *t, const char *text);
void kd_text_base64(kd_text *t, const void *bytes, size_t n); /* RFC 4648, with padding, on one line */

/* KD_EFAIL when memory was out at any time; `what` is for the sentence. */
kd_status kd_text_check(const kd_text *t, const char *what, kd_err *err);
void kd_text_free(kd_text *t); /* accepts a zeroed one */

#endif
