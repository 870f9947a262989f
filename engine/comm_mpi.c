/* comm_mpi.c -- ranks that mpirun has started, over MPI on host memory (MPI=1). See comm.h.
 *
 * MPI's blocking calls spin on the core that computes. So nothing here blocks: a request is begun and then tested, with pauses
 * as long as the backward pass has something to do beside it, without when somebody waits. MPI does not notice that a
 * rank is gone, or ends in its own way and time; that is link.c's business.
 */
#include <mpi.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "engine/comm.h"

enum { PIECE = 1 << 30 }; /* bytes of one message: MPI counts in int */

static void check(Comm *c, int status, const char *what) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING + 64], why[MPI_MAX_ERROR_STRING] = "";
    int n;
    MPI_Error_string(status, why, &n);
    snprintf(text, sizeof text, "%s: %s", what, why);
    if (c->link) link_lost(c->link, -1, text);
    die(FAIL_PEER, "%s", text);
}
#define MPI_CHECK(c, call) check((c), (call), #call)

/* Where the ranks meet is what rank 0 tells through MPI: no port has to be agreed upon. */
static bool mpi_prepare(Comm *c, Launch *launch, LinkConfig *link, Error *e) {
    struct { char address[256]; int port; uint64_t token; } meet = {0};
    int given = 0, rank = -1, size = 0;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &given) != MPI_SUCCESS || given < MPI_THREAD_SERIALIZED)
        return fail_as(e, FAIL_PEER, "this MPI does not take calls from two threads in turn (MPI_THREAD_SERIALIZED)");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_CHECK(c, MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    MPI_CHECK(c, MPI_Comm_size(MPI_COMM_WORLD, &size));
    if (rank != launch->rank || size != launch->size)
        return fail_as(e, FAIL_CONFIG,
                       "%s says rank %d of %d, MPI says rank %d of %d: a launcher of another MPI? (run.comm=tcp does without)",
                       launch->by, launch->rank, launch->size, rank, size);
    if (!rank) {
        int port = 0;
        if (*launch->address)
            strcpy(meet.address, launch->address);
        else
            gethostname(meet.address, sizeof meet.address - 1);
        link->listener = net_listen(NULL, &port, e);
        meet.port = link->listener < 0 ? -1 : port;
        if (getrandom(&meet.token, sizeof meet.token, 0) != sizeof meet.token) meet.token = (uint64_t)getpid();
    }
    MPI_CHECK(c, MPI_Bcast(&meet, sizeof meet, MPI_BYTE, 0, MPI_COMM_WORLD));
    if (meet.port < 0) return rank ? fail_as(e, FAIL_PEER, "rank 0 cannot listen") : false;
    strcpy(launch->address, meet.address);
    launch->port = meet.port;
    launch->token = meet.token;
    return true;
}

static void finish(Comm *c, int n, MPI_Request *request) {
    for (int tests = 0, done = 0;; tests++) {
        MPI_CHECK(c, MPI_Testall(n, request, &done, MPI_STATUSES_IGNORE));
        if (done) return;
        /* Sleep, not sched_yield: on a machine that also does something else a yield gives a whole turn away (ten steps took 37 s
         * instead of 13 at load 9). */
        if (tests > (__atomic_load_n(&c->hurry, __ATOMIC_RELAXED) ? 1000 : 20)) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

static void mpi_exchange(Comm *c, int to, const void *send, size_t n, int from, void *recv, size_t m) {
    const char *out = send;
    char *in = recv;
    if (to < 0) n = 0;
    if (from < 0) m = 0;
    while (n || m) {
        MPI_Request request[2];
        int k = 0, a = (int)MIN(n, PIECE), b = (int)MIN(m, PIECE);
        if (b) MPI_CHECK(c, MPI_Irecv(in, b, MPI_BYTE, from, 0, MPI_COMM_WORLD, &request[k++]));
        if (a) MPI_CHECK(c, MPI_Isend(out, a, MPI_BYTE, to, 0, MPI_COMM_WORLD, &request[k++]));
        finish(c, k, request);
        if (a) out += a, n -= (size_t)a;
        if (b) in += b, m -= (size_t)b;
    }
}

static void mpi_sum(Comm *c, float *x, int64_t n) {
    while (n) {
        MPI_Request request;
        int k = (int)MIN(n, PIECE);
        MPI_CHECK(c, MPI_Iallreduce(MPI_IN_PLACE, x, k, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request));
        finish(c, 1, &request);
        x += k;
        n -= k;
    }
}

static void mpi_close(Comm *c) {
    (void)c;
    MPI_Finalize();
}

const Transport transport_mpi = {
    .name = "MPI", .prepare = mpi_prepare, .exchange = mpi_exchange, .sum = mpi_sum, .close = mpi_close};
