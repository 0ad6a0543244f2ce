#include "cache/find.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/mix.h"

void kd_found_free(kd_found *f)
{
    kd_free(f->bytes);
    kd_image_free(&f->image);
    kd_free(f->partner_bytes);
    kd_image_free(&f->partner);
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

kd_status kd_find_partner(kd_found *f, const kd_cache *c, const kd_locator *l, const kd_view_entry *v, int by_id, kd_err *err)
{
    const kd_hash128 *id = &v->plan.mix_partner;
    char path[KD_DATA_NAME];
    kd_err unreadable;
    kd_hash128 have;
    size_t size;
    if (!kd_plan_is_mixed(&v->plan))
        return KD_OK;
    const kd_image_entry *e = kd_cache_find_image(c, id); /* NULL: it was skipped for a partner of its own, and is found by id alone */
    int64_t file = by_id ? kd_locator_by_id(l, id) : e ? kd_locator_by_path(l, e->rel, e->file_size) : -1;
    if (file < 0 || kd_locator_read(l, file, &f->partner_bytes, &f->partner_capacity, &size, &unreadable) != KD_OK)
        return KD_DONE;
    have = kd_image_id(f->partner_bytes, size);
    if (memcmp(have.b, id->b, sizeof have.b) != 0)
        return KD_DONE;
    KD_TRY(kd_locator_path(l, file, path, sizeof path, err));
    kd_decode_options options = kd_recipe_decode_options(kd_cache_recipe(c), KD_IMAGE_MAX_SIDE, KD_IMAGE_MAX_SIDE);
    return kd_image_decode_box(&f->partner, f->partner_bytes, size, path, &options, kd_plans_box, &(kd_plans){&v->partner, 1}, err);
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
    if (kd_plan_is_mixed(&v->plan))
        KD_TRY(kd_view_mix(f->view, &v->plan, &v->partner, &f->partner, &f->scratch, err));
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
