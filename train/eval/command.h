/* Commands: what the commands of kd-eval share. Each command is a file command_NAME.c with an option table and a config of its own; eval.c finds it by name. */
#ifndef KD_TRAIN_EVAL_COMMAND_H
#define KD_TRAIN_EVAL_COMMAND_H

#include "common/base/options.h"
#include "train/eval/labelled.h"

typedef struct kd_eval_command {
    const kd_program *program;
    /* Parses argv (argv[0] is the command) and does it; prints its result on stdout. Errors and *json as of kd_options_parse. */
    kd_status (*run)(int argc, char **argv, int *json, kd_arena *arena, kd_err *err);
} kd_eval_command;
extern const kd_eval_command kd_eval_knn_command, kd_eval_logreg_command, kd_eval_linear_command, kd_eval_agree_command, kd_eval_features_command, kd_eval_pca_command;

/* The network that is measured. */
typedef struct kd_eval_network {
    const char *model, *weights, *run, *student, *image_size, *student_size, *device, *precision;
    int64_t seed, batch_size, threads;
} kd_eval_network;
/* Its options, for a config T with a member `network`. */
#define KD_EVAL_NETWORK_OPTIONS(T)                                                                                                                 \
    KD_OPTION_STRING(T, network.weights, "weights", "FILE|random", NULL, 0, "weight file of a teacher or student, or random for what kd-train --seed starts from"), \
    KD_OPTION_STRING(T, network.run, "run", "DIR", NULL, 0, "in place of --weights: the student that a kd-train run has exported"), \
    KD_OPTION_STRING(T, network.student, "student", "NAME", NULL, 0, "which student of --run (NAME-best: its state of the best validation loss); may be left out when there is one"), \
    KD_OPTION_STRING(T, network.model, "model", "auto|NAME", "auto", 0, "network: a teacher or student name; auto: what an exported file says, or the network that its tensors are"), \
    KD_OPTION_INT(T, network.seed, "seed", "N", "0", 0, 9007199254740992.0, "seed of random weights"),                                             \
    KD_OPTION_STRING(T, network.image_size, "image-size", "auto|S|HxW", "auto", 0, \
                     "size of the eval view, a side or rows x columns: resized to cover 256/224 of it, centre crop; auto: the views that an exported student was trained on, else 224"), \
    KD_OPTION_STRING(T, network.student_size, "student-size", "auto|S|HxW", "auto", 0, \
                     "reduce the view to this size as kd-train --student-size does; 0 = not; auto: as an exported student was trained, else not"), \
    KD_OPTION_INT(T, network.batch_size, "batch-size", "N", "16", 1, 4096, "images per pass"),                                                     \
    KD_OPTION_INT(T, network.threads, "threads", "N", "0", 0, 1024, "threads; 0 = every processor"),                                               \
    KD_OPTION_STRING(T, network.device, "device", "auto|ref|cpu|cuda[:N]", "auto", 0, "where the network runs"),                                   \
    KD_OPTION_CHOICE(T, network.precision, "precision", "f32|bf16", "f32", "arithmetic of the matrix products")

/* The labelled images of a protocol with classes: options for a config T with a member `files` (kd_label_files). */
#define KD_EVAL_LABELLED_OPTIONS(T)                                                                                                                                               \
    KD_OPTION_STRING(T, files.train, "train", "DIR|TAR|CSV|CACHE", NULL, KD_OPT_REQUIRED,                                                                                         \
                     "training images: one folder per class (in a tar too), one tar per class, a .csv of path,label, or a cache, whose images are of the classes that its paths name"), \
    KD_OPTION_STRING(T, files.test, "test", "DIR|TAR|CSV|CACHE", NULL, KD_OPT_REQUIRED, "test images of the same classes"),                                                       \
    KD_OPTION_STRING(T, files.images, "images", "DIR|TAR|LIST", NULL, 0, "with a cache as --train or --test: where the pictures are that it was made from")

/* The causes of kd_extractor_open, and KD_EUSAGE: a size that isn't one, neither weights nor a run or both, a run without (this) exported student. The arena outlives x. */
kd_status kd_eval_open(kd_extractor **x, const kd_eval_network *n, int json, kd_arena *arena, kd_err *err);
/* A teacher that sees the same eval views as `student`, not reduced, on the same device (like: the student's options). The arena outlives it. */
kd_status kd_eval_open_teacher(kd_extractor **teacher, const kd_eval_network *like, const kd_extractor *student, const char *model, const char *weights, int json, kd_arena *arena, kd_err *err);
/* The end of a command that left images out: KD_ESKIPPED, saying how many; KD_OK for none. */
kd_status kd_eval_skipped(size_t skipped, size_t count, const char *images, kd_err *err);

/* ---- results ----
 * A result is a JSON object that says all that its figures depend on, so that it can be compared with others. Each command begins one here, adds its figures, and prints it: with --json as a line, else as text.
 *
 *     json_t *r = kd_eval_result("knn", x, "pooled");
 *     kd_eval_result_labelled(r, &train, &test, &classes);          // or kd_eval_result_images
 *     kd_eval_print_head(r);                                        // text: the line on network and images
 *     json_object_set_new(r, "top1", json_real(top1));  kd_json_line(r);
 *
 * New references; when memory is out a member is missing, or the whole is NULL, which jansson's functions accept. */

/* {"type":"result", "protocol", "model", "weights":path or "random", "model_sha256":kd_weights_sha256 in hex, null for random weights, which have "seed" instead, "feature" (left out for NULL), "precision", "device",
 * "transform":{"name":"eval", "image_size":[rows,columns] of the view, "input_size":[rows,columns] of what the network sees (its BOX reduction), "mean":[r,g,b], "std":[r,g,b]}}. */
json_t *kd_eval_result(const char *protocol, const kd_extractor *x, const char *feature);
/* Adds "classes", "train", "test" (images), "train_skipped", "test_skipped", "train_digest", "test_digest" (kd_labels_digest), "shared" (test images that are training images too). */
void kd_eval_result_labelled(json_t *result, const kd_labelled *train, const kd_labelled *test, const kd_classes *classes);
/* Adds "images", "skipped", "digest", of images without classes. KD_EFAIL: memory. */
kd_status kd_eval_result_images(json_t *result, const kd_feature_set *set, kd_err *err);
/* The same as two lines of text on stdout. */
void kd_eval_print_head(const json_t *result);

#endif
