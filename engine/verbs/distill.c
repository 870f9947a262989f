/* distill.c -- the verb `distill`: the main job. The step itself is engine/step.c.
 *
 * Evaluates the students as they come, trains them, evaluates again beside the teacher, prints one table and
 * writes OUT/report.json. The students end up in OUT/vqa and OUT/loc as model folders.
 */
#include "data/scenes.h"
#include "engine/ckpt.h"
#include "engine/eval.h"
#include "engine/metrics.h"
#include "engine/step.h"
#include "engine/verbs/verbs.h"

/* Accuracy of the students on a dataset; the tape is off, the modules are asked as they are. */
static bool evaluate(Distiller *d, const Dataset *data, EvalResult *out, Error *e) {
    if (d->run.comm->rank) return true; /* rank 0 tells; the others wait in the next collective */
    Answerer *const answerer[] = {&d->vqa.answerer.base, &d->loc.answerer.base};
    Module *const module[] = {d->vqa.module, d->loc.module};
    EvalConfig ec = eval_config(data, d->cfg);
    ec.module = module;
    ec.nmodules = 2;
    return eval_programs(&d->run, answerer, 2, data, &ec, out, e);
}

/* Sums over the updates since the last line. */
typedef struct Sums {
    StepStats s;
    int64_t updates;
    double since;
} Sums;

static void add(Sums *a, const StepStats *s) {
    a->updates++;
    a->s.loss_vqa += s->loss_vqa;
    a->s.loss_loc += s->loss_loc;
    a->s.loss_retain += s->loss_retain;
    a->s.programs += s->programs;
    a->s.failed += s->failed;
    a->s.right += s->right;
    a->s.label_right += s->label_right;
    for (int i = 0; i < 2; i++) {
        a->s.steps[i] += s->steps[i];
        a->s.kept[i] += s->kept[i];
        a->s.fixed[i] += s->fixed[i];
    }
    for (int i = 0; i < VERDICTS; i++) a->s.dropped[i] += s->dropped[i];
}

static bool log_sums(Sums *a, Metrics *m, int64_t done, int64_t total, Error *e) {
    step_stats_sum(comm_world(), &a->s);
    const StepStats *s = &a->s;
    double n = (double)a->updates, seconds = now_s() - a->since, rate = (double)s->programs / seconds;
    info("step %" PRId64 "/%" PRId64
         "  loss vqa %.3f loc %.3f retain %.3f  programs right %.1f%%  labels right %.1f%%  kept vqa %" PRId64
         " (answer %" PRId64 ") loc %" PRId64 " (answer %" PRId64 ")  %.0f programs/s",
         done, total, s->loss_vqa / n, s->loss_loc / n, s->loss_retain / n,
         percent(s->right, s->programs), percent(s->label_right, s->programs), s->kept[0],
         s->fixed[0], s->kept[1], s->fixed[1], rate);
    bool ok = !m || METRICS_ROW(
        m, done, e, {"loss_vqa", s->loss_vqa / n}, {"loss_loc", s->loss_loc / n},
        {"loss_retain", s->loss_retain / n}, {"programs_right", percent(s->right, s->programs)},
        {"labels_right", percent(s->label_right, s->programs)}, {"failed", (double)s->failed},
        {"kept_vqa", (double)s->kept[0]}, {"kept_loc", (double)s->kept[1]},
        {"fixed_vqa", (double)s->fixed[0]}, {"fixed_loc", (double)s->fixed[1]},
        {"dropped_executes", (double)s->dropped[DROPPED_EXECUTES]},
        {"dropped_confident", (double)s->dropped[DROPPED_CONFIDENT]},
        {"dropped_replay", (double)s->dropped[DROPPED_REPLAY]});
    *a = (Sums){.since = now_s()};
    return ok;
}

#define REPLAY_FILE "lessons.safetensors"

static bool save_lessons(const void *replay, const char *path, Error *e) { return replay_save(replay, path, e); }
static void send_lessons(const void *replay) { replay_send(replay); }

/* One loader per turn, which brings the images of the batch `lag` steps further back. */
static bool open_again(const Distiller *d, LoaderConfig lc, int64_t start, Loader **again, Error *e) {
    const Config *cfg = d->cfg;
    lc.cache_bytes = 0;
    for (int k = 0; k < cfg->distill.reuse; k++) {
        lc.first_batch = MAX(start - (int64_t)(k + 1) * cfg->distill.lag, 0);
        if (!(again[k] = loader_open(&d->by_image.group, &lc, e))) return false;
    }
    return true;
}

static bool learn_again(Distiller *d, int64_t step, Loader **again, Error *e) {
    for (int k = 0; k < d->cfg->distill.reuse && step >= (int64_t)(k + 1) * d->cfg->distill.lag; k++) {
        StepStats s;
        const Batch *b = loader_next(again[k], e);
        if (!b || !step_again(d, step, k, b, &s, e)) return false;
    }
    return true;
}

static bool train(Distiller *d, const Config *cfg, const CkptPart part[2], int64_t start,
                  const char *config_text, const Dataset *val, Error *e) {
    LoaderConfig lc = {.seed = (uint64_t)cfg->run.seed,
                       .batch = distiller_images(cfg),
                       .workers = cfg->data.workers,
                       .shuffle = true,
                       .rank = comm_world()->rank,
                       .ranks = comm_world()->size,
                       .first_batch = start,
                       .max_bad_percent = (float)cfg->data.max_bad_percent,
                       .cache_bytes = (size_t)cfg->data.cache_mb << 20,
                       .batch_bytes = (size_t)256 << 20};
    char path[600];
    if (!path_join(path, sizeof path, cfg->run.out, "metrics.jsonl", e)) return false;
    const CkptFile lessons = {REPLAY_FILE, &d->replay, save_lessons, send_lessons};
    Loader *l = loader_open(&d->by_image.group, &lc, e), **again = xcalloc((size_t)cfg->distill.reuse + 1, sizeof *again);
    bool opened = l && open_again(d, lc, start, again, e);
    const bool writes = !comm_world()->rank;
    Metrics *m = opened && writes ? metrics_open(path, start ? start + 1 : -1, e) : NULL;
    bool ok = opened && (m || !writes);
    Sums sums = {.since = now_s()};
    for (int64_t step = start; ok && step < cfg->distill.steps; step++) {
        const Batch *b = loader_next(l, e);
        StepStats s;
        int64_t done = step + 1;
        bool last = done == cfg->distill.steps;
        ok = b && step_run(d, step, b, &s, e);
        if (!ok) break;
        add(&sums, &s);
        if (!(ok = learn_again(d, step, again, e))) break;
        if (done % cfg->run.log_every == 0 || last) ok = log_sums(&sums, m, done, cfg->distill.steps, e);
        if (ok && val && writes && cfg->train.eval_every && (done % cfg->train.eval_every == 0 || last)) {
            EvalResult r;
            double since = now_s();
            if ((ok = evaluate(d, val, &r, e))) {
                info("step %" PRId64 "  %s accuracy %.2f", done, cfg->data.val_split, eval_accuracy(&r));
                ok = METRICS_ROW(m, done, e, {"val_accuracy", eval_accuracy(&r)});
            }
            sums.since += now_s() - since;
        }
        bool save = (cfg->train.save_every && done % cfg->train.save_every == 0) || last;
        if (ok && save && d->trace) ok = trace_flush(d->trace, e); /* never behind a checkpoint */
        if (ok && save) ok = ckpt_save(cfg->run.out, done, part, 2, cfg->distill.reuse ? &lessons : NULL, config_text, 2, e);
    }
    metrics_close(m);
    loader_close(l);
    for (int k = 0; k < cfg->distill.reuse; k++) loader_close(again[k]);
    free(again);
    return ok;
}

static bool write_report(const Config *cfg, const EvalResult *before, const EvalResult *after,
                         const EvalResult *teacher, int64_t asked, Error *e) {
    char path[600];
    json_t *j = json_pack("{s:f, s:f, s:s, s:s, s:i, s:i, s:I, s:o, s:o}", "zero_shot", eval_accuracy(before),
                          "distilled", eval_accuracy(after), "split", cfg->eval.split, "dataset_version",
                          SCENES_VERSION, "seed", cfg->run.seed, "steps", cfg->distill.steps,
                          "teacher_questions", (json_int_t)asked, "zero_shot_detail", eval_json(before),
                          "distilled_detail", eval_json(after));
    if (j && teacher) {
        json_object_set_new(j, "teacher", json_real(eval_accuracy(teacher)));
        json_object_set_new(j, "teacher_detail", eval_json(teacher));
    }
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    bool ok = text ? path_join(path, sizeof path, cfg->run.out, "report.json", e) &&
                         file_write_atomic(path, text, strlen(text), e)
                   : fail(e, "the report cannot be written as JSON");
    free(text);
    json_decref(j);
    return ok;
}

static bool open_split(Dataset *d, const Config *cfg, const char *split, Error *e) {
    DatasetConfig dc = {.type = cfg->data.kind,
                        .dir = cfg->data.dir,
                        .split = split,
                        .limit = cfg->eval.limit,
                        .max_bad = 100};
    return dataset_open(d, &dc, e);
}

static Status run(Args *a, Error *e) {
    const Config *cfg = &a->cfg;
    if (a->nwords) {
        fail(e, "\"%s\" is neither a .yaml file nor section.key=value", a->word[0]);
        return FAIL_USAGE;
    }
    Distiller d = {0};
    Dataset test = {0}, val = {0};
    Trace trace = {0};
    EvalResult before = {0}, after = {0}, teacher = {0};
    char path[600], config_text[65536];
    bool two = !strcmp(cfg->data.kind, "nlvr2"), ok = false;
    FILE *f = fmemopen(config_text, sizeof config_text, "w");
    config_print(f, cfg);
    fclose(f);
    const bool writes = !comm_world()->rank;
    if ((writes && !make_dirs(cfg->run.out, e)) || !distiller_open(&d, cfg, e) ||
        !open_split(&test, cfg, cfg->eval.split, e))
        goto done;
    if (cfg->train.eval_every && !open_split(&val, cfg, cfg->data.val_split, e)) goto done;
    info("%" PRId64 " training programs, students of %" PRId64 " + %" PRId64
         " parameters, teacher of %" PRId64,
         d.data.nsamples, params_count(module_learns(d.vqa.module)), params_count(module_learns(d.loc.module)),
         params_count(&d.teacher.vqa->params));
    if (!evaluate(&d, &test, &before, e)) goto done;
    info("as pre-trained: %.2f%% of %" PRId64 " %s questions", eval_accuracy(&before), before.n,
         cfg->eval.split);
    const CkptPart part[2] = {{"vqa", d.vqa.module}, {"loc", d.loc.module}};
    int64_t start = 0;
    if (cfg->train.resume && ckpt_agree(d.run.comm, cfg->run.out, path, sizeof path, &start)) {
        char lessons[700];
        if (!ckpt_load(path, part, 2, e) || (cfg->distill.reuse && (!path_join(lessons, sizeof lessons, path, REPLAY_FILE, e) ||
                                                                    !replay_load(&d.replay, lessons, e))))
            goto done;
        info("resuming from %s", path);
    } else {
        start = 0;
    }
    if (!comm_same(d.run.comm, "weights", params_hash(module_learns(d.vqa.module)) ^ params_hash(module_learns(d.loc.module)), e))
        goto done;
    if (*cfg->trace.path) { /* each rank writes the steps of its own programs */
        d.trace = &trace;
        snprintf(path, sizeof path, writes ? "%s" : "%s.rank%d", cfg->trace.path, d.run.comm->rank);
        if (!(start ? trace_resume(&trace, path, start, e) : trace_open(&trace, path, e))) goto done;
    }
    if (!train(&d, cfg, part, start, config_text, val.sample ? &val : NULL, e) ||
        !evaluate(&d, &test, &after, e))
        goto done;
    double asked = (double)d.teacher.asked;
    comm_sum(d.run.comm, "questions to the teacher", &asked, 1);
    ok = !writes;
    if (!writes) goto done;
    if (!two) {
        EvalConfig ec = eval_config(&test, cfg);
        if (!eval_end_to_end(&d.run, d.teacher.vqa, &test, &ec, &teacher, e)) goto done;
    }
    for (int i = 0; i < 2; i++)
        if (!path_join(path, sizeof path, cfg->run.out, part[i].name, e) ||
            !module_save(part[i].module, path, e))
            goto done;
    printf("\naccuracy in percent on %" PRId64 " %s questions of %s\n\n", after.n, cfg->eval.split,
           cfg->data.dir);
    eval_print(stdout,
               (EvalColumn[]){{"students as pre-trained", &before},
                              {"students distilled", &after},
                              {"teacher", two ? NULL : &teacher}},
               3);
    ok = write_report(cfg, &before, &after, two ? NULL : &teacher, (int64_t)asked, e);
done:
    if (!trace_close(&trace, ok ? e : NULL)) ok = false;
    dataset_close(&test);
    dataset_close(&val);
    distiller_close(&d);
    return verb_status(ok, e);
}

const Verb verb_distill = {
    .name = "distill",
    .usage = "config.yaml [section.key=value ...]",
    .summary =
        "distils a teacher into the modules along the execution of programs, and reports what it gained",
    .help = "Runs the training questions' programs with the students (model.vqa, model.loc), puts every "
            "visual step to the\n"
            "frozen teacher (model.teacher), filters its labels by replaying them through the program, and "
            "trains. Uses\n"
            "of the dataset only image, question, program and answer. Checkpoints go to run.out; the "
            "distilled students\n"
            "are run.out/vqa and run.out/loc, the table is also run.out/report.json.\n",
    .sections = {"run", "data", "model", "train", "distill", "trace"},
    .ranks = true,
    .run = run,
};
