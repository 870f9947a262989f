/* sched.c -- waves. See sched.h. */
#include "engine/sched.h"

/* A module step that is ready, and what it asks. */
typedef struct Pending {
    int job, step, answerer, n;
    const StepAsk *ask;  /* n > 0 of them */
    int64_t first;       /* where their questions' numbers are in the wave's list */
} Pending;

void sched_open(Sched *s, Answerer *const *answerer, int n) {
    *s = (Sched){.answerer = answerer, .nanswerers = n, .cache = true};
}

void sched_close(Sched *s) {
    free(s->question);
    free(s->record);
    free(s->slot);
    free(s->pending);
    *s = (Sched){0};
}

static int find_answerer(const Sched *s, const char *module) {
    for (int i = 0; i < s->nanswerers; i++)
        if (s->answerer[i]->module == module || !strcmp(s->answerer[i]->module, module)) return i;
    return -1;
}

static bool fail_step(Job *j, int step) {
    j->failed = true;
    j->failed_step = step;
    return false;
}

/* Runs `step` and whatever host steps become ready through it; module steps are put on the pending list.
 * left[k]: how many steps k still waits for. */
static bool advance(Sched *s, Job *j, int job, int step, uint8_t *left, int *stack, Arena *a) {
    int top = 0;
    stack[top++] = step;
    while (top) {
        int i = stack[--top];
        const Step *st = &j->prog->steps[i];
        if (st->module) {
            StepAsk *ask = NULL;
            const int n = program_ask(j->prog, i, j->vars, &ask, a, &j->err), w = n > 0 ? find_answerer(s, st->module) : 0;
            if (n < 0) return fail_step(j, i);
            if (w < 0) {
                fail(&j->err, "line %d: no %s module is loaded", st->line, st->module);
                return fail_step(j, i);
            }
            if (n > 0) {
                GROW(s->pending, s->pending_cap, s->npending + 1);
                s->pending[s->npending++] = (Pending){.job = job, .step = i, .answerer = w, .n = n, .ask = ask};
                continue;
            }
        } else if (!program_run_host(j->prog, i, j->vars, a, &j->err)) {
            return fail_step(j, i);
        }
        for (int k = st->nusers - 1; k >= 0; k--)
            if (!--left[st->users[k]]) stack[top++] = st->users[k];
    }
    return true;
}

static int by_answerer(const void *x, const void *y) {
    const Pending *p = x, *q = y;
    if (p->answerer != q->answerer) return p->answerer - q->answerer;
    return p->job != q->job ? p->job - q->job : p->step - q->step;
}

static uint64_t ask_hash(int answerer, const Ask *q) {
    struct {
        uint64_t image;
        Rect rect;
        uint64_t text;
    } key = {q->image_id, q->rect, hash_bytes(q->query, strlen(q->query), (uint64_t)answerer)};
    return hash_bytes(&key, sizeof key, 0);
}

static bool same_ask(const Question *q, int answerer, const Ask *b) {
    return q->answerer == answerer && q->ask.image_id == b->image_id &&
           !memcmp(&q->ask.rect, &b->rect, sizeof b->rect) && !strcmp(q->ask.query, b->query);
}

static void rehash(Sched *s) {
    s->nslots = MAX(2 * s->nslots, 1024);
    s->slot = xrealloc(s->slot, (size_t)s->nslots, sizeof *s->slot);
    for (int64_t i = 0; i < s->nslots; i++) s->slot[i] = -1;
    for (int64_t q = 0; q < s->nquestions; q++) {
        int64_t i =
            (int64_t)(ask_hash(s->question[q].answerer, &s->question[q].ask) & (uint64_t)(s->nslots - 1));
        while (s->slot[i] >= 0) i = (i + 1) & (s->nslots - 1);
        s->slot[i] = q;
    }
}

/* The question's number: an old one when this run has already asked it. */
static int64_t question_for(Sched *s, int answerer, const Ask *ask) {
    if (2 * (s->nquestions + 1) > s->nslots) rehash(s);
    int64_t i = (int64_t)(ask_hash(answerer, ask) & (uint64_t)(s->nslots - 1));
    for (; s->slot[i] >= 0; i = (i + 1) & (s->nslots - 1))
        if (s->cache && same_ask(&s->question[s->slot[i]], answerer, ask)) return s->slot[i];
    GROW(s->question, s->question_cap, s->nquestions + 1);
    s->question[s->nquestions] = (Question){.answerer = answerer, .ask = *ask};
    return s->slot[i] = s->nquestions++;
}

/* The question with its image: the step's first argument, when that is one. */
static Ask ask_of(const Job *j, const Step *st, const StepAsk *q) {
    const Value *image = step_arg(j->prog, st, 0, j->vars);
    Ask ask = {.rect = q->rect, .query = q->query};
    if (image->kind != VAL_IMAGE) return ask;
    ask.image_id = image->image.id;
    ask.image = *image->image.pixels;
    return ask;
}

/* Hands the answers to the step that waits for them. */
static bool conclude(Sched *s, Job *j, const Pending *p, const int64_t *question, Arena *a) {
    const Question *q = &s->question[question[0]];
    const Value *answer = &q->answer.value;
    for (int k = 0; k < p->n; k++) {
        q = &s->question[question[k]];
        GROW(s->record, s->record_cap, s->nrecords + 1);
        s->record[s->nrecords++] = (StepRecord){p->job, p->step, (int)question[k]};
        if (!q->answer.why) continue;
        const Step *st = &j->prog->steps[p->step];
        fail_as(&j->err, FAIL_DATA, "line %d: %s: %s", st->line, st->kind->name, q->answer.why);
        return fail_step(j, p->step);
    }
    if (p->n > 1) {
        Value *all = arena_alloc(a, (size_t)p->n * sizeof *all);
        for (int k = 0; k < p->n; k++) all[k] = s->question[question[k]].answer.value;
        answer = all;
    }
    return program_conclude(j->prog, p->step, j->vars, p->ask, answer, p->n, a, &j->err) ? true : fail_step(j, p->step);
}

/* Answers the new questions of one module, from question `first` on. */
static void answer_new(Sched *s, Ctx *c, int answerer, int64_t first, Arena *a) {
    Answerer *w = s->answerer[answerer];
    int64_t n = s->nquestions - first, batch = w->max_batch > 0 ? w->max_batch : n;
    Ask *ask = arena_alloc(a, (size_t)n * sizeof *ask);
    Answer *answer = arena_zalloc(a, (size_t)n * sizeof *answer);
    for (int64_t i = 0; i < n; i++) ask[i] = s->question[first + i].ask;
    for (int64_t i = 0; i < n; i += batch) w->answer(w, c, ask + i, MIN(batch, n - i), answer + i, a);
    for (int64_t i = 0; i < n; i++) s->question[first + i].answer = answer[i];
}

void sched_run(Sched *s, Ctx *c, Job *job, int njobs, Arena *a) {
    s->nquestions = s->nrecords = s->npending = 0;
    s->waves = 0;
    for (int64_t i = 0; i < s->nslots; i++) s->slot[i] = -1;
    uint8_t **left = arena_alloc(a, (size_t)njobs * sizeof *left);
    int stack[PROGRAM_STEPS_MAX];
    for (int i = 0; i < njobs; i++) {
        Job *j = &job[i];
        int n = j->prog->nsteps;
        j->failed = false;
        j->failed_step = -1;
        for (int k = 0; k < j->prog->ninputs; k++) j->vars[k].image.pixels = &j->image[k];
        left[i] = arena_alloc(a, (size_t)n);
        for (int k = 0; k < n; k++) left[i][k] = (uint8_t)j->prog->steps[k].nwaits;
        for (int k = 0; k < n && !j->failed; k++)
            if (!j->prog->steps[k].nwaits) advance(s, j, i, k, left[i], stack, a);
    }
    Pending *wave = NULL;
    while (s->npending) {
        s->waves++;
        int64_t n = s->npending;
        wave = arena_alloc(a, (size_t)n * sizeof *wave);
        memcpy(wave, s->pending, (size_t)n * sizeof *wave);
        s->npending = 0;
        arena_sort(a, wave, n, sizeof *wave, by_answerer);
        int64_t asks = 0;
        for (int64_t k = 0; k < n; asks += wave[k++].n) wave[k].first = asks;
        int64_t *question = arena_alloc(a, (size_t)asks * sizeof *question);
        for (int64_t begin = 0, end; begin < n; begin = end) {
            int64_t first = s->nquestions;
            for (end = begin; end < n && wave[end].answerer == wave[begin].answerer; end++) {
                const Pending *p = &wave[end];
                Job *j = &job[p->job];
                for (int k = 0; k < p->n && !j->failed; k++) {
                    Ask ask = ask_of(j, &j->prog->steps[p->step], &p->ask[k]);
                    question[p->first + k] = question_for(s, p->answerer, &ask);
                }
            }
            if (s->nquestions > first) answer_new(s, c, wave[begin].answerer, first, a);
        }
        for (int64_t k = 0; k < n; k++) {
            Job *j = &job[wave[k].job];
            if (j->failed || !conclude(s, j, &wave[k], question + wave[k].first, a)) continue;
            const Step *st = &j->prog->steps[wave[k].step];
            for (int u = 0; u < st->nusers && !j->failed; u++)
                if (!--left[wave[k].job][st->users[u]])
                    advance(s, j, wave[k].job, st->users[u], left[wave[k].job], stack, a);
        }
    }
}
