/* Parent: the provenance of a cache that was made from others: that of its (first) parent, so that notes, license and how the teacher ran stay with the numbers, and under "parent" what it was
 * made from: {"identity", "digest", "files": SHA-256 of each parent file, "command", "others": provenances of parent files that differ from the first's, "parent": the parent's own}.
 * Inside cache/ only. Pure functions. */
#ifndef KD_CACHE_PARENT_H
#define KD_CACHE_PARENT_H

#include "common/base/hash.h"
#include "common/base/json.h"

/* manifests: of the parent's files; NULL where one can't be read. digest: of all of them together, or NULL. *out: new reference. */
kd_status kd_parent_provenance(json_t **out, const json_t *const *manifests, size_t count, const kd_sha256 *identity, const kd_sha256 *digest, const char *command, kd_err *err);

#endif
