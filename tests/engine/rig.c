/* rig.c -- context and gradient check of the engine's tests. See rig.h. */
#include "tests/engine/rig.h"

#include <math.h>

#include "kernels/philox.h"

void rig_open(Rig *r) {
    *r = (Rig){.dev = device_cpu(2)};
    arena_open(&r->step, "step", r->dev, (size_t)256 << 20);
    arena_open(&r->host, "host", NULL, (size_t)256 << 20);
    rig_begin(r, true);
}

void rig_close(Rig *r) {
    arena_close(&r->step);
    arena_close(&r->host);
}

void rig_begin(Rig *r, bool training) {
    arena_reset(&r->step, 0);
    arena_reset(&r->host, 0);
    r->tape = (Tape){0};
    r->ctx = (Ctx){
        .dev = r->dev, .step = &r->step, .host = &r->host, .tape = training ? &r->tape : NULL, .seed = 7};
}

void random_fill(float *x, int64_t n, uint64_t seed, float lo, float hi) {
    uint32_t b[4] = {0};
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) philox(b, seed, (uint64_t)i / 4);
        x[i] = lo + (hi - lo) * (float)(b[i % 4] >> 8) * 0x1p-24f;
    }
}

Tensor *random_tensor(Ctx *c, uint64_t seed, bool wants_grad, int ndim, const int64_t *shape) {
    Tensor *x = tensor_new(c, F32, ndim, shape);
    random_fill(x->data, numel(x), seed, -1, 1);
    x->needs_grad = wants_grad;
    return x;
}

typedef struct Seed { Tensor *y; float *dy; } Seed;

static void seed_backward(Ctx *c, void *saved) {
    Seed *s = saved;
    float *g = grad_add(c, s->y);
    if (g) c->dev->ops->accumulate(c->dev->main, F32, g, F32, s->dy, numel(s->y));
}

void seed_gradient(Ctx *c, Tensor *y, const float *dy) {
    Seed *s = ARENA_NEW(c->host, Seed, 1);
    s->y = y;
    s->dy = ctx_upload(c, dy, tensor_bytes(y));
    tape_push(c, seed_backward, s, NULL);
}

/* ---- gradient check ------------------------------------------------------------------------------- */

typedef struct Check {
    const GraphCase *g;
    Rig rig;
    float *value[MAX_LEAVES]; /* host: what the leaves hold */
    int64_t n[MAX_LEAVES];
    float *weight;            /* of the outputs in the scalar that is differentiated */
    int64_t nout;
} Check;

enum { ALL_GRADS = -1, AS_PARAMS = -2 };

/* One forward on fresh arenas; frozen: the leaf that wants no gradient, ALL_GRADS, or AS_PARAMS with buffers in param_grad. */
static Tensor *forward(Check *k, bool training, int frozen, float *const *param_grad, Tensor **leaf) {
    rig_begin(&k->rig, training);
    for (int i = 0; i < k->g->nleaves; i++) {
        leaf[i] = tensor_new(&k->rig.ctx, F32, k->g->leaf[i].ndim, k->g->leaf[i].shape);
        memcpy(leaf[i]->data, k->value[i], tensor_bytes(leaf[i]));
        leaf[i]->needs_grad = training && i != frozen;
        if (frozen == AS_PARAMS) leaf[i]->param_grad = param_grad[i];
    }
    return k->g->graph(&k->rig.ctx, leaf);
}

static double scalar(Check *k) {
    Tensor *leaf[MAX_LEAVES];
    const Tensor *y = forward(k, false, ALL_GRADS, NULL, leaf);
    const float *p = y->data;
    double sum = 0;
    for (int64_t i = 0; i < k->nout; i++) sum += (double)p[i] * (double)k->weight[i];
    return sum;
}

/* Forward and backward; copies the gradients into grad (NULL: not wanted), the output into out. */
static void backward(Check *k, int frozen, float *const *param_grad, float *const *grad, float *out) {
    Tensor *leaf[MAX_LEAVES];
    Tensor *y = forward(k, true, frozen, param_grad, leaf);
    if (out) memcpy(out, y->data, tensor_bytes(y));
    if (!k->g->is_loss) seed_gradient(&k->rig.ctx, y, k->weight);
    tape_backward(&k->rig.ctx);
    EXPECT(!k->rig.tape.last, "%s: the tape is not empty after the backward", k->g->name);
    for (int i = 0; i < k->g->nleaves; i++) {
        EXPECT(i != frozen || !leaf[i]->grad, "%s: frozen leaf %d has a gradient", k->g->name, i);
        if (!grad || i == frozen || frozen == AS_PARAMS) continue;
        memset(grad[i], 0, (size_t)k->n[i] * 4);
        if (leaf[i]->grad) memcpy(grad[i], leaf[i]->grad->data, (size_t)k->n[i] * 4);
    }
}

/* Fourth-order central difference: with h = 0.01 and f32 forwards its error is near 1e-5 of the values. */
static double slope(Check *k, float *x) {
    const float was = *x, h = 0x1p-6f;
    double f[4];
    const float at[4] = {-2 * h, -h, h, 2 * h};
    for (int i = 0; i < 4; i++) {
        *x = was + at[i];
        f[i] = scalar(k);
    }
    *x = was;
    return (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * (double)h);
}

void graph_check(const GraphCase *g) {
    Check k = {.g = g};
    float *grad[MAX_LEAVES], *again[MAX_LEAVES], *param[MAX_LEAVES];
    Tensor *leaf[MAX_LEAVES];
    rig_open(&k.rig);
    for (int i = 0; i < g->nleaves; i++) {
        k.n[i] = 1;
        for (int d = 0; d < g->leaf[i].ndim; d++) k.n[i] *= g->leaf[i].shape[d];
        k.value[i] = xcalloc((size_t)k.n[i], 4);
        grad[i] = xcalloc((size_t)k.n[i], 4);
        again[i] = xcalloc((size_t)k.n[i], 4);
        param[i] = xcalloc((size_t)k.n[i], 4);
        const bool given = g->leaf[i].lo != g->leaf[i].hi;
        random_fill(k.value[i], k.n[i], 100 + (uint64_t)i, given ? g->leaf[i].lo : -1,
                    given ? g->leaf[i].hi : 1);
        random_fill(param[i], k.n[i], 200 + (uint64_t)i, -1, 1);
    }
    k.nout = numel(forward(&k, false, ALL_GRADS, NULL, leaf));
    k.weight = xcalloc((size_t)k.nout, 4);
    if (g->is_loss)
        for (int64_t i = 0; i < k.nout; i++) k.weight[i] = 1; /* a loss is the plain sum of its rows */
    else
        random_fill(k.weight, k.nout, 99, -1, 1);

    /* Values with and without a tape. */
    float *taped_out = xcalloc((size_t)k.nout, 4);
    backward(&k, ALL_GRADS, NULL, grad, taped_out);
    const Tensor *y = forward(&k, false, ALL_GRADS, NULL, leaf);
    EXPECT(!memcmp(y->data, taped_out, (size_t)k.nout * 4), "%s: another value without the tape", g->name);
    EXPECT(!k.rig.tape.nodes, "%s: a node without a tape", g->name);

    /* Gradients: twice the same, against differences, and added to what a parameter's buffer holds. */
    backward(&k, ALL_GRADS, NULL, again, NULL);
    float *held[MAX_LEAVES];
    for (int i = 0; i < g->nleaves; i++) {
        EXPECT(!memcmp(grad[i], again[i], (size_t)k.n[i] * 4), "%s: leaf %d: a rerun differs", g->name, i);
        held[i] = xcalloc((size_t)k.n[i], 4);
        memcpy(held[i], param[i], (size_t)k.n[i] * 4);
    }
    backward(&k, AS_PARAMS, param, NULL, NULL);
    for (int i = 0; i < g->nleaves; i++) {
        double largest = 1e-3;
        for (int64_t j = 0; j < k.n[i]; j++) largest = fmax(largest, fabs((double)grad[i][j]));
        for (int64_t j = 0; j < k.n[i]; j++) {
            EXPECT_NEAR(grad[i][j], slope(&k, &k.value[i][j]),
                        (g->bound > 0 ? g->bound : 5e-4) * fmax(largest, 0.1), "%s: leaf %d value %" PRId64,
                        g->name, i, j);
            EXPECT_NEAR(param[i][j], (double)held[i][j] + (double)grad[i][j], 1e-5 * (1 + largest),
                        "%s: leaf %d as a parameter, value %" PRId64, g->name, i, j);
        }
    }
    /* Each leaf frozen in turn. */
    for (int f = 0; f < g->nleaves && g->nleaves > 1; f++) {
        backward(&k, f, NULL, again, NULL);
        for (int i = 0; i < g->nleaves; i++)
            EXPECT(i == f || !memcmp(grad[i], again[i], (size_t)k.n[i] * 4),
                   "%s: leaf %d differs when leaf %d is frozen", g->name, i, f);
    }
    for (int i = 0; i < g->nleaves; i++) {
        free(k.value[i]);
        free(grad[i]);
        free(again[i]);
        free(param[i]);
        free(held[i]);
    }
    free(k.weight);
    free(taped_out);
    rig_close(&k.rig);
}
