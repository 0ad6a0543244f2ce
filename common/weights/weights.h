/* Weight files: named tensors from .safetensors or PyTorch .pth, one file or a set of shards, whatever is on disk.
 *
 * First stage of both precompute (teacher) and train (--init). Files are foreign bytes: everything is checked before use and
 * nothing is ever executed (pth.c is a stack machine that knows tuples and tensors, not functions).
 *
 * A file that holds a pickled torch.nn.Module in place of a state_dict (ultralytics' .pt, torch.save(model)) is read as data too: its parameters and
 * persistent buffers, with the names that state_dict() gives them ("model.0.conv.weight"). Of a checkpoint with a module under "ema" (when it isn't None)
 * or "model", that module alone is read, without the key in the names; kd_weights_container says which.
 *
 *     kd_weights *w;
 *     KD_TRY(kd_weights_open(&w, "dinov2_vits14_pretrain.pth", err));
 *     int i = kd_weights_find(w, "cls_token");
 *     KD_TRY(kd_weights_read_f32(w, i, buf, n, err));
 *     kd_weights_close(w);
 *
 * Files are mapped and every page is released after it was converted or hashed; of a zip .pth at most one storage is held. So resident memory
 * stays near one tensor, whatever the size of the file.
 *
 * Thread rule: an open file may be read from several threads; opening and closing is one thread's business. */
#ifndef KD_COMMON_WEIGHTS_WEIGHTS_H
#define KD_COMMON_WEIGHTS_WEIGHTS_H

#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/tensor/tensor.h"

typedef struct kd_weights kd_weights;

/* path: a .safetensors, a PyTorch .pth (.pt, .bin, .ckpt), the index of a set of shards (*.index.json, its files beside it), or a folder with
 * model.safetensors.index.json, else model.safetensors, else pytorch_model.bin.index.json, else pytorch_model.bin.
 * Sniffs the container by content. Nested dictionaries are flattened with '.' ("teacher.backbone.cls_token"), lists by position. The CRC of
 * a .pth's storage is checked when a tensor in it is read.
 * KD_EFAIL: missing or unreadable; damaged or malformed (truncated, offsets outside the file, overlaps, duplicate names).
 * KD_EUSAGE: whole, but not what is wanted, said with the next step: TorchScript, tar .pth, a pickled object that is neither a
 * dictionary of tensors nor a module, element types that aren't read, a web page, GGUF, an archive of something else, a folder without weights, a set of
 * which a shard is missing. */
kd_status kd_weights_open(kd_weights **out, const char *path, kd_err *err);
void kd_weights_close(kd_weights *w); /* accepts NULL */

const char *kd_weights_path(const kd_weights *w);    /* of the file or index; in a folder, of the one that was chosen */
const char *kd_weights_dir(const kd_weights *w);    /* the folder of the file, where config.json and the like lie; "." for a bare name */
int kd_weights_files(const kd_weights *w);          /* files that hold the tensors: 1, or the number of shards */
const char *kd_weights_container(const kd_weights *w); /* "safetensors", "PyTorch .pth (zip)" or "PyTorch .pth (legacy)", and after these ", a pickled module" or ", the pickled module under 'ema'" (or 'model'); of a set, what each of its files is */
uint64_t kd_weights_bytes(const kd_weights *w);     /* their bytes together */
int kd_weights_count(const kd_weights *w);
/* Description of tensor i in file order; data is NULL (use a read function). The name lives as long as w. */
kd_tensor kd_weights_info(const kd_weights *w, int i);
int kd_weights_find(const kd_weights *w, const char *name); /* -1 when absent */

/* Reads tensor i as n f32 values in row-major order (strided storages are gathered). KD_EFAIL when n isn't its element count or
 * a value is NaN or infinite (tensor named with index). */
kd_status kd_weights_read_f32(const kd_weights *w, int i, float *out, size_t n, kd_err *err);
/* The same for buffers that may rightly hold NaN or infinity. */
kd_status kd_weights_read_f32_any(const kd_weights *w, int i, float *out, size_t n, kd_err *err);
/* Raw integer read for I64 scalars such as num_batches_tracked. */
kd_status kd_weights_read_i64(const kd_weights *w, int i, int64_t *out, size_t n, kd_err *err);

/* SHA-256 of the file's bytes, as `sha256sum` prints it (computed once, on first call). Of a set: of the text that `sha256sum SHARD...`
 * prints for the shards' names without folder, sorted; the index isn't part of it. */
kd_status kd_weights_sha256(kd_weights *w, kd_sha256 *out, kd_err *err);

/* Strings of safetensors' __metadata__ or of an exported .pth's kdcache.json (borrowed object or NULL; NULL for a set of shards). */
const json_t *kd_weights_metadata(const kd_weights *w);

#endif
