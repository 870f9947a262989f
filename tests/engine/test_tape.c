/* test_tape.c -- gradient buffers: taken over, shared, copied when somebody else still reads them, and reused.
 *
 * An add hands its gradient's buffer to both inputs; what goes wrong there shows as one branch's gradient
 * leaking into another's. Every graph is compared with central differences of its forward.
 */
#include "tests/engine/rig.h"

#define L(...) {(int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}, 0, 0}
#define GRAPH(name) static Tensor *name(Ctx *c, Tensor *const *x)

GRAPH(add_itself) { return op_add(c, x[0], x[0]); }
GRAPH(mul_itself) { return op_mul(c, x[0], x[0]); }
GRAPH(add_twice) { return op_add(c, op_add(c, x[0], x[1]), x[0]); }
GRAPH(residual_chain) {
    Tensor *h = x[0];
    for (int i = 0; i < 4; i++) h = op_add(c, h, op_tanh(c, op_linear(c, h, x[1], x[2])));
    return h;
}
/* The order of the operands decides who takes the buffer first. */
GRAPH(residual_swapped) {
    Tensor *h = x[0];
    for (int i = 0; i < 4; i++) h = op_add(c, op_tanh(c, op_linear(c, h, x[1], x[2])), h);
    return h;
}
GRAPH(three_readers) {
    Tensor *h = op_tanh(c, x[0]);
    return op_add(c, op_add(c, op_gelu(c, h), op_mul(c, h, x[1])), h);
}
/* The skip is read again, later and earlier, while the add's buffer is shared. */
GRAPH(shared_then_written) {
    Tensor *h = op_tanh(c, x[0]), *g = op_tanh(c, x[1]);
    Tensor *s = op_add(c, h, g);
    return op_add(c, op_add(c, s, op_gelu(c, h)), op_sigmoid(c, g));
}
GRAPH(reshape_alias) {
    Tensor *h = op_tanh(c, x[0]), *v = RESHAPE(c, h, 6, 2);
    Tensor *a = op_gelu(c, v), *b = RESHAPE(c, op_sigmoid(c, h), 6, 2);
    return op_add(c, op_add(c, a, v), b);
}
GRAPH(reshape_of_leaf) { return op_add(c, RESHAPE(c, x[0], 6, 2), RESHAPE(c, RESHAPE(c, x[0], 2, 6), 6, 2)); }
GRAPH(concat_itself) {
    Tensor *h = op_tanh(c, x[0]);
    return op_concat_rows(c, (Tensor *[]){h, x[1], h, RESHAPE(c, h, 3, 4)}, 4);
}
GRAPH(concat_one) { return op_add(c, op_concat_rows(c, (Tensor *[]){x[0]}, 1), x[0]); }
GRAPH(concat_of_shared) {
    Tensor *s = op_add(c, op_tanh(c, x[0]), x[1]);
    Tensor *y = op_concat_rows(c, (Tensor *[]){s, x[1]}, 2);
    return op_add(c, y, op_concat_rows(c, (Tensor *[]){x[1], s}, 2));
}
GRAPH(concat_tokens_shared) {
    Tensor *h = op_tanh(c, x[0]);
    Tensor *y = op_concat_tokens(c, (Tensor *[]){h, x[1], h}, 3);
    return op_add(c, op_slice_tokens(c, y, 1, 3), op_slice_tokens(c, y, 0, 3));
}
/* Branches that nothing supervised depends on: their nodes are passed over. */
GRAPH(dead_branch) {
    Tensor *h = op_tanh(c, x[0]);
    Tensor *dead = op_linear(c, op_gelu(c, h), x[1], NULL);
    op_add(c, dead, h);
    return op_sigmoid(c, h);
}
GRAPH(slices_overlap) {
    Tensor *h = op_tanh(c, x[0]);
    return op_mul(c, op_slice_tokens(c, h, 0, 2), op_slice_tokens(c, h, 1, 2));
}
GRAPH(
    attention_shared) { /* queries and keys of one tensor, through two linears, as in cross attention of a block */
    Tensor *n = op_tanh(c, x[0]);
    return op_add(c, op_cross_attention(c, op_linear(c, n, x[1], NULL), op_linear(c, n, x[2], NULL), 2, NULL),
                  n);
}
GRAPH(add_rows_shared) {
    return op_add(c, op_add_rows(c, x[0], x[1]), op_add_rows(c, RESHAPE(c, x[0], 3, 4), x[1]));
}
GRAPH(add_rows_itself) { return op_add_rows(c, x[0], x[0]); }
GRAPH(weight_twice) { return op_linear(c, op_tanh(c, op_linear(c, x[0], x[1], x[2])), x[1], x[2]); }
GRAPH(two_losses) {
    Tensor *h = op_linear(c, x[0], x[1], NULL);
    Tensor *a = op_ce_loss(c, h, (int32_t[]){1, 0, 2}, (float[]){1, 0.5f, 1}, 0);
    Tensor *b =
        op_kl_loss(c, h, (float[12]){1, 0, -1, 0, 2, 1, 0, 0, 0.5f, 1, 1, -2}, (float[]){1, 1, 0.5f}, 2);
    return op_concat_rows(c, (Tensor *[]){a, b}, 2);
}

TEST(tape_shared_gradients) {
    static const GraphCase cases[] = {
        {"x + x", add_itself, .nleaves = 1, .leaf = {L(3, 4)}},
        {"x x", mul_itself, .nleaves = 1, .leaf = {L(3, 4)}},
        {"x + y + x", add_twice, .nleaves = 2, .leaf = {L(3, 4), L(3, 4)}},
        {"residual chain", residual_chain, .nleaves = 3, .leaf = {L(3, 4), L(4, 4), L(4)}, .bound = 1e-3},
        {"residual chain, operands swapped", residual_swapped, .nleaves = 3, .leaf = {L(3, 4), L(4, 4), L(4)},
         .bound = 1e-3},
        {"three readers", three_readers, .nleaves = 2, .leaf = {L(3, 4), L(3, 4)}},
        {"shared, then written", shared_then_written, .nleaves = 2, .leaf = {L(3, 4), L(3, 4)}},
        {"reshape alias", reshape_alias, .nleaves = 1, .leaf = {L(3, 4)}},
        {"reshape of a leaf", reshape_of_leaf, .nleaves = 1, .leaf = {L(3, 4)}},
        {"concat of itself", concat_itself, .nleaves = 2, .leaf = {L(3, 4), L(1, 4)}},
        {"concat of one", concat_one, .nleaves = 1, .leaf = {L(3, 4)}},
        {"concat of shared", concat_of_shared, .nleaves = 2, .leaf = {L(3, 4), L(3, 4)}},
        {"concat of tokens, shared", concat_tokens_shared, .nleaves = 2, .leaf = {L(2, 2, 3), L(2, 1, 3)}},
        {"dead branch", dead_branch, .nleaves = 2, .leaf = {L(3, 4), L(4, 4)}},
        {"overlapping slices", slices_overlap, .nleaves = 1, .leaf = {L(2, 3, 4)}},
        {"attention over itself", attention_shared, .nleaves = 3, .leaf = {L(2, 3, 4), L(4, 4), L(8, 4)},
         .bound = 1e-3},
        {"add_rows shared", add_rows_shared, .nleaves = 2, .leaf = {L(3, 4), L(1, 4)}},
        {"add_rows of itself", add_rows_itself, .nleaves = 1, .leaf = {L(3, 4)}},
        {"a weight used twice", weight_twice, .nleaves = 3, .leaf = {L(3, 4), L(4, 4), L(4)}},
        {"two losses", two_losses, true, 2, {L(3, 5), L(4, 5)}, 0},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) graph_check(&cases[i]);
}

/* A chain of n equal ops works in two gradient buffers, whatever n is. */
TEST(tape_reuses_buffers) {
    Rig r;
    rig_open(&r);
    Ctx *c = &r.ctx;
    Tensor *x = RANDOM(c, 1, true, 64, 64), *h = x;
    const size_t bytes = tensor_bytes(x);
    for (int i = 0; i < 50; i++) h = op_tanh(c, h);
    float *dy = xcalloc(64 * 64, 4);
    random_fill(dy, 64 * 64, 2, -1, 1);
    seed_gradient(c, h, dy);
    size_t before = r.step.used;
    tape_backward(c);
    EXPECT(r.step.used - before <= 2 * bytes, "a chain of 50 took %zu bytes of gradients, one is %zu",
           r.step.used - before, bytes);

    /* Residual blocks h += tanh(tanh(h)): the skip, the branch, and one being written. */
    rig_begin(&r, true);
    x = h = RANDOM(c, 1, true, 64, 64);
    for (int i = 0; i < 50; i++) h = op_add(c, h, op_tanh(c, op_tanh(c, h)));
    seed_gradient(c, h, dy);
    before = r.step.used;
    tape_backward(c);
    EXPECT(r.step.used - before <= 3 * bytes, "50 residuals took %zu bytes of gradients, one is %zu",
           r.step.used - before, bytes);
    free(dy);
    rig_close(&r);
}

/* Two backward passes over one tape object (gradient accumulation) add up in the parameter. */
TEST(tape_accumulates) {
    Rig r;
    rig_open(&r);
    float grad[12] = {0}, once[12], value[12];
    random_fill(value, 12, 5, -1, 1);
    Tensor w = {.data = value,
                .shape = {4, 3},
                .ndim = 2,
                .dtype = F32,
                .needs_grad = true,
                .param_grad = grad,
                .name = "w"};
    for (int pass = 0; pass < 2; pass++) {
        rig_begin(&r, true);
        Tensor *y = op_linear(&r.ctx, RANDOM(&r.ctx, 1, false, 2, 3), &w, NULL);
        float dy[8];
        random_fill(dy, 8, 6, -1, 1);
        seed_gradient(&r.ctx, y, dy);
        tape_backward(&r.ctx);
        if (!pass) memcpy(once, grad, sizeof once);
    }
    for (int i = 0; i < 12; i++) EXPECT_NEAR(grad[i], 2 * (double)once[i], 1e-6, "gradient %d", i);
    rig_close(&r);
}

/* Nothing that wants a gradient: nothing on the tape. */
TEST(tape_stays_empty) {
    Rig r;
    rig_open(&r);
    Tensor *x = RANDOM(&r.ctx, 1, false, 2, 3), *w = RANDOM(&r.ctx, 2, false, 4, 3);
    Tensor *y = op_gelu(&r.ctx, op_linear(&r.ctx, x, w, NULL));
    op_ce_loss(&r.ctx, y, (int32_t[]){0, 1}, (float[]){1, 1}, 0);
    EXPECT(!r.tape.nodes && !y->needs_grad, "%" PRId64 " nodes", r.tape.nodes);
    tape_backward(&r.ctx);
    rig_close(&r);
}
