/* Where a run writes: names that are refused, and free space that counts only for a run that will write. */
#include "tests/cache_fixture.h"

#include "precompute/output.h"

static const uint64_t endless = UINT64_C(1) << 60; /* bytes that no disk has */

static int drop_all(void **state) {
    char command[100];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", fx_dir);
    return system(command);
}

static kd_precompute_config config_with(const char *stage, const char *fill) {
    return (kd_precompute_config){.cache = fx_path("photos"), .stage = stage, .fill = fill, .features = "cls,patch"};
}

static kd_run_plan plan_of(uint64_t images, uint64_t bytes, uint64_t free_bytes) {
    return (kd_run_plan){.images = images, .views = 1, .choice = {.features = 1u << KD_FEATURE_CLS, .layers = 1, .layer = {1}}, .width = FX_WIDTH, .grid_h = FX_GRID, .grid_w = FX_GRID,
                         .dtype = KD_F16, .cache_bytes = bytes, .peak_bytes = bytes, .beside_bytes = UINT64_MAX, .free_bytes = free_bytes};
}

static kd_status open_output(kd_output *o, const kd_precompute_config *c, const kd_run_plan *plan) {
    kd_recipe r = fx_recipe();
    must(kd_output_choose(o, c, &fx_err));
    kd_status status = kd_output_open(o, plan, &r, NULL, &fx_err);
    kd_recipe_free(&r);
    return status;
}

/* Image 0's view 0 becomes the folder's only shard. */
static void store_one(kd_output *o) {
    static kd_record_buf record[2];
    kd_recipe r = fx_recipe();
    kd_view_entry v = fx_view(0, 0);
    kd_record_ref refs[2];
    kd_image_entry e = {.image = v.image, .rel = "a.jpg", .file_size = 1000, .width = 100, .height = 80};
    for (int f = 0; f < 2; f++) {
        fx_record(&record[f], &r, 0, &v, (kd_feature)f, 1);
        refs[f] = (kd_record_ref){(kd_feature)f, 1, record[f].bytes, record[f].size};
    }
    must(kd_shard_writer_add_view(o->writer, &e, &v, refs, 2, &fx_err));
    must(kd_shard_writer_seal(o->writer, &fx_err));
    kd_recipe_free(&r);
}

static void free_space_counts_only_for_a_run_that_will_write(void **state) {
    (void)state;
    kd_output o;
    kd_precompute_config here = config_with(NULL, NULL), staged = config_with(fx_dir, NULL);
    kd_run_plan small = plan_of(1, 1000, endless), done = plan_of(1, endless, 0), more = plan_of(2, endless, 0), more_staged = plan_of(2, endless, 4 * endless);
    must(open_output(&o, &here, &small));
    store_one(&o);
    kd_output_close(&o);
    must(open_output(&o, &here, &done));
    kd_output_close(&o);
    must(open_output(&o, &staged, &done));
    kd_output_close(&o);
    must_be(KD_ENOSPACE, open_output(&o, &here, &more));
    kd_output_close(&o);
    must_be(KD_ENOSPACE, open_output(&o, &staged, &more_staged));
    must_say("--stage");
    kd_output_close(&o);
}

/* However much the folder holds: the listed views aren't in it. */
static void a_list_to_fill_needs_space_of_its_own(void **state) {
    (void)state;
    kd_output o;
    kd_precompute_config c = config_with(NULL, NULL), fill = config_with(NULL, "missing.txt");
    kd_run_plan small = plan_of(1, 1000, endless), list = plan_of(1, 1000, 1000);
    must(open_output(&o, &c, &small));
    store_one(&o);
    kd_output_close(&o);
    must_be(KD_ENOSPACE, open_output(&o, &fill, &list));
    kd_output_close(&o);
    list.free_bytes = endless;
    must(open_output(&o, &fill, &list));
    kd_output_close(&o);
}

static void empty_names_are_refused(void **state) {
    (void)state;
    kd_output o = {0};
    kd_precompute_config c = config_with("", NULL);
    must_be(KD_EUSAGE, kd_output_choose(&o, &c, &fx_err));
    must_say("--stage is empty");
    c.cache = "";
    must_be(KD_EUSAGE, kd_output_choose(&o, &c, &fx_err));
    must_say("--cache is empty");
}

static void a_part_is_planned_by_its_views(void **state) {
    (void)state;
    kd_run_plan p = {.images = 3, .views = 8, .bytes_per_view = 1000, .beside_bytes = 2500};
    kd_run_plan_narrow(&p, 2, 4, 2);
    assert_int_equal(p.images, 2);
    assert_int_equal(p.views, 4);
    assert_int_equal(p.cache_bytes, 2000);
    assert_int_equal(p.peak_bytes, 4000); /* sealing needs as much again ... */
    kd_run_plan_narrow(&p, 2, 4, 5);
    assert_int_equal(p.peak_bytes, 7500); /* ... up to what is beside it at most */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(free_space_counts_only_for_a_run_that_will_write, fx_make_dir, drop_all),
        cmocka_unit_test_setup_teardown(a_list_to_fill_needs_space_of_its_own, fx_make_dir, drop_all),
        cmocka_unit_test_setup_teardown(empty_names_are_refused, fx_make_dir, drop_all),
        cmocka_unit_test(a_part_is_planned_by_its_views),
    };
    return cmocka_run_group_tests_name("output", tests, NULL, NULL);
}
