/* Moving a sealed shard from the disk where it was written to where it is kept (kd-precompute --stage), such that a kill at any point is repaired by the same call. Inside cache/ only. */
#ifndef KD_CACHE_SHARD_MOVE_H
#define KD_CACHE_SHARD_MOVE_H

#include "common/base/err.h"

/* from, to: X.kdc with its manifest X.kdc.json. The bytes are copied to a hidden name beside `to` (.X.kdc.moving, the same at every try), their SHA-256 is compared with the manifest's on the
 * way, and after fsync they get their name; the manifest follows, then `from` is removed. What an interrupted call has done already isn't done again.
 * KD_EDAMAGED: `from` isn't what its manifest says. KD_EMISMATCH: `to` is another shard, with less in it. KD_EFAIL, KD_ENOSPACE; KD_ESIGINT, KD_ESIGTERM: stopped, `from` is as it was. */
kd_status kd_shard_move(const char *from, const char *to, kd_err *err);

#endif
