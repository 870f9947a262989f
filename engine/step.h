/* step.h -- ONE training step of distillation: the function to read first. Next: step.c, then the files in its order. */
#pragma once
#include "engine/reduce.h"
#include "engine/replay.h"
#include "engine/train.h"
#include "engine/trace.h"

/* What a step learnt and saw on this rank. The losses are divided by global counts: summed over ranks they are the batch's. */
typedef struct StepStats {
    double loss_vqa, loss_loc, loss_retain, norm_vqa, norm_loc;
    int64_t programs, failed;
    int64_t right;           /* programs that gave the task's answer, on the answers that steered them */
    int64_t label_right;     /* programs that the labels make right */
    int64_t steps[2], kept[2], fixed[2]; /* VQA, LOC */
    int64_t dropped[VERDICTS];
    int waves;
} StepStats;

/* A student module; its frozen starting copy (LOC's makes the proposals; else NULL without a retain term) and replay set. */
typedef struct Student {
    Module *module, *start;
    ModuleAnswerer answerer;
    GuidedAnswerer guided;
    TrainSet replay;
    Loader *replay_loader;
    OptimConfig optim;
} Student;

typedef struct Distiller {
    Run run;
    const Config *cfg;
    Dataset data;
    ImageGroups by_image;    /* of its questions: what loaders draw, so that a batch's item is a group */
    int per_image;           /* programs taken of one image in a step; 0: all */
    Program **program;       /* of each sample; NULL: it does not parse */
    Arena programs;
    AnswerStyle style;
    Student vqa, loc;
    Teacher teacher;
    Answerer *answerer[2];
    Sched *sched;            /* one for each part of a batch that this rank runs (reduce.h): one, unless run.reproducible */
    Reduce reduce;
    Replay replay;           /* lessons to be learnt again */
    bool learn;              /* false: programs run and labels are made, nothing is trained (export) */
    Trace *trace;            /* NULL: none is written; the caller opens and closes it */
} Distiller;

/* Parses every question's program into a; NULL where it does not parse (the first is told, all are counted). False when none does.
 * *out is malloc'ed. */
bool programs_parse(const Dataset *d, const Dialect *dialect, Program ***out, Arena *a, int64_t *bad);

/* Images of one step's batch, of all ranks. */
int distiller_images(const Config *cfg);
bool distiller_open(Distiller *d, const Config *cfg, Error *e);
void distiller_close(Distiller *d);
/* Runs programs of the batch's images (items of d->by_image), asks the teacher, learns (when d->learn). A NaN is an error (FAIL_NUMERIC). */
bool step_run(Distiller *d, int64_t step, const Batch *b, StepStats *out, Error *e);
/* One more update on the lessons of an earlier batch, whose images `b` holds; turn 0 is the first of a step's. Nothing happens
 * when they are not kept. out: losses and norms alone. */
bool step_again(Distiller *d, int64_t step, int turn, const Batch *b, StepStats *out, Error *e);
/* The sums over all ranks. */
void step_stats_sum(Comm *c, StepStats *s);
