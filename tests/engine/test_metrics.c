/* test_metrics.c -- rows in both formats, resuming without duplicates, the progress line's words. */
#include "engine/metrics.h"
#include "tests/test.h"

#include <math.h>

static const char *log_path(const char *name) {
    static char path[2][256];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[0], "%s/%s", test_dir(), name);
    return path[turn];
}

static void expect_text(const char *path, const char *want) {
    char *text;
    size_t n;
    Error e = {0};
    EXPECT(file_read(path, &text, &n, 1 << 20, &e), "%s", e.text);
    if (!text) return;
    EXPECT(!strcmp(text, want), "%s holds:\n%s\nnot:\n%s", path, text, want);
    free(text);
}

static void write_rows(const char *path, int64_t from, int64_t to, int64_t resume) {
    Error e = {0};
    Metrics *m = metrics_open(path, resume, &e);
    EXPECT(m, "%s", e.text);
    for (int64_t s = from; m && s < to; s++)
        EXPECT(METRICS_ROW(m, s, &e, {"loss", 1.0 / (double)(s + 1)}, {"lr", s == 1 ? NAN : 0.5}), "%s",
               e.text);
    metrics_close(m);
}

static const char jsonl[] = "{\"step\":0,\"loss\":1,\"lr\":0.5}\n{\"step\":1,\"loss\":0.5,\"lr\":null}\n{"
                            "\"step\":2,\"loss\":0.333333333,\"lr\":0.5}\n";
static const char csv[] = "step,loss,lr\n0,1,0.5\n1,0.5,\n2,0.333333333,0.5\n";

TEST(metrics_rows) {
    write_rows(log_path("a.jsonl"), 0, 3, -1);
    expect_text(log_path("a.jsonl"), jsonl);
    write_rows(log_path("a.csv"), 0, 3, -1);
    expect_text(log_path("a.csv"), csv);
    write_rows(log_path("a.csv"), 0, 3, -1); /* a new run writes a new file */
    expect_text(log_path("a.csv"), csv);
}

/* Stop after any row, resume anywhere at or before it: the file is the same as without a stop. */
TEST(metrics_resume) {
    for (int64_t stop = 0; stop <= 3; stop++)
        for (int64_t again = 0; again <= stop; again++) {
            write_rows(log_path("r.jsonl"), 0, stop, -1);
            write_rows(log_path("r.jsonl"), again, 3, again);
            expect_text(log_path("r.jsonl"), jsonl);
            write_rows(log_path("r.csv"), 0, stop, -1);
            write_rows(log_path("r.csv"), again, 3, again);
            expect_text(log_path("r.csv"), csv);
        }
    /* Killed inside a write, at any byte. */
    Error e = {0};
    for (size_t n = 0; n < sizeof jsonl; n += 5) {
        EXPECT(file_write_atomic(log_path("k.jsonl"), jsonl, n, &e), "%s", e.text);
        write_rows(log_path("k.jsonl"), n > 60 ? 2 : 0, 3, n > 60 ? 2 : 0);
        expect_text(log_path("k.jsonl"), jsonl);
    }
}

TEST(metrics_errors) {
    Error e = {0};
    EXPECT(!metrics_open(log_path("a.txt"), -1, &e) && e.status == FAIL_USAGE, "%s", e.text);
    EXPECT(!metrics_open("/no-such-folder/a.csv", -1, &e) && e.status == FAIL_DISK, "%s", e.text);
    EXPECT(file_write_atomic(log_path("x.jsonl"), "hello\n", 6, &e), "%s", e.text);
    EXPECT(!metrics_open(log_path("x.jsonl"), 3, &e) && e.status == FAIL_DATA &&
               strstr(e.text, "x.jsonl:1: not a row"),
           "%s", e.text);
    expect_text(log_path("x.jsonl"), "hello\n"); /* not touched */
    EXPECT(file_write_atomic(log_path("x.csv"), "a,b\n1,2\n", 8, &e), "%s", e.text);
    EXPECT(!metrics_open(log_path("x.csv"), 3, &e) && strstr(e.text, "not a log of metrics"), "%s", e.text);
    Metrics *m = metrics_open(log_path("c.csv"), -1, &e);
    EXPECT(m && METRICS_ROW(m, 1, &e, {"loss", 1}, {"lr", 2}), "%s", e.text);
    EXPECT(METRICS_ROW(m, 2, &e, {"lr", 3}), "%s", e.text);
    EXPECT(!METRICS_ROW(m, 3, &e, {"accuracy", 3}) && strstr(e.text, "no column \"accuracy\""), "%s", e.text);
    metrics_close(m);
    expect_text(log_path("c.csv"), "step,loss,lr\n1,1,2\n2,,3\n");
}

TEST(progress_plain_and_terminal) {
    char *text = NULL;
    size_t n;
    Progress p;
    progress_begin(&p, "train", 200);
    p.out = open_memstream(&text, &n);
    p.terminal = false;
    p.every = 50;
    for (int i = 1; i <= 200; i++) progress_step(&p, i, "loss %.2f", 0.25);
    progress_end(&p, 200, "loss %.2f", 0.25);
    fflush(p.out);
    const char *const plain[] = {"train 50/200 (25%)", "train 200/200 (100%)", "loss 0.25\n",
                                 "train: 200 in 0:00, loss 0.25\n"};
    for (int i = 0; i < COUNT_OF(plain); i++)
        EXPECT(strstr(text, plain[i]), "no \"%s\" in %s", plain[i], text);
    EXPECT(!strchr(text, '\r') && !strchr(text, 27), "a terminal's codes in %s", text);
    p.terminal = true;
    p.shown = p.start - 1; /* as if a second had passed */
    progress_step(&p, 100, "x");
    fflush(p.out);
    const char *drawn = strstr(text, "\r\033[Ktrain [==========----------]  50% 100/200");
    EXPECT(drawn, "%s", text);
    progress_end(&p, 200, "%s", "");
    fclose(p.out);
    free(text);
}
