/* comm.h -- collectives over the ranks of a run.
 *
 * One process is one rank. What carries the bytes is a Transport: comm_tcp.c (always there), comm_mpi.c (MPI=1), comm_nccl.c
 * (CUDA=1). Beside comm_tcp.c, ranks that share a host sum gradients in shared memory: comm_shm.c. A
 * collective that cannot be finished does not return: the job ends on all ranks (link.h). Every rank must make
 * the same collectives in the same order; `what` names one for people, and for the check that they do.
 * With one rank all of this returns at once. Next: reduce.h, the gradients' way; comm_tcp.c, the simplest transport.
 */
#pragma once
#include <pthread.h>

#include "engine/arena.h"
#include "engine/config.h"
#include "engine/link.h"

typedef struct Comm Comm;

/* How bytes get from rank to rank. Host memory, but for a transport with `device` set. */
typedef struct Transport {
    const char *name;
    bool device;
    /* Before the ranks meet: may listen (and say so in link->data_port), or know the meeting point. NULL: nothing to do. */
    bool (*prepare)(Comm *c, Launch *launch, LinkConfig *link, Error *e);
    bool (*open)(Comm *c, Device *dev, Error *e);
    /* Sends n bytes to `to` while m bytes from `from` are received. A negative rank: nothing in that direction. */
    void (*exchange)(Comm *c, int to, const void *send, size_t n, int from, void *recv, size_t m);
    /* Sums x over the ranks in the library's own order; NULL: comm.c does it with exchange, in a fixed
     * one. A device transport queues it behind what the device's main stream holds, and finish lets the
     * main stream wait for it; comm.c then lets the host wait, and asks whether what it waited for has
     * happened (link_intact). */
    void (*sum)(Comm *c, float *x, int64_t n);
    void (*finish)(Comm *c);
    void (*gather)(Comm *c, float *x, int64_t n); /* device transports: comm_all_gather */
    bool (*poll)(void *comm, Error *e); /* link_hooks */
    void (*abort)(void *comm);
    void (*close)(Comm *c);
} Transport;
extern const Transport transport_tcp, transport_mpi, transport_nccl;

/* Memory that all ranks see, for sums in the order of comm_tree. NULL, on all ranks: not all are on one host,
 * or one of them may not share it. */
typedef struct Segment Segment;
Segment *segment_open(Comm *c);
void segment_sum(Segment *g, float *x, int64_t n);
void segment_close(Segment *g);

typedef struct Sum { const char *what; float *x; int64_t n; } Sum;

struct Comm {
    int rank, size, local_rank, local_size; /* local: on this host */
    bool reproducible;
    bool shard;                             /* each rank keeps its share of AdamW's moments: ZeRO-1 (Rajbhandari et al. 2020) */
    Link *link;                             /* NULL: one rank */
    const Transport *host, *device;         /* device NULL: gradients are in host memory */
    void *host_state, *device_state;        /* the transports' own */
    Segment *segment;                       /* for sums in host memory, instead of `host`; may be NULL */
    Device *dev;                            /* of `device` */
    bool afloat;                            /* sums are queued there that comm_finish has not waited for */
    uint64_t token;
    /* Sums that have begun: a thread of their own carries them out in order (comm.c). */
    Sum queue[64];
    int64_t queued, done;
    bool stop, hurry;                       /* hurry: somebody waits */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    float *pieces;                          /* of the other ranks, to be added */
    int64_t pieces_cap;
    double waited_s;                        /* in comm_finish; on a device for its backward pass, too */
    double busy_s;                          /* of the thread, in sums */
};

/* The ranks of this process's run: one until comm_open. */
Comm *comm_world(void);
/* Finds out who launched us and meets the other ranks. */
bool comm_open(const Config *cfg, Error *e);
/* Gradients live on `dev` from now on: a device in its own memory needs a transport that reads it. */
bool comm_use_device(Comm *c, Device *dev, const Config *cfg, Error *e);
/* Gradients go over t from now on. */
bool comm_attach(Comm *c, const Transport *t, Device *dev, Error *e);
/* The orderly end: all ranks get here. */
void comm_close(void);
/* This rank fails with a sentence: the others end too. True: it was printed, by rank 0. */
bool comm_fail(Status s, const char *text);

/* What carries sums of gradients, for people. */
const char *comm_over(const Comm *c);

/* This rank is in update `step`: what others say of it when it dies. */
void comm_step(Comm *c, int64_t step);

/* x summed over the ranks in a fixed tree order; for counts and losses. */
void comm_sum(Comm *c, const char *what, double *x, int n);
/* Rank 0's bytes to all. */
void comm_broadcast(Comm *c, const char *what, void *p, size_t bytes);
void comm_barrier(Comm *c, const char *what);
/* What each rank gave, in order of ranks, in memory of a; *bytes of all, and *begin[size + 1] (may be NULL) where each begins. */
void *comm_gather(Comm *c, const char *what, const void *mine, size_t bytes, Arena *a, size_t *begin);
/* The same to rank 0 alone, in memory to be freed; NULL on the others. */
void *comm_collect(Comm *c, const char *what, const void *mine, size_t bytes, size_t *begin);
/* False when a rank has another hash than rank 0; e says which and of what. */
bool comm_same(Comm *c, const char *what, uint64_t hash, Error *e);

/* Begins the in-place sum of gradients x (n) over the ranks; comm_finish waits for all that have begun. x must not be touched
 * in between. The order of additions is fixed by the number of ranks; with `reproducible` it is the tree of comm_tree. */
void comm_sum_begin(Comm *c, const char *what, float *x, int64_t n);
void comm_finish(Comm *c);

/* Rank r's share of n values: comm_share(n, r) .. comm_share(n, r + 1). */
static inline int64_t comm_share(const Comm *c, int64_t n, int rank) { return n / c->size * rank + MIN(n % c->size, rank); }
/* Every rank has its share of x (n): afterwards each has all. */
void comm_all_gather(Comm *c, const char *what, float *x, int64_t n);
/* Rank r has its share in mine: rank 0 gets all (n); `all` is not looked at on others. */
void comm_to_root(Comm *c, const char *what, const float *mine, float *all, int64_t n);

/* CPU threads of this rank: `asked`, or when 0 its part of the cores that it shares with the host's other ranks (0: all are
 * its own, as when the launcher has bound it to some). */
int comm_threads(const Comm *c, int asked);

/* Sums count arrays of n values into the first: pairs, pairs of pairs ... Whoever adds the parts of a batch in this order gets
 * the same bits as ranks that each hold a whole branch of the tree. */
void comm_tree(float *const *x, int count, int64_t n);
