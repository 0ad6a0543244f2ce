/* .npy files: the bytes of numpy.save, for every rank and type that differs. */
#include "tests/unit/unit.h"

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/tensor/npy.h"
#include "tests/golden/npy/npy_golden.h"

static kd_err err;

static void assert_bytes(const kd_tensor *t, const unsigned char *bytes, size_t size) {
    char *folder = unit_folder(), path[4200];
    uint8_t *got;
    size_t n;
    snprintf(path, sizeof path, "%s/x.npy", folder);
    assert_ok(kd_npy_write(path, t, &err));
    assert_ok(kd_io_read_all(path, 1 << 20, &got, &n, &err));
    assert_int_equal(n, size);
    assert_memory_equal(got, bytes, size);
    kd_free(got);
    free(folder);
}

static void the_bytes_are_numpys(void **state) {
    (void)state;
    const float matrix[6] = {-0.5f, -0.25f, 0, 0.25f, 0.5f, 0.75f};
    const int64_t vector[3] = {-1, 0, (int64_t)1 << 40};
    const double scalar = 2.5;
    const uint16_t halves[2] = {0};
    assert_bytes(&(kd_tensor){.dtype = KD_F32, .rank = 2, .shape = {2, 3}, .data = matrix}, npy_matrix, sizeof npy_matrix);
    assert_bytes(&(kd_tensor){.dtype = KD_I64, .rank = 1, .shape = {3}, .data = vector}, npy_vector, sizeof npy_vector);
    assert_bytes(&(kd_tensor){.dtype = KD_F64, .data = &scalar}, npy_scalar, sizeof npy_scalar);
    assert_bytes(&(kd_tensor){.dtype = KD_U8, .rank = 2, .shape = {0, 4}, .data = &scalar}, npy_empty, sizeof npy_empty);
    assert_bytes(&(kd_tensor){.dtype = KD_F16, .rank = 8, .shape = {1, 1, 1, 1, 2, 1, 1, 1}, .data = halves}, npy_long, sizeof npy_long);
}

static void a_folder_that_is_missing_is_an_error(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4200];
    const float x = 1;
    snprintf(path, sizeof path, "%s/none/x.npy", folder);
    assert_int_equal(kd_npy_write(path, &(kd_tensor){.dtype = KD_F32, .data = &x}, &err), KD_EFAIL);
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_numpys),
        cmocka_unit_test(a_folder_that_is_missing_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
