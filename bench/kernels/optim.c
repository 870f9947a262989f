/* optim.c -- rows of the optimizer, over all parameters of a network at once. See kernels.h. */
#include "bench/kernels.h"

enum { P_, M_, V_, G_, HALF };

/* In bf16: the new parameters in bf16, too, beside the f32 ones. */
static void run_adamw(Table *t, const Case *c, void *const *p) {
    const AdamSegment all = {0, c->N, 1e-5f, 0.01f};
    t->k->adamw(t->s, p[P_], p[M_], p[V_], t->t == BF16 ? p[HALF] : NULL, p[G_], &all, 1, 0.9f, 0.98f, 1e-8f,
                1, 1000);
}
WANT(adamw) {
    const double g = IN(G_, i), m = 0.9 * IN(M_, i) + 0.1 * g, v = 0.98 * IN(V_, i) + 0.02 * g * g,
                 w = IN(P_, i);
    *size = fabs(w) + 1; /* b1 and b2 as f32: 1 - b2 is exact to 3e-6 */
    if (k == M_) return m;
    if (k == V_) return v;
    return w - 1e-5 * (m / (1 - pow(0.9, 1000)) / (sqrt(v / (1 - pow(0.98, 1000))) + 1e-8) + 0.01 * w);
}

/* The sum is the host's: of the last run, beside what is counted as written. */
static double sum;
static void run_sum_squares(Table *t, const Case *c, void *const *p) {
    t->k->sum_squares(t->s, t->t, &sum, p[0], c->N);
}
static int wrong_sum(Table *t, const Case *c, void *const *p) {
    (void)t, (void)p;
    double want = 0, period = 0;
    for (int64_t i = 0; i < MIN(c->N, PATTERN); i++) period += value(c, 0, i) * value(c, 0, i);
    for (int64_t i = c->N / PATTERN * PATTERN; i < c->N; i++) want += value(c, 0, i) * value(c, 0, i);
    want += (double)(c->N / PATTERN) * period;
    return !(fabs(sum - want) <= 1e-9 * want); /* in double: N 2^-53 */
}

void rows_optim(Table *t) {
    const int64_t n = t->shape->parameters;
    if (!n) return;
    bench_row(t,
              (Case){.op = "adamw",
                     .what = "",
                     .N = n,
                     .run = run_adamw,
                     .want = want_adamw,
                     .slot = {F_ADD(n), F_ADD(n), F_ADD(n), F_IN(n, -1, 1), T_OUT(t->t == BF16 ? n : 0)}},
              "%" PRId64, n);
    bench_row(t,
              (Case){.op = "sum_squares",
                     .what = "",
                     .N = n,
                     .f32_only = true,
                     .run = run_sum_squares,
                     .wrong = wrong_sum,
                     .slot = {F_IN(n, -1, 1)}},
              "%" PRId64, n);
}
