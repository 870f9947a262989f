/* test_step.c -- the step of distillation asks no allocator: programs, teacher, labels, losses, backward, AdamW, trace.
 *
 * As in test_train.c, calls of libjpeg are told apart and not ours to stop (images come from the cache here).
 */
#include "engine/step.h"
#include "tests/engine/child.h"
#include "tests/engine/count.h"

static void configure(Config *cfg, const char *more) {
    char set[16][300];
    const char *list[16];
    int n = 0;
    snprintf(set[n++], 300, "data.dir=%s", tiny_scenes());
    static const char *const always[] = {"model.vqa=configs/models/demo-vqa", "model.loc=configs/models/demo-loc",
                                         "model.teacher=configs/models/demo-teacher", "model.loc_threshold=0.4", "data.limit=8", "run.threads=2"};
    for (int i = 0; i < COUNT_OF(always); i++) snprintf(set[n++], 300, "%s", always[i]);
    char *copy = xstrdup(more);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) snprintf(set[n++], 300, "%s", word);
    free(copy);
    for (int i = 0; i < n; i++) list[i] = set[i];
    Error e = {0};
    CHECK(config_load(cfg, NULL, list, n, &e), "%s", e.text);
}

/* One epoch in the loader's order. Returns the programs that ran. */
static int64_t epoch(Distiller *d, Loader *l, int64_t *step, int batches) {
    int64_t programs = 0;
    for (int i = 0; i < batches; i++) {
        StepStats s;
        Error e = {0};
        const Batch *b = loader_next(l, &e);
        CHECK(b && step_run(d, (*step)++, b, &s, &e), "%s", e.text);
        programs += s.programs;
    }
    return programs;
}

static void check_step(const char *what, const char *options) {
    Config cfg;
    Distiller d;
    Trace trace = {0};
    Error e = {0};
    char path[400], whose[600] = "";
    configure(&cfg, options);
    CHECK(distiller_open(&d, &cfg, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/step-trace.jsonl", test_dir());
    CHECK(trace_open(&trace, path, &e), "%s", e.text);
    d.trace = &trace;
    const LoaderConfig lc = {.seed = 1, .batch = 1, .shuffle = true, .cache_bytes = (size_t)64 << 20, .batch_bytes = (size_t)64 << 20};
    Loader *l = loader_open(&d.by_image.group, &lc, &e);
    CHECK(l, "%s", e.text);
    const int batches = (int)d.by_image.group.nsamples;
    int64_t step = 0, programs = 0, all = 1, jpeg = 0;
    for (int i = 0; i < 2; i++) epoch(&d, l, &step, batches); /* the cache fills, lists and the kernels' scratch grow */
    for (int tries = 0; tries < 3 && all > jpeg; tries++) { /* a batch may be the largest so far: once more, then it is true */
        count_begin();
        programs = epoch(&d, l, &step, batches);
        count_end();
        all = count_calls(NULL, false, NULL, 0);
        jpeg = count_calls("libjpeg", false, NULL, 0);
        if (all > jpeg) count_calls("libjpeg", true, whose, sizeof whose);
    }
    fprintf(stderr, "    %s: %d steps of %" PRId64 " programs and %" PRId64 " trace lines: %" PRId64 " calls of allocators by libjpeg\n",
            what, batches, programs / batches, trace.lines, jpeg);
    EXPECT(programs > 0 && trace.lines > programs, "%" PRId64 " programs, %" PRId64 " lines", programs, trace.lines);
    EXPECT(!all, "%s: %d steps allocate %" PRId64 " times, one by %s", what, batches, all, whose);
    loader_close(l);
    EXPECT(trace_close(&trace, &e), "%s", e.text);
    distiller_close(&d);
}

TEST(step_allocates_nothing) {
    if (!count_possible()) {
        test_skip("the allocator cannot be counted here");
        return;
    }
    check_step("distillation", "distill.candidates=10");
    check_step("other options", "distill.candidates=12 distill.steer=student distill.filter_replay=false distill.loc_l1=1 distill.loc_giou=1");
}
