/* reduce.h -- the gradients of an update, summed over all ranks while the backward pass still runs.
 *
 * The flat gradient buffers are cut into buckets, last parameters first: the backward pass finishes them about in that order. A
 * bucket whose parameters are all final is handed to comm.h, in an order that is the same on all ranks whatever programs each
 * has run. Next: tape.h, which tells when a gradient is final.
 *
 * run.reproducible instead gives each of run.parts parts of a batch a gradient buffer, and adds the parts as a fixed binary
 * tree, of which each rank holds a branch: the same bits for any number of ranks, for the memory of those buffers.
 *
 *   reduce_begin          once per update
 *   reduce_part           before each of the rank's parts is put on a tape
 *   reduce_last           before the update's last backward pass
 *   reduce_end            the gradients are those of the whole batch
 */
#pragma once
#include "engine/comm.h"
#include "engine/param.h"
#include "engine/tape.h"

enum { REDUCE_SETS = 4 };

typedef struct Reduce {
    Comm *comm;
    ParamSet *set[REDUCE_SETS];
    int nsets;
    bool used[REDUCE_SETS];     /* reduce_last: some rank has a gradient for it */
    int first, parts, total;    /* this rank computes the parts first .. first + parts of a batch's total */
    float **part[REDUCE_SETS];  /* reproducible: gradient buffer of each of our parts; [0] is the set's own */
    Arena memory[REDUCE_SETS];
    int64_t bucket;             /* values in one */
    int *pending[REDUCE_SETS];  /* per bucket: its parameters on the tape whose gradients are not final */
    int nbuckets[REDUCE_SETS];
    int at_set, at_bucket;      /* the next to be handed over */
    bool last;
    TapeWatch watch;
} Reduce;

void reduce_open(Reduce *r, Comm *c, const Config *cfg, ParamSet *const *set, int n);
void reduce_close(Reduce *r);
/* The tape of this update tells r about parameters, when there is something to gain from it. To be called before the forward. */
void reduce_watch(Reduce *r, Tape *t);
void reduce_begin(Reduce *r);
/* What follows belongs to the rank's part k (0 .. parts): gradients go to its buffer. */
void reduce_part(Reduce *r, int k);
/* used[i]: whether any rank has a gradient for set i; NULL: all have. The same on all ranks. */
void reduce_last(Reduce *r, const bool *used);
void reduce_end(Reduce *r);
