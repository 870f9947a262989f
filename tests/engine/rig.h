/* rig.h -- what the tests of the engine stand on: a context with arenas, tensors of random values, one gradient check. */
#pragma once
#include "engine/op.h"
#include "tests/test.h"

typedef struct Rig {
    Device *dev;
    Arena step, host;
    Tape tape;
    Ctx ctx;
} Rig;

void rig_open(Rig *r);
void rig_close(Rig *r);
/* Empties the arenas; training puts the tape on. Dropout draws the same numbers after each rig_begin. */
void rig_begin(Rig *r, bool training);

/* Uniform values in [lo, hi), the same for the same seed. */
void random_fill(float *x, int64_t n, uint64_t seed, float lo, float hi);
/* A tensor of the step with random values in [-1, 1); wants_grad: a leaf whose gradient the tape keeps in x->grad. */
Tensor *random_tensor(Ctx *c, uint64_t seed, bool wants_grad, int ndim, const int64_t *shape);
#define RANDOM(c, seed, wants_grad, ...)                                                                     \
    random_tensor((c), (seed), (wants_grad), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
/* Ends the forward: dy (numel(y), host, copied) is the gradient that the tape starts from. */
void seed_gradient(Ctx *c, Tensor *y, const float *dy);

/* A graph to check: x are its leaves; returns its output, or for a loss its rows. */
enum { MAX_LEAVES = 6 };
typedef Tensor *Graph(Ctx *c, Tensor *const *x);
typedef struct GraphCase {
    const char *name;
    Graph *graph;
    bool is_loss;
    int nleaves;
    struct { int ndim; int64_t shape[MAX_DIMS]; float lo, hi; } leaf[MAX_LEAVES]; /* lo = hi = 0: [-1, 1) */
    double bound; /* over the largest gradient; 0: 5e-4 */
} GraphCase;

/* For each leaf: its gradient through the tape against central differences of the forward; the same when the leaf is a
 * parameter whose gradient buffer already holds something. With each leaf frozen in turn: the other gradients keep every bit.
 * Without a tape: the output keeps every bit. */
void graph_check(const GraphCase *g);
