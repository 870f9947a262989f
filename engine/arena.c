/* arena.c -- bump allocation by lifetime. See arena.h. */
#include "engine/arena.h"

#include <sys/mman.h>

enum { ALIGN = 64 };
/* Pieces double the arena, within these bounds: few allocations, and at most half of it in vain. */
static const size_t PIECE_MIN = (size_t)64 << 20, PIECE_MAX = (size_t)1 << 30;

static char *reserve(const Arena *a, size_t size) {
    if (a->dev) return a->dev->alloc(a->dev, size);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die(FAIL_MEMORY, "arena %s: cannot reserve %zu bytes of address space", a->name, size);
    return p;
}

static void add_piece(Arena *a, size_t size) {
    CHECK(a->npieces < ARENA_PIECES, "arena %s has %d pieces", a->name, a->npieces);
    a->piece[a->npieces].base = reserve(a, size);
    a->piece[a->npieces].begin = a->size;
    a->piece[a->npieces++].size = size;
    a->size += size;
}

void arena_open(Arena *a, const char *name, Device *dev, size_t size) {
    *a = (Arena){.name = name, .dev = dev, .limit = (size + 4095) & ~(size_t)4095};
    if (!dev || dev->reserves) add_piece(a, a->limit);
}

void arena_open_growing(Arena *a, const char *name, size_t first, size_t limit) {
    arena_open(a, name, NULL, MIN(first, limit));
    a->limit = MAX((limit + 4095) & ~(size_t)4095, a->limit);
}

void arena_close(Arena *a) {
    for (int i = 0; i < a->npieces; i++) {
        if (a->dev) a->dev->release(a->dev, a->piece[i].base, a->piece[i].size);
        else munmap(a->piece[i].base, a->piece[i].size);
    }
    *a = (Arena){0};
}

/* Another piece of at least `bytes` when the arena may still grow. */
static void grow(Arena *a, size_t bytes) {
    if (bytes > a->limit - a->size) /* size <= limit always, so this cannot wrap */
        die(FAIL_MEMORY, "arena %s is full: %zu bytes asked, %zu of %zu in use", a->name, bytes, a->used, a->limit);
    size_t available = SIZE_MAX, total;
    if (a->dev) a->dev->memory(a->dev, &available, &total);
    const size_t want = MIN(MIN(MAX(PIECE_MIN, a->size), PIECE_MAX), available / 2);
    add_piece(a, MIN((MAX(want, bytes) + 4095) & ~(size_t)4095, a->limit - a->size));
}

/* The first piece with room for `bytes` at or behind `used`, -1 when there is none. What a shorter one has left stays empty. */
static int piece_for(const Arena *a, size_t bytes) {
    for (int i = 0; i < a->npieces; i++) {
        const size_t end = a->piece[i].begin + a->piece[i].size, at = MAX(a->used, a->piece[i].begin);
        if (at <= end && bytes <= end - at) return i;
    }
    return -1;
}

void *arena_alloc(Arena *a, size_t bytes) {
    int i = piece_for(a, bytes);
    if (i < 0) {
        grow(a, bytes);
        i = a->npieces - 1;
    }
    const size_t at = MAX(a->used, a->piece[i].begin) - a->piece[i].begin, step = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    a->used = a->piece[i].begin + MIN(at + step, a->piece[i].size);
    a->peak = MAX(a->peak, a->used);
    return a->piece[i].base + at;
}

void *arena_zalloc(Arena *a, size_t bytes) {
    CHECK(!a->dev, "arena %s is not host memory", a->name);
    return memset(arena_alloc(a, bytes), 0, bytes);
}

char *arena_strdup(Arena *a, const char *s, size_t n) {
    char *p = arena_alloc(a, n + 1);
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

void arena_sort(Arena *scratch, void *p, int64_t n, size_t size, int (*compare)(const void *, const void *)) {
    size_t mark = arena_mark(scratch);
    char *from = p, *to = arena_alloc(scratch, (size_t)n * size);
#define AT(base, i) ((base) + (size_t)(i) * size)
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t begin = 0; begin < n; begin += 2 * run) {
            int64_t i = begin, mid = MIN(begin + run, n), k = mid, end = MIN(begin + 2 * run, n);
            if (mid == end || compare(AT(from, mid - 1), AT(from, mid)) <= 0) { /* in order already */
                memcpy(AT(to, begin), AT(from, begin), (size_t)(end - begin) * size);
                continue;
            }
            for (int64_t o = begin; o < end; o++) {
                bool left = k >= end || (i < mid && compare(AT(from, i), AT(from, k)) <= 0);
                memcpy(AT(to, o), left ? AT(from, i++) : AT(from, k++), size);
            }
        }
        char *t = from;
        from = to;
        to = t;
    }
#undef AT
    if (from != p) memcpy(p, from, (size_t)n * size);
    arena_reset(scratch, mark);
}
