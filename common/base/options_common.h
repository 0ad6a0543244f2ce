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

extern const kd_common_option kd_common_options[KD_COMMON_COUNT];

#endif
