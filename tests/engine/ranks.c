/* ranks.c -- several processes as ranks of one run. See ranks.h. */
#include "tests/engine/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/safetensors.h"

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

/* ---- whole runs ----------------------------------------------------------------------------------- */

static int the_rank, the_size, the_port;
static void as_launched(void) { launched(the_rank, the_size, the_port); }

void runs_start(Child *c, int n, int *port, const char *line) {
    *port = the_port = free_port();
    the_size = n;
    for (the_rank = 0; the_rank < n; the_rank++) command_start(&c[the_rank], NULL, as_launched, line);
}

bool ranks_by_mpirun;

void run_ranks(int n, const char *line) {
    static Child c[MOST];
    int port;
    if (ranks_by_mpirun) {
        mpirun_start(&c[0], n, vpdistill(), line);
        EXPECT(command_wait(&c[0]) == 0 && (n == 1 || strstr(c[0].text, "over MPI")),
               "mpirun -n %d: status %d: %s", n, c[0].status, c[0].text);
        return;
    }
    runs_start(c, n, &port, line);
    for (int k = 0; k < n; k++)
        EXPECT(command_wait(&c[k]) == 0, "%d ranks, rank %d: status %d: %s", n, k, c[k].status, c[k].text);
}

const char *train_line(const char *out, int steps, const char *more) {
    static char line[2000];
    snprintf(line, sizeof line,
             "train data.kind=steps data.dir=%s model.vqa=%s/configs/models/tiny-vilt "
             "model.loc=%s/configs/models/tiny-owlvit run.out=%s "
             "train.from_scratch=true train.steps=%d train.batch=16 train.per_image=2 train.save_every=4 "
             "run.threads=1 run.bucket_mb=0.05 %s",
             tiny_scenes(), repository(), repository(), out, steps, more);
    return line;
}

const char *distill_line(const char *out, int steps, const char *more) {
    static char line[2000];
    snprintf(line, sizeof line,
             "distill data.kind=gqa data.dir=%s model.vqa=%s/configs/models/demo-vqa "
             "model.loc=%s/configs/models/demo-loc "
             "model.teacher=%s/configs/models/demo-teacher run.out=%s distill.steps=%d distill.programs=32 "
             "distill.per_image=4 eval.limit=4 run.threads=1 "
             "distill.replay_dir=%s train.save_every=2 run.bucket_mb=0.05 %s",
             tiny_scenes(), repository(), repository(), repository(), out, steps, tiny_scenes(), more);
    return line;
}

double moments_difference(const char *a, const char *b, int step, const char *file) {
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
        for (int64_t k = 0; k < st_numel(t); k++)
            squares += (double)p[k] * p[k], diff += ((double)p[k] - q[k]) * ((double)p[k] - q[k]);
    }
    st_close(&x);
    st_close(&y);
    EXPECT(squares > 0, "%s: no gradient", a);
    return sqrt(diff / squares);
}

void outs(char out[3][300], const char *name) {
    for (int i = 0; i < 3; i++) {
        snprintf(out[i], 300, "%s/%s-%d", test_dir(), name, 1 << i);
        remove_tree(out[i]);
    }
}

int times(const char *text, const char *word) {
    int n = 0;
    for (const char *s = text; (s = strstr(s, word)); s++) n++;
    return n;
}
