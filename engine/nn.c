/* nn.c -- transformer blocks. See nn.h. */
#include "engine/nn.h"

#include <math.h>
#include <stdarg.h>

#include "engine/lora.h"

static const char *vname(char *buf, size_t n, const char *fmt, va_list ap) {
    vsnprintf(buf, n, fmt, ap);
    return buf;
}

Layer linear_new(ParamSet *ps, int64_t out, int64_t in, bool bias, const char *name, ...) {
    char buf[256];
    va_list ap;
    va_start(ap, name);
    vname(buf, sizeof buf, name, ap);
    va_end(ap);
    Layer l = {.w = PARAM(ps, PARAM_WEIGHT, (out, in), "%s.weight", buf)};
    if (bias) l.b = PARAM(ps, PARAM_BIAS, (out), "%s.bias", buf);
    return l;
}

Layer norm_new(ParamSet *ps, int64_t C, const char *name, ...) {
    char buf[256];
    va_list ap;
    va_start(ap, name);
    vname(buf, sizeof buf, name, ap);
    va_end(ap);
    return (Layer){.w = PARAM(ps, PARAM_GAIN, (C), "%s.weight", buf),
                   .b = PARAM(ps, PARAM_BIAS, (C), "%s.bias", buf)};
}

Tensor *linear(Ctx *c, Layer l, Tensor *x) {
    return l.lora_a ? op_linear_lora(c, x, l.w, l.b, l.lora_a, l.lora_b) : op_linear(c, x, l.w, l.b);
}
Tensor *linear_f32(Ctx *c, Layer l, Tensor *x) { return op_linear_f32(c, x, l.w, l.b); }
Tensor *norm(Ctx *c, Layer l, Tensor *x, float eps) { return op_layernorm(c, x, l.w, l.b, eps); }

Tensor *activate(Ctx *c, Activation act, Tensor *x) {
    return act == ACT_GELU ? op_gelu(c, x) : act == ACT_GELU_TANH ? op_gelu_tanh(c, x) : op_quick_gelu(c, x);
}

Tensor *mlp(Ctx *c, Layer fc1, Activation act, Layer fc2, Tensor *x) {
    /* What an adapter adds comes between the products and the activation. */
    if (!fc1.lora_a && !fc2.lora_a) return op_mlp(c, act, x, fc1.w, fc1.b, fc2.w, fc2.b);
    return linear(c, fc2, activate(c, act, linear(c, fc1, x)));
}

/* The attention's and the MLP's projections, as their authors and most users choose. */
static void adapt(Lora *l, Block *b, const char *prefix, const BlockNames *names) {
    const int64_t r = l->rank, C = b->qkv.w->shape[0] / 3;
    lora_adapt(l, &b->qkv, 3, prefix, (const char *[]){names->q, names->k, names->v});
    lora_adapt(l, &b->proj, 1, prefix, &names->proj);
    lora_adapt(l, &b->fc1, 1, prefix, &names->fc1);
    lora_adapt(l, &b->fc2, 1, prefix, &names->fc2);
    Tensor *A = b->qkv.lora_a, *B = b->qkv.lora_b;
    b->q.lora_a = param_rows(&l->params, A, 0, r), b->q.lora_b = param_rows(&l->params, B, 0, C);
    b->kv.lora_a = param_rows(&l->params, A, r, 2 * r), b->kv.lora_b = param_rows(&l->params, B, C, 2 * C);
}

void block_new(Block *b, ParamSet *ps, int64_t C, int64_t mlp, const BlockNames *names, const char *prefix) {
    *b = (Block){.norm1 = norm_new(ps, C, "%s%s", prefix, names->norm1)};
    const char *const qkv[] = {names->q, names->k, names->v};
    b->qkv.w = param_fused(ps, PARAM_WEIGHT, 3, 2, (int64_t[]){C, C}, prefix, qkv, ".weight");
    b->qkv.b = param_fused(ps, PARAM_BIAS, 3, 1, (int64_t[]){C}, prefix, qkv, ".bias");
    b->q = (Layer){.w = param_rows(ps, b->qkv.w, 0, C), .b = param_rows(ps, b->qkv.b, 0, C)};
    b->kv = (Layer){.w = param_rows(ps, b->qkv.w, C, 2 * C), .b = param_rows(ps, b->qkv.b, C, 2 * C)};
    b->proj = linear_new(ps, C, C, true, "%s%s", prefix, names->proj);
    b->norm2 = norm_new(ps, C, "%s%s", prefix, names->norm2);
    b->fc1 = linear_new(ps, mlp, C, true, "%s%s", prefix, names->fc1);
    b->fc2 = linear_new(ps, C, mlp, true, "%s%s", prefix, names->fc2);
    if (ps->lora) adapt(ps->lora, b, prefix, names);
}

void blocks_init(ParamSet *ps, Block *b, int n) {
    for (int i = 0; i < n; i++) {
        param_scale(ps, b[i].proj.w, 1 / sqrtf(2 * (float)n));
        param_scale(ps, b[i].fc2.w, 1 / sqrtf(2 * (float)n));
    }
}

/* norm(r); r becomes its sum. */
static Tensor *sum_norm(Ctx *c, Layer l, Residual *r, float eps) {
    if (!r->more) return norm(c, l, r->x, eps);
    Tensor *y = op_add_layernorm(c, &r->x, r->x, r->more, l.w, l.b, eps);
    r->more = NULL;
    return y;
}

Tensor *residual_norm(Ctx *c, Layer l, Residual r, float eps) { return sum_norm(c, l, &r, eps); }
Tensor *residual_sum(Ctx *c, Residual r) { return r.more ? op_add(c, r.x, r.more) : r.x; }

/* The block's second half, of x and the attention's result. */
static Residual mlp_half(Ctx *c, const Block *b, Tensor *x, Tensor *attended, const BlockSpec *s) {
    Residual r = {x, op_dropout(c, linear(c, b->proj, attended), s->dropout)};
    Tensor *h = sum_norm(c, b->norm2, &r, s->eps);
    r.more = op_dropout(c, mlp(c, b->fc1, s->act, b->fc2, h), s->dropout);
    return r;
}

static Residual block_body(Ctx *c, const Block *b, Residual r, const BlockSpec *s) {
    Tensor *n = sum_norm(c, b->norm1, &r, s->eps);
    return mlp_half(c, b, r.x, op_self_attention(c, linear(c, b->qkv, n), s->H, s->mask, s->causal), s);
}

Residual block_forward(Ctx *c, const Block *b, Residual r, const BlockSpec *s) {
    if (c->tape) return block_body(c, b, r, s);
    /* Nobody will look back: keep the sum alone, so that all blocks work in the same, cached, memory. */
    Tensor *y = tensor_like(c, r.x);
    size_t step = arena_mark(c->step), host = arena_mark(c->host);
    r = block_body(c, b, r, s);
    c->dev->ops->add_fwd(c->dev->main, y->dtype, y->data, r.x->data, r.more->data, numel(y));
    arena_reset(c->step, step);
    arena_reset(c->host, host);
    return (Residual){y, NULL};
}

Residual block_forward_first(Ctx *c, const Block *b, Residual r, const BlockSpec *s) {
    CHECK(!s->causal, "the first token of a causal block sees only itself");
    Tensor *n = sum_norm(c, b->norm1, &r, s->eps);
    Tensor *q = linear(c, b->q, op_slice_tokens(c, n, 0, 1)), *kv = linear(c, b->kv, n);
    Tensor *a = op_cross_attention(c, q, kv, s->H, s->mask);
    return mlp_half(c, b, op_slice_tokens(c, r.x, 0, 1), a, s);
}

Residual blocks_forward(Ctx *c, const Block *b, int64_t n, Tensor *x, const BlockSpec *s) {
    Residual r = {x, NULL};
    for (int64_t i = 0; i < n; i++) r = block_forward(c, &b[i], r, s);
    return r;
}
