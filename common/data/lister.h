/* Lister: fills a data set from folders, tars and lists. Inside common/data only; dataset.h is the contract. */
#ifndef KD_COMMON_DATA_LISTER_H
#define KD_COMMON_DATA_LISTER_H

#include <sys/stat.h>

#include "common/data/dataset.h"

/* A growing array of files; their names are in the data set's arena. */
typedef struct kd_file_vector {
    kd_data_file *file;
    size_t count, capacity;
} kd_file_vector;

typedef struct kd_lister {
    kd_dataset *d;
    kd_file_vector files; /* becomes d->file */
    size_t tar_capacity;
    kd_err *err;
} kd_lister;

kd_status kd_lister_no_memory(kd_lister *l);

/* rel is in the arena. st may be NULL: size and time unknown. problem: NULL, or a sentence in the arena. A rel that is too long for a cache gets that as its problem. */
kd_status kd_lister_add(kd_lister *l, const char *rel, const struct stat *st, const char *problem);

/* The folder's images and the images in its tars. */
kd_status kd_lister_add_folder(kd_lister *l, const char *source);
/* The images in the tar at d->root/rel, into `to`: as rel/NAME. A damaged tar adds itself, as a file that can't be read, after what is sound. */
kd_status kd_lister_add_tar(kd_lister *l, kd_file_vector *to, const char *rel);
/* A list's text: lines, or NUL-terminated paths. source names it in sentences. */
kd_status kd_lister_add_list(kd_lister *l, const char *text, size_t size, kd_list_format format, const char *source);

int kd_lister_is_tar_name(const char *name); /* ends in .tar, any case */
void kd_lister_sort(kd_file_vector *v, size_t *ignored); /* by rel; each once: the last of a tar's members of one name */

#endif
