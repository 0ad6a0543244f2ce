#include "cache/commands.h"

#include <string.h>

#include "common/base/threads.h"

static const struct command {
    const char *name;
    const kd_program *program;
    kd_status (*run)(const kd_cache_config *c, kd_err *err);
} commands[] = {
    {"info", &kd_cache_info_program, kd_cache_info_run},    {"list", &kd_cache_list_program, kd_cache_list_run},
    {"check", &kd_cache_check_program, kd_cache_check_run}, {"dump", &kd_cache_dump_program, kd_cache_dump_run},
    {"view", &kd_cache_view_program, kd_cache_view_run},    {"prepare", &kd_cache_prepare_program, kd_cache_prepare_run},
    {"merge", &kd_cache_merge_program, kd_cache_merge_run}, {"split", &kd_cache_split_program, kd_cache_split_run},
    {"compact", &kd_cache_compact_program, kd_cache_compact_run}, {"extract", &kd_cache_extract_program, kd_cache_extract_run},
    {"repair", &kd_cache_repair_program, kd_cache_repair_run},
    {"estimate", &kd_cache_estimate_program, kd_cache_estimate_run}, {"digest", &kd_cache_digest_program, kd_cache_digest_run},
    {"export", &kd_cache_export_program, kd_cache_export_run},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const char exit_codes[] = "Exit codes: 0 ok; 1 failure; 2 usage; 3 done, but images are missing or were skipped; 10 cache not found; 12 cache damaged; 13 a replayed view differs, or caches don't belong together; 14 no space.\n";

static void print_commands(FILE *out)
{
    fprintf(out, "usage: kd-cache COMMAND [FILE.kdc|DIR] [options]\n\nLooks into feature caches: what made them, what they hold, whether they can be trusted; makes caches from caches; and prepares images for making them.\n\ncommands:\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].program->summary);
    fprintf(out, "\nkd-cache COMMAND --help explains each.\n\n%s", exit_codes);
}

/* The page of the whole program is the pages of its commands, one after another. */
static void print_man(FILE *out)
{
    for (int i = 0; i < COMMANDS; i++)
        kd_options_man(commands[i].program, out);
}

static void print_completion(FILE *out)
{
    fprintf(out, "# bash completion for kd-cache\n_kd_cache() {\n    local word=${COMP_WORDS[COMP_CWORD]}\n    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W '");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "%s%s", i ? " " : "", commands[i].name);
    fprintf(out, "' -- \"$word\"))\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "    %s) words='", commands[i].name);
        for (const kd_option *o = commands[i].program->options; o->name; o++) {
            if (!(o->flags & KD_OPT_POSITIONAL))
                fprintf(out, "--%s ", o->name);
        }
        fprintf(out, "--json --help' ;;\n");
    }
    fprintf(out, "    esac\n    case $word in\n    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$word\")) ;;\n    *) COMPREPLY=($(compgen -f -- \"$word\")) ;;\n    esac\n}\n"
                 "complete -o filenames -F _kd_cache kd-cache\n");
}

static kd_status before_command(const char *word)
{
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        print_commands(stdout);
    else if (strcmp(word, "--version") == 0)
        printf("kd-cache %s\n", kd_version);
    else if (strcmp(word, "--man") == 0)
        print_man(stdout);
    else if (strcmp(word, "--completion") == 0)
        print_completion(stdout);
    else
        return KD_OK;
    return KD_DONE;
}

/* Files are named without their folders: a cache is handed on, and where its parents lay is nobody's business. */
static kd_status command_text(const char **text, int argc, char **argv, kd_arena *arena, kd_err *err)
{
    char *all = kd_arena_strdup(arena, "kd-cache");
    for (int i = 1; i < argc && all; i++) {
        const char *equals = strncmp(argv[i], "--", 2) == 0 ? strchr(argv[i], '=') : NULL, *value = equals ? equals + 1 : argv[i], *end = value + strlen(value), *name;
        while (end > value && end[-1] == '/')
            end--;
        for (name = end; name > value && name[-1] != '/';)
            name--;
        all = kd_arena_printf(arena, "%s %.*s%.*s", all, (int)(value - argv[i]), argv[i], (int)(end - name), name);
    }
    *text = all;
    return all ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory");
}

kd_status kd_cache_main(int argc, char **argv, int *json, kd_arena *arena, kd_err *err)
{
    const char *names[COMMANDS], *near;
    kd_cache_config c = {0};
    if (argc < 2)
        return kd_fail(err, KD_EUSAGE, "no command given; kd-cache --help lists them");
    KD_TRY(before_command(argv[1]));
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        KD_TRY(kd_options_parse(commands[i].program, &c, argc - 1, argv + 1, json, arena, err));
        c.json = *json;
        KD_TRY(command_text(&c.command, argc, argv, arena, err));
        kd_signals_catch();
        return commands[i].run(&c, err);
    }
    near = kd_nearest_name(argv[1], names, COMMANDS);
    return kd_fail(err, KD_EUSAGE, "unknown command %s%s%s; kd-cache --help lists them", argv[1], near ? "; did you mean " : "", near ? near : "");
}

kd_list_format kd_cache_list_format(const kd_cache_config *config)
{
    return config->null ? KD_LIST_NUL : KD_LIST_LINES;
}

kd_status kd_cache_open_files(kd_cache **c, const kd_cache_config *config, kd_err *err)
{
    return kd_cache_open(c, config->files.item, config->files.count, err);
}

kd_status kd_cache_pick(const kd_image_entry **e, const kd_cache *c, const kd_cache_config *config, kd_err *err)
{
    kd_hash128 id;
    char views[64];
    if (strlen(config->id) != 32 || kd_unhex(id.b, config->id, sizeof id.b) != 0)
        return kd_fail(err, KD_EUSAGE, "--id %s: expected 32 hexadecimal digits, as `kd-cache list %s` prints them", config->id, config->files.item[0]);
    *e = kd_cache_find_image(c, &id);
    if (!*e)
        return kd_fail(err, KD_ENOTFOUND, "%s: has no image %s; `kd-cache list %s` prints those that it has", config->files.item[0], config->id, config->files.item[0]);
    if (!kd_image_find_view(*e, (uint32_t)config->view))
        return kd_fail(err, KD_ENOTFOUND, "%s: image %s has %s, not %lld", config->files.item[0], config->id, kd_image_views_text(*e, views), (long long)config->view);
    return KD_OK;
}
