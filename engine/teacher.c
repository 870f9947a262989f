/* teacher.c -- asking the frozen network. See teacher.h. */
#include "engine/teacher.h"

#include <math.h>

#include "modules/steps.h"

static int find_label(const Module *m, const char *text) {
    for (int i = 0; i < m->nlabels; i++)
        if (!strcmp(m->label[i], text)) return i;
    return -1;
}

bool teacher_open(Teacher *t, const char *folder, const Module *student_vqa, bool verify, Device *dev,
                  Error *e) {
    *t = (Teacher){.max_batch = 128, .max_candidates = 8, .floor = 0.02f, .grow = 1.4f, .attributes = true};
    if (!(t->vqa = module_open_for("VQA", folder, dev, MODULE_FROZEN, e))) return fail_in(e, "teacher");
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
    *t = (Teacher){0};
}

void teacher_ask(Teacher *t, Ctx *c, const Ask *ask, int64_t n, float *p) {
    Tape *tape = c->tape;
    c->tape = NULL;
    int64_t V = t->vqa->nlabels;
    bool multi = module_multi_label(t->vqa);
    for (int64_t at = 0; at < n; at += t->max_batch) {
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        int64_t k = MIN(t->max_batch, n - at);
        Outputs out;
        module_begin(t->vqa); /* its cached embeddings go with the memory below */
        module_forward(t->vqa, c, ask + at, k, &out);
        const float *logits = to_host(c, out.logits);
        for (int64_t i = 0; i < k; i++) answer_probs(p + (at + i) * V, logits + i * V, V, 1, multi);
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
    t->asked += n;
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
    return p->patch - q->patch;
}

/* Candidates on one object are led by the one the teacher likes best; leaders go to the front. */
static void find_leaders(Label *l) {
    Candidate sorted[MAX_CANDIDATES], follower[MAX_CANDIDATES];
    int n = l->ncandidates, nfollowers = 0;
    memcpy(sorted, l->candidate, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_yes);
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

/* ---- LOC, word by word ------------------------------------------------------------------------------ */

/* A phrase is words that the teacher knows as answers: the last is what the thing is, those before are its attributes. Which
 * question a word answers need not be known: under the others its probability is near 0, so the largest counts. */
static const char *const attribute_questions[] = {"What color is the %s?", "What pattern is on the %s?",
                                                  "What size is the %s?"};
enum { MAX_WORDS = 4, WORTH_ASKING = 4 /* 1/4: below this `yes`, a candidate is not it */ };

typedef struct Word {
    int label, first, n;
} Word; /* its questions in the list; label -1: not an answer, it says nothing */

/* Adds the questions that the words of a phrase call for about one crop; returns the number of words. */
static int word_questions(const Teacher *t, const Ask *crop, const char *phrase, Word *word, Ask *ask,
                          int64_t *n, Arena *a) {
    char text[96], *save = NULL, *w[MAX_WORDS];
    int nwords = 0;
    snprintf(text, sizeof text, "%s", phrase);
    for (char *p = strtok_r(text, " ", &save); p && nwords < MAX_WORDS; p = strtok_r(NULL, " ", &save))
        w[nwords++] = p;
    for (int i = 0; i < nwords; i++) {
        word[i] = (Word){find_label(t->vqa, w[i]), (int)*n, 0};
        if (word[i].label < 0) continue;
        bool noun = i == nwords - 1;
        for (int q = 0; q < (noun ? 1 : COUNT_OF(attribute_questions)); q++) {
            char question[160];
            if (noun)
                snprintf(question, sizeof question, "What is this?");
            else
                snprintf(question, sizeof question, attribute_questions[q], w[nwords - 1]);
            ask[*n] = *crop;
            ask[(*n)++].query = arena_strdup(a, question, strlen(question));
            word[i].n++;
        }
    }
    return nwords;
}

/* Sharpens `yes` of the candidates worth it: the geometric mean with the product of the words' probabilities. */
static void verify_words(Teacher *t, Ctx *c, const Ask *ask, int64_t n, const Ask *crop, Answer *answer,
                         Arena *a) {
    int VT = t->vqa->nlabels, most = MAX_WORDS * COUNT_OF(attribute_questions);
    int64_t ncrops = 0, nasks = 0, k = 0;
    for (int64_t i = 0; i < n; i++) ncrops += answer[i].label->ncandidates;
    Ask *list = arena_alloc(a, (size_t)(ncrops * most) * sizeof *list);
    Word(*word)[MAX_WORDS] = arena_alloc(a, (size_t)ncrops * sizeof *word);
    int *nwords = ARENA_NEW(a, int, ncrops);
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < answer[i].label->ncandidates; j++, k++)
            if (answer[i].label->candidate[j].yes * WORTH_ASKING > 1)
                nwords[k] = word_questions(t, &crop[k], ask[i].query, word[k], list, &nasks, a);
    float *p = arena_alloc(a, (size_t)(nasks * VT) * sizeof *p);
    teacher_ask(t, c, list, nasks, p);
    k = 0;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < answer[i].label->ncandidates; j++, k++) {
            double product = 1;
            for (int w = 0; w < nwords[k]; w++) {
                float best = word[k][w].label < 0 ? 1 : 0;
                for (int q = word[k][w].first; q < word[k][w].first + word[k][w].n; q++)
                    best = MAX(best, p[(int64_t)q * VT + word[k][w].label]);
                product *= (double)best;
            }
            float *yes = &answer[i].label->candidate[j].yes;
            *yes = sqrtf(*yes * (float)product);
        }
}

static void label_loc(GuidedAnswerer *g, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    Teacher *t = g->teacher;
    int VT = t->vqa->nlabels, Q = (int)answer[0].out->logits->shape[1],
        K = MIN(t->max_candidates, MAX_CANDIDATES);
    const float *logits = to_host(c, answer[0].out->logits), *boxes = to_host(c, answer[0].out->boxes);
    float *score = arena_alloc(a, (size_t)Q * sizeof *score);
    Box *box = arena_alloc(a, (size_t)K * sizeof *box);
    Ask *crop = arena_alloc(a, (size_t)(n * K) * sizeof *crop);
    int64_t ncrops = 0;
    for (int64_t i = 0; i < n; i++) {
        Label *l = ARENA_NEW(a, Label, 1);
        *l = (Label){.is_loc = true,
                     .student = answer[i].value,
                     .candidate = ARENA_NEW(a, Candidate, K),
                     .confidence = 1};
        for (int q = 0; q < Q; q++) score[q] = sigmoid(logits[i * Q + q]);
        l->ncandidates = loc_postprocess(box, K, boxes + i * Q * 4, score, Q, rect_w(ask[i].rect),
                                         rect_h(ask[i].rect), t->floor, CANDIDATE_TAU, g->student->strict, a);
        char question[160];
        verify_question(question, sizeof question, ask[i].query);
        const char *text = arena_strdup(a, question, strlen(question));
        for (int k = 0; k < l->ncandidates; k++) {
            l->candidate[k] = (Candidate){box[k].rect, box[k].query, box[k].score, 0, k};
            crop[ncrops++] =
                (Ask){ask[i].image, ask[i].image_id, shown(ask[i].rect, box[k].rect, t->grow), text};
        }
        answer[i].label = l;
    }
    float *p = arena_alloc(a, (size_t)(ncrops * VT) * sizeof *p);
    teacher_ask(t, c, crop, ncrops, p);
    for (int64_t i = 0; i < n; i++) {
        Label *l = answer[i].label;
        for (int k = 0; k < l->ncandidates; k++, p += VT) {
            float yes = p[t->yes], no = p[t->no], sum = yes + no;
            l->candidate[k].yes = sum > 0 ? yes / sum : 0;
        }
    }
    if (t->attributes) verify_words(t, c, ask, n, crop, answer, a);
    for (int64_t i = 0; i < n; i++) {
        Label *l = answer[i].label;
        find_leaders(l);
        for (int k = 0; k < l->nleaders; k++)
            l->confidence = MIN(l->confidence, MAX(l->candidate[k].yes, 1 - l->candidate[k].yes));
        l->teacher = verified_boxes(l, -1, ask[i].rect, a);
    }
}

Value verified_boxes(const Label *l, int n, Rect of, Arena *a) {
    if (n < 0)
        for (n = 0; n < l->nleaders && l->candidate[n].yes > 0.5f;) n++;
    Boxes *b = boxes_new(a, n, of);
    for (int k = 0; k < n; k++)
        b->box[k] = (Box){l->candidate[k].box, l->candidate[k].yes, l->candidate[k].patch};
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

void guided_answerer(GuidedAnswerer *g, ModuleAnswerer *student, Teacher *teacher, bool steer_teacher) {
    *g = (GuidedAnswerer){
        {student->base.module, student->base.max_batch, guided_answer}, student, teacher, steer_teacher};
}
