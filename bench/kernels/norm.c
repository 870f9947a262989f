/* norm.c -- rows of layer normalisation and of unit vectors. See kernels.h. */
#include "bench/kernels.h"

/* ---- layer norm ----------------------------------------------------------------------------------- */

/* Value i of slot k of a forward pass whose row `row` is x(c, row, .); out: its slots y, mean, rstd from this one on. */
static double normalised(const Case *c, int k, int out, int gamma, int64_t i, double *size,
                         double (*x)(const Case *c, int64_t at)) {
    const int64_t C = c->N, row = k == out ? i / C : i;
    double mean = 0, var = 0, magnitude = 0;
    for (int64_t j = 0; j < C; j++) {
        mean += x(c, row * C + j) / (double)C;
        magnitude += fabs(x(c, row * C + j)) / (double)C;
    }
    for (int64_t j = 0; j < C; j++) var += pow(x(c, row * C + j) - mean, 2) / (double)C;
    const double rstd = 1 / sqrt(var + 1e-12), v = x(c, row * C + i % C), g = IN(gamma, i % C),
                 b = IN(gamma + 1, i % C);
    *size = k == out + 1 ? magnitude : k == out + 2 ? rstd : (fabs(v) + magnitude) * rstd * fabs(g) + fabs(b);
    return k == out + 1 ? mean : k == out + 2 ? rstd : (v - mean) * rstd * g + b;
}

enum { LN_Y, LN_MEAN, LN_RSTD, LN_X, LN_GAMMA, LN_BETA };
RUN(layernorm_fwd, p[LN_Y], p[LN_MEAN], p[LN_RSTD], p[LN_X], p[LN_GAMMA], p[LN_BETA], 1e-12f, c->M, c->N)
static double ln_x(const Case *c, int64_t at) { return IN(LN_X, at); }
WANT(layernorm_fwd) { return normalised(c, k, LN_Y, LN_GAMMA, i, size, ln_x); }

enum { AL_SUM, AL_Y, AL_MEAN, AL_RSTD, AL_A, AL_B, AL_GAMMA, AL_BETA };
RUN(add_layernorm_fwd, p[AL_SUM], p[AL_Y], p[AL_MEAN], p[AL_RSTD], p[AL_A], p[AL_B], p[AL_GAMMA], p[AL_BETA],
    1e-12f, c->M, c->N)
/* Rounded to the row's type: the norm is that of what is written. */
static double al_sum(const Case *c, int64_t at) {
    const float sum = (float)IN(AL_A, at) + (float)IN(AL_B, at);
    return (double)(c->t == BF16 ? bf16_value(bf16_round(sum)) : sum);
}
WANT(add_layernorm_fwd) {
    if (k != AL_SUM) return normalised(c, k, AL_Y, AL_GAMMA, i, size, al_sum);
    *size = fabs(IN(AL_A, i)) + fabs(IN(AL_B, i));
    return al_sum(c, i);
}
static Library *library_fwd(const Case *c, void *const *p) {
    return library_layernorm(false, p[LN_Y], p[LN_MEAN], p[LN_RSTD], p[LN_X], NULL, p[LN_GAMMA], p[LN_BETA],
                             NULL, NULL, c->M, c->N);
}

enum { LB_DX, LB_DGAMMA, LB_DBETA, LB_X, LB_DY, LB_MEAN, LB_RSTD, LB_GAMMA };
RUN(layernorm_bwd, p[LB_DX], p[LB_DGAMMA], p[LB_DBETA], p[LB_X], p[LB_DY], p[LB_MEAN], p[LB_RSTD],
    p[LB_GAMMA], c->M, c->N)
static double xhat(const Case *c, int64_t row, int64_t j) {
    return (IN(LB_X, row * c->N + j) - IN(LB_MEAN, row)) * IN(LB_RSTD, row);
}
WANT(layernorm_bwd) {
    const int64_t C = c->N;
    double sum = IN(k, i);
    *size = fabs(sum);
    if (k != LB_DX) { /* over all rows */
        for (int64_t r = 0; r < c->M; r++) {
            const double term = IN(LB_DY, r * C + i) * (k == LB_DGAMMA ? xhat(c, r, i) : 1);
            sum += term;
            *size += fabs(term);
        }
        return sum;
    }
    const int64_t row = i / C;
    double g1 = 0, g2 = 0, s1 = 0, s2 = 0;
    for (int64_t j = 0; j < C; j++) {
        const double g = IN(LB_DY, row * C + j) * IN(LB_GAMMA, j) / (double)C, gx = g * xhat(c, row, j);
        g1 += g, g2 += gx, s1 += fabs(g), s2 += fabs(gx);
    }
    const double g = IN(LB_DY, i) * IN(LB_GAMMA, i % C), x = xhat(c, row, i % C), r = IN(LB_RSTD, row);
    *size += r * (fabs(g) + s1 + fabs(x) * s2);
    return sum + r * (g - g1 - x * g2);
}
static Library *library_bwd(const Case *c, void *const *p) {
    return library_layernorm(true, p[LB_DX], p[LB_MEAN], p[LB_RSTD], p[LB_X], p[LB_DY], p[LB_GAMMA],
                             p[LB_GAMMA], p[LB_DGAMMA], p[LB_DBETA], c->M, c->N);
}

/* ---- unit vectors --------------------------------------------------------------------------------- */

static double length(const Case *c, int slot, int64_t row) {
    double squares = 0;
    for (int64_t j = 0; j < c->N; j++) squares += pow(IN(slot, row * c->N + j), 2);
    return sqrt(squares);
}
RUN(l2norm_fwd, p[0], p[1], p[2], 1e-6f, c->M, c->N)
WANT(l2norm_fwd) {
    (void)size;
    const double inv = 1 / (length(c, 2, k ? i : i / c->N) + 1e-6);
    return k ? inv : IN(2, i) * inv;
}
RUN(l2norm_bwd, p[0], p[1], p[2], p[3], 1e-6f, c->M, c->N)
WANT(l2norm_bwd) {
    const int64_t row = i / c->N;
    const double inv = IN(3, row), norm = 1 / inv - 1e-6;
    double dot = 0, magnitude = 0;
    for (int64_t j = row * c->N; j < (row + 1) * c->N; j++)
        dot += IN(1, j) * IN(2, j), magnitude += fabs(IN(1, j) * IN(2, j));
    const double a = inv * inv / norm;
    *size = fabs(IN(k, i)) + fabs(inv * IN(2, i)) + a * fabs(IN(1, i)) * magnitude;
    return IN(k, i) + inv * IN(2, i) - a * IN(1, i) * dot;
}

void rows_norm(Table *t) {
    const Shape *s = t->shape;
    const int64_t M = shape_rows(t), C = s->C, n = M * C;
    bench_row(t,
              (Case){.op = "layernorm_fwd",
                     .what = "",
                     .M = M,
                     .N = C,
                     .terms = s->C,
                     .run = run_layernorm_fwd,
                     .want = want_layernorm_fwd,
                     .slot = {T_OUT(n), F_OUT(M), F_OUT(M), T_IN(n, -2, 2), F_IN(C, 0, 1), F_IN(C, 0, 1)},
                     .library = library_fwd,
                     .library_name = "oneDNN layer_normalization"},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "add_layernorm_fwd",
                     .what = "",
                     .M = M,
                     .N = C,
                     .terms = s->C,
                     .run = run_add_layernorm_fwd,
                     .want = want_add_layernorm_fwd,
                     .slot = {T_OUT(n), T_OUT(n), F_OUT(M), F_OUT(M), T_IN(n, -2, 2), T_IN(n, -1, 1),
                              F_IN(C, 0, 1), F_IN(C, 0, 1)}},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "layernorm_bwd",
                     .what = "",
                     .M = M,
                     .N = C,
                     .terms = (int)MAX(M, C),
                     .samples = 64,
                     .run = run_layernorm_bwd,
                     .want = want_layernorm_bwd,
                     .library = library_bwd,
                     .library_name = "oneDNN layer_normalization",
                     .slot = {T_ADD(n), F_ADD(C), F_ADD(C), T_IN(n, -2, 2), T_IN(n, -1, 1),
                              F_IN(M, -0.1, 0.1), F_IN(M, 0.8, 1.2), F_IN(C, 0, 1)}},
              "%" PRId64 "x%" PRId64, M, C);
    if (!s->D) return;
    const int64_t rows = shape_batch(t) * s->Q, D = s->D;
    bench_row(t,
              (Case){.op = "l2norm_fwd",
                     .what = "",
                     .M = rows,
                     .N = D,
                     .terms = s->D,
                     .run = run_l2norm_fwd,
                     .want = want_l2norm_fwd,
                     .slot = {T_OUT(rows * D), F_OUT(rows), T_IN(rows * D, -2, 2)}},
              "%" PRId64 "x%" PRId64, rows, D);
    bench_row(t,
              (Case){.op = "l2norm_bwd",
                     .what = "",
                     .M = rows,
                     .N = D,
                     .terms = s->D,
                     .run = run_l2norm_bwd,
                     .want = want_l2norm_bwd,
                     .slot = {T_ADD(rows * D), T_IN(rows * D, -2, 2), T_IN(rows * D, -1, 1),
                              F_IN(rows, 0.03, 0.05)}},
              "%" PRId64 "x%" PRId64, rows, D);
}
