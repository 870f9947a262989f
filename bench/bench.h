/* bench.h -- what the benchmarks share: times, the machine's measured peaks, the report as text and as JSON.
 *
 * `vpdistill bench NAME` runs one of the Benchmarks below. A number without a denominator says little: each
 * measures what it is a share of in its own run. This folder stands on everything but the verbs: kernels <-
 * engine, data <- modules <- bench <- verbs. Next: kernels.h.
 */
#pragma once
#include <jansson.h>

#include "engine/comm.h"
#include "kernels/device.h"

/* ---- what there is -------------------------------------------------------------------------------- */

typedef struct Benchmark {
    const char *name, *summary;
    bool ranks; /* several may run it together */
    /* word: what followed the name on the command line. */
    bool (*run)(const Config *cfg, char *const *word, int nwords, Error *e);
} Benchmark;
extern const Benchmark bench_kernels, bench_step, bench_loader, bench_comm, bench_waves, bench_peak_alone;

/* ---- times ---------------------------------------------------------------------------------------- */

/* Of n seconds (they are sorted): the median, and the time that 1 in 100 exceeds, the largest when n <
 * 100. */
typedef struct Spread {
    int n;
    double median, p99;
} Spread;
Spread bench_spread(double *seconds, int n);

/* What so many threads reach now: fused multiply-adds from registers (2 operations each), and bytes moved by
 * a[i] = b[i] + s c[i] over arrays far larger than the caches (3 values each, as STREAM counts). The best of
 * many short tries during `seconds` each. */
typedef struct Peak {
    double gflops, gbs;
} Peak;
Peak bench_peak(int threads, double seconds);

/* Bytes, or -1 where /proc is not there: the largest resident size so far. */
int64_t bench_peak_rss(void);

/* A card (cuda.c): seconds of one of `launches` calls of run(arg) queued back to back, by the card's own
 * clock; a copy within the card, queued; its driver, runtime and cache. Without CUDA nobody gets there. */
double bench_cuda_series(Device *d, int launches, void (*run)(void *), void *arg);
void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes);
json_t *bench_cuda_card(Device *d);
/* cuDNN's attention over one fused projection in bf16, ops.h's way, opened when first asked for; NULL: it is
 * not there, or has none of this shape. Whether it has the patch convolution of kernels/cuda/conv.c; that. */
const Ops *bench_cudnn_attention(Device *d, bool backward, bool masked, bool causal, int B, int H, int T,
                                 int D);
bool bench_cudnn_has_patches(Device *d, int type, int64_t B, int64_t side, int64_t patch, int64_t C);
void bench_cudnn_patches(Device *d, int type, void *y, const void *x, const void *w, int64_t B, int64_t side,
                         int64_t patch, int64_t C);

/* Whether every word is in `text`, in capital or small letters. */
bool bench_chosen(char *const *word, int nwords, const char *text);

/* ---- on request ----------------------------------------------------------------------------------- */

/* What a driver may ask for. The value tells it that the right thing was computed: a loss, a sum. */
typedef struct Request {
    const char *name;
    bool (*once)(void *arg, double *value, Error *e);
} Request;
/* Serves commands from standard input until it ends, answers on standard output (requests.c):
 *   NAME K   K times: {"seconds": [...], "cpu_seconds": of all K, "value": the last}
 *   info     what info(arg) gives, and "peak_rss" in bytes */
bool bench_serve(const Request *request, int nrequests, void *arg, json_t *(*info)(void *arg), Error *e);

/* ---- the report ----------------------------------------------------------------------------------- */

/* One document: {"schema": "vpdistill-bench/1", "benchmark", "command", "commit", "machine": {..}, ...,
 * "rows": [..]}. The unit of a number ends its name: median_us, gb_per_s (10^9 bytes), gflop_per_s, bytes.
 * What is not known is null. */
#define BENCH_SCHEMA "vpdistill-bench/1"
typedef struct Report {
    json_t *json, *rows;
    const char *path; /* bench.json; empty: no file */
    bool quiet;       /* neither prints nor writes: not rank 0 */
} Report;

/* Prints two lines on the machine and the command. dev NULL: nothing of the device. */
void report_begin(Report *r, const char *benchmark, const Config *cfg, Device *dev);
/* Adds a member beside "rows"; takes the value over. */
void report_set(Report *r, const char *name, json_t *value);
void report_row(Report *r, json_t *row);
/* Writes bench.json when it is asked for; frees all. Pass false when what was measured failed: then
 * nothing is written. */
bool report_end(Report *r, bool ok, Error *e);

/* Makes a folder for a benchmark's files, in TMPDIR or /tmp: its path into dir. remove_tree takes it away. */
bool bench_folder(char *dir, size_t size, Error *e);
/* median_us, p99_us, runs. */
void report_spread(json_t *row, Spread s);
