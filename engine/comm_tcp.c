/* comm_tcp.c -- ranks joined by one TCP connection per pair: no library, any launcher. See comm.h.
 *
 * Meant for a handful of CPU ranks. On one host the kernel's loopback copies twice, which MPI's shared memory does not.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/comm.h"

typedef struct Tcp {
    int listener;
    int fd[]; /* [size], -1 for ourselves */
} Tcp;

typedef struct Card { uint64_t token; int32_t rank, size; } Card; /* what one shows when connecting */

static bool tcp_prepare(Comm *c, Launch *launch, LinkConfig *link, Error *e) {
    (void)launch;
    Tcp *t = c->host_state = xcalloc(1, sizeof *t + (size_t)c->size * sizeof *t->fd);
    for (int r = 0; r < c->size; r++) t->fd[r] = -1;
    return (t->listener = net_listen(NULL, &link->data_port, e)) >= 0;
}

/* Rank 0 sees a rank of its own host at the loopback address, which is no use to others. */
static const char *address_of(const Comm *c, int r) {
    const Peer *p = link_peer(c->link, r), *root = link_peer(c->link, 0), *me = link_peer(c->link, c->rank);
    if (p->machine == me->machine) return "127.0.0.1";
    return p->machine == root->machine ? root->address : p->address;
}

/* Each connects to the ranks below and is called by those above. */
static bool tcp_open(Comm *c, Device *dev, Error *e) {
    (void)dev;
    Tcp *t = c->host_state;
    Card card = {c->token, c->rank, c->size};
    const double until = now_s() + 30;
    for (int r = 0; r < c->rank; r++) {
        t->fd[r] = net_connect(address_of(c, r), link_peer(c->link, r)->port, until, e);
        if (t->fd[r] < 0 || !net_write(t->fd[r], &card, sizeof card, until))
            return fail_in(e, "rank %d connects to rank %d", c->rank, r);
    }
    for (int left = c->size - 1 - c->rank; left;) {
        struct pollfd p = {t->listener, POLLIN, 0};
        if (poll(&p, 1, 1000) < 1 && now_s() > until)
            return fail_as(e, FAIL_PEER, "rank %d waits in vain for %d other ranks to connect", c->rank, left);
        int fd = accept4(t->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        Card its;
        if (fd < 0) continue;
        if (net_read(fd, &its, sizeof its, now_s() + 5) && its.token == c->token && its.size == c->size && its.rank > c->rank &&
            its.rank < c->size && t->fd[its.rank] < 0) {
            t->fd[its.rank] = fd;
            left--;
        } else {
            close(fd); /* not of this run */
        }
    }
    close(t->listener);
    t->listener = -1;
    return true;
}

static void lost(Comm *c, int peer, ssize_t n) {
    link_lost(c->link, peer, n ? strerror(errno) : "it closed the connection");
}

/* Both directions at once: two ranks that first sent and then received would wait for each other when the buffers are full. */
static void tcp_exchange(Comm *c, int to, const void *send_, size_t n, int from, void *recv_, size_t m) {
    const Tcp *t = c->host_state;
    const char *out = send_;
    char *in = recv_;
    if (to < 0) n = 0;
    if (from < 0) m = 0;
    while (n || m) {
        bool moved = false;
        if (n) {
            ssize_t k = send(t->fd[to], out, n, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (k > 0) out += k, n -= (size_t)k, moved = true;
            else if (k < 0 && errno != EAGAIN && errno != EINTR) lost(c, to, k);
        }
        if (m) {
            ssize_t k = recv(t->fd[from], in, m, MSG_DONTWAIT);
            if (k > 0) in += k, m -= (size_t)k, moved = true;
            else if (!k || (errno != EAGAIN && errno != EINTR)) lost(c, from, k);
        }
        if (moved) continue;
        struct pollfd p[2] = {{n ? t->fd[to] : -1, POLLOUT, 0}, {m ? t->fd[from] : -1, POLLIN, 0}};
        poll(p, 2, -1); /* without end: the link ends us when a rank is gone */
    }
}

static void tcp_close(Comm *c) {
    Tcp *t = c->host_state;
    for (int r = 0; r < c->size; r++)
        if (t->fd[r] >= 0) close(t->fd[r]);
    if (t->listener >= 0) close(t->listener);
    free(t);
    c->host_state = NULL;
}

const Transport transport_tcp = {
    .name = "tcp", .prepare = tcp_prepare, .open = tcp_open, .exchange = tcp_exchange, .close = tcp_close};
