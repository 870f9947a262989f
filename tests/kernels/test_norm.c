/* test_norm.c -- layernorm, l2norm, softmax. */
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_norm.safetensors"

COVERS(norm, layernorm_fwd, layernorm_bwd, l2norm_fwd, l2norm_bwd, softmax_fwd, softmax_bwd)

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
