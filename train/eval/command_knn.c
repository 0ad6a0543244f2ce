/* kd-eval knn: accuracy of the k nearest neighbours. */
#include <stdlib.h>
#include <string.h>

#include "train/eval/command.h"
#include "train/eval/knn.h"

typedef struct config {
    kd_eval_network network;
    kd_label_files files;
    const char *k, *feature;
    int json;
} config;

#define T config
static const kd_option knn_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_EVAL_LABELLED_OPTIONS(T),
    KD_OPTION_STRING(T, k, "k", "K[,K...]", "10,20", 0, "numbers of neighbours"),
    KD_OPTION_CHOICE(T, feature, "feature", "pooled|cls", "pooled", "what is compared: the library's pooled feature (a ViT's class token, a CNN's average), or the class token"),
    KD_OPTION_END,
};

static const kd_program knn_program = {
    .name = "kd-eval knn",
    .summary = "k-nearest-neighbour accuracy of a network's features (the DINO protocol: cosine, temperature 0.07).",
    .examples = "  $ kd-eval knn --model resnet18 --weights run/exported/resnet18.safetensors --train data/train --test data/test\n"
                "  $ kd-eval knn --weights dinov2_vits14_pretrain.pth --train data/train --test data/test --k 10,20,100 --json\n"
                "  $ kd-eval knn --model resnet18 --weights random --train data/train --test data/test\n",
    .options = knn_table,
};

enum { MAX_KS = 16 };

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

static void print_results(const config *c, const json_t *head, const kd_knn_result *result, size_t n) {
    if (!c->json)
        kd_eval_print_head(head);
    for (size_t i = 0; i < n; i++) {
        if (!c->json) {
            printf("k = %-3d  top-1 %6.2f %%   top-5 %6.2f %%\n", result[i].k, 100 * result[i].top1, 100 * result[i].top5);
            continue;
        }
        json_t *line = json_copy((json_t *)(uintptr_t)head);
        json_object_set_new(line, "k", json_integer(result[i].k));
        json_object_set_new(line, "top1", json_real(result[i].top1));
        json_object_set_new(line, "top5", json_real(result[i].top5));
        json_object_set_new(line, "temperature", json_real(0.07));
        kd_json_line(line);
        json_decref(line);
    }
}

static kd_status classify(const config *c, const kd_extractor *x, const int *ks, size_t n_k, kd_err *err) {
    const kd_network *n = kd_extractor_network(x);
    kd_tap tap = strcmp(c->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED;
    kd_knn_result result[MAX_KS];
    kd_labelled train, test;
    kd_classes classes;
    KD_TRY(kd_labelled_read(&train, &test, &classes, n, &c->files, 1u << tap, err));
    const kd_knn_data a = {train.features.values[tap], train.label, train.features.count}, b = {test.features.values[tap], test.label, test.features.count};
    kd_status status = kd_knn(&a, &b, train.features.width, classes.count, ks, n_k, n->threads, result, NULL, err);
    if (status == KD_OK) {
        json_t *head = kd_eval_result("knn", x, c->feature);
        kd_eval_result_labelled(head, &train, &test, &classes);
        print_results(c, head, result, n_k);
        json_decref(head);
        status = kd_eval_skipped(train.features.skipped, train.features.count, c->files.train, err);
    }
    if (status == KD_OK)
        status = kd_eval_skipped(test.features.skipped, test.features.count, c->files.test, err);
    kd_labelled_free(&train);
    kd_labelled_free(&test);
    kd_classes_free(&classes);
    return status;
}

static kd_status run_knn(const config *c, kd_err *err) {
    kd_extractor *x = NULL;
    int ks[MAX_KS];
    size_t n_k = 0;
    KD_TRY(parse_ks(c->k, ks, &n_k, err));
    KD_TRY(kd_eval_open(&x, &c->network, c->json, err));
    kd_status status = classify(c, x, ks, n_k, err);
    kd_extractor_close(x);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&knn_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_knn(&c, err);
}

const kd_eval_command kd_eval_knn_command = {&knn_program, run};
