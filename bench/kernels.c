/* kernels.c -- every operation at the sizes of the demo's ViLT and of ViLT-B/32: time, rate, share of the measured peak.
 *
 *   vpbench kernels [--threads N] [--ms 200] [NAME]        NAME: only operations whose name contains it
 *
 * One row is one operation at one size. GB/s counts what the operation must move (inputs read once, outputs written once, what it
 * adds to read and written), GFLOP/s two per multiply-add of its matrix products; a row has one of them, whichever
 * limits it. %peak is the share of what peak.c measured in this run: small sizes live in caches, so their GB/s may
 * pass the memory's. vs_base is oneDNN with its own threads for gemm, a plain copy of as many bytes for the rest: above
 * 1 we are quicker. `wrong` counts values of a sample, on the same buffers, that differ from a loop in double.
 */
#include <math.h>
#include <dnnl.h>
#include <sched.h>

#include "bench/bench.h"
#include "kernels/ops.h"

/* A width of the table: rows = B T tokens. */
typedef struct Size { const char *name; int B, T, C, H, mlp, V; int64_t parameters; int patch, image; } Size;
static const Size sizes[] = {
    {"demo", 64, 47, 64, 2, 256, 38, 274000, 8, 48},
    {"B/32", 8, 185, 768, 12, 3072, 3129, 117588537, 32, 384},
};

typedef struct Table {
    Device *dev;
    const Ops *k;
    Peak peak;
    double seconds; /* for one row */
    const char *only;
    float *x, *y, *dy, *w, *b, *dx, *aux; /* buffers of `room` values, filled */
    int64_t room;
} Table;

static float *buffer(int64_t n, uint32_t seed, float scale) {
    float *p = xcalloc((size_t)n, sizeof *p);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * scale;
    }
    return p;
}

/* ---- one row -------------------------------------------------------------------------------------- */

typedef struct Case Case;
struct Case {
    const char *op;
    char shape[48];
    double bytes, flops;             /* flops 0: bound by memory */
    void (*run)(Table *t, const Case *c);
    void (*base)(Table *t, const Case *c); /* NULL: a copy of `bytes` */
    int (*wrong)(Table *t, const Case *c); /* NULL: not checked here (tests/kernels does) */
    const Size *s;
    int64_t M, N, K;
    bool ta, tb;
};

static Spread time_of(Table *t, const Case *c, void (*run)(Table *, const Case *)) {
    enum { MOST = 20000, LEAST = 20 };
    static double s[MOST];
    int n = 0;
    for (int i = 0; i < 3; i++) run(t, c);
    for (double from = now_s(); n < MOST && (n < LEAST || now_s() - from < t->seconds); n++) {
        double at = now_s();
        run(t, c);
        s[n] = now_s() - at;
    }
    return bench_spread(s, n);
}

static void copy(Table *t, const Case *c) {
    int64_t n = MIN((int64_t)(c->bytes / 8), t->room);
    t->k->copy_rows(NULL, F32, t->aux, n / 64, t->x, n / 64, 64, n / 64, false);
}

static void row(Table *t, Case c) {
    if (t->only && !strstr(c.op, t->only)) return;
    int wrong = -1;
    if (c.wrong) {
        c.run(t, &c);
        wrong = c.wrong(t, &c);
    }
    Spread s = time_of(t, &c, c.run), base = time_of(t, &c, c.base ? c.base : copy);
    double rate = (c.flops > 0 ? c.flops : c.bytes) / s.median * 1e-9, peak = c.flops > 0 ? t->peak.gflops : t->peak.gbs;
    printf("%-16s %-5s %-22s %10.1f %10.1f %8.1f %-7s %6.1f %8.2f", c.op, c.s->name, c.shape, s.median * 1e6, s.p99 * 1e6, rate,
           c.flops > 0 ? "GFLOP/s" : "GB/s", 100 * rate / peak, base.median / s.median);
    if (wrong >= 0) printf(" %6d\n", wrong);
    else printf("      -\n");
    fflush(stdout);
}

/* ---- matrix products ------------------------------------------------------------------------------ */

static void gemm(Table *t, const Case *c) {
    int64_t lda = c->ta ? c->M : c->K, ldb = c->tb ? c->K : c->N;
    bool grad = c->ta;
    t->k->gemm(NULL, F32, F32, t->y, c->N, t->x, lda, t->w, ldb, grad || !c->tb ? NULL : t->b, c->ta, c->tb, c->M, c->N, c->K, grad);
}

static void gemm_base(Table *t, const Case *c) {
    int64_t lda = c->ta ? c->M : c->K, ldb = c->tb ? c->K : c->N;
    dnnl_sgemm(c->ta ? 'T' : 'N', c->tb ? 'T' : 'N', c->M, c->N, c->K, 1, t->x, lda, t->w, ldb, c->ta ? 1 : 0, t->y, c->N);
}

static int gemm_wrong(Table *t, const Case *c) {
    int wrong = 0;
    memset(t->y, 0, (size_t)(c->M * c->N) * sizeof *t->y); /* the products of a weight gradient are added */
    gemm(t, c);
    for (int k = 0; k < 64; k++) {
        int64_t i = k * 7919 % c->M, j = k * 104729 % c->N;
        double sum = c->ta || !c->tb ? 0 : (double)t->b[j], size = 0;
        for (int64_t l = 0; l < c->K; l++) {
            double p = (double)t->x[c->ta ? l * c->M + i : i * c->K + l] * (double)t->w[c->tb ? j * c->K + l : l * c->N + j];
            sum += p;
            size += fabs(p);
        }
        wrong += !(fabs((double)t->y[i * c->N + j] - sum) <= 1e-6 * size + 1e-6);
    }
    return wrong;
}

static void gemm_rows(Table *t, const Size *s) {
    const int64_t rows = (int64_t)s->B * s->T, C = s->C, F = s->mlp, P = (int64_t)(s->image / s->patch) * (s->image / s->patch);
    const struct { const char *op; int64_t M, N, K; bool ta, tb; } list[] = {
        {"gemm patches", s->B * P, C, 3 * (int64_t)s->patch * s->patch, false, true},
        {"gemm qkv", rows, 3 * C, C, false, true},      {"gemm qkv dx", rows, C, 3 * C, false, false},
        {"gemm qkv dw", 3 * C, C, rows, true, false},   {"gemm proj", rows, C, C, false, true},
        {"gemm fc1", rows, F, C, false, true},          {"gemm fc1 dx", rows, C, F, false, false},
        {"gemm fc1 dw", F, C, rows, true, false},       {"gemm fc2", rows, C, F, false, true},
        {"gemm fc2 dx", rows, F, C, false, false},      {"gemm fc2 dw", C, F, rows, true, false},
        {"gemm answers", s->B, s->V, 2 * C, false, true},
    };
    for (int i = 0; i < COUNT_OF(list); i++) {
        Case c = {.op = list[i].op, .flops = 2.0 * (double)list[i].M * (double)list[i].N * (double)list[i].K, .run = gemm, .base = gemm_base,
                  .wrong = gemm_wrong, .s = s, .M = list[i].M, .N = list[i].N, .K = list[i].K, .ta = list[i].ta, .tb = list[i].tb};
        snprintf(c.shape, sizeof c.shape, "%" PRId64 "x%" PRId64 "x%" PRId64, c.M, c.N, c.K);
        row(t, c);
    }
}

/* ---- rows of tokens: M rows of N values ----------------------------------------------------------- */

#define RUN(name, ...) static void name(Table *t, const Case *c) { __VA_ARGS__; }
RUN(bias_bwd, t->k->bias_bwd(NULL, F32, t->b, t->dy, c->M, c->N))
RUN(layernorm_fwd, t->k->layernorm_fwd(NULL, F32, t->y, t->aux, t->aux + c->M, t->x, t->w, t->b, 1e-12f, c->M, c->N))
RUN(layernorm_bwd, t->k->layernorm_bwd(NULL, F32, t->dx, t->b, t->w, t->x, t->dy, t->aux, t->aux + c->M, t->w, c->M, c->N))
RUN(gelu_fwd, t->k->gelu_fwd(NULL, F32, t->y, t->x, c->M * c->N))
RUN(gelu_bwd, t->k->gelu_bwd(NULL, F32, t->dx, t->x, t->dy, c->M * c->N))
RUN(add_fwd, t->k->add_fwd(NULL, F32, t->y, t->x, t->dy, c->M * c->N))
RUN(accumulate, t->k->accumulate(NULL, F32, t->dx, t->x, c->M * c->N))
RUN(softmax_fwd, t->k->softmax_fwd(NULL, F32, t->y, t->x, c->M, c->N))
RUN(sum_squares, double sum; t->k->sum_squares(NULL, F32, &sum, t->x, c->M * c->N))

static int layernorm_wrong(Table *t, const Case *c) {
    int wrong = 0;
    for (int64_t i = 0; i < c->M; i += MAX(c->M / 16, 1)) {
        const float *x = t->x + i * c->N;
        double mean = 0, var = 0;
        for (int64_t j = 0; j < c->N; j++) mean += (double)x[j] / (double)c->N;
        for (int64_t j = 0; j < c->N; j++) var += ((double)x[j] - mean) * ((double)x[j] - mean) / (double)c->N;
        for (int64_t j = 0; j < c->N; j++) {
            double want = ((double)x[j] - mean) / sqrt(var + 1e-12) * (double)t->w[j] + (double)t->b[j];
            wrong += !(fabs((double)t->y[i * c->N + j] - want) <= 2e-5 * (1 + fabs(want)));
        }
    }
    return wrong;
}

static int gelu_wrong(Table *t, const Case *c) {
    int wrong = 0;
    for (int64_t i = 0; i < c->M * c->N; i += 97) {
        double x = (double)t->x[i], want = x * 0.5 * (1 + erf(x / sqrt(2)));
        wrong += !(fabs((double)t->y[i] - want) <= 4e-7 * (1 + fabs(x)));
    }
    return wrong;
}

static int add_wrong(Table *t, const Case *c) {
    int wrong = 0;
    for (int64_t i = 0; i < c->M * c->N; i++) wrong += t->y[i] != t->x[i] + t->dy[i];
    return wrong;
}

static void token_rows(Table *t, const Size *s) {
    const int64_t rows = (int64_t)s->B * s->T;
    const struct { const char *op; void (*run)(Table *, const Case *); int (*wrong)(Table *, const Case *); int64_t N; int values; } list[] = {
        {"bias_bwd", bias_bwd, NULL, s->mlp, 1},          {"layernorm_fwd", layernorm_fwd, layernorm_wrong, s->C, 2},
        {"layernorm_bwd", layernorm_bwd, NULL, s->C, 4},  {"gelu_fwd", gelu_fwd, gelu_wrong, s->mlp, 2},
        {"gelu_bwd", gelu_bwd, NULL, s->mlp, 4},          {"add_fwd", add_fwd, add_wrong, s->C, 3},
        {"accumulate", accumulate, NULL, s->C, 3},        {"softmax_fwd", softmax_fwd, NULL, s->T, 2},
    };
    for (int i = 0; i < COUNT_OF(list); i++) {
        Case c = {.op = list[i].op, .run = list[i].run, .wrong = list[i].wrong, .s = s, .M = rows, .N = list[i].N};
        c.bytes = 4.0 * list[i].values * (double)(c.M * c.N);
        snprintf(c.shape, sizeof c.shape, "%" PRId64 "x%" PRId64, c.M, c.N);
        row(t, c);
    }
}

/* ---- attention ------------------------------------------------------------------------------------ */

/* x: queries, keys and values as one fused projection; y: the output; aux: log sums. */
static void attention_fwd(Table *t, const Case *c) {
    const Size *s = c->s;
    t->k->attention_fwd(NULL, F32, t->y, s->C, t->aux, t->x, 3 * s->C, t->x + s->C, t->x + 2 * s->C, 3 * s->C, NULL, false,
                        1 / sqrtf((float)(s->C / s->H)), s->B, s->H, s->T, s->T, s->C / s->H);
}

static void attention_bwd(Table *t, const Case *c) {
    const Size *s = c->s;
    t->k->attention_bwd(NULL, F32, t->dx, t->dx + s->C, t->dx + 2 * s->C, t->x, 3 * s->C, t->x + s->C, t->x + 2 * s->C, 3 * s->C, t->y,
                        t->dy, s->C, t->aux, NULL, false, 1 / sqrtf((float)(s->C / s->H)), s->B, s->H, s->T, s->T, s->C / s->H);
}

static int attention_wrong(Table *t, const Case *c) {
    const Size *s = c->s;
    const int C = s->C, D = C / s->H, T = s->T;
    int wrong = 0;
    double *p = xcalloc((size_t)T, sizeof *p);
    for (int k = 0; k < 8; k++) {
        int b = k % s->B, h = k % s->H, i = k * 7919 % T, d = k * 31 % D;
        const float *base = t->x + (int64_t)b * T * 3 * C + (int64_t)h * D, *q = base + (int64_t)i * 3 * C;
        double sum = 0, want = 0;
        for (int j = 0; j < T; j++) {
            const float *key = base + (int64_t)j * 3 * C + C;
            double dot = 0;
            for (int l = 0; l < D; l++) dot += (double)q[l] * (double)key[l];
            sum += p[j] = exp(dot / sqrt(D));
        }
        for (int j = 0; j < T; j++) want += p[j] / sum * (double)base[(int64_t)j * 3 * C + 2 * C + d];
        wrong += !(fabs((double)t->y[((int64_t)b * T + i) * C + h * D + d] - want) <= 1e-5);
    }
    free(p);
    return wrong;
}

static void attention_rows(Table *t, const Size *s) {
    const double product = 2.0 * s->B * s->T * s->T * s->C; /* of all heads together */
    Case f = {.op = "attention_fwd", .flops = 2 * product, .bytes = 16.0 * s->B * s->T * s->C, .run = attention_fwd, .wrong = attention_wrong, .s = s};
    Case b = {.op = "attention_bwd", .flops = 5 * product, .bytes = 40.0 * s->B * s->T * s->C, .run = attention_bwd, .s = s};
    snprintf(f.shape, sizeof f.shape, "%dx%dx%dx%d", s->B, s->H, s->T, s->C / s->H);
    memcpy(b.shape, f.shape, sizeof f.shape);
    row(t, f);
    row(t, b);
}

/* ---- images, losses, the optimizer ---------------------------------------------------------------- */

static uint8_t pixels[640 * 480 * 3];

static void image_patches(Table *t, const Case *c) {
    static ImageView image[64];
    static Rect rect[64];
    static int size[64][2];
    const Size *s = c->s;
    for (int b = 0; b < s->B; b++) {
        image[b] = (ImageView){pixels, 640, 480};
        rect[b] = (Rect){b, b, b + 4 * s->image / 3, b + 4 * s->image / 3};
        if (rect[b].y1 > 480) rect[b] = (Rect){b, 0, b + 480, 480};
        size[b][0] = size[b][1] = s->image;
    }
    PatchSpec spec = {.patch = s->patch, .grid_h = s->image / s->patch, .grid_w = s->image / s->patch, .filter = BICUBIC,
                      .mean = {0.5f, 0.5f, 0.5f}, .std = {0.5f, 0.5f, 0.5f}};
    t->k->image_patches(NULL, F32, t->y, image, rect, (const int (*)[2])size, &spec, s->B);
}

static void bce_loss(Table *t, const Case *c) { t->k->bce_loss(NULL, F32, t->aux, t->dx, t->x, t->w, t->dy, 1, c->M, c->N); }

static void adamw(Table *t, const Case *c) {
    const AdamSegment seg = {0, c->M, 1e-5f, 0.01f};
    t->k->adamw(NULL, t->w, t->y, t->dx, t->x, &seg, 1, 0.9f, 0.98f, 1e-8f, 1, 1000);
}

static void gather_rows(Table *t, const Case *c) {
    static int32_t idx[4096];
    for (int64_t i = 0; i < c->M; i++) idx[i] = (int32_t)(i * 37 % 199);
    t->k->gather_rows(NULL, F32, t->y, t->x, idx, c->M, c->N);
}

static void other_rows(Table *t, const Size *s) {
    const int64_t rows = (int64_t)s->B * s->T;
    Case image = {.op = "image_patches", .bytes = (double)s->B * s->image * s->image * 3 * (4 + 16.0 / 9), .run = image_patches, .s = s};
    snprintf(image.shape, sizeof image.shape, "%dx3x%dx%d", s->B, s->image, s->image);
    row(t, image);
    Case gather = {.op = "gather_rows", .bytes = 8.0 * (double)rows * s->C, .run = gather_rows, .s = s, .M = rows, .N = s->C};
    snprintf(gather.shape, sizeof gather.shape, "%" PRId64 "x%d", rows, s->C);
    row(t, gather);
    Case bce = {.op = "bce_loss", .bytes = 12.0 * s->B * s->V, .run = bce_loss, .s = s, .M = s->B, .N = s->V};
    snprintf(bce.shape, sizeof bce.shape, "%dx%d", s->B, s->V);
    row(t, bce);
    const int64_t n = MIN(s->parameters, t->room);
    Case sum = {.op = "sum_squares", .bytes = 4.0 * (double)n, .run = sum_squares, .s = s, .M = n, .N = 1};
    Case adam = {.op = "adamw", .bytes = 28.0 * (double)n, .run = adamw, .s = s, .M = n, .N = 1};
    snprintf(sum.shape, sizeof sum.shape, "%" PRId64, n);
    memcpy(adam.shape, sum.shape, sizeof sum.shape);
    row(t, sum);
    row(t, adam); /* last: it moves y, w and dx */
}

int bench_kernels(int argc, char **argv) {
    Table t = {.dev = device_cpu(bench_int(argc, argv, "--threads", 0, 0, 1024)), .seconds = bench_int(argc, argv, "--ms", 200, 1, 60000) * 1e-3};
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "--", 2)) i++;
        else t.only = argv[i];
    }
    t.k = t.dev->ops;
    t.room = (int64_t)16 << 20; /* values; a parameter buffer of B/32 is cut to it: 64 MB, beyond any cache */
    bench_machine(stdout, t.dev->nthreads);
    t.peak = bench_peak(t.dev->nthreads, 0.2);
    printf("peaks measured in this run: %.1f GFLOP/s of multiply-adds, %.1f GB/s of triad\n\n", t.peak.gflops, t.peak.gbs);
    printf("%-16s %-5s %-22s %10s %10s %8s %-7s %6s %8s %6s\n", "op", "size", "shape", "med_us", "p99_us", "rate", "", "%peak", "vs_base", "wrong");
    for (int i = 0; i < COUNT_OF(pixels); i++) pixels[i] = (uint8_t)(i * 2654435761u >> 24);
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        t.x = buffer(t.room, 1, 2), t.y = buffer(t.room, 2, 1), t.dy = buffer(t.room, 3, 1), t.w = buffer(t.room, 4, 1);
        t.b = buffer(t.room, 5, 1), t.dx = buffer(t.room, 6, 1), t.aux = buffer(t.room, 7, 1);
        for (int64_t k = 0; k < t.room; k++) t.dy[k] = fabsf(t.dy[k]), t.dx[k] = fabsf(t.dx[k]); /* weights and squares are positive */
        gemm_rows(&t, &sizes[i]);
        attention_rows(&t, &sizes[i]);
        token_rows(&t, &sizes[i]);
        other_rows(&t, &sizes[i]);
        free(t.x), free(t.y), free(t.dy), free(t.w), free(t.b), free(t.dx), free(t.aux);
    }
    return OK_STATUS;
}
