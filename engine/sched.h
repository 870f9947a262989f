/* sched.h -- many programs at once, in waves.
 *
 * A wave: run every host step that is ready, of every job; then, for each module, gather the ready steps
 * of all jobs in (job, step) order, put equal questions of equal rectangles once, answer them in batches
 * of at most max_batch, and hand the answers back. Steps wait for what they read, not for the line above,
 * so one program's LOC lines go together. Same jobs, same batches, same answers. Next: trace.h, modules/.
 */
#pragma once
#include "engine/program.h"
#include "modules/module.h"

/* What a question was answered. out and row: where the raw output lies, on the tape in training; NULL from stubs. */
typedef struct Answer {
    Value value;
    const char *why; /* not NULL: there is no answer, and this is the reason; steps that asked fail with it */
    const Outputs *out;
    int64_t row;
    struct Label *label; /* distillation: what the teacher says of the same question (teacher.h); else NULL */
} Answer;

/* Who answers one kind of step: a network, the scene graph, a stub. */
typedef struct Answerer {
    const char *module; /* as StepKind.module names it */
    int64_t max_batch;
    /* Fills answer[0..n); strings and boxes go into `a`. */
    void (*answer)(struct Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a);
} Answerer;

/* One distinct question of a run of the scheduler. */
typedef struct Question { int answerer; Ask ask; Answer answer; } Question;

/* A module step that was taken: which question it put. Steps that put several have a record for each. */
typedef struct StepRecord { int job, step, question; } StepRecord;

/* One program on its images. vars: prog->nslots values, the inputs set by the caller (value_image with the id that
 * `image` has); the rest is written here. */
typedef struct Job {
    const Program *prog;
    Value *vars;
    const ImageView *image;   /* of each input */
    const uint64_t *image_id;
    bool failed;
    int failed_step;          /* -1: not in a step */
    Error err;                /* why */
} Job;

typedef struct Sched {
    Answerer *const *answerer;
    int nanswerers;
    bool cache;               /* equal questions once; false only to measure what that saves */
    /* Of the last run. */
    Question *question;
    StepRecord *record;
    int64_t nquestions, nrecords, question_cap, record_cap;
    int waves;
    /* Working memory, kept between runs. */
    int64_t *slot, nslots;
    struct Pending *pending;
    int64_t npending, pending_cap;
} Sched;

void sched_open(Sched *s, Answerer *const *answerer, int n);
void sched_close(Sched *s);
/* Runs all jobs to their RESULT or failure. `a` holds working memory and values until the caller resets it; c may be NULL
 * when no answerer uses it. questions and records of the last run are valid until the next. */
void sched_run(Sched *s, Ctx *c, Job *job, int njobs, Arena *a);
