/* comm_tcp.c -- ranks joined by one connection per pair: no library, any launcher. See comm.h.
 *
 * Meant for a handful of CPU ranks. Ranks of one host use a local socket: a sum of 468 MB over two of them
 * takes 0.30 s of each's processor time, by TCP's loopback 0.45. Its name is abstract, so that no file is
 * left behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine/comm.h"

typedef struct Tcp {
    int listener, near; /* near: for ranks of this host; -1 when there cannot be one */
    int fd[]; /* [size], -1 for ourselves */
} Tcp;

typedef struct Card { uint64_t token; int32_t rank, size; } Card; /* what one shows when connecting */

/* The local socket of the process that listens at this port. */
static socklen_t near_name(struct sockaddr_un *a, int pid, int port) {
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    const int n = snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "vpdistill.%d.%d", pid, port);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

static int near_socket(void) {
    const int bytes = 1 << 20; /* as far as the system allows: fewer turns between two ranks */
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return fd;
}

/* -1: in another network's namespace, say; TCP is then the way. */
static int near_listen(int port, int backlog) {
    struct sockaddr_un a;
    const socklen_t size = near_name(&a, (int)getpid(), port);
    const int fd = near_socket();
    if (fd < 0 || (!bind(fd, (struct sockaddr *)&a, size) && !listen(fd, backlog))) return fd;
    close(fd);
    return -1;
}

static int near_connect(const Peer *p) {
    struct sockaddr_un a;
    const socklen_t size = near_name(&a, p->pid, p->port);
    const int fd = near_socket();
    if (fd < 0 || (!connect(fd, (struct sockaddr *)&a, size) && !fcntl(fd, F_SETFL, O_NONBLOCK))) return fd;
    close(fd);
    return -1;
}

static bool tcp_prepare(Comm *c, Launch *launch, LinkConfig *link, Error *e) {
    (void)launch;
    Tcp *t = c->host_state = xcalloc(1, sizeof *t + (size_t)c->size * sizeof *t->fd);
    for (int r = 0; r < c->size; r++) t->fd[r] = -1;
    t->listener = net_listen(NULL, &link->data_port, e);
    t->near = t->listener < 0 ? -1 : near_listen(link->data_port, c->size);
    return t->listener >= 0;
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
        const Peer *p = link_peer(c->link, r);
        t->fd[r] = p->machine == link_peer(c->link, c->rank)->machine ? near_connect(p) : -1;
        if (t->fd[r] < 0) t->fd[r] = net_connect(address_of(c, r), p->port, until, e);
        if (t->fd[r] < 0 || !net_write(t->fd[r], &card, sizeof card, until))
            return fail_in(e, "rank %d connects to rank %d", c->rank, r);
    }
    for (int left = c->size - 1 - c->rank; left;) {
        struct pollfd p[2] = {{t->listener, POLLIN, 0}, {t->near, POLLIN, 0}};
        if (poll(p, 2, 1000) < 1 && now_s() > until)
            return fail_as(e, FAIL_PEER, "rank %d waits in vain for %d other ranks to connect", c->rank, left);
        int fd = accept4(p[1].revents ? t->near : t->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
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
    if (t->near >= 0) close(t->near);
    t->listener = t->near = -1;
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
    if (t->near >= 0) close(t->near);
    free(t);
    c->host_state = NULL;
}

const Transport transport_tcp = {
    .name = "tcp", .prepare = tcp_prepare, .open = tcp_open, .exchange = tcp_exchange, .close = tcp_close};
