/* standin.c -- NCCL's calls and CUDA's streams in host memory, for the tests of comm_nccl.c. See nccl.h.
 *
 * Ranks are processes that share a memory file. A collective waits for the others as NCCL's kernels do: until
 * they come or the communicator is aborted, never by a time limit of its own; an aborted one leaves garbage,
 * with which its stream goes on. Communicators start and finish in the background (ncclInProgress), as
 * non-blocking ones do. What this cannot show: NCCL's own protocols, the card's memory order.
 */
#include <nccl.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/base.h"

enum { RANKS = 4, VALUES = 1 << 18 };

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL); }

/* ---- streams -------------------------------------------------------------------------------------- */

typedef struct Work {
    void (*fn)(void *);
    _Alignas(16) char arg[128];
} Work;

struct StandinStream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Work queue[256];
    int64_t queued, done;
    unsigned seed;
};

static void *run(void *arg) {
    struct StandinStream *s = arg;
    for (;;) {
        pthread_mutex_lock(&s->lock);
        while (s->done == s->queued) pthread_cond_wait(&s->changed, &s->lock);
        Work w = s->queue[s->done % COUNT_OF(s->queue)];
        pthread_mutex_unlock(&s->lock);
        nanosleep(&(struct timespec){.tv_nsec = rand_r(&s->seed) % 2000000}, NULL);
        w.fn(w.arg);
        pthread_mutex_lock(&s->lock);
        s->done++;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

cudaStream_t standin_stream(unsigned seed) {
    struct StandinStream *s = xcalloc(1, sizeof *s);
    s->seed = seed;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    CHECK(!pthread_create(&s->thread, NULL, run, s), "thread");
    return s;
}

void standin_queue(cudaStream_t s, void (*fn)(void *), const void *arg, size_t bytes) {
    Work w = {.fn = fn};
    CHECK(bytes <= sizeof w.arg, "%zu bytes of arguments", bytes);
    memcpy(w.arg, arg, bytes);
    pthread_mutex_lock(&s->lock);
    while (s->queued - s->done == COUNT_OF(s->queue)) pthread_cond_wait(&s->changed, &s->lock);
    s->queue[s->queued++ % COUNT_OF(s->queue)] = w;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

typedef struct Until { cudaStream_t other; int64_t done; } Until;

static void wait_until(void *arg) {
    Until *u = arg;
    pthread_mutex_lock(&u->other->lock);
    while (u->other->done < u->done) pthread_cond_wait(&u->other->changed, &u->other->lock);
    pthread_mutex_unlock(&u->other->lock);
}

void standin_after(cudaStream_t s, cudaStream_t other) {
    pthread_mutex_lock(&other->lock);
    Until u = {other, other->queued};
    pthread_mutex_unlock(&other->lock);
    standin_queue(s, wait_until, &u, sizeof u);
}

void standin_sync(cudaStream_t s) {
    Until u = {s, s->queued};
    wait_until(&u);
}

/* ---- communicators -------------------------------------------------------------------------------- */

typedef struct Shared {
    _Atomic int joined, finished;
    _Atomic int64_t arrived[RANKS], left[RANKS]; /* all-reduces begun and read */
    int64_t count[RANKS];                        /* its size, which all must agree on */
    float value[RANKS][VALUES];
    struct { _Atomic int full; float value[VALUES]; } box[RANKS][RANKS]; /* [from][to] */
} Shared;

struct StandinComm {
    int rank, size;
    Shared *shared;
    _Atomic int error, aborted, finishing;
    int64_t reduced;
    int calls;
};

int standin_fail_after = -1;

static struct Transfer { ncclComm_t comm; float *p; size_t n; int peer; bool send; } group[64];
static int ngroup;
static bool grouping;
static cudaStream_t group_stream;

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    int fd = memfd_create("standin-nccl", 0);
    CHECK(fd >= 0 && !ftruncate(fd, sizeof(Shared)), "memfd");
    snprintf(id->internal, sizeof id->internal, "/proc/%d/fd/%d", (int)getpid(), fd);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    CHECK(ranks <= RANKS && !config->blocking, "%d ranks, blocking %d", ranks, config->blocking);
    ncclComm_t c = *comm = xcalloc(1, sizeof *c);
    int fd = open(id.internal, O_RDWR);
    if (fd < 0) return ncclSystemError;
    *c = (struct StandinComm){.rank = rank, .size = ranks};
    c->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    CHECK(c->shared != MAP_FAILED, "mmap");
    atomic_fetch_add(&c->shared->joined, 1);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error) {
    *error = c->error ? (ncclResult_t)c->error
             : c->shared->joined < c->size || (c->finishing && c->shared->finished < c->size) ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

/* What an aborted kernel leaves behind is anything; its stream goes on with it. */
static void spoil(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = -12345;
}

/* Waits for *p to reach `at`; false when aborted. */
static bool reach(ncclComm_t c, _Atomic int64_t *p, int64_t at) {
    while (atomic_load(p) < at) {
        if (c->aborted) return false;
        nap();
    }
    return true;
}

typedef struct Reduce { ncclComm_t comm; float *x; size_t n; } Reduce;

static void reduce(void *arg) {
    Reduce *r = arg;
    ncclComm_t c = r->comm;
    Shared *s = c->shared;
    const int64_t turn = ++c->reduced;
    for (int k = 0; k < c->size; k++)
        if (!reach(c, &s->left[k], turn - 1)) return spoil(r->x, r->n);
    memcpy(s->value[c->rank], r->x, r->n * sizeof(float));
    s->count[c->rank] = (int64_t)r->n;
    atomic_store(&s->arrived[c->rank], turn);
    for (int k = 0; k < c->size; k++)
        if (!reach(c, &s->arrived[k], turn)) return spoil(r->x, r->n);
    for (int k = 0; k < c->size; k++)
        if (s->count[k] != (int64_t)r->n) c->error = ncclInvalidUsage;
    for (size_t i = 0; i < r->n; i++) {
        float sum = 0; /* from the last rank on: NCCL's order is its own */
        for (int k = c->size - 1; k >= 0; k--) sum += s->value[k][i];
        r->x[i] = sum;
    }
    atomic_store(&s->left[c->rank], turn);
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s) {
    if (send != recv || t != ncclFloat32 || op != ncclSum || n > VALUES) return ncclInvalidArgument;
    if (c->calls++ == standin_fail_after) c->error = ncclRemoteError;
    Reduce r = {c, recv, n};
    standin_queue(s, reduce, &r, sizeof r);
    return ncclSuccess;
}

typedef struct Group { struct Transfer *t; int n; } Group;

static void transfer(void *arg) {
    Group *g = arg;
    for (int way = 1; way >= 0; way--) /* sends first: they only wait for a box to be empty */
        for (int i = 0; i < g->n; i++) {
            struct Transfer *t = &g->t[i];
            ncclComm_t c = t->comm;
            if (t->send != way) continue;
            _Atomic int *full = t->send ? &c->shared->box[c->rank][t->peer].full : &c->shared->box[t->peer][c->rank].full;
            float *box = t->send ? c->shared->box[c->rank][t->peer].value : c->shared->box[t->peer][c->rank].value;
            while (atomic_load(full) == t->send && !c->aborted) nap();
            if (c->aborted) {
                if (!t->send) spoil(t->p, t->n);
                continue;
            }
            memcpy(t->send ? box : t->p, t->send ? t->p : box, t->n * sizeof(float));
            atomic_store(full, t->send);
        }
    free(g->t);
}

static ncclResult_t add(struct Transfer t, cudaStream_t s) {
    if (!grouping || ngroup == COUNT_OF(group) || t.n > VALUES) return ncclInvalidUsage;
    group[ngroup++] = t;
    group_stream = s;
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *send, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s) {
    return t == ncclFloat32 ? add((struct Transfer){c, (float *)send, n, peer, true}, s) : ncclInvalidArgument;
}

ncclResult_t ncclRecv(void *recv, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s) {
    return t == ncclFloat32 ? add((struct Transfer){c, recv, n, peer, false}, s) : ncclInvalidArgument;
}

ncclResult_t ncclGroupStart(void) {
    if (grouping) return ncclInvalidUsage;
    grouping = true;
    ngroup = 0;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (!grouping) return ncclInvalidUsage;
    grouping = false;
    Group g = {xcalloc((size_t)ngroup, sizeof *g.t), ngroup};
    memcpy(g.t, group, (size_t)ngroup * sizeof *g.t);
    if (ngroup) standin_queue(group_stream, transfer, &g, sizeof g);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c) {
    atomic_fetch_add(&c->shared->finished, 1);
    c->finishing = 1;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    munmap(c->shared, sizeof(Shared));
    free(c);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
    fprintf(stderr, "stand-in: rank %d aborts\n", c->rank);
    c->aborted = 1;
    nanosleep(&(struct timespec){.tv_nsec = 700000000},
              NULL); /* the streams run on while the library ends its connections */
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r) { return r == ncclRemoteError ? "remote process exited or there was a network error" : "an error"; }
const char *ncclGetLastError(ncclComm_t c) { return c ? "of the stand-in" : ""; }
