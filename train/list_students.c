#include "train/list_students.h"

#include <stdio.h>

#include "common/base/json.h"
#include "kernels/nn/models.h"

enum { VIEW = 224, TEXT = 200 };

/* Whether a deeper tap has the same resolution. */
static int is_passed(const kd_model_taps *t, int i) {
    for (int k = i + 1; k < t->maps; k++)
        if (t->tap[k].h == t->tap[i].h && t->tap[k].w == t->tap[i].w)
            return 1;
    return 0;
}

static const char *sizes_text(const kd_model_info *m, char buf[TEXT]) {
    if (m->multiple > 1)
        snprintf(buf, TEXT, "multiples of %d", m->multiple);
    else
        snprintf(buf, TEXT, "all from %d on", m->smallest);
    return buf;
}

static const char *maps_text(const kd_model_taps *t, char buf[TEXT]) {
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i < t->maps && at < TEXT; i++)
        if (!is_passed(t, i))
            at += (size_t)snprintf(buf + at, TEXT - at, "%s%dx%dx%d", at ? " " : "", t->tap[i].h, t->tap[i].w, t->tap[i].channels);
    return buf;
}

static void print_row(const kd_model_info *m, const kd_model_facts *f, const kd_model_taps *at_224) {
    char sizes[TEXT], maps[TEXT];
    printf("%-24s %-11s %9.2f %9.2f at %-3d %6d  %-16s %s\n", m->name, m->library, (double)f->parameters * 1e-6, f->flops * 1e-9, m->usual, m->width, sizes_text(m, sizes), maps_text(at_224, maps));
}

static kd_status print_json(const kd_model_info *m, const kd_model_facts *f, const kd_model_taps *t, kd_err *err) {
    json_t *maps = json_array();
    for (int i = 0; i < t->maps; i++)
        if (!is_passed(t, i))
            json_array_append_new(maps, json_pack("{s:s, s:i, s:i, s:i}", "tap", t->tap[i].name, "h", t->tap[i].h, "w", t->tap[i].w, "channels", t->tap[i].channels));
    json_t *line = json_pack("{s:s, s:s, s:I, s:f, s:i, s:i, s:i, s:i, s:o}", "student", m->name, "library", m->library, "parameters", (json_int_t)f->parameters, "flops", f->flops, "flops_size",
                             m->usual, "width", m->width, "multiple", m->multiple, "smallest", m->smallest, "maps_224", maps);
    if (!line)
        return kd_fail(err, KD_EFAIL, "out of memory for the list of students");
    kd_json_line(line);
    json_decref(line);
    return KD_OK;
}

kd_status kd_list_students(int json, kd_err *err) {
    const char *name;
    if (!json)
        printf("%-24s %-11s %9s %16s %6s  %-16s %s\n", "student", "library", "M params", "GFLOP", "width", "sizes in px", "maps at 224 px");
    for (size_t i = 0; (name = kd_model_students(i)) != NULL; i++) {
        kd_model_info m;
        kd_model_facts usual, view;
        KD_TRY(kd_model_find(&m, name, NULL, err));
        KD_TRY(kd_model_measure(&usual, &m, m.usual, m.usual, err));
        KD_TRY(kd_model_measure(&view, &m, VIEW, VIEW, err));
        if (json)
            KD_TRY(print_json(&m, &usual, &view.taps, err));
        else
            print_row(&m, &usual, &view.taps);
    }
    if (!json)
        puts("dinov2_wW_dD is a ViT in DINOv2's layout of width W (a multiple of 64) and depth D, patch 14.\n"
             "Parameters without heads and classifier; 2 FLOP per multiply-add, one image forward; width: channels of the pooled feature and of the last map.");
    return KD_OK;
}
