/* metrics.c -- the run's log and its progress line. Contract: metrics.h. */
#include "engine/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAX_COLUMNS 128

struct Metrics {
    int fd;
    bool csv;
    char *path;
    char *column[MAX_COLUMNS]; /* CSV: after "step" */
    int ncolumns;
    bool has_header;
};

static bool ends_in(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static bool read_header(Metrics *m, char *line, Error *e) {
    line[strcspn(line, "\r\n")] = 0;
    char *save = NULL, *word = strtok_r(line, ",", &save);
    if (!word || strcmp(word, "step"))
        return fail_as(e, FAIL_DATA, "%s:1: not a log of metrics: its header does not begin with \"step\"",
                       m->path);
    while ((word = strtok_r(NULL, ",", &save))) {
        if (m->ncolumns == MAX_COLUMNS)
            return fail_as(e, FAIL_DATA, "%s:1: more than %d columns", m->path, MAX_COLUMNS);
        m->column[m->ncolumns++] = xstrdup(word);
    }
    return m->has_header = true;
}

/* Finds where the rows to keep end; *keep is that offset. */
static bool find_end(Metrics *m, FILE *f, int64_t from_step, off_t *keep, Error *e) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool ok = true;
    *keep = 0;
    for (int64_t row = 1; ok && (n = getline(&line, &cap, f)) > 0 && line[n - 1] == '\n'; row++) {
        if (m->csv && row == 1) {
            ok = read_header(m, line, e);
        } else {
            const char *number = m->csv ? line : strncmp(line, "{\"step\":", 8) ? NULL : line + 8;
            char *end = NULL;
            long long step = number ? strtoll(number, &end, 10) : 0;
            if (!number || end == number || (*end != ',' && *end != '}' && *end != '\n'))
                ok = fail_as(e, FAIL_DATA,
                             "%s:%" PRId64 ": not a row of metrics (another kind of file? move it away)",
                             m->path, row);
            else if (step >= from_step) break;
        }
        if (ok) *keep += n;
    }
    free(line);
    return ok;
}

Metrics *metrics_open(const char *path, int64_t from_step, Error *e) {
    bool csv = ends_in(path, ".csv");
    if (!csv && !ends_in(path, ".jsonl")) {
        fail_as(e, FAIL_USAGE, "%s: a log of metrics ends in .csv or .jsonl", path);
        return NULL;
    }
    Metrics *m = xcalloc(1, sizeof *m);
    m->csv = csv;
    m->path = xstrdup(path);
    m->fd = -1;
    off_t keep = 0;
    if (from_step >= 0) {
        FILE *f = fopen(path, "rb");
        if (f) {
            bool ok = find_end(m, f, from_step, &keep, e);
            fclose(f);
            if (!ok) goto bad;
        } else if (errno != ENOENT) {
            fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
            goto bad;
        }
    }
    m->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (m->fd < 0 || ftruncate(m->fd, keep)) {
        fail_as(e, FAIL_DISK, "%s: cannot write: %s", path, strerror(errno));
        goto bad;
    }
    return m;
bad:
    metrics_close(m);
    return NULL;
}

static void put_number(FILE *f, double v, const char *no_number) {
    if (isfinite(v)) fprintf(f, "%.9g", v); /* nine digits give every f32 back */
    else fputs(no_number, f);
}

static bool put_csv(Metrics *m, FILE *f, int64_t step, const Metric *row, int n, Error *e) {
    if (!m->has_header) {
        CHECK(n <= MAX_COLUMNS, "%d metrics in a row", n);
        fputs("step", f);
        for (int i = 0; i < n; i++) fprintf(f, ",%s", m->column[m->ncolumns++] = xstrdup(row[i].key));
        fputc('\n', f);
        m->has_header = true;
    }
    int placed = 0;
    fprintf(f, "%" PRId64, step);
    for (int c = 0; c < m->ncolumns; c++) {
        fputc(',', f);
        for (int i = 0; i < n; i++)
            if (!strcmp(row[i].key, m->column[c])) {
                put_number(f, row[i].value, "");
                placed++;
                break;
            }
    }
    fputc('\n', f);
    if (placed == n) return true;
    for (int i = 0; i < n; i++) {
        int c = 0;
        while (c < m->ncolumns && strcmp(row[i].key, m->column[c])) c++;
        if (c == m->ncolumns)
            return fail_as(
                e, FAIL_DATA,
                "%s: no column \"%s\" (a CSV file keeps the columns of its first row; use a .jsonl file)",
                m->path, row[i].key);
    }
    return fail_as(e, FAIL_DATA, "%s: a key twice in one row", m->path);
}

bool metrics_row(Metrics *m, int64_t step, const Metric *row, int n, Error *e) {
    char *text = NULL;
    size_t size = 0, at = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) die(FAIL_MEMORY, "out of memory for a row of metrics");
    for (int i = 0; i < n; i++)
        CHECK(*row[i].key && !strpbrk(row[i].key, ",\"\\\r\n"), "metric named \"%s\"", row[i].key);
    bool ok = true;
    if (m->csv) {
        ok = put_csv(m, f, step, row, n, e);
    } else {
        fprintf(f, "{\"step\":%" PRId64, step);
        for (int i = 0; i < n; i++) {
            fprintf(f, ",\"%s\":", row[i].key);
            put_number(f, row[i].value, "null");
        }
        fputs("}\n", f);
    }
    fclose(f);
    while (ok && at < size) {
        ssize_t k = write(m->fd, text + at, size - at);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0)
            ok = fail_as(e, FAIL_DISK, "%s: cannot write %zu bytes: %s", m->path, size - at,
                         strerror(k ? errno : ENOSPC));
        else at += (size_t)k;
    }
    free(text);
    return ok;
}

void metrics_close(Metrics *m) {
    if (!m) return;
    if (m->fd >= 0) {
        fsync(m->fd);
        close(m->fd);
    }
    for (int i = 0; i < m->ncolumns; i++) free(m->column[i]);
    free(m->path);
    free(m);
}

/* ---- Progress ---- */

void progress_begin(Progress *p, const char *what, int64_t total) {
    const char *term = getenv("TERM");
    *p = (Progress){.out = stderr, .what = what, .total = total, .start = now_s(), .shown = -1};
    p->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
}

static double rate_of(Progress *p, double now, int64_t done) {
    if (!p->npast || now - p->past[(p->npast - 1) % COUNT_OF(p->past)].at >= 2) {
        p->past[p->npast % COUNT_OF(p->past)].at = now;
        p->past[p->npast++ % COUNT_OF(p->past)].done = done;
    }
    int oldest = p->npast > COUNT_OF(p->past) ? p->npast % COUNT_OF(p->past) : 0;
    double s = now - p->past[oldest].at;
    return s > 0 && done > p->past[oldest].done ? (double)(done - p->past[oldest].done) / s : 0;
}

static void print_time(char out[32], double s) {
    if (!(s < 1e9)) s = 1e9;
    int64_t t = (int64_t)(s + 0.5);
    if (t >= 3600) snprintf(out, 32, "%" PRId64 ":%02d:%02d", t / 3600, (int)(t / 60 % 60), (int)(t % 60));
    else snprintf(out, 32, "%d:%02d", (int)(t / 60), (int)(t % 60));
}

static int columns(void) {
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

static void draw(Progress *p, int64_t done, double now, const char *text) {
    char line[1024], left[32] = "", bar[24] = "", speed[32] = "";
    double rate = rate_of(p, now, done);
    int percent = p->total > 0 ? (int)(100.0 * (double)MIN(done, p->total) / (double)p->total) : 0;
    if (rate > 0)
        snprintf(speed, sizeof speed, rate >= 100 ? " %.0f/s" : rate >= 1 ? " %.1f/s" : " %.3f/s", rate);
    int n;
    if (p->total <= 0) {
        n = snprintf(line, sizeof line, "%s %" PRId64 "%s %s", p->what, done, speed, text);
    } else {
        if (rate > 0 && done < p->total) {
            char t[20];
            print_time(left, (double)(p->total - done) / rate);
            snprintf(t, sizeof t, "%.15s", left);
            snprintf(left, sizeof left, " %s left", t);
        }
        memset(bar, '-', 20);
        memset(bar, '=', (size_t)percent / 5);
        n = p->terminal ? snprintf(line, sizeof line, "%s [%s] %3d%% %" PRId64 "/%" PRId64 "%s%s %s", p->what,
                                   bar, percent, done, p->total, speed, left, text)
                        : snprintf(line, sizeof line, "%s %" PRId64 "/%" PRId64 " (%d%%)%s%s %s", p->what,
                                   done, p->total, percent, speed, left, text);
    }
    n = MIN(n, (int)sizeof line - 1);
    if (p->terminal) {
        n = MIN(n, columns() - 1); /* a wrapped line cannot be drawn anew */
        fprintf(p->out, "\r\033[K%.*s", n, line);
    } else {
        fprintf(p->out, "%.*s\n", n, line);
    }
    fflush(p->out);
    p->drawn = true;
    p->shown = now;
    p->shown_at = done;
}

void progress_step(Progress *p, int64_t done, const char *fmt, ...) {
    double now = now_s(), since = now - (p->shown < 0 ? p->start : p->shown);
    if (!p->npast) rate_of(p, now, done); /* a resumed loop does not begin at 0 */
    bool due = p->terminal ? since >= 0.1 : since >= 10 || (p->every > 0 && done - p->shown_at >= p->every);
    if (!due) return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    draw(p, done, now, text);
}

void progress_hide(Progress *p) {
    if (p->terminal && p->drawn) fputs("\r\033[K", p->out), fflush(p->out);
    p->drawn = false;
}

void progress_end(Progress *p, int64_t done, const char *fmt, ...) {
    char text[512], t[32];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    progress_hide(p);
    print_time(t, now_s() - p->start);
    fprintf(p->out, "%s: %" PRId64 " in %s%s%s\n", p->what, done, t, *text ? ", " : "", text);
    fflush(p->out);
}
