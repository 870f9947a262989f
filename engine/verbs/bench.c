/* bench.c -- the verb `bench`: finds the benchmark. They are in bench/, which nothing else of the command
 * knows. */
#include "bench/bench.h"

#include "engine/verbs/verbs.h"

static const Benchmark *const benchmarks[] = {&bench_kernels, &bench_step,  &bench_loader,
                                              &bench_comm,    &bench_waves, &bench_peak_alone};

static Status run(Args *a, Error *e) {
    const char *names[COUNT_OF(benchmarks)], *name = a->nwords ? a->word[0] : NULL;
    const Benchmark *b = NULL;
    char all[200] = "";
    for (int i = 0; i < COUNT_OF(benchmarks); i++) {
        names[i] = benchmarks[i]->name;
        if (name && !strcmp(names[i], name)) b = benchmarks[i];
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", names[i]);
    }
    if (!b) {
        const char *near = name ? nearest(name, names, COUNT_OF(names)) : NULL;
        if (!name)
            fail_as(e, FAIL_USAGE, "which? There are %s", all);
        else if (near)
            fail_as(e, FAIL_USAGE, "there is no benchmark \"%s\" (did you mean %s?)", name, near);
        else
            fail_as(e, FAIL_USAGE, "there is no benchmark \"%s\"; there are %s", name, all);
        return e->status;
    }
    for (int i = 1; i < a->nwords; i++)
        if (*a->word[i] == '-')
            return fail_as(e, FAIL_USAGE, "there is no option \"%s\"; options are section.key=value",
                           a->word[i]),
                   e->status;
    if (comm_world()->size > 1 && !b->ranks)
        return fail_as(e, FAIL_USAGE, "bench %s is of one rank, %d were started; bench comm is of several",
                       b->name, comm_world()->size),
               e->status;
    return verb_status(b->run(&a->cfg, a->word + 1, a->nwords - 1, e), e);
}

const Verb verb_bench = {
    .name = "bench",
    .usage = "kernels|step|loader|comm|waves|peak [filter ...] [config.yaml] [section.key=value ...]",
    .summary = "measures this machine: operations, training steps, images, collectives",
    .help = "kernels  every operation at the shapes of the demo and of ViLT-B/32, OWL-ViT-B/32 and L/14: "
            "median and p99 time, GB/s,\n"
            "         GFLOP/s, share of the peak measured in the same run, ratio to a plain copy and to a "
            "library (oneDNN, cuBLASLt),\n"
            "         wrong values. A filter is words that the row must contain: gelu, \"attention ViLT "
            "f32\", \"OWL-ViT-L\"\n"
            "step     training steps of the demo's ViLT and of ViLT-B/32, and the demo's distillation step "
            "with its parts; filters:\n"
            "         demo, b32, distill. With model.vqa=FOLDER or model.loc=FOLDER steps of that model\n"
            "loader   JPEG files to patches, 1 .. run.threads threads; the training's own loader, and how "
            "long it lets one wait\n"
            "comm     all-reduce, all-gather and broadcast over the ranks of mpirun, srun or torchrun, 1 KB "
            ".. bench.mb\n"
            "waves    programs per second in waves and one at a time: data.dir, model.vqa, model.loc\n"
            "peak     multiply-adds and memory of the processor\n"
            "Times are medians of at least 20 runs where no other number is told; bench.json=FILE writes "
            "what is printed, and more,\n"
            "as one JSON document. run.device=cuda: on a graphics card.\n",
    .sections = {"bench", "run", "model", "data", "eval"},
    .ranks = true,
    .run = run,
};
