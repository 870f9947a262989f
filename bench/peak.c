/* peak.c -- what the machine reaches: multiply-adds from registers, streaming memory.
 *
 * The peaks are measured, not looked up: clocks move, virtual machines share memory controllers. A sum of 12
 * independent chains keeps two multiply-add pipes of latency 4 to 5 busy in any current core, and fits 16
 * registers.
 */
#include "bench/bench.h"

#include <omp.h>

#include "kernels/cpu/cpu.h"

/* ---- times ---------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

Spread bench_spread(double *seconds, int n) {
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    if (!n) return (Spread){0};
    double median = n % 2 ? seconds[n / 2] : (seconds[n / 2 - 1] + seconds[n / 2]) / 2;
    return (Spread){n, median, seconds[n - 1 - n / 100]};
}

/* ---- peaks ---------------------------------------------------------------------------------------- */

enum { CHAINS = 12, BURST = 1 << 14, TRIAD = 1 << 24 /* values: 64 MB an array, three arrays */ };

/* `bursts` times BURST rounds of CHAINS vector multiply-adds; the result keeps the compiler honest. */
__attribute__((noinline)) static float fma_bursts(int64_t bursts, float seed) {
    VF x[CHAINS];
    const VF a = (VF){0} + 0.999f, b = (VF){0} + seed;
#pragma GCC unroll 12 /* all of them: an index that is no constant would keep x in memory */
    for (int k = 0; k < CHAINS; k++) x[k] = (VF){0} + (seed + (float)k);
    for (int64_t i = 0; i < bursts * BURST; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) x[k] = v_fma(x[k], a, b);
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) __asm__("" : "+x"(x[k])); /* or gcc would fold the constant steps */
    }
    VF sum = x[0];
#pragma GCC unroll 12
    for (int k = 1; k < CHAINS; k++) sum += x[k];
    return sum[0];
}

static double fma_rate(int threads, int64_t bursts) {
    static volatile float sink;
    float total = 0;
    const double from = now_s();
    OMP_(omp parallel num_threads(threads) reduction(+ : total))
    total += fma_bursts(bursts, 0.5f + (float)omp_get_thread_num());
    const double s = now_s() - from;
    sink = total;
    (void)sink;
    return 2.0 * VL * CHAINS * BURST * (double)bursts * threads / s;
}

static double triad_rate(int threads, float *a, const float *b, const float *c) {
    const double from = now_s();
    OMP_(omp parallel for simd schedule(static) num_threads(threads))
    for (int64_t i = 0; i < TRIAD; i++) a[i] = b[i] + 3.0f * c[i];
    return 3.0 * TRIAD * sizeof(float) / (now_s() - from);
}

Peak bench_peak(int threads, double seconds) {
    Peak p = {0};
    fma_rate(threads, 64); /* warm: threads, clocks */
    double rate = fma_rate(threads, 8);
    /* Tries of 3 ms: on a machine with neighbours some of them are left alone. */
    const int64_t bursts = MAX(1, (int64_t)(0.003 * rate / (2.0 * VL * CHAINS * BURST * threads)));
    for (double from = now_s(); now_s() - from < seconds;)
        p.gflops = MAX(p.gflops, fma_rate(threads, bursts) * 1e-9);
    float *a = xcalloc(TRIAD, sizeof *a), *b = xcalloc(TRIAD, sizeof *b), *c = xcalloc(TRIAD, sizeof *c);
    OMP_(omp parallel for schedule(static) num_threads(threads))
    for (int64_t i = 0; i < TRIAD; i++) a[i] = b[i] = c[i] = 1; /* or all pages were one page of zeros */
    for (double from = now_s(); now_s() - from < seconds;)
        p.gbs = MAX(p.gbs, triad_rate(threads, a, b, c) * 1e-9);
    free(a);
    free(b);
    free(c);
    return p;
}

/* ---- `bench peak` --------------------------------------------------------------------------------- */

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    if (nwords) return fail_as(e, FAIL_USAGE, "bench peak takes no filter, \"%s\" was given", word[0]);
    Device *cpu = device_cpu(cfg->run.threads);
    Report r;
    report_begin(&r, "peak", cfg, cpu);
    const Peak p = bench_peak(cpu->nthreads, (cfg->bench.ms > 0 ? cfg->bench.ms : 400) * 0.5e-3);
    printf("multiply-adds %.1f GFLOP/s (f32), triad %.1f GB/s\n", p.gflops, p.gbs);
    report_row(&r, json_pack("{s:f, s:f}", "gflop_per_s", p.gflops, "gb_per_s", p.gbs));
    return report_end(&r, true, e);
}

const Benchmark bench_peak_alone = {
    "peak", "what the processor reaches: multiply-adds from registers, memory as STREAM's triad", false, run};
