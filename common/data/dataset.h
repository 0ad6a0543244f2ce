/* Datasets: which image files there are, and the stable id of each.
 *
 * First station of the way of the data. A source is a directory (walked recursively, sorted by path bytes; regular files and symbolic links to files; links to
 * directories are not followed; FIFOs, sockets and devices are ignored), a text file with one path per line, or "-" for such a list on stdin. Directory walks take files
 * whose name ends in a known image suffix (.jpg .jpeg .jpe .jfif .png .webp, any case); what a file really is decides the decoder by content. An unknown suffix counts as
 * `ignored`. Lists are taken as they are; relative paths are relative to the list's folder. Names are bytes: spaces, newlines (directories only) and non-UTF-8 are fine.
 *
 * An image's id is XXH3-128 of the file's bytes, so the same picture has the same id in every team's folder layout. */
#ifndef KD_COMMON_DATA_DATASET_H
#define KD_COMMON_DATA_DATASET_H

#include "common/base/hash.h"

typedef struct kd_data_file {
    const char *rel;  /* path relative to the root, '/' separated, NUL terminated bytes; for lists the path as given */
    uint64_t size;
    int64_t mtime_ns;
} kd_data_file;

typedef struct kd_dataset {
    char *root;           /* directory prefix for rel; "" when rel is to be opened as it is */
    kd_data_file *file;   /* sorted by rel, bytewise; duplicates of the same path removed */
    size_t count;
    size_t ignored;       /* files with other suffixes, special files */
    struct kd_arena *arena;
} kd_dataset;

/* KD_EUSAGE: the source doesn't exist, can't be read, or holds no image. A listed path that doesn't exist stays in (opening it later is a skip). */
kd_status kd_dataset_open(kd_dataset *d, const char *source, kd_err *err);
void kd_dataset_close(kd_dataset *d);
/* root/rel into buf; KD_EFAIL when longer than cap. */
kd_status kd_dataset_path(const kd_dataset *d, size_t i, char *buf, size_t cap, kd_err *err);

kd_hash128 kd_image_id(const uint8_t *bytes, size_t size);
enum { KD_MAX_IMAGE_FILE = 512 << 20 };

#endif
