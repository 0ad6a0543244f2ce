/* Power failures in the life of a training run (power_loss.h), from the empty run directory to the exports: two epochs with validation, a kept state after each, a moving average, and a pause between.
 *
 * After each of them the same command is run again: its state must be whole and not older than the last that a finished command had saved, and its exports must have the bytes of the undisturbed run. A disk
 * that ignores every sync is the control: there the test must find damage. */
#include "tests/fault/power_loss.h"
#include "tests/unit/train_fixture.h"
#include "train/checkpoint.h"
#include "train/run.h"

enum { PICTURES = 8, PICTURE_VIEWS = 2 };

static char cache[600], pictures[600], out[600];
static kd_arena *arena;

/* What must come out the same: the last state, and the best, which was saved long before. (metrics.jsonl has speeds in it, and states count its bytes.) */
static const char *const ends[] = {"exported/dinov2_w64_d1.safetensors", "exported/dinov2_w64_d1-best.safetensors"};
enum { ENDS = sizeof ends / sizeof ends[0] };
static uint8_t *want[ENDS];
static size_t want_size[ENDS];

static kd_status train(const char *steps, kd_err *err)
{
    kd_train_config c = {0};
    int json = 0;
    char *argv[] = {"kd-train", "--cache", cache, "--images", pictures, "--student", "dinov2_w64_d1", "--student-size", "14x28", "--out", out, "--device", "ref", "--batch-size", "2", "--epochs", "2",
                    "--threads", "1", "--val-fraction", "0.25", "--log-every", "1", "--checkpoint-epochs", "1", "--ema", "0.9", "--steps", (char *)(uintptr_t)steps};
    KD_TRY(kd_options_parse(&kd_train_program, &c, (int)(sizeof argv / sizeof *argv), argv, &json, arena, err));
    return kd_train_run(&c, arena, err);
}

/* Steps of the state that the run would go on from; 0: there is none. */
static kd_status saved_step(long long *step, kd_err *err)
{
    char path[700];
    kd_checkpoint *c;
    *step = 0;
    snprintf(path, sizeof path, "%s/checkpoints/latest.kdt", out);
    if (!kd_io_exists(path))
        return KD_OK;
    KD_TRY(kd_checkpoint_open(&c, path, err));
    kd_status status = kd_json_get_int(kd_checkpoint_run(c), "step", path, step, err);
    kd_checkpoint_close(c);
    return status;
}

/* The folders stay, as their names are durable from the start. */
static void empty_out(void)
{
    static const char *const folder[] = {"", "checkpoints", "exported"};
    for (size_t i = 0; i < sizeof folder / sizeof folder[0]; i++) {
        char path[1000], at[700];
        snprintf(at, sizeof at, "%s/%s", out, folder[i]);
        DIR *d = opendir(at);
        for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
            snprintf(path, sizeof path, "%s/%s", at, e->d_name);
            unlink(path);
        }
        if (d)
            closedir(d);
    }
}

typedef enum verdict { GOOD, LOST, CORRUPT } verdict;

static verdict judge(long long least, kd_err *err)
{
    long long step;
    char path[700];
    if (saved_step(&step, err) != KD_OK)
        return CORRUPT;
    if (step < least)
        return kd_fail(err, KD_EFAIL, "step %lld was saved and the state is that of step %lld", least, step), LOST;
    if (train("0", err) != KD_OK)
        return CORRUPT;
    for (int i = 0; i < ENDS; i++) {
        snprintf(path, sizeof path, "%s/%s", out, ends[i]);
        if (!ft_same_bytes(path, want[i], want_size[i]))
            return kd_fail(err, KD_EFAIL, "%s has other bytes", ends[i]), CORRUPT;
    }
    return GOOD;
}

/* In a child, so that a crash is a verdict too. */
static verdict judge_image(size_t upto, style s, int syncs_work)
{
    long long least = 0;
    int status;
    for (size_t i = 0; i < upto; i++)
        least = events[i].op == NOTE ? (long long)events[i].note : least;
    write_image(upto, s, syncs_work);
    pid_t child = fork();
    if (child == 0) {
        verdict v = judge(least, &fx_err);
        if (v != GOOD && syncs_work)
            print_error("a failure after step %zu of %zu (%s), step %lld saved: %s\n", upto, event_count, style_name[s], least, fx_err.msg);
        _exit((int)v);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    empty_out();
    return WIFEXITED(status) && WEXITSTATUS(status) <= CORRUPT ? (verdict)WEXITSTATUS(status) : CORRUPT;
}

/* Pauses after each of these steps; a state is saved then at the latest. */
static void work(void)
{
    static const char *const pause[] = {"1", "4", "0"};
    for (size_t i = 0; i < sizeof pause / sizeof pause[0]; i++) {
        long long step;
        must(train(pause[i], &fx_err));
        must(saved_step(&step, &fx_err));
        append(NOTE)->note = (unsigned)step;
    }
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    kd_log_set_level(KD_LOG_ERROR);
    arena = kd_arena_create();
    snprintf(cache, sizeof cache, "%s/x.kdc", fx_dir);
    snprintf(pictures, sizeof pictures, "%s/pictures", fx_dir);
    snprintf(out, sizeof out, "%s/run", fx_dir);
    tf_pictures(pictures, PICTURES);
    kd_cache_close(tf_cache(cache, pictures, PICTURES, PICTURE_VIEWS, 1, NULL));
    watched = out;
    logging = 1;
    work();
    logging = 0;
    check_log("train.log");
    for (int i = 0; i < ENDS; i++)
        fx_read_file(in_watched(ends[i]), &want[i], &want_size[i]);
    empty_out();
    return 0;
}

static int teardown(void **state)
{
    static const char *const folder[] = {"run/checkpoints", "run/exported", "run"};
    char name[64];
    for (int i = 0; i < ENDS; i++)
        kd_free(want[i]);
    empty_out();
    for (int i = 0; i < PICTURES; i++) {
        snprintf(name, sizeof name, "pictures/%03d.jpg", i);
        unlink(fx_path(name));
    }
    for (size_t i = 0; i < sizeof folder / sizeof folder[0]; i++)
        rmdir(fx_path(folder[i]));
    rmdir(pictures);
    free_log();
    kd_arena_destroy(arena);
    return fx_drop_dir(state);
}

/* ---- tests ---- */

static void power_failures_leave_a_run_that_ends_in_the_same_bytes(void **state)
{
    unsigned images = ft_trials(12, 1000), count[3] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++)
        count[judge_image(1 + ft_below(event_count), (style)(i % STYLES), 1)]++;
    print_message("%u power failures in a run of %zu logged steps: %u states lost, %u corrupt\n", images, event_count, count[LOST], count[CORRUPT]);
    assert_int_equal(count[LOST] + count[CORRUPT], 0);
}

/* Where a wrong order would show: before and after a rename, and after the sync of the folder that follows it. In make test of the states that the run goes on from alone. */
static void power_failures_around_renames(void **state)
{
    unsigned images = 0, bad = 0;
    int every = getenv("KD_LONG") != NULL, styles = every ? (int)STYLES : 1;
    (void)state;
    for (size_t i = 0; i < event_count; i++) {
        if (events[i].op != RENAME || (!every && strcmp(events[i].to, "checkpoints/latest.kdt") != 0))
            continue;
        for (size_t upto = i; upto <= i + 2 && upto <= event_count; upto++)
            for (int s = 0; s < styles; s++, images++)
                bad += judge_image(upto, (style)s, 1) != GOOD;
    }
    print_message("%u power failures around renames: %u lost or corrupt\n", images, bad);
    assert_int_equal(bad, 0);
}

static void a_disk_that_ignores_syncs_is_noticed(void **state)
{
    unsigned images = ft_trials(8, 200), count[3] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++)
        count[judge_image(event_count / 2 + 1 + ft_below(event_count / 2), (style)(i % STYLES), 0)]++;
    print_message("control, the same with syncs ignored: of %u images %u lost, %u corrupt\n", images, count[LOST], count[CORRUPT]);
    assert_true(count[LOST] > 0 && count[CORRUPT] > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_failures_leave_a_run_that_ends_in_the_same_bytes),
        cmocka_unit_test(power_failures_around_renames),
        cmocka_unit_test(a_disk_that_ignores_syncs_is_noticed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
