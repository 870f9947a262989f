/* step.c -- one training step of distillation. See step.h.
 *
 * step_run is the whole method in one page. What it calls, in reading order: data/loader.c (the batch),
 * sched.c (waves of program steps), modules/ (the students), teacher.c (the labels), distill.c (filters,
 * the task's answer, losses), tape.c (backward), optim.c (AdamW).
 */
#include "engine/step.h"

#include <math.h>

#include "engine/rates.h"
#include "modules/steps.h"

/* ---- the step ------------------------------------------------------------------------------------- */

int distiller_images(const Config *cfg) {
    return MAX(1, cfg->distill.programs / MIN(cfg->distill.per_image, cfg->distill.programs));
}

/* Images of the replay set in one step. */
static int replay_images(const Config *cfg) { return MAX(1, cfg->distill.replay_batch / cfg->train.per_image); }

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

/* A share of the batch with a tape of its own: all of this rank's, unless run.reproducible cuts it into parts (reduce.h). */
typedef struct Part {
    Batch b;
    Tape tape;
    Jobs j;
    OtherAsk *other; /* what the teacher was asked besides (distill.reuse) */
    Labelling l;
    Ask *replay[2]; /* VQA, LOC: calls of the retain term */
    int nreplay[2];
} Part;

/* Tells the teacher what nouns the whole batch is about, as the programs have them written. */
static void tell_nouns(Distiller *d, const Part *part) {
    int64_t most = 0, n = 0;
    for (int k = 0; k < d->reduce.parts; k++)
        for (int j = 0; j < part[k].j.n; j++)
            most += part[k].j.job[j].prog->nsteps * part[k].j.job[j].prog->ninputs;
    Noun *mine = arena_alloc(&d->run.host, (size_t)most * sizeof *mine);
    for (int k = 0; k < d->reduce.parts; k++)
        for (int j = 0; j < part[k].j.n; j++) {
            const Job *job = &part[k].j.job[j];
            for (int i = 0; i < job->prog->nsteps; i++) {
                const Step *st = &job->prog->steps[i];
                Noun noun;
                if (!st->module || strcmp(st->module, "LOC") ||
                    st->arg[1] >= 0 || /* a phrase that is known before it runs */
                    !teacher_noun(&d->teacher, step_arg(job->prog, st, 1, NULL)->str.s, &noun))
                    continue;
                for (int image = 0; image < job->prog->ninputs; image++)
                    mine[n++] = (Noun){job->image_id[image], noun.label, noun.alone};
            }
        }
    size_t begin[d->run.comm->size + 1];
    d->teacher.noun =
        comm_gather(d->run.comm, "nouns of the batch", mine, (size_t)n * sizeof *mine, &d->run.host, begin);
    d->teacher.nnouns = (int64_t)(begin[d->run.comm->size] / sizeof *mine);
}

/* Everything of part k until the losses: programs in waves, labels. The students' outputs stay on the part's tape, the
 * teacher answers beside them. */
static void run_programs(Distiller *d, int k, Part *p) {
    Arena *a = &d->run.host;
    run_part(&d->run, d->reduce.first + k);
    if (d->learn) d->run.ctx.tape = &p->tape;
    if (d->learn) reduce_watch(&d->reduce, &p->tape);
    module_begin(d->vqa.module); /* parts share nothing: what each computes does not depend on who computes the others */
    module_begin(d->loc.module);
    module_begin(d->loc.start);
    teacher_begin(&d->teacher);
    sched_run(&d->sched[k], &d->run.ctx, p->j.job, p->j.n, a);
    distill_label(&p->l, &d->sched[k], p->j.job, p->j.gold, d->style, p->j.n, d->vqa.module, d->cfg, a);
    p->other = d->teacher.other;
}

/* ---- one batch, whoever runs it ------------------------------------------------------------------- */

/* A question that a part has a target for. */
typedef struct Claim {
    uint64_t key;
    int32_t
        strength; /* 2: the answer has fixed the target; 1: it was kept; 0: asked besides, only to be learnt again */
    int32_t part, loc;
} Claim;

static int by_claim(const void *a, const void *b) {
    const Claim *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->strength != y->strength ? y->strength - x->strength : x->part - y->part;
}

static uint64_t claim_key(const Ask *ask, bool loc) {
    struct {
        uint64_t image;
        Rect rect;
        uint64_t text;
    } key = {ask->image_id, ask->rect, hash_bytes(ask->query, strlen(ask->query), loc)};
    return hash_bytes(&key, sizeof key, 1);
}

/* Whether the part has what it claims: no other had it first. */
static bool has_won(const Claim *won, int64_t n, uint64_t key, int part) {
    int64_t lo = 0, hi = n;
    while (hi - lo > 1) *(won[(lo + hi) / 2].key <= key ? &lo : &hi) = (lo + hi) / 2;
    return won[lo].part == part;
}

/* The scheduler asks equal questions of one part once. Equal ones of different parts and ranks, too, count once: the target is
 * that of the first part that the answer has fixed it for, else of the first that kept it, as if one rank had run all.
 * kept: distinct questions of all ranks. */
static void settle(Distiller *d, Part *part, int64_t kept[2]) {
    Arena *a = &d->run.host;
    const int parts = d->reduce.parts, first = d->reduce.first;
    int64_t n = 0;
    kept[0] = part->l.kept[0];
    kept[1] = part->l.kept[1];
    if (d->reduce.total == 1) return;
    for (int k = 0; k < parts; k++) {
        n += part[k].l.kept[0] + part[k].l.kept[1];
        for (const OtherAsk *o = part[k].other; o; o = o->next) n++;
    }
    Claim *mine = ARENA_NEW(a, Claim, MAX(n, 1));
    n = 0;
    for (int k = 0; k < parts; k++) {
        const Question *question = d->sched[k].question;
        for (int64_t q = 0; q < d->sched[k].nquestions; q++) {
            const bool loc = question[q].answer.label->is_loc;
            if (part[k].l.target[q].kept)
                mine[n++] =
                    (Claim){claim_key(&question[q].ask, loc), 1 + part[k].l.target[q].fixed, first + k, loc};
        }
        for (const OtherAsk *o = part[k].other; o; o = o->next)
            mine[n++] = (Claim){claim_key(&o->ask, true), 0, first + k, true};
    }
    size_t begin[d->run.comm->size + 1];
    Claim *all = comm_gather(d->run.comm, "questions kept", mine, (size_t)n * sizeof *mine, a, begin);
    int64_t total = (int64_t)(begin[d->run.comm->size] / sizeof *all), won = 0;
    arena_sort(a, all, total, sizeof *all, by_claim);
    kept[0] = kept[1] = 0;
    for (int64_t i = 0; i < total; i++) {
        if (won && all[won - 1].key == all[i].key) continue;
        all[won++] = all[i];
        if (all[i].strength) kept[all[i].loc]++;
    }
    for (int k = 0; k < parts; k++) {
        for (int64_t q = 0; q < d->sched[k].nquestions; q++) {
            const Question *of = &d->sched[k].question[q];
            Target *t = &part[k].l.target[q];
            if (!t->kept || has_won(all, won, claim_key(&of->ask, of->answer.label->is_loc), first + k))
                continue;
            t->kept = false;
            part[k].l.kept[of->answer.label->is_loc]--;
        }
        for (OtherAsk *o = part[k].other; o; o = o->next)
            o->twice = !has_won(all, won, claim_key(&o->ask, true), first + k);
    }
}

static bool retains(const Student *s) { return s->replay.n > 0; }

/* The replay set's batch of this step: the loader begins where the run does, also when it is resumed. */
static const Batch *replay_batch(Distiller *d, Student *s, int64_t step, Error *e) {
    LoaderConfig lc = {.seed = (uint64_t)d->cfg->run.seed,
                       .batch = replay_images(d->cfg),
                       .shuffle = true,
                       .rank = d->run.comm->rank,
                       .ranks = d->run.comm->size,
                       .first_batch = step,
                       .max_bad_percent = (float)d->cfg->data.max_bad_percent,
                       .batch_bytes = (size_t)256 << 20};
    if (!s->replay_loader && !(s->replay_loader = loader_open(&s->replay.by_image, &lc, e))) return NULL;
    return loader_next(s->replay_loader, e);
}

/* Chooses the calls of the retain terms; n: how many there are on all ranks. */
static bool choose_replay(Distiller *d, Part *part, int64_t step, int64_t n[2], Error *e) {
    Student *const student[] = {&d->vqa, &d->loc};
    const Config *cfg = d->cfg;
    double count[2] = {0};
    for (int i = 0; i < 2; i++) {
        Student *s = student[i];
        if (!retains(s)) continue;
        const Batch *b = replay_batch(d, s, step, e);
        if (!b) return false;
        for (int k = 0; k < d->reduce.parts; k++) {
            const TrainItem **item;
            Batch of_part = batch_part(b, replay_images(cfg), d->reduce.first + k, d->reduce.total);
            part[k].nreplay[i] = train_asks(&s->replay, &of_part, cfg->train.per_image, (uint64_t)step, &d->run.host,
                                            &item, &part[k].replay[i]);
            for (int q = 0; q < part[k].nreplay[i]; q++)
                part[k].replay[i][q].image_id += UINT64_C(1) << 62; /* another dataset: its ids must not meet the task's */
            count[i] += part[k].nreplay[i];
        }
    }
    if (retains(&d->vqa) || retains(&d->loc)) comm_sum(d->run.comm, "calls of the replay sets", count, 2);
    for (int i = 0; i < 2; i++) n[i] = (int64_t)count[i];
    return true;
}

/* Staying near the starting outputs on the replay set (Li & Hoiem 2016, with data of the old domain). */
static double retain_loss(Distiller *d, Student *s, const Ask *ask, int n, int64_t total) {
    const Config *cfg = d->cfg;
    Ctx *c = &d->run.ctx;
    if (!n) return 0;
    Outputs was, is;
    Tape *tape = c->tape;
    c->tape = NULL;
    module_begin(s->start);
    module_forward(s->start, c, ask, n, &was);
    c->tape = tape;
    module_forward(s->module, c, ask, n, &is);
    const float *old = to_host(c, was.logits);
    int64_t V = was.logits->shape[1];
    float *w = arena_alloc(&d->run.host, (size_t)n * sizeof *w),
          *p = arena_alloc(&d->run.host, (size_t)(n * V) * sizeof *p);
    for (int i = 0; i < n; i++) w[i] = (float)(cfg->distill.retain / (double)total);
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

/* Fails because of a loss that is no number; its tape is the run's. */
static bool not_finite(Distiller *d, int64_t step, double vqa, double loc, double retain, Error *e) {
    run_not_finite(&d->run, (ParamSet *[]){module_learns(d->vqa.module), module_learns(d->loc.module)}, 2, step,
                   vqa + loc + retain, e);
    return fail_in(e, "VQA %g, LOC %g, retain %g", vqa, loc, retain);
}

/* Puts the losses of part k on its tape. kept and replay count over all ranks: N ranks add up to one with the whole batch. */
static bool put_losses(Distiller *d, int64_t step, int k, Part *p, const int64_t kept[2], const int64_t replay[2],
                       StepStats *out, Error *e) {
    Ctx *c = &d->run.ctx;
    const Sched *s = &d->sched[k];
    const Labelling *l = &p->l;
    double vqa = 0, loc = 0, retain = 0;
    c->tape = &p->tape;
    if (d->reduce.total > 1) { /* the towers' outputs that the modules remember may be another part's */
        run_part(&d->run, d->reduce.total + d->reduce.first + k);
        module_begin(d->vqa.module);
        module_begin(d->loc.module);
    }
    if (l->kept[0]) vqa = distill_sched_loss(c, s, l, d->vqa.module, kept[0], d->cfg);
    if (l->kept[1]) loc = distill_sched_loss(c, s, l, d->loc.module, kept[1], d->cfg);
    if (retains(&d->vqa)) retain += retain_loss(d, &d->vqa, p->replay[0], p->nreplay[0], replay[0]);
    if (retains(&d->loc)) retain += retain_loss(d, &d->loc, p->replay[1], p->nreplay[1], replay[1]);
    out->loss_vqa += vqa;
    out->loss_loc += loc;
    out->loss_retain += retain;
    if (isfinite(vqa + loc + retain)) return true;
    d->run.tape = p->tape;
    return not_finite(d, step, vqa, loc, retain, e);
}

static void count(StepStats *out, const Part *p, int waves) {
    const Labelling *l = &p->l;
    out->programs += p->j.n;
    for (int i = 0; i < p->j.n; i++) out->failed += p->j.job[i].failed;
    out->right += l->programs_right;
    out->label_right += l->right;
    out->waves += waves;
    for (int i = 0; i < 2; i++) {
        out->steps[i] += l->steps[i];
        out->kept[i] += l->kept[i];
        out->fixed[i] += l->fixed[i];
    }
    for (int i = 0; i < VERDICTS; i++) out->dropped[i] += l->dropped[i];
}

void step_stats_sum(Comm *c, StepStats *s) {
    double *losses[] = {&s->loss_vqa, &s->loss_loc, &s->loss_retain}, all[64];
    int64_t *counts[] = {&s->programs, &s->failed, &s->right, &s->label_right, &s->steps[0], &s->steps[1],
                         &s->kept[0], &s->kept[1], &s->fixed[0], &s->fixed[1]};
    int n = 0, m = 0;
    for (int i = 0; i < COUNT_OF(losses); i++) all[n++] = *losses[i];
    for (int i = 0; i < COUNT_OF(counts); i++) all[n++] = (double)*counts[i];
    for (int i = 0; i < VERDICTS; i++) all[n++] = (double)s->dropped[i];
    comm_sum(c, "sums of the log", all, n);
    for (int i = 0; i < COUNT_OF(losses); i++) *losses[i] = all[m++];
    for (int i = 0; i < COUNT_OF(counts); i++) *counts[i] = (int64_t)all[m++];
    for (int i = 0; i < VERDICTS; i++) s->dropped[i] = (int64_t)all[m++];
}

static bool update(Student *s, bool learnt, int64_t step, double *norm, Error *e) {
    *norm = 0;
    if (!learnt) return true; /* nobody called it: no gradient, no decay */
    return optim_step(module_learns(s->module), &s->optim, step, norm, e);
}

/* ---- the trace ------------------------------------------------------------------------------------ */

/* One line for each module step that the programs took, with the label that was (or would have been) learnt from. */
static bool write_trace(Distiller *d, int64_t step, const Sched *s, const Part *part, Error *e) {
    enum { TOP = 5 };
    const Module *m = d->vqa.module;
    const Labelling *l = &part->l;
    for (int64_t i = 0; i < s->nrecords; i++) {
        const StepRecord *r = &s->record[i];
        const Question *q = &s->question[r->question];
        const Label *b = q->answer.label;
        const Target *t = &l->target[r->question];
        if (image_is_made(q->ask.image_id)) continue; /* drawn by a step: no file that a line could name */
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
                          .program = part->j.sample[r->job]->id,
                          .question = part->j.sample[r->job]->question,
                          .step = r->step};
        if (!trace_step(d->trace, &line, e)) return false;
    }
    return true;
}

/* ---- what is to be learnt again (distill.reuse) ---------------------------------------------------- */

typedef struct ToKeep {
    int place;
    Ask ask;
    Lesson lesson;
} ToKeep;

static int by_place(const void *a, const void *b) {
    return ((const ToKeep *)a)->place - ((const ToKeep *)b)->place;
}

/* Where the image is in the batch of all ranks; the first time, when it is there more than once. */
static int place_of(const Batch *b, uint64_t image_id) {
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < 2 && b->image_of[i][k] >= 0; k++)
            if (b->image_id[b->image_of[i][k]] == image_id) return b->place[i];
    CHECK(false, "image %" PRIu64 " is not in its part of the batch", image_id);
    return -1;
}

/* In the order of places, which is the same for any number of parts and ranks. */
static void keep_lessons(Distiller *d, const Batch *b, const Part *part) {
    Arena *a = &d->run.host;
    int64_t most = 0, n = 0;
    for (int k = 0; k < d->reduce.parts; k++) {
        most += d->sched[k].nquestions;
        for (const OtherAsk *o = part[k].other; o; o = o->next) most++;
    }
    ToKeep *list = arena_alloc(a, (size_t)most * sizeof *list);
    for (int k = 0; k < d->reduce.parts; k++) {
        for (int64_t q = 0; q < d->sched[k].nquestions; q++) {
            const Ask *ask = &d->sched[k].question[q].ask;
            if (part[k].l.target[q].kept && !image_is_made(ask->image_id)) /* a drawn image is gone then */
                list[n++] = (ToKeep){place_of(&part[k].b, ask->image_id), *ask, part[k].l.target[q].lesson};
        }
        for (const OtherAsk *o = part[k].other; o; o = o->next)
            if (!o->twice && !image_is_made(o->ask.image_id))
                list[n++] = (ToKeep){place_of(&part[k].b, o->ask.image_id), o->ask,
                                     distill_loc_lesson(o->label, o->ask.rect, a)};
    }
    arena_sort(a, list, n, sizeof *list, by_place);
    replay_begin(&d->replay, b->index);
    for (int64_t i = 0; i < n; i++)
        replay_keep(&d->replay, b->index, list[i].place, &list[i].ask, &list[i].lesson);
}

/* ---- one batch's step ------------------------------------------------------------------------------ */

bool step_run(Distiller *d, int64_t step, const Batch *b, StepStats *out, Error *e) {
    Ctx *c = &d->run.ctx;
    Reduce *r = &d->reduce;
    *out = (StepStats){0};
    run_begin(&d->run, step, d->learn);
    comm_step(d->run.comm, step);

    /* Every program of the batch, and which labels hold, given the program and the task's answer. */
    Part *part = ARENA_NEW(&d->run.host, Part, r->parts);
    for (int k = 0; k < r->parts; k++) {
        part[k].b = batch_part(b, distiller_images(d->cfg), r->first + k, r->total);
        part[k].j = make_jobs(d, &part[k].b, step);
    }
    if (d->teacher.others) tell_nouns(d, part);
    for (int k = 0; k < r->parts; k++) {
        run_programs(d, k, &part[k]);
        if (d->trace && !write_trace(d, step, &d->sched[k], &part[k], e)) return false;
    }
    int64_t kept[2], replay[2];
    if (d->learn) settle(d, part, kept);
    for (int k = 0; k < r->parts; k++) count(out, &part[k], d->sched[k].waves);
    if (!d->learn) return true;

    /* The losses, divided by what was kept. */
    if (!choose_replay(d, part, step, replay, e)) return false;
    for (int k = 0; k < r->parts; k++)
        if (!put_losses(d, step, k, &part[k], kept, replay, out, e)) return false;

    if (d->cfg->distill.reuse) keep_lessons(d, b, part);

    /* Backward; the gradients of all ranks are added up meanwhile. A module that nobody called gets no update. */
    const bool learnt[] = {kept[0] || retains(&d->vqa), kept[1] || retains(&d->loc)};
    reduce_begin(r);
    for (int k = 0; k < r->parts; k++) {
        c->tape = &part[k].tape;
        reduce_part(r, k);
        if (k == r->parts - 1) reduce_last(r, learnt);
        tape_backward(c);
    }
    reduce_end(r);
    return update(&d->vqa, learnt[0], step, &out->norm_vqa, e) &&
           update(&d->loc, learnt[1], step, &out->norm_loc, e);
}

/* ---- once more ------------------------------------------------------------------------------------ */

/* A part's lessons of one module. */
typedef struct Revision {
    Ask *ask;
    const Lesson **lesson;
    int64_t n;
} Revision;

/* Those whose image is in places lo .. hi of the batch and could be read. */
static Revision revise(Distiller *d, const KeptBatch *k, const Batch *b, int64_t lo, int64_t hi, bool loc) {
    Revision r = {arena_alloc(&d->run.host, (size_t)(k->n + 1) * sizeof *r.ask),
                  arena_alloc(&d->run.host, (size_t)(k->n + 1) * sizeof *r.lesson), 0};
    for (int64_t i = 0; i < k->n; i++) {
        const KeptLesson *l = &k->lesson[i];
        int at = 0;
        while (at < b->nimages && b->image_id[at] != l->image_id) at++;
        if (l->place < lo || l->place >= hi || l->lesson.is_loc != loc || at == b->nimages) continue;
        r.ask[r.n] = (Ask){b->image[at], l->image_id, l->lesson.rect, l->query};
        r.lesson[r.n++] = &l->lesson;
    }
    return r;
}

static double again_loss(Distiller *d, const Revision *r, Module *m, int64_t total) {
    Ctx *c = &d->run.ctx;
    const bool loc = !strcmp(m->type->step, "LOC");
    double loss = 0;
    for (int64_t at = 0; at < r->n; at += d->cfg->distill.batch) {
        Outputs out;
        module_forward(m, c, r->ask + at, MIN(r->n - at, d->cfg->distill.batch), &out);
        loss += loc ? distill_loc_loss(c, &out, r->lesson + at, total, d->cfg)
                    : distill_vqa_loss(c, &out, r->lesson + at, m, total, d->cfg);
    }
    return loss;
}

bool step_again(Distiller *d, int64_t step, int turn, const Batch *b, StepStats *out, Error *e) {
    Reduce *r = &d->reduce;
    Student *const student[] = {&d->vqa, &d->loc};
    *out = (StepStats){0};
    const KeptBatch *k = replay_find(&d->replay, b->index);
    if (!k) return true;
    run_begin(&d->run, step + ((int64_t)(turn + 1) << 40), true); /* dropout's numbers are this turn's own */
    Revision (*part)[2] = arena_alloc(&d->run.host, (size_t)r->parts * sizeof *part);
    const int64_t images = distiller_images(d->cfg);
    double total[2] = {0}; /* of all ranks: one may have nothing to give */
    for (int p = 0; p < r->parts; p++)
        for (int i = 0; i < 2; i++) {
            const int64_t number = r->first + p;
            part[p][i] = revise(d, k, b, images * number / r->total, images * (number + 1) / r->total, i);
            total[i] += (double)part[p][i].n;
        }
    comm_sum(d->run.comm, "lessons to be learnt again", total, 2);
    const bool learnt[] = {total[0] > 0, total[1] > 0};
    reduce_begin(r);
    for (int p = 0; p < r->parts; p++) {
        size_t mark_step = arena_mark(&d->run.step), mark_host = arena_mark(&d->run.host);
        double loss[2] = {0};
        run_part(&d->run, r->first + p);
        reduce_part(r, p);
        reduce_watch(r, &d->run.tape);
        for (int i = 0; i < 2; i++) {
            module_begin(student[i]->module);
            loss[i] = again_loss(d, &part[p][i], student[i]->module, (int64_t)total[i]);
        }
        out->loss_vqa += loss[0];
        out->loss_loc += loss[1];
        if (!isfinite(loss[0] + loss[1])) return not_finite(d, step, loss[0], loss[1], 0, e);
        if (p == r->parts - 1) reduce_last(r, learnt);
        tape_backward(&d->run.ctx);
        arena_reset(&d->run.step, mark_step);
        arena_reset(&d->run.host, mark_host);
    }
    reduce_end(r);
    return update(&d->vqa, learnt[0], step, &out->norm_vqa, e) &&
           update(&d->loc, learnt[1], step, &out->norm_loc, e);
}

/* ---- opening -------------------------------------------------------------------------------------- */

static bool student_open(Distiller *d, Student *s, const char *step, const char *folder, double lr,
                         Error *e) {
    const Config *cfg = d->cfg;
    if (!*folder)
        return fail_as(e, FAIL_CONFIG, "model.%s is empty; name the folder of the %s module",
                       strcmp(step, "LOC") ? "vqa" : "loc", step);
    s->module = strcmp(step, "VQA") ? module_open_for(step, folder, d->run.dev, run_type(cfg), module_use(cfg), e)
                                    : module_open_labelled(folder, d->run.dev, run_type(cfg), module_use(cfg), e);
    if (!s->module) return false;
    module_answerer(&s->answerer, s->module, cfg->distill.batch);
    s->answerer.threshold = (float)cfg->model.loc_threshold;
    s->optim = run_optim(cfg, lr, cfg->distill.steps);
    bool retain = *cfg->distill.replay_dir && cfg->distill.retain > 0;
    if ((retain || !strcmp(step, "LOC")) &&
        !(s->start = module_open_for(step, folder, d->run.dev, run_type(cfg), MODULE_FROZEN, e)))
        return false;
    if (!retain) return true;
    DatasetConfig dc = {.type = "steps", .dir = cfg->distill.replay_dir, .split = "train", .max_bad = 100};
    return trainset_open(&s->replay, &dc, s->module, e);
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
        !rates_apply((ParamSet *[]){module_learns(d->vqa.module), module_learns(d->loc.module)}, 2, cfg, e) ||
        !teacher_open(&d->teacher, cfg->model.teacher, d->vqa.module, !nlvr, d->run.dev, run_type(cfg), e) ||
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
    reduce_open(&d->reduce, d->run.comm, cfg, (ParamSet *[]){module_learns(d->vqa.module), module_learns(d->loc.module)}, 2);
    d->sched = xcalloc((size_t)d->reduce.parts, sizeof *d->sched);
    for (int k = 0; k < d->reduce.parts; k++) sched_open(&d->sched[k], d->answerer, 2);
    const Reduce *r = &d->reduce;
    replay_open(&d->replay, cfg->distill.reuse, cfg->distill.lag, d->vqa.module->nlabels,
                cfg->distill.programs, (int)((int64_t)distiller_images(cfg) * r->first / r->total),
                (int)((int64_t)distiller_images(cfg) * (r->first + r->parts) / r->total));
    return true;
}

void distiller_close(Distiller *d) {
    replay_close(&d->replay);
    for (int k = 0; k < d->reduce.parts && d->sched; k++) sched_close(&d->sched[k]);
    free(d->sched);
    reduce_close(&d->reduce);
    student_close(&d->vqa);
    student_close(&d->loc);
    if (d->teacher.vqa) teacher_close(&d->teacher);
    image_groups_close(&d->by_image);
    dataset_close(&d->data);
    free(d->program);
    arena_close(&d->programs);
    run_close(&d->run);
}
