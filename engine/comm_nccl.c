/* comm_nccl.c -- gradients in device memory, over NCCL (CUDA=1). See comm.h.
 *
 * Sums are queued on the device's comm stream behind what the compute stream holds; the host waits for them
 * once, in comm_finish. The communicator is non-blocking, so that no call of ours hangs in the library when
 * another rank is gone; the thread that watches the ranks (link.c) asks for NCCL's own errors and aborts.
 * Counts, hashes and the communicator's id go over the host transport, which knows who belongs to this run.
 */
#include <nccl.h>
#include <time.h>

#include "engine/comm.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops.h"

typedef struct Nccl {
    ncclComm_t comm;
    Device *dev;
    /* Held during every call that names the communicator: the watching thread asks it for errors and
     * aborts it while the main thread queues. The calls return at once, the communicator does not block. */
    pthread_mutex_t lock;
    bool stands, aborted;
    float *pieces;  /* device memory: the other ranks' values of our share, to be added */
    int64_t pieces_cap;
} Nccl;

/* An aborted communicator is freed memory: whoever still wants to use it waits here for the end of the
 * process. */
static void enter(Comm *c) {
    Nccl *n = c->device_state;
    pthread_mutex_lock(&n->lock);
    if (!n->aborted) return;
    pthread_mutex_unlock(&n->lock);
    link_intact(c->link);
}

/* The error that the communicator has come to in the background. */
static ncclResult_t state_of(Nccl *n) {
    ncclResult_t r = ncclSuccess, asked = ncclCommGetAsyncError(n->comm, &r);
    return asked == ncclSuccess ? r : asked;
}

/* The end of a call that enter began: a non-blocking communicator answers at once and goes on in the
 * background. */
static void leave(Comm *c, ncclResult_t r, const char *call) {
    Nccl *n = c->device_state;
    while (r == ncclInProgress) {
        pthread_mutex_unlock(&n->lock);
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        enter(c);
        r = state_of(n);
    }
    char text[400];
    if (r != ncclSuccess)
        snprintf(text, sizeof text, "%s: %s (%.200s)", call, ncclGetErrorString(r),
                 ncclGetLastError(n->comm));
    pthread_mutex_unlock(&n->lock);
    if (r != ncclSuccess) link_lost(c->link, -1, text);
}
#define NCCL_CHECK(c, call) (enter(c), leave((c), (call), #call))

static bool nccl_open(Comm *c, Device *dev, Error *e) {
    Nccl *n = c->device_state = xcalloc(1, sizeof *n);
    ncclUniqueId id = {0};
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    (void)e;
    config.blocking = 0;
    n->dev = dev;
    pthread_mutex_init(&n->lock, NULL);
    if (!c->rank) NCCL_CHECK(c, ncclGetUniqueId(&id));
    comm_broadcast(c, "NCCL's id", &id, sizeof id);
    NCCL_CHECK(c, ncclCommInitRankConfig(&n->comm, c->size, id, c->rank, &config));
    pthread_mutex_lock(&n->lock);
    n->stands = true;
    pthread_mutex_unlock(&n->lock);
    return true;
}

/* ---- the fixed tree ------------------------------------------------------------------------------- */

/* Every pair of ranks at once: `out` values to each, `in` values from each, at these places of these buffers. */
typedef struct Swap { float *out, *in; int64_t nout, nin; } Swap;

static void swap_all(Comm *c, const Swap *with) {
    Nccl *n = c->device_state;
    cudaStream_t s = n->dev->comm->cuda;
    NCCL_CHECK(c, ncclGroupStart());
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank) continue;
        if (with[r].nout) NCCL_CHECK(c, ncclSend(with[r].out, (size_t)with[r].nout, ncclFloat32, r, n->comm, s));
        if (with[r].nin) NCCL_CHECK(c, ncclRecv(with[r].in, (size_t)with[r].nin, ncclFloat32, r, n->comm, s));
    }
    NCCL_CHECK(c, ncclGroupEnd());
}

static void nccl_share(Comm *c, float *x, int64_t total) {
    Swap with[c->size];
    const int64_t lo = comm_share(c, total, c->rank), mine = comm_share(c, total, c->rank + 1) - lo;
    for (int r = 0; r < c->size; r++) {
        int64_t at = comm_share(c, total, r);
        with[r] = (Swap){x + lo, x + at, mine, comm_share(c, total, r + 1) - at};
    }
    swap_all(c, with);
}

/* As comm.c does it in host memory: each rank adds the pieces of its share as a tree over the ranks. The additions are ops of the
 * compute stream, which is what an Ops call of this device takes. */
static void sum_tree(Comm *c, float *x, int64_t total) {
    Nccl *n = c->device_state;
    Device *d = n->dev;
    Swap with[c->size];
    float *piece[c->size];
    const int64_t lo = comm_share(c, total, c->rank), mine = comm_share(c, total, c->rank + 1) - lo;
    if (mine * (c->size - 1) > n->pieces_cap) {
        d->sync(d);
        if (n->pieces) d->release(d, n->pieces, (size_t)n->pieces_cap * sizeof(float));
        n->pieces_cap = mine * (c->size - 1);
        n->pieces = d->alloc(d, (size_t)n->pieces_cap * sizeof(float));
    }
    d->after(d, d->comm, d->main);
    for (int r = 0, k = 0; r < c->size; r++) {
        int64_t at = comm_share(c, total, r);
        piece[r] = r == c->rank ? x + lo : n->pieces + mine * k++;
        with[r] = (Swap){x + at, piece[r], comm_share(c, total, r + 1) - at, mine};
    }
    swap_all(c, with);
    d->after(d, d->main, d->comm);
    for (int stride = 1; stride < c->size; stride *= 2)
        for (int r = 0; r + stride < c->size; r += 2 * stride)
            d->ops->accumulate(d->main, F32, piece[r], F32, piece[r + stride], mine);
    if (c->rank) d->ops->copy_rows(d->main, F32, x + lo, mine, piece[0], mine, 1, mine, false);
    d->after(d, d->comm, d->main);
    nccl_share(c, x, total);
}

static void nccl_sum(Comm *c, float *x, int64_t total) {
    Nccl *n = c->device_state;
    Device *d = n->dev;
    if (c->reproducible) {
        sum_tree(c, x, total);
        return;
    }
    d->after(d, d->comm, d->main);
    NCCL_CHECK(c, ncclAllReduce(x, x, (size_t)total, ncclFloat32, ncclSum, n->comm, d->comm->cuda));
}

static void nccl_finish(Comm *c) {
    Device *d = ((Nccl *)c->device_state)->dev;
    d->after(d, d->main, d->comm);
}

static void nccl_gather(Comm *c, float *x, int64_t total) {
    Device *d = ((Nccl *)c->device_state)->dev;
    d->after(d, d->comm, d->main);
    nccl_share(c, x, total);
    d->after(d, d->main, d->comm);
}

/* ---- the end -------------------------------------------------------------------------------------- */

static bool nccl_poll(void *comm, Error *e) {
    Nccl *n = ((Comm *)comm)->device_state;
    pthread_mutex_lock(&n->lock);
    const ncclResult_t r = n->stands ? state_of(n) : ncclSuccess;
    const bool ok = r == ncclSuccess || r == ncclInProgress;
    if (!ok) fail_as(e, FAIL_PEER, "NCCL: %s (%.200s)", ncclGetErrorString(r), ncclGetLastError(n->comm));
    pthread_mutex_unlock(&n->lock);
    return ok;
}

static void *abort_now(void *comm) {
    Nccl *n = ((Comm *)comm)->device_state;
    pthread_mutex_lock(&n->lock);
    const bool stood = n->stands;
    n->stands = false;
    n->aborted = true;
    pthread_mutex_unlock(&n->lock);
    if (stood) ncclCommAbort(n->comm);
    return NULL;
}

/* Frees the kernels that wait on the card. The library may itself wait for a dead connection, so it gets a second. */
static void nccl_abort(void *comm) {
    pthread_t t;
    struct timespec until;
    if (pthread_create(&t, NULL, abort_now, comm)) return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_timedjoin_np(t, NULL, &until);
}

static void nccl_close(Comm *c) {
    Nccl *n = c->device_state;
    n->dev->sync(n->dev);
    NCCL_CHECK(c, ncclCommFinalize(n->comm));
    pthread_mutex_lock(&n->lock);
    n->stands = false;
    pthread_mutex_unlock(&n->lock);
    ncclCommDestroy(n->comm);
    if (n->pieces) n->dev->release(n->dev, n->pieces, (size_t)n->pieces_cap * sizeof(float));
} /* comm.c frees the state when the watching thread, which asks nccl_poll, is gone */

const Transport transport_nccl = {.name = "NCCL",
                                  .device = true,
                                  .open = nccl_open,
                                  .sum = nccl_sum,
                                  .finish = nccl_finish,
                                  .gather = nccl_gather,
                                  .poll = nccl_poll,
                                  .abort = nccl_abort,
                                  .close = nccl_close};
