#include "train/student_choice.h"

#include <ctype.h>
#include <string.h>

enum { LONGEST_NAME = 60 };

/* What may differ between the students of a run. */
static const char *const own[] = {"init", "loss",         "cls-weight",  "patch-weight", "patch-target", "head",  "head-hidden", "temperature",        "queue-size",   "beta",
                                  "clip", "cosine-share", "gram-weight", "koleo-weight", "optimizer",    "lr",    "lr-scale",    "lr-reference-batch", "weight-decay", "momentum",
                                  "ema",  "drop-path"};

static int is_own(const char *key) {
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (strcmp(own[i], key) == 0)
            return 1;
    return 0;
}

static int is_option(const char *key) {
    for (const kd_option *o = kd_train_program.options; o->name != NULL; o++)
        if (strcmp(o->name, key) == 0)
            return 1;
    return 0;
}

/* Files and metrics are called after it. */
static kd_status check_name(const char *name, const char *where, kd_err *err) {
    size_t n = strlen(name), good = 0;
    while (good < n && (isalnum((unsigned char)name[good]) || strchr("._-", name[good]) != NULL))
        good++;
    if (n == 0 || good < n || n > LONGEST_NAME || name[0] == '.')
        return kd_fail(err, KD_EUSAGE, "%s: name \"%s\" must be 1 to %d letters, digits, '.', '_' or '-' and not begin with '.'; files are called after it", where, name, LONGEST_NAME);
    return KD_OK;
}

/* Cuts the next item off *rest: up to a comma, or if its value begins with a bracket, to the comma after the one that closes it. NULL at the end. *open: it is never closed, or text follows it. */
static char *next_item(char **rest, int *open) {
    char *item = *rest, *end = item, *value = item != NULL ? item + strcspn(item, ",=") : NULL;
    int depth = 0;
    *open = 0;
    if (item == NULL)
        return NULL;
    if (value[0] == '=' && value[1] == '[') {
        for (end = value + 1; *end != '\0'; end++) {
            depth += *end == '[' ? 1 : *end == ']' ? -1 : 0;
            if (depth == 0)
                break;
        }
        *open = *end == '\0' || (end[1] != ',' && end[1] != '\0');
        if (*open)
            return item;
    }
    end += strcspn(end, ",");
    *rest = *end == ',' ? end + 1 : NULL;
    *end = '\0';
    return item;
}

/* The student's own pairs take the place of the run's. */
static kd_status add_pair(kd_student_choice *out, char *value, const kd_train_config *run, kd_arena *arena, kd_err *err) {
    kd_strings *pairs = &out->config.pairs;
    size_t n = strlen(value);
    if (pairs->item == run->pairs.item)
        *pairs = (kd_strings){0};
    if (strcmp(value, "none") == 0) {
        *pairs = (kd_strings){kd_arena_alloc(arena, sizeof *pairs->item), 0}; /* not the run's list */
        return pairs->item != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the students");
    }
    if (value[0] == '[') {
        value[n - 1] = '\0';
        value++;
    }
    const char **item = kd_arena_alloc(arena, (pairs->count + 1) * sizeof *item);
    if (item == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the students");
    if (pairs->count > 0)
        memcpy(item, pairs->item, pairs->count * sizeof *item);
    item[pairs->count] = value;
    *pairs = (kd_strings){item, pairs->count + 1};
    return KD_OK;
}

static kd_status set(kd_student_choice *out, const char *key, char *value, const kd_train_config *run, const char *where, kd_arena *arena, kd_err *err) {
    if (strcmp(key, "model") == 0) {
        out->model = value;
        return KD_OK;
    }
    if (strcmp(key, "name") == 0) {
        out->name = value;
        return KD_OK;
    }
    if (strcmp(key, "pair") == 0)
        return add_pair(out, value, run, arena, err);
    if (!is_own(key) && is_option(key))
        return kd_fail(err, KD_EUSAGE, "%s: all students of a run share \"%s\"; give --%s for the run, or train this student in a run of its own", where, key, key);
    return kd_options_set(&kd_train_program, &out->config, key, value, where, arena, err);
}

kd_status kd_student_choice_parse(kd_student_choice *out, const char *text, const kd_train_config *run, kd_arena *arena, kd_err *err) {
    char *rest = kd_arena_strdup(arena, text);
    const char *where = kd_arena_printf(arena, "--student %s", text);
    *out = (kd_student_choice){.config = *run};
    if (rest == NULL || where == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the students");
    int open;
    for (char *item; (item = next_item(&rest, &open)) != NULL;) {
        char *value = strchr(item, '=');
        if (open)
            return kd_fail(err, KD_EUSAGE, "%s: the bracket in \"%s\" isn't closed before the next setting; write key=[...] with a comma or nothing behind it", where, item);
        if (value == NULL && out->model == NULL) {
            out->model = item;
            continue;
        }
        if (value == NULL)
            return kd_fail(err, KD_EUSAGE, "%s: \"%s\" isn't a setting; they are written key=value behind the model, with commas between them", where, item);
        *value++ = '\0';
        KD_TRY(set(out, item, value, run, where, arena, err));
    }
    if (out->model == NULL || out->model[0] == '\0')
        return kd_fail(err, KD_EUSAGE, "%s: names no model; write --student resnet18, or model=resnet18 among the settings", where);
    if (out->name == NULL)
        out->name = out->model;
    KD_TRY(check_name(out->name, where, err));
    return kd_train_config_check(&out->config, err);
}

kd_status kd_student_choices(kd_student_choice **out, const kd_train_config *run, kd_arena *arena, kd_err *err) {
    size_t n = run->students.count;
    kd_student_choice *all = kd_arena_alloc(arena, n * sizeof *all);
    if (all == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the students");
    for (size_t i = 0; i < n; i++) {
        KD_TRY(kd_student_choice_parse(&all[i], run->students.item[i], run, arena, err));
        for (size_t j = 0; j < i; j++)
            if (strcmp(all[i].name, all[j].name) == 0)
                return kd_fail(err, KD_EUSAGE, "two students are called %s, and files are called after them; add name=... to one: --student %s,name=%s-2", all[i].name, run->students.item[i],
                               all[i].name);
    }
    *out = all;
    return KD_OK;
}
