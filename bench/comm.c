/* comm.c -- `bench comm`: all-reduce, all-gather and broadcast between ranks, as training calls them
 * (engine/comm.h).
 *
 *   mpirun -n 4 vpdistill bench comm [all_reduce] [bench.mb=256] [run.comm=tcp]
 *
 * For messages of 1 KB, 4 KB .. bench.mb: the time from a barrier until the slowest rank has its result, the
 * algorithm bandwidth S / t, and the bus bandwidth, S / t times what nccl-tests documents (doc/PERFORMANCE.md
 * there), so that it can be compared with what the links carry whatever the number n of ranks:
 *   all-reduce   2 (n - 1) / n     each value must travel 2 (n - 1) times over n links
 *   all-gather   (n - 1) / n       S: what every rank has in the end
 *   broadcast    1
 * Bandwidths are in GB/s of 10^9 bytes. Results are checked once per size: small whole numbers, whose sums
 * are exact in any order.
 */
#include "bench/bench.h"

#include "engine/run.h"

enum { LEAST_BYTES = 1 << 10, FACTOR = 4, LEAST_RUNS = 20, MOST_RUNS = 2000, WARM = 3, OPTION_MB = 256 };

typedef struct Messages {
    Comm *comm;
    Device *dev;
    float *x; /* on the device */
    float *host;
    int64_t n; /* values of the message */
    Arena *arena;
} Messages;

static float of_rank(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 101); }

/* Every rank's part of the message: all of it (all-reduce), its share (all-gather), or rank 0's
 * (broadcast); the rest is -1. */
static void put(Messages *m, bool share, bool root) {
    const Comm *c = m->comm;
    const int64_t lo = share ? comm_share(c, m->n, c->rank) : 0,
                  hi = share ? comm_share(c, m->n, c->rank + 1) : m->n;
    for (int64_t i = 0; i < m->n; i++)
        m->host[i] = i >= lo && i < hi && !(root && c->rank) ? of_rank(c->rank, i) : -1;
    m->dev->upload(m->dev, m->x, m->host, (size_t)m->n * sizeof *m->x);
}

static void all_reduce(Messages *m) {
    comm_sum_begin(m->comm, "bench all-reduce", m->x, m->n);
    comm_finish(m->comm);
}
static float reduced(const Comm *c, int64_t n, int64_t i) {
    (void)n;
    float sum = 0;
    for (int r = 0; r < c->size; r++) sum += of_rank(r, i);
    return sum;
}
static double reduce_factor(int n) { return 2.0 * (n - 1) / n; }

static void all_gather(Messages *m) { comm_all_gather(m->comm, "bench all-gather", m->x, m->n); }
static float gathered(const Comm *c, int64_t n, int64_t i) {
    int r = 0;
    while (comm_share(c, n, r + 1) <= i) r++;
    return of_rank(r, i);
}
static double gather_factor(int n) { return (double)(n - 1) / n; }

/* The engine broadcasts host memory alone. */
static void broadcast(Messages *m) {
    comm_broadcast(m->comm, "bench broadcast", m->host, (size_t)m->n * sizeof *m->host);
}
static float sent(const Comm *c, int64_t n, int64_t i) { return (void)c, (void)n, of_rank(0, i); }
static double one(int n) { return (void)n, 1; }

typedef struct Collective {
    const char *name;
    void (*call)(Messages *m);
    float (*want)(const Comm *c, int64_t n, int64_t i);
    double (*factor)(int ranks);
    bool share, root, host;
} Collective;
static const Collective collectives[] = {
    {"all_reduce", all_reduce, reduced, reduce_factor, false, false, false},
    {"all_gather", all_gather, gathered, gather_factor, true, false, false},
    {"broadcast", broadcast, sent, one, false, true, true},
};

/* The longest time of any rank. */
static double slowest(Messages *m, double seconds) {
    const size_t mark = arena_mark(m->arena);
    const double *of = comm_gather(m->comm, "bench time", &seconds, sizeof seconds, m->arena, NULL);
    for (int r = 0; r < m->comm->size; r++) seconds = MAX(seconds, of[r]);
    arena_reset(m->arena, mark);
    return seconds;
}

static double one_time(Messages *m, const Collective *k) {
    comm_barrier(m->comm, "bench begin");
    const double from = now_s();
    k->call(m);
    m->dev->sync(m->dev);
    return slowest(m, now_s() - from);
}

/* Values that are wrong, over all ranks. */
static int64_t wrong(Messages *m, const Collective *k) {
    put(m, k->share, k->root);
    k->call(m);
    if (!k->host) m->dev->download(m->dev, m->host, m->x, (size_t)m->n * sizeof *m->x);
    double bad = 0;
    for (int64_t i = 0; i < m->n; i++) bad += m->host[i] != k->want(m->comm, m->n, i);
    comm_sum(m->comm, "bench check", &bad, 1);
    return (int64_t)bad;
}

/* Zeros from here on: what is summed over and over stays finite. */
static int64_t row(Messages *m, const Collective *k, double budget, Report *r) {
    static double seconds[MOST_RUNS];
    Comm *c = m->comm;
    const int64_t bad = wrong(m, k);
    const double bytes = (double)m->n * sizeof *m->x;
    int n = 0;
    m->dev->zero(m->dev, m->x, (size_t)m->n * sizeof *m->x);
    for (int i = 0; i < WARM; i++) one_time(m, k);
    /* `spent` is of the slowest rank, so all ranks stop together. */
    for (double spent = 0; n < MOST_RUNS && (n < LEAST_RUNS || spent < budget); n++)
        spent += seconds[n] = one_time(m, k);
    const Spread s = bench_spread(seconds, n);
    const double alg = bytes / s.median * 1e-9, bus = alg * k->factor(c->size);
    json_t *j =
        json_pack("{s:s, s:I, s:f, s:f, s:f, s:I}", "op", k->name, "bytes", (json_int_t)bytes, "alg_gb_per_s",
                  alg, "bus_gb_per_s", bus, "bus_factor", k->factor(c->size), "wrong", (json_int_t)bad);
    report_spread(j, s);
    report_row(r, j);
    if (!c->rank) {
        printf("%-12s %12.0f %5d %11.1f %11.1f %9.3f %9.3f %6" PRId64 "\n", k->name, bytes, n, s.median * 1e6,
               s.p99 * 1e6, alg, bus, bad);
        fflush(stdout);
    }
    return bad;
}

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    Run run;
    Report report;
    Comm *c = comm_world();
    if (c->size == 1)
        return fail_as(e, FAIL_USAGE,
                       "bench comm measures what is between ranks, and there is one: start several with "
                       "`mpirun -n 2 vpdistill bench comm`, "
                       "`srun -n 2 vpdistill bench comm`, or with RANK, WORLD_SIZE, MASTER_ADDR and "
                       "MASTER_PORT set as torchrun does");
    if (!run_open(&run, cfg, e)) return false;
    report_begin(&report, "comm", cfg, run.dev);
    const int64_t most = (int64_t)(cfg->bench.mb ? cfg->bench.mb : OPTION_MB) << 20;
    const char *over = comm_over(c);
    report_set(&report, "transport", json_string(over));
    report_set(&report, "ranks_on_this_host", json_integer(c->local_size));
    Messages m = {.comm = c,
                  .dev = run.dev,
                  .x = run.dev->alloc(run.dev, (size_t)most),
                  .host = xcalloc((size_t)most, 1),
                  .arena = &run.host};
    int64_t bad = 0, rows = 0;
    if (!c->rank)
        printf("%d ranks, %d on this host, over %s\n\n%-12s %12s %5s %11s %11s %9s %9s %6s\n", c->size,
               c->local_size, over, "op", "bytes", "runs", "med_us", "p99_us", "alg GB/s", "bus GB/s",
               "wrong");
    for (int k = 0; k < COUNT_OF(collectives); k++) {
        if (!bench_chosen(word, nwords, collectives[k].name)) continue;
        for (int64_t bytes = LEAST_BYTES; bytes <= most; bytes *= FACTOR, rows++) {
            m.n = bytes / (int64_t)sizeof *m.x;
            bad += row(&m, &collectives[k], (cfg->bench.ms > 0 ? cfg->bench.ms : 200) * 1e-3, &report);
        }
    }
    run.dev->release(run.dev, m.x, (size_t)most);
    free(m.host);
    run_close(&run);
    if (!report_end(&report, true, e)) return false;
    if (!rows)
        return fail_as(
            e, FAIL_USAGE,
            "bench comm: there is no collective \"%s\"; there are all_reduce, all_gather, broadcast",
            word[0]);
    return bad ? fail_as(e, FAIL_OTHER, "bench comm: %" PRId64 " wrong values", bad) : true;
}

const Benchmark bench_comm = {"comm", "collectives between ranks: algorithm and bus bandwidth", true, run};
