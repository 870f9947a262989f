/* main.c -- the benchmarks: `vpbench VERB ...`. */
#include "bench/bench.h"
#include "bench/waves.h"

static const struct { const char *name; int (*run)(int argc, char **argv); const char *help; } verbs[] = {
    {"peak", bench_peaks, "what this machine reaches: multiply-adds, memory      [--threads N] [--ms 200]"},
    {"kernels", bench_kernels, "every operation at the sizes of our networks          [--device cpu|cuda] [--threads N] [--ms 200] [--mb N] [NAME]"},
    {"loader", bench_loader, "JPEG files to normalised patches, images per second   [--threads N] [--size 384] [--passes 5]"},
    {"step", bench_step, "training steps on request, see bench/step.py          --folder DIR [--batch N] [--text N] ..."},
    {"waves", bench_waves, "programs per second, in waves and one at a time       data.dir=DIR model.vqa=DIR model.loc=DIR ..."},
};

int main(int argc, char **argv) {
    for (int i = 0; argc > 1 && i < COUNT_OF(verbs); i++)
        if (!strcmp(argv[1], verbs[i].name)) return verbs[i].run(argc - 2, argv + 2);
    bool help = argc > 1 && !strcmp(argv[1], "--help");
    FILE *f = help ? stdout : stderr;
    if (argc > 1 && !help) {
        const char *names[COUNT_OF(verbs)];
        for (int i = 0; i < COUNT_OF(verbs); i++) names[i] = verbs[i].name;
        const char *near = nearest(argv[1], names, COUNT_OF(verbs));
        fprintf(f, "vpbench: unknown verb \"%s\"%s%s%s\n", argv[1], near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
    }
    fprintf(f, "vpbench VERB ...\n");
    for (int i = 0; i < COUNT_OF(verbs); i++) fprintf(f, "  %-8s %s\n", verbs[i].name, verbs[i].help);
    return help ? OK_STATUS : FAIL_USAGE;
}
