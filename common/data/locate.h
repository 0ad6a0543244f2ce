/* Locate: finds the files of known images again. Training and `kd-cache view` know an image by id and recorded path; the folder may have moved.
 *
 * Recorded paths are tried first and believed for the time being (size must match): the view hash proves them when the view is replayed. Only when that fails are the folder's
 * files hashed to find the id elsewhere: then an image that was moved or renamed, one whose file was changed, and one that is missing can be told apart.
 * Thread rule: create and hash_all on one thread; lookups are read-only. */
#ifndef KD_COMMON_DATA_LOCATE_H
#define KD_COMMON_DATA_LOCATE_H

#include "common/data/dataset.h"

typedef struct kd_locator kd_locator;

/* Opens the dataset behind `source` (common/data/dataset.h: directory, tar or list). */
kd_status kd_locator_create(kd_locator **out, const char *source, kd_list_format list, kd_err *err);
/* Over a dataset that is open already and outlives the locator; the same file numbers. */
kd_status kd_locator_create_over(kd_locator **out, const kd_dataset *data, kd_err *err);
void kd_locator_destroy(kd_locator *l);
size_t kd_locator_files(const kd_locator *l);
/* Index of the file with this relative path, or whose relative path is behind this hidden one (kd_hidden_path), or -1. */
int64_t kd_locator_by_name(const kd_locator *l, const char *rel);
/* The same, and of this size. */
int64_t kd_locator_by_path(const kd_locator *l, const char *rel, uint64_t size);
/* Hashes every file that isn't hashed yet (threads wide, progress on stderr), using and updating the index file (path, size, mtime -> id) when index_path isn't NULL. */
kd_status kd_locator_hash_all(kd_locator *l, int threads, const char *index_path, kd_err *err);
/* The ids of the files that begin like a picture of a kind that kd_image_decode reads, ascending, each once; out has room for kd_locator_files of them. After kd_locator_hash_all without
 * an index, which doesn't know kinds. Returns how many. */
size_t kd_locator_picture_ids(const kd_locator *l, kd_hash128 *out);
/* Index of a file with this id after kd_locator_hash_all, or -1. */
int64_t kd_locator_by_id(const kd_locator *l, const kd_hash128 *id);

/* Where an image of a cache is now. */
typedef enum kd_whereabouts {
    KD_IN_PLACE, /* a file of the recorded path and size; after hash_all also of its id */
    KD_MOVED,    /* a file elsewhere has its id: moved, renamed, or put into a tar */
    KD_CHANGED,  /* the recorded path is there with other content, and no file has its id: edited, re-encoded, replaced, or unreadable */
    KD_MISSING,  /* neither */
    KD_WHEREABOUTS
} kd_whereabouts;
/* *file: where its bytes are (KD_IN_PLACE, KD_MOVED), the changed file (KD_CHANGED), or -1. Before hash_all nothing is found as moved. */
kd_whereabouts kd_locator_find(const kd_locator *l, const kd_hash128 *id, const char *rel, uint64_t size, int64_t *file);

/* What to call an image in a sentence: the name of its file where the recorded path is a hidden one and the file is known (kd_locator_find's, or -1), else the recorded path. Borrowed. */
const char *kd_locator_show(const kd_locator *l, int64_t file, const char *rel);

/* A count over the images of a cache, and an example of each kind: the first one's recorded path or name (kd_locator_show), borrowed. Zero-initialise. */
typedef struct kd_search {
    size_t count[KD_WHEREABOUTS];
    const char *example[KD_WHEREABOUTS];
} kd_search;
void kd_search_count(kd_search *s, kd_whereabouts w, const char *rel);
/* "90 at their recorded paths, 6 moved or renamed, 3 changed (first: a.jpg), 1 missing (first: b.jpg)"; kinds that don't occur are left out. Returns buf. */
const char *kd_search_text(const kd_search *s, char *buf, size_t cap);

kd_status kd_locator_path(const kd_locator *l, int64_t i, char *buf, size_t cap, kd_err *err);
/* The file's bytes, as kd_dataset_read. */
kd_status kd_locator_read(const kd_locator *l, int64_t i, uint8_t **buf, size_t *cap, size_t *size, kd_err *err);

#endif
