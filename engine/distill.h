/* distill.h -- from what the teacher says to what the student learns: filters, the task's answer, losses.
 *
 * A label counts only when the program it belongs to agrees: the labels of its steps, replayed through the
 * program's own host steps, must give the task's answer. Where the program fixes what a step must have
 * answered, the answer is used too: the teacher's distribution is restricted to those answers of the step
 * with which the program gives the task's answer (a posterior whose likelihood is the program). No box and
 * no step label of the dataset is ever read. Next: step.c, which calls all this once per update.
 */
#pragma once
#include "engine/teacher.h"
#include "engine/config.h"
#include "modules/detect.h"

/* Why a step's label was dropped; KEPT when it was not. */
typedef enum Verdict { KEPT, DROPPED_EXECUTES, DROPPED_CONFIDENT, DROPPED_REPLAY, VERDICTS } Verdict;
extern const char *const verdict_names[VERDICTS]; /* the options' names: "kept", "executes", ... */

/* What one question teaches: all that a loss needs, whether it was asked just now or is learnt again (replay.h). */
typedef struct Lesson {
    Rect rect;             /* what was asked about, in pixels of the image */
    bool is_loc;
    float *p;              /* VQA: (V) target distribution over the student's answers */
    int nleaders, ncandidates;
    Candidate *candidate;  /* LOC: the leaders, then the followers */
    float *yes;            /* LOC: (nleaders) probability that the object is there */
} Lesson;

/* The lesson of a LOC label as it stands. */
Lesson distill_loc_lesson(const Label *l, Rect rect, Arena *a);

/* Of one distinct question. */
typedef struct Target {
    bool kept;
    bool fixed;       /* the task's answer had a say */
    Lesson lesson;
} Target;

/* The supervision of one scheduler run. */
typedef struct Labelling {
    Target *target;   /* per question of the scheduler */
    Verdict *verdict; /* per record */
    int64_t kept[2], fixed[2], steps[2]; /* VQA, LOC: questions kept, of these fixed by the answer; records seen */
    int64_t dropped[VERDICTS];
    int64_t right;    /* programs whose replay gave the task's answer at once */
    int64_t programs_right; /* programs that gave it as they ran */
} Labelling;

/* Decides for every module step that the jobs took. gold[j]: the task's answer of job j. Memory from a. */
void distill_label(Labelling *out, const Sched *s, const Job *job, const char *const *gold, AnswerStyle style, int njobs,
                   const Module *vqa, const Config *cfg, Arena *a);

/* Puts the loss of one forward pass on the tape: row i of `out` learns lesson[i] (NULL: nothing). total: what the sum is divided
 * by, the lessons of that module in the update over all ranks. Returns the loss. */
double distill_vqa_loss(Ctx *c, const Outputs *out, const Lesson *const *lesson, const Module *m, int64_t total, const Config *cfg);
double distill_loc_loss(Ctx *c, const Outputs *out, const Lesson *const *lesson, int64_t total, const Config *cfg);
/* The same for all that one module was asked in a scheduler run. */
double distill_sched_loss(Ctx *c, const Sched *s, const Labelling *l, const Module *m, int64_t total, const Config *cfg);
