#include "train/probe.h"

#include "common/base/log.h"
#include "train/eval/labelled.h"

const int kd_probe_k[KD_PROBE_KS] = {10, 20};

static kd_label_files files_of(const kd_train_config *c) {
    return (kd_label_files){.train = c->knn_train, .test = c->knn_test, .images = c->images, .list = c->null ? KD_LIST_NUL : KD_LIST_LINES};
}

kd_status kd_probe_check(const kd_train_config *c, int threads, kd_err *err) {
    int k = kd_probe_k[KD_PROBE_KS - 1];
    kd_label_counts n;
    if (c->knn_train == NULL)
        return KD_OK;
    kd_label_files from = files_of(c);
    KD_TRY(kd_labelled_check(&n, &from, threads, err));
    if (n.train < (size_t)k)
        return kd_fail(err, KD_EUSAGE, "--knn-train %s: has %zu images and k-NN looks at %d neighbours; give more images", c->knn_train, n.train, k);
    kd_log(KD_LOG_INFO, "k-NN every %lld epochs: %zu classes, %zu training and %zu test images", (long long)c->knn_every, n.classes, n.train, n.test);
    return KD_OK;
}

int kd_probe_is_due(const kd_setup *setup, int64_t epoch) {
    const kd_train_config *c = setup->config;
    return c->knn_train != NULL && (epoch % c->knn_every == 0 || epoch == c->epochs);
}

kd_status kd_probe_knn(const kd_setup *setup, const kd_student *student, kd_knn_result results[KD_PROBE_KS], kd_err *err) {
    const kd_recipe *r = kd_source_recipe(&setup->groups.group[0].source);
    const kd_student_view *view = &student->program[0].view;
    kd_network network = {.exec = student->infer, .model = &student->model, .batch = student->batch, .height = view->image_h, .width = view->image_w, .image_h = r->image_h, .image_w = r->image_w,
                          .threads = setup->threads};
    kd_label_files from = files_of(setup->config);
    kd_labelled train, test;
    kd_classes classes;
    KD_TRY(kd_labelled_read(&train, &test, &classes, &network, &from, 1u << KD_TAP_POOLED, err));
    kd_status status = kd_knn(setup->backend, &(kd_knn_data){train.features.values[KD_TAP_POOLED], train.label, train.features.count},
                              &(kd_knn_data){test.features.values[KD_TAP_POOLED], test.label, test.features.count}, train.features.width, classes.count, kd_probe_k, KD_PROBE_KS, KD_KNN_TEMPERATURE, results, NULL,
                              err);
    kd_labelled_free(&train);
    kd_labelled_free(&test);
    kd_classes_free(&classes);
    return status;
}
