/* test_bench.c -- `vpdistill bench`: every operation has rows, what it measures is right, what it writes
 * can be read. */
#include <jansson.h>

#include "bench/kernels.h"
#include "tests/engine/child.h"
#include "tests/engine/ranks.h"

static Child c;

/* ---- what there is -------------------------------------------------------------------------------- */

typedef struct Seen {
    const char *op;
    int demo, published, nothing;
} Seen;

static void see(void *arg, const Case *row) {
    Seen *s = arg;
    if (strcmp(row->op, s->op)) return;
    *(strcmp(row->s->model, "demo") ? &s->published : &s->demo) += 1;
    s->nothing += !row->run || (!row->want && !row->wrong);
}

TEST(bench_has_rows_of_every_op) {
    for (int card = 0; card < 2; card++) {
#define X(name)                                                                                              \
    {                                                                                                        \
        Seen s = {.op = #name};                                                                              \
        bench_kernels_list(card, see, &s);                                                                   \
        EXPECT(s.demo &&s.published, #name ": %d rows of the demo, %d of published models", s.demo,          \
               s.published);                                                                                 \
        EXPECT(!s.nothing, #name ": %d rows are not checked", s.nothing);                                    \
    }
        OPS(X)
#undef X
    }
}

TEST(bench_spread_of_times) {
    double s[200];
    for (int i = 0; i < 200; i++) s[i] = (i * 77 % 200) + 1; /* 1..200 in another order */
    Spread t = bench_spread(s, 200);
    EXPECT(t.n == 200 && t.median == 100.5 && t.p99 == 198, "of 1..200: %d, median %g, p99 %g", t.n, t.median,
           t.p99);
    t = bench_spread((double[]){3, 1, 2}, 3);
    EXPECT(t.n == 3 && t.median == 2 && t.p99 == 3, "of 1..3: median %g, p99 %g", t.median, t.p99);
    t = bench_spread(s, 0);
    EXPECT(t.n == 0 && t.median == 0, "of nothing");
}

/* ---- the documents -------------------------------------------------------------------------------- */

static const char *document(const char *name) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s.json", test_dir(), name);
    return path;
}

/* The document that was written; NULL, and the test has failed, when it cannot be read. Its head is looked
 * at. */
static json_t *read_document(const char *path, const char *benchmark) {
    json_error_t why;
    json_t *d = json_load_file(path, 0, &why), *m = json_object_get(d, "machine");
    EXPECT(d, "%s: %s", path, why.text);
    if (!d) return NULL;
    const char *schema = json_string_value(json_object_get(d, "schema")),
               *name = json_string_value(json_object_get(d, "benchmark")),
               *line = json_string_value(json_object_get(d, "command"));
    EXPECT(schema && !strcmp(schema, BENCH_SCHEMA), "schema %s", schema);
    EXPECT(name && !strcmp(name, benchmark), "benchmark %s", name);
    EXPECT(line && strstr(line, "bench") && strstr(line, "bench.json="), "command %s", line);
    EXPECT(json_object_get(d, "commit") && json_object_get(d, "device"), "no commit, no device");
    EXPECT(json_object_get(m, "cpu") && json_integer_value(json_object_get(m, "threads")) >= 1 &&
               json_string_value(json_object_get(m, "compiler")) &&
               json_string_value(json_object_get(m, "began")),
           "the machine is not told");
    EXPECT(json_array_size(json_object_get(d, "rows")), "no rows");
    return d;
}

static double number(const json_t *row, const char *name) {
    const json_t *v = json_object_get(row, name);
    EXPECT(json_is_number(v), "a row has no number %s", name);
    return json_number_value(v);
}

/* Every row has these texts and numbers; the times are positive and ordered. */
static void check_rows(const json_t *d, const char *const *texts, const char *const *numbers) {
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(d, "rows"), i, row) {
        for (int k = 0; texts[k]; k++)
            EXPECT(json_string_value(json_object_get(row, texts[k])), "row %zu has no text %s", i, texts[k]);
        for (int k = 0; numbers[k]; k++) number(row, numbers[k]);
        EXPECT(number(row, "median_us") > 0 && number(row, "p99_us") >= number(row, "median_us"),
               "row %zu: median %g us, p99 %g us", i, number(row, "median_us"), number(row, "p99_us"));
        EXPECT(number(row, "runs") >= 5, "row %zu: %g runs", i, number(row, "runs"));
    }
}

static int longest_line(const char *text) {
    int longest = 0;
    for (const char *at = text; *at;) {
        const int n = (int)strcspn(at, "\n");
        if (strncmp(at, "AMD", 3) && strncmp(at, "Intel", 5) && n > longest && !strstr(at, "vectors of"))
            longest = n;
        at += n + (at[n] == '\n');
    }
    return longest;
}

/* The demo's shapes, every row: the exit status says whether a value was wrong. */
TEST(bench_kernels_of_the_demo) {
    if (!vpdistill()) return;
    const char *path = document("kernels");
    command(&c, NULL, "bench kernels demo f32 bench.ms=0.01 bench.mb=64 run.threads=1 bench.json=%s", path);
    EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    EXPECT(strstr(c.text, " rows, 0 with wrong values") && !strstr(c.text, "needs bench.mb"), "%s", c.text);
    EXPECT(longest_line(c.text) <= 110, "a line of %d columns", longest_line(c.text));
    json_t *d = read_document(path, "kernels"), *peak = json_array_get(json_object_get(d, "peaks"), 0);
    if (!d) return;
    EXPECT(number(peak, "gflop_per_s") > 0 && number(peak, "gb_per_s") > 0, "peaks");
    check_rows(d, (const char *const[]){"op", "what", "model", "shape", "dtype", "bound_by", NULL},
               (const char *const[]){"batch", "bytes", "flop", "gb_per_s", "share_of_peak", "wrong", NULL});
    size_t i, k, copies = 0, libraries = 0;
    json_t *row, *base;
    json_array_foreach(json_object_get(d, "rows"), i, row) {
        EXPECT(number(row, "wrong") == 0, "%s has wrong values",
               json_string_value(json_object_get(row, "op")));
        json_array_foreach(json_object_get(row, "baselines"), k, base) {
            const char *name = json_string_value(json_object_get(base, "name"));
            EXPECT(name && number(base, "median_us") > 0 && number(base, "p99_us") > 0, "a baseline");
            const double ratio = number(base, "median_us") / number(row, "median_us");
            EXPECT_NEAR(number(base, "ratio"), ratio, 1e-5 * ratio, "ratio to %s", name);
            *(strcmp(name, "copy") ? &libraries : &copies) += 1;
        }
        /* Rates follow from bytes, operations and time, to the digits that are written. */
        const double gbs = number(row, "bytes") / number(row, "median_us") * 1e-3;
        EXPECT_NEAR(number(row, "gb_per_s"), gbs, 1e-5 * gbs, "GB/s");
        if (!(number(row, "flop") > 0)) continue;
        const double rate = number(row, "flop") / number(row, "median_us") * 1e-3;
        EXPECT_NEAR(number(row, "gflop_per_s"), rate, 1e-5 * rate, "GFLOP/s");
    }
    EXPECT(copies > 30 && libraries > 20, "%zu rows beside a copy, %zu beside a library", copies, libraries);
    json_decref(d);
}

TEST(bench_kernels_of_the_demo_in_bf16) {
    if (!vpdistill()) return;
    command(&c, NULL, "bench kernels demo bf16 bench.ms=0.01 bench.mb=64 run.threads=1");
    EXPECT(c.status == 0 && strstr(c.text, " rows, 0 with wrong values"), "status %d: %s", c.status, c.text);
}

TEST(bench_kernels_filters) {
    if (!vpdistill()) return;
    command(&c, NULL, "bench kernels gelu_fwd demo f32 bench.ms=0.01 bench.mb=64 run.threads=1");
    EXPECT(c.status == 0 && strstr(c.text, "2 rows, 0 with wrong"), "gelu_fwd and quick_gelu_fwd: %d %s",
           c.status, c.text);
    command(&c, NULL, "bench kernels gelu_fwd demo bench.ms=0.01 bench.mb=1 run.threads=1");
    EXPECT(c.status == 0 && strstr(c.text, "needs bench.mb="), "too little memory: %d %s", c.status, c.text);
    command(&c, NULL, "bench kernels no_such_op bench.mb=1 run.threads=1");
    EXPECT(c.status == FAIL_USAGE && strstr(c.text, "no row contains \"no_such_op\""), "%d %s", c.status,
           c.text);
}

TEST(bench_step_and_its_parts) {
    if (!vpdistill()) return;
    const char *path = document("step");
    const char *texts[] = {"model", "shape", "unit", NULL};
    const char *numbers[] = {"examples",      "examples_per_s", "flop",           "gflop_per_s",
                             "share_of_peak", "parameters",     "peak_rss_bytes", NULL};
    command(&c, NULL, "bench step demo bench.batch=4 bench.ms=1 run.threads=1 bench.json=%s", path);
    EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    json_t *d = read_document(path, "step"), *row = json_array_get(json_object_get(d, "rows"), 0),
           *parts = json_object_get(row, "parts_ms");
    check_rows(d, texts, numbers);
    EXPECT(number(parts, "forward") > 0 && number(parts, "backward") > 0 && number(parts, "optimizer") > 0,
           "parts");
    json_decref(d);
    /* Counted by hand, for 4 examples: blocks of width 64, MLP 256, 10 + 1 + 36 tokens, the last of the 4 for
     * one token alone beside its keys and values; pooler and head; backward twice the forward, for the
     * patches once. */
    const double T = 47, block = 2 * T * (4 * 64 * 64 + 2 * 64 * 256) + 4 * T * T * 64;
    const double last = 2 * T * 2 * 64 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 256) + 4 * T * 64,
                 head = 2 * (64 * 64 + 2 * 64 * 64 + 2 * 64 * 38);
    const double attention = 2 * T * T * 64 * 3 + 2 * T * 64; /* the backward computes the scores again */
    const double want = 4 * (3 * (3 * block + last + head) + 2 * 2.0 * 36 * 192 * 64 + attention);
    d = read_document(path, "step");
    EXPECT_NEAR(number(json_array_get(json_object_get(d, "rows"), 0), "flop"), want, 1e-6 * want,
                "operations of a step");
    json_decref(d);
    command(
        &c, NULL,
        "bench step distill data.dir=%s model.vqa=configs/models/demo-vqa model.loc=configs/models/demo-loc "
        "model.teacher=configs/models/demo-teacher distill.programs=2 bench.ms=1 run.threads=1 bench.json=%s",
        tiny_scenes(), path);
    EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    d = read_document(path, "step");
    row = json_array_get(json_object_get(d, "rows"), 0), parts = json_object_get(row, "parts_ms");
    check_rows(d, texts, numbers);
    EXPECT(number(parts, "decode") > 0 && number(parts, "students") > 0 && number(parts, "teacher") > 0 &&
               number(parts, "programs") > 0,
           "parts");
    json_decref(d);
    command(&c, NULL,
            "bench step model.loc=configs/models/demo-loc bench.batch=2 bench.side=96 bench.ms=1 run.threads=1 "
            "bench.json=%s",
            path);
    EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    d = read_document(path, "step");
    row = json_array_get(json_object_get(d, "rows"), 0), parts = json_object_get(row, "parts_ms");
    check_rows(d, texts, numbers);
    EXPECT(number(parts, "forward") > 0 && number(parts, "backward") > 0 && number(parts, "optimizer") > 0,
           "parts of LOC");
    json_decref(d);
}

TEST(bench_loader_tables) {
    if (!vpdistill()) return;
    const char *path = document("loader");
    command(&c, NULL,
            "bench loader data.kind=gqa data.dir=%s bench.side=64 bench.batch=4 bench.ms=1 run.threads=2 "
            "bench.json=%s",
            tiny_scenes(), path);
    EXPECT(c.status == 0, "status %d: %s", c.status, c.text);
    json_t *d = read_document(path, "loader"), *row;
    size_t i;
    json_array_foreach(json_object_get(d, "rows"), i, row) {
        EXPECT(number(row, "images_per_s") > 0, "row %zu", i);
        if (i >= 2)
            EXPECT(number(row, "wait_share") >= 0 && number(row, "wait_share") <= 1, "wait %g",
                   number(row, "wait_share"));
    }
    EXPECT(i == 4, "%zu rows, not 1 and 2 threads of each table", i);
    json_decref(d);
}

/* ---- ranks ---------------------------------------------------------------------------------------- */

static int port;
static void rank_0(void) { launched(0, 2, port); }
static void rank_1(void) { launched(1, 2, port); }

static void two_ranks(const char *line, Child *other) {
    port = free_port();
    command_start(&c, NULL, rank_0, line);
    command_start(other, NULL, rank_1, line);
    command_wait(&c);
    command_wait(other);
}

TEST(bench_comm_of_two_ranks) {
    if (!vpdistill()) return;
    Child other;
    char line[700];
    const char *path = document("comm");
    snprintf(line, sizeof line, "bench comm bench.mb=1 bench.ms=0.01 bench.json=%s", path);
    two_ranks(line, &other);
    EXPECT(c.status == 0 && other.status == 0, "status %d and %d: %s %s", c.status, other.status, c.text,
           other.text);
    EXPECT(!strstr(other.text, "all_reduce"), "rank 1 prints: %s", other.text);
    json_t *d = read_document(path, "comm"), *row;
    check_rows(d, (const char *const[]){"op", NULL},
               (const char *const[]){"bytes", "alg_gb_per_s", "bus_gb_per_s", "bus_factor", "wrong", NULL});
    EXPECT(number(d, "ranks") == 2 && json_array_size(json_object_get(d, "rows")) == 18,
           "%zu rows of %g ranks", json_array_size(json_object_get(d, "rows")), number(d, "ranks"));
    size_t i;
    json_array_foreach(json_object_get(d, "rows"), i,
                       row) { /* nccl-tests' factors at n = 2: 2 (n-1)/n, (n-1)/n, 1 */
        const char *op = json_string_value(json_object_get(row, "op"));
        const double factor = op && !strcmp(op, "all_gather") ? 0.5 : 1,
                     alg = number(row, "bytes") / number(row, "median_us") * 1e-3;
        EXPECT(number(row, "bus_factor") == factor && number(row, "wrong") == 0, "%s: factor %g, %g wrong",
               op, number(row, "bus_factor"), number(row, "wrong"));
        EXPECT_NEAR(number(row, "bus_gb_per_s"), alg * factor, 1e-5 * alg, "%s: bus bandwidth", op);
    }
    json_decref(d);
    two_ranks("bench kernels bench.mb=1", &other);
    /* Both find it; who says so first ends the other with 7. */
    EXPECT((c.status == FAIL_USAGE || other.status == FAIL_USAGE) && strstr(c.text, "is of one rank"),
           "%d and %d: %s", c.status, other.status, c.text);
}

/* ---- usage ---------------------------------------------------------------------------------------- */

TEST(bench_usage) {
    if (!vpdistill()) return;
    static const struct {
        int status;
        const char *line, *says;
    } rows[] = {
        {FAIL_USAGE, "bench", "There are kernels, step"},
        {FAIL_USAGE, "bench kernal", "did you mean kernels?"},
        {FAIL_USAGE, "bench zzz", "there are kernels, step, loader, comm, waves, peak"},
        {FAIL_USAGE, "bench kernels --ms 10", "no option \"--ms\""},
        {FAIL_CONFIG, "bench kernels bench.mss=1", "did you mean ms?"},
        {FAIL_CONFIG, "bench kernels bench.ms=-1", "not within"},
        {FAIL_USAGE, "bench comm run.launcher=none", "mpirun -n 2"},
        {FAIL_USAGE, "bench step b33", "there are demo, b32, distill"},
        {FAIL_CONFIG, "bench step requests", "model.vqa and model.loc are empty"},
        {FAIL_MODEL, "bench step model.vqa=no/such/folder", "no/such/folder"},
        {FAIL_USAGE, "bench loader fast", "takes no filter"},
        {FAIL_CONFIG, "bench loader requests", "data.dir is empty"},
        {FAIL_DATA, "bench loader requests data.dir=configs", "there is no .jpg file"},
        {FAIL_USAGE, "bench peak fast", "takes no filter"},
        {FAIL_CONFIG, "bench waves", "model.vqa is empty"},
        {FAIL_DISK, "bench peak bench.ms=1 run.threads=1 bench.json=no/such/folder/x.json", "no/such/folder"},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) {
        command(&c, NULL, "%s", rows[i].line);
        EXPECT(c.status == rows[i].status && strstr(c.text, rows[i].says),
               "`%s` ended with %d, not %d, and says %s", rows[i].line, c.status, rows[i].status, c.text);
    }
}
