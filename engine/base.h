/* base.h -- errors, checks, logging, time: what every file of the project may use.
 *
 * Who can cause it decides how it is told. The outside world (files, options, data): return false
 * with a sentence, `return fail(e, ...)`. Only our own code: CHECK. Next: arena.h.
 */
#pragma once
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The documented exit statuses of the command. */
typedef enum Status {
    OK_STATUS = 0,
    FAIL_OTHER = 1,
    FAIL_USAGE = 2,
    FAIL_CONFIG = 3,
    FAIL_DATA = 4,
    FAIL_MODEL = 5,
    FAIL_MEMORY = 6,
    FAIL_PEER = 7,
    FAIL_DISK = 8,
    FAIL_NUMERIC = 9,
} Status;

typedef struct Error {
    Status status; /* the exit status this failure means; FAIL_OTHER when nobody said */
    char text[1024];
} Error;

/* Writes the sentence into e (which may be NULL) and returns false. `fail` leaves the status as it is
 * (FAIL_OTHER when unset), `fail_as` sets it. */
bool fail(Error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool fail_as(Error *e, Status s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "what: " in front of the sentence already in e; returns false. */
bool fail_in(Error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A condition only our own code can break. Always on; dies (abort) with file, line and the numbers. */
#define CHECK(cond, ...) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__))
_Noreturn void check_failed(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The machine failed us (out of memory, ...): prints the sentence and exits with `s`. */
_Noreturn void die(Status s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* One line to stderr. `warn` lines are counted; the count is told at the end of a run. */
void info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int warn_count(void);
/* This process is rank `rank` of several: only rank 0 informs, the warnings of others begin with their number. */
void log_rank(int rank);

double now_s(void); /* seconds, monotonic */

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define COUNT_OF(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Heap memory outside the arenas (set-up, tables that live as long as the run): dies when there is none. */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n, size_t size);
char *xstrdup(const char *s);
/* Makes room for `want` elements in *p (capacity *cap), doubling. */
void grow_(void **p, int64_t *cap, int64_t want, size_t size);
#define GROW(p, cap, want) grow_((void **)&(p), &(cap), (want), sizeof *(p))

/* Sum over `n` bytes, 64 bits (FNV-1a folded by splitmix64): for hash tables and to tell files apart, not for security. */
uint64_t hash_bytes(const void *p, size_t n, uint64_t seed);

/* Reads a whole file; *data is malloc'ed, ends with a zero byte that *size does not count; the caller frees.
 * Fails with the path and the system's word, or when the file is larger than `limit` bytes. */
bool file_read(const char *path, char **data, size_t *size, size_t limit, Error *e);
/* Writes path.tmp, fsyncs, renames over path, fsyncs the folder: whoever reads sees the old file or the new one. One process
 * at a time writes to a folder; what a killed one has left in path.tmp, the next write replaces. */
bool file_write_atomic(const char *path, const void *data, size_t size, Error *e);
/* rm -rf; what cannot be removed stays. */
void remove_tree(const char *path);
/* mkdir -p */
bool make_dirs(const char *path, Error *e);
/* out = dir "/" name; fails when longer than n. */
bool path_join(char *out, size_t n, const char *dir, const char *name, Error *e);
/* The name in `names` nearest to `word` (edit distance at most a third of its length), or NULL: "did you mean ...?" */
const char *nearest(const char *word, const char *const *names, int n);
