#include "cache/find.h"

#include <string.h>

#include "common/base/mem.h"

void kd_found_free(kd_found *f)
{
    kd_free(f->bytes);
    kd_image_free(&f->image);
    kd_view_scratch_free(&f->scratch);
    kd_free(f->view);
    memset(f, 0, sizeof *f);
}

kd_status kd_find_file(kd_found *f, const kd_locator *l, const kd_image_entry *e, int by_id, kd_err *err)
{
    int64_t file = by_id ? kd_locator_by_id(l, &e->image) : kd_locator_by_path(l, e->rel, e->file_size);
    kd_err unreadable;
    kd_hash128 id;
    if (file < 0)
        return KD_DONE;
    if (kd_locator_read(l, file, &f->bytes, &f->capacity, &f->size, &unreadable) != KD_OK)
        return KD_DONE;
    KD_TRY(kd_locator_path(l, file, f->path, sizeof f->path, err));
    id = kd_image_id(f->bytes, f->size);
    return memcmp(id.b, e->image.b, sizeof id.b) == 0 ? KD_OK : KD_DONE;
}

kd_status kd_find_decode(kd_found *f, const kd_recipe *recipe, const kd_image_entry *e, kd_err *err)
{
    kd_decode_options options = kd_recipe_decode_options(recipe, e->width, e->height);
    return kd_image_decode(&f->image, f->bytes, f->size, f->path, &options, err);
}

kd_status kd_find_replay(kd_found *f, const kd_recipe *recipe, const kd_image_entry *e, const kd_view_entry *v, kd_err *err)
{
    size_t size = (size_t)v->plan.out_w * (size_t)v->plan.out_h * 3;
    kd_hash128 h;
    char want[33], have[33], id[33];
    kd_err decoder;
    if (size > f->view_capacity) {
        uint8_t *bigger = kd_malloc(size);
        if (!bigger)
            return kd_fail(err, KD_EFAIL, "out of memory: no room for a view of %d x %d pixels", v->plan.out_w, v->plan.out_h);
        kd_free(f->view);
        f->view = bigger;
        f->view_capacity = size;
    }
    KD_TRY(kd_plan_apply(&v->plan, &f->image, f->view, &f->scratch, err));
    h = kd_view_hash(f->view, v->plan.out_w, v->plan.out_h);
    if (memcmp(h.b, v->view_hash.b, sizeof h.b) == 0)
        return KD_OK;
    kd_hex(want, v->view_hash.b, 16);
    kd_hex(have, h.b, 16);
    kd_hex(id, e->image.b, 16);
    if (kd_recipe_check_decoder(recipe, &decoder) != KD_OK)
        return kd_fail(err, KD_EMISMATCH, "%s: image %s, view %u: its hash is %s here, but the teacher saw %s, although the file is the same: %s", f->path, id, v->view, have, want, decoder.msg);
    return kd_fail(err, KD_EMISMATCH, "%s: image %s, view %u: its hash is %s here, but the teacher saw %s, although the file and the decoder are the same: this version augments differently "
                   "from the one that made the cache (kd-cache info names it), or the cache was changed", f->path, id, v->view, have, want);
}
