/* test_vilt.c -- ViLT against transformers: outputs, loss, every gradient, ten updates; and its towers' counters. */
#include <math.h>

#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-vilt"

/* As the reference computes it: the sum over answers, averaged over questions. */
static double loss(GoldenModel *g) {
    float weight[GOLDEN_MAX_ASKS];
    for (int64_t i = 0; i < g->n; i++) weight[i] = 1 / (float)g->n;
    Outputs out;
    module_forward(g->m, &g->c, g->ask, g->n, &out);
    return loss_value(&g->c, op_bce_loss(&g->c, out.logits, golden_f32(g, "target"), weight, 1));
}

DEVICE_TEST(vilt_outputs) {
    GoldenModel g;
    if (!golden_open(&g, FOLDER)) return;
    for (int tape = 0; tape < 2; tape++) {
        golden_begin(&g, tape);
        Outputs out;
        module_forward(g.m, &g.c, g.ask, g.n, &out);
        golden_compare(&g, out.logits, "logits", 1e-5);
    }
    golden_close(&g);
}

DEVICE_TEST(vilt_gradients) {
    GoldenModel g;
    if (!golden_open(&g, FOLDER)) return;
    golden_begin(&g, true);
    double want = (double)*golden_f32(&g, "loss");
    EXPECT_NEAR(loss(&g), want, 1e-4 * want, "loss");
    tape_backward(&g.c);
    golden_compare_grads(&g, 1e-4);
    golden_close(&g);
}

DEVICE_TEST(vilt_ten_updates) {
    GoldenModel g;
    if (!golden_open(&g, FOLDER)) return;
    golden_train(&g, loss, 1e-3);
    golden_close(&g);
}

/* Four asks of three distinct pictures; asked again in the same update, nothing is embedded anew and the answers stay. */
TEST(vilt_image_once) {
    GoldenModel g;
    if (!golden_open(&g, FOLDER)) return;
    golden_begin(&g, false);
    Outputs first, again;
    module_forward(g.m, &g.c, g.ask, g.n, &first);
    EXPECT(g.m->image_rows == 3, "%" PRId64 " image rows", g.m->image_rows);
    Ask swapped[2] = {g.ask[3], g.ask[0]};
    module_forward(g.m, &g.c, swapped, 2, &again);
    EXPECT(g.m->image_rows == 3, "%" PRId64 " image rows after the second forward", g.m->image_rows);
    const float *a = to_host(&g.c, first.logits), *b = to_host(&g.c, again.logits);
    int64_t V = last_dim(first.logits);
    for (int64_t v = 0; v < V; v++) {
        EXPECT_NEAR((double)b[v], (double)a[3 * V + v], 1e-5, "answer %" PRId64 " of ask 3", v);
        EXPECT_NEAR((double)b[V + v], (double)a[v], 1e-5, "answer %" PRId64 " of ask 0", v);
    }
    golden_close(&g);
}
