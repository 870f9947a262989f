/* test_embed.c -- gathering, interpolation, copies, pooling, pair scores. */
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_embed.safetensors"

COVERS(embed, gather_rows, scatter_rows, interp_rows_fwd, interp_rows_bwd, copy_rows, mean_tokens_fwd, mean_tokens_bwd,
       pair_scores_fwd, pair_scores_bwd)

/* scatter_rows is the backward of gather_rows. 23 draws from 11 rows: a row adds a handful, in order. */
static void gather_f(void *const *p, const int64_t *d) { op->gather_rows(S, dt, p[2], p[0], p[1], d[0], d[2]); }
static void gather_b(void *const *p, const int64_t *d) {
    if (p[4]) op->scatter_rows(S, dt, p[4], dt, p[3], p[1], d[0], d[2]);
}
static const Kernel gather = {"gather_rows", "nrC",
    {{"x", X, "rC"}, {"idx", INDEX, "n", .below = 'r'}, {"y", Y, "nC", .bound = 0}, {"dy", DY, "nC"},
     {"dx", DX, "rC", .of = 0, .bound = 8}}, gather_f, gather_b};

static void interp_f(void *const *p, const int64_t *d) { op->interp_rows_fwd(S, dt, p[3], p[0], p[1], p[2], d[0], d[2]); }
static void interp_b(void *const *p, const int64_t *d) { op->interp_rows_bwd(S, dt, p[5], dt, p[4], p[1], p[2], d[0], d[2]); }
static const Kernel interp = {"interp_rows", "nrC",
    {{"x", X, "rC"}, {"idx", INDEX, "4n", .below = 'r'}, {"w", CONST, "4n"}, {"y", Y, "nC", .bound = 6}, {"dy", DY, "nC"},
     {"dx", DX, "rC", .of = 0, .bound = 12}}, interp_f, interp_b};

/* The same where x is a parameter: f32 gradients, whatever dy is. */
static void gather_param_b(void *const *p, const int64_t *d) {
    if (p[4]) op->scatter_rows(S, F32, p[4], dt, p[3], p[1], d[0], d[2]);
}
static void interp_param_b(void *const *p, const int64_t *d) { op->interp_rows_bwd(S, F32, p[5], dt, p[4], p[1], p[2], d[0], d[2]); }
static const Kernel gather_param = {"gather_rows", "nrC",
    {{"x", X, "rC"}, {"idx", INDEX, "n", .below = 'r'}, {"y", Y, "nC", .bound = 0}, {"dy", DY, "nC"},
     {"dx", DX, "rC", .of = 0, .bound = 8, .f32 = true}}, gather_f, gather_param_b};
static const Kernel interp_param = {"interp_rows", "nrC",
    {{"x", X, "rC"}, {"idx", INDEX, "4n", .below = 'r'}, {"w", CONST, "4n"}, {"y", Y, "nC", .bound = 6}, {"dy", DY, "nC"},
     {"dx", DX, "rC", .of = 0, .bound = 12, .f32 = true}}, interp_f, interp_param_b};

static void mean_f(void *const *p, const int64_t *d) { op->mean_tokens_fwd(S, dt, p[1], p[0], NULL, d[0], d[1], d[2]); }
static void mean_b(void *const *p, const int64_t *d) { op->mean_tokens_bwd(S, dt, p[3], p[2], NULL, d[0], d[1], d[2]); }
static void mean_masked_f(void *const *p, const int64_t *d) {
    op->mean_tokens_fwd(S, dt, p[1], p[0], p[4], d[0], d[1], d[2]);
}
static void mean_masked_b(void *const *p, const int64_t *d) {
    op->mean_tokens_bwd(S, dt, p[3], p[2], p[4], d[0], d[1], d[2]);
}
static const Kernel mean = {"mean_tokens", "BTC",
    {{"x", X, "BTC"}, {"y", Y, "BC", .bound = 6}, {"dy", DY, "BC"}, {"dx", DX, "BTC", .of = 0, .bound = 3}}, mean_f, mean_b};
static const Kernel mean_masked = {"mean_tokens_masked", "BTC",
    {{"x", X, "BTC"}, {"y", Y, "BC", .bound = 6}, {"dy", DY, "BC"}, {"dx", DX, "BTC", .of = 0, .bound = 3},
     {"mask", MASK, "BT"}}, mean_masked_f, mean_masked_b};

/* Sums of D = 37 products; gradients of an image add over its pairs and patches in order. */
static void pair_f(void *const *p, const int64_t *d) {
    op->pair_scores_fwd(S, dt, p[4], p[0], p[1], p[2], p[3], d[0], d[3], d[4]);
}
static void pair_b(void *const *p, const int64_t *d) {
    op->pair_scores_bwd(S, dt, p[6], p[7], p[0], p[1], p[5], p[2], p[3], d[0], d[3], d[4]);
}
static const Kernel pair = {"pair_scores", "nabPD",
    {{"f", X, "aPD"}, {"q", X, "bD"}, {"img", INDEX, "n", .below = 'a'}, {"txt", INDEX, "n", .below = 'b'},
     {"y", Y, "nP", .bound = 16}, {"dy", DY, "nP"}, {"df", DX, "aPD", .of = 0, .bound = 12},
     {"dq", DX, "bD", .of = 1, .bound = 24}}, pair_f, pair_b};

DEVICE_TEST(embed_golden) {
    static const int64_t rows[][3] = {{1, 1, 1}, {23, 11, 37}}, tokens[][3] = {{1, 1, 1}, {3, 7, 37}};
    for (int i = 0; i < 2; i++) {
        kernel_check(&gather, rows[i], GOLDEN);
        kernel_check(&interp, rows[i], GOLDEN);
        kernel_check(&mean, tokens[i], GOLDEN);
        kernel_check(&mean_masked, tokens[i], GOLDEN);
    }
    kernel_check(&pair, (int64_t[]){1, 1, 1, 1, 1}, GOLDEN);
    kernel_check(&pair, (int64_t[]){9, 3, 4, 13, 37}, GOLDEN);
}

DEVICE_TEST(embed_sizes) {
    static const int64_t rows[][3] = {{0, 3, 5}, {3, 2, 0}, {1000, 7, 130}, {145, 577, 192}};
    for (int i = 0; i < COUNT_OF(rows); i++) {
        kernel_check(&gather, rows[i], NULL);
        kernel_check(&interp, rows[i], NULL);
        kernel_check(&gather_param, rows[i], NULL);
        kernel_check(&interp_param, rows[i], NULL);
    }
    static const int64_t tokens[][3] = {{0, 3, 5}, {2, 0, 5}, {2, 3, 0}, {5, 80, 128}};
    for (int i = 0; i < COUNT_OF(tokens); i++) {
        kernel_check(&mean, tokens[i], NULL);
        kernel_check(&mean_masked, tokens[i], NULL);
    }
    static const int64_t pairs[][5] = {{0, 1, 1, 4, 4}, {2, 1, 1, 0, 4}, {2, 2, 2, 3, 0}, {24, 3, 5, 144, 64}};
    for (int i = 0; i < COUNT_OF(pairs); i++) kernel_check(&pair, pairs[i], NULL);
}

/* Copies and additions with every kind of stride: the first token of an image, concatenation, a repeated row. */
DEVICE_TEST(copy_rows) {
    static const struct { int64_t ldd, lds, rows, n; } rows[] = {
        {37, 37, 5, 37}, {5, 40, 3, 5}, {40, 5, 3, 5}, {7, 0, 4, 7}, {9, 9, 0, 9}, {9, 9, 3, 0}, {1, 1, 1, 1}, {300, 260, 200, 257},
    };
    for (int i = 0; i < COUNT_OF(rows); i++)
        for (int add = 0; add < 2; add++) {
            enum { N = 60100 };
            static float src[N], dst[N], want[N];
            fill_random(src, N, 1, -1, 1);
            fill_random(dst, N, 2, -1, 1);
            memcpy(want, dst, sizeof want);
            for (int64_t r = 0; r < rows[i].rows; r++)
                for (int64_t c = 0; c < rows[i].n; c++) {
                    float *w = &want[r * rows[i].ldd + c];
                    *w = src[r * rows[i].lds + c] + (add ? *w : 0);
                }
            RUN(op->copy_rows(S, F32, IO(dst), rows[i].ldd, IN(src), rows[i].lds, rows[i].rows, rows[i].n, add));
            EXPECT(!memcmp(dst, want, sizeof want), "row %d of the table, add %d", i, add);
        }
    /* All rows into one: the backward of a repeated row, in order. */
    float sum[2] = {1, 2};
    RUN(op->copy_rows(S, F32, IO(sum), 0, IN((float[]){1, 2, 3, 4, 5, 6}), 2, 3, 2, true));
    EXPECT(sum[0] == 10 && sum[1] == 14, "%g %g", (double)sum[0], (double)sum[1]);
}
