/* golden_model.c -- see golden_model.h. */
#include "tests/modules/golden_model.h"
#include "tests/kernels/kernels.h"

#include <math.h>

static const StTensor *find(GoldenModel *g, const char *name) {
    const StTensor *t = st_find(&g->st, name);
    CHECK(t, "%s has no tensor %s (make it with tests/golden/make_models.py)", g->st.path, name);
    return t;
}

bool golden_open(GoldenModel *g, const char *folder) {
    Error e = {0};
    char path[600];
    *g = (GoldenModel){0};
    g->m = module_open(folder, dev ? dev : device_cpu(0), MODULE_TRAINED, true, 0, &e);
    EXPECT(g->m, "%s", e.text);
    if (!g->m) return false;
    path_join(path, sizeof path, folder, "golden.safetensors", NULL);
    bool ok = st_open(&g->st, path, &e);
    EXPECT(ok, "%s (make it with tests/golden/make_models.py)", e.text);
    arena_open(&g->step, "step", g->m->params.dev, (size_t)64 << 20);
    arena_open(&g->host, "host", NULL, (size_t)64 << 20);
    if (!ok) {
        golden_close(g);
        return false;
    }
    g->c = (Ctx){.dev = g->m->params.dev, .step = &g->step, .host = &g->host};
    const StTensor *image = find(g, "ask.image"), *rect = find(g, "ask.rect");
    g->n = st_numel(image);
    CHECK(g->n <= GOLDEN_MAX_ASKS, "%" PRId64 " asks", g->n);
    for (int64_t i = 0; i < g->n; i++) {
        char name[32];
        int32_t id, r[4];
        memcpy(&id, (const char *)image->data + 4 * i, 4);
        memcpy(r, (const char *)rect->data + 16 * i, 16);
        snprintf(name, sizeof name, "image%d", id);
        const StTensor *pixels = find(g, name);
        snprintf(name, sizeof name, "ask.text%" PRId64, i);
        g->ask[i] = (Ask){{pixels->data, (int)pixels->shape[1], (int)pixels->shape[0]}, (uint64_t)id, {r[0], r[1], r[2], r[3]},
                          st_metadata(&g->st, name)};
        CHECK(g->ask[i].query, "%s in the metadata", name);
    }
    return true;
}

void golden_close(GoldenModel *g) {
    module_close(g->m);
    st_close(&g->st);
    arena_close(&g->step);
    arena_close(&g->host);
}

void golden_begin(GoldenModel *g, bool tape) {
    arena_reset(&g->step, 0);
    arena_reset(&g->host, 0);
    g->tape = (Tape){0};
    g->c.tape = tape ? &g->tape : NULL;
    module_begin(g->m);
}

const float *golden_f32(GoldenModel *g, const char *name) {
    const StTensor *t = find(g, name);
    float *x = arena_alloc(&g->host, (size_t)st_numel(t) * sizeof *x);
    Error e = {0};
    CHECK(st_to_f32(x, t, &e), "%s", e.text);
    return x;
}

static double largest(const float *x, int64_t n) {
    double m = 0;
    for (int64_t i = 0; i < n; i++) m = fmax(m, fabs((double)x[i]));
    return m;
}

/* One report for a tensor: its worst value. */
static void compare(const float *got, const float *want, int64_t n, double bound, const char *name) {
    int64_t worst = 0;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= fabs((double)got[worst] - (double)want[worst]))) worst = i;
    if (n) EXPECT_NEAR((double)got[worst], (double)want[worst], bound, "%s[%" PRId64 "] is %g, want %g", name, worst, (double)got[worst], (double)want[worst]);
}

void golden_compare(GoldenModel *g, const Tensor *x, const char *name, double rel) {
    const float *want = golden_f32(g, name);
    int64_t n = st_numel(find(g, name));
    EXPECT(numel(x) == n, "%s has %" PRId64 " values, want %" PRId64, name, numel(x), n);
    if (numel(x) == n) compare(to_host(&g->c, x), want, n, rel * largest(want, n), name);
}

void golden_compare_grads(GoldenModel *g, double rel) {
    ParamSet *ps = &g->m->params;
    double top = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < ps->n; i++) {
            Param *p = ps->param[i];
            char name[320];
            snprintf(name, sizeof name, "grad.%s", p->name);
            float *got = arena_alloc(&g->host, (size_t)p->n * sizeof *got);
            ps->dev->download(ps->dev, got, p->t.param_grad, (size_t)p->n * sizeof *got);
            const StTensor *t = st_find(&g->st, name);
            if (!t) { /* what the loss does not depend on: declared, saved, never trained */
                EXPECT(largest(got, p->n) == 0 && p->lr_scale == 0, "%s has a gradient, the reference none", p->name);
                continue;
            }
            EXPECT(st_numel(t) == p->n, "%s has %" PRId64 " values, want %" PRId64, name, p->n, st_numel(t));
            const float *want = golden_f32(g, name);
            double own = largest(want, p->n);
            if (!pass) top = fmax(top, own);
            /* A key's bias moves all scores of a query alike: its true gradient is 0, and both sides hold rounding only. So
             * no bound is below a thousandth of what the largest gradient's would be. */
            else compare(got, want, p->n, rel * fmax(own, 1e-3 * top), name);
        }
}

void golden_train(GoldenModel *g, GoldenLoss *loss, double rel) {
    enum { UPDATES = 10 };
    const OptimConfig cfg = {.lr = 1e-3f, .weight_decay = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .schedule = SCHEDULE_CONSTANT};
    float want[UPDATES];
    CHECK(st_numel(find(g, "losses")) == UPDATES, "ten losses");
    golden_begin(g, true);
    memcpy(want, golden_f32(g, "losses"), sizeof want);
    params_zero_grad(&g->m->params);
    for (int k = 0; k < UPDATES; k++) {
        golden_begin(g, true);
        double got = loss(g), norm;
        EXPECT_NEAR(got, (double)want[k], rel * (double)want[k], "loss before update %d", k);
        tape_backward(&g->c);
        Error e = {0};
        EXPECT(optim_step(&g->m->params, &cfg, k, &norm, &e), "%s", e.text);
    }
}
