/* comm.c -- collectives over any transport, and the thread that carries sums out. See comm.h.
 *
 * A sum of n values over R ranks: each rank owns a share, is sent the R - 1 others' values of it, adds them as a binary tree
 * over the ranks, and sends the result back: 2 n (R - 1) / R values each way, the least possible. A ring moves as much and
 * needs no R sockets, but adds in an order that depends on where in the ring a value lies.
 */
#include "engine/comm.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

static Comm world = {.size = 1, .local_size = 1};

Comm *comm_world(void) { return &world; }

/* ---- opening -------------------------------------------------------------------------------------- */

static const Transport *choose(const Config *cfg, const Launch *l, Error *e) {
#ifdef WITH_MPI
    if (cfg->run.comm == COMM_MPI || (!strcmp(l->by, "mpirun") && cfg->run.comm != COMM_TCP)) return &transport_mpi;
#endif
    if (cfg->run.comm != COMM_MPI) return &transport_tcp;
    fail_as(e, FAIL_CONFIG, "%s started rank %d with run.comm=mpi, but this vpdistill was built without MPI (make MPI=1)", l->by,
            l->rank);
    return NULL;
}

/* What may not differ between ranks: everything in the configuration. */
static uint64_t config_hash(const Config *cfg) {
    static char text[65536];
    FILE *f = fmemopen(text, sizeof text, "w");
    config_print(f, cfg);
    fclose(f);
    return hash_bytes(text, strlen(text), 1);
}

static void *carry(void *arg);

bool comm_open(const Config *cfg, Error *e) {
    Comm *c = &world;
    Launch l;
    if (!launch_detect(&l, cfg->run.launcher, e)) return false;
    c->rank = l.rank;
    c->size = l.size;
    c->local_rank = MAX(l.local_rank, 0);
    c->reproducible = cfg->run.reproducible;
    c->shard = cfg->run.shard_optimizer && l.size > 1;
    if (cfg->run.reproducible && (cfg->run.parts % l.size || cfg->run.parts & (cfg->run.parts - 1)))
        return fail_as(e, FAIL_CONFIG,
                       "run.reproducible: run.parts is %d; it must be a power of two that %d ranks divide", cfg->run.parts,
                       l.size);
    if (l.size == 1) return true;
    LinkConfig lc = {&l, cfg->run.comm_timeout_s, config_hash(cfg), 0, -1};
    if (!(c->host = choose(cfg, &l, e)) || (c->host->prepare && !c->host->prepare(c, &l, &lc, e))) return false;
    if (!*l.address)
        return fail_as(e, FAIL_CONFIG,
                       "rank %d of %d, started by %s on several hosts: set MASTER_ADDR to the host of rank 0 (mpirun -x "
                       "MASTER_ADDR=...)", l.rank, l.size, l.by);
    c->token = l.token;
    if (!(c->link = link_open(&lc, e))) return false;
    c->local_size = 0;
    for (int r = 0, lower = 0; r < c->size; r++) {
        if (link_peer(c->link, r)->machine != link_peer(c->link, c->rank)->machine) continue;
        c->local_size++;
        if (r < c->rank) lower++;
        if (l.local_rank < 0) c->local_rank = lower;
    }
    link_hooks(c->link, c->host->poll, c->host->abort, c);
    if (c->host->open && !c->host->open(c, NULL, e)) {
        if (link_fail(c->link, e->status, e->text)) *e->text = 0;
        return false;
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    sigset_t all, old; /* signals are for the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&c->thread, NULL, carry, c)) die(FAIL_MEMORY, "the thread of the collectives could not be started");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (c->host == &transport_tcp && cfg->run.comm == COMM_AUTO) c->segment = segment_open(c);
    log_rank(c->rank);
    info("%d ranks, started by %s, over %s", c->size, l.by, comm_over(c));
    return true;
}

const char *comm_over(const Comm *c) {
    return c->device ? c->device->name : c->segment ? "shared memory" : c->host->name;
}

bool comm_use_device(Comm *c, Device *dev, const Config *cfg, Error *e) {
    if (c->size == 1 || !strcmp(dev->name, "cpu")) {
        if (cfg->run.comm == COMM_NCCL && c->size > 1)
            return fail_as(e, FAIL_CONFIG, "run.comm is nccl, but run.device is cpu");
        return true;
    }
#ifdef WITH_NCCL
    if (cfg->run.comm != COMM_AUTO && cfg->run.comm != COMM_NCCL)
        return fail_as(e, FAIL_CONFIG, "run.device is %s: its ranks talk through run.comm nccl", dev->name);
    return comm_attach(c, &transport_nccl, dev, e);
#else
    return fail_as(e, FAIL_CONFIG, "%d ranks on %s: this vpdistill was built without NCCL (make CUDA=1)", c->size, dev->name);
#endif
}

bool comm_attach(Comm *c, const Transport *t, Device *dev, Error *e) {
    if (!t->open(c, dev, e)) return false;
    c->device = t;
    c->dev = dev;
    link_hooks(c->link, t->poll, t->abort, c);
    return true;
}

void comm_close(void) {
    Comm *c = &world;
    if (!c->link) return;
    comm_barrier(c, "end");
    if (c->busy_s > 0)
        info("sums of gradients took %.2f s beside the computation, which waited %.2f s for them", c->busy_s,
             c->waited_s);
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    if (c->device && c->device->close) c->device->close(c);
    link_close(c->link); /* before the transport: MPI_Finalize may wait for others without end */
    segment_close(c->segment);
    if (c->host->close) c->host->close(c);
    free(c->device_state);
    free(c->pieces);
    *c = (Comm){.size = 1, .local_size = 1};
}

bool comm_fail(Status s, const char *text) { return world.link && link_fail(world.link, s, text); }

void comm_step(Comm *c, int64_t step) {
    if (c->link) link_step(c->link, step);
}

int comm_threads(const Comm *c, int asked) {
    cpu_set_t set;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (asked || c->local_size == 1 || sched_getaffinity(0, sizeof set, &set) || CPU_COUNT(&set) < cores) return asked;
    return MAX((int)cores / c->local_size, 1);
}

/* ---- sums of gradients ---------------------------------------------------------------------------- */

static void add(float *restrict y, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

void comm_tree(float *const *x, int count, int64_t n) {
    for (int stride = 1; stride < count; stride *= 2)
        for (int i = 0; i + stride < count; i += 2 * stride) add(x[i], x[i + stride], n);
}

static void share_out(Comm *c, float *x, int64_t n) {
    const Transport *t = c->host;
    const int64_t lo = comm_share(c, n, c->rank), mine = comm_share(c, n, c->rank + 1) - lo;
    for (int s = 1; s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        int64_t at = comm_share(c, n, from), len = comm_share(c, n, from + 1) - at;
        t->exchange(c, to, x + lo, (size_t)mine * 4, from, x + at, (size_t)len * 4);
    }
}

static void sum_by_exchange(Comm *c, float *x, int64_t n) {
    const int64_t lo = comm_share(c, n, c->rank), mine = comm_share(c, n, c->rank + 1) - lo;
    float *piece[c->size];
    GROW(c->pieces, c->pieces_cap, mine * (c->size - 1));
    for (int r = 0, k = 0; r < c->size; r++) piece[r] = r == c->rank ? x + lo : c->pieces + mine * k++;
    for (int s = 1; s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        int64_t at = comm_share(c, n, to), len = comm_share(c, n, to + 1) - at;
        c->host->exchange(c, to, x + at, (size_t)len * 4, from, piece[from], (size_t)mine * 4);
    }
    comm_tree(piece, c->size, mine);
    if (c->rank && mine) memcpy(x + lo, piece[0], (size_t)mine * 4);
    share_out(c, x, n);
}

static void sum_now(Comm *c, const Sum *s) {
    if (c->segment)
        segment_sum(c->segment, s->x, s->n);
    else if (c->host->sum && !c->reproducible)
        c->host->sum(c, s->x, s->n);
    else
        sum_by_exchange(c, s->x, s->n);
}

/* The thread that carries out sums, in the order in which they began. */
static void *carry(void *arg) {
    Comm *c = arg;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->stop && c->done == c->queued) pthread_cond_wait(&c->changed, &c->lock);
        if (c->done == c->queued) break;
        Sum s = c->queue[c->done % COUNT_OF(c->queue)];
        pthread_mutex_unlock(&c->lock);
        double began = now_s();
        link_collective(c->link, s.what, s.n);
        sum_now(c, &s);
        pthread_mutex_lock(&c->lock);
        c->busy_s += now_s() - began;
        c->done++;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

void comm_sum_begin(Comm *c, const char *what, float *x, int64_t n) {
    if (c->size == 1 || !n) return;
    if (c->device) {
        link_collective(c->link, what, n);
        c->device->sum(c, x, n);
        c->afloat = true;
        return;
    }
    pthread_mutex_lock(&c->lock);
    while (c->queued - c->done == COUNT_OF(c->queue)) pthread_cond_wait(&c->changed, &c->lock);
    c->queue[c->queued++ % COUNT_OF(c->queue)] = (Sum){what, x, n};
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* The host waits for the device. An aborted collective lets its stream go on with anything, so who reads
 * without asking may write a checkpoint of garbage before the process ends. It costs nothing: what follows
 * a sum is the gradient's norm, for which the host waits anyway. */
static void wait_for_device(Comm *c) {
    Error e = {0};
    c->dev->sync(c->dev);
    link_intact(c->link);
    if (c->device->poll && !c->device->poll(c, &e)) link_lost(c->link, -1, e.text);
    c->afloat = false;
}

void comm_finish(Comm *c) {
    if (c->size == 1) return;
    double began = now_s();
    if (c->afloat) {
        c->device->finish(c);
        wait_for_device(c);
    }
    pthread_mutex_lock(&c->lock);
    c->hurry = true;
    while (c->done < c->queued) pthread_cond_wait(&c->changed, &c->lock);
    c->hurry = false;
    c->waited_s += now_s() - began;
    pthread_mutex_unlock(&c->lock);
}

/* ---- the others: by the calling thread, when no sum is under way ---------------------------------- */

static bool begin(Comm *c, const char *what, int64_t n) {
    if (c->size == 1) return false;
    comm_finish(c);
    link_collective(c->link, what, n);
    return true;
}

void comm_sum(Comm *c, const char *what, double *x, int n) {
    enum { MOST = 64 };
    double all[c->size][MOST];
    if (!begin(c, what, n)) return;
    CHECK(n <= MOST, "comm_sum of %d values", n);
    const size_t bytes = (size_t)n * sizeof *x;
    memcpy(all[c->rank], x, bytes);
    for (int s = 1; s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        c->host->exchange(c, to, x, bytes, from, all[from], bytes);
    }
    for (int stride = 1; stride < c->size; stride *= 2)
        for (int r = 0; r + stride < c->size; r += 2 * stride)
            for (int i = 0; i < n; i++) all[r][i] += all[r + stride][i];
    memcpy(x, all[0], bytes);
}

void comm_broadcast(Comm *c, const char *what, void *p, size_t bytes) {
    if (!begin(c, what, (int64_t)bytes)) return;
    if (c->rank) c->host->exchange(c, -1, NULL, 0, 0, p, bytes);
    for (int r = 1; r < c->size && !c->rank; r++) c->host->exchange(c, r, p, bytes, -1, NULL, 0);
}

void comm_barrier(Comm *c, const char *what) {
    double none = 0;
    comm_sum(c, what, &none, 1);
}

void *comm_gather(Comm *c, const char *what, const void *mine, size_t bytes, Arena *a, size_t *begin_of) {
    size_t size[c->size], at[c->size + 1];
    size[c->rank] = bytes;
    const bool several = begin(c, what, 0); /* the sizes may differ between ranks */
    for (int s = 1; s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        c->host->exchange(c, to, &bytes, sizeof bytes, from, &size[from], sizeof bytes);
    }
    at[0] = 0;
    for (int r = 0; r < c->size; r++) at[r + 1] = at[r] + size[r];
    char *all = arena_alloc(a, at[c->size]);
    if (bytes) memcpy(all + at[c->rank], mine, bytes);
    for (int s = 1; several && s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        c->host->exchange(c, to, mine, bytes, from, all + at[from], size[from]);
    }
    if (begin_of) memcpy(begin_of, at, sizeof at);
    return all;
}

void *comm_collect(Comm *c, const char *what, const void *mine, size_t bytes, size_t *begin_of) {
    size_t size[c->size];
    size[c->rank] = bytes;
    begin(c, what, 0);
    if (c->rank) {
        c->host->exchange(c, 0, &bytes, sizeof bytes, -1, NULL, 0);
        c->host->exchange(c, 0, mine, bytes, -1, NULL, 0);
        return NULL;
    }
    for (int r = 1; r < c->size; r++) c->host->exchange(c, -1, NULL, 0, r, &size[r], sizeof size[r]);
    begin_of[0] = 0;
    for (int r = 0; r < c->size; r++) begin_of[r + 1] = begin_of[r] + size[r];
    char *all = xcalloc(begin_of[c->size] + 1, 1);
    if (bytes) memcpy(all, mine, bytes);
    for (int r = 1; r < c->size; r++) c->host->exchange(c, -1, NULL, 0, r, all + begin_of[r], size[r]);
    return all;
}

bool comm_same(Comm *c, const char *what, uint64_t hash, Error *e) {
    uint64_t all[c->size];
    if (!begin(c, what, 8)) return true;
    all[c->rank] = hash;
    for (int s = 1; s < c->size; s++) {
        int to = (c->rank + s) % c->size, from = (c->rank - s + c->size) % c->size;
        c->host->exchange(c, to, &hash, sizeof hash, from, &all[from], sizeof hash);
    }
    for (int r = 1; r < c->size; r++)
        if (all[r] != all[0]) return fail_as(e, FAIL_PEER, "rank %d on %s has other %s than rank 0", r,
                                             link_peer(c->link, r)->host, what);
    return true;
}

void comm_all_gather(Comm *c, const char *what, float *x, int64_t n) {
    if (!begin(c, what, n)) return;
    if (c->device) {
        c->device->gather(c, x, n);
        wait_for_device(c);
    } else {
        share_out(c, x, n);
    }
}

void comm_to_root(Comm *c, const char *what, const float *mine, float *all, int64_t n) {
    const int64_t len = comm_share(c, n, c->rank + 1) - comm_share(c, n, c->rank);
    const bool several = begin(c, what, n);
    if (!c->rank) memcpy(all, mine, (size_t)len * 4);
    if (c->rank) c->host->exchange(c, 0, mine, (size_t)len * 4, -1, NULL, 0);
    for (int r = 1; several && r < c->size && !c->rank; r++) {
        int64_t at = comm_share(c, n, r);
        c->host->exchange(c, -1, NULL, 0, r, all + at, (size_t)(comm_share(c, n, r + 1) - at) * 4);
    }
}
