#include "cache/view_set.h"

#include <string.h>

#include "common/base/mem.h"

struct kd_view_slot {
    kd_hash128 image;
    int64_t view;
    uint8_t used;
};

/* Image ids are hashes already; the view is mixed in by a multiplication (odd constant: 2^64 / golden ratio). */
static size_t home(const kd_view_set *s, const kd_hash128 *image, int64_t view)
{
    uint64_t h = kd_hash128_low64(image) + (uint64_t)view * 0x9E3779B97F4A7C15u;
    return (size_t)((h ^ h >> 29) & (s->capacity - 1));
}

static struct kd_view_slot *find(const kd_view_set *s, const kd_hash128 *image, int64_t view)
{
    for (size_t i = home(s, image, view);; i = (i + 1) & (s->capacity - 1)) {
        struct kd_view_slot *p = &s->slot[i];
        if (!p->used || (p->view == view && memcmp(p->image.b, image->b, sizeof image->b) == 0))
            return p;
    }
}

static kd_status grow(kd_view_set *s, kd_err *err)
{
    kd_view_set bigger = {.capacity = s->capacity ? 2 * s->capacity : 1024, .count = s->count};
    KD_TRY(kd_alloc_array(&bigger.slot, bigger.capacity, sizeof *bigger.slot, err));
    for (size_t i = 0; i < s->capacity; i++) {
        if (s->slot[i].used)
            *find(&bigger, &s->slot[i].image, s->slot[i].view) = s->slot[i];
    }
    kd_free(s->slot);
    *s = bigger;
    return KD_OK;
}

kd_status kd_view_set_add(kd_view_set *s, const kd_hash128 *image, int64_t view, int *added, kd_err *err)
{
    struct kd_view_slot *p;
    if (2 * (s->count + 1) > s->capacity)
        KD_TRY(grow(s, err));
    p = find(s, image, view);
    *added = !p->used;
    if (!p->used) {
        p->used = 1;
        p->image = *image;
        p->view = view;
        s->count++;
    }
    return KD_OK;
}

int kd_view_set_has(const kd_view_set *s, const kd_hash128 *image, int64_t view)
{
    return s->capacity > 0 && find(s, image, view)->used;
}

void kd_view_set_free(kd_view_set *s)
{
    kd_free(s->slot);
    memset(s, 0, sizeof *s);
}
