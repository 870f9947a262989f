/* child.c -- child processes of the tests. See child.h. */
#include "tests/engine/child.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/scenes.h"

/* ---- folders -------------------------------------------------------------------------------------- */

const char *own_scenes(const char *name) {
    static char dir[PATH_MAX];
    Error e = {0};
    snprintf(dir, sizeof dir, "%s/%s", test_dir(), name);
    ScenesConfig c;
    scenes_config_default(&c);
    c.domain = SCENE_CLEAN;
    c.images[SCENE_TRAIN] = 16;
    c.images[SCENE_VAL] = c.images[SCENE_TEST] = 4;
    c.questions_per_image = 4;
    c.steps_per_image = 16;
    c.threads = 2;
    remove_tree(dir);
    CHECK(scenes_write(dir, &c, &e), "%s", e.text);
    return dir;
}

const char *tiny_scenes(void) {
    static char dir[PATH_MAX];
    if (!*dir) strcpy(dir, own_scenes("tiny-scenes"));
    return dir;
}

const char *repository(void) {
    static char dir[PATH_MAX];
    CHECK(*dir || getcwd(dir, sizeof dir), "getcwd");
    return dir;
}

bool same_folders(const char *a, const char *b, char *why, size_t size) {
    for (int way = 0; way < 2; way++) { /* what a has, b has with the same bytes; what b has, a has */
        DIR *d = opendir(way ? b : a);
        if (!d) return snprintf(why, size, "%s is not there", way ? b : a), false;
        for (struct dirent *f; (f = readdir(d));) {
            if (!strcmp(f->d_name, ".") || !strcmp(f->d_name, "..")) continue;
            char x[PATH_MAX], y[PATH_MAX];
            snprintf(x, sizeof x, "%s/%s", a, f->d_name);
            snprintf(y, sizeof y, "%s/%s", b, f->d_name);
            bool same = true;
            if (f->d_type == DT_DIR) {
                same = same_folders(x, y, why, size);
            } else if (way) {
                if (access(x, F_OK)) same = false, snprintf(why, size, "%s is not there", x);
            } else {
                char *p, *q = NULL;
                size_t n, m;
                Error e = {0};
                if (!file_read(x, &p, &n, (size_t)1 << 30, &e) || !file_read(y, &q, &m, (size_t)1 << 30, &e))
                    same = false, snprintf(why, size, "%s", e.text);
                else if (n != m || memcmp(p, q, n))
                    same = false, snprintf(why, size, "%s and %s differ", x, y);
                free(p);
                free(q);
            }
            if (!same) return closedir(d), false;
        }
        closedir(d);
    }
    return true;
}

/* ---- processes ------------------------------------------------------------------------------------ */

static void start(Child *c, int fd[2]) {
    CHECK(!pipe(fd), "pipe");
    fflush(NULL);
    c->pid = fork();
    CHECK(c->pid >= 0, "fork");
    if (c->pid) {
        close(fd[1]);
        c->from = fd[0];
        return;
    }
    dup2(fd[1], 1);
    dup2(fd[1], 2);
    close(fd[0]);
    close(fd[1]);
}

int command_wait(Child *c) {
    size_t got = 0;
    char rest[4096];
    for (;;) {
        const bool room = got + 1 < sizeof c->text;
        const ssize_t n =
            read(c->from, room ? c->text + got : rest, room ? sizeof c->text - 1 - got : sizeof rest);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        if (room) got += (size_t)n;
    }
    c->text[got] = 0;
    close(c->from);
    int status;
    while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR) {}
    return c->status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int child_call(Child *c, void (*fn)(void *), void *arg) {
    int fd[2];
    start(c, fd);
    if (!c->pid) {
        fn(arg);
        _exit(0);
    }
    return command_wait(c);
}

const char *vpdistill(void) {
    static char path[PATH_MAX];
    const char *given = getenv("VPDISTILL");
    if (given) {
        CHECK(realpath(given, path), "VPDISTILL is %s: no such file", given);
        return path;
    }
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 16);
    CHECK(n > 0, "/proc/self/exe");
    path[n] = 0;
    strcpy(strrchr(path, '/') + 1, "vpdistill");
    if (!access(path, X_OK)) return path;
    test_skip("there is no vpdistill beside the test binary, and $VPDISTILL is not set");
    return NULL;
}

enum { MOST_WORDS = 80 };

/* The line's words into argv[n] and on, with NULL at the end. Returns how many there are then. */
static int split(char **argv, int n, const char *line) {
    for (char *word = strtok(xstrdup(line), " "); word && n < MOST_WORDS - 1; word = strtok(NULL, " "))
        argv[n++] = word;
    argv[n] = NULL;
    return n;
}

void command_start(Child *c, const char *dir, void (*setup)(void), const char *line) {
    const char *exe = vpdistill();
    CHECK(exe, "no vpdistill"); /* the test asked before */
    int fd[2];
    start(c, fd);
    if (c->pid) return;
    char *argv[MOST_WORDS] = {(char *)"vpdistill"};
    split(argv, 1, line);
    setenv("OMP_WAIT_POLICY", "PASSIVE", 1); /* two processes may run at once */
    if (dir && chdir(dir)) _exit(120);
    if (setup) setup();
    execv(exe, argv);
    _exit(121);
}

void mpirun_start(Child *c, int ranks, const char *exe, const char *line) {
    int fd[2];
    start(c, fd);
    if (c->pid) return;
    char *argv[MOST_WORDS], *copy;
    /* More ranks than cores, as whoever the tests run as, each free to use any core: they share them with
     * each other. */
    CHECK(asprintf(&copy, "mpirun --allow-run-as-root --oversubscribe --bind-to none -n %d %s", ranks, exe) >
              0,
          "asprintf");
    split(argv, split(argv, 0, copy), line);
    setenv("OMP_WAIT_POLICY", "PASSIVE", 1);
    execvp(argv[0], argv);
    _exit(121);
}

int command(Child *c, const char *dir, const char *fmt, ...) {
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    CHECK(vsnprintf(line, sizeof line, fmt, ap) < (int)sizeof line, "a long command");
    va_end(ap);
    command_start(c, dir, NULL, line);
    return command_wait(c);
}
