#include "common/base/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "common/base/io.h"
#include "common/base/mem.h"

enum { MAX_DEPTH = 16, MAX_FILE = 1 << 20 };

typedef struct reader {
    yaml_parser_t parser;
    const char *path;
    kd_err *err;
} reader;

static kd_status refuse(const reader *r, const yaml_event_t *e, const char *what)
{
    return kd_fail(r->err, KD_EUSAGE, "%s:%zu:%zu: %s", r->path, e->start_mark.line + 1, e->start_mark.column + 1, what);
}

static kd_status next_event(reader *r, yaml_event_t *e)
{
    if (!yaml_parser_parse(&r->parser, e)) {
        const yaml_parser_t *p = &r->parser;
        /* A reader error (bytes that aren't UTF-8) has an offset in place of a mark. */
        if (p->error == YAML_READER_ERROR)
            return kd_fail(r->err, KD_EUSAGE, "%s: byte %zu: %s", r->path, p->problem_offset, p->problem ? p->problem : "not valid YAML");
        return kd_fail(r->err, KD_EUSAGE, "%s:%zu:%zu: %s", r->path, p->problem_mark.line + 1, p->problem_mark.column + 1,
                       p->problem ? p->problem : "not valid YAML");
    }
    return KD_OK;
}

/* YAML 1.2's core schema for decimal integers and reals; strtod alone would take "inf", "nan" and hexadecimal. */
static int is_number(const char *s, int *is_integer)
{
    size_t digits = 0;
    *is_integer = 1;
    s += *s == '+' || *s == '-';
    for (; *s >= '0' && *s <= '9'; s++)
        digits++;
    if (*s == '.') {
        *is_integer = 0;
        for (s++; *s >= '0' && *s <= '9'; s++)
            digits++;
    }
    if (digits == 0)
        return 0;
    if (*s == 'e' || *s == 'E') {
        *is_integer = 0;
        s++;
        s += *s == '+' || *s == '-';
        if (!(*s >= '0' && *s <= '9'))
            return 0;
        while (*s >= '0' && *s <= '9')
            s++;
    }
    return *s == '\0';
}

/* The value of a plain scalar, or NULL when it is a string. */
static json_t *plain_value(const char *s)
{
    int integer;
    if (strcmp(s, "true") == 0)
        return json_true();
    if (strcmp(s, "false") == 0)
        return json_false();
    if (*s == '\0' || strcmp(s, "~") == 0 || strcmp(s, "null") == 0)
        return json_null();
    if (!is_number(s, &integer))
        return NULL;
    errno = 0;
    if (integer) {
        long long v = strtoll(s, NULL, 10);
        return errno == 0 ? json_integer(v) : NULL; /* too many digits: the text is kept for the option's own range check */
    }
    double v = strtod(s, NULL);
    return isfinite(v) ? json_real(v) : NULL;
}

static kd_status scalar_value(const reader *r, const yaml_event_t *e, json_t **out)
{
    const char *s = (const char *)e->data.scalar.value;
    size_t n = e->data.scalar.length;
    if (memchr(s, '\0', n))
        return refuse(r, e, "a text with a zero byte is not allowed");
    *out = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? plain_value(s) : NULL;
    if (!*out)
        *out = json_stringn(s, n);
    return *out ? KD_OK : refuse(r, e, "the text can't be used: not UTF-8, or memory is out");
}

static kd_status read_value(reader *r, yaml_event_t *e, int depth, json_t **out);

static kd_status read_sequence(reader *r, int depth, json_t **out)
{
    json_t *list = json_array();
    kd_status status = list ? KD_OK : kd_fail(r->err, KD_EFAIL, "%s: out of memory", r->path);
    while (status == KD_OK) {
        yaml_event_t e;
        json_t *item = NULL;
        if ((status = next_event(r, &e)) != KD_OK)
            break;
        if (e.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&e);
            *out = list;
            return KD_OK;
        }
        status = read_value(r, &e, depth + 1, &item);
        if (status == KD_OK && json_array_append_new(list, item) != 0)
            status = kd_fail(r->err, KD_EFAIL, "%s: out of memory", r->path);
        yaml_event_delete(&e);
    }
    json_decref(list);
    return status;
}

static kd_status read_pair(reader *r, const yaml_event_t *key, int depth, json_t *object)
{
    yaml_event_t value;
    json_t *v = NULL;
    kd_status status;
    char text[200];
    if (key->type != YAML_SCALAR_EVENT || key->data.scalar.anchor || key->data.scalar.tag || key->data.scalar.length == 0 ||
        strlen((const char *)key->data.scalar.value) != key->data.scalar.length)
        return refuse(r, key, "a key must be a plain name");
    if (json_object_get(object, (const char *)key->data.scalar.value)) {
        snprintf(text, sizeof text, "the key \"%.100s\" stands here a second time", (const char *)key->data.scalar.value);
        return refuse(r, key, text);
    }
    KD_TRY(next_event(r, &value));
    status = read_value(r, &value, depth + 1, &v);
    yaml_event_delete(&value);
    KD_TRY(status);
    if (json_object_set_new(object, (const char *)key->data.scalar.value, v) != 0)
        return refuse(r, key, "the key can't be used: not UTF-8, or memory is out");
    return KD_OK;
}

static kd_status read_mapping(reader *r, int depth, json_t **out)
{
    json_t *object = json_object();
    kd_status status = object ? KD_OK : kd_fail(r->err, KD_EFAIL, "%s: out of memory", r->path);
    while (status == KD_OK) {
        yaml_event_t key;
        if ((status = next_event(r, &key)) != KD_OK)
            break;
        if (key.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&key);
            *out = object;
            return KD_OK;
        }
        status = read_pair(r, &key, depth, object);
        yaml_event_delete(&key);
    }
    json_decref(object);
    return status;
}

static kd_status read_value(reader *r, yaml_event_t *e, int depth, json_t **out)
{
    if (depth > MAX_DEPTH)
        return refuse(r, e, "nested deeper than 16 levels");
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        if (e->data.scalar.anchor || e->data.scalar.tag)
            return refuse(r, e, "anchors and tags are not allowed");
        return scalar_value(r, e, out);
    case YAML_SEQUENCE_START_EVENT:
        if (e->data.sequence_start.anchor || e->data.sequence_start.tag)
            return refuse(r, e, "anchors and tags are not allowed");
        return read_sequence(r, depth, out);
    case YAML_MAPPING_START_EVENT:
        if (e->data.mapping_start.anchor || e->data.mapping_start.tag)
            return refuse(r, e, "anchors and tags are not allowed");
        return read_mapping(r, depth, out);
    case YAML_ALIAS_EVENT: return refuse(r, e, "aliases are not allowed");
    default: return refuse(r, e, "a value is missing here");
    }
}

/* The one document of the file: events before and after it are checked and dropped. */
static kd_status read_document(reader *r, json_t **out)
{
    int documents = 0, done = 0;
    *out = NULL;
    while (!done) {
        yaml_event_t e;
        kd_status status = next_event(r, &e);
        KD_TRY(status);
        switch (e.type) {
        case YAML_STREAM_START_EVENT: case YAML_DOCUMENT_END_EVENT: break;
        case YAML_STREAM_END_EVENT: done = 1; break;
        case YAML_DOCUMENT_START_EVENT:
            if (++documents > 1)
                status = refuse(r, &e, "a second document begins here; one is expected");
            break;
        default:
            status = read_value(r, &e, 1, out);
            if (status == KD_OK && !json_is_object(*out) && !json_is_null(*out))
                status = refuse(r, &e, "\"name: value\" lines are expected");
            break;
        }
        yaml_event_delete(&e);
        KD_TRY(status);
    }
    return KD_OK;
}

kd_status kd_yaml_read_file(const char *path, json_t **out, kd_err *err)
{
    reader r = {.path = path, .err = err};
    uint8_t *bytes;
    size_t size;
    kd_status status;
    *out = NULL;
    if (kd_io_read_all(path, MAX_FILE, &bytes, &size, err) != KD_OK) {
        if (err)
            err->status = KD_EUSAGE;
        return KD_EUSAGE;
    }
    if (!yaml_parser_initialize(&r.parser)) {
        kd_free(bytes);
        return kd_fail(err, KD_EFAIL, "%s: out of memory", path);
    }
    yaml_parser_set_input_string(&r.parser, bytes, size);
    status = read_document(&r, out);
    yaml_parser_delete(&r.parser);
    kd_free(bytes);
    if (status == KD_OK && (!*out || json_is_null(*out)) && !(*out = json_object()))
        status = kd_fail(err, KD_EFAIL, "%s: out of memory", path);
    if (status != KD_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

/* ---- writing ---- */

typedef struct text {
    char *bytes;
    size_t used, cap;
    int failed;
} text;

static void append(text *t, const char *s, size_t n)
{
    if (!t->failed && t->used + n + 1 > t->cap) {
        size_t cap = (t->used + n + 1) * 2;
        char *p = kd_realloc(t->bytes, cap);
        if (p) {
            t->bytes = p;
            t->cap = cap;
        } else {
            t->failed = 1;
        }
    }
    if (t->failed)
        return;
    memcpy(t->bytes + t->used, s, n);
    t->used += n;
    t->bytes[t->used] = '\0';
}

/* The shortest text that reads back as the same real, with a mark that keeps it a real. */
static void append_real(text *t, double v)
{
    char s[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v)
            break;
    }
    append(t, s, strlen(s));
    if (!strpbrk(s, ".e"))
        append(t, ".0", 2);
}

/* A scalar. Strings are always quoted: JSON's quoted form is valid YAML and stays a string when read back. */
static void append_scalar(text *t, const json_t *v)
{
    char *s;
    if (json_is_real(v)) {
        append_real(t, json_real_value(v));
        return;
    }
    s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (s)
        append(t, s, strlen(s));
    else
        t->failed = 1;
    free(s); /* jansson's allocation */
}

char *kd_yaml_text(const json_t *object)
{
    text t = {NULL, 0, 0, 0};
    const char *key;
    json_t *value;
    append(&t, "", 0);
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        append(&t, key, strlen(key));
        append(&t, ": ", 2);
        if (json_is_array(value)) {
            append(&t, "[", 1);
            for (size_t i = 0; i < json_array_size(value); i++) {
                if (i)
                    append(&t, ", ", 2);
                append_scalar(&t, json_array_get(value, i));
            }
            append(&t, "]", 1);
        } else {
            append_scalar(&t, value);
        }
        append(&t, "\n", 1);
    }
    if (t.failed) {
        kd_free(t.bytes);
        return NULL;
    }
    return t.bytes;
}
