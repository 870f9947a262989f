/* launch.c -- reads what launchers put into the environment. See launch.h. */
#include "engine/launch.h"

#include "engine/config.h"

/* Ports are derived from the run's name where the launcher gives none: below the range that systems hand out themselves. */
enum { FIRST_PORT = 12000, PORTS = 20000 };

static const char *env(const char *name) {
    const char *s = getenv(name);
    return s && *s ? s : NULL;
}

static bool env_int(const char *name, int lo, int hi, int *out, Error *e) {
    const char *s = env(name);
    char *end;
    long v = s ? strtol(s, &end, 10) : 0;
    if (!s) return fail_as(e, FAIL_CONFIG, "the environment has no %s", name);
    if (*end || v < lo || v > hi)
        return fail_as(e, FAIL_CONFIG, "%s is \"%.40s\", not a number from %d to %d", name, s, lo, hi);
    *out = (int)v;
    return true;
}

static void add_token(Launch *l, const char *name) {
    const char *s = env(name);
    if (s) l->token = hash_bytes(s, strlen(s), l->token + 1);
}

/* MASTER_ADDR and MASTER_PORT overrule what we would derive. */
static bool meeting_point(Launch *l, Error *e) {
    if (env("MASTER_ADDR")) snprintf(l->address, sizeof l->address, "%s", env("MASTER_ADDR"));
    if (env("MASTER_PORT")) return env_int("MASTER_PORT", 1, 65535, &l->port, e);
    l->port = FIRST_PORT + (int)(l->token % PORTS);
    return true;
}

static bool read_mpirun(Launch *l, Error *e) {
    int local_size = 0;
    l->by = "mpirun";
    if (!env_int("OMPI_COMM_WORLD_SIZE", 1, 1 << 20, &l->size, e) ||
        !env_int("OMPI_COMM_WORLD_RANK", 0, l->size - 1, &l->rank, e) ||
        !env_int("OMPI_COMM_WORLD_LOCAL_RANK", 0, l->size - 1, &l->local_rank, e) ||
        !env_int("OMPI_COMM_WORLD_LOCAL_SIZE", 1, l->size, &local_size, e))
        return fail_in(e, "started by mpirun");
    add_token(l, "PMIX_NAMESPACE");
    add_token(l, "OMPI_MCA_orte_precondition_transports"); /* random, one per mpirun */
    if (local_size == l->size) strcpy(l->address, "127.0.0.1");
    return meeting_point(l, e);
}

void launch_first_host(char *out, size_t size, const char *list) {
    size_t n = strcspn(list, "[,");
    if (list[n] == '[') {
        size_t m = strspn(list + n + 1, "0123456789");
        snprintf(out, size, "%.*s%.*s", (int)n, list, (int)m, list + n + 1);
    } else {
        snprintf(out, size, "%.*s", (int)n, list);
    }
}

static bool read_srun(Launch *l, Error *e) {
    int nodes = 1;
    l->by = "srun";
    if (!env_int("SLURM_STEP_NUM_TASKS", 1, 1 << 20, &l->size, e) ||
        !env_int("SLURM_PROCID", 0, l->size - 1, &l->rank, e) ||
        !env_int("SLURM_LOCALID", 0, l->size - 1, &l->local_rank, e) ||
        (env("SLURM_STEP_NUM_NODES") && !env_int("SLURM_STEP_NUM_NODES", 1, 1 << 20, &nodes, e)))
        return fail_in(e, "started by srun");
    add_token(l, "SLURM_JOB_ID");
    add_token(l, "SLURM_STEP_ID");
    if (nodes == 1)
        strcpy(l->address, "127.0.0.1");
    else if (env("SLURM_STEP_NODELIST"))
        launch_first_host(l->address, sizeof l->address, env("SLURM_STEP_NODELIST"));
    return meeting_point(l, e);
}

static bool read_rank(Launch *l, Error *e) {
    l->by = "RANK and WORLD_SIZE";
    if (!env_int("WORLD_SIZE", 1, 1 << 20, &l->size, e) || !env_int("RANK", 0, l->size - 1, &l->rank, e) ||
        (env("LOCAL_RANK") && !env_int("LOCAL_RANK", 0, l->size - 1, &l->local_rank, e)))
        return fail_in(e, "RANK and WORLD_SIZE");
    if (l->size > 1 && (!env("MASTER_ADDR") || !env("MASTER_PORT")))
        return fail_as(e, FAIL_CONFIG,
                       "RANK is %d of WORLD_SIZE %d, but %s is not set: where do the ranks meet?", l->rank,
                       l->size, env("MASTER_ADDR") ? "MASTER_PORT" : "MASTER_ADDR");
    add_token(l, "MASTER_ADDR");
    add_token(l, "MASTER_PORT");
    add_token(l, "TORCHELASTIC_RUN_ID");
    add_token(l, "TORCHELASTIC_RESTART_COUNT");
    return meeting_point(l, e);
}

/* A launcher is taken to be there when the variable that only it sets is. In a batch script Slurm sets SLURM_PROCID and
 * SLURM_NTASKS already, for a process that srun did not start; SLURM_STEP_NUM_TASKS is srun's alone. */
static const struct Launcher {
    const char *variable;
    bool (*read)(Launch *l, Error *e);
} launchers[] = {
    [LAUNCH_MPIRUN] = {"OMPI_COMM_WORLD_SIZE", read_mpirun},
    [LAUNCH_SRUN] = {"SLURM_STEP_NUM_TASKS", read_srun},
    [LAUNCH_ENV] = {"WORLD_SIZE", read_rank},
};

bool launch_detect(Launch *l, int which, Error *e) {
    *l = (Launch){.by = "", .size = 1, .local_rank = -1};
    if (which == LAUNCH_NONE) return true;
    for (int i = LAUNCH_MPIRUN; i <= LAUNCH_ENV; i++) {
        Launch found = {.local_rank = -1};
        if (which == LAUNCH_AUTO ? !env(launchers[i].variable) : i != which) continue;
        if (!launchers[i].read(&found, e)) return false;
        add_token(&found, "VPDISTILL_TOKEN");
        if (*l->by && (l->rank != found.rank || l->size != found.size))
            return fail_as(e, FAIL_CONFIG,
                           "%s says rank %d of %d, %s says rank %d of %d; run.launcher says which one counts",
                           l->by, l->rank, l->size, found.by, found.rank, found.size);
        if (!*l->by) *l = found;
    }
    return true;
}
