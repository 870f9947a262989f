/* gemm.c -- matrix products on the CPU: types, edge cases. Contract: ops.h.
 *
 * sgemm.c does the work, of bf16 matrices too, which it widens as it packs them; but where the CPU multiplies
 * bf16 itself, oneDNN does it (onednn.h).
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/onednn.h"

/* The weight gradient of a layer with one output, C += a^T B: sums down thousands of rows whose terms mostly
 * cancel, as for the shift of OWL-ViT's logits, 95 % of the model's gradient. In f32 two halves of a batch
 * gave another sum than the whole by 5e-7 of its norm, four quarters by 1.5e-6; so 8e-8 and 1.1e-7. */
static void one_output_gradient(float *C, const float *a, int64_t lda, const float *B, int64_t ldb, int64_t N,
                                int64_t K, float beta) {
    double *sum = cpu_scratch(SCRATCH_THREAD, (size_t)N * sizeof *sum);
    for (int64_t n = 0; n < N; n++) sum[n] = beta == 0 ? 0 : (double)C[n];
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = 0; n < N; n++) sum[n] += (double)a[k * lda] * (double)B[k * ldb + n];
    for (int64_t n = 0; n < N; n++) C[n] = (float)sum[n];
}

void cpu_gemm(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
              int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    (void)s;
    CHECK(tc == t || tc == F32, "gemm: a bf16 result of f32 matrices");
    CHECK(beta == 0 || beta == 1, "gemm: beta is %g, wants 0 or 1", (double)beta);
    if (!M || !N) return;
    CHECK(ldc >= N && (!K || (lda >= (ta ? M : K) && ldb >= (tb ? K : N))),
          "gemm (%" PRId64 ",%" PRId64 ",%" PRId64 "): leading dimensions %" PRId64 " %" PRId64 " %" PRId64,
          M, N, K, ldc, lda, ldb);
    if (t == BF16 && K && onednn_allowed() &&
        onednn_product(t, tc, C, ldc, A, lda, B, ldb, bias, ta, tb, M, N, K, beta != 0))
        return;
    WIDE(tc, { /* the sum is rounded once, when it is whole */
               float *c = beta == 0 ? WRITE_ROWS(tc, C, M, ldc, N) : UPDATE_ROWS(tc, C, M, ldc, N);
               cpu_product(c, N, t, A, lda, B, ldb, bias, ta, tb, M, N, K, beta != 0);
    });
    if (t == F32 && ta && !tb && M == 1 && !bias)
        one_output_gradient(C, A, lda, B, ldb, N, K, beta);
    else
        cpu_product(C, ldc, t, A, lda, B, ldb, bias, ta, tb, M, N, K, beta != 0);
}

void cpu_bias_bwd(Stream *s, DType t, float *dbias, const void *dy, int64_t rows, int64_t C) {
    (void)s;
    if (!dbias || !rows || !C) return;
    sum_rows(dbias, t, dy, rows, C);
}

/* Two passes over dy: what the second costs is nothing beside the product. */
void cpu_gemm_bgrad(Stream *s, DType t, float *dw, float *dbias, const void *dy, const void *x, int64_t rows,
                    int64_t N, int64_t K) {
    if (dw) cpu_gemm(s, t, F32, dw, K, dy, N, x, K, NULL, true, false, N, K, rows, 1);
    cpu_bias_bwd(s, t, dbias, dy, rows, N);
}

void cpu_gemm_gelu_tanh(Stream *s, DType t, void *y, void *pre, const void *x, const void *w,
                        const float *bias, int64_t rows, int64_t N, int64_t K) {
    WIDE(t, { /* gelu of the sum as it is before its rounding */
              float *wide_y = WRITE(t, y, rows * N), *wide_pre = pre ? WRITE(t, pre, rows * N) : wide_y;
              cpu_gemm(s, t, F32, wide_pre, N, x, K, w, K, bias, false, true, rows, N, K, 0);
              cpu_gelu_tanh_fwd(s, F32, wide_y, wide_pre, rows * N);
    });
    if (!pre) pre = y;
    cpu_gemm(s, F32, F32, pre, N, x, K, w, K, bias, false, true, rows, N, K, 0);
    cpu_gelu_tanh_fwd(s, F32, y, pre, rows * N);
}

void cpu_gemm_dgelu_tanh(Stream *s, DType t, void *dpre, const void *pre, const void *dz, const void *w,
                         int64_t rows, int64_t N, int64_t K) {
    WIDE(t, {
        float *d = WRITE(t, dpre, rows * N);
        cpu_gemm(s, t, F32, d, N, dz, K, w, N, NULL, false, false, rows, N, K, 0);
        cpu_gelu_tanh_bwd(s, F32, d, READ(t, pre, rows * N), d, rows * N);
    });
    cpu_gemm(s, F32, F32, dpre, N, dz, K, w, N, NULL, false, false, rows, N, K, 0);
    cpu_gelu_tanh_bwd(s, F32, dpre, pre, dpre, rows * N);
}
