/* kd-eval logreg: accuracy of a logistic regression. */
#include <string.h>

#include "common/base/log.h"
#include "train/eval/command_classifier.h"
#include "train/eval/logreg.h"

typedef struct config {
    kd_eval_network network;
    kd_label_files files;
    kd_classifier_output output;
    const char *c;
    double tolerance;
    int64_t max_iterations, training_seed;
    int json;
} config;

#define T config
static const kd_option logreg_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_EVAL_LABELLED_OPTIONS(T),
    KD_EVAL_CLASSIFIER_OPTIONS(T),
    KD_OPTION_STRING(T, c, "c", "C[,C...]", "protocol", 0, "weights of the loss beside the penalty |W|^2 / 2, smallest first; protocol: 45 from 1e-6 to 1e5. Of several one is chosen on a held-out tenth of --train"),
    KD_OPTION_INT(T, max_iterations, "max-iterations", "N", "1000", 1, 1000000, "L-BFGS iterations of a fit"),
    KD_OPTION_REAL(T, tolerance, "tolerance", "X", "1e-12", 0, 1, "a fit ends when the gradient's largest element is below X times the loss, or the loss changes by less than X / 100 of it"),
    KD_OPTION_INT(T, training_seed, "training-seed", "N", "0", 0, 9007199254740992.0, "seed of the draw of the held-out tenth"),
    KD_OPTION_END,
};

static const kd_program logreg_program = {
    .name = "kd-eval logreg",
    .summary = "Accuracy of a logistic regression on a network's features (DINOv2's log_regression protocol: L-BFGS in f64, C chosen on a tenth of the training images).",
    .examples = "  $ kd-eval logreg --run run --train data/train --test data/test\n"
                "  $ kd-eval logreg --weights dinov2_vits14_pretrain.pth --train train.csv --test test.csv --json\n"
                "  $ kd-eval logreg --weights dinov2_vits14_pretrain.pth --train data/train --test data/test --c 0.316\n",
    .epilog = "Exit codes: 0 done; 1 failure; 2 usage, too few images or classes; 3 done, but files couldn't be read (listed); 10, 12, 13 of a cache; 15 no such device; 16 features that aren't finite.\n",
    .options = logreg_table,
};

/* The cost in sight before it is paid: products dominate (4 N width classes operations an evaluation). */
static void print_plan(const kd_classifier_sets *s, const kd_logreg_options *o) {
    const double operations = 4.0 * (double)s->train_data.count * (double)(s->width + 1) * (double)s->classes.count;
    const double bytes = 8.0 * (double)s->train_data.count * (double)(s->width + s->classes.count);
    kd_log(KD_LOG_INFO, "logreg: fits %zu, of each at most %d iterations of %.3g GFLOP, in %.3g MiB", o->n_c > 1 ? o->n_c + 1 : 1, o->max_iterations, operations * 1e-9, bytes / (1 << 20));
}

static json_t *tried(const kd_logreg_result *r) {
    json_t *list = json_array();
    for (size_t i = 0; r->tried != NULL && i < r->n_c; i++)
        json_array_append_new(list, json_pack("{s:f, s:f, s:i}", "c", r->tried[i].c, "top1", r->tried[i].top1, "iterations", r->tried[i].fit.iterations));
    return list;
}

static void print_text(const kd_logreg_result *r, const json_t *figures, const kd_classifier_sets *s) {
    char label[64];
    if (r->held_out > 0)
        printf("C chosen from %zu on %zu of the %zu training images\n", r->n_c, r->held_out, s->train_data.count);
    snprintf(label, sizeof label, "C = %-9.3g ", r->c);
    kd_classifier_print(label, figures);
    printf("fits: %.1f s\n", r->seconds);
}

static void print_outcome(const config *c, const kd_extractor *x, const kd_classifier_sets *s, const kd_logreg_result *r, const kd_accuracy *a) {
    json_t *line = kd_eval_result("logreg", x, c->output.feature);
    json_t *figures = kd_classifier_figures(a, 0, r->accuracy.top5);
    json_t *own = json_pack("{s:f, s:I, s:i, s:f, s:i, s:b, s:f, s:I, s:o}", "c", r->c, "held_out", (json_int_t)r->held_out, "max_iterations", (int)c->max_iterations, "tolerance", c->tolerance,
                            "iterations", r->fit.iterations, "converged", r->fit.end != KD_LBFGS_ITERATIONS, "training_seconds", r->seconds, "training_seed", (json_int_t)c->training_seed, "tried", tried(r));
    kd_eval_result_labelled(line, &s->train, &s->test, &s->classes);
    json_object_update(line, figures);
    json_object_update(line, own);
    if (c->json)
        kd_json_line(line);
    else {
        kd_eval_print_head(line);
        print_text(r, figures, s);
    }
    json_decref(own);
    json_decref(figures);
    json_decref(line);
}

static void warn(const kd_logreg_result *r) {
    if (r->fit.end == KD_LBFGS_ITERATIONS)
        kd_log(KD_LOG_WARN, "the fit with C = %.3g ended after %d iterations before it converged (gradient %.1e); give more --max-iterations", r->c, r->fit.iterations, r->fit.gradient);
    if (r->tried != NULL && r->c >= r->tried[r->n_c - 1].c)
        kd_log(KD_LOG_WARN, "the best C is the largest that was tried, %.3g; a larger one may be better (--c)", r->c);
}

static kd_status measure(const config *c, const kd_extractor *x, const kd_logreg_options *o, kd_err *err) {
    kd_classifier_sets s = {0};
    kd_logreg_result r = {0};
    kd_accuracy a = {0};
    kd_setting setting = {.name = "logreg"};
    kd_status status = kd_classifier_sets_read(&s, x, &c->files, &c->output, err);
    if (status == KD_OK) {
        print_plan(&s, o);
        status = kd_logreg(&r, &s.train_data, &s.test_data, s.width, s.classes.count, o, err);
    }
    setting.prediction = r.prediction;
    if (status == KD_OK)
        status = kd_classifier_count(&a, &s, &setting, 1, &c->output, err);
    if (status == KD_OK) {
        warn(&r);
        print_outcome(c, x, &s, &r, &a);
        status = kd_classifier_sets_skipped(&s, &c->files, err);
    }
    kd_accuracy_free(&a);
    kd_logreg_result_free(&r);
    kd_classifier_sets_free(&s);
    return status;
}

enum { MAX_CS = 256 };

static kd_status run_logreg(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL;
    double values[MAX_CS];
    kd_logreg_options o = {.c = values, .n_c = KD_LOGREG_CS, .tolerance = c->tolerance, .max_iterations = (int)c->max_iterations, .seed = (uint64_t)c->training_seed, .json = c->json};
    if (strcmp(c->c, "protocol") == 0)
        kd_logreg_protocol_cs(values);
    else
        KD_TRY(kd_classifier_numbers(c->c, "c", values, MAX_CS, &o.n_c, err));
    KD_TRY(kd_eval_open(&x, &c->network, c->json, arena, err));
    o.threads = kd_extractor_network(x)->threads;
    kd_status status = measure(c, x, &o, err);
    kd_extractor_close(x);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&logreg_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_logreg(&c, arena, err);
}

const kd_eval_command kd_eval_logreg_command = {&logreg_program, run};
