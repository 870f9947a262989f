/* launch.h -- which rank of how many this process is, as its launcher says in the environment.
 *
 * Known are Open MPI's mpirun, Slurm's srun, and every launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
 * (torchrun's names). Nothing is linked or asked for this: only variables are read. Next: link.h, where ranks meet.
 */
#pragma once
#include "engine/base.h"

typedef struct Launch {
    const char *by;     /* "mpirun", "srun", "RANK and WORLD_SIZE"; "" when nobody launched us: one rank */
    int rank, size;
    int local_rank;     /* on this host; -1: the launcher does not say */
    char address[256];  /* where rank 0 can be reached; empty when the launcher does not say (MPI then carries it) */
    int port;           /* where it listens; 0 likewise */
    uint64_t token;     /* of this run: what the launcher calls it. Who brings another is not of this run */
} Launch;

/* which: the option run.launcher (LAUNCH_AUTO, ...). Two launchers that disagree are an error, as are half-set variables. */
bool launch_detect(Launch *l, int which, Error *e);
/* The first host of Slurm's compressed list: "node[07-12,20],big" is node07. */
void launch_first_host(char *out, size_t size, const char *list);
