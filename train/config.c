#include "train/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/data/skip_list.h"
#include "common/image/augment.h"
#include "common/tensor/target.h"
#include "train/preset.h"

#define T kd_train_config

static const kd_option table[] = {
    KD_OPTION_STRINGS(T, cache, "cache", "FILE.kdc|DIR", 0,
                      "sealed cache, or a folder of its shards; given several times, caches of one recipe are its shards. Caches of other recipes of the same teacher and layers (global and local "
                      "crops) add to every step a batch of the same images as their views show them; the mean of the recipes' losses is minimised, and the first recipe is the one that is "
                      "validated"),
    KD_OPTION_STRING(T, live_teacher, "live-teacher", "FILE|DIR", NULL, 0,
                     "in place of --cache: the teacher's weights. It runs in every step, on the views that kd-precompute would have cached with the options from here to --max-skipped (docs/live.md)"),
    KD_OPTION_STRING(T, teacher, "teacher", "auto|NAME", "auto", 0, "live teacher: what the weights must be; everything is inferred from the file, a name only checks"),
    KD_OPTION_STRING(T, weights_key, "weights-key", "PREFIX", NULL, 0, "live teacher: which model of a checkpoint that holds several"),
    KD_OPTION_CHOICE(T, positions, "positions", "auto|official|hf|timm", "auto", "live teacher: how learned positions are resized to the image"),
    KD_OPTION_STRING(T, normalize, "normalize", "auto|NAME|M,M,M/S,S,S", "auto", 0, "live teacher: normalisation of its input"),
    KD_OPTION_INT(T, views, "views", "N", "8", 0, 65536, "live teacher: different views of each image; 0 = as many as --epochs, so that every epoch shows a new one"),
    KD_OPTION_INT(T, view_seed, "view-seed", "N", "0", 0, 9007199254740992.0, "live teacher: seed of the views (kd-precompute --seed)"),
    KD_OPTION_STRING(T, augment, "augment", "PRESET|FILE.yaml", "lightly", 0, "live teacher: augmentation (docs/augment.md)"),
    KD_OPTION_CHOICE(T, exif, "exif", "ignore|apply", "ignore", "live teacher: orientation of photos"),
    KD_OPTION_INT(T, max_pixels, "max-pixels", "N", "89478485", 1, 4290250000.0, "live teacher: a picture with more pixels is refused"),
    KD_OPTION_STRING(T, layers, "layers", "N,N,...|all:N,...", "1", 0, "live teacher: layers that losses can use, counted from the end"),
    KD_OPTION_CHOICE(T, layer_norm, "layer-norm", "on|off", "on", "live teacher: whether each layer goes through its final norm"),
    KD_OPTION_CHOICE(T, layer_concat, "layer-concat", "on|off", "off", "live teacher: join the layers' features into one"),
    KD_OPTION_INT(T, teacher_batch, "teacher-batch", "N", "16", 1, 4096, "live teacher: views that it sees at once (kd-precompute --batch-size)"),
    KD_OPTION_CHOICE(T, teacher_precision, "teacher-precision", "auto|f32|bf16", "auto", "live teacher: arithmetic of its matrix products; auto: as --precision"),
    KD_OPTION_STRING(T, max_skipped, "max-skipped", "N|P%", "0", 0, "live teacher: pictures that can't be decoded and are acceptable; they are left out, and beyond that the finished run ends with exit code 3"),
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED,
                     "the images that the cache was made from (of a live teacher: the images), wherever they lie now: a folder (tar shards in it are read in place), a .tar, a text file with one path per line, or - for such a list on stdin"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_STRINGS(T, students, "student", "NAME", KD_OPT_REQUIRED,
                      "network to train: resnet18, vit_tiny_patch16_224, dinov2_wW_dD, ... (--list-students); given several times, they share one pass over the images. Behind the name settings of its own can stand, "
                      "over the run's: resnet18,name=r18-mse,loss=mse,lr=3e-4 (docs/losses.md)"),
    KD_OPTION_STRING(T, out, "out", "DIR", NULL, KD_OPT_REQUIRED, "run directory; run the same command again to resume an interrupted run"),
    KD_OPTION_CHOICE(T, preset, "preset", "default|lightly-v1|lightly-v2|lightly-v3|vit-kd", "default", "settings of a known recipe at once, listed below; options that are given win"),
    KD_OPTION_STRING(T, init, "init", "FILE", NULL, 0, "weights to start from: .safetensors, .pth, or an ultralytics .pt, which is read as data; without it the library's random initialisation. Of several students: for all, but those that have their own (NAME,init=FILE)"),
    KD_OPTION_INT(T, epochs, "epochs", "N", "100", 1, 1000000, "passes over the training images; each shows every image once, with its next view"),
    KD_OPTION_INT(T, batch_size, "batch-size", "N", "64", 1, 65536, "images per forward and backward pass (several recipes: of each); a step of the optimizer takes --accumulate of them"),
    KD_OPTION_STRING(T, image_size, "image-size", "S|HxW", "0", 0, "what the views of the (first) cache must measure: a side, or rows x columns; 0 = whatever the cache has. Of a live teacher: the size of its views; 0 = 224"),
    KD_OPTION_STRING(T, student_size, "student-size", "S|HxW", "0", 0,
                     "size at which the students see the views (reduced by a box filter): a side, or rows x columns; 0 = the full view. Several recipes: of the first; the views of the others are "
                     "reduced by the same factor"),
    KD_OPTION_INT(T, teacher_layer, "teacher-layer", "N", "0", 0, 1024, "layer of the teacher to learn, of those that the cache holds: 1 = its last; 0 = the deepest one stored"),
    KD_OPTION_CHOICE(T, loss, "loss", "std-mse|mse|kl-queue|kl-queue+intra|mse-normalized|cosine|cos-sl1|radio|unic|smooth-l1|gram|kl-logits|none", "std-mse",
                     "what is minimised (docs/losses.md): std-mse, squared error on centred, scalar-standardised features; mse, raw features of the last two blocks (LightlyTrain v2); kl-queue and "
                     "kl-queue+intra (LightlyTrain v1, v3); none: the terms of --pair alone"),
    KD_OPTION_STRINGS(T, pairs, "pair", "KEY=VALUE,...", 0,
                      "a further pair of a student's and a teacher's feature, and its losses: student=layer3,teacher=patch:2,loss=cosine:0.9+smooth-l1:0.1,weight=0.5 (keys: name, student, teacher, "
                      "loss, weight, scaling, head, hidden, temperature, beta, queue-size); may be given several times, in a config file also as mappings"),
    KD_OPTION_CHOICE(T, head, "head", "auto|norm-linear|linear|mlp|mlp-gelu", "auto",
                     "projection from the student's to the teacher's width: LayerNorm-Linear, Linear, Linear-ReLU-Linear, or Linear-LayerNorm-GELU-Linear; auto: what the loss is defined with"),
    KD_OPTION_INT(T, head_hidden, "head-hidden", "N", "2048", 1, 65536, "width inside mlp heads"),
    KD_OPTION_STRING(T, temperature, "temperature", "auto|X", "auto", 0, "temperature of the KL losses; auto: 0.07, of kl-logits 1"),
    KD_OPTION_STRING(T, queue_size, "queue-size", "auto|N", "auto", 0, "teacher features that kl-queue compares with; auto: by the number of images, from 16 below 50 to 8192 from 20,000 on"),
    KD_OPTION_REAL(T, cosine_share, "cosine-share", "X", "0.9", 0, 1, "share of the cosine in cos-sl1; smooth L1 has the rest"),
    KD_OPTION_REAL(T, beta, "beta", "X", "1", 1e-6, 1e6, "where smooth L1 turns from square to straight"),
    KD_OPTION_REAL(T, gram_weight, "gram-weight", "X", "0", 0, 1e6, "adds the Gram loss of the patch predictions with this weight"),
    KD_OPTION_REAL(T, koleo_weight, "koleo-weight", "X", "0", 0, 1e6, "adds KoLeo, which spreads the predictions of a batch, with this weight (DINOv3: 0.1)"),
    KD_OPTION_STRING(T, teacher_head, "teacher-head", "FILE", NULL, 0, "the teacher's linear classifier, weight [classes, width] and bias, for --loss kl-logits (.safetensors or .pth)"),
    KD_OPTION_STRING(T, patch_target, "patch-target", "auto|full|pool:K|adjoint:K", "auto", 0,
                     "which form of the patches, of those that the cache holds, is learnt; auto, for each student: adjoint:KxL when its feature map is KxL, else full, else pool. Several recipes: of the "
                     "first, and of the others where they hold it"),
    KD_OPTION_STRING(T, cls_weight, "cls-weight", "auto|X", "auto", 0, "weight of the loss on the CLS token; 0 leaves it out; auto: the loss's own (std-mse: 1)"),
    KD_OPTION_STRING(T, patch_weight, "patch-weight", "auto|X", "auto", 0, "weight of the loss on the patches; 0 leaves it out (for caches of CLS only); auto: the loss's own (std-mse: 1)"),
    KD_OPTION_CHOICE(T, optimizer, "optimizer", "adamw|sgd|lars", "adamw",
                     "adamw (beta 0.9, 0.999, eps 1e-8); sgd with --momentum; lars: sgd with a rate of its own for every decayed tensor (trust 1e-3, eps 1e-8), tensors without decay take plain sgd"),
    KD_OPTION_REAL(T, momentum, "momentum", "X", "0.9", 0, 1, "of sgd and lars"),
    KD_OPTION_STRING(T, lr, "lr", "auto|X", "auto", 0,
                     "peak learning rate; auto, at 64 images per step: adamw 1e-3 for CNNs with batch norm and 5e-4 for ViTs and ConvNeXt, sgd 0.05, lars 0.37"),
    KD_OPTION_CHOICE(T, lr_scale, "lr-scale", "auto|none|linear|sqrt", "auto",
                     "how the learning rate grows with the images per step (--batch-size times --accumulate) from those that it is meant for; auto: sqrt for --lr auto, none for a rate that is given"),
    KD_OPTION_INT(T, lr_reference_batch, "lr-reference-batch", "N", "64", 1, 1e9, "images per step that a given --lr is meant for; --lr auto is meant for 64"),
    KD_OPTION_STRING(T, weight_decay, "weight-decay", "auto|X", "auto", 0, "decay of weight matrices; auto: 1e-6 for CNNs with batch norm, 0.04 for ViTs and ConvNeXt"),
    KD_OPTION_STRING(T, warmup_epochs, "warmup-epochs", "auto|N", "auto", 0, "epochs of linear warm-up before the cosine; auto: min(10, epochs / 10)"),
    KD_OPTION_REAL(T, clip, "clip", "X", "1", 0, 1e9, "largest norm of the gradient; 0 = no clipping"),
    KD_OPTION_REAL(T, ema, "ema", "DECAY", "0", 0, 0.999999, "keep the moving average of the weights and of batch norm's statistics, updated every step, and validate and export that; 0 = none"),
    KD_OPTION_INT(T, accumulate, "accumulate", "N", "1", 1, 65536,
                  "batches of --batch-size images whose gradients are averaged for one step of the optimizer: as a batch N times as large in the memory of one, but for batch norm, which sees each by itself"),
    KD_OPTION_REAL(T, drop_path, "drop-path", "RATE", "0", 0, 0.9,
                   "chance that a residual branch is left out for an image in training (ViTs, ConvNeXt), in the last block; in earlier ones it grows linearly from 0 (timm)"),
    KD_OPTION_REAL(T, val_fraction, "val-fraction", "X", "0.02", 0, 0.5, "share of the images held out for validation, chosen by image id"),
    KD_OPTION_INT(T, val_seed, "val-seed", "N", "0", 0, 9007199254740992.0, "seed of that choice; keep it for all students that are to be compared"),
    KD_OPTION_STRING(T, val_list, "val-list", "FILE", NULL, 0,
                     "text file naming the images to hold out, one per line, by path as the cache has it or by id (kd-cache list prints both); --val-fraction then doesn't apply"),
    KD_OPTION_INT(T, val_group, "val-group", "DEPTH", "0", 0, 64,
                  "images whose paths share the first DEPTH folders (the frames of a video) are held out together or not at all; 0 = each image by itself"),
    KD_OPTION_STRING(T, knn_train, "knn-train", "DIR|TAR|CSV|CACHE", NULL, 0,
                     "labelled images: one folder per class, a .csv of path,label, or a cache whose pictures are in --images: with --knn-test, the students' features are tried by k-NN every --knn-every epochs (kd-eval knn; training isn't touched)"),
    KD_OPTION_STRING(T, knn_test, "knn-test", "DIR|TAR|CSV|CACHE", NULL, 0, "test images in the same classes"),
    KD_OPTION_INT(T, knn_every, "knn-every", "N", "10", 1, 1000000, "epochs from one k-NN to the next; the last epoch has one too"),
    KD_OPTION_INT(T, seed, "seed", "N", "0", 0, 9007199254740992.0, "seed of initial weights and of the order of images"),
    KD_OPTION_STRING(T, device, "device", "auto|ref|cpu|cuda[:N]", "auto", 0, "where the students run"),
    KD_OPTION_CHOICE(T, precision, "precision", "f32|bf16", "f32", "arithmetic of matrix products; weights and optimizer are always f32"),
    KD_OPTION_INT(T, threads, "threads", "N", "0", 0, 1024, "compute threads, and as many loader threads for each recipe; 0 = every processor"),
    KD_OPTION_STRING(T, view_memory, "view-memory", "auto|SIZE", "auto", 0, "memory for views that were decoded and proven once (same bits, less work); auto: a quarter of the memory, 0 = off"),
    KD_OPTION_FLAG(T, allow_missing, "allow-missing", "train on the images that are there when some of the cache's are missing"),
    KD_OPTION_REAL(T, checkpoint_minutes, "checkpoint-minutes", "X", "10", 0, 1e6, "also write a checkpoint within an epoch when the last is this old; 0 = only at the end of epochs"),
    KD_OPTION_INT(T, checkpoint_epochs, "checkpoint-epochs", "N", "0", 0, 1000000, "keep the state after every N epochs as checkpoints/epoch-0010.kdt and so on; 0 = only the latest and the best"),
    KD_OPTION_INT(T, keep, "keep", "K", "0", 0, 1000000, "of those, how many to keep: the last K; 0 = all"),
    KD_OPTION_INT(T, log_every, "log-every", "N", "20", 1, 1000000, "steps per line of metrics.jsonl"),
    KD_OPTION_INT(T, steps, "steps", "N", "0", 0, 1e15, "pause after this many steps, with a checkpoint and the schedule of --epochs; 0 = train to the end"),
    KD_OPTION_STRING(T, dump, "dump", "DIR", NULL, 0,
                     "also write DIR/STUDENT/step-NNNN.safetensors: inputs, outputs, losses, gradients and parameters of the run's first --steps steps (3 without --steps), for a comparison with PyTorch"),
    KD_OPTION_FLAG(T, compare_backends, "compare-backends",
                   "train nothing: run the first batch on --device and on the reference backend, op by op, and print the relative L2 error of every tensor and the first that is beyond the tolerance (the "
                   "reference is slow: give a small --batch-size)"),
    KD_OPTION_INT(T, overfit_batch, "overfit-batch", "N", "0", 0, 1000000,
                  "train nothing: N steps on the first batch alone; ends with 1 when the loss doesn't fall to a tenth, so that weights or wiring must be wrong"),
    KD_OPTION_FLAG(T, profile, "profile", "train nothing: time a few steps on the first batch and print a table of every op's time, share and GFLOP/s, the longest first"),
    KD_OPTION_FLAG(T, check_finite, "check-finite", "look at every number that an op writes and stop with 16 at the first that isn't finite, naming op and tensor (slow)"),
    KD_OPTION_FLAG(T, dry_run, "dry-run", "print the plan (counts, how often each view is seen, memory, steps) and touch nothing"),
    KD_OPTION_ALONE(T, list_students, "list-students", "list the students with parameters, FLOPs, widths, sizes and maps; nothing else is needed"),
    KD_OPTION_END,
};

const kd_program kd_train_program = {
    .name = "kd-train",
    .summary = "Trains small vision models to reproduce a teacher's cached features on the very views that the teacher saw.",
    .examples = "  $ kd-train --cache photos.kdc --images photos --student resnet18 --out runs/r18 --dry-run\n"
                "  $ kd-train --cache photos.kdc --images photos --student resnet18 --student-size 112 --out runs/r18 --precision bf16\n"
                "  $ kd-train --live-teacher dinov2_vits14_pretrain.pth --views 0 --images photos --student resnet18 --out runs/live\n"
                "  $ kd-train --cache photos.kdc --images photos --student vit_tiny_patch16_224 --init vit_tiny.safetensors --out runs/vit\n",
    .epilog = "The run directory holds report.html, config.resolved.yaml, metrics.jsonl, events.out.tfevents.* (TensorBoard), train.log,\n"
              "checkpoints/, exported/NAME.safetensors (the last epoch) and exported/NAME-best.safetensors (the best validation loss).\n"
              "The same command continues an interrupted run, bit for bit on the same machine and thread count.\n"
              "Exit codes: 0 done; 1 failure; 2 usage, or an option that differs from the run's; 3 done, but a live teacher skipped more than --max-skipped;\n"
              "10 cache not found; 12 cache damaged; 13 images or cache don't match; 14 disk full; 15 device not available; 16 non-finite numbers; 130, 143\n"
              "interrupted (checkpoint written).\n",
    .options = table,
    .preset_option = "preset",
    .presets = kd_train_presets,
};

int kd_train_touches_nothing(const kd_train_config *c) {
    return c->dry_run || c->compare_backends || c->profile || c->overfit_batch > 0;
}

/* A number >= 0, or auto. */
static kd_status number_or(double *out, const char *text, const char *option, double automatic, kd_err *err) {
    if (strcmp(text, "auto") == 0) {
        *out = automatic;
        return KD_OK;
    }
    char *end = NULL;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || !(v >= 0) || v > 1e6)
        return kd_fail(err, KD_EUSAGE, "--%s %s: expected a number from 0 to 1e6, or auto", option, text);
    *out = v;
    return KD_OK;
}

/* What is said of a live teacher; a cache has its own answers. */
static const char *const live_options[] = {"teacher",    "weights-key", "positions", "normalize",    "views",        "view-seed",     "augment",          "exif",
                                             "max-pixels", "layers",      "layer-norm", "layer-concat", "teacher-batch", "teacher-precision", "max-skipped"};

/* Of texts and whole numbers, which the live teacher's options are. */
static int is_default(const kd_train_config *c, const char *name) {
    const kd_option *o = kd_train_program.options;
    while (strcmp(o->name, name) != 0)
        o++;
    const void *field = (const char *)c + o->offset;
    if (o->kind == KD_OPT_INT)
        return *(const int64_t *)field == strtoll(o->dflt, NULL, 10);
    const char *text = *(const char *const *)field;
    return text == NULL || (o->dflt != NULL && strcmp(text, o->dflt) == 0);
}

/* A cache or a live teacher; what is said of a live one is refused where there is none. */
static kd_status check_source(const kd_train_config *c, kd_err *err) {
    if ((c->cache.count > 0) == (c->live_teacher != NULL))
        return kd_fail(err, KD_EUSAGE, c->live_teacher == NULL ? "--cache is missing: give the cache to learn from, or a teacher that runs in every step with --live-teacher"
                                                               : "--cache and --live-teacher are two sources of the same; give one of them");
    if (c->live_teacher != NULL)
        return KD_OK;
    for (size_t i = 0; i < sizeof live_options / sizeof live_options[0]; i++)
        if (!is_default(c, live_options[i]))
            return kd_fail(err, KD_EUSAGE, "--%s is for --live-teacher; a cache has its own (kd-cache info says it): leave the option out", live_options[i]);
    return KD_OK;
}

kd_status kd_train_config_check(const kd_train_config *c, kd_err *err) {
    double ignored;
    uint64_t bytes;
    int height, width;
    kd_target target;
    KD_TRY(check_source(c, err));
    if ((c->knn_train == NULL) != (c->knn_test == NULL))
        return kd_fail(err, KD_EUSAGE, "--knn-train and --knn-test belong together; give the other one too");
    KD_TRY(number_or(&ignored, c->cls_weight, "cls-weight", 1, err));
    KD_TRY(number_or(&ignored, c->patch_weight, "patch-weight", 1, err));
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &height, &width, err));
    KD_TRY(kd_image_size_parse(c->student_size, "--student-size", &height, &width, err));
    if (strcmp(c->patch_target, "auto") != 0)
        KD_TRY(kd_target_parse(&target, c->patch_target, "--patch-target", err));
    KD_TRY(kd_max_skipped_parse(c->max_skipped, 0, &bytes, err));
    KD_TRY(number_or(&ignored, c->lr, "lr", 1, err));
    KD_TRY(number_or(&ignored, c->weight_decay, "weight-decay", 1, err));
    KD_TRY(kd_train_warmup(&ignored, c, err));
    return kd_train_view_memory(&bytes, c, err);
}

/* What --lr auto is for 64 images per step. lars: LightlyTrain v1's 1.8 for 1536, by the root of the batch. */
static double automatic_lr(kd_optimizer kind, int layer_norm) {
    switch (kind) {
    case KD_SGD: return 0.05;
    case KD_LARS: return 1.8 * sqrt(64.0 / 1536.0);
    default: return layer_norm ? 5e-4 : 1e-3;
    }
}

/* What --lr-scale makes of the rate. */
static double lr_scale(const kd_train_config *c) {
    int automatic = strcmp(c->lr, "auto") == 0;
    const char *how = strcmp(c->lr_scale, "auto") != 0 ? c->lr_scale : automatic ? "sqrt" : "none";
    double ratio = (double)(c->batch_size * c->accumulate) / (automatic ? 64.0 : (double)c->lr_reference_batch);
    return strcmp(how, "sqrt") == 0 ? sqrt(ratio) : strcmp(how, "linear") == 0 ? ratio : 1;
}

kd_status kd_train_hyper(kd_hyper *h, const kd_train_config *c, const kd_model_info *m, kd_err *err) {
    int layer_norm = m->norm == KD_MODEL_LAYER_NORM;
    h->optim.kind = kd_optimizer_find(c->optimizer);
    h->optim.momentum = c->momentum;
    h->clip = c->clip;
    KD_TRY(number_or(&h->lr, c->lr, "lr", automatic_lr(h->optim.kind, layer_norm), err));
    h->lr *= lr_scale(c);
    return number_or(&h->optim.weight_decay, c->weight_decay, "weight-decay", layer_norm ? 0.04 : 1e-6, err);
}

kd_status kd_train_warmup(double *epochs, const kd_train_config *c, kd_err *err) {
    double automatic = fmin(10, (double)c->epochs / 10);
    KD_TRY(number_or(epochs, c->warmup_epochs, "warmup-epochs", automatic, err));
    if (*epochs > (double)c->epochs)
        return kd_fail(err, KD_EUSAGE, "--warmup-epochs %s is more than --epochs %lld", c->warmup_epochs, (long long)c->epochs);
    return KD_OK;
}

/* Physical memory, or what a container's limit leaves of it. */
static uint64_t memory_limit(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : (uint64_t)1 << 30;
    uint8_t *text = NULL;
    size_t size;
    if (kd_io_read_all("/sys/fs/cgroup/memory.max", 4096, &text, &size, NULL) == KD_OK) {
        unsigned long long limit = strtoull((const char *)text, NULL, 10); /* "max" gives 0 */
        if (limit > 0 && limit < bytes)
            bytes = limit;
    }
    kd_free(text);
    return bytes;
}

kd_status kd_train_view_memory(uint64_t *bytes, const kd_train_config *c, kd_err *err) {
    if (strcmp(c->view_memory, "auto") == 0) {
        *bytes = memory_limit() / 4;
        return KD_OK;
    }
    return kd_io_size_parse(c->view_memory, bytes, err);
}

static kd_status number_text(const char **out, double v, kd_arena *arena, kd_err *err) {
    *out = kd_arena_printf(arena, "%.9g", v);
    return *out != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the options");
}

/* The same size is written in one way, so that 224 and 224x224 are the same option to a resumed run. */
static kd_status size_text(const char **text, const char *option, kd_arena *arena, kd_err *err) {
    char size[KD_SIZE_TEXT];
    int height, width;
    KD_TRY(kd_image_size_parse(*text, option, &height, &width, err));
    *text = kd_arena_printf(arena, "%s", kd_image_size_text(height, width, size));
    return *text != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the options");
}

kd_status kd_train_resolve(kd_train_config *c, const kd_hyper *h, size_t students, kd_arena *arena, kd_err *err) {
    double warmup;
    int same_lr = 1, same_decay = 1, own = 0;
    for (size_t i = 1; i < students; i++) {
        same_lr &= h[i].lr == h[0].lr;
        same_decay &= h[i].optim.weight_decay == h[0].optim.weight_decay;
    }
    KD_TRY(size_text(&c->image_size, "--image-size", arena, err));
    KD_TRY(size_text(&c->student_size, "--student-size", arena, err));
    for (size_t i = 0; i < c->students.count; i++)
        own |= strchr(c->students.item[i], ',') != NULL;
    if (same_lr && !own) { /* the rate as it is used: it isn't to be scaled again, as a student's own would be */
        KD_TRY(number_text(&c->lr, h[0].lr, arena, err));
        c->lr_scale = "none";
    }
    if (same_decay)
        KD_TRY(number_text(&c->weight_decay, h[0].optim.weight_decay, arena, err));
    KD_TRY(kd_train_warmup(&warmup, c, err));
    return number_text(&c->warmup_epochs, warmup, arena, err);
}

/* Where things lie, how fast they go and what is kept may change within a run. Identity, images and what is held out are compared by content, a preset by the values of the options. */
static const char *const may_change[] = {"cache", "live-teacher", "images", "null", "out", "threads", "device", "view-memory", "preset", "checkpoint-minutes", "checkpoint-epochs", "keep",
                                          "steps", "dry-run", "allow-missing", "list-students", "val-list", "teacher-head", "max-skipped", "knn-train", "knn-test", "dump", "check-finite",
                                          "compare-backends", "overfit-batch", "profile"};

static int changeable(const char *key) {
    for (size_t i = 0; i < sizeof may_change / sizeof may_change[0]; i++)
        if (strcmp(key, may_change[i]) == 0)
            return 1;
    return 0;
}

kd_status kd_train_same_run(const json_t *stored, const json_t *now, const char *run, kd_err *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)now, key, value) { /* jansson's iterator takes no const */
        json_t *old = json_object_get(stored, key);
        if (changeable(key) || (old != NULL && json_equal(old, value)))
            continue;
        char *a = old != NULL ? json_dumps(old, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
        char *b = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        kd_status status = kd_fail(err, KD_EUSAGE, "--%s was %s when %s was begun and is %s now; give the old value to resume, or another --out", key,
                                   a != NULL ? a : "absent", run, b != NULL ? b : "?");
        free(a);
        free(b);
        return status;
    }
    return KD_OK;
}
