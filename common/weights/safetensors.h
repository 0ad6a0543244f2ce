/* The .safetensors format (huggingface/safetensors README "Format"): reading for weights.c and writing for exports and dumps.
 * Validation rules: the reference's list (HeaderTooSmall ... MetadataIncompleteBuffer) plus duplicate names. */
#ifndef KD_COMMON_WEIGHTS_SAFETENSORS_H
#define KD_COMMON_WEIGHTS_SAFETENSORS_H

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/tensor/tensor.h"

/* Writes `count` dense tensors (data must be set; any kd_dtype) atomically. Order in the file: 8-byte types first, then by name, as the
 * reference writer does. metadata: object of strings or NULL; {"format":"pt"} is always added. Same input, same bytes. */
kd_status kd_safetensors_write(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, kd_err *err);

/* The same for tensors that are too large for memory: `put` is called once for each tensor, in the order of the file, and must give exactly its bytes (kd_io_replace_write). Their data is not read.
 * Tensors' bytes must fit in 63 bits together. */
kd_status kd_safetensors_stream(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, kd_status (*put)(void *ctx, const kd_tensor *t, kd_replace *file, kd_err *err),
                                void *ctx, kd_err *err);

#endif
