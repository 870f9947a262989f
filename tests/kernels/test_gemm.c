/* test_gemm.c -- matrix products and the bias gradient. */
#include "tests/kernels/kernels.h"

#include <math.h>
#include <pthread.h>

#include "kernels/cpu/onednn.h"

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
static const Kernel linear = {"gemm",
                              "MNK",
                              {{"a", X, "MK"},
                               {"b", X, "KN"},
                               {"bias", X, "N", .f32 = true},
                               {"y", Y, "MN", .bound = 16, .bf16 = 1},
                               {"dy", DY, "MN"},
                               {"da", DX, "MK", .of = 0, .bound = 16},
                               {"db", DX, "KN", .of = 1, .bound = 16, .f32 = true},
                               {"dbias", DX, "N", .of = 2, .bound = 12, .f32 = true}},
                              linear_f,
                              linear_b,
                              .library = true};

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
                             .together = true,
                             .library = true};

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
                            gelu_f,
                            .library = true};
static const Kernel gelu_alone = {
    "gemm_gelu_tanh_alone",
    "MNK",
    {{"x", X, "MK"}, {"w", X, "NK"}, {"bias", X, "N", .f32 = true}, {"y", Y, "MN", .bound = 30, .bf16 = 2}},
    gelu_alone_f,
    .library = true};
static const Kernel dgelu = {
    "gemm_dgelu_tanh",
    "MNK",
    {{"dz", X, "MK"}, {"w", X, "KN"}, {"pre", X, "MN", -4, 4}, {"dpre", Y, "MN", .bound = 32, .bf16 = 2}},
    dgelu_f,
    .library = true};

/* The last layer of a network: f32 from bf16, not rounded on the way out. */
static void head_f(void *const *p, const int64_t *d) {
    const int64_t M = d[0], N = d[1], K = d[2];
    op->gemm(S, dt, F32, p[3], N, p[0], K, p[1], K, p[2], false, true, M, N, K, 0);
}
static const Kernel head = {
    "gemm_head",
    "MNK",
    {{"a", X, "MK"}, {"b", X, "NK"}, {"bias", X, "N", .f32 = true}, {"y", Y, "MN", .bound = 16, .f32 = true}},
    head_f,
    .library = true};

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

/* What a product is asked of: the device's op, or one of the CPU's ways by itself. */
typedef void Product(DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                     int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                     bool add);

static void by_op(DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                  int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                  bool add) {
    op->gemm(S, t, tc, C, ldc, A, lda, B, ldb, bias, ta, tb, M, N, K, add);
}
static void by_onednn(DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                      int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                      bool add) {
    EXPECT(onednn_product(t, tc, C, ldc, A, lda, B, ldb, bias, ta, tb, M, N, K, add), "oneDNN multiplies");
}

static void put(DType t, void *p, int64_t i, float x) {
    if (t == F32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = bf16_round(x);
}
static float get(DType t, const void *p, int64_t i) {
    return t == F32 ? ((const float *)p)[i] : bf16_value(((const uint16_t *)p)[i]);
}
static void *nans(int64_t n, DType t) {
    return memset(xcalloc((size_t)n + 1, 4), 0xFF, (size_t)n * dtype_size(t));
}

/* Every flag, with leading dimensions beyond the rows, NaN in C when beta is 0 and in what the op must not read or write.
 * Small integers: every sum is exact, so the answer is, too, and in bf16 its one rounding. */
static void flags(Product *product, DType t, DType tc, const int64_t size[3], bool ta, bool tb, bool bias,
                  bool add) {
    const int64_t M = size[0], N = size[1], K = size[2];
    const int64_t lda = (ta ? M : K) + 3, ldb = (tb ? K : N) + 1, ldc = N + 5, ra = ta ? K : M, rb = tb ? N : K;
    void *A = nans(ra * lda, t), *B = nans(rb * ldb, t), *C = nans(M * ldc, tc);
    float *b = xcalloc((size_t)N + 1, 4);
    for (int64_t i = 0; i < ra; i++)
        for (int64_t j = 0; j < lda - 3; j++) put(t, A, i * lda + j, (float)((i * 7 + j * 5) % 11 - 5));
    for (int64_t i = 0; i < rb; i++)
        for (int64_t j = 0; j < ldb - 1; j++) put(t, B, i * ldb + j, (float)((i * 3 + j * 4) % 13 - 6));
    for (int64_t j = 0; j < N; j++) b[j] = (float)j;
    for (int64_t i = 0; add && i < M; i++)
        for (int64_t j = 0; j < N; j++) put(tc, C, i * ldc + j, (float)((i - j) % 200)); /* exact in bf16 */
    RUN(product(t, tc, IO_N(C, (size_t)(M * ldc) * dtype_size(tc)), ldc,
                IN_N(A, (size_t)(ra * lda) * dtype_size(t)), lda, IN_N(B, (size_t)(rb * ldb) * dtype_size(t)),
                ldb, bias ? IN_N(b, (size_t)N * 4) : NULL, ta, tb, M, N, K, add));
    int *x = xcalloc((size_t)(M * K) + 1, sizeof *x), *w = xcalloc((size_t)(N * K) + 1, sizeof *w), wrong = 0,
        spilt = 0;
    for (int64_t i = 0; i < M * K; i++) x[i] = (int)get(t, A, ta ? i % K * lda + i / K : i / K * lda + i % K);
    for (int64_t i = 0; i < N * K; i++) w[i] = (int)get(t, B, tb ? i / K * ldb + i % K : i % K * ldb + i / K);
    for (int64_t i = 0; i < M; i++) {
        for (int64_t j = 0; j < N; j++) {
            int sum = (bias ? (int)j : 0) + (add ? (int)((i - j) % 200) : 0);
            for (int64_t k = 0; k < K; k++) sum += x[i * K + k] * w[j * K + k];
            wrong += get(tc, C, i * ldc + j) != (tc == F32 ? (float)sum : bf16_value(bf16_round((float)sum)));
        }
        for (int64_t j = N; j < ldc; j++) spilt += !isnan(get(tc, C, i * ldc + j));
    }
    EXPECT(!wrong && !spilt,
           "(%" PRId64 ",%" PRId64 ",%" PRId64 ") ta %d tb %d bias %d add %d: %d values wrong, %d outside C",
           M, N, K, ta, tb, bias, add, wrong, spilt);
    free(A), free(B), free(C), free(b), free(x), free(w);
}

static void all_flags(Product *product, DType t, DType tc, bool empty_sums) {
    static const int64_t sizes[][3] = {{3, 5, 0},      {1, 1, 1},      {2, 1, 9},
                                       {1, 40, 17},    {17, 31, 23},   {65, 130, 70},
                                       {200, 520, 33}, {40, 70, 1100}, /* copied in two pieces of K when ta */
                                       {33, 511, 1030}};       /* and so is B when !tb: its stride is 512 */
    for (int threads = 1; threads <= (S ? 1 : 2); threads++) { /* threads are the CPU's */
        device_cpu(threads);
        for (int i = !empty_sums; i < COUNT_OF(sizes); i++)
            for (int f = 0; f < 16; f++) flags(product, t, tc, sizes[i], f & 1, f & 2, f & 4, f & 8);
    }
}

DEVICE_TEST(gemm_flags) { all_flags(by_op, F32, F32, true); }

static void bf16_flags(Product *product, bool empty_sums) {
    all_flags(product, BF16, F32, empty_sums);
    all_flags(product, BF16, BF16, empty_sums);
}

/* The CPU's two ways to multiply bf16, as the machine has them: where oneDNN has nothing for bf16, what we
 * ask of it is tested in f32. */
static void widened_on_cpu(void) {
    onednn_allow(false);
    bf16_flags(by_op, true);
    onednn_allow(true);
}
TEST(gemm_bf16_widened) { device_test_run(CPU, widened_on_cpu); }

static void onednn_f32_on_cpu(void) { all_flags(by_onednn, F32, F32, false); }
TEST(gemm_onednn_f32) { device_test_run(CPU, onednn_f32_on_cpu); }

static void onednn_bf16_on_cpu(void) {
    bf16_flags(by_onednn, false);
    bf16_flags(by_op, true);
}
TEST(gemm_onednn_bf16) {
    if (!onednn_bf16())
        test_skip("this CPU has no bf16 instructions (AVX512_BF16 or AMX)");
    else
        device_test_run(CPU, onednn_bf16_on_cpu);
}

/* Several threads at once, each with scratch of its own, the same shapes and others. */
static void *multiply(void *number) {
    const int64_t n = *(int64_t *)number;
    for (int64_t i = 0; i < 60; i++) {
        const int64_t M = 1 + (n + i) % 7 * 9, N = 40, K = 64;
        float A[64 * 64], B[64 * 64], C[64 * 64];
        int wrong = 0;
        for (int64_t j = 0; j < M * K; j++) A[j] = (float)((j + n) % 5 - 2);
        for (int64_t j = 0; j < N * K; j++) B[j] = (float)((j + i) % 3 - 1);
        for (int64_t j = 0; j < M * N; j++) C[j] = (float)n;
        if (!onednn_product(F32, F32, C, N, A, K, B, K, NULL, false, true, M, N, K, true)) return number;
        for (int64_t j = 0; j < M * N; j++) {
            float want = (float)n;
            for (int64_t k = 0; k < K; k++) want += A[j / N * K + k] * B[j % N * K + k];
            wrong += C[j] != want;
        }
        if (wrong) return number;
    }
    return NULL;
}
TEST(gemm_onednn_threads) {
    pthread_t thread[4];
    int64_t number[4];
    void *failed;
    for (int i = 0; i < 4; i++) {
        number[i] = i;
        CHECK(!pthread_create(&thread[i], NULL, multiply, &number[i]), "thread %d", i);
    }
    for (int i = 0; i < 4; i++)
        EXPECT(!pthread_join(thread[i], &failed) && !failed, "thread %d: wrong products", i);
}

/* A row has the same bits whatever the rest of the batch, the columns beside it and the number of threads: a
 * question is multiplied alike alone and in a wave. Promised by the CPU alone, of f32. */
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
