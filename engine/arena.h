/* arena.h -- bump allocation by lifetime: run (parameters), step (activations, tape), scratch (inside one op).
 *
 * An arena reserves address space once and hands it out in order; reset gives all of it back at once.
 * Pages are touched when used and stay ours, so a step loop calls no allocator.
 */
#pragma once
#include "engine/base.h"
#include "kernels/device.h"

typedef struct Arena {
    const char *name;
    Device *dev;      /* who owns the memory; NULL = host */
    char *base;
    size_t used, peak, size;
} Arena;

/* Reserves `size` bytes of address space (memory is taken when touched). dev NULL: host memory. */
void arena_open(Arena *a, const char *name, Device *dev, size_t size);
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
