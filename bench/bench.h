/* bench.h -- what the benchmarks share: times, the machine's measured peaks, the verbs of `vpbench`.
 *
 * A number without a denominator says little: every benchmark measures the peaks in its own run, and tells its shares of
 * them. Verbs are one file each; main.c lists them.
 */
#pragma once
#include "engine/base.h"
#include "kernels/device.h"

/* Of n seconds, which are sorted: the median, and the time that 1 in 100 exceeds (the largest when n < 100). */
typedef struct Spread { double median, p99; } Spread;
Spread bench_spread(double *seconds, int n);

/* What this many threads reach now: fused multiply-adds from registers (2 operations each), and bytes moved by
 * a[i] = b[i] + s c[i] over arrays far larger than the caches (3 values each, as STREAM counts). The best of
 * many short tries during `seconds` each. */
typedef struct Peak { double gflops, gbs; } Peak;
Peak bench_peak(int threads, double seconds);

/* Bytes, or -1 where /proc is not there: the largest resident size so far, and what is resident now. */
int64_t bench_peak_rss(void);
int64_t bench_rss(void);

/* Two lines that say what was measured on: processor, threads, compiler. */
void bench_machine(FILE *f, int threads);

/* On a card: times of run(arg), a series of launches per sample (cuda.c), warmed up; at least `least` samples, then until
 * `budget` seconds are spent. Returns their number. A copy within the card, queued. A line on the card and its driver. */
int bench_cuda_times(Device *d, double *seconds, int least, int most, double budget, void (*run)(void *), void *arg);
void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes);
void bench_cuda_machine(FILE *f, Device *d);

/* The value of "--name value" in argv, or `fallback`; dies (FAIL_USAGE) when the value is missing or no number of lo..hi. */
const char *bench_option(int argc, char **argv, const char *name, const char *fallback);
int bench_int(int argc, char **argv, const char *name, int fallback, int lo, int hi);

/* The verbs. argv: what follows the verb. They return an exit status. */
int bench_peaks(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_loader(int argc, char **argv);
int bench_step(int argc, char **argv);
