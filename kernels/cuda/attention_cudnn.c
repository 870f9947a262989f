/* attention_cudnn.c -- attention by cuDNN's fused kernels, in bf16: run.attention=cudnn. Contract: ops.h.
 *
 * To cuDNN 9 attention is a graph of products, masks and a softmax (or its backward), for which it has one
 * kernel. How our contract becomes one:
 *   - q, k, v, out are (B, H, T, D) with strides (T ld, D, ld, 1): slices of a fused projection are read
 *     where they are. cuDNN wants k, and in the backward v, as (B, H, D, T): the same memory, two strides
 *     exchanged.
 *   - Its softmax statistics are our lse: the largest score plus the log of the sum, (B, H, Tq, 1), f32.
 *   - A key mask has holes anywhere (ViLT: padded words, then patches), and cuDNN's fast kernels know how
 *     many keys there are. So the visible keys are packed to the front of a copy of k and v, and their
 *     gradients added where they belong. What a masked key holds, NaN too, is never read, and fewer keys
 *     are fewer products; the price is k and v moved once more. (An additive bias would read what is
 *     masked: NaN - infinity is NaN.) A batch that sees nothing gets one key of zeros, hence an output of
 *     zeros; lse is then set.
 *   - causal is the comparison i + Tk - Tq >= j. With a key mask packing would move the diagonal: that goes
 *     to our own kernels, as do causal queries that see nothing (Tk < Tq), other types, head sizes and
 *     alignments, and what no engine takes.
 *   - Its gradients are written and ours added to: they go to scratch and are added from there, one
 *     rounding to bf16 more than in our own kernels. dq comes from a product of its own, not from f32
 *     atomics, and engines that say of themselves that their bits change from run to run are passed over.
 *
 * A plan is made once for each shape and remembered: the library compiles a kernel, a second and more.
 * Batches come in any size, so only powers of two have plans: 37 is computed as 32, 4 and 1.
 */
#include "kernels/cuda/attention_cudnn.h"
#include "engine/base.h"
#include "kernels/cuda/cudnn.h"

#include <math.h>

enum { Q = 1, KEY, V, OUT, LSE, DOUT, DQ, DK, DV, DELTA, QUERIES, KEYS, SCALE, HIDDEN, ONE, TQ, TK };
static const cudnnDataType_t F = CUDNN_DATA_FLOAT, INT = CUDNN_DATA_INT32, BOOL = CUDNN_DATA_BOOLEAN,
                             BF = CUDNN_DATA_BFLOAT16;

/* ---- graphs --------------------------------------------------------------------------------------- */

/* Rows of H heads of D values, `ld` apart: (B, H, T, D), or transposed (B, H, D, T). */
static Node heads(Graph *g, int64_t id, const AttentionShape *s, int64_t T, int64_t ld, bool transposed) {
    return transposed
               ? graph_tensor(g, id, BF, (int64_t[]){s->B, s->H, s->D, T}, (int64_t[]){T * ld, s->D, 1, ld})
               : graph_tensor(g, id, BF, (int64_t[]){s->B, s->H, T, s->D}, (int64_t[]){T * ld, s->D, ld, 1});
}

/* One value for each query: (B, H, Tq, 1). */
static Node per_query(Graph *g, int64_t id, const AttentionShape *s) {
    return graph_tensor(g, id, F, (int64_t[]){s->B, s->H, s->Tq, 1}, (int64_t[]){s->H * s->Tq, s->Tq, 1, 1});
}

static Node per_batch(Graph *g, int64_t id, const AttentionShape *s) {
    return graph_tensor(g, id, INT, (int64_t[]){s->B, 1, 1, 1}, (int64_t[]){1, 1, 1, 1});
}

static Node scores(Graph *g, cudnnDataType_t type, const AttentionShape *s) {
    return graph_virtual(g, type, s->B, s->H, s->Tq, s->Tk);
}

static Node apply(Graph *g, cudnnPointwiseMode_t mode, const AttentionShape *s, const Node *x,
                  const Node *b) {
    const Node y = scores(g, F, s);
    graph_pointwise(g, mode, F, x, b, NULL, &y);
    return y;
}

/* The same of indices, (B, H, Tq, Tk), too: INT, or BOOL for comparisons. */
static Node compare(Graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t type, const AttentionShape *s,
                    const Node *x, const Node *b) {
    const Node y = scores(g, type, s);
    graph_pointwise(g, mode, type, x, b, NULL, &y);
    return y;
}

static Node hide(Graph *g, const AttentionShape *s, const Node *x, const Node *visible) {
    const Node hidden = graph_number(g, HIDDEN, F), y = scores(g, F, s);
    graph_pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, F, x, &hidden, visible, &y);
    return y;
}

static Node mask_padding(Graph *g, const AttentionShape *s, const Node *x, const Node *queries,
                         const Node *keys) {
    const Node row = scores(g, INT, s), column = scores(g, INT, s);
    graph_index(g, 2, x, &row);
    graph_index(g, 3, x, &column);
    const Node a = compare(g, CUDNN_POINTWISE_CMP_LT, BOOL, s, &row, queries),
               b = compare(g, CUDNN_POINTWISE_CMP_LT, BOOL, s, &column, keys),
               both = compare(g, CUDNN_POINTWISE_LOGICAL_AND, BOOL, s, &a, &b);
    return hide(g, s, x, &both);
}

static Node mask_causal(Graph *g, const AttentionShape *s, const Node *x) {
    Node row = scores(g, INT, s);
    const Node column = scores(g, INT, s);
    graph_index(g, 2, x, &row);
    graph_index(g, 3, x, &column);
    if (s->Tq != s->Tk) {
        const Node tk = graph_number(g, TK, INT), tq = graph_number(g, TQ, INT);
        row = compare(g, CUDNN_POINTWISE_ADD, INT, s, &row, &tk);
        row = compare(g, CUDNN_POINTWISE_SUB, INT, s, &row, &tq);
    }
    const Node visible = compare(g, CUDNN_POINTWISE_CMP_GE, BOOL, s, &row, &column);
    return hide(g, s, x, &visible);
}

/* out = softmax(scale q k^T + masks) v and lse. */
static void graph_forward(Graph *g, const AttentionShape *s) {
    const Node q = heads(g, Q, s, s->Tq, s->ldq, false), k = heads(g, KEY, s, s->Tk, s->ldkv, true),
               v = heads(g, V, s, s->Tk, s->ldkv, false), out = heads(g, OUT, s, s->Tq, s->ldo, false),
               lse = per_query(g, LSE, s), scale = graph_number(g, SCALE, F);
    Node queries, keys;
    const Node *m = NULL, *n = NULL; /* how many queries and keys there are */
    if (s->padded) {
        queries = per_batch(g, QUERIES, s), keys = per_batch(g, KEYS, s);
        m = &queries, n = &keys;
    }
    const Node qk = scores(g, F, s);
    graph_matmul(g, &q, &k, &qk, m, n, NULL);
    Node x = apply(g, CUDNN_POINTWISE_MUL, s, &qk, &scale);
    if (s->padded) x = mask_padding(g, s, &x, m, n);
    if (s->causal) x = mask_causal(g, s, &x);
    const Node most = graph_virtual(g, F, s->B, s->H, s->Tq, 1),
               sum = graph_virtual(g, F, s->B, s->H, s->Tq, 1),
               log_sum = graph_virtual(g, F, s->B, s->H, s->Tq, 1);
    graph_reduce(g, CUDNN_REDUCE_TENSOR_MAX, &x, &most);
    const Node less = apply(g, CUDNN_POINTWISE_SUB, s, &x, &most),
               e = apply(g, CUDNN_POINTWISE_EXP, s, &less, NULL);
    graph_reduce(g, CUDNN_REDUCE_TENSOR_ADD, &e, &sum);
    graph_pointwise(g, CUDNN_POINTWISE_LOG, F, &sum, NULL, NULL, &log_sum);
    graph_pointwise(g, CUDNN_POINTWISE_ADD, F, &most, &log_sum, NULL, &lse);
    const Node p = scores(g, BF, s);
    graph_pointwise(g, CUDNN_POINTWISE_DIV, F, &e, &sum, NULL, &p);
    graph_matmul(g, &p, &v, &out, m, NULL, n);
}

/* x (B, H, Tq, Tk) as (B, H, Tk, Tq) in bf16: the left side of a product. */
static Node turned(Graph *g, const AttentionShape *s, const Node *x) {
    const Node y = graph_virtual_strided(g, BF, (int64_t[]){s->B, s->H, s->Tk, s->Tq},
                                         (int64_t[]){s->H * s->Tq * s->Tk, s->Tq * s->Tk, 1, s->Tk});
    graph_reshape(g, x, &y);
    return y;
}

/* delta = sum(dout out); p = e^(scores - lse); dv = p^T dout; ds = p (dout v^T - delta) scale; dk = ds^T q;
 * dq = ds k. */
static void graph_backward(Graph *g, const AttentionShape *s) {
    const int64_t C = s->H * s->D; /* the gradients' rows: in scratch, without gaps */
    const Node q = heads(g, Q, s, s->Tq, s->ldq, false), k = heads(g, KEY, s, s->Tk, s->ldkv, true),
               v = heads(g, V, s, s->Tk, s->ldkv, true), out = heads(g, OUT, s, s->Tq, s->ldo, false),
               dout = heads(g, DOUT, s, s->Tq, s->ldo, false), lse = per_query(g, LSE, s),
               dq = heads(g, DQ, s, s->Tq, C, false), dk = heads(g, DK, s, s->Tk, C, false),
               dv = heads(g, DV, s, s->Tk, C, false), delta = per_query(g, DELTA, s),
               scale = graph_number(g, SCALE, F), one = graph_number(g, ONE, F);
    Node queries, keys;
    const Node *m = NULL, *n = NULL;
    if (s->padded) {
        queries = per_batch(g, QUERIES, s), keys = per_batch(g, KEYS, s);
        m = &queries, n = &keys;
    }
    const Node product = graph_virtual(g, F, s->B, s->H, s->Tq, s->D),
               sum = graph_virtual(g, F, s->B, s->H, s->Tq, 1);
    graph_pointwise(g, CUDNN_POINTWISE_MUL, F, &dout, &out, NULL, &product);
    graph_reduce(g, CUDNN_REDUCE_TENSOR_ADD, &product, &sum);
    graph_pointwise(g, CUDNN_POINTWISE_MUL, F, &sum, &one, NULL,
                    &delta); /* the place of dropout's factor: the engines look for it */

    const Node qk = scores(g, F, s);
    graph_matmul(g, &q, &k, &qk, m, n, NULL);
    Node x = apply(g, CUDNN_POINTWISE_MUL, s, &qk, &scale);
    if (s->padded) x = mask_padding(g, s, &x, m, n);
    x = apply(g, CUDNN_POINTWISE_SUB, s, &x, &lse);
    if (s->causal) x = mask_causal(g, s, &x);
    const Node p = apply(g, CUDNN_POINTWISE_EXP, s, &x, NULL), pt = turned(g, s, &p);
    graph_matmul(g, &pt, &dout, &dv, n, NULL, m);

    const Node dp = scores(g, F, s);
    graph_matmul(g, &dout, &v, &dp, m, n, NULL);
    const Node centred = apply(g, CUDNN_POINTWISE_SUB, s, &dp, &delta),
               by_p = apply(g, CUDNN_POINTWISE_MUL, s, &centred, &p),
               ds = apply(g, CUDNN_POINTWISE_MUL, s, &by_p, &scale), dst = turned(g, s, &ds);
    graph_matmul(g, &dst, &q, &dk, n, NULL, m);
    const Node rows = graph_virtual_strided(g, BF, (int64_t[]){s->B, s->H, s->Tk, s->D},
                                            (int64_t[]){s->Tk * s->ldkv, s->D, s->ldkv, 1});
    graph_reshape(g, &k, &rows);
    graph_matmul(g, &ds, &rows, &dq, m, NULL, n);
}

/* card_like: see graph_plan. */
GraphPlan cudnn_attention_plan(const AttentionShape *s, cudnnBackendDescriptor_t card_like) {
    Graph *g = xcalloc(1, sizeof *g);
    if (s->backward)
        graph_backward(g, s);
    else
        graph_forward(g, s);
    return graph_plan(g, AS_IT_LIKES, s->card, card_like);
}

/* ---- plans ---------------------------------------------------------------------------------------- */

typedef struct Kept {
    AttentionShape shape;
    GraphPlan plan;
} Kept;

static Kept *kept; /* some dozens: beside a kernel's launch looking through them is nothing */
static int64_t nkept, room;

static const GraphPlan *plan_for(const AttentionShape *s) {
    for (int64_t i = 0; i < nkept; i++)
        if (!memcmp(&kept[i].shape, s, sizeof *s)) return &kept[i].plan;
    GROW(kept, room, nkept + 1);
    Kept *k = &kept[nkept++];
    *k = (Kept){*s, cudnn_attention_plan(s, NULL)};
    if (!k->plan.found)
        warn("cuDNN has no attention%s of %" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64
             "%s%s, ours computes it: %s",
             s->backward ? "'s backward" : "", s->B, s->H, s->Tq, s->Tk, s->D, s->padded ? " masked" : "",
             s->causal ? " causal" : "", k->plan.graph->why);
    return &k->plan;
}

void cudnn_forget_attention(void) {
    for (int64_t i = 0; i < nkept; i++) graph_plan_close(&kept[i].plan);
    free(kept);
    kept = NULL;
    nkept = room = 0;
}

/* ---- the ops -------------------------------------------------------------------------------------- */

/* Whether it may be asked of cuDNN. 1 x 1: NVIDIA's own frontend never asks for that backward. */
static bool suits(DType t, int64_t ldq, int64_t ldkv, int64_t ldo, const void *key_mask, bool causal, int B,
                  int H, int Tq, int Tk, int D) {
    return t == BF16 && B && H && Tq && Tk && D && D % 8 == 0 && D <= 128 && ldq % 8 == 0 && ldkv % 8 == 0 &&
           ldo % 8 == 0 && !(causal && (key_mask || Tk < Tq)) && !(Tq == 1 && Tk == 1);
}

static bool aligned(const void *const *p, int n) {
    for (int i = 0; i < n; i++)
        if ((uintptr_t)p[i] % 16) return false;
    return true;
}

static AttentionShape shape_of(Stream *s, int64_t ldq, int64_t ldkv, int64_t ldo, bool padded, bool causal,
                               int B, int H, int Tq, int Tk, int D, bool backward) {
    AttentionShape a;
    memset(&a, 0, sizeof a);
    a.B = B, a.H = H, a.Tq = Tq, a.Tk = Tk, a.D = D;
    a.ldq = ldq, a.ldkv = padded ? (int64_t)H * D : ldkv, a.ldo = ldo;
    a.card = STREAM_CARD(s);
    a.backward = backward, a.padded = padded, a.causal = causal;
    return a;
}

/* What lies in the stream's scratch, one after the other. */
typedef struct Layout {
    size_t at;
} Layout;

static void reserve(Layout *l, size_t *place, size_t bytes) {
    *place = l->at;
    l->at += (bytes + 255) & ~(size_t)255;
}

/* The keys that are left of a masked attention. */
typedef struct Packed {
    size_t queries, keys, blind, order, k, v; /* in scratch */
} Packed;

static void reserve_packed(Layout *l, Packed *p, int B, int Tk, int64_t C) {
    reserve(l, &p->queries, (size_t)B * sizeof(int32_t));
    reserve(l, &p->keys, (size_t)B * sizeof(int32_t));
    reserve(l, &p->blind, (size_t)B);
    reserve(l, &p->order, (size_t)B * (size_t)Tk * sizeof(int32_t));
    reserve(l, &p->k, (size_t)B * (size_t)Tk * (size_t)C * 2);
    reserve(l, &p->v, (size_t)B * (size_t)Tk * (size_t)C * 2);
}

static void pack(Stream *s, char *scratch, const Packed *p, const void *k, const void *v, int64_t ldkv,
                 const uint8_t *key_mask, int B, int Tq, int Tk, int64_t C) {
    int32_t *order = (int32_t *)(scratch + p->order);
    cuda_attention_fill(s, (int32_t *)(scratch + p->queries), Tq, B);
    cuda_attention_order(s, order, (int32_t *)(scratch + p->keys), (uint8_t *)(scratch + p->blind), key_mask,
                         B, Tk);
    cuda_attention_pack(s, scratch + p->k, scratch + p->v, k, v, ldkv, order, B, Tk, C);
}

/* The largest power of two in B: the batches that are computed first, 0: all of them at once. */
static int first_of(int B) {
    int n = 1;
    while (2 * n < B) n *= 2;
    return B & (B - 1) ? n : 0;
}

/* x + n values of two bytes; NULL stays. */
static void *further(const void *x, int64_t n) { return x ? (char *)x + 2 * n : NULL; }

static float minus_infinity = -INFINITY, one = 1;

/* Adds to n bindings what the masks read; tq and tk live until the graph has run. How many there are then. */
static int bind_masks(Binding *b, int n, char *scratch, const Packed *at, bool key_mask, bool causal,
                      int32_t *tq, int32_t *tk) {
    if (key_mask || causal) b[n++] = (Binding){HIDDEN, &minus_infinity};
    if (key_mask)
        b[n++] = (Binding){QUERIES, scratch + at->queries}, b[n++] = (Binding){KEYS, scratch + at->keys};
    if (causal && *tq != *tk) b[n++] = (Binding){TQ, tq}, b[n++] = (Binding){TK, tk};
    return n;
}

void cudnn_attention_fwd(Stream *s, DType t, void *out, int64_t ldo, float *lse, const void *q, int64_t ldq,
                         const void *k, const void *v, int64_t ldkv, const uint8_t *key_mask, bool causal,
                         float scale, int B, int H, int Tq, int Tk, int D) {
    const GraphPlan *p = NULL;
    if (suits(t, ldq, ldkv, ldo, key_mask, causal, B, H, Tq, Tk, D) &&
        aligned((const void *[]){out, lse, q, k, v}, 5)) {
        const int64_t first = first_of(B), queries = first * Tq, keys = first * Tk;
        if (first) {
            cudnn_attention_fwd(s, t, out, ldo, lse, q, ldq, k, v, ldkv, key_mask, causal, scale, (int)first,
                                H, Tq, Tk, D);
            cudnn_attention_fwd(s, t, further(out, queries * ldo), ldo, lse + queries * H,
                                further(q, queries * ldq), ldq, further(k, keys * ldkv),
                                further(v, keys * ldkv), ldkv, key_mask ? key_mask + keys : NULL, causal,
                                scale, B - (int)first, H, Tq, Tk, D);
            return;
        }
        const AttentionShape shape = shape_of(s, ldq, ldkv, ldo, key_mask, causal, B, H, Tq, Tk, D, false);
        p = plan_for(&shape);
    }
    if (!p || !p->found) {
        cuda_attention_fwd(s, t, out, ldo, lse, q, ldq, k, v, ldkv, key_mask, causal, scale, B, H, Tq, Tk, D);
        return;
    }
    const int64_t C = (int64_t)H * D;
    Layout l = {0};
    Packed at = {0};
    size_t workspace;
    reserve(&l, &workspace, p->workspace);
    if (key_mask) reserve_packed(&l, &at, B, Tk, C);
    char *scratch = cuda_scratch(s, l.at);
    if (key_mask) pack(s, scratch, &at, k, v, ldkv, key_mask, B, Tq, Tk, C);
    Binding b[GRAPH_TENSORS] = {{Q, (void *)q},
                                {KEY, key_mask ? scratch + at.k : (void *)k},
                                {V, key_mask ? scratch + at.v : (void *)v},
                                {OUT, out},
                                {LSE, lse},
                                {SCALE, &scale}};
    int32_t tq = Tq, tk = Tk;
    const int n = bind_masks(b, 6, scratch, &at, key_mask, causal, &tq, &tk);
    graph_run(s, p, b, n, scratch + workspace);
    if (key_mask) cuda_attention_blind(s, lse, (uint8_t *)(scratch + at.blind), B, (int64_t)H * Tq);
}

void cudnn_attention_bwd(Stream *s, DType t, void *dq, void *dk, void *dv, const void *q, int64_t ldq,
                         const void *k, const void *v, int64_t ldkv, const void *out, const void *dout,
                         int64_t ldo, const float *lse, const uint8_t *key_mask, bool causal, float scale,
                         int B, int H, int Tq, int Tk, int D) {
    const GraphPlan *p = NULL;
    if (suits(t, ldq, ldkv, ldo, key_mask, causal, B, H, Tq, Tk, D) &&
        aligned((const void *[]){dq, dk, dv, q, k, v, out, dout, lse}, 9)) {
        const int64_t first = first_of(B), past = first * Tq, seen = first * Tk;
        if (first) {
            cudnn_attention_bwd(s, t, dq, dk, dv, q, ldq, k, v, ldkv, out, dout, ldo, lse, key_mask, causal,
                                scale, (int)first, H, Tq, Tk, D);
            cudnn_attention_bwd(
                s, t, further(dq, past * ldq), further(dk, seen * ldkv), further(dv, seen * ldkv),
                further(q, past * ldq), ldq, further(k, seen * ldkv), further(v, seen * ldkv), ldkv,
                further(out, past * ldo), further(dout, past * ldo), ldo, lse + past * H,
                key_mask ? key_mask + seen : NULL, causal, scale, B - (int)first, H, Tq, Tk, D);
            return;
        }
        const AttentionShape shape = shape_of(s, ldq, ldkv, ldo, key_mask, causal, B, H, Tq, Tk, D, true);
        p = plan_for(&shape);
    }
    if (!p || !p->found) {
        cuda_attention_bwd(s, t, dq, dk, dv, q, ldq, k, v, ldkv, out, dout, ldo, lse, key_mask, causal, scale,
                           B, H, Tq, Tk, D);
        return;
    }
    const int64_t C = (int64_t)H * D, queries = (int64_t)B * Tq, keys = (int64_t)B * Tk, rows = queries * H;
    Layout l = {0};
    Packed at = {0};
    size_t workspace, delta, stats = 0, wrote_q, wrote_k, wrote_v;
    reserve(&l, &workspace, p->workspace);
    reserve(&l, &delta, (size_t)rows * sizeof(float));
    reserve(&l, &wrote_q, (size_t)(queries * C) * 2);
    reserve(&l, &wrote_k, (size_t)(keys * C) * 2);
    reserve(&l, &wrote_v, (size_t)(keys * C) * 2);
    if (key_mask) {
        reserve(&l, &stats, (size_t)rows * sizeof(float));
        reserve_packed(&l, &at, B, Tk, C);
    }
    char *scratch = cuda_scratch(s, l.at);
    if (key_mask) {
        pack(s, scratch, &at, k, v, ldkv, key_mask, B, Tq, Tk, C);
        cuda_attention_stats(s, (float *)(scratch + stats), lse, rows);
    }
    Binding b[GRAPH_TENSORS] = {{Q, (void *)q},
                                {KEY, key_mask ? scratch + at.k : (void *)k},
                                {V, key_mask ? scratch + at.v : (void *)v},
                                {OUT, (void *)out},
                                {DOUT, (void *)dout},
                                {LSE, key_mask ? scratch + stats : (void *)lse},
                                {DELTA, scratch + delta},
                                {DQ, scratch + wrote_q},
                                {DK, scratch + wrote_k},
                                {DV, scratch + wrote_v},
                                {SCALE, &scale},
                                {ONE, &one}};
    int32_t tq = Tq, tk = Tk;
    const int n = bind_masks(b, 12, scratch, &at, key_mask, causal, &tq, &tk);
    graph_run(s, p, b, n, scratch + workspace);
    if (dq) ops_cuda.copy_rows(s, BF16, dq, ldq, scratch + wrote_q, C, queries, C, true);
    if (key_mask) {
        cuda_attention_unpack(s, dk, dv, ldkv, scratch + wrote_k, scratch + wrote_v,
                              (int32_t *)(scratch + at.order), B, Tk, C);
        return;
    }
    if (dk) ops_cuda.copy_rows(s, BF16, dk, ldkv, scratch + wrote_k, C, keys, C, true);
    if (dv) ops_cuda.copy_rows(s, BF16, dv, ldkv, scratch + wrote_v, C, keys, C, true);
}

bool cudnn_has_attention(Stream *s, bool backward, bool masked, bool causal, int B, int H, int T, int D) {
    const int64_t C = (int64_t)H * D;
    if (!suits(BF16, 3 * C, 3 * C, C, masked ? "" : NULL, causal, B, H, T, T, D)) return false;
    const AttentionShape shape =
        shape_of(s, 3 * C, 3 * C, C, masked, causal, first_of(B) ? first_of(B) : B, H, T, T, D, backward);
    return plan_for(&shape)->found; /* of most of it */
}

/* ---- choosing it ---------------------------------------------------------------------------------- */

bool device_use_cudnn(Device *d, Error *e) {
    static Ops ops;
    if (d->ops != &ops_cuda && d->ops != &ops)
        return fail_as(
            e, FAIL_CONFIG,
            "cuDNN computes on graphics cards, this run on the %s (run.device=cuda, or run.attention=own)",
            d->name);
    if (!cudnn_open(CUDNN_FILE, e) || !cudnn_use_card(STREAM_CARD(d->main), e)) return false;
    ops = ops_cuda;
    ops.attention_fwd = cudnn_attention_fwd;
    ops.attention_bwd = cudnn_attention_bwd;
    d->ops = &ops;
    return true;
}

bool device_find_cudnn(char *text, size_t size, Error *e) {
    if (!cudnn_open(CUDNN_FILE, e)) return false;
    const int version = (int)cudnn_version();
    snprintf(text, size, "%d.%d.%d, %s", version / 10000, version / 100 % 100, version % 100, cudnn_path());
    return true;
}
