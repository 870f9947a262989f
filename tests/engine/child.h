/* child.h -- other processes of a test: a function that may die, the command itself, with what they say and how they end. */
#pragma once
#include "tests/test.h"

#include <sys/types.h>

typedef struct Child {
    pid_t pid;
    int from;         /* the reading end of its stdout and stderr */
    int status;       /* 0..255: it exited with that; -n: signal n ended it */
    char text[16384]; /* what it said, the first bytes */
} Child;

/* Runs fn(arg) in a child whose output is kept, then exits with 0. Returns the status. */
int child_call(Child *c, void (*fn)(void *), void *arg);

/* A small dataset of the built-in kind, written once per run of the tests: 16 training images with steps and questions. */
const char *tiny_scenes(void);
/* The same in a folder of its own (DIR/name), for a test that damages it. */
const char *own_scenes(const char *name);
/* The repository's folder, for paths given to a command that runs elsewhere: the tests are started there. */
const char *repository(void);
/* Whether two folders hold the same files with the same bytes; if not, *why says where. */
bool same_folders(const char *a, const char *b, char *why, size_t size);

/* The command under test: $VPDISTILL, or `vpdistill` beside this test binary. NULL, and the test is marked as skipped, when
 * it is not there. */
const char *vpdistill(void);
/* Starts vpdistill in folder `dir` (NULL: here); `line` is split at spaces. setup (may be NULL) runs in the child first. */
void command_start(Child *c, const char *dir, void (*setup)(void), const char *line);
/* Starts n processes of program `exe` by mpirun, which are ranks of one run. */
void mpirun_start(Child *c, int n, const char *exe, const char *line);
/* Waits for its end and reads what it said. */
int command_wait(Child *c);
/* Both. */
int command(Child *c, const char *dir, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
