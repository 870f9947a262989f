/* cpu.h -- what the CPU kernels share: scratch memory, the rule for threads, vector math.
 *
 * Loops are plain C that gcc vectorises (`omp simd`), functions of one value are written without branches
 * for that reason. Contraction of a * b + c is off under -std=c17: where we want fma we say fmaf, so the
 * body of a vectorised loop and its tail, and any split over threads, give the same bits.
 */
#pragma once
/* We read no floating-point exception flags. With this gcc turns `x < 0 ? a : b` into a select, where it would
 * otherwise branch round the arithmetic and leave the loop scalar. No value changes, NaN and infinity included. */
#pragma GCC optimize("no-trapping-math")
#include "engine/base.h"
#include "kernels/ops.h"

#include <math.h>
#include <omp.h>

/* ---- threads -------------------------------------------------------------------------------------- */

/* Waking the team costs some microseconds: below this many values (or their equal in work) one thread does it. */
enum { PAR_MIN = 1 << 15 };
/* Sums are made over pieces of this many values or rows, then over the pieces in order: no thread count shows. */
enum { SUM_BLOCK = 4096, ROW_BLOCK = 64, COL_BLOCK = 64 };

#define OMP_(x) _Pragma(#x)
/* In front of `for (int64_t i = ...; ...)`: iterations may go to threads when `work` values pay for it. */
#define PAR_FOR(work) OMP_(omp parallel for schedule(static) if ((work) >= PAR_MIN))
/* The condition is of `parallel` alone: without a name it would be of `simd`, too, and small loops scalar (OpenMP 5). */
#define PAR_FOR_SIMD(work) OMP_(omp parallel for simd schedule(static) if (parallel : (work) >= PAR_MIN))
#define SIMD OMP_(omp simd)
#define SIMD_SUM(s) OMP_(omp simd reduction(+ : s))

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- scratch -------------------------------------------------------------------------------------- */

/* Memory of the calling thread, one block per slot, that grows and stays: no op allocates once warm. Contents are
 * undefined; a second call for the same slot takes the first one's place. 64-byte aligned. */
enum { WIDE_MAX = 8 }; /* bf16 tensors of one op */
typedef enum ScratchSlot {
    SCRATCH_OP,
    SCRATCH_THREAD,
    SCRATCH_WIDE,
    SCRATCH_SLOTS = SCRATCH_WIDE + WIDE_MAX
} ScratchSlot;
void *cpu_scratch(ScratchSlot slot, size_t bytes);

/* ---- bf16 ----------------------------------------------------------------------------------------- */

/* Arithmetic is f32 for either type; bf16 is rounded to once, where an op writes. Three ways, the same bits:
 *
 * Value by value, a loop that is compiled for both types, T being the one in memory:
 *
 *     BY_TYPE(t, { T *y = y_; const T *x = x_; for (...) SET(y[i], f(GET(x[i]))); });
 *
 * Row by row, in functions of f32 rows: wide_row and round_row, with room of the thread's.
 *
 * And for what is seldom run, on wide copies of whole tensors, in one line per op,
 *
 *     WIDE(t, cpu_gelu_bwd(s, F32, UPDATE(t, dx, n), READ(t, x, n), READ(t, dy, n), n));
 *
 * which returns when t is BF16, at the cost of a pass over memory or two per tensor. A tensor is named by
 * what happens to it, with its type and its number of values, or (_ROWS) as rows of n values, ld apart, whose
 * copy is dense. One that is NULL, or f32 already, is passed on as it is. */
#define BY_TYPE(t, ...)                                                                                      \
    do {                                                                                                     \
        if ((t) == F32) {                                                                                    \
            typedef float T;                                                                                 \
            __VA_ARGS__                                                                                      \
        } else {                                                                                             \
            typedef uint16_t T;                                                                              \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    } while (0)
#define GET(value)    _Generic((value), float: f32_value, uint16_t: bf16_value)(value)
#define SET(place, x) ((place) = _Generic((place), float: f32_value, uint16_t: bf16_round)(x))
static inline float f32_value(float x) { return x; }

/* n values of p from `at` on, as f32: where they lie, or in `room`, to where bf16 is widened. */
static inline const float *wide_row(DType t, const void *p, int64_t at, int64_t n, float *room) {
    if (t == F32) return (const float *)p + at;
    const uint16_t *x = (const uint16_t *)p + at;
    SIMD
    for (int64_t i = 0; i < n; i++) room[i] = bf16_value(x[i]);
    return room;
}
/* Where to write a row that goes there, or add to it; then, for bf16, its rounding. */
static inline float *row_room(DType t, void *p, int64_t at, float *room) {
    return t == F32 ? (float *)p + at : room;
}
static inline float *row_to_add(DType t, void *p, int64_t at, int64_t n, float *room) {
    wide_row(t, p, at, n, room);
    return row_room(t, p, at, room);
}
static inline void round_row(DType t, void *p, int64_t at, int64_t n, const float *room) {
    if (t == F32) return;
    uint16_t *y = (uint16_t *)p + at;
    SIMD
    for (int64_t i = 0; i < n; i++) y[i] = bf16_round(room[i]);
}

typedef struct Wide {
    int n;
    struct WideCopy { float *f; uint16_t *p; int64_t rows, ld, n; bool out; } copy[WIDE_MAX];
} Wide;
#define WIDE(t, ...)                                                                                         \
    do {                                                                                                     \
        if ((t) == BF16) {                                                                                   \
            Wide wide_ = {0};                                                                                \
            __VA_ARGS__;                                                                                     \
            wide_end(&wide_);                                                                                \
            return;                                                                                          \
        }                                                                                                    \
    } while (0)
#define READ(t, p, n) READ_ROWS(t, p, 1, n, n)
#define WRITE(t, p, n) WRITE_ROWS(t, p, 1, n, n)
#define UPDATE(t, p, n) UPDATE_ROWS(t, p, 1, n, n)
#define READ_ROWS(t, p, rows, ld, n) wide_copy(&wide_, t, (void *)(p), rows, ld, n, true, false)
#define WRITE_ROWS(t, p, rows, ld, n) wide_copy(&wide_, t, p, rows, ld, n, false, true)
#define UPDATE_ROWS(t, p, rows, ld, n) wide_copy(&wide_, t, p, rows, ld, n, true, true)
void *wide_copy(Wide *w, DType t, void *p, int64_t rows, int64_t ld, int64_t n, bool in, bool out);
void wide_end(Wide *w);
/* How many rows an op that is given row numbers may touch: one more than the largest. */
int64_t rows_named(const int32_t *idx, int64_t n);

/* ---- vector math ---------------------------------------------------------------------------------- */

static inline uint32_t f32_bits(float x) { union { float f; uint32_t u; } v = {.f = x}; return v.u; }
static inline float bits_f32(uint32_t u) { union { uint32_t u; float f; } v = {.u = u}; return v.f; }

/* e^x to 2 ulp: x = n ln 2 + r as in Cephes' expf, |r| <= ln 2 / 2, then 1 + r + r^2 P(r), P fitted by us (relative
 * error 3e-9). 2^n in two factors reaches the subnormals and infinity. NaN stays NaN. */
static inline float exp_f(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float round = 12582912.0f; /* 1.5 2^23: the sum's low bits are the nearest integer */
    float t = fmaf(x, 1.44269504f, round), n = t - round;
    float r = fmaf(n, -0.693145752f, x); /* ln 2 in two parts, the first with 15 zero bits at its end */
    r = fmaf(n, -1.42860677e-6f, r);
    float p = 0.00138145964f;
    p = fmaf(p, r, 0.00836871709f);
    p = fmaf(p, r, 0.0416683881f);
    p = fmaf(p, r, 0.166665206f);
    p = fmaf(p, r, 0.499999934f);
    p = fmaf(r * r, p, r) + 1.0f;
    uint32_t k = f32_bits(t) - 0x4B400000u, half = (uint32_t)((int32_t)k >> 1);
    return p * bits_f32((half + 127) << 23) * bits_f32((k - half + 127) << 23);
}

/* The same for x <= 0, as softmax and attention need it: 0 under e^-87.6 (the clamp's 2^-127 has the bits of zero), one
 * part of ln 2 (2e-9 n, so 2e-7 by the time e^x is 1e-38). A rounding error above 0 does no harm. */
static inline float exp_neg_f(float x) {
    const float round = 12582912.0f;
    float c = x < -88.0f ? -88.0f : x;
    float t = fmaf(c, 1.44269504f, round), r = fmaf(t - round, -0.693147181f, c);
    float p = 0.00138145964f;
    p = fmaf(p, r, 0.00836871709f);
    p = fmaf(p, r, 0.0416683881f);
    p = fmaf(p, r, 0.166665206f);
    p = fmaf(p, r, 0.499999934f);
    p = fmaf(r * r, p, r) + 1.0f;
    return p * bits_f32((f32_bits(t) << 23) + (127u << 23)); /* the low bits of t are n */
}

/* log x for x positive and normal, to 2 ulp: x = 2^k m, m in [sqrt 1/2, sqrt 2], then 2 atanh((m - 1) / (m + 1)), series
 * refitted (error 5e-12). NaN and infinity stay. */
static inline float log_f(float x) {
    uint32_t k = (f32_bits(x) - 0x3F3504F3u) & 0xFF800000u; /* sqrt 1/2 */
    float m = bits_f32(f32_bits(x) - k), n = (float)((int32_t)k >> 23);
    float w = (m - 1.0f) / (m + 1.0f), z = w * w, p = 0.117910769f;
    p = fmaf(p, z, 0.142686542f);
    p = fmaf(p, z, 0.200001676f);
    p = fmaf(p, z, 0.333333328f);
    float y = 2.0f * fmaf(w * z, p, w);
    return fmaf(n, 0.693145752f, fmaf(n, 1.42860677e-6f, y)) + (x - x == 0.0f ? 0.0f : x);
}

/* log(1 + u), 0 <= u <= 1, to 2 ulp: 2 atanh(w), w = u / (2 + u) <= 1/3, series in w^2 refitted (error 1e-10). */
static inline float log1p_f(float u) {
    float w = u / (2.0f + u), z = w * w, p = 0.12150469f;
    p = fmaf(p, z, 0.107138284f);
    p = fmaf(p, z, 0.143084424f);
    p = fmaf(p, z, 0.199994389f);
    p = fmaf(p, z, 0.333333378f);
    return 2.0f * fmaf(w * z, p, w);
}

/* 1 / (1 + e^-x), relative error 3 ulp at either end: the exponential is never above 1. */
static inline float sigmoid_f(float x) {
    float e = exp_f(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* tanh x to 3 ulp: below 0.625 odd polynomial (Cephes' split, our fit), above 1 - 2 / (e^2|x| + 1). */
static inline float tanh_f(float x) {
    float a = fabsf(x), z = x * x, p = -0.00571703656f;
    p = fmaf(p, z, 0.020650579f);
    p = fmaf(p, z, -0.0537434953f);
    p = fmaf(p, z, 0.133314912f);
    p = fmaf(p, z, -0.333332839f);
    float small = fmaf(a * z, p, a);
    float large = 1.0f - 2.0f / (exp_f(2.0f * a) + 1.0f);
    return copysignf(a < 0.625f ? small : large, x);
}

/* ---- vectors by hand: only where gcc's own are not enough (inner products in sgemm.c and attention.c) - */

#ifdef __AVX512F__
#include <immintrin.h>
enum { VL = 16 };
typedef float VF __attribute__((vector_size(64), aligned(4), may_alias));
static inline VF v_fma(VF a, VF b, VF c) { return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__FMA__)
#include <immintrin.h>
enum { VL = 8 };
typedef float VF __attribute__((vector_size(32), aligned(4), may_alias));
static inline VF v_fma(VF a, VF b, VF c) { return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
enum { VL = 4 };
typedef float VF __attribute__((vector_size(16), aligned(4), may_alias));
static inline VF v_fma(VF a, VF b, VF c) { return a * b + c; }
#endif

/* A register: gcc leaves arrays of VF, which may lie anywhere in memory, on the stack. */
typedef float VR __attribute__((vector_size(VL * sizeof(float))));
#define REG(p) ((VR) * (const VF *)(p))
#define UNROLL OMP_(GCC unroll 8)
/* sum += x * row, into the register where the sum is, and a row kept in one. gcc, left free, moves sums about
 * in unrolled loops and reads a row from memory again for each use: without these two products took 9 to 16 %
 * longer. */
#ifdef __FMA__
#define ADD_PRODUCT(sum, x, row) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(row))
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define ADD_PRODUCT(sum, x, row) (sum) = (VR)v_fma((VF)(x), (VF)(row), (VF)(sum))
#define IN_REGISTER(v)
#endif

/* ---- rows ----------------------------------------------------------------------------------------- */

/* Eight numbers at a time; gcc takes them apart where the machine has less (and would warn of how they are passed, which
 * matters to nobody: all such functions are static). */
#pragma GCC diagnostic ignored "-Wpsabi"
typedef float V8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t V8I __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));
#define V8_AT(p) (*(const V8 *)(p))

/* sum = the terms for i = 0..n-1, where BODY sets the float `term` from i (and may do more). 32 lanes, added pairwise at the
 * end: the order is written here, the same for every vector width and compiler, and the error grows with n / 32. */
#define SUM_LANES(sum, i, n, BODY)                                                                           \
    do {                                                                                                     \
        V8 lane0_ = {0}, lane1_ = {0}, lane2_ = {0}, lane3_ = {0};                                           \
        float t_[32], term;                                                                                  \
        int64_t at_ = 0;                                                                                     \
        for (; at_ + 32 <= (n); at_ += 32) {                                                                 \
            OMP_(omp simd private(term))                                                                     \
            for (int k_ = 0; k_ < 32; k_++) {                                                                \
                const int64_t i = at_ + k_;                                                                  \
                BODY t_[k_] = term;                                                                          \
            }                                                                                                \
            lane0_ += V8_AT(t_);                                                                             \
            lane1_ += V8_AT(t_ + 8);                                                                         \
            lane2_ += V8_AT(t_ + 16);                                                                        \
            lane3_ += V8_AT(t_ + 24);                                                                        \
        }                                                                                                    \
        for (; at_ + 8 <= (n); at_ += 8) {                                                                   \
            OMP_(omp simd private(term))                                                                     \
            for (int k_ = 0; k_ < 8; k_++) {                                                                 \
                const int64_t i = at_ + k_;                                                                  \
                BODY t_[k_] = term;                                                                          \
            }                                                                                                \
            lane0_ += V8_AT(t_);                                                                             \
        }                                                                                                    \
        if (at_ < (n)) {                                                                                     \
            for (int k_ = 0; k_ < 8; k_++) t_[k_] = 0;                                                       \
            for (int k_ = 0; at_ + k_ < (n); k_++) {                                                         \
                const int64_t i = at_ + k_;                                                                  \
                BODY t_[k_] = term;                                                                          \
            }                                                                                                \
            lane1_ += V8_AT(t_);                                                                             \
        }                                                                                                    \
        (sum) = total_of((lane0_ + lane2_) + (lane1_ + lane3_));                                             \
    } while (0)

__attribute__((always_inline)) static inline float total_of(V8 s) {
    V4 lo = {s[0], s[1], s[2], s[3]}, hi = {s[4], s[5], s[6], s[7]};
    lo += hi;
    return (lo[0] + lo[2]) + (lo[1] + lo[3]);
}

static inline float row_sum(const float *x, int64_t n) {
    V8 lane[4] = {{0}};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) lane[k] += V8_AT(x + i + 8 * k);
    for (; i + 8 <= n; i += 8) lane[0] += V8_AT(x + i);
    float rest = 0;
    for (; i < n; i++) rest += x[i];
    return total_of((lane[0] + lane[2]) + (lane[1] + lane[3])) + rest;
}

static inline float row_dot(const float *a, const float *b, int64_t n) {
    float s;
    SUM_LANES(s, i, n, { term = a[i] * b[i]; });
    return s;
}

static inline V8 v8_max(V8 a, V8 b) {
    V8I more = a > b; /* all bits or none, by lane */
    return (V8)((more & (V8I)a) | (~more & (V8I)b));
}

/* The largest value; a NaN may be passed over (it shows in the sum of exponentials). -infinity when n is 0. By lanes: without
 * -ffast-math gcc leaves a max reduction scalar. */
static inline float row_max(const float *x, int64_t n) {
    V8 m[4];
    for (int k = 0; k < 4; k++) m[k] = (V8){0} - INFINITY;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) m[k] = v8_max(V8_AT(x + i + 8 * k), m[k]);
    for (; i + 8 <= n; i += 8) m[0] = v8_max(V8_AT(x + i), m[0]);
    m[0] = v8_max(v8_max(m[0], m[1]), v8_max(m[2], m[3]));
    float best = -INFINITY;
    for (int k = 0; k < 8; k++) best = m[0][k] > best ? m[0][k] : best;
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* y += a x */
static inline void row_axpy(float *y, float a, const float *x, int64_t n) {
    SIMD
    for (int64_t i = 0; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static inline void row_add(float *y, const float *x, int64_t n) {
    SIMD
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

/* y += the rows of x, n values every ldx, one after the other: four of them per pass over y. */
static inline void rows_add(float *restrict y, const float *restrict x, int64_t ldx, int64_t rows, int64_t n) {
    for (; rows >= 4; rows -= 4, x += 4 * ldx) {
        const float *a = x, *b = x + ldx, *c = b + ldx, *d = c + ldx;
        SIMD
        for (int64_t j = 0; j < n; j++) y[j] = (((y[j] + a[j]) + b[j]) + c[j]) + d[j];
    }
    for (; rows; rows--, x += ldx) row_add(y, x, n);
}

/* out[j] += sum over rows of x[i][j], x of type t, in blocks of ROW_BLOCK rows summed apart and added in
 * order: no thread count shows, and errors grow with the block, not with the rows. */
static inline void sum_rows(float *out, DType t, const void *x, int64_t rows, int64_t C) {
    const int64_t blocks = ceil_div(rows, ROW_BLOCK);
    float *part = cpu_scratch(SCRATCH_OP, (size_t)(blocks * C) * sizeof(float));
    PAR_FOR(rows * C)
    for (int64_t b = 0; b < blocks; b++) {
        enum { TOGETHER = 4 }; /* rows that rows_add takes in one pass */
        float *room = cpu_scratch(SCRATCH_THREAD, (size_t)(TOGETHER * C) * sizeof(float));
        const int64_t end = MIN((b + 1) * ROW_BLOCK, rows);
        memset(part + b * C, 0, (size_t)C * sizeof(float));
        for (int64_t i = b * ROW_BLOCK; i < end; i += TOGETHER) {
            const int64_t n = MIN(TOGETHER, end - i);
            rows_add(part + b * C, wide_row(t, x, i * C, n * C, room), C, n, C);
        }
    }
    rows_add(out, part, C, blocks, C);
}

/* ---- products ------------------------------------------------------------------------------------- */

/* C (M,N) f32 = [C +] [bias +] op(A) op(B), as gemm of ops.h; A and B are of type t. The bits of a row of C
 * depend on K alone, not on M, N, threads or vector width (sgemm.c). */
void cpu_product(float *C, int64_t ldc, DType t, const void *A, int64_t lda, const void *B, int64_t ldb,
                 const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, bool add);
