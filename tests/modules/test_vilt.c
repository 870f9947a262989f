/* test_vilt.c -- ViLT against transformers: outputs, loss, every gradient, ten updates; and its towers' counters. */
#include <math.h>

#include "modules/answer.h"
#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-vilt"

DEVICE_TEST(vilt_outputs) { golden_check_outputs(FOLDER, 1e-5); }

DEVICE_TEST(vilt_gradients) { golden_check_gradients(FOLDER, 1e-4); }

DEVICE_TEST(vilt_bf16) { golden_check_bf16(FOLDER); }
TEST(vilt_bf16_ten_updates) { golden_train_bf16(FOLDER); }

DEVICE_TEST(vilt_ten_updates) { golden_check_updates(FOLDER, 1e-3); }

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

/* ---- gelu's tanh form ------------------------------------------------------------------------------ */

#define TANH "tests/golden/tiny-vilt-tanh"

DEVICE_TEST(vilt_tanh_outputs) { golden_check_outputs(TANH, 1e-5); }
DEVICE_TEST(vilt_tanh_gradients) { golden_check_gradients(TANH, 1e-4); }
DEVICE_TEST(vilt_tanh_bf16) { golden_check_bf16(TANH); }
TEST(vilt_tanh_ten_updates) { golden_check_updates(TANH, 1e-3); }

TEST(vilt_activation_names) {
    static const struct {
        const char *name;
        Activation act;
    } rows[] = {{"gelu", ACT_GELU},
                {"gelu_new", ACT_GELU_TANH},
                {"gelu_pytorch_tanh", ACT_GELU_TANH},
                {"quick_gelu", ACT_QUICK_GELU}};
    for (int i = 0; i < COUNT_OF(rows); i++) {
        Module m = {.folder = "a", .config = json_pack("{s:s}", "hidden_act", rows[i].name)};
        Activation act;
        Error e = {0};
        EXPECT(config_activation(&m, "hidden_act", "gelu", &act, &e) && act == rows[i].act, "%s: %s",
               rows[i].name, e.text);
        json_decref(m.config);
    }
}

/* ---- two pictures --------------------------------------------------------------------------------- */

#define NLVR2 "tests/golden/tiny-nlvr2"

DEVICE_TEST(nlvr2_outputs) {
    ModelCase g;
    if (!golden_open(&g, NLVR2)) return;
    EXPECT(g.m->images == 2 && g.m->nlabels == 2 && !strcmp(g.m->label[1], "True") && !module_multi_label(g.m), "%d images, %d labels", g.m->images,
           g.m->nlabels);
    for (int tape = 0; tape < 2; tape++) {
        case_begin(&g, tape);
        case_forward(&g);
        golden_compare(&g, g.out.logits, "logits", 1e-5);
    }
    /* Three distinct first pictures and four second ones, one of which also came first. */
    EXPECT(g.m->image_rows == 2 * 7, "%" PRId64 " image rows", g.m->image_rows);
    case_close(&g);
}

DEVICE_TEST(nlvr2_gradients) { golden_check_gradients(NLVR2, 1e-4); }

DEVICE_TEST(nlvr2_ten_updates) { golden_check_updates(NLVR2, 1e-3); }

/* A program's steps are about one picture. */
TEST(nlvr2_is_no_step) {
    Error e = {0};
    EXPECT(!module_open_for("VQA", NLVR2, device_cpu(0), F32, MODULE_FROZEN, &e) && strstr(e.text, "questions about 2 pictures") && e.status == FAIL_MODEL, "%s",
           e.text);
    Module *m = module_open_end_to_end(NLVR2, device_cpu(0), F32, &e);
    EXPECT(m, "%s", e.text);
    module_close(m);
    EXPECT(!module_open_end_to_end("tests/golden/tiny-owlvit", device_cpu(0), F32, &e) && strstr(e.text, "LOC"), "%s", e.text);
}
