/* golden_model.c -- see golden_model.h. */
#include "tests/modules/golden_model.h"
#include "tests/engine/rig.h"
#include "tests/kernels/kernels.h"

#include <math.h>

static bool open_in(ModelCase *g, const char *folder, DType precision) {
    Error e = {0};
    char path[600];
    bool ok = path_join(path, sizeof path, folder, "golden.safetensors", &e) &&
              case_open(g, folder, path, dev ? dev : device_cpu(0), precision, (size_t)64 << 20, &e);
    EXPECT(ok, "%s (golden files are made with tests/golden/make_models.py)", e.text);
    return ok;
}

bool golden_open(ModelCase *g, const char *folder) { return open_in(g, folder, F32); }

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

void golden_check_outputs(const char *folder, double rel) {
    ModelCase g;
    if (!golden_open(&g, folder)) return;
    for (int tape = 0; tape < 2; tape++) {
        case_begin(&g, tape);
        case_forward(&g);
        golden_compare(&g, g.out.logits, "logits", rel);
        if (st_find(&g.st, "boxes")) golden_compare(&g, g.out.boxes, "boxes", rel);
    }
    case_close(&g);
}

void golden_check_gradients(const char *folder, double rel) {
    ModelCase g;
    if (!golden_open(&g, folder)) return;
    case_begin(&g, true);
    case_forward(&g);
    const double want = (double)*case_f32(&g, "loss");
    EXPECT_NEAR(case_loss(&g), want, rel * want, "loss");
    tape_backward(&g.c);
    golden_compare_grads(&g, rel);
    case_close(&g);
}

/* Ten updates; each loss within `rel` of the golden one. */
static void train(ModelCase *g, double rel) {
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

void golden_check_updates(const char *folder, double rel) {
    ModelCase g;
    if (!golden_open(&g, folder)) return;
    train(&g, rel);
    case_close(&g);
}

/* ---- bf16 ----------------------------------------------------------------------------------------- */

/* The outputs, and what their fixed multiples' gradient is, in host memory: logits, boxes or NULL, the flat gradient buffer. */
static void outputs_and_gradients(ModelCase *g, const float *x[3]) {
    const ParamSet *ps = &g->m->params;
    Outputs *out = &g->out;
    case_begin(g, true);
    case_forward(g);
    x[0] = to_host(&g->c, out->logits);
    x[1] = out->boxes ? to_host(&g->c, out->boxes) : NULL;
    seed_gradient(&g->c, out->logits, case_f32(g, "bf16.times.logits"));
    if (out->boxes) seed_gradient(&g->c, out->boxes, case_f32(g, "bf16.times.boxes"));
    tape_backward(&g->c);
    float *grad = arena_alloc(&g->host, (size_t)ps->total * sizeof *grad);
    ps->dev->download(ps->dev, grad, ps->grad, (size_t)ps->total * sizeof *grad);
    x[2] = grad;
}

static double norm_of(const float *x, const float *minus, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += pow((double)x[i] - (minus ? (double)minus[i] : 0), 2);
    return sqrt(sum);
}

/* What PyTorch's is off by; 0 when the outputs do not depend on it. */
static double peer(ModelCase *g, const char *prefix, const char *name) {
    char text[330];
    snprintf(text, sizeof text, "bf16.%s%s", prefix, name);
    return st_find(&g->st, text) ? (double)*case_f32(g, text) : 0;
}

/* A key's bias moves all scores of a query alike. Its true gradient is 0; what is there is the rounding of what adds up in it,
 * and more of it where, as in ours, a row of attention is not rounded as a whole. It is measured by the gradient of the key's
 * weight, which adds up the same. */
static double key_bias_bound(const ParamSet *ps, const Param *bias, const float *want) {
    char name[320];
    const size_t n = strlen(bias->name) - strlen("bias");
    snprintf(name, sizeof name, "%.*sweight", (int)n, bias->name);
    const Param *weight = param_find(ps, name);
    CHECK(!strcmp(bias->name + n, "bias") && weight, "%s has no gradient", bias->name);
    return EPS16 * norm_of(want + weight->at, NULL, weight->n);
}

static void compare_bf16(ModelCase *g, const float *const got[3], const float *const want[3]) {
    static const char *const outputs[] = {"logits", "boxes"};
    const ParamSet *ps = &g->m->params;
    for (int k = 0; k < 2 && want[k]; k++)
        EXPECT_NEAR(norm_of(got[k], want[k], st_numel(case_tensor(g, outputs[k]))), 0, 2 * peer(g, "", outputs[k]),
                    "%s in bf16: distance", outputs[k]);
    double share = 0; /* PyTorch's error over the gradient, in the mean: it counts where a few values are near by luck */
    int counted = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < ps->n; i++) {
            const Param *p = ps->param[i];
            const double size = norm_of(want[2] + p->at, NULL, p->n), its = peer(g, "grad.", p->name);
            const bool nothing = size < 1e-3 * its;
            if (pass)
                EXPECT_NEAR(norm_of(got[2] + p->at, want[2] + p->at, p->n), 0,
                            nothing ? key_bias_bound(ps, p, want[2]) : 2 * fmax(its, share / counted * size),
                            "gradient of %s in bf16: distance", p->name);
            else if (its > 0 && !nothing)
                share += its / size, counted++;
        }
}

void golden_check_bf16(const char *folder) {
    ModelCase f32, bf16;
    Device *const under_test = dev;
    dev = NULL;
    const bool open = open_in(&f32, folder, F32);
    dev = under_test;
    if (!open || !open_in(&bf16, folder, BF16)) return;
    const float *want[3], *got[3];
    outputs_and_gradients(&f32, want);
    outputs_and_gradients(&bf16, got);
    compare_bf16(&bf16, got, want);
    case_close(&f32);
    case_close(&bf16);
}

void golden_train_bf16(const char *folder) {
    ModelCase g;
    if (!open_in(&g, folder, BF16)) return;
    const float *f32 = case_f32(&g, "losses"), *bf16 = case_f32(&g, "bf16.losses");
    double furthest = 0;
    for (int k = 0; k < st_numel(case_tensor(&g, "losses")); k++)
        furthest = fmax(furthest, fabs((double)bf16[k] / (double)f32[k] - 1));
    train(&g, 2 * furthest);
    case_close(&g);
}
