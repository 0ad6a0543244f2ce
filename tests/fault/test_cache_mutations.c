/* Crafted LMDB files: pages of a real cache with seeded damage of the kinds that an attacker would try. The page walk may refuse them; what it accepts LMDB must read to the end
 * without a crash, and find every key by search. (KD_MUTATIONS=N: so many.) */
#include "tests/cache_fixture.h"

#include "tests/fuzz/exercise_cache.h"

enum { MUTATIONS = 6000, PAGE = 4096, IMAGES = 40 };

static uint8_t *original, *mutant;
static size_t size;
static uint64_t seed = 20240601;

/* splitmix64: any fixed generator will do, so that a failure can be repeated. */
static uint64_t next(void)
{
    uint64_t z = (seed += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static size_t below(size_t n) { return (size_t)(next() % n); }

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    fx_read_file(fx_path("a.kdc"), &original, &size);
    mutant = kd_malloc(size);
    return mutant ? 0 : -1;
}

static int teardown(void **state)
{
    kd_free(original);
    kd_free(mutant);
    return fx_drop_dir(state);
}

static size_t tree_page(void)
{
    for (;;) {
        size_t page = below(size / PAGE);
        unsigned flags = original[page * PAGE + 10];
        uint64_t number;
        memcpy(&number, original + page * PAGE, 8);
        if (number == page && (flags == 1 || flags == 2 || flags == 8) && original[page * PAGE + 11] == 0)
            return page;
    }
}

static void damage_once(void)
{
    static const uint64_t number[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 47, 48, 511, 512, 4079, 4080, 4095, 4096, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0xffffffff, UINT64_MAX};
    uint8_t *page = mutant + tree_page() * PAGE;
    uint64_t v = next() % 3 == 0 ? below(size / PAGE + 2) : number[below(sizeof number / sizeof number[0])];
    size_t nodes = (size_t)(page[12] | page[13] << 8), at;
    nodes = nodes > 16 && nodes <= PAGE ? (nodes - 16) / 2 : 1;
    switch (below(6)) {
    case 0: memcpy(page + 8 + 2 * below(4), &v, 2); break;                    /* page head */
    case 1: memcpy(page + 16 + 2 * below(nodes), &v, 2); break;               /* node offset */
    case 2:                                                                     /* node head or what follows */
        at = (size_t)(page[16] | page[17] << 8) % (PAGE - 64);
        memcpy(page + at + 2 * below(16), &v, 1u << below(4));
        break;
    case 3: memcpy(mutant + below(2) * PAGE + 16 + 4 * below(34), &v, 8); break; /* meta page */
    case 4: memcpy(page, mutant + tree_page() * PAGE, PAGE); break;            /* another page in its place */
    default: page[below(PAGE)] = (uint8_t)next(); break;
    }
}

static void accepted_pages_can_be_read(void **state)
{
    const char *text = getenv("KD_MUTATIONS");
    unsigned n = text ? (unsigned)strtoul(text, NULL, 10) : MUTATIONS, accepted = 0;
    (void)state;
    assert_int_equal(exercise_pages(original, size), 1);
    for (unsigned i = 0; i < n; i++) {
        memcpy(mutant, original, size);
        for (size_t k = 1 + below(3); k > 0; k--)
            damage_once();
        accepted += (unsigned)exercise_pages(mutant, size);
    }
    print_message("%u crafted files: 0 crashes, %u accepted and read to the end by LMDB\n", n, accepted);
    assert_true(accepted < n);
}

static void values_with_valid_checksums_are_not_trusted(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 20000; i++) {
        size_t at, n;
        memcpy(mutant, original, size < 8192 ? size : 8192);
        at = below(size - 4096);
        n = 1 + below(300);
        memcpy(mutant, original + at, n);
        if (i % 2) { /* real records are found by their magic */
            const uint8_t *r = original + at;
            while (r < original + size - 400 && memcmp(r, "KDFR", 4) != 0)
                r++;
            memcpy(mutant, r, n = 130 + below(270));
        }
        for (size_t k = below(4); k > 0; k--)
            mutant[below(n)] ^= (uint8_t)(1u << below(8));
        exercise_values(mutant, n);
    }
}

/* Inputs that the fuzzer's corpus keeps; from the root of the repository. */
static void the_corpus_is_replayed(void **state)
{
    static const char folder[] = "tests/fuzz/corpus/cache";
    DIR *d = opendir(folder);
    struct dirent *e;
    unsigned n = 0, accepted = 0;
    (void)state;
    assert_non_null(d);
    while ((e = readdir(d)) != NULL) {
        char path[500];
        uint8_t *bytes;
        size_t bytes_size;
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        fx_read_file(path, &bytes, &bytes_size);
        accepted += (unsigned)exercise_pages(bytes, bytes_size);
        exercise_values(bytes, bytes_size);
        if (strcmp(e->d_name, "recipe") == 0) { /* a seed must be worth its place: this one is read to the end */
            json_t *j;
            kd_recipe r;
            must(kd_json_parse((const char *)bytes, bytes_size, path, &j, &fx_err));
            must(kd_recipe_from_json(&r, j, path, &fx_err));
            kd_recipe_free(&r);
        }
        kd_free(bytes);
        n++;
    }
    closedir(d);
    assert_true(n >= 6);
    assert_int_equal(accepted, 1); /* one_image: else a change of the format has made it a seed that leads nowhere */
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(accepted_pages_can_be_read), T(values_with_valid_checksums_are_not_trusted), cmocka_unit_test(the_corpus_is_replayed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
