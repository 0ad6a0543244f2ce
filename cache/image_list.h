/* Image list: the images of a cache, or of a live teacher, that a text file names, by id or by path. For kd-cache extract --images and kd-train --val-list. */
#ifndef KD_CACHE_IMAGE_LIST_H
#define KD_CACHE_IMAGE_LIST_H

#include "cache/store.h"

/* The images that a list is about. */
typedef struct kd_image_set {
    const kd_image_entry *image; /* [count], by ascending id; borrowed */
    size_t count;
    const char *name; /* of what has them, for messages */
    int is_cache;     /* so that `kd-cache list NAME` prints them */
} kd_image_set;
kd_image_set kd_image_set_of(const kd_cache *c);

/* A line is an image's id (32 hexadecimal digits) or its path as the set has it (of hidden paths, the path itself or its hash); empty lines are passed over. nul: entries end in NUL instead of
 * a newline. *chosen: a byte for each image of the set, 1 when it is named (kd_free). KD_ENOTFOUND naming the first line that no image of the set has, or,
 * where `unknown` isn't NULL, only their number there; KD_EUSAGE: no image of the set is named. */
kd_status kd_image_list_read(uint8_t **chosen, const kd_image_set *set, const char *path, int nul, size_t *unknown, kd_err *err);

#endif
