/* kd-eval linear: accuracy of a linear classifier that SGD trains on features that are computed once. */
#include <string.h>

#include "common/base/log.h"
#include "train/eval/command_classifier.h"
#include "train/eval/linear.h"

typedef struct config {
    kd_eval_network network;
    kd_label_files files;
    kd_classifier_output output;
    const char *learning_rates;
    int64_t iterations, linear_batch_size, training_seed;
    int held_out, json;
} config;

#define T config
static const kd_option linear_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_EVAL_LABELLED_OPTIONS(T),
    KD_EVAL_CLASSIFIER_OPTIONS(T),
    KD_OPTION_STRING(T, learning_rates, "learning-rates", "X[,X...]", "protocol", 0, "smallest first, each an own classifier, scaled by batch / 256; protocol: 13 from 1e-5 to 0.1"),
    KD_OPTION_INT(T, iterations, "iterations", "N", "12500", 1, 10000000, "steps of SGD"),
    KD_OPTION_INT(T, linear_batch_size, "linear-batch-size", "N", "128", 1, 65536, "features per step (the original: 128 on each GPU, 1024 in the paper)"),
    {"held-out", KD_OPT_FLAG, offsetof(T, held_out), "", "true", 0, 0, 0,
     "choose a learning rate on a held-out tenth of --train, by training on the other nine first (twice the time); --no-held-out: only the best on --test"},
    KD_OPTION_INT(T, training_seed, "training-seed", "N", "0", 0, 9007199254740992.0, "seed of the held-out tenth, of first weights and of batches"),
    KD_OPTION_END,
};

static const kd_program linear_program = {
    .name = "kd-eval linear",
    .summary = "Accuracy of a linear classifier on a network's features (DINOv2's linear probe on features that are computed once, without augmentation: linear-cached).",
    .examples = "  $ kd-eval linear --run run --train data/train --test data/test\n"
                "  $ kd-eval linear --weights dinov2_vits14_pretrain.pth --train train.csv --test test.csv --linear-batch-size 1024 --json\n"
                "  $ kd-eval linear --weights dinov2_vits14_pretrain.pth --train data/train --test data/test --iterations 1000 --learning-rates 0.01,0.1\n",
    .epilog = "Exit codes: 0 done; 1 failure; 2 usage, too few images or classes; 3 done, but files couldn't be read (listed); 10, 12, 13 of a cache; 15 no such device; 16 features or classifiers that aren't finite.\n",
    .options = linear_table,
};

static void print_plan(const kd_classifier_sets *s, const kd_linear_options *o) {
    const double operations = 4.0 * o->batch * (double)(s->width + 1) * (double)s->classes.count * (double)o->n_rates;
    kd_log(KD_LOG_INFO, "linear: %zu learning rates, %s%d iterations of %.3g GFLOP, %.1f epochs", o->n_rates, o->held_out && o->n_rates > 1 ? "twice " : "", o->iterations, operations * 1e-9,
           (double)o->iterations * o->batch / (double)s->train_data.count);
}

static json_t *head_of(const kd_linear_result *r, const kd_accuracy *a, size_t setting, size_t head) {
    json_t *figures = kd_classifier_figures(a, setting, r->head[head].accuracy.top5);
    json_object_set_new(figures, "learning_rate", json_real(r->head[head].rate));
    return figures;
}

static json_t *all_heads(const kd_linear_result *r) {
    json_t *list = json_array();
    for (size_t i = 0; i < r->n_rates; i++) {
        json_t *head = json_pack("{s:f, s:f, s:b}", "learning_rate", r->head[i].rate, "top1", r->head[i].accuracy.top1, "diverged", r->head[i].diverged);
        if (r->held_out > 0)
            json_object_set_new(head, "held_out_top1", json_real(r->head[i].held_out));
        json_array_append_new(list, head);
    }
    return list;
}

static void print_text(const kd_linear_result *r, const json_t *chosen, const json_t *best, const kd_classifier_sets *s) {
    char label[96];
    if (r->held_out > 0) {
        snprintf(label, sizeof label, "learning rate %-6g ", r->head[r->chosen].rate);
        kd_classifier_print(label, chosen);
        printf("    (chosen on %zu of the %zu training images)\n", r->held_out, s->train_data.count);
    }
    snprintf(label, sizeof label, "learning rate %-6g ", r->head[r->best].rate);
    kd_classifier_print(label, best);
    printf("    (%s)\ntraining: %.1f s\n", r->n_rates > 1 ? "the best on the test images themselves, as DINOv2 reports it: it flatters" : "the only one", r->seconds);
}

/* The figures of the line itself are those that no test image has chosen, where there are such. */
static void print_outcome(const config *c, const kd_extractor *x, const kd_classifier_sets *s, const kd_linear_result *r, const kd_accuracy *a) {
    json_t *line = kd_eval_result("linear-cached", x, c->output.feature);
    json_t *chosen = head_of(r, a, 0, r->chosen), *best = head_of(r, a, 1, r->best);
    json_t *own = json_pack("{s:I, s:I, s:f, s:s, s:I, s:f, s:I, s:o, s:O}", "iterations", (json_int_t)c->iterations, "linear_batch_size", (json_int_t)c->linear_batch_size, "momentum", 0.9, "selected_on",
                            r->held_out > 0 ? "held-out" : r->n_rates > 1 ? "test" : "nothing", "held_out", (json_int_t)r->held_out, "training_seconds", r->seconds, "training_seed",
                            (json_int_t)c->training_seed, "heads", all_heads(r), "best_on_test", best);
    kd_eval_result_labelled(line, &s->train, &s->test, &s->classes);
    json_object_update(line, chosen);
    json_object_update(line, own);
    if (c->json)
        kd_json_line(line);
    else {
        kd_eval_print_head(line);
        print_text(r, chosen, best, s);
    }
    json_decref(own);
    json_decref(chosen);
    json_decref(best);
    json_decref(line);
}

static void warn(const kd_linear_result *r) {
    for (size_t i = 0; i < r->n_rates; i++)
        if (r->head[i].diverged)
            kd_log(KD_LOG_WARN, "the classifier of learning rate %g diverged: its weights aren't finite", r->head[i].rate);
}

static kd_status measure(const config *c, const kd_extractor *x, const kd_linear_options *o, kd_err *err) {
    kd_classifier_sets s = {0};
    kd_linear_result r = {0};
    kd_accuracy a = {0};
    kd_status status = kd_classifier_sets_read(&s, x, &c->files, &c->output, err);
    if (status == KD_OK) {
        print_plan(&s, o);
        status = kd_linear(&r, &s.train_data, &s.test_data, s.width, s.classes.count, o, err);
    }
    if (status == KD_OK) {
        const kd_setting setting[] = {{"chosen", r.prediction + r.chosen * s.test_data.count}, {"best", r.prediction + r.best * s.test_data.count}};
        status = kd_classifier_count(&a, &s, setting, 2, &c->output, err);
        if (status == KD_OK) {
            warn(&r);
            print_outcome(c, x, &s, &r, &a);
            status = kd_classifier_sets_skipped(&s, &c->files, err);
        }
    }
    kd_accuracy_free(&a);
    kd_linear_result_free(&r);
    kd_classifier_sets_free(&s);
    return status;
}

enum { MAX_RATES = 256 };

static kd_status run_linear(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL;
    double rates[MAX_RATES];
    kd_linear_options o = {.rate = kd_linear_protocol_rates, .n_rates = KD_LINEAR_RATES, .iterations = (int)c->iterations, .batch = (int)c->linear_batch_size, .held_out = c->held_out,
                           .seed = (uint64_t)c->training_seed, .json = c->json};
    if (strcmp(c->learning_rates, "protocol") != 0) {
        KD_TRY(kd_classifier_numbers(c->learning_rates, "learning-rates", rates, MAX_RATES, &o.n_rates, err));
        o.rate = rates;
    }
    KD_TRY(kd_eval_open(&x, &c->network, c->json, arena, err));
    o.threads = kd_extractor_network(x)->threads;
    kd_status status = measure(c, x, &o, err);
    kd_extractor_close(x);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&linear_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_linear(&c, arena, err);
}

const kd_eval_command kd_eval_linear_command = {&linear_program, run};
