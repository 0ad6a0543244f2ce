/* Which part of the images a job takes: --shard, and Slurm's variables where it isn't given. */
#include "tests/unit/unit.h"

#include "precompute/part.h"

static kd_err err;

static void slurm(const char *id, const char *min, const char *count, const char *step) {
    const char *const name[] = {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_STEP"}, *const value[] = {id, min, count, step};
    for (int i = 0; i < 4; i++) {
        if (value[i] != NULL)
            setenv(name[i], value[i], 1);
        else
            unsetenv(name[i]);
    }
}

static int no_slurm(void **state) {
    (void)state;
    slurm(NULL, NULL, NULL, NULL);
    return 0;
}

static void assert_part(const char *text, uint32_t part, uint32_t parts, int from_slurm) {
    kd_part p;
    assert_ok(kd_part_parse(&p, text, &err));
    assert_int_equal(p.part, part);
    assert_int_equal(p.parts, parts);
    assert_int_equal(p.from_slurm, from_slurm);
}

static void the_option_names_a_part(void **state) {
    (void)state;
    assert_part(NULL, 1, 1, 0);
    assert_part("1/1", 1, 1, 0);
    assert_part("3/8", 3, 8, 0);
    assert_part("99999/99999", 99999, 99999, 0);
}

static void anything_else_is_a_usage_error(void **state) {
    (void)state;
    static const char *const bad[] = {"", "3", "3/", "/8", "0/8", "9/8", "3/0", "-1/8", "+1/8", " 1/8", "1/8 ", "1 /8", "1/ 8", "a/b", "1/8/2", "1/100000", "99999999999999999999/8", "1.5/8"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kd_part p;
        if (kd_part_parse(&p, bad[i], &err) != KD_EUSAGE)
            fail_msg("\"%s\" was accepted", bad[i]);
        assert_contains(err.msg, "--shard");
    }
}

static void slurm_tasks_are_parts(void **state) {
    (void)state;
    slurm("0", "0", "8", "1"); /* --array=0-7 */
    assert_part(NULL, 1, 8, 1);
    slurm("7", "0", "8", NULL);
    assert_part(NULL, 8, 8, 1);
    slurm("3", "1", "3", "1"); /* --array=1-3 */
    assert_part(NULL, 3, 3, 1);
    slurm("15", "5", "4", "5"); /* --array=5-20:5 */
    assert_part(NULL, 3, 4, 1);
    slurm("4", NULL, NULL, NULL); /* an old version without the others: one cannot know, and task ids begin at 0 */
    assert_int_equal(kd_part_parse(&(kd_part){0}, NULL, &err), KD_EUSAGE);
}

static void the_option_wins_over_slurm(void **state) {
    (void)state;
    slurm("2", "0", "8", "1");
    assert_part("5/6", 5, 6, 0);
    assert_part("1/1", 1, 1, 0);
}

static void arrays_that_are_no_even_division_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *id, *min, *count, *step;
    } bad[] = {{"6", "1", "3", "1"} /* --array=1,5,6 */, {"4", "0", "4", "3"}, {"0", "1", "4", "1"}, {"1", "0", "4", "0"}, {"x", "0", "4", "1"}, {"1", "0", "", "1"}, {"1", "0", "100000", "1"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kd_part p;
        slurm(bad[i].id, bad[i].min, bad[i].count, bad[i].step);
        assert_int_equal(kd_part_parse(&p, NULL, &err), KD_EUSAGE);
        assert_contains(err.msg, "--shard I/N");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_option_names_a_part, no_slurm),
        cmocka_unit_test_setup(anything_else_is_a_usage_error, no_slurm),
        cmocka_unit_test_setup(slurm_tasks_are_parts, no_slurm),
        cmocka_unit_test_setup(the_option_wins_over_slurm, no_slurm),
        cmocka_unit_test_setup(arrays_that_are_no_even_division_are_refused, no_slurm),
    };
    return cmocka_run_group_tests_name("part", tests, NULL, NULL);
}
