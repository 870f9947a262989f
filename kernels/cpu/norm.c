/* norm.c -- layer normalisation and unit vectors on the CPU. Contracts: ops.h.
 *
 * A row (C = 128..1024 values) stays in the first cache over its passes. Parameter gradients are summed over
 * blocks of rows, then over the blocks in order (cpu.h, sum_rows).
 */
#include "kernels/cpu/cpu.h"

static void layernorm_row(float *y, float *mean, float *rstd, const float *x, const float *gamma, const float *beta, float eps,
                          int64_t C) {
    float m = C ? row_sum(x, C) / (float)C : 0.0f, sq;
    /* Second pass: E[x^2] - E[x]^2 loses every digit when |mean| >> std. */
    SUM_LANES(sq, c, C, { term = (x[c] - m) * (x[c] - m); });
    float r = 1.0f / sqrtf((C ? sq / (float)C : 0.0f) + eps);
    *mean = m;
    *rstd = r;
    SIMD
    for (int64_t c = 0; c < C; c++) y[c] = fmaf((x[c] - m) * r, gamma[c], beta[c]);
}

/* The thread's room for `rows` rows of C values, in which bf16 is widened. */
static float *room_of(int rows, int64_t C) {
    return cpu_scratch(SCRATCH_THREAD, (size_t)(rows * C) * sizeof(float));
}

void cpu_layernorm_fwd(Stream *s, DType t, void *y_, float *mean, float *rstd, const void *x_,
                       const float *gamma, const float *beta, float eps, int64_t rows, int64_t C) {
    (void)s;
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        float *room = room_of(1, C), *y = row_room(t, y_, i * C, room);
        layernorm_row(y, &mean[i], &rstd[i], wide_row(t, x_, i * C, C, room), gamma, beta, eps, C);
        round_row(t, y_, i * C, C, y);
    }
}

void cpu_add_layernorm_fwd(Stream *s, DType t, void *sum_, void *y_, float *mean, float *rstd, const void *a_,
                           const void *b_, const float *gamma, const float *beta, float eps, int64_t rows,
                           int64_t C) {
    (void)s;
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        float *room = room_of(2, C), *sum = row_room(t, sum_, i * C, room), *y = row_room(t, y_, i * C, room);
        const float *a = wide_row(t, a_, i * C, C, room), *b = wide_row(t, b_, i * C, C, room + C);
        SIMD
        for (int64_t c = 0; c < C; c++) sum[c] = a[c] + b[c];
        round_row(t, sum_, i * C, C, sum);
        const float *x = wide_row(t, sum_, i * C, C, room); /* the norm is of the sum as it is stored */
        layernorm_row(y, &mean[i], &rstd[i], x, gamma, beta, eps, C);
        round_row(t, y_, i * C, C, y);
    }
}

/* With xhat = (x - mean) rstd and g = dy gamma: dx = rstd (g - mean(g) - xhat mean(g xhat)). */
static void layernorm_bwd_row(float *dx, float *dgamma, float *dbeta, const float *x, const float *dy, float m, float r,
                              const float *gamma, int64_t C) {
    float sum_g, sum_gx;
    if (dx) {
        SUM_LANES(sum_g, c, C, { term = dy[c] * gamma[c]; });
        SUM_LANES(sum_gx, c, C, { term = dy[c] * gamma[c] * ((x[c] - m) * r); });
        sum_g /= (float)C;
        sum_gx /= (float)C;
        SIMD
        for (int64_t c = 0; c < C; c++) {
            float g = dy[c] * gamma[c];
            dx[c] = fmaf(r, g - fmaf((x[c] - m) * r, sum_gx, sum_g), dx[c]);
        }
    }
    SIMD
    for (int64_t c = 0; c < C; c++) {
        dgamma[c] = fmaf(dy[c], (x[c] - m) * r, dgamma[c]);
        dbeta[c] += dy[c];
    }
}

void cpu_layernorm_bwd(Stream *s, DType t, void *dx_, float *dgamma, float *dbeta, const void *x_,
                       const void *dy_, const float *mean, const float *rstd, const float *gamma,
                       int64_t rows, int64_t C) {
    (void)s;
    if (!rows || !C) return;
    /* dgamma and dbeta side by side: one pass over x and dy makes all three gradients. */
    const int64_t nb = ceil_div(rows, ROW_BLOCK);
    float *part = cpu_scratch(SCRATCH_OP, (size_t)(nb * 2 * C) * sizeof(float));
    PAR_FOR(rows * C)
    for (int64_t b = 0; b < nb; b++) {
        float *dg = part + b * 2 * C, *room = room_of(3, C);
        memset(dg, 0, (size_t)(2 * C) * sizeof(float));
        for (int64_t i = b * ROW_BLOCK; i < MIN((b + 1) * ROW_BLOCK, rows); i++) {
            const float *x = wide_row(t, x_, i * C, C, room), *dy = wide_row(t, dy_, i * C, C, room + C);
            float *dx = dx_ ? row_to_add(t, dx_, i * C, C, room + 2 * C) : NULL;
            layernorm_bwd_row(dx, dg, dg + C, x, dy, mean[i], rstd[i], gamma, C);
            if (dx) round_row(t, dx_, i * C, C, dx);
        }
    }
    for (int64_t b = 0; b < nb; b++) {
        if (dgamma) row_add(dgamma, part + b * 2 * C, C);
        if (dbeta) row_add(dbeta, part + b * 2 * C + C, C);
    }
}

void cpu_l2norm_fwd(Stream *s, DType t, void *y_, float *inv, const void *x_, float eps, int64_t rows, int64_t C) {
    (void)s;
    WIDE(t, cpu_l2norm_fwd(s, F32, WRITE(t, y_, rows * C), inv, READ(t, x_, rows * C), eps, rows, C));
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        const float *x = (const float *)x_ + i * C;
        float *y = (float *)y_ + i * C;
        float k = 1.0f / (sqrtf(row_dot(x, x, C)) + eps);
        inv[i] = k;
        SIMD
        for (int64_t c = 0; c < C; c++) y[c] = x[c] * k;
    }
}

/* y = x k, k = 1 / (|x| + eps), dk/dx = -k^2 x / |x|: dx = k (dy - x k (x . dy) / |x|). */
void cpu_l2norm_bwd(Stream *s, DType t, void *dx_, const void *x_, const void *dy_, const float *inv, float eps,
                    int64_t rows, int64_t C) {
    (void)s;
    WIDE(t, cpu_l2norm_bwd(s, F32, UPDATE(t, dx_, rows * C), READ(t, x_, rows * C), READ(t, dy_, rows * C),
                           inv, eps, rows, C));
    if (!dx_) return;
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        const float *x = (const float *)x_ + i * C, *dy = (const float *)dy_ + i * C;
        float *dx = (float *)dx_ + i * C;
        float k = inv[i], norm = 1.0f / k - eps;
        /* A zero row: the norm has no slope there; PyTorch takes 0, and so do we. */
        float a = norm > 0 ? k * row_dot(x, dy, C) / norm : 0.0f;
        SIMD
        for (int64_t c = 0; c < C; c++) dx[c] = fmaf(k, fmaf(-a, x[c], dy[c]), dx[c]);
    }
}
