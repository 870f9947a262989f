/* gemm.c -- matrix products on CUDA by cuBLASLt. Contract: ops.h. The only file that includes cublasLt.h.
 *
 * cuBLASLt thinks in columns. Our row-major C (M,N) is its column-major C^T (N,M) = op(B)^T op(A)^T in the same memory: so B
 * is its first operand and A the second, and the bias of a row, one per column j, is its bias of a column, one per row.
 *
 * Which of its kernels runs is asked once for each shape (its heuristic takes some 50 us) and remembered. f32 products are
 * computed in f32, never in TF32.
 *
 * What it does beside the product (its epilogues; the rules are those of cublasLt.h), each with plain ops
 * in its place where it has no kernel:
 *   BIAS      the bias of a layer. It has the type of C, or, where the library knows that, f32.
 *   BGRADB    the bias's gradient beside the weight's, dw += dy^T x: dy is the second operand, its sums
 *             over K are the rows' sum. They have the type of C, f32, whatever dy is. They are written:
 *             beta is C's alone, so they go to scratch memory and are added from there.
 *   GELU_BIAS, GELU_AUX_BIAS, DGELU
 *             gelu of a product, and the way back; AUX is what gelu was taken of, in rows of a multiple of
 *             8 values. It is the tanh form (PyTorch falls back to that form where it cannot use them): for
 *             models whose hidden_act asks for it. The published ones want erf or quick_gelu, which no
 *             epilogue has. In bf16 only: how near it comes is not documented. A tanh of the hardware,
 *             2^-11 off, would hide in bf16's rounding, but not in f32's.
 * DGELU_BGRAD is not used: its sums have C's type, there bf16. BGRADB of the next product, the weight's
 * gradient, has them in f32.
 *
 * The library promises the same bits for the same call on the same kind of card.
 */
#include "engine/base.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops.h"

#include <cublasLt.h>

/* NVIDIA's advice for Hopper; older cards take as much as they need of it. */
enum { WORKSPACE_BYTES = 32 << 20, NO_ALIGNMENT = 16 /* beyond it no kernel cares */ };
/* C of fewer rows or columns than the smallest tile of the library's tensor-core kernels: it may take another kind. */
enum { SKINNY = 64 };

#define LT_CHECK(call) lt_check((call), #call, __FILE__, __LINE__)
static void lt_check(cublasStatus_t status, const char *call, const char *file, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    die(FAIL_OTHER, "%s:%d: %s: %s (%s)", file, line, call, cublasLtGetStatusString(status), cublasLtGetStatusName(status));
}

/* ---- plans ---------------------------------------------------------------------------------------- */

/* All that decides which kernel may run. Compared byte by byte, so every byte is set. */
typedef struct Shape {
    int64_t M, N, K, lda, ldb, ldc;
    int32_t card, epilogue;
    uint8_t t, tc, ta, tb, f32_vector, align_a, align_b, align_c;
} Shape;

/* What is done beside the product. All zero: nothing. */
typedef struct Epilogue {
    cublasLtEpilogue_t kind;
    const void *vector; /* BIAS: read. BGRADB: written. At a multiple of 16 bytes */
    bool f32_vector;    /* the vector is f32, not of C's type */
    const void *aux;    /* GELU_AUX: written. DGELU: read. Rows of N values of C's type, the same alignment */
} Epilogue;

typedef struct Plan {
    Shape shape;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t first, second, out;
    cublasLtMatmulAlgo_t algo;
    bool found; /* false: the library has no kernel for it */
} Plan;

static Plan *plans; /* open addressing; a free place has no `op` */
static int64_t nplans, nplaces;
static cublasLtHandle_t handles[16];

static cublasLtHandle_t handle(int card) {
    CHECK(card < COUNT_OF(handles), "card %d", card);
    if (!handles[card]) LT_CHECK(cublasLtCreate(&handles[card]));
    return handles[card];
}

static cudaDataType_t cuda_type(DType t) { return t == F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* The column-major layout of a row-major matrix of `rows` rows of `n` values. */
static cublasLtMatrixLayout_t layout(DType t, int64_t rows, int64_t n, int64_t ld) {
    cublasLtMatrixLayout_t l;
    LT_CHECK(cublasLtMatrixLayoutCreate(&l, cuda_type(t), (uint64_t)n, (uint64_t)rows, ld));
    return l;
}

/* Where the epilogue reads and writes. The heuristic, too, looks at how these addresses are aligned. */
static void point(const Plan *p, const Epilogue *e) {
    if (e->vector)
        LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &e->vector,
                                                sizeof e->vector));
    if (e->aux) {
        LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &e->aux,
                                                sizeof e->aux));
        LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &p->shape.N,
                                                sizeof p->shape.N));
    }
}

static void plan_make(Plan *p, const Shape *s, const Epilogue *e) {
    *p = (Plan){.shape = *s};
    const cublasOperation_t first = s->tb ? CUBLAS_OP_T : CUBLAS_OP_N, second = s->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = e->kind ? e->kind : CUBLASLT_EPILOGUE_DEFAULT;
    LT_CHECK(cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    LT_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (e->f32_vector) {
        const cudaDataType_t f32 = CUDA_R_32F;
        if (cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &f32, sizeof f32) != CUBLAS_STATUS_SUCCESS) return;
    }
    point(p, e);
    p->first = layout(s->t, s->tb ? s->N : s->K, s->tb ? s->K : s->N, s->ldb);
    p->second = layout(s->t, s->ta ? s->K : s->M, s->ta ? s->M : s->K, s->lda);
    p->out = layout(s->tc, s->M, s->N, s->ldc);
    cublasLtMatmulPreference_t want;
    const uint64_t workspace = WORKSPACE_BYTES;
    const uint32_t a = s->align_a, b = s->align_b, c = s->align_c;
    LT_CHECK(cublasLtMatmulPreferenceCreate(&want));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b, sizeof b));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c));
    /* Parts of a split K meet in f32 and in order; where C is bf16 K stays whole: the parts' sum would be rounded before beta C is added. */
    const uint32_t reduction = s->tc == F32 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction));
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle(s->card), p->op, p->first, p->second, p->out, p->out, want, 1,
                                                                 &best, &found);
    p->found = status == CUBLAS_STATUS_SUCCESS && found;
    if (p->found) p->algo = best.algo;
    LT_CHECK(cublasLtMatmulPreferenceDestroy(want));
}

static Plan *place_of(Plan *table, int64_t places, const Shape *s) {
    uint64_t at = hash_bytes(s, sizeof *s, 0);
    while (table[at & (uint64_t)(places - 1)].op && memcmp(&table[at & (uint64_t)(places - 1)].shape, s, sizeof *s)) at++;
    return &table[at & (uint64_t)(places - 1)];
}

static const Plan *plan_for(const Shape *s, const Epilogue *e) {
    if (2 * (nplans + 1) > nplaces) {
        const int64_t more = MAX(2 * nplaces, 256);
        Plan *table = xcalloc((size_t)more, sizeof *table);
        for (int64_t i = 0; i < nplaces; i++)
            if (plans[i].op) *place_of(table, more, &plans[i].shape) = plans[i];
        free(plans);
        plans = table;
        nplaces = more;
    }
    Plan *p = place_of(plans, nplaces, s);
    if (!p->op) {
        plan_make(p, s, e);
        nplans++;
    }
    return p;
}

/* ---- the op --------------------------------------------------------------------------------------- */

/* The largest power of two up to 16 that divides the address. */
static uint8_t alignment(const void *p) {
    const uintptr_t bits = (uintptr_t)p | NO_ALIGNMENT;
    return (uint8_t)(bits & -bits);
}

/* One call of the library. False, and nothing done, when it has no kernel for this shape, alignment and epilogue. */
static bool product(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda,
                    const void *B, int64_t ldb, Epilogue e, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                    float beta) {
    if (!s->workspace) {
        CUDA_CHECK(cudaMalloc(&s->workspace, WORKSPACE_BYTES));
        s->workspace_bytes = WORKSPACE_BYTES;
    }
    Shape shape;
    memset(&shape, 0, sizeof shape);
    shape.M = M, shape.N = N, shape.K = K, shape.lda = lda, shape.ldb = ldb, shape.ldc = ldc;
    shape.card = s->card, shape.epilogue = (int32_t)e.kind;
    shape.t = (uint8_t)t, shape.tc = (uint8_t)tc, shape.ta = ta, shape.tb = tb,
    shape.f32_vector = e.f32_vector;
    shape.align_a = alignment(A), shape.align_b = alignment(B), shape.align_c = alignment(C);
    const Plan *p = plan_for(&shape, &e);
    if (!p->found) return false;
    point(p, &e);
    const float one = 1;
    LT_CHECK(cublasLtMatmul(handle(s->card), p->op, &one, B, p->first, A, p->second, &beta, C, p->out, C, p->out, &p->algo,
                            s->workspace, s->workspace_bytes, s->cuda));
    return true;
}

/* The same on copies whose rows all begin at multiples of 16 bytes: for addresses and strides that the library has no kernel for. */
static void product_of_copies(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B, int64_t ldb,
                              bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    const int64_t ra = ta ? K : M, na = ta ? M : K, rb = tb ? N : K, nb = tb ? K : N;
    const int64_t pa = (na + 7) & ~7, pb = (nb + 7) & ~7, pc = (N + 7) & ~7;
    const size_t bytes_a = (size_t)(ra * pa) * dtype_size(t), bytes_b = (size_t)(rb * pb) * dtype_size(t);
    char *a = cuda_scratch(s, bytes_a + bytes_b + (size_t)(M * pc) * dtype_size(tc)), *b = a + bytes_a, *c = b + bytes_b;
    const Ops *k = &ops_cuda;
    k->copy_rows(s, t, a, pa, A, lda, ra, na, false);
    k->copy_rows(s, t, b, pb, B, ldb, rb, nb, false);
    if (beta != 0) k->copy_rows(s, tc, c, pc, C, ldc, M, N, false);
    if (!product(s, t, tc, c, pc, a, pa, b, pb, (Epilogue){0}, ta, tb, M, N, K, beta))
        die(FAIL_OTHER, "cuBLASLt has no kernel for a product of (%" PRId64 ",%" PRId64 ") and (%" PRId64 ",%" PRId64 ") in %s%s%s", M, K, K,
            N, t == F32 ? "f32" : "bf16", ta ? ", first transposed" : "", tb ? ", second transposed" : "");
    k->copy_rows(s, tc, C, ldc, c, pc, M, N, false);
}

/* C += op(A) op(B) + bias for a skinny C in bf16, by way of f32. The library's kernels for such shapes round the product to bf16 before
 * they add C (on an H200, CUDA 13.0, a row of 640 products of K 128 was 0.097 off at 17.7, where half a unit is 0.0625). So C is
 * widened, added to in f32, and rounded once. Larger ones stay with the library: their error there was within one rounding. */
static void add_to_skinny(Stream *s, DType t, void *C, int64_t ldc, const void *A, int64_t lda, const void *B, int64_t ldb,
                          const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K) {
    const size_t bytes = (size_t)(M * N) * sizeof(float);
    if (s->sum_bytes < bytes) {
        CUDA_CHECK(cudaFree(s->sum)); /* waits for whoever still works in it */
        CUDA_CHECK(cudaMalloc((void **)&s->sum, bytes));
        s->sum_bytes = bytes;
    }
    void *whole = C; /* rows without gaps */
    if (ldc != N) ops_cuda.copy_rows(s, BF16, whole = cuda_scratch(s, bytes / 2), N, C, ldc, M, N, false);
    ops_cuda.cast(s, F32, s->sum, BF16, whole, M * N);
    cuda_gemm(s, t, F32, s->sum, N, A, lda, B, ldb, bias, ta, tb, M, N, K, 1);
    if (ldc != N) whole = cuda_scratch(s, bytes / 2);
    ops_cuda.cast(s, BF16, whole, F32, s->sum, M * N);
    if (ldc != N) ops_cuda.copy_rows(s, BF16, C, ldc, whole, N, M, N, false);
}

void cuda_gemm(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B, int64_t ldb,
               const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    CHECK(beta == 0 || beta == 1, "gemm: beta is %g, wants 0 or 1", (double)beta);
    if (!M || !N) return;
    CHECK(ldc >= N && (!K || (lda >= (ta ? M : K) && ldb >= (tb ? K : N))),
          "gemm (%" PRId64 ",%" PRId64 ",%" PRId64 "): leading dimensions %" PRId64 " %" PRId64 " %" PRId64, M, N, K, ldc, lda, ldb);
    if (tc == BF16 && beta == 1 && MIN(M, N) < SKINNY && K) {
        add_to_skinny(s, t, C, ldc, A, lda, B, ldb, bias, ta, tb, M, N, K);
        return;
    }
    const void *addend = bias;
    const bool aligned = alignment(bias) == NO_ALIGNMENT;
    Epilogue e = {.kind = bias ? CUBLASLT_EPILOGUE_BIAS : 0, .vector = bias, .f32_vector = true};
    if (bias && K && tc != F32 && aligned &&
        product(s, t, tc, C, ldc, A, lda, B, ldb, e, ta, tb, M, N, K, beta))
        return;
    /* Else the epilogue takes a bias of C's type, and says nothing of its alignment. */
    if (bias && (tc != F32 || !aligned)) {
        void *copy = cuda_scratch(s, (size_t)N * dtype_size(tc));
        ops_cuda.cast(s, tc, copy, F32, bias, N);
        addend = copy;
    }
    if (!K) { /* an empty sum */
        if (bias) ops_cuda.copy_rows(s, tc, C, ldc, addend, 0, M, N, beta != 0);
        else if (beta == 0)
            CUDA_CHECK(cudaMemset2DAsync(C, (size_t)ldc * dtype_size(tc), 0, (size_t)N * dtype_size(tc), (size_t)M, s->cuda));
        return;
    }
    e.vector = addend, e.f32_vector = false;
    if (product(s, t, tc, C, ldc, A, lda, B, ldb, e, ta, tb, M, N, K, beta)) return;
    if (bias) { /* perhaps it is the epilogue: C = bias, or C += bias, and the product added to it */
        ops_cuda.copy_rows(s, tc, C, ldc, addend, 0, M, N, beta != 0);
        cuda_gemm(s, t, tc, C, ldc, A, lda, B, ldb, NULL, ta, tb, M, N, K, 1);
        return;
    }
    product_of_copies(s, t, tc, C, ldc, A, lda, B, ldb, ta, tb, M, N, K, beta);
}

void cuda_gemm_bgrad(Stream *s, DType t, float *dw, float *dbias, const void *dy, const void *x, int64_t rows,
                     int64_t N, int64_t K) {
    if (dw && dbias && rows && N && K) {
        float *sums = cuda_scratch(s, (size_t)N * sizeof *sums);
        const Epilogue e = {.kind = CUBLASLT_EPILOGUE_BGRADB, .vector = sums};
        if (product(s, t, F32, dw, K, dy, N, x, K, e, true, false, N, K, rows, 1)) {
            ops_cuda.accumulate(s, F32, dbias, F32, sums, N);
            return;
        }
    }
    if (dw) cuda_gemm(s, t, F32, dw, K, dy, N, x, K, NULL, true, false, N, K, rows, 1);
    cuda_bias_bwd(s, t, dbias, dy, rows, N);
}

/* See the file's head. */
static bool gelu_fits(DType t, const void *aux, int64_t rows, int64_t N, int64_t K) {
    return t == BF16 && rows && N && K && alignment(aux) == NO_ALIGNMENT && N % 8 == 0;
}

void cuda_gemm_gelu_tanh(Stream *s, DType t, void *y, void *pre, const void *x, const void *w,
                         const float *bias, int64_t rows, int64_t N, int64_t K) {
    if (bias && gelu_fits(t, pre, rows, N, K)) {
        Epilogue e = {.kind = pre ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS,
                      .aux = pre};
        e.vector = bias, e.f32_vector = true;
        if (alignment(bias) == NO_ALIGNMENT &&
            product(s, t, t, y, N, x, K, w, K, e, false, true, rows, N, K, 0))
            return;
        void *copy = cuda_scratch(s, (size_t)N * dtype_size(t));
        ops_cuda.cast(s, t, copy, F32, bias, N);
        e.vector = copy, e.f32_vector = false;
        if (product(s, t, t, y, N, x, K, w, K, e, false, true, rows, N, K, 0)) return;
    }
    if (!pre) pre = y;
    cuda_gemm(s, t, t, pre, N, x, K, w, K, bias, false, true, rows, N, K, 0);
    cuda_gelu_tanh_fwd(s, t, y, pre, rows * N);
}

void cuda_gemm_dgelu_tanh(Stream *s, DType t, void *dpre, const void *pre, const void *dz, const void *w,
                          int64_t rows, int64_t N, int64_t K) {
    const Epilogue e = {.kind = CUBLASLT_EPILOGUE_DGELU, .aux = pre};
    if (gelu_fits(t, pre, rows, N, K) &&
        product(s, t, t, dpre, N, dz, K, w, N, e, false, false, rows, N, K, 0))
        return;
    cuda_gemm(s, t, t, dpre, N, dz, K, w, N, NULL, false, false, rows, N, K, 0);
    cuda_gelu_tanh_bwd(s, t, dpre, pre, dpre, rows * N);
}
