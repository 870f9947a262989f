/* nn.h -- what the model files are made of: transformer blocks as compositions of op.h. Next: modules/vilt.c. */
#pragma once
#include "engine/op.h"
#include "engine/param.h"

/* A linear layer or a norm: weight and bias (bias NULL where the model has none); a linear layer's adapter, or NULL
 * (lora.h): fused layers have as many A below each other, (parts*r, in), and B (out, r) by part. */
typedef struct Layer { Tensor *w, *b, *lora_a, *lora_b; } Layer;

/* Declares NAME.weight (out, in) and NAME.bias (out); NAME.weight and NAME.bias (C) of a norm. */
Layer linear_new(ParamSet *ps, int64_t out, int64_t in, bool bias, const char *name, ...) __attribute__((format(printf, 5, 6)));
Layer norm_new(ParamSet *ps, int64_t C, const char *name, ...) __attribute__((format(printf, 3, 4)));
Tensor *linear(Ctx *c, Layer l, Tensor *x);
Tensor *linear_f32(Ctx *c, Layer l, Tensor *x); /* the result in f32 */
Tensor *norm(Ctx *c, Layer l, Tensor *x, float eps);
Tensor *activate(Ctx *c, Activation act, Tensor *x);
/* fc2(act(fc1 x)) */
Tensor *mlp(Ctx *c, Layer fc1, Activation act, Layer fc2, Tensor *x);

/* What runs from one pre-LN block to the next: x + more. A block leaves its last addition to the norm that follows, which makes
 * the sum in its own pass over memory and in the memory of `more`. more NULL: there is nothing to add. */
typedef struct Residual { Tensor *x, *more; } Residual;
Tensor *residual_sum(Ctx *c, Residual r);                           /* where no norm follows */
Tensor *residual_norm(Ctx *c, Layer l, Residual r, float eps);      /* norm(x + more) */

/* A pre-LN transformer block: x += proj(attention(norm1 x)); x += fc2(act(fc1(norm2 x))). */
typedef struct Block {
    Layer norm1, qkv, proj, norm2, fc1, fc2;
    Layer q, kv; /* rows of qkv */
} Block;

/* The checkpoint's names of a block's layers, after its prefix ("vilt.encoder.layer.3."). */
typedef struct BlockNames { const char *norm1, *q, *k, *v, *proj, *norm2, *fc1, *fc2; } BlockNames;

typedef struct BlockSpec {
    int H;
    float eps;
    Activation act;
    float dropout;       /* after the two projections */
    const uint8_t *mask; /* (B, T) device, or NULL */
    bool causal;
} BlockSpec;

void block_new(Block *b, ParamSet *ps, int64_t C, int64_t mlp, const BlockNames *names, const char *prefix);
/* Divides the initial proj and fc2 weights of n blocks by sqrt(2n): the residual sum then starts at unit size. */
void blocks_init(ParamSet *ps, Block *b, int n);
/* Without a tape the result has its sum made, and is all that is kept. */
Residual block_forward(Ctx *c, const Block *b, Residual r, const BlockSpec *s);
/* The same, for a last block of which only token 0 is read: (B, T, C) -> (B, 1, C). Keys and values see all tokens; the
 * query, the projection and the MLP run on one, which saves most of the block's work and changes no value. */
Residual block_forward_first(Ctx *c, const Block *b, Residual r, const BlockSpec *s);
/* n blocks, one after the other. */
Residual blocks_forward(Ctx *c, const Block *b, int64_t n, Tensor *x, const BlockSpec *s);
