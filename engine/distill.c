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

Lesson distill_loc_lesson(const Label *l, Rect rect, Arena *a) {
    Lesson out = {.rect = rect, .is_loc = true, .nleaders = l->nleaders, .ncandidates = l->ncandidates, .candidate = l->candidate,
                  .yes = arena_alloc(a, (size_t)l->nleaders * sizeof *out.yes)};
    for (int i = 0; i < l->nleaders; i++) out.yes[i] = l->candidate[i].yes;
    return out;
}

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
    if (l->is_loc) {
        t->lesson = distill_loc_lesson(l, s->question[q].ask.rect, a);
        if (p) memcpy(t->lesson.yes, p, (size_t)l->nleaders * sizeof *p);
    } else {
        t->lesson = (Lesson){.rect = s->question[q].ask.rect, .p = arena_alloc(a, (size_t)vqa->nlabels * sizeof *p)};
        memcpy(t->lesson.p, p ? p : l->p, (size_t)vqa->nlabels * sizeof *p);
    }
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
            out->programs_right++;
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

double distill_vqa_loss(Ctx *c, const Outputs *out, const Lesson *const *lesson, const Module *m, int64_t total,
                        const Config *cfg) {
    int64_t V = m->nlabels, n = out->n;
    bool multi = module_multi_label(m);
    float *soft = ARENA_NEW(c->host, float, n *V), *wsoft = ARENA_NEW(c->host, float, n),
          *whard = ARENA_NEW(c->host, float, n);
    int32_t *label = ARENA_NEW(c->host, int32_t, n);
    for (int64_t i = 0; i < n; i++) {
        if (!lesson[i]) continue;
        const float *p = lesson[i]->p;
        for (int64_t v = 0; v < V; v++)
            soft[i * V + v] = multi ? p[v] : logf(MAX(p[v], 1e-6f)); /* log p: logits of p */
        label[i] = argmax(p, V);
        wsoft[i] = (float)(cfg->distill.soft / (double)total);
        whard[i] = (float)(cfg->distill.hard / (double)total);
    }
    if (m->type->answer_loss) { /* it learns answers word by word: the two targets are one distribution */
        float *both = ARENA_NEW(c->host, float, n *V), *weight = ARENA_NEW(c->host, float, n);
        for (int64_t i = 0; i < n; i++) {
            if (!lesson[i]) continue;
            weight[i] = wsoft[i] + whard[i];
            for (int64_t v = 0; v < V && weight[i] > 0; v++)
                both[i * V + v] = (wsoft[i] * lesson[i]->p[v] + (v == label[i]) * whard[i]) / weight[i];
        }
        return m->type->answer_loss((Module *)m, c, out, both, weight);
    }
    if (!multi)
        return loss_value(c, op_kl_loss(c, out->logits, soft, wsoft, (float)cfg->distill.temperature)) +
               loss_value(c, op_ce_loss(c, out->logits, label, whard, 0));
    /* Soft and hard targets of independent sigmoids are one weighted target. */
    float *hard = ARENA_NEW(c->host, float, n *V);
    for (int64_t i = 0; i < n; i++) hard[i * V + label[i]] = 1;
    return loss_value(c, op_bce_loss(c, out->logits, soft, wsoft, 1)) +
           loss_value(c, op_bce_loss(c, out->logits, hard, whard, 1));
}

static void box_of(float out[4], Rect b, Rect crop) {
    float w = (float)rect_w(crop), h = (float)rect_h(crop);
    out[0] = 0.5f * (float)(b.x0 + b.x1 + 1) / w; /* LOC's boxes end at their last pixel */
    out[1] = 0.5f * (float)(b.y0 + b.y1 + 1) / h;
    out[2] = MAX((float)(b.x1 + 1 - b.x0), 1) / w;
    out[3] = MAX((float)(b.y1 + 1 - b.y0), 1) / h;
}

/* A patch looks at a box when its own overlaps it by this. */
#define LOOKS_AT_TAU 0.5f

/* Gives object `box` the `repeat` free patches whose own boxes overlap it most. */
static int give_patches(LocTarget *t, float (*box)[4], float *weight, int32_t *patch, uint8_t *taken, const float target[4],
                        const float *boxes, int64_t P, int repeat, float w) {
    int given = 0;
    for (; given < repeat; given++) {
        float best = LOOKS_AT_TAU;
        int64_t at = -1;
        for (int64_t p = 0; p < P; p++) {
            float iou = taken[p] ? 0 : box_iou(boxes + 4 * p, target);
            if (iou >= best) best = iou, at = p;
        }
        if (at < 0) break;
        taken[at] = 1;
        memcpy(box[t->nboxes], target, sizeof *box);
        weight[t->nboxes] = w;
        patch[t->nboxes++] = (int32_t)at;
    }
    return given;
}

/* Supervision of one LOC question, on the boxes that the student gives now. A patch learns only what the teacher was asked
 * about: those that look at an object say so, those that look at something else say so. Of the others nobody was asked; there may be
 * an object that nobody proposed, so they count as background with the weight loc_unasked alone. */
static LocTarget loc_target(const Lesson *l, const float *boxes, int64_t P, float weight, const Config *cfg, Arena *a) {
    int repeat = cfg->distill.loc_repeat, most = l->nleaders * repeat;
    float(*box)[4] = arena_alloc(a, (size_t)most * sizeof *box), *bw = arena_alloc(a, (size_t)most * sizeof *bw);
    int32_t *patch = arena_alloc(a, (size_t)most * sizeof *patch);
    uint8_t *taken = arena_zalloc(a, (size_t)P);
    float *negative = arena_alloc(a, (size_t)P * sizeof *negative);
    for (int64_t p = 0; p < P; p++) negative[p] = (float)cfg->distill.loc_unasked;
    bool filter = cfg->distill.filter_confident, coordinates = cfg->distill.loc_l1 > 0 || cfg->distill.loc_giou > 0;
    float here = filter ? (float)cfg->distill.loc_yes : 0.5f, not_here = filter ? (float)cfg->distill.loc_no : 0.5f;
    LocTarget t = {.box = (const float(*)[4])box, .box_weight = bw, .patch = patch, .negative_weight = 1, .negative = negative, .weight = weight};
    for (int side = 0; side < 2; side++) /* what may be an object last: where both overlap, nothing is rejected */
        for (int i = 0; i < l->nleaders; i++) {
            bool maybe = l->yes[i] > not_here;
            float lead[4];
            if (maybe != side) continue;
            box_of(lead, l->candidate[i].box, l->rect);
            for (int64_t p = 0; p < P; p++)
                if (box_iou(boxes + 4 * p, lead) >= (maybe ? 0.8f * LOOKS_AT_TAU : LOOKS_AT_TAU)) negative[p] = !maybe;
            if (l->yes[i] >= here)
                give_patches(&t, box, bw, patch, taken, lead, boxes, P, repeat, coordinates ? l->yes[i] : 0);
        }
    return t;
}

double distill_loc_loss(Ctx *c, const Outputs *out, const Lesson *const *lesson, int64_t total, const Config *cfg) {
    LocLossConfig lc = loc_loss_default;
    lc.w_class = (float)cfg->distill.loc_class;
    lc.w_l1 = (float)cfg->distill.loc_l1;
    lc.w_giou = (float)cfg->distill.loc_giou;
    lc.alpha = (float)cfg->train.loc_alpha;
    lc.gamma = (float)cfg->train.loc_gamma;
    int64_t P = out->logits->shape[1];
    const float *boxes = to_host(c, out->boxes);
    LocTarget *t = ARENA_NEW(c->host, LocTarget, out->n);
    for (int64_t i = 0; i < out->n; i++)
        if (lesson[i]) t[i] = loc_target(lesson[i], boxes + i * P * 4, P, 1 / (float)total, cfg, c->host);
    return loc_loss(c, out, t, &lc, NULL);
}

double distill_sched_loss(Ctx *c, const Sched *s, const Labelling *l, const Module *m, int64_t total, const Config *cfg) {
    bool loc = !strcmp(m->type->step, "LOC");
    double loss = 0;
    /* The questions of one forward pass stand together. */
    for (int64_t q = 0, end; q < s->nquestions; q = end) {
        const Outputs *out = s->question[q].answer.out;
        for (end = q + 1; end < s->nquestions && s->question[end].answer.out == out;) end++;
        if (!s->question[q].answer.label || is_loc(s, (int)q) != loc) continue;
        const Lesson **lesson = ARENA_NEW(c->host, const Lesson *, out->n);
        for (int64_t i = q; i < end; i++)
            if (l->target[i].kept) lesson[s->question[i].answer.row] = &l->target[i].lesson;
        loss += loc ? distill_loc_loss(c, out, lesson, total, cfg) : distill_vqa_loss(c, out, lesson, m, total, cfg);
    }
    return loss;
}
