/* step.c -- one training step of distillation. See step.h.
 *
 * step_run is the whole method in one page. What it calls, in reading order: data/loader.c (the batch),
 * sched.c (waves of program steps), modules/ (the students), teacher.c (the labels), distill.c (filters,
 * the task's answer, losses), tape.c (backward), optim.c (AdamW).
 */
#include "engine/step.h"

#include <math.h>

#include "modules/steps.h"

/* ---- the step ------------------------------------------------------------------------------------- */

/* The jobs of a batch, one per program. */
typedef struct Jobs {
    int n;
    Job *job;
    const char **gold;     /* the task's answer */
    const Sample **sample; /* where they come from */
} Jobs;

/* Jobs of the batch's images whose program parsed. */
static Jobs make_jobs(Distiller *d, const Batch *b, int64_t step) {
    Arena *a = &d->run.host;
    int64_t most = 0;
    for (int i = 0; i < b->n; i++) most += d->by_image.first[b->item[i] + 1] - d->by_image.first[b->item[i]];
    Jobs j = {.job = arena_alloc(a, (size_t)most * sizeof *j.job),
              .gold = arena_alloc(a, (size_t)most * sizeof *j.gold),
              .sample = arena_alloc(a, (size_t)most * sizeof *j.sample)};
    int64_t *chosen = arena_alloc(a, (size_t)most * sizeof *chosen);
    for (int i = 0; i < b->n; i++) {
        ImageView *image = arena_alloc(a, 2 * sizeof *image);
        uint64_t *id = arena_alloc(a, 2 * sizeof *id), seed = hash_bytes(&step, sizeof step, (uint64_t)d->cfg->run.seed);
        for (int k = 0; k < 2 && b->image_of[i][k] >= 0; k++) {
            image[k] = b->image[b->image_of[i][k]];
            id[k] = b->image_id[b->image_of[i][k]];
        }
        int n = image_groups_choose(&d->by_image, b->item[i], d->per_image, seed, chosen);
        for (int q = 0; q < n; q++) {
            const Sample *s = &d->data.sample[chosen[q]];
            const Program *p = d->program[chosen[q]];
            if (!p || !s->answer) continue;
            Value *vars = ARENA_NEW(a, Value, p->nslots);
            for (int k = 0; k < p->ninputs; k++) vars[k] = value_image(id[k], image[k].w, image[k].h);
            j.job[j.n] = (Job){.prog = p, .vars = vars, .image = image, .image_id = id};
            j.gold[j.n] = s->answer;
            j.sample[j.n++] = s;
        }
    }
    return j;
}

/* Staying near the starting outputs on the replay set (Li & Hoiem 2016, with data of the old domain). */
static double retain_loss(Distiller *d, Student *s, int64_t step, Error *e) {
    const Config *cfg = d->cfg;
    Ctx *c = &d->run.ctx;
    const Batch *b = loader_next(s->replay_loader, e);
    if (!b) return NAN;
    const TrainItem **item;
    Ask *ask;
    int n = train_asks(&s->replay, b, cfg->train.per_image, (uint64_t)step, &d->run.host, &item, &ask);
    if (!n) return 0;
    for (int i = 0; i < n; i++)
        ask[i].image_id += UINT64_C(1) << 62; /* another dataset: its ids must not meet the task's */
    Outputs was, is;
    c->tape = NULL;
    module_begin(s->start);
    module_forward(s->start, c, ask, n, &was);
    c->tape = &d->run.tape;
    module_forward(s->module, c, ask, n, &is);
    const float *old = to_host(c, was.logits);
    int64_t V = was.logits->shape[1];
    float *w = arena_alloc(&d->run.host, (size_t)n * sizeof *w),
          *p = arena_alloc(&d->run.host, (size_t)(n * V) * sizeof *p);
    for (int i = 0; i < n; i++) w[i] = (float)(cfg->distill.retain / n);
    if (!was.boxes && !module_multi_label(s->module))
        return loss_value(c, op_kl_loss(c, is.logits, old, w, (float)cfg->distill.temperature));
    for (int64_t i = 0; i < n * V; i++) p[i] = sigmoid(old[i]);
    double loss = loss_value(c, op_bce_loss(c, is.logits, p, w, 1));
    if (!was.boxes) return loss;
    float *bw = arena_alloc(&d->run.host, (size_t)(n * V) * sizeof *bw);
    for (int64_t i = 0; i < n * V; i++)
        bw[i] = p[i] > LOC_THRESHOLD ? w[i / V] : 0; /* boxes that the start would report */
    Tensor *box = RESHAPE(c, is.boxes, n * V, 4);
    return loss + loss_value(c, op_box_loss(c, box, to_host(c, was.boxes), bw, 1, 0, false));
}

static void count(StepStats *out, const Jobs *j, const Labelling *l, int waves) {
    out->programs = j->n;
    for (int i = 0; i < j->n; i++) out->failed += j->job[i].failed;
    out->right = l->programs_right;
    out->label_right = l->right;
    out->waves = waves;
    memcpy(out->steps, l->steps, sizeof l->steps);
    memcpy(out->kept, l->kept, sizeof l->kept);
    memcpy(out->fixed, l->fixed, sizeof l->fixed);
    memcpy(out->dropped, l->dropped, sizeof l->dropped);
}

static bool update(Student *s, bool learnt, int64_t step, double *norm, Error *e) {
    *norm = 0;
    if (!learnt) return true; /* nobody called it: no gradient, no decay */
    return optim_step(&s->module->params, &s->optim, step, norm, e);
}

/* Backward and one update of each module that has a loss. */
static bool learn(Distiller *d, int64_t step, bool vqa, bool loc, StepStats *out, Error *e) {
    if (*e->text) return false;
    double loss = out->loss_vqa + out->loss_loc + out->loss_retain;
    if (!isfinite(loss)) {
        run_not_finite(&d->run, (ParamSet *[]){&d->vqa.module->params, &d->loc.module->params}, 2, step, loss, e);
        return fail_in(e, "VQA %g, LOC %g, retain %g", out->loss_vqa, out->loss_loc, out->loss_retain);
    }
    tape_backward(&d->run.ctx);
    return update(&d->vqa, vqa, step, &out->norm_vqa, e) && update(&d->loc, loc, step, &out->norm_loc, e);
}

/* ---- the trace ------------------------------------------------------------------------------------ */

/* One line for each module step that the programs took, with the label that was (or would have been) learnt from. */
static bool write_trace(Distiller *d, int64_t step, const Sample *const *sample, const Labelling *l,
                        Error *e) {
    enum { TOP = 5 };
    const Module *m = d->vqa.module;
    for (int64_t i = 0; i < d->sched.nrecords; i++) {
        const StepRecord *r = &d->sched.record[i];
        const Question *q = &d->sched.question[r->question];
        const Label *b = q->answer.label;
        const Target *t = &l->target[r->question];
        bool kept = l->verdict[i] == KEPT && t->kept;
        const float *p = kept && !b->is_loc ? t->lesson.p : b->p;
        const char *names[TOP];
        float probs[TOP];
        int top[TOP], ntop = b->is_loc ? 0 : top_probs(top, TOP, p, m->nlabels, 0.01f);
        for (int k = 0; k < ntop; k++) names[k] = m->label[top[k]], probs[k] = p[top[k]];
        Rect box[MAX_CANDIDATES];
        int nbox = 0;
        for (int k = 0; b->is_loc && k < b->nleaders; k++) { /* the boxes that the label calls objects */
            float yes = kept ? t->lesson.yes[k] : b->candidate[k].yes;
            const Boxes *one = verified_boxes(b, k + 1, q->ask.rect, &d->run.host).boxes;
            if (yes > 0.5f && trace_box(&box[nbox], one, k, d->loc.answerer.strict)) nbox++;
        }
        TraceStep line = {.update = step,
                          .image = d->data.images.path[q->ask.image_id],
                          .rect = q->ask.rect,
                          .module = b->is_loc ? "LOC" : "VQA",
                          .query = q->ask.query,
                          .answer = ntop ? names[0] : NULL,
                          .soft_answer = names,
                          .soft_prob = probs,
                          .nsoft = ntop,
                          .boxes = box,
                          .nboxes = nbox,
                          .weight = 1,
                          .student = &b->student,
                          .teacher = &b->teacher,
                          .strict = d->loc.answerer.strict,
                          .kept = kept,
                          .why = kept ? NULL : verdict_names[l->verdict[i]],
                          .program = sample[r->job]->id,
                          .question = sample[r->job]->question,
                          .step = r->step};
        if (!trace_step(d->trace, &line, e)) return false;
    }
    return true;
}

bool step_run(Distiller *d, int64_t step, const Batch *b, StepStats *out, Error *e) {
    Ctx *c = &d->run.ctx;
    Arena *a = &d->run.host;
    *out = (StepStats){0};
    run_begin(&d->run, step, d->learn);
    module_begin(d->vqa.module);
    module_begin(d->loc.module);
    module_begin(d->loc.start);
    teacher_begin(&d->teacher);

    /* Every program of the batch, in waves. The students' outputs stay on the tape; the teacher answers beside them. */
    Jobs j = make_jobs(d, b, step);
    sched_run(&d->sched, c, j.job, j.n, a);

    /* Which labels hold, given the program and the task's answer. */
    Labelling l;
    distill_label(&l, &d->sched, j.job, j.gold, d->style, j.n, d->vqa.module, d->cfg, a);
    if (d->trace && !write_trace(d, step, j.sample, &l, e)) return false;

    count(out, &j, &l, d->sched.waves);
    if (!d->learn) return true;

    /* The losses, divided by what was kept. */
    if (l.kept[0]) out->loss_vqa = distill_sched_loss(c, &d->sched, &l, d->vqa.module, l.kept[0], d->cfg);
    if (l.kept[1]) out->loss_loc = distill_sched_loss(c, &d->sched, &l, d->loc.module, l.kept[1], d->cfg);
    if (d->vqa.replay_loader) out->loss_retain += retain_loss(d, &d->vqa, step, e);
    if (d->loc.replay_loader) out->loss_retain += retain_loss(d, &d->loc, step, e);
    replay_begin(&d->replay, b->index);
    for (int64_t q = 0; q < d->sched.nquestions; q++)
        if (l.target[q].kept) replay_keep(&d->replay, b->index, &d->sched.question[q].ask, &l.target[q].lesson);
    for (const OtherAsk *o = d->teacher.other; o; o = o->next) {
        Lesson lesson = distill_loc_lesson(o->label, o->ask.rect, a);
        replay_keep(&d->replay, b->index, &o->ask, &lesson);
    }
    return learn(d, step, l.kept[0] || d->vqa.replay_loader, l.kept[1] || d->loc.replay_loader, out, e);
}

/* ---- once more ------------------------------------------------------------------------------------ */

/* The loss of one module on kept lessons whose image is there; *n: how many. */
static double again_loss(Distiller *d, const KeptBatch *k, const Batch *b, const Module *m, int64_t *n) {
    Ctx *c = &d->run.ctx;
    bool loc = !strcmp(m->type->step, "LOC");
    Ask *ask = arena_alloc(&d->run.host, (size_t)(k->n + 1) * sizeof *ask);
    const Lesson **lesson = arena_alloc(&d->run.host, (size_t)(k->n + 1) * sizeof *lesson);
    *n = 0;
    for (int64_t i = 0; i < k->n; i++) {
        const KeptLesson *l = &k->lesson[i];
        int at = 0;
        while (at < b->nimages && b->image_id[at] != l->image_id) at++;
        if (l->lesson.is_loc != loc || at == b->nimages) continue;
        ask[*n] = (Ask){b->image[at], l->image_id, l->lesson.rect, l->query};
        lesson[(*n)++] = &l->lesson;
    }
    double loss = 0;
    for (int64_t at = 0; at < *n; at += d->cfg->distill.batch) {
        Outputs out;
        module_forward((Module *)m, c, ask + at, MIN(*n - at, d->cfg->distill.batch), &out);
        loss += loc ? distill_loc_loss(c, &out, lesson + at, *n, d->cfg) : distill_vqa_loss(c, &out, lesson + at, m, *n, d->cfg);
    }
    return loss;
}

bool step_again(Distiller *d, int64_t step, int turn, const Batch *b, StepStats *out, Error *e) {
    *out = (StepStats){0};
    const KeptBatch *k = replay_find(&d->replay, b->index);
    if (!k) return true;
    run_begin(&d->run, step + ((int64_t)(turn + 1) << 40), true); /* dropout's numbers are this turn's own */
    module_begin(d->vqa.module);
    module_begin(d->loc.module);
    int64_t nvqa, nloc;
    out->loss_vqa = again_loss(d, k, b, d->vqa.module, &nvqa);
    out->loss_loc = again_loss(d, k, b, d->loc.module, &nloc);
    return learn(d, step, nvqa > 0, nloc > 0, out, e);
}

/* ---- opening -------------------------------------------------------------------------------------- */

static bool student_open(Distiller *d, Student *s, const char *step, const char *folder, double lr,
                         Error *e) {
    const Config *cfg = d->cfg;
    if (!*folder)
        return fail_as(e, FAIL_CONFIG, "model.%s is empty; name the folder of the %s module",
                       strcmp(step, "LOC") ? "vqa" : "loc", step);
    if (!(s->module = module_open_for(step, folder, d->run.dev, MODULE_TRAINED, e))) return false;
    module_answerer(&s->answerer, s->module, cfg->distill.batch);
    s->answerer.threshold = (float)cfg->model.loc_threshold;
    s->optim = run_optim(cfg, lr, cfg->distill.steps);
    bool retain = *cfg->distill.replay_dir && cfg->distill.retain > 0;
    if ((retain || !strcmp(step, "LOC")) && !(s->start = module_open_for(step, folder, d->run.dev, MODULE_FROZEN, e)))
        return false;
    if (!retain) return true;
    DatasetConfig dc = {.type = "steps", .dir = cfg->distill.replay_dir, .split = "train", .max_bad = 100};
    LoaderConfig lc = {.seed = (uint64_t)cfg->run.seed,
                       .batch = MAX(1, cfg->distill.replay_batch / cfg->train.per_image),
                       .shuffle = true,
                       .max_bad_percent = (float)cfg->data.max_bad_percent,
                       .batch_bytes = (size_t)256 << 20};
    return trainset_open(&s->replay, &dc, s->module, e) &&
           (s->replay_loader = loader_open(&s->replay.by_image, &lc, e));
}

static void student_close(Student *s) {
    loader_close(s->replay_loader);
    if (s->replay.first) trainset_close(&s->replay);
    module_close(s->start);
    module_close(s->module);
}

bool programs_parse(const Dataset *d, const Dialect *dialect, Program ***out, Arena *a, int64_t *bad) {
    Program **p = *out = xcalloc((size_t)MAX(d->nsamples, 1), sizeof *p);
    *bad = 0;
    for (int64_t i = 0; i < d->nsamples; i++) {
        const Sample *s = &d->sample[i];
        Error e = {0};
        size_t mark = arena_mark(a);
        p[i] = arena_alloc(a, sizeof **p);
        if (s->program ? program_parse(p[i], a, dialect, s->program, strlen(s->program), &e)
                       : fail(&e, "it has no program"))
            continue;
        if (!(*bad)++) warn("question %s: %s", s->id, e.text);
        arena_reset(a, mark);
        p[i] = NULL;
    }
    return *bad < MAX(d->nsamples, 1);
}

bool distiller_open(Distiller *d, const Config *cfg, Error *e) {
    *d = (Distiller){.cfg = cfg, .learn = true};
    if (!run_open(&d->run, cfg, e)) return false;
    arena_open(&d->programs, "programs", NULL, (size_t)8 << 30);
    DatasetConfig dc = {.type = cfg->data.kind,
                        .dir = cfg->data.dir,
                        .split = cfg->data.split,
                        .limit = cfg->data.limit,
                        .max_bad = 100};
    bool nlvr = !strcmp(cfg->data.kind, "nlvr2");
    int64_t bad;
    d->style = nlvr ? ANSWER_TRUE_FALSE : ANSWER_YES_NO;
    if (!student_open(d, &d->vqa, "VQA", cfg->model.vqa, cfg->distill.lr_vqa, e) ||
        !student_open(d, &d->loc, "LOC", cfg->model.loc, cfg->distill.lr_loc, e) ||
        !teacher_open(&d->teacher, cfg->model.teacher, d->vqa.module, !nlvr, d->run.dev, e) ||
        !dataset_open(&d->data, &dc, e))
        return false;
    if (!programs_parse(&d->data, nlvr ? &dialect_nlvr : &dialect_gqa, &d->program, &d->programs, &bad))
        return fail_as(e, FAIL_DATA, "%s: none of its %" PRId64 " questions has a program that parses",
                       cfg->data.dir, d->data.nsamples);
    image_groups_open(&d->by_image, &d->data);
    d->per_image = MIN(cfg->distill.per_image, cfg->distill.programs);
    d->teacher.others = cfg->distill.reuse ? cfg->distill.loc_others : 0;
    d->teacher.attributes = cfg->distill.verify == VERIFY_WORDS;
    d->teacher.max_candidates = MIN(cfg->distill.candidates, MAX_CANDIDATES);
    guided_answerer(&d->vqa.guided, &d->vqa.answerer, NULL, &d->teacher, cfg->distill.steer == STEER_TEACHER);
    guided_answerer(&d->loc.guided, &d->loc.answerer, d->loc.start, &d->teacher, cfg->distill.steer == STEER_TEACHER);
    d->answerer[0] = &d->vqa.guided.base;
    d->answerer[1] = &d->loc.guided.base;
    sched_open(&d->sched, d->answerer, 2);
    replay_open(&d->replay, cfg->distill.reuse, cfg->distill.lag, d->vqa.module->nlabels, cfg->distill.programs);
    return true;
}

void distiller_close(Distiller *d) {
    replay_close(&d->replay);
    sched_close(&d->sched);
    student_close(&d->vqa);
    student_close(&d->loc);
    if (d->teacher.vqa) teacher_close(&d->teacher);
    image_groups_close(&d->by_image);
    dataset_close(&d->data);
    free(d->program);
    arena_close(&d->programs);
    run_close(&d->run);
}
