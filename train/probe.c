#include "train/probe.h"

#include "common/base/log.h"
#include "train/eval/knn_folders.h"

const int kd_probe_k[KD_PROBE_KS] = {10, 20};

kd_status kd_probe_check(const kd_train_config *c, kd_err *err) {
    kd_knn_sets sets;
    if (c->knn_train == NULL)
        return KD_OK;
    KD_TRY(kd_knn_folders_check(c->knn_train, c->knn_test, kd_probe_k[KD_PROBE_KS - 1], &sets, err));
    kd_log(KD_LOG_INFO, "k-NN every %lld epochs: %zu classes, %zu training and %zu test images", (long long)c->knn_every, sets.classes, sets.train, sets.test);
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
    kd_knn_sets sets;
    return kd_knn_folders(&network, setup->config->knn_train, setup->config->knn_test, KD_TAP_POOLED, kd_probe_k, KD_PROBE_KS, results, &sets, err);
}
