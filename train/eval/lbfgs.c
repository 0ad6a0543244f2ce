#include "train/eval/lbfgs.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

enum { LINE_SEARCH_EVALUATIONS = 50, PAST = 10 }; /* cuML: linesearch_max_iter 50, past 10 */
static const double decrease = 1e-4, curvature = 0.9; /* c1, c2 */

typedef struct state {
    size_t n;
    kd_objective objective;
    kd_precondition precondition;
    void *ctx;
    double *x, *g, *direction;  /* [n]: the present point, its gradient, where to go */
    double *trial, *trial_g;    /* [n]: a point of the line search and its gradient */
    double *scaled;             /* [n]: H y of the newest pair; NULL without a preconditioner */
    double *step, *change;      /* [memory][n] each: s = x' - x, y = g' - g; a ring */
    double *rho, *alpha;        /* [memory]: 1 / s.y; scratch of the two loops */
    int memory, stored, next;   /* pairs in the ring; where the next goes */
    double value;
    int evaluations;
} state;

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += f x */
static void add(double *y, double f, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] += f * x[i];
}

/* NaN stays visible: a gradient with one is never small. */
static double largest(const double *g, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabs(g[i]) <= most))
            most = fabs(g[i]);
    return most;
}

/* direction = -H g by the two loops over the stored pairs, newest first and back; between them the preconditioner, scaled to the curvature along the newest step. */
static void find_direction(state *s) {
    for (size_t i = 0; i < s->n; i++)
        s->direction[i] = -s->g[i];
    for (int j = 0; j < s->stored; j++) {
        int at = (s->next - 1 - j + 2 * s->memory) % s->memory;
        s->alpha[at] = s->rho[at] * dot(s->step + (size_t)at * s->n, s->direction, s->n);
        add(s->direction, -s->alpha[at], s->change + (size_t)at * s->n, s->n);
    }
    if (s->precondition != NULL)
        s->precondition(s->ctx, s->direction);
    if (s->stored > 0) {
        int newest = (s->next - 1 + s->memory) % s->memory;
        const double *y = s->change + (size_t)newest * s->n, *hy = y;
        if (s->precondition != NULL) {
            memcpy(s->scaled, y, s->n * sizeof *y);
            s->precondition(s->ctx, s->scaled);
            hy = s->scaled;
        }
        double scale = 1 / (s->rho[newest] * dot(y, hy, s->n));
        for (size_t i = 0; i < s->n; i++)
            s->direction[i] *= scale;
    }
    for (int j = s->stored - 1; j >= 0; j--) {
        int at = (s->next - 1 - j + 2 * s->memory) % s->memory;
        double beta = s->rho[at] * dot(s->change + (size_t)at * s->n, s->direction, s->n);
        add(s->direction, s->alpha[at] - beta, s->step + (size_t)at * s->n, s->n);
    }
}

/* The function along the direction: its value and slope at x + at * direction. */
typedef struct point {
    double at, value, slope;
} point;

static point try_step(state *s, double at) {
    point p = {.at = at};
    for (size_t i = 0; i < s->n; i++)
        s->trial[i] = s->x[i] + at * s->direction[i];
    p.value = s->objective(s->ctx, s->trial, s->trial_g);
    p.slope = dot(s->trial_g, s->direction, s->n);
    if (!isfinite(p.value) || !isfinite(p.slope))
        p.value = HUGE_VAL;
    s->evaluations++;
    return p;
}

/* The minimum of the cubic through both values and slopes (Nocedal & Wright 3.59), kept off the ends; the middle where there is none. */
static double between(const point *lo, const point *hi) {
    double width = hi->at - lo->at, d1 = lo->slope + hi->slope - 3 * (lo->value - hi->value) / (lo->at - hi->at), root = d1 * d1 - lo->slope * hi->slope, t = 0.5;
    if (isfinite(hi->value) && root >= 0) {
        double d2 = width > 0 ? sqrt(root) : -sqrt(root);
        t = 1 - (hi->slope + d2 - d1) / (hi->slope - lo->slope + 2 * d2);
    }
    if (!(t >= 0.1)) /* also NaN */
        t = 0.1;
    return lo->at + (t > 0.9 ? 0.9 : t) * width;
}

/* Moves trial to a point that satisfies the strong Wolfe conditions, or, after too many tries, to the best one found. 0: none is lower than x. */
static int line_search(state *s, const point *start, double at, point *found) {
    point lo = *start, hi = *start;
    int bracketed = 0;
    for (int i = 0; i < LINE_SEARCH_EVALUATIONS; i++) {
        point p = try_step(s, at);
        if (!(p.value <= start->value + decrease * at * start->slope) || p.value >= lo.value) {
            hi = p;
            bracketed = 1;
        } else {
            *found = p;
            if (fabs(p.slope) <= -curvature * start->slope)
                return 1;
            if (bracketed ? p.slope * (hi.at - lo.at) >= 0 : p.slope >= 0) {
                hi = lo;
                bracketed = 1;
            }
            lo = p;
        }
        if (bracketed && fabs((hi.at - lo.at) * start->slope) <= 1e-16 * fabs(start->value))
            break; /* rounding hides what could still be gained */
        at = bracketed ? between(&lo, &hi) : 2 * at;
    }
    if (lo.at == 0)
        return 0;
    *found = try_step(s, lo.at);
    return 1;
}

static void remember(state *s) {
    double *step = s->step + (size_t)s->next * s->n, *change = s->change + (size_t)s->next * s->n, product;
    for (size_t i = 0; i < s->n; i++) {
        step[i] = s->trial[i] - s->x[i];
        change[i] = s->trial_g[i] - s->g[i];
    }
    product = dot(step, change, s->n);
    /* Without curvature the approximation would lose its definiteness; it can be missing only where the line search gave up. */
    if (!(product > 1e-16 * dot(change, change, s->n)))
        return;
    s->rho[s->next] = 1 / product;
    s->next = (s->next + 1) % s->memory;
    if (s->stored < s->memory)
        s->stored++;
}

/* One iteration: 0 when no lower value was found. */
static int iterate(state *s) {
    for (;;) {
        find_direction(s);
        point start = {.value = s->value, .slope = dot(s->g, s->direction, s->n)}, found;
        /* Without pairs or preconditioner the length of the gradient says nothing about the step: the first is of length 1 at most. */
        double first = s->stored > 0 || s->precondition != NULL ? 1 : fmin(1, 1 / sqrt(dot(s->g, s->g, s->n)));
        if (start.slope < 0 && line_search(s, &start, first, &found)) {
            remember(s);
            memcpy(s->x, s->trial, s->n * sizeof *s->x);
            memcpy(s->g, s->trial_g, s->n * sizeof *s->g);
            s->value = found.value;
            return 1;
        }
        if (s->stored == 0)
            return 0;
        s->stored = 0; /* once more along the steepest descent */
    }
}

static kd_status allocate(state *s, kd_err *err) {
    const size_t m = (size_t)s->memory;
    KD_TRY(kd_alloc_array(&s->g, s->n, sizeof *s->g, err));
    KD_TRY(kd_alloc_array(&s->direction, s->n, sizeof *s->direction, err));
    KD_TRY(kd_alloc_array(&s->trial, s->n, sizeof *s->trial, err));
    KD_TRY(kd_alloc_array(&s->trial_g, s->n, sizeof *s->trial_g, err));
    if (s->precondition != NULL)
        KD_TRY(kd_alloc_array(&s->scaled, s->n, sizeof *s->scaled, err));
    KD_TRY(kd_alloc_array(&s->step, s->n, m * sizeof *s->step, err));
    KD_TRY(kd_alloc_array(&s->change, s->n, m * sizeof *s->change, err));
    KD_TRY(kd_alloc_array(&s->rho, m, sizeof *s->rho, err));
    return kd_alloc_array(&s->alpha, m, sizeof *s->alpha, err);
}

static kd_status minimise(state *s, const kd_lbfgs_options *o, kd_lbfgs_result *r, kd_err *err) {
    double past[PAST];
    KD_TRY(allocate(s, err));
    s->value = s->objective(s->ctx, s->x, s->g);
    s->evaluations = 1;
    if (!isfinite(s->value) || !isfinite(largest(s->g, s->n)))
        return kd_fail(err, KD_ENONFINITE, "L-BFGS: the value %g or its gradient isn't finite at the start", s->value);
    for (r->iterations = 0;; r->iterations++) {
        const double scale = fmax(s->value, o->tolerance);
        r->gradient = largest(s->g, s->n);
        r->value = s->value;
        r->evaluations = s->evaluations;
        r->end = KD_LBFGS_GRADIENT;
        if (r->gradient <= o->tolerance * scale)
            return KD_OK;
        r->end = KD_LBFGS_VALUE;
        if (r->iterations >= PAST && fabs(past[r->iterations % PAST] - s->value) <= 0.01 * o->tolerance * scale)
            return KD_OK;
        past[r->iterations % PAST] = s->value;
        r->end = KD_LBFGS_ITERATIONS;
        if (r->iterations >= o->max_iterations)
            return KD_OK;
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted after %d iterations of L-BFGS", r->iterations);
        r->end = KD_LBFGS_PRECISION;
        if (!iterate(s))
            return KD_OK;
    }
}

kd_status kd_lbfgs_minimise(double *x, size_t n, kd_objective objective, void *ctx, const kd_lbfgs_options *options, kd_lbfgs_result *result, kd_err *err) {
    state s = {.n = n, .objective = objective, .precondition = options->precondition, .ctx = ctx, .x = x, .memory = options->memory};
    KD_ASSERT(options->memory >= 1);
    kd_status status = minimise(&s, options, result, err);
    kd_free(s.g);
    kd_free(s.direction);
    kd_free(s.trial);
    kd_free(s.trial_g);
    kd_free(s.scaled);
    kd_free(s.step);
    kd_free(s.change);
    kd_free(s.rho);
    kd_free(s.alpha);
    return status;
}
