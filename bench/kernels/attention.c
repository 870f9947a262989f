/* attention.c -- rows of attention over one fused projection (rows of query, key, value), as the networks
 * call it. See kernels.h.
 *
 * Its operations are those of its products: 2 forward, 5 backward (the scores again, dP, dq, dk, dv), each of
 * 2 B T T C. Under a causal mask half of them are needed and all are counted. The baseline is cuDNN's
 * attention (a card, bf16) where that is installed, else the library's product of as many operations.
 */
#include "bench/kernels.h"

enum { F_OUT_, F_LSE, F_QKV, F_MASK };
enum { B_DQKV, B_QKV, B_OUT, B_DOUT, B_LSE, B_MASK };

static size_t part(const Table *t, int64_t n) { return (size_t)n * dtype_size(t->t); }
static float scale_of(const Shape *s) { return 1 / sqrtf((float)(s->C / s->H)); }

static void fwd_by(const Ops *k, Table *t, const Case *c, void *const *p) {
    const Shape *s = c->s;
    char *x = p[F_QKV];
    k->attention_fwd(t->s, t->t, p[F_OUT_], s->C, p[F_LSE], x, 3 * s->C, x + part(t, s->C),
                     x + part(t, 2 * s->C), 3 * s->C, s->masked ? p[F_MASK] : NULL, s->causal, scale_of(s),
                     (int)c->B, s->H, s->T, s->T, s->C / s->H);
}

static void bwd_by(const Ops *k, Table *t, const Case *c, void *const *p) {
    const Shape *s = c->s;
    char *d = p[B_DQKV], *x = p[B_QKV];
    k->attention_bwd(t->s, t->t, d, d + part(t, s->C), d + part(t, 2 * s->C), x, 3 * s->C, x + part(t, s->C),
                     x + part(t, 2 * s->C), 3 * s->C, p[B_OUT], p[B_DOUT], s->C, p[B_LSE],
                     s->masked ? p[B_MASK] : NULL, s->causal, scale_of(s), (int)c->B, s->H, s->T, s->T,
                     s->C / s->H);
}

static void run_fwd(Table *t, const Case *c, void *const *p) { fwd_by(t->k, t, c, p); }
static void run_bwd(Table *t, const Case *c, void *const *p) { bwd_by(t->k, t, c, p); }

/* cuDNN's, as run.attention=cudnn computes it: with the packing of keys and the adding of gradients. */
static const Ops *cudnn;
static void cudnn_fwd(Table *t, const Case *c, void *const *p) { fwd_by(cudnn, t, c, p); }
static void cudnn_bwd(Table *t, const Case *c, void *const *p) { bwd_by(cudnn, t, c, p); }

/* One head of one image: where its values are. */
typedef struct Head {
    const Case *c;
    int64_t b, h;
    int qkv;
} Head;
enum { QUERY, KEY, VALUE };
static double qkv(Head a, int64_t token, int which, int64_t d) {
    const Shape *s = a.c->s;
    return value(a.c, a.qkv, ((a.b * s->T + token) * 3 + which) * s->C + a.h * (s->C / s->H) + d);
}
static bool seen(Head a, int64_t query, int64_t key, int mask) {
    const Shape *s = a.c->s;
    return !(s->causal && key > query) && (!s->masked || mask_at(a.c, mask, a.b * s->T + key));
}
static double score(Head a, int64_t i, int64_t j) {
    const int64_t D = a.c->s->C / a.c->s->H;
    double dot = 0;
    for (int64_t d = 0; d < D; d++) dot += qkv(a, i, QUERY, d) * qkv(a, j, KEY, d);
    return dot / sqrt((double)D);
}

static double want_fwd(const Case *c, int k, int64_t i, double *size) {
    const Shape *s = c->s;
    const int64_t T = s->T, D = s->C / s->H;
    Head a = {c, k == F_LSE ? i / (T * s->H) : i / (T * s->C), k == F_LSE ? i / T % s->H : i % s->C / D,
              F_QKV};
    const int64_t query = k == F_LSE ? i % T : i / s->C % T;
    double sum = 0, out = 0;
    for (int64_t j = 0; j < T; j++) {
        if (!seen(a, query, j, F_MASK)) continue;
        const double e = exp(score(a, query, j));
        sum += e;
        out += e * qkv(a, j, VALUE, i % D);
        *size += e * fabs(qkv(a, j, VALUE, i % D));
    }
    if (k == F_LSE) return *size = 1 + fabs(log(sum)), log(sum);
    *size /= sum;
    return out / sum;
}

/* Of the pair (query i, key j): P = e^(score - lse), and dS = P (dout v - sum of dout out); *size: the
 * magnitudes in dS. */
static double pair(Head a, int64_t i, int64_t j, double *p, double *size) {
    const Shape *s = a.c->s;
    const int64_t D = s->C / s->H, row = (a.b * s->T + i) * s->C + a.h * D;
    double dp = 0, magnitude = 0;
    *p = exp(score(a, i, j) - value(a.c, B_LSE, (a.b * s->H + a.h) * s->T + i));
    for (int64_t d = 0; d < D; d++) {
        const double dout = value(a.c, B_DOUT, row + d), v = qkv(a, j, VALUE, d),
                     out = value(a.c, B_OUT, row + d);
        dp += dout * (v - out);
        magnitude += fabs(dout * v) + fabs(dout * out);
    }
    *size = *p * magnitude;
    return *p * dp;
}

static double want_bwd(const Case *c, int k, int64_t i, double *size) {
    const Shape *s = c->s;
    const int64_t T = s->T, C = s->C, D = C / s->H, row = i / (3 * C), which = i / C % 3, d = i % D;
    const Head a = {c, row / T, i % C / D, B_QKV};
    const int64_t token = row % T;
    double sum = 0, magnitude = 0, p, of_ds;
    for (int64_t other = 0; other < T; other++) {
        const int64_t query = which == QUERY ? token : other, key = which == QUERY ? other : token;
        if (!seen(a, query, key, B_MASK)) continue;
        const double ds = pair(a, query, key, &p, &of_ds);
        const double with = which == VALUE
                                ? value(c, B_DOUT, (a.b * T + query) * C + a.h * D + d)
                                : qkv(a, which == QUERY ? key : query, which == QUERY ? KEY : QUERY, d);
        sum += (which == VALUE ? p : ds) * with;
        magnitude += (which == VALUE ? p : of_ds) * fabs(with);
    }
    const double scale = which == VALUE ? 1 : 1 / sqrt((double)D), was = value(c, k, i);
    *size = fabs(was) + scale * magnitude;
    return was + scale * sum;
}

/* B products (T, T) x (T, C) as one: M = B T. */
static Library *library_products(const Case *c, void *const *p) {
    return library_matmul(p[c->add ? B_DOUT : F_OUT_], p[c->add ? B_QKV : F_QKV], p[c->add ? B_QKV : F_QKV],
                          NULL, false, true, false, c->B * c->s->T, c->s->C, c->s->T * (c->add ? 5 : 2));
}
static void card_products(Table *t, const Case *c, void *const *p) {
    const Shape *s = c->s;
    const int64_t K = s->T * (c->add ? 5 : 2);
    void *x = p[c->add ? B_QKV : F_QKV];
    t->k->gemm(t->s, t->t, t->t, p[c->add ? B_DOUT : F_OUT_], s->C, x, K, x, K, NULL, false, true,
               c->B * s->T, s->C, K, 0);
}

static void choose_cudnn(Table *t, Case *c) {
    const Shape *s = c->s;
    const Ops *ops = c->t == BF16 ? bench_cudnn_attention(t->dev, c->add, s->masked, s->causal, (int)c->B,
                                                          s->H, s->T, s->C / s->H)
                                  : NULL;
    if (!ops) return;
    cudnn = ops;
    c->library_card = c->add ? cudnn_bwd : cudnn_fwd;
    c->library_card_name = "cuDNN attention";
}

void rows_attention(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = shape_batch(t), T = s->T, C = s->C, n = B * T * C, D = C / s->H;
    const double product = 2.0 * (double)B * (double)T * (double)T * (double)C;
    const int64_t mask = s->masked ? B * T : 0;
    /* Operands of the baseline: its left side has B T rows of 2 T (5 T) values, more than qkv has when T
     * is long. */
    const int64_t fwd = MAX(3 * n, MAX(B * T, C) * 2 * T), bwd = MAX(3 * n, MAX(B * T, C) * 5 * T);
    Case f = {.op = "attention_fwd",
              .what = "",
              .B = B,
              .flops = 2 * product,
              .run = run_fwd,
              .want = want_fwd,
              .terms = s->T + (int)D,
              .samples = 64,
              .slot = {T_OUT(n), F_OUT(B * s->H * T), T_IN(fwd, -1, 1), M_IN(mask, T)},
              .library = library_products,
              .library_card = card_products,
              .choose_card = choose_cudnn,
              .library_name = "oneDNN matmul of as many operations",
              .library_card_name = "cuBLASLt, a product of as many operations"};
    /* In bf16 the probabilities and dS are rounded before their products. */
    if (t->t == BF16) f.extra = 0x1p-7;
    f.bytes = (double)(4 * n) * (double)dtype_size(t->t) + 4.0 * (double)(B * s->H * T) + (double)mask;
    Case b = {.op = "attention_bwd",
              .what = "",
              .B = B,
              .flops = 5 * product,
              .add = true,
              .run = run_bwd,
              .want = want_bwd,
              .terms = 2 * s->T + (int)D,
              .samples = 48,
              .extra = f.extra,
              .library = library_products,
              .library_card = card_products,
              .choose_card = choose_cudnn,
              .library_name = f.library_name,
              .library_card_name = f.library_card_name,
              .slot = {T_ADD(3 * n), T_IN(bwd, -1, 1), T_IN(n, -0.2, 0.2), T_IN(n, -1, 1),
                       F_IN(B * s->H * T, log((double)T), log((double)T) + 0.5), M_IN(mask, T)}};
    b.bytes = (double)(11 * n) * (double)dtype_size(t->t) + 4.0 * (double)(B * s->H * T) + (double)mask;
    const char *kind = s->causal ? " caus" : s->masked ? " mask" : "";
    bench_row(t, f, "%" PRId64 "x%dx%" PRId64 "x%" PRId64 "%s", B, s->H, T, D, kind);
    bench_row(t, b, "%" PRId64 "x%dx%" PRId64 "x%" PRId64 "%s", B, s->H, T, D, kind);
}
