/* arena.h -- bump allocation by lifetime: run (parameters), step (activations, tape), scratch (inside one op).
 *
 * An arena hands memory out in order; reset gives all of it back at once. What was taken stays ours, so a step loop calls no
 * allocator. On the host and the CPU it is one piece of address space whose pages are taken when touched. A graphics card
 * has nothing like it: there an arena grows by pieces until the largest update has been seen.
 */
#pragma once
#include "engine/base.h"
#include "kernels/device.h"

enum { ARENA_PIECES = 64 };

typedef struct Arena {
    const char *name;
    Device *dev; /* who owns the memory; NULL = host */
    struct { char *base; size_t begin, size; } piece[ARENA_PIECES]; /* bytes [begin, begin + size) of the whole */
    int npieces;
    size_t used, peak;
    size_t size, limit; /* of all pieces; what they may become */
} Arena;

/* An arena of at most `size` bytes; none is taken yet. dev NULL: host memory. */
void arena_open(Arena *a, const char *name, Device *dev, size_t size);
/* A host arena that begins with `first` bytes of address space and grows by pieces, as a card's does: where there are many, and
 * any of them may become large. */
void arena_open_growing(Arena *a, const char *name, size_t first, size_t limit);
void arena_close(Arena *a);
/* `bytes` at a 64-byte boundary, contents undefined. Dies with the sizes when full. */
void *arena_alloc(Arena *a, size_t bytes);
/* Host arenas only: the same, zero-filled; and a copy of a string. */
void *arena_zalloc(Arena *a, size_t bytes);
char *arena_strdup(Arena *a, const char *s, size_t n);
#define ARENA_NEW(a, T, n) ((T *)arena_zalloc((a), (size_t)(n) * sizeof(T)))

/* Stable merge sort of n elements of `size` bytes; `scratch`, a host arena, is given back. (glibc's qsort calls malloc.) */
void arena_sort(Arena *scratch, void *p, int64_t n, size_t size, int (*compare)(const void *, const void *));

static inline size_t arena_mark(const Arena *a) { return a->used; }
static inline void arena_reset(Arena *a, size_t mark) { a->used = mark; }
