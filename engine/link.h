/* link.h -- where the ranks meet, and how each learns within seconds that another is gone.
 *
 * Beside whatever carries the data (MPI, NCCL, TCP) every rank keeps one TCP connection to rank 0 and a thread that watches
 * it. The libraries that carry data do not help here: a rank that waits for a dead one in MPI or NCCL waits for ever, and
 * PyTorch's default is to look after ten minutes. Twenty times a second each rank says where it is: update, collective.
 * Rank 0 judges who died (connection closed), who hangs (silent), who failed (said so), who is in another collective than
 * the rest; it prints the first cause once and tells all, and all exit with FAIL_PEER. Rank 1 speaks when rank 0 is gone.
 * Next: comm.h.
 */
#pragma once
#include "engine/launch.h"

/* What the ranks know of each other once they have met. */
typedef struct Peer {
    char host[64], address[64]; /* its name for itself; the number others reach it by */
    uint64_t machine;           /* equal: the same host and the same process numbers */
    int32_t pid, port;          /* port: where its transport listens, 0: nowhere */
} Peer;

typedef struct Link Link;

typedef struct LinkConfig {
    const Launch *launch;
    double timeout_s;   /* from a rank's death or last sign to the end of the last other one */
    uint64_t config;    /* of the run's configuration: all ranks must have the same */
    int data_port;
    int listener;       /* rank 0: an open listening socket, -1: one is opened at launch->address, launch->port */
} LinkConfig;

/* Waits until all ranks are there (a minute at most). NULL with e: who is missing, or whose configuration differs. */
Link *link_open(const LinkConfig *c, Error *e);
const Peer *link_peer(const Link *l, int rank);

/* This rank is now in update `step`, and in (or before) the collective `what` of n values. */
void link_step(Link *l, int64_t step);
void link_collective(Link *l, const char *what, int64_t n);
/* Called by the watching thread: `poll` every time it looks, false with e when the transport has an error of its own; `abort`
 * once before this process exits, so that nothing on a device or in a library goes on waiting. Either may be NULL. */
void link_hooks(Link *l, bool (*poll)(void *arg, Error *e), void (*abort)(void *arg), void *arg);

/* Returns when this run is not ending: to be called when a device's queue has been waited for and before
 * what the collectives in it gave is used. `abort` lets queued collectives go unfinished, and their stream
 * goes on with garbage; whoever waited for it stays here until the watching thread has ended the process. */
void link_intact(Link *l);
/* The transport lost `peer` (-1: it cannot say whom). The cause is mostly known to the watching thread in a moment; if not,
 * this is it. Does not return. */
_Noreturn void link_lost(Link *l, int peer, const char *why);
/* This rank ends with an error of its own. Returns when the others know; true: the sentence was printed. */
bool link_fail(Link *l, Status s, const char *text);
/* The orderly end: waits until all ranks are here. */
void link_close(Link *l);

/* Sockets, for the transports too. */
int net_listen(const char *address, int *port, Error *e); /* address NULL: all; *port 0: any, and then which */
int net_connect(const char *address, int port, double until_s, Error *e); /* tries again until then (now_s) */
/* Reads or writes all n bytes of a non-blocking socket before `until_s`; errno says why not, 0: the other side closed. */
bool net_read(int fd, void *p, size_t n, double until_s);
bool net_write(int fd, const void *p, size_t n, double until_s);
