/* oracle.h -- ground truth from scene graphs: an answerer that is never wrong, and what it shows about the others.
 *
 * Putting the oracle in the place of one module at a time tells whose mistakes cost the programs their answers; comparing each
 * step that the students took with the oracle on the same rectangle tells how good each module is where it is used. For
 * evaluation only: training never sees a graph. Next: verbs/eval.c.
 */
#pragma once
#include "engine/eval.h"
#include "modules/answer.h"

/* The question forms that a graph can answer. X is a phrase: attributes, then a name ("red ball"). */
typedef enum OracleForm {
    FORM_COLOR,    /* What color is the X? */
    FORM_PATTERN,  /* What pattern is on the X? */
    FORM_SIZE,     /* What size is the X? */
    FORM_NAME,     /* What is this? */
    FORM_RELATION, /* What is to the left of | to the right of | above | below the X? */
    FORM_EXIST,    /* Is there a X? Is there a X in the image? Do you see a X? */
    FORM_COUNT,    /* How many Xs are there? How many Xs are in the image? */
    ORACLE_FORMS,
    FORM_UNREAD = ORACLE_FORMS,
} OracleForm;
extern const char *const oracle_form_names[ORACLE_FORMS];

typedef enum OracleVerdict {
    ORACLE_KNOWS,
    ORACLE_ABSENT, /* what the question is about does not show in the rectangle, or more than one does: no answer is right */
    ORACLE_UNREAD, /* a form that it does not know, or a graph that does not say */
} OracleVerdict;

/* From this share of its box inside a rectangle on, an object is there. */
#define ORACLE_SEEN 0.5f

/* Answers a question about a rectangle; *answer is borrowed from the graph or a constant (numbers: a small table). */
OracleVerdict oracle_vqa(const SceneGraph *g, Rect r, const char *question, const char **answer, OracleForm *form);
/* The boxes of the objects that match the phrase, largest visible area first, as LOC gives them: in pixels of r, ends as the
 * dialect has them. */
Boxes *oracle_loc(const SceneGraph *g, Rect r, const char *phrase, bool strict, Arena *a);

/* An answerer of ground truth. What the graph does not tell goes to `fallback`, all at once; without one the answer is
 * "unknown", or no box. */
typedef struct OracleAnswerer {
    Answerer base;
    const SceneGraphs *graphs; /* image ids are indices into their dataset's image table */
    Answerer *fallback;
    bool strict;
    int64_t asked, fell_back;
} OracleAnswerer;
void oracle_answerer(OracleAnswerer *o, const char *step, const SceneGraphs *graphs, Answerer *fallback, bool strict);

/* How the steps that programs took compare with the truth on the same rectangles. */
typedef struct StepScore {
    struct { int64_t n, right; } vqa[ORACLE_FORMS];
    int64_t vqa_n, vqa_right;        /* steps that the oracle can judge */
    int64_t vqa_absent, vqa_unread;  /* steps that it cannot */
    int64_t loc_n;                   /* LOC steps on images with a graph */
    int64_t loc_count_right;         /* as many boxes as objects */
    int64_t loc_first_right;         /* the first box is on an object (or there is none, rightly): what CROP sees */
    int64_t boxes, objects, matched; /* over all steps; a match has IoU >= 0.5 */
    double loc_f1;                   /* summed over the steps; two empty lists score 1 */
} StepScore;
/* Adds the steps of one batch. */
void step_score_add(StepScore *s, const SceneGraphs *g, const EvalBatch *b, Arena *scratch);

/* Accuracy with none, one or both of the modules replaced. */
typedef enum BlameCase { BLAME_NONE, BLAME_LOC, BLAME_VQA, BLAME_BOTH, BLAME_CASES } BlameCase;
extern const char *const blame_names[BLAME_CASES];
typedef struct Blame {
    EvalResult result[BLAME_CASES];
    int64_t fell_back[BLAME_CASES]; /* distinct questions that the oracle left to the student */
    StepScore steps;                /* of the students' own run */
} Blame;
/* cfg->seen must be free. vqa or loc may be NULL when no program needs it. */
bool eval_blame(Run *r, Answerer *vqa, Answerer *loc, const Dataset *d, const SceneGraphs *g, const EvalConfig *cfg, Blame *out,
                Error *e);
void blame_print(FILE *f, const Blame *b);
json_t *blame_json(const Blame *b);
