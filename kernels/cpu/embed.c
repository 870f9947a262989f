/* embed.c -- moving rows: embedding, gathering, concatenation, pooling, pair scores on the CPU. Contracts: ops.h.
 *
 * Ops that add to shared rows (scatter_rows and its kin) go over threads by COLUMNS: each thread adds all rows
 * in order to its own columns, so the order of every sum is the order of i, without atomics.
 */
#include "kernels/cpu/cpu.h"

void cpu_gather_rows(Stream *s, DType t, void *dst, const void *src, const int32_t *idx, int64_t n, int64_t C) {
    (void)s;
    if (!C) return;
    const int64_t row = C * (int64_t)dtype_size(t);
    PAR_FOR(n * C)
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)dst + i * row, (const char *)src + idx[i] * row, (size_t)row);
}

void cpu_scatter_rows(Stream *s, DType td, void *dst, DType t, const void *src, const int32_t *idx, int64_t n,
                      int64_t C) {
    (void)s;
    if (!dst) return;
    WIDE(t, cpu_scatter_rows(s, F32, UPDATE(td, dst, rows_named(idx, n) * C), F32, READ(t, src, n * C), idx,
                             n, C));
    PAR_FOR(n * C)
    for (int64_t c = 0; c < C; c += COL_BLOCK)
        for (int64_t i = 0; i < n; i++)
            row_add((float *)dst + idx[i] * C + c, (const float *)src + i * C + c, MIN(COL_BLOCK, C - c));
}

void cpu_interp_rows_fwd(Stream *s, DType t, void *y_, const void *x_, const int32_t *idx, const float *w, int64_t n,
                         int64_t C) {
    (void)s;
    WIDE(t, cpu_interp_rows_fwd(s, F32, WRITE(t, y_, n * C), READ(t, x_, rows_named(idx, 4 * n) * C), idx, w,
                                n, C));
    PAR_FOR(4 * n * C)
    for (int64_t i = 0; i < n; i++) {
        float *y = (float *)y_ + i * C;
        const float *x = x_, *a = x + idx[4 * i] * C, *b = x + idx[4 * i + 1] * C, *c = x + idx[4 * i + 2] * C,
                    *d = x + idx[4 * i + 3] * C;
        const float wa = w[4 * i], wb = w[4 * i + 1], wc = w[4 * i + 2], wd = w[4 * i + 3];
        SIMD
        for (int64_t j = 0; j < C; j++) y[j] = fmaf(wd, d[j], fmaf(wc, c[j], fmaf(wb, b[j], wa * a[j])));
    }
}

void cpu_interp_rows_bwd(Stream *s, DType td, void *dx, DType t, const void *dy, const int32_t *idx,
                         const float *w, int64_t n, int64_t C) {
    (void)s;
    if (!dx) return;
    WIDE(t, cpu_interp_rows_bwd(s, F32, UPDATE(td, dx, rows_named(idx, 4 * n) * C), F32, READ(t, dy, n * C),
                                idx, w, n, C));
    PAR_FOR(4 * n * C)
    for (int64_t c = 0; c < C; c += COL_BLOCK)
        for (int64_t i = 0; i < 4 * n; i++)
            row_axpy((float *)dx + idx[i] * C + c, w[i], (const float *)dy + i / 4 * C + c, MIN(COL_BLOCK, C - c));
}

void cpu_copy_rows(Stream *s, DType t, void *dst, int64_t ldd, const void *src, int64_t lds, int64_t rows, int64_t n,
                   bool add) {
    (void)s;
    if (!n || !rows) return;
    if (add) /* a stride of 0 is one row for all */
        WIDE(t, cpu_copy_rows(s, F32, UPDATE_ROWS(t, dst, ldd ? rows : 1, ldd, n), ldd ? n : 0,
                              READ_ROWS(t, src, lds ? rows : 1, lds, n), lds ? n : 0, rows, n, true));
    if (add && ldd == 0) { /* every row into one: in order */
        for (int64_t i = 0; i < rows; i++) row_add(dst, (const float *)src + i * lds, n);
        return;
    }
    const int64_t size = (int64_t)dtype_size(t);
    PAR_FOR(rows * n)
    for (int64_t i = 0; i < rows; i++) {
        char *d = (char *)dst + i * ldd * size;
        const char *x = (const char *)src + i * lds * size;
        if (add) row_add((float *)d, (const float *)x, n);
        else memcpy(d, x, (size_t)(n * size));
    }
}

/* ---- pooling -------------------------------------------------------------------------------------- */

static int64_t tokens_in(const uint8_t *mask, int64_t T) {
    int64_t n = 0;
    for (int64_t k = 0; k < T; k++) n += mask[k] != 0;
    return n;
}

void cpu_mean_tokens_fwd(Stream *s, DType t, void *y_, const void *x_, const uint8_t *mask, int64_t B, int64_t T,
                         int64_t C) {
    (void)s;
    WIDE(t, cpu_mean_tokens_fwd(s, F32, WRITE(t, y_, B * C), READ(t, x_, B * T * C), mask, B, T, C));
    PAR_FOR(B * T * C)
    for (int64_t b = 0; b < B; b++) {
        const int64_t n = mask ? tokens_in(mask + b * T, T) : T;
        float *y = (float *)y_ + b * C;
        for (int64_t c = 0; c < C; c++) y[c] = 0;
        for (int64_t k = 0; k < T; k++)
            if (!mask || mask[b * T + k]) row_add(y, (const float *)x_ + (b * T + k) * C, C);
        for (int64_t c = 0; n && c < C; c++) y[c] /= (float)n;
    }
}

void cpu_mean_tokens_bwd(Stream *s, DType t, void *dx_, const void *dy_, const uint8_t *mask, int64_t B, int64_t T,
                         int64_t C) {
    (void)s;
    if (!dx_) return;
    WIDE(t, cpu_mean_tokens_bwd(s, F32, UPDATE(t, dx_, B * T * C), READ(t, dy_, B * C), mask, B, T, C));
    PAR_FOR(B * T * C)
    for (int64_t b = 0; b < B; b++) {
        const int64_t n = mask ? tokens_in(mask + b * T, T) : T;
        if (!n) continue;
        const float k1 = 1.0f / (float)n;
        for (int64_t k = 0; k < T; k++)
            if (!mask || mask[b * T + k])
                row_axpy((float *)dx_ + (b * T + k) * C, k1, (const float *)dy_ + b * C, C);
    }
}

/* ---- pair scores ---------------------------------------------------------------------------------- */

void cpu_pair_scores_fwd(Stream *s, DType t, void *y_, const void *f, const void *q, const int32_t *img,
                         const int32_t *txt, int64_t n, int64_t P, int64_t D) {
    (void)s;
    WIDE(t, cpu_pair_scores_fwd(s, F32, WRITE(t, y_, n * P), READ(t, f, rows_named(img, n) * P * D),
                                READ(t, q, rows_named(txt, n) * D), img, txt, n, P, D));
    PAR_FOR(n * P * D)
    for (int64_t i = 0; i < n * P; i++)
        ((float *)y_)[i] = row_dot((const float *)f + (img[i / P] * P + i % P) * D, (const float *)q + txt[i / P] * D, D);
}

void cpu_pair_scores_bwd(Stream *s, DType t, void *df, void *dq, const void *f, const void *q, const void *dy_,
                         const int32_t *img, const int32_t *txt, int64_t n, int64_t P, int64_t D) {
    (void)s;
    WIDE(t, {
        const int64_t nf = rows_named(img, n) * P * D, nq = rows_named(txt, n) * D;
        cpu_pair_scores_bwd(s, F32, UPDATE(t, df, nf), UPDATE(t, dq, nq), READ(t, f, nf), READ(t, q, nq),
                            READ(t, dy_, n * P), img, txt, n, P, D);
    });
    const float *dy = dy_;
    if (df) { /* by patches: each thread takes all pairs in order for its own */
        PAR_FOR(n * P * D)
        for (int64_t p = 0; p < P; p++)
            for (int64_t i = 0; i < n; i++)
                row_axpy((float *)df + (img[i] * P + p) * D, dy[i * P + p], (const float *)q + txt[i] * D, D);
    }
    if (!dq || !n || !D) return;
    float *part = cpu_scratch(SCRATCH_OP, (size_t)(n * D) * sizeof(float)); /* each pair's own, then in order of i */
    PAR_FOR(n * P * D)
    for (int64_t i = 0; i < n; i++) {
        memset(part + i * D, 0, (size_t)D * sizeof(float));
        for (int64_t p = 0; p < P; p++)
            row_axpy(part + i * D, dy[i * P + p], (const float *)f + (img[i] * P + p) * D, D);
    }
    for (int64_t i = 0; i < n; i++) row_add((float *)dq + txt[i] * D, part + i * D, D);
}
