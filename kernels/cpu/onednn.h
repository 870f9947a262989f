/* onednn.h -- matrix products by oneDNN, for instructions that sgemm.c does not use: those of bf16.
 *
 * dnnl.h is included here for who times the library (bench/library.c) or names its version (info).
 */
#pragma once
#include <dnnl.h>

#include "engine/base.h"
#include "kernels/dtype.h"

/* The instructions that products of bf16 matrices go to, "AVX512_BF16" or "AMX"; NULL: this CPU has none (or
 * ONEDNN_MAX_CPU_ISA hides them), and sgemm.c widens bf16 to f32 while it packs. Found out once. */
const char *onednn_bf16(void);
/* Whether cpu_gemm may use them: true until somebody says otherwise. See onednn_product of bits. */
void onednn_allow(bool bf16);
bool onednn_allowed(void);

/* C (M,N) = [C +] [bias +] op(A) op(B) as gemm of ops.h, summed in f32 and rounded once. M, N, K >= 1. Any
 * two types for which tc is t or F32: in f32 it is there to be tested on every CPU. May be called from
 * several threads at once. In what order it sums depends on all sizes and the number of threads, and so do
 * the last bits of a row: a rerun with as many threads repeats them, half a batch does not. False, and C is
 * as it was: this CPU has no instructions for the types. */
bool onednn_product(DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                    int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                    bool add);

/* ---- what its users share ------------------------------------------------------------------------- */

/* Dies when oneDNN refuses `what`. */
void onednn_check(dnnl_status_t s, const char *what);
dnnl_engine_t onednn_engine(void);
/* `rows` x `cols` values, `ld` from row to row; transposed: from column to column. */
dnnl_memory_desc_t onednn_matrix(int64_t rows, int64_t cols, int64_t ld, bool transposed, dnnl_data_type_t t);
/* The product of such matrices; bias (1, n) or NULL. Its scratch memory is the caller's to give
 * (dnnl_query_scratchpad_md, DNNL_ARG_SCRATCHPAD). NULL: not on this CPU. To be destroyed. */
dnnl_primitive_desc_t onednn_matmul(const dnnl_memory_desc_t *c, const dnnl_memory_desc_t *a,
                                    const dnnl_memory_desc_t *b, const dnnl_memory_desc_t *bias, bool add);
