/* Canonical parameters and where they lie in the file. */
#include <stdio.h>

#include "common/weights/vit_parts.h"

kd_status kd_vit_read(const kd_weights *w, const kd_vit_spec *s, const char *name, float *out, size_t count, kd_err *err)
{
    char full[sizeof s->prefix + 128];
    snprintf(full, sizeof full, "%s%s", s->prefix, name);
    int i = kd_weights_find(w, full);
    if (i < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s' is missing, and %s needs it", kd_weights_path(w), full, s->name);
    return kd_weights_read_f32(w, i, out, count, err);
}
