/* test_gemm.c -- matrix products and the bias gradient. */
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_gemm.safetensors"

COVERS(gemm, gemm, bias_bwd, gemm_bgrad, gemm_gelu_tanh, gemm_dgelu_tanh)

/* A linear layer: y = a b + bias; da = dy b^T, db = a^T dy, f32 as weight gradients are. K <= 130 products: a walk of
 * sqrt(130) roundings. In bf16 the bias may be rounded before it is added. */
static void linear_f(void *const *p, const int64_t *d) {
    const int64_t M = d[0], N = d[1], K = d[2];
    op->gemm(S, dt, dt, p[3], N, p[0], K, p[1], N, p[2], false, false, M, N, K, 0);
}
static void linear_b(void *const *p, const int64_t *d) {
    const int64_t M = d[0], N = d[1], K = d[2];
    if (p[5]) op->gemm(S, dt, dt, p[5], K, p[4], N, p[1], N, NULL, false, true, M, K, N, 1);
    if (p[6]) op->gemm(S, dt, F32, p[6], N, p[0], K, p[4], N, NULL, true, false, K, N, M, 1);
    op->bias_bwd(S, dt, p[7], p[4], M, N);
}
static const Kernel linear = {"gemm", "MNK",
    {{"a", X, "MK"}, {"b", X, "KN"}, {"bias", X, "N", .f32 = true}, {"y", Y, "MN", .bound = 16, .bf16 = 1}, {"dy", DY, "MN"},
     {"da", DX, "MK", .of = 0, .bound = 16}, {"db", DX, "KN", .of = 1, .bound = 16, .f32 = true},
     {"dbias", DX, "N", .of = 2, .bound = 12, .f32 = true}},
    linear_f, linear_b};

/* A linear layer as op.c has it, both gradients of its parameters in one op: the same sums, the same bounds.
 * A library may add the rows of dy one by one: at 640 of them 0.1 sqrt(640) EPS32 of the largest sum, and
 * four times that in the worst column. */
static void layer_f(void *const *p, const int64_t *d) {
    const int64_t M = d[0], N = d[1], K = d[2];
    op->gemm(S, dt, dt, p[3], N, p[0], K, p[1], K, p[2], false, true, M, N, K, 0);
}
static void layer_b(void *const *p, const int64_t *d) {
    op->gemm_bgrad(S, dt, p[5], p[6], p[4], p[0], d[0], d[1], d[2]);
}
static const Kernel layer = {"gemm_bgrad",
                             "MNK",
                             {{"x", X, "MK"},
                              {"w", X, "NK"},
                              {"bias", X, "N", .f32 = true},
                              {"y", Y, "MN", .bound = 16, .bf16 = 1},
                              {"dy", DY, "MN"},
                              {"dw", DX, "NK", .of = 1, .bound = 16, .f32 = true},
                              {"dbias", DX, "N", .of = 2, .bound = 12, .f32 = true}},
                             layer_f,
                             layer_b,
                             .together = true};

/* gelu beside a product: what the product has by itself, times a slope up to 1.13, and gelu's own
 * (test_elementwise.c). In bf16 y may be of the rounded pre, the product rounded before the slope: two
 * roundings. A card's library works in rows of 8 values and in bf16 alone. */
static void gelu_f(void *const *p, const int64_t *d) {
    op->gemm_gelu_tanh(S, dt, p[3], p[4], p[0], p[1], p[2], d[0], d[1], d[2]);
}
static void gelu_alone_f(void *const *p, const int64_t *d) {
    op->gemm_gelu_tanh(S, dt, p[3], NULL, p[0], p[1], p[2], d[0], d[1], d[2]);
}
static void dgelu_f(void *const *p, const int64_t *d) {
    op->gemm_dgelu_tanh(S, dt, p[3], p[2], p[0], p[1], d[0], d[1], d[2]);
}
static const Kernel gelu = {"gemm_gelu_tanh",
                            "MNK",
                            {{"x", X, "MK"},
                             {"w", X, "NK"},
                             {"bias", X, "N", .f32 = true},
                             {"y", Y, "MN", .bound = 30, .bf16 = 2},
                             {"pre", Y, "MN", .bound = 16, .bf16 = 1}},
                            gelu_f};
static const Kernel gelu_alone = {
    "gemm_gelu_tanh_alone",
    "MNK",
    {{"x", X, "MK"}, {"w", X, "NK"}, {"bias", X, "N", .f32 = true}, {"y", Y, "MN", .bound = 30, .bf16 = 2}},
    gelu_alone_f};
static const Kernel dgelu = {
    "gemm_dgelu_tanh",
    "MNK",
    {{"dz", X, "MK"}, {"w", X, "KN"}, {"pre", X, "MN", -4, 4}, {"dpre", Y, "MN", .bound = 32, .bf16 = 2}},
    dgelu_f};

/* The last layer of a network: f32 from bf16, not rounded on the way out. */
static void head_f(void *const *p, const int64_t *d) {
    const int64_t M = d[0], N = d[1], K = d[2];
    op->gemm(S, dt, F32, p[3], N, p[0], K, p[1], K, p[2], false, true, M, N, K, 0);
}
static const Kernel head = {"gemm_head", "MNK",
    {{"a", X, "MK"}, {"b", X, "NK"}, {"bias", X, "N", .f32 = true}, {"y", Y, "MN", .bound = 16, .f32 = true}}, head_f};

DEVICE_TEST(gemm_golden) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 37, 13}, {35, 17, 130}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        kernel_check(&linear, sizes[i], GOLDEN);
        kernel_check(&layer, sizes[i], GOLDEN);
        kernel_check(&gelu, sizes[i], GOLDEN);
        kernel_check(&dgelu, sizes[i], GOLDEN);
    }
}

DEVICE_TEST(gemm_sizes) {
    static const int64_t sizes[][3] = {
        {0, 3, 3}, {3, 0, 3}, {3, 3, 0}, {1, 640, 128}, {640, 1, 128}, {193, 513, 65}, {640, 384, 128}, {185, 768, 768}, {128, 128, 1700},
        {640, 384, 3}, {17, 300, 40}, {63, 65, 64}, /* gradients that are a few rows or columns */
    };
    for (int i = 0; i < COUNT_OF(sizes); i++) kernel_check(&linear, sizes[i], NULL);
    static const int64_t layers[][3] = {{0, 3, 3},     {3, 0, 3},      {3, 3, 0},     {1, 640, 128},
                                        {640, 1, 128}, {193, 257, 65}, {185, 384, 96}};
    for (int i = 0; i < COUNT_OF(layers); i++) kernel_check(&layer, layers[i], NULL);
    static const int64_t mlps[][3] = {{0, 3, 3},      {3, 0, 3},      {3, 3, 0},    {1, 640, 128},
                                      {193, 257, 65}, {185, 256, 96}, {40, 100, 64}};
    for (int i = 0; i < COUNT_OF(mlps); i++) {
        kernel_check(&gelu, mlps[i], NULL);
        kernel_check(&gelu_alone, mlps[i], NULL);
        kernel_check(&dgelu, mlps[i], NULL);
    }
    static const int64_t heads[][3] = {{0, 3, 3}, {3, 3, 0}, {1, 37, 128}, {144, 1, 128}, {576, 4, 37}, {64, 130, 192}};
    for (int i = 0; i < COUNT_OF(heads); i++) kernel_check(&head, heads[i], NULL);
}

/* Every flag, with leading dimensions beyond the rows, NaN in C when beta is 0 and in what the op must not read or write.
 * Small integers: every sum is exact, so the answer is, too. */
static void flags(int64_t M, int64_t N, int64_t K, bool ta, bool tb, bool bias, int beta) {
    const int64_t lda = (ta ? M : K) + 3, ldb = (tb ? K : N) + 1, ldc = N + 5, ra = ta ? K : M, rb = tb ? N : K;
    float *A = xcalloc((size_t)(ra * lda + 1), 4), *B = xcalloc((size_t)(rb * ldb + 1), 4), *C = xcalloc((size_t)(M * ldc + 1), 4);
    float *b = xcalloc((size_t)N + 1, 4);
    memset(A, 0xFF, (size_t)(ra * lda) * 4);
    memset(B, 0xFF, (size_t)(rb * ldb) * 4);
    memset(C, 0xFF, (size_t)(M * ldc) * 4);
    for (int64_t i = 0; i < ra; i++)
        for (int64_t j = 0; j < lda - 3; j++) A[i * lda + j] = (float)((i * 7 + j * 5) % 11 - 5);
    for (int64_t i = 0; i < rb; i++)
        for (int64_t j = 0; j < ldb - 1; j++) B[i * ldb + j] = (float)((i * 3 + j * 4) % 13 - 6);
    for (int64_t j = 0; j < N; j++) b[j] = (float)j;
    for (int64_t i = 0; beta && i < M; i++)
        for (int64_t j = 0; j < N; j++) C[i * ldc + j] = (float)(i - j);
    RUN(op->gemm(S, F32, F32, IO_N(C, (size_t)(M * ldc) * 4), ldc, IN_N(A, (size_t)(ra * lda) * 4), lda, IN_N(B, (size_t)(rb * ldb) * 4),
                 ldb, bias ? IN_N(b, (size_t)N * 4) : NULL, ta, tb, M, N, K, (float)beta));
    int wrong = 0, spilt = 0;
    for (int64_t i = 0; i < M; i++) {
        for (int64_t j = 0; j < N; j++) {
            double want = (bias ? (double)j : 0) + (beta ? (double)(i - j) : 0);
            for (int64_t k = 0; k < K; k++) want += (double)A[ta ? k * lda + i : i * lda + k] * (double)B[tb ? j * ldb + k : k * ldb + j];
            wrong += (double)C[i * ldc + j] != want;
        }
        for (int64_t j = N; j < ldc; j++) spilt += !isnan(C[i * ldc + j]);
    }
    EXPECT(!wrong && !spilt, "(%" PRId64 ",%" PRId64 ",%" PRId64 ") ta %d tb %d bias %d beta %d: %d values wrong, %d outside C", M,
           N, K, ta, tb, bias, beta, wrong, spilt);
    free(A), free(B), free(C), free(b);
}

DEVICE_TEST(gemm_flags) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {3, 5, 0}, {2, 1, 9}, {1, 40, 17}, {17, 31, 23}, {65, 130, 70}, {200, 520, 33},
                                       {40, 70, 1100},   /* copied in two pieces of K when ta */
                                       {33, 511, 1030}}; /* and so is B when !tb: its stride is 512 */
    for (int threads = 1; threads <= (S ? 1 : 2); threads++) { /* threads are the CPU's */
        device_cpu(threads);
        for (int i = 0; i < COUNT_OF(sizes); i++)
            for (int f = 0; f < 16; f++) flags(sizes[i][0], sizes[i][1], sizes[i][2], f & 1, f & 2, f & 4, f >> 3);
    }
}

/* A row has the same bits whatever the rest of the batch, the columns beside it and the number of threads: a
 * question is multiplied alike alone and in a wave. Promised by the CPU alone. */
TEST(gemm_rows_do_not_depend_on_the_batch) {
    enum { M = 401, N = 200, K = 4500 };
    float *A = xcalloc(M * K, 4), *B = xcalloc(N * K, 4), *C = xcalloc(M * N, 4), *D = xcalloc(M * N, 4);
    for (int64_t i = 0; i < M * K; i++) A[i] = (float)(hash_bytes(&i, sizeof i, 1) % 1000) / 1000 - 0.5f;
    for (int64_t i = 0; i < N * K; i++) B[i] = (float)(hash_bytes(&i, sizeof i, 2) % 1000) / 1000 - 0.5f;
    for (int flags = 0; flags < 4; flags++) {
        const bool ta = flags & 1, tb = flags & 2;
        const int64_t lda = ta ? M : K, ldb = tb ? K : N;
        device_cpu(2);
        ops_cpu.gemm(NULL, F32, F32, C, N, A, lda, B, ldb, NULL, ta, tb, M, N, K, 0);
        static const int64_t parts[][4] = {{0, 2, 0, 200}, {3, 8, 7, 1}, {191, 4, 0, 64}, {100, 301, 23, 177}};
        for (int i = 0; i < COUNT_OF(parts); i++) {
            const int64_t m = parts[i][0], rows = parts[i][1], n = parts[i][2], columns = parts[i][3];
            device_cpu(i % 2 + 1);
            ops_cpu.gemm(NULL, F32, F32, D, columns, A + (ta ? m : m * K), lda, B + (tb ? n * K : n), ldb, NULL,
                         ta, tb, rows, columns, K, 0);
            int other = 0;
            for (int64_t r = 0; r < rows; r++)
                other += memcmp(C + (m + r) * N + n, D + r * columns, (size_t)columns * 4) != 0;
            EXPECT(!other, "ta %d tb %d, rows from %" PRId64 ", columns from %" PRId64 ": %d rows differ", ta,
                   tb, m, n, other);
        }
    }
    free(A), free(B), free(C), free(D);
}

/* Where C is bf16 the sum is rounded once: -258 + 259 is 1, but 259 alone is 260 in bf16. */
DEVICE_TEST(gemm_bf16_rounds_once) {
    enum { K = 259, PAD = 5 };
    static const int64_t sizes[][2] = {{1, 1}, {1, 640}, {640, 1}, {3, 40}, {63, 200}, {64, 64}, {130, 257}};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int pad = 0; pad <= PAD; pad += PAD) {
            const int64_t M = sizes[i][0], N = sizes[i][1], ldc = N + pad, longest = MAX(M, N) * K;
            uint16_t *ones = xcalloc((size_t)longest, 2), *C = xcalloc((size_t)(M * ldc), 2);
            for (int64_t k = 0; k < longest; k++) ones[k] = bf16_round(1);
            for (int64_t k = 0; k < M * ldc; k++) C[k] = bf16_round(-258);
            RUN(op->gemm(S, BF16, BF16, IO_N(C, (size_t)(M * ldc) * 2), ldc, IN_N(ones, (size_t)(M * K) * 2), K,
                         IN_N(ones, (size_t)(N * K) * 2), K, NULL, false, true, M, N, K, 1));
            int wrong = 0;
            for (int64_t k = 0; k < M * ldc; k++) wrong += bf16_value(C[k]) != (k % ldc < N ? 1.0f : -258.0f);
            EXPECT(!wrong, "(%" PRId64 ",%" PRId64 "), rows at %" PRId64 ": %d values wrong", M, N, ldc, wrong);
            free(ones), free(C);
        }
}
