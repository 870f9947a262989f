/* test_sched.c -- waves: the same answers as one program at a time, each question once, one failure harms nobody else, no allocation. */
#include "tests/engine/count.h"
#include "tests/engine/scene_jobs.h"

/* ---- the same answers ------------------------------------------------------------------------------ */

enum { JOBS = 1000 };

/* Every job by itself, the arenas of the context emptied in between as a loop without waves would. */
static void run_one_by_one(Answerer *const *answerer, int n, Module *const *module, int nmodules, Ctx *c,
                           Job *job, int njobs, Arena *a) {
    Sched s;
    sched_open(&s, answerer, n);
    for (int i = 0; i < njobs; i++) {
        size_t step = c ? arena_mark(c->step) : 0, host = c ? arena_mark(c->host) : 0;
        for (int k = 0; k < nmodules; k++) module_begin(module[k]);
        sched_run(&s, c, &job[i], 1, a);
        if (c) arena_reset(c->step, step), arena_reset(c->host, host);
    }
    sched_close(&s);
}

/* With the truth for modules all 1,000 programs are right, in waves and one by one. */
TEST(sched_waves_oracle) {
    SceneJobs j;
    scene_jobs_open(&j, JOBS);
    OracleAnswerer vqa, loc;
    oracle_answerer(&vqa, "VQA", &j.graphs, NULL, false);
    oracle_answerer(&loc, "LOC", &j.graphs, NULL, false);
    Answerer *answerer[] = {&vqa.base, &loc.base};
    Job *alone = jobs_copy(j.job, JOBS, &j.arena);
    Sched s;
    sched_open(&s, answerer, 2);
    sched_run(&s, NULL, j.job, JOBS, &j.arena);
    EXPECT(s.waves >= 2 && s.waves <= 6, "%d waves", s.waves);
    int right = 0;
    for (int i = 0; i < JOBS; i++) right += job_right(&j.job[i], j.gold[i]);
    EXPECT(right == JOBS, "%d of %d right with perfect modules", right, JOBS);
    EXPECT(!vqa.fell_back && !loc.fell_back, "the graph left %d and %d questions open", (int)vqa.fell_back,
           (int)loc.fell_back);
    run_one_by_one(answerer, 2, NULL, 0, NULL, alone, JOBS, &j.arena);
    EXPECT(jobs_differ(j.job, alone, JOBS, true) == 0, "%d programs differ",
           jobs_differ(j.job, alone, JOBS, true));
    sched_close(&s);
    scene_jobs_close(&j);
}

typedef struct Networks {
    Module *module[2];
    ModuleAnswerer vqa, loc;
    Answerer *answerer[2];
    Arena step, host;
    Ctx c;
} Networks;

/* The demo's students with random weights. A fresh OWL-ViT is nowhere surer than a few percent: the threshold is lowered, so that
 * lists of boxes are long and there is something to compare. */
static void networks_open(Networks *n) {
    static const char *const folder[] = {"configs/models/tiny-vilt", "configs/models/tiny-owlvit"};
    Error e = {0};
    for (int k = 0; k < 2; k++)
        CHECK((n->module[k] = module_open(folder[k], device_cpu(0), F32, MODULE_FROZEN, false, 11, &e)), "%s",
              e.text);
    module_answerer(&n->vqa, n->module[0], 256);
    module_answerer(&n->loc, n->module[1], 256);
    n->loc.threshold = 0.01f;
    n->answerer[0] = &n->vqa.base;
    n->answerer[1] = &n->loc.base;
    arena_open(&n->step, "step", n->module[0]->params.dev, (size_t)16 << 30);
    arena_open(&n->host, "host", NULL, (size_t)4 << 30);
    n->c = (Ctx){.dev = n->module[0]->params.dev, .step = &n->step, .host = &n->host};
}

static void networks_close(Networks *n) {
    module_close(n->module[0]);
    module_close(n->module[1]);
    arena_close(&n->step);
    arena_close(&n->host);
}

/* A set of distinct things, by hash. */
typedef struct Distinct { uint64_t *key; int64_t n; } Distinct;
static void distinct_add(Distinct *d, uint64_t key) {
    for (int64_t i = 0; i < d->n; i++)
        if (d->key[i] == key) return;
    d->key[d->n++] = key;
}
static uint64_t image_key(const Ask *a) {
    struct { uint64_t id; Rect r; } k = {a->image_id, a->rect};
    return hash_bytes(&k, sizeof k, 1);
}

/* Real networks: the same answers again (products of other sizes round in another order, so scores may differ in their last bits);
 * each distinct (image, rectangle) went through the image side once, each distinct text through the text tower once. */
TEST(sched_waves_networks) {
    SceneJobs j;
    scene_jobs_open(&j, 300);
    Networks n;
    networks_open(&n);
    Job *alone = jobs_copy(j.job, j.n, &j.arena);
    Sched s;
    sched_open(&s, n.answerer, 2);
    for (int k = 0; k < 2; k++) module_begin(n.module[k]);
    sched_run(&s, &n.c, j.job, j.n, &j.arena);

    int64_t asks[2] = {0}, boxes = 0;
    Distinct images[2], texts[2];
    for (int k = 0; k < 2; k++) {
        images[k] = (Distinct){.key = ARENA_NEW(&j.arena, uint64_t, s.nquestions)};
        texts[k] = (Distinct){.key = ARENA_NEW(&j.arena, uint64_t, s.nquestions)};
    }
    for (int64_t q = 0; q < s.nquestions; q++) {
        const Question *x = &s.question[q];
        asks[x->answerer]++;
        distinct_add(&images[x->answerer], image_key(&x->ask));
        distinct_add(&texts[x->answerer], hash_bytes(x->ask.query, strlen(x->ask.query), 2));
        if (x->answer.value.kind == VAL_BOXES) boxes += x->answer.value.boxes->n;
    }
    EXPECT(boxes > s.nquestions / 2, "only %" PRId64 " boxes: nothing is compared", boxes);
    for (int k = 0; k < 2; k++) {
        EXPECT(n.module[k]->asks == asks[k], "%s: %" PRId64 " asks of %" PRId64 " questions",
               n.answerer[k]->module, n.module[k]->asks, asks[k]);
        EXPECT(n.module[k]->image_rows == images[k].n,
               "%s: %" PRId64 " image rows of %" PRId64 " distinct crops", n.answerer[k]->module,
               n.module[k]->image_rows, images[k].n);
    }
    EXPECT(n.module[1]->text_rows == texts[1].n, "LOC: %" PRId64 " text rows of %" PRId64 " distinct texts",
           n.module[1]->text_rows, texts[1].n);
    EXPECT(s.nrecords > s.nquestions, "%" PRId64 " steps put %" PRId64 " questions: none was shared",
           s.nrecords, s.nquestions);

    run_one_by_one(n.answerer, 2, n.module, 2, &n.c, alone, j.n, &j.arena);
    EXPECT(jobs_differ(j.job, alone, j.n, false) == 0, "%d of %d programs differ",
           jobs_differ(j.job, alone, j.n, false), j.n);
    sched_close(&s);
    networks_close(&n);
    scene_jobs_close(&j);
}

/* ---- stubs ----------------------------------------------------------------------------------------- */

/* Answers at once: VQA "red", LOC one box in the middle. */
typedef struct Stub { Answerer base; int64_t asked, calls; } Stub;

static void stub_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c;
    Stub *s = (Stub *)self;
    bool loc = !strcmp(self->module, "LOC");
    s->asked += n;
    s->calls++;
    for (int64_t i = 0; i < n; i++) {
        answer[i].value = value_str("red", 3);
        if (!loc) continue;
        int w = rect_w(ask[i].rect), h = rect_h(ask[i].rect);
        Boxes *b = boxes_new(a, 1, ask[i].rect);
        b->box[0] = (Box){{w / 4, h / 4, 3 * w / 4, 3 * h / 4}, 0.9f, 0};
        b->category = (Str){ask[i].query, (int)strlen(ask[i].query)};
        answer[i].value = value_boxes(b);
    }
}

typedef struct Stubs { Stub vqa, loc; Answerer *answerer[2]; } Stubs;
static void stubs_open(Stubs *s, int64_t max_batch) {
    s->vqa = (Stub){{"VQA", max_batch, stub_answer}, 0, 0};
    s->loc = (Stub){{"LOC", max_batch, stub_answer}, 0, 0};
    s->answerer[0] = &s->vqa.base;
    s->answerer[1] = &s->loc.base;
}

static const char six_steps[] =
    "BOX0=LOC(image=IMAGE,object='ball')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"
    "ANSWER0=VQA(image=IMAGE0,question='What color is the ball?')\nANSWER1=COUNT(box=BOX0)\n"
    "ANSWER2=EVAL(expr=\"'yes' if {ANSWER1} > 0 and {ANSWER0} == 'red' else "
    "'no'\")\nFINAL_RESULT=RESULT(var=ANSWER2)";

/* n jobs of one program on n images that exist by name only. */
static Job *stub_jobs(const char *text, int n, Arena *a) {
    Error e = {0};
    Program *p = ARENA_NEW(a, Program, 1);
    CHECK(program_parse(p, a, &dialect_gqa, text, strlen(text), &e), "%s", e.text);
    Job *job = ARENA_NEW(a, Job, n);
    ImageView *image = ARENA_NEW(a, ImageView, n);
    uint64_t *id = ARENA_NEW(a, uint64_t, n);
    for (int i = 0; i < n; i++) {
        image[i] = (ImageView){NULL, 192, 144};
        id[i] = (uint64_t)i;
        Value *vars = ARENA_NEW(a, Value, p->nslots);
        vars[0] = value_image(id[i], 192, 144);
        job[i] = (Job){.prog = p, .vars = vars, .image = &image[i], .image_id = &id[i]};
    }
    return job;
}

static const char *result_text(const Job *j) {
    static char text[64];
    return !j->failed && answer_text(text, sizeof text, program_result(j->prog, j->vars), ANSWER_YES_NO, NULL)
               ? text
               : "(failed)";
}

/* Questions are put once and in batches; without the cache each step puts its own. */
TEST(sched_batches) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)256 << 20);
    Stubs st;
    stubs_open(&st, 64);
    Job *job = stub_jobs(six_steps, 1000, &a);
    for (int i = 999; i > 0; i--)
        job[i].image_id = job[i / 2].image_id, job[i].vars[0] = job[i / 2].vars[0]; /* each image twice */
    Sched s;
    sched_open(&s, st.answerer, 2);
    sched_run(&s, NULL, job, 1000, &a);
    EXPECT(st.loc.asked == 500 && st.vqa.asked == 500, "%d LOC, %d VQA questions", (int)st.loc.asked,
           (int)st.vqa.asked);
    EXPECT(st.loc.calls == 8 && st.vqa.calls == 8, "%d LOC, %d VQA calls of 64 at most", (int)st.loc.calls,
           (int)st.vqa.calls);
    EXPECT(s.waves == 2 && s.nrecords == 2000, "%d waves, %d records", s.waves, (int)s.nrecords);
    for (int i = 0; i < 1000; i++)
        EXPECT(!strcmp(result_text(&job[i]), "yes"), "job %d: %s", i, result_text(&job[i]));
    s.cache = false;
    sched_run(&s, NULL, job, 1000, &a);
    EXPECT(st.loc.asked == 1500 && st.vqa.asked == 1500, "without the cache %d LOC, %d VQA",
           (int)st.loc.asked, (int)st.vqa.asked);
    sched_close(&s);
    arena_close(&a);
}

/* Nothing to do, and programs that ask no module. */
TEST(sched_degenerate) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Stubs st;
    stubs_open(&st, 0);
    Sched s;
    sched_open(&s, st.answerer, 2);
    sched_run(&s, NULL, NULL, 0, &a);
    EXPECT(s.waves == 0 && s.nquestions == 0, "%d waves of no job", s.waves);
    Job *job = stub_jobs("BOX0=LOC(image=IMAGE,object='LEFT')\nA=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=A)",
                         3, &a);
    sched_run(&s, NULL, job, 3, &a);
    EXPECT(s.waves == 0 && s.nrecords == 0 && !strcmp(result_text(&job[2]), "1"), "%d waves, %s", s.waves,
           result_text(&job[2]));
    sched_close(&s);
    arena_close(&a);
}

/* A program that fails says where; those around it get what they would have got without it. */
TEST(sched_failure_is_private) {
    static const char *const bad[] = {
        "A=VQA(image=IMAGE,question='What color is the ball?')\nB=EVAL(expr='{A} + "
        "1')\nFINAL_RESULT=RESULT(var=B)",
        "A=VQA(image=IMAGE,question='What color is the ball?')\nB=EVAL(expr='1 / ({A} == "
        "\"blue\")')\nC=VQA(image=IMAGE,question='What is this?')\n"
        "D=EVAL(expr='{B} == {C}')\nFINAL_RESULT=RESULT(var=D)",
    };
    Arena a;
    arena_open(&a, "test", NULL, (size_t)256 << 20);
    Stubs st;
    stubs_open(&st, 0);
    enum { N = 60 };
    Job *good = stub_jobs(six_steps, N, &a), *mixed = jobs_copy(good, N, &a);
    for (int i = 0; i < N; i += 3) mixed[i] = stub_jobs(bad[i / 3 % 2], N, &a)[i];
    Sched s;
    sched_open(&s, st.answerer, 2);
    sched_run(&s, NULL, good, N, &a);
    sched_run(&s, NULL, mixed, N, &a);
    for (int i = 0; i < N; i++) {
        if (i % 3) {
            EXPECT(jobs_differ(&good[i], &mixed[i], 1, true) == 0, "job %d beside a failing one", i);
            continue;
        }
        EXPECT(mixed[i].failed && mixed[i].failed_step == 1, "job %d: failed %d in step %d", i,
               mixed[i].failed, mixed[i].failed_step);
        EXPECT(strstr(mixed[i].err.text, "line 2"), "job %d: \"%s\" names no line", i, mixed[i].err.text);
    }
    for (int64_t k = 0; k < s.nrecords; k++)
        EXPECT(s.record[k].step < 3, "step %d was taken after the failure", s.record[k].step);
    sched_close(&s);
    arena_close(&a);
}

TEST(sched_missing_module) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Stubs st;
    stubs_open(&st, 0);
    Job *job = ARENA_NEW(&a, Job, 2);
    job[0] = *stub_jobs(six_steps, 1, &a);
    job[1] = *stub_jobs("A=VQA(image=IMAGE,question='What is this?')\nFINAL_RESULT=RESULT(var=A)", 1, &a);
    Sched s;
    sched_open(&s, st.answerer, 1); /* VQA only */
    sched_run(&s, NULL, job, 2, &a);
    EXPECT(job[0].failed && job[0].failed_step == 0 &&
               !strcmp(job[0].err.text, "line 1: no LOC module is loaded"),
           "%s", job[0].err.text);
    EXPECT(!strcmp(result_text(&job[1]), "red"), "the other program: %s", result_text(&job[1]));
    sched_close(&s);
    arena_close(&a);
}

/* What an argument really is, is known only when a step runs: a number is no question, and a text that EVAL cut out of its
 * expression ends where it ends. */
typedef struct Listener { Answerer base; char heard[256]; ImageView image[8]; int64_t asked; } Listener;

static void listener_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c, (void)a;
    Listener *l = (Listener *)self;
    for (int64_t i = 0; i < n; i++) {
        snprintf(l->heard, sizeof l->heard, "%s", ask[i].query);
        l->image[l->asked++ % COUNT_OF(l->image)] = ask[i].image;
        answer[i].value = value_str("red", 3);
    }
}

TEST(sched_arguments) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Listener l = {.base = {"VQA", 0, listener_answer}};
    Answerer *answerer[] = {&l.base};
    Sched s;
    sched_open(&s, answerer, 1);
    Job *number = stub_jobs("A=EVAL(expr=\"1 if 2 > 1 else 'what?'\")\nB=VQA(image=IMAGE,question=A)\nR=RESULT(var=B)", 1, &a);
    sched_run(&s, NULL, number, 1, &a);
    EXPECT(number->failed && number->failed_step == 1 && !strcmp(number->err.text, "line 2: VQA: it wants a string for question, got an int") && !l.asked, "%s",
           number->err.text);
    Job *text = stub_jobs("A=EVAL(expr=\"'what?' if 2 > 1 else 'who?'\")\nB=VQA(image=IMAGE,question=A)\nR=RESULT(var=B)", 1, &a);
    sched_run(&s, NULL, text, 1, &a);
    EXPECT(!text->failed && !strcmp(l.heard, "what?"), "asked \"%s\"", l.heard);
    sched_close(&s);
    arena_close(&a);
}

/* ---- steps that put several questions --------------------------------------------------------------- */

/* LOC finds three birds; CLIP likes them as this table says. */
static const struct { const char *text; double score[3]; } likes[] = {
    {"robin", {0.30, 0.31, 0.28}}, {"wren", {0.25, 0.20, 0.2999}}, {"other", {0.1, 0.35, -0.2}},
    {"tit", {0.2504, 0.2502, 0.2499}}, {"none", {-0.1, 0, -0.3}}, {" wren", {0.9, 0, 0}},
};
static const int bird_at[3] = {10, 60, 110};

typedef struct Birds { Answerer base; int64_t asked, calls; const char *category; int n; } Birds;

static void birds_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c;
    Birds *w = (Birds *)self;
    w->asked += n;
    w->calls++;
    for (int64_t i = 0; i < n; i++) {
        if (!strcmp(self->module, "LIST")) {
            static const Value items[] = {{.kind = VAL_STR, .str = {"robin", 5}}, {.kind = VAL_STR, .str = {"wren", 4}}, {.kind = VAL_STR, .str = {"tit", 3}}};
            if (strcmp(ask[i].query, "birds")) answer[i].why = "I know of birds only";
            else answer[i].value = (Value){.kind = VAL_LIST, .list = {items, 3}};
            continue;
        }
        if (!strcmp(self->module, "LOC")) {
            Boxes *b = boxes_new(a, w->n, ask[i].rect);
            for (int k = 0; k < w->n; k++) b->box[k] = (Box){{bird_at[k], 20, bird_at[k] + 40, 100}, 0.9f - 0.1f * (float)k, k};
            b->category = (Str){w->category, (int)strlen(w->category)};
            answer[i].value = value_boxes(b);
            continue;
        }
        int text = 0, object = 0;
        while (text < COUNT_OF(likes) && strcmp(likes[text].text, ask[i].query)) text++;
        while (object < 3 && bird_at[object] != ask[i].rect.x0) object++;
        EXPECT(object < 3 && ask[i].rect.y0 == 20 && ask[i].rect.x1 == bird_at[object] + 40 && ask[i].rect.y1 == 100, "asked about [%d, %d, %d, %d]", ask[i].rect.x0,
               ask[i].rect.y0, ask[i].rect.x1, ask[i].rect.y1);
        answer[i].value = value_float(text < COUNT_OF(likes) ? likes[text].score[object % 3] : 0);
    }
}

/* "1 robin 31.0, 2 wren 30.0": each object's number, and its class when it has one. */
static const char *objects_text(const Job *j) {
    static char out[512];
    if (j->failed) return j->err.text;
    const Value *v = program_result(j->prog, j->vars);
    *out = 0;
    for (int i = 0; i < v->boxes->n; i++) {
        char *at = out + strlen(out);
        const size_t left = sizeof out - (size_t)(at - out);
        int k = 0;
        while (bird_at[k] != v->boxes->box[i].rect.x0) k++;
        if (v->boxes->classes) snprintf(at, left, "%s%d %.*s %.1f", i ? ", " : "", k, v->boxes->classes[i].name.n, v->boxes->classes[i].name.s, v->boxes->classes[i].score);
        else snprintf(at, left, "%s%d", i ? ", " : "", k);
    }
    return out;
}

#define FIND "O=LOC(image=IMAGE,object='x')\n"

TEST(sched_objects) {
    static const struct { const char *category, *line; int n, asked; const char *want, *strict; } cases[] = {
        /* Each object is of its best class; of each class the best object, best first. 29.99 is 30.0. */
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['robin','wren'])", 3, 6, "1 robin 31.0, 2 wren 30.0", NULL},
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories='wren, robin')", 3, 6, "1 robin 31.0, 2 wren 30.0", NULL},
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['robin','wren','other'])", 3, 9, "1 other 35.0, 0 robin 30.0, 2 wren 30.0", NULL},
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['robin'])", 3, 6, "1 other 35.0, 0 robin 30.0", NULL},
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['tit','none'])", 3, 6, "0 tit 25.0", NULL}, /* all three are 25.0: the first */
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['none','wren-like'])", 3, 6, "", NULL},  /* no score is above 0 */
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=['robin','wren'])", 0, 0, "", NULL},
        {"bird", "P=CLASSIFY(image=IMAGE,object=O,categories=[])", 3, 0, "line 2: CLASSIFY: there are no categories to tell apart", NULL},
        /* By name without asking, else for each text the best object. */
        {"bird", "P=SELECT(image=IMAGE,object=O,query='Bird',category=None)", 3, 0, "0, 1, 2", NULL},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='robin,bird')", 3, 0, "0, 1, 2", NULL},
        {"bird-merged", "P=SELECT(image=IMAGE,object=O,query='bird')", 2, 0, "0, 1", NULL},
        {"bird-other-merged", "P=SELECT(image=IMAGE,object=O,query='bird')", 2, 0, "0, 1", NULL},
        {"bird-other", "P=SELECT(image=IMAGE,object=O,query='bird,robin')", 3, 6, "0, 1", NULL},
        {"Bird", "P=SELECT(image=IMAGE,object=O,query='bird')", 3, 3, "0", "0, 1, 2"},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='robin,wren')", 3, 6, "1, 2", NULL},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='robin, wren')", 3, 6, "1, 0", "1, 2"},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='robin,robin')", 3, 3, "1, 1", NULL},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='bird',category='birds of prey')", 3, 3, "0", NULL},
        {"", "P=SELECT(image=IMAGE,object=O,query='')", 3, 3, "0", NULL},
        {"bird", "P=SELECT(image=IMAGE,object=O,query='bird')", 0, 0, "", NULL},
        /* What is selected keeps its class. */
        {"bird", "C=CLASSIFY(image=IMAGE,object=O,categories=['robin','wren'])\nP=SELECT(image=IMAGE,object=C,query='wren')", 3, 6, "2 wren 30.0", NULL},
    };
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Birds loc = {.base = {"LOC", 0, birds_answer}}, clip = {.base = {"CLIP", 4, birds_answer}};
    Answerer *answerer[] = {&loc.base, &clip.base};
    Sched s;
    sched_open(&s, answerer, 2);
    for (int i = 0; i < 2 * COUNT_OF(cases); i++) {
        const bool strict = i & 1;
        const char *want = strict && cases[i / 2].strict ? cases[i / 2].strict : cases[i / 2].want;
        char text[512];
        snprintf(text, sizeof text, FIND "%s\nR=RESULT(var=P)", cases[i / 2].line);
        loc.category = cases[i / 2].category;
        loc.n = cases[i / 2].n;
        clip.asked = clip.calls = 0;
        Job *job = stub_jobs(text, 2, &a); /* two programs, one image: each question once */
        if (strict) {
            Dialect d = dialect_gqa;
            Error e = {0};
            d.strict = true;
            CHECK(program_parse((Program *)(uintptr_t)job->prog, &a, &d, text, strlen(text), &e), "%s", e.text);
        }
        job[1].image_id = job[0].image_id, job[1].vars[0] = job[0].vars[0];
        sched_run(&s, NULL, job, 2, &a);
        for (int k = 0; k < 2; k++) EXPECT(!strcmp(objects_text(&job[k]), want), "%s: %s, not %s", text, objects_text(&job[k]), want);
        EXPECT(strict || clip.asked == cases[i / 2].asked, "%s: %d questions to CLIP", text, (int)clip.asked);
        EXPECT(clip.calls == (clip.asked + 3) / 4, "%d questions in %d calls of 4 at most", (int)clip.asked, (int)clip.calls);
        arena_reset(&a, 0);
    }
    /* Without the module: a program that need not ask it does not miss it. */
    sched_close(&s);
    sched_open(&s, answerer, 1);
    loc.category = "bird";
    loc.n = 3;
    Job *fine = stub_jobs(FIND "P=SELECT(image=IMAGE,object=O,query='bird')\nR=RESULT(var=P)", 1, &a),
        *asks = stub_jobs(FIND "P=SELECT(image=IMAGE,object=O,query='robin')\nR=RESULT(var=P)", 1, &a);
    sched_run(&s, NULL, fine, 1, &a);
    EXPECT(!strcmp(objects_text(fine), "0, 1, 2"), "%s", objects_text(fine));
    sched_run(&s, NULL, asks, 1, &a);
    EXPECT(!strcmp(objects_text(asks), "line 2: no CLIP module is loaded"), "%s", objects_text(asks));
    sched_close(&s);
    arena_close(&a);
}

/* Knowledge tagging: the list and the boxes in one wave, all pairs in the next. Whoever has no answer fails his program only. */
TEST(sched_list_and_tag) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Birds loc = {.base = {"LOC", 0, birds_answer}, .category = "bird", .n = 3}, clip = {.base = {"CLIP", 0, birds_answer}}, list = {.base = {"LIST", 0, birds_answer}};
    Answerer *answerer[] = {&loc.base, &clip.base, &list.base};
    Sched s;
    sched_open(&s, answerer, 3);
    const char *const tail = "P=CLASSIFY(image=IMAGE,object=O,categories=L)\nR=RESULT(var=P)";
    char good[512], few[512], bad[512], none[512];
    snprintf(good, sizeof good, FIND "L=LIST(query='birds',max=20)\n%s", tail);
    snprintf(few, sizeof few, FIND "L=LIST(query='birds',max=2)\n%s", tail);
    snprintf(bad, sizeof bad, FIND "L=LIST(query='cars',max=20)\n%s", tail);
    snprintf(none, sizeof none, FIND "L=LIST(query='birds',max=0)\n%s", tail);
    Job *job = ARENA_NEW(&a, Job, 4);
    job[0] = *stub_jobs(good, 1, &a), job[1] = *stub_jobs(bad, 1, &a), job[2] = *stub_jobs(few, 1, &a), job[3] = *stub_jobs(none, 1, &a);
    sched_run(&s, NULL, job, 4, &a);
    EXPECT(!strcmp(objects_text(&job[0]), "1 robin 31.0, 2 wren 30.0"), "%s", objects_text(&job[0]));
    EXPECT(!strcmp(objects_text(&job[2]), "1 robin 31.0, 2 wren 30.0"), "%s", objects_text(&job[2]));
    EXPECT(!strcmp(objects_text(&job[1]), "line 2: LIST: I know of birds only") && job[1].failed_step == 1, "%s", objects_text(&job[1]));
    EXPECT(!strcmp(objects_text(&job[3]), "line 2: LIST: max is 0, a list has at least one thing"), "%s", objects_text(&job[3]));
    EXPECT(s.waves == 2 && list.asked == 2 && clip.asked == 9 && clip.calls == 1, "%d waves, %d lists, %d questions in %d calls", s.waves, (int)list.asked,
           (int)clip.asked, (int)clip.calls);
    int64_t records = 0;
    for (int64_t k = 0; k < s.nrecords; k++) records += s.record[k].job == 0;
    EXPECT(records == 1 + 1 + 9, "%" PRId64 " records of the first program", records);
    sched_close(&s);
    arena_close(&a);
}

/* What a step draws is an image like any other: asked about with its own pixels, equal ones once, different ones apart. */
TEST(sched_made_images) {
    enum { W = 64, H = 48 };
    Arena a;
    arena_open(&a, "test", NULL, (size_t)64 << 20);
    Listener l = {.base = {"VQA", 0, listener_answer}};
    Answerer *answerer[] = {&l.base};
    Sched s;
    sched_open(&s, answerer, 1);
    uint8_t *rgb = arena_alloc(&a, 2 * W * H * 3);
    for (int i = 0; i < 2 * W * H * 3; i++) rgb[i] = (uint8_t)(i * 31 + i / 700);
    static const char text[] = "B=LOC(image=IMAGE,object='LEFT')\nI=COLORPOP(image=IMAGE,object=B)\nJ=CROP(image=I,box=B)\nC=VQA(image=I,question='q')\n"
                               "D=VQA(image=J,question='q')\nE=VQA(image=IMAGE,question='q')\nF=EVAL(expr='{C} == {D} and {D} == {E}')\nR=RESULT(var=F)";
    Job *job = stub_jobs(text, 3, &a);
    for (int i = 0; i < 3; i++) { /* the first two look at the same picture under one name, the third at another */
        ((ImageView *)(uintptr_t)job[i].image)[0] = (ImageView){rgb + (i == 2) * W * H * 3, W, H};
        ((uint64_t *)(uintptr_t)job[i].image_id)[0] = i == 2;
        job[i].vars[0] = value_image(i == 2, W, H);
    }
    sched_run(&s, NULL, job, 3, &a);
    EXPECT(s.nquestions == 6 && l.asked == 6, "%" PRId64 " questions", s.nquestions);
    int own = 0;
    for (int i = 0; i < 6; i++) {
        own += l.image[i].rgb != rgb && l.image[i].rgb != rgb + W * H * 3;
        EXPECT(l.image[i].w == W && l.image[i].h == H && l.image[i].rgb, "question %d has no pixels", i);
    }
    EXPECT(own == 4, "%d questions about pixels that a step made", own);
    for (int i = 0; i < 3; i++) EXPECT(!job[i].failed && program_result(job[i].prog, job[i].vars)->b, "job %d: %s", i, job[i].err.text);
    EXPECT(job[0].vars[2].image.id == job[1].vars[2].image.id && job[0].vars[2].image.id != job[2].vars[2].image.id, "ids follow the pixels");
    sched_close(&s);
    arena_close(&a);
}

/* The interpreter alone. The rate is told, not asserted: machines differ. The counts are. */
TEST(sched_speed_and_allocations) {
    enum { N = 10000, ROUNDS = 5 };
    Arena a;
    arena_open(&a, "test", NULL, (size_t)1 << 30);
    Stubs st;
    stubs_open(&st, 0);
    Job *job = stub_jobs(six_steps, N, &a);
    Sched s;
    sched_open(&s, st.answerer, 2);
    double best = 1e9;
    char whose[300] = "";
    for (int r = 0; r < ROUNDS; r++) {
        size_t mark = arena_mark(&a);
        if (r == 1) count_begin(); /* the first run finds out how much room there must be */
        double t = now_s();
        sched_run(&s, NULL, job, N, &a);
        t = now_s() - t;
        if (t < best) best = t;
        arena_reset(&a, mark);
    }
    count_end();
    int64_t counted = count_calls(NULL, false, whose, sizeof whose);
    EXPECT(st.loc.asked == (int64_t)N * ROUNDS && st.vqa.asked == (int64_t)N * ROUNDS, "%d LOC, %d VQA",
           (int)st.loc.asked, (int)st.vqa.asked);
    EXPECT(st.loc.calls == ROUNDS && s.waves == 2, "%d calls, %d waves", (int)st.loc.calls, s.waves);
    EXPECT(counted == 0, "%" PRId64 " allocations in %d runs after the first, one by %s", counted, ROUNDS - 1,
           whose);
    for (int i = 0; i < N; i++)
        EXPECT(!strcmp(result_text(&job[i]), "yes"), "job %d: %s", i, result_text(&job[i]));
    printf("    %.0f six-step programs a second, modules stubbed\n", N / best);
    sched_close(&s);
    arena_close(&a);
}
