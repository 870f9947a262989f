/* test_vilt.c -- ViLT against transformers: outputs, loss, every gradient, ten updates; and its towers' counters. */
#include <math.h>

#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-vilt"

DEVICE_TEST(vilt_outputs) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    for (int tape = 0; tape < 2; tape++) {
        case_begin(&g, tape);
        case_forward(&g);
        golden_compare(&g, g.out.logits, "logits", 1e-5);
    }
    case_close(&g);
}

DEVICE_TEST(vilt_gradients) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    golden_gradients(&g, 1e-4);
    case_close(&g);
}

DEVICE_TEST(vilt_bf16) { golden_check_bf16(FOLDER); }
TEST(vilt_bf16_ten_updates) { golden_train_bf16(FOLDER); }

DEVICE_TEST(vilt_ten_updates) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    golden_train(&g, 1e-3);
    case_close(&g);
}

/* Four asks of three distinct pictures; asked again in the same update, nothing is embedded anew and the answers stay. */
TEST(vilt_image_once) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    case_begin(&g, false);
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
    case_close(&g);
}
