/* ranks.h -- tests with several ranks: forked processes that meet as ranks of one run and do nothing with
 * OpenMP, and whole runs of the command. */
#pragma once
#include "engine/comm.h"
#include "tests/engine/child.h"

#include <sys/types.h>

enum { MOST = 8 };

/* Processes of one test. status: 0..255 it exited with that; -n: signal n ended it. */
typedef struct Ranks {
    pid_t pid[MOST];
    int n, status[MOST];
    char said[300]; /* file with what they printed */
} Ranks;

int free_port(void);
/* Takes the variables of all launchers away; sets those of rank `rank`, as a plain launcher does. */
void launched_by_nobody(void);
void launched(int rank, int size, int port);
/* stderr goes to the end of a file. */
void said_to(const char *path);
/* Starts n ranks that meet and call fn; option is one more assignment of the configuration, or NULL. */
void ranks_start(Ranks *r, int n, const char *option, void (*fn)(Comm *c));
/* Waits for their ends and reads what they said. */
void ranks_wait(Ranks *r, char *text, size_t size);
/* Every collective with its result (test_comm.c). */
void all_collectives(Comm *c);

/* Starts the command as n ranks, as a launcher would that sets RANK, WORLD_SIZE, MASTER_ADDR and
 * MASTER_PORT (*port, too). */
void runs_start(Child *c, int n, int *port, const char *line);
/* Runs it to its end, which must be a good one; by mpirun while ranks_by_mpirun is set. */
void run_ranks(int n, const char *line);
extern bool ranks_by_mpirun;
/* Command lines of small runs into a folder: the last `more` wins. Valid until the next call. */
typedef const char *LineFn(const char *out, int steps, const char *more);
LineFn train_line, distill_line;
/* The norm of the difference of the first moments in two runs' checkpoints, over that of the first's.
 * After one update without clipping they are (1 - beta1) times the gradient. */
double moments_difference(const char *a, const char *b, int step, const char *file);
/* DIR/name-1, -2 and -4, removed. */
void outs(char out[3][300], const char *name);
/* What whole runs of 1, 2 and 4 ranks must share (test_ranks.c). */
TestFn gradient_of_train, gradient_of_distill, gradient_of_lessons, bits_of_train, bits_of_distill,
    resume_train, resume_lessons;
/* How often `word` is in text. */
int times(const char *text, const char *word);

/* A rank's EXPECT: its exit status is what the test sees. */
#define MUST(cond, ...) ((cond) ? (void)0 : (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(99)))
