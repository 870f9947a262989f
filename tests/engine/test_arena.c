/* test_arena.c -- bump allocation: alignment, reset, peak, zeroing, and the sentence when it is full. */
#include "engine/arena.h"
#include "tests/engine/child.h"

TEST(arena_bumps) {
    Arena a;
    arena_open(&a, "test", NULL, 10000); /* rounded up to pages */
    EXPECT(a.size == 12288, "%zu", a.size);
    char *p = arena_alloc(&a, 1), *q = arena_alloc(&a, 0), *r = arena_alloc(&a, 65), *s = arena_alloc(&a, 1);
    EXPECT(!((uintptr_t)p & 63) && q == p + 64 && r == q && s == r + 128, "%td %td %td", q - p, r - p, s - p);
    memset(r, 1, 65);
    size_t mark = arena_mark(&a);
    arena_alloc(&a, 5000);
    size_t peak = a.peak;
    arena_reset(&a, mark);
    EXPECT(a.used == mark && a.peak == peak && peak == mark + 5056, "used %zu, peak %zu", a.used, a.peak);
    memset(arena_alloc(&a, 100), 0xff, 100);
    arena_reset(&a, mark);
    const char *z = arena_zalloc(&a, 100);
    for (int i = 0; i < 100; i++) EXPECT(!z[i], "byte %d is not zero", i);
    arena_reset(&a, 0);
    arena_alloc(&a, 12288); /* to the last byte */
    EXPECT(a.used == a.size, "%zu", a.used);
    EXPECT(arena_alloc(&a, 0) != NULL, "nothing out of nothing left");
    arena_close(&a);
    EXPECT(!a.npieces && !a.size, "closed");
    arena_close(&a); /* twice is right */
}

/* A device that has no address space to reserve: the CPU's functions, and a count of what was taken. */
static Device small;
static size_t taken;
static void *small_alloc(Device *d, size_t bytes) {
    (void)d;
    taken += bytes;
    return xcalloc(bytes, 1);
}
static void small_release(Device *d, void *p, size_t bytes) {
    (void)d;
    taken -= bytes;
    free(p);
}

TEST(arena_grows_by_pieces) {
    small = *device_cpu(0);
    small.reserves = false, small.alloc = small_alloc, small.release = small_release;
    const size_t mb = (size_t)1 << 20;
    Arena a;
    arena_open(&a, "test", &small, 1000 * mb);
    EXPECT(!taken, "%zu bytes before anything was asked", taken);
    char *p = arena_alloc(&a, 40 * mb), *q = arena_alloc(&a, 24 * mb);
    EXPECT(a.npieces == 1 && taken == 64 * mb && q == p + 40 * mb, "%d pieces of %zu bytes", a.npieces,
           taken);
    size_t mark = arena_mark(&a);
    char *r = arena_alloc(&a, 1),
         *s = arena_alloc(&a, 300 * mb); /* the second piece keeps what the first left */
    EXPECT(a.npieces == 3 && taken == 428 * mb && a.used == taken, "%d pieces of %zu bytes, %zu used",
           a.npieces, taken, a.used);
    r[0] = 1, memset(s, 1, 300 * mb);
    arena_reset(&a, mark);
    EXPECT(arena_alloc(&a, 1) == r && arena_alloc(&a, 300 * mb) == s && taken == 428 * mb,
           "a second update found other memory");
    arena_reset(&a, 0);
    EXPECT(arena_alloc(&a, 64 * mb) == p && arena_alloc(&a, 64 * mb) == r,
           "pieces are not used from the front");
    arena_close(&a);
    EXPECT(!taken, "%zu bytes kept", taken);
}

/* The same on the host, beginning with what was asked for. */
TEST(arena_grows_on_the_host) {
    Arena a;
    arena_open_growing(&a, "test", 5000, 1000000);
    EXPECT(a.npieces == 1 && a.size == 8192 && a.limit == 1003520, "%d pieces, %zu of %zu bytes", a.npieces, a.size, a.limit);
    char *p = arena_alloc(&a, 8000), *q = arena_alloc(&a, 9000);
    memset(p, 1, 8000), memset(q, 2, 9000);
    EXPECT(a.npieces == 2 && a.size == a.limit, "%d pieces, %zu of %zu bytes", a.npieces, a.size, a.limit);
    arena_reset(&a, 0);
    EXPECT(arena_alloc(&a, 8000) == p && arena_alloc(&a, 9000) == q, "a second use found other memory");
    arena_close(&a);
    arena_open_growing(&a, "test", 5000, 100); /* the first piece is there whatever the limit */
    EXPECT(a.size == 4096 && a.limit == 4096, "%zu of %zu bytes", a.size, a.limit);
    arena_close(&a);
}

TEST(arena_strdup) {
    Arena a;
    arena_open(&a, "test", NULL, 4096);
    const char *s = arena_strdup(&a, "hello world", 5), *t = arena_strdup(&a, "", 0);
    EXPECT(!strcmp(s, "hello") && !*t, "%s", s);
    arena_close(&a);
}

typedef struct Pair { int key, at; char rest[3]; } Pair;
static int by_key(const void *x, const void *y) { return ((const Pair *)x)->key - ((const Pair *)y)->key; }

/* In order, nothing lost, equal keys in the order in which they came; the arena as it was. */
TEST(arena_sorts) {
    static const int sizes[] = {0, 1, 2, 3, 7, 64, 65, 1000};
    Arena a;
    arena_open(&a, "test", NULL, 1 << 20);
    for (int k = 0; k < COUNT_OF(sizes); k++)
        for (int keys = 1; keys <= 1000; keys *= 10) { /* one key: stays as it is; many: few are equal */
            int n = sizes[k], seen = 0;
            Pair *p = ARENA_NEW(&a, Pair, n);
            for (int i = 0; i < n; i++)
                p[i] = (Pair){(int)(hash_bytes(&i, sizeof i, (uint64_t)keys) % (uint64_t)keys), i, "ok"};
            size_t mark = arena_mark(&a);
            arena_sort(&a, p, n, sizeof *p, by_key);
            EXPECT(arena_mark(&a) == mark, "%zu bytes of the arena are kept", arena_mark(&a) - mark);
            for (int i = 1; i < n; i++)
                EXPECT(p[i - 1].key < p[i].key || (p[i - 1].key == p[i].key && p[i - 1].at < p[i].at),
                       "%d of %d, %d keys", i, n, keys);
            for (int i = 0; i < n; i++)
                seen += p[i].at >= 0 && p[i].at < n &&
                        p[i].key ==
                            (int)(hash_bytes(&p[i].at, sizeof p[i].at, (uint64_t)keys) % (uint64_t)keys) &&
                        !strcmp(p[i].rest, "ok");
            EXPECT(seen == n, "%d of %d are whole", seen, n);
            arena_reset(&a, 0);
        }
    arena_close(&a);
}

/* Full: exit status 6 and the sizes. A size near 2^64 must not wrap. */
static void overfill(void *size) {
    Arena a;
    arena_open(&a, "tiny", NULL, 4096);
    arena_alloc(&a, *(size_t *)size);
}

TEST(arena_full) {
    size_t sizes[] = {4097, SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        static Child c;
        EXPECT(child_call(&c, overfill, &sizes[i]) == FAIL_MEMORY && strstr(c.text, "arena tiny is full"),
               "%zu bytes: status %d, %s", sizes[i], c.status, c.text);
    }
}
