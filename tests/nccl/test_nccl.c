/* test_nccl.c -- comm_nccl.c over the stand-in: order between streams, sums in flight, the fixed tree, errors, abort. */
#include "kernels/cuda/stream.h"
#include "kernels/ops.h"
#include "tests/engine/ranks.h"
#include <nccl.h>

#include <math.h>
#include <signal.h>
#include <unistd.h>

extern const Transport transport_nccl_standin;

/* ---- a device whose streams are threads ----------------------------------------------------------- */

static Stream main_stream, comm_stream;
static bool forget; /* a planted fault: streams do not wait for each other */

static void after(Device *d, Stream *s, Stream *other) {
    (void)d;
    if (!forget) standin_after(s->cuda, other->cuda);
}

static void sync_all(Device *d) {
    (void)d;
    standin_sync(main_stream.cuda);
    standin_sync(comm_stream.cuda);
}

static void *alloc(Device *d, size_t bytes) { return (void)d, xcalloc(bytes, 1); }
static void release(Device *d, void *p, size_t bytes) { (void)d, (void)bytes, free(p); }

typedef struct Two { float *y; const float *x; int64_t n; } Two;
static void add_now(void *arg) {
    Two *t = arg;
    for (int64_t i = 0; i < t->n; i++) t->y[i] += t->x[i];
}
static void copy_now(void *arg) {
    Two *t = arg;
    memcpy(t->y, t->x, (size_t)t->n * sizeof(float));
}
static void accumulate(Stream *s, DType ty, void *y, DType tx, const void *x, int64_t n) {
    CHECK(ty == F32 && tx == F32, "f32");
    standin_queue(s->cuda, add_now, &(Two){y, x, n}, sizeof(Two));
}
static void copy_rows(Stream *s, DType t, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t rows, int64_t n, bool add) {
    CHECK(t == F32 && rows == 1 && ldx == n && ldy == n && !add, "one row");
    standin_queue(s->cuda, copy_now, &(Two){y, x, n}, sizeof(Two));
}

static Ops ops = {.accumulate = accumulate, .copy_rows = copy_rows};
static Device device = {.name = "stand-in", .ops = &ops, .main = &main_stream, .comm = &comm_stream, .alloc = alloc, .release = release, .after = after, .sync = sync_all};

static void attach(Comm *c) {
    Error e = {0};
    main_stream.cuda = standin_stream(2 * (unsigned)c->rank + 1);
    comm_stream.cuda = standin_stream(2 * (unsigned)c->rank + 2);
    MUST(comm_attach(c, &transport_nccl_standin, &device, &e), "%s", e.text);
}

/* ---- sums ----------------------------------------------------------------------------------------- */

enum { ROUNDS = 6, BUCKETS = 5, BUCKET = 5000 };

/* An update: gradients are written on the main stream bucket by bucket, each sum begins as soon as its bucket is queued, and what
 * follows on the main stream reads the sums. Returns the first wrong value's number, -1: none. */
static int64_t updates(Comm *c) {
    static float source[BUCKETS][BUCKET], grad[BUCKETS][BUCKET], seen[BUCKETS][BUCKET];
    const int R = c->size;
    int64_t wrong = -1;
    for (int round = 0; round < ROUNDS; round++) {
        for (int b = 0; b < BUCKETS; b++)
            for (int i = 0; i < BUCKET; i++) source[b][i] = (float)((i % 97 + b + round) * (c->rank + 1));
        for (int b = 0; b < BUCKETS; b++) {
            const int64_t n = b == BUCKETS - 1 ? 7 : BUCKET; /* the last is a rest */
            standin_queue(main_stream.cuda, copy_now, &(Two){grad[b], source[b], n}, sizeof(Two));
            comm_sum_begin(c, "sum of gradients", grad[b], n);
        }
        comm_finish(c);
        for (int b = 0; b < BUCKETS; b++)
            standin_queue(main_stream.cuda, copy_now, &(Two){seen[b], grad[b], BUCKET}, sizeof(Two));
        sync_all(NULL);
        for (int b = 0; b < BUCKETS; b++)
            for (int i = 0; i < (b == BUCKETS - 1 ? 7 : BUCKET); i++)
                if (seen[b][i] != (float)((i % 97 + b + round) * R * (R + 1) / 2) && wrong < 0) wrong = (round * BUCKETS + b) * BUCKET + i;
    }
    return wrong;
}

static void right_order(Comm *c) {
    attach(c);
    const int64_t wrong = updates(c);
    MUST(wrong < 0, "value %" PRId64 " is wrong", wrong);
}

/* The same with the waits left out must be seen. */
static void forgotten_order(Comm *c) {
    attach(c);
    forget = true;
    const int64_t wrong = updates(c);
    MUST(wrong >= 0, "streams that do not wait go unnoticed");
}

static void tree_order(Comm *c) {
    static float mine[999], piece[MOST][999], *p[MOST];
    attach(c);
    for (int r = 0; r < c->size; r++) {
        p[r] = piece[r];
        for (int k = 0; k < 999; k++) piece[r][k] = sinf((float)(k * MOST + r));
    }
    memcpy(mine, piece[c->rank], sizeof mine);
    comm_tree(p, c->size, 999);
    for (int64_t n = 999; n >= 1; n /= 3) { /* larger, smaller than the number of ranks; the pieces' memory is reused */
        for (int k = 0; k < n; k++) mine[k] = sinf((float)(k * MOST + c->rank));
        comm_sum_begin(c, "sum of gradients", mine, n);
        comm_finish(c);
        sync_all(NULL);
        MUST(!memcmp(mine, piece[0], (size_t)n * 4), "%" PRId64 " values: another order of additions", n);
    }
    for (int k = 0; k < 999; k++) mine[k] = 0;
    for (int64_t k = comm_share(c, 999, c->rank); k < comm_share(c, 999, c->rank + 1); k++) mine[k] = (float)k + 1;
    comm_all_gather(c, "shares", mine, 999);
    sync_all(NULL);
    for (int k = 0; k < 999; k++) MUST(mine[k] == (float)k + 1, "all-gather: value %d is %g", k, (double)mine[k]);
}

static void check(int n, const char *option, void (*fn)(Comm *c), const char *what) {
    char text[4000];
    Ranks r;
    ranks_start(&r, n, option, fn);
    ranks_wait(&r, text, sizeof text);
    for (int k = 0; k < n; k++) EXPECT(r.status[k] == 0, "%s, %d ranks: rank %d ends with %d: %s", what, n, k, r.status[k], text);
}

TEST(nccl_sums) {
    for (int n = 2; n <= 4; n++) check(n, NULL, right_order, "sums");
}

TEST(nccl_planted_fault) { check(2, NULL, forgotten_order, "no waiting"); }

TEST(nccl_reproducible) {
    for (int n = 2; n <= 4; n += 2) check(n, "run.reproducible=true", tree_order, "tree");
}

/* ---- the end -------------------------------------------------------------------------------------- */

static void has_error(Comm *c) {
    attach(c);
    comm_step(c, 5);
    if (c->rank == 1) standin_fail_after = 3;
    for (;;) MUST(updates(c) < 0, "a wrong sum");
}

static void endless(Comm *c) {
    attach(c);
    for (int64_t step = 0;; step++) {
        comm_step(c, step);
        MUST(updates(c) < 0, "a wrong sum");
    }
}

/* As with run.shard_optimizer: the host reads what it has gathered. */
static void endless_gather(Comm *c) {
    enum { N = 999 };
    static float x[N];
    attach(c);
    for (int64_t step = 0;; step++) {
        comm_step(c, step);
        for (int64_t k = comm_share(c, N, c->rank); k < comm_share(c, N, c->rank + 1); k++)
            x[k] = (float)(k + step);
        comm_all_gather(c, "weights", x, N);
        sync_all(NULL);
        for (int k = 0; k < N; k++)
            MUST(x[k] == (float)(k + step), "a wrong gather: value %d is %g", k, (double)x[k]);
    }
}

static void check_end(Ranks *r, int victim, int sig, const char *word) {
    char text[4000];
    const double began = now_s();
    if (sig) {
        usleep(1500000);
        kill(r->pid[victim], sig);
    }
    ranks_wait(r, text, sizeof text);
    for (int k = 0; k < r->n; k++)
        EXPECT(r->status[k] == (sig && k == victim ? -SIGKILL : FAIL_PEER), "rank %d ends with %d: %s", k, r->status[k], text);
    EXPECT(strstr(text, word), "not said: %s: %s", word, text);
    EXPECT(strstr(text, "aborts"), "the communicator was not aborted: %s", text);
    EXPECT(now_s() - began < 11.5, "it took %.1f s", now_s() - began);
}

TEST(nccl_error_of_one) {
    Ranks r;
    ranks_start(&r, 3, NULL, has_error);
    check_end(&r, 1, 0, "NCCL: remote process exited or there was a network error");
}

/* The others' main threads wait for the card, whose kernels wait for the dead rank: only the watching
 * thread can act. What it does, the abort, lets the kernels go and the streams on with garbage, which no
 * main thread may get to see (it would say so). */
TEST(nccl_rank_killed) {
    static const struct { int ranks; const char *option; void (*fn)(Comm *c); } cases[] = {
        {3, NULL, endless}, {2, "run.reproducible=true", endless}, {3, NULL, endless_gather}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Ranks r;
        ranks_start(&r, cases[i].ranks, cases[i].option, cases[i].fn);
        check_end(&r, cases[i].ranks - 1, SIGKILL, "died, last seen at step");
    }
}

TEST(nccl_rank_stopped) {
    Ranks r;
    ranks_start(&r, 2, NULL, endless);
    check_end(&r, 0, SIGSTOP, "has been silent");
}
