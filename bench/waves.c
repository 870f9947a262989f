/* waves.c -- programs per second: in waves, in waves without sharing questions, one at a time; and the
 * interpreter alone.
 *
 *   vpdistill bench waves data.dir=DIR model.vqa=FOLDER model.loc=FOLDER [eval.split=test] [eval.limit=1000]
 *   [eval.batch=256] [run.threads=0]
 *
 * Images are decoded and programs parsed before the clock runs: what is compared is the scheduler with the
 * modules. The three ways take turns (a slow second of the machine hurts all of them), the median of the
 * rounds is told, and the results must agree program by program.
 */
#include "bench/bench.h"

#include "engine/eval.h"
#include "modules/answer.h"
#include "modules/steps.h"

enum { ROUNDS = 5, WAVES = 0, WAVES_NO_CACHE, ONE_BY_ONE, WAYS };
static const char *const way_names[WAYS] = {"in waves", "in waves, no question shared", "one at a time"};

typedef struct Bench {
    Config cfg;
    Run run;
    Dataset data;
    Loader *loader;
    Arena arena;
    Module *module[2];
    ModuleAnswerer answers[2];
    Answerer *answerer[2];
    Sched sched;
    Job *job;
    int n;
} Bench;

/* ---- the jobs ------------------------------------------------------------------------------------- */

static bool read_jobs(Bench *b, Error *e) {
    const Config *cfg = &b->cfg;
    int64_t want = cfg->eval.limit ? cfg->eval.limit : 1000;
    DatasetConfig dc = {.type = "gqa", .dir = cfg->data.dir, .split = cfg->eval.split, .limit = want};
    if (!dataset_open(&b->data, &dc, e)) return false;
    LoaderConfig lc = {.seed = 1,
                       .batch = (int)b->data.nsamples,
                       .passes = 1,
                       .workers = cfg->data.workers,
                       .max_bad_percent = 100};
    if (!(b->loader = loader_open(&b->data, &lc, e))) return false;
    const Batch *batch = loader_next(b->loader, e);
    if (!batch) return *e->text ? false : fail_as(e, FAIL_DATA, "%s: no question", cfg->data.dir);
    Arena *a = &b->arena;
    b->job = ARENA_NEW(a, Job, batch->n);
    for (int i = 0; i < batch->n; i++) {
        const Sample *s = &b->data.sample[batch->item[i]];
        Program *p = ARENA_NEW(a, Program, 1);
        int at = batch->image_of[i][0];
        if (!s->program || !program_parse(p, a, &dialect_gqa, s->program, strlen(s->program), NULL)) continue;
        Value *vars = ARENA_NEW(a, Value, p->nslots);
        vars[0] = value_image(batch->image_id[at], batch->image[at].w, batch->image[at].h);
        b->job[b->n++] =
            (Job){.prog = p, .vars = vars, .image = &batch->image[at], .image_id = &batch->image_id[at]};
    }
    if (b->n < want) info("%s has %d programs that parse, not %" PRId64, cfg->data.dir, b->n, want);
    return b->n ? true : fail_as(e, FAIL_DATA, "%s: no program parses", cfg->data.dir);
}

static bool open_modules(Bench *b, Error *e) {
    static const char *const step[] = {"VQA", "LOC"};
    const char *folder[] = {b->cfg.model.vqa, b->cfg.model.loc};
    for (int k = 0; k < 2; k++) {
        if (!*folder[k]) return fail_as(e, FAIL_CONFIG, "model.%s is empty", k ? "loc" : "vqa");
        if (!(b->module[k] = module_open_for(step[k], folder[k], b->run.dev, F32, MODULE_FROZEN, e)))
            return false;
        module_answerer(&b->answers[k], b->module[k], b->cfg.eval.batch);
        b->answers[k].threshold = (float)b->cfg.model.loc_threshold;
        b->answerer[k] = &b->answers[k].base;
    }
    sched_open(&b->sched, b->answerer, 2);
    return true;
}

/* ---- the three ways -------------------------------------------------------------------------------- */

static void begin(Bench *b) {
    run_begin(&b->run, 0, false);
    for (int k = 0; k < 2; k++) module_begin(b->module[k]);
}

/* A hash of every program's result, into result[n]: values die with the arena. */
static void keep_results(const Job *job, int n, uint64_t *result) {
    for (int i = 0; i < n; i++) {
        char text[256];
        bool ok = !job[i].failed && answer_text(text, sizeof text, program_result(job[i].prog, job[i].vars),
                                                ANSWER_YES_NO, NULL);
        result[i] = ok ? hash_bytes(text, strlen(text), 1) : 0;
    }
}

static double run_way(Bench *b, int way, uint64_t *result) {
    double since = now_s();
    b->sched.cache = way != WAVES_NO_CACHE;
    if (way != ONE_BY_ONE) {
        begin(b);
        sched_run(&b->sched, &b->run.ctx, b->job, b->n, &b->run.host);
        keep_results(b->job, b->n, result);
        return now_s() - since;
    }
    for (int i = 0; i < b->n; i++) {
        begin(b);
        sched_run(&b->sched, &b->run.ctx, &b->job[i], 1, &b->run.host);
        keep_results(&b->job[i], 1, &result[i]);
    }
    return now_s() - since;
}

static bool measure(Bench *b, Report *report, Error *e) {
    double s[WAYS][ROUNDS];
    uint64_t *result[WAYS];
    int differ = 0;
    for (int w = 0; w < WAYS; w++) {
        result[w] = ARENA_NEW(&b->arena, uint64_t, b->n);
        run_way(b, w, result[w]); /* touches every page and builds oneDNN's kernels */
    }
    int64_t steps = 0, questions = 0;
    for (int r = 0; r < ROUNDS; r++)
        for (int w = 0; w < WAYS; w++) {
            s[w][r] = run_way(b, w, result[w]);
            if (w != WAVES) continue;
            steps = b->sched.nrecords;
            questions = b->sched.nquestions;
        }
    for (int i = 0; i < b->n; i++)
        differ += result[WAVES][i] != result[ONE_BY_ONE][i] || result[WAVES][i] != result[WAVES_NO_CACHE][i];
    Spread t[WAYS];
    for (int w = 0; w < WAYS; w++) t[w] = bench_spread(s[w], ROUNDS);
    printf("%d programs, %" PRId64 " module steps, %" PRId64
           " distinct questions; batches of %d, %d threads; median of %d rounds\n",
           b->n, steps, questions, b->cfg.eval.batch, b->run.dev->nthreads, ROUNDS);
    for (int w = 0; w < WAYS; w++) {
        const double rate = b->n / t[w].median, ratio = t[ONE_BY_ONE].median / t[w].median;
        printf("  %-30s %9.0f programs/s  %5.2f x one at a time\n", way_names[w], rate, ratio);
        json_t *row = json_pack("{s:s, s:i, s:I, s:I, s:f, s:f, s:i}", "way", way_names[w], "programs", b->n,
                                "module_steps", (json_int_t)steps, "questions", (json_int_t)questions,
                                "programs_per_s", rate, "ratio_to_one_at_a_time", ratio, "wrong", differ);
        report_spread(row, t[w]);
        report_row(report, row);
    }
    return differ ? fail(e, "%d of %d programs gave another result one at a time", differ, b->n) : true;
}

/* ---- the interpreter alone ------------------------------------------------------------------------- */

static void stub_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c;
    bool loc = !strcmp(self->module, "LOC");
    for (int64_t i = 0; i < n; i++) {
        answer[i].value = value_str("red", 3);
        if (!loc) continue;
        int w = rect_w(ask[i].rect), h = rect_h(ask[i].rect);
        Boxes *b = boxes_new(a, 1, ask[i].rect);
        b->box[0] = (Box){{w / 4, h / 4, 3 * w / 4, 3 * h / 4}, 0.9f, 0};
        answer[i].value = value_boxes(b);
    }
}

static void measure_stubs(Bench *b, Report *report) {
    enum { N = 10000 };
    static const char text[] =
        "BOX0=LOC(image=IMAGE,object='ball')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"
        "ANSWER0=VQA(image=IMAGE0,question='What color is the ball?')\nANSWER1=COUNT(box=BOX0)\n"
        "ANSWER2=EVAL(expr=\"'yes' if {ANSWER1} > 0 and {ANSWER0} == 'red' else "
        "'no'\")\nFINAL_RESULT=RESULT(var=ANSWER2)";
    Answerer vqa = {"VQA", 0, stub_answer}, loc = {"LOC", 0, stub_answer}, *answerer[] = {&vqa, &loc};
    Arena *a = &b->arena;
    Program p;
    Error e = {0};
    CHECK(program_parse(&p, a, &dialect_gqa, text, strlen(text), &e), "%s", e.text);
    Job *job = ARENA_NEW(a, Job, N);
    uint64_t *id = ARENA_NEW(a, uint64_t, N);
    static const ImageView image = {NULL, 192, 144};
    for (int i = 0; i < N; i++) {
        id[i] = (uint64_t)i;
        job[i] =
            (Job){.prog = &p, .vars = ARENA_NEW(a, Value, p.nslots), .image = &image, .image_id = &id[i]};
        job[i].vars[0] = value_image(id[i], image.w, image.h);
    }
    Sched s;
    sched_open(&s, answerer, 2);
    double best = 1e9;
    for (int r = 0; r < 2 * ROUNDS; r++) {
        size_t mark = arena_mark(a);
        double since = now_s();
        sched_run(&s, NULL, job, N, a);
        best = MIN(best, now_s() - since);
        arena_reset(a, mark);
    }
    printf("  %-30s %9.0f six-step programs/s on one core, best of %d\n", "the interpreter, modules stubbed",
           N / best, 2 * ROUNDS);
    report_set(report, "interpreter_programs_per_s", json_real(N / best));
    sched_close(&s);
}

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    static Bench b;
    Report report;
    if (nwords) return fail_as(e, FAIL_USAGE, "bench waves takes no filter, \"%s\" was given", word[0]);
    b = (Bench){.cfg = *cfg};
    if (!run_open(&b.run, &b.cfg, e)) return false;
    report_begin(&report, "waves", cfg, b.run.dev);
    arena_open(&b.arena, "programs", NULL, (size_t)2 << 30);
    bool ok = open_modules(&b, e) && read_jobs(&b, e) && measure(&b, &report, e);
    if (ok) measure_stubs(&b, &report);
    sched_close(&b.sched);
    loader_close(b.loader);
    dataset_close(&b.data);
    module_close(b.module[0]);
    module_close(b.module[1]);
    arena_close(&b.arena);
    run_close(&b.run);
    return report_end(&report, ok, e);
}

const Benchmark bench_waves = {"waves", "programs per second, in waves and one at a time", false, run};
