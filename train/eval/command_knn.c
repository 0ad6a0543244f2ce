/* kd-eval knn: accuracy of the k nearest neighbours. */
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "train/eval/accuracy.h"
#include "train/eval/command.h"
#include "train/eval/knn.h"

typedef struct config {
    kd_eval_network network;
    kd_label_files files;
    const char *k, *feature, *per_class, *predictions;
    double temperature;
    int json;
} config;

#define T config
static const kd_option knn_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_EVAL_LABELLED_OPTIONS(T),
    KD_OPTION_STRING(T, k, "k", "K[,K...]", "10,20", 0, "numbers of neighbours"),
    KD_OPTION_REAL(T, temperature, "temperature", "X", "0.07", 0.002, 1000, "a neighbour's vote weighs exp(cosine / temperature): the smaller, the more the nearest count"),
    KD_OPTION_CHOICE(T, feature, "feature", "pooled|cls", "pooled", "what is compared: the library's pooled feature (a ViT's class token, a CNN's average), or the class token"),
    KD_OPTION_STRING(T, per_class, "per-class", "FILE.csv", NULL, 0, "also write a table of classes: images, right answers and top-1 for each k"),
    KD_OPTION_STRING(T, predictions, "predictions", "FILE.csv", NULL, 0, "also write the predicted class of every test image for each k"),
    KD_OPTION_END,
};

static const kd_program knn_program = {
    .name = "kd-eval knn",
    .summary = "k-nearest-neighbour accuracy of a network's features (the DINO protocol: cosine, temperature 0.07).",
    .examples = "  $ kd-eval knn --run run --train data/train --test data/test\n"
                "  $ kd-eval knn --weights dinov2_vits14_pretrain.pth --train train.csv --test test.csv --k 10,20,100 --json\n"
                "  $ kd-eval knn --model resnet18 --weights random --train photos.kdc --images photos --test data/test\n",
    .epilog = "Exit codes: 0 done; 1 failure; 2 usage; 3 done, but files couldn't be read (listed); 10, 12, 13 of a cache; 15 no such device.\n",
    .options = knn_table,
};

enum { MAX_KS = 16 };

typedef struct sets {
    kd_labelled train, test;
    kd_classes classes;
} sets;

static kd_status parse_ks(const char *text, int ks[MAX_KS], size_t *n, kd_err *err) {
    *n = 0;
    for (const char *p = text; *n < MAX_KS; p++) {
        char *end = NULL;
        long v = strtol(p, &end, 10);
        if (end == p || v < 1 || v > KD_KNN_MAX_K || (*end != ',' && *end != '\0'))
            break;
        ks[(*n)++] = (int)v;
        if (*end == '\0')
            return KD_OK;
        p = end;
    }
    return kd_fail(err, KD_EUSAGE, "--k %s: expected at most %d numbers from 1 to %d separated by commas, such as 10,20", text, MAX_KS, KD_KNN_MAX_K);
}

/* Everything that is known when the neighbours have voted. */
typedef struct outcome {
    const kd_knn_result *result; /* [n] */
    size_t n;
    const kd_accuracy *accuracy; /* settings as result */
    kd_spread train, test;       /* images of a class */
} outcome;

static json_t *interval(double share, size_t n) {
    kd_interval i = kd_wilson((size_t)(share * (double)n + 0.5), n);
    return json_pack("[f,f]", i.low, i.high);
}

static json_t *spread(const kd_spread *s) {
    return json_pack("{s:I, s:I, s:I}", "least", (json_int_t)s->least, "median", (json_int_t)s->median, "most", (json_int_t)s->most);
}

static json_t *result_of(const config *c, json_t *head, const outcome *o, size_t i) {
    const kd_knn_result *r = &o->result[i];
    json_t *line = json_copy(head);
    json_t *own = json_pack("{s:f, s:i, s:f, s:o, s:f, s:o, s:f, s:I, s:o, s:o}", "temperature", c->temperature, "k", r->k, "top1", r->top1, "top1_interval", interval(r->top1, o->accuracy->test),
                            "top5", r->top5, "top5_interval", interval(r->top5, o->accuracy->test), "mean_class_top1", kd_accuracy_mean(o->accuracy, i), "classes_below_k",
                            (json_int_t)kd_accuracy_below(o->accuracy, (size_t)r->k), "train_per_class", spread(&o->train), "test_per_class", spread(&o->test));
    json_object_update(line, own);
    json_decref(own);
    return line;
}

static void print_text(const outcome *o) {
    printf("images of a class: %zu to %zu training (median %zu), %zu to %zu test (median %zu)\n", o->train.least, o->train.most, o->train.median, o->test.least, o->test.most, o->test.median);
    printf("       top-1    95 %% interval       top-5    95 %% interval       mean of classes, top-1\n");
    for (size_t i = 0; i < o->n; i++) {
        const kd_knn_result *r = &o->result[i];
        kd_interval one = kd_wilson(o->accuracy->right[i], o->accuracy->test), five = kd_wilson((size_t)(r->top5 * (double)o->accuracy->test + 0.5), o->accuracy->test);
        printf("k = %-3d %6.2f %%  (%6.2f to %6.2f)  %6.2f %%  (%6.2f to %6.2f)  %6.2f %%\n", r->k, 100 * r->top1, 100 * one.low, 100 * one.high, 100 * r->top5, 100 * five.low, 100 * five.high,
               100 * kd_accuracy_mean(o->accuracy, i));
    }
}

static void print_outcome(const config *c, json_t *head, const outcome *o) {
    if (!c->json) {
        kd_eval_print_head(head);
        print_text(o);
    }
    for (size_t i = 0; i < o->n && c->json; i++) {
        json_t *line = result_of(c, head, o, i);
        kd_json_line(line);
        json_decref(line);
    }
}

static void warn_of_small_classes(const outcome *o) {
    for (size_t i = 0; i < o->n; i++) {
        size_t below = kd_accuracy_below(o->accuracy, (size_t)o->result[i].k);
        if (below > 0)
            kd_log(KD_LOG_WARN, "k = %d: %zu of %zu classes have fewer training images (the smallest %zu), so that others outvote them even among their own; give more images or a smaller --k",
                   o->result[i].k, below, o->accuracy->classes, o->train.least);
    }
}

static kd_status report(const config *c, const kd_extractor *x, const sets *s, outcome *o, kd_err *err) {
    KD_TRY(kd_accuracy_spread(o->accuracy, 0, &o->train, err));
    KD_TRY(kd_accuracy_spread(o->accuracy, 1, &o->test, err));
    warn_of_small_classes(o);
    if (c->per_class != NULL)
        KD_TRY(kd_accuracy_write(o->accuracy, c->per_class, err));
    if (c->predictions != NULL)
        KD_TRY(kd_predictions_write(c->predictions, &s->test, &s->classes, o->accuracy->setting, o->n, err));
    json_t *head = kd_eval_result("knn", x, c->feature);
    kd_eval_result_labelled(head, &s->train, &s->test, &s->classes);
    print_outcome(c, head, o);
    json_decref(head);
    return KD_OK;
}

/* After features: neighbours, counts, report. */
static kd_status classify(const config *c, const kd_extractor *x, const sets *s, kd_tap tap, const int *k, size_t n_k, kd_err *err) {
    const kd_knn_data train = {s->train.features.values[tap], s->train.label, s->train.features.count}, test = {s->test.features.values[tap], s->test.label, s->test.features.count};
    kd_knn_result result[MAX_KS];
    kd_setting setting[MAX_KS];
    char name[MAX_KS][16];
    int32_t *predictions;
    kd_accuracy accuracy = {0};
    KD_TRY(kd_alloc_array(&predictions, n_k * test.count, sizeof *predictions, err));
    for (size_t i = 0; i < n_k; i++) {
        snprintf(name[i], sizeof name[i], "k%d", k[i]);
        setting[i] = (kd_setting){name[i], predictions + i * test.count};
    }
    kd_status status = kd_knn(kd_exec_backend(kd_extractor_network(x)->exec), &train, &test, s->train.features.width, s->classes.count, k, n_k, c->temperature, result, predictions,
                              err);
    if (status == KD_OK)
        status = kd_accuracy_count(&accuracy, &s->train, &s->test, &s->classes, setting, n_k, err);
    if (status == KD_OK)
        status = report(c, x, s, &(outcome){.result = result, .n = n_k, .accuracy = &accuracy}, err);
    kd_accuracy_free(&accuracy);
    kd_free(predictions);
    return status;
}

static kd_status check_k(const config *c, const int *k, size_t n_k, size_t images, kd_err *err) {
    for (size_t i = 0; i < n_k; i++)
        if ((size_t)k[i] > images)
            return kd_fail(err, KD_EUSAGE, "--k %d: %s has only %zu images; give a smaller number of neighbours", k[i], c->files.train, images);
    return KD_OK;
}

/* Before hours of features: says what the search will take, and refuses what memory can't hold. */
static kd_status plan_memory(const kd_extractor *x, const sets *s, const int *k, size_t n_k, kd_err *err) {
    const kd_network *network = kd_extractor_network(x);
    kd_neighbours_plan plan;
    char text[KD_NEIGHBOURS_TEXT];
    KD_TRY(kd_knn_plan(&plan, kd_exec_backend(network->exec), s->train.source.data.count, s->test.source.data.count, (size_t)network->model->width, k, n_k, err));
    kd_neighbours_plan_text(&plan, text, sizeof text);
    kd_log(KD_LOG_INFO, "%s", text);
    return kd_neighbours_plan_check(&plan, 1, kd_mem_available(), err);
}

static kd_status measure(const config *c, const kd_extractor *x, const int *k, size_t n_k, kd_err *err) {
    kd_tap tap = strcmp(c->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED;
    sets s = {0};
    KD_TRY(kd_labelled_open(&s.train, &s.test, &c->files, kd_extractor_network(x)->threads, err));
    kd_status status = check_k(c, k, n_k, s.train.source.data.count, err);
    if (status == KD_OK)
        status = plan_memory(x, &s, k, n_k, err);
    if (status == KD_OK)
        status = kd_labelled_run(&s.train, &s.test, &s.classes, kd_extractor_network(x), &c->files, 1u << tap, err);
    if (status == KD_OK)
        status = classify(c, x, &s, tap, k, n_k, err);
    if (status == KD_OK)
        status = kd_eval_skipped(s.train.features.skipped, s.train.features.count, c->files.train, err);
    if (status == KD_OK)
        status = kd_eval_skipped(s.test.features.skipped, s.test.features.count, c->files.test, err);
    kd_labelled_free(&s.train);
    kd_labelled_free(&s.test);
    kd_classes_free(&s.classes);
    return status;
}

static kd_status run_knn(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL;
    int k[MAX_KS];
    size_t n_k = 0;
    KD_TRY(parse_ks(c->k, k, &n_k, err));
    if (c->per_class != NULL)
        KD_TRY(kd_io_check_target(c->per_class, err));
    if (c->predictions != NULL)
        KD_TRY(kd_io_check_target(c->predictions, err));
    KD_TRY(kd_eval_open(&x, &c->network, c->json, arena, err));
    kd_status status = measure(c, x, k, n_k, err);
    kd_extractor_close(x);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&knn_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_knn(&c, arena, err);
}

const kd_eval_command kd_eval_knn_command = {&knn_program, run};
