/* What options.c (parsing) and options_help.c (texts) share: the options that every program has. Not for other files. */
#ifndef KD_COMMON_BASE_OPTIONS_COMMON_H
#define KD_COMMON_BASE_OPTIONS_COMMON_H

#include "common/base/options.h"

typedef enum kd_common_id {
    KD_COMMON_CONFIG,
    KD_COMMON_JSON,
    KD_COMMON_VERBOSE,
    KD_COMMON_QUIET,
    KD_COMMON_HELP,
    KD_COMMON_VERSION,
    KD_COMMON_MAN,
    KD_COMMON_COMPLETION,
    KD_COMMON_COUNT
} kd_common_id;

typedef struct kd_common_option {
    const char *name;
    char letter;         /* 0: none */
    const char *metavar; /* NULL: takes no value */
    const char *help;
} kd_common_option;

/* Pieces of the texts that a program with commands puts together anew. */
void kd_options_roff(FILE *out, const char *before, const char *text); /* `before` as it is, text escaped, newline */
void kd_options_man_heading(FILE *out, const char *name, const char *summary);
void kd_options_man_body(const kd_program *prog, FILE *out, const char *section); /* ".SH" or ".SS" in front of each heading */
void kd_options_completion_cases(const kd_program *prog, FILE *out, const char *indent);

extern const kd_common_option kd_common_options[KD_COMMON_COUNT];

#endif
