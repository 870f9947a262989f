/* report.c -- the two lines at the top, and the document that bench.json asks for. See bench.h. */
#include "bench/bench.h"

#include <ctype.h>
#include <omp.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/cpu.h"

#ifndef COMMIT
#define COMMIT "" /* bench.mk finds it */
#endif

static json_t *text_or_null(const char *s) { return s && *s ? json_string(s) : json_null(); }

/* The first line of a file that begins with `key`, from behind its colon. */
static const char *line_of(const char *path, const char *key, char *out, size_t size) {
    char line[512];
    FILE *f = fopen(path, "r");
    *out = 0;
    while (f && !*out && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) || !colon) continue;
        snprintf(out, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
        out[strcspn(out, "\n")] = 0;
    }
    if (f) fclose(f);
    return out;
}

int64_t bench_peak_rss(void) {
    char kb[64];
    return *line_of("/proc/self/status", "VmHWM", kb, sizeof kb) ? strtoll(kb, NULL, 10) * 1024 : -1;
}

/* This process's command line. */
static json_t *command_line(void) {
    char text[4096];
    FILE *f = fopen("/proc/self/cmdline", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    for (size_t i = 0; i < n; i++) /* arguments end with a zero byte; JSON is UTF-8 */
        if (!text[i] || (unsigned char)text[i] >= 127) text[i] = i + 1 == n ? 0 : text[i] ? '?' : ' ';
    text[n] = 0;
    return text_or_null(text);
}

static json_t *load_average(void) {
    double load;
    return getloadavg(&load, 1) == 1 ? json_real(load) : json_null();
}

static json_t *machine(int threads) {
    char cpu[256], host[256] = "", when[64];
    const time_t now = time(NULL);
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    line_of("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    return json_pack("{s:o, s:o, s:i, s:I, s:i, s:s, s:o, s:s, s:o}", "host", text_or_null(host), "cpu",
                     text_or_null(cpu), "threads", threads, "cores",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "vector_f32", (int)VL, "compiler",
                     "gcc " __VERSION__, "omp_wait_policy", text_or_null(getenv("OMP_WAIT_POLICY")), "began",
                     when, "load_average", load_average());
}

void report_begin(Report *r, const char *benchmark, const Config *cfg, Device *dev) {
    const Comm *comm = comm_world();
    json_t *m = machine(dev ? dev->nthreads : omp_get_max_threads());
    json_t *d =
        dev ? json_pack("{s:s, s:s}", "name", dev->name, "description", dev->description) : json_null();
    if (dev && strcmp(dev->name, "cpu")) json_object_update_missing_new(d, bench_cuda_card(dev));
    *r = (Report){.path = cfg->bench.json, .quiet = comm->rank != 0, .rows = json_array()};
    r->json = json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:i}", "schema", BENCH_SCHEMA, "benchmark", benchmark,
                        "command", command_line(), "commit", text_or_null(COMMIT), "machine", m, "device", d,
                        "ranks", comm->size);
    CHECK(r->json, "the report's head is no JSON");
    if (r->quiet) return;
    printf("%s, %d threads, vectors of %d values, gcc %s, load %.1f\n",
           json_string_value(json_object_get(m, "cpu")) ? json_string_value(json_object_get(m, "cpu"))
                                                        : "unknown processor",
           (int)json_integer_value(json_object_get(m, "threads")), (int)VL, __VERSION__,
           json_real_value(json_object_get(m, "load_average")));
    if (dev && strcmp(dev->name, "cpu"))
        printf("%s, driver for CUDA %s\n", dev->description,
               json_string_value(json_object_get(d, "driver_cuda")));
    printf("commit %s\n", *COMMIT ? COMMIT : "unknown");
}

void report_set(Report *r, const char *name, json_t *value) { json_object_set_new(r->json, name, value); }
void report_row(Report *r, json_t *row) {
    CHECK(row, "a row is no JSON");
    json_array_append_new(r->rows, row);
}

bool report_end(Report *r, bool ok, Error *e) {
    json_object_set_new(r->json, "rows", r->rows);
    if (ok && *r->path && !r->quiet) {
        char *text = json_dumps(r->json, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        ok = text ? file_write_atomic(r->path, text, strlen(text), e)
                  : fail(e, "the results cannot be written as JSON");
        free(text);
    }
    json_decref(r->json);
    *r = (Report){0};
    return ok;
}

bool bench_folder(char *dir, size_t size, Error *e) {
    snprintf(dir, size, "%s/vpdistill-bench-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(dir) || fail_as(e, FAIL_DISK, "bench cannot make the folder %s", dir);
}

void report_spread(json_t *row, Spread s) {
    json_object_set_new(row, "median_us", json_real(s.median * 1e6));
    json_object_set_new(row, "p99_us", json_real(s.p99 * 1e6));
    json_object_set_new(row, "runs", json_integer(s.n));
}

bool bench_chosen(char *const *word, int nwords, const char *text) {
    for (int i = 0; i < nwords; i++)
        if (!strcasestr(text, word[i])) return false;
    return true;
}
