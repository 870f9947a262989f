/* attention_cudnn.h -- graphs of cuDNN's attention, and the kernels that make our masks and gradients fit
 * them. Private to attention_cudnn.c, attention_pack.cu and tests/cudnn. */
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/ops.h"

/* attention_pack.cu. A key mask has holes anywhere, cuDNN's padding mask is a number of keys: so the
 * visible keys go to the front.
 *   order (B, Tk): order[b][r] is batch b's r-th visible key, -1 beyond the last
 *   length (B): how many are visible, at least 1: where there is none, one key of zeros stands in, and
 *   blind (B) is 1 */
typedef void attention_order_fn(Stream *s, int32_t *order, int32_t *length, uint8_t *blind,
                                const uint8_t *key_mask, int B, int Tk);
/* pk[b][r] = k[b][order[b][r]], pv likewise, zeros where order is -1. k, v rows of C bf16 values with
 * stride ldkv; pk, pv without gaps. */
typedef void attention_pack_fn(Stream *s, void *pk, void *pv, const void *k, const void *v, int64_t ldkv,
                               const int32_t *order, int B, int Tk, int64_t C);
/* dk[b][order[b][r]] += pdk[b][r], dv likewise; dk or dv may be NULL. */
typedef void attention_unpack_fn(Stream *s, void *dk, void *dv, int64_t ldkv, const void *pdk,
                                 const void *pdv, const int32_t *order, int B, int Tk, int64_t C);
/* x[i] = value for all i < n. */
typedef void attention_fill_fn(Stream *s, int32_t *x, int32_t value, int64_t n);
/* Of each batch that is blind lse[b] (rows values) is -infinity. */
typedef void attention_blind_fn(Stream *s, float *lse, const uint8_t *blind, int B, int64_t rows);
/* stats = lse, but +infinity for -infinity: then e^(score - stats) is 0 and not NaN. */
typedef void attention_stats_fn(Stream *s, float *stats, const float *lse, int64_t n);

#define ATTENTION_PACKING(X)                                                                                 \
    X(attention_order)                                                                                       \
    X(attention_pack) X(attention_unpack) X(attention_fill) X(attention_blind) X(attention_stats)
#define X(name) name##_fn cuda_##name, emu_##name;
ATTENTION_PACKING(X)
#undef X

/* What decides which kernel may run. Compared byte by byte, so every byte is set. */
typedef struct AttentionShape {
    int64_t B, H, Tq, Tk, D, ldq, ldkv, ldo;
    int32_t card;
    uint8_t backward, padded, causal,
        unused; /* padded: the number of keys (and of queries: Tq) is told for each batch */
} AttentionShape;

#ifdef __cplusplus
}
#endif
