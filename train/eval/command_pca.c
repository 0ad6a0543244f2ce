/* kd-eval pca: what networks see in some photos, as colours in one basis, in one picture. */
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/augment.h"
#include "train/eval/command.h"
#include "train/eval/likeness.h"
#include "train/eval/patch_maps.h"
#include "train/eval/pca_grid.h"

enum { NETWORKS = 9 /* columns that a screen has room for */, FIT_LEAST = KD_LIKENESS_IMAGES };

/* One network, as --also names it. */
typedef struct named {
    kd_eval_network network;
    const char *label;
} named;

typedef struct config {
    kd_eval_network network;
    kd_strings also;
    const char *label, *images, *teacher_weights, *teacher, *out, *foreground;
    int64_t count, fit, tile;
    int null, json;
} config;

#define T config
static const kd_option pca_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, label, "label", "TEXT", NULL, 0, "title of the network's column; else its model's name"),
    KD_OPTION_STRING(T, teacher_weights, "teacher-weights", "FILE", NULL, 0, "the teacher, whose patches make the basis of all colours; without it the network itself does"),
    KD_OPTION_STRING(T, teacher, "teacher", "auto|NAME", "auto", 0, "name of the teacher's model, as --model"),
    KD_OPTION_STRINGS(T, also, "also", "NAME=VALUE,...", 0,
                      "one more network, by weights, run, student, model, seed, student-size, label: as the options of these names; may be given several times, e.g. --also weights=b.safetensors,label=B"),
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED, "photos; those that aren't shown serve to fit the maps into the teacher's space"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_INT(T, count, "count", "N", "6", 1, 64, "photos that are shown, evenly spread over all"),
    KD_OPTION_INT(T, fit, "fit", "N", "256", FIT_LEAST, 100000, "others, evenly spread, that the maps are fitted on"),
    KD_OPTION_CHOICE(T, foreground, "foreground", "off|on", "off", "on: only what the teacher's first component sets apart from the background, as in DINOv2's pictures; the rest is black"),
    KD_OPTION_INT(T, tile, "tile", "PIXELS", "224", 32, 1024, "longer side of a tile"),
    KD_OPTION_STRING(T, out, "out", "FILE.png", NULL, KD_OPT_REQUIRED, "picture to write"),
    KD_OPTION_END,
};
#undef T

#define T named
static const kd_option also_table[] = {
    KD_EVAL_NETWORK_OPTIONS(T),
    KD_OPTION_STRING(T, label, "label", "TEXT", NULL, 0, "title"),
    KD_OPTION_END,
};
static const kd_program also_program = {.name = "kd-eval pca --also", .summary = "", .options = also_table};

static const kd_program pca_program = {
    .name = "kd-eval pca",
    .summary = "Principal components of patches as colours: photos, a teacher and its students in one basis, as a PNG.",
    .examples = "  $ kd-eval pca --run run --teacher-weights dinov2_vits14_pretrain.pth --images photos --out pca.png\n"
                "  $ kd-eval pca --weights a.safetensors --also weights=b.safetensors,label=B --teacher-weights dinov2_vits14_pretrain.pth --images photos --foreground on --out pca.png\n",
    .epilog = "A student's patches are shown as a linear map reads the teacher's patches out of them: ridge regression, fitted on photos that aren't shown. Equal colours mean equal features of the teacher.\n"
              "Below each map: the mean cosine of its patches to the teacher's, both without the teacher's mean.\n",
    .options = pca_table,
};

/* A network with its column. */
typedef struct member {
    kd_extractor *x;
    const char *label;
    kd_ridge map;          /* into the reference's space; of the reference itself: none */
    double r2;
    double *cosine;        /* [photos] */
    float *shown;          /* [photos][places][width of the reference] */
    uint8_t *rgb;
    char (*below)[KD_PCA_CAPTION];
} member;

typedef struct making {
    const config *c;
    member member[NETWORKS]; /* the first is the reference */
    size_t members;
    kd_dataset all, photos, others;
    kd_feature_set reference;    /* of the shown photos */
    kd_feature_set fit;          /* of the others; empty without students */
    kd_patch_maps maps;
    kd_pca_column column[NETWORKS + 1];
    uint8_t *pixels;             /* [photos] eval views */
    char (*names)[KD_PCA_CAPTION];
} making;

/* ---- networks ---- */

/* "weights=b.safetensors,label=B" over the first network's options; which network it is isn't taken over. */
static kd_status parse_also(named *n, const config *c, const char *text, kd_arena *arena, kd_err *err) {
    *n = (named){.network = c->network};
    n->network.weights = n->network.run = n->network.student = NULL;
    n->network.model = "auto";
    for (const char *at = text;;) {
        size_t size = strcspn(at, ","), name = strcspn(at, "=");
        if (name >= size)
            return kd_fail(err, KD_EUSAGE, "--also %s: expected NAME=VALUE,NAME=VALUE,... such as weights=b.safetensors,label=B", text);
        char *key = kd_arena_printf(arena, "%.*s", (int)name, at), *value = kd_arena_printf(arena, "%.*s", (int)(size - name - 1), at + name + 1);
        if (key == NULL || value == NULL)
            return kd_fail(err, KD_EFAIL, "out of memory");
        KD_TRY(kd_options_set(&also_program, n, key, value, "--also", arena, err));
        if (at[size] == '\0')
            return KD_OK;
        at += size + 1;
    }
}

static kd_status open_members(making *g, kd_arena *arena, kd_err *err) {
    const config *c = g->c;
    char size[KD_SIZE_TEXT];
    size_t first = c->teacher_weights != NULL;
    if (c->also.count + first + 1 > NETWORKS)
        return kd_fail(err, KD_EUSAGE, "%zu networks: one picture takes %d", c->also.count + first + 1, NETWORKS);
    g->members = first + 1 + c->also.count;
    KD_TRY(kd_eval_open(&g->member[first].x, &c->network, c->json, arena, err));
    g->member[first].label = c->label;
    const kd_network *view = kd_extractor_network(g->member[first].x);
    if (first > 0)
        KD_TRY(kd_eval_open_teacher(&g->member[0].x, &c->network, g->member[1].x, c->teacher, c->teacher_weights, c->json, arena, err));
    for (size_t i = 0; i < c->also.count; i++) { /* of the same view of the photos as the first */
        named n;
        KD_TRY(parse_also(&n, c, c->also.item[i], arena, err));
        n.network.image_size = kd_image_size_text(view->image_h, view->image_w, size);
        KD_TRY(kd_eval_open(&g->member[first + 1 + i].x, &n.network, c->json, arena, err));
        g->member[first + 1 + i].label = n.label;
    }
    return KD_OK;
}

/* ---- photos ---- */

/* The photos that are shown, evenly spread, and of the others those that serve to fit. */
static kd_status choose_photos(making *g, kd_err *err) {
    const config *c = g->c;
    uint8_t *rest;
    kd_dataset others = {0};
    KD_TRY(kd_dataset_open(&g->all, c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, err));
    KD_TRY(kd_dataset_spread(&g->photos, &g->all, (size_t)c->count, err));
    if (g->members == 1)
        return KD_OK;
    if (g->all.count < g->photos.count + FIT_LEAST)
        return kd_fail(err, KD_EUSAGE, "%s: %zu photos; besides the %zu that are shown at least %d others are needed to fit the maps on; give a larger folder or a smaller --count", c->images, g->all.count,
                       g->photos.count, FIT_LEAST);
    KD_TRY(kd_alloc_array(&rest, g->all.count, 1, err));
    for (size_t i = 0, shown = 0; i < g->all.count; i++) { /* both are in the same order */
        int is_shown = shown < g->photos.count && g->photos.file[shown].rel == g->all.file[i].rel;
        rest[i] = !is_shown;
        shown += (size_t)is_shown;
    }
    kd_status status = kd_dataset_subset(&others, &g->all, rest, err);
    kd_free(rest);
    if (status == KD_OK)
        status = kd_dataset_spread(&g->others, &others, (size_t)c->fit, err);
    kd_dataset_close(&others);
    return status;
}

static kd_status run_over(const making *g, const member *m, const kd_dataset *from, kd_feature_set *set, kd_err *err) {
    kd_dataset files;
    KD_TRY(kd_dataset_spread(&files, from, 0, err));
    KD_TRY(kd_features_run_over(kd_extractor_network(m->x), &files, g->c->images, 1u << KD_TAP_PATCH, set, err));
    return KD_OK;
}

static kd_status take_photos(making *g, kd_err *err) {
    const kd_network *n = kd_extractor_network(g->member[0].x);
    size_t count = g->reference.count, bytes = (size_t)n->image_h * (size_t)n->image_w * 3;
    KD_TRY(kd_alloc_array(&g->pixels, count, bytes, err));
    KD_TRY(kd_alloc_array(&g->names, count, sizeof *g->names, err));
    for (size_t i = 0; i < count; i++) {
        KD_TRY(kd_features_view(g->pixels + i * bytes, &g->reference.data, g->reference.file[i], n->image_h, n->image_w, err));
        const char *rel = g->reference.data.file[g->reference.file[i]].rel;
        size_t length = strlen(rel), from = length < KD_PCA_CAPTION ? 0 : length - KD_PCA_CAPTION + 1;
        snprintf(g->names[i], sizeof g->names[i], "%s", rel + from);
    }
    g->column[0] = (kd_pca_column){.title = "photo", .below = g->names, .h = n->image_h, .w = n->image_w, .rgb = g->pixels};
    return KD_OK;
}

/* ---- maps ---- */

static kd_status fit_basis(making *g, kd_err *err) {
    const kd_network *n = kd_extractor_network(g->member[0].x);
    KD_TRY(run_over(g, &g->member[0], &g->photos, &g->reference, err));
    if (g->members > 1)
        KD_TRY(run_over(g, &g->member[0], &g->others, &g->fit, err));
    if (g->members > 1 && g->fit.count < FIT_LEAST)
        return kd_fail(err, KD_EFAIL, "%s: of the photos that aren't shown only %zu could be read, and at least %d are needed to fit the maps on", g->c->images, g->fit.count, FIT_LEAST);
    g->maps = (kd_patch_maps){.photos = g->reference.count, .width = g->reference.width, .h = n->map_h, .w = n->map_w, .reference = g->reference.values[KD_TAP_PATCH]};
    return kd_patch_maps_fit(&g->maps, strcmp(g->c->foreground, "on") == 0, err);
}

static kd_status check_same(const making *g, const kd_feature_set *a, const kd_feature_set *b, kd_err *err) {
    if (a->count == b->count && memcmp(a->id, b->id, a->count * sizeof *a->id) == 0)
        return KD_OK;
    return kd_fail(err, KD_EFAIL, "%s: files have changed while they were read for one network after the other; try again when nothing writes there", g->c->images);
}

static kd_status read_student(making *g, member *m, kd_feature_set *fit, kd_feature_set *shown, kd_err *err) {
    const kd_network *n = kd_extractor_network(m->x);
    KD_TRY(run_over(g, m, &g->others, fit, err));
    KD_TRY(check_same(g, fit, &g->fit, err));
    KD_TRY(run_over(g, m, &g->photos, shown, err));
    KD_TRY(check_same(g, shown, &g->reference, err));
    KD_TRY(kd_patch_read_fit(&m->map, &(kd_patch_grid){fit->values[KD_TAP_PATCH], n->map_h, n->map_w, fit->width}, g->fit.values[KD_TAP_PATCH], &g->maps, fit->count, n->threads, err));
    return kd_patch_read_apply(&m->map, &(kd_patch_grid){shown->values[KD_TAP_PATCH], n->map_h, n->map_w, shown->width}, &g->maps, m->shown, n->threads, err);
}

static kd_status make_member(making *g, size_t i, kd_err *err) {
    member *m = &g->member[i];
    const kd_patch_maps *maps = &g->maps;
    kd_feature_set fit = {0}, shown = {0};
    size_t places = (size_t)maps->h * (size_t)maps->w;
    KD_TRY(kd_alloc_array(&m->rgb, maps->photos, places * 3, err));
    KD_TRY(kd_alloc_array(&m->cosine, maps->photos, sizeof *m->cosine, err));
    KD_TRY(kd_alloc_array(&m->below, maps->photos, sizeof *m->below, err));
    if (i == 0) {
        kd_patch_maps_colour(maps, maps->reference, m->rgb);
        return KD_OK;
    }
    KD_TRY(kd_alloc_array(&m->shown, maps->photos, places * maps->width * sizeof *m->shown, err));
    kd_status status = read_student(g, m, &fit, &shown, err);
    kd_feature_set_free(&fit);
    kd_feature_set_free(&shown);
    KD_TRY(status);
    kd_patch_maps_colour(maps, m->shown, m->rgb);
    kd_patch_maps_compare(maps, m->shown, m->cosine, &m->r2);
    for (size_t k = 0; k < maps->photos; k++)
        snprintf(m->below[k], sizeof m->below[k], "cosine %.2f", m->cosine[k]);
    return KD_OK;
}

static void describe(making *g, size_t i) {
    const member *m = &g->member[i];
    const kd_network *n = kd_extractor_network(m->x);
    kd_pca_column *column = &g->column[i + 1];
    *column = (kd_pca_column){.below = m->below, .h = g->maps.h, .w = g->maps.w, .rgb = m->rgb};
    const char *name = m->label != NULL ? m->label : i == 0 && g->c->teacher_weights != NULL ? "teacher" : n->model->name;
    snprintf(column->title, sizeof column->title, "%s", name);
    const char *model = name == n->model->name ? "" : n->model->name, *comma = model[0] != '\0' ? ", " : "";
    if (i == 0) /* what matters most first: the end may be cut off */
        snprintf(column->note, sizeof column->note, "%d x %d patches%s%s", n->map_h, n->map_w, comma, model);
    else
        snprintf(column->note, sizeof column->note, "R2 %.2f, map of %d x %d%s%s", m->r2, n->map_h, n->map_w, comma, model);
}

static kd_status draw(making *g, kd_err *err) {
    const kd_network *n = kd_extractor_network(g->member[0].x);
    int longer = n->image_h > n->image_w ? n->image_h : n->image_w;
    kd_pca_grid grid = {.photos = g->maps.photos, .columns = g->members + 1, .column = g->column, .tile_h = (int)(n->image_h * g->c->tile / longer), .tile_w = (int)(n->image_w * g->c->tile / longer)};
    return kd_pca_grid_write(g->c->out, &grid, err);
}

/* ---- the result ---- */

static double mean_of(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] / (double)n;
    return sum;
}

static json_t *member_json(const making *g, size_t i) {
    const member *m = &g->member[i];
    const kd_network *n = kd_extractor_network(m->x);
    const char *sha = kd_extractor_weights_sha256(m->x);
    json_t *j = json_pack("{s:s, s:s, s:s, s:s?, s:[i,i], s:[i,i]}", "title", g->column[i + 1].title, "model", n->model->name, "weights", kd_extractor_asked(m->x)->weights, "model_sha256",
                          sha[0] != '\0' ? sha : NULL, "input_size", n->height, n->width, "map", n->map_h, n->map_w);
    if (i == 0)
        return j;
    json_t *list = json_array();
    for (size_t k = 0; k < g->maps.photos; k++)
        json_array_append_new(list, json_real(m->cosine[k]));
    json_object_set_new(j, "cosine_centred", json_real(mean_of(m->cosine, g->maps.photos)));
    json_object_set_new(j, "cosines", list);
    json_object_set_new(j, "r2", json_real(m->r2));
    json_object_set_new(j, "ridge_strength", json_real(m->map.strength));
    return j;
}

static kd_status report_json(const making *g, kd_err *err) {
    json_t *result = kd_eval_result("pca", g->member[0].x, NULL), *photos = json_array(), *others = json_array();
    kd_status status = kd_eval_result_images(result, &g->reference, err);
    for (size_t i = 0; i < g->reference.count; i++) {
        const char *rel = g->reference.data.file[g->reference.file[i]].rel;
        json_array_append_new(photos, kd_json_bytes(rel, strlen(rel)));
    }
    for (size_t i = 1; i < g->members; i++)
        json_array_append_new(others, member_json(g, i));
    json_object_set_new(result, "reference", member_json(g, 0));
    json_object_set_new(result, "networks", others);
    json_object_set_new(result, "photos", photos);
    json_object_set_new(result, "fit_images", json_integer((json_int_t)g->fit.count));
    json_object_set_new(result, "foreground", json_string(g->c->foreground));
    json_object_set_new(result, "shown_patches", json_integer((json_int_t)g->maps.kept));
    double explained = 0;
    for (int k = 0; k < KD_PCA_COMPONENTS; k++)
        explained += g->maps.pca.variance[k];
    json_object_set_new(result, "explained_variance", json_real(g->maps.pca.total > 0 ? explained / g->maps.pca.total : 0));
    json_object_set_new(result, "path", json_string(g->c->out));
    if (status == KD_OK)
        kd_json_line(result);
    json_decref(result);
    return status;
}

static void report_text(const making *g) {
    printf("%s: %zu photos, basis of %s\n", g->c->out, g->maps.photos, kd_extractor_network(g->member[0].x)->model->name);
    for (size_t i = 1; i < g->members; i++)
        printf("  %-24s R2 %7.4f, centred cosine %7.4f, by a map fitted on %zu other photos\n", g->column[i + 1].title, g->member[i].r2, mean_of(g->member[i].cosine, g->maps.photos), g->fit.count);
}

static kd_status make(making *g, kd_arena *arena, kd_err *err) {
    KD_TRY(kd_io_check_target(g->c->out, err));
    KD_TRY(open_members(g, arena, err));
    KD_TRY(choose_photos(g, err));
    KD_TRY(fit_basis(g, err));
    KD_TRY(take_photos(g, err));
    for (size_t i = 0; i < g->members; i++) {
        KD_TRY(make_member(g, i, err));
        describe(g, i);
    }
    KD_TRY(draw(g, err));
    if (g->c->json)
        KD_TRY(report_json(g, err));
    else
        report_text(g);
    return kd_eval_skipped(g->reference.skipped + g->fit.skipped, g->reference.count + g->fit.count, g->c->images, err);
}

static void free_making(making *g) {
    for (size_t i = 0; i < NETWORKS; i++) {
        member *m = &g->member[i];
        kd_extractor_close(m->x);
        kd_ridge_free(&m->map);
        kd_free(m->cosine);
        kd_free(m->shown);
        kd_free(m->rgb);
        kd_free(m->below);
    }
    kd_patch_maps_free(&g->maps);
    kd_feature_set_free(&g->reference); /* before the files, whose names it borrows */
    kd_feature_set_free(&g->fit);
    kd_dataset_close(&g->others);
    kd_dataset_close(&g->photos);
    kd_dataset_close(&g->all);
    kd_free(g->pixels);
    kd_free(g->names);
}

static kd_status run(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    config c = {0};
    making *g;
    KD_TRY(kd_options_parse(&pca_program, &c, argc, argv, json, arena, err));
    c.json = *json;
    KD_TRY(kd_alloc_array(&g, 1, sizeof *g, err));
    g->c = &c;
    kd_status status = make(g, arena, err);
    free_making(g);
    kd_free(g);
    return status;
}

const kd_eval_command kd_eval_pca_command = {&pca_program, run};
