/* base.c -- errors, logging, files and hashing. See base.h. */
#include "engine/base.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static bool vfail(Error *e, Status s, const char *fmt, va_list ap) {
    if (!e) return false;
    if (s) e->status = s;
    if (!e->status) e->status = FAIL_OTHER;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    return false;
}

bool fail(Error *e, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vfail(e, 0, fmt, ap);
    va_end(ap);
    return false;
}

bool fail_as(Error *e, Status s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vfail(e, s, fmt, ap);
    va_end(ap);
    return false;
}

bool fail_in(Error *e, const char *fmt, ...) {
    if (!e) return false;
    char what[512], was[sizeof e->text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    memcpy(was, e->text, sizeof was);
    int n = snprintf(e->text, sizeof e->text, "%s: ", what);
    if (n > 0 && n < (int)sizeof e->text) snprintf(e->text + n, sizeof e->text - (size_t)n, "%s", was);
    return false;
}

void check_failed(const char *file, int line, const char *cond, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s:%d: internal error: ", file, line);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, " (%s)\n", cond);
    va_end(ap);
    abort();
}

void die(Status s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("vpdistill: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(s);
}

static int nwarnings, my_rank;

void log_rank(int rank) { my_rank = rank; }

static void say(const char *head, const char *fmt, va_list ap) {
    char line[2048];
    int n = snprintf(line, sizeof line, "%s", head);
    vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    fprintf(stderr, "%s\n", line); /* one call: lines of two threads do not mix */
}

void info(const char *fmt, ...) {
    va_list ap;
    if (my_rank) return;
    va_start(ap, fmt);
    say("", fmt, ap);
    va_end(ap);
}

void warn(const char *fmt, ...) {
    __atomic_add_fetch(&nwarnings, 1, __ATOMIC_RELAXED);
    va_list ap;
    char head[40] = "warning: ";
    if (my_rank) snprintf(head, sizeof head, "rank %d: warning: ", my_rank);
    va_start(ap, fmt);
    say(head, fmt, ap);
    va_end(ap);
}

int warn_count(void) { return __atomic_load_n(&nwarnings, __ATOMIC_RELAXED); }

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void *xcalloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p) die(FAIL_MEMORY, "out of memory: %zu x %zu bytes", n, size);
    return p;
}

void *xrealloc(void *p, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) die(FAIL_MEMORY, "out of memory: %zu x %zu bytes", n, size);
    void *q = realloc(p, bytes ? bytes : 1);
    if (!q) die(FAIL_MEMORY, "out of memory: %zu x %zu bytes", n, size);
    return q;
}

char *xstrdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(xcalloc(n, 1), s, n);
}

void grow_(void **p, int64_t *cap, int64_t want, size_t size) {
    if (want <= *cap) return;
    int64_t n = MAX(*cap * 2, MAX(want, 16));
    *p = xrealloc(*p, (size_t)n, size);
    *cap = n;
}

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed) {
    const uint8_t *b = p;
    uint64_t h = 0xcbf29ce484222325u ^ seed;
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3u;
    h ^= h >> 30; /* FNV's high bits are weak: finish with splitmix64 */
    h *= 0xbf58476d1ce4e5b9u;
    h ^= h >> 27;
    h *= 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}

bool file_read(const char *path, char **data, size_t *size, size_t limit, Error *e) {
    *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0) return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail_as(e, FAIL_DATA, "%s: not a regular file", path);
    }
    if ((uint64_t)st.st_size > limit) {
        close(fd);
        return fail_as(e, FAIL_DATA, "%s: %lld bytes, more than the %zu this kind of file may have", path,
                       (long long)st.st_size, limit);
    }
    size_t n = (size_t)st.st_size, got = 0;
    char *p = xcalloc(n + 1, 1);
    while (got < n) {
        ssize_t k = read(fd, p + got, n - got);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            fail_as(e, FAIL_DATA, "%s: read stopped at byte %zu of %zu: %s", path, got, n,
                    k < 0 ? strerror(errno) : "the file became shorter");
            free(p);
            close(fd);
            return false;
        }
        got += (size_t)k;
    }
    close(fd);
    *data = p;
    *size = n;
    return true;
}

static bool write_all(int fd, const char *p, size_t n) {
    while (n) {
        ssize_t k = write(fd, p, MIN(n, (size_t)1 << 30));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

bool file_write_atomic(const char *path, const void *data, size_t size, Error *e) {
    char tmp[PATH_MAX];
    if (snprintf(tmp, sizeof tmp, "%s.tmp", path) >= (int)sizeof tmp)
        return fail_as(e, FAIL_DISK, "%s: path too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return fail_as(e, FAIL_DISK, "%s: cannot write: %s", tmp, strerror(errno));
    bool ok = write_all(fd, data, size) && fsync(fd) == 0;
    int err = errno;
    ok = close(fd) == 0 && ok;
    if (ok && rename(tmp, path) == 0) {
        char dir[PATH_MAX];
        snprintf(dir, sizeof dir, "%s", path);
        char *slash = strrchr(dir, '/');
        if (slash) *slash = 0;
        int d = open(slash ? (slash == dir ? "/" : dir) : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (d >= 0) {
            fsync(d); /* makes the rename itself survive a power cut; a file system that cannot is no error */
            close(d);
        }
        return true;
    }
    if (ok) err = errno;
    unlink(tmp);
    return fail_as(e, FAIL_DISK, "%s: cannot write %zu bytes: %s", path, size, strerror(err));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f) {
    (void)st, (void)type, (void)f;
    return remove(path);
}

void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

bool make_dirs(const char *path, Error *e) {
    char p[PATH_MAX];
    struct stat st;
    if (!*path) return fail_as(e, FAIL_DISK, "a folder's name is empty");
    if (snprintf(p, sizeof p, "%s", path) >= (int)sizeof p) return fail_as(e, FAIL_DISK, "%s: path too long", path);
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/') continue;
        char was = *s;
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            return fail_as(e, FAIL_DISK, "%s: cannot make the folder: %s", p, strerror(errno));
        if (!was && (stat(p, &st) || !S_ISDIR(st.st_mode))) return fail_as(e, FAIL_DISK, "%s: not a folder", p);
        if (!was) return true;
        *s = was;
    }
}

bool path_join(char *out, size_t n, const char *dir, const char *name, Error *e) {
    int k = snprintf(out, n, "%s%s%s", dir, *dir && dir[strlen(dir) - 1] != '/' ? "/" : "", name);
    if (k < 0 || (size_t)k >= n) return fail_as(e, FAIL_DATA, "%s/%s: path too long", dir, name);
    return true;
}

/* Levenshtein distance of two short words; anything over 63 characters counts as far. */
static int edit_distance(const char *a, const char *b) {
    int na = (int)strlen(a), nb = (int)strlen(b), row[64];
    if (na > 63 || nb > 63) return 64;
    for (int j = 0; j <= nb; j++) row[j] = j;
    for (int i = 1; i <= na; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int up = row[j];
            row[j] = MIN(MIN(row[j], row[j - 1]) + 1, diag + (a[i - 1] != b[j - 1]));
            diag = up;
        }
    }
    return row[nb];
}

const char *nearest(const char *word, const char *const *names, int n) {
    const char *best = NULL;
    int limit = (int)strlen(word) / 3 + 1, d;
    for (int i = 0; i < n; i++)
        if ((d = edit_distance(word, names[i])) < limit || (d == limit && !best)) limit = d, best = names[i];
    return best;
}
