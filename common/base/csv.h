/* CSV: tables as text, RFC 4180, read record by record and written field by field.
 *
 * Fields end at a comma, records at a newline (or CR LF); a field in double quotes may hold both, and "" is a quote in it. Spaces belong to the field; empty lines are no records; a UTF-8 byte
 * order mark at the beginning is passed over. Bytes that aren't UTF-8 (file names) go through as they are.
 *
 *     kd_csv c = kd_csv_over(text, size, "labels.csv");
 *     while ((status = kd_csv_next(&c, err)) == KD_OK)
 *         use(c.field[0], c.field[1], c.line);                  // KD_DONE at the end
 *
 *     kd_csv_put(&t, "a, b.jpg");  kd_csv_printf(&t, "%d", 7);  kd_csv_end(&t);      // "a, b.jpg",7
 *
 * Thread rule: no shared state. */
#ifndef KD_COMMON_BASE_CSV_H
#define KD_COMMON_BASE_CSV_H

#include "common/base/text.h"

enum { KD_CSV_FIELDS = 1024 };

typedef struct kd_csv {
    char *field[KD_CSV_FIELDS]; /* [fields] of the record, NUL-terminated, in the text */
    size_t fields;
    size_t line;                /* on which the record begins; 1 = the first */
    char *at, *end;             /* what wasn't read yet */
    size_t next_line;           /* of `at` */
    const char *what;           /* names the text in sentences */
} kd_csv;

/* Over size bytes that a NUL follows (kd_io_read_all); reading changes them. Text and `what` are borrowed. */
kd_csv kd_csv_over(char *text, size_t size, const char *what);
/* KD_DONE: no more records. KD_EUSAGE naming text and line: a quote inside a field that doesn't begin with one, text behind a closing quote, a quote that is never closed, a zero byte, more than KD_CSV_FIELDS fields. */
kd_status kd_csv_next(kd_csv *c, kd_err *err);

/* The record's next field; quoted where it must be. */
void kd_csv_put(kd_text *t, const char *field);
void kd_csv_printf(kd_text *t, const char *fmt, ...) KD_PRINTF(2, 3); /* a number: what is printed is never quoted */
void kd_csv_end(kd_text *t); /* of the record */

#endif
