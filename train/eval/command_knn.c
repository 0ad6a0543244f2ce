/* kd-eval knn: accuracy of the k nearest neighbours. */
#include <stdlib.h>
#include <string.h>

#include "train/eval/command.h"
#include "train/eval/knn_folders.h"

typedef struct config {
    kd_eval_network network;
    const char *train, *test, *k, *feature;
    int json;
} config;

#define T config
static const kd_option knn_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, train, "train", "DIR|TAR", NULL, KD_OPT_REQUIRED, "training images in one folder per class (in a tar too), or one tar per class"),
    KD_OPTION_STRING(T, test, "test", "DIR|TAR", NULL, KD_OPT_REQUIRED, "test images in the same classes"),
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

static void print_knn(const config *c, const kd_model_info *m, const kd_knn_sets *sets, const kd_knn_result *result, size_t n) {
    if (!c->json)
        printf("%s, %zu classes, %zu training and %zu test images, feature %s of width %d\n", m->name, sets->classes, sets->train, sets->test, c->feature, m->width);
    for (size_t i = 0; i < n; i++) {
        if (!c->json) {
            printf("k = %-3d  top-1 %6.2f %%   top-5 %6.2f %%\n", result[i].k, 100 * result[i].top1, 100 * result[i].top5);
            continue;
        }
        json_t *line = json_pack("{s:s, s:s, s:s, s:s, s:i, s:f, s:f, s:I, s:I, s:I, s:f}", "type", "result", "protocol", "knn", "model", m->name, "feature", c->feature, "k",
                                 result[i].k, "top1", result[i].top1, "top5", result[i].top5, "classes", (json_int_t)sets->classes, "train", (json_int_t)sets->train, "test",
                                 (json_int_t)sets->test, "temperature", 0.07);
        kd_json_line(line);
        json_decref(line);
    }
}

static kd_status run_knn(const config *c, kd_err *err) {
    kd_extractor *x = NULL;
    kd_tap tap = strcmp(c->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED;
    kd_knn_result result[MAX_KS];
    kd_knn_sets sets;
    int ks[MAX_KS];
    size_t n_k = 0;
    KD_TRY(parse_ks(c->k, ks, &n_k, err));
    kd_status status = kd_eval_open(&x, &c->network, c->json, err);
    if (status == KD_OK)
        status = kd_knn_folders(kd_extractor_network(x), c->train, c->test, tap, ks, n_k, result, &sets, err);
    if (status == KD_OK) {
        print_knn(c, kd_extractor_network(x)->model, &sets, result, n_k);
        status = kd_eval_skipped(sets.train_skipped, sets.train, c->train, err);
    }
    if (status == KD_OK)
        status = kd_eval_skipped(sets.test_skipped, sets.test, c->test, err);
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
