/* requests.c -- benchmarks that work when they are asked to. See bench.h.
 *
 * A driver (turns.py) holds this process and a peer's at once and lets them take turns, so that both meet the
 * same machine. Commands are lines of standard input, answers are JSON objects, one a line.
 */
#include <string.h>
#include <sys/resource.h>

#include "bench/bench.h"

enum { MOST = 10000 };

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static bool repeat(const Request *r, void *arg, int n, Error *e) {
    const double cpu = cpu_s();
    double value = 0;
    printf("{\"seconds\": [");
    for (int i = 0; i < n; i++) {
        const double from = now_s();
        if (!r->once(arg, &value, e)) return false;
        printf("%s%.6f", i ? ", " : "", now_s() - from);
    }
    printf("], \"cpu_seconds\": %.4f, \"value\": %.9g}\n", cpu_s() - cpu, value);
    return true;
}

static void tell_info(json_t *info) {
    json_object_set_new(info, "peak_rss", json_integer(bench_peak_rss()));
    char *text = json_dumps(info, 0);
    puts(text);
    free(text);
    json_decref(info);
}

bool bench_serve(const Request *request, int nrequests, void *arg, json_t *(*info)(void *arg), Error *e) {
    char line[256], name[32], known[200] = "";
    for (int k = 0; k < nrequests; k++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "\"%s 1\" .. \"%s %d\", ",
                 request[k].name, request[k].name, MOST);
    while (fgets(line, sizeof line, stdin)) {
        int n = 0, k = 0;
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "info")) {
            tell_info(info(arg));
        } else {
            if (sscanf(line, "%31s %d", name, &n) != 2 || n < 1 || n > MOST) k = nrequests;
            while (k < nrequests && strcmp(name, request[k].name)) k++;
            if (k == nrequests)
                return fail_as(e, FAIL_USAGE, "unknown command \"%s\"; known are %sand \"info\"", line,
                               known);
            if (!repeat(&request[k], arg, n, e)) return false;
        }
        fflush(stdout);
    }
    return true;
}
