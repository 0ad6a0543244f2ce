/* Loss: what a student is asked to reproduce, as nodes at the end of its graph.
 *
 * A loss is a list of pairs and a list of terms. A pair joins one feature of the student to one of the teacher: a head maps the student's feature to the teacher's width and gives the prediction. A
 * term compares the prediction of a pair with its target; what is minimised is the weighted sum of the terms. Each term is logged by its name. Named losses (loss_named.h) are such lists.
 *
 *     kd_loss loss = {0};
 *     int pair = kd_loss_add_pair(&loss, &(kd_pair){.name = "patch", .tap = "map", .feature = KD_FEATURE_PATCH, .layer = 1});
 *     kd_loss_add_term(&loss, &(kd_term){.name = "patch", .kind = KD_TERM_MSE, .pair = pair, .weight = 1});
 *     kd_loss_build(graph, &taps, &loss, targets);
 *
 * For a pair called P the graph gets input "target.P" (for an adjoint target also "target.P.square" [1]), output "pred.P" and parameters "kd_head.P.*", which are dropped at export; for a term T the
 * output "loss.T". Heads work on the student's own map; a prediction is resized bilinearly (align_corners false) to the target's grid when they differ. */
#ifndef KD_TRAIN_LOSS_H
#define KD_TRAIN_LOSS_H

#include "cache/record.h"
#include "kernels/nn/models.h"

#define KD_HEAD_PREFIX "kd_head."

enum { KD_MAX_PAIRS = 8, KD_MAX_TERMS = 16, KD_TERM_NAME = 48 };

typedef enum kd_term_kind {
    KD_TERM_MSE,       /* mean((p - t)^2) */
    KD_TERM_COSINE,    /* mean over tokens of 1 - cos(p, t) */
    KD_TERM_SMOOTH_L1, /* mean of e^2 / (2 beta) where |e| < beta, else |e| - beta / 2 */
    KD_TERM_KL_QUEUE,  /* KL between the similarities to the last targets (ops.h, KL_QUEUE); a vector for an image */
    KD_TERM_KL_INTRA,  /* KL between the similarities of the patches of an image; needs patches */
    KD_TERM_GRAM,      /* mean squared difference of those similarities */
    KD_TERM_KL_LOGITS, /* T^2 KL of class probabilities */
    KD_TERM_KOLEO,     /* spreads the predictions of a batch; looks at no target */
    KD_TERM_KINDS
} kd_term_kind;

/* How the teacher's values are given to the terms. */
typedef enum kd_scaling {
    KD_SCALING_STANDARD, /* (t - mean) / std, by the cache's statistics: one mean vector, one scalar */
    KD_SCALING_RAW,
    KD_SCALING_UNIT /* target and prediction divided by their lengths, token by token */
} kd_scaling;

typedef enum kd_head {
    KD_HEAD_NORM_LINEAR, /* LayerNorm -> Linear */
    KD_HEAD_LINEAR,
    KD_HEAD_MLP,         /* Linear -> ReLU -> Linear */
    KD_HEAD_MLP_GELU     /* Linear -> LayerNorm -> GELU -> Linear */
} kd_head;

typedef struct kd_pair {
    char name[KD_TERM_NAME];
    char tap[KD_MODEL_TAP_NAME]; /* of the student: For a vector: "cls", "pooled", "mean" (of the last map; "map" is the same), or a tap of the model ("layer3"), of which the mean is taken. For patches: "map", the last, or a tap */
    kd_feature feature;          /* of the teacher: CLS, MEAN: a vector; PATCH: in whatever form (patch_target.h) */
    uint16_t layer;              /* of the teacher, from the end */
    kd_scaling scaling;
    kd_head head;
    int hidden;                  /* of MLP heads */
    int classes;                 /* 0, or the width of the prediction: logits of the teacher's head (teacher_head.h) */
} kd_pair;

typedef struct kd_term {
    char name[KD_TERM_NAME];
    kd_term_kind kind;
    int pair;
    double weight;      /* > 0 */
    double temperature; /* of KL terms */
    double beta;        /* of SMOOTH_L1 */
    int queue_rows;     /* of KL_QUEUE */
} kd_term;

typedef struct kd_loss {
    char name[KD_TERM_NAME]; /* for messages: as --loss names it */
    kd_pair pair[KD_MAX_PAIRS];
    kd_term term[KD_MAX_TERMS];
    int pairs, terms;
    char warning[320]; /* what should be said before it is trained with, or empty */
} kd_loss;

/* Return the place; -1 when there is no room. */
int kd_loss_add_pair(kd_loss *l, const kd_pair *p);
int kd_loss_add_term(kd_loss *l, const kd_term *t);

/* What a kind of term is like. */
typedef struct kd_term_facts {
    const char *name;   /* "mse": in configs */
    int single_tokens;  /* looks at single patch tokens of the teacher, which adjoint targets don't have */
    int regresses;      /* predictions approach the targets themselves: R2 means something */
    int aligns;         /* predictions approach the targets' directions: cosine means something */
    int vectors, grids; /* takes features that are one vector; that are a grid */
} kd_term_facts;
const kd_term_facts *kd_term_facts_of(kd_term_kind kind);
int kd_term_kind_find(const char *name); /* -1: none */

/* What of a pair needs single tokens of the teacher, in words: "unit lengths", or the kind of one of its terms; NULL: nothing does. */
const char *kd_pair_single_tokens(const kd_loss *l, int pair);
int kd_pair_is_grid(const kd_pair *p);
/* The first pair of this feature (CLS or PATCH) that has a term which aligns, or -1; *regresses: one of its terms regresses, and its scaling keeps lengths. What validation speaks of. */
int kd_loss_representative(const kd_loss *l, kd_feature f, int *regresses);

/* The teacher's side of one pair in one program. */
typedef struct kd_pair_target {
    int width, grid_h, grid_w; /* of the teacher */
    kd_target form;            /* of patches; an adjoint one is of the student's own map */
} kd_pair_target;

/* target[i] belongs to pair i. Every term's weight in the graph is its own times `share` (1 / number of recipes). KD_EUSAGE: the student has no such tap (naming those that it has). */
kd_status kd_loss_build(kd_graph *g, const kd_model_taps *taps, const kd_loss *l, const kd_pair_target *target, double share, const char *student, kd_err *err);
/* Size of the map that pair p's prediction is made on; 0 for a vector. KD_EUSAGE: as kd_loss_build. */
kd_status kd_pair_map(const kd_pair *p, const kd_model_taps *taps, const char *student, int *h, int *w, kd_err *err);

#endif
