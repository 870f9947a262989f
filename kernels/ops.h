/* ops.h -- THE contract: one documented function type per operation, one list of all of them.
 *
 * Each op has one implementation per device (cpu/ today, cuda/ beside it), and the list below declares
 * them all: a signature that drifts will not compile, a missing implementation will not link.
 *
 * Rules that hold for every op:
 *   - Work is queued on `s`; pointers are device memory. Tensors are contiguous and row-major; `void *`
 *     tensors have type t, statistics and parameters of norms are f32, indices are int32.
 *   - Arithmetic is f32 for either type: bf16 is rounded to once, where a result is stored. Where a gradient may be that of
 *     a parameter it has a type of its own, td: t, or F32, for the gradients of parameters are f32 whatever tensors are.
 *   - Outputs come first, then inputs, parameters, sizes. Any size may be 0. Nothing needs padding or alignment.
 *   - Every *_bwd ADDS to its gradient outputs (residual fan-out and shared weights need it). A gradient
 *     output that is NULL is not wanted. Losses WRITE their gradient (they are where it begins).
 *   - Sums run in an order that does not depend on the number of threads: a rerun repeats bit for bit. (A CPU
 *     that multiplies bf16 itself: a rerun with as many threads. kernels/cpu/onednn.h.)
 */
#pragma once
#include "kernels/device.h"
#include "kernels/dtype.h"
#include "kernels/rect.h"

/* ---- matrix products ------------------------------------------------------------------------------ */

/* C = op(A) op(B) + beta C + bias, row-major; op(A) is (M,K), op(B) (K,N), C (M,N) with leading dimensions in values.
 * ta: A is stored (K,M). tb: B is stored (N,K). A and B have type t, C type tc: t, or F32. bias (N) f32 or NULL is added
 * to every row. beta is 0 (C may hold anything, NaN too) or 1. */
typedef void gemm_fn(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                     int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta);
/* dbias[j] += sum over rows of dy[i][j].  dbias (C) f32, dy (rows, C). */
typedef void bias_bwd_fn(Stream *s, DType t, float *dbias, const void *dy, int64_t rows, int64_t C);
/* Both gradients of a linear layer's parameters: dw += dy^T x and dbias += the sum of dy's rows. What gemm
 * and bias_bwd do, in one reading of dy where the device can. A gradient wanted alone may have other last
 * bits than beside the other. dw (N,K) f32, dbias (N) f32, dy (rows,N), x (rows,K). */
typedef void gemm_bgrad_fn(Stream *s, DType t, float *dw, float *dbias, const void *dy, const void *x,
                           int64_t rows, int64_t N, int64_t K);

/* A linear layer and the tanh form of gelu: pre = x w^T + bias, y = gelu_tanh(pre), of pre after its rounding
 * to t or before.  y, pre (rows,N), pre NULL when no backward will want it; x (rows,K), w (N,K), bias (N) f32
 * or NULL. */
typedef void gemm_gelu_tanh_fn(Stream *s, DType t, void *y, void *pre, const void *x, const void *w,
                               const float *bias, int64_t rows, int64_t N, int64_t K);
/* The way back through y = gelu_tanh(pre), z = y w^T, as far as pre: dpre = (dz w) gelu_tanh'(pre), WRITTEN.
 * dpre, pre (rows,N), dz (rows,K), w (K,N). */
typedef void gemm_dgelu_tanh_fn(Stream *s, DType t, void *dpre, const void *pre, const void *dz,
                                const void *w, int64_t rows, int64_t N, int64_t K);

/* ---- elementwise, n values; y may be x ------------------------------------------------------------ */

/* gelu: x Phi(x), exact erf form (Hendrycks & Gimpel 2016).  gelu_tanh: their approximation, up to 5e-4 away,
 * x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).  quick_gelu: x sigmoid(1.702 x).  elu1: elu(x) + 1 with
 * alpha 1 (OWL-ViT's logit scale).  The backward takes the forward's input x (tanh, sigmoid: its OUTPUT y).
 * Its dx may be dy: then nothing is added to, dx = dy f'(x). */
typedef void gelu_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void gelu_bwd_fn(Stream *s, DType t, void *dx, const void *x, const void *dy, int64_t n);
typedef void gelu_tanh_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void gelu_tanh_bwd_fn(Stream *s, DType t, void *dx, const void *x, const void *dy, int64_t n);
typedef void quick_gelu_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void quick_gelu_bwd_fn(Stream *s, DType t, void *dx, const void *x, const void *dy, int64_t n);
typedef void elu1_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void elu1_bwd_fn(Stream *s, DType t, void *dx, const void *x, const void *dy, int64_t n);
typedef void tanh_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void tanh_bwd_fn(Stream *s, DType t, void *dx, const void *y, const void *dy, int64_t n);
typedef void sigmoid_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t n);
typedef void sigmoid_bwd_fn(Stream *s, DType t, void *dx, const void *y, const void *dy, int64_t n);
/* y = a + b (y may be either); y += x (ty: tx, or F32); y = a b; da += dy b, db += dy a. */
typedef void add_fwd_fn(Stream *s, DType t, void *y, const void *a, const void *b, int64_t n);
typedef void accumulate_fn(Stream *s, DType ty, void *y, DType tx, const void *x, int64_t n);
typedef void mul_fwd_fn(Stream *s, DType t, void *y, const void *a, const void *b, int64_t n);
typedef void mul_bwd_fn(Stream *s, DType t, void *da, void *db, const void *a, const void *b, const void *dy,
                        int64_t n);
/* y[i][j] = x[i][j] + p[j] for i < rows, j < n (positions, modality types, a constant box bias).  dp[j] += sum_i dy[i][j]. */
typedef void add_rows_fwd_fn(Stream *s, DType t, void *y, const void *x, const void *p, int64_t rows, int64_t n);
typedef void add_rows_bwd_fn(Stream *s, DType td, void *dp, DType t, const void *dy, int64_t rows, int64_t n);
/* y[b][k][c] = x[b][k][c] g[b][c]: every token of an image times one vector (OWL-ViT's class-token merge). */
typedef void mul_tokens_fwd_fn(Stream *s, DType t, void *y, const void *x, const void *g, int64_t B, int64_t T,
                               int64_t C);
typedef void mul_tokens_bwd_fn(Stream *s, DType t, void *dx, void *dg, const void *x, const void *g, const void *dy,
                               int64_t B, int64_t T, int64_t C);
/* y = x keep / (1 - p), keep drawn per value by Philox4x32-10 from (seed, offset + index): nothing is stored, the
 * backward draws the same numbers: dx += dy keep / (1 - p).  0 <= p < 1.  See philox.h. */
typedef void dropout_fwd_fn(Stream *s, DType t, void *y, const void *x, float p, uint64_t seed, uint64_t offset,
                            int64_t n);
typedef void dropout_bwd_fn(Stream *s, DType t, void *dx, const void *dy, float p, uint64_t seed, uint64_t offset,
                            int64_t n);
/* f32 <-> bf16, round to nearest even. */
typedef void cast_fn(Stream *s, DType ty, void *y, DType tx, const void *x, int64_t n);

/* ---- norms and softmax ---------------------------------------------------------------------------- */

/* Row-wise layer normalisation: y = (x - mean) rstd gamma + beta, statistics in two passes in f32.
 *   x, y (rows, C), y may be x;  mean, rstd (rows) f32 kept for the backward;  gamma, beta (C) f32.
 * The backward reads x.  dgamma, dbeta f32.  Source: Ba et al. 2016, eq. 4. */
typedef void layernorm_fwd_fn(Stream *s, DType t, void *y, float *mean, float *rstd, const void *x,
                              const float *gamma, const float *beta, float eps, int64_t rows, int64_t C);
/* sum = a + b and y = layernorm(sum) in one pass: what a residual block does at each of its halves. sum, a, b (rows, C); sum may be
 * a. The sum is rounded to type t before its norm is taken; the backward is that of layernorm at `sum`. */
typedef void add_layernorm_fwd_fn(Stream *s, DType t, void *sum, void *y, float *mean, float *rstd, const void *a, const void *b,
                                  const float *gamma, const float *beta, float eps, int64_t rows, int64_t C);
typedef void layernorm_bwd_fn(Stream *s, DType t, void *dx, float *dgamma, float *dbeta, const void *x,
                              const void *dy, const float *mean, const float *rstd, const float *gamma, int64_t rows,
                              int64_t C);
/* y = x / (|x|_2 + eps) by row; inv (rows) f32 = 1 / (|x| + eps), norm = 1 / inv - eps.  (OWL-ViT, CLIP.) */
typedef void l2norm_fwd_fn(Stream *s, DType t, void *y, float *inv, const void *x, float eps, int64_t rows,
                           int64_t C);
typedef void l2norm_bwd_fn(Stream *s, DType t, void *dx, const void *x, const void *dy, const float *inv, float eps,
                           int64_t rows, int64_t C);
/* Softmax by row of (rows, C); y may be x.  dx += y (dy - sum(y dy)). */
typedef void softmax_fwd_fn(Stream *s, DType t, void *y, const void *x, int64_t rows, int64_t C);
typedef void softmax_bwd_fn(Stream *s, DType t, void *dx, const void *y, const void *dy, int64_t rows, int64_t C);

/* ---- attention ------------------------------------------------------------------------------------ */

/* For each b, h: out = softmax(scale q k^T + masks) v.
 *   q    token i of batch b, head h starts at q + ((b*Tq + i) * ldq + h*D); k, v likewise with Tk and ldkv;
 *   out  the same with Tq and ldo.  Strides are in values, so q, k, v may be slices of one fused projection.
 *   key_mask (B, Tk) u8, 0 = no query may look there, or NULL.  causal: query i sees keys j <= i + (Tk - Tq).
 *   lse  (B, H, Tq) f32 = log sum exp of the scaled, masked scores, kept for the backward.
 * A query with no visible key gives zeros (lse = -inf) and no gradient.  No (Tq,Tk) matrix outlives the op.
 * The backward recomputes the scores from lse (Dao et al. 2022); strides of dq, dk, dv, dout as of q, k, v, out. */
typedef void attention_fwd_fn(Stream *s, DType t, void *out, int64_t ldo, float *lse, const void *q, int64_t ldq,
                              const void *k, const void *v, int64_t ldkv, const uint8_t *key_mask, bool causal,
                              float scale, int B, int H, int Tq, int Tk, int D);
typedef void attention_bwd_fn(Stream *s, DType t, void *dq, void *dk, void *dv, const void *q, int64_t ldq,
                              const void *k, const void *v, int64_t ldkv, const void *out, const void *dout,
                              int64_t ldo, const float *lse, const uint8_t *key_mask, bool causal, float scale, int B,
                              int H, int Tq, int Tk, int D);

/* ---- rows: embedding, gathering, concatenation, pooling ------------------------------------------- */

/* dst[i][c] = src[idx[i]][c], c < C: embedding lookup, choosing images or texts.  0 <= idx[i] (the caller has checked). */
typedef void gather_rows_fn(Stream *s, DType t, void *dst, const void *src, const int32_t *idx, int64_t n, int64_t C);
/* dst[idx[i]][c] += src[i][c], in the order of i: the backward of gather_rows, without atomics. */
typedef void scatter_rows_fn(Stream *s, DType td, void *dst, DType t, const void *src, const int32_t *idx, int64_t n,
                             int64_t C);
/* y[i][c] = sum_k w[i][k] x[idx[i][k]][c], k < 4: bilinear interpolation of position embeddings.  bwd: dx[idx] += w dy. */
typedef void interp_rows_fwd_fn(Stream *s, DType t, void *y, const void *x, const int32_t *idx, const float *w,
                                int64_t n, int64_t C);
typedef void interp_rows_bwd_fn(Stream *s, DType td, void *dx, DType t, const void *dy, const int32_t *idx,
                                const float *w, int64_t n, int64_t C);
/* For i < rows: n values from src + i*lds to dst + i*ldd (copied, or added when `add`): concatenation and slicing of
 * token rows, first-token pooling, and their backwards.  lds 0 repeats one row. */
typedef void copy_rows_fn(Stream *s, DType t, void *dst, int64_t ldd, const void *src, int64_t lds, int64_t rows,
                          int64_t n, bool add);
/* y[b][c] = mean over tokens with mask[b][k] != 0 of x[b][k][c] (mask NULL: all; no token: 0).  bwd: dx += dy / count. */
typedef void mean_tokens_fwd_fn(Stream *s, DType t, void *y, const void *x, const uint8_t *mask, int64_t B, int64_t T,
                                int64_t C);
typedef void mean_tokens_bwd_fn(Stream *s, DType t, void *dx, const void *dy, const uint8_t *mask, int64_t B,
                                int64_t T, int64_t C);
/* y[i][p] = sum_d f[img[i]][p][d] q[txt[i]][d]: scores of every patch of image img[i] for query txt[i].
 *   y (n, P), f (images, P, D), q (texts, D).  bwd: df[img] += dy q, dq[txt] += dy f, in the order of i. */
typedef void pair_scores_fwd_fn(Stream *s, DType t, void *y, const void *f, const void *q, const int32_t *img,
                                const int32_t *txt, int64_t n, int64_t P, int64_t D);
typedef void pair_scores_bwd_fn(Stream *s, DType t, void *df, void *dq, const void *f, const void *q, const void *dy,
                                const int32_t *img, const int32_t *txt, int64_t n, int64_t P, int64_t D);

/* ---- images --------------------------------------------------------------------------------------- */

typedef enum Filter { BILINEAR, BICUBIC } Filter;
typedef struct PatchSpec {
    int patch;              /* patches are patch x patch pixels */
    int grid_h, grid_w;     /* patches per item of the output */
    Filter filter;
    float mean[3], std[3];  /* of pixel / 255 */
} PatchSpec;

/* From u8 pixels, through a rectangle, to normalised patches in one pass: crop, resize, (u8/255 - mean)/std, patchify.
 *   patches (B, grid_h*grid_w, 3*patch*patch), patches in raster order, values in the order channel, row, column: a
 *           row is what a convolution of that kernel size and stride sees, so its weight is a plain linear layer.
 *   size[b] = {h, w} the rectangle is resized to. A side up to the grid's is a multiple of patch, and patches beyond are
 *           zero; of a longer one the middle is shown, from pixel (side - grid side) / 2 on (a centre crop).
 * Resampling is Pillow's to the last bit: antialiased, 22-bit weights, u8 between the passes (spec: test-vectors 5).
 * Pixels of the rectangle outside the image are black; rect must not be empty. */
typedef void image_patches_fn(Stream *s, DType t, void *patches, const ImageView *image, const Rect *rect,
                              const int (*size)[2], const PatchSpec *spec, int64_t B);

/* ---- boxes ---------------------------------------------------------------------------------------- */

/* What a detector found: a rectangle in pixels, its score, and which of the Q output rows it came from (-1: nothing). */
typedef struct Detection { Rect rect; float score; int32_t query; } Detection;

/* A detector's output as a list of boxes, for each of `rows` images:
 *   logit (rows, Q), box (rows, Q, 4) f32: cx, cy, w, h in 0..1;  size (rows, 2) i32: W, H in pixels
 *   out   (rows, max), best first; after the last query -1, score 0 and an empty rectangle
 * Scores s = 1 / (1 + e^-logit) strictly above `threshold` are taken, their corners (computed in f32) truncated to pixels and
 * clamped to 0 .. W-1, H-1 (half_open: W, H, and boxes without a pixel are dropped), then suppressed: the best box stays, all
 * whose IoU with it is not below tau go, and so on. IoU counts pixels at both ends, (x1-x0+1)(y1-y0+1). Of equal scores the
 * higher query is first; NaN is no detection.  Source: VisProg, LocInterpreter and engine/nms.py. */
typedef void detect_fn(Stream *s, Detection *out, const float *logit, const float *box, const int32_t *size, float threshold,
                       double tau, bool half_open, int64_t rows, int64_t Q, int64_t max);

/* ---- losses: loss[b] and its gradient in one pass ------------------------------------------------- */

/* All: loss (rows) f32 = weight[b] x the row's loss; dx (rows, V) of type t is WRITTEN; weight (rows) f32 >= 0. A row
 * of weight 0 gives zeros, whatever its target. */

/* Binary cross entropy on logits with soft targets at temperature T: T^2 sum_v BCE(x/T, target).  dx = w T (s(x/T) - target).
 * target (rows, V) f32 in [0,1].  Stable form max(x,0) - x t + log1p(exp(-|x|)). */
typedef void bce_loss_fn(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target,
                         const float *weight, float T, int64_t rows, int64_t V);
/* Softmax cross entropy with label smoothing e: target (1-e) on label[b] + e/V on all.  label (rows) in [0,V), or -1: no loss. */
typedef void ce_loss_fn(Stream *s, DType t, float *loss, void *dx, const void *x, const int32_t *label,
                        const float *weight, float smoothing, int64_t rows, int64_t V);
/* T^2 KL(softmax(z/T) || softmax(x/T)), z (rows, V) f32 the teacher's logits.  Hinton et al. 2015. */
typedef void kl_loss_fn(Stream *s, DType t, float *loss, void *dx, const void *x, const float *z, const float *weight,
                        float T, int64_t rows, int64_t V);
/* Sigmoid focal loss with soft targets (Li et al. 2020), weight per VALUE (rows, V):
 * sum_v w a |y - s(x)|^gamma BCE(x, y), a = alpha y + (1-alpha)(1-y) (alpha < 0: a = 1).  At y in {0,1} it is Lin et
 * al. 2017.  loss (rows). */
typedef void focal_loss_fn(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target,
                           const float *weight, float alpha, float gamma, int64_t rows, int64_t V);
/* Boxes (cx, cy, w, h): w_l1 |box - target|_1 (on corners x0,y0,x1,y1 when `corners`) + w_giou (1 - GIoU).
 * box, target, dbox (n, 4) f32; weight, loss (n).  Rezatofighi et al. 2019; areas are clamped at 0. */
typedef void box_loss_fn(Stream *s, float *loss, float *dbox, const float *box, const float *target,
                         const float *weight, float w_l1, float w_giou, bool corners, int64_t n);

/* ---- optimizer ------------------------------------------------------------------------------------ */

/* One stretch of the flat buffers with its own rates. */
typedef struct AdamSegment { int64_t begin, end; float lr, weight_decay; } AdamSegment;

/* Decoupled AdamW (Loshchilov & Hutter 2019) over flat f32 buffers, in one pass:
 * m = b1 m + (1-b1) g', v = b2 v + (1-b2) g'^2, p -= lr (m/c1 / (sqrt(v/c2) + eps) + wd p), g' = grad_scale g,
 * c1 = 1 - b1^step, c2 = 1 - b2^step (step counts from 1).  Segments do not overlap; what they leave out is untouched.
 * p16: NULL, or where the new p goes in bf16, too. */
typedef void adamw_fn(Stream *s, float *p, float *m, float *v, uint16_t *p16, const float *g, const AdamSegment *segments,
                      int nsegments, float b1, float b2, float eps, float grad_scale, int64_t step);
/* *out (host memory, ready when the op returns) = sum of squares of x, in double; NaN and infinities survive. */
typedef void sum_squares_fn(Stream *s, DType t, double *out, const void *x, int64_t n);

#define OPS(X)                                                                                                        \
    X(gemm) X(bias_bwd) X(gemm_bgrad) X(gemm_gelu_tanh) X(gemm_dgelu_tanh)                                            \
    X(gelu_fwd) X(gelu_bwd) X(gelu_tanh_fwd) X(gelu_tanh_bwd) X(quick_gelu_fwd) X(quick_gelu_bwd)                     \
    X(elu1_fwd) X(elu1_bwd) X(tanh_fwd) X(tanh_bwd)                                                                   \
    X(sigmoid_fwd) X(sigmoid_bwd) X(add_fwd) X(accumulate) X(mul_fwd) X(mul_bwd) X(add_rows_fwd) X(add_rows_bwd)      \
    X(mul_tokens_fwd) X(mul_tokens_bwd) X(dropout_fwd) X(dropout_bwd) X(cast)                                         \
    X(layernorm_fwd) X(add_layernorm_fwd) X(layernorm_bwd) X(l2norm_fwd) X(l2norm_bwd) X(softmax_fwd) X(softmax_bwd)                       \
    X(attention_fwd) X(attention_bwd)                                                                                 \
    X(gather_rows) X(scatter_rows) X(interp_rows_fwd) X(interp_rows_bwd) X(copy_rows)                                 \
    X(mean_tokens_fwd) X(mean_tokens_bwd) X(pair_scores_fwd) X(pair_scores_bwd)                                       \
    X(image_patches) X(detect)                                                                                        \
    X(bce_loss) X(ce_loss) X(kl_loss) X(focal_loss) X(box_loss)                                                       \
    X(adamw) X(sum_squares)

struct Ops {
#define X(name) name##_fn *name;
    OPS(X)
#undef X
};

#define X(name) name##_fn cpu_##name, cuda_##name, emu_##name;
OPS(X)
#undef X
extern const Ops ops_cpu, ops_cuda, ops_emu; /* emu: cuda/'s kernels compiled for the host, tests/emu/ */
