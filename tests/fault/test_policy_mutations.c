/* Policy files with seeded damage, of bytes and of words: whatever stands there, reading ends with a policy whose views can be drawn, stored and made, or with one
 * sentence that names the file. (KD_MUTATIONS=N, KD_SEED=S.) */
#include "tests/unit/unit.h"

#include <dirent.h>

#include "common/base/io.h"
#include "tests/fuzz/exercise_policy.h"

enum { MUTATIONS = 12000, MAX_SEEDS = 64, CAPACITY = 8192, SECONDS = 200 };

typedef struct text {
    uint8_t data[CAPACITY];
    size_t size;
} text;

static text seeds[MAX_SEEDS];
static int seed_count;

/* splitmix64: any fixed generator will do, so that a failure can be repeated from its seed. */
static uint64_t next(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t n) { return n > 0 ? (size_t)(next(state) % n) : 0; }

static uint64_t setting(const char *name, uint64_t fallback) {
    const char *value = getenv(name);
    return value && *value ? strtoull(value, NULL, 0) : fallback;
}

static void splice(text *t, size_t at, size_t cut, const void *bytes, size_t n) {
    if (t->size - cut + n > CAPACITY)
        return;
    memmove(t->data + at + n, t->data + at + cut, t->size - at - cut);
    memcpy(t->data + at, bytes, n);
    t->size = t->size - cut + n;
}

static int in_word(uint8_t c) { return c == '.' || c == '-' || c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* Another word in the place of one: what a person might write, and what a program might trip over. */
static void damage_word(text *t, uint64_t *state) {
    static const char *const words[] = {"0", "1", "-1", "0.5", "1e-300", "1e300", "4294967296", "-0.0", "9", "23", "256", "0.001", "1000", "99", "true", "~", "''", "[]", "[1, 2]", "[0.5, 0.5]", "{}",
        "{p: 0.5}", "size", "scale", "ratio", "interpolation", "bicubic", "box", "p", "sigma", "kernel_size", "threshold", "brightness", "hue", "name", "transforms", "RandomResizedCrop", "Resize",
        "CenterCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "ColorJitter", "RandomGrayscale", "GaussianBlur", "RandomSolarize", "Mixup", "x\xc3\xa9", "&a", "*a", "!!int"};
    size_t at = below(state, t->size), end;
    const char *word = words[below(state, sizeof words / sizeof *words)];
    while (at > 0 && !in_word(t->data[at]))
        at--;
    while (at > 0 && in_word(t->data[at - 1]))
        at--;
    for (end = at; end < t->size && in_word(t->data[end]);)
        end++;
    splice(t, at, end - at, word, strlen(word));
}

static void damage_bytes(text *t, uint64_t *state) {
    size_t at = below(state, t->size), n = 1 + below(state, t->size - at < 40 ? t->size - at : 40);
    const text *other = &seeds[below(state, (size_t)seed_count)];
    size_t from = below(state, other->size), length = below(state, other->size - from < 100 ? other->size - from : 100);
    switch (below(state, 5)) {
    case 0: t->data[at] ^= (uint8_t)(1 << below(state, 8)); break;
    case 1: t->data[at] = (uint8_t)next(state); break;
    case 2: splice(t, at, n, NULL, 0); break;
    case 3: t->size = at; break;
    default: splice(t, at, 0, other->data + from, length); break;
    }
}

static void load_seeds(const char *folder) {
    struct dirent **names;
    int n = scandir(folder, &names, NULL, alphasort); /* sorted: the same seed gives the same damage everywhere */
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        char path[600];
        uint8_t *bytes;
        kd_err err;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (names[i]->d_name[0] != '.' && seed_count < MAX_SEEDS) {
            text *t = &seeds[seed_count++];
            assert_ok(kd_io_read_all(path, CAPACITY, &bytes, &t->size, &err));
            memcpy(t->data, bytes, t->size);
            kd_free(bytes);
        }
        free(names[i]);
    }
    free(names);
}

static void damaged_policy_files(void **state) {
    (void)state;
    uint64_t count = setting("KD_MUTATIONS", MUTATIONS), seed = setting("KD_SEED", 1), accepted = 0;
    load_seeds("docs/augment");
    load_seeds("tests/fuzz/corpus/policy");
    for (int i = 0; i < seed_count; i++)
        exercise_policy(seeds[i].data, seeds[i].size);
    alarm(SECONDS); /* a hang ends the process */
    for (uint64_t i = 0; i < count; i++) {
        static text mutant;
        uint64_t random = seed * 1000003 + i;
        mutant = seeds[below(&random, (size_t)seed_count)];
        for (size_t times = 1 + below(&random, 3); times > 0 && mutant.size > 0; times--)
            (below(&random, 3) > 0 ? damage_word : damage_bytes)(&mutant, &random);
        accepted += (uint64_t)exercise_policy(mutant.data, mutant.size);
    }
    alarm(0);
    print_message("%llu mutations of %d policy files, seed %llu: %llu accepted, the others refused\n", (unsigned long long)count, seed_count, (unsigned long long)seed,
                  (unsigned long long)accepted);
    assert_true(accepted > 0 && accepted < count); /* both ends are reached */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(damaged_policy_files)};
    return cmocka_run_group_tests_name("policy_mutations", tests, NULL, NULL);
}
