/* tape.h -- define-by-run differentiation: a list of (backward, saved) that runs in reverse.
 *
 * Programs differ per example, so the graph does too: each op pushes one node when a gradient will
 * flow through it. Gradient memory: the first writer of a tensor's gradient may write instead of add,
 * or take over its reader's buffer (a residual add costs nothing, an activation works in place); a buffer
 * returns to a free list when the node that reads it has run. Next: op.c, where all nodes are made.
 */
#pragma once
#include "engine/tensor.h"

typedef void BackwardFn(Ctx *c, void *saved);

typedef struct TapeNode {
    BackwardFn *backward;
    void *saved;
    Tensor *out; /* whose gradient the node reads; NULL for losses, which begin one */
    struct TapeNode *prev;
} TapeNode;

/* Who wants to know when parameters' gradients are final: told of a parameter at its first use of the forward pass, and when
 * the backward pass has left that use behind. */
typedef struct TapeWatch {
    void (*used)(void *arg, const Tensor *p), (*final)(void *arg, const Tensor *p);
    void *arg;
} TapeWatch;

struct Tape {
    TapeNode *last;
    GradBuf *free;
    int64_t nodes;
    const TapeWatch *watch; /* NULL: nobody */
};

void tape_watch(Ctx *c, Tensor *p);
/* Whether an op on this input has to push a node. Ops ask for every input (so `|`, not `||`): a parameter is then known to
 * be used here. */
static inline bool taped(Ctx *c, Tensor *x) {
    if (!c->tape || !x || !x->needs_grad) return false;
    if (c->tape->watch && x->param_grad && !x->watched) tape_watch(c, x);
    return true;
}
void tape_push(Ctx *c, BackwardFn *backward, void *saved, Tensor *out);
/* Runs the tape in reverse and empties it. Parameter gradients are added to. */
void tape_backward(Ctx *c);

/* Inside a backward function: the gradient of a node's output, or NULL when nothing reached it. */
void *grad_of(Tensor *y);
/* The buffer to ADD x's gradient to (zeroed when it was not there); NULL when x wants none. */
void *grad_add(Ctx *c, Tensor *x);
/* The same for a writer that can overwrite: *fresh says that the buffer holds nothing yet, and must be written. */
void *grad_write(Ctx *c, Tensor *x, bool *fresh);
/* The buffer for x's gradient in a backward that goes value by value and may work in place: y's own, when x
 * has none yet and nobody else holds y's; otherwise as grad_add. */
void *grad_take(Ctx *c, Tensor *x, Tensor *y);
/* x's gradient += y's: takes y's buffer over when x has none yet. */
void grad_pass(Ctx *c, Tensor *x, Tensor *y);
