/* softmax.c -- rows of softmax by row, at the lengths of the networks' sequences. See kernels.h. */
#include "bench/kernels.h"

RUN(softmax_fwd, p[0], p[1], c->M, c->N)
WANT(softmax_fwd) {
    (void)k, (void)size;
    double sum = 0;
    for (int64_t j = i / c->N * c->N; j < (i / c->N + 1) * c->N; j++) sum += exp(IN(1, j));
    return exp(IN(1, i)) / sum;
}
static Library *library_fwd(const Case *c, void *const *p) {
    return library_softmax(false, p[0], p[1], NULL, c->M, c->N);
}

RUN(softmax_bwd, p[0], p[1], p[2], c->M, c->N)
WANT(softmax_bwd) {
    double dot = 0, magnitude = 0;
    for (int64_t j = i / c->N * c->N; j < (i / c->N + 1) * c->N; j++)
        dot += IN(1, j) * IN(2, j), magnitude += fabs(IN(1, j) * IN(2, j));
    *size = fabs(IN(k, i)) + fabs(IN(1, i)) * (fabs(IN(2, i)) + magnitude);
    return IN(k, i) + IN(1, i) * (IN(2, i) - dot);
}
static Library *library_bwd(const Case *c, void *const *p) {
    return library_softmax(true, p[0], p[1], p[2], c->M, c->N);
}

void rows_softmax(Table *t) {
    const int64_t M = shape_rows(t), N = t->shape->T, n = M * N;
    bench_row(t,
              (Case){.op = "softmax_fwd",
                     .what = "",
                     .M = M,
                     .N = N,
                     .slot = {T_OUT(n), T_IN(n, -2, 2)},
                     .terms = (int)N,
                     .run = run_softmax_fwd,
                     .want = want_softmax_fwd,
                     .library = library_fwd,
                     .library_name = "oneDNN softmax"},
              "%" PRId64 "x%" PRId64, M, N);
    bench_row(t,
              (Case){.op = "softmax_bwd",
                     .what = "",
                     .M = M,
                     .N = N,
                     .terms = (int)N,
                     .run = run_softmax_bwd,
                     .want = want_softmax_bwd,
                     .slot = {T_ADD(n), T_IN(n, 0, 0.02), T_IN(n, -1, 1)},
                     .library = library_bwd,
                     .library_name = "oneDNN softmax"},
              "%" PRId64 "x%" PRId64, M, N);
}
