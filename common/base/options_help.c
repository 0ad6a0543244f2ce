#include <ctype.h>
#include <string.h>

#include "common/base/options_common.h"

const kd_common_option kd_common_options[KD_COMMON_COUNT] = {
    [KD_COMMON_CONFIG] = {"config", 0, "FILE", "Read options from a YAML file of \"name: value\" lines; a flag on the command line wins."},
    [KD_COMMON_JSON] = {"json", 0, NULL, "Write JSON lines to stdout in place of text."},
    [KD_COMMON_VERBOSE] = {"verbose", 'v', NULL, "Say more (the same as KD_LOG=debug)."},
    [KD_COMMON_QUIET] = {"quiet", 'q', NULL, "Warnings and errors only."},
    [KD_COMMON_HELP] = {"help", 'h', NULL, "Print this text."},
    [KD_COMMON_VERSION] = {"version", 0, NULL, "Print the version."},
    [KD_COMMON_MAN] = {"man", 0, NULL, "Print the manual page (roff)."},
    [KD_COMMON_COMPLETION] = {"completion", 0, NULL, "Print the completion script for bash."},
};

enum { HELP_COLUMN = 28, WIDTH = 100 };

/* Range and default in words: "1 to 64; default 8". Empty when there is nothing to say. */
static const char *facts(const kd_option *o, char *buf, size_t cap)
{
    size_t n = 0;
    const char *separator = "";
    buf[0] = '\0';
    if (o->flags & KD_OPT_REQUIRED) {
        n += (size_t)snprintf(buf, cap, "required");
        separator = "; ";
    }
    if (o->kind == KD_OPT_STRINGS && n < cap) {
        n += (size_t)snprintf(buf + n, cap - n, "%smay be given several times", separator);
        separator = "; ";
    }
    if ((o->kind == KD_OPT_INT || o->kind == KD_OPT_REAL) && !(o->min == 0 && o->max == 0) && n < cap) {
        if (o->max < 1e12)
            n += (size_t)snprintf(buf + n, cap - n, "%s%.12g to %.12g", separator, o->min, o->max);
        else
            n += (size_t)snprintf(buf + n, cap - n, "%sat least %.12g", separator, o->min);
        separator = "; ";
    }
    if (o->dflt && n < cap)
        snprintf(buf + n, cap - n, "%sdefault %s", separator, o->dflt);
    return buf;
}

/* Prints text in lines up to WIDTH; the cursor stands at `column` and later lines begin at HELP_COLUMN. */
static void wrap(FILE *out, const char *text, size_t column)
{
    const char *space = "";
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column + n + 1 > WIDTH && *space) {
            fprintf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
            space = "";
        }
        fprintf(out, "%s%.*s", space, (int)n, text);
        column += n + strlen(space);
        space = " ";
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void entry(FILE *out, const char *left, const char *help, const char *extra)
{
    char all[1600];
    size_t n = strlen(left);
    fprintf(out, "  %s", left);
    if (n + 4 > HELP_COLUMN)
        fprintf(out, "\n%*s", HELP_COLUMN, "");
    else
        fprintf(out, "%*s", (int)(HELP_COLUMN - 2 - n), "");
    snprintf(all, sizeof all, *extra ? "%s (%s)" : "%s", help, extra);
    wrap(out, all, HELP_COLUMN);
}

static void usage(const kd_program *prog, FILE *out)
{
    fprintf(out, "%s", prog->name);
    for (const kd_option *o = prog->options; o->name; o++)
        if ((o->flags & KD_OPT_REQUIRED) && !(o->flags & KD_OPT_POSITIONAL))
            fprintf(out, " --%s %s", o->name, o->metavar);
    for (const kd_option *o = prog->options; o->name; o++)
        if (o->flags & KD_OPT_POSITIONAL)
            fprintf(out, o->flags & KD_OPT_REQUIRED ? " %s%s" : " [%s%s]", o->name, o->kind == KD_OPT_STRINGS ? "..." : "");
    fprintf(out, " [options]\n");
}

static const char *common_name(const kd_common_option *c, char *buf, size_t cap)
{
    char letter[5] = "";
    if (c->letter)
        snprintf(letter, sizeof letter, "-%c, ", c->letter);
    snprintf(buf, cap, "%s--%s%s%s", letter, c->name, c->metavar ? " " : "", c->metavar ? c->metavar : "");
    return buf;
}

/* As it is typed: "FILE", "--dry-run", "--batch-size N", "--read-data[=N/T]". */
static const char *option_text(const kd_option *o, char *buf, size_t cap)
{
    if (o->flags & KD_OPT_POSITIONAL)
        snprintf(buf, cap, "%s", o->name);
    else if (o->kind == KD_OPT_FLAG)
        snprintf(buf, cap, "--%s", o->name);
    else
        snprintf(buf, cap, o->flags & KD_OPT_OPTIONAL ? "--%s[=%s]" : "--%s %s", o->name, o->metavar);
    return buf;
}

/* "--loss mse --lr 0.1" */
static const char *preset_text(const kd_preset *p, char *buf, size_t cap)
{
    size_t n = 0;
    buf[0] = '\0';
    for (int k = 0; k < KD_PRESET_VALUES && p->value[k][0] && n < cap; k++)
        n += (size_t)snprintf(buf + n, cap - n, "%s--%s %s", k > 0 ? " " : "", p->value[k][0], p->value[k][1]);
    return buf;
}

static int ends_with_newline(const char *s)
{
    size_t n = strlen(s);
    return n > 0 && s[n - 1] == '\n';
}

void kd_options_help(const kd_program *prog, FILE *out)
{
    char left[256], extra[256], all[800];
    fprintf(out, "usage: ");
    usage(prog, out);
    fprintf(out, "\n%s\n", prog->summary);
    if (prog->examples)
        fprintf(out, "\nexamples:\n%s%s", prog->examples, ends_with_newline(prog->examples) ? "" : "\n");
    fprintf(out, "\noptions:\n");
    for (const kd_option *o = prog->options; o->name; o++)
        entry(out, option_text(o, left, sizeof left), o->help, facts(o, extra, sizeof extra));
    if (prog->preset_option)
        fprintf(out, "\n--%s stands for these, of which those win that are given:\n", prog->preset_option);
    for (const kd_preset *p = prog->presets; prog->preset_option && p->name; p++)
        entry(out, p->name, preset_text(p, all, sizeof all), "");
    fprintf(out, "\ncommon options:\n");
    for (int i = 0; i < KD_COMMON_COUNT; i++)
        entry(out, common_name(&kd_common_options[i], left, sizeof left), kd_common_options[i].help, "");
    if (prog->epilog)
        fprintf(out, "\n%s%s", prog->epilog, ends_with_newline(prog->epilog) ? "" : "\n");
}

/* ---- manual page ---- */

/* Text as roff: dashes that can be copied, no accidental requests, no accidental escapes. */
static void roff(FILE *out, const char *text)
{
    int line_start = 1;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        line_start = *text == '\n';
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
    }
}

void kd_options_roff(FILE *out, const char *before, const char *text)
{
    fputs(before, out);
    roff(out, text);
    fputc('\n', out);
}

void kd_options_man_heading(FILE *out, const char *name, const char *summary)
{
    fputs(".TH \"", out);
    for (const char *c = name; *c; c++)
        fputc(*c == ' ' ? '-' : toupper((unsigned char)*c), out);
    fprintf(out, "\" 1 \"\" \"kdcache %s\"\n.SH NAME\n", kd_version);
    roff(out, name);
    fputs(" \\- ", out);
    kd_options_roff(out, "", summary);
}

static void man_options(const kd_program *prog, FILE *out)
{
    char left[256], extra[256];
    for (const kd_option *o = prog->options; o->name; o++) {
        kd_options_roff(out, ".TP\n.B ", option_text(o, left, sizeof left));
        roff(out, o->help);
        facts(o, extra, sizeof extra);
        if (extra[0]) {
            fputs(" (", out);
            roff(out, extra);
            fputc(')', out);
        }
        fputc('\n', out);
    }
}

static void man_presets(const kd_program *prog, FILE *out)
{
    char all[800];
    for (const kd_preset *p = prog->presets; prog->preset_option && p->name; p++) {
        fprintf(out, ".TP\n.B \\-\\-%s ", prog->preset_option);
        kd_options_roff(out, "", p->name);
        roff(out, "stands for ");
        kd_options_roff(out, "", preset_text(p, all, sizeof all));
    }
}

static void man_common_options(FILE *out)
{
    char left[256];
    for (int i = 0; i < KD_COMMON_COUNT; i++) {
        kd_options_roff(out, ".TP\n.B ", common_name(&kd_common_options[i], left, sizeof left));
        kd_options_roff(out, "", kd_common_options[i].help);
    }
}

void kd_options_man_body(const kd_program *prog, FILE *out, const char *section)
{
    fprintf(out, "%s SYNOPSIS\n.nf\n", section);
    usage(prog, out);
    fprintf(out, ".fi\n%s OPTIONS\n", section);
    man_options(prog, out);
    man_presets(prog, out);
    man_common_options(out);
    if (prog->examples) {
        fprintf(out, "%s EXAMPLES\n.nf\n", section);
        kd_options_roff(out, "", prog->examples);
        fputs(".fi\n", out);
    }
    if (prog->epilog) {
        fprintf(out, "%s NOTES\n.nf\n", section);
        kd_options_roff(out, "", prog->epilog);
        fputs(".fi\n", out);
    }
}

void kd_options_man(const kd_program *prog, FILE *out)
{
    kd_options_man_heading(out, prog->name, prog->summary);
    kd_options_man_body(prog, out, ".SH");
}

/* ---- completion ---- */

void kd_options_completion_cases(const kd_program *prog, FILE *out, const char *indent)
{
    fprintf(out, "%scase ${COMP_WORDS[COMP_CWORD-1]} in\n", indent);
    for (const kd_option *o = prog->options; o->name; o++) {
        if (o->kind != KD_OPT_CHOICE)
            continue;
        fprintf(out, "%s--%s) COMPREPLY=($(compgen -W \"", indent, o->name);
        for (const char *c = o->metavar; *c; c++)
            fputc(*c == '|' ? ' ' : *c, out);
        fputs("\" -- \"$word\")); return;;\n", out);
    }
    fprintf(out, "%sesac\n%scase $word in\n%s-*) COMPREPLY=($(compgen -W \"", indent, indent, indent);
    for (const kd_option *o = prog->options; o->name; o++)
        if (!(o->flags & KD_OPT_POSITIONAL))
            fprintf(out, "--%s ", o->name);
    for (int i = 0; i < KD_COMMON_COUNT; i++)
        fprintf(out, "--%s ", kd_common_options[i].name);
    fprintf(out, "\" -- \"$word\"));;\n%sesac\n", indent);
}

void kd_options_completion(const kd_program *prog, FILE *out)
{
    char function[128];
    size_t n = 0;
    for (const char *c = prog->name; *c && n + 1 < sizeof function; c++)
        function[n++] = isalnum((unsigned char)*c) ? *c : '_';
    function[n] = '\0';
    fprintf(out, "# bash completion for %s\n_%s() {\n    local word=${COMP_WORDS[COMP_CWORD]}\n", prog->name, function);
    kd_options_completion_cases(prog, out, "    ");
    fprintf(out, "}\ncomplete -o default -F _%s %s\n", function, prog->name);
}
