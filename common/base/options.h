/* Options: one table per program drives parsing, --help, the --config file, the man page and completion.
 *
 *     typedef struct { const char *cache; int64_t batch; double lr; int dry_run; kd_strings students; } cfg_t;
 *     static const kd_option table[] = {
 *         KD_OPTION_STRING(cfg_t, cache, "cache", "FILE", NULL, KD_OPT_REQUIRED, "cache to read"),
 *         KD_OPTION_INT(cfg_t, batch, "batch-size", "N", "64", 1, 65536, "images per step"),
 *         ...
 *         KD_OPTION_END };
 *     static const kd_program prog = {.name = "kd-train", .summary = "...", .options = table, .examples = "..."};
 *     status = kd_options_parse(&prog, &cfg, argc, argv, arena, err);   // KD_DONE: help or version was printed
 *
 * Names are long (--batch-size 32 or --batch-size=32); -h, --help, --version, -v, -q, --json, --config are common to all
 * programs. A flag on the command line wins over the config file, which wins over a preset, which wins over the default. Unknown names are an error
 * that suggests the nearest one. Strings live in the arena. */
#ifndef KD_COMMON_BASE_OPTIONS_H
#define KD_COMMON_BASE_OPTIONS_H

#include <stdint.h>
#include <stdio.h>

#include "common/base/json.h"
#include "common/base/mem.h"

typedef enum kd_option_kind {
    KD_OPT_FLAG,   /* int: 0 or 1; takes no value on the command line (--x, --no-x), true/false in a config file */
    KD_OPT_STRING, /* const char *; NULL when absent */
    KD_OPT_INT,    /* int64_t within [min, max] */
    KD_OPT_REAL,   /* double within [min, max], finite */
    KD_OPT_SIZE,   /* uint64_t bytes, "32GB" */
    KD_OPT_CHOICE, /* const char *, one of the '|' separated choices in `metavar` */
    KD_OPT_STRINGS /* kd_strings: may be given several times; in a config file a list, whose mappings become "key=value,key=[key=value,...]" */
} kd_option_kind;

/* KD_OPT_ALONE: a flag that, when it is set, makes a run of its own for which no other option is required ("--inspect"). */
/* KD_OPT_OPTIONAL: a string whose value may be left out and then is "" ("--read-data", "--read-data=1/8"). */
enum { KD_OPT_REQUIRED = 1, KD_OPT_POSITIONAL = 2, KD_OPT_ALONE = 4, KD_OPT_OPTIONAL = 8 };

typedef struct kd_strings {
    const char **item;
    size_t count;
} kd_strings;

typedef struct kd_option {
    const char *name;    /* without "--"; for a positional its name in the usage line, e.g. "FILE" */
    kd_option_kind kind;
    size_t offset;       /* of the field in the program's config struct */
    const char *metavar; /* "FILE", "N", or "a|b|c" for choices */
    const char *dflt;    /* text of the default, parsed like a value; NULL: zero / absent */
    double min, max;     /* for INT and REAL */
    unsigned flags;
    const char *help;    /* one or two sentences */
} kd_option;

#define KD_OPTION_FLAG(T, f, n, h) {n, KD_OPT_FLAG, offsetof(T, f), "", NULL, 0, 0, 0, h}
#define KD_OPTION_ALONE(T, f, n, h) {n, KD_OPT_FLAG, offsetof(T, f), "", NULL, 0, 0, KD_OPT_ALONE, h}
#define KD_OPTION_STRING(T, f, n, m, d, fl, h) {n, KD_OPT_STRING, offsetof(T, f), m, d, 0, 0, fl, h}
#define KD_OPTION_INT(T, f, n, m, d, lo, hi, h) {n, KD_OPT_INT, offsetof(T, f), m, d, lo, hi, 0, h}
#define KD_OPTION_REAL(T, f, n, m, d, lo, hi, h) {n, KD_OPT_REAL, offsetof(T, f), m, d, lo, hi, 0, h}
#define KD_OPTION_SIZE(T, f, n, d, h) {n, KD_OPT_SIZE, offsetof(T, f), "SIZE", d, 0, 0, 0, h}
#define KD_OPTION_CHOICE(T, f, n, choices, d, h) {n, KD_OPT_CHOICE, offsetof(T, f), choices, d, 0, 0, 0, h}
#define KD_OPTION_STRINGS(T, f, n, m, fl, h) {n, KD_OPT_STRINGS, offsetof(T, f), m, NULL, 0, 0, fl, h}
#define KD_OPTION_END {NULL, KD_OPT_FLAG, 0, NULL, NULL, 0, 0, 0, NULL}

/* Values for several options at once, by a name that one option (KD_OPT_CHOICE) chooses: "--preset fast". Options that are given, on the command line or in the config file, win. */
enum { KD_PRESET_VALUES = 16 };
typedef struct kd_preset {
    const char *name;                        /* a choice of that option; NULL ends the list */
    const char *value[KD_PRESET_VALUES][2];  /* {option, text of its value}; NULL ends */
} kd_preset;

typedef struct kd_program {
    const char *name;     /* "kd-train" or "kd-cache list" */
    const char *summary;  /* one sentence */
    const char *examples; /* shown first in --help; lines "  $ command" */
    const char *epilog;   /* exit codes, files; may be NULL */
    const kd_option *options;
    const char *preset_option; /* which of them chooses a preset; NULL: there are none */
    const kd_preset *presets;  /* may leave out choices, which then set nothing */
} kd_program;

/* Fills *config (of the table's struct, zeroed by the caller). KD_DONE after --help or --version; KD_EUSAGE otherwise.
 * *json (may be NULL) receives whether --json was given: set as soon as it is seen, so errors can be reported in kind. */
kd_status kd_options_parse(const kd_program *prog, void *config, int argc, char **argv, int *json, kd_arena *arena, kd_err *err);

/* Sets one option of a filled config from text. `where` begins the message of a mistake ("--student resnet18,lr=x"). KD_EUSAGE: unknown name (the nearest is given), or a value that
 * the option refuses. The text is copied to the arena. */
kd_status kd_options_set(const kd_program *prog, void *config, const char *name, const char *value, const char *where, kd_arena *arena, kd_err *err);

void kd_options_help(const kd_program *prog, FILE *out);
void kd_options_man(const kd_program *prog, FILE *out);        /* roff, section 1 */
void kd_options_completion(const kd_program *prog, FILE *out); /* bash */

/* A program made of commands (kd-cache, kd-eval): one kd_program each, named "kd-cache list". */
typedef struct kd_command_set {
    const char *name;    /* "kd-cache" */
    const char *summary; /* one sentence */
    const kd_program *const *programs;
    size_t count;
    const char *epilog; /* exit codes, files; may be NULL */
} kd_command_set;

/* Finds the command that argv[1] names: *which is its index, and kd_options_parse takes argc - 1, argv + 1. KD_DONE after --help,
 * --version, --man or --completion of the program itself; KD_EUSAGE otherwise, with the nearest name. *json as in kd_options_parse. */
kd_status kd_options_command(const kd_command_set *set, int argc, char **argv, size_t *which, int *json, kd_err *err);

/* Every option with its resolved value: as a JSON object (new reference), and as a YAML file that --config accepts. */
json_t *kd_options_json(const kd_program *prog, const void *config);
kd_status kd_options_write_yaml(const kd_program *prog, const void *config, const char *path, kd_err *err);

/* Nearest of n names to `name` by edit distance, or NULL when none is near (distance above 1 + length / 3). */
const char *kd_nearest_name(const char *name, const char *const *names, size_t n);

extern const char kd_version[]; /* "0.1.0" */

#endif
