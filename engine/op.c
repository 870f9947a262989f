/* op.c -- operations on tensors. See op.h.
 *
 * Read any one and you have read them all: shapes, output, kernel, node. A node saves what its backward
 * reads, never a copy. `K` is the device's kernel table, `S` its stream.
 *
 * Types: activations are f32 or bf16, and an op computes in its input's. A parameter is there in both where
 * its module computes in bf16 (`as` takes the one that fits); biases and norms are read as f32, and gradients
 * of parameters are always f32, so an op whose input may be a parameter tells its backward both gradients'
 * types. Networks end in f32 (op_linear_f32): losses, boxes and answers never see bf16.
 */
#include "engine/op.h"

#include <math.h>

#define K (c->dev->ops)
#define S (c->dev->main)
/* A copy of a struct that lives as long as the tape. */
#define SAVE(c, T, ...) memcpy(arena_alloc((c)->host, sizeof(T)), &(T){__VA_ARGS__}, sizeof(T))

static bool same_shape(const Tensor *a, const Tensor *b) {
    return a->ndim == b->ndim && !memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape);
}

/* x's values in type t. */
static void *as(const Tensor *x, DType t) {
    if (t == BF16 && x->bf16) return x->bf16;
    CHECK(x->dtype == t, "%s is %s and meets %s", x->name ? x->name : "a tensor",
          x->dtype == F32 ? "f32" : "bf16", t == F32 ? "f32" : "bf16");
    return x->data;
}

/* What an op on both computes in: bf16, unless one is there in f32 alone. */
static DType common_type(const Tensor *a, const Tensor *b) {
    return compute_type(a) == BF16 && compute_type(b) == BF16 ? BF16 : F32;
}

static char *advance(void *p, DType t, int64_t values) {
    return p ? (char *)p + (size_t)values * dtype_size(t) : NULL;
}

/* ---- linear --------------------------------------------------------------------------------------- */

typedef struct Linear {
    Tensor *y, *x, *w, *b;
} Linear;

static void linear_backward(Ctx *c, void *saved) {
    Linear *l = saved;
    DType t = l->x->dtype;
    int64_t rows = rows_of(l->x), Kd = last_dim(l->x), N = last_dim(l->y);
    void *dy = grad_of(l->y), *dy_t = dy;
    bool fresh;
    void *dx = grad_write(c, l->x, &fresh), *dw = grad_add(c, l->w), *db = grad_add(c, l->b);
    size_t mark = arena_mark(c->step); /* gradients are there: what is taken from here on can go again */
    if (l->y->dtype != t) { /* an f32 head on bf16 activations */
        dy_t = arena_alloc(c->step, (size_t)(rows * N) * dtype_size(t));
        K->cast(S, t, dy_t, l->y->dtype, dy, rows * N);
    }
    if (dx) /* dx = dy w */
        K->gemm(S, t, t, dx, Kd, dy_t, N, as(l->w, t), Kd, NULL, false, false, rows, Kd, N, !fresh);
    if (dy_t == dy) {
        K->gemm_bgrad(S, t, dw, db, dy, l->x->data, rows, N, Kd); /* dw = dy^T x, db = its rows' sum */
    } else { /* the bias need not see the rounding */
        K->gemm_bgrad(S, t, dw, NULL, dy_t, l->x->data, rows, N, Kd);
        K->bias_bwd(S, l->y->dtype, db, dy, rows, N);
    }
    arena_reset(c->step, mark);
}

static Tensor *linear_product(Ctx *c, DType ty, Tensor *x, Tensor *w, Tensor *b) {
    int64_t Kd = last_dim(x), N = w->shape[0], rows = rows_of(x);
    CHECK(w->shape[w->ndim - 1] == Kd && w->ndim == 2,
          "linear %s: input has %" PRId64 " channels, weight %" PRId64, w->name ? w->name : "", Kd,
          last_dim(w));
    CHECK(!b || numel(b) == N, "linear %s: %" PRId64 " outputs, bias %" PRId64, w->name ? w->name : "", N,
          numel(b));
    int64_t shape[MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = N;
    Tensor *y = tensor_new(c, ty, x->ndim, shape);
    y->name = w->name;
    K->gemm(S, x->dtype, ty, y->data, N, x->data, Kd, as(w, x->dtype), Kd, b ? b->data : NULL, false, true,
            rows, N, Kd, 0);
    return y;
}

static Tensor *linear_to(Ctx *c, DType ty, Tensor *x, Tensor *w, Tensor *b) {
    Tensor *y = linear_product(c, ty, x, w, b);
    if (taped(c, x) | taped(c, w) | taped(c, b))
        tape_push(c, linear_backward, SAVE(c, Linear, y, x, w, b), y);
    return y;
}

Tensor *op_linear(Ctx *c, Tensor *x, Tensor *w, Tensor *b) { return linear_to(c, x->dtype, x, w, b); }
Tensor *op_linear_f32(Ctx *c, Tensor *x, Tensor *w, Tensor *b) { return linear_to(c, F32, x, w, b); }

typedef struct LinearLora {
    Linear l;
    Tensor *u, *a, *b; /* u = x a^T (rows, parts*r) */
} LinearLora;

static void lora_backward(Ctx *c, void *saved) {
    LinearLora *s = saved;
    const Tensor *x = s->l.x, *y = s->l.y;
    const DType t = x->dtype;
    const int64_t rows = rows_of(x), K_ = last_dim(x), r = last_dim(s->b), R = last_dim(s->u), parts = R / r,
                  N = last_dim(y), n = N / parts;
    linear_backward(c, &s->l);
    void *dx = grad_add(c, s->l.x), *da = grad_add(c, s->a), *db = grad_add(c, s->b), *dy = grad_of(s->l.y);
    size_t mark = arena_mark(c->step);
    void *du = arena_alloc(c->step, (size_t)(rows * R) * dtype_size(t));
    for (int64_t i = 0; i < parts; i++) {
        const void *dy_i = advance(dy, t, i * n), *b_i = advance(as(s->b, t), t, i * n * r);
        K->gemm(S, t, t, advance(du, t, i * r), R, dy_i, N, b_i, r, NULL, false, false, rows, r, n, 0); /* dy B */
        if (db) /* dB = dy^T u */
            K->gemm(S, t, F32, (float *)db + i * n * r, r, dy_i, N, advance(s->u->data, t, i * r), R, NULL, true,
                    false, n, r, rows, 1);
    }
    if (da) K->gemm(S, t, F32, da, K_, du, R, x->data, K_, NULL, true, false, R, K_, rows, 1); /* dA = du^T x */
    if (dx) K->gemm(S, t, t, dx, K_, du, R, as(s->a, t), K_, NULL, false, false, rows, K_, R, 1); /* dx = du A */
    arena_reset(c->step, mark);
}

Tensor *op_linear_lora(Ctx *c, Tensor *x, Tensor *w, Tensor *b, Tensor *lora_a, Tensor *lora_b) {
    const DType t = x->dtype;
    const int64_t rows = rows_of(x), K_ = last_dim(x), r = last_dim(lora_b), R = lora_a->shape[0], parts = R / r,
                  N = w->shape[0], n = N / parts;
    CHECK(R == parts * r && N == parts * n && last_dim(lora_a) == K_ && lora_b->shape[0] == N,
          "adapter of %s: A %" PRId64 " x %" PRId64 ", B %" PRId64 " x %" PRId64, w->name ? w->name : "", R,
          last_dim(lora_a), lora_b->shape[0], r);
    Tensor *y = linear_product(c, t, x, w, b), *u = TENSOR(c, t, rows, R);
    K->gemm(S, t, t, u->data, R, x->data, K_, as(lora_a, t), K_, NULL, false, true, rows, R, K_, 0);
    for (int64_t i = 0; i < parts; i++)
        K->gemm(S, t, t, advance(y->data, t, i * n), N, advance(u->data, t, i * r), R,
                advance(as(lora_b, t), t, i * n * r), r, NULL, false, true, rows, n, r, 1);
    if (taped(c, x) | taped(c, w) | taped(c, b) | taped(c, lora_a) | taped(c, lora_b))
        tape_push(c, lora_backward, SAVE(c, LinearLora, {y, x, w, b}, u, lora_a, lora_b), y);
    return y;
}

/* ---- mlp ------------------------------------------------------------------------------------------ */

typedef struct Mlp {
    Tensor *y, *x, *w1, *b1, *w2, *b2;
    Tensor *pre; /* x w1^T + b1 (rows, F) */
    Activation act;
} Mlp;

static void act_fwd(Ctx *c, Activation act, DType t, void *h, const void *pre, int64_t n) {
    (act == ACT_GELU ? K->gelu_fwd : act == ACT_GELU_TANH ? K->gelu_tanh_fwd : K->quick_gelu_fwd)(S, t, h, pre, n);
}

/* dpre = (dy w2) act'(pre) */
static void act_bwd(Ctx *c, const Mlp *m, DType t, void *dpre, const void *dy, int64_t rows, int64_t F, int64_t N) {
    if (m->act == ACT_GELU_TANH) {
        K->gemm_dgelu_tanh(S, t, dpre, m->pre->data, dy, as(m->w2, t), rows, F, N);
        return;
    }
    K->gemm(S, t, t, dpre, F, dy, N, as(m->w2, t), F, NULL, false, false, rows, F, N, 0);
    (m->act == ACT_GELU ? K->gelu_bwd : K->quick_gelu_bwd)(S, t, dpre, m->pre->data, dpre, rows * F);
}

static void mlp_backward(Ctx *c, void *saved) {
    Mlp *m = saved;
    const DType t = m->x->dtype;
    const int64_t rows = rows_of(m->x), Kd = last_dim(m->x), F = m->w1->shape[0], N = last_dim(m->y);
    const void *dy = grad_of(m->y);
    bool fresh;
    void *dx = grad_write(c, m->x, &fresh), *dw1 = grad_add(c, m->w1), *db1 = grad_add(c, m->b1),
         *dw2 = grad_add(c, m->w2), *db2 = grad_add(c, m->b2);
    size_t mark = arena_mark(c->step);
    void *h = arena_alloc(c->step, (size_t)(rows * F) * dtype_size(t)), *dpre = h; /* one after the other */
    if (dw2) act_fwd(c, m->act, t, h, m->pre->data, rows * F);
    K->gemm_bgrad(S, t, dw2, db2, dy, h, rows, N, F);
    if (dx || dw1 || db1) {
        act_bwd(c, m, t, dpre, dy, rows, F, N);
        K->gemm_bgrad(S, t, dw1, db1, dpre, m->x->data, rows, F, Kd);
    }
    if (dx) K->gemm(S, t, t, dx, Kd, dpre, F, as(m->w1, t), Kd, NULL, false, false, rows, Kd, F, !fresh);
    arena_reset(c->step, mark);
}

Tensor *op_mlp(Ctx *c, Activation act, Tensor *x, Tensor *w1, Tensor *b1, Tensor *w2, Tensor *b2) {
    const DType t = x->dtype;
    const int64_t rows = rows_of(x), Kd = last_dim(x), F = w1->shape[0], N = w2->shape[0];
    CHECK(w1->ndim == 2 && w1->shape[1] == Kd && (!b1 || numel(b1) == F) && w2->ndim == 2 && w2->shape[1] == F &&
              (!b2 || numel(b2) == N),
          "mlp %s: input has %" PRId64 " channels, weights (%" PRId64 ", %" PRId64 ") and (%" PRId64 ", %" PRId64 ")",
          w1->name ? w1->name : "", Kd, F, w1->shape[1], N, w2->shape[1]);
    int64_t shape[MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = N;
    Tensor *y = tensor_new(c, t, x->ndim, shape);
    y->name = w2->name;
    const size_t bytes = (size_t)(rows * F) * dtype_size(t);
    const bool learns = taped(c, x) | taped(c, w1) | taped(c, b1) | taped(c, w2) | taped(c, b2);
    Tensor *pre = learns ? TENSOR(c, t, rows, F) : NULL;
    if (learns) { /* on the tape to be seen by who looks for what is not finite; no gradient comes to it */
        pre->name = w1->name;
        tape_push(c, NULL, NULL, pre);
    }
    size_t mark = arena_mark(c->step);
    void *h = arena_alloc(c->step, bytes);
    if (act == ACT_GELU_TANH) {
        K->gemm_gelu_tanh(S, t, h, learns ? pre->data : NULL, x->data, as(w1, t), b1 ? b1->data : NULL, rows, F, Kd);
    } else {
        void *to = learns ? pre->data : h;
        K->gemm(S, t, t, to, F, x->data, Kd, as(w1, t), Kd, b1 ? b1->data : NULL, false, true, rows, F, Kd, 0);
        act_fwd(c, act, t, h, to, rows * F);
    }
    K->gemm(S, t, t, y->data, N, h, F, as(w2, t), F, b2 ? b2->data : NULL, false, true, rows, N, F, 0);
    arena_reset(c->step, mark);
    if (learns) tape_push(c, mlp_backward, SAVE(c, Mlp, y, x, w1, b1, w2, b2, pre, act), y);
    return y;
}

/* ---- elementwise ---------------------------------------------------------------------------------- */

typedef struct Unary {
    Tensor *y, *x;
} Unary;

/* One pair per activation; the backward reads the input, or for tanh and sigmoid the output. */
#define ACTIVATION(name, source)                                                                             \
    static void name##_backward(Ctx *c, void *saved) {                                                       \
        Unary *u = saved;                                                                                    \
        K->name##_bwd(S, u->x->dtype, grad_take(c, u->x, u->y), u->source->data, grad_of(u->y),              \
                      numel(u->x));                                                                          \
    }                                                                                                        \
    Tensor *op_##name(Ctx *c, Tensor *x) {                                                                   \
        Tensor *y = tensor_like(c, x);                                                                       \
        K->name##_fwd(S, x->dtype, y->data, x->data, numel(x));                                              \
        if (taped(c, x)) tape_push(c, name##_backward, SAVE(c, Unary, y, x), y);                             \
        return y;                                                                                            \
    }
ACTIVATION(gelu, x)
ACTIVATION(gelu_tanh, x)
ACTIVATION(quick_gelu, x)
ACTIVATION(elu1, x)
ACTIVATION(tanh, y)
ACTIVATION(sigmoid, y)

typedef struct Binary {
    Tensor *y, *a, *b;
} Binary;

static void add_backward(Ctx *c, void *saved) {
    Binary *s = saved;
    grad_pass(c, s->a, s->y);
    grad_pass(c, s->b, s->y);
}

Tensor *op_add(Ctx *c, Tensor *a, Tensor *b) {
    CHECK(numel(a) == numel(b), "add: %" PRId64 " and %" PRId64 " values", numel(a), numel(b));
    DType t = common_type(a, b);
    Tensor *y = tensor_new(c, t, a->ndim, a->shape);
    K->add_fwd(S, t, y->data, as(a, t), as(b, t), numel(a));
    if (taped(c, a) | taped(c, b)) tape_push(c, add_backward, SAVE(c, Binary, y, a, b), y);
    return y;
}

static void mul_backward(Ctx *c, void *saved) {
    Binary *s = saved;
    K->mul_bwd(S, s->y->dtype, grad_add(c, s->a), grad_add(c, s->b), s->a->data, s->b->data, grad_of(s->y),
               numel(s->y));
}

Tensor *op_mul(Ctx *c, Tensor *a, Tensor *b) {
    CHECK(same_shape(a, b) && a->dtype == b->dtype,
          "mul: %" PRId64 " and %" PRId64 " values, of types %d and %d", numel(a), numel(b), (int)a->dtype,
          (int)b->dtype);
    Tensor *y = tensor_like(c, a);
    K->mul_fwd(S, a->dtype, y->data, a->data, b->data, numel(a));
    if (taped(c, a) | taped(c, b)) tape_push(c, mul_backward, SAVE(c, Binary, y, a, b), y);
    return y;
}

static void add_rows_backward(Ctx *c, void *saved) {
    Binary *s = saved;
    grad_pass(c, s->a, s->y);
    void *dp = grad_add(c, s->b);
    if (dp)
        K->add_rows_bwd(S, s->b->dtype, dp, s->y->dtype, grad_of(s->y), numel(s->a) / MAX(numel(s->b), 1),
                        numel(s->b));
}

Tensor *op_add_rows(Ctx *c, Tensor *x, Tensor *p) {
    int64_t n = numel(p), rows = n ? numel(x) / n : 0;
    CHECK(rows * n == numel(x), "add_rows: %" PRId64 " values do not repeat %" PRId64, numel(x), n);
    DType t = common_type(x, p);
    Tensor *y = tensor_new(c, t, x->ndim, x->shape);
    K->add_rows_fwd(S, t, y->data, as(x, t), as(p, t), rows, n);
    if (taped(c, x) | taped(c, p)) tape_push(c, add_rows_backward, SAVE(c, Binary, y, x, p), y);
    return y;
}

static void mul_tokens_backward(Ctx *c, void *saved) {
    Binary *s = saved;
    K->mul_tokens_bwd(S, s->y->dtype, grad_add(c, s->a), grad_add(c, s->b), s->a->data, s->b->data,
                      grad_of(s->y), s->a->shape[0], s->a->shape[1], s->a->shape[2]);
}

Tensor *op_mul_tokens(Ctx *c, Tensor *x, Tensor *g) {
    CHECK(x->ndim == 3 && g->ndim == 2 && g->shape[0] == x->shape[0] && g->shape[1] == x->shape[2] &&
              g->dtype == x->dtype,
          "mul_tokens: %" PRId64 " values by %" PRId64 ", of types %d and %d", numel(x), numel(g),
          (int)x->dtype, (int)g->dtype);
    Tensor *y = tensor_like(c, x);
    K->mul_tokens_fwd(S, x->dtype, y->data, x->data, g->data, x->shape[0], x->shape[1], x->shape[2]);
    if (taped(c, x) | taped(c, g)) tape_push(c, mul_tokens_backward, SAVE(c, Binary, y, x, g), y);
    return y;
}

typedef struct Dropout {
    Tensor *y, *x;
    float p;
    uint64_t seed, offset;
} Dropout;

static void dropout_backward(Ctx *c, void *saved) {
    Dropout *d = saved;
    K->dropout_bwd(S, d->x->dtype, grad_add(c, d->x), grad_of(d->y), d->p, d->seed, d->offset, numel(d->x));
}

Tensor *op_dropout(Ctx *c, Tensor *x, float p) {
    if (p == 0 || !c->tape) return x;
    Tensor *y = tensor_like(c, x);
    uint64_t offset = c->rng_offset;
    c->rng_offset += ((uint64_t)numel(x) + 3) & ~(uint64_t)3; /* Philox draws in fours */
    K->dropout_fwd(S, x->dtype, y->data, x->data, p, c->seed, offset, numel(x));
    if (taped(c, x)) tape_push(c, dropout_backward, SAVE(c, Dropout, y, x, p, c->seed, offset), y);
    return y;
}

/* ---- norms and softmax ---------------------------------------------------------------------------- */

typedef struct Norm {
    Tensor *y, *x, *gamma, *beta;
    float *mean, *rstd;
    float eps;
} Norm;

static void layernorm_backward(Ctx *c, void *saved) {
    Norm *n = saved;
    K->layernorm_bwd(S, n->x->dtype, grad_add(c, n->x), grad_add(c, n->gamma), grad_add(c, n->beta),
                     n->x->data, grad_of(n->y), n->mean, n->rstd, n->gamma->data, rows_of(n->x),
                     last_dim(n->x));
}

Tensor *op_layernorm(Ctx *c, Tensor *x, Tensor *gamma, Tensor *beta, float eps) {
    int64_t rows = rows_of(x), C = last_dim(x);
    CHECK(numel(gamma) == C && numel(beta) == C, "layernorm %s: %" PRId64 " channels, gamma %" PRId64,
          gamma->name ? gamma->name : "", C, numel(gamma));
    Tensor *y = tensor_like(c, x);
    y->name = gamma->name;
    float *mean = arena_alloc(c->step, (size_t)rows * 4), *rstd = arena_alloc(c->step, (size_t)rows * 4);
    K->layernorm_fwd(S, x->dtype, y->data, mean, rstd, x->data, gamma->data, beta->data, eps, rows, C);
    if (taped(c, x) | taped(c, gamma) | taped(c, beta))
        tape_push(c, layernorm_backward, SAVE(c, Norm, y, x, gamma, beta, mean, rstd, eps), y);
    return y;
}

/* Another tensor in the memory of x, with a gradient of its own. */
static Tensor *in_memory_of(Ctx *c, const Tensor *x, int ndim, const int64_t *shape) {
    Tensor *y = ARENA_NEW(c->host, Tensor, 1);
    *y = tensor_view(x, ndim, shape);
    y->grad = NULL;
    y->param_grad = NULL;
    y->needs_grad = false;
    return y;
}

Tensor *op_add_layernorm(Ctx *c, Tensor **sum, Tensor *x, Tensor *more, Tensor *gamma, Tensor *beta, float eps) {
    int64_t rows = rows_of(x), C = last_dim(x);
    CHECK(numel(x) == numel(more) && x->dtype == more->dtype && numel(gamma) == C && numel(beta) == C,
          "add, layernorm %s: %" PRId64 " and %" PRId64 " values in rows of %" PRId64 ", gamma %" PRId64,
          gamma->name ? gamma->name : "", numel(x), numel(more), C, numel(gamma));
    Tensor *z = in_memory_of(c, more, x->ndim, x->shape), *y = tensor_like(c, x);
    z->name = NULL;
    y->name = gamma->name;
    float *mean = arena_alloc(c->step, (size_t)rows * 4), *rstd = arena_alloc(c->step, (size_t)rows * 4);
    K->add_layernorm_fwd(S, x->dtype, z->data, y->data, mean, rstd, more->data, x->data, gamma->data, beta->data, eps, rows, C);
    /* Two nodes, as of two ops: the backward has nothing to gain from one, the sum's gradient is handed over (grad_pass). */
    if (taped(c, x) | taped(c, more)) tape_push(c, add_backward, SAVE(c, Binary, z, x, more), z);
    if (taped(c, z) | taped(c, gamma) | taped(c, beta))
        tape_push(c, layernorm_backward, SAVE(c, Norm, y, z, gamma, beta, mean, rstd, eps), y);
    *sum = z;
    return y;
}

static void l2norm_backward(Ctx *c, void *saved) {
    Norm *n = saved;
    K->l2norm_bwd(S, n->x->dtype, grad_add(c, n->x), n->x->data, grad_of(n->y), n->rstd, n->eps,
                  rows_of(n->x), last_dim(n->x));
}

Tensor *op_l2norm(Ctx *c, Tensor *x, float eps) {
    int64_t rows = rows_of(x), C = last_dim(x);
    Tensor *y = tensor_like(c, x);
    float *inv = arena_alloc(c->step, (size_t)rows * 4);
    K->l2norm_fwd(S, x->dtype, y->data, inv, x->data, eps, rows, C);
    if (taped(c, x)) tape_push(c, l2norm_backward, SAVE(c, Norm, .y = y, .x = x, .rstd = inv, .eps = eps), y);
    return y;
}

static void softmax_backward(Ctx *c, void *saved) {
    Unary *u = saved;
    K->softmax_bwd(S, u->x->dtype, grad_add(c, u->x), u->y->data, grad_of(u->y), rows_of(u->x),
                   last_dim(u->x));
}

Tensor *op_softmax(Ctx *c, Tensor *x) {
    Tensor *y = tensor_like(c, x);
    K->softmax_fwd(S, x->dtype, y->data, x->data, rows_of(x), last_dim(x));
    if (taped(c, x)) tape_push(c, softmax_backward, SAVE(c, Unary, y, x), y);
    return y;
}

/* ---- attention ------------------------------------------------------------------------------------ */

/* q and kv are one tensor in self attention: then kv starts C values further in the same rows. */
typedef struct Attention {
    Tensor *y, *q, *kv;
    float *lse;
    const uint8_t *mask;
    bool causal;
    int H;
} Attention;

static void attention_run(Ctx *c, Attention *a, bool backward) {
    DType t = a->y->dtype;
    bool self = a->q == a->kv;
    int64_t C = last_dim(a->y), ldq = last_dim(a->q), ldkv = last_dim(a->kv);
    int B = (int)a->y->shape[0], Tq = (int)a->q->shape[1], Tk = (int)a->kv->shape[1], D = (int)(C / a->H);
    float scale = 1 / sqrtf((float)D);
    char *k = advance(a->kv->data, t, self ? C : 0), *v = advance(k, t, C);
    if (!backward) {
        K->attention_fwd(S, t, a->y->data, C, a->lse, a->q->data, ldq, k, v, ldkv, a->mask, a->causal, scale,
                         B, a->H, Tq, Tk, D);
        return;
    }
    char *dq = grad_add(c, a->q);
    char *dk = self ? advance(dq, t, C) : grad_add(c, a->kv), *dv = advance(dk, t, C);
    K->attention_bwd(S, t, dq, dk, dv, a->q->data, ldq, k, v, ldkv, a->y->data, grad_of(a->y), C, a->lse,
                     a->mask, a->causal, scale, B, a->H, Tq, Tk, D);
}

static void attention_backward(Ctx *c, void *saved) { attention_run(c, saved, true); }

static Tensor *attention(Ctx *c, Tensor *q, Tensor *kv, int64_t C, int H, const uint8_t *mask, bool causal) {
    CHECK(C % H == 0 && q->dtype == kv->dtype, "attention: %" PRId64 " channels in %d heads, types %d and %d",
          C, H, (int)q->dtype, (int)kv->dtype);
    Tensor *y = TENSOR(c, q->dtype, q->shape[0], q->shape[1], C);
    float *lse = arena_alloc(c->step, (size_t)(q->shape[0] * H * q->shape[1]) * 4);
    Attention *a = SAVE(c, Attention, y, q, kv, lse, mask, causal, H);
    attention_run(c, a, false);
    if (taped(c, q) | taped(c, kv)) tape_push(c, attention_backward, a, y);
    return y;
}

Tensor *op_self_attention(Ctx *c, Tensor *qkv, int H, const uint8_t *mask, bool causal) {
    CHECK(qkv->ndim == 3 && last_dim(qkv) % 3 == 0, "self attention: fused width %" PRId64, last_dim(qkv));
    return attention(c, qkv, qkv, last_dim(qkv) / 3, H, mask, causal);
}

Tensor *op_cross_attention(Ctx *c, Tensor *q, Tensor *kv, int H, const uint8_t *mask) {
    CHECK(q->ndim == 3 && kv->ndim == 3 && last_dim(kv) == 2 * last_dim(q) && q->shape[0] == kv->shape[0],
          "cross attention: widths %" PRId64 " and %" PRId64, last_dim(q), last_dim(kv));
    return attention(c, q, kv, last_dim(q), H, mask, false);
}

/* ---- rows ----------------------------------------------------------------------------------------- */

/* What the row ops save; each uses its part. */
typedef struct Rows {
    Tensor *y, *x, *x2;
    const int32_t *idx, *idx2;
    const float *w;
    const uint8_t *mask;
    int64_t n, at;
} Rows;

/* Values of one step along the first dimension. */
static int64_t row_len(const Tensor *x) { return x->shape[0] ? numel(x) / x->shape[0] : 0; }

static void gather_backward(Ctx *c, void *saved) {
    Rows *r = saved;
    void *dx = grad_add(c, r->x);
    K->scatter_rows(S, r->x->dtype, dx, r->y->dtype, grad_of(r->y), r->idx, r->n, row_len(r->x));
}

Tensor *op_gather(Ctx *c, Tensor *x, const int32_t *idx, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        CHECK(idx[i] >= 0 && idx[i] < x->shape[0], "gather %s: row %d of %" PRId64, x->name ? x->name : "",
              idx[i], x->shape[0]);
    int64_t shape[MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[0] = n;
    DType t = compute_type(x);
    Tensor *y = tensor_new(c, t, x->ndim, shape);
    const int32_t *didx = ctx_upload(c, idx, (size_t)n * 4);
    K->gather_rows(S, t, y->data, as(x, t), didx, n, row_len(x));
    if (taped(c, x)) tape_push(c, gather_backward, SAVE(c, Rows, .y = y, .x = x, .idx = didx, .n = n), y);
    return y;
}

typedef struct Concat {
    Tensor *y, **part;
    int n;
} Concat;

/* Parts (outer, n_i) side by side in rows of y: both concatenations, with outer = 1 or B. */
static void concat_copy(Ctx *c, Concat *s, int64_t outer, bool backward) {
    int64_t width = outer ? numel(s->y) / outer : 0, at = 0;
    for (int i = 0; i < s->n; i++) {
        int64_t n = outer ? numel(s->part[i]) / outer : 0;
        if (!backward) {
            K->copy_rows(S, s->y->dtype, advance(s->y->data, s->y->dtype, at), width, s->part[i]->data, n,
                         outer, n, false);
        } else {
            bool fresh;
            void *dx = grad_write(c, s->part[i], &fresh);
            if (dx)
                K->copy_rows(S, s->y->dtype, dx, n, advance(grad_of(s->y), s->y->dtype, at), width, outer, n,
                             !fresh);
        }
        at += n;
    }
}

static Tensor *concat(Ctx *c, Tensor *const *part, int n, int dim, BackwardFn *backward) {
    CHECK(n >= 1, "concatenation of %d parts", n);
    int64_t shape[MAX_DIMS];
    memcpy(shape, part[0]->shape, sizeof shape);
    bool grad = false;
    for (int i = 0; i < n; i++) {
        for (int d = 0; d < part[0]->ndim; d++)
            CHECK((d == dim || part[i]->shape[d] == shape[d]) && part[i]->dtype == part[0]->dtype,
                  "concatenation: part %d has %" PRId64 " in dimension %d, part 0 %" PRId64, i,
                  part[i]->shape[d], d, shape[d]);
        if (i) shape[dim] += part[i]->shape[dim];
        grad |= taped(c, part[i]);
    }
    Tensor *y = tensor_new(c, part[0]->dtype, part[0]->ndim, shape);
    Tensor **own = arena_alloc(c->host, (size_t)n * sizeof *own);
    memcpy(own, part, (size_t)n * sizeof *own);
    Concat *s = SAVE(c, Concat, y, own, n);
    concat_copy(c, s, dim ? shape[0] : 1, false);
    if (grad) tape_push(c, backward, s, y);
    return y;
}

static void concat_rows_backward(Ctx *c, void *saved) { concat_copy(c, saved, 1, true); }
static void concat_tokens_backward(Ctx *c, void *saved) {
    Concat *s = saved;
    concat_copy(c, s, s->y->shape[0], true);
}

Tensor *op_concat_rows(Ctx *c, Tensor *const *part, int n) {
    return n == 1 ? part[0] : concat(c, part, n, 0, concat_rows_backward);
}

Tensor *op_concat_tokens(Ctx *c, Tensor *const *part, int n) {
    CHECK(part[0]->ndim == 3, "concatenation of tokens: %d dimensions", part[0]->ndim);
    return concat(c, part, n, 1, concat_tokens_backward);
}

static void slice_backward(Ctx *c, void *saved) {
    Rows *r = saved;
    int64_t B = r->x->shape[0], C = last_dim(r->x), width = r->x->shape[1] * C;
    void *dx = grad_add(c, r->x);
    K->copy_rows(S, r->x->dtype, advance(dx, r->x->dtype, r->at * C), width, grad_of(r->y), r->n * C, B,
                 r->n * C, true);
}

Tensor *op_slice_tokens(Ctx *c, Tensor *x, int64_t first, int64_t n) {
    CHECK(x->ndim == 3 && first >= 0 && n >= 0 && first + n <= x->shape[1],
          "tokens %" PRId64 "..%" PRId64 " of %" PRId64, first, first + n, x->shape[1]);
    int64_t B = x->shape[0], C = last_dim(x), width = x->shape[1] * C;
    Tensor *y = TENSOR(c, x->dtype, B, n, C);
    K->copy_rows(S, x->dtype, y->data, n * C, advance(x->data, x->dtype, first * C), width, B, n * C, false);
    if (taped(c, x)) tape_push(c, slice_backward, SAVE(c, Rows, .y = y, .x = x, .n = n, .at = first), y);
    return y;
}

Tensor *op_token(Ctx *c, Tensor *x, int64_t k) {
    return RESHAPE(c, op_slice_tokens(c, x, k, 1), x->shape[0], last_dim(x));
}

static void reshape_backward(Ctx *c, void *saved) {
    Unary *u = saved;
    grad_pass(c, u->x, u->y);
}

Tensor *op_reshape(Ctx *c, Tensor *x, int ndim, const int64_t *shape) {
    Tensor *y = in_memory_of(c, x, ndim, shape);
    if (taped(c, x)) tape_push(c, reshape_backward, SAVE(c, Unary, y, x), y);
    return y;
}

static void interp_backward(Ctx *c, void *saved) {
    Rows *r = saved;
    K->interp_rows_bwd(S, r->x->dtype, grad_add(c, r->x), r->y->dtype, grad_of(r->y), r->idx, r->w, r->n,
                       last_dim(r->x));
}

Tensor *op_interp_rows(Ctx *c, Tensor *x, const int32_t *idx, const float *w, int64_t n) {
    for (int64_t i = 0; i < 4 * n; i++)
        CHECK(idx[i] >= 0 && idx[i] < rows_of(x), "interpolation: row %d of %" PRId64, idx[i], rows_of(x));
    DType t = compute_type(x);
    Tensor *y = TENSOR(c, t, n, last_dim(x));
    const int32_t *didx = ctx_upload(c, idx, (size_t)n * 16);
    const float *dw = ctx_upload(c, w, (size_t)n * 16);
    K->interp_rows_fwd(S, t, y->data, as(x, t), didx, dw, n, last_dim(x));
    if (taped(c, x))
        tape_push(c, interp_backward, SAVE(c, Rows, .y = y, .x = x, .idx = didx, .w = dw, .n = n), y);
    return y;
}

static void mean_backward(Ctx *c, void *saved) {
    Rows *r = saved;
    K->mean_tokens_bwd(S, r->y->dtype, grad_add(c, r->x), grad_of(r->y), r->mask, r->x->shape[0],
                       r->x->shape[1], last_dim(r->x));
}

Tensor *op_mean_tokens(Ctx *c, Tensor *x, const uint8_t *mask) {
    CHECK(x->ndim == 3, "mean over tokens: %d dimensions", x->ndim);
    Tensor *y = TENSOR(c, x->dtype, x->shape[0], last_dim(x));
    K->mean_tokens_fwd(S, x->dtype, y->data, x->data, mask, x->shape[0], x->shape[1], last_dim(x));
    if (taped(c, x)) tape_push(c, mean_backward, SAVE(c, Rows, .y = y, .x = x, .mask = mask), y);
    return y;
}

static void pair_backward(Ctx *c, void *saved) {
    Rows *r = saved;
    K->pair_scores_bwd(S, r->y->dtype, grad_add(c, r->x), grad_add(c, r->x2), r->x->data, r->x2->data,
                       grad_of(r->y), r->idx, r->idx2, r->n, r->x->shape[1], last_dim(r->x));
}

Tensor *op_pair_scores(Ctx *c, Tensor *f, Tensor *q, const int32_t *img, const int32_t *txt, int64_t n) {
    CHECK(f->ndim == 3 && q->ndim == 2 && last_dim(f) == last_dim(q) && f->dtype == q->dtype,
          "pair scores: widths %" PRId64 " and %" PRId64 ", types %d and %d", last_dim(f), last_dim(q),
          (int)f->dtype, (int)q->dtype);
    for (int64_t i = 0; i < n; i++)
        CHECK(img[i] >= 0 && img[i] < f->shape[0] && txt[i] >= 0 && txt[i] < q->shape[0],
              "pair %" PRId64 ": image %d of %" PRId64 ", text %d of %" PRId64, i, img[i], f->shape[0],
              txt[i], q->shape[0]);
    Tensor *y = TENSOR(c, f->dtype, n, f->shape[1]);
    const int32_t *dimg = ctx_upload(c, img, (size_t)n * 4), *dtxt = ctx_upload(c, txt, (size_t)n * 4);
    K->pair_scores_fwd(S, f->dtype, y->data, f->data, q->data, dimg, dtxt, n, f->shape[1], last_dim(f));
    if (taped(c, f) | taped(c, q))
        tape_push(c, pair_backward, SAVE(c, Rows, .y = y, .x = f, .x2 = q, .idx = dimg, .idx2 = dtxt, .n = n),
                  y);
    return y;
}

Tensor *op_image_patches(Ctx *c, DType t, const ImageView *image, const Rect *rect, const int (*size)[2],
                         const PatchSpec *spec, int64_t B) {
    Tensor *y = TENSOR(c, t, B, (int64_t)spec->grid_h * spec->grid_w, 3 * (int64_t)spec->patch * spec->patch);
    K->image_patches(S, t, y->data, image, rect, size, spec, B);
    return y;
}

const Detection *op_detect(Ctx *c, const Tensor *logits, const Tensor *boxes, const int32_t *size, float threshold,
                           double tau, bool half_open, int64_t max) {
    CHECK(logits->dtype == F32 && boxes->dtype == F32 && last_dim(boxes) == 4 && rows_of(boxes) == numel(logits),
          "detections: %" PRId64 " logits, %" PRId64 " boxes", numel(logits), rows_of(boxes));
    int64_t n = rows_of(logits);
    size_t bytes = (size_t)(n * max) * sizeof(Detection);
    Detection *found = arena_alloc(c->step, bytes), *host = arena_alloc(c->host, bytes);
    K->detect(S, found, logits->data, boxes->data, ctx_upload(c, size, (size_t)n * 8), threshold, tau, half_open, n,
              last_dim(logits), max);
    c->dev->download(c->dev, host, found, bytes);
    return host;
}

/* ---- losses --------------------------------------------------------------------------------------- */

typedef struct Loss {
    Tensor *x;
    void *dx;
} Loss;

/* The forward has already written dx: the backward only hands it on. */
static void loss_backward(Ctx *c, void *saved) {
    Loss *l = saved;
    K->accumulate(S, l->x->dtype, grad_add(c, l->x), l->x->dtype, l->dx, numel(l->x));
}

/* Allocates the rows' losses and dx, and pushes the node; the caller then runs the kernel. */
static Tensor *loss_begin(Ctx *c, Tensor *x, void **dx) {
    Tensor *rows = TENSOR(c, F32, rows_of(x));
    *dx = arena_alloc(c->step, tensor_bytes(x));
    if (taped(c, x)) tape_push(c, loss_backward, SAVE(c, Loss, x, *dx), NULL);
    return rows;
}

Tensor *op_bce_loss(Ctx *c, Tensor *x, const float *target, const float *weight, float T) {
    void *dx;
    Tensor *rows = loss_begin(c, x, &dx);
    int64_t n = rows_of(x);
    K->bce_loss(S, x->dtype, rows->data, dx, x->data, ctx_upload(c, target, (size_t)numel(x) * 4),
                ctx_upload(c, weight, (size_t)n * 4), T, n, last_dim(x));
    return rows;
}

Tensor *op_ce_loss(Ctx *c, Tensor *x, const int32_t *label, const float *weight, float smoothing) {
    void *dx;
    Tensor *rows = loss_begin(c, x, &dx);
    int64_t n = rows_of(x);
    for (int64_t i = 0; i < n; i++)
        CHECK(label[i] >= -1 && label[i] < last_dim(x), "label %d of %" PRId64 " answers", label[i],
              last_dim(x));
    K->ce_loss(S, x->dtype, rows->data, dx, x->data, ctx_upload(c, label, (size_t)n * 4),
               ctx_upload(c, weight, (size_t)n * 4), smoothing, n, last_dim(x));
    return rows;
}

Tensor *op_kl_loss(Ctx *c, Tensor *x, const float *teacher_logits, const float *weight, float T) {
    void *dx;
    Tensor *rows = loss_begin(c, x, &dx);
    int64_t n = rows_of(x);
    K->kl_loss(S, x->dtype, rows->data, dx, x->data, ctx_upload(c, teacher_logits, (size_t)numel(x) * 4),
               ctx_upload(c, weight, (size_t)n * 4), T, n, last_dim(x));
    return rows;
}

Tensor *op_focal_loss(Ctx *c, Tensor *x, const float *target, const float *weight, float alpha, float gamma) {
    void *dx;
    Tensor *rows = loss_begin(c, x, &dx);
    size_t bytes = (size_t)numel(x) * 4;
    K->focal_loss(S, x->dtype, rows->data, dx, x->data, ctx_upload(c, target, bytes),
                  ctx_upload(c, weight, bytes), alpha, gamma, rows_of(x), last_dim(x));
    return rows;
}

Tensor *op_box_loss(Ctx *c, Tensor *box, const float *target, const float *weight, float w_l1, float w_giou,
                    bool corners) {
    CHECK(last_dim(box) == 4 && box->dtype == F32, "boxes have %" PRId64 " values", last_dim(box));
    void *dx;
    Tensor *rows = loss_begin(c, box, &dx);
    int64_t n = rows_of(box);
    K->box_loss(S, rows->data, dx, box->data, ctx_upload(c, target, (size_t)n * 16),
                ctx_upload(c, weight, (size_t)n * 4), w_l1, w_giou, corners, n);
    return rows;
}

const float *to_host(Ctx *c, const Tensor *x) {
    CHECK(x->dtype == F32, "only f32 is read back");
    float *p = arena_alloc(c->host, tensor_bytes(x));
    c->dev->download(c->dev, p, x->data, tensor_bytes(x));
    return p;
}

double loss_value(Ctx *c, const Tensor *rows) {
    const float *p = to_host(c, rows);
    double sum = 0;
    for (int64_t i = 0; i < numel(rows); i++) sum += (double)p[i];
    return sum;
}
