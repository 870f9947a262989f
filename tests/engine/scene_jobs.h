/* scene_jobs.h -- programs of the built-in dataset as jobs for the scheduler: what the tests of waves and of evaluation stand on. */
#pragma once
#include "data/scenes.h"
#include "engine/eval.h"
#include "engine/oracle.h"
#include "modules/steps.h"
#include "tests/test.h"

/* A folder with a small hard dataset (150 images of each split, 8 questions each), written when first asked for. */
static inline const char *scene_folder(void) {
    static char dir[300];
    if (*dir) return dir;
    ScenesConfig c;
    Error e = {0};
    scenes_config_default(&c);
    c.domain = SCENE_HARD;
    c.images[SCENE_TRAIN] = c.images[SCENE_VAL] = 0;
    c.images[SCENE_TEST] = 150;
    c.questions_per_image = 8;
    c.steps_per_image = 0;
    c.single_fraction = c.few_fraction = 0;
    snprintf(dir, sizeof dir, "%s/scenes", test_dir());
    CHECK(scenes_write(dir, &c, &e), "%s", e.text);
    return dir;
}

/* The dataset open with its graphs, and optionally all of its pixels and programs as jobs. */
typedef struct SceneJobs {
    Dataset data;
    SceneGraphs graphs;
    Arena arena; /* programs, variables */
    Loader *loader;
    const Batch *batch;
    Job *job;
    const char **gold;
    int n;
} SceneJobs;

static inline void scene_jobs_close(SceneJobs *s) {
    loader_close(s->loader);
    scenegraphs_close(&s->graphs);
    dataset_close(&s->data);
    arena_close(&s->arena);
}

/* The first n questions with decoded images; the arena keeps everything until close. */
static inline void scene_jobs_open(SceneJobs *s, int n) {
    Error e = {0};
    char path[400];
    *s = (SceneJobs){0};
    arena_open(&s->arena, "jobs", NULL, (size_t)1 << 30);
    snprintf(path, sizeof path, "%s/test_sceneGraphs.json", scene_folder());
    CHECK(dataset_open(&s->data, &(DatasetConfig){.type = "gqa", .dir = scene_folder(), .split = "test"}, &e), "%s", e.text);
    CHECK(scenegraphs_open(&s->graphs, &s->data, path, &e), "%s", e.text);
    if (!n) return;
    s->loader = loader_open(&s->data, &(LoaderConfig){.seed = 1, .batch = n, .passes = 1}, &e);
    s->batch = loader_next(s->loader, &e);
    CHECK(s->batch && s->batch->n == n, "%d of %d questions: %s", s->batch ? s->batch->n : 0, n, e.text);
    Arena *a = &s->arena;
    s->job = ARENA_NEW(a, Job, n);
    s->gold = ARENA_NEW(a, const char *, n);
    s->n = n;
    for (int i = 0; i < n; i++) {
        const Sample *q = &s->data.sample[s->batch->item[i]];
        Program *p = ARENA_NEW(a, Program, 1);
        CHECK(program_parse(p, a, &dialect_gqa, q->program, strlen(q->program), &e), "%s", e.text);
        Value *vars = ARENA_NEW(a, Value, p->nslots);
        int at = s->batch->image_of[i][0];
        vars[0] = value_image(s->batch->image_id[at], s->batch->image[at].w, s->batch->image[at].h);
        s->job[i] = (Job){.prog = p, .vars = vars, .image = &s->batch->image[at], .image_id = &s->batch->image_id[at]};
        s->gold[i] = q->answer;
    }
}

/* A copy of the jobs with variables of their own, to run beside the first. */
static inline Job *jobs_copy(const Job *job, int n, Arena *a) {
    Job *copy = ARENA_NEW(a, Job, n);
    for (int i = 0; i < n; i++) {
        copy[i] = job[i];
        copy[i].vars = ARENA_NEW(a, Value, job[i].prog->nslots);
        memcpy(copy[i].vars, job[i].vars, (size_t)job[i].prog->ninputs * sizeof *job[i].vars);
    }
    return copy;
}

/* Equal values: kind, content; boxes with every pixel (and with `scores` every bit of the scores). */
static inline bool value_same(const Value *x, const Value *y, bool scores) {
    char a[300], b[300];
    if (x->kind != y->kind) return false;
    switch (x->kind) {
    case VAL_IMAGE: return x->image.id == y->image.id && !memcmp(&x->image.rect, &y->image.rect, sizeof(Rect));
    case VAL_BOXES:
        if (x->boxes->n != y->boxes->n || x->boxes->exact != y->boxes->exact) return false;
        for (int i = 0; i < x->boxes->n; i++) {
            const Box *p = &x->boxes->box[i], *q = &y->boxes->box[i];
            if (memcmp(&p->rect, &q->rect, sizeof p->rect) || p->query != q->query || (scores && p->score != q->score)) return false;
        }
        return true;
    default: return value_text(a, sizeof a, x) == value_text(b, sizeof b, y) && !strcmp(a, b);
    }
}

/* How many of the jobs differ in failure, or in the value of any variable. */
static inline int jobs_differ(const Job *x, const Job *y, int n, bool scores) {
    int differ = 0;
    for (int i = 0; i < n; i++) {
        bool same = x[i].failed == y[i].failed && x[i].failed_step == y[i].failed_step && !strcmp(x[i].err.text, y[i].err.text);
        for (int k = 0; same && !x[i].failed && k < x[i].prog->nslots; k++) same = value_same(&x[i].vars[k], &y[i].vars[k], scores);
        differ += !same;
    }
    return differ;
}

/* Whether job i gave its gold answer. */
static inline bool job_right(const Job *j, const char *gold) {
    char text[64];
    return !j->failed && answer_text(text, sizeof text, program_result(j->prog, j->vars), ANSWER_YES_NO, NULL) && !strcmp(text, gold);
}
