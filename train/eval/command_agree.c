/* kd-eval agree: how much of a teacher's features a network has, without labels. */
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/augment.h"
#include "train/eval/agreement.h"
#include "train/eval/command.h"
#include "train/eval/likeness.h"
#include "train/eval/pairs.h"

typedef struct config {
    kd_eval_network network;
    const char *images, *teacher_weights, *teacher, *cache, *feature;
    int64_t k, count, patch_images;
    int null, json;
} config;

#define T config
static const kd_option agree_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, teacher_weights, "teacher-weights", "FILE", NULL, 0, "the teacher: a weight file of any network; it sees the same eval views, not reduced"),
    KD_OPTION_STRING(T, teacher, "teacher", "auto|NAME", "auto", 0, "name of the teacher's model, as --model"),
    KD_OPTION_STRING(T, cache, "cache", "FILE.kdc|DIR", NULL, 0,
                     "in place of --teacher-weights: a cache of the teacher. The network then sees view 0 of each of its images as the teacher saw it, at the cache's image size"),
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "images; with --cache those that it was made from"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_CHOICE(T, feature, "feature", "pooled|cls", "pooled", "the network's feature of an image; the teacher's is its class token"),
    KD_OPTION_INT(T, k, "k", "N", "20", 1, 1024, "neighbours that are compared; of few images at most a quarter of the others"),
    KD_OPTION_INT(T, count, "count", "N", "4096", 0, 1e9, "images at most, evenly spread over all; 0 = all. Time grows with its square"),
    KD_OPTION_INT(T, patch_images, "patch-images", "N", "128", 0, 100000, "of how many of them the patches are compared too; 0 = leave patches out"),
    KD_OPTION_END,
};

static const kd_program agree_program = {
    .name = "kd-eval agree",
    .summary = "How much of a teacher's features a student has, without labels: neighbours kept, and what a linear map can read out.",
    .examples = "  $ kd-eval agree --weights run/exported/resnet18.safetensors --teacher-weights dinov2_vits14_pretrain.pth --images photos\n"
                "  $ kd-eval agree --run run --cache held-out.kdc --images held-out\n",
    .epilog = "Neighbours: of each image its k nearest others by the teacher's feature and by the network's (cosine); the share of the teacher's that the network has too.\n"
              "R2 and centred cosine: of what a linear map makes of the network's features, against the teacher's; ridge regression, fitted on one half of the images and measured on the other, both ways.\n"
              "Raw cosine and MSE: of the features as they are, where both networks have one width.\n"
              "Images that the network was trained on flatter it: give others.\n",
    .options = agree_table,
};

typedef struct outcome {
    kd_pairs pairs;
    int k;
    kd_figure neighbours;
    kd_likeness image, patch; /* patch: where pairs.patch_count > 0 */
} outcome;

/* ---- measuring ---- */

static kd_status pair_with_cache(const config *c, kd_extractor **x, kd_cache **cache, outcome *o, const kd_pairs_choice *choice, kd_arena *arena, kd_err *err) {
    char size[KD_SIZE_TEXT];
    kd_eval_network network = c->network;
    KD_TRY(kd_cache_open(cache, &c->cache, 1, err));
    const kd_recipe *r = kd_cache_recipe(*cache);
    network.image_size = kd_image_size_text(r->image_h, r->image_w, size);
    KD_TRY(kd_eval_open(x, &network, c->json, arena, err));
    return kd_pairs_of_cache(&o->pairs, kd_extractor_network(*x), *cache, c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, choice, err);
}

static kd_status pair_with_teacher(const config *c, kd_extractor **x, kd_extractor **teacher, outcome *o, const kd_pairs_choice *choice, kd_arena *arena, kd_err *err) {
    KD_TRY(kd_eval_open(x, &c->network, c->json, arena, err));
    KD_TRY(kd_eval_open_teacher(teacher, &c->network, *x, c->teacher, c->teacher_weights, c->json, arena, err));
    return kd_pairs_of_network(&o->pairs, kd_extractor_network(*x), kd_extractor_network(*teacher), c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, choice, err);
}

static kd_status compare_neighbours(outcome *o, int k, kd_backend *backend, kd_err *err) {
    const kd_pairs *p = &o->pairs;
    double share, *each;
    o->k = kd_agreement_neighbours(p->count, k);
    KD_TRY(kd_alloc_array(&each, p->count, sizeof *each, err));
    kd_status status = kd_agreement(&share, each, backend, p->teacher, p->teacher_width, p->student, p->student_width, p->count, o->k, err);
    if (status == KD_OK)
        o->neighbours = kd_figure_ratio(each, NULL, p->count);
    kd_free(each);
    return status;
}

static kd_status measure(outcome *o, int k, const kd_network *x, const char *images, kd_err *err) {
    int threads = x->threads;
    const kd_pairs *p = &o->pairs;
    if (p->count < KD_LIKENESS_IMAGES)
        return kd_fail(err, KD_EUSAGE, "%s: %zu images are too few to compare two networks; at least %d are needed, some hundred tell something", images, p->count, KD_LIKENESS_IMAGES);
    KD_TRY(compare_neighbours(o, k, kd_exec_backend(x->exec), err));
    KD_TRY(kd_likeness_measure(&o->image, p->teacher, p->teacher_width, p->student, p->student_width, p->count, 1, threads, err));
    if (p->patch_count > 0)
        KD_TRY(kd_likeness_measure(&o->patch, p->teacher_patch, p->teacher_width, p->student_patch, p->student_width, p->patch_count, (size_t)p->grid_h * (size_t)p->grid_w, threads, err));
    return KD_OK;
}

/* ---- the result ---- */

static json_t *figure_json(kd_figure f) {
    return json_pack("{s:f, s:[f,f]}", "value", f.value, "interval95", f.low, f.high);
}

static json_t *likeness_json(const kd_likeness *l) {
    json_t *j = json_pack("{s:o, s:o, s:[f,f]}", "r2", figure_json(l->r2), "cosine_centred", figure_json(l->cosine), "ridge_strength", l->strength[0], l->strength[1]);
    if (l->same_width) {
        json_object_set_new(j, "raw_cosine", figure_json(l->raw_cosine));
        json_object_set_new(j, "raw_mse", figure_json(l->raw_mse));
    }
    return j;
}

static void add_teacher(json_t *result, const config *c, const kd_extractor *teacher, const kd_cache *cache) {
    if (teacher != NULL) {
        const kd_model_info *m = kd_extractor_network(teacher)->model;
        json_object_set_new(result, "teacher", json_pack("{s:s, s:s, s:s}", "model", m->name, "weights", c->teacher_weights, "model_sha256", kd_extractor_weights_sha256(teacher)));
        return;
    }
    char sha[65];
    const kd_recipe *r = kd_cache_recipe(cache);
    kd_hex(sha, r->sha.b, sizeof r->sha.b);
    json_object_set_new(result, "teacher", json_pack("{s:s, s:s, s:i, s:i}", "cache", c->cache, "identity", sha, "layer", (int)r->layer[0], "view", 0));
    json_object_set_new(json_object_get(result, "transform"), "name", json_string("cache")); /* the views are the cache's */
}

static json_t *result_of(const config *c, const outcome *o, const kd_extractor *x, const kd_extractor *teacher, const kd_cache *cache, kd_err *err) {
    const kd_pairs *p = &o->pairs;
    const kd_feature_set set = {.count = p->count, .skipped = p->skipped, .id = p->id};
    json_t *result = kd_eval_result("agree", x, c->feature);
    if (kd_eval_result_images(result, &set, err) != KD_OK) {
        json_decref(result);
        return NULL;
    }
    add_teacher(result, c, teacher, cache);
    json_object_set_new(result, "k", json_integer(o->k));
    json_object_set_new(result, "neighbours_kept", figure_json(o->neighbours));
    json_object_set_new(result, "neighbours_by_chance", json_real(o->k / (double)(p->count - 1)));
    json_object_set_new(result, "image_features", likeness_json(&o->image));
    if (p->patch_count > 0) {
        json_t *patch = likeness_json(&o->patch);
        json_object_set_new(patch, "images", json_integer((json_int_t)p->patch_count));
        json_object_set_new(patch, "grid", json_pack("[i,i]", p->grid_h, p->grid_w));
        json_object_set_new(patch, "own_map", json_pack("[i,i]", p->own_h, p->own_w));
        json_object_set_new(result, "patch_features", patch);
    }
    return result;
}

static void print_figure(const char *name, kd_figure f, const char *note) {
    printf("  %-22s %8.4f   95 %% interval %.4f to %.4f%s\n", name, f.value, f.low, f.high, note);
}

static void print_likeness(const kd_likeness *l) {
    print_figure("R2 of a linear map", l->r2, "");
    print_figure("centred cosine of it", l->cosine, "");
    if (!l->same_width)
        return;
    print_figure("raw cosine", l->raw_cosine, "");
    print_figure("raw MSE", l->raw_mse, "");
}

static void print_text(const json_t *result, const config *c, const outcome *o, const kd_extractor *teacher) {
    const kd_pairs *p = &o->pairs;
    char note[96];
    kd_eval_print_head(result);
    if (teacher != NULL)
        printf("teacher %s, weights sha256 %.12s\n", kd_extractor_network(teacher)->model->name, kd_extractor_weights_sha256(teacher));
    else
        printf("teacher: cache %s, its view 0 of each image\n", c->cache);
    snprintf(note, sizeof note, "; chance %.4f", o->k / (double)(p->count - 1));
    printf("features of %zu images, %zu against %zu numbers\n", p->count, p->student_width, p->teacher_width);
    char name[48];
    snprintf(name, sizeof name, "top-%d neighbours kept", o->k);
    print_figure(name, o->neighbours, note);
    print_likeness(&o->image);
    if (p->patch_count == 0) {
        if (c->patch_images > 0)
            printf("patches: not compared, because the cache doesn't hold the teacher's full grid of them\n");
        return;
    }
    printf("patches of %zu images, a map of %d x %d resized to the teacher's %d x %d\n", p->patch_count, p->own_h, p->own_w, p->grid_h, p->grid_w);
    print_likeness(&o->patch);
}

static kd_status report(const config *c, const outcome *o, const kd_extractor *x, const kd_extractor *teacher, const kd_cache *cache, kd_err *err) {
    json_t *result = result_of(c, o, x, teacher, cache, err);
    if (result == NULL)
        return err != NULL && err->status != KD_OK ? err->status : kd_fail(err, KD_EFAIL, "out of memory for the result");
    if (c->json)
        kd_json_line(result);
    else
        print_text(result, c, o, teacher);
    json_decref(result);
    return kd_eval_skipped(o->pairs.skipped, o->pairs.count, c->images, err);
}

static kd_status run_agree(const config *c, kd_arena *arena, kd_err *err) {
    kd_extractor *x = NULL, *teacher = NULL;
    kd_cache *cache = NULL;
    outcome o = {0};
    const kd_pairs_choice choice = {.tap = strcmp(c->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED, .count = (size_t)c->count, .patch_count = (size_t)c->patch_images};
    if ((c->cache != NULL) == (c->teacher_weights != NULL))
        return kd_fail(err, KD_EUSAGE, c->cache != NULL ? "--cache and --teacher-weights both say what to compare with; leave one out"
                                                        : "compare with what? Give --teacher-weights FILE, or --cache FILE.kdc of a teacher");
    if (c->patch_images > 0 && c->patch_images < KD_LIKENESS_IMAGES)
        return kd_fail(err, KD_EUSAGE, "--patch-images %d: patches of fewer than %d images tell nothing; give more, or 0 to leave them out", (int)c->patch_images, KD_LIKENESS_IMAGES);
    kd_status status = c->cache != NULL ? pair_with_cache(c, &x, &cache, &o, &choice, arena, err) : pair_with_teacher(c, &x, &teacher, &o, &choice, arena, err);
    if (status == KD_OK)
        status = measure(&o, (int)c->k, kd_extractor_network(x), c->images, err);
    if (status == KD_OK)
        status = report(c, &o, x, teacher, cache, err);
    kd_pairs_free(&o.pairs);
    kd_extractor_close(teacher);
    kd_extractor_close(x);
    kd_cache_close(cache);
    return status;
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    KD_TRY(kd_options_parse(&agree_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    return run_agree(&c, arena, err);
}

const kd_eval_command kd_eval_agree_command = {&agree_program, run};
