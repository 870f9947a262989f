/* elementwise.c -- rows of activations, sums, products, dropout and casts. See kernels.h. */
#include "bench/kernels.h"
#include "kernels/philox.h"

/* ---- activations ---------------------------------------------------------------------------------- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double gelu(double x) { return 0.5 * x * (1 + erf(x / sqrt(2))); }
static double gelu_slope(double x) {
    return 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
}
static double quick_gelu(double x) { return x * sigmoid(1.702 * x); }
static double quick_gelu_slope(double x) {
    return sigmoid(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid(1.702 * x)));
}
static double elu1(double x) { return x < 0 ? exp(x) : x + 1; }
static double elu1_slope(double x) { return x < 0 ? exp(x) : 1; }
static double tanh_slope(double y) { return 1 - y * y; }
static double sigmoid_slope(double y) { return y * (1 - y); }

/* The size of a value: what a fit of the function is exact to, relative to its input. */
#define ACTIVATION(name, f, slope, kind)                                                                     \
    RUN(name##_fwd, p[0], p[1], c->N)                                                                        \
    WANT(name##_fwd) {                                                                                       \
        (void)k;                                                                                             \
        *size = fabs(IN(1, i)) + 1;                                                                          \
        return f(IN(1, i));                                                                                  \
    }                                                                                                        \
    static Library *library_##name##_fwd(const Case *c, void *const *p) {                                    \
        return library_eltwise(kind, false, p[0], p[1], NULL, c->N);                                         \
    }                                                                                                        \
    RUN(name##_bwd, p[0], p[1], p[2], c->N)                                                                  \
    WANT(name##_bwd) {                                                                                       \
        *size = fabs(IN(k, i)) + fabs(IN(2, i)) * (1 + fabs(IN(1, i)));                                      \
        return IN(k, i) + IN(2, i) * slope(IN(1, i));                                                        \
    }                                                                                                        \
    static Library *library_##name##_bwd(const Case *c, void *const *p) {                                    \
        return library_eltwise(kind, true, p[0], p[1], p[2], c->N);                                          \
    }                                                                                                        \
    static void rows_##name(Table *t, int64_t M, int64_t C, double lo, double hi) {                          \
        const int64_t n = M * C;                                                                             \
        bench_row(t,                                                                                         \
                  (Case){.op = #name "_fwd",                                                                 \
                         .what = "",                                                                         \
                         .N = n,                                                                             \
                         .slot = {T_OUT(n), T_IN(n, -3, 3)},                                                 \
                         .run = run_##name##_fwd,                                                            \
                         .want = want_##name##_fwd,                                                          \
                         .library = library_##name##_fwd,                                                    \
                         .library_name = "oneDNN eltwise"},                                                  \
                  "%" PRId64 "x%" PRId64, M, C);                                                             \
        bench_row(t,                                                                                         \
                  (Case){.op = #name "_bwd",                                                                 \
                         .what = "",                                                                         \
                         .N = n,                                                                             \
                         .slot = {T_ADD(n), T_IN(n, lo, hi), T_IN(n, -1, 1)},                                \
                         .run = run_##name##_bwd,                                                            \
                         .want = want_##name##_bwd,                                                          \
                         .library = library_##name##_bwd,                                                    \
                         .library_name = "oneDNN eltwise"},                                                  \
                  "%" PRId64 "x%" PRId64, M, C);                                                             \
    }

ACTIVATION(gelu, gelu, gelu_slope, ELT_GELU)
ACTIVATION(gelu_tanh, gelu_tanh, gelu_tanh_slope, ELT_GELU_TANH)
ACTIVATION(quick_gelu, quick_gelu, quick_gelu_slope, ELT_QUICK_GELU)
ACTIVATION(elu1, elu1, elu1_slope, ELT_ELU)
ACTIVATION(tanh, tanh, tanh_slope, ELT_TANH)
ACTIVATION(sigmoid, sigmoid, sigmoid_slope, ELT_SIGMOID)

/* ---- sums and products ---------------------------------------------------------------------------- */

RUN(add_fwd, p[0], p[1], p[2], c->N)
WANT(add_fwd) { return (void)k, *size = fabs(IN(1, i)) + fabs(IN(2, i)), IN(1, i) + IN(2, i); }
static Library *library_add(const Case *c, void *const *p) {
    return library_binary(false, p[0], p[1], p[2], c->N);
}
static void run_accumulate(Table *t, const Case *c, void *const *p) {
    t->k->accumulate(t->s, t->t, p[0], t->t, p[1], c->N);
}
WANT(accumulate) { return *size = fabs(IN(k, i)) + fabs(IN(1, i)), IN(k, i) + IN(1, i); }
RUN(mul_fwd, p[0], p[1], p[2], c->N)
WANT(mul_fwd) { return (void)k, (void)size, IN(1, i) * IN(2, i); }
static Library *library_mul(const Case *c, void *const *p) {
    return library_binary(true, p[0], p[1], p[2], c->N);
}
RUN(mul_bwd, p[0], p[1], p[2], p[3], p[4], c->N)
WANT(mul_bwd) {
    const double term = IN(4, i) * IN(k ? 2 : 3, i);
    *size = fabs(IN(k, i)) + fabs(term);
    return IN(k, i) + term;
}
RUN(add_rows_fwd, p[0], p[1], p[2], c->M, c->N)
WANT(add_rows_fwd) {
    return (void)k, *size = fabs(IN(1, i)) + fabs(IN(2, i % c->N)), IN(1, i) + IN(2, i % c->N);
}
/* Of a parameter: f32. */
static void run_add_rows_bwd(Table *t, const Case *c, void *const *p) {
    t->k->add_rows_bwd(t->s, F32, p[0], t->t, p[1], c->M, c->N);
}
WANT(add_rows_bwd) {
    double sum = IN(k, i);
    *size = fabs(sum);
    for (int64_t r = 0; r < c->M; r++) sum += IN(1, r * c->N + i), *size += fabs(IN(1, r * c->N + i));
    return sum;
}
RUN(mul_tokens_fwd, p[0], p[1], p[2], c->B, c->M, c->N)
WANT(mul_tokens_fwd) { return (void)k, (void)size, IN(1, i) * IN(2, i / (c->M * c->N) * c->N + i % c->N); }
RUN(mul_tokens_bwd, p[0], p[1], p[2], p[3], p[4], c->B, c->M, c->N)
WANT(mul_tokens_bwd) {
    double sum = IN(k, i);
    *size = fabs(sum);
    if (k) {
        for (int64_t m = 0; m < c->M; m++) {
            const int64_t at = (i / c->N * c->M + m) * c->N + i % c->N;
            sum += IN(4, at) * IN(2, at), *size += fabs(IN(4, at) * IN(2, at));
        }
        return sum;
    }
    const double term = IN(4, i) * IN(3, i / (c->M * c->N) * c->N + i % c->N);
    *size += fabs(term);
    return sum + term;
}

/* ---- dropout, casts ------------------------------------------------------------------------------- */

enum { DROP_SEED = 7 };
static double keep(int64_t i) {
    uint32_t word[4];
    philox(word, DROP_SEED, (uint64_t)i / 4);
    return word[i % 4] < dropout_threshold(0.1f) ? 0 : 1 / 0.9;
}
RUN(dropout_fwd, p[0], p[1], 0.1f, DROP_SEED, 0, c->N)
WANT(dropout_fwd) { return (void)k, (void)size, IN(1, i) * keep(i); }
RUN(dropout_bwd, p[0], p[1], 0.1f, DROP_SEED, 0, c->N)
WANT(dropout_bwd) { return *size = fabs(IN(k, i)) + fabs(IN(1, i)) / 0.9, IN(k, i) + IN(1, i) * keep(i); }

/* The f32 side is a REAL slot, the bf16 side two bytes a value that the format of the row (bf16 here)
 * reads as a TENSOR. */
static void run_cast(Table *t, const Case *c, void *const *p) {
    t->k->cast(t->s, c->add ? F32 : BF16, p[0], c->add ? BF16 : F32, p[1], c->N);
}
static Library *library_of_cast(const Case *c, void *const *p) {
    return library_cast(p[0], p[1], !c->add, c->N);
}

/* How many of a sample are not the nearest bf16 (or not what a bf16 stands for). */
static int cast_wrong(Table *t, const Case *c, void *const *p) {
    int wrong = 0;
    for (int j = 0; j < 256; j++) {
        const int64_t i = sample_at(j, c->N);
        uint16_t half;
        float real;
        t->dev->download(t->dev, &half, (char *)p[c->add ? 1 : 0] + 2 * i, 2);
        t->dev->download(t->dev, &real, (char *)p[c->add ? 0 : 1] + 4 * i, 4);
        const float up = bf16_value((uint16_t)(half + 1)), down = bf16_value((uint16_t)(half - 1)),
                    value_of_half = bf16_value(half);
        const double off = fabs((double)value_of_half - (double)real);
        if (c->add)
            wrong += isnan(value_of_half) ? !isnan(real) : real != value_of_half;
        else
            wrong += !(off <= fabs((double)up - (double)real) && off <= fabs((double)down - (double)real));
    }
    return wrong;
}

static void rows_cast(Table *t, int64_t n) {
    for (int to_f32 = 0; to_f32 < 2; to_f32++) {
        Case c = {.op = "cast",
                  .what = to_f32 ? "to f32" : "to bf16",
                  .N = n,
                  .add = to_f32,
                  .f32_only = true,
                  .bytes = 6.0 * (double)n,
                  .run = run_cast,
                  .wrong = cast_wrong,
                  .library = library_of_cast,
                  .library_name = "oneDNN reorder"};
        c.slot[to_f32] = (Slot){WRITE, RAW, 2 * n, 0, 0};
        c.slot[!to_f32] = (Slot)F_IN(n, -2, 2);
        if (to_f32) { /* filled as f32 values, whose halves are bf16 values */
            c.slot[0] = (Slot)F_OUT(n);
            c.slot[1] = (Slot){READ, REAL, (n + 1) / 2, -2, 2};
        }
        bench_row(t, c, "%" PRId64, n);
    }
}

void rows_elementwise(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = shape_batch(t), M = shape_rows(t), C = s->C, n = M * C;
    const bool clip = s->Q || s->causal; /* OWL-ViT's towers */
    if (clip) rows_quick_gelu(t, M, s->mlp, -3, 3);
    if (!clip || s->V) {
        rows_gelu(t, M, s->mlp, -3, 3);
        rows_gelu_tanh(t, M, s->mlp, -3, 3);
    }
    if (s->V) rows_tanh(t, B, C, -1, 1);
    if (s->Q) {
        rows_elu1(t, B, s->Q, -3, 3);
        rows_sigmoid(t, B * s->Q, 4, 0, 1);
    }
    bench_row(t,
              (Case){.op = "add_fwd",
                     .what = "",
                     .N = n,
                     .slot = {T_OUT(n), T_IN(n, -2, 2), T_IN(n, -1, 1)},
                     .run = run_add_fwd,
                     .want = want_add_fwd,
                     .library = library_add,
                     .library_name = "oneDNN binary"},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "accumulate",
                     .what = "",
                     .N = n,
                     .slot = {T_ADD(n), T_IN(n, -1, 1)},
                     .run = run_accumulate,
                     .want = want_accumulate},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "dropout_fwd",
                     .what = "",
                     .N = n,
                     .slot = {T_OUT(n), T_IN(n, -1, 1)},
                     .run = run_dropout_fwd,
                     .want = want_dropout_fwd},
              "%" PRId64 "x%" PRId64, M, C);
    bench_row(t,
              (Case){.op = "dropout_bwd",
                     .what = "",
                     .N = n,
                     .slot = {T_ADD(n), T_IN(n, -1, 1)},
                     .run = run_dropout_bwd,
                     .want = want_dropout_bwd},
              "%" PRId64 "x%" PRId64, M, C);
    const struct {
        const char *what;
        int64_t rows, n;
    } added[] = {{"type", M, C}, {"position", B, s->T * C}};
    for (int i = 0; i < COUNT_OF(added); i++) {
        const int64_t r = added[i].rows, w = added[i].n;
        bench_row(t,
                  (Case){.op = "add_rows_fwd",
                         .what = "",
                         .M = r,
                         .N = w,
                         .slot = {T_OUT(n), T_IN(n, -2, 2), T_IN(w, -1, 1)},
                         .run = run_add_rows_fwd,
                         .want = want_add_rows_fwd},
                  "%" PRId64 "x%" PRId64, r, w);
        bench_row(t,
                  (Case){.op = "add_rows_bwd",
                         .what = "",
                         .M = r,
                         .N = w,
                         .slot = {F_ADD(w), T_IN(n, -1, 1)},
                         .terms = (int)r,
                         .samples = 64,
                         .run = run_add_rows_bwd,
                         .want = want_add_rows_bwd},
                  "%" PRId64 "x%" PRId64, r, w);
    }
    if (s->parameters) rows_cast(t, s->parameters);
    if (!s->Q) return;
    const int64_t scores = B * s->Q, tokens = scores * C;
    bench_row(t,
              (Case){.op = "mul_fwd",
                     .what = "",
                     .N = scores,
                     .slot = {T_OUT(scores), T_IN(scores, -2, 2), T_IN(scores, -1, 1)},
                     .run = run_mul_fwd,
                     .want = want_mul_fwd,
                     .library = library_mul,
                     .library_name = "oneDNN binary"},
              "%" PRId64 "x%d", B, s->Q);
    bench_row(t,
              (Case){.op = "mul_bwd",
                     .what = "",
                     .N = scores,
                     .run = run_mul_bwd,
                     .want = want_mul_bwd,
                     .slot = {T_ADD(scores), T_ADD(scores), T_IN(scores, -2, 2), T_IN(scores, -1, 1),
                              T_IN(scores, -1, 1)}},
              "%" PRId64 "x%d", B, s->Q);
    bench_row(t,
              (Case){.op = "mul_tokens_fwd",
                     .what = "",
                     .B = B,
                     .M = s->Q,
                     .N = C,
                     .slot = {T_OUT(tokens), T_IN(tokens, -2, 2), T_IN(B * C, -1, 1)},
                     .run = run_mul_tokens_fwd,
                     .want = want_mul_tokens_fwd},
              "%" PRId64 "x%dx%" PRId64, B, s->Q, C);
    bench_row(t,
              (Case){.op = "mul_tokens_bwd",
                     .what = "",
                     .B = B,
                     .M = s->Q,
                     .N = C,
                     .terms = s->Q,
                     .samples = 64,
                     .run = run_mul_tokens_bwd,
                     .want = want_mul_tokens_bwd,
                     .slot = {T_ADD(tokens), T_ADD(B * C), T_IN(tokens, -2, 2), T_IN(B * C, -1, 1),
                              T_IN(tokens, -1, 1)}},
              "%" PRId64 "x%dx%" PRId64, B, s->Q, C);
}
