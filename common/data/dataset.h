/* Datasets: which images there are, how to read each, and the stable id of each.
 *
 * First station of the way of the data. A source is
 *   - a directory (walked recursively; regular files and symbolic links to files; links to directories are not followed; FIFOs, sockets and devices are ignored);
 *   - a tar (a shard as WebDataset writes them; plain, not compressed). In a directory or a list every file named *.tar is one;
 *   - a list: a text file of paths, one per line or each ended by a NUL, or "-" for such a list on stdin. Relative paths are relative to the list's folder. A path may name
 *     a member: "shards/000.tar/cat/1.jpg".
 * Everything is sorted by path bytes. Directories and tars give the files whose name ends in a known image suffix (.jpg .jpeg .jpe .jfif .png .webp, any case); what a file really is
 * decides the decoder by content; others count as `ignored`. Lists are taken as they are. Names are bytes: spaces, newlines and non-UTF-8 are fine.
 *
 * A member of a tar is addressed as if the tar were a folder: shard-000.tar/NAME, with NAME exactly as in the tar. It is read in place, by one read of its bytes. Of several members of one name the last counts, as
 * when unpacking; links, folders and other members without bytes of their own are ignored.
 *
 *     kd_dataset d;
 *     KD_TRY(kd_dataset_open(&d, "shards", KD_LIST_LINES, err));
 *     KD_TRY(kd_dataset_read(&d, i, &buf, &cap, &size, err));       // buf grows as needed
 *     kd_dataset_close(&d);
 *
 * An image's id is XXH3-128 of the file's bytes, so the same picture has the same id in every team's folder layout, and in a tar.
 * Thread rule: after open everything is read-only; each thread has a buffer of its own. */
#ifndef KD_COMMON_DATA_DATASET_H
#define KD_COMMON_DATA_DATASET_H

#include "common/base/hash.h"

typedef struct kd_data_file {
    const char *rel;     /* path relative to the root, '/' separated, NUL terminated bytes; for lists the path as given */
    uint64_t size;
    int64_t mtime_ns;    /* of a member: the tar's */
    const char *problem; /* NULL, or why it can't be read, known already: a damaged or cut-off tar, a folder that can't be opened, a name that is too long */
    uint64_t offset;     /* in the tar */
    uint32_t tar;        /* 0: a file of its own; else 1 + index of its tar */
} kd_data_file;

typedef struct kd_data_tar {
    const char *path;    /* to be opened as it is */
    uint64_t size;
    size_t rel_length;   /* length of the tar's own part of its members' rel, slash included */
} kd_data_tar;

typedef struct kd_dataset {
    char *root;           /* directory prefix for rel; "" when rel is to be opened as it is */
    kd_data_file *file;   /* sorted by rel, bytewise; duplicates of the same path removed */
    size_t count;
    size_t ignored;       /* files with other suffixes, special files, links in tars, members that a later one of the same name replaces */
    kd_data_tar *tar;
    size_t tars;
    struct kd_arena *arena;
} kd_dataset;

typedef enum kd_list_format {
    KD_LIST_LINES = 0, /* one path per line */
    KD_LIST_NUL = 1    /* each path ends in a NUL, as find -print0 writes them */
} kd_list_format;

/* KD_EUSAGE: the source doesn't exist, can't be read, or holds no image. A listed path that doesn't exist, a tar that is damaged and a folder that can't be opened stay in as files that
 * can't be read: reading them is a skip with a reason. `list` matters for lists only. */
kd_status kd_dataset_open(kd_dataset *d, const char *source, kd_list_format list, kd_err *err);
/* A list that is in memory as it would stand in the file `source`: for files that name images among other things. */
kd_status kd_dataset_open_list(kd_dataset *d, const char *text, size_t size, kd_list_format list, const char *source, kd_err *err);
void kd_dataset_close(kd_dataset *d);

/* The files of `whole` for which keep[i] isn't 0, in the same order. `whole` outlives it: names and what is in tars are shared. Closed with kd_dataset_close. */
kd_status kd_dataset_subset(kd_dataset *out, const kd_dataset *whole, const uint8_t *keep, kd_err *err);
/* At most `count` of them (0: all), evenly spread: file i * whole->count / count for i = 0, 1, .. */
kd_status kd_dataset_spread(kd_dataset *out, const kd_dataset *whole, size_t count, kd_err *err);
/* Part `part` (1 .. parts) of a set that several jobs share: the files whose XXH3-64 of rel is part - 1 modulo parts, so that a file stays in its part when others are added. May be empty. */
kd_status kd_dataset_part(kd_dataset *out, const kd_dataset *whole, uint32_t part, uint32_t parts, kd_err *err);

/* root/rel into buf: the path of a file, the address of a member; for sentences. KD_EFAIL when longer than cap. */
enum { KD_DATA_NAME = 8192 };
kd_status kd_dataset_path(const kd_dataset *d, size_t i, char *buf, size_t cap, kd_err *err);

/* The whole image into a growing buffer (*buf of *cap bytes; one NUL follows the *size bytes). KD_EFAIL: missing, unreadable, not a regular file, longer than KD_MAX_IMAGE_FILE, a tar that changed since it was
 * listed, or `problem`. */
enum { KD_MAX_IMAGE_FILE = 512 << 20 };
kd_status kd_dataset_read(const kd_dataset *d, size_t i, uint8_t **buf, size_t *cap, size_t *size, kd_err *err);

/* Only its first bytes, at most n: enough to tell what kind of file it is. Errors as kd_dataset_read. */
kd_status kd_dataset_head(const kd_dataset *d, size_t i, size_t n, uint8_t **buf, size_t *cap, size_t *size, kd_err *err);

/* The part of rel that stands in the tar; rel itself for a file of its own. */
const char *kd_dataset_inner_name(const kd_dataset *d, size_t i);

kd_hash128 kd_image_id(const uint8_t *bytes, size_t size);

/* What a cache records in place of rel when file names are private (--paths hash): "xxh128:" and the XXH3-128 of rel in hex. Who has the files finds them by it; others learn no name. */
enum { KD_HIDDEN_PATH = 7 + 32 + 1 };
void kd_hidden_path(char out[KD_HIDDEN_PATH], const char *rel);
int kd_is_hidden_path(const char *rel, kd_hash128 *hash); /* hash (may be NULL) is its hash */

#endif
