/* An open-addressing table from names to indices; files may hold 100,000 names, so that a search per name must not walk them all. */
#include <string.h>

#include "common/base/hash.h"
#include "common/weights/container.h"

typedef struct slot {
    const char *name; /* NULL: free */
    int index;
} slot;

struct kd_name_map {
    slot *slots;
    size_t mask; /* slot count - 1, a power of two minus one; at most half of the slots are used */
};

kd_status kd_name_map_create(kd_name_map **out, size_t capacity, kd_err *err)
{
    kd_name_map *m = NULL;
    size_t slots = 16;
    while (slots < 2 * capacity)
        slots *= 2;
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    kd_status status = kd_alloc_array(&m->slots, slots, sizeof *m->slots, err);
    if (status != KD_OK) {
        kd_free(m);
        return status;
    }
    m->mask = slots - 1;
    *out = m;
    return KD_OK;
}

void kd_name_map_destroy(kd_name_map *m)
{
    if (m == NULL)
        return;
    kd_free(m->slots);
    kd_free(m);
}

static slot *place_of(const kd_name_map *m, const char *name)
{
    size_t at = (size_t)kd_xxh64(name, strlen(name)) & m->mask;
    while (m->slots[at].name != NULL && strcmp(m->slots[at].name, name) != 0)
        at = (at + 1) & m->mask;
    return &m->slots[at];
}

int kd_name_map_add(kd_name_map *m, const char *name, int index)
{
    slot *s = place_of(m, name);
    if (s->name != NULL)
        return s->index;
    s->name = name;
    s->index = index;
    return -1;
}

int kd_name_map_find(const kd_name_map *m, const char *name)
{
    const slot *s = place_of(m, name);
    return s->name != NULL ? s->index : -1;
}
