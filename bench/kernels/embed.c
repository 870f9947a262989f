/* embed.c -- rows of embedding, gathering, concatenation, pooling and pair scores. See kernels.h. */
#include "bench/kernels.h"

/* ---- words: M of N values from a table of K rows -------------------------------------------------- */

RUN(gather_rows, p[0], p[1], p[2], c->M, c->N)
WANT(gather_rows) { return (void)k, (void)size, IN(1, index_at(c, 2, i / c->N) * c->N + i % c->N); }

/* The gradient of a parameter: f32. */
static void run_scatter_rows(Table *t, const Case *c, void *const *p) {
    t->k->scatter_rows(t->s, F32, p[0], t->t, p[1], p[2], c->M, c->N);
}
WANT(scatter_rows) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t r = 0; r < c->M; r++) {
        if (index_at(c, 2, r) != i / c->N) continue;
        sum += IN(1, r * c->N + i % c->N);
        *size += fabs(IN(1, r * c->N + i % c->N));
    }
    return sum;
}

/* ---- positions: M rows, each of 4 of K ------------------------------------------------------------ */

RUN(interp_rows_fwd, p[0], p[1], p[2], p[3], c->M, c->N)
WANT(interp_rows_fwd) {
    (void)k;
    double sum = 0;
    for (int64_t q = i / c->N * 4; q < i / c->N * 4 + 4; q++) {
        const double term = IN(3, q) * IN(1, index_at(c, 2, q) * c->N + i % c->N);
        sum += term, *size += fabs(term);
    }
    return sum;
}
static void run_interp_rows_bwd(Table *t, const Case *c, void *const *p) {
    t->k->interp_rows_bwd(t->s, F32, p[0], t->t, p[1], p[2], p[3], c->M, c->N);
}
WANT(interp_rows_bwd) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t q = 0; q < 4 * c->M; q++) {
        if (index_at(c, 2, q) != i / c->N) continue;
        const double term = IN(3, q) * IN(1, q / 4 * c->N + i % c->N);
        sum += term, *size += fabs(term);
    }
    return sum;
}

/* ---- concatenation: B runs of N values into rows of M --------------------------------------------- */

RUN(copy_rows, p[0], c->M, p[1], c->N, c->B, c->N, c->add)
WANT(copy_rows) {
    const int64_t at = i % c->M, from = i / c->M * c->N + at;
    if (at >= c->N) return IN(k, i); /* not touched */
    *size = fabs(IN(1, from)) + (c->add ? fabs(IN(k, i)) : 0);
    return IN(1, from) + (c->add ? IN(k, i) : 0);
}

/* ---- pooling: B texts of M tokens of N values ----------------------------------------------------- */

RUN(mean_tokens_fwd, p[0], p[1], p[2], c->B, c->M, c->N)
WANT(mean_tokens_fwd) {
    (void)k;
    const int64_t b = i / c->N;
    double sum = 0, n = 0;
    for (int64_t m = 0; m < c->M; m++) {
        if (!mask_at(c, 2, b * c->M + m)) continue;
        const double x = IN(1, (b * c->M + m) * c->N + i % c->N);
        n++, sum += x, *size += fabs(x);
    }
    *size /= n;
    return sum / n;
}
RUN(mean_tokens_bwd, p[0], p[1], p[2], c->B, c->M, c->N)
WANT(mean_tokens_bwd) {
    const int64_t b = i / (c->M * c->N), m = i / c->N % c->M;
    double n = 0, was = IN(k, i);
    for (int64_t j = 0; j < c->M; j++) n += mask_at(c, 2, b * c->M + j);
    const double dy = mask_at(c, 2, b * c->M + m) ? IN(1, b * c->N + i % c->N) / n : 0;
    *size = fabs(was) + fabs(dy);
    return was + dy;
}

/* ---- pair scores: K pairs of B images (M patches of N values) and as many texts ------------------- */

RUN(pair_scores_fwd, p[0], p[1], p[2], p[3], p[4], c->K, c->M, c->N)
WANT(pair_scores_fwd) {
    (void)k;
    const int64_t pair = i / c->M;
    double sum = 0;
    for (int64_t d = 0; d < c->N; d++) {
        const double term = IN(1, (index_at(c, 3, pair) * c->M + i % c->M) * c->N + d) *
                            IN(2, index_at(c, 4, pair) * c->N + d);
        sum += term, *size += fabs(term);
    }
    return sum;
}
enum { PB_DF, PB_DQ, PB_F, PB_Q, PB_DY, PB_IMG, PB_TXT };
RUN(pair_scores_bwd, p[PB_DF], p[PB_DQ], p[PB_F], p[PB_Q], p[PB_DY], p[PB_IMG], p[PB_TXT], c->K, c->M, c->N)
WANT(pair_scores_bwd) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t pair = 0; pair < c->K; pair++) {
        const int64_t image = index_at(c, PB_IMG, pair), text = index_at(c, PB_TXT, pair), d = i % c->N;
        if (k == PB_DF && image == i / (c->M * c->N)) {
            const double term = IN(PB_DY, pair * c->M + i / c->N % c->M) * IN(PB_Q, text * c->N + d);
            sum += term, *size += fabs(term);
        }
        for (int64_t m = 0; k == PB_DQ && text == i / c->N && m < c->M; m++) {
            const double term = IN(PB_DY, pair * c->M + m) * IN(PB_F, (image * c->M + m) * c->N + d);
            sum += term, *size += fabs(term);
        }
    }
    return sum;
}

static void rows_words(Table *t) {
    const Shape *s = t->shape;
    const int64_t M = shape_batch(t) * s->text, C = s->C, words = s->words;
    const double size = (double)dtype_size(t->t), moved = (double)(M * C) * size;
    bench_row(t,
              (Case){.op = "gather_rows",
                     .what = "",
                     .M = M,
                     .N = C,
                     .bytes = 2 * moved + 4.0 * (double)M,
                     .run = run_gather_rows,
                     .want = want_gather_rows,
                     .slot = {T_OUT(M * C), T_IN(words * C, -2, 2), I_IN(M, words)}},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "scatter_rows",
                     .what = "",
                     .M = M,
                     .N = C,
                     .terms = (int)M,
                     .samples = 64,
                     .bytes = moved + 8.0 * (double)(M * C) + 4.0 * (double)M,
                     .run = run_scatter_rows,
                     .want = want_scatter_rows,
                     .slot = {F_ADD(words * C), T_IN(M * C, -1, 1), I_IN(M, words)}},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "mean_tokens_fwd",
                     .what = "",
                     .B = shape_batch(t),
                     .M = s->text,
                     .N = C,
                     .terms = s->text,
                     .run = run_mean_tokens_fwd,
                     .want = want_mean_tokens_fwd,
                     .slot = {T_OUT(shape_batch(t) * C), T_IN(M * C, -2, 2), M_IN(M, s->text)}},
              "%" PRId64 "x%dx%" PRId64, shape_batch(t), s->text, C);
    bench_row(t,
              (Case){.op = "mean_tokens_bwd",
                     .what = "",
                     .B = shape_batch(t),
                     .M = s->text,
                     .N = C,
                     .run = run_mean_tokens_bwd,
                     .want = want_mean_tokens_bwd,
                     .slot = {T_ADD(M * C), T_IN(shape_batch(t) * C, -1, 1), M_IN(M, s->text)}},
              "%" PRId64 "x%dx%" PRId64, shape_batch(t), s->text, C);
}

void rows_embed(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = shape_batch(t), C = s->C;
    if (s->words) rows_words(t);
    if (!s->patch) return;
    const int64_t P = (int64_t)(s->image / s->patch) * (s->image / s->patch), n = B * P;
    bench_row(t,
              (Case){.op = "interp_rows_fwd",
                     .what = "",
                     .M = n,
                     .N = C,
                     .bytes = (double)(n * C + P * C) * (double)dtype_size(t->t) + 32.0 * (double)n,
                     .terms = 4,
                     .run = run_interp_rows_fwd,
                     .want = want_interp_rows_fwd,
                     .slot = {T_OUT(n * C), T_IN(P * C, -2, 2), I_IN(4 * n, P), F_IN(4 * n, 0, 1)}},
              "%" PRId64 "x%" PRId64, n, C);
    bench_row(
        t,
        (Case){.op = "interp_rows_bwd",
               .what = "",
               .M = n,
               .N = C,
               .terms = (int)(4 * n),
               .samples = 32,
               .run = run_interp_rows_bwd,
               .want = want_interp_rows_bwd,
               .bytes = (double)(n * C) * (double)dtype_size(t->t) + 8.0 * (double)(P * C) + 32.0 * (double)n,
               .slot = {F_ADD(P * C), T_IN(n * C, -1, 1), I_IN(4 * n, P), F_IN(4 * n, 0, 1)}},
        "%" PRId64 "x%" PRId64, n, C);
    for (int add = 0; add < 2; add++) { /* the patches' tokens into the sequence; a gradient back */
        Case c = {.op = "copy_rows",
                  .what = add ? "add" : "",
                  .B = B,
                  .M = (int64_t)s->T * C,
                  .N = P * C,
                  .add = add,
                  .run = run_copy_rows,
                  .want = want_copy_rows,
                  .bytes = (2.0 + add) * (double)(n * C) * (double)dtype_size(t->t),
                  .slot = {T_ADD(B * s->T * C), T_IN(n * C, -1, 1)}};
        bench_row(t, c, "%" PRId64 "x%" PRId64, B, P * C);
    }
    if (!s->Q) return;
    const int64_t pairs = 4 * B, D = s->D;
    bench_row(t,
              (Case){.op = "pair_scores_fwd",
                     .what = "",
                     .K = pairs,
                     .M = s->Q,
                     .N = D,
                     .terms = s->D,
                     .run = run_pair_scores_fwd,
                     .samples = 64,
                     .want = want_pair_scores_fwd,
                     .flops = 2.0 * (double)(pairs * s->Q * D),
                     .slot = {T_OUT(pairs * s->Q), T_IN(B * s->Q * D, -1, 1), T_IN(pairs * D, -1, 1),
                              I_IN(pairs, B), I_IN(pairs, pairs)}},
              "%" PRId64 "x%dx%" PRId64, pairs, s->Q, D);
    bench_row(t,
              (Case){.op = "pair_scores_bwd",
                     .what = "",
                     .K = pairs,
                     .M = s->Q,
                     .N = D,
                     .terms = s->Q * 8,
                     .run = run_pair_scores_bwd,
                     .samples = 32,
                     .want = want_pair_scores_bwd,
                     .flops = 4.0 * (double)(pairs * s->Q * D),
                     .slot = {T_ADD(B * s->Q * D), T_ADD(pairs * D), T_IN(B * s->Q * D, -1, 1),
                              T_IN(pairs * D, -1, 1), T_IN(pairs * s->Q, -1, 1), I_IN(pairs, B),
                              I_IN(pairs, pairs)}},
              "%" PRId64 "x%dx%" PRId64, pairs, s->Q, D);
}
