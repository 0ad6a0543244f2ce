/* Target encoding: the plain implementation, record by record. */
#include "kernels/ref/ref_flat.h"

kd_status kd_ref_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err) {
    (void)b, (void)err;
    kd_encode_check(spec);
    kd_encode_plan plan = kd_encode_plan_make(spec, scratch);
    size_t n = (size_t)spec->grid_h * (size_t)spec->grid_w * (size_t)spec->width;
    for (size_t r = 0; r < records; r++)
        kd_encode_record(out + r * kd_encode_bytes(spec), &stats[r], x + r * n, spec, &plan);
    return KD_OK;
}
