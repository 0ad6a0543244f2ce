#include "common/base/options.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/options_common.h"
#include "common/base/yaml.h"

#ifndef KD_VERSION
#define KD_VERSION "0.1.0"
#endif
const char kd_version[] = KD_VERSION;

typedef struct parse {
    const kd_program *prog;
    char *config;     /* the caller's struct */
    kd_arena *arena;
    kd_err *err;
    int *json;
    const char *config_file;
    unsigned char *given; /* per option of the table: where its value comes from */
    size_t count;
} parse;

enum { GIVEN_DEFAULT = 0, GIVEN_FILE = 1, GIVEN_COMMAND = 2, GIVEN_PRESET = 3 };

/* ---- nearest name ---- */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

enum { LONGEST_NAME = 64 };

/* Edits (insert, delete, replace, swap neighbours) that lead from a to b. */
static size_t edit_distance(const char *a, size_t na, const char *b, size_t nb)
{
    size_t rows[3][LONGEST_NAME + 1];
    size_t *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t j = 0; j <= nb; j++)
        last[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t *t;
        now[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            now[j] = least(least(last[j], now[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = least(now[j], before[j - 2] + 1);
        }
        t = before;
        before = last;
        last = now;
        now = t;
    }
    return last[nb];
}

const char *kd_nearest_name(const char *name, const char *const *names, size_t n)
{
    const char *best = NULL;
    size_t length = strlen(name), best_distance = 2 + length / 3; /* one above the limit */
    for (size_t i = 0; i < n && length <= LONGEST_NAME; i++) {
        size_t other = strlen(names[i]), d;
        if (other > LONGEST_NAME)
            continue;
        d = edit_distance(name, length, names[i], other);
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

/* ---- errors with a suggestion ---- */

/* The name that the user most likely meant: the only one that begins with what was typed, else the nearest. */
static const char *suggestion(const parse *p, const char *name, int in_file)
{
    const char **names = kd_arena_alloc(p->arena, (p->count + KD_COMMON_COUNT) * sizeof *names), *only = NULL;
    size_t n = 0, beginning = 0;
    if (!names)
        return NULL;
    for (size_t i = 0; i < p->count; i++)
        if (in_file || !(p->prog->options[i].flags & KD_OPT_POSITIONAL))
            names[n++] = p->prog->options[i].name;
    for (int i = 0; i < KD_COMMON_COUNT && !in_file; i++)
        names[n++] = kd_common_options[i].name;
    for (size_t i = 0; i < n; i++) {
        if (strncmp(names[i], name, strlen(name)) == 0) {
            only = names[i];
            beginning++;
        }
    }
    return beginning == 1 && strlen(name) >= 2 ? only : kd_nearest_name(name, names, n);
}

static kd_status unknown_option(const parse *p, const char *typed, const char *name)
{
    const char *near = suggestion(p, name, 0);
    if (near)
        return kd_fail(p->err, KD_EUSAGE, "unknown option %s; did you mean --%s? (%s --help lists all)", typed, near, p->prog->name);
    return kd_fail(p->err, KD_EUSAGE, "unknown option %s; %s --help lists all", typed, p->prog->name);
}

/* ---- one value ---- */

/* How the sentence names the option: "--batch-size", the positional's name, "FILE.yaml: batch-size", or "preset: batch-size". */
static const char *label(const parse *p, const kd_option *o, int source, char *buf, size_t cap)
{
    if (source == GIVEN_FILE)
        snprintf(buf, cap, "%s: %s", p->config_file, o->name);
    else if (source == GIVEN_PRESET)
        snprintf(buf, cap, "%s: %s", p->prog->preset_option, o->name);
    else
        snprintf(buf, cap, "%s%s", o->flags & KD_OPT_POSITIONAL ? "" : "--", o->name);
    return buf;
}

static int unbounded(const kd_option *o)
{
    return o->min == 0 && o->max == 0;
}

static kd_status set_int(const parse *p, const kd_option *o, const char *name, const char *value)
{
    char *end;
    long long v;
    errno = 0;
    v = strtoll(value, &end, 10);
    if (end == value || *end || value[0] == ' ' || value[0] == '\t')
        return kd_fail(p->err, KD_EUSAGE, "%s: \"%s\" is not a whole number", name, value);
    if (errno == ERANGE || (!unbounded(o) && !((double)v >= o->min && (double)v <= o->max)))
        return kd_fail(p->err, KD_EUSAGE, "%s: %s is outside of %.15g to %.15g", name, value, unbounded(o) ? -9.2e18 : o->min,
                       unbounded(o) ? 9.2e18 : o->max);
    *(int64_t *)(void *)(p->config + o->offset) = v;
    return KD_OK;
}

static kd_status set_real(const parse *p, const kd_option *o, const char *name, const char *value)
{
    char *end;
    double v = strtod(value, &end);
    if (end == value || *end || value[0] == ' ' || value[0] == '\t' || strpbrk(value, "xX"))
        return kd_fail(p->err, KD_EUSAGE, "%s: \"%s\" is not a number", name, value);
    if (!isfinite(v))
        return kd_fail(p->err, KD_EUSAGE, "%s: \"%s\" is not a finite number", name, value);
    if (!unbounded(o) && !(v >= o->min && v <= o->max))
        return kd_fail(p->err, KD_EUSAGE, "%s: %s is outside of %g to %g", name, value, o->min, o->max);
    *(double *)(void *)(p->config + o->offset) = v;
    return KD_OK;
}

static kd_status set_choice(const parse *p, const kd_option *o, const char *name, const char *value, const char **field)
{
    const char *names[64], *near;
    char *copy = kd_arena_strdup(p->arena, o->metavar), *rest = copy;
    size_t n = 0;
    if (!copy)
        return kd_fail(p->err, KD_EFAIL, "out of memory while reading the options");
    for (char *one; (one = strsep(&rest, "|")) && n < sizeof names / sizeof *names;)
        names[n++] = one;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], value) == 0) {
            *field = names[i];
            return KD_OK;
        }
    }
    near = kd_nearest_name(value, names, n);
    return kd_fail(p->err, KD_EUSAGE, "%s: \"%s\" is not one of %s%s%s%s", name, value, o->metavar, near ? "; did you mean " : "",
                   near ? near : "", near ? "?" : "");
}

static kd_status add_string(const parse *p, kd_strings *list, const char *value)
{
    const char **item = list->item;
    if ((list->count & (list->count - 1)) == 0) { /* full at every power of two */
        item = kd_arena_alloc(p->arena, (list->count ? 2 * list->count : 1) * sizeof *item);
        if (!item)
            return kd_fail(p->err, KD_EFAIL, "out of memory while reading the options");
        if (list->count)
            memcpy(item, list->item, list->count * sizeof *item);
        list->item = item;
    }
    item[list->count++] = value;
    return KD_OK;
}

/* Stores the text `value` (a copy is taken) into option i; source says where it came from and so what it may replace. */
static kd_status set_value(parse *p, size_t i, const char *value, int source)
{
    const kd_option *o = &p->prog->options[i];
    char *field = p->config + o->offset;
    char name_buf[300];
    const char *name = label(p, o, source, name_buf, sizeof name_buf);
    char *copy = kd_arena_strdup(p->arena, value);
    if (!copy)
        return kd_fail(p->err, KD_EFAIL, "out of memory while reading the options");
    switch (o->kind) {
    case KD_OPT_FLAG: *(int *)(void *)field = strcmp(value, "true") == 0; break;
    case KD_OPT_STRING: *(const char **)(void *)field = copy; break;
    case KD_OPT_INT: KD_TRY(set_int(p, o, name, value)); break;
    case KD_OPT_REAL: KD_TRY(set_real(p, o, name, value)); break;
    case KD_OPT_SIZE: {
        kd_err inner;
        if (kd_io_size_parse(value, (uint64_t *)(void *)field, &inner) != KD_OK)
            return kd_fail(p->err, KD_EUSAGE, "%s: %s", name, inner.msg);
        break;
    }
    case KD_OPT_CHOICE: KD_TRY(set_choice(p, o, name, value, (const char **)(void *)field)); break;
    case KD_OPT_STRINGS: {
        kd_strings *list = (kd_strings *)(void *)field;
        if (p->given[i] != source) /* the first value of a stronger source replaces the weaker source's list */
            list->count = 0;
        KD_TRY(add_string(p, list, copy));
        break;
    }
    }
    p->given[i] = (unsigned char)source;
    return KD_OK;
}

static kd_status set_defaults(parse *p)
{
    for (size_t i = 0; i < p->count; i++) {
        const kd_option *o = &p->prog->options[i];
        if (o->dflt) {
            kd_status status = set_value(p, i, o->dflt, GIVEN_DEFAULT);
            KD_ASSERT(status != KD_EUSAGE); /* a default that its own option refuses is a bug in the table */
            KD_TRY(status);
        }
    }
    return KD_OK;
}

/* ---- config file ---- */

static size_t find(const parse *p, const char *name, size_t n, int positional_too)
{
    size_t i = 0;
    for (; i < p->count; i++) {
        const kd_option *o = &p->prog->options[i];
        if (strlen(o->name) == n && strncmp(o->name, name, n) == 0 && (positional_too || !(o->flags & KD_OPT_POSITIONAL)))
            break;
    }
    return i;
}

static kd_status set_from_json(parse *p, size_t i, const json_t *v)
{
    const kd_option *o = &p->prog->options[i];
    char text[64];
    const char *value = text;
    if ((o->kind == KD_OPT_FLAG) != (json_is_boolean(v) != 0))
        return kd_fail(p->err, KD_EUSAGE, "%s: %s: %s", p->config_file, o->name,
                       o->kind == KD_OPT_FLAG ? "true or false is expected" : "a value is expected, not true or false");
    if (json_is_boolean(v))
        value = json_is_true(v) ? "true" : "false";
    else if (json_is_string(v))
        value = json_string_value(v);
    else if (json_is_integer(v))
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v))
        snprintf(text, sizeof text, "%.17g", json_real_value(v));
    else
        return kd_fail(p->err, KD_EUSAGE, "%s: %s: %s", p->config_file, o->name,
                       json_is_array(v) ? "takes one value, not a list" : "a value or a list of values is expected");
    return set_value(p, i, value, GIVEN_FILE);
}

static kd_status mapping_text(parse *p, const char *name, const json_t *map, const char **text);

/* Appends "key=value" to *text. A mapping inside is "key=[key=value,...]"; a list of them has the key before each. */
static kd_status append_setting(parse *p, const char *name, const char *key, const json_t *v, const char **text)
{
    char number[64];
    const char *value = json_is_boolean(v) ? (json_is_true(v) ? "true" : "false") : json_is_string(v) ? json_string_value(v) : number, *inner;
    for (size_t k = 0; k < json_array_size(v); k++) { /* 0 of anything that isn't a list */
        if (!json_is_object(json_array_get(v, k)))
            return kd_fail(p->err, KD_EUSAGE, "%s: %s: %s: one value, a mapping or a list of mappings is expected", p->config_file, name, key);
        KD_TRY(append_setting(p, name, key, json_array_get(v, k), text));
    }
    if (json_is_array(v) && json_array_size(v) > 0)
        return KD_OK;
    if (json_is_integer(v)) {
        snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    } else if (json_is_real(v)) {
        snprintf(number, sizeof number, "%.17g", json_real_value(v));
    } else if (json_is_object(v)) {
        KD_TRY(mapping_text(p, name, v, &inner));
        value = kd_arena_printf(p->arena, "[%s]", inner);
    } else if (value == number) {
        return kd_fail(p->err, KD_EUSAGE, "%s: %s: %s: one value, a mapping or a list of mappings is expected", p->config_file, name, key);
    }
    if (value && !json_is_object(v) && strpbrk(value, ","))
        return kd_fail(p->err, KD_EUSAGE, "%s: %s: %s: \"%s\" has a comma, which separates settings", p->config_file, name, key, value);
    *text = value ? kd_arena_printf(p->arena, "%s%s%s=%s", *text, **text ? "," : "", key, value) : NULL;
    return *text ? KD_OK : kd_fail(p->err, KD_EFAIL, "out of memory while reading the options");
}

/* A mapping in a list of strings becomes "key=value,key=value", in the file's order. Depth is limited by kd_yaml_read_file. */
static kd_status mapping_text(parse *p, const char *name, const json_t *map, const char **text)
{
    const char *key;
    json_t *v;
    *text = "";
    json_object_foreach((json_t *)(uintptr_t)map, key, v) /* jansson's iterator takes no const */
        KD_TRY(append_setting(p, name, key, v, text));
    return KD_OK;
}

static kd_status add_mapping(parse *p, size_t i, const json_t *map)
{
    const char *text;
    KD_TRY(mapping_text(p, p->prog->options[i].name, map, &text));
    return set_value(p, i, text, GIVEN_FILE);
}

static kd_status set_common_from_json(parse *p, int id, const json_t *v)
{
    if (!json_is_boolean(v))
        return kd_fail(p->err, KD_EUSAGE, "%s: %s: true or false is expected", p->config_file, kd_common_options[id].name);
    if (!json_is_true(v))
        return KD_OK;
    if (id == KD_COMMON_JSON)
        *p->json = 1;
    else
        kd_log_set_level(id == KD_COMMON_VERBOSE ? KD_LOG_DEBUG : KD_LOG_WARN);
    return KD_OK;
}

static kd_status apply_config_key(parse *p, const char *key, json_t *value)
{
    size_t i = find(p, key, strlen(key), 1);
    for (int id = KD_COMMON_JSON; i == p->count && id <= KD_COMMON_QUIET; id++)
        if (strcmp(kd_common_options[id].name, key) == 0)
            return set_common_from_json(p, id, value);
    if (i == p->count) {
        const char *near = suggestion(p, key, 1);
        return kd_fail(p->err, KD_EUSAGE, "%s: unknown key \"%s\"%s%s%s", p->config_file, key, near ? "; did you mean \"" : "",
                       near ? near : "", near ? "\"?" : "");
    }
    if (json_is_null(value)) /* absent: the default stays */
        return KD_OK;
    if (p->prog->options[i].kind == KD_OPT_STRINGS && json_is_array(value)) {
        for (size_t k = 0; k < json_array_size(value); k++) {
            const json_t *item = json_array_get(value, k);
            KD_TRY(json_is_object(item) ? add_mapping(p, i, item) : set_from_json(p, i, item));
        }
        return KD_OK;
    }
    return set_from_json(p, i, value);
}

static kd_status apply_config(parse *p)
{
    json_t *object, *value;
    const char *key;
    kd_status status = KD_OK;
    if (!p->config_file)
        return KD_OK;
    KD_TRY(kd_yaml_read_file(p->config_file, &object, p->err));
    json_object_foreach(object, key, value)
    {
        status = apply_config_key(p, key, value);
        if (status != KD_OK)
            break;
    }
    json_decref(object);
    return status;
}

/* ---- command line ---- */

/* One option as found at argv[*at]: name, and its value after '=' or NULL. */
typedef struct word {
    const char *typed, *name, *value;
    size_t length;
} word;

static word split(const char *arg)
{
    word w = {arg, arg + 2, NULL, 0};
    w.length = strcspn(w.name, "=");
    if (w.name[w.length] == '=')
        w.value = w.name + w.length + 1;
    return w;
}

static int find_common(const word *w)
{
    int id = 0;
    while (id < KD_COMMON_COUNT && !(strlen(kd_common_options[id].name) == w->length && strncmp(kd_common_options[id].name, w->name, w->length) == 0))
        id++;
    return id;
}

static kd_status do_common(parse *p, int id, const char *value)
{
    switch (id) {
    case KD_COMMON_CONFIG: p->config_file = value; return KD_OK;
    case KD_COMMON_JSON: *p->json = 1; return KD_OK;
    case KD_COMMON_VERBOSE: kd_log_set_level(KD_LOG_DEBUG); return KD_OK;
    case KD_COMMON_QUIET: kd_log_set_level(KD_LOG_WARN); return KD_OK;
    case KD_COMMON_HELP: kd_options_help(p->prog, stdout); break;
    case KD_COMMON_VERSION: printf("%s %s\n", p->prog->name, kd_version); break;
    case KD_COMMON_MAN: kd_options_man(p->prog, stdout); break;
    case KD_COMMON_COMPLETION: kd_options_completion(p->prog, stdout); break;
    default: KD_ASSERT(!"a common option");
    }
    return KD_DONE;
}

/* The value of the option at argv[*at]: behind '=' or the next word. */
static kd_status take_value(const parse *p, const word *w, int argc, char **argv, int *at, const char *metavar, const char **value)
{
    *value = w->value;
    if (!*value && *at + 1 < argc)
        *value = argv[++*at];
    if (!*value)
        return kd_fail(p->err, KD_EUSAGE, "--%.*s needs a value (%s)", (int)w->length, w->name, metavar);
    return KD_OK;
}

static kd_status long_option(parse *p, int argc, char **argv, int *at, int apply, size_t *list)
{
    word w = split(argv[*at]);
    size_t i = find(p, w.name, w.length, 0);
    int off = 0, id = KD_COMMON_COUNT;
    const char *value = NULL;
    *list = p->count;
    if (i == p->count)
        id = find_common(&w);
    if (i == p->count && id == KD_COMMON_COUNT && strncmp(w.name, "no-", 3) == 0) {
        i = find(p, w.name + 3, w.length - 3, 0);
        off = i < p->count && p->prog->options[i].kind == KD_OPT_FLAG;
        i = off ? i : p->count;
    }
    if (i == p->count && id == KD_COMMON_COUNT) {
        char *name = kd_arena_printf(p->arena, "%.*s", (int)w.length, w.name);
        return name ? unknown_option(p, kd_arena_printf(p->arena, "--%s", name), name) : kd_fail(p->err, KD_EFAIL, "out of memory");
    }
    if (id < KD_COMMON_COUNT ? !kd_common_options[id].metavar : p->prog->options[i].kind == KD_OPT_FLAG) {
        if (w.value)
            return kd_fail(p->err, KD_EUSAGE, "--%.*s takes no value", (int)w.length, w.name);
        if (id < KD_COMMON_COUNT)
            return apply ? KD_OK : do_common(p, id, NULL);
        return apply ? set_value(p, i, off ? "false" : "true", GIVEN_COMMAND) : KD_OK;
    }
    if (id == KD_COMMON_COUNT && (p->prog->options[i].flags & KD_OPT_OPTIONAL) && !w.value)
        return apply ? set_value(p, i, "", GIVEN_COMMAND) : KD_OK;
    KD_TRY(take_value(p, &w, argc, argv, at, id < KD_COMMON_COUNT ? kd_common_options[id].metavar : p->prog->options[i].metavar, &value));
    if (id < KD_COMMON_COUNT)
        return apply ? KD_OK : do_common(p, id, value);
    if (p->prog->options[i].kind == KD_OPT_STRINGS)
        *list = i;
    return apply ? set_value(p, i, value, GIVEN_COMMAND) : KD_OK;
}

static kd_status short_option(parse *p, const char *arg, int apply)
{
    for (int id = 0; id < KD_COMMON_COUNT; id++)
        if (arg[1] == kd_common_options[id].letter && arg[2] == '\0')
            return apply ? KD_OK : do_common(p, id, NULL);
    if (arg[2] != '\0') /* "-batch-size": one dash too few */
        return unknown_option(p, arg, arg + 1);
    return kd_fail(p->err, KD_EUSAGE, "unknown option %s; %s --help lists all (options are written in full, as in --config)", arg, p->prog->name);
}

/* A word without dashes: the next positional; or one more value of the list option just before it (a shell's *.kdc). */
static kd_status bare_word(parse *p, const char *arg, size_t *positionals, size_t list, int apply)
{
    size_t seen = 0;
    for (size_t i = 0; i < p->count; i++) {
        const kd_option *o = &p->prog->options[i];
        if (!(o->flags & KD_OPT_POSITIONAL) || seen++ < *positionals)
            continue;
        if (o->kind != KD_OPT_STRINGS)
            ++*positionals;
        return apply ? set_value(p, i, arg, GIVEN_COMMAND) : KD_OK;
    }
    if (list < p->count)
        return apply ? set_value(p, list, arg, GIVEN_COMMAND) : KD_OK;
    return kd_fail(p->err, KD_EUSAGE, "\"%s\" is not expected here; options begin with -- (%s --help lists all)", arg, p->prog->name);
}

/* Runs twice over the words: first for what decides how to go on (--help, --config; unknown names), then, when defaults and
 * the config file have been stored, to let the command line win. */
static kd_status walk(parse *p, int argc, char **argv, int apply)
{
    size_t positionals = 0, list = p->count;
    int only_words = 0;
    for (int at = 1; at < argc; at++) {
        const char *arg = argv[at];
        if (!only_words && strcmp(arg, "--") == 0)
            only_words = 1;
        else if (!only_words && strncmp(arg, "--", 2) == 0)
            KD_TRY(long_option(p, argc, argv, &at, apply, &list));
        else if (!only_words && arg[0] == '-' && arg[1] != '\0')
            KD_TRY(short_option(p, arg, apply));
        else
            KD_TRY(bare_word(p, arg, &positionals, list, apply));
    }
    return KD_OK;
}

/* ---- presets ---- */

/* When everything that is given is known: the chosen preset's values for what isn't. */
static kd_status apply_preset(parse *p)
{
    if (!p->prog->preset_option)
        return KD_OK;
    size_t which = find(p, p->prog->preset_option, strlen(p->prog->preset_option), 0);
    KD_ASSERT(which < p->count && p->prog->options[which].kind == KD_OPT_CHOICE);
    const char *chosen = *(const char **)(void *)(p->config + p->prog->options[which].offset);
    const kd_preset *preset = p->prog->presets;
    while (preset->name && !(chosen && strcmp(preset->name, chosen) == 0))
        preset++;
    for (int k = 0; preset->name && k < KD_PRESET_VALUES && preset->value[k][0]; k++) {
        size_t i = find(p, preset->value[k][0], strlen(preset->value[k][0]), 0);
        KD_ASSERT(i < p->count); /* a preset that names an option which isn't there is a bug in the table */
        if (p->given[i] == GIVEN_DEFAULT)
            KD_TRY(set_value(p, i, preset->value[k][1], GIVEN_PRESET));
    }
    return KD_OK;
}

static int runs_alone(const parse *p)
{
    for (size_t i = 0; i < p->count; i++)
        if ((p->prog->options[i].flags & KD_OPT_ALONE) && *(const int *)(const void *)(p->config + p->prog->options[i].offset))
            return 1;
    return 0;
}

static kd_status check_required(const parse *p)
{
    if (runs_alone(p))
        return KD_OK;
    for (size_t i = 0; i < p->count; i++) {
        const kd_option *o = &p->prog->options[i];
        if (!(o->flags & KD_OPT_REQUIRED) || p->given[i] || o->dflt)
            continue;
        if (o->flags & KD_OPT_POSITIONAL)
            return kd_fail(p->err, KD_EUSAGE, "%s is missing: %s (%s --help shows examples)", o->name, o->help, p->prog->name);
        return kd_fail(p->err, KD_EUSAGE, "--%s %s is missing: %s (%s --help shows examples)", o->name, o->metavar, o->help, p->prog->name);
    }
    return KD_OK;
}

kd_status kd_options_parse(const kd_program *prog, void *config, int argc, char **argv, int *json, kd_arena *arena, kd_err *err)
{
    int json_unused = 0;
    parse p = {.prog = prog, .config = config, .arena = arena, .err = err, .json = json ? json : &json_unused};
    while (prog->options[p.count].name)
        p.count++;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            *p.json = 1;
    p.given = kd_arena_alloc(arena, p.count + 1);
    if (!p.given)
        return kd_fail(err, KD_EFAIL, "out of memory while reading the options");
    KD_TRY(walk(&p, argc, argv, 0));
    KD_TRY(set_defaults(&p));
    KD_TRY(apply_config(&p));
    KD_TRY(walk(&p, argc, argv, 1));
    KD_TRY(apply_preset(&p));
    return check_required(&p);
}

kd_status kd_options_set(const kd_program *prog, void *config, const char *name, const char *value, const char *where, kd_arena *arena, kd_err *err)
{
    parse p = {.prog = prog, .config = config, .arena = arena, .err = err, .config_file = where};
    while (prog->options[p.count].name)
        p.count++;
    p.given = kd_arena_alloc(arena, p.count + 1);
    if (!p.given)
        return kd_fail(err, KD_EFAIL, "out of memory while reading the options");
    size_t i = find(&p, name, strlen(name), 1);
    if (i == p.count) {
        const char *near = suggestion(&p, name, 1);
        return kd_fail(err, KD_EUSAGE, "%s: unknown setting \"%s\"%s%s%s", where, name, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    if (prog->options[i].kind == KD_OPT_FLAG && strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
        return kd_fail(err, KD_EUSAGE, "%s: %s: true or false is expected", where, name);
    return set_value(&p, i, value, GIVEN_FILE);
}

/* ---- resolved values ---- */

static json_t *value_json(const kd_option *o, const void *field)
{
    switch (o->kind) {
    case KD_OPT_FLAG: return json_boolean(*(const int *)field);
    case KD_OPT_INT: return json_integer(*(const int64_t *)field);
    case KD_OPT_REAL: return json_real(*(const double *)field);
    case KD_OPT_SIZE: return json_integer((json_int_t) * (const uint64_t *)field);
    case KD_OPT_STRING: case KD_OPT_CHOICE: {
        const char *s = *(const char *const *)field;
        return s ? kd_json_bytes(s, strlen(s)) : json_null();
    }
    case KD_OPT_STRINGS: {
        const kd_strings *list = field;
        json_t *array = json_array();
        for (size_t i = 0; i < list->count; i++)
            json_array_append_new(array, kd_json_bytes(list->item[i], strlen(list->item[i])));
        return array;
    }
    }
    return NULL;
}

json_t *kd_options_json(const kd_program *prog, const void *config)
{
    json_t *object = json_object();
    for (const kd_option *o = prog->options; o->name; o++)
        json_object_set_new(object, o->name, value_json(o, (const char *)config + o->offset));
    return object;
}

kd_status kd_options_write_yaml(const kd_program *prog, const void *config, const char *path, kd_err *err)
{
    json_t *object = kd_options_json(prog, config);
    char *body = object ? kd_yaml_text(object) : NULL;
    char *all = body ? kd_asprintf("# %s %s: every option with the value that was used. %s --config THIS_FILE repeats it.\n%s", prog->name,
                                   kd_version, prog->name, body)
                     : NULL;
    kd_status status = all ? kd_io_write_atomic(path, all, strlen(all), err) : kd_fail(err, KD_EFAIL, "%s: out of memory", path);
    kd_free(all);
    kd_free(body);
    json_decref(object);
    return status;
}
