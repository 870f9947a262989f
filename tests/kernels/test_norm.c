/* test_norm.c -- layernorm, l2norm, softmax. */
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_norm.safetensors"

COVERS(norm, layernorm_fwd, add_layernorm_fwd, layernorm_bwd, l2norm_fwd, l2norm_bwd, softmax_fwd, softmax_bwd)

static void layernorm_f(void *const *p, const int64_t *d) {
    op->layernorm_fwd(S, dt, p[3], p[4], p[5], p[0], p[1], p[2], 1e-5f, d[0], d[1]);
}
static void layernorm_b(void *const *p, const int64_t *d) {
    op->layernorm_bwd(S, dt, p[7], p[8], p[9], p[0], p[6], p[4], p[5], p[1], d[0], d[1]);
}
/* Sums over C <= 768 values in 8 lanes: a walk of sqrt(96) roundings of a partial sum, spread over rstd, mean and product;
 * at (1, 1) x - mean is exactly 0. dgamma adds up to 64 rows per block: sqrt(64). */
static const Kernel layernorm = {"layernorm", "rC",
    {{"x", X, "rC"}, {"gamma", X, "C", .f32 = true}, {"beta", X, "C", .f32 = true}, {"y", Y, "rC", .bound = 16}, {"mean", STAT, "r", .bound = 16},
     {"rstd", STAT, "r", .bound = 16}, {"dy", DY, "rC"}, {"dx", DX, "rC", .of = 0, .bound = 32},
     {"dgamma", DX, "C", .of = 1, .bound = 16, .f32 = true}, {"dbeta", DX, "C", .of = 2, .bound = 8, .f32 = true}},
    layernorm_f, layernorm_b, .in_place = true, .slope = 0.02};

static void l2norm_f(void *const *p, const int64_t *d) { op->l2norm_fwd(S, dt, p[1], p[2], p[0], 1e-6f, d[0], d[1]); }
static void l2norm_b(void *const *p, const int64_t *d) {
    op->l2norm_bwd(S, dt, p[4], p[0], p[3], p[2], 1e-6f, d[0], d[1]);
}
static const Kernel l2norm = {"l2norm", "rC",
    {{"x", X, "rC"}, {"y", Y, "rC", .bound = 12}, {"inv", STAT, "r", .bound = 12}, {"dy", DY, "rC"},
     {"dx", DX, "rC", .of = 0, .bound = 24}}, l2norm_f, l2norm_b, .in_place = true, .slope = 0.02};

static void softmax_f(void *const *p, const int64_t *d) { op->softmax_fwd(S, dt, p[1], p[0], d[0], d[1]); }
static void softmax_b(void *const *p, const int64_t *d) { op->softmax_bwd(S, dt, p[3], p[1], p[2], d[0], d[1]); }
/* e^(x - max): the difference is rounded at magnitude 18, 2^-20 absolute = up to 16 EPS32 relative for small values (small
 * beside the largest); the largest is 1 / sum. */
static const Kernel softmax = {"softmax", "rC",
    {{"x", X, "rC", -9, 9}, {"y", Y, "rC", .bound = 8}, {"dy", DY, "rC"}, {"dx", DX, "rC", .of = 0, .bound = 8}},
    softmax_f, softmax_b, .in_place = true, .slope = 0.02};

static const int64_t sizes[][2] = {{1, 1}, {5, 37}, {67, 36}, {2, 768}};

DEVICE_TEST(norm_golden) {
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        kernel_check(&layernorm, sizes[i], GOLDEN);
        kernel_check(&l2norm, sizes[i], GOLDEN);
        kernel_check(&softmax, sizes[i], GOLDEN);
    }
}

/* f32; what bf16's rounding of the sum does to the norm depends on how large that is beside its spread: below. */
static void add_layernorm_f(void *const *p, const int64_t *d) {
    op->add_layernorm_fwd(S, dt, p[4], p[5], p[6], p[7], p[0], p[1], p[2], p[3], 1e-5f, d[0], d[1]);
}
static const Kernel add_layernorm = {"add_layernorm", "rC",
    {{"a", X, "rC"}, {"b", X, "rC"}, {"gamma", X, "C"}, {"beta", X, "C"}, {"sum", Y, "rC", .bound = 1}, {"y", Y, "rC", .bound = 24},
     {"mean", STAT, "r", .bound = 16}, {"rstd", STAT, "r", .bound = 16}}, add_layernorm_f, .in_place = true, .only_f32 = true};

/* Beside the two ops one after the other, with the sum in a place of its own or in a's: the sum has their bits; the norm, whose own sums
 * may come in another order, is within two of layernorm's bounds, in bf16 two roundings. */
static void add_then_norm(DType t, int64_t rows, int64_t C, int misaligned) {
    const size_t n = (size_t)(rows * C), size = dtype_size(t), skip = (size_t)misaligned * size;
    float *x = xcalloc(2 * n + 2 * (size_t)C + 1, 4);
    char *a = xcalloc(n + 2, 4), *b = xcalloc(n + 2, 4), *sum[2], *y[2];
    float *stat[2];
    fill_random(x, (int64_t)(2 * n + 2 * (size_t)C), 7, -2, 2);
    for (size_t i = 0; i < n; i++) {
        if (t == F32) ((float *)(a + skip))[i] = x[i], ((float *)(b + skip))[i] = x[n + i];
        else ((uint16_t *)(a + skip))[i] = bf16_round(x[i]), ((uint16_t *)(b + skip))[i] = bf16_round(x[n + i]);
    }
    const float *gamma = x + 2 * n, *beta = gamma + C;
    const size_t bytes = n * size + skip, params = (size_t)C * 4;
    for (int k = 0; k < 2; k++) sum[k] = xcalloc(n + 2, 4), y[k] = xcalloc(n + 2, 4), stat[k] = xcalloc((size_t)rows * 2 + 1, 4);
    char *at[4];
    at[0] = IO_N(sum[0], bytes), at[1] = IO_N(y[0], bytes);
    float *st = IO_N(stat[0], (size_t)rows * 8), *g = IN_N(gamma, params), *be = IN_N(beta, params);
    at[2] = IN_N(a, bytes), at[3] = IN_N(b, bytes);
    op->add_fwd(S, t, at[0] + skip, at[2] + skip, at[3] + skip, (int64_t)n);
    RUN(op->layernorm_fwd(S, t, at[1] + skip, st, st + rows, at[0] + skip, g, be, 1e-5f, rows, C));
    for (int in_place = 0; in_place < 2; in_place++) {
        if (in_place) memcpy(sum[1], a, bytes);
        at[0] = IO_N(sum[1], bytes), at[1] = IO_N(y[1], bytes);
        st = IO_N(stat[1], (size_t)rows * 8), g = IN_N(gamma, params), be = IN_N(beta, params);
        at[2] = in_place ? at[0] : IN_N(a, bytes), at[3] = IN_N(b, bytes);
        RUN(op->add_layernorm_fwd(S, t, at[0] + skip, at[1] + skip, st, st + rows, at[2] + skip, at[3] + skip, g, be, 1e-5f, rows, C));
        double apart = 0, most = 0;
        for (size_t i = 0; i < n; i++) {
            const char *p = y[0] + skip, *q = y[1] + skip;
            const double v = t == F32 ? (double)((float *)p)[i] : (double)bf16_value(((uint16_t *)p)[i]);
            apart = fmax(apart, fabs(v - (t == F32 ? (double)((float *)q)[i] : (double)bf16_value(((uint16_t *)q)[i]))));
            most = fmax(most, fabs(v));
        }
        EXPECT(!memcmp(sum[0] + skip, sum[1] + skip, n * size), "(%" PRId64 ", %" PRId64 ") type %d, sum in a %d, %d values from alignment", rows,
               C, (int)t, in_place, misaligned);
        EXPECT_NEAR(apart, 0, (t == F32 ? 32 * EPS32 : 2 * EPS16 + 32 * EPS32) * most, "(%" PRId64 ", %" PRId64 ") type %d: y", rows, C, (int)t);
    }
    for (int k = 0; k < 2; k++) free(sum[k]), free(y[k]), free(stat[k]);
    free(x), free(a), free(b);
}

DEVICE_TEST(add_layernorm_sizes) {
    static const int64_t sizes_[][2] = {{0, 5}, {1, 1}, {5, 37}, {9, 40}, {67, 768}, {3, 1024}, {2, 6400}, {2, 3129}};
    for (int i = 0; i < COUNT_OF(sizes_); i++)
        for (DType t = F32; t <= BF16; t++)
            for (int misaligned = 0; misaligned < 2; misaligned++) add_then_norm(t, sizes_[i][0], sizes_[i][1], misaligned);
    for (int i = 0; i < COUNT_OF(sizes_); i++) kernel_check(&add_layernorm, sizes_[i], NULL);
}

DEVICE_TEST(norm_sizes) {
    static const int64_t more[][2] = {{0, 5}, {0, 0}, {1, 2}, {3, 31}, {129, 768}, {640, 128},
        {5, 1024}, {3, 3129}, {2, 6400}, /* a block per row; odd; more than the block's registers hold */
    };
    for (int i = 0; i < COUNT_OF(more); i++) {
        kernel_check(&layernorm, more[i], NULL);
        kernel_check(&l2norm, more[i], NULL);
        kernel_check(&softmax, more[i], NULL);
    }
}

/* test-vectors 7 */
DEVICE_TEST(layernorm_specification) {
    const float x[4] = {1, 2, 4, -3}, one[4] = {1, 1, 1, 1}, zero[4] = {0};
    const double want[2][4] = {{0, 0.39223227, 1.17669681, -1.56892908}, {0, 0.39223197, 1.17669591, -1.56892787}};
    for (int k = 0; k < 2; k++) {
        float y[4], mean, rstd;
        RUN(op->layernorm_fwd(S, F32, IO(y), IO(mean), IO(rstd), IN(x), IN(one), IN(zero), k ? 1e-5f : 1e-12f, 1, 4));
        for (int i = 0; i < 4; i++) EXPECT_NEAR(y[i], want[k][i], 5e-9 + 4 * EPS32 * 1.57, "eps %d, value %d", k, i);
    }
}

/* |mean| = 1000, std 0.29: E[x^2] - E[x]^2 would lose everything. The inputs have steps of 6e-5, that is 2e-4 of std, but
 * are exact to both sides; the mean is rounded at 1000 EPS32 = 6e-5, 2e-4 of std. */
DEVICE_TEST(layernorm_large_mean) {
    enum { C = 768 };
    float x[C], y[C], one[C], zero[C] = {0}, mean, rstd;
    fill_random(x, C, 3, 999.5f, 1000.5f);
    double m = 0, v = 0;
    for (int i = 0; i < C; i++) one[i] = 1, m += (double)x[i] / C;
    for (int i = 0; i < C; i++) v += ((double)x[i] - m) * ((double)x[i] - m) / C;
    RUN(op->layernorm_fwd(S, F32, IO(y), IO(mean), IO(rstd), IN(x), IN(one), IN(zero), 1e-5f, 1, C));
    for (int i = 0; i < C; i++)
        EXPECT_NEAR(y[i], ((double)x[i] - m) / sqrt(v + 1e-5), 4 * EPS32 * 1000 / 0.28, "value %d", i);
}

/* A row of zeros has no direction: zeros out, no gradient, no NaN. */
DEVICE_TEST(l2norm_zero_row) {
    const float x[3] = {0}, dy[3] = {1, 2, 3};
    float y[3], inv, dx[3] = {1, 1, 1};
    RUN(op->l2norm_fwd(S, F32, IO(y), IO(inv), IN(x), 1e-6f, 1, 3));
    RUN(op->l2norm_bwd(S, F32, IO(dx), IN(x), IN(dy), IN(inv), 1e-6f, 1, 3));
    for (int i = 0; i < 3; i++) EXPECT(y[i] == 0 && isfinite(dx[i]), "%g %g", (double)y[i], (double)dx[i]);
}

DEVICE_TEST(softmax_edges) {
    float y[3];
    RUN(op->softmax_fwd(S, F32, IO(y), IN((float[]){1e30f, -1e30f, 1e30f}), 1, 3));
    EXPECT(y[0] == 0.5f && y[1] == 0 && y[2] == 0.5f, "%g %g %g", (double)y[0], (double)y[1], (double)y[2]);
    RUN(op->softmax_fwd(S, F32, IO(y), IN((float[]){0, -INFINITY, 0}), 1, 3));
    EXPECT(y[0] == 0.5f && y[1] == 0 && y[2] == 0.5f, "%g %g %g", (double)y[0], (double)y[1], (double)y[2]);
    RUN(op->softmax_fwd(S, F32, IO(y), IN((float[]){0, NAN, 0}), 1, 3));
    EXPECT(isnan(y[0]) && isnan(y[1]) && isnan(y[2]), "a NaN is hidden");
}
