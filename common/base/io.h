/* Files: whole reads, mapped reads, atomic replacement, directories, free space.
 *
 * Opens never block on a FIFO (O_NONBLOCK, then S_ISREG) and never leak into children (O_CLOEXEC).
 * Thread rule: no shared state. */
#ifndef KD_COMMON_BASE_IO_H
#define KD_COMMON_BASE_IO_H

#include <stdint.h>

#include "common/base/err.h"

/* Reads a regular file into a fresh buffer (*bytes, kd_free'd by the caller; one NUL follows the *size bytes).
 * KD_EFAIL: missing, unreadable, not a regular file, larger than max_bytes, changed while being read. */
kd_status kd_io_read_all(const char *path, size_t max_bytes, uint8_t **bytes, size_t *size, kd_err *err);

/* The same into a caller's growing buffer (*buf of *cap bytes, kd_realloc'd when too small): for loops over many files. */
kd_status kd_io_read_into(const char *path, size_t max_bytes, uint8_t **buf, size_t *cap, size_t *size, kd_err *err);

/* As kd_io_read_into, but only the size bytes at offset, of a file that is known to have file_size bytes: for members of archives. KD_EFAIL also when the file's size is another one now. */
kd_status kd_io_read_part(const char *path, uint64_t file_size, uint64_t offset, size_t size, uint8_t **buf, size_t *cap, kd_err *err);

/* Read-only private mapping of a regular file. A file that shrinks under the mapping raises SIGBUS: see kd_io_guard. */
typedef struct kd_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
} kd_map;
kd_status kd_io_map(const char *path, kd_map *map, kd_err *err);
void kd_io_unmap(kd_map *map);
/* The pages of [at, at + n), which lies inside the map, and some around it leave the process's resident memory; a later read (of any thread)
 * brings them back from the file. */
void kd_io_map_release(const kd_map *map, size_t at, size_t n);

/* Calls fn(arg) such that a page of [base, base+size) that can't be read (truncated file, I/O error on a mount) becomes
 * KD_EDAMAGED naming `what` and the offset, not a signal. Nestable per thread; fn must hold no locks while touching the range. */
kd_status kd_io_guard(const void *base, size_t size, const char *what, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err);

/* Replaces path with size bytes so that a reader (or a crash) sees the old or the new content, never a part:
 * temporary file in the same directory, write, fsync, rename, fsync of the directory. KD_ENOSPACE when the disk is full. */
kd_status kd_io_write_atomic(const char *path, const void *bytes, size_t size, kd_err *err);

/* KD_EFAIL when path could not be replaced now: its folder is missing or not writable, or path is a folder. For finding out before hours of work. */
kd_status kd_io_check_target(const char *path, kd_err *err);

/* The same as kd_io_write_atomic for content that is produced piece by piece. After kd_io_replace_begin exactly one of commit or abort follows. */
typedef struct kd_replace kd_replace;
kd_status kd_io_replace_begin(kd_replace **out, const char *path, kd_err *err);
kd_status kd_io_replace_write(kd_replace *r, const void *bytes, size_t size, kd_err *err);
kd_status kd_io_replace_commit(kd_replace *r, kd_err *err); /* frees r, also after a failure */
void kd_io_replace_abort(kd_replace *r);                    /* removes the temporary file; accepts NULL */
/* Removes the temporary files that writers left who were killed: those of the file path, or, if path is a folder, of every file in it, and nothing else: a folder may hold files of the user's.
 * The caller knows that nobody is writing there, by a lock. What can't be removed stays. */
void kd_io_remove_temporaries(const char *path);

kd_status kd_io_mkdirs(const char *path, kd_err *err);   /* like mkdir -p; what it creates is durable */
kd_status kd_io_fsync_dir_of(const char *path, kd_err *err); /* makes a rename of `path` durable */
int kd_io_exists(const char *path);
int kd_io_is_dir(const char *path);
kd_status kd_io_file_size(const char *path, uint64_t *size, kd_err *err);
/* Free bytes available to this user on the file system that holds path (or its nearest existing parent). */
kd_status kd_io_free_bytes(const char *path, uint64_t *bytes, kd_err *err);
/* 1 when path (or its nearest existing parent) lies on a network or cluster file system: there an LMDB file that is being written is neither safe (mapped pages of several hosts) nor
 * quick (a round trip for every commit). *name (may be NULL) becomes its name, a constant such as "NFS". 0: a local one, one that isn't known, or a path that can't be examined. */
int kd_io_network_fs(const char *path, const char **name);
/* "the file system at /mnt/x (tmpfs)" into buf: the one that holds path (or its nearest existing parent); "its file system" when the system doesn't tell. Returns buf. */
const char *kd_io_file_system(const char *path, char *buf, size_t cap);
/* A call that should have written path has failed and left its errno: as kd_fail_errno(err, KD_EFAIL, "PATH: WHAT"). Without room (disk, quota, limit on file sizes) it is KD_ENOSPACE and
 * the sentence names the file system and its free bytes. */
kd_status kd_io_write_failed(const char *path, const char *what, kd_err *err);

/* Test hook: the n-th write, fsync or rename from now on (1 = the next) fails once with errno `error`; 0 switches it off. */
void kd_io_fail_after(size_t n, int error);

/* "1.5 GiB"-style text into buf; the inverse accepts 32GB, 1.5GiB, 4096, 10k (decimal and binary units). */
const char *kd_io_size_text(uint64_t bytes, char *buf, size_t cap);
kd_status kd_io_size_parse(const char *text, uint64_t *bytes, kd_err *err);

#endif
