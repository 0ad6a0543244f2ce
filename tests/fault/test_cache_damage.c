/* Damaged sealed caches: whatever is changed in the file, a reader gives the right values or says what is wrong; it never crashes and never gives a wrong value. */
#include "tests/cache_fixture.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "cache/check.h"

enum { IMAGES = 50, PAGE = 4096 };

static uint8_t *original;
static size_t size;
static char file[512];
static kd_rng rng;
static unsigned errors, harmless, unnoticed;

static void ignore(void *ctx, const char *sentence)
{
    (void)ctx;
    (void)sentence;
}

static uint32_t below(size_t n)
{
    static uint32_t segment;
    if (rng.ctr[3] >= 60000) /* a stream ends after 65,536 blocks */
        rng = kd_rng_make(20240601, 1, ++segment, KD_RNG_TEST);
    return kd_rng_below(&rng, (uint32_t)n);
}

static int open_for_writing(void)
{
    int fd = open(file, O_WRONLY);
    assert_true(fd >= 0);
    return fd;
}

static void put(size_t at, const void *bytes, size_t n)
{
    int fd = open_for_writing();
    assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n);
    close(fd);
}

/* Opens and reads everything. Any error is fine as long as it says "damaged"; values are compared by fx_compare_all. */
static void trial(const char *what, size_t at)
{
    kd_cache *c = NULL;
    kd_check_result result;
    kd_status status = fx_open(&c, file, &fx_err);
    if (status == KD_OK) {
        status = fx_compare_all(c, 0, IMAGES, &fx_err);
        if (status == KD_OK) {
            harmless++;
            must(kd_cache_check(c, &(kd_check_options){.read_data = 1, .part = 1, .parts = 1, .threads = 1}, 0, ignore, NULL, &result, &fx_err));
            unnoticed += result.bad == 0;
            if (result.bad == 0)
                print_error("%s at byte %zu (page %zu) isn't noticed by the check\n", what, at, at / PAGE);
        }
        kd_cache_close(c);
    }
    if (status != KD_OK) {
        errors++;
        if (status != KD_EDAMAGED)
            print_error("%s at byte %zu gave %s: %s\n", what, at, kd_status_name(status), fx_err.msg);
        assert_int_equal(status, KD_EDAMAGED);
    }
}

static void finish(const char *what, unsigned n)
{
    print_message("%u %s: 0 crashes, 0 wrong values, %u refused, %u without effect on what is read (all found by the check)\n", n, what, errors, harmless);
    assert_int_equal(errors + harmless, n);
    assert_int_equal(unnoticed, 0);
    errors = harmless = 0;
}

static void flip(size_t bit)
{
    uint8_t changed = original[bit / 8] ^ (uint8_t)(1u << bit % 8);
    put(bit / 8, &changed, 1);
    trial("a flipped bit", bit / 8);
    put(bit / 8, &original[bit / 8], 1);
}

/* Pages with LMDB's structure: meta, branch and leaf pages. Continuation pages of large values have arbitrary bytes there; a few more targets do no harm. */
static size_t tree_page(void)
{
    for (;;) {
        size_t page = below(size / PAGE);
        unsigned flags = original[page * PAGE + 10] | original[page * PAGE + 11] << 8;
        uint64_t number;
        memcpy(&number, original + page * PAGE, 8);
        if (number == page && (flags == 1 || flags == 2 || flags == 8))
            return page;
    }
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    rng = kd_rng_make(20240601, 1, 0, KD_RNG_TEST);
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    fx_make_cache_of(fx_recipe_full(), file, 0, IMAGES);
    fx_read_file(file, &original, &size);
    return chmod(file, 0644);
}

static int teardown(void **state)
{
    kd_free(original);
    return fx_drop_dir(state);
}

static void bits_flipped_anywhere(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 300; i++)
        flip(below(8 * size));
    finish("bits flipped anywhere", 300);
}

static void bits_flipped_in_pages_of_the_tree(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 500; i++)
        flip((tree_page() * PAGE) * 8 + below(8 * PAGE));
    finish("bits flipped in pages of the tree", 500);
}

static void bits_flipped_in_meta_pages_and_page_heads(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 400; i++)
        flip((i % 2 ? below(2) : tree_page()) * PAGE * 8 + below(i % 2 ? 8 * 152 : 8 * 64));
    finish("bits flipped in meta pages and page heads", 400);
}

static void garbage_in_pages_of_the_tree(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 600; i++) {
        size_t page = i % 4 == 0 ? below(2) : tree_page(), n = 1 + below(16), at = page * PAGE + below(PAGE - n);
        uint8_t bytes[16];
        for (size_t k = 0; k < n; k++)
            bytes[k] = i % 3 == 0 ? 0xff : i % 3 == 1 ? (uint8_t)below(4) : (uint8_t)below(256);
        if (memcmp(original + at, bytes, n) == 0)
            bytes[0] ^= 1;
        put(at, bytes, n);
        trial("garbage", at);
        put(at, original + at, n);
    }
    finish("garbage writes into pages of the tree", 600);
}

static void pages_zeroed_swapped_or_copied(void **state)
{
    static const uint8_t zero[PAGE];
    unsigned n = 0;
    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        size_t a = (i % 2 ? tree_page() : below(size / PAGE)) * PAGE, b = tree_page() * PAGE;
        if (i % 3 == 0) {
            if (memcmp(original + a, zero, PAGE) == 0)
                continue;
            put(a, zero, PAGE);
        } else {
            if (memcmp(original + a, original + b, PAGE) == 0)
                continue;
            put(a, original + b, PAGE);
            if (i % 3 == 1)
                put(b, original + a, PAGE);
        }
        n++;
        trial("a page zeroed, swapped or copied", a);
        put(a, original + a, PAGE);
        put(b, original + b, PAGE);
    }
    finish("pages zeroed, swapped or copied", n);
}

static void files_cut_or_grown(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        size_t n = i == 0 ? 0 : i % 2 ? below(size) : PAGE * (size_t)below(size / PAGE);
        assert_int_equal(truncate(file, (off_t)n), 0);
        trial("a cut", n);
        put(0, original, size);
    }
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(truncate(file, (off_t)(size + (i % 2 ? PAGE : 1 + below(PAGE)))), 0);
        trial("growth", size);
        assert_int_equal(truncate(file, (off_t)size), 0);
    }
    finish("files cut or grown", 110);
}

/* A file that shrinks while it is being read (a network mount that fails looks the same) is an error of that read, not a signal. In a process of its own, because
 * cmocka puts its own handler of SIGBUS in front of ours before each test. */
static int cut_while_open(const char *path)
{
    kd_cache *c;
    kd_status status;
    if (fx_open(&c, path, &fx_err) != KD_OK || truncate(path, (off_t)(strtoul(getenv("KD_CUT_AT"), NULL, 10))) != 0)
        return 1;
    status = fx_compare_all(c, 0, IMAGES, &fx_err);
    kd_cache_close(c);
    printf("%s\n", fx_err.msg);
    return status == KD_EDAMAGED && strstr(fx_err.msg, "can't be read at byte") ? 0 : 2;
}

static void a_file_cut_while_open_is_an_error(void **state)
{
    (void)state;
    for (size_t part = 0; part < 8; part++) {
        char at[32];
        int status;
        pid_t child;
        snprintf(at, sizeof at, "%zu", size * part / 8 / PAGE * PAGE);
        child = fork();
        if (child == 0) {
            setenv("KD_CUT_AT", at, 1);
            setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* a jump out of LMDB leaves what it had allocated */
            execl("/proc/self/exe", "test_cache_damage", file, (char *)NULL);
            _exit(9);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        put(0, original, size);
    }
}

/* A partial cache is validated before it is written to: damage there must not be sealed. */
static void damaged_partial_files_are_refused_or_sealed_right(void **state)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    uint8_t *bytes;
    size_t n;
    char partial[512];
    unsigned refused = 0, sealed = 0;
    (void)state;
    snprintf(partial, sizeof partial, "%s/b.kdc.partial", fx_dir);
    must(kd_writer_open(&w, fx_path("b.kdc"), &r, NULL, 0, &fx_err));
    for (unsigned i = 0; i < 20; i++) {
        must(fx_add(w, &r, i, 0, &fx_err));
        if (i % 7 == 0)
            must(kd_writer_commit(w, &fx_err));
    }
    must(kd_writer_commit(w, &fx_err));
    kd_writer_close(w);
    fx_read_file(partial, &bytes, &n);
    for (unsigned i = 0; i < 300; i++) {
        size_t bit = i % 3 == 0 ? below(8 * n) : i % 3 == 1 ? below(2 * PAGE * 8) : below(n / PAGE) * PAGE * 8 + below(8 * 64);
        kd_status status;
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        fx_write_file(partial, bytes, n);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        status = kd_writer_open(&w, fx_path("b.kdc"), &r, NULL, 0, &fx_err);
        if (status == KD_OK) {
            status = fx_add(w, &r, 20, 0, &fx_err);
            if (status == KD_OK)
                status = kd_writer_seal(w, &fx_err);
            kd_writer_close(w);
        }
        if (status == KD_OK) {
            kd_cache *c;
            kd_reader *reader;
            must(fx_open(&c, fx_path("b.kdc"), &fx_err));
            must(kd_reader_create(&reader, c, &fx_err));
            for (unsigned k = 0; k < 21; k++) { /* an older meta page may have won: fewer views, but right ones */
                kd_view_entry v = fx_view(k, 0);
                if (kd_cache_find_image(c, &v.image))
                    must(fx_compare_records(reader, &r, k, &v, &fx_err));
            }
            kd_reader_destroy(reader);
            kd_cache_close(c);
            sealed++;
        } else {
            if (status != KD_EDAMAGED)
                print_error("bit %zu: %s: %s\n", bit, kd_status_name(status), fx_err.msg);
            assert_int_equal(status, KD_EDAMAGED);
            refused++;
        }
        unlink(fx_path("b.kdc"));
        unlink(fx_path("b.kdc.json"));
        assert_false(kd_io_exists(fx_path("b.kdc.sealing")));
    }
    print_message("300 bits flipped in a partial cache: %u refused, %u sealed with right values\n", refused, sealed);
    kd_free(bytes);
    kd_recipe_free(&r);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return cut_while_open(argv[1]);
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(bits_flipped_anywhere), T(bits_flipped_in_pages_of_the_tree), T(bits_flipped_in_meta_pages_and_page_heads), T(garbage_in_pages_of_the_tree),
        T(pages_zeroed_swapped_or_copied), T(files_cut_or_grown), T(a_file_cut_while_open_is_an_error), T(damaged_partial_files_are_refused_or_sealed_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
