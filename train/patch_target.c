#include "train/patch_target.h"

#include <stdio.h>
#include <string.h>

#include "common/image/augment.h"

enum { LIST_TEXT = 160 };

static int serves(const kd_target *t, const kd_patch_learner *l) {
    return t->kind != KD_TARGET_ADJOINT || (l->compares == NULL && t->h == l->map_h && t->w == l->map_w);
}

/* "full, adjoint:7" */
static const char *list_text(const kd_patch_offer *offer, char out[LIST_TEXT]) {
    char one[KD_TARGET_TEXT];
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < offer->count && used < LIST_TEXT; i++)
        used += (size_t)snprintf(out + used, LIST_TEXT - used, "%s%s", i > 0 ? ", " : "", kd_target_text(&offer->target[i], one));
    return out;
}

/* The adjoint target of the student's own map before full before pooled ones, of these the one with the most rows. -1: none serves. */
static int best(const kd_patch_offer *offer, const kd_patch_learner *l) {
    static const kd_target_kind order[] = {KD_TARGET_ADJOINT, KD_TARGET_FULL, KD_TARGET_POOL};
    for (size_t k = 0; k < sizeof order / sizeof order[0]; k++) {
        int found = -1;
        for (int i = 0; i < offer->count; i++) {
            const kd_target *t = &offer->target[i];
            if (t->kind == order[k] && serves(t, l) && (found < 0 || t->h * t->w > offer->target[found].h * offer->target[found].w))
                found = i;
        }
        if (found >= 0)
            return found;
    }
    return -1;
}

static kd_status refuse_loss(const char *what, const kd_patch_offer *offer, const kd_patch_learner *l, kd_err *err) {
    return kd_fail(err, KD_EUSAGE, "--loss %s: pair %s compares single patch tokens (%s), and of %s in %s nothing but sums over the grid is stored; learn patches with squared error (--loss std-mse or "
                   "mse), or make a cache with --patch-target full or pool:K", l->loss, l->pair, l->compares, what, offer->cache);
}

/* `what`: the adjoint targets in question. */
static kd_status refuse_map(const char *what, const kd_patch_offer *offer, const kd_patch_learner *l, kd_err *err) {
    char size[KD_SIZE_TEXT], map[KD_TARGET_TEXT], list[LIST_TEXT];
    const kd_target own = {KD_TARGET_ADJOINT, l->map_h, l->map_w};
    kd_target_text(&own, map);
    return kd_fail(err, KD_EUSAGE, "--student %s: its feature map at %s px is %dx%d, which isn't served by %s (%s holds %s); give a --student-size at which the map fits, or make a "
                   "fitting cache: kd-cache extract FULL.kdc --patch-target %s --out NEW.kdc from one with full patches, or kd-precompute --patch-target %s", l->student,
                   kd_image_size_text(l->image_h, l->image_w, size), l->map_h, l->map_w, what, offer->cache, list_text(offer, list), map, map);
}

static kd_status refuse(const char *what, const kd_patch_offer *offer, const kd_patch_learner *l, kd_err *err) {
    return l->compares != NULL ? refuse_loss(what, offer, l, err) : refuse_map(what, offer, l, err);
}

int kd_patch_target_find(const kd_patch_offer *offer, const kd_target *t) {
    for (int i = 0; i < offer->count; i++)
        if (kd_target_equal(&offer->target[i], t))
            return i;
    return -1;
}

kd_status kd_patch_target_choose(int *chosen, const kd_patch_offer *offer, const char *wish, const kd_patch_learner *l, kd_err *err) {
    char text[KD_TARGET_TEXT], list[LIST_TEXT];
    kd_target t;
    if (strcmp(wish, "auto") == 0) {
        *chosen = best(offer, l);
        return *chosen >= 0 ? KD_OK : refuse(list_text(offer, list), offer, l, err);
    }
    KD_TRY(kd_target_parse(&t, wish, "--patch-target", err));
    kd_target_text(&t, text);
    *chosen = kd_patch_target_find(offer, &t);
    if (*chosen < 0)
        return kd_fail(err, KD_EUSAGE, "--patch-target %s: %s holds %s; give one of them, or make it: kd-cache extract FULL.kdc --patch-target %s --out NEW.kdc from a cache with full patches, or kd-precompute "
                       "--patch-target %s", text, offer->cache, list_text(offer, list), text, text);
    return serves(&offer->target[*chosen], l) ? KD_OK : refuse(text, offer, l, err);
}
