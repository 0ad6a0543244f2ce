/* One table drives parsing, help, config file, manual page and completion; wrong input is said in a sentence that helps. */
#include "tests/unit/unit.h"

#include <fcntl.h>

#include "common/base/log.h"
#include "common/base/options.h"
#include "common/base/yaml.h"

typedef struct config {
    const char *cache, *device, *teacher, *path, *part;
    int64_t batch, seed;
    double lr;
    uint64_t shard;
    int dry_run, keep;
    kd_strings students, rest;
} config;

static const kd_option table[] = {
    KD_OPTION_STRING(config, cache, "cache", "FILE", NULL, KD_OPT_REQUIRED, "cache to read"),
    KD_OPTION_INT(config, batch, "batch-size", "N", "64", 1, 65536, "images per step"),
    KD_OPTION_INT(config, seed, "seed", "S", "0", 0, 0, "seed of every random draw"),
    KD_OPTION_REAL(config, lr, "lr", "X", "0.001", 0, 10, "learning rate"),
    KD_OPTION_SIZE(config, shard, "shard-size", "32GB", "size of one shard"),
    KD_OPTION_CHOICE(config, device, "device", "auto|ref|cpu|cuda", "auto", "where to compute"),
    KD_OPTION_STRING(config, teacher, "teacher", "NAME", "auto", 0, "family of the weights"),
    KD_OPTION_FLAG(config, dry_run, "dry-run", "print the plan and touch nothing"),
    KD_OPTION_FLAG(config, keep, "keep", "keep temporary files"),
    KD_OPTION_STRINGS(config, students, "student", "NAME", 0, "model to train"),
    KD_OPTION_STRING(config, part, "read-data", "N/T", NULL, KD_OPT_OPTIONAL, "read every byte"),
    KD_OPTION_END};
static const kd_program prog = {.name = "kd-test", .summary = "Tests the options.", .examples = "  $ kd-test --cache a.kdc\n",
                                .epilog = "exit codes: 0 ok", .options = table};

static const kd_option positional_table[] = {
    KD_OPTION_STRING(config, path, "FILE", "", NULL, KD_OPT_POSITIONAL | KD_OPT_REQUIRED, "cache to look at"),
    KD_OPTION_STRINGS(config, rest, "MORE", "", KD_OPT_POSITIONAL, "further caches"),
    KD_OPTION_FLAG(config, dry_run, "dry-run", "print the plan"),
    KD_OPTION_ALONE(config, keep, "inspect", "only look"), KD_OPTION_END};
static const kd_program positional = {.name = "kd-test list", .summary = "Lists.", .options = positional_table};

static kd_arena *arena;
static char *folder, path[4200];
static kd_err err;

static int start(void **state)
{
    (void)state;
    arena = kd_arena_create();
    folder = unit_folder();
    snprintf(path, sizeof path, "%s/config.yaml", folder);
    memset(&err, 0, sizeof err);
    kd_log_set_level(KD_LOG_INFO);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kd_arena_destroy(arena);
    free(folder);
    return 0;
}

static kd_status parsed_with(const kd_program *p, config *c, int *json, const char *const *words)
{
    char *argv[40];
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t) "program";
    while (*words)
        argv[argc++] = (char *)(uintptr_t)*words++;
    argv[argc] = NULL;
    memset(c, 0, sizeof *c);
    return kd_options_parse(p, c, argc, argv, json, arena, &err);
}

#define PARSE(c, ...) parsed_with(&prog, (c), NULL, (const char *const[]){__VA_ARGS__, NULL})
#define PARSE_POSITIONAL(c, ...) parsed_with(&positional, (c), NULL, (const char *const[]){__VA_ARGS__, NULL})

static void defaults_are_filled_in(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE(&c, "--cache", "a.kdc"));
    assert_string_equal(c.cache, "a.kdc");
    assert_int_equal(c.batch, 64);
    assert_true(c.lr == 0.001);
    assert_int_equal(c.shard, 32000000000ULL);
    assert_string_equal(c.device, "auto");
    assert_string_equal(c.teacher, "auto");
    assert_int_equal(c.dry_run, 0);
    assert_int_equal(c.students.count, 0);
}

static void every_kind_is_read(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE(&c, "--cache=x=y", "--batch-size", "1", "--seed", "-9223372036854775808", "--lr=1e-4", "--shard-size", "1.5GiB", "--device", "cpu",
                    "--dry-run", "--student", "a", "--student=b", "--teacher", "--odd", "--keep", "--no-keep"));
    assert_string_equal(c.cache, "x=y");
    assert_int_equal(c.batch, 1);
    assert_true(c.seed == INT64_MIN);
    assert_true(c.lr == 1e-4);
    assert_int_equal(c.shard, 1610612736);
    assert_string_equal(c.device, "cpu");
    assert_int_equal(c.dry_run, 1);
    assert_int_equal(c.keep, 0);
    assert_int_equal(c.students.count, 2);
    assert_string_equal(c.students.item[1], "b");
    assert_string_equal(c.teacher, "--odd");
}

static void a_list_option_takes_the_words_of_a_shell_pattern(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE(&c, "--student", "a", "b", "c", "d", "e", "--cache", "x"));
    assert_int_equal(c.students.count, 5);
    assert_string_equal(c.students.item[4], "e");
    assert_int_equal(PARSE(&c, "--cache", "x", "stray"), KD_EUSAGE);
    assert_contains(err.msg, "\"stray\" is not expected here");
}

static void an_optional_value_stands_behind_an_equals_sign(void **state)
{
    config c = {0};
    FILE *out;
    char *text = NULL;
    size_t size;
    (void)state;
    assert_int_equal(PARSE(&c, "--cache", "x"), KD_OK);
    assert_null(c.part);
    assert_int_equal(PARSE(&c, "--read-data", "--cache", "x"), KD_OK);
    assert_string_equal(c.part, "");
    assert_string_equal(c.cache, "x");
    assert_int_equal(PARSE(&c, "--cache", "x", "--read-data=1/8"), KD_OK);
    assert_string_equal(c.part, "1/8");
    out = open_memstream(&text, &size);
    kd_options_help(&prog, out);
    kd_options_man(&prog, out);
    fclose(out);
    assert_contains(text, "  --read-data[=N/T]");
    assert_contains(text, ".B \\-\\-read\\-data[=N/T]");
    free(text);
}

static void wrong_words_are_explained(void **state)
{
    static const struct { const char *words[6], *said; } bad[] = {
        {{"--cache", "x", "--bacth-size", "3"}, "unknown option --bacth-size; did you mean --batch-size?"},
        {{"--cache", "x", "--batch", "3"}, "did you mean --batch-size?"},
        {{"--cache", "x", "--zzzzzzzz"}, "unknown option --zzzzzzzz; kd-test --help lists all"},
        {{"-batch-size", "3"}, "did you mean --batch-size?"},
        {{"-x"}, "unknown option -x"},
        {{"--cache"}, "--cache needs a value (FILE)"},
        {{"--batch-size", "3"}, "--cache FILE is missing: cache to read"},
        {{"--cache", "x", "--batch-size", "0"}, "--batch-size: 0 is outside of 1 to 65536"},
        {{"--cache", "x", "--batch-size", "65537"}, "is outside of 1 to 65536"},
        {{"--cache", "x", "--batch-size", "3.5"}, "--batch-size: \"3.5\" is not a whole number"},
        {{"--cache", "x", "--batch-size", ""}, "is not a whole number"},
        {{"--cache", "x", "--batch-size", " 3"}, "is not a whole number"},
        {{"--cache", "x", "--batch-size", "10k"}, "is not a whole number"},
        {{"--cache", "x", "--seed", "9223372036854775808"}, "--seed: 9223372036854775808 is outside"},
        {{"--cache", "x", "--lr", "fast"}, "--lr: \"fast\" is not a number"},
        {{"--cache", "x", "--lr", "nan"}, "is not a finite number"},
        {{"--cache", "x", "--lr", "inf"}, "is not a finite number"},
        {{"--cache", "x", "--lr", "1e999"}, "is not a finite number"},
        {{"--cache", "x", "--lr", "-1"}, "--lr: -1 is outside of 0 to 10"},
        {{"--cache", "x", "--shard-size", "big"}, "--shard-size: \"big\" is not a size"},
        {{"--cache", "x", "--device", "cdua"}, "--device: \"cdua\" is not one of auto|ref|cpu|cuda; did you mean cuda?"},
        {{"--cache", "x", "--device", "abacus"}, "is not one of auto|ref|cpu|cuda"},
        {{"--cache", "x", "--dry-run=yes"}, "--dry-run takes no value"},
        {{"--cache", "x", "--json=1"}, "--json takes no value"},
        {{"--cache", "x", "--no-batch-size"}, "unknown option --no-batch-size"},
        {{"--cache", "x", "--config"}, "--config needs a value (FILE)"},
        {{"--cache", "x", "--a\nb"}, "unknown option --a\\nb"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config c;
        if (parsed_with(&prog, &c, NULL, bad[i].words) != KD_EUSAGE)
            fail_msg("accepted: %s %s", bad[i].words[0], bad[i].words[1]);
        assert_contains(err.msg, bad[i].said);
    }
}

static void positionals_are_taken_in_order(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE_POSITIONAL(&c, "a.kdc"));
    assert_string_equal(c.path, "a.kdc");
    assert_int_equal(c.rest.count, 0);
    assert_ok(PARSE_POSITIONAL(&c, "a.kdc", "--dry-run", "b.kdc", "-", "--", "--json"));
    assert_int_equal(c.rest.count, 3);
    assert_string_equal(c.rest.item[1], "-");
    assert_string_equal(c.rest.item[2], "--json"); /* behind "--" everything is a word */
    assert_int_equal(PARSE_POSITIONAL(&c, "--dry-run"), KD_EUSAGE);
    assert_contains(err.msg, "FILE is missing: cache to look at");
    assert_int_equal(PARSE_POSITIONAL(&c, "--FILE", "x"), KD_EUSAGE);
}

static void a_run_of_its_own_needs_nothing_else(void **state)
{
    config c;
    (void)state;
    assert_int_equal(PARSE_POSITIONAL(&c, "--inspect"), KD_OK);
    assert_null(c.path);
    assert_int_equal(PARSE_POSITIONAL(&c, "--no-inspect"), KD_EUSAGE);
    assert_contains(err.msg, "FILE is missing");
}

static void config_file_below_command_line_above_default(void **state)
{
    config c;
    static const char text[] = "cache: from-file\nbatch-size: 32\nlr: 0.5\ndry-run: true\nkeep: true\nstudent: [a, b]\nteacher: 7\ndevice: null\n";
    (void)state;
    unit_write(path, text, strlen(text));
    assert_ok(PARSE(&c, "--config", path));
    assert_string_equal(c.cache, "from-file");
    assert_int_equal(c.batch, 32);
    assert_true(c.lr == 0.5 && c.dry_run == 1);
    assert_int_equal(c.students.count, 2);
    assert_string_equal(c.teacher, "7");
    assert_string_equal(c.device, "auto");
    assert_ok(PARSE(&c, "--batch-size", "8", "--student", "z", "--no-dry-run", "--config", path)); /* the order of words doesn't matter */
    assert_int_equal(c.batch, 8);
    assert_int_equal(c.dry_run, 0);
    assert_int_equal(c.keep, 1);
    assert_int_equal(c.students.count, 1);
    assert_string_equal(c.students.item[0], "z");
}

static void a_mapping_in_a_list_is_written_out_as_settings(void **state)
{
    config c;
    static const char text[] = "cache: x\nstudent: [a, {model: b, lr: 0.25, steps: 7, keep: true, 'no': 'yes'}]\n", comma[] = "cache: x\nstudent: [{model: 'a,b'}]\n";
    static const char deep[] = "cache: x\nstudent: [{model: [a]}]\n", nested[] = "cache: x\nstudent: [{model: a, pair: [{x: 1, y: {z: 2}}, {x: 3}], keep: {x: b}}]\n";
    (void)state;
    unit_write(path, text, strlen(text));
    assert_ok(PARSE(&c, "--config", path));
    assert_int_equal(c.students.count, 2);
    assert_string_equal(c.students.item[0], "a");
    assert_string_equal(c.students.item[1], "model=b,lr=0.25,steps=7,keep=true,no=yes");
    unit_write(path, comma, strlen(comma));
    assert_int_equal(PARSE(&c, "--config", path), KD_EUSAGE);
    assert_contains(err.msg, "student: model: \"a,b\" has a comma");
    unit_write(path, deep, strlen(deep));
    assert_int_equal(PARSE(&c, "--config", path), KD_EUSAGE);
    assert_contains(err.msg, "student: model: one value, a mapping or a list of mappings is expected");
    unit_write(path, nested, strlen(nested));
    assert_ok(PARSE(&c, "--config", path));
    assert_string_equal(c.students.item[0], "model=a,pair=[x=1,y=[z=2]],pair=[x=3],keep=[x=b]");
}

static void one_option_can_be_set_over_a_filled_config(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE(&c, "--cache", "x", "--batch-size", "8"));
    assert_ok(kd_options_set(&prog, &c, "batch-size", "9", "here", arena, &err));
    assert_int_equal(c.batch, 9);
    assert_string_equal(c.cache, "x");
    assert_int_equal(kd_options_set(&prog, &c, "batch-size", "0", "here", arena, &err), KD_EUSAGE);
    assert_contains(err.msg, "here: batch-size: 0 is outside");
    assert_int_equal(kd_options_set(&prog, &c, "batch-sise", "1", "here", arena, &err), KD_EUSAGE);
    assert_contains(err.msg, "here: unknown setting \"batch-sise\"; did you mean \"batch-size\"?");
    assert_int_equal(kd_options_set(&prog, &c, "dry-run", "1", "here", arena, &err), KD_EUSAGE);
    assert_contains(err.msg, "here: dry-run: true or false is expected");
}

static void wrong_config_files_are_explained(void **state)
{
    static const struct { const char *text, *said; } bad[] = {
        {"bacth-size: 3\n", "config.yaml: unknown key \"bacth-size\"; did you mean \"batch-size\"?"},
        {"qqqqqqqqqqq: 3\n", "config.yaml: unknown key \"qqqqqqqqqqq\""},
        {"batch-size: 0\n", "config.yaml: batch-size: 0 is outside of 1 to 65536"},
        {"batch-size: many\n", "config.yaml: batch-size: \"many\" is not a whole number"},
        {"batch-size: [1]\n", "takes one value, not a list"},
        {"batch-size: true\n", "a value is expected, not true or false"},
        {"cache: {a: 1}\n", "a value or a list of values is expected"},
        {"dry-run: 1\n", "dry-run: true or false is expected"},
        {"dry-run: yes\n", "true or false is expected"},
        {"json: 3\n", "true or false is expected"},
        {"device: gpu\n", "is not one of auto|ref|cpu|cuda"},
        {"a: [\n", "config.yaml:2"}};
    config c;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        unit_write(path, bad[i].text, strlen(bad[i].text));
        if (PARSE(&c, "--cache", "x", "--config", path) != KD_EUSAGE)
            fail_msg("accepted: %s", bad[i].text);
        assert_contains(err.msg, bad[i].said);
    }
    assert_int_equal(PARSE(&c, "--cache", "x", "--config", "/absent.yaml"), KD_EUSAGE);
    assert_contains(err.msg, "/absent.yaml");
}

static void json_is_known_even_when_parsing_fails(void **state)
{
    config c;
    int json = 0;
    (void)state;
    assert_int_equal(parsed_with(&prog, &c, &json, (const char *const[]){"--wrong", "--json", NULL}), KD_EUSAGE);
    assert_int_equal(json, 1);
    json = 0;
    unit_write(path, "json: true\nquiet: true\n", 23);
    assert_ok(parsed_with(&prog, &c, &json, (const char *const[]){"--cache", "x", "--config", path, NULL}));
    assert_int_equal(json, 1);
    assert_int_equal(kd_log_get_level(), KD_LOG_WARN);
    assert_ok(PARSE(&c, "--cache", "x", "-v"));
    assert_int_equal(kd_log_get_level(), KD_LOG_DEBUG);
    assert_ok(PARSE(&c, "--cache", "x", "--quiet"));
    assert_int_equal(kd_log_get_level(), KD_LOG_WARN);
}

/* What a function prints to a stream. */
static char *printed(void (*print)(const kd_program *, FILE *), const kd_program *p)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    print(p, f);
    fclose(f);
    return text;
}

static void help_says_everything(void **state)
{
    char *text = printed(kd_options_help, &prog);
    (void)state;
    assert_memory_equal(text, "usage: kd-test --cache FILE [options]\n\nTests the options.\n\nexamples:\n  $ kd-test --cache a.kdc\n\noptions:\n", 99);
    assert_contains(text, "\n  --cache FILE              cache to read (required)\n");
    assert_contains(text, "\n  --batch-size N            images per step (1 to 65536; default 64)\n");
    assert_contains(text, "\n  --device auto|ref|cpu|cuda\n                            where to compute (default auto)\n");
    assert_contains(text, "\n  --dry-run                 print the plan and touch nothing\n");
    assert_contains(text, "may be given several times");
    assert_contains(text, "-h, --help");
    assert_contains(text, "--config FILE");
    assert_contains(text, "\nexit codes: 0 ok\n");
    for (const char *line = text; *line; line = strchr(line, '\n') + 1)
        assert_true(strcspn(line, "\n") <= 100);
    free(text);
    text = printed(kd_options_help, &positional);
    assert_contains(text, "usage: kd-test list FILE [MORE...] [options]\n");
    free(text);
}

static void help_and_version_go_to_stdout_and_end_with_0(void **state)
{
    static const char *const words[] = {"--help", "-h", "--version", "--man", "--completion"};
    config c;
    (void)state;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        int saved, fd;
        char buf[64] = {0};
        fflush(stdout);
        saved = dup(1);
        assert_non_null(freopen(path, "w", stdout));
        assert_int_equal(PARSE(&c, "--device", "cpu", words[i]), KD_DONE); /* though --cache is missing */
        fflush(stdout);
        dup2(saved, 1);
        close(saved);
        fd = open(path, 0);
        assert_true(read(fd, buf, sizeof buf - 1) > 0);
        close(fd);
        assert_contains(buf, i < 2 ? "usage: kd-test" : i == 2 ? "kd-test 0." : i == 3 ? ".TH \"KD-TEST\" 1" : "# bash completion for kd-test");
    }
}

static void the_manual_page_is_roff(void **state)
{
    char *text = printed(kd_options_man, &prog);
    (void)state;
    assert_contains(text, ".SH NAME\nkd\\-test \\- Tests the options.\n");
    assert_contains(text, ".TP\n.B \\-\\-batch\\-size N\nimages per step (1 to 65536; default 64)\n");
    assert_contains(text, ".SH EXAMPLES");
    free(text);
}

static void completion_is_valid_bash(void **state)
{
    char *text = printed(kd_options_completion, &prog), command[4300];
    (void)state;
    assert_contains(text, "--batch-size");
    assert_contains(text, "--device) COMPREPLY=($(compgen -W \"auto ref cpu cuda\"");
    assert_contains(text, "complete -o default -F _kd_test kd-test");
    unit_write(path, text, strlen(text));
    snprintf(command, sizeof command, "bash -n '%s'", path);
    assert_int_equal(system(command), 0);
    free(text);
}

static kd_status command_of(size_t *which, int *json, FILE *into, const char *a, const char *b)
{
    static const kd_program *const programs[] = {&positional, &prog};
    static const kd_command_set set = {.name = "kd-test", .summary = "Has commands.", .programs = programs, .count = 2, .epilog = "exit codes: 0 ok"};
    char *argv[] = {(char *)(uintptr_t) "kd-test", (char *)(uintptr_t)a, (char *)(uintptr_t)b, NULL};
    int saved = -1;
    kd_status status;
    if (into) {
        fflush(stdout);
        saved = dup(1);
        dup2(fileno(into), 1);
    }
    status = kd_options_command(&set, !a ? 1 : b ? 3 : 2, argv, which, json, &err);
    if (into) {
        fflush(stdout);
        dup2(saved, 1);
        close(saved);
    }
    return status;
}

static void commands_are_found_and_documented(void **state)
{
    static const struct { const char *word, *said[4]; } texts[] = {
        {"--help", {"usage: kd-test COMMAND [options]", "  list         Lists.", "  kd-test      Tests the options.", "exit codes: 0 ok"}},
        {"--version", {"kd-test 0."}},
        {"--man", {".TH \"KD-TEST\" 1", ".SH COMMAND list\nLists.\n.SS SYNOPSIS", ".TP\n.B \\-\\-batch\\-size N", ".SH NOTES"}},
        {"--completion", {"compgen -W \"list kd-test --help", "    list)\n", "--batch-size", "complete -o default -F _kd_test kd-test"}}};
    size_t which = 9;
    int json = 0;
    (void)state;
    assert_ok(command_of(&which, &json, NULL, "list", "--json"));
    assert_int_equal(which, 0);
    assert_int_equal(json, 1);
    assert_int_equal(command_of(&which, NULL, NULL, "lsit", NULL), KD_EUSAGE);
    assert_contains(err.msg, "unknown command \"lsit\"; did you mean list; kd-test --help lists them");
    assert_int_equal(command_of(&which, NULL, NULL, NULL, NULL), KD_EUSAGE);
    assert_contains(err.msg, "no command given");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        static char buf[20000];
        char command[4300];
        FILE *f = fopen(path, "w+");
        assert_non_null(f);
        assert_int_equal(command_of(&which, NULL, f, texts[i].word, NULL), KD_DONE);
        rewind(f);
        buf[fread(buf, 1, sizeof buf - 1, f)] = '\0';
        fclose(f);
        for (size_t k = 0; k < 4 && texts[i].said[k]; k++)
            assert_contains(buf, texts[i].said[k]);
        snprintf(command, sizeof command, "bash -n '%s'", path);
        if (i == 3)
            assert_int_equal(system(command), 0);
    }
}

static void resolved_values_read_back(void **state)
{
    config c, again;
    json_t *a, *b;
    (void)state;
    assert_ok(PARSE(&c, "--cache", "a: \"b\" #.kdc", "--lr", "0.0003", "--student", "x y", "--student", "2", "--seed", "-5", "--dry-run"));
    assert_ok(kd_options_write_yaml(&prog, &c, path, &err));
    assert_ok(PARSE(&again, "--config", path));
    assert_string_equal(again.cache, c.cache);
    assert_true(again.lr == c.lr && again.seed == -5 && again.dry_run == 1 && again.shard == c.shard);
    assert_int_equal(again.students.count, 2);
    a = kd_options_json(&prog, &c);
    b = kd_options_json(&prog, &again);
    assert_true(json_equal(a, b));
    assert_int_equal(json_object_size(a), 11);
    assert_int_equal(json_integer_value(json_object_get(a, "batch-size")), 64);
    json_decref(a);
    json_decref(b);
}

static const kd_option preset_table[] = {
    KD_OPTION_INT(config, batch, "batch-size", "N", "64", 1, 65536, "images per step"),
    KD_OPTION_REAL(config, lr, "lr", "X", "0.001", 0, 10, "learning rate"),
    KD_OPTION_CHOICE(config, device, "preset", "default|fast|wrong", "default", "settings at once"),
    KD_OPTION_STRING(config, teacher, "teacher", "NAME", "auto", 0, "family of the weights"), KD_OPTION_END};
static const kd_preset presets[] = {{"fast", {{"batch-size", "8"}, {"lr", "0.5"}, {"teacher", "small"}}}, {"wrong", {{"lr", "11"}}}, {NULL, {{NULL, NULL}}}};
static const kd_program with_presets = {.name = "kd-test", .summary = "Tests presets.", .options = preset_table, .preset_option = "preset", .presets = presets};

#define PARSE_PRESET(c, ...) parsed_with(&with_presets, (c), NULL, (const char *const[]){__VA_ARGS__, NULL})

static void what_is_given_wins_over_a_preset(void **state)
{
    config c;
    (void)state;
    assert_ok(PARSE_PRESET(&c, "--lr", "0.25"));
    assert_true(c.batch == 64 && c.lr == 0.25);
    assert_ok(PARSE_PRESET(&c, "--preset", "fast"));
    assert_true(c.batch == 8 && c.lr == 0.5);
    assert_string_equal(c.teacher, "small");
    assert_ok(PARSE_PRESET(&c, "--lr", "0.001", "--preset", "fast")); /* the default's value, but given */
    assert_true(c.batch == 8 && c.lr == 0.001);
    unit_write(path, "preset: fast\nteacher: auto\n", 27);
    assert_ok(PARSE_PRESET(&c, "--config", path, "--batch-size", "3"));
    assert_true(c.batch == 3 && c.lr == 0.5);
    assert_string_equal(c.teacher, "auto");
    assert_int_equal(PARSE_PRESET(&c, "--preset", "wrong"), KD_EUSAGE);
    assert_contains(err.msg, "preset: lr: 11 is outside");
    assert_int_equal(PARSE_PRESET(&c, "--preset", "fats"), KD_EUSAGE);
    assert_contains(err.msg, "did you mean fast?");
    char *text = printed(kd_options_help, &with_presets);
    assert_contains(text, "fast                      --batch-size 8 --lr 0.5 --teacher small\n");
    free(text);
    text = printed(kd_options_man, &with_presets);
    assert_contains(text, ".B \\-\\-preset fast\nstands for \\-\\-batch\\-size 8");
    free(text);
}

static void nearest_names(void **state)
{
    static const char *const names[] = {"cache", "batch-size", "seed", "lr"};
    char long_name[200];
    (void)state;
    assert_string_equal(kd_nearest_name("cahce", names, 4), "cache");
    assert_string_equal(kd_nearest_name("seeed", names, 4), "seed");
    assert_string_equal(kd_nearest_name("batch_size", names, 4), "batch-size");
    assert_null(kd_nearest_name("augment", names, 4));
    assert_null(kd_nearest_name("x", names, 0));
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_null(kd_nearest_name(long_name, names, 4));
}

/* Every allocation from the arena is small, so the test makes the block itself fail. */
static void out_of_memory_is_reported(void **state)
{
    config c;
    (void)state;
    kd_mem_fail_after(1);
    assert_int_equal(PARSE(&c, "--cache", "x"), KD_EFAIL);
    kd_mem_fail_after(0);
    assert_contains(err.msg, "out of memory");
}

#define OPTIONS_TEST(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        OPTIONS_TEST(defaults_are_filled_in),
        OPTIONS_TEST(every_kind_is_read),
        OPTIONS_TEST(a_list_option_takes_the_words_of_a_shell_pattern),
        OPTIONS_TEST(an_optional_value_stands_behind_an_equals_sign),
        OPTIONS_TEST(wrong_words_are_explained),
        OPTIONS_TEST(positionals_are_taken_in_order),
        OPTIONS_TEST(a_run_of_its_own_needs_nothing_else),
        OPTIONS_TEST(config_file_below_command_line_above_default),
        OPTIONS_TEST(a_mapping_in_a_list_is_written_out_as_settings),
        OPTIONS_TEST(one_option_can_be_set_over_a_filled_config),
        OPTIONS_TEST(wrong_config_files_are_explained),
        OPTIONS_TEST(json_is_known_even_when_parsing_fails),
        OPTIONS_TEST(help_says_everything),
        OPTIONS_TEST(help_and_version_go_to_stdout_and_end_with_0),
        OPTIONS_TEST(the_manual_page_is_roff),
        OPTIONS_TEST(completion_is_valid_bash),
        OPTIONS_TEST(commands_are_found_and_documented),
        OPTIONS_TEST(resolved_values_read_back),
        OPTIONS_TEST(what_is_given_wins_over_a_preset),
        OPTIONS_TEST(nearest_names),
        OPTIONS_TEST(out_of_memory_is_reported),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
