/* kernels.c -- every operation at the sizes of our networks, on the CPU or a card: time, rate, share of the measured peak.
 *
 *   vpbench kernels [--device cpu|cuda] [--threads N] [--ms 200] [--mb N] [NAME]    NAME: only operations whose name contains it
 *
 * One row is one operation at one size in one number format (cards: f32, then bf16). GB/s counts what the operation must move
 * (inputs read once, outputs written once, what it adds to read and written), GFLOP/s two per multiply-add of its matrix
 * products; a row has one of them, whichever limits it.
 *   %peak    share of what this run measured. CPU: peak.c. Card: a copy of 512 MB, bytes read and written; the rate of a large
 *            product by our gemm (cuBLASLt) in the same format.
 *   vs_base  above 1 we are quicker. CPU: oneDNN with its own threads for gemm. A plain copy of as many bytes for what memory
 *            limits (on a card cudaMemcpyAsync). "-" where we have no baseline.
 *   wrong    values of a sample, on the same buffers, that differ from a loop in double by more than the format explains.
 * Every run takes the next of up to 16 sets of buffers (--mb each, 512 on a card), so that a card's second cache does not hold its
 * inputs. On the CPU small sizes do live in caches, and their GB/s may pass the memory's.
 */
#include <math.h>
#include <dnnl.h>

#include "bench/bench.h"
#include "kernels/ops.h"

/* A width of the table: rows = B T tokens; B on the CPU and on a card. */
typedef struct Size { const char *name; int B[2], T, C, H, mlp, V; int64_t parameters; int patch, image; bool causal; } Size;
static const Size sizes[] = {
    {"demo", {64, 512}, 47, 64, 2, 256, 38, 274000, 8, 48, false},
    {"ViLT", {8, 64}, 185, 768, 12, 3072, 3129, 117588537, 32, 384, false},
    {"OWL", {1, 16}, 577, 768, 12, 3072, 512, 0, 32, 768, false},          /* OWL-ViT B/32, the image */
    {"OWL text", {16, 512}, 16, 512, 8, 2048, 512, 0, 0, 0, true},
};

enum { PATTERN = 1 << 20, SETS = 16, BUFFERS = 6 };

typedef struct Table {
    Device *dev;
    const Ops *k;
    Stream *s;
    DType t;
    bool cuda;
    Peak peak;
    double seconds; /* for one row */
    const char *only;
    size_t room; /* bytes of a buffer */
    /* Device memory: tensors of type t; f: f32 parameters and targets; stat: f32 statistics and losses. In the first set. */
    char *base[BUFFERS], *x, *y, *dy, *w, *dx;
    float *f, *stat;
    int32_t *idx;
    float *px, *pdy, *pw, *pf; /* what x, dy, w and f hold, over and over: PATTERN values, rounded to t. y and dx hold dy's */
} Table;

/* Value i of a buffer that holds `pattern`. */
static double val(const float *pattern, int64_t i) { return (double)pattern[i & (PATTERN - 1)]; }
static size_t bytes_of(const Table *t, int64_t n) { return (size_t)n * dtype_size(t->t); }

static float *pattern(uint32_t seed, float lo, float hi, DType t) {
    float *p = xcalloc(PATTERN, sizeof *p);
    for (int64_t i = 0; i < PATTERN; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = lo + (hi - lo) * (float)(seed >> 8) / 16777216.0f;
        if (t == BF16) p[i] = bf16_value(bf16_round(p[i]));
    }
    return p;
}

/* The pattern, repeated, to n bytes of device memory. */
static void fill(const Table *t, void *dst, const float *p, DType type, size_t n) {
    uint16_t *half = NULL;
    const void *src = p;
    if (type == BF16) {
        src = half = xcalloc(PATTERN, sizeof *half);
        for (int i = 0; i < PATTERN; i++) half[i] = bf16_round(p[i]);
    }
    const size_t all = PATTERN * dtype_size(type);
    for (size_t at = 0; at < n; at += all) t->dev->upload(t->dev, (char *)dst + at, src, MIN(all, n - at));
    t->dev->sync(t->dev);
    free(half);
}

/* n values from device memory, as f32; the caller frees. */
static float *fetch(const Table *t, const void *src, int64_t n, DType type) {
    float *out = xcalloc((size_t)n + 1, sizeof *out);
    t->dev->download(t->dev, out, src, (size_t)n * dtype_size(type));
    if (type == BF16) /* from the end: wide values over narrow ones */
        for (int64_t i = n; i-- > 0;) {
            uint16_t half;
            memcpy(&half, (char *)out + 2 * i, 2);
            out[i] = bf16_value(half);
        }
    return out;
}

/* ---- one row -------------------------------------------------------------------------------------- */

typedef struct Case Case;
struct Case {
    const char *op;
    char shape[48];
    double bytes, flops;             /* flops 0: bound by memory */
    void (*run)(Table *t, const Case *c);
    void (*base)(Table *t, const Case *c);
    int (*wrong)(Table *t, const Case *c); /* runs once on fresh buffers; NULL: not checked here (tests/kernels does) */
    const Size *s;
    int B;
    int64_t M, N, K, values;         /* values: of the largest tensor */
    bool ta, tb, f32_only;
};

typedef struct Turn { Table *t; const Case *c; void (*run)(Table *, const Case *); int sets, now; size_t step; } Turn;

static void take_set(Table *t, size_t at) {
    char **const p[] = {&t->x, &t->y, &t->dy, &t->w, &t->dx};
    for (int i = 0; i < COUNT_OF(p); i++) *p[i] = t->base[i] + at;
}

static void turn(void *arg) {
    Turn *u = arg;
    take_set(u->t, (size_t)u->now * u->step);
    u->now = (u->now + 1) % u->sets;
    u->run(u->t, u->c);
}

static Spread time_of(Table *t, const Case *c, void (*run)(Table *, const Case *)) {
    enum { MOST = 20000, LEAST = 20 };
    static double s[MOST];
    int n = 0;
    Turn u = {.t = t, .c = c, .run = run, .step = (bytes_of(t, c->values) + 255) & ~(size_t)255};
    u.sets = t->cuda ? (int)MAX(1, MIN(SETS, t->room / MAX(u.step, 1))) : 1;
    if (t->cuda) {
        n = bench_cuda_times(t->dev, s, LEAST, MOST, t->seconds, turn, &u);
    } else {
        for (int i = 0; i < 3; i++) turn(&u);
        for (double from = now_s(); n < MOST && (n < LEAST || now_s() - from < t->seconds); n++) {
            double at = now_s();
            turn(&u);
            s[n] = now_s() - at;
        }
    }
    take_set(t, 0);
    return bench_spread(s, n);
}

static void copy(Table *t, const Case *c) {
    const size_t n = MIN((size_t)(c->bytes / 2), t->room - (size_t)(t->x - t->base[0]));
    if (t->cuda) bench_cuda_copy(t->dev, t->y, t->x, n);
    else t->k->copy_rows(t->s, F32, t->y, (int64_t)n / 256, t->x, (int64_t)n / 256, 64, (int64_t)n / 256, false);
}

static void row(Table *t, Case c) {
    if ((t->only && !strstr(c.op, t->only)) || (c.f32_only && t->t != F32)) return;
    if (bytes_of(t, c.values) > t->room) {
        printf("%-16s %-8s %-22s needs --mb %zu\n", c.op, c.s->name, c.shape, (bytes_of(t, c.values) >> 20) + 1);
        return;
    }
    int wrong = -1;
    if (c.wrong) {
        fill(t, t->dx, t->pdy, c.f32_only ? F32 : t->t, bytes_of(t, c.values)); /* what gradients are added to */
        wrong = c.wrong(t, &c);
    }
    Spread s = time_of(t, &c, c.run), base = {0};
    if (!c.base && c.flops == 0) c.base = copy;
    if (c.base) base = time_of(t, &c, c.base);
    double rate = (c.flops > 0 ? c.flops : c.bytes) / s.median * 1e-9, peak = c.flops > 0 ? t->peak.gflops : t->peak.gbs;
    printf("%-16s %-8s %-22s %-5s %10.1f %10.1f %9.1f %-7s %6.1f", c.op, c.s->name, c.shape, t->t == F32 ? "f32" : "bf16", s.median * 1e6,
           s.p99 * 1e6, rate, c.flops > 0 ? "GFLOP/s" : "GB/s", 100 * rate / peak);
    if (c.base) printf(" %8.2f", base.median / s.median);
    else printf("        -");
    if (wrong >= 0) printf(" %6d\n", wrong);
    else printf("      -\n");
    fflush(stdout);
}

/* Rounding of the result itself, relative. */
static double rounding(const Table *t) { return t->t == BF16 ? 0x1p-8 : 0x1p-23; }

/* ---- matrix products ------------------------------------------------------------------------------ */

static void gemm(Table *t, const Case *c) {
    int64_t lda = c->ta ? c->M : c->K, ldb = c->tb ? c->K : c->N;
    bool grad = c->ta; /* a weight's gradient: f32, added */
    t->k->gemm(t->s, t->t, grad ? F32 : t->t, t->y, c->N, t->x, lda, t->w, ldb, grad || !c->tb ? NULL : t->f, c->ta, c->tb, c->M, c->N, c->K, grad);
}

static void gemm_base(Table *t, const Case *c) {
    int64_t lda = c->ta ? c->M : c->K, ldb = c->tb ? c->K : c->N;
    dnnl_sgemm(c->ta ? 'T' : 'N', c->tb ? 'T' : 'N', c->M, c->N, c->K, 1, (float *)t->x, lda, (float *)t->w, ldb, c->ta ? 1 : 0,
               (float *)t->y, c->N);
}

static int gemm_wrong(Table *t, const Case *c) {
    int wrong = 0;
    const DType ty = c->ta ? F32 : t->t;
    t->dev->zero(t->dev, t->y, (size_t)(c->M * c->N) * dtype_size(ty)); /* the products of a weight gradient are added */
    gemm(t, c);
    float *y = fetch(t, t->y, c->M * c->N, ty);
    for (int k = 0; k < 64; k++) {
        int64_t i = k * 7919 % c->M, j = k * 104729 % c->N;
        double sum = c->ta || !c->tb ? 0 : val(t->pf, j), size = 0;
        for (int64_t l = 0; l < c->K; l++) {
            double p = val(t->px, c->ta ? l * c->M + i : i * c->K + l) * val(t->pw, c->tb ? j * c->K + l : l * c->N + j);
            sum += p;
            size += fabs(p);
        }
        wrong += !(fabs((double)y[i * c->N + j] - sum) <= 1e-6 * size + 1e-6 + (ty == BF16 ? 0x1p-8 * fabs(sum) : 0));
    }
    free(y);
    return wrong;
}

static void gemm_rows(Table *t, const Size *s, int B) {
    const int64_t rows = (int64_t)B * s->T, C = s->C, F = s->mlp, P = s->patch ? (int64_t)(s->image / s->patch) * (s->image / s->patch) : 0;
    const struct { const char *op; int64_t M, N, K; bool ta, tb; } list[] = {
        {"gemm patches", B * P, C, 3 * (int64_t)s->patch * s->patch, false, true},
        {"gemm qkv", rows, 3 * C, C, false, true},      {"gemm qkv dx", rows, C, 3 * C, false, false},
        {"gemm qkv dw", 3 * C, C, rows, true, false},   {"gemm proj", rows, C, C, false, true},
        {"gemm fc1", rows, F, C, false, true},          {"gemm fc1 dx", rows, C, F, false, false},
        {"gemm fc1 dw", F, C, rows, true, false},       {"gemm fc2", rows, C, F, false, true},
        {"gemm fc2 dx", rows, F, C, false, false},      {"gemm fc2 dw", C, F, rows, true, false},
        {"gemm answers", B, s->V, 2 * C, false, true},
    };
    for (int i = 0; i < COUNT_OF(list); i++) {
        const int64_t M = list[i].M, N = list[i].N, K = list[i].K;
        if (!M) continue;
        Case c = {.op = list[i].op, .flops = 2.0 * (double)M * (double)N * (double)K, .run = gemm, .base = t->cuda ? NULL : gemm_base,
                  .wrong = gemm_wrong, .s = s, .B = B, .M = M, .N = N, .K = K, .ta = list[i].ta, .tb = list[i].tb};
        c.values = MAX(MAX(M * K, K * N), M * N * (list[i].ta && t->t == BF16 ? 2 : 1));
        snprintf(c.shape, sizeof c.shape, "%" PRId64 "x%" PRId64 "x%" PRId64, M, N, K);
        row(t, c);
    }
}

/* ---- rows of tokens: M rows of N values ----------------------------------------------------------- */

#define RUN(name, ...) static void name(Table *t, const Case *c) { __VA_ARGS__; }
RUN(bias_bwd, t->k->bias_bwd(t->s, t->t, t->stat, t->dy, c->M, c->N))
RUN(layernorm_fwd, t->k->layernorm_fwd(t->s, t->t, t->y, t->stat, t->stat + c->M, t->x, t->f, t->f + c->N, 1e-12f, c->M, c->N))
RUN(layernorm_bwd, t->k->layernorm_bwd(t->s, t->t, t->dx, t->stat + 2 * c->M, t->stat + 2 * c->M + c->N, t->x, t->dy, t->stat, t->stat + c->M,
                                       t->f, c->M, c->N))
RUN(gelu_fwd, t->k->gelu_fwd(t->s, t->t, t->y, t->x, c->M * c->N))
RUN(gelu_bwd, t->k->gelu_bwd(t->s, t->t, t->dx, t->x, t->dy, c->M * c->N))
RUN(add_fwd, t->k->add_fwd(t->s, t->t, t->y, t->x, t->dy, c->M * c->N))
RUN(accumulate, t->k->accumulate(t->s, t->t, t->dx, t->t, t->x, c->M * c->N))
RUN(softmax_fwd, t->k->softmax_fwd(t->s, t->t, t->y, t->x, c->M, c->N))
RUN(softmax_bwd, t->k->softmax_bwd(t->s, t->t, t->dx, t->x, t->dy, c->M, c->N))
RUN(sum_squares, double sum; t->k->sum_squares(t->s, t->t, &sum, t->x, c->M * c->N))

/* mean and 1 / std of row i of x */
static void moments(const Table *t, const Case *c, int64_t i, double *mean, double *rstd) {
    double var = 0;
    *mean = 0;
    for (int64_t j = 0; j < c->N; j++) *mean += val(t->px, i * c->N + j) / (double)c->N;
    for (int64_t j = 0; j < c->N; j++) var += pow(val(t->px, i * c->N + j) - *mean, 2) / (double)c->N;
    *rstd = 1 / sqrt(var + 1e-12);
}

static int layernorm_wrong(Table *t, const Case *c) {
    int wrong = 0;
    layernorm_fwd(t, c);
    float *y = fetch(t, t->y, c->M * c->N, t->t);
    for (int64_t i = 0; i < c->M; i += MAX(c->M / 16, 1)) {
        double mean, rstd;
        moments(t, c, i, &mean, &rstd);
        for (int64_t j = 0; j < c->N; j++) {
            double want = (val(t->px, i * c->N + j) - mean) * rstd * val(t->pf, j) + val(t->pf, c->N + j);
            wrong += !(fabs((double)y[i * c->N + j] - want) <= 2e-5 * (1 + fabs(want)) + rounding(t) * fabs(want));
        }
    }
    free(y);
    return wrong;
}

/* dx of some rows, dgamma and dbeta of some columns. */
static int layernorm_bwd_wrong(Table *t, const Case *c) {
    int wrong = 0;
    double *mean = xcalloc((size_t)c->M, sizeof *mean), *rstd = xcalloc((size_t)c->M, sizeof *rstd);
    layernorm_fwd(t, c);
    t->dev->zero(t->dev, t->stat + 2 * c->M, (size_t)(2 * c->N) * sizeof(float));
    layernorm_bwd(t, c);
    float *dx = fetch(t, t->dx, c->M * c->N, t->t), *db = fetch(t, t->stat + 2 * c->M, 2 * c->N, F32);
    for (int64_t i = 0; i < c->M; i++) moments(t, c, i, &mean[i], &rstd[i]);
    for (int64_t i = 0; i < c->M; i += MAX(c->M / 16, 1)) {
        double g1 = 0, g2 = 0;
        for (int64_t j = 0; j < c->N; j++) {
            double g = val(t->pdy, i * c->N + j) * val(t->pf, j), xhat = (val(t->px, i * c->N + j) - mean[i]) * rstd[i];
            g1 += g / (double)c->N, g2 += g * xhat / (double)c->N;
        }
        for (int64_t j = 0; j < c->N; j++) {
            double g = val(t->pdy, i * c->N + j) * val(t->pf, j), xhat = (val(t->px, i * c->N + j) - mean[i]) * rstd[i];
            double want = val(t->pdy, i * c->N + j) + rstd[i] * (g - g1 - xhat * g2);
            wrong += !(fabs((double)dx[i * c->N + j] - want) <= 2e-5 * (1 + fabs(want)) + rounding(t) * fabs(want));
        }
    }
    for (int64_t j = 0; j < c->N; j += MAX(c->N / 16, 1)) {
        double dgamma = 0, dbeta = 0, size = 0;
        for (int64_t i = 0; i < c->M; i++) {
            double dy = val(t->pdy, i * c->N + j), term = dy * (val(t->px, i * c->N + j) - mean[i]) * rstd[i];
            dgamma += term, dbeta += dy, size += fabs(term) + fabs(dy);
        }
        wrong += !(fabs((double)db[j] - dgamma) <= 1e-6 * size + 1e-5) + !(fabs((double)db[c->N + j] - dbeta) <= 1e-6 * size + 1e-5);
    }
    free(mean), free(rstd), free(dx), free(db);
    return wrong;
}

static int gelu_wrong(Table *t, const Case *c) {
    int wrong = 0;
    gelu_fwd(t, c);
    float *y = fetch(t, t->y, c->M * c->N, t->t);
    for (int64_t i = 0; i < c->M * c->N; i += 97) {
        double x = val(t->px, i), want = x * 0.5 * (1 + erf(x / sqrt(2)));
        wrong += !(fabs((double)y[i] - want) <= 4e-7 * (1 + fabs(x)) + rounding(t) * fabs(want));
    }
    free(y);
    return wrong;
}

static int gelu_bwd_wrong(Table *t, const Case *c) {
    int wrong = 0;
    gelu_bwd(t, c);
    float *dx = fetch(t, t->dx, c->M * c->N, t->t);
    for (int64_t i = 0; i < c->M * c->N; i += 97) {
        double x = val(t->px, i), slope = 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * 3.14159265358979323846),
               want = val(t->pdy, i) * (1 + slope);
        wrong += !(fabs((double)dx[i] - want) <= 1e-6 * (1 + fabs(want)) + rounding(t) * fabs(want));
    }
    free(dx);
    return wrong;
}

static int add_wrong(Table *t, const Case *c) {
    int wrong = 0;
    add_fwd(t, c);
    float *y = fetch(t, t->y, c->M * c->N, t->t);
    for (int64_t i = 0; i < c->M * c->N; i++) {
        double want = val(t->px, i) + val(t->pdy, i);
        wrong += !(fabs((double)y[i] - want) <= rounding(t) * fabs(want));
    }
    free(y);
    return wrong;
}

static int softmax_wrong(Table *t, const Case *c) {
    int wrong = 0;
    softmax_fwd(t, c);
    float *y = fetch(t, t->y, c->M * c->N, t->t);
    for (int64_t i = 0; i < c->M; i += MAX(c->M / 64, 1)) {
        double sum = 0;
        for (int64_t j = 0; j < c->N; j++) sum += exp(val(t->px, i * c->N + j));
        for (int64_t j = 0; j < c->N; j++) {
            double want = exp(val(t->px, i * c->N + j)) / sum;
            wrong += !(fabs((double)y[i * c->N + j] - want) <= 4e-6 * want + rounding(t) * want);
        }
    }
    free(y);
    return wrong;
}

static void token_rows(Table *t, const Size *s, int B) {
    const int64_t rows = (int64_t)B * s->T;
    const struct { const char *op; void (*run)(Table *, const Case *); int (*wrong)(Table *, const Case *); int64_t N; int values; } list[] = {
        {"bias_bwd", bias_bwd, NULL, s->mlp, 1},          {"layernorm_fwd", layernorm_fwd, layernorm_wrong, s->C, 2},
        {"layernorm_bwd", layernorm_bwd, layernorm_bwd_wrong, s->C, 4},
        {"gelu_fwd", gelu_fwd, gelu_wrong, s->mlp, 2},    {"gelu_bwd", gelu_bwd, gelu_bwd_wrong, s->mlp, 4},
        {"add_fwd", add_fwd, add_wrong, s->C, 3},         {"accumulate", accumulate, NULL, s->C, 3},
        {"softmax_fwd", softmax_fwd, softmax_wrong, s->T, 2}, {"softmax_bwd", softmax_bwd, NULL, s->T, 4},
    };
    for (int i = 0; i < COUNT_OF(list); i++) {
        Case c = {.op = list[i].op, .run = list[i].run, .wrong = list[i].wrong, .s = s, .B = B, .M = rows, .N = list[i].N, .values = rows * list[i].N};
        c.bytes = (double)bytes_of(t, list[i].values * c.values);
        snprintf(c.shape, sizeof c.shape, "%" PRId64 "x%" PRId64, c.M, c.N);
        row(t, c);
    }
}

/* ---- attention ------------------------------------------------------------------------------------ */

/* x: queries, keys and values as one fused projection; y: the output; stat: log sums. */
static void attention_fwd(Table *t, const Case *c) {
    const Size *s = c->s;
    const size_t C = bytes_of(t, s->C);
    t->k->attention_fwd(t->s, t->t, t->y, s->C, t->stat, t->x, 3 * s->C, t->x + C, t->x + 2 * C, 3 * s->C, NULL, s->causal,
                        1 / sqrtf((float)(s->C / s->H)), c->B, s->H, s->T, s->T, s->C / s->H);
}

static void attention_bwd(Table *t, const Case *c) {
    const Size *s = c->s;
    const size_t C = bytes_of(t, s->C);
    t->k->attention_bwd(t->s, t->t, t->dx, t->dx + C, t->dx + 2 * C, t->x, 3 * s->C, t->x + C, t->x + 2 * C, 3 * s->C, t->y, t->dy, s->C, t->stat,
                        NULL, s->causal, 1 / sqrtf((float)(s->C / s->H)), c->B, s->H, s->T, s->T, s->C / s->H);
}

/* Element d of token j's part (0 query, 1 key, 2 value) in image b, head h of x. */
static double part(const Table *t, const Case *c, int b, int h, int j, int which, int d) {
    const Size *s = c->s;
    return val(t->px, ((int64_t)(b * s->T + j) * 3 + which) * s->C + h * (s->C / s->H) + d);
}

/* p = softmax of query i's scores. */
static void probabilities(const Table *t, const Case *c, int b, int h, int i, double *p) {
    const int D = c->s->C / c->s->H, T = c->s->T;
    double sum = 0;
    for (int j = 0; j < T; j++) {
        double dot = 0;
        for (int l = 0; l < D; l++) dot += part(t, c, b, h, i, 0, l) * part(t, c, b, h, j, 1, l);
        p[j] = c->s->causal && j > i ? 0 : exp(dot / sqrt(D));
        sum += p[j];
    }
    for (int j = 0; j < T; j++) p[j] /= sum;
}

/* Rounded probabilities and a rounded result, in bf16: within 2 roundings of values below `size`. */
static bool near(const Table *t, double got, double want, double size) { return fabs(got - want) <= 1e-5 * (1 + size) + (t->t == BF16 ? 0x1p-7 * size : 0); }

static int attention_wrong(Table *t, const Case *c) {
    const int C = c->s->C, D = C / c->s->H, T = c->s->T;
    int wrong = 0;
    double *p = xcalloc((size_t)T, sizeof *p);
    attention_fwd(t, c);
    float *y = fetch(t, t->y, (int64_t)c->B * T * C, t->t);
    for (int k = 0; k < 32; k++) {
        int b = k * 5 % c->B, h = k % c->s->H, i = k * 7919 % T, d = k * 31 % D;
        double want = 0, size = 0;
        probabilities(t, c, b, h, i, p);
        for (int j = 0; j < T; j++) want += p[j] * part(t, c, b, h, j, 2, d), size += p[j] * fabs(part(t, c, b, h, j, 2, d));
        wrong += !near(t, (double)y[((int64_t)b * T + i) * C + h * D + d], want, size);
    }
    free(p), free(y);
    return wrong;
}

/* dS = P (dout v^T - sum(dout out)) of query i; size: the magnitude of what was added up. */
static void score_gradient(const Table *t, const Case *c, int b, int h, int i, double *p, double *ds, double *size) {
    const int C = c->s->C, D = C / c->s->H, T = c->s->T;
    double delta = 0, delta_size = 0;
    probabilities(t, c, b, h, i, p);
    for (int j = 0; j < T; j++) {
        ds[j] = size[j] = 0;
        for (int l = 0; l < D; l++) {
            double term = val(t->pdy, ((int64_t)b * T + i) * C + h * D + l) * part(t, c, b, h, j, 2, l);
            ds[j] += term, size[j] += fabs(term);
        }
        delta += p[j] * ds[j], delta_size += p[j] * size[j];
    }
    for (int j = 0; j < T; j++) ds[j] = p[j] * (ds[j] - delta), size[j] = p[j] * (size[j] + delta_size);
}

/* Some elements of dq, dk and dv of one head. */
static int attention_bwd_wrong(Table *t, const Case *c) {
    const int C = c->s->C, D = C / c->s->H, T = c->s->T, b = c->B - 1, h = c->s->H - 1;
    const double scale = 1 / sqrt(D);
    int wrong = 0;
    double *p = xcalloc((size_t)T * 3, sizeof *p), *ds = p + T, *size = ds + T;
    attention_fwd(t, c);
    attention_bwd(t, c);
    const int64_t first = (int64_t)b * T * 3 * C, n = (int64_t)T * 3 * C;
    float *dx = fetch(t, t->dx + bytes_of(t, first), n, t->t);
    enum { SAMPLES = 8 };
    double want[3][SAMPLES] = {{0}}, sizes_[3][SAMPLES] = {{0}};
    for (int i = 0; i < T; i++) {
        score_gradient(t, c, b, h, i, p, ds, size);
        for (int k = 0; k < SAMPLES; k++) {
            const int at = k * 7919 % T, d = k * 31 % D;
            for (int j = 0; at == i && j < T; j++) {
                want[0][k] += scale * ds[j] * part(t, c, b, h, j, 1, d);
                sizes_[0][k] += scale * size[j] * fabs(part(t, c, b, h, j, 1, d));
            }
            const double dout = val(t->pdy, ((int64_t)b * T + i) * C + h * D + d), query = part(t, c, b, h, i, 0, d);
            want[1][k] += scale * ds[at] * query, sizes_[1][k] += scale * size[at] * fabs(query);
            want[2][k] += p[at] * dout, sizes_[2][k] += p[at] * fabs(dout);
        }
    }
    for (int which = 0; which < 3; which++)
        for (int k = 0; k < SAMPLES; k++) {
            const int64_t at = ((int64_t)(k * 7919 % T) * 3 + which) * C + h * D + k * 31 % D;
            const double was = val(t->pdy, first + at); /* the gradient was added to it */
            wrong += !near(t, (double)dx[at], want[which][k] + was, sizes_[which][k] + fabs(was));
        }
    free(p), free(dx);
    return wrong;
}

static void attention_rows(Table *t, const Size *s, int B) {
    const double product = 2.0 * B * s->T * s->T * s->C; /* of all heads together; causal: half of it is needed, all is counted */
    const int64_t values = (int64_t)B * s->T * 3 * s->C;
    Case f = {.op = "attention_fwd", .flops = 2 * product, .run = attention_fwd, .wrong = attention_wrong, .s = s, .B = B, .values = values};
    Case b = {.op = "attention_bwd", .flops = 5 * product, .run = attention_bwd, .wrong = attention_bwd_wrong, .s = s, .B = B, .values = values};
    snprintf(f.shape, sizeof f.shape, "%dx%dx%dx%d%s", B, s->H, s->T, s->C / s->H, s->causal ? " causal" : "");
    memcpy(b.shape, f.shape, sizeof f.shape);
    row(t, f);
    row(t, b);
}

/* ---- images, losses, the optimizer ---------------------------------------------------------------- */

static uint8_t pixels[640 * 480 * 3];

/* With the upload of the pixels, on a card. */
static void image_patches(Table *t, const Case *c) {
    static ImageView image[64];
    static Rect rect[64];
    static int size[64][2];
    const Size *s = c->s;
    for (int b = 0; b < c->B; b++) {
        image[b] = (ImageView){pixels, 640, 480};
        rect[b] = (Rect){b, b, b + 4 * s->image / 3, b + 4 * s->image / 3};
        if (rect[b].y1 > 480) rect[b] = (Rect){b, 0, b + 480, 480};
        size[b][0] = size[b][1] = s->image;
    }
    PatchSpec spec = {.patch = s->patch, .grid_h = s->image / s->patch, .grid_w = s->image / s->patch, .filter = BICUBIC,
                      .mean = {0.5f, 0.5f, 0.5f}, .std = {0.5f, 0.5f, 0.5f}};
    t->k->image_patches(t->s, t->t, t->y, image, rect, (const int (*)[2])size, &spec, c->B);
}

static void bce_loss(Table *t, const Case *c) {
    t->k->bce_loss(t->s, t->t, t->stat, t->dx, t->x, t->f, t->f + c->M * c->N, 1, c->M, c->N);
}

/* p = w, m = y, v = dx, g = x. */
static void adamw(Table *t, const Case *c) {
    const AdamSegment seg = {0, c->M, 1e-5f, 0.01f};
    t->k->adamw(t->s, (float *)t->w, (float *)t->y, (float *)t->dx, NULL, (float *)t->x, &seg, 1, 0.9f, 0.98f,
                1e-8f, 1, 1000);
}

static int adamw_wrong(Table *t, const Case *c) {
    int wrong = 0;
    fill(t, t->y, t->pdy, F32, bytes_of(t, c->M));
    fill(t, t->w, t->pw, F32, bytes_of(t, c->M));
    adamw(t, c);
    float *p = fetch(t, t->w, c->M, F32);
    for (int64_t i = 0; i < c->M; i += 97) {
        double g = val(t->px, i), m = 0.9 * val(t->pdy, i) + 0.1 * g, v = 0.98 * val(t->pdy, i) + 0.02 * g * g, w = val(t->pw, i);
        double want = w - 1e-5 * (m / (1 - pow(0.9, 1000)) / (sqrt(v / (1 - pow(0.98, 1000))) + 1e-8) + 0.01 * w);
        wrong += !(fabs((double)p[i] - want) <= 1e-7 * (1 + fabs(want)));
    }
    free(p);
    return wrong;
}

static void gather_rows(Table *t, const Case *c) { t->k->gather_rows(t->s, t->t, t->y, t->x, t->idx, c->M, c->N); }

static void other_rows(Table *t, const Size *s, int B) {
    const int images = MIN(B, 64);
    const int64_t rows = (int64_t)B * s->T;
    const double size = (double)dtype_size(t->t);
    if (s->patch) {
        Case image = {.op = "image_patches", .bytes = (double)images * s->image * s->image * 3 * (size + 16.0 / 9), .run = image_patches, .s = s,
                      .B = images, .values = (int64_t)images * s->image * s->image * 3};
        snprintf(image.shape, sizeof image.shape, "%dx3x%dx%d", images, s->image, s->image);
        row(t, image);
    }
    Case gather = {.op = "gather_rows", .bytes = 2 * size * (double)rows * s->C, .run = gather_rows, .s = s, .B = B, .M = rows, .N = s->C,
                   .values = rows * s->C};
    snprintf(gather.shape, sizeof gather.shape, "%" PRId64 "x%d", rows, s->C);
    row(t, gather);
    Case bce = {.op = "bce_loss", .bytes = (4 + 2 * size) * B * s->V, .run = bce_loss, .s = s, .B = B, .M = B, .N = s->V, .values = (int64_t)B * s->V};
    snprintf(bce.shape, sizeof bce.shape, "%dx%d", B, s->V);
    row(t, bce);
    const int64_t n = MIN(s->parameters, (int64_t)(t->room / 4));
    if (!n) return;
    Case sum = {.op = "sum_squares", .bytes = 4.0 * (double)n, .run = sum_squares, .s = s, .B = B, .M = n, .N = 1, .values = n, .f32_only = true};
    Case adam = {.op = "adamw", .bytes = 28.0 * (double)n, .run = adamw, .wrong = adamw_wrong, .s = s, .B = B, .M = n, .N = 1, .values = n, .f32_only = true};
    snprintf(sum.shape, sizeof sum.shape, "%" PRId64, n);
    memcpy(adam.shape, sum.shape, sizeof sum.shape);
    row(t, sum);
    row(t, adam); /* last: it moves y, w and dx */
}

/* ---- the table ------------------------------------------------------------------------------------ */

/* A copy of whole buffers and a product that fills the card. */
static Peak card_peak(Table *t) {
    const int64_t n = t->room >= (size_t)256 << 20 ? 8192 : 512;
    Case c = {.M = n, .N = n, .K = n, .tb = true, .values = n * n, .bytes = 2.0 * (double)t->room};
    Case all = c;
    all.values = (int64_t)(t->room / dtype_size(t->t));
    Peak p = {.gflops = 2.0 * (double)n * (double)n * (double)n / time_of(t, &c, gemm).median * 1e-9};
    p.gbs = all.bytes / time_of(t, &all, copy).median * 1e-9;
    return p;
}

static void fill_all(Table *t) {
    free(t->px), free(t->pdy), free(t->pw), free(t->pf);
    t->px = pattern(1, -2, 2, t->t), t->pdy = pattern(2, 0, 1, t->t); /* weights and squares are positive */
    t->pw = pattern(3, -1, 1, t->t), t->pf = pattern(4, 0, 1, F32);
    const float *const p[] = {t->px, t->pdy, t->pdy, t->pw, t->pdy, t->pf};
    for (int i = 0; i < BUFFERS; i++) fill(t, t->base[i], p[i], i == 5 ? F32 : t->t, t->room);
    take_set(t, 0);
}

static void table(Table *t) {
    fill_all(t);
    if (t->cuda) t->peak = card_peak(t);
    printf("\npeaks measured in this run, %s: %.1f GFLOP/s of %s, %.1f GB/s of %s\n\n", t->t == F32 ? "f32" : "bf16", t->peak.gflops,
           t->cuda ? "a large product" : "multiply-adds", t->peak.gbs, t->cuda ? "a copy" : "triad");
    printf("%-16s %-8s %-22s %-5s %10s %10s %9s %-7s %6s %8s %6s\n", "op", "size", "shape", "type", "med_us", "p99_us", "rate", "", "%peak", "vs_base", "wrong");
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        const int B = sizes[i].B[t->cuda];
        attention_rows(t, &sizes[i], B);
        token_rows(t, &sizes[i], B);
        gemm_rows(t, &sizes[i], B);
        other_rows(t, &sizes[i], B);
        if (i + 1 < COUNT_OF(sizes)) fill_all(t);
    }
}

int bench_kernels(int argc, char **argv) {
    const char *device = bench_option(argc, argv, "--device", "cpu");
    Table t = {.seconds = bench_int(argc, argv, "--ms", 200, 1, 60000) * 1e-3, .cuda = !strcmp(device, "cuda")};
    if (!t.cuda && strcmp(device, "cpu")) die(FAIL_USAGE, "vpbench: --device is \"%s\", allowed are cpu and cuda", device);
    Error e = {0};
    const int threads = bench_int(argc, argv, "--threads", 0, 0, 1024);
    t.dev = t.cuda ? device_cuda(0, &e) : device_cpu(threads);
    if (!t.dev) die(FAIL_CONFIG, "%s", e.text);
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "--", 2)) i++;
        else t.only = argv[i];
    }
    t.k = t.dev->ops;
    t.s = t.dev->main;
    t.room = (size_t)bench_int(argc, argv, "--mb", t.cuda ? 512 : 64, 8, 1 << 16) << 20; /* CPU: beyond any cache; larger sizes are left out */
    bench_machine(stdout, t.dev->nthreads);
    if (t.cuda) bench_cuda_machine(stdout, t.dev);
    for (int i = 0; i < COUNT_OF(pixels); i++) pixels[i] = (uint8_t)(i * 2654435761u >> 24);
    for (int i = 0; i < BUFFERS; i++) t.base[i] = t.dev->alloc(t.dev, t.room);
    t.f = (float *)t.base[5];
    t.stat = t.dev->alloc(t.dev, (size_t)16 << 20);
    t.dev->zero(t.dev, t.stat, (size_t)16 << 20);
    enum { ROWS = 1 << 16 };
    int32_t *idx = xcalloc(ROWS, sizeof *idx);
    for (int i = 0; i < ROWS; i++) idx[i] = i * 37 % 199;
    t.idx = t.dev->alloc(t.dev, ROWS * sizeof *idx);
    t.dev->upload(t.dev, t.idx, idx, ROWS * sizeof *idx);
    if (!t.cuda) t.peak = bench_peak(t.dev->nthreads, 0.2);
    for (t.t = F32; t.t <= (t.cuda ? BF16 : F32); t.t++) table(&t);
    t.dev->sync(t.dev);
    for (int i = 0; i < BUFFERS; i++) t.dev->release(t.dev, t.base[i], t.room);
    t.dev->release(t.dev, t.stat, (size_t)16 << 20);
    t.dev->release(t.dev, t.idx, ROWS * sizeof *idx);
    free(idx), free(t.px), free(t.pdy), free(t.pw), free(t.pf);
    return OK_STATUS;
}
