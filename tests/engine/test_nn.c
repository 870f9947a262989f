/* test_nn.c -- transformer blocks: the short last block is the long one's first token, and inference is training's forward. */
#include "engine/nn.h"
#include "tests/engine/rig.h"

#include <math.h>

static const BlockNames names = {"norm1", "q", "k", "v", "proj", "norm2", "fc1", "fc2"};
enum { B = 3, T = 5, C = 12, MLP = 20 };

typedef struct Net { Rig rig; Arena host; ParamSet ps; Block block[2]; } Net;

static void net_open(Net *n, bool trained) {
    rig_open(&n->rig);
    arena_open(&n->host, "params", NULL, 1 << 20);
    params_open(&n->ps, &n->host);
    for (int i = 0; i < 2; i++) block_new(&n->block[i], &n->ps, C, MLP, &names, i ? "layer.1." : "layer.0.");
    params_alloc(&n->ps, n->rig.dev, F32, trained);
    params_init(&n->ps, 3, 0);
    float *v = n->ps.value;
    for (int64_t i = 0; i < n->ps.total; i++)
        v[i] += 0.1f * sinf((float)i); /* biases and gains that matter */
}

static void net_close(Net *n) {
    params_close(&n->ps);
    arena_close(&n->host);
    rig_close(&n->rig);
}

static Tensor *masked(Ctx *c, BlockSpec *s) {
    static const uint8_t mask[B][T] = {{1, 1, 1, 1, 1}, {1, 1, 0, 1, 0}, {1, 0, 0, 0, 0}};
    s->mask = ctx_upload(c, mask, sizeof mask);
    return RANDOM(c, 11, true, B, T, C);
}

TEST(nn_first_token_block) {
    Net n;
    net_open(&n, true);
    Ctx *c = &n.rig.ctx;
    float dy[B * C], *value[2], *dx[2], *dp[2];
    random_fill(dy, B * C, 4, -1, 1);
    for (Activation act = ACT_GELU; act <= ACT_QUICK_GELU; act++) {
        for (int first = 0; first < 2; first++) {
            rig_begin(&n.rig, true);
            params_zero_grad(&n.ps);
            BlockSpec s = {.H = 3, .eps = 1e-5f, .act = act};
            Tensor *x = masked(c, &s);
            Residual r = block_forward(c, &n.block[0], (Residual){x, NULL}, &s);
            Tensor *y = first ? residual_sum(c, block_forward_first(c, &n.block[1], r, &s))
                              : op_slice_tokens(c, residual_sum(c, block_forward(c, &n.block[1], r, &s)), 0, 1);
            EXPECT(y->shape[0] == B && y->shape[1] == 1 && y->shape[2] == C, "shape");
            seed_gradient(c, y, dy);
            tape_backward(c);
            value[first] = memcpy(xcalloc(B * C, 4), y->data, B * C * 4);
            dx[first] = memcpy(xcalloc(B * T * C, 4), x->grad->data, B * T * C * 4);
            dp[first] = memcpy(xcalloc((size_t)n.ps.total, 4), n.ps.grad, (size_t)n.ps.total * 4);
        }
        /* The sums run in another order: a few units in the last place of values near 1, gradients near 10. */
        for (int i = 0; i < B * C; i++) EXPECT_NEAR(value[1][i], value[0][i], 1e-5, "value %d", i);
        for (int i = 0; i < B * T * C; i++) EXPECT_NEAR(dx[1][i], dx[0][i], 5e-5, "dx %d", i);
        for (int k = 0; k < n.ps.n; k++)
            for (int64_t i = n.ps.param[k]->at; i < n.ps.param[k]->at + n.ps.param[k]->n; i++)
                EXPECT_NEAR(dp[1][i], dp[0][i], 1e-4, "gradient of %s", n.ps.param[k]->name);
        for (int first = 0; first < 2; first++) {
            free(value[first]);
            free(dx[first]);
            free(dp[first]);
        }
    }
    net_close(&n);
}

TEST(nn_inference_is_training) {
    Net n;
    net_open(&n, true);
    Ctx *c = &n.rig.ctx;
    for (int causal = 0; causal < 2; causal++) {
        float *out[2];
        size_t used[2];
        for (int training = 0; training < 2; training++) {
            rig_begin(&n.rig, training);
            BlockSpec s = {.H = 2, .eps = 1e-5f, .act = ACT_GELU, .causal = causal};
            Tensor *x = masked(c, &s);
            if (causal) s.mask = NULL;
            size_t before = n.rig.step.used;
            Residual r = blocks_forward(c, n.block, 2, x, &s);
            used[training] = n.rig.step.used - before;
            if (!causal) r = block_forward_first(c, &n.block[1], r, &s);
            x = residual_sum(c, r);
            out[training] = memcpy(xcalloc((size_t)numel(x), 4), x->data, tensor_bytes(x));
        }
        EXPECT(!memcmp(out[0], out[1], (size_t)(B * (causal ? T : 1) * C) * 4),
               "values differ without the tape");
        EXPECT(used[0] <= 2 * (B * T * C * 4 + 64), "inference keeps %zu bytes for two blocks", used[0]);
        EXPECT(used[1] > used[0], "training keeps %zu bytes", used[1]);
        free(out[0]);
        free(out[1]);
    }
    net_close(&n);
}

/* A sum left to the next norm has the bits of one made at once, there and in all gradients, and takes less memory. */
TEST(nn_residual) {
    Net n;
    net_open(&n, true);
    Ctx *c = &n.rig.ctx;
    float dy[B * T * C], *value[2], *dx[2], *dp[2];
    size_t used[2];
    random_fill(dy, B * T * C, 4, -1, 1);
    for (int dropout = 0; dropout < 2; dropout++) {
        for (int at_once = 0; at_once < 2; at_once++) {
            rig_begin(&n.rig, true);
            params_zero_grad(&n.ps);
            BlockSpec s = {.H = 3, .eps = 1e-5f, .dropout = 0.3f * (float)dropout};
            Tensor *x = masked(c, &s);
            const size_t before = n.rig.step.used;
            Residual r = {x, NULL};
            for (int i = 0; i < 2; i++) {
                r = block_forward(c, &n.block[i], r, &s);
                EXPECT(r.more, "the block has left nothing to add");
                if (at_once) r = (Residual){residual_sum(c, r), NULL};
            }
            Tensor *y = residual_norm(c, n.block[0].norm1, r, s.eps);
            used[at_once] = n.rig.step.used - before;
            value[at_once] = memcpy(xcalloc(B * T * C, 4), y->data, tensor_bytes(y));
            seed_gradient(c, y, dy);
            tape_backward(c);
            dx[at_once] = memcpy(xcalloc(B * T * C, 4), x->grad->data, tensor_bytes(x));
            dp[at_once] = memcpy(xcalloc((size_t)n.ps.total, 4), n.ps.grad, (size_t)n.ps.total * 4);
        }
        EXPECT(!memcmp(value[0], value[1], B * T * C * 4), "values, dropout %d", dropout);
        EXPECT(!memcmp(dx[0], dx[1], B * T * C * 4), "dx, dropout %d", dropout);
        EXPECT(!memcmp(dp[0], dp[1], (size_t)n.ps.total * 4), "gradients of parameters, dropout %d", dropout);
        EXPECT(used[1] >= used[0] + 2 * B * T * C * 4, "%zu bytes, at once %zu", used[0], used[1]);
        for (int i = 0; i < 2; i++) {
            free(value[i]);
            free(dx[i]);
            free(dp[i]);
        }
    }
    net_close(&n);
}

/* A frozen set: the same values, no nodes. */
TEST(nn_frozen) {
    Net n;
    net_open(&n, false);
    EXPECT(!n.ps.grad && !n.ps.m && !n.ps.v, "a frozen set has gradients");
    BlockSpec s = {.H = 2, .eps = 1e-5f};
    Tensor *x = RANDOM(&n.rig.ctx, 1, false, B, T, C);
    blocks_forward(&n.rig.ctx, n.block, 2, x, &s);
    EXPECT(!n.rig.tape.nodes, "%" PRId64 " nodes of a frozen block", n.rig.tape.nodes);
    /* Its input may want a gradient all the same (a prompt in front of a frozen tower). */
    x->needs_grad = true;
    Tensor *y = residual_sum(&n.rig.ctx, blocks_forward(&n.rig.ctx, n.block, 2, x, &s));
    float dy[B * T * C];
    random_fill(dy, B * T * C, 2, -1, 1);
    seed_gradient(&n.rig.ctx, y, dy);
    tape_backward(&n.rig.ctx);
    const float *dx = x->grad->data;
    double sum = 0;
    for (int i = 0; i < B * T * C; i++) sum += (double)dx[i] * (double)dx[i];
    EXPECT(sum > 0 && isfinite(sum), "dx %g", sum);
    net_close(&n);
}

TEST(nn_dropout_repeats) {
    Net n;
    net_open(&n, true);
    float *out[3];
    for (int i = 0; i < 3; i++) {
        rig_begin(&n.rig, true);
        if (i == 2) n.rig.ctx.seed++;
        BlockSpec s = {.H = 2, .eps = 1e-5f, .dropout = 0.3f};
        Tensor *x = RANDOM(&n.rig.ctx, 1, true, B, T, C);
        Tensor *y = residual_sum(&n.rig.ctx, blocks_forward(&n.rig.ctx, n.block, 2, x, &s));
        out[i] = memcpy(xcalloc(B * T * C, 4), y->data, tensor_bytes(y));
    }
    EXPECT(!memcmp(out[0], out[1], B * T * C * 4), "the same seed, another dropout");
    EXPECT(memcmp(out[0], out[2], B * T * C * 4), "another seed, the same dropout");
    for (int i = 0; i < 3; i++) free(out[i]);
    net_close(&n);
}
