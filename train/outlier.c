#include "train/outlier.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double kd_outlier_median(const kd_outlier_window *w) {
    double sorted[KD_OUTLIER_WINDOW];
    if (w->count == 0)
        return 0;
    memcpy(sorted, w->value, (size_t)w->count * sizeof *sorted);
    qsort(sorted, (size_t)w->count, sizeof *sorted, compare);
    return sorted[(w->count - 1) / 2];
}

int kd_outlier_add(kd_outlier_window *w, double value) {
    int before = w->outside;
    w->outside = w->count >= KD_OUTLIER_LEAST && value > KD_OUTLIER_FACTOR * kd_outlier_median(w);
    w->value[w->next] = value;
    w->next = (w->next + 1) % KD_OUTLIER_WINDOW;
    w->count += w->count < KD_OUTLIER_WINDOW;
    return w->outside && !before;
}

/* {"values": oldest first, "outside": bool}: where the ring begins doesn't matter. */
json_t *kd_outlier_json(const kd_outlier_window *w) {
    json_t *values = json_array();
    int first = w->count < KD_OUTLIER_WINDOW ? 0 : w->next;
    for (int i = 0; i < w->count; i++)
        json_array_append_new(values, json_real(w->value[(first + i) % KD_OUTLIER_WINDOW]));
    if (json_array_size(values) == (size_t)w->count)
        return json_pack("{s:o, s:b}", "values", values, "outside", w->outside);
    json_decref(values);
    return NULL;
}

kd_status kd_outlier_parse(kd_outlier_window *w, const json_t *j, const char *what, kd_err *err) {
    const json_t *values = json_object_get(j, "values"), *outside = json_object_get(j, "outside");
    size_t n = json_array_size(values);
    *w = (kd_outlier_window){0};
    if (!json_is_array(values) || n > KD_OUTLIER_WINDOW || !json_is_boolean(outside))
        return kd_fail(err, KD_EDAMAGED, "%s: a window of recent losses isn't one; the file is damaged", what);
    for (size_t i = 0; i < n; i++)
        w->value[i] = json_number_value(json_array_get(values, i));
    w->count = (int)n;
    w->next = (int)n % KD_OUTLIER_WINDOW;
    w->outside = json_is_true(outside);
    return KD_OK;
}
