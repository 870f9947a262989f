/* teacher.c -- asking the frozen network. See teacher.h. */
#include "engine/teacher.h"

#include <math.h>

#include "modules/detect.h"
#include "modules/steps.h"

static int find_label(const Module *m, const char *text) {
    for (int i = 0; i < m->nlabels; i++)
        if (!strcmp(m->label[i], text)) return i;
    return -1;
}

bool teacher_open(Teacher *t, const char *folder, const Module *student_vqa, bool verify, Device *dev,
                  DType type, Error *e) {
    *t = (Teacher){.max_batch = 128, .max_candidates = 8, .floor = 0.02f, .grow = 1.4f, .attributes = true};
    if (!(t->vqa = module_open_labelled(folder, dev, type, MODULE_FROZEN, e))) return fail_in(e, "teacher");
    t->yes = find_label(t->vqa, "yes");
    t->no = find_label(t->vqa, "no");
    if (verify && (t->yes < 0 || t->no < 0)) {
        fail_as(e, FAIL_MODEL, "teacher %s: it cannot answer yes and no, so it cannot verify boxes", folder);
        teacher_close(t);
        return false;
    }
    t->to_student = xcalloc((size_t)t->vqa->nlabels, sizeof *t->to_student);
    for (int i = 0; i < t->vqa->nlabels; i++)
        t->to_student[i] = student_vqa ? find_label(student_vqa, t->vqa->label[i]) : -1;
    return true;
}

void teacher_close(Teacher *t) {
    module_close(t->vqa);
    free(t->to_student);
    tower_free(&t->seen);
    *t = (Teacher){0};
}

/* The asks without repetition: `once` of them, ask i is the row[i]-th. */
static int64_t distinct_asks(Teacher *t, const Ask *ask, int64_t n, Ask *once, int32_t *row) {
    int64_t k = 0;
    tower_clear(&t->seen);
    for (int64_t i = 0; i < n; i++) {
        TowerKey image = ask_image_key(&ask[i]), text = ask_text_key(&ask[i]);
        TowerKey key = {image.a ^ text.a, image.b ^ text.b, image.c ^ text.a};
        const TowerRow *known = tower_find(&t->seen, key);
        row[i] = known ? known->row : (int32_t)k;
        if (known) continue;
        tower_add(&t->seen, key, (TowerRow){0, (int32_t)k});
        once[k++] = ask[i];
    }
    return k;
}

void teacher_begin(Teacher *t) { t->other = NULL; }

void teacher_ask(Teacher *t, Ctx *c, const Ask *ask, int64_t n, float *p) {
    Tape *tape = c->tape;
    c->tape = NULL;
    int64_t V = t->vqa->nlabels;
    bool multi = module_multi_label(t->vqa);
    size_t mark = arena_mark(c->host);
    Ask *once = arena_alloc(c->host, (size_t)n * sizeof *once);
    int32_t *row = arena_alloc(c->host, (size_t)n * sizeof *row);
    int64_t nonce = distinct_asks(t, ask, n, once, row);
    float *answer = arena_alloc(c->host, (size_t)(nonce * V) * sizeof *answer);
    for (int64_t at = 0; at < nonce; at += t->max_batch) {
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        int64_t k = MIN(t->max_batch, nonce - at);
        Outputs out;
        module_begin(t->vqa); /* its cached embeddings go with the memory below */
        module_forward(t->vqa, c, once + at, k, &out);
        const float *logits = to_host(c, out.logits);
        for (int64_t i = 0; i < k; i++) answer_probs(answer + (at + i) * V, logits + i * V, V, 1, multi);
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
    for (int64_t i = 0; i < n; i++) memcpy(p + i * V, answer + row[i] * V, (size_t)V * sizeof *p);
    t->asked += nonce;
    arena_reset(c->host, mark);
    c->tape = tape;
}

void verify_question(char *out, size_t size, const char *object) {
    snprintf(out, size, "Is there %s %s?", *object && strchr("aeiouAEIOU", *object) ? "an" : "a", object);
}

/* ---- VQA ------------------------------------------------------------------------------------------ */

/* Teacher probabilities into the student's label space. */
static void label_vqa(GuidedAnswerer *g, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    Teacher *t = g->teacher;
    const Module *s = g->student->module;
    int VT = t->vqa->nlabels;
    float *p = arena_alloc(a, (size_t)(n * VT) * sizeof *p);
    teacher_ask(t, c, ask, n, p);
    for (int64_t i = 0; i < n; i++) {
        Label *l = ARENA_NEW(a, Label, 1);
        l->student = answer[i].value;
        l->p = ARENA_NEW(a, float, s->nlabels);
        for (int k = 0; k < VT; k++)
            if (t->to_student[k] >= 0) l->p[t->to_student[k]] = p[i * VT + k];
        int best = argmax(l->p, s->nlabels);
        l->confidence = l->p[best];
        l->teacher = value_str(s->label[best], (int)strlen(s->label[best]));
        answer[i].label = l;
    }
}

/* ---- LOC: candidates and their verification --------------------------------------------------------- */

/* The rectangle that the teacher is shown: the box grown about its centre, inside the crop, in original pixels. */
static Rect shown(Rect crop, Rect box, float grow) {
    float cx = 0.5f * (float)(box.x0 + box.x1), cy = 0.5f * (float)(box.y0 + box.y1);
    float hw = MAX(0.5f * grow * (float)rect_w(box), 4), hh = MAX(0.5f * grow * (float)rect_h(box), 4);
    Rect r = {crop.x0 + (int)(cx - hw), crop.y0 + (int)(cy - hh), crop.x0 + (int)(cx + hw),
              crop.y0 + (int)(cy + hh)};
    r = (Rect){MAX(r.x0, crop.x0), MAX(r.y0, crop.y0), MIN(r.x1, crop.x1), MIN(r.y1, crop.y1)};
    if (r.x1 <= r.x0) r.x0 = MIN(r.x0, crop.x1 - 1), r.x1 = r.x0 + 1; /* a box on the very edge */
    if (r.y1 <= r.y0) r.y0 = MIN(r.y0, crop.y1 - 1), r.y1 = r.y0 + 1;
    return r;
}

/* Proposals nearer than this are one; between it and SAME_OBJECT_TAU they are two views of one object, and the teacher picks. */
#define CANDIDATE_TAU 0.65
/* A box that overlaps a better verified one by this much looks at the same object. */
#define SAME_OBJECT_TAU 0.35f

float rect_iou(Rect a, Rect b) {
    float w = (float)(MIN(a.x1, b.x1) - MAX(a.x0, b.x0)), h = (float)(MIN(a.y1, b.y1) - MAX(a.y0, b.y0));
    if (w <= 0 || h <= 0) return 0;
    return w * h / ((float)rect_w(a) * (float)rect_h(a) + (float)rect_w(b) * (float)rect_h(b) - w * h);
}

static int by_yes(const void *x, const void *y) {
    const Candidate *p = x, *q = y;
    if (p->yes != q->yes) return p->yes > q->yes ? -1 : 1;
    return p->leader - q->leader; /* still their place */
}

/* Candidates on one object are led by the one the teacher likes best; leaders go to the front. */
static void find_leaders(Label *l, Arena *a) {
    Candidate sorted[MAX_CANDIDATES], follower[MAX_CANDIDATES];
    int n = l->ncandidates, nfollowers = 0;
    memcpy(sorted, l->candidate, (size_t)n * sizeof *sorted);
    arena_sort(a, sorted, n, sizeof *sorted, by_yes);
    l->nleaders = 0;
    for (int i = 0; i < n; i++) {
        int lead = -1;
        for (int k = 0; k < l->nleaders && lead < 0; k++)
            if (rect_iou(l->candidate[k].box, sorted[i].box) >= SAME_OBJECT_TAU) lead = k;
        sorted[i].leader = lead < 0 ? l->nleaders : lead;
        if (lead < 0)
            l->candidate[l->nleaders++] = sorted[i];
        else
            follower[nfollowers++] = sorted[i];
    }
    memcpy(l->candidate + l->nleaders, follower, (size_t)nfollowers * sizeof *follower);
}

/* ---- LOC: proposals --------------------------------------------------------------------------------- */

/* What one rectangle holds, whatever was asked: a patch that any phrase finds likely, now or before the student learnt, is a
 * proposal for all. One look at each then serves every phrase. The boxes are those of the student before it learnt: trained
 * on its own boxes, however voted, it drifted: after 200 steps of the demo 25% of the labels' boxes were loose, of 11%. */
typedef struct Proposals {
    int64_t ask; /* the first about this rectangle */
    int n;
    Box *box;
    Ask *crop;   /* (n) as the teacher is shown them, asked "What is this?" */
    float *what; /* (n, V_teacher) its answers */
} Proposals;

/* Box voting (Gidaris & Komodakis 2015): a proposal becomes the mean of the boxes that overlap it by VOTE_TAU, weighted by their
 * scores. One patch's box is noisier than what its neighbours agree on. */
#define VOTE_TAU 0.6f
static void vote(Box *box, int n, const float *cxcywh, const float *score, int Q, Rect of, float floor) {
    float W = (float)rect_w(of), H = (float)rect_h(of);
    for (int j = 0; j < n; j++) {
        Rect b = box[j].rect;
        float mine[4] = {0.5f * (float)(b.x0 + b.x1 + 1) / W, 0.5f * (float)(b.y0 + b.y1 + 1) / H, (float)(rect_w(b) + 1) / W,
                         (float)(rect_h(b) + 1) / H};
        double sum = 0, mean[4] = {0};
        for (int q = 0; q < Q; q++) {
            const float *x = cxcywh + (int64_t)q * 4;
            if (!(score[q] > floor) || box_iou(x, mine) < VOTE_TAU) continue;
            float corner[4] = {x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2, x[1] + x[3] / 2};
            for (int k = 0; k < 4; k++) mean[k] += (double)(score[q] * corner[k]);
            sum += (double)score[q];
        }
        if (sum == 0) continue;
        Rect r = {(int)(mean[0] / sum * (double)W + 0.5), (int)(mean[1] / sum * (double)H + 0.5),
                  (int)(mean[2] / sum * (double)W + 0.5) - 1, (int)(mean[3] / sum * (double)H + 0.5) - 1};
        r = (Rect){MAX(r.x0, 0), MAX(r.y0, 0), MIN(r.x1, (int)W - 1), MIN(r.y1, (int)H - 1)};
        if (rect_w(r) >= 1 && rect_h(r) >= 1) box[j].rect = r;
    }
}

static int64_t find_proposals(GuidedAnswerer *g, Ctx *c, const Ask *ask, int64_t n, const Outputs *out,
                              Proposals *list, int32_t *of, Arena *a) {
    Teacher *t = g->teacher;
    Tape *tape = c->tape;
    Outputs start;
    c->tape = NULL;
    module_forward(g->start, c, ask, n, &start);
    c->tape = tape;
    int Q = (int)out->logits->shape[1], K = MIN(t->max_candidates, MAX_CANDIDATES);
    const float *logits = to_host(c, out->logits), *before = to_host(c, start.logits), *boxes = to_host(c, start.boxes);
    int64_t nlist = 0;
    tower_clear(&t->seen);
    for (int64_t i = 0; i < n; i++) {
        TowerKey key = ask_image_key(&ask[i]);
        const TowerRow *known = tower_find(&t->seen, key);
        of[i] = known ? known->row : (int32_t)nlist;
        if (known) continue;
        tower_add(&t->seen, key, (TowerRow){0, (int32_t)nlist});
        list[nlist++] = (Proposals){.ask = i};
    }
    float *score = ARENA_NEW(a, float, nlist *Q);
    for (int64_t i = 0; i < n; i++)
        for (int q = 0; q < Q; q++) score[of[i] * Q + q] = MAX(score[of[i] * Q + q], sigmoid(MAX(logits[i * Q + q], before[i * Q + q])));
    for (int64_t k = 0; k < nlist; k++) {
        Proposals *p = &list[k];
        const Ask *first = &ask[p->ask];
        p->box = arena_alloc(a, (size_t)K * sizeof *p->box);
        p->crop = arena_alloc(a, (size_t)K * sizeof *p->crop);
        p->n = loc_postprocess(p->box, K, boxes + p->ask * Q * 4, score + k * Q, Q, rect_w(first->rect),
                               rect_h(first->rect), t->floor, CANDIDATE_TAU, g->student->strict, a);
        vote(p->box, p->n, boxes + p->ask * Q * 4, score + k * Q, Q, first->rect, t->floor);
        for (int j = 0; j < p->n; j++)
            p->crop[j] = (Ask){first->image, first->image_id, shown(first->rect, p->box[j].rect, t->grow), "What is this?"};
    }
    return nlist;
}

/* Asks of every proposal what it is. */
static void look_at_proposals(Teacher *t, Ctx *c, Proposals *list, int64_t n, Arena *a) {
    int64_t total = 0, at = 0, V = t->vqa->nlabels;
    for (int64_t k = 0; k < n; k++) total += list[k].n;
    Ask *all = arena_alloc(a, (size_t)total * sizeof *all);
    float *what = arena_alloc(a, (size_t)(total * V) * sizeof *what);
    for (int64_t k = 0; k < n; k++) {
        memcpy(all + at, list[k].crop, (size_t)list[k].n * sizeof *all);
        list[k].what = what + at * V;
        at += list[k].n;
    }
    teacher_ask(t, c, all, total, what);
}

/* ---- LOC: is it what the phrase says? ---------------------------------------------------------------- */

/* A phrase is words that the teacher knows as answers: the last is what the thing is, those before are its attributes. Which
 * question a word answers need not be known: under the others its probability is near 0, so the largest counts. */
static const char *const attribute_questions[] = {"What color is the %s?", "What pattern is on the %s?",
                                                  "What size is the %s?"};
enum { MAX_WORDS = 4, WORTH_ASKING = 8 /* 1/8: a candidate that is this noun with less probability is not it */ };

typedef struct Phrase {
    int nwords, label[MAX_WORDS]; /* label -1: no answer of the teacher, the word says nothing */
    const char *exists;           /* "Is there a red ball?" */
    const char *ask[COUNT_OF(attribute_questions)];
} Phrase;

static Phrase phrase_of(const Teacher *t, const char *query, Arena *a) {
    Phrase p = {0};
    char text[96], question[160], *save = NULL, *w[MAX_WORDS];
    snprintf(text, sizeof text, "%s", query);
    for (char *word = strtok_r(text, " ", &save); word && p.nwords < MAX_WORDS; word = strtok_r(NULL, " ", &save))
        w[p.nwords++] = word;
    for (int i = 0; i < p.nwords; i++) p.label[i] = find_label(t->vqa, w[i]);
    verify_question(question, sizeof question, query);
    p.exists = arena_strdup(a, question, strlen(question));
    for (int q = 0; p.nwords > 1 && q < COUNT_OF(attribute_questions); q++) {
        snprintf(question, sizeof question, attribute_questions[q], w[p.nwords - 1]);
        p.ask[q] = arena_strdup(a, question, strlen(question));
    }
    return p;
}

static float share_of_yes(const Teacher *t, const float *p) {
    float sum = p[t->yes] + p[t->no];
    return sum > 0 ? p[t->yes] / sum : 0;
}

/* The questions that decide whether proposal `crop` is what the phrase says, in a fixed order: exists, then one per kind of
 * attribute. Returns how many. */
static int phrase_questions(const Teacher *t, const Phrase *p, const Ask *crop, Ask *ask) {
    int n = 0;
    ask[n] = *crop;
    ask[n++].query = p->exists;
    for (int q = 0; t->attributes && p->nwords > 1 && q < COUNT_OF(attribute_questions); q++) {
        ask[n] = *crop;
        ask[n++].query = p->ask[q];
    }
    return n;
}

/* The probability that it is there: `exists` alone, or its geometric mean with the product of the words' probabilities.
 * answer (n, V) of phrase_questions. */
static float belief(const Teacher *t, const Phrase *p, float noun, const float *answer) {
    int V = t->vqa->nlabels;
    float exists = share_of_yes(t, answer), words = noun;
    if (!t->attributes) return exists;
    for (int w = 0; w + 1 < p->nwords; w++) {
        float best = p->label[w] < 0 ? 1 : 0;
        for (int q = 0; p->label[w] >= 0 && q < COUNT_OF(attribute_questions); q++)
            best = MAX(best, answer[(q + 1) * V + p->label[w]]);
        words *= best;
    }
    return sqrtf(exists * words);
}

/* The student's candidates of every ask and how much the teacher believes in each. */
static void verify(Teacher *t, Ctx *c, const Ask *ask, int64_t n, const Proposals *list, const int32_t *of,
                   Label *const *label_of, Arena *a) {
    int V = t->vqa->nlabels, most = 1 + COUNT_OF(attribute_questions);
    int64_t ncandidates = 0, nasks = 0, at = 0;
    for (int64_t i = 0; i < n; i++) ncandidates += list[of[i]].n;
    Ask *question = arena_alloc(a, (size_t)(ncandidates * most) * sizeof *question);
    int64_t *first = arena_alloc(a, (size_t)ncandidates * sizeof *first);
    float *noun = arena_alloc(a, (size_t)ncandidates * sizeof *noun);
    Phrase *phrase = arena_alloc(a, (size_t)n * sizeof *phrase);
    for (int64_t i = 0; i < n; i++) {
        const Proposals *p = &list[of[i]];
        Label *l = label_of[i];
        phrase[i] = phrase_of(t, ask[i].query, a);
        int label = t->attributes && phrase[i].nwords ? phrase[i].label[phrase[i].nwords - 1] : -1;
        for (int j = 0; j < p->n; j++, at++) {
            l->candidate[l->ncandidates++] = (Candidate){.box = p->box[j].rect, .leader = j};
            noun[at] = label < 0 ? 1 : p->what[j * V + label];
            first[at] = noun[at] * WORTH_ASKING < 1 ? -1 : nasks;
            if (first[at] >= 0) nasks += phrase_questions(t, &phrase[i], &p->crop[j], question + nasks);
        }
    }
    float *reply = arena_alloc(a, (size_t)(nasks * V) * sizeof *reply);
    teacher_ask(t, c, question, nasks, reply);
    at = 0;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < label_of[i]->ncandidates; j++, at++)
            label_of[i]->candidate[j].yes =
                first[at] < 0 ? noun[at] : belief(t, &phrase[i], noun[at], reply + first[at] * V);
}

bool teacher_noun(const Teacher *t, const char *phrase, Noun *out) {
    const char *space = strrchr(phrase, ' ');
    out->alone = !space;
    out->label = find_label(t->vqa, space ? space + 1 : phrase);
    return out->label >= 0;
}

/* Whether the image is known to be looked at for this noun alone. */
static bool looked_for(const Teacher *t, uint64_t image_id, int32_t label) {
    for (int64_t i = 0; i < t->nnouns; i++)
        if (t->noun[i].image_id == image_id && t->noun[i].label == label && t->noun[i].alone) return true;
    return false;
}

static bool has_others(const Teacher *t, const Ask *ask) {
    for (const OtherAsk *o = t->other; o; o = o->next)
        if (o->ask.image_id == ask->image_id && !memcmp(&o->ask.rect, &ask->rect, sizeof ask->rect))
            return true;
    return false;
}

/* Extends the asks, n of them, by nouns that others of the batch are about: each rectangle gets up to
 * t->others, once in an update. They tell the student what a thing is not, and cost one look more where
 * they fit. Which they are depends on the batch and the rectangle alone, not on what else is asked in this
 * call: so it is the same for any number of ranks. Returns the new number. */
static int64_t other_asks(const Teacher *t, Ask *ask, int64_t n, const Proposals *list, int64_t nlist, int32_t *of) {
    enum { MAX_NOUNS = 64 };
    int32_t noun[MAX_NOUNS];
    int nnouns = 0;
    int64_t end = n;
    for (int64_t i = 0; i < t->nnouns && nnouns < MAX_NOUNS && t->others; i++) {
        int k = 0;
        while (k < nnouns && noun[k] != t->noun[i].label) k++;
        if (k == nnouns) noun[nnouns++] = t->noun[i].label;
    }
    for (int64_t k = 0; k < nlist && nnouns; k++) {
        Ask first = ask[list[k].ask];
        TowerKey key = ask_image_key(&first);
        int from = (int)(hash_bytes(&key, sizeof key, 1) % (uint64_t)nnouns), taken = 0;
        if (has_others(t, &first)) continue;
        for (int j = 0; j < nnouns && taken < t->others; j++) {
            const int32_t label = noun[(from + j) % nnouns];
            if (looked_for(t, first.image_id, label)) continue;
            first.query = t->vqa->label[label];
            of[end] = (int32_t)k;
            ask[end++] = first;
            taken++;
        }
    }
    return end;
}

static void label_loc(GuidedAnswerer *g, Ctx *c, const Ask *asked, int64_t n, Answer *answer, Arena *a) {
    Teacher *t = g->teacher;
    Proposals *list = arena_alloc(a, (size_t)n * sizeof *list);
    Ask *ask = arena_alloc(a, (size_t)(n * (1 + t->others)) * sizeof *ask);
    int32_t *of = arena_alloc(a, (size_t)(n * (1 + t->others)) * sizeof *of);
    memcpy(ask, asked, (size_t)n * sizeof *ask);
    int64_t nlist = find_proposals(g, c, ask, n, answer[0].out, list, of, a);
    int64_t all = other_asks(t, ask, n, list, nlist, of);
    if (t->attributes) look_at_proposals(t, c, list, nlist, a);
    Label **label = arena_alloc(a, (size_t)all * sizeof *label);
    for (int64_t i = 0; i < all; i++) {
        label[i] = ARENA_NEW(a, Label, 1);
        *label[i] = (Label){.is_loc = true, .candidate = ARENA_NEW(a, Candidate, list[of[i]].n), .confidence = 1};
    }
    verify(t, c, ask, all, list, of, label, a);
    for (int64_t i = 0; i < all; i++) {
        Label *l = label[i];
        find_leaders(l, a);
        for (int k = 0; k < l->nleaders; k++)
            l->confidence = MIN(l->confidence, MAX(l->candidate[k].yes, 1 - l->candidate[k].yes));
        l->teacher = verified_boxes(l, -1, ask[i].rect, a);
        if (i < n) {
            l->student = answer[i].value;
            answer[i].label = l;
            continue;
        }
        OtherAsk *o = ARENA_NEW(a, OtherAsk, 1);
        *o = (OtherAsk){.ask = ask[i], .label = l, .next = t->other};
        t->other = o;
    }
}

Value verified_boxes(const Label *l, int n, Rect of, Arena *a) {
    if (n < 0)
        for (n = 0; n < l->nleaders && l->candidate[n].yes > 0.5f;) n++;
    Boxes *b = boxes_new(a, n, of);
    for (int k = 0; k < n; k++)
        b->box[k] = (Box){l->candidate[k].box, l->candidate[k].yes, k};
    return value_boxes(b);
}

/* ---- the answerer ---------------------------------------------------------------------------------- */

static void guided_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    GuidedAnswerer *g = (GuidedAnswerer *)self;
    g->student->base.answer(&g->student->base, c, ask, n, answer, a);
    if (!strcmp(self->module, "VQA"))
        label_vqa(g, c, ask, n, answer, a);
    else
        label_loc(g, c, ask, n, answer, a);
    if (g->steer_teacher)
        for (int64_t i = 0; i < n; i++) answer[i].value = answer[i].label->teacher;
}

void guided_answerer(GuidedAnswerer *g, ModuleAnswerer *student, Module *start, Teacher *teacher, bool steer_teacher) {
    *g = (GuidedAnswerer){
        {student->base.module, student->base.max_batch, guided_answer}, student, start, teacher, steer_teacher};
}
