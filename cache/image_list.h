/* Image list: the images of a cache that a text file names, by id or by path. For kd-cache extract --images and kd-train --val-list. */
#ifndef KD_CACHE_IMAGE_LIST_H
#define KD_CACHE_IMAGE_LIST_H

#include "cache/store.h"

/* A line is an image's id (32 hexadecimal digits) or its path as the cache has it (of hidden paths, the path itself or its hash); empty lines are passed over. nul: entries end in NUL instead of
 * a newline. *chosen: a byte for each image of the cache, 1 when it is named (kd_free). KD_ENOTFOUND naming the first line that no image of the cache has, or,
 * where `unknown` isn't NULL, only their number there; KD_EUSAGE: no image of the cache is named. */
kd_status kd_image_list_read(uint8_t **chosen, const kd_cache *c, const char *path, int nul, size_t *unknown, kd_err *err);

#endif
