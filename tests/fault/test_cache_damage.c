/* Damaged sealed caches: whatever is changed in the shard or its manifest, a reader gives the right values or says what is wrong; it never crashes and never gives a wrong value, and the check
 * finds the damage. Each trial opens the damaged cache in a child, reads every value that it gives, and checks it. (KD_LONG=1: as many trials as README.md reports.) */
#include "tests/fault/fault_fixture.h"

#include <fcntl.h>

enum { IMAGES = 30, PAGE = 4096, MOST_RECORDS = 16 };

/* Every element type and patch target, and every feature in two layers. */
static const struct { const char *dtype, *targets, *name; } kind[] = {
    {NULL, NULL, "f16, cls, patch, registers and mean of two layers"},
    {"f16", "full,pool:2,adjoint:3", "f16, patches full, pooled and adjoint"},
    {"bf16", "full,pool:2,adjoint:3", "bf16, patches full, pooled and adjoint"},
    {"i8", "full,pool:2,adjoint:3", "i8, patches full, pooled and adjoint"},
};
static int current; /* the kind of shard that is being damaged */

static kd_recipe recipe_of_kind(void)
{
    return kind[current].dtype ? fx_recipe_stored(kind[current].dtype, kind[current].targets) : fx_recipe_full();
}

/* The first kind gets as many as the tests say, the others a fifth. */
static unsigned trials_of(unsigned in_make_test, unsigned in_a_long_run)
{
    return ft_trials(in_make_test, in_a_long_run) / (current ? 5 : 1);
}

/* ---- the shard, and what it gives undamaged ---- */

typedef struct given {
    float *values;          /* of every record, in the order of read_all */
    kd_record_facts facts[IMAGES * FX_VIEWS * MOST_RECORDS];
    kd_view_entry view[IMAGES * FX_VIEWS];
    const float *mean[MOST_RECORDS]; /* of each feature of each layer; point into a cache that stays open */
    float std[MOST_RECORDS];
} given;

static uint8_t *original, *manifest;
static size_t size, manifest_size;
static char file[512], manifest_file[520];
static kd_cache *undamaged;
static given right;

static int same_view(const kd_view_entry *a, const kd_view_entry *b)
{
    uint8_t x[KD_PLAN_BYTES], y[KD_PLAN_BYTES];
    kd_plan_encode(&a->plan, x);
    kd_plan_encode(&b->plan, y);
    return memcmp(x, y, sizeof x) == 0 && memcmp(a->view_hash.b, b->view_hash.b, 16) == 0 && memcmp(a->image.b, b->image.b, 16) == 0 && a->view == b->view;
}

/* A pass over everything that a cache gives. store: kept there; else compared with what is right. */
typedef struct pass {
    kd_cache *cache;
    kd_reader *reader;
    given *store;
    size_t values, records, stats; /* where it stands */
    unsigned wrong;
    kd_status first; /* error; the pass goes on behind it */
    kd_err *err, later;
} pass;

static int came(pass *p, kd_status status)
{
    p->first = p->first ? p->first : status;
    return status == KD_OK;
}

static kd_err *err_of(pass *p)
{
    return p->first ? &p->later : p->err;
}

static void pass_record(pass *p, const kd_recipe *recipe, const kd_hash128 *id, uint32_t view, kd_feature f, uint16_t layer)
{
    static float x[FX_LARGEST];
    size_t n = (size_t)kd_recipe_rows(recipe, f) * (size_t)recipe->width;
    kd_record_facts facts;
    if (came(p, kd_reader_feature(p->reader, f, id, view, layer, x, &facts, err_of(p)))) {
        if (p->store) {
            memcpy(p->store->values + p->values, x, n * sizeof *x);
            p->store->facts[p->records] = facts;
        } else {
            const kd_record_facts *want = &right.facts[p->records];
            p->wrong += memcmp(right.values + p->values, x, n * sizeof *x) != 0 || !(facts.square == want->square) || memcmp(facts.view_hash.b, want->view_hash.b, 16) != 0;
        }
    }
    p->values += n;
    p->records++;
}

static void pass_stats(pass *p, const kd_recipe *recipe, kd_feature f, uint16_t layer)
{
    const float *mean;
    float std;
    size_t i = p->stats++;
    if (!came(p, kd_cache_mean(p->cache, f, layer, &mean, &std, err_of(p))))
        return;
    if (p->store) {
        p->store->mean[i] = mean;
        p->store->std[i] = std;
    } else {
        p->wrong += memcmp(mean, right.mean[i], (size_t)recipe->width * sizeof *mean) != 0 || memcmp(&std, &right.std[i], sizeof std) != 0;
    }
}

/* Views with their records, then statistics. Returns the first error; *wrong counts what was given and isn't right. */
static kd_status read_all(kd_cache *c, given *store, unsigned *wrong, kd_err *err)
{
    const kd_recipe *recipe = kd_cache_recipe(c);
    pass p = {.cache = c, .store = store, .err = err};
    KD_TRY(kd_reader_create(&p.reader, c, err));
    for (unsigned n = 0; n <= IMAGES * FX_VIEWS; n++) {
        kd_hash128 id = fx_image_id(n / FX_VIEWS);
        int is_view = n < IMAGES * FX_VIEWS;
        kd_view_entry v;
        if (is_view && came(&p, kd_reader_view(p.reader, &id, n % FX_VIEWS, &v, err_of(&p)))) {
            if (store)
                store->view[n] = v;
            else
                p.wrong += !same_view(&v, &right.view[n]);
        }
        for (int i = 0; i < KD_FEATURES * recipe->layers; i++) {
            kd_feature f = (kd_feature)(i / recipe->layers);
            uint16_t layer = recipe->layer[i % recipe->layers];
            if (!kd_recipe_has(recipe, f))
                continue;
            if (is_view)
                pass_record(&p, recipe, &id, n % FX_VIEWS, f, layer);
            else
                pass_stats(&p, recipe, f, layer);
        }
    }
    kd_reader_destroy(p.reader);
    *wrong = p.wrong;
    return p.first;
}

static size_t values_of(const kd_recipe *r)
{
    size_t n = 0;
    for (int f = 0; f < KD_FEATURES; f++)
        n += kd_recipe_has(r, (kd_feature)f) ? (size_t)kd_recipe_rows(r, (kd_feature)f) * (size_t)r->width * (size_t)r->layers : 0;
    return n * IMAGES * FX_VIEWS;
}

static int setup(void **state)
{
    char kept[530];
    unsigned wrong;
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    snprintf(manifest_file, sizeof manifest_file, "%s.json", file);
    fx_make_cache_of(recipe_of_kind(), file, 0, IMAGES);
    fx_read_file(file, &original, &size);
    fx_read_file(manifest_file, &manifest, &manifest_size);
    snprintf(kept, sizeof kept, "%s/kept.kdc", fx_dir);
    fx_write_file(kept, original, size);
    snprintf(kept, sizeof kept, "%s/kept.kdc.json", fx_dir);
    fx_write_file(kept, manifest, manifest_size);
    must(fx_open(&undamaged, fx_path("kept.kdc"), &fx_err));
    right.values = kd_malloc(values_of(kd_cache_recipe(undamaged)) * sizeof *right.values);
    assert_non_null(right.values);
    must(read_all(undamaged, &right, &wrong, &fx_err));
    must(fx_compare_all(undamaged, 0, IMAGES, &fx_err));
    print_message("%s:\n", kind[current].name);
    return chmod(file, 0644);
}

static int teardown(void **state)
{
    kd_cache_close(undamaged);
    kd_free(right.values);
    kd_free(original);
    kd_free(manifest);
    return fx_drop_dir(state);
}

static void put_into(const char *path, size_t at, const void *bytes, size_t n)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n);
    close(fd);
}

static void put(size_t at, const void *bytes, size_t n)
{
    put_into(file, at, bytes, n);
}

/* ---- one trial ---- */

/* From the first bad one on each is a failure of the test. */
typedef enum outcome { REFUSED, FOUND_IN_CONTENT, FOUND_BY_FILE_HASH, NO_EFFECT, SAME_JSON, WRONG_STATUS, WRONG_VALUE, UNNOTICED, CRASH, OUTCOMES } outcome;
static const char *const outcome_name[OUTCOMES] = {"refused", "found", "found by hash", "no effect", "the same JSON", "another status than damaged", "a wrong value", "not noticed by the check", "a crash"};
static unsigned count[OUTCOMES], by_structure; /* by_structure: of FOUND_IN_CONTENT, also without reading values */
static int in_manifest; /* the file that is damaged */

static void count_content(void *ctx, const char *sentence)
{
    *(unsigned *)ctx += strstr(sentence, "SHA-256") == NULL;
}

/* Opens, reads all, checks. An effective damage is one that changes what a reader is given: here always into an error, never into another value. */
static outcome open_read_check(int *in_structure)
{
    kd_check_result result;
    kd_cache *c;
    unsigned wrong = 0, in_content = 0;
    kd_status status = fx_open(&c, file, &fx_err);
    if (status != KD_OK)
        return status == KD_EDAMAGED ? REFUSED : WRONG_STATUS;
    status = read_all(c, NULL, &wrong, &fx_err);
    if (status != KD_OK && status != KD_EDAMAGED)
        return WRONG_STATUS;
    if (wrong || !json_equal(kd_cache_shard_manifest(c, 0), kd_cache_shard_manifest(undamaged, 0)))
        return WRONG_VALUE;
    if (ft_check(c, 0, ft_ignore, NULL, &result, &fx_err) != KD_OK)
        return UNNOTICED;
    *in_structure = result.bad > 0;
    if (ft_check(c, 1, count_content, &in_content, &result, &fx_err) != KD_OK || result.bad == 0)
        return in_manifest && status == KD_OK ? SAME_JSON : UNNOTICED; /* 1E-06 for 1e-06, say */
    kd_cache_close(c);
    return status == KD_OK ? NO_EFFECT : in_content ? FOUND_IN_CONTENT : FOUND_BY_FILE_HASH;
}

static void trial(const char *what, size_t at)
{
    outcome o;
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int in_structure = 0;
        o = open_read_check(&in_structure);
        if (o >= WRONG_STATUS)
            print_error("%s at byte %zu (page %zu): %s: %s\n", what, at, at / PAGE, outcome_name[o], fx_err.msg);
        _exit((int)o + (in_structure ? OUTCOMES : 0));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    o = WIFEXITED(status) && WEXITSTATUS(status) < 2 * OUTCOMES ? (outcome)(WEXITSTATUS(status) % OUTCOMES) : CRASH;
    by_structure += (unsigned)(o == FOUND_IN_CONTENT && WEXITSTATUS(status) >= OUTCOMES);
    if (o == CRASH)
        print_error("%s at byte %zu (page %zu): wait status %d\n", what, at, at / PAGE, status);
    count[o]++;
}

static void finish(const char *what, unsigned n)
{
    unsigned total = 0, bad = 0;
    for (int o = 0; o < OUTCOMES; o++) {
        total += count[o];
        bad += o >= WRONG_STATUS ? count[o] : 0;
    }
    print_message("%u %s: %u crashes, %u silently wrong; %u refused at opening, %u damaged values found by the check in the content (%u already in the structure) and %u by the file's hash alone, "
                  "%u in bytes that no value depends on (found by the hash), %u that leave the manifest's JSON as it was, %u not found\n", n, what, count[CRASH], count[WRONG_VALUE], count[REFUSED],
                  count[FOUND_IN_CONTENT], by_structure, count[FOUND_BY_FILE_HASH], count[NO_EFFECT], count[SAME_JSON], count[UNNOTICED]);
    memset(count, 0, sizeof count);
    by_structure = 0;
    assert_int_equal(total, n);
    assert_int_equal(bad, 0);
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
        size_t page = ft_below(size / PAGE);
        unsigned flags = original[page * PAGE + 10] | original[page * PAGE + 11] << 8;
        uint64_t number;
        memcpy(&number, original + page * PAGE, 8);
        if (number == page && (flags == 1 || flags == 2 || flags == 8))
            return page;
    }
}

/* ---- tests ---- */

static void bits_flipped_anywhere(void **state)
{
    unsigned n = trials_of(100, 2000);
    (void)state;
    for (unsigned i = 0; i < n; i++)
        flip(ft_below(8 * size));
    finish("bits flipped anywhere in a shard", n);
}

static void bits_flipped_in_the_manifest(void **state)
{
    unsigned n = trials_of(100, 2000);
    (void)state;
    in_manifest = 1;
    for (unsigned i = 0; i < n; i++) {
        size_t bit = ft_below(8 * manifest_size);
        uint8_t changed = manifest[bit / 8] ^ (uint8_t)(1u << bit % 8);
        put_into(manifest_file, bit / 8, &changed, 1);
        trial("a flipped bit of the manifest", bit / 8);
        put_into(manifest_file, bit / 8, &manifest[bit / 8], 1);
    }
    in_manifest = 0;
    finish("bits flipped in a manifest", n);
}

static void bits_flipped_in_pages_of_the_tree(void **state)
{
    unsigned n = trials_of(100, 2000);
    (void)state;
    for (unsigned i = 0; i < n; i++)
        flip((tree_page() * PAGE) * 8 + ft_below(8 * PAGE));
    finish("bits flipped in pages of the tree", n);
}

static void bits_flipped_in_meta_pages_and_page_heads(void **state)
{
    unsigned n = trials_of(100, 2000);
    (void)state;
    for (unsigned i = 0; i < n; i++)
        flip((i % 2 ? ft_below(2) : tree_page()) * PAGE * 8 + ft_below(i % 2 ? 8 * 152 : 8 * 64));
    finish("bits flipped in meta pages and page heads", n);
}

static void garbage_in_pages_of_the_tree(void **state)
{
    unsigned trials = trials_of(200, 5000);
    (void)state;
    for (unsigned i = 0; i < trials; i++) {
        size_t page = i % 4 == 0 ? ft_below(2) : tree_page(), n = 1 + ft_below(16), at = page * PAGE + ft_below(PAGE - n);
        uint8_t bytes[16];
        for (size_t k = 0; k < n; k++)
            bytes[k] = i % 3 == 0 ? 0xff : i % 3 == 1 ? (uint8_t)ft_below(4) : (uint8_t)ft_below(256);
        if (memcmp(original + at, bytes, n) == 0)
            bytes[0] ^= 1;
        put(at, bytes, n);
        trial("garbage", at);
        put(at, original + at, n);
    }
    finish("garbage writes into pages of the tree", trials);
}

static void pages_zeroed(void **state)
{
    static const uint8_t zero[PAGE];
    unsigned trials = trials_of(50, 500);
    (void)state;
    for (unsigned i = 0; i < trials; i++) {
        size_t at;
        do
            at = (i % 2 ? tree_page() : ft_below(size / PAGE)) * PAGE;
        while (memcmp(original + at, zero, PAGE) == 0);
        put(at, zero, PAGE);
        trial("a zeroed page", at);
        put(at, original + at, PAGE);
    }
    finish("pages zeroed", trials);
}

static void pages_swapped_or_copied(void **state)
{
    unsigned trials = trials_of(50, 500);
    (void)state;
    for (unsigned i = 0; i < trials; i++) {
        size_t a, b;
        do {
            a = (i % 2 ? tree_page() : ft_below(size / PAGE)) * PAGE;
            b = tree_page() * PAGE;
        } while (memcmp(original + a, original + b, PAGE) == 0);
        put(a, original + b, PAGE);
        if (i % 3)
            put(b, original + a, PAGE);
        trial("a page swapped or copied", a);
        put(a, original + a, PAGE);
        put(b, original + b, PAGE);
    }
    finish("pages swapped or copied", trials);
}

static void files_cut_or_grown(void **state)
{
    unsigned cuts = trials_of(50, 500), growths = cuts / 10;
    (void)state;
    for (unsigned i = 0; i < cuts; i++) {
        size_t n = i == 0 ? 0 : i % 2 ? ft_below(size) : PAGE * (size_t)ft_below(size / PAGE);
        assert_int_equal(truncate(file, (off_t)n), 0);
        trial("a cut", n);
        put(0, original, size);
    }
    for (unsigned i = 0; i < growths; i++) {
        assert_int_equal(truncate(file, (off_t)(size + (i % 2 ? PAGE : 1 + ft_below(PAGE)))), 0);
        trial("growth", size);
        assert_int_equal(truncate(file, (off_t)size), 0);
    }
    finish("files cut or grown", cuts + growths);
}

/* A file that shrinks while it is being read (a network mount that fails looks the same) is an error of that read, not a signal: exit code 12, with the file and the place in it. In a process of
 * its own, because cmocka puts its own handler of SIGBUS in front of ours before each test. */
static int cut_while_open(const char *path)
{
    size_t at, cut = strtoul(getenv("KD_CUT_AT"), NULL, 10), whole = strtoul(getenv("KD_WHOLE"), NULL, 10);
    const char *said;
    kd_cache *c;
    kd_status status;
    kd_reader *r;
    if (fx_open(&c, path, &fx_err) != KD_OK || truncate(path, (off_t)cut) != 0)
        return 1;
    status = kd_reader_create(&r, c, &fx_err);
    for (unsigned n = 0; n < IMAGES * FX_VIEWS && status == KD_OK; n++) {
        static float x[FX_LARGEST];
        kd_hash128 id = fx_image_id(n / FX_VIEWS);
        status = kd_reader_feature(r, KD_FEATURE_PATCH, &id, n % FX_VIEWS, 1, x, NULL, &fx_err);
    }
    said = strstr(fx_err.msg, "can't be read at byte ");
    if (kd_exit_code(status) == 12 && strncmp(fx_err.msg, path, strlen(path)) == 0 && said && sscanf(said, "can't be read at byte %zu", &at) == 1 && at >= cut && at < whole)
        return 12;
    printf("cut at %zu: %s: %s\n", cut, kd_status_name(status), fx_err.msg);
    return 2;
}

static void a_file_cut_while_open_is_an_error(void **state)
{
    unsigned trials = trials_of(10, 200);
    (void)state;
    for (unsigned i = 0; i < trials; i++) {
        char at[32], whole[32];
        int status;
        pid_t child;
        snprintf(at, sizeof at, "%zu", size * i / trials / 2 / PAGE * PAGE);
        snprintf(whole, sizeof whole, "%zu", size);
        child = fork();
        if (child == 0) {
            setenv("KD_CUT_AT", at, 1);
            setenv("KD_WHOLE", whole, 1);
            setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* a jump out of LMDB leaves what it had allocated */
            execl("/proc/self/exe", "test_cache_damage", file, (char *)NULL);
            _exit(9);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 12);
        put(0, original, size);
    }
    print_message("%u files cut while they are mapped: exit 12 with file and byte\n", trials);
}

/* A partial cache is validated before it is written to: damage there must not be sealed. */
static void damaged_partial_files_are_refused_or_sealed_right(void **state)
{
    kd_recipe r = recipe_of_kind();
    kd_writer *w;
    uint8_t *bytes;
    size_t n;
    char partial[512];
    unsigned trials = trials_of(100, 2000), refused = 0, sealed = 0;
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
    for (unsigned i = 0; i < trials; i++) {
        size_t bit = i % 3 == 0 ? ft_below(8 * n) : i % 3 == 1 ? ft_below(2 * PAGE * 8) : ft_below(n / PAGE) * PAGE * 8 + ft_below(8 * 64);
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
    print_message("%u bits flipped in a partial cache: %u refused, %u sealed with right values\n", trials, refused, sealed);
    kd_free(bytes);
    kd_recipe_free(&r);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return cut_while_open(argv[1]);
#define T(f) cmocka_unit_test(f)
    const struct CMUnitTest tests[] = {
        T(bits_flipped_anywhere), T(bits_flipped_in_the_manifest), T(bits_flipped_in_pages_of_the_tree), T(bits_flipped_in_meta_pages_and_page_heads), T(garbage_in_pages_of_the_tree),
        T(pages_zeroed), T(pages_swapped_or_copied), T(files_cut_or_grown), T(a_file_cut_while_open_is_an_error), T(damaged_partial_files_are_refused_or_sealed_right),
    };
    int failed = 0;
    for (current = 0; current < (int)(sizeof kind / sizeof kind[0]); current++)
        failed += cmocka_run_group_tests_name(kind[current].name, tests, setup, teardown);
    return failed;
}
