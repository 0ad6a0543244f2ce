/* draw_cache DIR [wrong|joined|decoder|DTYPE TARGETS [COUNT]]: draws JPEG files under DIR/images and a sealed cache DIR/photos.kdc of two real views of each, with made-up features (all four, of layers
 * 1 and 4); for tests of kd-cache, which needs no teacher.
 * One image's path has a space, one a newline, one a byte that is not UTF-8. Prints "ID PATH" lines.
 * wrong: view 0 of the first image carries the hash of other pixels, as if another version had made it. joined: both layers are one of twice the width. decoder: the recipe names another
 * decoder. DTYPE TARGETS ("i8 full,adjoint:2"): stored as that instead of f16 and full; COUNT: only so many images. */
#include "tests/cache_fixture.h"

enum { PICTURES = 5 };

static void draw(const char *path, unsigned which)
{
    enum { W = 120, H = 90 };
    static uint8_t rgb[W * H * 3];
    for (unsigned y = 0; y < H; y++) {
        for (unsigned x = 0; x < W; x++) {
            uint8_t *p = rgb + 3 * (y * W + x);
            p[0] = (uint8_t)(2 * x + 40 * which);
            p[1] = (uint8_t)(2 * y + ((x / 8 + y / 8 + which) % 2 ? 60 : 0));
            p[2] = (uint8_t)(x * y / (10 + which));
        }
    }
    must(kd_jpeg_write(path, rgb, W, H, 85, &fx_err));
}

static void add_view(kd_writer *w, const kd_recipe *r, const kd_image_entry *e, const kd_image *img, unsigned which, uint32_t view, int wrong)
{
    static uint8_t pixels[70 * 70 * 3];
    static kd_view_scratch scratch;
    kd_view_entry v = {.image = e->image, .view = view};
    kd_policy policy;
    must(kd_policy_load(&policy, "lightly", 70, 70, &fx_err));
    v.plan = kd_plan_draw(&policy, r->seed, &e->image, view, img->width, img->height);
    must(kd_plan_apply(&v.plan, img, pixels, &scratch, &fx_err));
    v.view_hash = kd_view_hash(pixels, v.plan.out_w, v.plan.out_h);
    v.view_hash.b[0] ^= (uint8_t)wrong;
    must(fx_add_view(w, r, which, e, &v, &fx_err));
}

/* The fixture's recipe, with this program's decoder and what the other arguments ask for. */
static void adapt(kd_recipe *r, const char *mode, const char *targets)
{
    json_t *j = json_deep_copy(r->json);
    kd_hash128 decoder;
    char hex[33];
    must(kd_decoder_hash(&decoder, &fx_err));
    kd_hex(hex, decoder.b, sizeof decoder.b);
    kd_recipe_free(r);
    if (strcmp(mode, "decoder") != 0)
        json_object_set_new(j, "decoder", json_string(hex));
    if (strcmp(mode, "joined") == 0) {
        json_object_set_new(j, "layer_concat", json_true());
        json_object_set_new(j, "width", json_integer(2 * FX_WIDTH));
    }
    if (targets) {
        kd_recipe stored = fx_recipe_stored(mode, targets);
        json_object_set(j, "patch_targets", json_object_get(stored.json, "patch_targets"));
        json_object_set(j, "store", json_object_get(stored.json, "store"));
        kd_recipe_free(&stored);
    }
    must(kd_recipe_from_json(r, j, "the drawn recipe", &fx_err));
}

int main(int argc, char **argv)
{
    static const char *const rel[PICTURES] = {"a/plain.jpg", "a/with space.jpg", "b/new\nline.jpg", "b/latin\xe9.jpg", "c.jpg"};
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    kd_image img = {0};
    char path[1000], id[33];
    json_t *provenance = json_pack("{s:s}", "note", "drawn");
    unsigned count = argc == 5 ? (unsigned)strtoul(argv[4], NULL, 10) : PICTURES;
    int wrong = argc == 3 && strcmp(argv[2], "wrong") == 0;
    if (argc < 2 || argc > 5 || count > PICTURES)
        return 2;
    adapt(&r, argc >= 3 ? argv[2] : "", argc >= 4 ? argv[3] : NULL);
    snprintf(path, sizeof path, "%s/images/a", argv[1]);
    must(kd_io_mkdirs(path, &fx_err));
    snprintf(path, sizeof path, "%s/images/b", argv[1]);
    must(kd_io_mkdirs(path, &fx_err));
    snprintf(path, sizeof path, "%s/photos.kdc", argv[1]);
    must(kd_writer_open(&w, path, &r, provenance, 0, &fx_err));
    for (unsigned i = 0; i < count; i++) {
        uint8_t *bytes;
        size_t size;
        kd_image_entry e = {.rel = rel[i]};
        snprintf(path, sizeof path, "%s/images/%s", argv[1], rel[i]);
        draw(path, i);
        fx_read_file(path, &bytes, &size);
        must(kd_image_decode(&img, bytes, size, path, NULL, &fx_err));
        e.image = kd_xxh128(bytes, size);
        e.file_size = size;
        e.width = img.width;
        e.height = img.height;
        for (uint32_t v = 0; v < FX_VIEWS; v++)
            add_view(w, &r, &e, &img, i, v, wrong && i == 0 && v == 0);
        kd_hex(id, e.image.b, 16);
        kd_text_escape(path, sizeof path, rel[i]);
        printf("%s %s\n", id, path);
        kd_free(bytes);
    }
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_image_free(&img);
    json_decref(provenance);
    kd_recipe_free(&r);
    return 0;
}
