/* program.h -- visual programs: text in, checked steps on numbered slots out.
 *
 * All that can be wrong with a program is found by program_parse, with the line and the remedy; what remains for run time
 * is what depends on values (a type error inside EVAL, say). Variables are slots of one array per job: running a program
 * compares no names. What the steps are is the caller's table (modules/steps.c). Who runs many programs at once is
 * sched.c; here is what one host step does. Next: expr.h, the language inside EVAL.
 */
#pragma once
#include "engine/expr.h"
#include "engine/value.h"

enum {
    PROGRAM_TEXT_MAX = 64 << 10, /* bytes */
    PROGRAM_STEPS_MAX = 256,
    STEP_ARGS_MAX = 4,
    PROGRAM_INPUTS_MAX = 16,
};

typedef struct Program Program;
typedef struct Step Step;

/* What a step gets to see when it runs. args[k] is the value of the kind's k-th argument; NULL when it was left out. */
typedef struct StepCall {
    const Program *prog;
    const Step *step;
    const Value *args[STEP_ARGS_MAX];
    const Value *vars;
    Arena *arena; /* the job's: for boxes and strings of the result */
} StepCall;

typedef bool StepRun(Value *out, const StepCall *c, Error *e);

/* One question of a step to its module: about a rectangle of the step's image, when it has one (its first argument). */
typedef struct StepAsk {
    Rect rect;         /* in pixels of the original */
    const char *query; /* ends with a zero byte */
} StepAsk;

/* The questions of a step that does not put just one: *ask has `return value` of them (-1: it fails). None: *out is its result. */
typedef int StepAsks(StepAsk **ask, Value *out, const StepCall *c, Error *e);
/* The step's result from their answers, in the same order. */
typedef bool StepConclude(Value *out, const StepCall *c, const StepAsk *ask, const Value *answer, int n, Error *e);

typedef enum StepRole { STEP_PLAIN, STEP_EVAL, STEP_RESULT } StepRole;

typedef struct StepArg {
    const char *name;
    unsigned kinds; /* what it may be: a set of KIND(); constants and variables alike */
    bool optional;
} StepArg;

/* One row per step name. */
typedef struct StepKind {
    const char *name;
    unsigned result; /* kinds it may give; EVAL's and RESULT's come from the program */
    int nargs;
    StepArg arg[STEP_ARGS_MAX];
    const char *module; /* who answers: "VQA", "LOC"; NULL: run() on the host */
    StepAsks *asks;         /* NULL: one question, the second argument, about the whole of the first */
    StepConclude *conclude; /* NULL: the one answer is the result */
    StepRun *run;       /* with a module: used instead of it when on_host() says so */
    /* Both asked once, when parsed; an argument that is a variable or was left out is NULL. check: may the constants be? */
    bool (*on_host)(const Value *const *args);
    bool (*check)(const Value *const *args, Error *e);
    StepRole role;
    const char *lacks;  /* why this build cannot run it; parses and checks all the same */
} StepKind;

/* The language of a run: which steps there are, what is given at the start, how strict to be. */
typedef struct Dialect {
    const StepKind *kinds;
    int nkinds;
    const char *const *inputs; /* images given at the start: IMAGE, or LEFT and RIGHT; their slots are 0, 1, ... */
    int ninputs;
    bool strict; /* false: the reference's semantics to the pixel, its oddities included (steps.h lists them) */
} Dialect;

struct Step {
    const StepKind *kind;
    const char *module; /* NULL: program_run_host does it; else ask this module and write vars[out] */
    const Expr *expr;   /* of EVAL */
    int line;           /* in the text, from 1 */
    int text, ntext;    /* the step as written: prog->text[text .. text + ntext) */
    int out;            /* slot it writes, its own: a name written twice gets two slots */
    int arg[STEP_ARGS_MAX]; /* slot, or ~index into prog->consts, or ARG_NONE */

    const int *reads;      int nreads;      /* slots, each once */
    const int *waits;      int nwaits;      /* the steps that write them, each once */
    const int *users;      int nusers;      /* steps that wait for this one */
    const int *dependants; int ndependants; /* all that follow from it, in order, down to RESULT when it gets there */
    bool needed;                            /* RESULT depends on it */
};
enum { ARG_NONE = INT32_MAX };

struct Program {
    const char *text; /* a copy; ends with a zero byte */
    int ntext;
    int nsteps;
    Step *steps; /* the last is RESULT */
    int nslots, ninputs;
    const char *const *names; /* of each slot, for traces */
    const Value *consts;
    bool strict;
};

/* Parses and checks `n` bytes of text. String constants end with a zero byte. Everything *p points to is in `a` (usually some 2 kB, at most 2 MB whatever the
 * text); the kinds table must live as long. False with one sentence, "line 6: RESULT reads ANSWER, which no earlier step
 * wrote (did you mean ANSWER2?)". Any bytes may be passed. */
bool program_parse(Program *p, Arena *a, const Dialect *d, const char *text, size_t n, Error *e);

/* Value of a step's k-th argument, NULL when left out. */
static inline const Value *step_arg(const Program *p, const Step *s, int k, const Value *vars) {
    int at = s->arg[k];
    return at == ARG_NONE ? NULL : at < 0 ? &p->consts[~at] : &vars[at];
}

/* Runs step `i`, which has no module, on the variables it reads and writes vars[out]. The error names line and step. */
bool program_run_host(const Program *p, int i, Value *vars, Arena *a, Error *e);

/* The questions that step `i`, which has a module, puts to it; 0: none, vars[out] is written. -1 with a sentence when it cannot. */
int program_ask(const Program *p, int i, Value *vars, StepAsk **ask, Arena *a, Error *e);
/* Writes vars[out] from the answers to them. */
bool program_conclude(const Program *p, int i, Value *vars, const StepAsk *ask, const Value *answer, int n, Arena *a, Error *e);

/* Runs host steps from step `i` on. Returns the first step that a module must answer, p->nsteps when the program is done,
 * -1 with a sentence when a step failed. */
int program_advance(const Program *p, int i, Value *vars, Arena *a, Error *e);

static inline const Value *program_result(const Program *p, const Value *vars) {
    return &vars[p->steps[p->nsteps - 1].out];
}
