#include "train/curves.h"

#include <string.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"

static const size_t MAX_FILE = (size_t)1 << 31;

const kd_curve *kd_curves_find(const kd_curves *c, const char *student, const char *key) {
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->curve[i].key, key) == 0 && strcmp(c->curve[i].student, student) == 0)
            return &c->curve[i];
    return NULL;
}

static kd_status grow(void *array, size_t *capacity, size_t count, size_t size, kd_err *err) {
    void *old, *grown;
    if (count < *capacity)
        return KD_OK;
    memcpy(&old, array, sizeof old);
    size_t more = *capacity > 0 ? 2 * *capacity : 16;
    grown = kd_realloc(old, more * size);
    if (grown == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the curves of a report");
    memcpy(array, &grown, sizeof grown);
    *capacity = more;
    return KD_OK;
}

/* The curve of that name, new when it is met for the first time. */
static kd_status open_curve(kd_curves *c, kd_curve **out, const char *student, const char *key, kd_err *err) {
    *out = (kd_curve *)(uintptr_t)kd_curves_find(c, student, key); /* ours to change */
    if (*out != NULL)
        return KD_OK;
    KD_TRY(grow(&c->curve, &c->capacity, c->count, sizeof *c->curve, err));
    kd_curve *new = &c->curve[c->count++];
    *new = (kd_curve){.student = kd_strdup(student), .key = kd_strdup(key)};
    *out = new;
    return new->student != NULL && new->key != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the curves of a report");
}

static kd_status add_point(kd_curves *c, const char *student, const char *key, double x, double y, kd_err *err) {
    kd_curve *curve;
    KD_TRY(open_curve(c, &curve, student, key, err));
    KD_TRY(grow(&curve->point, &curve->capacity, curve->count, sizeof *curve->point, err));
    curve->point[curve->count++] = (kd_point){x, y};
    return KD_OK;
}

static kd_status add_line(kd_curves *c, const json_t *line, const char *path, size_t number, int64_t epoch_steps, kd_err *err) {
    const json_t *step = json_object_get(line, "step");
    const char *student = json_string_value(json_object_get(line, "student")), *key;
    json_t *value;
    if (!json_is_integer(step) || student == NULL)
        return kd_fail(err, KD_EFAIL, "%s: line %zu isn't an object with step and student; was the file edited?", path, number);
    double x = (double)json_integer_value(step) / (double)epoch_steps;
    json_object_foreach((json_t *)(uintptr_t)line, key, value) { /* jansson's iterator takes no const */
        if (strcmp(key, "step") == 0 || strcmp(key, "epoch") == 0)
            continue;
        if (json_is_number(value))
            KD_TRY(add_point(c, student, key, x, json_number_value(value), err));
        else if (json_is_true(value))
            KD_TRY(add_point(c, student, key, x, strcmp(key, "outlier") == 0 ? json_number_value(json_object_get(line, "loss")) : 1, err));
    }
    return KD_OK;
}

static kd_status read_lines(kd_curves *c, const char *text, size_t size, const char *path, int64_t epoch_steps, kd_err *err) {
    size_t number = 1;
    for (const char *at = text, *end; (end = memchr(at, '\n', (size_t)(text + size - at))) != NULL; at = end + 1, number++) {
        json_t *line = NULL;
        kd_err cause;
        if (kd_json_parse(at, (size_t)(end - at), path, &line, &cause) != KD_OK)
            return kd_fail(err, KD_EFAIL, "%s: line %zu isn't JSON; was the file edited?", path, number);
        kd_status status = add_line(c, line, path, number, epoch_steps, err);
        json_decref(line);
        KD_TRY(status);
    }
    return KD_OK;
}

kd_status kd_curves_read(kd_curves *c, const char *path, int64_t epoch_steps, kd_err *err) {
    uint8_t *text;
    size_t size;
    KD_ASSERT(epoch_steps > 0);
    KD_TRY(kd_io_read_all(path, MAX_FILE, &text, &size, err));
    kd_status status = read_lines(c, (const char *)text, size, path, epoch_steps, err);
    kd_free(text);
    return status;
}

void kd_curves_free(kd_curves *c) {
    for (size_t i = 0; i < c->count; i++) {
        kd_free(c->curve[i].student);
        kd_free(c->curve[i].key);
        kd_free(c->curve[i].point);
    }
    kd_free(c->curve);
    *c = (kd_curves){0};
}

size_t kd_curve_thin(const kd_curve *curve, kd_point *out, size_t most) {
    size_t n = curve->count < most ? curve->count : most;
    for (size_t i = 0; i < n; i++) {
        size_t first = i * curve->count / n, last = (i + 1) * curve->count / n;
        kd_point sum = {0, 0};
        for (size_t k = first; k < last; k++) {
            sum.x += curve->point[k].x;
            sum.y += curve->point[k].y;
        }
        out[i] = (kd_point){sum.x / (double)(last - first), sum.y / (double)(last - first)};
    }
    return n;
}
