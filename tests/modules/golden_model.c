/* golden_model.c -- see golden_model.h. */
#include "tests/modules/golden_model.h"
#include "tests/kernels/kernels.h"

#include <math.h>

bool golden_open(ModelCase *g, const char *folder) {
    Error e = {0};
    char path[600];
    bool ok = path_join(path, sizeof path, folder, "golden.safetensors", &e) &&
              case_open(g, folder, path, dev ? dev : device_cpu(0), F32, (size_t)64 << 20, &e);
    EXPECT(ok, "%s (golden files are made with tests/golden/make_models.py)", e.text);
    return ok;
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

void golden_compare(ModelCase *g, const Tensor *x, const char *name, double rel) {
    const float *want = case_f32(g, name);
    int64_t n = st_numel(case_tensor(g, name));
    EXPECT(numel(x) == n, "%s has %" PRId64 " values, want %" PRId64, name, numel(x), n);
    if (numel(x) == n) compare(to_host(&g->c, x), want, n, rel * largest(want, n), name);
}

void golden_compare_grads(ModelCase *g, double rel) {
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
            const float *want = case_f32(g, name);
            double own = largest(want, p->n);
            if (!pass) top = fmax(top, own);
            /* A key's bias moves all scores of a query alike: its true gradient is 0, and both sides hold rounding only. So
             * no bound is below a thousandth of what the largest gradient's would be. */
            else compare(got, want, p->n, rel * fmax(own, 1e-3 * top), name);
        }
}

void golden_gradients(ModelCase *g, double rel) {
    case_begin(g, true);
    case_forward(g);
    const double want = (double)*case_f32(g, "loss");
    EXPECT_NEAR(case_loss(g), want, rel * want, "loss");
    tape_backward(&g->c);
    golden_compare_grads(g, rel);
}

void golden_train(ModelCase *g, double rel) {
    enum { UPDATES = 10 };
    const OptimConfig cfg = {.lr = 1e-3f, .weight_decay = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .schedule = SCHEDULE_CONSTANT};
    float want[UPDATES];
    CHECK(st_numel(case_tensor(g, "losses")) == UPDATES, "ten losses");
    case_begin(g, true);
    memcpy(want, case_f32(g, "losses"), sizeof want);
    params_zero_grad(&g->m->params);
    for (int k = 0; k < UPDATES; k++) {
        case_begin(g, true);
        case_forward(g);
        double got = case_loss(g), norm;
        EXPECT_NEAR(got, (double)want[k], rel * (double)want[k], "loss before update %d", k);
        tape_backward(&g->c);
        Error e = {0};
        EXPECT(optim_step(&g->m->params, &cfg, k, &norm, &e), "%s", e.text);
    }
}
