/* elementwise.c -- activations, sums and products, dropout, casts on the CPU. Contracts: ops.h.
 *
 * All are bound by memory once the math is vectorised (cpu.h). The activations read and write one value
 * per index, so y may be x and any split over threads gives the same bits.
 */
#include "kernels/cpu/cpu.h"

#include "kernels/activation.h"
#include "kernels/philox.h"

/* ---- activations ---------------------------------------------------------------------------------- */

static inline float gelu_tanh_f(float x) {
    float c = x < -10.0f ? -10.0f : x;
    return c * sigmoid_f(gelu_tanh_2u(x));
}

static inline float gelu_tanh_slope(float x) { return gelu_tanh_slope_of(x, exp_f(-fabsf(gelu_tanh_2u(x)))); }

static inline float quick_gelu_f(float x) {
    float c = x < -88.0f ? -88.0f : x; /* past -61 the product is 0 in f32; keeps -infinity finite */
    return c * sigmoid_f(1.702f * x);
}

static inline float quick_gelu_slope(float x) {
    float s = sigmoid_f(1.702f * x), c = x > 88.0f ? 88.0f : x < -88.0f ? -88.0f : x;
    return s * fmaf(1.702f * c, 1.0f - s, 1.0f);
}

static inline float elu1_f(float x) {
    float e = exp_f(x < 0.0f ? x : 0.0f);
    return x < 0.0f ? e : x + 1.0f;
}

static inline float elu1_slope(float x) { return exp_f(x > 0.0f ? 0.0f : x); /* 1 above; NaN stays */ }

static inline float tanh_slope(float y) { return fmaf(-y, y, 1.0f); }
static inline float sigmoid_slope(float y) { return y * (1.0f - y); }

#define ACTIVATION(name, value, slope)                                                                       \
    void cpu_##name##_fwd(Stream *s, DType t, void *y_, const void *x_, int64_t n) {                         \
        (void)s;                                                                                             \
        BY_TYPE(t, {                                                                                         \
            T *y = y_;                                                                                       \
            const T *x = x_;                                                                                 \
            PAR_FOR_SIMD(n)                                                                                  \
            for (int64_t i = 0; i < n; i++) SET(y[i], value(GET(x[i])));                                     \
        });                                                                                                  \
    }                                                                                                        \
    void cpu_##name##_bwd(Stream *s, DType t, void *dx_, const void *x_, const void *dy_, int64_t n) {       \
        (void)s;                                                                                             \
        if (!dx_) return;                                                                                    \
        BY_TYPE(t, {                                                                                         \
            T *dx = dx_;                                                                                     \
            const T *x = x_, *dy = dy_;                                                                      \
            if (dx == dy) {                                                                                  \
                PAR_FOR_SIMD(n)                                                                              \
                for (int64_t i = 0; i < n; i++) SET(dx[i], GET(dx[i]) * slope(GET(x[i])));                   \
            } else {                                                                                         \
                PAR_FOR_SIMD(n)                                                                              \
                for (int64_t i = 0; i < n; i++) SET(dx[i], fmaf(GET(dy[i]), slope(GET(x[i])), GET(dx[i])));  \
            }                                                                                                \
        });                                                                                                  \
    }

ACTIVATION(gelu, gelu_f, gelu_slope)
ACTIVATION(gelu_tanh, gelu_tanh_f, gelu_tanh_slope)
ACTIVATION(quick_gelu, quick_gelu_f, quick_gelu_slope)
ACTIVATION(elu1, elu1_f, elu1_slope)
ACTIVATION(tanh, tanh_f, tanh_slope)
ACTIVATION(sigmoid, sigmoid_f, sigmoid_slope)

/* ---- sums and products ---------------------------------------------------------------------------- */

void cpu_add_fwd(Stream *s, DType t, void *y_, const void *a_, const void *b_, int64_t n) {
    (void)s;
    BY_TYPE(t, {
        T *y = y_;
        const T *a = a_, *b = b_;
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) SET(y[i], GET(a[i]) + GET(b[i]));
    });
}

void cpu_accumulate(Stream *s, DType ty, void *y_, DType tx, const void *x_, int64_t n) {
    (void)s;
    if (ty == BF16 || tx == F32)
        BY_TYPE(ty, {
            T *y = y_;
            const T *x = x_;
            PAR_FOR_SIMD(n)
            for (int64_t i = 0; i < n; i++) SET(y[i], GET(y[i]) + GET(x[i]));
        });
    else {
        float *y = y_;
        const uint16_t *x = x_;
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) y[i] += GET(x[i]);
    }
}

void cpu_mul_fwd(Stream *s, DType t, void *y_, const void *a_, const void *b_, int64_t n) {
    (void)s;
    BY_TYPE(t, {
        T *y = y_;
        const T *a = a_, *b = b_;
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) SET(y[i], GET(a[i]) * GET(b[i]));
    });
}

void cpu_mul_bwd(Stream *s, DType t, void *da_, void *db_, const void *a_, const void *b_, const void *dy_,
                 int64_t n) {
    (void)s;
    WIDE(t, cpu_mul_bwd(s, F32, UPDATE(t, da_, n), UPDATE(t, db_, n), READ(t, a_, n), READ(t, b_, n),
                        READ(t, dy_, n), n));
    float *da = da_, *db = db_;
    const float *a = a_, *b = b_, *dy = dy_;
    /* Two loops: da and db may be one buffer (y = a a). */
    if (da) {
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) da[i] = fmaf(dy[i], b[i], da[i]);
    }
    if (db) {
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) db[i] = fmaf(dy[i], a[i], db[i]);
    }
}

void cpu_add_rows_fwd(Stream *s, DType t, void *y_, const void *x_, const void *p_, int64_t rows, int64_t n) {
    (void)s;
    BY_TYPE(t, {
        T *y = y_;
        const T *x = x_, *p = p_;
        PAR_FOR(rows * n)
        for (int64_t i = 0; i < rows; i++) {
            SIMD
            for (int64_t j = 0; j < n; j++) SET(y[i * n + j], GET(x[i * n + j]) + GET(p[j]));
        }
    });
}

/* Rows of two kinds meet here: few and long (a position table, n = T C) and many and short (a bias). Short ones are
 * summed in blocks of rows; long ones by columns, every row in turn. */
void cpu_add_rows_bwd(Stream *s, DType td, void *dp_, DType t, const void *dy_, int64_t rows, int64_t n) {
    (void)s;
    WIDE(t, cpu_add_rows_bwd(s, F32, UPDATE(td, dp_, n), F32, READ(t, dy_, rows * n), rows, n));
    float *dp = dp_;
    const float *dy = dy_;
    if (!dp || !rows || !n) return;
    if (n <= 4096) {
        sum_rows(dp, F32, dy, rows, n);
        return;
    }
    PAR_FOR(rows * n)
    for (int64_t j0 = 0; j0 < n; j0 += 1024) {
        float acc[1024] = {0};
        const int64_t m = MIN(1024, n - j0);
        rows_add(acc, dy + j0, n, rows, m);
        row_add(dp + j0, acc, m);
    }
}

void cpu_mul_tokens_fwd(Stream *s, DType t, void *y_, const void *x_, const void *g_, int64_t B, int64_t T,
                        int64_t C) {
    (void)s;
    WIDE(t, cpu_mul_tokens_fwd(s, F32, WRITE(t, y_, B * T * C), READ(t, x_, B * T * C), READ(t, g_, B * C), B,
                               T, C));
    float *y = y_;
    const float *x = x_, *g = g_;
    PAR_FOR(B * T * C)
    for (int64_t i = 0; i < B * T; i++) {
        const float *gb = g + i / T * C;
        SIMD
        for (int64_t c = 0; c < C; c++) y[i * C + c] = x[i * C + c] * gb[c];
    }
}

void cpu_mul_tokens_bwd(Stream *s, DType t, void *dx_, void *dg_, const void *x_, const void *g_, const void *dy_,
                        int64_t B, int64_t T, int64_t C) {
    (void)s;
    WIDE(t, cpu_mul_tokens_bwd(s, F32, UPDATE(t, dx_, B * T * C), UPDATE(t, dg_, B * C),
                               READ(t, x_, B * T * C), READ(t, g_, B * C), READ(t, dy_, B * T * C), B, T, C));
    float *dx = dx_, *dg = dg_;
    const float *x = x_, *g = g_, *dy = dy_;
    if (dx) {
        PAR_FOR(B * T * C)
        for (int64_t i = 0; i < B * T; i++) {
            const float *gb = g + i / T * C;
            SIMD
            for (int64_t c = 0; c < C; c++) dx[i * C + c] = fmaf(dy[i * C + c], gb[c], dx[i * C + c]);
        }
    }
    if (!dg || !T) return;
    PAR_FOR(B * T * C)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t c0 = 0; c0 < C; c0 += COL_BLOCK) {
            float acc[COL_BLOCK] = {0};
            const int64_t m = MIN(COL_BLOCK, C - c0);
            for (int64_t k = 0; k < T; k++) {
                const float *xr = x + (b * T + k) * C + c0, *dr = dy + (b * T + k) * C + c0;
                SIMD
                for (int64_t c = 0; c < m; c++) acc[c] = fmaf(dr[c], xr[c], acc[c]);
            }
            row_add(dg + b * C + c0, acc, m);
        }
    }
}

/* ---- dropout -------------------------------------------------------------------------------------- */

enum { DROP_BLOCK = 256 }; /* counters at a time */

#ifdef __AVX2__
/* Factors of COUNTERS counters, in vectors of four. philox.h's rounds with a word in the lower half of each
 * 64-bit lane: a lane holds the product of two words, its upper half is the next word, and what lies above a
 * word is never looked at. gcc's own vectors shuffle words in every round and take 2.5 times as long. Two
 * vectors at once, for each round waits for the last one. */
enum { VECTORS = 2, COUNTERS = 4 * VECTORS };
static void counter_factors(float keep[4 * COUNTERS], uint64_t seed, uint64_t counter, uint32_t threshold,
                            float scale) {
    const __m256i m0 = _mm256_set1_epi64x(0xD2511F53u), m1 = _mm256_set1_epi64x(0xCD9E8D57u);
    __m256i c0[VECTORS], c1[VECTORS], c2[VECTORS], c3[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        const __m256i at = _mm256_add_epi64(_mm256_set1_epi64x((int64_t)(counter + 4 * (uint64_t)v)),
                                            _mm256_setr_epi64x(0, 1, 2, 3));
        c0[v] = _mm256_and_si256(at, _mm256_set1_epi64x((int64_t)(~(uint64_t)0 >> 2)));
        c1[v] = _mm256_srli_epi64(c0[v], 32);
        c2[v] = c3[v] = _mm256_setzero_si256();
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            const __m256i a = _mm256_mul_epu32(c0[v], m0), b = _mm256_mul_epu32(c2[v], m1);
            c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(b, 32), c1[v]), key0);
            c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a, 32), c3[v]), key1);
            c1[v] = b;
            c3[v] = a;
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        /* Words 0 1 and 2 3 of each counter side by side, then all four. */
        const __m256i low = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xAA);
        const __m256i high = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xAA);
        const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
        const __m256i word[2] = {_mm256_permute2x128_si256(even, odd, 0x20),
                                 _mm256_permute2x128_si256(even, odd, 0x31)};
        for (int j = 0; j < 2; j++) { /* word >= threshold, without a sign */
            const __m256i stays =
                _mm256_cmpeq_epi32(_mm256_max_epu32(word[j], _mm256_set1_epi32((int32_t)threshold)), word[j]);
            _mm256_storeu_ps(keep + 16 * v + 8 * j,
                             _mm256_and_ps(_mm256_castsi256_ps(stays), _mm256_set1_ps(scale)));
        }
    }
}
#endif

/* keep[k] = factor of value number 4 first + k, k < 4 n: 0 or `scale`. */
static void dropout_factors(float *keep, uint64_t seed, uint64_t first, int64_t n, uint32_t threshold,
                            float scale) {
    int64_t k = 0;
#ifdef __AVX2__
    for (; k + COUNTERS <= n; k += COUNTERS)
        counter_factors(keep + 4 * k, seed, first + (uint64_t)k, threshold, scale);
#endif
    for (; k < n; k++) { /* not under `omp simd`: it would keep r in memory */
        uint32_t r[4];
        philox(r, seed, (first + (uint64_t)k) & (~(uint64_t)0 >> 2)); /* value numbers wrap at 2^64 */
        keep[4 * k] = r[0] < threshold ? 0.0f : scale;
        keep[4 * k + 1] = r[1] < threshold ? 0.0f : scale;
        keep[4 * k + 2] = r[2] < threshold ? 0.0f : scale;
        keep[4 * k + 3] = r[3] < threshold ? 0.0f : scale;
    }
}

static void dropout(float *y, const float *x, float p, uint64_t seed, uint64_t offset, int64_t n, bool add) {
    CHECK(p >= 0 && p < 1, "dropout: p is %g, wants 0 <= p < 1", (double)p);
    const uint32_t threshold = dropout_threshold(p);
    const float scale = 1.0f / (1.0f - p);
    const int64_t lead = (int64_t)(offset & 3); /* the first counter's words before value 0 */
    const int64_t blocks = n ? ceil_div(n + lead, 4 * DROP_BLOCK) : 0;
    PAR_FOR(n)
    for (int64_t b = 0; b < blocks; b++) {
        float keep[4 * DROP_BLOCK];
        const int64_t at = b * 4 * DROP_BLOCK - lead, i0 = MAX(at, 0), i1 = MIN(at + 4 * DROP_BLOCK, n);
        dropout_factors(keep, seed, (offset >> 2) + (uint64_t)(b * DROP_BLOCK), ceil_div(i1 - at, 4), threshold, scale);
        if (add) {
            SIMD
            for (int64_t i = i0; i < i1; i++) y[i] = fmaf(x[i], keep[i - at], y[i]);
        } else {
            SIMD
            for (int64_t i = i0; i < i1; i++) y[i] = keep[i - at] == 0.0f ? 0.0f : x[i] * keep[i - at];
        }
    }
}

void cpu_dropout_fwd(Stream *s, DType t, void *y, const void *x, float p, uint64_t seed, uint64_t offset, int64_t n) {
    (void)s;
    WIDE(t, cpu_dropout_fwd(s, F32, WRITE(t, y, n), READ(t, x, n), p, seed, offset, n));
    dropout(y, x, p, seed, offset, n, false);
}

void cpu_dropout_bwd(Stream *s, DType t, void *dx, const void *dy, float p, uint64_t seed, uint64_t offset,
                     int64_t n) {
    (void)s;
    WIDE(t, cpu_dropout_bwd(s, F32, UPDATE(t, dx, n), READ(t, dy, n), p, seed, offset, n));
    if (dx) dropout(dx, dy, p, seed, offset, n, true);
}

/* ---- casts ---------------------------------------------------------------------------------------- */

void cpu_cast(Stream *s, DType ty, void *y_, DType tx, const void *x_, int64_t n) {
    (void)s;
    if (ty == tx) {
        if (n && y_ != x_) memcpy(y_, x_, (size_t)n * dtype_size(ty));
    } else if (ty == BF16) {
        uint16_t *y = y_;
        const float *x = x_;
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) y[i] = bf16_round(x[i]);
    } else {
        float *y = y_;
        const uint16_t *x = x_;
        PAR_FOR_SIMD(n)
        for (int64_t i = 0; i < n; i++) y[i] = bits_f32((uint32_t)x[i] << 16);
    }
}
