/* test_op.c -- every op through the tape: gradients against central differences, the same values without a tape.
 *
 * The kernels themselves have their own tests; here it is the shapes, the saved tensors and the accumulation that
 * could be wrong. Shapes are small and pairwise different, so that a swapped pair of sizes cannot hide.
 */
#include "tests/engine/rig.h"

#define L(...) {COUNT_DIMS(__VA_ARGS__), {__VA_ARGS__}, 0, 0}
#define LR(lo, hi, ...) {COUNT_DIMS(__VA_ARGS__), {__VA_ARGS__}, lo, hi}
#define COUNT_DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define GRAPH(name) static Tensor *name(Ctx *c, Tensor *const *x)

/* ---- linear, elementwise -------------------------------------------------------------------------- */

GRAPH(linear_bias) { return op_linear(c, x[0], x[1], x[2]); }
GRAPH(linear_plain) { return op_linear(c, x[0], x[1], NULL); }
GRAPH(linear_lora) { return op_linear_lora(c, x[0], x[1], x[2], x[3], x[4]); }
GRAPH(gelu) { return op_gelu(c, x[0]); }
GRAPH(gelu_tanh) { return op_gelu_tanh(c, x[0]); }
GRAPH(mlp_gelu) { return op_mlp(c, ACT_GELU, x[0], x[1], x[2], x[3], x[4]); }
GRAPH(mlp_gelu_tanh) { return op_mlp(c, ACT_GELU_TANH, x[0], x[1], x[2], x[3], x[4]); }
GRAPH(mlp_residual) { return op_add(c, x[0], op_mlp(c, ACT_QUICK_GELU, x[0], x[1], NULL, x[2], NULL)); }
GRAPH(quick_gelu) { return op_quick_gelu(c, x[0]); }
GRAPH(tanh_) { return op_tanh(c, x[0]); }
GRAPH(sigmoid_) { return op_sigmoid(c, x[0]); }
GRAPH(elu1) { return op_elu1(c, x[0]); }
GRAPH(add) { return op_add(c, x[0], x[1]); }
GRAPH(mul) { return op_mul(c, x[0], x[1]); }
GRAPH(add_rows) { return op_add_rows(c, x[0], x[1]); }
GRAPH(mul_tokens) { return op_mul_tokens(c, x[0], x[1]); }

TEST(op_elementwise) {
    static const GraphCase cases[] = {
        {"linear", linear_bias, .nleaves = 3, .leaf = {L(2, 3, 5), L(4, 5), L(4)}},
        {"linear of one row", linear_bias, .nleaves = 3, .leaf = {L(1, 1), L(7, 1), L(7)}},
        {"linear without bias", linear_plain, .nleaves = 2, .leaf = {L(6, 5), L(3, 5)}},
        {"linear with an adapter", linear_lora, .nleaves = 5, .leaf = {L(2, 3, 5), L(4, 5), L(4), L(2, 5), L(4, 2)}},
        {"three in one with adapters", linear_lora, .nleaves = 5, .leaf = {L(7, 5), L(12, 5), L(12), L(6, 5), L(12, 2)}},
        {"gelu", gelu, .nleaves = 1, .leaf = {LR(-3, 3, 3, 7)}},
        {"gelu_tanh", gelu_tanh, .nleaves = 1, .leaf = {LR(-3, 3, 3, 7)}},
        {"mlp", mlp_gelu, .nleaves = 5, .leaf = {L(2, 3, 5), L(7, 5), L(7), L(4, 7), L(4)}},
        {"mlp of gelu_tanh", mlp_gelu_tanh, .nleaves = 5, .leaf = {L(2, 3, 5), L(7, 5), L(7), L(4, 7), L(4)}},
        {"mlp, its input used", mlp_residual, .nleaves = 3, .leaf = {L(2, 3, 5), L(7, 5), L(5, 7)}},
        {"quick_gelu", quick_gelu, .nleaves = 1, .leaf = {LR(-3, 3, 3, 7)}},
        {"tanh", tanh_, .nleaves = 1, .leaf = {L(3, 7)}},
        {"sigmoid", sigmoid_, .nleaves = 1, .leaf = {LR(-3, 3, 3, 7)}},
        {"elu1 above 0", elu1, .nleaves = 1, .leaf = {LR(0.1f, 2, 3, 7)}},
        {"elu1 below 0", elu1, .nleaves = 1, .leaf = {LR(-2, -0.1f, 3, 7)}},
        {"add", add, .nleaves = 2, .leaf = {L(2, 3, 4), L(2, 3, 4)}},
        {"add of other shapes", add, .nleaves = 2, .leaf = {L(2, 3, 4), L(6, 4)}},
        {"mul", mul, .nleaves = 2, .leaf = {L(5, 3), L(5, 3)}},
        {"add_rows", add_rows, .nleaves = 2, .leaf = {L(2, 3, 4), L(3, 4)}},
        {"add_rows, one row", add_rows, .nleaves = 2, .leaf = {L(2, 3, 4), L(1, 4)}},
        {"mul_tokens", mul_tokens, .nleaves = 2, .leaf = {L(2, 3, 5), L(2, 5)}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) graph_check(&cases[i]);
}

/* Dropout draws anew at each call and nothing without a tape: its own check. */
TEST(op_dropout) {
    Rig r;
    rig_open(&r);
    Tensor *x = RANDOM(&r.ctx, 1, true, 7, 11);
    float dy[77];
    random_fill(dy, 77, 2, 0.5f, 1);
    EXPECT(op_dropout(&r.ctx, x, 0) == x, "dropout 0 is not the tensor itself");
    Tensor *y = op_dropout(&r.ctx, x, 0.4f), *z = op_dropout(&r.ctx, x, 0.4f);
    EXPECT(memcmp(y->data, z->data, 77 * 4), "two dropouts drew the same numbers");
    const float *in = x->data, *out = y->data;
    seed_gradient(&r.ctx, y, dy);
    tape_backward(&r.ctx);
    const float *dx = x->grad->data;
    int kept = 0;
    for (int i = 0; i < 77; i++) {
        kept += out[i] != 0;
        EXPECT_NEAR(out[i], out[i] != 0 ? (double)in[i] / 0.6 : 0, 1e-6, "value %d", i);
        EXPECT_NEAR(dx[i], out[i] != 0 ? (double)dy[i] / 0.6 : 0, 1e-6, "gradient %d", i);
    }
    EXPECT(kept > 25 && kept < 67, "%d of 77 kept at p = 0.4", kept);
    rig_begin(&r, false);
    x = RANDOM(&r.ctx, 1, true, 7, 11);
    EXPECT(op_dropout(&r.ctx, x, 0.4f) == x, "dropout without a tape");
    rig_close(&r);
}

/* ---- norms, softmax, attention -------------------------------------------------------------------- */

GRAPH(layernorm) { return op_layernorm(c, x[0], x[1], x[2], 1e-5f); }
/* What is added comes of a linear layer, as in a block: its memory becomes the sum's. */
GRAPH(add_layernorm) { return op_add_layernorm(c, &(Tensor *){0}, x[0], op_linear(c, x[1], x[2], NULL), x[3], x[4], 1e-5f); }
GRAPH(add_layernorm_both) { /* the sum goes on, too */
    Tensor *sum, *y = op_add_layernorm(c, &sum, x[0], op_linear(c, x[1], x[2], NULL), x[3], x[4], 1e-5f);
    return op_add(c, sum, y);
}
GRAPH(l2norm) { return op_l2norm(c, x[0], 1e-6f); }
GRAPH(softmax) { return op_softmax(c, x[0]); }
GRAPH(self_attention) { return op_self_attention(c, x[0], 2, NULL, false); }
GRAPH(causal_attention) { return op_self_attention(c, x[0], 2, NULL, true); }
GRAPH(masked_attention) {
    static const uint8_t mask[2][4] = {{1, 1, 0, 0}, {1, 0, 1, 1}};
    return op_self_attention(c, x[0], 3, ctx_upload(c, mask, sizeof mask), false);
}
GRAPH(cross_attention) { return op_cross_attention(c, x[0], x[1], 2, NULL); }
GRAPH(masked_cross) {
    static const uint8_t mask[2][3] = {{1, 1, 0},
                                       {0, 0, 0}}; /* the second sees nothing: zeros, no gradient */
    return op_cross_attention(c, x[0], x[1], 2, ctx_upload(c, mask, sizeof mask));
}

TEST(op_norms_and_attention) {
    static const GraphCase cases[] = {
        {"layernorm", layernorm, .nleaves = 3, .leaf = {L(2, 3, 6), L(6), L(6)}, .bound = 2e-3},
        {"add_layernorm", add_layernorm, .nleaves = 5, .leaf = {L(2, 3, 6), L(2, 3, 4), L(6, 4), L(6), L(6)}, .bound = 2e-3},
        {"add_layernorm, the sum used", add_layernorm_both, .nleaves = 5, .leaf = {L(2, 3, 6), L(2, 3, 4), L(6, 4), L(6), L(6)}, .bound = 2e-3},
        {"l2norm", l2norm, .nleaves = 1, .leaf = {L(4, 6)}},
        {"softmax", softmax, .nleaves = 1, .leaf = {LR(-2, 2, 4, 5)}},
        {"self attention", self_attention, .nleaves = 1, .leaf = {L(2, 3, 12)}, .bound = 1e-3},
        {"causal attention", causal_attention, .nleaves = 1, .leaf = {L(1, 4, 12)}, .bound = 1e-3},
        {"masked attention", masked_attention, .nleaves = 1, .leaf = {L(2, 4, 18)}, .bound = 1e-3},
        {"cross attention", cross_attention, .nleaves = 2, .leaf = {L(2, 4, 6), L(2, 3, 12)}, .bound = 1e-3},
        {"cross attention, masked", masked_cross, .nleaves = 2, .leaf = {L(2, 2, 4), L(2, 3, 8)},
         .bound = 1e-3},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) graph_check(&cases[i]);
}

/* ---- rows ----------------------------------------------------------------------------------------- */

GRAPH(gather) { return op_gather(c, x[0], (int32_t[]){2, 0, 2, 2, 1}, 5); }
GRAPH(gather_none) { return op_concat_rows(c, (Tensor *[]){x[0], op_gather(c, x[0], NULL, 0)}, 2); }
GRAPH(gather_blocks) { return op_gather(c, x[0], (int32_t[]){1, 1, 0}, 3); }
GRAPH(concat_rows) { return op_concat_rows(c, (Tensor *[]){x[0], x[1], x[2]}, 3); }
GRAPH(concat_tokens) { return op_concat_tokens(c, (Tensor *[]){x[0], x[1], x[2]}, 3); }
GRAPH(slice_tokens) { return op_slice_tokens(c, x[0], 1, 2); }
GRAPH(token) { return op_token(c, x[0], 2); }
GRAPH(mean_tokens) { return op_mean_tokens(c, x[0], NULL); }
GRAPH(mean_masked) {
    static const uint8_t mask[2][3] = {{1, 0, 1}, {0, 0, 0}};
    return op_mean_tokens(c, x[0], ctx_upload(c, mask, sizeof mask));
}
GRAPH(interp_rows) {
    static const int32_t idx[3][4] = {{0, 1, 2, 3}, {3, 3, 3, 3}, {1, 0, 1, 2}};
    static const float w[3][4] = {{0.1f, 0.2f, 0.3f, 0.4f}, {0.25f, 0.25f, 0.5f, 0}, {1, -1, 0.5f, 0}};
    return op_interp_rows(c, x[0], idx[0], w[0], 3);
}
GRAPH(pair_scores) {
    return op_pair_scores(c, x[0], x[1], (int32_t[]){0, 1, 1, 0}, (int32_t[]){2, 0, 0, 1}, 4);
}
GRAPH(reshape) { return op_mul(c, RESHAPE(c, x[0], 4, 3), x[1]); }

TEST(op_rows) {
    static const GraphCase cases[] = {
        {"gather", gather, .nleaves = 1, .leaf = {L(3, 4)}},
        {"gather of nothing", gather_none, .nleaves = 1, .leaf = {L(3, 4)}},
        {"gather of blocks", gather_blocks, .nleaves = 1, .leaf = {L(2, 3, 4)}},
        {"concat_rows", concat_rows, .nleaves = 3, .leaf = {L(1, 4), L(3, 4), L(2, 4)}},
        {"concat_tokens", concat_tokens, .nleaves = 3, .leaf = {L(2, 1, 4), L(2, 3, 4), L(2, 2, 4)}},
        {"slice_tokens", slice_tokens, .nleaves = 1, .leaf = {L(2, 4, 3)}},
        {"token", token, .nleaves = 1, .leaf = {L(2, 4, 3)}},
        {"mean_tokens", mean_tokens, .nleaves = 1, .leaf = {L(2, 3, 5)}},
        {"mean_tokens, masked", mean_masked, .nleaves = 1, .leaf = {L(2, 3, 5)}},
        {"interp_rows", interp_rows, .nleaves = 1, .leaf = {L(4, 5)}},
        {"pair_scores", pair_scores, .nleaves = 2, .leaf = {L(2, 3, 5), L(3, 5)}},
        {"reshape", reshape, .nleaves = 2, .leaf = {L(2, 6), L(4, 3)}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) graph_check(&cases[i]);
}

/* ---- losses --------------------------------------------------------------------------------------- */

static const float row_weight[3] = {0.5f, 0, 1.5f};
static const float soft[3][4] = {{0, 1, 0.3f, 0.9f}, {0.5f, 0.5f, 0, 1}, {1, 0, 0, 0.2f}};
GRAPH(bce) { return op_bce_loss(c, x[0], soft[0], row_weight, 2); }
GRAPH(ce) { return op_ce_loss(c, x[0], (int32_t[]){3, 1, 0}, row_weight, 0.1f); }
GRAPH(ce_unlabelled) { return op_ce_loss(c, x[0], (int32_t[]){3, 1, -1}, (float[]){1, 2, 1}, 0); }
GRAPH(kl) { return op_kl_loss(c, x[0], soft[0], row_weight, 3); }
GRAPH(focal) {
    static const float w[3][4] = {{1, 0, 1, 2}, {0, 0, 0, 0}, {1, 0.5f, 1, 1}};
    return op_focal_loss(c, x[0], soft[0], w[0], 0.25f, 2);
}
static const float boxes[3][4] = {
    {0.5f, 0.5f, 0.4f, 0.4f}, {0.2f, 0.3f, 0.1f, 0.2f}, {0.9f, 0.9f, 0.1f, 0.15f}};
GRAPH(box) { return op_box_loss(c, x[0], boxes[0], row_weight, 0, 2, false); }
/* The distance has corners where box and target agree in a value: values here are off by at least the step. */
GRAPH(box_l1) { return op_box_loss(c, x[0], boxes[0], row_weight, 1, 0, false); }
GRAPH(box_corners) { return op_box_loss(c, x[0], boxes[0], (float[]){1, 0, 0}, 1, 0.5f, true); }

TEST(op_losses) {
    static const GraphCase cases[] = {
        {"bce", bce, true, 1, {LR(-3, 3, 3, 4)}, 0},
        {"ce", ce, true, 1, {LR(-3, 3, 3, 4)}, 0},
        {"ce without label", ce_unlabelled, true, 1, {LR(-3, 3, 3, 4)}, 0},
        {"kl", kl, true, 1, {LR(-3, 3, 3, 4)}, 0},
        {"focal", focal, true, 1, {LR(-3, 3, 3, 4)}, 0},
        {"box giou", box, true, 1, {LR(0.32f, 0.36f, 3, 4)}, 5e-3},
        {"box l1", box_l1, true, 1, {LR(0.6f, 0.8f, 3, 4)}, 1e-3},
        {"box corners", box_corners, true, 1, {LR(0.7f, 0.78f, 3, 4)}, 5e-3},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) graph_check(&cases[i]);
}

TEST(op_loss_value) {
    Rig r;
    rig_open(&r);
    Tensor *x = RANDOM(&r.ctx, 1, true, 2, 3);
    Tensor *rows = op_ce_loss(&r.ctx, x, (int32_t[]){0, 2}, (float[]){0.25f, 0.75f}, 0);
    const float *p = rows->data;
    EXPECT(numel(rows) == 2 && loss_value(&r.ctx, rows) == (double)p[0] + (double)p[1], "rows %g %g",
           (double)p[0], (double)p[1]);
    EXPECT(!memcmp(to_host(&r.ctx, x), x->data, 24), "to_host");
    rig_close(&r);
}
