/* test_comm.c -- ranks: who they are, collectives, the same gradient and the same bits whatever their number, and their end.
 *
 * Collectives run in forked processes that do nothing else. Whole runs start the command as a launcher would that sets RANK,
 * WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Gradients are read from the first moments after one update without clipping: they
 * are (1 - beta1) times the gradient.
 */
#include "data/safetensors.h"
#include "tests/engine/child.h"
#include "tests/engine/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- who we are ----------------------------------------------------------------------------------- */

typedef struct LaunchCase {
    const char *env[12]; /* name, value, ... */
    int which;
    const char *by; /* NULL: an error */
    int rank, size, local_rank, port;
    const char *text; /* address, or what the error says */
} LaunchCase;


static const LaunchCase launches[] = {
    {{NULL}, LAUNCH_AUTO, "", 0, 1, -1, 0, ""},
    {{"WORLD_SIZE", "4", "RANK", "3", "LOCAL_RANK", "1", "MASTER_ADDR", "h", "MASTER_PORT", "99"}, LAUNCH_AUTO, "RANK and WORLD_SIZE", 3, 4, 1, 99, "h"},
    {{"WORLD_SIZE", "4", "RANK", "3", "MASTER_ADDR", "h"}, LAUNCH_AUTO, NULL, 0, 0, 0, 0, "MASTER_PORT is not set"},
    {{"WORLD_SIZE", "4", "RANK", "4", "MASTER_ADDR", "h", "MASTER_PORT", "1"}, LAUNCH_AUTO, NULL, 0, 0, 0, 0, "RANK is \"4\", not a number from 0 to 3"},
    {{"WORLD_SIZE", "four"}, LAUNCH_AUTO, NULL, 0, 0, 0, 0, "WORLD_SIZE is \"four\""},
    {{"WORLD_SIZE", "4"}, LAUNCH_AUTO, NULL, 0, 0, 0, 0, "the environment has no RANK"},
    {{"WORLD_SIZE", "1", "RANK", "0"}, LAUNCH_AUTO, "RANK and WORLD_SIZE", 0, 1, -1, -1, ""},
    {{"OMPI_COMM_WORLD_SIZE", "2", "OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_LOCAL_RANK", "1", "OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, LAUNCH_AUTO, "mpirun", 1, 2, 1, -1, "127.0.0.1"},
    {{"OMPI_COMM_WORLD_SIZE", "2", "OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_LOCAL_RANK", "0", "OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, LAUNCH_AUTO, "mpirun", 1, 2, 0, -1, ""},
    {{"SLURM_STEP_NUM_TASKS", "3", "SLURM_PROCID", "2", "SLURM_LOCALID", "0", "SLURM_STEP_NUM_NODES", "2", "SLURM_STEP_NODELIST", "n[07-08]"}, LAUNCH_AUTO, "srun", 2, 3, 0, -1, "n07"},
    {{"SLURM_PROCID", "0", "SLURM_NTASKS", "2"}, LAUNCH_AUTO, "", 0, 1, -1, 0, ""}, /* a batch script, not a step */
    {{"SLURM_STEP_NUM_TASKS", "2", "SLURM_PROCID", "0", "SLURM_LOCALID", "0", "WORLD_SIZE", "4", "RANK", "1", "MASTER_ADDR", "h"}, LAUNCH_NONE, "", 0, 1, -1, 0, ""},
};

static void check_launch(const LaunchCase *t) {
    Launch l;
    Error e = {0};
    launched_by_nobody();
    for (int i = 0; i < COUNT_OF(t->env) && t->env[i]; i += 2) setenv(t->env[i], t->env[i + 1], 1);
    const bool ok = launch_detect(&l, t->which, &e);
    const char *first = t->env[0] ? t->env[0] : "nothing";
    if (!t->by) {
        EXPECT(!ok && e.status == FAIL_CONFIG && strstr(e.text, t->text), "%s ...: %s", first, ok ? "no error" : e.text);
    } else {
        EXPECT(ok, "%s ...: %s", first, e.text);
        EXPECT(!strcmp(l.by, t->by) && l.rank == t->rank && l.size == t->size && l.local_rank == t->local_rank &&
                   !strcmp(l.address, t->text), "%s ...: %s, rank %d of %d, local %d, at \"%s\"", first, l.by, l.rank, l.size, l.local_rank, l.address);
        if (t->port >= 0) EXPECT(l.port == t->port, "%s ...: port %d", first, l.port);
        else EXPECT(l.port > 1023 && l.port < 32768, "%s ...: port %d", first, l.port);
    }
    launched_by_nobody();
}

TEST(launch_environment) {
    for (int i = 0; i < COUNT_OF(launches); i++) check_launch(&launches[i]);
    /* Two launchers at once: equal words are one launcher, others an error that says what to do. */
    Launch l;
    Error e = {0};
    setenv("WORLD_SIZE", "2", 1), setenv("RANK", "1", 1), setenv("MASTER_ADDR", "h", 1), setenv("MASTER_PORT", "7", 1);
    setenv("SLURM_STEP_NUM_TASKS", "2", 1), setenv("SLURM_PROCID", "1", 1), setenv("SLURM_LOCALID", "1", 1);
    EXPECT(launch_detect(&l, LAUNCH_AUTO, &e) && l.rank == 1 && l.size == 2, "%s", e.text);
    setenv("RANK", "0", 1);
    EXPECT(!launch_detect(&l, LAUNCH_AUTO, &e) && strstr(e.text, "run.launcher"), "%s", e.text);
    EXPECT(launch_detect(&l, LAUNCH_ENV, &e) && l.rank == 0, "%s", e.text);
    EXPECT(launch_detect(&l, LAUNCH_SRUN, &e) && l.rank == 1, "%s", e.text);
    launched_by_nobody();
}

TEST(launch_host_lists) {
    static const char *const t[][2] = {{"node", "node"}, {"a,b", "a"}, {"node[07-12,20],big", "node07"}, {"n[3]", "n3"}, {"x[10,11]y", "x10"}};
    char host[64];
    for (int i = 0; i < COUNT_OF(t); i++) {
        launch_first_host(host, sizeof host, t[i][0]);
        EXPECT(!strcmp(host, t[i][1]), "%s: %s", t[i][0], host);
    }
}

/* ---- collectives ---------------------------------------------------------------------------------- */

static void all_collectives(Comm *c) {
    Arena a;
    arena_open(&a, "test", NULL, 1 << 20);
    Error e = {0};
    const int R = c->size;
    double x[2] = {c->rank + 1, 1};
    comm_sum(c, "counts", x, 2);
    MUST(x[0] == R * (R + 1) / 2.0 && x[1] == R, "sum %g, %g", x[0], x[1]);
    char word[9] = "";
    if (!c->rank) strcpy(word, "rank 0!!");
    comm_broadcast(c, "word", word, sizeof word);
    MUST(!strcmp(word, "rank 0!!"), "broadcast: %s", word);

    size_t begin[MOST + 1];
    char mine[MOST];
    memset(mine, 'a' + c->rank, sizeof mine);
    char *all = comm_gather(c, "letters", mine, (size_t)c->rank, &a, begin); /* rank 0 gives nothing */
    for (int r = 0; r < R; r++) {
        MUST(begin[r + 1] - begin[r] == (size_t)r, "gather: %zu of rank %d", begin[r + 1] - begin[r], r);
        for (size_t i = begin[r]; i < begin[r + 1]; i++) MUST(all[i] == 'a' + r, "gather: %c", all[i]);
    }
    memset(begin, 0, sizeof begin);
    all = comm_collect(c, "letters", mine, (size_t)(R - c->rank), begin);
    MUST(!all == (c->rank > 0), "collect: rank %d has %p", c->rank, (void *)all);
    for (int r = 0; all && r < R; r++) {
        MUST(begin[r + 1] - begin[r] == (size_t)(R - r), "collect: %zu of rank %d", begin[r + 1] - begin[r], r);
        for (size_t i = begin[r]; i < begin[r + 1]; i++) MUST(all[i] == 'a' + r, "collect: %c", all[i]);
    }
    free(all);
    MUST(comm_same(c, "hash", 7, &e), "%s", e.text);
    if (R > 1) MUST(!comm_same(c, "hash", c->rank == 1, &e) && strstr(e.text, "rank 1"), "%s", e.text);

    /* Sums: several under way, sizes about and below the number of ranks, large ones over many socket buffers. */
    static const int64_t sizes[] = {1, 2, 3, 7, 1000, 1 << 20};
    static float g[6][1 << 20], piece[MOST][1 << 20];
    for (int i = 0; i < 6; i++)
        for (int64_t k = 0; k < sizes[i]; k++) g[i][k] = (float)((k % 97) * (c->rank + 1));
    for (int i = 0; i < 6; i++) comm_sum_begin(c, "sum", g[i], sizes[i]);
    comm_finish(c);
    for (int i = 0; i < 6; i++)
        for (int64_t k = 0; k < sizes[i]; k++)
            MUST(g[i][k] == (float)((k % 97) * R * (R + 1) / 2), "sum of %" PRId64 ": value %" PRId64 " is %g", sizes[i], k, (double)g[i][k]);
    /* The order of additions is the tree's, to the bit. */
    float *branch[MOST];
    for (int r = 0; r < R; r++) {
        branch[r] = piece[r];
        for (int k = 0; k < 999; k++) piece[r][k] = sinf((float)(k * MOST + r));
    }
    memcpy(g[0], piece[c->rank], 999 * 4);
    comm_tree(branch, R, 999);
    comm_sum_begin(c, "sum", g[0], 999);
    comm_finish(c);
    if (R == 1 || !c->host->sum || c->reproducible) MUST(!memcmp(g[0], piece[0], 999 * 4), "another order of additions");

    for (int i = 0; i < 5; i++) {
        const int64_t n = sizes[i], lo = comm_share(c, n, c->rank), hi = comm_share(c, n, c->rank + 1);
        memset(g[1], 0, sizeof g[1]);
        for (int64_t k = lo; k < hi; k++) g[1][k] = (float)k + 1;
        memset(g[2], 0, sizeof g[2]);
        comm_to_root(c, "shares", g[1] + lo, g[2], n);
        comm_all_gather(c, "shares", g[1], n);
        for (int64_t k = 0; k < n; k++) {
            MUST(g[1][k] == (float)k + 1, "all-gather of %" PRId64 ": value %" PRId64, n, k);
            if (!c->rank) MUST(g[2][k] == (float)k + 1, "to root of %" PRId64 ": value %" PRId64, n, k);
        }
    }
    comm_barrier(c, "the end");
}

TEST(comm_collectives) {
    char text[4000];
    for (int n = 1; n <= 5; n++) {
        Ranks r;
        ranks_start(&r, n, NULL, all_collectives);
        ranks_wait(&r, text, sizeof text);
        for (int k = 0; k < n; k++) EXPECT(r.status[k] == 0, "%d ranks: rank %d ends with %d: %s", n, k, r.status[k], text);
    }
}

TEST(comm_tree_order) {
    float x[5][1] = {{1e8f}, {1}, {-1e8f}, {1}, {3}}, *p[5] = {x[0], x[1], x[2], x[3], x[4]};
    comm_tree(p, 5, 1);
    EXPECT(x[0][0] == ((1e8f + 1) + (-1e8f + 1)) + 3, "%g", (double)x[0][0]);
}

/* ---- the end of ranks ----------------------------------------------------------------------------- */

/* How often `word` is in text. */
static int times(const char *text, const char *word) {
    int n = 0;
    for (const char *s = text; (s = strstr(s, word)); s++) n++;
    return n;
}

static void wrong_collective(Comm *c) {
    float x[4] = {0};
    comm_step(c, 12);
    comm_barrier(c, "together");
    comm_sum_begin(c, c->rank == 1 ? "sum of apples" : "sum of pears", x, c->rank == 1 ? 3 : 4);
    comm_finish(c);
    for (;;) pause();
}

TEST(comm_names_a_mismatch) {
    char text[4000];
    for (int n = 2; n <= 3; n++) {
        Ranks r;
        ranks_start(&r, n, NULL, wrong_collective);
        ranks_wait(&r, text, sizeof text);
        for (int k = 0; k < n; k++) EXPECT(r.status[k] == FAIL_PEER, "rank %d ends with %d: %s", k, r.status[k], text);
        EXPECT(times(text, "all ranks end") == 1 && strstr(text, "step 12") && strstr(text, "sum of apples") && strstr(text, "sum of pears"), "%s", text);
    }
}

static void fail_alone(Comm *c) {
    comm_step(c, 3);
    if (c->rank == c->size - 1) {
        const bool told = comm_fail(FAIL_NUMERIC, "the loss is not a number");
        _exit(told ? FAIL_NUMERIC : 98);
    }
    comm_barrier(c, "never");
}

TEST(comm_failure_of_one) {
    char text[4000];
    for (int n = 2; n <= 3; n++) {
        Ranks r;
        ranks_start(&r, n, NULL, fail_alone);
        ranks_wait(&r, text, sizeof text);
        for (int k = 0; k < n; k++) EXPECT(r.status[k] == (k == n - 1 ? FAIL_NUMERIC : FAIL_PEER), "rank %d ends with %d: %s", k, r.status[k], text);
        EXPECT(times(text, "the loss is not a number") == 1, "%s", text);
    }
}

static void fail_root(Comm *c) {
    if (!c->rank) _exit(comm_fail(FAIL_DISK, "no space") ? FAIL_DISK : 98);
    comm_barrier(c, "never");
}

TEST(comm_failure_of_rank_0) {
    char text[4000];
    Ranks r;
    ranks_start(&r, 3, NULL, fail_root);
    ranks_wait(&r, text, sizeof text);
    EXPECT(r.status[0] == FAIL_DISK && r.status[1] == FAIL_PEER && r.status[2] == FAIL_PEER, "%d %d %d: %s", r.status[0], r.status[1], r.status[2], text);
    EXPECT(times(text, "no space") == 1, "%s", text);
}

/* A stranger at the meeting point delays nobody, a process of another run is sent away. */
static void with_strangers(Comm *c) { comm_barrier(c, "all here"); }

TEST(comm_strangers) {
    char text[4000];
    Error e = {0};
    Ranks r;
    pid_t pid = fork();
    if (!pid) { /* what the ranks will see first at their port: a silent one, a talker, one with another token */
        const int port = 31847;
        const int quiet = net_connect("127.0.0.1", port, now_s() + 20, &e), talker = net_connect("127.0.0.1", port, now_s() + 20, &e);
        char noise[300];
        memset(noise, 'x', sizeof noise);
        const bool sent = net_write(talker, noise, sizeof noise, now_s() + 5);
        usleep(300000);
        (void)quiet;
        _exit(sent ? 0 : 1);
    }
    /* Rank 0 listens first and alone, so that the strangers come first. */
    r.n = 2;
    snprintf(r.said, sizeof r.said, "%s/strangers", test_dir());
    fflush(NULL);
    for (int k = 0; k < 2; k++) {
        r.pid[k] = fork();
        if (r.pid[k]) continue;
        said_to(r.said);
        Config cfg;
        CHECK(config_load(&cfg, NULL, NULL, 0, &e), "%s", e.text);
        launched(k, 2, 31847);
        if (k) usleep(200000);
        if (!comm_open(&cfg, &e)) fprintf(stderr, "rank %d: %s\n", k, e.text), _exit(e.status);
        with_strangers(comm_world());
        comm_close();
        _exit(0);
    }
    ranks_wait(&r, text, sizeof text);
    EXPECT(r.status[0] == 0 && r.status[1] == 0, "%d %d: %s", r.status[0], r.status[1], text);
    waitpid(pid, NULL, 0);
}

/* ---- whole runs ----------------------------------------------------------------------------------- */

static int the_rank, the_size, the_port;
static void as_launched(void) { launched(the_rank, the_size, the_port); }

static void runs_start(Child *c, int n, const char *line) {
    the_port = free_port();
    the_size = n;
    for (the_rank = 0; the_rank < n; the_rank++) command_start(&c[the_rank], NULL, as_launched, line);
}

static void run_ranks(int n, const char *line) {
    static Child c[MOST];
    runs_start(c, n, line);
    for (int k = 0; k < n; k++)
        EXPECT(command_wait(&c[k]) == 0, "%d ranks, rank %d: status %d: %s", n, k, c[k].status, c[k].text);
}

static const char *train_line(const char *out, int steps, const char *more) {
    static char line[2000];
    snprintf(line, sizeof line,
             "train data.kind=steps data.dir=%s model.vqa=%s/configs/models/tiny-vilt model.loc=%s/configs/models/tiny-owlvit run.out=%s "
             "train.from_scratch=true train.steps=%d train.batch=16 train.per_image=2 train.save_every=4 run.threads=1 run.bucket_mb=0.05 %s",
             tiny_scenes(), repository(), repository(), out, steps, more);
    return line;
}

static const char *distill_line(const char *out, int steps, const char *more) {
    static char line[2000];
    snprintf(line, sizeof line,
             "distill data.kind=gqa data.dir=%s model.vqa=%s/configs/models/demo-vqa model.loc=%s/configs/models/demo-loc "
             "model.teacher=%s/configs/models/demo-teacher run.out=%s distill.steps=%d distill.programs=32 distill.per_image=4 eval.limit=4 run.threads=1 "
             "distill.replay_dir=%s train.save_every=2 run.bucket_mb=0.05 %s",
             tiny_scenes(), repository(), repository(), repository(), out, steps, tiny_scenes(), more);
    return line;
}

/* The norm of the difference of two checkpoints' first moments, over that of the first's. */
static double moments_difference(const char *a, const char *b, int step, const char *file) {
    char path[600];
    SafeTensors x, y;
    Error e = {0};
    double squares = 0, diff = 0;
    snprintf(path, sizeof path, "%s/checkpoint-%06d/%s.moments.safetensors", a, step, file);
    CHECK(st_open(&x, path, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/checkpoint-%06d/%s.moments.safetensors", b, step, file);
    CHECK(st_open(&y, path, &e), "%s", e.text);
    for (int i = 0; i < x.ntensors; i++) {
        const StTensor *t = &x.tensors[i], *u = st_find(&y, t->name);
        if (strncmp(t->name, "m.", 2)) continue;
        CHECK(u && st_numel(t) == st_numel(u), "%s", t->name);
        const float *p = t->data, *q = u->data;
        for (int64_t k = 0; k < st_numel(t); k++) squares += (double)p[k] * p[k], diff += ((double)p[k] - q[k]) * ((double)p[k] - q[k]);
    }
    st_close(&x);
    st_close(&y);
    EXPECT(squares > 0, "%s: no gradient", a);
    return sqrt(diff / squares);
}

/* N ranks' gradient is that of one with the whole batch to 1e-6 of its norm. What is left is f32: other batch sizes round the
 * forward pass otherwise, sums over rows are cut in other places. It is no bound for single parameters, some of which are all
 * cancellation: keys' biases (0 in real numbers), the text tower's queries and keys (another by 8e-6 of their own norm, which
 * is 5e-4 of the whole at most). Equal to the bit it is with run.reproducible. */
#define BOUND 1e-6

static void outs(char out[3][300], const char *name) {
    for (int i = 0; i < 3; i++) {
        snprintf(out[i], 300, "%s/%s-%d", test_dir(), name, 1 << i);
        remove_folder(out[i]);
    }
}

TEST(comm_gradient_of_train) {
    char out[3][300];
    if (!vpdistill()) return;
    static const char *const modules[] = {"vqa", "loc"};
    for (int m = 0; m < 2; m++) {
        char more[1000];
        outs(out, "gradient");
        /* Trained weights: a fresh LOC starts with a class loss of 14, whose gradient is mostly cancellation. */
        snprintf(more, sizeof more, "train.module=%s train.from_scratch=false train.clip=0 train.accumulate=2 "
                 "model.vqa=%s/configs/models/demo-vqa model.loc=%s/configs/models/demo-loc", modules[m], repository(), repository());
        for (int i = 0; i < 3; i++) run_ranks(1 << i, train_line(out[i], 1, more));
        for (int i = 1; i < 3; i++)
            EXPECT_NEAR(moments_difference(out[0], out[i], 1, modules[m]), 0, BOUND, "%s, %d ranks", modules[m], 1 << i);
    }
}

/* 32 programs of 8 images over 4 ranks: some ranks have no question for a module, some questions are put by two ranks. */
TEST(comm_gradient_of_distill) {
    char out[3][300];
    if (!vpdistill()) return;
    outs(out, "distil");
    for (int i = 0; i < 3; i++) run_ranks(1 << i, distill_line(out[i], 1, "train.clip=0"));
    for (int i = 1; i < 3; i++) {
        EXPECT_NEAR(moments_difference(out[0], out[i], 1, "vqa"), 0, BOUND, "VQA, %d ranks", 1 << i);
        EXPECT_NEAR(moments_difference(out[0], out[i], 1, "loc"), 0, BOUND, "LOC, %d ranks", 1 << i);
    }
}

/* What two checkpoints keep to be learnt again: the same questions in the same order. The numbers come out of other batches. */
static void check_same_lessons(const char *a, const char *b, int step) {
    static const char *const exact[] = {"batches", "text"};
    char path[2][600];
    SafeTensors x, y;
    Error e = {0};
    snprintf(path[0], sizeof path[0], "%s/checkpoint-%06d/lessons.safetensors", a, step);
    snprintf(path[1], sizeof path[1], "%s/checkpoint-%06d/lessons.safetensors", b, step);
    CHECK(st_open(&x, path[0], &e) && st_open(&y, path[1], &e), "%s", e.text);
    for (int i = 0; i < COUNT_OF(exact); i++) {
        const StTensor *t = st_find(&x, exact[i]), *u = st_find(&y, exact[i]);
        EXPECT(t && u && t->bytes && t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes), "%s: other %s", path[1], exact[i]);
    }
    st_close(&x);
    st_close(&y);
}

/* Two steps of which the second learns the first's lessons again. At learning rate 0 the weights stay, so that the moments are a
 * weighted sum of three gradients. First one image a step: all ranks but one have nothing to learn and nothing to repeat. */
TEST(comm_gradient_of_lessons) {
    char out[3][300];
    if (!vpdistill()) return;
    for (int programs = 4; programs <= 32; programs *= 8) {
        char more[200];
        snprintf(more, sizeof more, "train.clip=0 distill.reuse=1 distill.lag=1 distill.lr_vqa=0 distill.lr_loc=0 distill.programs=%d", programs);
        outs(out, "lessons");
        for (int i = 0; i < 3; i++) run_ranks(1 << i, distill_line(out[i], 2, more));
        for (int i = 1; i < 3; i++) {
            EXPECT_NEAR(moments_difference(out[0], out[i], 2, "vqa"), 0, BOUND, "VQA, %d programs, %d ranks", programs, 1 << i);
            EXPECT_NEAR(moments_difference(out[0], out[i], 2, "loc"), 0, BOUND, "LOC, %d programs, %d ranks", programs, 1 << i);
            check_same_lessons(out[0], out[i], 2);
        }
    }
}

/* One folder for all, so that the configuration in the checkpoints is the same, too. */
static void check_reproducible(const char *what, int steps, const char *(*line)(const char *, int, const char *), const char *more) {
    char out[300], kept[3][300], why[1300];
    snprintf(out, sizeof out, "%s/repro", test_dir());
    outs(kept, what);
    for (int i = 0; i < 3; i++) {
        run_ranks(1 << i, line(out, steps, more));
        EXPECT(!rename(out, kept[i]), "rename");
        char report[400]; /* holds times */
        snprintf(report, sizeof report, "%s/report.json", kept[i]);
        unlink(report);
        if (i) EXPECT(same_folders(kept[0], kept[i], why, sizeof why), "%s, %d ranks: %s", what, 1 << i, why);
    }
}

TEST(comm_reproducible_train) {
    if (!vpdistill()) return;
    check_reproducible("train", 4, train_line, "run.reproducible=true train.module=vqa train.accumulate=2 train.augment=0.5");
    check_reproducible("train", 4, train_line, "run.reproducible=true run.shard_optimizer=true train.module=loc");
}

TEST(comm_reproducible_distill) {
    if (!vpdistill()) return;
    check_reproducible("distill", 2, distill_line, "run.reproducible=true");
    check_reproducible("distill", 4, distill_line, "run.reproducible=true distill.reuse=2 distill.lag=1 distill.programs=8");
}

/* A third of the steps by two ranks, the next by one, the last by four: the same as by one, to the bit. */
static void check_resume(int steps, const char *(*line)(const char *, int, const char *), const char *more) {
    static const int ranks[] = {2, 1, 4};
    char out[300], whole[300], why[1300], a[400], b[400];
    snprintf(out, sizeof out, "%s/resume", test_dir());
    snprintf(whole, sizeof whole, "%s/resume-whole", test_dir());
    remove_folder(out);
    remove_folder(whole);
    run_ranks(1, line(out, steps, more));
    EXPECT(!rename(out, whole), "rename");
    for (int i = 0; i < 3; i++) run_ranks(ranks[i], line(out, steps / 3 * (i + 1), more));
    snprintf(a, sizeof a, "%s/checkpoint-%06d", whole, steps);
    snprintf(b, sizeof b, "%s/checkpoint-%06d", out, steps);
    EXPECT(same_folders(a, b, why, sizeof why), "%s", why);
}

TEST(comm_resume_with_other_ranks) {
    if (vpdistill()) check_resume(12, train_line, "run.reproducible=true run.shard_optimizer=true train.schedule=constant");
}

/* Each step but the first learns again what steps of another number of ranks were taught. */
TEST(comm_resume_lessons) {
    if (vpdistill())
        check_resume(6, distill_line, "run.reproducible=true train.schedule=constant train.warmup=0 distill.reuse=2 distill.lag=2 distill.programs=8");
}

/* A rank is killed or stopped somewhere: the others are gone within the limit, with status 7, and one says why. */
static void check_loss(int n, int victim, int sig, double after_s) {
    static Child c[MOST];
    char out[300];
    snprintf(out, sizeof out, "%s/lost", test_dir());
    remove_folder(out);
    runs_start(c, n, train_line(out, 1000000, "run.log_every=1"));
    const double began = now_s();
    while (now_s() - began < after_s) usleep(10000);
    kill(c[victim].pid, sig);
    const double at = now_s();
    int told = 0;
    char what[40];
    snprintf(what, sizeof what, "vpdistill: rank %d (", victim);
    for (int k = 0; k < n; k++) {
        const int status = command_wait(&c[k]);
        EXPECT(status == (k == victim ? -SIGKILL : FAIL_PEER), "signal %d to rank %d of %d: rank %d ends with %d: %s", sig, victim, n, k, status, c[k].text);
        /* A child keeps the first bytes of what is said; the last line may be beyond them. */
        told += times(c[k].text, "all ranks end");
        if (strstr(c[k].text, "all ranks end")) EXPECT(strstr(c[k].text, what) && strstr(c[k].text, "collective"), "%s", c[k].text);
    }
    EXPECT(now_s() - at < 10, "signal %d to rank %d of %d: it took %.1f s", sig, victim, n, now_s() - at);
    EXPECT(told == 1, "signal %d to rank %d of %d: told %d times", sig, victim, n, told);
    fprintf(stderr, "    signal %d to rank %d of %d after %.1f s: all gone in %.1f s\n", sig, victim, n, after_s, now_s() - at);
}

TEST(comm_rank_killed) {
    if (!vpdistill()) return;
    for (int i = 0; i < 3; i++) check_loss(i ? 3 : 2, i, SIGKILL, 2.5 + 0.3 * i);
}

TEST(comm_rank_stopped) {
    if (!vpdistill()) return;
    for (int i = 0; i < 2; i++) check_loss(2, i, SIGSTOP, 2.5);
}
