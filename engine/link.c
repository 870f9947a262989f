/* link.c -- rendezvous, signs of life, verdicts. See link.h.
 *
 * One thread per rank owns the connections (a star with rank 0 in the middle) and runs `watch`. The other threads only leave
 * notes under the lock. Messages have one size, so a half-read one is an offset and nothing more.
 */
#include "engine/link.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define JOIN_S 60.0    /* launchers start the ranks of a big job within seconds of each other */
#define BEATS 40       /* signs of life per time limit, and at least 20 a second: a rank that dies was last seen a step ago */
#define SILENT 0.6     /* share of the limit after which a silent rank is given up; the rest is for everybody's end */
#define WORDS_S 1.0    /* for last messages to arrive */
enum { HELLO_MAGIC = 0x76706431, REMEMBERED = 4096, MAX_PENDING = 64 };

/* Where a rank is. `chain` is a hash over all its collectives so far: at equal `seq` it must be equal on all ranks. */
typedef struct Where {
    int64_t step, seq;
    uint64_t chain;
    char what[64];
} Where;

typedef enum Kind { BEAT = 1, FAILED, VERDICT, BYE } Kind;
typedef struct Message {
    int32_t kind, status, culprit, silent; /* silent: the culprit may still exist and must not */
    Where where;
    char text[768];
} Message;

typedef struct Hello {
    uint32_t magic, bytes; /* of a Message: two versions do not mix */
    uint64_t token, config;
    int32_t rank, size;
    Peer peer;
} Hello;

typedef struct Welcome { uint32_t magic; char refused[508]; } Welcome;

/* A connection of the watching thread. */
typedef struct Line {
    int fd;             /* -1: none */
    bool said_bye;
    double heard;
    Where where;
    Message in, out;
    size_t got, left;   /* bytes of `in` read, of `out` still to be written */
} Line;

struct Link {
    Launch launch;
    double timeout_s;
    Peer *peer;         /* [size] */
    Line *line;         /* [size] on rank 0; on others only line[0] is connected */
    pthread_t thread;
    int wake[2];
    bool (*poll)(void *arg, Error *e);
    void (*abort)(void *arg);
    void *arg;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    Where here;
    struct { uint64_t chain; char what[64]; } past[REMEMBERED]; /* rank 0: its collectives, by seq */
    bool closing, closed, failing, told;
    Message last_words;
    atomic_bool ending; /* set before collectives are let go: link_intact */
};

/* ---- sockets -------------------------------------------------------------------------------------- */

static void set_up(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static struct addrinfo *resolve(const char *address, int port, bool passive, Error *e) {
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : 0};
    char number[16];
    if (!address) hints.ai_family = AF_INET;
    snprintf(number, sizeof number, "%d", port);
    int err = getaddrinfo(address, number, &hints, &found);
    if (err) fail_as(e, FAIL_PEER, "the host %s is not known: %s", address ? address : "(any)", gai_strerror(err));
    return err ? NULL : found;
}

int net_listen(const char *address, int *port, Error *e) {
    struct addrinfo *a = resolve(address, *port, true, e);
    if (!a) return -1;
    int one = 1, fd = socket(a->ai_family, SOCK_STREAM, 0), err = 0;
    struct sockaddr_storage name;
    socklen_t size = sizeof name;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, 128) ||
        getsockname(fd, (struct sockaddr *)&name, &size)) {
        err = errno;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(a);
    if (fd < 0 && err == EADDRNOTAVAIL && address) return net_listen(NULL, port, e); /* known to others by another name */
    if (fd < 0) {
        fail_as(e, FAIL_PEER, "cannot listen at %s port %d: %s", address ? address : "any address", *port,
                strerror(err));
        return -1;
    }
    set_up(fd);
    *port = ntohs(name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                             : ((struct sockaddr_in *)&name)->sin_port);
    return fd;
}

static bool wait_for(int fd, short events, double until_s) {
    struct pollfd p = {fd, events, 0};
    for (;;) {
        double left = until_s - now_s();
        int n = poll(&p, 1, left > 0 ? (int)(MIN(left, 3600) * 1000) + 1 : 0);
        if (n > 0) return true;
        if (n < 0 && errno == EINTR) continue;
        if (!n) errno = ETIMEDOUT;
        return false;
    }
}

bool net_read(int fd, void *p, size_t n, double until_s) {
    char *at = p;
    while (n) {
        ssize_t k = recv(fd, at, n, 0);
        if (k > 0) {
            at += k;
            n -= (size_t)k;
        } else if (!k) {
            errno = 0;
            return false;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLIN, until_s)) return false;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

bool net_write(int fd, const void *p, size_t n, double until_s) {
    const char *at = p;
    while (n) {
        ssize_t k = send(fd, at, n, MSG_NOSIGNAL);
        if (k >= 0) {
            at += k;
            n -= (size_t)k;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLOUT, until_s)) return false;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

int net_connect(const char *address, int port, double until_s, Error *e) {
    struct addrinfo *a = resolve(address, port, false, e);
    if (!a) return -1;
    int fd = -1, err = 0;
    socklen_t size = sizeof err;
    for (useconds_t pause = 5000;; pause = MIN(2 * pause, 500000)) { /* the other side may still be starting */
        fd = socket(a->ai_family, SOCK_STREAM, 0);
        if (fd < 0) err = errno;
        if (fd < 0) break;
        set_up(fd);
        err = connect(fd, a->ai_addr, a->ai_addrlen) ? errno : 0;
        if (err == EINPROGRESS)
            err = !wait_for(fd, POLLOUT, until_s) ? errno
                  : getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) ? errno : err;
        if (!err) break;
        close(fd);
        fd = -1;
        if (now_s() >= until_s) break;
        usleep(pause);
    }
    freeaddrinfo(a);
    if (fd < 0) fail_as(e, FAIL_PEER, "cannot reach %s port %d: %s", address, port, strerror(err));
    return fd;
}

/* ---- meeting -------------------------------------------------------------------------------------- */

static Hello hello_of(const LinkConfig *c) {
    Hello h = {HELLO_MAGIC, sizeof(Message), c->launch->token, c->config, c->launch->rank, c->launch->size,
               {.pid = (int32_t)getpid(), .port = c->data_port}};
    struct stat st = {0};
    gethostname(h.peer.host, sizeof h.peer.host - 1);
    stat("/proc/self/ns/pid", &st); /* two containers may share a name, but not their process numbers */
    h.peer.machine = hash_bytes(h.peer.host, strlen(h.peer.host), (uint64_t)st.st_ino);
    return h;
}

/* Rank 0 looks at what a process that connected says. False with `why`, or (empty) for one that is not of this run. */
static bool admit(Link *l, const LinkConfig *c, const Hello *h, int fd, char *why, size_t size, Error *e) {
    *why = 0;
    if (h->magic != HELLO_MAGIC || h->token != l->launch.token) {
        snprintf(why, size, "this is rank 0 of another run");
        return false;
    }
    Peer p = h->peer;
    p.host[sizeof p.host - 1] = 0;
    if (h->bytes != sizeof(Message) || h->size != l->launch.size || h->rank < 1 || h->rank >= l->launch.size)
        fail_as(e, FAIL_PEER, "rank %d of %d on %s: rank 0 belongs to %d ranks, or is another version", h->rank, h->size,
                p.host, l->launch.size);
    else if (l->line[h->rank].fd >= 0)
        fail_as(e, FAIL_PEER, "two processes say that they are rank %d: on %s (pid %d) and %s (pid %d)", h->rank,
                l->peer[h->rank].host, l->peer[h->rank].pid, p.host, p.pid);
    else if (h->config != c->config)
        fail_as(e, FAIL_CONFIG, "rank %d on %s was started with another configuration than rank 0", h->rank, p.host);
    if (*e->text) {
        snprintf(why, size, "%.500s", e->text);
        return false;
    }
    struct sockaddr_storage name;
    socklen_t n = sizeof name;
    if (!getpeername(fd, (struct sockaddr *)&name, &n))
        getnameinfo((struct sockaddr *)&name, n, p.address, sizeof p.address, NULL, 0, NI_NUMERICHOST);
    l->peer[h->rank] = p;
    l->line[h->rank].fd = fd;
    return true;
}

static void refuse(int fd, const char *why) {
    Welcome w = {.magic = HELLO_MAGIC};
    snprintf(w.refused, sizeof w.refused, "%s", why);
    net_write(fd, &w, sizeof w, now_s() + WORDS_S);
    close(fd);
}

/* Accepts until all ranks are there. Whoever connects and says nothing holds a place for a few seconds, not the others up. */
static bool gather(Link *l, const LinkConfig *c, int listener, double until_s, Error *e) {
    struct { int fd; double since; size_t got; Hello h; } pending[MAX_PENDING];
    int npending = 0, joined = 1;
    while (joined < l->launch.size && !*e->text) {
        struct pollfd p[MAX_PENDING + 1] = {{listener, POLLIN, 0}};
        for (int i = 0; i < npending; i++) p[i + 1] = (struct pollfd){pending[i].fd, POLLIN, 0};
        if (now_s() > until_s) {
            int missing = 1;
            while (l->line[missing].fd >= 0) missing++;
            fail_as(e, FAIL_PEER, "of %d ranks %d came within %.0f s to %s port %d; rank %d is missing", l->launch.size,
                    joined, JOIN_S, l->launch.address, l->launch.port, missing);
            break;
        }
        poll(p, (nfds_t)npending + 1, 200);
        for (int i = npending - 1; i >= 0; i--) {
            char why[508] = "it said nothing";
            ssize_t n = recv(pending[i].fd, (char *)&pending[i].h + pending[i].got, sizeof(Hello) - pending[i].got, 0);
            if (n > 0) pending[i].got += (size_t)n;
            bool whole = pending[i].got == sizeof(Hello);
            if (!whole && (n > 0 || (n < 0 && errno == EAGAIN)) && now_s() - pending[i].since < 5) continue;
            if (whole && admit(l, c, &pending[i].h, pending[i].fd, why, sizeof why, e))
                joined++;
            else
                refuse(pending[i].fd, why);
            pending[i] = pending[--npending];
        }
        int fd;
        while (npending < MAX_PENDING && (fd = accept(listener, NULL, NULL)) >= 0) {
            set_up(fd);
            pending[npending].fd = fd;
            pending[npending].got = 0;
            pending[npending++].since = now_s();
        }
    }
    for (int i = 0; i < npending; i++) refuse(pending[i].fd, *e->text ? e->text : "all ranks are there already");
    for (int r = 1; r < l->launch.size && *e->text; r++)
        if (l->line[r].fd >= 0) refuse(l->line[r].fd, e->text), l->line[r].fd = -1;
    if (*e->text) return false;
    Welcome w = {.magic = HELLO_MAGIC};
    for (int r = 1; r < l->launch.size; r++)
        if (!net_write(l->line[r].fd, &w, sizeof w, until_s) ||
            !net_write(l->line[r].fd, l->peer, (size_t)l->launch.size * sizeof *l->peer, until_s))
            return fail_as(e, FAIL_PEER, "rank %d on %s was lost while the ranks met: %s", r, l->peer[r].host,
                           strerror(errno));
    return true;
}

static bool join(Link *l, const LinkConfig *c, double until_s, Error *e) {
    Hello h = hello_of(c);
    Welcome w = {0};
    int fd = net_connect(l->launch.address, l->launch.port, until_s, e);
    if (fd < 0) return fail_in(e, "rank %d looks for rank 0", l->launch.rank);
    l->line[0].fd = fd;
    if (!net_write(fd, &h, sizeof h, until_s) || !net_read(fd, &w, sizeof w, until_s + WORDS_S) || w.magic != HELLO_MAGIC)
        return fail_as(e, FAIL_PEER, "rank %d: rank 0 at %s port %d did not answer: %s", l->launch.rank, l->launch.address,
                       l->launch.port, errno ? strerror(errno) : "it closed the connection");
    w.refused[sizeof w.refused - 1] = 0;
    if (*w.refused) return fail_as(e, FAIL_PEER, "rank %d was not taken in: %s", l->launch.rank, w.refused);
    if (!net_read(fd, l->peer, (size_t)l->launch.size * sizeof *l->peer, until_s + WORDS_S))
        return fail_as(e, FAIL_PEER, "rank %d: rank 0 was lost while the ranks met", l->launch.rank);
    snprintf(l->peer[0].address, sizeof l->peer[0].address, "%.63s", l->launch.address); /* rank 0 cannot know */
    return true;
}

static void *watch(void *arg);

static void link_free(Link *l) {
    for (int r = 0; r < l->launch.size; r++)
        if (l->line[r].fd >= 0) close(l->line[r].fd);
    for (int i = 0; i < 2; i++)
        if (l->wake[i] >= 0) close(l->wake[i]);
    free(l->peer);
    free(l->line);
    free(l);
}

Link *link_open(const LinkConfig *c, Error *e) {
    Link *l = xcalloc(1, sizeof *l);
    double until = now_s() + JOIN_S;
    l->launch = *c->launch;
    l->timeout_s = c->timeout_s;
    l->peer = xcalloc((size_t)l->launch.size, sizeof *l->peer);
    l->line = xcalloc((size_t)l->launch.size, sizeof *l->line);
    l->wake[0] = l->wake[1] = -1;
    l->here.step = -1;
    strcpy(l->here.what, "start");
    for (int r = 0; r < l->launch.size; r++) l->line[r].fd = -1, l->line[r].where.step = -1;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    bool ok = true;
    if (l->launch.rank == 0) {
        int listener = c->listener >= 0 ? c->listener : net_listen(l->launch.address, &l->launch.port, e);
        l->peer[0] = hello_of(c).peer;
        ok = listener >= 0 && gather(l, c, listener, until, e);
        if (listener >= 0) close(listener);
    } else {
        ok = join(l, c, until, e);
    }
    if (ok && (pipe2(l->wake, O_CLOEXEC | O_NONBLOCK)))
        ok = fail_as(e, FAIL_OTHER, "no pipe for the ranks' watch: %s", strerror(errno));
    for (int r = 0; r < l->launch.size; r++) l->line[r].heard = now_s();
    sigset_t all, old; /* signals are for the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (ok && pthread_create(&l->thread, NULL, watch, l))
        ok = fail_as(e, FAIL_MEMORY, "the thread that watches the ranks could not be started");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ok) return l;
    link_free(l);
    return NULL;
}

const Peer *link_peer(const Link *l, int rank) { return &l->peer[rank]; }

/* ---- watching ------------------------------------------------------------------------------------- */

static void send_now(Line *p, const Message *m) {
    double until = now_s() + WORDS_S;
    if (p->fd < 0) return;
    if (p->left && !net_write(p->fd, (char *)&p->out + sizeof p->out - p->left, p->left, until)) return;
    p->left = 0;
    net_write(p->fd, m, sizeof *m, until);
}

/* A sign of life is not worth waiting for: what does not fit into the socket now is finished next time. */
static void send_beat(Line *p, const Message *m) {
    if (p->fd < 0) return;
    if (!p->left) p->out = *m, p->left = sizeof *m;
    ssize_t n = send(p->fd, (char *)&p->out + sizeof p->out - p->left, p->left, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) p->left -= (size_t)n;
}

static void where_text(char *out, size_t size, const Where *w) {
    if (w->step < 0)
        snprintf(out, size, "before the first step (%.63s)", w->what);
    else
        snprintf(out, size, "at step %" PRId64 ", in the collective \"%.63s\" (number %" PRId64 ")", w->step, w->what, w->seq);
}

static void let_go(Link *l) {
    l->ending = true;
    if (l->abort) l->abort(l->arg);
}

/* The end of this process because of `m`. Rank 0 tells the others first and waits for them: a launcher that sees one process
 * end kills the rest at once, and they should find their own way out with the right status. */
static _Noreturn void end_all(Link *l, const Message *m) {
    if (l->launch.rank == 0)
        for (int r = 1; r < l->launch.size; r++)
            if (r != m->culprit || !m->silent) send_now(&l->line[r], m);
    /* A stopped process holds its memory, its device and its port: nobody else would end it. */
    if (m->silent && m->culprit != l->launch.rank && l->peer[m->culprit].machine == l->peer[l->launch.rank].machine)
        kill(l->peer[m->culprit].pid, SIGKILL);
    let_go(l);
    double until = now_s() + WORDS_S;
    for (int r = 1; r < l->launch.size && l->launch.rank == 0; r++) {
        char rest[256];
        if (r == m->culprit || l->line[r].fd < 0) continue;
        while (net_read(l->line[r].fd, rest, sizeof rest, until)) {}
    }
    _exit(FAIL_PEER);
}

static _Noreturn void judge(Link *l, int culprit, bool silent, const char *text) {
    Message m = {.kind = VERDICT, .status = FAIL_PEER, .culprit = culprit, .silent = silent};
    snprintf(m.text, sizeof m.text, "%s", text);
    fprintf(stderr, "vpdistill: %s\n", text);
    end_all(l, &m);
}

/* Rank `r` is dead or silent: found by rank 0, or by the others when r is rank 0 (then the next rank speaks). */
static _Noreturn void accuse(Link *l, int r, bool silent, const char *how) {
    const Peer *p = &l->peer[r];
    char text[700], its[200], ours[200];
    where_text(its, sizeof its, &l->line[r].where);
    pthread_mutex_lock(&l->lock);
    where_text(ours, sizeof ours, &l->here);
    pthread_mutex_unlock(&l->lock);
    snprintf(text, sizeof text, "rank %d (%s, pid %d) %s %s; rank %d is %s; all ranks end", r, p->host, p->pid, how, its,
             l->launch.rank, ours);
    if (l->launch.rank <= 1) judge(l, r, silent, text);
    Message m = {.kind = VERDICT, .culprit = r, .silent = silent};
    usleep(100000); /* rank 1 prints first */
    end_all(l, &m);
}

/* At equal numbers all ranks must have come the same way. Ours at that number: 0 not there yet, 1 equal, -1 not. */
static int compare(Link *l, const Where *w, char *ours, size_t size) {
    int result = 0;
    pthread_mutex_lock(&l->lock);
    if (w->seq && w->seq <= l->here.seq && w->seq > l->here.seq - REMEMBERED) {
        result = l->past[w->seq % REMEMBERED].chain == w->chain ? 1 : -1;
        snprintf(ours, size, "%s", l->past[w->seq % REMEMBERED].what);
    }
    pthread_mutex_unlock(&l->lock);
    return result;
}

static void check_mismatch(Link *l, int r) {
    char text[700], ours[64];
    const Where *w = &l->line[r].where;
    if (compare(l, w, ours, sizeof ours) >= 0) return;
    snprintf(text, sizeof text,
             "rank %d (%s, pid %d) and rank 0 do not do the same: at step %" PRId64 " collective number %" PRId64
             " is \"%.63s\" there and \"%.63s\" here; all ranks end",
             r, l->peer[r].host, l->peer[r].pid, w->step, w->seq, w->what, ours);
    judge(l, r, false, text);
}

/* This rank's own failure was told: its main thread goes on to its exit. */
static void told(Link *l, bool yes) {
    pthread_mutex_lock(&l->lock);
    l->told = yes;
    l->closed = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static bool is_failing(Link *l) {
    pthread_mutex_lock(&l->lock);
    bool f = l->failing;
    pthread_mutex_unlock(&l->lock);
    return f;
}

/* False: the watch is over. */
static bool hear(Link *l, int r, const Message *m) {
    Line *p = &l->line[r];
    p->heard = now_s();
    switch (m->kind) {
    case BEAT:
        p->where = m->where;
        p->where.what[sizeof p->where.what - 1] = 0;
        if (l->launch.rank == 0) check_mismatch(l, r);
        return true;
    case FAILED: { /* only rank 0 hears this */
        Message v = *m;
        v.kind = VERDICT;
        v.culprit = r;
        v.text[sizeof v.text - 1] = 0;
        fprintf(stderr, "vpdistill: rank %d (%s, pid %d): %s\n", r, l->peer[r].host, l->peer[r].pid, v.text);
        end_all(l, &v);
    }
    case VERDICT:
        if (m->culprit == l->launch.rank && is_failing(l)) return told(l, true), false;
        end_all(l, m);
    case BYE:
        p->said_bye = true;
        return true;
    default: return true;
    }
}

/* Everything that has arrived from rank r. */
static bool listen_to(Link *l, int r) {
    Line *p = &l->line[r];
    while (p->fd >= 0) {
        ssize_t n = recv(p->fd, (char *)&p->in + p->got, sizeof p->in - p->got, 0);
        if (n > 0) {
            p->got += (size_t)n;
            if (p->got < sizeof p->in) continue;
            p->got = 0;
            if (!hear(l, r, &p->in)) return false;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        close(p->fd);
        p->fd = -1;
        if (p->said_bye) break;
        if (is_failing(l) && l->launch.rank) return told(l, false), false;
        accuse(l, r, false, "died, last seen");
    }
    return true;
}

static Message beat_of(Link *l) {
    Message m = {.kind = BEAT};
    pthread_mutex_lock(&l->lock);
    m.where = l->here;
    pthread_mutex_unlock(&l->lock);
    return m;
}

/* What the main thread wants. False: the watch is over. */
static bool obey(Link *l, bool *bye_sent) {
    pthread_mutex_lock(&l->lock);
    bool closing = l->closing, failing = l->failing;
    Message words = l->last_words;
    pthread_mutex_unlock(&l->lock);
    if (failing && l->launch.rank == 0) {
        words.kind = VERDICT;
        fprintf(stderr, "vpdistill: rank 0 (%s, pid %d): %s\n", l->peer[0].host, l->peer[0].pid, words.text);
        for (int r = 1; r < l->launch.size; r++) send_now(&l->line[r], &words);
        told(l, true);
        return false;
    }
    if (failing && !*bye_sent) {
        send_now(&l->line[0], &words);
        *bye_sent = true;
    }
    if (!closing) return true;
    Message bye = {.kind = BYE};
    bool all = true;
    for (int r = 1; r < l->launch.size; r++) all &= l->launch.rank ? l->line[0].said_bye : l->line[r].said_bye;
    if (l->launch.rank ? !*bye_sent : all) /* rank 0 is the last to say it */
        for (int r = 0; r < l->launch.size; r++) send_now(&l->line[r], &bye);
    *bye_sent = true;
    if (!all) return true;
    told(l, false);
    return false;
}

static void *watch(void *arg) {
    Link *l = arg;
    const double beat = MIN(l->timeout_s / BEATS, 0.05), limit = l->timeout_s * SILENT;
    double sent = 0, awake = now_s();
    bool bye_sent = false;
    struct pollfd *p = xcalloc((size_t)l->launch.size + 1, sizeof *p);
    for (;;) {
        for (int r = 0; r < l->launch.size; r++) p[r] = (struct pollfd){l->line[r].fd, POLLIN, 0};
        p[l->launch.size] = (struct pollfd){l->wake[0], POLLIN, 0};
        poll(p, (nfds_t)l->launch.size + 1, (int)(beat * 1000) + 1);
        char notes[64];
        while (read(l->wake[0], notes, sizeof notes) > 0) {}
        double now = now_s();
        if (now - awake > limit / 2) /* we were stopped ourselves: no ground to accuse those who waited */
            for (int r = 0; r < l->launch.size; r++) l->line[r].heard += now - awake;
        awake = now;
        if (now - sent >= beat) {
            Message m = beat_of(l);
            for (int r = 0; r < l->launch.size; r++) send_beat(&l->line[r], &m);
            sent = now;
        }
        for (int r = 0; r < l->launch.size; r++)
            if (!listen_to(l, r)) goto over;
        if (!obey(l, &bye_sent)) goto over;
        for (int r = 0; r < l->launch.size; r++) {
            Line *line = &l->line[r];
            if (line->fd >= 0 && l->launch.rank == 0) check_mismatch(l, r);
            if (line->fd < 0 || line->said_bye || now - line->heard < limit) continue;
            char how[64];
            snprintf(how, sizeof how, "has been silent for %.1f s, last seen", now - line->heard);
            accuse(l, r, true, how);
        }
        Error e = {0};
        if (l->poll && !l->poll(l->arg, &e)) {
            pthread_mutex_lock(&l->lock);
            l->failing = true;
            l->last_words = (Message){.kind = FAILED, .status = FAIL_PEER, .culprit = l->launch.rank};
            snprintf(l->last_words.text, sizeof l->last_words.text, "%.700s", e.text);
            pthread_mutex_unlock(&l->lock);
            obey(l, &bye_sent);
            let_go(l);
            _exit(FAIL_PEER);
        }
    }
over:
    free(p);
    return NULL;
}

/* ---- what the other threads say ------------------------------------------------------------------- */

void link_step(Link *l, int64_t step) {
    pthread_mutex_lock(&l->lock);
    l->here.step = step;
    pthread_mutex_unlock(&l->lock);
}

void link_collective(Link *l, const char *what, int64_t n) {
    pthread_mutex_lock(&l->lock);
    Where *h = &l->here;
    h->chain = hash_bytes(what, strlen(what), h->chain ^ (uint64_t)n);
    h->seq++;
    snprintf(h->what, sizeof h->what, "%s", what);
    l->past[h->seq % REMEMBERED].chain = h->chain;
    memcpy(l->past[h->seq % REMEMBERED].what, h->what, sizeof h->what);
    pthread_mutex_unlock(&l->lock);
}

void link_hooks(Link *l, bool (*poll)(void *, Error *), void (*abort)(void *), void *arg) {
    pthread_mutex_lock(&l->lock);
    l->arg = arg;
    l->poll = poll;
    l->abort = abort;
    pthread_mutex_unlock(&l->lock);
}

static void wake(Link *l) {
    ssize_t n = write(l->wake[1], "", 1);
    (void)n; /* full: the thread is about to look anyway */
}

bool link_fail(Link *l, Status s, const char *text) {
    pthread_mutex_lock(&l->lock);
    l->failing = true;
    l->last_words = (Message){.kind = FAILED, .status = s, .culprit = l->launch.rank, .where = l->here};
    snprintf(l->last_words.text, sizeof l->last_words.text, "%.700s", text);
    wake(l);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)MAX(l->timeout_s / 2, 1);
    while (!l->closed && !pthread_cond_timedwait(&l->changed, &l->lock, &until)) {}
    bool was_told = l->told;
    pthread_mutex_unlock(&l->lock);
    let_go(l);
    return was_told;
}

void link_intact(Link *l) {
    while (l->ending) pause();
}

_Noreturn void link_lost(Link *l, int peer, const char *why) {
    char text[400];
    usleep((useconds_t)(l->timeout_s * 1e6 / 4)); /* mostly the watching thread ends us here, with the reason behind this */
    if (peer >= 0)
        snprintf(text, sizeof text, "the connection to rank %d (%s) is lost: %s", peer, l->peer[peer].host, why);
    else
        snprintf(text, sizeof text, "%s", why);
    if (!link_fail(l, FAIL_PEER, text)) fprintf(stderr, "vpdistill: rank %d: %s\n", l->launch.rank, text);
    _exit(FAIL_PEER);
}

void link_close(Link *l) {
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    wake(l);
    while (!l->closed) pthread_cond_wait(&l->changed, &l->lock);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    link_free(l);
}
