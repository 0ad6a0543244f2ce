#include "train/eval/command.h"

#include <stdlib.h>
#include <string.h>

#include "common/image/augment.h"

kd_status kd_eval_open(kd_extractor **x, const kd_eval_network *n, int json, kd_err *err) {
    kd_extractor_options o = {.model = n->model, .weights = n->weights, .seed = (uint64_t)n->seed, .batch = (int)n->batch_size, .threads = (int)n->threads,
                              .device = n->device, .precision = strcmp(n->precision, "bf16") == 0 ? KD_BF16 : KD_F32, .json = json};
    *x = NULL;
    KD_TRY(kd_image_size_parse(n->image_size, "--image-size", &o.image_h, &o.image_w, err));
    KD_TRY(kd_image_size_parse(n->student_size, "--student-size", &o.student_h, &o.student_w, err));
    return kd_extractor_open(x, &o, err);
}

kd_status kd_eval_skipped(size_t skipped, size_t count, const char *images, kd_err *err) {
    if (skipped == 0)
        return KD_OK;
    return kd_fail(err, KD_ESKIPPED, "%s: %zu files could not be read (listed above); the result is over the other %zu", images, skipped, count);
}

/* ---- results ---- */

static json_t *pair(int rows, int columns) {
    return json_pack("[i,i]", rows, columns);
}

static json_t *three(const float v[3]) {
    json_t *list = json_array();
    for (int i = 0; i < 3; i++) {
        char text[32]; /* the number that the float was written as: 0.485, not 0.48500001430511475 */
        snprintf(text, sizeof text, "%.6g", (double)v[i]);
        json_array_append_new(list, json_real(strtod(text, NULL)));
    }
    return list;
}

json_t *kd_eval_result(const char *protocol, const kd_extractor *x, const char *feature) {
    const kd_network *n = kd_extractor_network(x);
    const kd_extractor_options *o = kd_extractor_asked(x);
    const char *sha = kd_extractor_weights_sha256(x);
    json_t *transform = json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", "eval", "image_size", pair(n->image_h, n->image_w), "input_size", pair(n->height, n->width), "mean", three(n->model->mean), "std",
                                  three(n->model->std));
    json_t *result = json_pack("{s:s, s:s, s:s, s:s, s:s?, s:s*, s:s, s:s, s:o}", "type", "result", "protocol", protocol, "model", n->model->name, "weights", o->weights, "model_sha256",
                               sha[0] != '\0' ? sha : NULL, "feature", feature, "precision", o->precision == KD_BF16 ? "bf16" : "f32", "device", kd_extractor_device(x), "transform", transform);
    if (sha[0] == '\0')
        json_object_set_new(result, "weights_seed", json_integer((json_int_t)o->seed));
    return result;
}

void kd_eval_result_labelled(json_t *result, const kd_labelled *train, const kd_labelled *test, const kd_classes *classes) {
    const kd_labelled *set[2] = {train, test};
    json_object_set_new(result, "classes", json_integer((json_int_t)classes->count));
    for (int i = 0; i < 2; i++) {
        char key[32];
        const char *name = i == 0 ? "train" : "test";
        json_object_set_new(result, name, json_integer((json_int_t)set[i]->features.count));
        snprintf(key, sizeof key, "%s_skipped", name);
        json_object_set_new(result, key, json_integer((json_int_t)set[i]->features.skipped));
        snprintf(key, sizeof key, "%s_digest", name);
        json_object_set_new(result, key, json_string(set[i]->digest));
    }
}

kd_status kd_eval_result_images(json_t *result, const kd_feature_set *set, kd_err *err) {
    char digest[KD_DIGEST_TEXT];
    KD_TRY(kd_labels_digest(digest, set->id, NULL, set->count, err));
    json_object_set_new(result, "images", json_integer((json_int_t)set->count));
    json_object_set_new(result, "skipped", json_integer((json_int_t)set->skipped));
    json_object_set_new(result, "digest", json_string(digest));
    return KD_OK;
}

/* ---- results as text ---- */

static const char *text_of(const json_t *result, const char *key) {
    const char *s = json_string_value(json_object_get(result, key));
    return s != NULL ? s : "";
}

static long long number_of(const json_t *result, const char *key) {
    return json_integer_value(json_object_get(result, key));
}

static void size_of(const json_t *transform, const char *key, int *rows, int *columns) {
    const json_t *size = json_object_get(transform, key);
    *rows = (int)json_integer_value(json_array_get(size, 0));
    *columns = (int)json_integer_value(json_array_get(size, 1));
}

static void print_network(const json_t *r) {
    const json_t *transform = json_object_get(r, "transform");
    int view[2], input[2];
    char a[KD_SIZE_TEXT], b[KD_SIZE_TEXT];
    size_of(transform, "image_size", &view[0], &view[1]);
    size_of(transform, "input_size", &input[0], &input[1]);
    printf("%s, ", text_of(r, "model"));
    if (json_object_get(r, "weights_seed") != NULL)
        printf("random weights of seed %lld", number_of(r, "weights_seed"));
    else
        printf("weights sha256 %.12s", text_of(r, "model_sha256"));
    printf(", eval view %s", kd_image_size_text(view[0], view[1], a));
    if (view[0] != input[0] || view[1] != input[1])
        printf(" reduced to %s", kd_image_size_text(input[0], input[1], b));
    printf(", %s on %s", text_of(r, "precision"), text_of(r, "device"));
    if (json_object_get(r, "feature") != NULL)
        printf(", feature %s", text_of(r, "feature"));
    printf("\n");
}

void kd_eval_print_head(const json_t *r) {
    print_network(r);
    if (json_object_get(r, "classes") != NULL)
        printf("%lld classes, %lld training images (digest %.12s), %lld test images (digest %.12s)\n", number_of(r, "classes"), number_of(r, "train"), text_of(r, "train_digest"), number_of(r, "test"),
               text_of(r, "test_digest"));
    else
        printf("%lld images (digest %.12s)\n", number_of(r, "images"), text_of(r, "digest"));
}
