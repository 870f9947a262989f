/* ranks.h -- tests with several ranks: forked processes that meet as ranks of one run and do nothing with OpenMP. */
#pragma once
#include "engine/comm.h"
#include "tests/test.h"

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

/* A rank's EXPECT: its exit status is what the test sees. */
#define MUST(cond, ...) ((cond) ? (void)0 : (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(99)))
