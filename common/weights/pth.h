/* Writing PyTorch's .pth container for exports: what torch.save(OrderedDict of tensors) writes, so that torch.load(FILE, weights_only=True) gives the same. Reading is pth.c, behind weights.h.
 *
 *     KD_TRY(kd_pth_write("resnet18.pth", tensors, count, metadata, err));
 *
 * A zip of uncompressed entries under "archive/": data.pkl (a pickle of protocol 2: an OrderedDict of tensors and nothing else), byteorder, data/0 .. data/N-1 with a tensor's bytes each, version, and
 * kdcache.json, an object of strings. A state_dict has no place for strings that a strict load wouldn't trip over, and torch never looks at an entry that the pickle doesn't name:
 * zipfile.ZipFile(FILE).read("archive/kdcache.json") reads it, and kd_weights_metadata. */
#ifndef KD_COMMON_WEIGHTS_PTH_H
#define KD_COMMON_WEIGHTS_PTH_H

#include "common/base/json.h"
#include "common/tensor/tensor.h"

/* Writes `count` dense tensors (data must be set; any kd_dtype) atomically, in the order given, each one's bytes on a multiple of 64 in the file (as torch does, for mapping). metadata: object of strings or NULL.
 * Same input, same bytes: no times, no names of files. KD_ENOSPACE; KD_EFAIL: two tensors of one name, a name that isn't UTF-8, metadata that aren't strings, memory, the file can't be written. */
kd_status kd_pth_write(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, kd_err *err);

#endif
