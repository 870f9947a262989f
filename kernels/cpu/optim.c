/* optim.c -- AdamW and the sum of squares on the CPU. Contracts: ops.h. One pass each, bound by memory. */
#include "kernels/cpu/cpu.h"

typedef struct AdamRates {
    float b1, b2, eps, grad_scale, rc1, rc2; /* rc1 = 1 / c1, rc2 = 1 / sqrt(c2) */
} AdamRates;

static void adamw_range(float *restrict p, float *restrict m, float *restrict v, const float *restrict g, int64_t n,
                        float lr, float wd, const AdamRates *r) {
    const float b1 = r->b1, b2 = r->b2, eps = r->eps, scale = r->grad_scale, rc2 = r->rc2, step = lr * r->rc1;
    const float a1 = 1.0f - b1, a2 = 1.0f - b2, decay = lr * wd;
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const float gi = g[i] * scale;
        const float mi = fmaf(b1, m[i], a1 * gi), vi = fmaf(b2, v[i], a2 * (gi * gi));
        m[i] = mi;
        v[i] = vi;
        /* The two small terms first: p rounds once. */
        p[i] -= fmaf(decay, p[i], step * mi / fmaf(sqrtf(vi), rc2, eps));
    }
}

/* By pieces, so that p is still in the first cache when it is rounded. */
static void adamw_range_bf16(float *p, float *m, float *v, uint16_t *p16, const float *g, int64_t n, float lr,
                             float wd, const AdamRates *r) {
    for (int64_t i = 0; i < n; i += SUM_BLOCK) {
        const int64_t k = MIN(SUM_BLOCK, n - i);
        adamw_range(p + i, m + i, v + i, g + i, k, lr, wd, r);
        SIMD
        for (int64_t j = i; j < i + k; j++) p16[j] = bf16_round(p[j]);
    }
}

/* The segments end to end are one line of values; every thread takes an equal stretch of it. No value depends on
 * another, so the cuts show in nothing. */
void cpu_adamw(Stream *s, float *p, float *m, float *v, uint16_t *p16, const float *g,
               const AdamSegment *segments, int nsegments, float b1, float b2, float eps, float grad_scale,
               int64_t step) {
    (void)s;
    CHECK(step >= 1, "adamw: step %" PRId64 ", counts from 1", step);
    const AdamRates r = {b1, b2, eps, grad_scale, (float)(1 / (1 - pow(b1, (double)step))),
                         (float)(1 / sqrt(1 - pow(b2, (double)step)))};
    int64_t total = 0;
    for (int k = 0; k < nsegments; k++) {
        CHECK(segments[k].begin <= segments[k].end, "adamw: segment %d from %" PRId64 " to %" PRId64, k, segments[k].begin,
              segments[k].end);
        total += segments[k].end - segments[k].begin;
    }
    OMP_(omp parallel if (total >= PAR_MIN))
    {
        const int64_t nt = omp_get_num_threads(), id = omp_get_thread_num();
        const int64_t from = total / nt * id, to = id == nt - 1 ? total : total / nt * (id + 1);
        int64_t at = 0; /* where segment k starts on the line */
        for (int k = 0; k < nsegments && at < to; k++) {
            const AdamSegment *seg = &segments[k];
            const int64_t n = seg->end - seg->begin, lo = MAX(from - at, 0), hi = MIN(to - at, n);
            if (lo < hi) {
                const int64_t o = seg->begin + lo;
                if (p16)
                    adamw_range_bf16(p + o, m + o, v + o, p16 + o, g + o, hi - lo, seg->lr, seg->weight_decay, &r);
                else
                    adamw_range(p + o, m + o, v + o, g + o, hi - lo, seg->lr, seg->weight_decay, &r);
            }
            at += n;
        }
    }
}

void cpu_sum_squares(Stream *s, DType t, double *out, const void *x_, int64_t n) {
    (void)s;
    WIDE(t, cpu_sum_squares(s, F32, out, READ(t, x_, n), n));
    const float *x = x_;
    const int64_t nb = ceil_div(n, SUM_BLOCK);
    double *part = cpu_scratch(SCRATCH_OP, (size_t)nb * sizeof(double)), total = 0;
    PAR_FOR(n)
    for (int64_t b = 0; b < nb; b++) {
        double sum = 0;
        const int64_t end = MIN((b + 1) * SUM_BLOCK, n);
        SIMD_SUM(sum)
        for (int64_t i = b * SUM_BLOCK; i < end; i++) sum += (double)x[i] * (double)x[i];
        part[b] = sum;
    }
    for (int64_t b = 0; b < nb; b++) total += part[b];
    *out = total;
}
