/* distill.c -- filters, the task's answer, losses. See distill.h. */
#include "engine/distill.h"

#include <math.h>

const char *const verdict_names[VERDICTS] = {"kept", "executes", "confident", "replay"};

static bool is_loc(const Sched *s, int question) { return s->question[question].answer.label->is_loc; }

/* ---- replay --------------------------------------------------------------------------------------- */

typedef struct Replay {
    const Job *job;
    const Sched *s;
    const int *record; /* of each step, -1 */
    const char *gold;
    AnswerStyle style;
    Value *vars; /* working copy */
    Arena *a;
} Replay;

/* Runs the program's host steps on the labels, with step `at` (-1: none) answering `with`. Whether it gives the task's answer. */
static bool replay(Replay *r, int at, const Value *with) {
    const Program *p = r->job->prog;
    memcpy(r->vars, r->job->vars, (size_t)p->nslots * sizeof *r->vars);
    for (int i = 0; i < p->nsteps; i++) {
        const Step *st = &p->steps[i];
        if (st->module)
            r->vars[st->out] =
                i == at ? *with : r->s->question[r->s->record[r->record[i]].question].answer.label->teacher;
        else if (!program_run_host(p, i, r->vars, r->a, NULL))
            return false;
    }
    char text[256];
    return answer_text(text, sizeof text, program_result(p, r->vars), r->style, NULL) &&
           !strcmp(text, r->gold);
}

/* No later module step depends on this one: its answer goes straight into the program's arithmetic. */
static bool is_last_module(const Program *p, int step) {
    const Step *st = &p->steps[step];
    for (int i = 0; i < st->ndependants; i++)
        if (p->steps[st->dependants[i]].module) return false;
    return true;
}

/* ---- the task's answer as evidence ------------------------------------------------------------------ */

/* What the program allows a step to answer, given the other labels; false when nothing, or nothing is ruled out. */
static bool restrict_vqa(Replay *r, int step, const Label *l, const Module *vqa, double mass, float *p) {
    double sum = 0;
    int allowed = 0;
    for (int v = 0; v < vqa->nlabels; v++) {
        Value with = value_str(vqa->label[v], (int)strlen(vqa->label[v]));
        size_t mark = arena_mark(r->a);
        bool ok = replay(r, step, &with);
        arena_reset(r->a, mark);
        p[v] = ok ? l->p[v] : 0;
        allowed += ok;
        if (ok) sum += (double)(p[v] = MAX(p[v], 1e-6f));
    }
    /* Little mass on what the program allows: the step probably looks at the wrong thing, and the answer would teach a lie. */
    if (!allowed || allowed == vqa->nlabels || sum < mass) return false;
    for (int v = 0; v < vqa->nlabels; v++) p[v] = (float)((double)p[v] / sum);
    return true;
}

/* The leaders in order of belief are the objects, the first k of them for some k: k's posterior over the counts that the program
 * allows gives each leader's probability of being one. */
static bool restrict_loc(Replay *r, int step, const Label *l, Rect of, double mass, float *yes) {
    int n = l->nleaders, allowed = 0;
    double post[MAX_CANDIDATES + 1], sum = 0, all = 0;
    for (int k = 0; k <= n; k++) {
        size_t mark = arena_mark(r->a);
        Value with = verified_boxes(l, k, of, r->a);
        bool ok = replay(r, step, &with);
        arena_reset(r->a, mark);
        double like = 1;
        for (int i = 0; i < n; i++)
            like *= MAX(i < k ? (double)l->candidate[i].yes : 1 - (double)l->candidate[i].yes, 1e-4);
        sum += post[k] = ok ? like : 0;
        all += like;
        allowed += ok;
    }
    if (!allowed || allowed == n + 1 || sum < mass * all) return false;
    double tail = 0;
    for (int i = n - 1; i >= 0; i--) yes[i] = (float)(tail += post[i + 1] / sum);
    return true;
}

/* ---- decisions ------------------------------------------------------------------------------------ */

/* Adds a record's label to its question's target. A label that the answer has fixed outweighs any that it has not. */
static void keep(Labelling *out, const Sched *s, int record, bool fixed, const float *p, const Module *vqa,
                 Arena *a) {
    int q = s->record[record].question;
    const Label *l = s->question[q].answer.label;
    Target *t = &out->target[q];
    out->verdict[record] = KEPT;
    if (t->kept && t->fixed >= fixed) return;
    if (!t->kept) out->kept[l->is_loc]++;
    if (fixed) out->fixed[l->is_loc]++;
    t->kept = true;
    t->fixed = fixed;
    int n = l->is_loc ? l->nleaders : vqa->nlabels;
    float *copy = arena_alloc(a, (size_t)n * sizeof *copy);
    if (p)
        memcpy(copy, p, (size_t)n * sizeof *copy);
    else if (!l->is_loc)
        memcpy(copy, l->p, (size_t)n * sizeof *copy);
    else
        for (int i = 0; i < n; i++) copy[i] = l->candidate[i].yes;
    if (l->is_loc)
        t->yes = copy;
    else
        t->p = copy;
}

static void label_job(Labelling *out, const Sched *s, const Job *job, const int *records, int n, Replay *r,
                      const Module *vqa, const Config *cfg, Arena *a) {
    const Program *p = job->prog;
    bool agrees = replay(r, -1, NULL);
    out->right += agrees;
    /* Evidence: which single step, restricted by the answer, makes the program right? More than one: we cannot tell which was wrong. */
    float *restricted = NULL;
    int repaired = -1, repairs = 0;
    float **fixed = arena_zalloc(a, (size_t)n * sizeof *fixed);
    for (int k = 0; cfg->distill.use_answer && k < n; k++) {
        const StepRecord *rec = &s->record[records[k]];
        const Question *q = &s->question[rec->question];
        if (!is_last_module(p, rec->step)) continue;
        const Label *l = q->answer.label;
        restricted =
            arena_alloc(a, (size_t)MAX(l->is_loc ? l->nleaders : vqa->nlabels, 1) * sizeof *restricted);
        if (l->is_loc ? restrict_loc(r, rec->step, l, q->ask.rect, cfg->distill.answer_mass, restricted)
                      : restrict_vqa(r, rec->step, l, vqa, cfg->distill.answer_mass, restricted)) {
            fixed[k] = restricted;
            repaired = k;
            repairs++;
        }
    }
    bool repairable = !agrees && repairs == 1;
    for (int k = 0; k < n; k++) {
        const Label *l = s->question[s->record[records[k]].question].answer.label;
        bool use = fixed[k] && (agrees || (repairable && k == repaired));
        Verdict v = KEPT;
        if (cfg->distill.filter_replay && !agrees && !repairable)
            v = DROPPED_REPLAY;
        else if (cfg->distill.filter_confident && !use && !l->is_loc &&
                 (double)l->confidence < cfg->distill.confidence)
            v = DROPPED_CONFIDENT;
        out->verdict[records[k]] = v;
        if (v == KEPT)
            keep(out, s, records[k], use, use ? fixed[k] : NULL, vqa, a);
        else
            out->dropped[v]++;
    }
}

void distill_label(Labelling *out, const Sched *s, const Job *job, const char *const *gold, AnswerStyle style,
                   int njobs, const Module *vqa, const Config *cfg, Arena *a) {
    *out = (Labelling){.target = ARENA_NEW(a, Target, s->nquestions),
                       .verdict = ARENA_NEW(a, Verdict, s->nrecords)};
    int *count = ARENA_NEW(a, int, njobs + 1), *list = arena_alloc(a, (size_t)s->nrecords * sizeof *list);
    for (int64_t i = 0; i < s->nrecords; i++) {
        out->steps[is_loc(s, s->record[i].question)]++;
        count[s->record[i].job + 1]++;
    }
    for (int j = 0; j < njobs; j++) count[j + 1] += count[j];
    int *fill = arena_alloc(a, (size_t)(njobs + 1) * sizeof *fill);
    memcpy(fill, count, (size_t)(njobs + 1) * sizeof *fill);
    for (int64_t i = 0; i < s->nrecords; i++) list[fill[s->record[i].job]++] = (int)i;
    for (int j = 0; j < njobs; j++) {
        const int *records = list + count[j];
        int n = count[j + 1] - count[j];
        char text[256];
        if (!job[j].failed &&
            answer_text(text, sizeof text, program_result(job[j].prog, job[j].vars), style, NULL) &&
            !strcmp(text, gold[j]))
            out->student_right++;
        if (job[j].failed) { /* its labels cannot be replayed; without the filter they count as they are */
            for (int k = 0; k < n; k++) {
                if (cfg->distill.filter_executes) {
                    out->verdict[records[k]] = DROPPED_EXECUTES;
                    out->dropped[DROPPED_EXECUTES]++;
                } else {
                    keep(out, s, records[k], false, NULL, vqa, a);
                }
            }
            continue;
        }
        int *of_step = arena_alloc(a, (size_t)job[j].prog->nsteps * sizeof *of_step);
        for (int i = 0; i < job[j].prog->nsteps; i++) of_step[i] = -1;
        for (int k = 0; k < n; k++) of_step[s->record[records[k]].step] = records[k];
        Replay r = {&job[j], s,     of_step,
                    gold[j], style, arena_alloc(a, (size_t)job[j].prog->nslots * sizeof(Value)),
                    a};
        label_job(out, s, &job[j], records, n, &r, vqa, cfg, a);
    }
}

/* ---- losses --------------------------------------------------------------------------------------- */

/* The kept questions of one module, by the Outputs that hold them: one loss per Outputs. */
static int64_t next_outputs(const Sched *s, bool loc, int64_t from, const Outputs **out, int64_t *end) {
    for (int64_t q = from; q < s->nquestions; q++) {
        if (!s->question[q].answer.label || s->question[q].answer.label->is_loc != loc) continue;
        *out = s->question[q].answer.out;
        for (*end = q; *end < s->nquestions && s->question[*end].answer.out == *out;) (*end)++;
        return q;
    }
    return -1;
}

double distill_vqa_loss(Ctx *c, const Sched *s, const Labelling *l, const Module *m, int64_t total,
                        const Config *cfg) {
    double loss = 0;
    const Outputs *out;
    int64_t V = m->nlabels, end;
    bool multi = module_multi_label(m);
    for (int64_t q = 0; (q = next_outputs(s, false, q, &out, &end)) >= 0; q = end) {
        int64_t n = out->n;
        float *soft = ARENA_NEW(c->host, float, n *V), *wsoft = ARENA_NEW(c->host, float, n),
              *whard = ARENA_NEW(c->host, float, n);
        int32_t *label = ARENA_NEW(c->host, int32_t, n);
        for (int64_t i = q; i < end; i++) {
            const Target *t = &l->target[i];
            if (!t->kept) continue;
            int64_t row = s->question[i].answer.row;
            for (int64_t v = 0; v < V; v++)
                soft[row * V + v] = multi ? t->p[v] : logf(MAX(t->p[v], 1e-6f)); /* log p: logits of p */
            label[row] = argmax(t->p, V);
            wsoft[row] = (float)(cfg->distill.soft / (double)total);
            whard[row] = (float)(cfg->distill.hard / (double)total);
        }
        if (multi) { /* soft and hard targets of independent sigmoids are one weighted target */
            loss += loss_value(c, op_bce_loss(c, out->logits, soft, wsoft, 1));
            float *hard = ARENA_NEW(c->host, float, n *V);
            for (int64_t i = 0; i < n; i++) hard[i * V + label[i]] = 1;
            loss += loss_value(c, op_bce_loss(c, out->logits, hard, whard, 1));
        } else {
            loss += loss_value(c, op_kl_loss(c, out->logits, soft, wsoft, (float)cfg->distill.temperature));
            loss += loss_value(c, op_ce_loss(c, out->logits, label, whard, 0));
        }
    }
    return loss;
}

static void box_of(float out[4], Rect b, Rect crop) {
    float w = (float)rect_w(crop), h = (float)rect_h(crop);
    out[0] = 0.5f * (float)(b.x0 + b.x1 + 1) / w; /* LOC's boxes end at their last pixel */
    out[1] = 0.5f * (float)(b.y0 + b.y1 + 1) / h;
    out[2] = MAX((float)(b.x1 + 1 - b.x0), 1) / w;
    out[3] = MAX((float)(b.y1 + 1 - b.y0), 1) / h;
}

/* A follower is taught its leader's coordinates from this overlap on. At 0.35 the boxes drifted: L1 on a fixed batch rose from
 * 0.14 to 0.37 in 12 steps, since the teacher's favourite is not the tightest box. */
#define FOLLOW_TAU 0.6f

/* Supervision of one LOC question. A patch learns only what the teacher was asked about: the leader of an object answers for
 * it, boxes on a thing that is not it learn so, followers near enough learn the leader's coordinates. Patches that nobody
 * proposed are left alone: there may be an object that the student did not see, and calling it background lowered recall
 * from 31% to 20% in 65 steps. */
static LocTarget loc_target(const Question *q, const Target *t, const float *boxes, int64_t P, float weight,
                            const Config *cfg, Arena *a) {
    const Label *l = q->answer.label;
    int n = l->ncandidates, k = 0;
    float(*box)[4] = arena_alloc(a, (size_t)n * sizeof *box), *score = arena_alloc(a, (size_t)n * 4),
    *bw = arena_alloc(a, (size_t)n * 4);
    int32_t *patch = arena_alloc(a, (size_t)n * 4);
    uint8_t *ignore = arena_alloc(a, (size_t)P);
    memset(ignore, 1, (size_t)P);
    bool filter = cfg->distill.filter_confident;
    float here = filter ? (float)cfg->distill.loc_yes : 0.5f,
          not_here = filter ? (float)cfg->distill.loc_no : 0.5f;
    for (int i = 0; i < l->nleaders; i++) { /* what lies on a rejected box is rejected with it ... */
        float lead[4];
        box_of(lead, l->candidate[i].box, q->ask.rect);
        for (int64_t p = 0; t->yes[i] <= not_here && p < P; p++)
            if (box_iou(boxes + 4 * p, lead) >= 0.5f) ignore[p] = 0;
    }
    for (int i = 0; i < l->nleaders; i++) { /* ... unless it lies on one that may be an object, too */
        float lead[4];
        box_of(lead, l->candidate[i].box, q->ask.rect);
        for (int64_t p = 0; t->yes[i] > not_here && p < P; p++)
            if (box_iou(boxes + 4 * p, lead) >= 0.4f) ignore[p] = 1;
    }
    for (int i = 0; i < n; i++) {
        const Candidate *c = &l->candidate[i];
        float yes = t->yes[c->leader];
        bool leads = i == c->leader, object = yes >= here;
        if (leads ? !object && yes > not_here
                  : !object || rect_iou(c->box, l->candidate[c->leader].box) < FOLLOW_TAU)
            continue;
        box_of(box[k], l->candidate[c->leader].box, q->ask.rect);
        score[k] = object ? 1 : yes;
        bw[k] = object ? yes : 0;
        patch[k++] = c->patch;
    }
    return (LocTarget){.nboxes = k,
                       .box = (const float(*)[4])box,
                       .score = score,
                       .box_weight = bw,
                       .patch = patch,
                       .negative_weight = 1,
                       .ignore = ignore,
                       .weight = weight};
}

double distill_loc_loss(Ctx *c, const Sched *s, const Labelling *l, int64_t total, const Config *cfg) {
    double loss = 0;
    const Outputs *out;
    int64_t end;
    LocLossConfig lc = loc_loss_default;
    lc.w_class = (float)cfg->distill.loc_class;
    lc.w_l1 = (float)cfg->distill.loc_l1;
    lc.w_giou = (float)cfg->distill.loc_giou;
    lc.alpha = (float)cfg->train.loc_alpha;
    lc.gamma = (float)cfg->train.loc_gamma;
    for (int64_t q = 0; (q = next_outputs(s, true, q, &out, &end)) >= 0; q = end) {
        int64_t P = out->logits->shape[1];
        const float *boxes = to_host(c, out->boxes);
        LocTarget *t = ARENA_NEW(c->host, LocTarget, out->n);
        for (int64_t i = q; i < end; i++) {
            int64_t row = s->question[i].answer.row;
            if (l->target[i].kept)
                t[row] = loc_target(&s->question[i], &l->target[i], boxes + row * P * 4, P, 1 / (float)total,
                                    cfg, c->host);
        }
        loss += loc_loss(c, out, t, &lc, NULL);
    }
    return loss;
}
