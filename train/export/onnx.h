/* ONNX: a student as a graph that onnxruntime and its like run without its library. A writer of kd-export, beside those of weight files.
 *
 *     KD_TRY(kd_onnx_write("r18.onnx", graph, params, &model, &taps, 224, 224, metadata, err));
 *
 *     input   images  float32 [batch,3,height,width]: RGB, (pixel / 255 - image_mean) / image_std, with the numbers that metadata_props name; not the uint8 pixels that a kd_graph begins with
 *     outputs pooled  float32 [batch,D]; cls [batch,D], the same for every student; patch: of a CNN the map as its library has it [batch,D,h,w], of a ViT the patch tokens [batch,P,D], row by row
 *
 * Every node of the graph is said in ops of ONNX's opset 17 (onnx_ops.c); there is no code for a model. Parameters are initializers with their names and shapes. Batch norms work by their running statistics. */
#ifndef KD_TRAIN_EXPORT_ONNX_H
#define KD_TRAIN_EXPORT_ONNX_H

#include "common/base/json.h"
#include "kernels/nn/models.h"

/* g, taps: from kd_model_build alone; p: its parameters. height, width: the images' that g was built for; 0, 0: any that the model takes, the sides are then "height" and "width" as the batch is "batch".
 * metadata: strings or NULL; kd_model_metadata's are added, which say how to feed the model. A model above 2 GiB has a second file, path.data.
 * KD_EUSAGE: any size of a model that has one (a ViT's positions); an op that no student has. KD_ENONFINITE naming the parameter. Otherwise the causes of kd_io_replace_begin to _commit. */
kd_status kd_onnx_write(const char *path, const kd_graph *g, kd_params *p, const kd_model_info *m, const kd_model_taps *taps, int height, int width, const json_t *metadata, kd_err *err);

#endif
