/* Graph: a model as a list of nodes, written once by a builder, compiled for (backend, batch, precision, mode) and run many times.
 *
 *     kd_graph *g = kd_graph_create();
 *     kd_val x = kd_graph_images(g, 224, 224);                             // U8 [N,224,224,3], input "images"
 *     x = kd_graph_normalize(g, x, mean, std);
 *     x = kd_graph_conv2d(g, x, "conv1", 64, 7, 2, 3, 0);                  // parameter "conv1.weight"
 *     ...
 *     kd_graph_output(g, x, "pooled");
 *     kd_params *p;  kd_params_create(&p, g, backend, err); kd_params_init(p, seed, err);   // or kd_params_set from a file
 *     kd_exec *e;    kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 64, .precision = KD_BF16}, err);
 *     kd_exec_upload(e, "images", pixels, err); kd_exec_forward(e, err); kd_exec_download(e, "pooled", out, err);
 *
 * Parameters live apart from compiled programs, so a training program and an evaluation program share them. After creation nothing is
 * allocated in a step. Shapes of values leave out the batch dimension; shapes that don't fit are asserted (a builder's bug).
 * Thread rule: one thread at a time for all objects of one backend. */
#ifndef KD_KERNELS_NN_GRAPH_H
#define KD_KERNELS_NN_GRAPH_H

#include <stdio.h>

#include "kernels/backend.h"

typedef struct kd_graph kd_graph;
typedef int kd_val; /* index of a value in its graph */

kd_graph *kd_graph_create(void); /* NULL when memory is out */
void kd_graph_destroy(kd_graph *g); /* accepts NULL, as every destroy here */
/* Out of memory while building is remembered; every builder call then does nothing. Checked by kd_params_create and kd_exec_create. */

/* --- values --- */
/* Shape without batch. rank 1..3. */
void kd_graph_shape(const kd_graph *g, kd_val v, int *rank, int64_t shape[3]);

kd_val kd_graph_images(kd_graph *g, int height, int width);                                      /* input "images": U8 [H,W,3] */
kd_val kd_graph_input(kd_graph *g, const char *name, int rank, const int64_t *shape);            /* F32 input without gradient: targets */
void kd_graph_output(kd_graph *g, kd_val v, const char *name);                                   /* named tap; kept until the end of the pass; F32 or the precision: see kd_exec_download */

/* --- nodes. `name` is the prefix of the parameters' names; "" is not allowed where there are parameters --- */
kd_val kd_graph_normalize(kd_graph *g, kd_val x, const float mean[3], const float std[3]);
kd_val kd_graph_conv2d(kd_graph *g, kd_val x, const char *name, int out_channels, int kernel, int stride, int pad, int bias); /* name.weight, name.bias */
/* The same in groups, 1 to channels of them (channels: depthwise): name.weight [out_channels, channels / groups, kernel, kernel] */
kd_val kd_graph_conv2d_grouped(kd_graph *g, kd_val x, const char *name, int out_channels, int kernel, int stride, int pad, int groups, int bias);
kd_val kd_graph_linear(kd_graph *g, kd_val x, const char *name, int out, int bias);               /* name.weight, name.bias */
kd_val kd_graph_batch_norm(kd_graph *g, kd_val x, kd_val residual /* or -1 */, const char *name, float eps, float momentum, kd_act act);
                                                                                                 /* name.weight, .bias, .running_mean, .running_var, .num_batches_tracked; any act */
kd_val kd_graph_layer_norm(kd_graph *g, kd_val x, const char *name, float eps);                   /* name.weight, name.bias */
kd_val kd_graph_layer_norm_again(kd_graph *g, kd_val x, const char *name);                        /* an earlier one's parameters and eps: the final norm of several layers */
kd_val kd_graph_act(kd_graph *g, kd_val x, kd_act act);
kd_val kd_graph_silu_gate(kd_graph *g, kd_val x);
kd_val kd_graph_add(kd_graph *g, kd_val a, kd_val b);                                             /* result is a residual stream: F32 in every precision */
kd_val kd_graph_scale_add(kd_graph *g, kd_val residual, kd_val x, const char *gamma_name);        /* parameter gamma_name [D], e.g. "blocks.0.ls1.gamma" */
/* The same with a parameter of any shape that holds D values (torchvision's ConvNeXt: [D,1,1]), which starts at `init`. */
kd_val kd_graph_scale_add_shaped(kd_graph *g, kd_val residual, kd_val x, const char *gamma_name, int rank, const int64_t *shape, float init);
kd_val kd_graph_shortcut(kd_graph *g, kd_val a, kd_val b);                                        /* a + b of maps inside a CNN: unlike kd_graph_add's, the result has the program's precision */
kd_val kd_graph_max_pool(kd_graph *g, kd_val x, int kernel, int stride, int pad);
kd_val kd_graph_mean_tokens(kd_graph *g, kd_val x);                                               /* F32 result */
kd_val kd_graph_attention(kd_graph *g, kd_val qkv, int heads);
/* Turns q and k of the tokens from `begin` on, patches of a grid_h x grid_w grid, by their place (KD_OP_ROPE). periods = width / heads / 4. */
kd_val kd_graph_rope(kd_graph *g, kd_val qkv, int heads, int begin, int grid_h, int grid_w, const float *period, int periods);
/* Class token, registers, patches [P,D] -> [1+R+P,D], F32. Parameters cls_name [1,1,D], pos_name [1,1+P,D] (NULL: no learned positions), reg_name [1,R,D] (NULL with 0 registers). */
kd_val kd_graph_tokens(kd_graph *g, kd_val patches, const char *cls_name, const char *pos_name, const char *reg_name, int registers);
kd_val kd_graph_concat(kd_graph *g, kd_val a, kd_val b);                                          /* [..,A], [..,B] -> [..,A+B] of one type */
kd_val kd_graph_concat_n(kd_graph *g, const kd_val *x, int n);                                    /* the same with n = 2 .. KD_OP_MAX_X different values */
kd_val kd_graph_channel_slice(kd_graph *g, kd_val x, int begin, int count);                       /* [..,C] -> [..,count]: channels from `begin` on; the type of x */
kd_val kd_graph_channel_gate(kd_graph *g, kd_val x, kd_val s);                                    /* [H,W,C] or [T,C] times s, which holds C values ([C] or [1,1,C]), at every position */
/* x times s, an F32 input [1] (a number per image): drop path with s = keep ? 1 / (1 - rate) : 0 (timm DropPath). In training programs only: in others the result is x, and s is no input. */
kd_val kd_graph_row_scale(kd_graph *g, kd_val x, kd_val s);
/* [T, heads (2 key_dim + head_dim)], per head q|k|v (ultralytics Attention) -> [T, 3 heads head_dim], rows q|k|v for kd_graph_attention, which then computes softmax(q k / sqrt(key_dim)) v. key_dim <= head_dim. */
kd_val kd_graph_qkv_by_head(kd_graph *g, kd_val x, int heads, int key_dim);
kd_val kd_graph_token_slice(kd_graph *g, kd_val x, int begin, int count);
kd_val kd_graph_reshape(kd_graph *g, kd_val x, int rank, const int64_t *shape);                   /* same memory; no op */
kd_val kd_graph_resize_bilinear(kd_graph *g, kd_val x, int height, int width);
/* Rounds or widens so that the result is F32 in every precision: predictions, features for the outside. Free in f32; folded into the producer where it can be. */
kd_val kd_graph_as_f32(kd_graph *g, kd_val x);
/* Rows over the last dimension divided by their length (KD_OP_L2_NORMALIZE); F32 result in every precision. For predictions and targets. */
kd_val kd_graph_l2_normalize(kd_graph *g, kd_val x);

/* --- losses (formulas: kernels/ops.h). Each adds weight * loss to what backward minimises; the loss itself, unweighted, is output `name` [1]. pred becomes F32 (kd_graph_as_f32); a target has pred's
 * shape and is any value without trained parameters behind it: an F32 input, or something made of one, as its l2_normalize; it gets no gradient. Losses run in training programs, and in
 * inference programs with kd_exec_config.losses --- */
void kd_graph_mse(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name);               /* mean((pred - target)^2) */
/* The same for a prediction [K,L,D] that is compared, bilinearly upsampled, with a grid_h x grid_w grid t which is given as `target` [K,L,D] = U^T t and input `square` [1] = |t|^2
 * (KD_OP_MSE_ADJOINT): value and gradient are those of the mean squared error on the full grid. */
void kd_graph_mse_adjoint(kd_graph *g, kd_val pred, kd_val target, kd_val square, int grid_h, int grid_w, float weight, const char *name);
void kd_graph_cosine(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name);            /* mean over rows of 1 - cosine */
void kd_graph_smooth_l1(kd_graph *g, kd_val pred, kd_val target, float beta, float weight, const char *name);
void kd_graph_kl_logits(kd_graph *g, kd_val pred, kd_val target, float temperature, float weight, const char *name);
/* pred, target [D]. The queue of the last queue_rows normalised targets is state "name.queue" [queue_rows,D], zeros at the start, saved with the parameters' other states; the forward pass of a
 * training program pushes its batch before it computes the loss. */
void kd_graph_kl_queue(kd_graph *g, kd_val pred, kd_val target, int queue_rows, float temperature, float weight, const char *name);
void kd_graph_kl_intra(kd_graph *g, kd_val pred, kd_val target, float temperature, float weight, const char *name); /* [P,D] or [h,w,D] */
void kd_graph_gram(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name);              /* [P,D] or [h,w,D] */
void kd_graph_koleo(kd_graph *g, kd_val pred, float weight, const char *name);                            /* [D]; programs need a batch of at least 2 */
/* A parameter that no node uses but that the reference library's state_dict has: loaded with the rest. It starts as zeros (DINOv2's mask token, which is exported), or as a linear layer's
 * name.weight [out,in] and name.bias would (torchvision's classifiers, which are not: a backbone that has moved on has no use for them). */
void kd_graph_carry(kd_graph *g, const char *name, int rank, const int64_t *shape);
void kd_graph_carry_linear(kd_graph *g, const char *name, int in, int out);

/* How parameters start, by the builder calls that follow (default KD_INIT_TORCH). In all of them: gains 1, LayerScale 1 or as given, shifts 0, class token normal 1e-6, positions normal 0.02. Draws: Philox by parameter name (KD_RNG_INIT). */
typedef enum kd_init {
    KD_INIT_TORCH,          /* torch defaults: weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)) */
    KD_INIT_KAIMING_FAN_OUT,/* torchvision ResNet: convolutions normal, std sqrt(2 / fan_out), biases 0; linear layers as torch */
    KD_INIT_TRUNC_NORMAL_02,/* timm / DINOv2: linear weights truncated normal 0.02 (cut at +-2 absolute, as torch's trunc_normal_), biases 0; convolutions as torch */
    KD_INIT_CONVNEXT,       /* torchvision ConvNeXt: convolutions and linear weights truncated normal 0.02, biases 0 */
    KD_INIT_MOBILENET       /* torchvision MobileNetV3: convolutions as KD_INIT_KAIMING_FAN_OUT (fan_out = O k^2, whatever the groups), linear weights normal 0.01, biases 0 */
} kd_init;
void kd_graph_set_init(kd_graph *g, kd_init how);

/* --- parameters --- */
typedef struct kd_param_info {
    const char *name;
    int rank;
    int64_t shape[4];
    size_t count;
    int is_state;  /* running statistics, queues of losses: not trained */
    int is_counter;/* num_batches_tracked: one int64, host side; count 1 */
    int decay;     /* weight decay applies: rank >= 2 and not a token, position or scale parameter (DESIGN section 7) */
    int carried;   /* kd_graph_carry, kd_graph_carry_linear */
    int classifier;/* kd_graph_carry_linear: of a head that exports leave out */
} kd_param_info;

typedef struct kd_params kd_params;
/* All trained parameters lie in one F32 device array (decayed ones first); states and carried parameters in another. */
kd_status kd_params_create(kd_params **out, const kd_graph *g, kd_backend *b, kd_err *err);
/* Where frozen parameters come from: `count` values of the parameter called `name`, row-major. */
typedef struct kd_param_source {
    kd_status (*read)(void *ctx, const char *name, float *out, size_t count, kd_err *err);
    void *ctx;
} kd_param_source;
/* Parameters without values of their own, for networks that are never trained (teachers): kd_exec_create reads those that the program uses through the source, each once, packs them, and
 * keeps in f32 only what its ops still read; the rest of the model exists only packed. Its peak beside the program: one host and one device buffer of the largest parameter.
 * The source is used until kd_exec_create has returned for the last program. Such programs are inference programs; kd_params_init, _set, _get and _changed don't apply. */
kd_status kd_params_create_frozen(kd_params **out, const kd_graph *g, kd_backend *b, const kd_param_source *source, kd_err *err);
void kd_params_destroy(kd_params *p);
/* Whether g has the parameters that p was created for: the same names and shapes in the same order. */
int kd_params_fit(const kd_params *p, const kd_graph *g);
kd_status kd_params_init(kd_params *p, uint64_t seed, kd_err *err);
int kd_params_count(const kd_params *p);
kd_param_info kd_params_info(const kd_params *p, int i);        /* order = order of building */
int kd_params_find(const kd_params *p, const char *name);       /* -1 when absent */
size_t kd_params_offset(const kd_params *p, int i);              /* its first element in its flat array: kd_params_states' for states and carried ones, else kd_params_trained's */
kd_status kd_params_set(kd_params *p, int i, const float *values, kd_err *err); /* count values; marks the parameters as changed */
kd_status kd_params_get(kd_params *p, int i, float *values, kd_err *err);
int64_t kd_params_counter(const kd_params *p);                   /* training forward passes so far = num_batches_tracked of every batch norm */
void kd_params_set_counter(kd_params *p, int64_t n);
/* The flat arrays, for the optimizer and checkpoints (device addresses; sizes in elements). */
float *kd_params_trained(kd_params *p, size_t *decayed, size_t *total); /* [0,decayed) with decay, [decayed,total) without */
float *kd_params_states(kd_params *p, size_t *total);
void kd_params_changed(kd_params *p); /* after writing the flat array: programs repack before their next forward pass */

/* --- compiled programs --- */
typedef struct kd_exec_config {
    int batch;
    kd_dtype precision; /* KD_F32 or KD_BF16 */
    int train;          /* backward, batch statistics, losses */
    int losses;         /* of an inference program: compute the losses as well, as validation does. Running statistics, queues stay as they are, no gradients. Training programs always do */
    struct kd_exec *gradients; /* of a training program: the one of the same parameters whose gradients its backward pass works on, and which must outlive it; NULL: its own */
    struct kd_exec *values; /* of an inference program: a training program on the same backend in whose memory its values and scratch lie, where there is room, and which must outlive it. What the training program's inputs and
                             * outputs held is gone after an upload or a pass of this one, and the other way round. NULL: memory of its own */
    int keep_values; /* every op's result stays until the next pass, for who looks at it then (inspect.h). 0: its memory is used again as soon as no op of the pass will read it */
    /* Asked before every op of a pass, where the backend records (backend.h) from the third pass on once before each; NULL: never. What isn't KD_OK ends the pass and is its result: outputs, gradients
     * and running statistics are then as far as it had come. */
    kd_status (*stop)(void *ctx, kd_err *err);
    void *stop_ctx;
} kd_exec_config;

typedef struct kd_exec kd_exec;
/* g is the graph that p was created for, or one with the same list of parameters (kd_params_fit): the same network for another image size. */
kd_status kd_exec_create(kd_exec **out, const kd_graph *g, kd_params *p, const kd_exec_config *config, kd_err *err);
void kd_exec_destroy(kd_exec *e);
/* Bytes per arena (of frozen parameters too), and the table of nodes at debug level: "activations 812 MiB, parameter gradients 45 MiB, packed weights 22 MiB, scratch 12 MiB". */
void kd_exec_print_plan(const kd_exec *e, FILE *out, int nodes);
kd_backend *kd_exec_backend(const kd_exec *e); /* borrowed: the one of its parameters */
size_t kd_exec_device_bytes(const kd_exec *e);
size_t kd_exec_model_bytes(const kd_exec *e); /* of those, what holds the model: packed weights, and frozen parameters in f32 */
double kd_exec_flops(const kd_exec *e); /* forward, whole batch */
/* Inputs: pixels U8 or targets F32, batch x shape elements. */
kd_status kd_exec_upload(kd_exec *e, const char *input, const void *data, kd_err *err);
/* A part of the batch: `count` rows from row `first`. */
kd_status kd_exec_upload_rows(kd_exec *e, const char *input, int first, int count, const void *data, kd_err *err);
kd_status kd_exec_forward(kd_exec *e, kd_err *err);
/* Zeroes the parameter gradients unless `accumulate`, then runs backward from the losses. Once for a forward pass. */
kd_status kd_exec_backward(kd_exec *e, int accumulate, kd_err *err);
float *kd_exec_gradients(kd_exec *e); /* device, same order and length as kd_params_trained */
/* Device address and description of an output (borrowed, valid until the next pass). NULL when there is no such output. */
const void *kd_exec_output(const kd_exec *e, const char *name, kd_tdesc *desc);
/* First `rows` rows of an output as F32 on the host. */
kd_status kd_exec_download(kd_exec *e, const char *output, int rows, float *out, kd_err *err);
#endif
