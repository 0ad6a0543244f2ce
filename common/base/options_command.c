/* Programs made of commands: finding the command, and the texts of the whole. */
#include <ctype.h>
#include <string.h>

#include "common/base/options_common.h"

/* "list" of "kd-cache list". */
static const char *command_name(const kd_program *prog)
{
    const char *space = strrchr(prog->name, ' ');
    return space ? space + 1 : prog->name;
}

static void set_help(const kd_command_set *set, FILE *out)
{
    fprintf(out, "usage: %s COMMAND [options]\n\n%s\n\ncommands:\n", set->name, set->summary);
    for (size_t i = 0; i < set->count; i++)
        fprintf(out, "  %-12s %s\n", command_name(set->programs[i]), set->programs[i]->summary);
    fprintf(out, "\n%s COMMAND --help explains each.\n", set->name);
    if (set->epilog)
        fprintf(out, "\n%s%s", set->epilog, set->epilog[0] && set->epilog[strlen(set->epilog) - 1] == '\n' ? "" : "\n");
}

static void set_man(const kd_command_set *set, FILE *out)
{
    kd_options_man_heading(out, set->name, set->summary);
    kd_options_roff(out, ".SH SYNOPSIS\n", set->name);
    fputs("COMMAND [options]\n", out);
    for (size_t i = 0; i < set->count; i++) {
        kd_options_roff(out, ".SH COMMAND ", command_name(set->programs[i]));
        kd_options_roff(out, "", set->programs[i]->summary);
        kd_options_man_body(set->programs[i], out, ".SS");
    }
    if (set->epilog) {
        kd_options_roff(out, ".SH NOTES\n.nf\n", set->epilog);
        fputs(".fi\n", out);
    }
}

static void set_completion(const kd_command_set *set, FILE *out)
{
    char function[128];
    size_t n = 0;
    for (const char *c = set->name; *c && n + 1 < sizeof function; c++)
        function[n++] = isalnum((unsigned char)*c) ? *c : '_';
    function[n] = '\0';
    fprintf(out, "# bash completion for %s\n_%s() {\n    local word=${COMP_WORDS[COMP_CWORD]}\n    if [ \"$COMP_CWORD\" = 1 ]; then\n", set->name, function);
    fputs("        COMPREPLY=($(compgen -W \"", out);
    for (size_t i = 0; i < set->count; i++)
        fprintf(out, "%s ", command_name(set->programs[i]));
    fputs("--help --version\" -- \"$word\"))\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n", out);
    for (size_t i = 0; i < set->count; i++) {
        fprintf(out, "    %s)\n", command_name(set->programs[i]));
        kd_options_completion_cases(set->programs[i], out, "        ");
        fputs("        ;;\n", out);
    }
    fprintf(out, "    esac\n}\ncomplete -o default -F _%s %s\n", function, set->name);
}

kd_status kd_options_command(const kd_command_set *set, int argc, char **argv, size_t *which, int *json, kd_err *err)
{
    const char *names[64], *near, *word = argc > 1 ? argv[1] : NULL;
    KD_ASSERT(set->count <= sizeof names / sizeof *names);
    for (int i = 1; json && i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            *json = 1;
    if (!word)
        return kd_fail(err, KD_EUSAGE, "no command given; %s --help lists them", set->name);
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        set_help(set, stdout);
        return KD_DONE;
    }
    if (strcmp(word, "--version") == 0) {
        printf("%s %s\n", set->name, kd_version);
        return KD_DONE;
    }
    if (strcmp(word, "--man") == 0) {
        set_man(set, stdout);
        return KD_DONE;
    }
    if (strcmp(word, "--completion") == 0) {
        set_completion(set, stdout);
        return KD_DONE;
    }
    for (size_t i = 0; i < set->count; i++) {
        names[i] = command_name(set->programs[i]);
        if (strcmp(word, names[i]) == 0) {
            *which = i;
            return KD_OK;
        }
    }
    near = kd_nearest_name(word, names, set->count);
    return kd_fail(err, KD_EUSAGE, "unknown command \"%s\"%s%s; %s --help lists them", word, near ? "; did you mean " : "", near ? near : "",
                   set->name);
}
