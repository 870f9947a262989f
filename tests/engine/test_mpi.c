/* test_mpi.c -- ranks that mpirun has started, over MPI (make mpi-test): what test_comm.c, test_ranks.c
 * and test_lost.c ask of ranks over TCP. mpirun sees one process end and ends the rest, so of their ends
 * only the time and the words are looked at. */
#include "tests/engine/ranks.h"

#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include "engine/ckpt.h"

/* Under mpirun this test is a rank; else it starts mpirun on this binary and this test. */
TEST(mpi_collectives) {
    static Child c;
    char exe[600] = "";
    if (getenv("OMPI_COMM_WORLD_SIZE")) {
        Config cfg;
        Error e = {0};
        CHECK(config_load(&cfg, NULL, NULL, 0, &e) && comm_open(&cfg, &e), "%s", e.text);
        CHECK(comm_world()->size == 1 || !strcmp(comm_world()->host->name, "MPI"), "over %s",
              comm_world()->host->name);
        all_collectives(comm_world());
        comm_close();
        return;
    }
    CHECK(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0, "/proc/self/exe");
    for (int n = 1; n <= 5; n++) {
        mpirun_start(&c, n, exe, "mpi_collectives");
        EXPECT(command_wait(&c) == 0 && times(c.text, "1 passed") == n, "mpirun -n %d: status %d: %s", n,
               c.status, c.text);
    }
}

#define BY_MPIRUN(fn)                                                                                        \
    TEST(mpi_##fn) {                                                                                         \
        ranks_by_mpirun = true;                                                                              \
        if (vpdistill()) fn();                                                                               \
        ranks_by_mpirun = false;                                                                             \
    }
BY_MPIRUN(gradient_of_train)
BY_MPIRUN(gradient_of_lessons)
BY_MPIRUN(bits_of_train)
BY_MPIRUN(resume_train)

/* A file of /proc/pid, its zero bytes as spaces. */
static bool proc_text(int pid, const char *file, char *out, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    FILE *f = fopen(path, "r");
    if (!f) return false;
    size_t n = fread(out, 1, size - 1, f);
    fclose(f);
    for (size_t i = 0; i < n; i++)
        if (!out[i]) out[i] = ' ';
    out[n] = 0;
    return n > 0;
}

/* The processes that mpirun has started, by rank. */
static int find_ranks(int mpirun, int pid[MOST]) {
    static char text[65536];
    int n = 0, parent, rank;
    DIR *d = opendir("/proc");
    for (struct dirent *f; d && (f = readdir(d));) {
        const int p = atoi(f->d_name);
        const char *at;
        if (p < 1 || !proc_text(p, "stat", text, sizeof text) || !(at = strrchr(text, ')')) ||
            sscanf(at, ") %*c %d", &parent) != 1 || parent != mpirun)
            continue;
        if (!proc_text(p, "environ", text, sizeof text) || !(at = strstr(text, "OMPI_COMM_WORLD_RANK=")) ||
            sscanf(at, "OMPI_COMM_WORLD_RANK=%d", &rank) != 1 || rank >= MOST)
            continue;
        pid[rank] = p;
        n++;
    }
    if (d) closedir(d);
    return n;
}

/* Not there any more, or (its parent gone before it) waiting for somebody to read its status. */
static bool is_gone(int pid) {
    char path[64], exe[16];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return readlink(path, exe, sizeof exe) < 0;
}

static void lose(int n, int victim, int sig) {
    static Child c;
    char out[300], path[600], its[96];
    int pid[MOST] = {0}, left = n;
    int64_t step, after = -1;
    snprintf(out, sizeof out, "%s/mpi-lost", test_dir());
    remove_tree(out);
    mpirun_start(&c, n, vpdistill(), train_line(out, 1000000, "run.log_every=1000000"));
    for (int i = 0; i < 12000 && !ckpt_latest(out, path, sizeof path, &step); i++) usleep(10000);
    EXPECT(find_ranks(c.pid, pid) == n, "not all ranks were found");
    if (!pid[victim]) return;
    snprintf(its, sizeof its, ", pid %d) %s", pid[victim],
             sig == SIGKILL ? "died, last seen at step" : "has been silent for");
    kill(pid[victim], sig);
    const double at = now_s();
    EXPECT(command_wait(&c) != 0, "mpirun ends with 0: %s", c.text);
    while (left && now_s() - at < 10) {
        left = 0;
        for (int k = 0; k < n; k++) left += !is_gone(pid[k]);
        usleep(10000);
    }
    EXPECT(!left, "signal %d to rank %d of %d: %d are left after 10 s", sig, victim, n, left);
    fprintf(stderr, "    signal %d to rank %d of %d by mpirun: all gone in %.2f s\n", sig, victim, n,
            now_s() - at);
    EXPECT(times(c.text, "all ranks end") == 1 && strstr(c.text, its) &&
               strstr(c.text, "in the collective \""),
           "not said once: \"%s\": %s", its, c.text);
    if (!ckpt_latest(out, path, sizeof path, &step)) return;
    ranks_by_mpirun = true;
    run_ranks(n == 2 ? 4 : 2, train_line(out, (int)step + 2, "run.log_every=1000000"));
    ranks_by_mpirun = false;
    EXPECT(ckpt_latest(out, path, sizeof path, &after) && after == step + 2, "went on to step %d",
           (int)after);
}

TEST(mpi_rank_lost) {
    if (!vpdistill()) return;
    lose(4, 2, SIGKILL);
    lose(2, 1, SIGSTOP);
}
