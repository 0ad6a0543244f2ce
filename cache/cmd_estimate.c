/* kd-cache estimate. */
#include <inttypes.h>
#include <string.h>

#include "cache/budget.h"
#include "cache/commands.h"
#include "common/tensor/feature_list.h"
#include "common/base/io.h"
#include "common/image/augment.h"
#include "common/weights/vit_spec.h"

static const kd_option table[] = {
    KD_OPTION_INT(kd_cache_config, image_count, "images", "N", NULL, 1, 1e12, "how many images there are"),
    KD_OPTION_STRING(kd_cache_config, teacher, "teacher", "NAME", NULL, KD_OPT_REQUIRED, "dinov2_vits14_reg, dinov3_vitb16, vit_base_patch16_224, ...: as kd-precompute --inspect names a weight file"),
    KD_OPTION_INT(kd_cache_config, view_count, "views", "N", "8", 1, 65536, "augmented views per image"),
    KD_OPTION_STRING(kd_cache_config, image_size, "image-size", "S|HxW", "224", 0, "size of the views"),
    KD_OPTION_STRING(kd_cache_config, features, "features", "LIST", "cls,patch", 0, "what to store: any of cls, patch, registers and mean (of the patches), separated by commas"),
    KD_OPTION_STRING(kd_cache_config, layers, "layers", "N,N,...|all:N,...", "1", 0, "layers to store, counted from the end (1 is the last), or after all: block numbers from 0"),
    KD_OPTION_SIZE(kd_cache_config, budget, "budget", NULL, "largest sealed cache that is acceptable"),
    KD_OPTION_STRING(kd_cache_config, students, "for", "STUDENT,...", NULL, 0, "students that will be trained, such as resnet18,vit_small_patch16_224"),
    KD_OPTION_STRING(kd_cache_config, student_size, "student-size", "S|HxW", "0", 0, "size at which they will see the views; 0 = the full view"),
    KD_OPTION_END,
};
const kd_program kd_cache_estimate_program = {
    .name = "kd-cache estimate",
    .summary = "Says how large a cache would be in each of the ways to store it, and which of them fits a budget.",
    .examples = "  $ kd-cache estimate --images 1281167 --teacher dinov2_vitb14\n"
                "  $ kd-cache estimate --images 1281167 --teacher dinov2_vitb14 --budget 200GB --for resnet18,vit_small_patch16_224\n",
    .epilog = "Sizes are within a few percent of real caches (docs/storage.md). How long the teacher takes depends on the machine: kd-precompute --dry-run tries it.\n"
              "Exit codes: 0 ok; 2 usage; 14 not even one view of each image fits the budget.\n",
    .options = table,
};

static kd_status find_teacher(kd_vit_spec *s, const char *name, kd_err *err)
{
    const char *const *names, *near;
    size_t n;
    if (kd_vit_named(name, s))
        return KD_OK;
    n = kd_vit_names(&names);
    near = kd_nearest_name(name, names, n);
    return kd_fail(err, KD_EUSAGE, "--teacher %s: no teacher is called so; the nearest name is %s, and kd-precompute --inspect FILE names what a file holds", name, near ? near : names[0]);
}

/* map is where the ask's students are kept. */
static kd_status make_ask(kd_budget_ask *a, kd_map_size map[KD_FOR_MAX], const kd_cache_config *c, kd_err *err)
{
    kd_vit_spec s;
    uint16_t layer[KD_MAX_LAYERS];
    int height, width;
    *a = (kd_budget_ask){.images = (uint64_t)c->image_count, .views = (uint32_t)c->view_count, .budget = c->budget, .student = map};
    if (c->image_count == 0)
        return kd_fail(err, KD_EUSAGE, "--images is missing: how many images there are");
    KD_TRY(find_teacher(&s, c->teacher, err));
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &height, &width, err));
    if (height < s.patch || width < s.patch || height % s.patch || width % s.patch)
        return kd_fail(err, KD_EUSAGE, "--image-size %s: %s takes views whose sides are multiples of its patch, %d", c->image_size, c->teacher, s.patch);
    KD_TRY(kd_features_parse(c->features, &a->shape.features, err));
    if (a->shape.features & 1u << KD_FEATURE_REGISTERS && s.registers == 0)
        return kd_fail(err, KD_EUSAGE, "--features %s: %s has no register tokens", c->features, c->teacher);
    KD_TRY(kd_layers_parse(c->layers, s.depth, layer, &a->shape.layers, err));
    a->shape.width = s.width;
    a->shape.grid_h = height / s.patch;
    a->shape.grid_w = width / s.patch;
    a->shape.registers = s.registers;
    return c->students ? kd_for_parse(map, &a->students, c->students, c->student_size, height, width, err) : KD_OK;
}

/* The options of kd-precompute for a step with so many views. */
static void options_text(char *buf, size_t cap, const kd_cache_config *c, const kd_budget_step *s, uint32_t views)
{
    char features[64], targets[KD_STORAGE_TEXT];
    int patches = (s->features & 1u << KD_FEATURE_PATCH) != 0;
    size_t n = (size_t)snprintf(buf, cap, "--store %s", kd_dtype_name(s->storage.dtype));
    if (patches && n < cap)
        n += (size_t)snprintf(buf + n, cap - n, " --patch-target %s", kd_targets_text(s->storage.target, s->storage.targets, targets));
    if (strcmp(kd_features_text(s->features, features, sizeof features), "cls,patch") != 0 && n < cap)
        n += (size_t)snprintf(buf + n, cap - n, " --features %s", features);
    if (strcmp(c->layers, "1") != 0 && n < cap)
        n += (size_t)snprintf(buf + n, cap - n, " --layers %s", c->layers);
    if (strcmp(c->image_size, "224") != 0 && n < cap)
        n += (size_t)snprintf(buf + n, cap - n, " --image-size %s", c->image_size);
    if (views != 8 && n < cap)
        snprintf(buf + n, cap - n, " --views %" PRIu32, views);
}

static void print_text(const kd_cache_config *c, const kd_budget_ask *a, const kd_budget_choice *choice, kd_status status)
{
    char each[32], all[32], options[300], stored[KD_STORAGE_TEXT], reason[600], budget[48] = "";
    if (a->budget)
        snprintf(budget, sizeof budget, ", budget %s", kd_io_size_text(a->budget, all, sizeof all));
    printf("%" PRIu64 " images x %" PRIu32 " views of %s px, teacher %s (width %d, grid %d x %d), %d layer%s%s\n\n", a->images, a->views, c->image_size, c->teacher, a->shape.width,
           a->shape.grid_h, a->shape.grid_w, a->shape.layers, a->shape.layers == 1 ? "" : "s", budget);
    printf("   %-28s %10s %10s %7s   %s\n", "stored as", "a view", "in all", a->budget ? "fits" : "views", "options of kd-precompute");
    for (int i = 0; i < choice->steps; i++) {
        const kd_budget_step *s = &choice->step[i];
        int best = status == KD_OK && i == choice->chosen;
        uint32_t views = best ? choice->views : s->fits ? s->fits : a->views;
        char label[KD_STORAGE_TEXT + 16];
        snprintf(label, sizeof label, "%s%s", kd_storage_text(&s->storage, s->features, stored), s->features == a->shape.features ? "" : ", no patches");
        options_text(options, sizeof options, c, s, views);
        printf("%s %-28s %10s %10s %7" PRIu32 "   %s\n", best ? "->" : "  ", label, kd_io_size_text(s->view_bytes, each, sizeof each), kd_io_size_text(s->cache_bytes, all, sizeof all), s->fits,
               s->fits ? options : "not one view fits");
    }
    if (status == KD_OK)
        printf("\n-> %s\n", kd_budget_reason(choice, a, reason, sizeof reason));
    printf("%sThe time comes from the machine: kd-precompute --dry-run with these options tries it.\n", status == KD_OK ? "" : "\n");
}

static json_t *step_json(const kd_cache_config *c, const kd_budget_ask *a, const kd_budget_choice *choice, int i, kd_status status)
{
    const kd_budget_step *s = &choice->step[i];
    int best = status == KD_OK && i == choice->chosen;
    char options[300], features[64], text[KD_TARGET_TEXT];
    json_t *targets = json_array();
    for (int t = 0; t < s->storage.targets; t++)
        json_array_append_new(targets, json_string(kd_target_text(&s->storage.target[t], text)));
    options_text(options, sizeof options, c, s, best ? choice->views : s->fits ? s->fits : a->views);
    return json_pack("{s:s,s:o,s:s,s:I,s:I,s:I,s:b,s:s}", "store", kd_dtype_name(s->storage.dtype), "patch_targets", targets, "features",
                     kd_features_text(s->features, features, sizeof features), "bytes_per_view", (json_int_t)s->view_bytes, "cache_bytes", (json_int_t)s->cache_bytes, "views_that_fit",
                     (json_int_t)s->fits, "recommended", best, "options", options);
}

static void print_json(const kd_cache_config *c, const kd_budget_ask *a, const kd_budget_choice *choice, kd_status status)
{
    json_t *steps = json_array(), *line;
    char reason[600] = "";
    for (int i = 0; i < choice->steps; i++)
        json_array_append_new(steps, step_json(c, a, choice, i, status));
    if (status == KD_OK)
        kd_budget_reason(choice, a, reason, sizeof reason);
    line = json_pack("{s:s,s:s,s:I,s:I,s:I,s:o,s:s}", "type", "result", "teacher", c->teacher, "images", (json_int_t)a->images, "views", (json_int_t)a->views, "budget", (json_int_t)a->budget,
                     "choices", steps, "reason", reason);
    if (status == KD_OK) {
        json_object_set_new(line, "recommended_views", json_integer((json_int_t)choice->views));
        json_object_set_new(line, "cache_bytes", json_integer((json_int_t)choice->cache_bytes));
    }
    kd_json_line(line);
    json_decref(line);
}

kd_status kd_cache_estimate_run(const kd_cache_config *config, kd_err *err)
{
    kd_budget_ask ask;
    kd_budget_choice choice;
    kd_map_size map[KD_FOR_MAX];
    kd_status status;
    KD_TRY(make_ask(&ask, map, config, err));
    status = kd_budget_choose(&choice, &ask, err);
    if (config->json)
        print_json(config, &ask, &choice, status);
    else
        print_text(config, &ask, &choice, status);
    return status;
}
