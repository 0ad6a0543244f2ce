#include "tests/golden/teacher_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 4096 };

/* FNV-1a of the name, plus the golden ratio times the index, through the last mixing steps of MurmurHash3. */
static uint32_t name_hash(const char *name) {
    uint32_t h = 2166136261u;
    for (; *name != '\0'; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return h;
}

static uint32_t mixed(uint32_t h, uint32_t index) {
    uint32_t x = h + index * 0x9E3779B9u;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return x ^ x >> 16;
}

void teacher_formula(const char *name, float offset, float scale, float *out, size_t n) {
    uint32_t h = name_hash(name);
    for (size_t i = 0; i < n; i++) {
        float u = (float)((int32_t)(mixed(h, (uint32_t)i) >> 8) - (1 << 23)) * 0x1p-23f;
        out[i] = offset + scale * u;
    }
}

void teacher_pixels(int height, int width, unsigned char *out) {
    uint32_t h = name_hash("pixels");
    for (int y = 0, i = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++, i++)
                out[i] = (unsigned char)((mixed(h, (uint32_t)i) >> 25) + (uint32_t)(y * 64 / height + x * 64 / width));
}

int teacher_patch_row(int row, int patches) {
    return row * (patches - 1) / (TEACHER_PATCH_ROWS - 1);
}

static void read_shape(const char *text, kd_tensor *t) {
    for (char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
        assert_true(t->rank < KD_MAX_RANK);
        t->shape[t->rank++] = strtol(text, &end, 10);
        assert_ptr_not_equal(end, text);
    }
}

static void fill_mask(const char *kind, float *out, size_t n) {
    int usual = strcmp(kind, "usual") == 0;
    float value = usual ? 1.0f : strcmp(kind, "zero") == 0 ? 0.0f : NAN;
    for (size_t i = 0; i < n; i++)
        out[i] = usual && i >= n / 3 && i < 2 * n / 3 ? 0.0f : value;
}

/* "tensor NAME SHAPE uniform OFFSET SCALE", "... values V V ...", "... mask usual|zero|nan" */
static void read_tensor(char *line, teacher_case *c) {
    char *rest = NULL, *name = strtok_r(line, " \n", &rest), *shape = strtok_r(NULL, " \n", &rest), *how = strtok_r(NULL, " \n", &rest);
    assert_non_null(how);
    assert_true(c->count < TEACHER_MAX_TENSORS);
    kd_tensor *t = &c->tensor[c->count++];
    *t = (kd_tensor){.dtype = KD_F32};
    read_shape(shape, t);
    size_t n = kd_tensor_numel(t);
    float *values = malloc(n * sizeof *values);
    assert_non_null(values);
    if (strcmp(how, "uniform") == 0) {
        float offset = strtof(rest, &rest);
        teacher_formula(name, offset, strtof(rest, &rest), values, n);
    } else if (strcmp(how, "mask") == 0) {
        fill_mask(strtok_r(NULL, " \n", &rest), values, n);
    } else {
        assert_string_equal("values", how);
        for (size_t i = 0; i < n; i++)
            values[i] = strtof(rest, &rest);
    }
    char *full = malloc(strlen(c->prefix) + strlen(name) + 1);
    assert_non_null(full);
    t->name = strcat(strcpy(full, c->prefix), name);
    t->data = values;
}

static void read_words(char *line, teacher_case *c) {
    char *rest = NULL;
    snprintf(c->name, sizeof c->name, "%s", strtok_r(line, " \n", &rest));
    for (char *word; (word = strtok_r(NULL, " \n", &rest)) != NULL;) {
        char *value = strchr(word, '=');
        assert_non_null(value);
        *value++ = '\0';
        const struct {
            const char *key;
            int *at;
        } numbers[] = {{"patch", &c->patch}, {"width", &c->width}, {"registers", &c->registers}, {"depth", &c->depth}};
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            if (strcmp(word, numbers[i].key) == 0)
                *numbers[i].at = atoi(value);
        if (strcmp(word, "prefix") == 0)
            snprintf(c->prefix, sizeof c->prefix, "%s", value);
        if (strcmp(word, "normalize") == 0)
            snprintf(c->normalize, sizeof c->normalize, "%s", value);
    }
}

int teacher_case_next(FILE *cases, teacher_case *c) {
    static char line[LINE];
    memset(c, 0, sizeof *c);
    strcpy(c->normalize, "auto");
    for (;;) {
        long at = ftell(cases);
        if (fgets(line, sizeof line, cases) == NULL)
            return c->name[0] != '\0';
        assert_non_null(strchr(line, '\n'));
        if (strncmp(line, "case ", 5) == 0) {
            if (c->name[0] != '\0') { /* the next case begins */
                assert_int_equal(0, fseek(cases, at, SEEK_SET));
                return 1;
            }
            read_words(line + 5, c);
        } else if (line[0] != '#') {
            assert_memory_equal("  tensor ", line, 9);
            read_tensor(line + 9, c);
        }
    }
}

void teacher_case_free(teacher_case *c) {
    for (size_t i = 0; i < c->count; i++) {
        free((void *)c->tensor[i].name);
        free((void *)c->tensor[i].data);
    }
    c->count = 0;
}
