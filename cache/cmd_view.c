/* kd-cache view: the pixels of one view, of many on a sheet, or of all. */
#include <stdlib.h>
#include <string.h>

#include "cache/commands.h"
#include "cache/find.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

enum { GAP = 4 /* white pixels between the views of a sheet */ };

static const kd_option table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, id, "id", "ID", NULL, 0, "image: its id, 32 hexadecimal digits as `kd-cache list` prints them; with --grid the image of the first row"),
    KD_CACHE_VIEW,
    KD_OPTION_STRING(kd_cache_config, grid, "grid", "RxC", NULL, 0, "a contact sheet instead of one view: R images, in the order of their ids, one a row, and C views of each"),
    KD_OPTION_FLAG(kd_cache_config, all, "all", "every view instead of one: raw RGB bytes, rows x columns x 3, one view after another in the order of `kd-cache list`"),
    KD_OPTION_STRING(kd_cache_config, images, "images", "DIR|TAR|LIST", NULL, KD_OPT_REQUIRED, "where the images are; tried at the recorded path, then searched by content"),
    KD_CACHE_NULL,
    KD_OPTION_STRING(kd_cache_config, out, "out", "FILE", NULL, KD_OPT_REQUIRED, "file to write: X.png, or X.rgb with --all"),
    KD_OPTION_END,
};
const kd_program kd_cache_view_program = {
    .name = "kd-cache view",
    .summary = "Writes the exact pixels that the teacher saw, replayed from the image and proven by the view's hash.",
    .examples = "  $ kd-cache view photos.kdc --images photos --id 8a1f... --view 0 --out view.png\n"
                "  $ kd-cache view photos.kdc --images photos --grid 8x8 --out sheet.png\n"
                "  $ kd-cache view photos.kdc --images photos --all --out views.rgb    # numpy: fromfile(\"views.rgb\", \"u1\").reshape(-1, 224, 224, 3)\n",
    .epilog = "Exit codes: 0 ok; 1 an image isn't there; 2 usage; 10 no such cache, image or view; 12 damaged; 13 the replayed pixels differ from the teacher's.\n",
    .options = table,
};

/* Plays views, image by image; a folder is hashed at most once. */
typedef struct player {
    const kd_cache_config *config;
    kd_cache *cache;
    kd_reader *reader;
    kd_locator *locator;
    kd_found found;
    int hashed;
} player;

static kd_status open_image(player *p, const kd_image_entry *e, kd_err *err)
{
    kd_status status = kd_find_file(&p->found, p->locator, e, 0, err);
    if (status == KD_DONE) {
        if (!p->hashed)
            KD_TRY(kd_locator_hash_all(p->locator, 0, NULL, err));
        p->hashed = 1;
        status = kd_find_file(&p->found, p->locator, e, 1, err);
    }
    if (status == KD_DONE) {
        char id[33];
        kd_hex(id, e->image.b, 16);
        return kd_fail(err, KD_EFAIL, "%s: no file there has the id %s (recorded as %s, %llu bytes): re-encoded, or another folder?", p->config->images, id, e->rel,
                       (unsigned long long)e->file_size);
    }
    KD_TRY(status);
    return kd_find_decode(&p->found, kd_cache_recipe(p->cache), e, err);
}

static kd_status open_partner(player *p, const kd_image_entry *e, const kd_view_entry *v, kd_err *err)
{
    kd_status status = kd_find_partner(&p->found, p->cache, p->locator, v, 0, err);
    if (status == KD_DONE) {
        if (!p->hashed)
            KD_TRY(kd_locator_hash_all(p->locator, 0, NULL, err));
        p->hashed = 1;
        status = kd_find_partner(&p->found, p->cache, p->locator, v, 1, err);
    }
    if (status == KD_DONE) {
        char id[33];
        kd_hex(id, v->plan.mix_partner.b, 16);
        return kd_fail(err, KD_EFAIL, "%s: view %u of %s is mixed with image %s, and no file there has that id: re-encoded, or another folder?", p->config->images, v->view, e->rel, id);
    }
    return status;
}

/* The view's pixels, image_h x image_w of the recipe, lie in p->found.view. */
static kd_status play(player *p, const kd_image_entry *e, uint32_t view, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(p->cache);
    kd_view_entry v;
    KD_TRY(kd_reader_view(p->reader, &e->image, view, &v, err));
    if (v.plan.out_w != r->image_w || v.plan.out_h != r->image_h)
        return kd_fail(err, KD_EDAMAGED, "%s: view %u of %s measures %dx%d in its plan and the recipe says %dx%d", p->config->files.item[0], view, e->rel, v.plan.out_h, v.plan.out_w,
                       r->image_h, r->image_w);
    KD_TRY(open_partner(p, e, &v, err));
    return kd_find_replay(&p->found, kd_cache_recipe(p->cache), e, &v, err);
}

/* ---- one ---- */

static kd_status write_one(player *p, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(p->cache);
    const kd_image_entry *e;
    KD_TRY(kd_cache_pick(&e, p->cache, p->config, err));
    KD_TRY(open_image(p, e, err));
    KD_TRY(play(p, e, (uint32_t)p->config->view, err));
    return kd_png_write(p->config->out, p->found.view, r->image_w, r->image_h, err);
}

/* ---- a sheet ---- */

static kd_status parse_grid(const char *text, long *rows, long *columns, kd_err *err)
{
    char *end;
    *rows = strtol(text, &end, 10);
    *columns = *rows > 0 && *end == 'x' && end[1] >= '1' && end[1] <= '9' ? strtol(end + 1, &end, 10) : 0;
    if (text[0] < '1' || text[0] > '9' || *end != '\0' || *columns < 1 || *rows > KD_IMAGE_MAX_SIDE || *columns > KD_IMAGE_MAX_SIDE)
        return kd_fail(err, KD_EUSAGE, "--grid %s: expected rows x columns, such as 8x8", text);
    return KD_OK;
}

/* The sheet's first image, and whether the cache has what is asked for. */
static kd_status check_grid(const player *p, long rows, long columns, size_t *first, kd_err *err)
{
    const char *file = p->config->files.item[0];
    size_t images = kd_cache_images(p->cache);
    *first = 0;
    if (p->config->id) {
        const kd_image_entry *e;
        KD_TRY(kd_cache_pick(&e, p->cache, p->config, err));
        while (kd_cache_image(p->cache, *first) != e)
            ++*first;
    }
    if ((size_t)rows > images - *first)
        return kd_fail(err, KD_EUSAGE, "--grid %s: %s has %zu images%s; ask for at most %zu rows", p->config->grid, file, images - *first, p->config->id ? " from this id on" : "",
                       images - *first);
    for (size_t i = 0; i < (size_t)rows; i++) {
        const kd_image_entry *e = kd_cache_image(p->cache, *first + i);
        if (e->views < (unsigned long)columns)
            return kd_fail(err, KD_EUSAGE, "--grid %s: %s has %u views of %s; ask for at most %u columns", p->config->grid, file, e->views, e->rel, e->views);
    }
    return KD_OK;
}

static kd_status fill_sheet(player *p, uint8_t *sheet, size_t first, long rows, long columns, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(p->cache);
    size_t h = (size_t)r->image_h, w = (size_t)r->image_w, line = ((size_t)columns * (w + GAP) + GAP) * 3;
    for (long i = 0; i < rows; i++) {
        const kd_image_entry *e = kd_cache_image(p->cache, first + (size_t)i);
        KD_TRY(open_image(p, e, err));
        for (long v = 0; v < columns; v++) {
            KD_TRY(play(p, e, kd_image_view(e, (uint32_t)v), err));
            uint8_t *corner = sheet + (GAP + (size_t)i * (h + GAP)) * line + (GAP + (size_t)v * (w + GAP)) * 3;
            for (size_t y = 0; y < h; y++)
                memcpy(corner + y * line, p->found.view + y * w * 3, w * 3);
        }
    }
    return KD_OK;
}

static kd_status write_sheet(player *p, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(p->cache);
    long rows, columns, height, width;
    size_t first;
    uint8_t *sheet;
    KD_TRY(parse_grid(p->config->grid, &rows, &columns, err));
    KD_TRY(check_grid(p, rows, columns, &first, err));
    height = rows * (r->image_h + GAP) + GAP;
    width = columns * (r->image_w + GAP) + GAP;
    if (height > KD_IMAGE_MAX_SIDE || width > KD_IMAGE_MAX_SIDE || height * width > KD_IMAGE_MAX_PIXELS)
        return kd_fail(err, KD_EUSAGE, "--grid %s: a sheet of %ld x %ld pixels is too large; ask for fewer views", p->config->grid, height, width);
    KD_TRY(kd_alloc_array(&sheet, (size_t)height * (size_t)width, 3, err));
    memset(sheet, 255, (size_t)height * (size_t)width * 3);
    kd_status status = fill_sheet(p, sheet, first, rows, columns, err);
    if (status == KD_OK)
        status = kd_png_write(p->config->out, sheet, (int)width, (int)height, err);
    kd_free(sheet);
    return status;
}

/* ---- all ---- */

static kd_status append_all(player *p, kd_replace *out, kd_progress *progress, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(p->cache);
    for (size_t i = 0; i < kd_cache_images(p->cache); i++) {
        const kd_image_entry *e = kd_cache_image(p->cache, i);
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "interrupted after %zu of %zu images; nothing was written", i, kd_cache_images(p->cache));
        KD_TRY(open_image(p, e, err));
        for (uint32_t v = 0; v < e->views; v++) {
            KD_TRY(play(p, e, kd_image_view(e, v), err));
            KD_TRY(kd_io_replace_write(out, p->found.view, (size_t)r->image_h * (size_t)r->image_w * 3, err));
        }
        kd_progress_update(progress, i + 1, 0, NULL);
    }
    return KD_OK;
}

static kd_status write_all(player *p, kd_err *err)
{
    kd_replace *out;
    KD_TRY(kd_io_replace_begin(&out, p->config->out, err));
    kd_progress *progress = kd_progress_create("replaying", "image", kd_cache_images(p->cache), 0, 0);
    kd_status status = append_all(p, out, progress, err);
    kd_progress_finish(progress);
    if (status == KD_OK)
        return kd_io_replace_commit(out, err);
    kd_io_replace_abort(out);
    return status;
}

/* ---- */

static kd_status check_usage(const kd_cache_config *c, kd_err *err)
{
    if (c->all + (c->grid != NULL) > 1)
        return kd_fail(err, KD_EUSAGE, "--all and --grid are two ways of writing several views: give one of them");
    if (!c->id && !c->all && !c->grid)
        return kd_fail(err, KD_EUSAGE, "--id is missing: name an image (`kd-cache list %s` prints the ids), or give --grid RxC or --all", c->files.item[0]);
    if ((c->all && c->id) || ((c->all || c->grid) && c->view))
        return kd_fail(err, KD_EUSAGE, "%s goes with one view only, not with %s", c->view ? "--view" : "--id", c->all ? "--all" : "--grid");
    return KD_OK;
}

kd_status kd_cache_view_run(const kd_cache_config *config, kd_err *err)
{
    player p = {.config = config};
    kd_status status;
    KD_TRY(check_usage(config, err));
    KD_TRY(kd_cache_open_files(&p.cache, config, err));
    status = kd_reader_create(&p.reader, p.cache, err);
    if (status == KD_OK)
        status = kd_locator_create(&p.locator, config->images, kd_cache_list_format(config), err);
    if (status == KD_OK)
        status = config->all ? write_all(&p, err) : config->grid ? write_sheet(&p, err) : write_one(&p, err);
    kd_found_free(&p.found);
    kd_locator_destroy(p.locator);
    kd_reader_destroy(p.reader);
    kd_cache_close(p.cache);
    return status;
}
