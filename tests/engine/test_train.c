/* test_train.c -- the supervised loop in this process: it learns, repeats to the bit, and asks no allocator for a step.
 *
 * Calls of allocators (count.h) are told apart by the library they come from. libjpeg cannot be stopped: it makes its
 * tables anew for every image it decodes (none is when the cache holds them). Everything else must be silent once a few steps have run.
 */
#include "engine/train.h"
#include "tests/engine/child.h"
#include "tests/engine/count.h"

#include <math.h>

static void configure(Config *cfg, const char *out, const char *more) {
    char set[24][300];
    const char *list[24];
    int n = 0;
    snprintf(set[n++], 300, "data.dir=%s", tiny_scenes());
    snprintf(set[n++], 300, "run.out=%s/%s", test_dir(), out);
    static const char *const always[] = {"data.kind=steps",
                                         "train.from_scratch=true",
                                         "train.batch=8",
                                         "train.resume=false",
                                         "run.threads=2",
                                         "train.save_every=0",
                                         "run.log_every=1000000",
                                         "model.vqa=configs/models/tiny-vilt",
                                         "model.loc=configs/models/tiny-owlvit"};
    for (int i = 0; i < COUNT_OF(always); i++) snprintf(set[n++], 300, "%s", always[i]);
    char *copy = xstrdup(more);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) snprintf(set[n++], 300, "%s", word);
    free(copy);
    for (int i = 0; i < n; i++) list[i] = set[i];
    Error e = {0};
    CHECK(config_load(cfg, NULL, list, n, &e), "%s", e.text);
}

static void train(const char *out, const char *more) {
    Config cfg;
    Error e = {0};
    configure(&cfg, out, more);
    EXPECT(train_run(&cfg, &e), "%s: status %d: %s", more, e.status, e.text);
}

/* What 10 and then 15 steps cost; the difference is the loop's. */
static void check_allocations(const char *what, const char *options) {
    char line[400], whose[600] = "";
    int64_t ours[2], jpeg[2];
    bool same = false;
    snprintf(line, sizeof line, "%s train.steps=15", options);
    train("alloc", line); /* the kernels' scratch and the threads' pools grow to their size */
    for (int tries = 0; tries < 3 && !same;
         tries++) { /* a thread may meet its largest block late: once more, then it is true */
        for (int k = 0; k < 2; k++) {
            snprintf(line, sizeof line, "%s train.steps=%d", options, k ? 15 : 10);
            count_begin();
            train("alloc", line);
            count_end();
            jpeg[k] = count_calls("libjpeg", false, NULL, 0);
            ours[k] = count_calls(NULL, false, whose, sizeof whose) - jpeg[k];
        }
        same = ours[1] == ours[0];
    }
    fprintf(stderr,
            "    %s: calls of allocators in runs of 10 and 15 steps: %" PRId64 " and %" PRId64
            "; by libjpeg %" PRId64 " and %" PRId64 "\n",
            what, ours[0], ours[1], jpeg[0], jpeg[1]);
    EXPECT(same, "%s: 5 more steps allocate %" PRId64 " times more", what, ours[1] - ours[0]);
    if (strstr(options, "cache_mb"))
        EXPECT(jpeg[1] == jpeg[0], "%s: %" PRId64 " calls of libjpeg in spite of the cache", what,
               jpeg[1] - jpeg[0]);
}

TEST(train_step_allocates_nothing) {
    if (!count_possible()) {
        test_skip("the allocator cannot be counted here");
        return;
    }
    check_allocations("VQA", "train.module=vqa data.cache_mb=64");
    check_allocations("VQA, decoding", "train.module=vqa data.workers=0");
    check_allocations("VQA, accumulating, augmented",
                      "train.module=vqa train.batch=4 train.accumulate=2 train.augment=0.5 data.cache_mb=64");
    check_allocations("LOC", "train.module=loc train.batch=8 train.per_image=2 data.cache_mb=64");
}

/* The same run twice, with another number of loader threads and of OpenMP threads, is the same to the bit. */
TEST(train_repeats) {
    char a[600], b[600], why[1300];
    static const char *const other[] = {"", "data.workers=3", "run.threads=1",
                                        "data.cache_mb=8 data.workers=0"};
    static const char *const module[] = {"vqa", "loc"};
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < COUNT_OF(other); i++) {
            char line[300];
            snprintf(line, sizeof line, "train.module=%s train.steps=%d %s", module[m], m ? 2 : 6, other[i]);
            train(i ? "again" : "first", line);
            snprintf(a, sizeof a, "%s/first/model", test_dir());
            snprintf(b, sizeof b, "%s/again/model", test_dir());
            if (i) EXPECT(same_folders(a, b, why, sizeof why), "%s, %s: %s", module[m], other[i], why);
        }
}

/* It can learn 166 calls by heart. */
TEST(train_learns) {
    Config cfg;
    Error e = {0};
    configure(&cfg, "learns", "train.steps=80 train.batch=16 data.cache_mb=8 train.lr=0.003");
    EXPECT(train_run(&cfg, &e), "%s", e.text);
    Run r;
    TrainSet t;
    double score = 0;
    char folder[600];
    snprintf(folder, sizeof folder, "%s/learns/model", test_dir());
    run_open(&r, &cfg, NULL);
    Module *m = module_open(folder, r.dev, F32, MODULE_FROZEN, true, 0, &e);
    EXPECT(m, "%s", e.text);
    const DatasetConfig dc = {.type = "steps", .dir = cfg.data.dir, .split = "train"};
    if (m && trainset_open(&t, &dc, m, &e)) {
        EXPECT(train_eval(&r, m, &t, 0, &score, &e), "%s", e.text);
        EXPECT(score > 45, "accuracy %.1f%% on what it was trained on; guessing the most frequent gives 25%%",
               score);
        trainset_close(&t);
    }
    module_close(m);
    run_close(&r);
}

/* A value that is not finite is named: a parameter, or the layer whose output it is. */
TEST(train_names_not_finite) {
    Config cfg;
    configure(&cfg, "unused", "");
    Run r;
    Error e = {0};
    run_open(&r, &cfg, NULL);
    Module *m = module_open("configs/models/tiny-vilt", r.dev, F32, MODULE_TRAINED, false, 1, &e);
    CHECK(m, "%s", e.text);
    ParamSet *set[] = {&m->params};
    static uint8_t pixels[48 * 48 * 3];
    const Ask ask = {{pixels, 48, 48}, 1, {0, 0, 48, 48}, "is it red?"};
    for (int k = 0; k < 2; k++) {
        Param *p = param_find(&m->params, "vilt.encoder.layer.2.attention.attention.value.weight");
        float *x = (float *)p->t.data + 5, was = *x;
        if (k == 1) *x = NAN;
        run_begin(&r, 0, true);
        module_begin(m);
        Outputs out;
        module_forward(m, &r.ctx, &ask, 1, &out);
        e = (Error){0};
        EXPECT(!run_not_finite(&r, set, 1, 41, NAN, &e) && e.status == FAIL_NUMERIC &&
                   strstr(e.text, "step 41"),
               "%s", e.text);
        static const char *const says[] = {
            "finite parameters", "the parameter vilt.encoder.layer.2.attention.attention.value.weight"};
        EXPECT(strstr(e.text, says[k]), "%s", e.text);
        *x = was;
    }
    /* Weights that overflow where they meet: fc1 of layer 1 times values far above 1. */
    Param *gain = param_find(&m->params, "vilt.encoder.layer.1.layernorm_after.weight"),
          *fc1 = param_find(&m->params, "vilt.encoder.layer.1.intermediate.dense.weight");
    CHECK(gain && fc1, "names");
    for (int64_t i = 0; i < gain->n; i++) ((float *)gain->t.data)[i] = 1e30f;
    for (int64_t i = 0; i < fc1->n; i++) ((float *)fc1->t.data)[i] *= 1e15f;
    run_begin(&r, 0, true);
    module_begin(m);
    Outputs out;
    module_forward(m, &r.ctx, &ask, 1, &out);
    run_not_finite(&r, set, 1, 42, NAN, &e);
    EXPECT(strstr(e.text, "of vilt.encoder.layer.1.intermediate.dense.weight"), "%s", e.text);
    module_close(m);
    run_close(&r);
}
