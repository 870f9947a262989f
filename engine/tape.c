/* tape.c -- the backward pass and its gradient buffers. See tape.h. */
#include "engine/tape.h"

void tape_push(Ctx *c, BackwardFn *backward, void *saved, Tensor *out) {
    TapeNode *n = ARENA_NEW(c->host, TapeNode, 1);
    *n = (TapeNode){backward, saved, out, c->tape->last};
    c->tape->last = n;
    c->tape->nodes++;
    if (out) out->needs_grad = true;
}

/* The node lies just before the first one that uses p, so in reverse it comes when p's gradient is final. */
static void watched_backward(Ctx *c, void *saved) {
    Tensor *p = saved;
    p->watched = false;
    if (c->tape->watch) c->tape->watch->final(c->tape->watch->arg, p);
}

void tape_watch(Ctx *c, Tensor *p) {
    p->watched = true;
    c->tape->watch->used(c->tape->watch->arg, p);
    tape_push(c, watched_backward, p, NULL);
}

/* Buffers of equal size are reused: the gradients of one block fit those of the next, and stay in cache. */
static GradBuf *buffer_get(Ctx *c, size_t bytes) {
    for (GradBuf **p = &c->tape->free; *p; p = &(*p)->next_free)
        if ((*p)->bytes == bytes) {
            GradBuf *b = *p;
            *p = b->next_free;
            b->refs = 1;
            return b;
        }
    GradBuf *b = ARENA_NEW(c->host, GradBuf, 1);
    *b = (GradBuf){arena_alloc(c->step, bytes), bytes, 1, NULL};
    return b;
}

static void buffer_drop(Ctx *c, GradBuf *b) {
    if (!b || --b->refs) return;
    b->next_free = c->tape->free;
    c->tape->free = b;
}

void tape_backward(Ctx *c) {
    for (TapeNode *n = c->tape->last; n; n = n->prev) {
        if (n->out && !n->out->grad) continue; /* nothing downstream was supervised */
        n->backward(c, n->saved);
        if (n->out) {
            buffer_drop(c, n->out->grad); /* its only reader has run */
            n->out->grad = NULL;
        }
    }
    *c->tape = (Tape){0};
}

void *grad_of(Tensor *y) { return y->grad ? y->grad->data : NULL; }

void *grad_write(Ctx *c, Tensor *x, bool *fresh) {
    *fresh = false;
    if (!x || !x->needs_grad) return NULL;
    if (x->param_grad) {
        CHECK(!c->tape->watch || x->watched, "the gradient of %s is written after it was final", x->name);
        return x->param_grad;
    }
    if (!x->grad) {
        x->grad = buffer_get(c, tensor_bytes(x));
        *fresh = true;
    } else if (x->grad->refs > 1) { /* shared by grad_pass, and its other owner still has to read it */
        GradBuf *own = buffer_get(c, x->grad->bytes);
        c->dev->zero(c->dev, own->data, own->bytes);
        c->dev->ops->accumulate(c->dev->main, x->dtype, own->data, x->dtype, x->grad->data, numel(x));
        buffer_drop(c, x->grad);
        x->grad = own;
    }
    return x->grad->data;
}

void *grad_add(Ctx *c, Tensor *x) {
    bool fresh;
    void *g = grad_write(c, x, &fresh);
    if (fresh) c->dev->zero(c->dev, g, x->grad->bytes);
    return g;
}

static void hand_over(Tensor *x, Tensor *y) {
    x->grad = y->grad;
    x->grad->refs++;
}

void *grad_take(Ctx *c, Tensor *x, Tensor *y) {
    if (!x || !x->needs_grad) return NULL;
    CHECK(tensor_bytes(x) == tensor_bytes(y), "gradient of %zu bytes for %zu", tensor_bytes(y),
          tensor_bytes(x));
    if (x->param_grad || x->grad || y->grad->refs > 1) return grad_add(c, x);
    hand_over(x, y);
    return x->grad->data;
}

void grad_pass(Ctx *c, Tensor *x, Tensor *y) {
    if (!x || !x->needs_grad) return;
    CHECK(numel(x) == numel(y), "gradient of %" PRId64 " values for %" PRId64, numel(y), numel(x));
    if (!x->param_grad && !x->grad && x->dtype == y->dtype) {
        hand_over(x, y);
        return;
    }
    c->dev->ops->accumulate(c->dev->main, x->dtype, grad_add(c, x), y->dtype, y->grad->data, numel(x));
}
