/* softmax.c -- softmax by row on the CPU. Contract: ops.h. Attention has its own inside attention.c. */
#include "kernels/cpu/cpu.h"

void cpu_softmax_fwd(Stream *s, DType t, void *y_, const void *x_, int64_t rows, int64_t C) {
    (void)s;
    WIDE(t, cpu_softmax_fwd(s, F32, WRITE(t, y_, rows * C), READ(t, x_, rows * C), rows, C));
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        const float *x = (const float *)x_ + i * C;
        float *y = (float *)y_ + i * C;
        const float m = row_max(x, C);
        float sum;
        SUM_LANES(sum, c, C, { y[c] = term = exp_neg_f(x[c] - m); });
        const float k = 1.0f / sum;
        SIMD
        for (int64_t c = 0; c < C; c++) y[c] *= k;
    }
}

void cpu_softmax_bwd(Stream *s, DType t, void *dx_, const void *y_, const void *dy_, int64_t rows, int64_t C) {
    (void)s;
    WIDE(t, cpu_softmax_bwd(s, F32, UPDATE(t, dx_, rows * C), READ(t, y_, rows * C), READ(t, dy_, rows * C),
                            rows, C));
    if (!dx_) return;
    PAR_FOR(rows * C)
    for (int64_t i = 0; i < rows; i++) {
        const float *y = (const float *)y_ + i * C, *dy = (const float *)dy_ + i * C;
        float *dx = (float *)dx_ + i * C;
        const float dot = row_dot(y, dy, C);
        SIMD
        for (int64_t c = 0; c < C; c++) dx[c] = fmaf(y[c], dy[c] - dot, dx[c]);
    }
}
