#include "train/eval/command.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/image/augment.h"

/* ---- the network ---- */

static kd_status parse_size(const char *text, const char *option, int *height, int *width, kd_err *err) {
    *height = *width = KD_AS_TRAINED;
    return strcmp(text, "auto") == 0 ? KD_OK : kd_image_size_parse(text, option, height, width, err);
}

/* A name without its ending, or 0: it hasn't got it. */
static size_t without(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n > m && strcmp(name + n - m, ending) == 0 ? n - m : 0;
}

/* The run's only exported student: its states of the best validation loss don't count. */
static kd_status only_student(const char *folder, const char *run, kd_arena *arena, const char **name, kd_err *err) {
    DIR *d = opendir(folder);
    if (d == NULL)
        return kd_fail(err, KD_EUSAGE, "%s: nothing is exported there yet, which kd-train does at its end; kd-export --run %s --out FILE writes the present state, for --weights FILE", folder, run);
    size_t found = 0;
    kd_status status = KD_OK;
    for (struct dirent *e; status == KD_OK && (e = readdir(d)) != NULL;) {
        size_t n = without(e->d_name, ".safetensors");
        if (n == 0 || without(e->d_name, "-best.safetensors") > 0)
            continue;
        const char *before = *name;
        *name = kd_arena_printf(arena, "%.*s", (int)n, e->d_name);
        if (*name == NULL)
            status = kd_fail(err, KD_EFAIL, "out of memory");
        else if (found++ > 0)
            status = kd_fail(err, KD_EUSAGE, "%s has several students (%s, %s); say which with --student", run, strcmp(before, *name) < 0 ? before : *name, strcmp(before, *name) < 0 ? *name : before);
    }
    closedir(d);
    if (status == KD_OK && found == 0)
        status = kd_fail(err, KD_EUSAGE, "%s: holds no student; kd-export --run %s --out FILE writes one, for --weights FILE", folder, run);
    return status;
}

/* The weight file: as given, or what a run has exported. In the arena. */
static kd_status choose_weights(const kd_eval_network *n, kd_arena *arena, const char **weights, kd_err *err) {
    *weights = n->weights;
    if ((n->weights != NULL) == (n->run != NULL))
        return kd_fail(err, KD_EUSAGE, n->run != NULL ? "--run and --weights both say which network; leave one out" : "which network? Give --weights FILE, or --run DIR of a kd-train run");
    if (n->run == NULL)
        return n->student == NULL ? KD_OK : kd_fail(err, KD_EUSAGE, "--student %s: says which student of --run; with --weights it is --model that names a network", n->student);
    const char *name = n->student, *folder = kd_arena_printf(arena, "%s/exported", n->run);
    if (folder == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    if (name == NULL)
        KD_TRY(only_student(folder, n->run, arena, &name, err));
    *weights = kd_arena_printf(arena, "%s/%s.safetensors", folder, name);
    if (*weights == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    if (!kd_io_exists(*weights))
        return kd_fail(err, KD_EUSAGE, "%s: no such student; --run is the --out folder of a kd-train run that has ended, and --student one of its students (or NAME-best)", *weights);
    return KD_OK;
}

kd_status kd_eval_open(kd_extractor **x, const kd_eval_network *n, int json, kd_arena *arena, kd_err *err) {
    kd_extractor_options o = {.model = n->model, .seed = (uint64_t)n->seed, .batch = (int)n->batch_size, .threads = (int)n->threads, .device = n->device,
                              .precision = strcmp(n->precision, "bf16") == 0 ? KD_BF16 : KD_F32, .json = json};
    *x = NULL;
    KD_TRY(parse_size(n->image_size, "--image-size", &o.image_h, &o.image_w, err));
    KD_TRY(parse_size(n->student_size, "--student-size", &o.student_h, &o.student_w, err));
    KD_TRY(choose_weights(n, arena, &o.weights, err));
    return kd_extractor_open(x, &o, err);
}

kd_status kd_eval_open_teacher(kd_extractor **teacher, const kd_eval_network *like, const kd_extractor *student, const char *model, const char *weights, int json, kd_arena *arena, kd_err *err) {
    char size[KD_SIZE_TEXT];
    const kd_network *seen = kd_extractor_network(student);
    kd_eval_network n = *like;
    n.model = model;
    n.weights = weights;
    n.run = n.student = NULL;
    n.image_size = kd_image_size_text(seen->image_h, seen->image_w, size);
    n.student_size = "0";
    return kd_eval_open(teacher, &n, json, arena, err);
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
        json_object_set_new(result, "seed", json_integer((json_int_t)o->seed));
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
    json_object_set_new(result, "shared", json_integer((json_int_t)test->shared));
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
    if (json_object_get(r, "seed") != NULL)
        printf("random weights of seed %lld", number_of(r, "seed"));
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
