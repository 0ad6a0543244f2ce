#include "common/base/csv.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- reading ---- */

kd_csv kd_csv_over(char *text, size_t size, const char *what)
{
    int mark = size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
    return (kd_csv){.at = text + (mark ? 3 : 0), .end = text + size, .next_line = 1, .what = what};
}

/* Whether p is where a field ends. */
static int is_end(const kd_csv *c, const char *p)
{
    return p == c->end || *p == ',' || *p == '\n' || (*p == '\r' && p + 1 < c->end && p[1] == '\n');
}

static kd_status zero_byte(const kd_csv *c, kd_err *err)
{
    return kd_fail(err, KD_EUSAGE, "%s, line %zu: has a zero byte; expected text (UTF-16 must be converted to UTF-8)", c->what, c->next_line);
}

/* A field in quotes; c->at is behind the opening one. Its text moves to the front as "" becomes ". */
static kd_status quoted(kd_csv *c, kd_err *err)
{
    char *to = c->at, *p = c->at;
    size_t line = c->next_line;
    for (; p < c->end && !(*p == '"' && (p + 1 == c->end || p[1] != '"')); p++) {
        if (*p == '\0')
            return zero_byte(c, err);
        c->next_line += *p == '\n';
        p += *p == '"';
        *to++ = *p;
    }
    if (p == c->end)
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: a field begins with a double quote that is never closed; a quote that belongs to the text is written twice, in a quoted field", c->what, line);
    c->at = p + 1;
    if (!is_end(c, c->at))
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: text follows the closing quote of a field; a quote that belongs to the text is written twice, in a quoted field", c->what, c->next_line);
    *to = '\0'; /* at most on the closing quote */
    return KD_OK;
}

static kd_status plain(kd_csv *c, kd_err *err)
{
    for (; !is_end(c, c->at); c->at++) {
        if (*c->at == '\0')
            return zero_byte(c, err);
        if (*c->at == '"')
            return kd_fail(err, KD_EUSAGE, "%s, line %zu: a double quote inside a field that doesn't begin with one; put the field in quotes and write the quote twice", c->what, c->next_line);
    }
    return KD_OK;
}

/* One field and what ends it; *last: that was the record's end. */
static kd_status read_field(kd_csv *c, int *last, kd_err *err)
{
    if (c->fields == KD_CSV_FIELDS)
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: more than %d fields; leave columns out", c->what, c->line, KD_CSV_FIELDS);
    int quotes = c->at < c->end && *c->at == '"';
    c->at += quotes;
    c->field[c->fields++] = c->at;
    KD_TRY(quotes ? quoted(c, err) : plain(c, err));
    *last = c->at == c->end || *c->at != ',';
    if (c->at == c->end)
        return KD_OK;
    char *stop = c->at;
    c->at += *stop == '\r' ? 2 : 1;
    c->next_line += (size_t)*last;
    *stop = '\0';
    return KD_OK;
}

static void pass_empty_lines(kd_csv *c)
{
    for (; c->at < c->end && is_end(c, c->at) && *c->at != ','; c->next_line++)
        c->at += *c->at == '\r' ? 2 : 1;
}

kd_status kd_csv_next(kd_csv *c, kd_err *err)
{
    pass_empty_lines(c);
    c->fields = 0;
    c->line = c->next_line;
    if (c->at == c->end)
        return KD_DONE;
    for (int last = 0; !last;)
        KD_TRY(read_field(c, &last, err));
    return KD_OK;
}

/* ---- writing ---- */

static void separate(kd_text *t)
{
    if (t->size > 0 && t->at[t->size - 1] != '\n')
        kd_text_printf(t, ",");
}

void kd_csv_put(kd_text *t, const char *field)
{
    separate(t);
    if (field[0] != '\0' && field[strcspn(field, ",\"\r\n")] == '\0') {
        kd_text_printf(t, "%s", field);
        return;
    }
    kd_text_printf(t, "\""); /* an empty one too, so that a record never is an empty line */
    for (const char *p = field; *p != '\0';) {
        size_t n = strcspn(p, "\"");
        kd_text_printf(t, "%.*s%s", (int)n, p, p[n] == '"' ? "\"\"" : "");
        p += n + (p[n] == '"');
    }
    kd_text_printf(t, "\"");
}

void kd_csv_printf(kd_text *t, const char *fmt, ...)
{
    char number[64];
    va_list args;
    va_start(args, fmt);
    vsnprintf(number, sizeof number, fmt, args);
    va_end(args);
    separate(t);
    kd_text_printf(t, "%s", number);
}

void kd_csv_end(kd_text *t)
{
    kd_text_printf(t, "\n");
}
