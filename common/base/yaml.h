/* YAML: a config file as a JSON value, through libyaml (the only file that includes yaml.h is yaml.c).
 *
 * The subset that configs need: mappings with unique string keys, sequences, scalars. Anchors, aliases and tags are refused
 * (no expansion bombs), depth is at most 16 and the file at most 1 MiB. Plain scalars that are integers, reals, true/false or
 * null get that type; everything else, and every quoted scalar, is a string ("no" and "off" stay strings). */
#ifndef KD_COMMON_BASE_YAML_H
#define KD_COMMON_BASE_YAML_H

#include "common/base/json.h"

/* KD_EUSAGE naming file, line and column. *out is a new reference to an object (empty file: empty object). */
kd_status kd_yaml_read_file(const char *path, json_t **out, kd_err *err);

/* YAML text of an object of scalars and lists of scalars, keys in the object's order; kd_free'd by the caller, NULL when memory is out. */
char *kd_yaml_text(const json_t *object);

#endif
