/* A cache that many processes use at once: readers of sealed shards while others are written in the same folder, writers that start together, and folders
 * that nothing can be created in. */
#include "tests/fault/fault_fixture.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>

#include "cache/shard_move.h"

enum { READERS = 16, SHARD_IMAGES = 20 };

static void sleep_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

/* ---- readers beside a writer ---- */

typedef struct tally { /* shared by all processes */
    atomic_ullong records, openings, wrong, failures;
    atomic_uint shards;
    atomic_int over;
    char said[1300]; /* the last failure */
} tally;
static tally *shared;

static void shard_path(char out[700], unsigned shard)
{
    snprintf(out, 700, "%s/shard-%04u.kdc", fx_dir, shard);
}

/* Every record of an image of the shard (image number = shard * SHARD_IMAGES + ..) against what was meant. */
static kd_status read_image(kd_cache *c, kd_reader *r, unsigned image, kd_err *err)
{
    const kd_recipe *recipe = kd_cache_recipe(c);
    static float x[FX_LARGEST];
    for (unsigned v = 0; v < FX_VIEWS; v++) {
        kd_hash128 id = fx_image_id(image);
        for (int i = 0; i < KD_FEATURES * recipe->layers; i++) {
            kd_feature f = (kd_feature)(i / recipe->layers);
            uint16_t layer = recipe->layer[i % recipe->layers];
            unsigned wrong = 0;
            if (!kd_recipe_has(recipe, f))
                continue;
            KD_TRY(kd_reader_feature(r, f, &id, v, layer, x, NULL, err));
            for (size_t k = 0; k < (size_t)kd_recipe_rows(recipe, f) * (size_t)recipe->width; k++)
                wrong += !(x[k] == fx_stored(recipe, image, v, f, layer, k));
            shared->wrong += wrong > 0;
            shared->records++;
        }
    }
    return KD_OK;
}

/* The whole folder, or the first shard alone. */
static kd_status read_for_a_while(int whole_folder, unsigned images, kd_err *err)
{
    char first[700];
    const char *path = whole_folder ? fx_dir : first;
    kd_reader *r = NULL;
    kd_cache *c;
    kd_status status;
    shard_path(first, 0);
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    shared->openings++;
    status = kd_reader_create(&r, c, err);
    for (unsigned i = 0; i < images && !shared->over && status == KD_OK; i++)
        status = read_image(c, r, (unsigned)ft_below(kd_cache_images(c)), err); /* shards are finished in order: images 0 .. n-1 are there */
    kd_reader_destroy(r);
    kd_cache_close(c);
    return status;
}

static void reader(unsigned n)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* where the test fails */
    ft_seed += n;
    kd_log_set_level(KD_LOG_ERROR); /* unfinished shards are left out with a warning */
    while (!shared->over) {
        kd_err err;
        if (read_for_a_while(n % 4 != 0, n % 2 ? 5 : 500, &err) != KD_OK) { /* some open the folder again and again, some stay */
            shared->failures++;
            snprintf(shared->said, sizeof shared->said, "%s", err.msg);
        }
    }
    _exit(0);
}

/* Every second one is written elsewhere and moved, as with --stage. */
static void write_shard(unsigned shard)
{
    kd_recipe r = fx_recipe_full();
    char path[700], final[700];
    kd_writer *w;
    shard_path(final, shard);
    snprintf(path, sizeof path, "%s", shard % 2 ? fx_path("stage/shard.kdc") : final);
    must(kd_writer_open(&w, path, &r, NULL, 0, &fx_err));
    for (unsigned n = 0; n < SHARD_IMAGES * FX_VIEWS; n++) {
        must(fx_add(w, &r, shard * SHARD_IMAGES + n / FX_VIEWS, n % FX_VIEWS, &fx_err));
        if (n % 8 == 7)
            must(kd_writer_commit(w, &fx_err));
    }
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
    if (shard % 2)
        must(kd_shard_move(path, final, &fx_err));
    shared->shards++;
}

static void readers_see_only_finished_shards_and_right_values(void **state)
{
    double seconds = ft_trials(2, 60), start;
    pid_t child[READERS];
    int status;
    (void)state;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    assert_int_equal(mkdir(fx_path("stage"), 0700), 0);
    write_shard(0);
    for (unsigned i = 0; i < READERS; i++) {
        child[i] = fork();
        assert_true(child[i] >= 0);
        if (child[i] == 0)
            reader(i);
    }
    start = ft_now();
    for (unsigned s = 1; s < 6 || ft_now() - start < seconds; s++) {
        write_shard(s);
        sleep_for(seconds / 200); /* so that a folder doesn't hold thousands of shards in the end */
    }
    shared->over = 1;
    for (int i = 0; i < READERS; i++) {
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(rmdir(fx_path("stage")), 0);
    print_message("%d readers for %.1f s beside a writer of %u shards, half of them moved there: %llu records read, %llu wrong; %llu times opened, %llu failures%s%s\n", (int)READERS, ft_now() - start, shared->shards,
                  shared->records, shared->wrong, shared->openings, shared->failures, shared->failures ? ": " : "", shared->said);
    assert_int_equal(shared->wrong + shared->failures, 0);
    assert_true(shared->records > 1000 && shared->openings > READERS && shared->shards > 3);
    munmap(shared, sizeof *shared);
}

/* ---- writers that start together ---- */

typedef struct arrival {
    int status; /* of kd_writer_open */
    double seconds;
    char said[1300];
} arrival;

/* Waits for the start, tries to open, reports, and holds what it got until it may go on. */
static void contender(const char *path, int start, int report, int go_on)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    arrival a = {0};
    char byte;
    double t;
    if (read(start, &byte, 1) < 0)
        _exit(9);
    t = ft_now();
    a.status = kd_writer_open(&w, path, &r, NULL, 0, &fx_err);
    a.seconds = ft_now() - t;
    snprintf(a.said, sizeof a.said, "%s", a.status < 0 ? fx_err.msg : "");
    if (write(report, &a, sizeof a) != sizeof a || read(go_on, &byte, 1) < 0)
        _exit(9);
    kd_writer_close(w);
    _exit(a.status == KD_OK ? kd_exit_code(ft_write(path, -1, &fx_err)) : 0);
}

static double two_writers(const char *path)
{
    int start[2], go_on[2], report[2][2], status, winner;
    arrival a[2];
    pid_t child[2];
    char partial[800], want[400], host[200] = "";
    uint8_t *before;
    size_t size;
    kd_writer *w;
    kd_recipe r = fx_recipe_full();
    assert_true(pipe(start) == 0 && pipe(go_on) == 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(report[i]), 0);
        child[i] = fork();
        if (child[i] == 0) {
            close(start[1]);
            close(go_on[1]);
            contender(path, start[0], report[i][1], go_on[0]);
        }
    }
    close(start[1]); /* both reads return */
    for (int i = 0; i < 2; i++)
        assert_int_equal(read(report[i][0], &a[i], sizeof a[i]), sizeof a[i]);
    winner = a[0].status == KD_OK ? 0 : 1;
    assert_int_equal(a[winner].status, KD_OK);
    assert_int_equal(a[!winner].status, KD_ELOCKED);
    assert_true(a[!winner].seconds < 1);
    gethostname(host, sizeof host - 1);
    snprintf(want, sizeof want, "pid %ld on %s", (long)child[winner], host);
    if (!strstr(a[!winner].said, want))
        print_error("\"%s\" doesn't say \"%s\"\n", a[!winner].said, want);
    assert_non_null(strstr(a[!winner].said, want));
    /* a third one changes nothing either */
    snprintf(partial, sizeof partial, "%s.partial", path);
    fx_read_file(partial, &before, &size);
    must_be(KD_ELOCKED, kd_writer_open(&w, path, &r, NULL, 0, &fx_err));
    assert_true(ft_same_bytes(partial, before, size));
    kd_free(before);
    kd_recipe_free(&r);
    close(go_on[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        close(report[i][0]);
        close(report[i][1]);
    }
    close(start[0]);
    close(go_on[0]);
    return a[!winner].seconds;
}

static void the_second_writer_is_refused_at_once(void **state)
{
    enum { ROUNDS = 50 };
    uint8_t *reference;
    size_t size;
    double slowest = 0;
    const char *path = fx_path("a.kdc");
    (void)state;
    must(ft_write(path, -1, &fx_err));
    fx_read_file(path, &reference, &size);
    for (int round = 0; round < ROUNDS; round++) {
        double seconds;
        ft_remove(path);
        seconds = two_writers(path);
        slowest = seconds > slowest ? seconds : slowest;
        assert_true(ft_same_bytes(path, reference, size));
        assert_false(ft_exists(path, ".partial") || ft_exists(path, ".partial.lock"));
    }
    print_message("two writers %d times at once: one writes, the other is refused with pid and host after %.1f ms at most; the cache is as if it had been alone\n", (int)ROUNDS, 1e3 * slowest);
    kd_free(reference);
}

/* A lock file that a killed writer has left names a dead process; whoever meets the next holder must not be told of that one. */
static void a_dead_writers_name_is_not_given(void **state)
{
    char lock[800];
    const char *path = fx_path("a.kdc");
    (void)state;
    snprintf(lock, sizeof lock, "%s.partial.lock", path);
    for (int round = 0; round < 20; round++) {
        ft_remove(path);
        fx_write_file(lock, "pid 1999999999 on another-machine\n", 34);
        (void)two_writers(path);
    }
}

/* ---- folders that nothing can be created in ---- */

static unsigned entries(const char *folder)
{
    DIR *d = opendir(folder);
    unsigned n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

/* In a child: reads all of folder/a.kdc, alone and as the folder's only shard, and meets it as a writer does. 0: all is well and nothing was created, also not for a while. */
static int use_without_writing(const char *folder)
{
    kd_recipe r = fx_recipe_full();
    unsigned before = entries(folder), wrong = 0;
    char path[700], probe[700];
    kd_cache *c;
    kd_writer *w;
    snprintf(path, sizeof path, "%s/a.kdc", folder);
    snprintf(probe, sizeof probe, "%s/probe", folder);
    if (before == 0 || open(probe, O_WRONLY | O_CREAT, 0600) >= 0)
        return 2; /* this place can be written to: the test would prove nothing */
    for (int i = 0; i < 2; i++) {
        if (fx_open(&c, i ? folder : path, &fx_err) != KD_OK || ft_read_all(c, FT_IMAGES, &wrong, &fx_err) != KD_OK)
            return 3;
        if (wrong || entries(folder) != before)
            return 4;
        kd_cache_close(c);
    }
    if (kd_writer_open(&w, path, &r, NULL, 0, &fx_err) != KD_DONE)
        return 5;
    kd_recipe_free(&r);
    return entries(folder) == before ? 0 : 6;
}

/* The same as a user whom permissions stop, and for root in a mount of its own. */
static int in_a_read_only_folder(const char *mount_point)
{
    (void)mount_point;
    if (geteuid() == 0 && (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0))
        return 7;
    return use_without_writing(fx_dir);
}

static int in_a_read_only_mount(const char *mount_point)
{
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount(fx_dir, mount_point, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, mount_point, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0)
        return 77;
    return use_without_writing(mount_point);
}

static int in_child(int (*fn)(const char *mount_point), const char *mount_point)
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int rc = fn(mount_point);
        if (rc != 0 && rc != 77)
            print_error("step %d: %s\n", rc, fx_err.msg);
        _exit(rc);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void sealed_shards_are_read_from_a_read_only_folder(void **state)
{
    (void)state;
    must(ft_write(fx_path("a.kdc"), -1, &fx_err));
    assert_int_equal(chmod(fx_dir, 0555), 0);
    int rc = in_child(in_a_read_only_folder, NULL);
    assert_int_equal(chmod(fx_dir, 0755), 0);
    assert_int_equal(rc, 0);
}

static void sealed_shards_are_read_from_a_read_only_mount(void **state)
{
    char mount_point[] = "/tmp/kd-test-mnt-XXXXXX";
    int rc;
    (void)state;
    must(ft_write(fx_path("a.kdc"), -1, &fx_err));
    assert_non_null(mkdtemp(mount_point));
    rc = in_child(in_a_read_only_mount, mount_point);
    rmdir(mount_point);
    if (rc == 77) {
        print_message("a read-only mount needs root and a mount namespace (unshare -m)\n");
        skip();
    }
    assert_int_equal(rc, 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {
        T(readers_see_only_finished_shards_and_right_values), T(the_second_writer_is_refused_at_once), T(a_dead_writers_name_is_not_given),
        T(sealed_shards_are_read_from_a_read_only_folder), T(sealed_shards_are_read_from_a_read_only_mount),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
