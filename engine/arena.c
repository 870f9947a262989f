/* arena.c -- bump allocation by lifetime. See arena.h. */
#include "engine/arena.h"

#include <sys/mman.h>

enum { ALIGN = 64 };

void arena_open(Arena *a, const char *name, Device *dev, size_t size) {
    size = (size + 4095) & ~(size_t)4095;
    *a = (Arena){.name = name, .dev = dev, .size = size};
    if (dev) {
        a->base = dev->alloc(dev, size);
        return;
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die(FAIL_MEMORY, "arena %s: cannot reserve %zu bytes of address space", name, size);
    a->base = p;
}

void arena_close(Arena *a) {
    if (!a->base) return;
    if (a->dev)
        a->dev->release(a->dev, a->base, a->size);
    else
        munmap(a->base, a->size);
    *a = (Arena){0};
}

void *arena_alloc(Arena *a, size_t bytes) {
    if (bytes > a->size - a->used) /* used <= size always, so this cannot wrap */
        die(FAIL_MEMORY, "arena %s is full: %zu bytes asked, %zu of %zu in use", a->name, bytes, a->used, a->size);
    void *p = a->base + a->used;
    size_t step = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    a->used = MIN(a->used + step, a->size);
    a->peak = MAX(a->peak, a->used);
    return p;
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
