/* test_lora.c -- adapters: nothing changes at the start, they alone learn, merged weights compute the same. */
#include "engine/optim.h"
#include "modules/module.h"
#include "tests/engine/child.h"
#include "tests/test.h"

#include <math.h>

typedef struct Net {
    Module *m;
    Arena step, host;
    Tape tape;
    Ctx c;
} Net;

static void net_open(Net *n, const char *folder, DType type, ModuleUse use, bool weights) {
    Error e = {0};
    Device *dev = device_cpu(2);
    n->m = module_open(folder, dev, type, use, weights, 3, &e);
    CHECK(n->m, "%s", e.text);
    arena_open(&n->step, "step", dev, 64 << 20);
    arena_open(&n->host, "host", NULL, 8 << 20);
}

static void net_close(Net *n) {
    module_close(n->m);
    arena_close(&n->step);
    arena_close(&n->host);
}

static const int32_t label[] = {1, 2};
static const float weight[] = {0.5f, 0.5f};

/* The logits of two asks; training also runs the backward pass. */
static const Tensor *run(Net *n, bool training) {
    static uint8_t rgb[40 * 30 * 3];
    for (int i = 0; i < COUNT_OF(rgb); i++) rgb[i] = (uint8_t)(i * 37);
    const Ask ask[] = {
        {.image = {rgb, 40, 30}, .image_id = 1, .rect = {0, 0, 40, 30}, .query = "is it red"},
        {.image = {rgb, 40, 30}, .image_id = 1, .rect = {3, 4, 30, 30}, .query = "how many dogs are there"}};
    arena_reset(&n->step, 0);
    arena_reset(&n->host, 0);
    n->tape = (Tape){0};
    n->c = (Ctx){
        .dev = n->m->params.dev, .step = &n->step, .host = &n->host, .tape = training ? &n->tape : NULL};
    Outputs out;
    module_begin(n->m);
    module_forward(n->m, &n->c, ask, 2, &out);
    if (training) {
        op_ce_loss(&n->c, RESHAPE(&n->c, out.logits, 1, numel(out.logits)), label, weight, 0); /* touches all */
        tape_backward(&n->c);
    }
    return out.logits;
}

static void update(Net *n, int64_t step, float lr) {
    const OptimConfig oc = {
        .lr = lr, .beta1 = 0.9f, .beta2 = 0.98f, .eps = 1e-12f, .schedule = SCHEDULE_CONSTANT};
    Error e = {0};
    double norm;
    run(n, true);
    EXPECT(optim_step(module_learns(n->m), &oc, step, &norm, &e), "%s", e.text);
}

static float *copy_of(const void *p, int64_t n) {
    float *x = xcalloc((size_t)n, sizeof *x);
    memcpy(x, p, (size_t)n * sizeof *x);
    return x;
}

static double most_apart(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

static const char tiny[] = "configs/models/tiny-vilt";

TEST(lora_starts_as_the_network) {
    Net plain = {0}, adapted = {0};
    net_open(&plain, tiny, F32, MODULE_TRAINED, false);
    net_open(&adapted, tiny, F32, (ModuleUse){true, 4, 0}, false);
    float *want = copy_of(run(&plain, false)->data, plain.m->nlabels * 2);
    const Tensor *got = run(&adapted, false);
    EXPECT(!memcmp(want, got->data, (size_t)numel(got) * 4), "B is 0, and yet the logits differ by %g",
           most_apart(want, got->data, numel(got)));
    const ParamSet *a = &adapted.m->lora.params, *ps = &adapted.m->params;
    EXPECT(!ps->grad && !ps->m, "a network that does not learn has gradients and moments");
    int64_t expected = 0; /* r (in + out) for each of the six matrices of each block */
    for (int i = 0; i < ps->n; i++) {
        const Param *p = ps->param[i];
        if (strstr(p->name, "encoder.layer.") && p->kind == PARAM_WEIGHT)
            expected += 4 * (p->t.shape[0] + p->t.shape[1]);
    }
    EXPECT(params_count(a) == expected, "%" PRId64 " values in adapters, not %" PRId64, params_count(a),
           expected);
    EXPECT(param_find(a, "vilt.encoder.layer.0.attention.attention.query.lora_A.weight"),
           "the name is not PEFT's");
    free(want);
    net_close(&plain);
    net_close(&adapted);
}

/* The first step of Adam moves a value by its learning rate: alpha/r times the run's for B. A, whose gradient is 0 while B
 * is, moves from the second on. */
TEST(lora_alone_learns) {
    Net n = {0};
    net_open(&n, tiny, F32, (ModuleUse){true, 4, 16}, false);
    ParamSet *ps = &n.m->params, *a = &n.m->lora.params;
    float *before = copy_of(ps->value, ps->total), *start = copy_of(a->value, a->total);
    update(&n, 0, 1e-3f);
    for (int i = 0; i < a->n; i++) {
        const Param *p = a->param[i];
        const bool is_b = strstr(p->name, "lora_B") != NULL;
        const double moved = most_apart(start + p->at, a->value + p->at, p->n);
        EXPECT(is_b ? fabs(moved - 4e-3) < 4e-6 : moved == 0, "%s moves by %g", p->name, moved);
    }
    update(&n, 1, 1e-3f);
    for (int i = 0; i < a->n; i++) {
        const Param *p = a->param[i];
        EXPECT(most_apart(start + p->at, a->value + p->at, p->n) > 0, "%s does not learn", p->name);
    }
    EXPECT(!memcmp(before, ps->value, (size_t)ps->total * 4), "the network itself has changed");
    free(before);
    free(start);
    net_close(&n);
}

TEST(lora_merges) {
    char folder[300];
    snprintf(folder, sizeof folder, "%s/merged", test_dir());
    Net n = {0}, merged = {0};
    net_open(&n, tiny, F32, (ModuleUse){true, 4, 0}, false);
    const int64_t values = 2 * n.m->nlabels;
    float *start = copy_of(run(&n, false)->data, values);
    for (int step = 0; step < 5; step++) update(&n, step, 1e-2f);
    float *want = copy_of(run(&n, false)->data, values),
          *before = copy_of(n.m->params.value, n.m->params.total);
    Error e = {0};
    EXPECT(module_save(n.m, folder, &e), "%s", e.text);
    EXPECT(!memcmp(before, n.m->params.value, (size_t)n.m->params.total * 4),
           "saving has changed the network");
    EXPECT(!memcmp(want, run(&n, false)->data, (size_t)values * 4), "saving has changed what it computes");
    net_open(&merged, folder, F32, MODULE_FROZEN, true);
    const float *got = run(&merged, false)->data;
    const double learnt = most_apart(start, want, values), off = most_apart(want, got, values);
    EXPECT(learnt > 0.1, "it has hardly learnt: logits moved by %g", learnt);
    /* x (w + B A)^T against x w^T + (x A^T) B^T: 14 products on the way to the logits, each of which may round its result
     * the other way. */
    EXPECT(off < 14 * 1.2e-7 * fmax(1, learnt), "merged: logits off by %g", off);
    free(start);
    free(want);
    free(before);
    net_close(&n);
    net_close(&merged);
}

/* Each architecture: saved, opened without adapters, the same answers; every adapter gets a gradient, when the logits
 * have one. */
static void check_architecture(const char *from, bool gradients) {
    char folder[300];
    snprintf(folder, sizeof folder, "%s/merged-other", test_dir());
    Net n = {0}, merged = {0};
    net_open(&n, from, F32, (ModuleUse){true, 2, 0}, true);
    ParamSet *a = &n.m->lora.params;
    for (int i = 0; i < a->n; i++) /* B is not 0 */
        for (int64_t k = 0; k < a->param[i]->n; k++)
            a->value[a->param[i]->at + k] = 0.05f * sinf((float)(k * 7 + i));
    params_changed(a);
    const int64_t values = numel(run(&n, false));
    float *want = copy_of(run(&n, false)->data, values);
    run(&n, true);
    for (int i = 0; gradients && i < a->n; i++) {
        double sum = 0;
        for (int64_t k = 0; k < a->param[i]->n; k++) sum += fabs((double)a->grad[a->param[i]->at + k]);
        EXPECT(sum > 0, "%s: %s gets no gradient", from, a->param[i]->name);
    }
    Error e = {0};
    EXPECT(module_save(n.m, folder, &e), "%s", e.text);
    net_open(&merged, folder, F32, MODULE_FROZEN, true);
    const float *got = run(&merged, false)->data;
    double size = 0;
    for (int64_t i = 0; i < values; i++) size = fmax(size, fabs((double)want[i]));
    EXPECT(most_apart(want, got, values) < 30 * 1.2e-7 * size, "%s, merged: off by %g of %g", from,
           most_apart(want, got, values), size);
    free(want);
    net_close(&n);
    net_close(&merged);
}

TEST(lora_blip) { check_architecture("tests/golden/tiny-blip", false); } /* it learns by a loss of its own */
TEST(lora_clip) { check_architecture("tests/golden/tiny-clip", true); }
TEST(lora_owlvit) { check_architecture("tests/golden/tiny-owlvit", true); }

TEST(lora_bf16) {
    Net a = {0}, b = {0};
    net_open(&a, tiny, F32, (ModuleUse){true, 4, 0}, false);
    net_open(&b, tiny, BF16, (ModuleUse){true, 4, 0}, false);
    for (int step = 0; step < 3; step++) update(&a, step, 1e-3f), update(&b, step, 1e-3f);
    const ParamSet *p = &a.m->lora.params, *q = &b.m->lora.params;
    double dot = 0, pp = 0, qq = 0; /* directions of B's change; values of A are dominated by their start */
    for (int i = 0; i < p->n; i++) {
        if (!strstr(p->param[i]->name, "lora_B")) continue;
        for (int64_t k = p->param[i]->at; k < p->param[i]->at + p->param[i]->n; k++) {
            dot += (double)p->value[k] * (double)q->value[k];
            pp += (double)p->value[k] * (double)p->value[k];
            qq += (double)q->value[k] * (double)q->value[k];
        }
    }
    /* Adam moves by the sign, which is a coin's where a gradient is below bf16's noise: 1 in 100 lost makes 0.98. */
    EXPECT(dot > 0.98 * sqrt(pp * qq), "the cosine of what f32 and bf16 learn is %g", dot / sqrt(pp * qq));
    net_close(&a);
    net_close(&b);
}
