/* eval.h -- how often programs give the task's answer: overall, by question type, and whose fault the rest is.
 *
 * The metric is GQA's: the program's result as text equals the gold answer exactly, nothing is normalised. The
 * policy for what is not a clean answer:
 *   a program that does not parse, fails while it runs, or ends in something that is no answer   counted, wrong
 *   a question whose image cannot be read                                              left out, counted as skipped
 *   a question without a gold answer (test splits)                                     left out, counted as no_gold
 * Who answers the steps is the caller's: students, teachers, the scene graph (oracle.h), a mix. Next: oracle.h.
 */
#pragma once
#include <jansson.h>

#include "data/loader.h"
#include "engine/run.h"
#include "engine/sched.h"
#include "modules/module.h"

enum { EVAL_TYPES_MAX = 64, EVAL_TYPE_NAME = 32 };

/* One batch of an evaluation after its programs have run; everything is gone when the callback returns. */
typedef struct EvalBatch {
    const Sched *sched;
    const Job *job;
    const Sample *const *sample; /* of each job */
    const bool *right;           /* of each job */
    int njobs;
} EvalBatch;

typedef struct EvalConfig {
    int batch;                /* programs run at once, >= 1 */
    int64_t limit;            /* only the first questions; 0: all */
    int workers;              /* threads that decode images; 0: the caller's own */
    double max_bad_percent;   /* more unusable images than this end the evaluation */
    const Dialect *dialect;   /* NULL: eval_config's choice by the kind of dataset */
    AnswerStyle style;
    Module *const *module;    /* what the answerers call: told when a batch begins, and counted */
    int nmodules;
    void (*seen)(void *arg, const EvalBatch *b); /* called after each batch; may be NULL */
    void *arg;
} EvalConfig;

typedef struct EvalType { char type[EVAL_TYPE_NAME]; int64_t n, right; } EvalType;

typedef struct EvalResult {
    int64_t n, right;
    int64_t failed;           /* of n: programs that gave no answer; of these so many did not even parse: */
    int64_t unparsed;
    int64_t skipped, no_gold; /* not of n */
    int64_t bad_images;
    int ntypes;               /* sorted by name; from the 64th on all are "(other)" */
    EvalType type[EVAL_TYPES_MAX];
    int64_t groups, groups_right; /* NLVR2: a sentence over its image pairs; right when all are (its consistency) */
    int64_t steps, questions; /* module steps taken; distinct questions put to modules */
    int64_t waves;            /* summed over batches */
    double seconds;
    char first_failure[512];  /* the first failed program's sentence, with the question's id */
} EvalResult;

/* The defaults for a dataset: GQA's or NLVR2's inputs and answers. */
EvalConfig eval_config(const Dataset *d, const Config *cfg);

/* Runs the program of every question in the order of the file. False: the dataset has no questions, or too many bad images.
 * The run's arenas are emptied at each batch. */
bool eval_programs(Run *r, Answerer *const *answerer, int nanswerers, const Dataset *d, const EvalConfig *cfg, EvalResult *out,
                   Error *e);
/* The accuracy of a VQA module asked the task's questions directly, about whole images. It must take as many as the task has. */
bool eval_end_to_end(Run *r, Module *vqa, const Dataset *d, const EvalConfig *cfg, EvalResult *out, Error *e);

static inline double percent(int64_t part, int64_t whole) { return whole ? 100.0 * (double)part / (double)whole : 0; }
static inline double eval_accuracy(const EvalResult *r) { return percent(r->right, r->n); }

/* One column of the printed table; result NULL leaves it empty. */
typedef struct EvalColumn { const char *name; const EvalResult *result; } EvalColumn;
/* Rows: overall, then the question types with their counts; columns: systems. */
void eval_print(FILE *f, const EvalColumn *column, int ncolumns);
/* The same as JSON; the caller gives the reference back. */
json_t *eval_json(const EvalResult *r);
