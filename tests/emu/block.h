/* block.h -- the block that runs, as the files of the emulation share it. See emu.h. */
#pragma once
#include "tests/emu/emu.h"

#include <vector>

enum { STATIC_SHARED = 48 << 10, ALL_SHARED = 227 << 10, MAX_THREADS = 1024 };
enum { RED_ZONE = 64, CANARY = 0xA5 };

struct Fiber { /* a stack; it stays with its thread while that waits, and serves one thread after another */
    char *stack;
    void *sp;
};
enum { STACK = 256 << 10 };

enum State { FRESH, READY, AT_BARRIER, IN_WARP, DONE };

struct Copy { char *dst; const char *src; };

struct Thread {
    State state;
    dim3 at;
    Fiber *fiber;
    const char *file; /* of the barrier it waits at */
    int line;
    uint32_t mask; /* of the warp step it waits in */
    const char *what;
    void *arg;
    std::vector<Copy> copies;   /* asynchronous ones that have not arrived, oldest first */
    std::vector<size_t> groups; /* copies in each committed group, and in the open one */
};

struct Array { char *p; size_t bytes; const char *name; };

struct Cta { /* cooperative thread array: CUDA's own word for a block */
    const EmuLaunch *launch;
    uint64_t number; /* over the whole process */
    uint32_t epoch;  /* counts blocks and the barriers in them */
    Thread thread[MAX_THREADS];
    uint16_t steps[MAX_THREADS / 32]; /* of each warp */
    int n;                            /* threads */
    Thread *now;                      /* the one that runs, or NULL: the scheduler */
    int first, lanes;                 /* of its warp */
    uint32_t absent, in_warp;         /* its lanes that do not exist or have returned; that wait in a warp step */
    int next;                         /* the place in lane_order that comes after it */
    int lane_order[32];
    void *scheduler; /* its stack pointer */
    bool failed;
    std::vector<Array> arrays; /* shared ones */
    size_t shared_used;
};
extern Cta cta;
extern char emu_static_shared[], emu_dynamic_shared_memory[];

static inline int thread_number(void) { return (int)(cta.now - cta.thread); }

/* Runs all blocks, now. */
void emu_run_launch(const EmuLaunch *l);
/* Tells, and gives the launch up: does not return to a kernel that asked for it. */
__attribute__((format(printf, 1, 2))) void emu_report(const char *fmt, ...);

/* Who has touched shared memory since the last barrier (access.cpp). An asynchronous copy begins and arrives. */
void shared_access(const void *p, size_t n, bool write);
void shared_copy(const void *p, size_t n, bool arrives);
void shared_red_zone(const void *p, size_t n);
/* By the thread that runs, from `place` in the code. */
void global_access(const void *p, size_t n, bool write, const void *place);
void shared_request(const void *p, size_t n, const void *place);
/* A launch begins: its traffic is counted apart. Block and warps (or one warp, all lanes of it) have come together: the
 * requests of their lanes since then are whole. */
void traffic_launch(const EmuLaunch *l);
void traffic_block_together(void);
void traffic_warp_together(int warp);

/* For AddressSanitizer, when it is there. */
void emu_poison(const void *p, size_t n);
void emu_unpoison(const void *p, size_t n);
