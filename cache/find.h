/* Find: the file of a known image, proven by its id. Used by `kd-cache check --images` and `kd-cache view`. Inside cache/ only. */
#ifndef KD_CACHE_FIND_H
#define KD_CACHE_FIND_H

#include "cache/store.h"
#include "common/data/locate.h"
#include "common/image/image.h"

/* Buffers of one thread. Zero-initialise. */
typedef struct kd_found {
    char path[KD_DATA_NAME];
    uint8_t *bytes;
    size_t capacity, size;
    kd_image image;
    uint8_t *partner_bytes;
    size_t partner_capacity;
    kd_image partner; /* of the view that is replayed next, when it is mixed */
    kd_view_scratch scratch;
    uint8_t *view;
    size_t view_capacity;
} kd_found;
void kd_found_free(kd_found *f);

/* Reads the image's file into f: the one at its recorded path, or (by_id, after kd_locator_hash_all) any with its id. KD_DONE: there is none, or it holds other bytes. */
kd_status kd_find_file(kd_found *f, const kd_locator *l, const kd_image_entry *e, int by_id, kd_err *err);
/* Decodes f's file, image e of a cache with this recipe, once for all of its views. */
kd_status kd_find_decode(kd_found *f, const kd_recipe *recipe, const kd_image_entry *e, kd_err *err);
/* Of a mixed view: reads the partner's file, found as by kd_find_file, and decodes it into f->partner; nothing of another. KD_DONE: there is none, or it holds other bytes. */
kd_status kd_find_partner(kd_found *f, const kd_cache *c, const kd_locator *l, const kd_view_entry *v, int by_id, kd_err *err);
/* Replays the plan (of a mixed view after kd_find_partner) into f->view and compares the hash. KD_EMISMATCH naming the image, the view, both hashes and the likely cause: another decoder, or another version of the augmentation
 * (the file is the right one: its id was checked). */
kd_status kd_find_replay(kd_found *f, const kd_recipe *recipe, const kd_image_entry *e, const kd_view_entry *v, kd_err *err);

#endif
