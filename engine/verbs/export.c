/* export.c -- the verb `export`: the process-supervision dataset, without training anything. */
#include "engine/step.h"
#include "engine/verbs/verbs.h"

static Status run(Args *a, Error *e) {
    const Config *cfg = &a->cfg;
    if (a->nwords) {
        fail(e, "\"%s\" is neither a .yaml file nor section.key=value", a->word[0]);
        return FAIL_USAGE;
    }
    if (!*cfg->trace.path) {
        fail(e, "trace.path is empty; name the file to write, such as DIR/train_steps.jsonl");
        return FAIL_CONFIG;
    }
    Distiller d;
    Trace trace = {0};
    Loader *l = NULL;
    StepStats s;
    int64_t steps[2] = {0}, kept[2] = {0}, programs = 0, done = 0;
    bool ok = distiller_open(&d, cfg, e) && trace_open(&trace, cfg->trace.path, e);
    LoaderConfig lc = {.batch = distiller_images(cfg),
                       .workers = cfg->data.workers,
                       .passes = 1,
                       .max_bad_percent = (float)cfg->data.max_bad_percent,
                       .batch_bytes = (size_t)256 << 20};
    ok = ok && (l = loader_open(&d.by_image.group, &lc, e));
    d.learn = false;
    d.per_image = 0; /* every program once */
    d.trace = &trace;
    for (const Batch *b; ok && (b = loader_next(l, e)); done++) {
        ok = step_run(&d, done, b, &s, e);
        for (int i = 0; i < 2; i++) steps[i] += s.steps[i], kept[i] += s.kept[i];
        programs += s.programs;
    }
    ok = ok && !*e->text;
    loader_close(l);
    if (!trace_close(&trace, ok ? e : NULL)) ok = false;
    if (ok)
        info("%s: %" PRId64 " programs, %" PRId64 " VQA and %" PRId64 " LOC steps, kept labels of %" PRId64
             " and %" PRId64 " questions",
             cfg->trace.path, programs, steps[0], steps[1], kept[0], kept[1]);
    distiller_close(&d);
    return verb_status(ok, e);
}

const Verb verb_export = {
    .name = "export",
    .usage = "config.yaml trace.path=FILE.jsonl [section.key=value ...]",
    .summary = "writes the labelled steps of a dataset's programs, without training",
    .help = "Runs every program once, puts its visual steps to the teacher, filters, and writes one JSON "
            "line per step:\n"
            "image, rectangle, query, what student and teacher said, the label, kept or which filter dropped "
            "it. The file\n"
            "is a dataset of kind `steps`: `vpdistill train data.kind=steps` trains a module from it.\n",
    .sections = {"run", "data", "model", "distill", "trace"},
    .run = run,
};
