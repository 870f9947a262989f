/* comm_shm.c -- sums of gradients between the ranks of one host, in memory that all of them see. See comm.h.
 *
 * Each rank has DEPTH slots of CHUNK values in a segment. A sum goes through them chunk by chunk: a rank puts
 * its values into its next slot, adds what it owes of the sum, and takes the sum. Two ranks take by adding
 * the other's slot to their own values. More divide the chunk: each adds its share over all slots, as a tree
 * over the ranks, into rank 0's slot, from where all take the whole. One chunk is put while others are added.
 *
 * Beside the slots every rank has two counters of chunks, written by that rank alone; who waits for one
 * sleeps in the kernel (futex) and leaves the core to the thread that computes. Nobody is woken when a rank
 * dies: the thread that watches the ranks (link.c) ends this process then, as when one waits in a socket.
 *
 * The gradients themselves could lie in the segment and be added without a copy. But such memory has large
 * pages only where the administrator has allowed it (shmem_enabled); where they lie now, they have them.
 *
 * Rank 0 makes the segment as a file without a name (memfd): however the ranks end, nothing is left. The
 * others open it by way of /proc.
 */
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/comm.h"

enum {
    CHUNK = 1 << 16, /* values: 256 KB, so that what is put is still in the caches when it is added */
    PUT_AHEAD = 4,   /* chunks that are put before one is taken, and added */
    ADD_AHEAD = 2,
    /* A slot is written again without asking whether it is still read. Who puts chunk p has taken
     * p - PUT_AHEAD, so all others have put that one, and have taken p - 2 PUT_AHEAD, which was in the slot.
     * A power of two: the numbers of chunks wrap around. */
    DEPTH = 2 * PUT_AHEAD,
};
/* Number of a run's first chunk: counters wrap around in its first updates, not in its second week. */
#define FIRST (UINT32_MAX - 20)

/* Chunks that a rank has done. */
typedef struct Counter {
    _Alignas(64) _Atomic uint32_t done; /* modulo 2^32 */
    _Atomic uint32_t sleepers;
} Counter;

/* What a rank does with a chunk and others wait for. */
typedef enum Stage { PUT, ADDED, STAGES } Stage;

/* The beginning of the segment. What follows, at SLOTS_AT of the number of ranks, are the slots. */
typedef struct Shared {
    uint64_t token, bytes; /* of the run: a file found by number may be anybody's */
    Counter counter[][STAGES];
} Shared;

struct Segment {
    const Comm *comm;
    Shared *shared;
    float *slot; /* [size][DEPTH][CHUNK] */
    uint32_t before; /* chunks of the sums before this one */
};

/* ---- waiting -------------------------------------------------------------------------------------- */

static void futex(_Atomic uint32_t *word, int op, uint32_t value) {
    syscall(SYS_futex, word, op, value, NULL, NULL, 0); /* whatever it returns: the caller looks again */
}

/* This rank has done stage s of one chunk more. All see these writes and reads in one order: either the
 * sleeper sees the new count, or we see the sleeper. */
static void advance(Segment *g, Stage s) {
    Counter *c = &g->shared->counter[g->comm->rank][s];
    atomic_fetch_add(&c->done, 1);
    if (atomic_load(&c->sleepers)) futex(&c->done, FUTEX_WAKE, INT32_MAX);
}

/* Waits until every other rank has done stage s of `chunks` chunks. */
static void await(Segment *g, Stage s, uint32_t chunks) {
    for (int r = 0; r < g->comm->size; r++) {
        Counter *c = &g->shared->counter[r][s];
        uint32_t done;
        if (r == g->comm->rank) continue;
        while ((int32_t)((done = atomic_load(&c->done)) - chunks) < 0) {
            atomic_fetch_add(&c->sleepers, 1);
            if (atomic_load(&c->done) == done) futex(&c->done, FUTEX_WAIT, done);
            atomic_fetch_sub(&c->sleepers, 1);
        }
    }
}

/* ---- sums ----------------------------------------------------------------------------------------- */

static float *slot_of(const Segment *g, int rank, uint32_t chunk) {
    return g->slot + ((size_t)rank * DEPTH + chunk % DEPTH) * CHUNK;
}

static void put(Segment *g, uint32_t chunk, const float *x, int64_t n) {
    memcpy(slot_of(g, g->comm->rank, chunk), x, (size_t)n * sizeof *x);
    advance(g, PUT);
}

static void add(Segment *g, uint32_t chunk, int64_t n) {
    const Comm *c = g->comm;
    float *piece[c->size];
    const int64_t lo = comm_share(c, n, c->rank);
    await(g, PUT, chunk + 1);
    if (c->size == 2) return;
    for (int r = 0; r < c->size; r++) piece[r] = slot_of(g, r, chunk) + lo; /* others do not look there */
    comm_tree(piece, c->size, comm_share(c, n, c->rank + 1) - lo);
    advance(g, ADDED);
}

static void take(Segment *g, uint32_t chunk, float *x, int64_t n) {
    if (g->comm->size == 2) { /* a + b is b + a, to the bit */
        comm_tree((float *[]){x, slot_of(g, !g->comm->rank, chunk)}, 2, n);
    } else {
        await(g, ADDED, chunk + 1);
        memcpy(x, slot_of(g, 0, chunk), (size_t)n * sizeof *x);
    }
}

void segment_sum(Segment *g, float *x, int64_t n) {
    const int64_t chunks = (n + CHUNK - 1) / CHUNK;
    int64_t nput = 0, nadded = 0;
#define CHUNK_OF(k) x + (k) * CHUNK, MIN(n - (k) * CHUNK, CHUNK)
    for (int64_t k = 0; k < chunks; k++) {
        for (; nput < MIN(k + PUT_AHEAD, chunks); nput++) put(g, g->before + (uint32_t)nput, CHUNK_OF(nput));
        for (; nadded < MIN(k + ADD_AHEAD, chunks); nadded++)
            add(g, g->before + (uint32_t)nadded, MIN(n - nadded * CHUNK, CHUNK));
        take(g, g->before + (uint32_t)k, CHUNK_OF(k));
    }
    g->before += (uint32_t)chunks;
}

/* ---- the segment ---------------------------------------------------------------------------------- */

static size_t slots_at(int ranks) {
    return (sizeof(Shared) + (size_t)ranks * STAGES * sizeof(Counter) + 4095) & ~(size_t)4095;
}

static size_t bytes_of(int ranks) {
    return slots_at(ranks) + (size_t)ranks * DEPTH * CHUNK * sizeof(float);
}

/* The file of rank 0, and what must be in it. */
typedef struct Offer { int32_t fd; uint64_t token; } Offer;

/* -1: this system has none. The memory is asked for now: lack of it would be a signal in a sum. */
static int make(int ranks) {
    char name[32];
    snprintf(name, sizeof name, "vpdistill.%d", (int)getpid());
    const int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || !posix_fallocate(fd, 0, (off_t)bytes_of(ranks))) return fd;
    close(fd);
    return -1;
}

static Shared *map(int fd, size_t bytes) {
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || st.st_size != (off_t)bytes) return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

Segment *segment_open(Comm *c) {
    const size_t bytes = bytes_of(c->size);
    const double now = now_s();
    Offer offer = {-1, hash_bytes(&now, sizeof now, c->token + (uint64_t)getpid())};
    Shared *shared = NULL;
    if (c->local_size < c->size) return NULL; /* the same on all ranks */
    if (!c->rank && (shared = map(offer.fd = make(c->size), bytes))) {
        shared->token = offer.token;
        shared->bytes = bytes;
        for (int r = 0; r < c->size; r++)
            for (int stage = 0; stage < STAGES; stage++) shared->counter[r][stage].done = FIRST;
    }
    comm_broadcast(c, "shared memory", &offer, sizeof offer);
    if (c->rank && offer.fd >= 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", link_peer(c->link, 0)->pid, offer.fd);
        const int fd = open(path, O_RDWR | O_CLOEXEC);
        shared = map(fd, bytes);
        if (fd >= 0) close(fd);
        /* Another file: two machines of one name. */
        if (shared && (shared->token != offer.token || shared->bytes != bytes)) {
            munmap(shared, bytes);
            shared = NULL;
        }
    }
    double have = shared != NULL;
    comm_sum(c, "shared memory", &have, 1);
    if (!c->rank && offer.fd >= 0) close(offer.fd);
    if (have < c->size) { /* all of them or none */
        if (shared) munmap(shared, bytes);
        return NULL;
    }
    Segment *g = xcalloc(1, sizeof *g);
    *g = (Segment){c, shared, (float *)((char *)shared + slots_at(c->size)), FIRST};
    return g;
}

void segment_close(Segment *g) {
    if (!g) return;
    munmap(g->shared, bytes_of(g->comm->size));
    free(g);
}
