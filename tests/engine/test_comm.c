/* test_comm.c -- ranks: who they are, collectives, and how they end. In forked processes that do nothing
 * else; whole runs are in test_ranks.c. */
#include "tests/engine/ranks.h"

#include <dirent.h>
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

void all_collectives(Comm *c) {
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
        MUST(begin[r + 1] - begin[r] == (size_t)(R - r), "collect: %zu of rank %d", begin[r + 1] - begin[r],
             r);
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

/* What carries sums between ranks of one host: their own choice, and the other. */
static const char *const ways[] = {NULL, "run.comm=tcp"};

TEST(comm_collectives) {
    char text[4000];
    for (int w = 0; w < COUNT_OF(ways); w++)
        for (int n = 1; n <= 5; n++) {
            Ranks r;
            ranks_start(&r, n, ways[w], all_collectives);
            ranks_wait(&r, text, sizeof text);
            for (int k = 0; k < n; k++)
                EXPECT(r.status[k] == 0, "%s, %d ranks: rank %d ends with %d: %s",
                       ways[w] ? ways[w] : "auto", n, k, r.status[k], text);
        }
}

/* Values whose sum tells the order of additions, other ones in each sum. */
static float noise(int sum, int64_t k, int rank) {
    uint32_t x = (uint32_t)k * 2654435761u + (uint32_t)(rank * 16 + sum) * 40503u;
    x = (x ^ x >> 15) * 2246822519u;
    return (float)(int32_t)(x ^ x >> 13) * 1e-5f;
}

/* Sums of whole chunks of shared memory (65,536 values), of one value more or less, longer than all slots;
 * the ranks begin at different times. The tree's bits each time. */
static void sums_to_the_bit(Comm *c) {
    static const int64_t sizes[] = {1, 65535, 65536, 65537, 3, 131072, 600001, 2, 524288, 524289, 1000};
    enum { MANY = COUNT_OF(sizes), LONGEST = 600001 };
    static float g[MANY][LONGEST], piece[MOST][LONGEST];
    float *branch[MOST];
    MUST(!strcmp(comm_over(c), "shared memory"), "over %s", comm_over(c));
    for (int i = 0; i < MANY; i++)
        for (int64_t k = 0; k < sizes[i]; k++) g[i][k] = noise(i, k, c->rank);
    for (int i = 0; i < MANY; i++) {
        usleep((useconds_t)(hash_bytes(&(int[]){c->rank, i}, 2 * sizeof(int), 7) % 3000));
        comm_sum_begin(c, "sum", g[i], sizes[i]);
        if (i % 4 == 3) comm_finish(c);
    }
    comm_finish(c);
    for (int i = 0; i < MANY; i++) {
        for (int r = 0; r < c->size; r++) {
            branch[r] = piece[r];
            for (int64_t k = 0; k < sizes[i]; k++) piece[r][k] = noise(i, k, r);
        }
        comm_tree(branch, c->size, sizes[i]);
        MUST(!memcmp(g[i], piece[0], (size_t)sizes[i] * 4), "sum %d of %" PRId64 " values: other bits", i,
             sizes[i]);
    }
}

TEST(comm_shared_memory_bits) {
    char text[4000];
    for (int n = 2; n <= 5; n++) {
        Ranks r;
        ranks_start(&r, n, NULL, sums_to_the_bit);
        ranks_wait(&r, text, sizeof text);
        for (int k = 0; k < n; k++)
            EXPECT(r.status[k] == 0, "%d ranks: rank %d ends with %d: %s", n, k, r.status[k], text);
    }
}

/* One of the ranks cannot open what rank 0 has made: none uses it. */
static void memory_of_another(Comm *c) {
    float x = 1;
    Peer *root = (Peer *)link_peer(c->link, 0);
    if (c->rank == 1) root->pid = (int32_t)getpid();
    MUST(!segment_open(c), "rank %d shares memory", c->rank);
    comm_sum_begin(c, "sum", &x, 1);
    comm_finish(c);
    MUST(x == (float)c->size && !strcmp(comm_over(c), "tcp"), "%g over %s", (double)x, comm_over(c));
}

TEST(comm_shared_memory_refused) {
    char text[4000];
    Ranks r;
    ranks_start(&r, 3, "run.comm=tcp", memory_of_another);
    ranks_wait(&r, text, sizeof text);
    for (int k = 0; k < 3; k++) EXPECT(r.status[k] == 0, "rank %d ends with %d: %s", k, r.status[k], text);
}

TEST(comm_tree_order) {
    float x[5][1] = {{1e8f}, {1}, {-1e8f}, {1}, {3}}, *p[5] = {x[0], x[1], x[2], x[3], x[4]};
    comm_tree(p, 5, 1);
    EXPECT(x[0][0] == ((1e8f + 1) + (-1e8f + 1)) + 3, "%g", (double)x[0][0]);
}

/* ---- the end of ranks ----------------------------------------------------------------------------- */

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
    for (int i = 0; i < 4; i++) {
        const int n = 2 + i / 2;
        Ranks r;
        ranks_start(&r, n, ways[i % 2], wrong_collective);
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
    for (int i = 0; i < 4; i++) {
        const int n = 2 + i / 2;
        Ranks r;
        ranks_start(&r, n, ways[i % 2], fail_alone);
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

/* ---- what is left --------------------------------------------------------------------------------- */

static void sum_for_ever(Comm *c) {
    static float x[300000];
    for (int64_t step = 0;; step++) {
        comm_step(c, step);
        comm_sum_begin(c, "sum", x, COUNT_OF(x));
        comm_finish(c);
    }
}

/* Processes that have the file `name` in their memory. */
static int mapping(const char *name) {
    int n = 0;
    char *line = NULL;
    size_t size = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *f; d && (f = readdir(d));) {
        char path[300];
        bool has = false;
        snprintf(path, sizeof path, "/proc/%s/maps", f->d_name);
        FILE *maps = f->d_name[0] >= '1' && f->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        while (maps && !has && getline(&line, &size, maps) > 0) has = strstr(line, name) != NULL;
        if (maps) fclose(maps);
        n += has;
    }
    if (d) closedir(d);
    free(line);
    return n;
}

/* However ranks end, the memory that they have shared goes with the last of them. */
TEST(comm_shared_memory_is_gone) {
    static const int how[] = {SIGKILL, SIGSTOP, SIGTERM};
    char text[4000];
    for (int i = 0; i < 2 * COUNT_OF(how); i++) {
        const int victim = i % 3, sig = how[i / 2];
        Ranks r;
        char name[64];
        ranks_start(&r, 3, "run.comm_timeout_s=2", sum_for_ever);
        snprintf(name, sizeof name, "/memfd:vpdistill.%d ", (int)r.pid[0]);
        const double until = now_s() + 20;
        int sharing;
        while ((sharing = mapping(name)) < 3 && now_s() < until) usleep(2000);
        EXPECT(sharing == 3, "%d ranks of 3 share memory", sharing);
        usleep(20000);
        kill(r.pid[victim], sig);
        ranks_wait(&r, text, sizeof text);
        for (int k = 0; k < 3; k++)
            EXPECT(r.status[k] == (k != victim ? FAIL_PEER : sig == SIGSTOP ? -SIGKILL : -sig),
                   "signal %d to rank %d: rank %d ends with %d: %s", sig, victim, k, r.status[k], text);
        EXPECT(times(text, "all ranks end") == 1 && strstr(text, "in the collective \"sum\""), "%s", text);
        EXPECT(!mapping(name), "signal %d to rank %d: somebody still has the memory", sig, victim);
    }
    DIR *d = opendir("/dev/shm");
    for (struct dirent *f; d && (f = readdir(d));)
        EXPECT(!strstr(f->d_name, "vpdistill"), "/dev/shm/%s is left", f->d_name);
    if (d) closedir(d);
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
