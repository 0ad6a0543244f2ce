/* Power failures in the life of a cache (power_loss.h), from the empty folder to the sealed cache. After each of them the same work is done again. A disk that ignores every sync is the control: there the
 * test must find damage, or it would find none anywhere. */
#include "tests/fault/power_loss.h"

/* ---- the work, and what must be true after a failure ---- */

enum { SEALED = 1 << 20 }; /* a note; others are the views that were acknowledged */
static char file[600];
static uint8_t *reference;
static size_t reference_size;

/* Two runs, as after a stop: the first ends in the middle of a transaction. */
static void work(void)
{
    kd_recipe r = fx_recipe_full();
    for (int run = 0; run < 2; run++) {
        kd_writer *w;
        must(kd_writer_open(&w, file, &r, NULL, 0, &fx_err));
        for (unsigned n = 0; n < (run ? FT_VIEWS : FT_VIEWS / 2 + 3); n++) {
            if (!ft_has(w, n))
                must(fx_add(w, &r, n / FX_VIEWS, n % FX_VIEWS, &fx_err));
            if ((n + 1) % FT_PER_COMMIT == 0) {
                must(kd_writer_commit(w, &fx_err));
                append(NOTE)->note = n + 1;
            }
        }
        if (run) {
            must(kd_writer_seal(w, &fx_err));
            append(NOTE)->note = SEALED;
        }
        kd_writer_close(w);
    }
    kd_recipe_free(&r);
}

typedef enum verdict { GOOD, LOST, CORRUPT } verdict;

/* Opens what the failure left, as the next run would, then does the work again. */
static verdict judge(unsigned acknowledged, int was_sealed, kd_err *err)
{
    kd_recipe r = fx_recipe_full();
    kd_check_result result;
    kd_cache *c;
    kd_writer *w;
    kd_status status;
    unsigned wrong = 0;
    if (ft_exists(file, "") && ft_exists(file, ".json")) { /* whoever looks first may be a reader */
        if (fx_open(&c, file, err) != KD_OK)
            return CORRUPT;
        kd_cache_close(c);
    } else if (was_sealed) {
        return kd_fail(err, KD_EFAIL, "the sealed cache is gone"), LOST;
    }
    status = kd_writer_open(&w, file, &r, NULL, 0, err);
    if (status == KD_OK) {
        for (unsigned n = 0; n < acknowledged; n++) {
            if (!ft_has(w, n))
                return kd_fail(err, KD_EFAIL, "view %u of %u acknowledged ones is gone", n, acknowledged), LOST;
        }
        kd_writer_close(w);
    } else if (status != KD_DONE) {
        return CORRUPT;
    }
    status = ft_write(file, -1, err);
    if (status != KD_OK && status != KD_DONE)
        return CORRUPT;
    if (!ft_same_bytes(file, reference, reference_size))
        return kd_fail(err, KD_EFAIL, "the completed cache has other bytes"), CORRUPT;
    if (fx_open(&c, file, err) != KD_OK || ft_check(c, 1, ft_ignore, NULL, &result, err) != KD_OK || ft_read_all(c, FT_IMAGES, &wrong, err) != KD_OK)
        return CORRUPT;
    kd_cache_close(c);
    kd_recipe_free(&r);
    return result.bad || wrong ? (kd_fail(err, KD_EFAIL, "%llu problems, %u wrong values", (unsigned long long)result.bad, wrong), CORRUPT) : GOOD;
}

/* In a child, so that a crash is a verdict too. quiet: bad verdicts are expected. */
static verdict judge_image(size_t upto, style s, int syncs_work)
{
    unsigned acknowledged = 0;
    int sealed = 0, status;
    pid_t child;
    for (size_t i = 0; i < upto; i++) {
        if (events[i].op == NOTE && events[i].note == SEALED)
            sealed = 1;
        else if (events[i].op == NOTE)
            acknowledged = events[i].note;
    }
    write_image(upto, s, syncs_work);
    child = fork();
    if (child == 0) {
        verdict v = judge(acknowledged, sealed, &fx_err);
        if (v != GOOD && syncs_work)
            print_error("a failure after step %zu of %zu (%s), %u views acknowledged: %s\n", upto, event_count, style_name[s], acknowledged, fx_err.msg);
        _exit((int)v);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    ft_empty_dir();
    return WIFEXITED(status) && WEXITSTATUS(status) <= CORRUPT ? (verdict)WEXITSTATUS(status) : CORRUPT;
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    kd_log_set_level(KD_LOG_ERROR);
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    watched = fx_dir;
    logging = 1;
    work();
    logging = 0;
    check_log(NULL);
    assert_int_equal(now.count, 2);
    fx_read_file(file, &reference, &reference_size);
    ft_empty_dir();
    return 0;
}

static int teardown(void **state)
{
    free_log();
    kd_free(reference);
    return fx_drop_dir(state);
}

/* ---- tests ---- */

static void power_failures_lose_nothing_that_was_acknowledged(void **state)
{
    unsigned images = ft_trials(200, 5000), count[3] = {0}, of_style[STYLES] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++) {
        style s = (style)(i % STYLES);
        of_style[s]++;
        count[judge_image(1 + ft_below(event_count), s, 1)]++;
    }
    print_message("%u power failures in a life of %zu logged steps: %u lost, %u corrupt\n", images, event_count, count[LOST], count[CORRUPT]);
    for (int s = 0; s < STYLES; s++)
        print_message("    %s: %u\n", style_name[s], of_style[s]);
    assert_int_equal(count[LOST] + count[CORRUPT], 0);
}

/* After each step of the folder and each sync, before and after: the places where a wrong order would show. */
static void power_failures_at_every_step_of_the_folder(void **state)
{
    unsigned images = 0, bad = 0;
    (void)state;
    for (size_t i = 0; i < event_count; i++) {
        if (!is_step_of_folder(&events[i]) && events[i].op != SYNC && events[i].op != SYNC_FOLDER)
            continue;
        for (size_t upto = i; upto <= i + 1; upto++) {
            for (int s = 0; s < (getenv("KD_LONG") ? (int)STYLES : 2); s++, images++)
                bad += judge_image(upto, (style)s, 1) != GOOD;
        }
    }
    print_message("%u power failures around every create, rename, unlink and sync: %u lost or corrupt\n", images, bad);
    assert_int_equal(bad, 0);
}

static void a_disk_that_ignores_syncs_is_noticed(void **state)
{
    unsigned images = ft_trials(60, 500), count[3] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++)
        count[judge_image(1 + ft_below(event_count), (style)(i % STYLES), 0)]++;
    print_message("control, the same with syncs ignored: of %u images %u lost, %u corrupt\n", images, count[LOST], count[CORRUPT]);
    assert_true(count[LOST] > 0 && count[CORRUPT] > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_failures_lose_nothing_that_was_acknowledged),
        cmocka_unit_test(power_failures_at_every_step_of_the_folder),
        cmocka_unit_test(a_disk_that_ignores_syncs_is_noticed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
