/* gemm.c -- rows of the matrix products of a transformer's layers, forward and backward. See kernels.h.
 *
 * dx: the gradient of a layer's input. dw: of its weight, f32 and added.
 */
#include "bench/kernels.h"

enum { C_, A_, B_, BIAS };

static void run_gemm(Table *t, const Case *c, void *const *p) {
    const int64_t lda = c->ta ? c->M : c->K, ldb = c->tb ? c->K : c->N;
    t->k->gemm(t->s, t->t, c->add ? F32 : t->t, p[C_], c->N, p[A_], lda, p[B_], ldb, c->tb ? p[BIAS] : NULL,
               c->ta, c->tb, c->M, c->N, c->K, c->add);
}

WANT(gemm) {
    const int64_t m = i / c->N, n = i % c->N;
    double sum = c->add ? IN(k, i) : c->tb ? IN(BIAS, n) : 0;
    *size = fabs(sum);
    for (int64_t l = 0; l < c->K; l++) {
        const double term =
            IN(A_, c->ta ? l * c->M + m : m * c->K + l) * IN(B_, c->tb ? n * c->K + l : l * c->N + n);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

static Library *library_gemm(const Case *c, void *const *p) {
    return library_matmul(p[C_], p[A_], p[B_], c->tb ? p[BIAS] : NULL, c->ta, c->tb, c->add, c->M, c->N,
                          c->K);
}

/* The patches row's values as images of a convolution. */
static void card_patches(Table *t, const Case *c, void *const *p) {
    const Shape *s = c->s;
    const int64_t grid = s->image / s->patch;
    bench_cudnn_patches(t->dev, (int)t->t, p[C_], p[A_], p[B_], c->M / (grid * grid), s->image, s->patch,
                        c->N);
}

static void choose_convolution(Table *t, Case *c) {
    const Shape *s = c->s;
    const int64_t grid = s->image / s->patch;
    if (!bench_cudnn_has_patches(t->dev, (int)c->t, c->M / (grid * grid), s->image, s->patch, c->N)) return;
    c->library_card = card_patches;
    c->library_card_name = "cuDNN convolution";
}

RUN(bias_bwd, p[0], p[1], c->M, c->N)
WANT(bias_bwd) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t r = 0; r < c->M; r++) {
        sum += IN(1, r * c->N + i);
        *size += fabs(IN(1, r * c->N + i));
    }
    return sum;
}
static Library *library_bias(const Case *c, void *const *p) {
    return library_column_sums(p[0], p[1], c->M, c->N);
}

/* Both gradients of fc1's parameters: dw (N,K), dbias (N) from dy (M,N), x (M,K). */
enum { DW, DBIAS, DY, X_ };
RUN(gemm_bgrad, p[DW], p[DBIAS], p[DY], p[X_], c->M, c->N, c->K)
WANT(gemm_bgrad) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t r = 0; r < c->M; r++) {
        const double term =
            k == DW ? IN(DY, r * c->N + i / c->K) * IN(X_, r * c->K + i % c->K) : IN(DY, r * c->N + i);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}
static void gemm_and_bias_bwd(Table *t, const Case *c, void *const *p) {
    t->k->gemm(t->s, t->t, F32, p[DW], c->K, p[DY], c->N, p[X_], c->K, NULL, true, false, c->N, c->K, c->M,
               1);
    t->k->bias_bwd(t->s, t->t, p[DBIAS], p[DY], c->M, c->N);
}

/* fc1 with gelu's tanh form, y and pre (M,N) from x (M,K), w (N,K), bias (N); and fc2's way back, dpre (M,N)
 * from pre (M,N), dz (M,K), w (K,N). */
enum { Y_, PRE, FX, FW, FBIAS };
RUN(gemm_gelu_tanh, p[Y_], p[PRE], p[FX], p[FW], p[FBIAS], c->M, c->N, c->K)
WANT(gemm_gelu_tanh) {
    const int64_t m = i / c->N, n = i % c->N;
    double sum = IN(FBIAS, n);
    *size = fabs(sum);
    for (int64_t l = 0; l < c->K; l++) {
        const double term = IN(FX, m * c->K + l) * IN(FW, n * c->K + l);
        sum += term;
        *size += fabs(term);
    }
    return k == PRE ? sum : gelu_tanh(sum);
}
static void gemm_and_gelu_tanh(Table *t, const Case *c, void *const *p) {
    t->k->gemm(t->s, t->t, t->t, p[PRE], c->N, p[FX], c->K, p[FW], c->K, p[FBIAS], false, true, c->M, c->N,
               c->K, 0);
    t->k->gelu_tanh_fwd(t->s, t->t, p[Y_], p[PRE], c->M * c->N);
}
enum { DPRE, DPRE_OF, DZ, DW2 };
RUN(gemm_dgelu_tanh, p[DPRE], p[DPRE_OF], p[DZ], p[DW2], c->M, c->N, c->K)
WANT(gemm_dgelu_tanh) {
    const int64_t m = i / c->N, n = i % c->N;
    double sum = 0;
    *size = 0, (void)k;
    for (int64_t l = 0; l < c->K; l++) {
        const double term = IN(DZ, m * c->K + l) * IN(DW2, l * c->N + n);
        sum += term;
        *size += fabs(term);
    }
    return sum * gelu_tanh_slope(IN(DPRE_OF, i));
}
static void gemm_and_gelu_tanh_bwd(Table *t, const Case *c, void *const *p) {
    t->k->gemm(t->s, t->t, t->t, p[DPRE], c->N, p[DZ], c->K, p[DW2], c->N, NULL, false, false, c->M, c->N,
               c->K, 0);
    t->k->gelu_tanh_bwd(t->s, t->t, p[DPRE], p[DPRE_OF], p[DPRE], c->M * c->N);
}

void rows_gemm(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = shape_batch(t), rows = shape_rows(t), C = s->C, F = s->mlp,
                  P = s->patch ? (int64_t)(s->image / s->patch) * (s->image / s->patch) : 0;
    const struct {
        const char *what;
        int64_t M, N, K;
        bool ta, tb;
    } list[] = {
        {"patches", B * P, C, 3 * (int64_t)s->patch * s->patch, false, true},
        {"qkv", rows, 3 * C, C, false, true},
        {"qkv dx", rows, C, 3 * C, false, false},
        {"qkv dw", 3 * C, C, rows, true, false},
        {"proj", rows, C, C, false, true},
        {"fc1", rows, F, C, false, true},
        {"fc1 dx", rows, C, F, false, false},
        {"fc1 dw", F, C, rows, true, false},
        {"fc2", rows, C, F, false, true},
        {"fc2 dx", rows, F, C, false, false},
        {"fc2 dw", C, F, rows, true, false},
        {"answers", B, s->V, 2 * C, false, true},
    };
    for (int i = 0; i < COUNT_OF(list); i++) {
        const int64_t M = list[i].M, N = list[i].N, K = list[i].K;
        if (!M || !N) continue;
        Case c = {
            .op = "gemm",
            .what = list[i].what,
            .slot = {T_OUT(M * N), T_IN(M * K, -2, 2), T_IN(K * N, -1, 1), F_IN(list[i].tb ? N : 0, 0, 1)},
            .flops = 2.0 * (double)M * (double)N * (double)K,
            .M = M,
            .N = N,
            .K = K,
            .ta = list[i].ta,
            .tb = list[i].tb,
            .add = list[i].ta,
            .terms = (int)K,
            .samples = 64,
            .run = run_gemm,
            .want = want_gemm,
            .library = library_gemm,
            .library_name = "oneDNN matmul"};
        if (!strcmp(list[i].what, "patches")) c.choose_card = choose_convolution;
        if (c.add) c.slot[C_] = (Slot)F_ADD(M * N);
        bench_row(t, c, "%" PRId64 "x%" PRId64 "x%" PRId64, M, N, K);
    }
    bench_row(t,
              (Case){.op = "bias_bwd",
                     .what = "",
                     .slot = {F_ADD(F), T_IN(rows * F, -1, 1)},
                     .M = rows,
                     .N = F,
                     .terms = (int)rows,
                     .samples = 64,
                     .run = run_bias_bwd,
                     .want = want_bias_bwd,
                     .library = library_bias,
                     .library_name = "oneDNN reduction"},
              "%" PRId64 "x%" PRId64, rows, F);
    bench_row(t,
              (Case){.op = "gemm_bgrad",
                     .what = "fc1",
                     .slot = {F_ADD(F * C), F_ADD(F), T_IN(rows * F, -1, 1), T_IN(rows * C, -2, 2)},
                     .flops = 2.0 * (double)rows * (double)F * (double)C,
                     .M = rows,
                     .N = F,
                     .K = C,
                     .terms = (int)rows,
                     .samples = 64,
                     .run = run_gemm_bgrad,
                     .want = want_gemm_bgrad,
                     .library_card = gemm_and_bias_bwd,
                     .library_card_name = "gemm, bias_bwd"},
              "%" PRId64 "x%" PRId64 "x%" PRId64, F, C, rows);
    if ((s->Q || s->causal) && !s->V) return; /* CLIP's towers have quick_gelu */
    bench_row(t,
              (Case){.op = "gemm_gelu_tanh",
                     .what = "fc1",
                     .slot = {T_OUT(rows * F), T_OUT(rows * F), T_IN(rows * C, -2, 2), T_IN(F * C, -1, 1),
                              F_IN(F, 0, 1)},
                     .flops = 2.0 * (double)rows * (double)F * (double)C,
                     .M = rows,
                     .N = F,
                     .K = C,
                     .terms = (int)C,
                     .samples = 64,
                     .run = run_gemm_gelu_tanh,
                     .want = want_gemm_gelu_tanh,
                     .library_card = gemm_and_gelu_tanh,
                     .library_card_name = "gemm, gelu_tanh_fwd"},
              "%" PRId64 "x%" PRId64 "x%" PRId64, rows, F, C);
    bench_row(
        t,
        (Case){.op = "gemm_dgelu_tanh",
               .what = "fc2",
               .slot = {T_OUT(rows * F), T_IN(rows * F, -3, 3), T_IN(rows * C, -1, 1), T_IN(F * C, -1, 1)},
               .flops = 2.0 * (double)rows * (double)F * (double)C,
               .M = rows,
               .N = F,
               .K = C,
               .terms = (int)C,
               .samples = 64,
               .run = run_gemm_dgelu_tanh,
               .want = want_gemm_dgelu_tanh,
               .library_card = gemm_and_gelu_tanh_bwd,
               .library_card_name = "gemm, gelu_tanh_bwd"},
        "%" PRId64 "x%" PRId64 "x%" PRId64, rows, F, C);
}
