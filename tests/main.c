/* main.c -- runs the tests that linking gathered. See test.h. The last line is `N passed, N failed, N skipped`. */
#include "tests/test.h"

#include <math.h>
#include <stdarg.h>
#include <unistd.h>

static struct Case { const char *file, *name; TestFn *fn; } cases[4096];
static int ncases;

static struct { int failures; double worst; bool skipped; const char *why; } now; /* the test that runs */

void test_register(const char *file, const char *name, TestFn *fn) {
    CHECK(ncases < COUNT_OF(cases), "more than %d tests", COUNT_OF(cases));
    cases[ncases++] = (struct Case){file, name, fn};
}

static void vreport(const char *file, int line, const char *fmt, va_list ap) {
    if (now.failures++ >= 10) return; /* the first ten tell the story */
    fprintf(stderr, "    %s:%d: ", file, line);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

void test_fail(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vreport(file, line, fmt, ap);
    va_end(ap);
}

void test_near(const char *file, int line, double got, double want, double bound, const char *fmt, ...) {
    double err = fabs(got - want);
    if (got == want) err = 0; /* infinities */
    if (bound > 0 && err / bound > now.worst) now.worst = err / bound;
    if (err <= bound) return;
    char what[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    test_fail(file, line, "%s: got %.9g, want %.9g, error %.3g over the bound %.3g", what, got, want, err, bound);
}

void test_skip(const char *why) {
    now.skipped = true;
    now.why = why;
}

static char dir[64];

const char *test_dir(void) {
    if (!*dir) {
        strcpy(dir, "/tmp/vpdistill-test-XXXXXX");
        if (!mkdtemp(dir)) die(FAIL_DISK, "cannot make a folder for the tests in /tmp");
    }
    return dir;
}

static int by_name(const void *a, const void *b) {
    const struct Case *x = a, *y = b;
    int c = strcmp(x->file, y->file);
    return c ? c : strcmp(x->name, y->name);
}

/* Whether the file's or the test's name contains each of the words of "a&b". */
static bool matches(const struct Case *t, const char *words) {
    char word[128];
    for (; *words; words += *words == '&') {
        const size_t n = strcspn(words, "&");
        snprintf(word, sizeof word, "%.*s", (int)n, words);
        if (!strstr(t->file, word) && !strstr(t->name, word)) return false;
        words += n;
    }
    return true;
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    qsort(cases, (size_t)ncases, sizeof *cases, by_name); /* link order is no order */
    for (int i = 0; i < ncases; i++) {
        struct Case *t = &cases[i];
        bool wanted = argc < 2;
        for (int k = 1; k < argc; k++) wanted |= matches(t, argv[k]);
        if (!wanted) continue;
        memset(&now, 0, sizeof now);
        double start = now_s();
        t->fn();
        double s = now_s() - start;
        const char *verdict = now.failures ? "FAIL" : now.skipped ? "skip" : "ok";
        printf("%-5s %-28s %-36s", verdict, strrchr(t->file, '/') ? strrchr(t->file, '/') + 1 : t->file, t->name);
        if (now.skipped) printf("  %s", now.why);
        if (now.worst > 0) printf("  worst %.0f%% of bound", 100 * now.worst);
        if (s > 0.5) printf("  %.1f s", s);
        putchar('\n');
        fflush(stdout);
        if (now.failures) failed++;
        else if (now.skipped) skipped++;
        else passed++;
    }
    if (*dir) remove_tree(dir);
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed || !(passed + skipped) ? 1 : 0;
}
