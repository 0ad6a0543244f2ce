/* kd-cache dump: the features of one view. */
#include <string.h>

#include "cache/commands.h"
#include "common/base/mem.h"
#include "common/weights/safetensors.h"

static const kd_option dump_table[] = {
    KD_CACHE_FILES, KD_CACHE_ID, KD_CACHE_VIEW,
    KD_OPTION_STRING(kd_cache_config, out, "out", "X.safetensors", NULL, KD_OPT_REQUIRED,
                     "file to write: cls [L,D], patch [L,N,D], registers [L,R,D] and mean [L,D], as far as stored, F32, further patch targets as patch2 to patch4; of an adjoint target also "
                     "square [L] (square2 of patch2 ..), F64; layers [L], I32: 1 = last"),
    KD_OPTION_END,
};
const kd_program kd_cache_dump_program = {
    .name = "kd-cache dump",
    .summary = "Writes the decoded features of one view as a .safetensors file.",
    .examples = "  $ kd-cache dump photos.kdc --id 8a1f... --view 0 --out view.safetensors\n",
    .epilog = "Exit codes: 0 ok; 2 usage; 10 no such cache, image or view; 12 damaged.\n",
    .options = dump_table,
};

/* The feature in each layer; square: |t|^2 of an adjoint target in each. */
static kd_status read_layers(kd_reader *r, const kd_recipe *recipe, kd_feature f, const kd_image_entry *e, uint32_t view, kd_tensor *t, double square[KD_MAX_LAYERS], kd_err *err)
{
    size_t rows = kd_recipe_rows(recipe, f), each = rows * (size_t)recipe->width;
    float *x;
    KD_TRY(kd_alloc_array(&x, each * (size_t)recipe->layers, sizeof *x, err));
    *t = (kd_tensor){.name = kd_feature_name(f), .dtype = KD_F32, .data = x};
    t->shape[t->rank++] = recipe->layers;
    if (f == KD_FEATURE_REGISTERS || kd_feature_target(f) >= 0)
        t->shape[t->rank++] = (int64_t)rows;
    t->shape[t->rank++] = recipe->width;
    for (int l = 0; l < recipe->layers; l++) {
        kd_record_facts facts;
        KD_TRY(kd_reader_feature(r, f, &e->image, view, recipe->layer[l], x + (size_t)l * each, &facts, err));
        square[l] = facts.square;
    }
    return KD_OK;
}

static kd_status dump(kd_cache *c, kd_reader *r, const kd_cache_config *config, kd_err *err)
{
    const kd_recipe *recipe = kd_cache_recipe(c);
    int32_t layer[KD_MAX_LAYERS];
    double square[KD_FEATURES][KD_MAX_LAYERS];
    kd_tensor t[1 + KD_FEATURES + KD_MAX_TARGETS] = {{0}};
    size_t features = 0, n;
    const kd_image_entry *e;
    kd_status status = KD_OK;
    KD_TRY(kd_cache_pick(&e, c, config, err));
    for (int l = 0; l < recipe->layers; l++)
        layer[l] = recipe->layer[l];
    for (int f = 0; f < KD_FEATURES && status == KD_OK; f++) {
        if (kd_recipe_has(recipe, (kd_feature)f))
            status = read_layers(r, recipe, (kd_feature)f, e, (uint32_t)config->view, &t[features++], square[f], err);
    }
    n = features;
    t[n++] = (kd_tensor){.name = "layers", .dtype = KD_I32, .rank = 1, .shape = {recipe->layers}, .data = layer};
    for (int i = 0; i < recipe->targets; i++) {
        if (recipe->target[i].kind == KD_TARGET_ADJOINT)
            t[n++] = (kd_tensor){.name = kd_square_name(i), .dtype = KD_F64, .rank = 1, .shape = {recipe->layers}, .data = square[kd_patch_feature(i)]};
    }
    if (status == KD_OK)
        status = kd_safetensors_write(config->out, t, n, NULL, err);
    for (size_t i = 0; i < features; i++)
        kd_free((void *)(uintptr_t)t[i].data);
    return status;
}

kd_status kd_cache_dump_run(const kd_cache_config *config, kd_err *err)
{
    kd_cache *c;
    kd_reader *r;
    kd_status status;
    KD_TRY(kd_cache_open_files(&c, config, err));
    status = kd_reader_create(&r, c, err);
    if (status == KD_OK)
        status = dump(c, r, config, err);
    kd_reader_destroy(r);
    kd_cache_close(c);
    return status;
}
