/* Memory is counted, aligned and overflow-checked; every allocation can be made to fail; arenas free everything. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"

static void blocks_are_aligned_and_counted(void **state)
{
    size_t before = kd_mem_live_bytes();
    char *p = kd_malloc(1000), *q = kd_malloc(0);
    (void)state;
    assert_non_null(p);
    assert_non_null(q);
    assert_int_equal((uintptr_t)p % 64, 0);
    assert_int_equal((uintptr_t)q % 64, 0);
    assert_int_equal(kd_mem_live_bytes(), before + 1000);
    assert_true(kd_mem_peak_bytes() >= before + 1000);
    kd_free(p);
    kd_free(q);
    kd_free(NULL);
    assert_int_equal(kd_mem_live_bytes(), before);
    assert_true(kd_mem_peak_bytes() >= before + 1000);
}

static void realloc_keeps_content_alignment_and_count(void **state)
{
    size_t before = kd_mem_live_bytes();
    unsigned char *p = kd_realloc(NULL, 10);
    (void)state;
    for (int i = 0; i < 10; i++)
        p[i] = (unsigned char)i;
    p = kd_realloc(p, 100000);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(p[i], i);
    p = kd_realloc(p, 3);
    assert_int_equal(p[2], 2);
    assert_int_equal(kd_mem_live_bytes(), before + 3);
    kd_mem_fail_after(1);
    assert_null(kd_realloc(p, 50)); /* the old block stays */
    assert_int_equal(p[2], 2);
    kd_free(p);
    assert_int_equal(kd_mem_live_bytes(), before);
}

static void overflowing_sizes_are_refused(void **state)
{
    size_t out = 7;
    kd_err err;
    void *p = &err;
    (void)state;
    assert_false(kd_mul_size(SIZE_MAX / 2, 3, &out));
    assert_true(kd_mul_size(SIZE_MAX / 3, 3, &out));
    assert_int_equal(out, SIZE_MAX / 3 * 3);
    assert_false(kd_add_size(SIZE_MAX, 1, &out));
    assert_true(kd_add_size(SIZE_MAX - 1, 1, &out));
    assert_null(kd_calloc(SIZE_MAX / 4, 8));
    assert_null(kd_malloc(SIZE_MAX));
    assert_null(kd_malloc(SIZE_MAX - 64));
    assert_int_equal(kd_alloc_array(&p, SIZE_MAX / 4, 8, &err), KD_EFAIL);
    assert_null(p);
    assert_contains(err.msg, "out of memory");
}

static void alloc_array_is_zeroed(void **state)
{
    kd_err err;
    uint64_t *p;
    (void)state;
    assert_ok(kd_alloc_array(&p, 1000, sizeof *p, &err));
    for (int i = 0; i < 1000; i++)
        assert_int_equal(p[i], 0);
    kd_free(p);
}

static void the_chosen_allocation_fails_once(void **state)
{
    void *p[3];
    (void)state;
    kd_mem_fail_after(2);
    for (int i = 0; i < 3; i++)
        p[i] = kd_malloc(8);
    assert_non_null(p[0]);
    assert_null(p[1]);
    assert_non_null(p[2]);
    kd_free(p[0]);
    kd_free(p[2]);
    kd_mem_fail_after(1);
    assert_null(kd_asprintf("%d", 5));
    kd_mem_fail_after(1);
    assert_null(kd_strdup("x"));
    kd_mem_fail_after(1);
    assert_null(kd_arena_create());
    kd_mem_fail_after(0);
}

static void formatted_text(void **state)
{
    char *s = kd_asprintf("%s-%d-%*s", "abc", 42, 3000, "x");
    (void)state;
    assert_int_equal(strlen(s), 7 + 3000);
    assert_memory_equal(s, "abc-42- ", 8);
    kd_free(s);
}

static void an_arena_frees_everything(void **state)
{
    size_t before = kd_mem_live_bytes();
    kd_arena *a = kd_arena_create();
    unsigned char *all[200];
    (void)state;
    for (size_t i = 0; i < 200; i++) {
        size_t size = i % 50 == 49 ? 100000 : i * 7; /* large ones have blocks of their own between small ones */
        all[i] = kd_arena_alloc(a, size);
        assert_int_equal((uintptr_t)all[i] % 16, 0);
        for (size_t k = 0; k < size; k++)
            assert_int_equal(all[i][k], 0);
        memset(all[i], (int)i, size);
    }
    for (size_t i = 0; i < 200; i++) /* nobody wrote over another */
        for (size_t k = 0; k < (i % 50 == 49 ? 100000 : i * 7); k++)
            if (all[i][k] != i)
                fail_msg("allocation %zu was overwritten at byte %zu", i, k);
    assert_string_equal(kd_arena_strdup(a, "text"), "text");
    assert_string_equal(kd_arena_printf(a, "%d %s", 1, "two"), "1 two");
    assert_null(kd_arena_alloc(a, SIZE_MAX));
    kd_arena_destroy(a);
    kd_arena_destroy(NULL);
    assert_int_equal(kd_mem_live_bytes(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_aligned_and_counted), cmocka_unit_test(realloc_keeps_content_alignment_and_count),
        cmocka_unit_test(overflowing_sizes_are_refused),  cmocka_unit_test(alloc_array_is_zeroed),
        cmocka_unit_test(the_chosen_allocation_fails_once), cmocka_unit_test(formatted_text),
        cmocka_unit_test(an_arena_frees_everything),
    };
    return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
