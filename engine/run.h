/* run.h -- what every verb that computes sets up: configuration, device, arenas, context. */
#pragma once
#include "engine/comm.h"
#include "engine/optim.h"
#include "engine/tape.h"

typedef struct Run {
    const Config *cfg;
    Device *dev;
    Comm *comm;
    Arena step, host; /* reset at each update */
    Tape tape;
    Ctx ctx;
} Run;

/* Opens the device that run.device asks for; false when it is not there: e says why. run_close is right after either. */
bool run_open(Run *r, const Config *cfg, Error *e);
void run_close(Run *r);
/* What its networks compute in: run.precision. */
static inline DType run_type(const Config *cfg) { return cfg->run.precision == PRECISION_BF16 ? BF16 : F32; }
/* For tests: runs opened from now on compute there, whatever their configuration says. NULL: as they say. */
void run_use_device(Device *d);
/* A new update: empties the arenas; training puts the tape on. Dropout's numbers follow from (seed, update). */
void run_begin(Run *r, int64_t update, bool training);
/* What follows is the update's part `part` (over ranks and forward passes): its dropout draws numbers of its own. */
void run_part(Run *r, int part);
/* Fails (FAIL_NUMERIC) because update `step` gave this loss, and names the first tensor that is not finite: a parameter of the
 * `n` sets, else the first output on the tape, by its layer. To be called while the tape is there: before the backward pass. */
bool run_not_finite(Run *r, ParamSet *const *set, int n, int64_t step, double loss, Error *e);
/* The optimizer's settings of a training with peak rate lr over `steps` updates. */
OptimConfig run_optim(const Config *cfg, double lr, int64_t steps);
