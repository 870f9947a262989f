/* tensor.h -- contiguous tensors, and the context that ops run in.
 *
 * A tensor is a shape over memory of some arena. Its gradient appears during the backward pass, when
 * first written, and goes when its last reader has run (tape.c). It has the tensor's type, which for parameters is f32 also
 * where activations are bf16 (run.precision). Next: tape.h, op.h.
 */
#pragma once
#include "engine/arena.h"
#include "kernels/ops.h"

enum { MAX_DIMS = 4 };

typedef struct GradBuf { void *data; size_t bytes; int refs; struct GradBuf *next_free; } GradBuf;

typedef struct Tensor {
    void *data;
    int64_t shape[MAX_DIMS];
    int ndim;
    DType dtype;
    void *bf16;        /* parameters of a set that computes in bf16: the same values, rounded; else NULL */
    bool needs_grad;   /* a parameter that is trained, or computed from one while a tape runs */
    float *param_grad; /* parameters: their place in the flat gradient buffer, always f32; else NULL */
    GradBuf *grad;     /* others: NULL until the backward pass reaches them */
    bool watched;      /* parameters: the tape holds a node that will tell when their gradient is final */
    const char *name;  /* parameters: their checkpoint name; outputs of linears and norms: their weight's; else NULL */
} Tensor;

typedef struct Tape Tape;

/* What every op needs. One per run; `step` and `host` are reset at the start of each update. */
typedef struct Ctx {
    Device *dev;
    Arena *step;          /* device memory: activations and gradients */
    Arena *host;          /* host memory: tensor structs, tape nodes, index lists */
    Tape *tape;           /* NULL: inference, nothing is kept for a backward pass */
    uint64_t seed;        /* of dropout: the run's seed mixed with the update's number */
    uint64_t rng_offset;  /* advances with every value drawn, so that no two dropouts share numbers */
} Ctx;

static inline int64_t numel(const Tensor *x) {
    int64_t n = 1;
    for (int i = 0; i < x->ndim; i++) n *= x->shape[i];
    return n;
}
static inline int64_t last_dim(const Tensor *x) { return x->shape[x->ndim - 1]; }
/* All values but the last dimension's: what row-wise ops iterate over. */
static inline int64_t rows_of(const Tensor *x) { return last_dim(x) ? numel(x) / last_dim(x) : 0; }
/* What an op on x alone computes in: a parameter that is there in both types meets bf16. */
static inline DType compute_type(const Tensor *x) { return x->bf16 ? BF16 : x->dtype; }
static inline size_t tensor_bytes(const Tensor *x) { return (size_t)numel(x) * dtype_size(x->dtype); }

/* A fresh tensor of the step, contents undefined. */
Tensor *tensor_new(Ctx *c, DType t, int ndim, const int64_t *shape);
#define TENSOR(c, t, ...)                                                                                    \
    tensor_new((c), (t), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
static inline Tensor *tensor_like(Ctx *c, const Tensor *x) { return tensor_new(c, x->dtype, x->ndim, x->shape); }
/* The same memory under another shape of as many values, for reading (op_reshape is the one with a gradient). */
Tensor tensor_view(const Tensor *x, int ndim, const int64_t *shape);
/* Copies `bytes` host bytes to device memory of the step: index lists, masks, targets. */
void *ctx_upload(Ctx *c, const void *src, size_t bytes);
/* "(2, 3, 4)" into buf; returns buf. */
const char *shape_text(const Tensor *x, char *buf, size_t n);
