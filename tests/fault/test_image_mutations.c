/* Pictures with seeded damage: bits flipped, pieces cut out, doubled and moved, numbers replaced. Whatever the bytes are, decoding must end with a picture within
 * the limit or one sentence, without a crash, a hang or a leak, and the same way each time. Then the corpora of the fuzz targets. (KD_MUTATIONS=N: N per kind, KD_SEED=S.) */
#include "tests/unit/unit.h"

#include <dirent.h>

#include "common/base/io.h"
#include "common/base/progress.h"
#include "common/image/codecs.h"
#include "tests/fuzz/exercise_picture.h"

enum { MUTATIONS = 4000, SECONDS = 60, MAX_SEEDS = 80, CAPACITY = 16384 };

typedef struct bytes {
    uint8_t data[CAPACITY];
    size_t size;
} bytes;

static bytes seed[MAX_SEEDS], mutant;
static int seeds;

/* splitmix64: any fixed generator will do, so that a failure can be repeated from its seed. */
static uint64_t next(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t n) { return n > 0 ? (size_t)(next(state) % n) : 0; }

static uint64_t setting(const char *name, uint64_t fallback) {
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : fallback;
}

static void add_seed(const uint8_t *data, size_t size) {
    assert_in_range(size, 1, CAPACITY);
    assert_true(seeds < MAX_SEEDS);
    memcpy(seed[seeds].data, data, size);
    seed[seeds++].size = size;
}

/* Calls use(file) for the files of a folder whose names end so; returns how many. */
static int each_file(const char *folder, const char *suffix, void (*use)(const uint8_t *data, size_t size)) {
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        size_t length = strlen(e->d_name), tail = strlen(suffix);
        if (e->d_name[0] == '.' || length < tail || strcmp(e->d_name + length - tail, suffix) != 0)
            continue;
        char path[512];
        uint8_t *data;
        size_t size;
        kd_err err = {0};
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        assert_ok(kd_io_read_all(path, 1 << 20, &data, &size, &err));
        use(data, size);
        kd_free(data);
        n++;
    }
    if (d != NULL)
        closedir(d);
    return n;
}

static void insert(bytes *b, size_t at, const uint8_t *p, size_t n) {
    if (n > CAPACITY - b->size)
        return;
    memmove(b->data + at + n, b->data + at, b->size - at);
    memcpy(b->data + at, p, n);
    b->size += n;
}

static void damage_once(bytes *b, uint64_t *state) {
    static const uint8_t telling[] = {0, 1, 2, 0x7F, 0x80, 0xC0, 0xC2, 0xC4, 0xD0, 0xD9, 0xDA, 0xFE, 0xFF};
    uint8_t piece[64];
    size_t at = below(state, b->size), left = b->size - at, n = 1 + below(state, left < sizeof piece ? left : sizeof piece);
    switch (below(state, 8)) {
    case 0: case 1:
        b->data[at] ^= (uint8_t)(1 << below(state, 8));
        break;
    case 2:
        b->data[at] = (uint8_t)next(state);
        break;
    case 3:
        b->data[at] = telling[below(state, sizeof telling)];
        break;
    case 4: /* cut a piece out */
        memmove(b->data + at, b->data + at + n, left - n);
        b->size -= n;
        break;
    case 5: /* double a piece */
        memcpy(piece, b->data + at, n);
        insert(b, below(state, b->size), piece, n);
        break;
    case 6: { /* a piece of another picture */
        const bytes *other = &seed[below(state, (size_t)seeds)];
        size_t from = below(state, other->size), most = other->size - from;
        insert(b, at, other->data + from, 1 + below(state, most < 256 ? most : 256));
        break;
    }
    default:
        b->size = 1 + at;
    }
    if (b->size == 0)
        b->size = 1;
}

/* Returns how many were accepted; both outcomes must occur. */
static void mutate(int (*exercise)(const uint8_t *, size_t)) {
    uint64_t state = setting("KD_SEED", 1), count = setting("KD_MUTATIONS", MUTATIONS), accepted = 0, done = 0;
    double start = kd_now();
    for (; done < count && kd_now() - start < SECONDS; done++) {
        mutant = seed[below(&state, (size_t)seeds)];
        for (size_t times = 1 + below(&state, 4); times > 0; times--)
            damage_once(&mutant, &state);
        uint8_t *exact = malloc(mutant.size); /* so that a sanitizer sees a read past the end */
        assert_non_null(exact);
        memcpy(exact, mutant.data, mutant.size);
        accepted += (uint64_t)exercise(exact, mutant.size);
        free(exact);
    }
    print_message("%d pictures, %llu mutations, %llu accepted\n", seeds, (unsigned long long)done, (unsigned long long)accepted);
    assert_true(accepted > done / 50 && accepted < done);
}

static void damaged_jpegs(void **state) {
    (void)state;
    seeds = 0;
    for (size_t i = 0; i < kd_golden_jpeg_count; i++)
        add_seed(kd_golden_jpegs[i].bytes, kd_golden_jpegs[i].size);
    each_file("tests/golden/image/pictures", ".jpg", add_seed);
    assert_true(seeds > 20);
    mutate(exercise_picture);
}

static void damaged_pngs(void **state) {
    (void)state;
    seeds = 0;
    each_file("tests/golden/image/pictures", ".png", add_seed);
    assert_true(seeds > 40);
    mutate(exercise_png);
}

static void damaged_webps(void **state) {
    (void)state;
    seeds = 0;
    for (size_t i = 0; i < kd_golden_webp_count; i++)
        add_seed(kd_golden_webps[i].bytes, kd_golden_webps[i].size);
    each_file("tests/golden/image/pictures", ".webp", add_seed);
    assert_true(seeds > 10);
    mutate(exercise_picture);
}

static void replay(const uint8_t *data, size_t size) { exercise_png(data, size); }

/* Inputs that libFuzzer found worth keeping (tests/fuzz/README.md). */
static void fuzz_corpora(void **state) {
    (void)state;
    static const char *const folders[] = {"tests/fuzz/corpus/jpeg", "tests/fuzz/corpus/png", "tests/fuzz/corpus/webp"};
    for (size_t i = 0; i < 3; i++)
        assert_true(each_file(folders[i], "", replay) > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_jpegs),
        cmocka_unit_test(damaged_pngs),
        cmocka_unit_test(damaged_webps),
        cmocka_unit_test(fuzz_corpora),
    };
    return cmocka_run_group_tests_name("image mutations", tests, NULL, NULL);
}
