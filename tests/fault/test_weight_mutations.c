/* Weight files with seeded damage: bits flipped, pieces cut out, moved, doubled, numbers replaced. Whatever the bytes are, opening, reading
 * and detecting must end with success or one sentence, without a crash, a hang or a leak. (KD_MUTATIONS=N: N per kind, KD_SEED=S.) */
#include "tests/weight_files.h"

#include "tests/fuzz/exercise_weights.h"

#include <dirent.h>

enum { MUTATIONS = 4000, SECONDS = 200 };

enum { MAX_SEEDS = 60 };
static wf_bytes seeds[MAX_SEEDS], tails[MAX_SEEDS]; /* the part that is damaged; what follows it undamaged (the data behind a header) */
static int seed_count, current;
static wf_bytes mutant, wrapped;
static wf_zip zip;

/* splitmix64: any fixed generator will do, so that a failure can be repeated from its seed. */
static uint64_t next(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t n) { return n > 0 ? (size_t)(next(state) % n) : 0; }

static uint64_t setting(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : fallback;
}

/* -- damage ------------------------------------------------------------------------------------------------------------------ */

static void cut(wf_bytes *b, size_t at, size_t n)
{
    memmove(b->data + at, b->data + at + n, b->size - at - n);
    b->size -= n;
}

static void insert(wf_bytes *b, size_t at, const uint8_t *p, size_t n)
{
    if (n > WF_CAPACITY - b->size)
        return;
    memmove(b->data + at + n, b->data + at, b->size - at);
    memcpy(b->data + at, p, n);
    b->size += n;
}

static void overwrite_number(wf_bytes *b, uint64_t *state)
{
    static const uint64_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, UINT64_MAX,
                                       (uint64_t)1 << 40, (uint64_t)1 << 62};
    uint64_t v = numbers[below(state, sizeof numbers / sizeof numbers[0])];
    size_t n = (size_t)1 << below(state, 4), at = below(state, b->size);
    for (size_t i = 0; i < n && at + i < b->size; i++)
        b->data[at + i] = (uint8_t)(v >> (8 * i));
}

static void damage_once(wf_bytes *b, uint64_t *state)
{
    size_t at = below(state, b->size), n = 1 + below(state, b->size - at < 64 ? b->size - at : 64);
    uint8_t piece[64];
    switch (below(state, 8)) {
    case 0: case 1: b->data[at] ^= (uint8_t)(1 << below(state, 8)); break;
    case 2: b->data[at] = (uint8_t)next(state); break;
    case 3: overwrite_number(b, state); break;
    case 4: cut(b, at, n); break;
    case 5: b->size = at; break;
    case 6: /* double a piece */
        memcpy(piece, b->data + at, n);
        insert(b, below(state, b->size), piece, n);
        break;
    default: { /* splice in a piece of another file */
        const wf_bytes *other = &seeds[below(state, (size_t)seed_count)];
        size_t from = below(state, other->size), length = below(state, other->size - from < 256 ? other->size - from : 256);
        insert(b, at, other->data + from, length);
        break;
    }
    }
}

static void damage(wf_bytes *b, uint64_t *state)
{
    size_t times = 1 + below(state, 4);
    while (times-- > 0 && b->size > 0)
        damage_once(b, state);
}

/* -- seeds ------------------------------------------------------------------------------------------------------------------- */

static int has_ending(const char *name, const char *ending)
{
    size_t n = strlen(name), k = strlen(ending);
    return name[0] != '.' && n > k && strcmp(name + n - k, ending) == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void load_folder(const char *folder, const char *ending)
{
    struct dirent **names;
    char path[600];
    int n = scandir(folder, &names, NULL, by_name); /* sorted: the same seed gives the same damage everywhere */
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        if (has_ending(names[i]->d_name, ending) && seed_count < MAX_SEEDS) {
            snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
            wf_load(path, &seeds[seed_count++]);
        }
        free(names[i]);
    }
    free(names);
}

/* The pickle of a zip .pth: the first entry, stored, so its bytes lie in the file. */
static void keep_only_pickle(wf_bytes *b)
{
    const uint8_t *start = NULL, *limit = b->data + b->size;
    for (const uint8_t *p = memmem(b->data, b->size, "data.pkl", 8); p != NULL && p + 1 < limit && start == NULL; p++)
        if (p[0] == 0x80 && p[1] >= 2 && p[1] <= 5)
            start = p;
    assert_non_null(start);
    /* torch writes a data descriptor after each entry; kd-export's next entry follows at once */
    const uint8_t *end = memmem(start, (size_t)(limit - start), "PK\x07\x08", 4), *next = memmem(start, (size_t)(limit - start), "PK\x03\x04", 4);
    assert_non_null(next);
    if (end == NULL || next < end)
        end = next;
    size_t n = (size_t)(end - start);
    memmove(b->data, start, n);
    b->size = n;
}

/* -- tests ------------------------------------------------------------------------------------------------------------------- */

/* wrap: turns the damaged part into a whole file again (lengths and checksums right), so that damage reaches the inner reader. */
static void run_with(const char *kind, uint64_t salt, void (*wrap)(void), int (*exercise)(const uint8_t *, size_t))
{
    uint64_t count = setting("KD_MUTATIONS", MUTATIONS), seed = setting("KD_SEED", 1), accepted = 0;
    assert_true(seed_count > 2);
    alarm(SECONDS); /* a hang ends the process */
    for (uint64_t i = 0; i < count; i++) {
        uint64_t state = seed * 1000003 + salt * 10000019 + i;
        current = (int)below(&state, (size_t)seed_count);
        const wf_bytes *from = &seeds[current];
        mutant.size = 0;
        wf_add(&mutant, from->data, from->size);
        damage(&mutant, &state);
        wrap();
        accepted += (uint64_t)exercise(wrapped.data, wrapped.size);
    }
    alarm(0);
    print_message("%s: %llu mutations of %d files, seed %llu: %llu accepted, the others refused\n", kind, (unsigned long long)count, seed_count,
                  (unsigned long long)seed, (unsigned long long)accepted);
    assert_true(accepted < count); /* otherwise nothing was damaged */
}

static void run(const char *kind, uint64_t salt, void (*wrap)(void)) { run_with(kind, salt, wrap, exercise_weights); }

static void wrap_as_it_is(void)
{
    wrapped.size = 0;
    wf_add(&wrapped, mutant.data, mutant.size);
}

static void wrap_header(void)
{
    wrapped.size = 0;
    wf_number(&wrapped, mutant.size, 8);
    wf_add(&wrapped, mutant.data, mutant.size);
    wf_add(&wrapped, tails[current].data, tails[current].size);
}

static void wrap_pickle(void)
{
    static const uint8_t zeros[512];
    char name[32];
    zip.out.size = zip.directory.size = 0;
    zip.count = 0;
    wf_zip_add(&zip, "archive/data.pkl", mutant.data, mutant.size);
    for (int i = 0; i < 40; i++) { /* enough storages for every fixture */
        snprintf(name, sizeof name, "archive/data/%d", i);
        wf_zip_add(&zip, name, zeros, sizeof zeros);
    }
    wf_zip_end(&zip);
    wrapped.size = 0;
    wf_add(&wrapped, zip.out.data, zip.out.size);
}

static void damaged_safetensors_files(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/golden/weights", ".safetensors");
    run("safetensors files", 1, wrap_as_it_is);
}

static void damaged_safetensors_headers(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/golden/weights", ".safetensors");
    for (int i = 0; i < seed_count; i++) {
        size_t n = (size_t)seeds[i].data[0] | (size_t)seeds[i].data[1] << 8;
        tails[i].size = 0;
        wf_add(&tails[i], seeds[i].data + 8 + n, seeds[i].size - 8 - n);
        cut(&seeds[i], 0, 8);
        seeds[i].size = n;
    }
    run("safetensors headers", 2, wrap_header);
}

static void damaged_pth_files(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/golden/weights", ".pth");
    load_folder("tests/golden/weights", ".pt");
    run(".pth files", 3, wrap_as_it_is);
}

static void damaged_legacy_files(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/golden/weights", ".pth");
    load_folder("tests/golden/weights", ".pt");
    int kept = 0;
    for (int i = 0; i < seed_count; i++)
        if (memcmp(seeds[i].data, "PK", 2) != 0)
            seeds[kept++] = seeds[i];
    seed_count = kept;
    run("legacy .pth files", 5, wrap_as_it_is);
}

static void damaged_indexes(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/fuzz/corpus/index", "");
    run_with("indexes of shards", 6, wrap_as_it_is, exercise_index);
}

static void damaged_pickles(void **state)
{
    (void)state;
    seed_count = 0;
    load_folder("tests/golden/weights", ".pth");
    load_folder("tests/golden/weights", ".ckpt");
    load_folder("tests/golden/weights", ".pt");
    for (int i = 0; i < seed_count; i++)
        if (memcmp(seeds[i].data, "PK", 2) == 0)
            keep_only_pickle(&seeds[i]);
    run("pickles", 4, wrap_pickle);
}

/* Inputs that libFuzzer found worth keeping (tests/fuzz/README.md), as files, as indexes and as pickles. */
static void fuzz_corpora(void **state)
{
    (void)state;
    static const char *const folders[] = {"tests/fuzz/corpus/safetensors", "tests/fuzz/corpus/pth", "tests/fuzz/corpus/legacy", "tests/fuzz/corpus/index"};
    int replayed = 0;
    alarm(SECONDS);
    for (int f = 0; f < 4; f++) {
        struct dirent **names;
        char path[600];
        int n = scandir(folders[f], &names, NULL, by_name);
        assert_true(n > 2);
        for (int i = 0; i < n; i++) {
            snprintf(path, sizeof path, "%s/%s", folders[f], names[i]->d_name);
            if (names[i]->d_name[0] != '.') {
                wf_load(path, &mutant);
                exercise_index(mutant.data, mutant.size); /* any other file as well */
                exercise_legacy(mutant.data, mutant.size);
                wrap_pickle();
                exercise_weights(wrapped.data, wrapped.size);
                replayed++;
            }
            free(names[i]);
        }
        free(names);
    }
    alarm(0);
    print_message("%d corpus files replayed\n", replayed);
    assert_true(replayed > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_safetensors_files),
        cmocka_unit_test(damaged_safetensors_headers),
        cmocka_unit_test(damaged_pth_files),
        cmocka_unit_test(damaged_legacy_files),
        cmocka_unit_test(damaged_indexes),
        cmocka_unit_test(damaged_pickles),
        cmocka_unit_test(fuzz_corpora),
    };
    return cmocka_run_group_tests_name("weight_mutations", tests, NULL, NULL);
}
