/* sgemm.c -- matrix products summed in f32, from packed panels. See cpu.h.
 *
 * C is cut into tiles of MR x NR values that live in registers while k goes by. op(B) is packed into panels
 * of NR columns, op(A) into strips of MR rows, both KC deep: a panel stays in L1 while the strips of MC rows
 * pass over it from L2, where MC x NB sums wait between two depths (Goto & van de Geijn, Anatomy of
 * High-Performance Matrix Multiplication, 2008).
 *
 * Every value of C is the same chain of fused multiply-adds over k, one chain for each KC of them, added in
 * order. So a row's bits depend on K alone: not on M (the rest of the batch), N, the number of threads or the
 * width of the machine's vectors. A library's product does not promise that: oneDNN's, as it comes, takes
 * 0.96 to 1.01 of the time of this one at ViLT-B/32's sizes (`bench kernels gemm`, AVX2, one thread).
 */
#include "kernels/cpu/cpu.h"

/* A tile: its sums, a row of B and a value of A fill the registers, 32 with AVX-512 and 16 without. */
#ifdef __AVX512F__
enum { MR = 8 };
#else
enum { MR = 4 };
#endif
enum { NV = 3, NR = NV * VL };
enum {
    KC = 256, KB = 8 * KC, /* depths; part of the result's bits, so one number for all machines */
    MC = 192, MB_MIN = 48, /* rows of a block, most and least */
    NB = 21 * NR, NB_MIN = 3 * NR, NC = 2 * NB, /* columns of a block; of op(B) packed at a time */
    NPACK = 4 * NR, /* columns that one thread packs */
    GAP = MR * KC + 16, /* from strip to strip: off the powers of two, and room to write beyond */
    LINE = 16, /* values in a line of the cache */
    PANEL_SHARE = (KC * NR * MR / MC + LINE - 1) / LINE * LINE /* of the next panel, fetched by one tile */
};

/* ---- packing -------------------------------------------------------------------------------------- */

/* Rows of 8 to columns of 8: each step interleaves halves of pairs. */
static inline __attribute__((always_inline)) void transpose8(V8 a[8]) {
    V8 b[8];
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + j + 2] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 8; i++) a[i] = b[i];
}

static inline __attribute__((always_inline)) V8 load8(const void *p, int64_t at, DType t) {
    if (t == F32) return V8_AT((const float *)p + at);
    typedef uint16_t U16x8 __attribute__((vector_size(16), aligned(2), may_alias));
    typedef uint32_t U32x8 __attribute__((vector_size(32)));
    return (V8)(__builtin_convertvector(*(const U16x8 *)((const uint16_t *)p + at), U32x8) << 16);
}

typedef float V4U __attribute__((vector_size(16), aligned(4), may_alias));
static inline __attribute__((always_inline)) V4U load4(const void *p, int64_t at, DType t) {
    if (t == F32) return *(const V4U *)((const float *)p + at);
    typedef uint16_t U16x4 __attribute__((vector_size(8), aligned(2), may_alias));
    typedef uint32_t U32x4 __attribute__((vector_size(16)));
    return (V4U)(__builtin_convertvector(*(const U16x4 *)((const uint16_t *)p + at), U32x4) << 16);
}

static inline float load(const void *p, int64_t at, DType t) {
    return t == F32 ? ((const float *)p)[at] : bf16_value(((const uint16_t *)p)[at]);
}

/* Rows k .. k + rows of `from`, whose values become strips. */
static inline __attribute__((always_inline)) void pack_rows(DType t, float *to, int64_t gap, const int width,
                                                            const void *from, int64_t ld, int64_t count,
                                                            int64_t k, const int rows) {
    to += k * width;
    int64_t c = 0;
    for (; c + width <= count; c += width, to += gap)
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int j = 0; j < width; j += width % 8 ? 4 : 8) {
                if (width % 8)
                    *(V4U *)(to + i * width + j) = load4(from, (k + i) * ld + c + j, t);
                else
                    *(V8 *)(to + i * width + j) = load8(from, (k + i) * ld + c + j, t);
            }
    for (int64_t i = 0; i < rows && c < count; i++)
        for (int64_t j = 0; j < width; j++)
            to[i * width + j] = c + j < count ? load(from, (k + i) * ld + c + j, t) : 0;
}

/* `count` columns of op(A)^T or op(B), n values of k each, to strips of `width` columns, `gap` values apart:
 * to[c / width * gap + k * width + c % width]. What a last strip lacks becomes 0. Eights of a row from the
 * last to the first: one that is wider than the strip writes where the next row comes to lie, and at the end
 * up to 7 values beyond. */
static inline __attribute__((always_inline)) void pack_as(DType t, float *to, int64_t gap, const int width,
                                                          const void *from, int64_t ld, bool columns_are_rows,
                                                          int64_t count, int64_t n) {
    if (!columns_are_rows) {
        int64_t k = 0;
        for (; k + 4 <= n; k += 4)
            pack_rows(t, to, gap, width, from, ld, count, k, 4); /* whole lines of the cache */
        for (; k < n; k++) pack_rows(t, to, gap, width, from, ld, count, k, 1);
        return;
    }
    for (int64_t c0 = 0; c0 < count; c0 += width, to += gap)
        for (int j = (width - 1) / 8 * 8; j >= 0; j -= 8) {
            const int64_t there = MIN(count - c0 - j, MIN(8, width - j)), c = c0 + j;
            int64_t k = 0;
            for (; k + 8 <= n; k += 8) {
                V8 r[8];
                for (int i = 0; i < 8; i++) r[i] = i < there ? load8(from, (c + i) * ld + k, t) : (V8){0};
                transpose8(r);
                for (int i = 0; i < 8; i++) *(V8 *)(to + (k + i) * width + j) = r[i];
            }
            for (; k < n; k++)
                for (int i = 0; i < MIN(8, width - j); i++)
                    to[k * width + j + i] = i < there ? load(from, (c + i) * ld + k, t) : 0;
        }
}

/* One of each, so that type and width are constants in them. */
static void pack(DType t, float *to, int64_t gap, int width, const void *from, int64_t ld,
                 bool columns_are_rows, int64_t count, int64_t n) {
    if (t == F32 && width == MR)
        pack_as(F32, to, gap, MR, from, ld, columns_are_rows, count, n);
    else if (t == F32)
        pack_as(F32, to, gap, NR, from, ld, columns_are_rows, count, n);
    else if (width == MR)
        pack_as(BF16, to, gap, MR, from, ld, columns_are_rows, count, n);
    else
        pack_as(BF16, to, gap, NR, from, ld, columns_are_rows, count, n);
}

/* ---- a tile --------------------------------------------------------------------------------------- */

/* A's value (i, k) is a[i * ai + k * ak]: packed (1, MR) or a row-major matrix as it lies (lda, 1). */
typedef struct Strip {
    const float *a;
    int64_t ai, ak;
} Strip;

/* to (MR, nv vectors) = [to +] [bias, a row +] [from +] A B over n values of k; `from` is a tile (MR, NR)
 * without gaps. One k is 19 instructions with 12 multiply-adds where there are 16 registers. */
static inline __attribute__((always_inline)) void tile_of(float *to, int64_t ldt, const float *from,
                                                          const float *a, int64_t ai, int64_t ak,
                                                          const float *b, int64_t n, const float *bias,
                                                          bool add, const int nv) {
    VR s[MR][NV];
    UNROLL for (int i = 0; i < MR; i++) { /* what is wanted at the end */
        if (from) __builtin_prefetch(from + i * NR);
        __builtin_prefetch(to + i * ldt, 1);
        __builtin_prefetch(to + i * ldt + nv * VL - 1, 1);
    }
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int v = 0; v < nv; v++) s[i][v] = (VR){0};
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; k++, a += ak, b += NR) {
        VR row[NV];
        UNROLL for (int v = 0; v < nv; v++) {
            row[v] = REG(b + v * VL);
            IN_REGISTER(row[v]);
        }
        UNROLL for (int i = 0; i < MR; i++) {
            const VR x = a[i * ai] - (VR){0}; /* in every lane */
            UNROLL for (int v = 0; v < nv; v++) ADD_PRODUCT(s[i][v], x, row[v]);
        }
    }
#define EACH(what) UNROLL for (int i = 0; i < MR; i++) UNROLL for (int v = 0; v < nv; v++) what;
    if (from) EACH(s[i][v] += REG(from + i * NR + v * VL))
    if (bias) EACH(s[i][v] += REG(bias + v * VL))
    if (add) EACH(s[i][v] += REG(to + i * ldt + v * VL))
    EACH(*(VF *)(to + i * ldt + v * VL) = (VF)s[i][v])
#undef EACH
}

/* One of each, so that widths and strides are constants in them. Widths such as 64 end in two thirds of a
 * panel: narrow. */
static void tile(float *to, int64_t ldt, const float *from, Strip x, const float *b, int64_t n,
                 const float *bias, bool add, bool narrow) {
    if (x.ak == 1 && narrow)
        tile_of(to, ldt, from, x.a, x.ai, 1, b, n, bias, add, NV - 1);
    else if (x.ak == 1)
        tile_of(to, ldt, from, x.a, x.ai, 1, b, n, bias, add, NV);
    else if (narrow)
        tile_of(to, ldt, from, x.a, 1, MR, b, n, bias, add, NV - 1);
    else
        tile_of(to, ldt, from, x.a, 1, MR, b, n, bias, add, NV);
}

/* ---- the product ---------------------------------------------------------------------------------- */

typedef struct Product {
    float *C;
    const void *A, *B;
    const float *bias;
    int64_t ldc, lda, ldb, M, N, K;
    DType t;
    bool ta, tb, add;
} Product;

static const void *at(const void *p, int64_t values, DType t) {
    return (const char *)p + values * (int64_t)dtype_size(t);
}

/* Columns from n on and `depth` values of k from k on of op(B), to panels KC * NR values apart. */
static void pack_b(const Product *p, float *panels, int64_t n, int64_t k, int64_t columns, int64_t depth) {
    pack(p->t, panels, KC * NR, NR, at(p->B, p->tb ? n * p->ldb + k : k * p->ldb + n, p->t), p->ldb, p->tb,
         columns, depth);
}

/* The rest of a sum that is no whole tile of C. */
static void finish(float *C, int64_t ldc, const float *sum, int64_t rows, int64_t columns, const float *bias,
                   bool add) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            float s = sum[r * NR + c];
            if (bias) s += bias[c];
            C[r * ldc + c] = add ? s + C[r * ldc + c] : s;
        }
}

/* Rows [m, m + rows) and columns [n, n + columns) of C, k from k0 to k1. panels: op(B) packed for these
 * columns and depths, one depth `stride` values after the one before; NULL: packed here, one
 * after the other. */
static void block(const Product *p, int64_t m, int64_t rows, int64_t n, int64_t columns, int64_t k0,
                  int64_t k1, const float *panels, int64_t stride) {
    float *strips = cpu_scratch(SCRATCH_THREAD, (size_t)(MC / MR * GAP + MC * NB + KC * NR) * sizeof(float)),
          *done = strips + MC / MR * GAP, *own = done + MC * NB;
    for (int64_t k = k0; k < k1 || k == k0; k += KC) { /* no k is an empty sum */
        const int64_t depth = MIN(KC, k1 - k);
        const bool last = k + KC >= k1, add = k0 || p->add;
        /* Whole strips of A are read where they are, unless the values of one k lie side by side. */
        const int64_t lie = p->t == F32 && !p->ta ? rows / MR * MR : 0;
        const void *a = at(p->A, p->ta ? k * p->lda + m : m * p->lda + k, p->t);
        if (lie < rows)
            pack(p->t, strips, GAP, MR, at(a, p->ta ? lie : lie * p->lda, p->t), p->lda, !p->ta, rows - lie,
                 depth);
        for (int64_t j = 0; j < columns; j += NR) {
            const int64_t wide = MIN(NR, columns - j);
            const float *panel = panels ? panels + j * KC : own,
                        *bias = p->bias && !k0 && last ? p->bias + n + j : NULL;
            if (!panels) pack_b(p, own, n + j, k, wide, depth);
            for (int64_t i = 0; i < rows; i += MR) {
                const int64_t high = MIN(MR, rows - i), ahead = i / MR * PANEL_SHARE;
                const Strip strip = i < lie ? (Strip){(const float *)a + i * p->lda, p->lda, 1}
                                            : (Strip){strips + (i - lie) / MR * GAP, 1, MR};
                float *C = p->C + (m + i) * p->ldc + n + j, *sum = done + j * MC + i * NR;
                const float *from = k > k0 ? sum : NULL;
                /* The next panel, to L2: L1 is full of this one. */
                for (int64_t l = ahead; panels && l < MIN(ahead + PANEL_SHARE, depth * NR); l += LINE)
                    __builtin_prefetch(panel + KC * NR + l, 0, 2);
                const bool narrow = wide <= NR - VL, whole = high == MR && wide == (narrow ? NR - VL : NR);
                if (last && whole) {
                    tile(C, p->ldc, from, strip, panel, depth, bias, add, narrow);
                } else {
                    tile(sum, NR, from, strip, panel, depth, NULL, false, narrow);
                    if (last) finish(C, p->ldc, sum, high, wide, bias, add);
                }
            }
        }
        if (panels) panels += stride;
    }
}

void cpu_product(float *C, int64_t ldc, DType t, const void *A, int64_t lda, const void *B, int64_t ldb,
                 const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, bool add) {
    const Product p = {C, A, B, bias, ldc, lda, ldb, M, N, K, t, ta, tb, add};
    /* How C is shared out does not show in its bits. A weight gradient of a small layer has few rows and
     * columns, and K is thousands. */
    const int64_t wanted = omp_get_max_threads();
    const int64_t nb = ceil_div(MAX(NB_MIN, MIN(NB, N / ceil_div(wanted, ceil_div(M, MC)))), NR) * NR;
    const int64_t mb = ceil_div(MAX(MB_MIN, MIN(MC, M * ceil_div(N, nb) / wanted)), MR) * MR,
                  high = ceil_div(M, mb);
    const bool shared = high > 1; /* op(B) is packed once for all rows */
    const int64_t packed = shared ? ceil_div(MIN(K, KB), KC) * KC * (MIN(N, NC) + NR) : 0;
    float *panels = shared ? cpu_scratch(SCRATCH_OP, (size_t)packed * sizeof(float)) : NULL;
    OMP_(omp parallel if (M * N * K / 64 >= PAR_MIN && !omp_in_parallel()))
    for (int64_t n = 0; n < N; n += NC) {
        const int64_t columns = MIN(NC, N - n), stride = KC * ceil_div(columns, NR) * NR,
                      wide = ceil_div(columns, nb);
        for (int64_t k = 0; k < K || !k; k += KB) {
            const int64_t k1 = MIN(K, k + KB), deep = ceil_div(k1 - k, KC);
            if (shared) {
                OMP_(omp for collapse(2) schedule(static))
                for (int64_t d = 0; d < deep; d++)
                    for (int64_t j = 0; j < columns; j += NPACK)
                        pack_b(&p, panels + d * stride + j * KC, n + j, k + d * KC, MIN(NPACK, columns - j),
                               MIN(KC, k1 - k - d * KC));
            }
            OMP_(omp for schedule(dynamic))
            for (int64_t i = 0; i < high * wide; i++) {
                const int64_t m = i / wide * mb, j = i % wide * nb;
                block(&p, m, MIN(mb, M - m), n + j, MIN(nb, columns - j), k, k1,
                      shared ? panels + j * KC : NULL, stride);
            }
        }
    }
}
