/* loss.c -- rows of the losses with their gradients, over the answers (V) and over a detector's patches (Q).
 * See kernels.h.
 *
 * Gradients that would be long to write down are central differences of the loss in double: exact to 1e-9
 * here.
 */
#include "bench/kernels.h"

enum { LOSS, DX, X, TARGET, WEIGHT };
static const double STEP = 1e-5;

static double bce(double x, double target) { return MAX(x, 0) - x * target + log1p(exp(-fabs(x))); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* ---- over a row of V ------------------------------------------------------------------------------ */

RUN(bce_loss, p[LOSS], p[DX], p[X], p[TARGET], p[WEIGHT], 1, c->M, c->N)
WANT(bce_loss) {
    const int64_t V = c->N;
    if (k == DX) return *size = IN(WEIGHT, i / V), IN(WEIGHT, i / V) * (sigmoid(IN(X, i)) - IN(TARGET, i));
    double sum = 0;
    for (int64_t v = i * V; v < (i + 1) * V; v++) {
        sum += bce(IN(X, v), IN(TARGET, v));
        *size += IN(WEIGHT, i) * (fabs(IN(X, v)) + 1);
    }
    return IN(WEIGHT, i) * sum;
}

/* log sum exp of row b of slot k, divided by T. */
static double lse(const Case *c, int k, int64_t b, double T) {
    double sum = 0;
    for (int64_t v = b * c->N; v < (b + 1) * c->N; v++) sum += exp(IN(k, v) / T);
    return log(sum);
}

static const float SMOOTHING = 0.1f;
RUN(ce_loss, p[LOSS], p[DX], p[X], p[TARGET], p[WEIGHT], SMOOTHING, c->M, c->N)
WANT(ce_loss) {
    const int64_t V = c->N, b = k == DX ? i / V : i;
    const double all = lse(c, X, b, 1), w = IN(WEIGHT, b);
    const int64_t label = index_at(c, TARGET, b);
    if (k == DX)
        return *size = w * 2, w * (exp(IN(X, i) - all) - (double)SMOOTHING / (double)V -
                                   (i % V == label ? 1 - (double)SMOOTHING : 0));
    double sum = (1 - (double)SMOOTHING) * (all - IN(X, b * V + label));
    for (int64_t v = b * V; v < (b + 1) * V; v++) sum += (double)SMOOTHING / (double)V * (all - IN(X, v));
    *size = w * (fabs(all) + 3);
    return w * sum;
}

static const double T = 2;
RUN(kl_loss, p[LOSS], p[DX], p[X], p[TARGET], p[WEIGHT], 2, c->M, c->N)
WANT(kl_loss) {
    const int64_t V = c->N, b = k == DX ? i / V : i;
    const double lx = lse(c, X, b, T), lz = lse(c, TARGET, b, T), w = IN(WEIGHT, b);
    if (k == DX)
        return *size = w * T * (exp(IN(X, i) / T - lx) + exp(IN(TARGET, i) / T - lz)),
               w * T * (exp(IN(X, i) / T - lx) - exp(IN(TARGET, i) / T - lz));
    double sum = 0;
    for (int64_t v = b * V; v < (b + 1) * V; v++)
        sum += exp(IN(TARGET, v) / T - lz) * (IN(TARGET, v) / T - lz - IN(X, v) / T + lx);
    *size = w * T * T * (fabs(lx) + fabs(lz) + 4);
    return w * T * T * sum;
}

/* ---- over a row of patches ------------------------------------------------------------------------ */

static const float ALPHA = 0.3f;
static double focal(double x, double y) {
    const double a = (double)ALPHA * y + (1 - (double)ALPHA) * (1 - y);
    return a * pow(fabs(y - sigmoid(x)), 2) * bce(x, y);
}
RUN(focal_loss, p[LOSS], p[DX], p[X], p[TARGET], p[WEIGHT], ALPHA, 2, c->M, c->N)
WANT(focal_loss) {
    if (k == DX) {
        *size = IN(WEIGHT, i) * (1 + fabs(IN(X, i)));
        return IN(WEIGHT, i) *
               (focal(IN(X, i) + STEP, IN(TARGET, i)) - focal(IN(X, i) - STEP, IN(TARGET, i))) / (2 * STEP);
    }
    double sum = 0;
    for (int64_t v = i * c->N; v < (i + 1) * c->N; v++) {
        sum += IN(WEIGHT, v) * focal(IN(X, v), IN(TARGET, v));
        *size += IN(WEIGHT, v) * (1 + fabs(IN(X, v)));
    }
    return sum;
}

static double of_boxes(const double *x, const double *y) {
    double l1 = 0, inter = 1, hull = 1, area = 1, other = 1;
    for (int k = 0; k < 4; k++) l1 += fabs(x[k] - y[k]);
    for (int k = 0; k < 2; k++) {
        const double a0 = x[k] - x[k + 2] / 2, a1 = x[k] + x[k + 2] / 2, b0 = y[k] - y[k + 2] / 2,
                     b1 = y[k] + y[k + 2] / 2;
        inter *= MAX(0, MIN(a1, b1) - MAX(a0, b0));
        hull *= MAX(a1, b1) - MIN(a0, b0);
        area *= a1 - a0, other *= b1 - b0;
    }
    const double both = area + other - inter;
    return l1 + 1 - (inter / both - (hull - both) / hull);
}
static void run_box_loss(Table *t, const Case *c, void *const *p) {
    t->k->box_loss(t->s, p[LOSS], p[DX], p[X], p[TARGET], p[WEIGHT], 1, 1, false, c->N);
}
WANT(box_loss) {
    const int64_t b = k == DX ? i / 4 : i;
    double x[4], y[4];
    for (int j = 0; j < 4; j++) x[j] = IN(X, 4 * b + j), y[j] = IN(TARGET, 4 * b + j);
    *size = IN(WEIGHT, b) * (k == DX ? 100 : 8); /* quotients by areas, the smallest is 0.01 */
    if (k == LOSS) return IN(WEIGHT, b) * of_boxes(x, y);
    x[i % 4] += STEP;
    const double more = of_boxes(x, y);
    x[i % 4] -= 2 * STEP;
    return IN(WEIGHT, b) * (more - of_boxes(x, y)) / (2 * STEP);
}

void rows_loss(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = shape_batch(t), V = s->V, n = B * V;
    if (V) {
        bench_row(t,
                  (Case){.op = "bce_loss",
                         .what = "",
                         .M = B,
                         .N = V,
                         .terms = (int)V,
                         .run = run_bce_loss,
                         .want = want_bce_loss,
                         .slot = {F_OUT(B), T_OUT(n), T_IN(n, -3, 3), F_IN(n, 0, 1), F_IN(B, 0.5, 1)}},
                  "%" PRId64 "x%" PRId64, B, V);
        bench_row(t,
                  (Case){.op = "ce_loss",
                         .what = "",
                         .M = B,
                         .N = V,
                         .terms = (int)V,
                         .samples = 64,
                         .run = run_ce_loss,
                         .want = want_ce_loss,
                         .slot = {F_OUT(B), T_OUT(n), T_IN(n, -3, 3), I_IN(B, V), F_IN(B, 0.5, 1)}},
                  "%" PRId64 "x%" PRId64, B, V);
        bench_row(t,
                  (Case){.op = "kl_loss",
                         .what = "",
                         .M = B,
                         .N = V,
                         .terms = (int)V,
                         .samples = 64,
                         .run = run_kl_loss,
                         .want = want_kl_loss,
                         .slot = {F_OUT(B), T_OUT(n), T_IN(n, -3, 3), F_IN(n, -3, 3), F_IN(B, 0.5, 1)}},
                  "%" PRId64 "x%" PRId64, B, V);
    }
    if (!s->Q) return;
    const int64_t scores = B * s->Q;
    bench_row(t,
              (Case){.op = "focal_loss",
                     .what = "",
                     .M = B,
                     .N = s->Q,
                     .terms = s->Q,
                     .run = run_focal_loss,
                     .want = want_focal_loss,
                     .slot = {F_OUT(B), T_OUT(scores), T_IN(scores, -3, 3), F_IN(scores, 0, 1),
                              F_IN(scores, 0.5, 1)}},
              "%" PRId64 "x%d", B, s->Q);
    bench_row(t,
              (Case){.op = "box_loss",
                     .what = "",
                     .N = scores,
                     .f32_only = true,
                     .run = run_box_loss,
                     .want = want_box_loss,
                     .slot = {F_OUT(scores), F_OUT(4 * scores), F_IN(4 * scores, 0.1, 0.9),
                              F_IN(4 * scores, 0.1, 0.9), F_IN(scores, 0.5, 1)}},
              "%" PRId64 "x4", scores);
}
