/* ranks.c -- several processes as ranks of one run. See ranks.h. */
#include "tests/engine/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const known[] = {
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE",
    "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST", "SLURM_JOB_ID",
    "SLURM_NTASKS", "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"};

void launched_by_nobody(void) {
    for (int i = 0; i < COUNT_OF(known); i++) unsetenv(known[i]);
}

int free_port(void) {
    int port = 0;
    Error e = {0};
    int fd = net_listen("127.0.0.1", &port, &e);
    CHECK(fd >= 0, "%s", e.text);
    close(fd);
    return port;
}

void launched(int rank, int size, int port) {
    char n[16];
    launched_by_nobody();
    snprintf(n, sizeof n, "%d", rank), setenv("RANK", n, 1);
    snprintf(n, sizeof n, "%d", size), setenv("WORLD_SIZE", n, 1);
    snprintf(n, sizeof n, "%d", port), setenv("MASTER_PORT", n, 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
}

void said_to(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(fd >= 0 && dup2(fd, 2) == 2, "%s", path);
}

void ranks_start(Ranks *r, int n, const char *option, void (*fn)(Comm *c)) {
    static int number;
    const int port = free_port();
    r->n = n;
    snprintf(r->said, sizeof r->said, "%s/ranks-%d", test_dir(), number++);
    fflush(NULL);
    for (int k = 0; k < n; k++) {
        r->pid[k] = fork();
        CHECK(r->pid[k] >= 0, "fork");
        if (r->pid[k]) continue;
        said_to(r->said);
        Config cfg;
        Error e = {0};
        CHECK(config_load(&cfg, NULL, &option, option ? 1 : 0, &e), "%s", e.text);
        launched(k, n, port);
        if (!comm_open(&cfg, &e)) {
            if (*e.text) fprintf(stderr, "rank %d: %s\n", k, e.text);
            _exit(e.status);
        }
        fn(comm_world());
        comm_close();
        _exit(0);
    }
}

void ranks_wait(Ranks *r, char *text, size_t size) {
    for (int k = 0; k < r->n; k++) {
        int s;
        while (waitpid(r->pid[k], &s, 0) < 0 && errno == EINTR) {}
        r->status[k] = WIFEXITED(s) ? WEXITSTATUS(s) : -WTERMSIG(s);
    }
    char *data = NULL;
    size_t n;
    Error e = {0};
    *text = 0;
    if (file_read(r->said, &data, &n, 1 << 20, &e)) snprintf(text, size, "%s", data);
    free(data);
}
