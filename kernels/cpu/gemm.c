/* gemm.c -- matrix products on the CPU by oneDNN. Contract: ops.h. The only file that includes dnnl.h.
 *
 * dnnl_sgemm with its own threads may split K among them, so its last bits depend on how many there are. We cut
 * C into blocks whose size follows from M, N and K alone and give each block to one thread: 95 % of one core's
 * multiply-add peak per block, and the same bits for every number of threads.
 */
#include "kernels/cpu/cpu.h"

#include <dnnl.h>

/* Blocks of C. Smaller ones pack A and B more often, larger ones leave cores idle. */
enum { BLOCK_M = 192, BLOCK_N = 512, BLOCK_MIN = 64, BLOCKS_WANTED = 4 };
/* Rows copied at a time, and values between two of them that keep the stride off the powers of two. */
enum { COPY_K = 1024, COPY_PAD = 16, COPY_STRIDE = 512 /* below it, rows are near enough to be read where they are */,
       COPY_ROWS = 32 /* of the result, that a copy of B pays for */ };

static void block_size(int64_t *bm, int64_t *bn, int64_t M, int64_t N) {
    *bm = MIN(M, BLOCK_M);
    *bn = MIN(N, BLOCK_N);
    /* A weight gradient of a small layer: C is one or two blocks, K is thousands. */
    while (ceil_div(M, *bm) * ceil_div(N, *bn) < BLOCKS_WANTED && MAX(*bm, *bn) > BLOCK_MIN) {
        int64_t *b = *bn >= *bm ? bn : bm;
        *b = ceil_div(*b / 2, 16) * 16;
    }
}

/* beta 0 with a bias: C = bias, then beta is 1. The rows are in the cache when the product arrives. */
static void add_bias(float *C, int64_t ldc, const float *bias, int64_t M, int64_t N, float beta) {
    for (int64_t i = 0; i < M; i++) {
        if (beta == 0) memcpy(C + i * ldc, bias, (size_t)N * sizeof(float));
        else row_add(C + i * ldc, bias, N);
    }
}

static void sgemm(float *C, int64_t ldc, const float *A, int64_t lda, const float *B, int64_t ldb, bool ta, bool tb,
                  int64_t M, int64_t N, int64_t K, float beta) {
    dnnl_status_t st = dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', M, N, K, 1.0f, A, lda, B, ldb, beta, C, ldc);
    CHECK(st == dnnl_success, "gemm (%" PRId64 ",%" PRId64 ",%" PRId64 "): oneDNN says %d", M, N, K, (int)st);
}

static void copy_columns(float *to, int64_t ldt, const float *from, int64_t ldf, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ldt, from + i * ldf, (size_t)n * sizeof(float));
}

/* A weight gradient, C += A^T B with K (the tokens) long: both sides are read down columns, and with strides such as 3072
 * values every row falls into the same cache sets: oneDNN comes to half its speed (41 of 88 GFLOP/s on one core of an EPYC
 * at 3072 x 768 x 1480). Copies with a stride of their own give it back (86), for a copy per 2 x 192 products. */
static void weight_gradient(float *C, int64_t ldc, const float *A, int64_t lda, const float *B, int64_t ldb, int64_t M,
                            int64_t N, int64_t K, float beta) {
    const int64_t sa = M + COPY_PAD, sb = N + COPY_PAD, most = MIN(K, COPY_K);
    float *a = cpu_scratch(SCRATCH_THREAD, (size_t)(most * (sa + sb)) * sizeof(float)), *b = a + most * sa;
    for (int64_t k = 0; k < K; k += COPY_K) {
        const int64_t n = MIN(COPY_K, K - k);
        copy_columns(a, sa, A + k * lda, lda, n, M);
        copy_columns(b, sb, B + k * ldb, ldb, n, N);
        sgemm(C, ldc, a, sa, b, sb, true, false, M, N, n, k ? 1.0f : beta);
    }
}

/* The gradient of an input, C = A B with B as it lies in memory: its rows are W's, and the kernel walks down a column of them.
 * Where the stride is a multiple of 2 KB (fc2 of a ViT: 3072 values) those rows share two cache sets or one: 41 of 88 GFLOP/s
 * at 192 x 512 x 768, and 82 from a copy with a stride of its own. From 25 % (a stride of 1536) to 2 x. */
static void input_gradient(float *C, int64_t ldc, const float *A, int64_t lda, const float *B, int64_t ldb, int64_t M,
                           int64_t N, int64_t K, float beta) {
    const int64_t sb = N + COPY_PAD;
    float *b = cpu_scratch(SCRATCH_THREAD, (size_t)(MIN(K, COPY_K) * sb) * sizeof(float));
    for (int64_t k = 0; k < K; k += COPY_K) {
        const int64_t n = MIN(COPY_K, K - k);
        copy_columns(b, sb, B + k * ldb, ldb, n, N);
        sgemm(C, ldc, A + k, lda, b, sb, false, false, M, N, n, k ? 1.0f : beta);
    }
}

/* The weight gradient of a layer with one output, C += a^T B: sums down thousands of rows whose terms mostly cancel, as for the
 * shift of OWL-ViT's logits, 95 % of the model's gradient. In f32 two halves of a batch gave another sum than the whole by 5e-7 of
 * its norm, four quarters by 1.5e-6; so 8e-8 and 1.1e-7. */
static void one_output_gradient(float *C, const float *a, int64_t lda, const float *B, int64_t ldb, int64_t N, int64_t K,
                                float beta) {
    double *sum = cpu_scratch(SCRATCH_THREAD, (size_t)N * sizeof *sum);
    for (int64_t n = 0; n < N; n++) sum[n] = beta == 0 ? 0 : (double)C[n];
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = 0; n < N; n++) sum[n] += (double)a[k * lda] * (double)B[k * ldb + n];
    for (int64_t n = 0; n < N; n++) C[n] = (float)sum[n];
}

static void gemm_block(float *C, int64_t ldc, const float *A, int64_t lda, const float *B, int64_t ldb,
                       const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    if (bias) add_bias(C, ldc, bias, M, N, beta);
    if (bias) beta = 1;
    if (ta && !tb && M == 1) one_output_gradient(C, A, lda, B, ldb, N, K, beta);
    else if (ta && !tb && K >= COPY_K / 4 && MAX(lda, ldb) >= COPY_STRIDE) weight_gradient(C, ldc, A, lda, B, ldb, M, N, K, beta);
    else if (!ta && !tb && M >= COPY_ROWS && ldb % COPY_STRIDE == 0) input_gradient(C, ldc, A, lda, B, ldb, M, N, K, beta);
    else sgemm(C, ldc, A, lda, B, ldb, ta, tb, M, N, K, beta);
}

void cpu_gemm(Stream *s, DType t, DType tc, void *C_, int64_t ldc, const void *A_, int64_t lda, const void *B_,
              int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    (void)s;
    CHECK(tc == t || tc == F32, "gemm: a bf16 result of f32 matrices");
    WIDE(t, {
        float *c = beta == 0 ? WRITE_ROWS(tc, C_, M, ldc, N) : UPDATE_ROWS(tc, C_, M, ldc, N);
        const float *a = READ_ROWS(t, A_, ta ? K : M, lda, ta ? M : K),
                    *b = READ_ROWS(t, B_, tb ? N : K, ldb, tb ? K : N);
        cpu_gemm(s, F32, F32, c, tc == F32 ? ldc : N, a, ta ? M : K, b, tb ? K : N, bias, ta, tb, M, N, K,
                 beta);
    });
    CHECK(beta == 0 || beta == 1, "gemm: beta is %g, wants 0 or 1", (double)beta);
    if (!M || !N) return;
    float *C = C_;
    const float *A = A_, *B = B_;
    CHECK(ldc >= N && (!K || (lda >= (ta ? M : K) && ldb >= (tb ? K : N))),
          "gemm (%" PRId64 ",%" PRId64 ",%" PRId64 "): leading dimensions %" PRId64 " %" PRId64 " %" PRId64, M, N, K, ldc,
          lda, ldb);
    if (!K) { /* an empty sum; oneDNN would leave C as it is */
        if (bias) add_bias(C, ldc, bias, M, N, beta);
        else
            for (int64_t i = 0; beta == 0 && i < M; i++) memset(C + i * ldc, 0, (size_t)N * sizeof(float));
        return;
    }
    int64_t bm, bn;
    block_size(&bm, &bn, M, N);
    const int64_t nm = ceil_div(M, bm), nn = ceil_div(N, bn), work = M * N * K / 64;
    const int threads = omp_get_max_threads();
    const bool parallel = threads > 1 && nm * nn > 1 && work >= PAR_MIN && !omp_in_parallel();
    if (!parallel) omp_set_num_threads(1); /* or oneDNN would start its own */
    OMP_(omp parallel for schedule(dynamic) if (parallel))
    for (int64_t i = 0; i < nm * nn; i++) {
        const int64_t m = i / nn * bm, n = i % nn * bn;
        gemm_block(C + m * ldc + n, ldc, A + (ta ? m : m * lda), lda, B + (tb ? n * ldb : n), ldb, bias ? bias + n : NULL,
                   ta, tb, MIN(bm, M - m), MIN(bn, N - n), K, beta);
    }
    if (!parallel) omp_set_num_threads(threads);
}

void cpu_bias_bwd(Stream *s, DType t, float *dbias, const void *dy, int64_t rows, int64_t C) {
    (void)s;
    WIDE(t, cpu_bias_bwd(s, F32, dbias, READ(t, dy, rows * C), rows, C));
    if (!dbias || !rows || !C) return;
    sum_rows(dbias, dy, rows, C);
}
