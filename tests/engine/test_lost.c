/* test_lost.c -- a rank of a run is killed or stopped at a random step: all others are gone within the limit,
 * with status 7, one of them says who it was and where, nothing is left behind, and the run goes on with
 * another number of ranks.
 *
 * `make ranks-soak` does so VPDISTILL_SOAK times with each signal, `make test` twice: to ranks that sum in
 * shared memory and to ranks that do so over sockets. The seed is fixed, the steps depend on the machine's
 * speed.
 */
#include "tests/engine/ranks.h"

#include <signal.h>
#include <unistd.h>

#include "engine/ckpt.h"

#define LIMIT_S 10.0 /* run.comm_timeout_s */

static int draw(uint64_t *seed, int n) {
    *seed = hash_bytes(seed, sizeof *seed, 1);
    return (int)(*seed % (uint64_t)n);
}

/* Waits for the run's first checkpoint, so that steps are under way. */
static bool has_begun(const char *out, const Child *c) {
    char path[600];
    int64_t step;
    const double until = now_s() + 120;
    while (!ckpt_latest(out, path, sizeof path, &step)) {
        if (now_s() > until || kill(c->pid, 0)) return false;
        usleep(5000);
    }
    return true;
}

/* The others' ends and words. Returns the seconds that it took. */
static double check_end(Child *c, int n, int victim, int sig, const char *over, double at) {
    char its[64];
    int told = 0;
    snprintf(its, sizeof its, "vpdistill: rank %d (", victim);
    for (int k = 0; k < n; k++) {
        const int status = command_wait(&c[k]);
        const char *said = strstr(c[k].text, its), *text = c[k].text;
        EXPECT(status == (k == victim ? -SIGKILL : FAIL_PEER), "rank %d ends with %d: %s", k, status, text);
        told += times(text, "all ranks end");
        if (!k) EXPECT(strstr(text, over), "not %s: %s", over, text);
        if (!strstr(text, "all ranks end")) continue;
        char host[64] = "", who[160];
        gethostname(host, sizeof host - 1);
        snprintf(who, sizeof who, "%s%s, pid %d) ", its, host, (int)c[victim].pid);
        EXPECT(said && !strncmp(said, who, strlen(who)), "not \"%s\": %s", who, text);
        EXPECT(said && strstr(said, sig == SIGKILL ? "died, last seen" : "silent") &&
                   strstr(said, "at step ") && strstr(said, "in the collective \""),
               "where was it? %s", text);
    }
    const double took = now_s() - at;
    EXPECT(told == 1, "it was told %d times", told);
    EXPECT(took < LIMIT_S, "it took %.1f s", took);
    return took;
}

/* Nobody listens at the port, no unfinished checkpoint outlives the next save. */
static void check_rest(const char *out, int port) {
    char path[600];
    Error e = {0};
    int fd = net_listen("127.0.0.1", &port, &e);
    EXPECT(fd >= 0, "%s", e.text);
    if (fd >= 0) close(fd);
    snprintf(path, sizeof path, "ls -d %s/tmp-checkpoint.* 2>/dev/null | grep -q .", out);
    EXPECT(system(path) != 0, "an unfinished checkpoint is left in %s", out);
}

static double lose_one(int sig, int turn, uint64_t *seed) {
    static const int sizes[] = {2, 4};
    static Child c[MOST];
    char out[300], path[600];
    int port;
    int64_t step = 0, after = 0;
    const bool sockets = (turn + turn / 4) % 2; /* each with every victim */
    const int n = sizes[draw(seed, 2)], victim = turn % n, more = n == 2 ? 4 : 1 + draw(seed, 2);
    snprintf(out, sizeof out, "%s/lost", test_dir());
    remove_tree(out);
    snprintf(path, sizeof path, "run.log_every=1000000 run.comm=%s", sockets ? "tcp" : "auto");
    runs_start(c, n, &port, train_line(out, 1000000, path));
    const bool begun = has_begun(out, &c[0]);
    EXPECT(begun, "no checkpoint");
    usleep((useconds_t)draw(seed, 1000000));
    kill(c[victim].pid, sig);
    const double took =
        check_end(c, n, victim, sig, sockets ? "over tcp" : "over shared memory", now_s());
    if (!begun || !ckpt_latest(out, path, sizeof path, &step)) return took;
    run_ranks(more, train_line(out, (int)step + 2, "run.log_every=1000000"));
    EXPECT(ckpt_latest(out, path, sizeof path, &after) && after == step + 2, "%d ranks went on to step %d",
           more, (int)after);
    check_rest(out, port);
    fprintf(stderr, "    signal %d to rank %d of %d after step %d: all gone in %.2f s; %d go on\n", sig,
            victim, n, (int)step, took, more);
    return took;
}

static void lose(int sig, uint64_t seed) {
    const char *asked = getenv("VPDISTILL_SOAK");
    const int count = asked ? atoi(asked) : 2;
    double most = 0;
    if (!vpdistill()) return;
    for (int i = 0; i < count; i++) {
        const double took = lose_one(sig, i, &seed);
        most = MAX(most, took);
    }
    fprintf(stderr, "    signal %d, %d times: all gone in %.2f s at most\n", sig, count, most);
}

TEST(lost_rank_killed) { lose(SIGKILL, 1); }
TEST(lost_rank_stopped) { lose(SIGSTOP, 2); }
