/* EMA: a second set of a student's parameters that follows the trained ones as their exponential moving average, updated after every step (timm ModelEmaV2, whose decay has no warm-up):
 * e = decay e + (1 - decay) w, from e = w. Running statistics of batch norm are averaged too. What isn't a weight is copied: queues of losses, parameters that nothing trains, counters.
 *
 *     KD_TRY(kd_ema_create(&e, backend, graph, params, 0.999, err));
 *     KD_TRY(kd_ema_update(&e, err));                       // after each step
 *     kd_exec_create(&infer, graph, e.average, ...);        // what is validated and exported
 */
#ifndef KD_TRAIN_EMA_H
#define KD_TRAIN_EMA_H

#include "kernels/nn/graph.h"

/* A range of the array of states. */
typedef struct kd_ema_span {
    size_t begin, end;
    int averaged; /* else copied */
} kd_ema_span;

typedef struct kd_ema {
    kd_backend *backend;
    kd_params *params, *average; /* average is owned */
    double decay;
    kd_ema_span *span;
    size_t spans;
} kd_ema;

/* graph: the one that params was created for; it isn't kept. decay in [0, 1). The average begins as params is now. */
kd_status kd_ema_create(kd_ema *e, kd_backend *backend, const kd_graph *graph, kd_params *params, double decay, kd_err *err);
void kd_ema_destroy(kd_ema *e); /* accepts a zeroed one */
kd_status kd_ema_update(kd_ema *e, kd_err *err);

#endif
