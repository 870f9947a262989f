/* op.h -- operations on tensors: check shapes, allocate, call the kernel, push the tape.
 *
 * Each function returns a new tensor of the step. Shapes by letter: B batch, T tokens, C channels,
 * H heads, P patches, V answers; "..." is any leading dimensions. A wrong shape is our own bug (CHECK).
 */
#pragma once
#include "engine/tape.h"

typedef enum Activation { ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU } Activation;

/* y = x w^T + b: x (..., K), w (N, K), b (N) or NULL -> (..., N). _f32: y is f32 also where x is bf16, unrounded: the last
 * layer of a network. */
Tensor *op_linear(Ctx *c, Tensor *x, Tensor *w, Tensor *b);
Tensor *op_linear_f32(Ctx *c, Tensor *x, Tensor *w, Tensor *b);
/* y = x w^T + b + (x A^T) B^T, part by part: of `parts` = rows of A / columns of B blocks of rows of w, block i adds
 * B_i (N/parts, r) times A_i (r, K). See lora.h. */
Tensor *op_linear_lora(Ctx *c, Tensor *x, Tensor *w, Tensor *b, Tensor *lora_a, Tensor *lora_b);
/* y = act(x w1^T + b1) w2^T + b2: x (..., K), w1 (F, K), w2 (N, F); b1, b2 may be NULL. What act reads is kept for
 * the backward, what it gives is computed again: a fifth less memory for a transformer's activations, for 1 to
 * 2 % of its arithmetic. The tanh form and its slope ride on the products where the device can (ops.h). */
Tensor *op_mlp(Ctx *c, Activation act, Tensor *x, Tensor *w1, Tensor *b1, Tensor *w2, Tensor *b2);

Tensor *op_gelu(Ctx *c, Tensor *x);
Tensor *op_gelu_tanh(Ctx *c, Tensor *x);                  /* gelu's tanh approximation */
Tensor *op_quick_gelu(Ctx *c, Tensor *x);
Tensor *op_tanh(Ctx *c, Tensor *x);
Tensor *op_sigmoid(Ctx *c, Tensor *x);
Tensor *op_elu1(Ctx *c, Tensor *x);                       /* elu(x) + 1 */
Tensor *op_add(Ctx *c, Tensor *a, Tensor *b);             /* same number of values; the shape is a's */
Tensor *op_mul(Ctx *c, Tensor *a, Tensor *b);
Tensor *op_add_rows(Ctx *c, Tensor *x, Tensor *p);        /* p repeats over x's leading dimensions */
Tensor *op_mul_tokens(Ctx *c, Tensor *x, Tensor *g);      /* x (B, T, C) times g (B, C) */
Tensor *op_dropout(Ctx *c, Tensor *x, float p);           /* x itself when p is 0 or no tape runs */

Tensor *op_layernorm(Ctx *c, Tensor *x, Tensor *gamma, Tensor *beta, float eps);
/* The same of *sum = x + more, in one pass over memory. The sum takes the memory of `more`, whose values nobody may read
 * from here on: it is a linear layer's, an mlp's or their dropout's, whose backward does not look at what it gave. */
Tensor *op_add_layernorm(Ctx *c, Tensor **sum, Tensor *x, Tensor *more, Tensor *gamma, Tensor *beta, float eps);
Tensor *op_l2norm(Ctx *c, Tensor *x, float eps);
Tensor *op_softmax(Ctx *c, Tensor *x);

/* Attention of H heads. qkv (B, T, 3C) is the fused projection; q (B, Tq, C) with kv (B, Tk, 2C) for cross attention.
 * mask (B, Tk) u8 on the device or NULL. Returns (B, Tq, C). */
Tensor *op_self_attention(Ctx *c, Tensor *qkv, int H, const uint8_t *mask, bool causal);
Tensor *op_cross_attention(Ctx *c, Tensor *q, Tensor *kv, int H, const uint8_t *mask);

/* y[i] = x[idx[i]] along the first dimension; idx (n) host integers, copied. -> (n, rest of x) */
Tensor *op_gather(Ctx *c, Tensor *x, const int32_t *idx, int64_t n);
Tensor *op_concat_rows(Ctx *c, Tensor *const *part, int n);                 /* along the first dimension; one part: itself */
/* y[i] = sum of 4 weighted rows of x (T, C): idx, w (n, 4) on the host. -> (n, C) */
Tensor *op_interp_rows(Ctx *c, Tensor *x, const int32_t *idx, const float *w, int64_t n);
Tensor *op_concat_tokens(Ctx *c, Tensor *const *part, int n);               /* (B, T_i, C) -> (B, sum T_i, C) */
Tensor *op_slice_tokens(Ctx *c, Tensor *x, int64_t first, int64_t n);       /* (B, T, C) -> (B, n, C) */
Tensor *op_token(Ctx *c, Tensor *x, int64_t k);                             /* (B, T, C) -> (B, C) */
Tensor *op_mean_tokens(Ctx *c, Tensor *x, const uint8_t *mask);             /* (B, T, C) -> (B, C) */
/* y (n, P) = f[img[i]] . q[txt[i]]; f (images, P, D), q (texts, D). */
Tensor *op_pair_scores(Ctx *c, Tensor *f, Tensor *q, const int32_t *img, const int32_t *txt, int64_t n);
Tensor *op_reshape(Ctx *c, Tensor *x, int ndim, const int64_t *shape);      /* the same values and memory */
#define RESHAPE(c, x, ...)                                                                                   \
    op_reshape((c), (x), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})

/* Crop, resize, normalise, patchify (no gradient): -> (B, grid_h*grid_w, 3*patch*patch) of type t. Host arrays. */
Tensor *op_image_patches(Ctx *c, DType t, const ImageView *image, const Rect *rect, const int (*size)[2], const PatchSpec *spec,
                         int64_t B);

/* A detector's logits (n, Q) and boxes (n, Q, 4) as at most `max` boxes each, (n, max) in host memory; size: W, H of each. See
 * ops.h. Waits for the device. */
const Detection *op_detect(Ctx *c, const Tensor *logits, const Tensor *boxes, const int32_t *size, float threshold, double tau,
                           bool half_open, int64_t max);

/* Losses. Targets and weights (n) are host arrays, copied; the weights already hold the division by the global count.
 * Returns the rows' weighted losses (n) f32; the gradient is on the tape. */
Tensor *op_bce_loss(Ctx *c, Tensor *x, const float *target, const float *weight, float T);
Tensor *op_ce_loss(Ctx *c, Tensor *x, const int32_t *label, const float *weight, float smoothing);
Tensor *op_kl_loss(Ctx *c, Tensor *x, const float *teacher_logits, const float *weight, float T);
Tensor *op_focal_loss(Ctx *c, Tensor *x, const float *target, const float *weight /* per value */, float alpha, float gamma);
Tensor *op_box_loss(Ctx *c, Tensor *box, const float *target, const float *weight, float w_l1, float w_giou, bool corners);

/* Sum of a loss's rows, read back. */
double loss_value(Ctx *c, const Tensor *rows);
/* Copies x to host memory of the step (f32). */
const float *to_host(Ctx *c, const Tensor *x);
