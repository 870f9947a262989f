/* eval.c -- accuracy of programs. See eval.h. */
#include "engine/eval.h"

#include "modules/answer.h"
#include "modules/steps.h"

enum { ANSWER_TEXT = 256 }; /* bytes; a longer result is no answer to anything */

/* ---- counting ------------------------------------------------------------------------------------- */

/* The right and wrong statements of NLVR2, for its consistency. */
typedef struct Verdicts {
    struct GroupMember { const char *id; bool right; } *at;
    int64_t n, cap;
} Verdicts;

static EvalType *type_row(EvalResult *r, const char *name) {
    for (int i = 0; i < r->ntypes; i++)
        if (!strncmp(r->type[i].type, name, EVAL_TYPE_NAME - 1)) return &r->type[i];
    if (r->ntypes == EVAL_TYPES_MAX - 1) name = "(other)"; /* takes the last row, and all names after it */
    if (r->ntypes == EVAL_TYPES_MAX) return &r->type[EVAL_TYPES_MAX - 1];
    EvalType *t = &r->type[r->ntypes++];
    snprintf(t->type, sizeof t->type, "%.*s", EVAL_TYPE_NAME - 1, name);
    return t;
}

static void count(EvalResult *r, Verdicts *v, const Sample *s, bool right) {
    EvalType *t = type_row(r, s->type ? s->type : "(none)");
    r->n++;
    t->n++;
    r->right += right;
    t->right += right;
    if (s->nimages != 2 || !s->id) return;
    GROW(v->at, v->cap, v->n + 1);
    v->at[v->n++] = (struct GroupMember){s->id, right};
}

/* "dev-850-2-0" is pair 2 of the group "dev-850-?-0": the text before the last part but one, and the last part. */
static int by_group(const void *x, const void *y) {
    const char *id[2] = {((const struct GroupMember *)x)->id, ((const struct GroupMember *)y)->id}, *last[2];
    size_t n[2];
    for (int i = 0; i < 2; i++) {
        last[i] = strrchr(id[i], '-');
        const char *pair = last[i] ? memrchr(id[i], '-', (size_t)(last[i] - id[i])) : NULL;
        n[i] = pair ? (size_t)(pair - id[i]) : strlen(id[i]); /* no such id: a group of its own */
        if (!pair) last[i] = "";
    }
    int c = memcmp(id[0], id[1], MIN(n[0], n[1]));
    return c ? c : n[0] != n[1] ? (n[0] > n[1]) - (n[0] < n[1]) : strcmp(last[0], last[1]);
}

static int by_type(const void *x, const void *y) {
    return strcmp(((const EvalType *)x)->type, ((const EvalType *)y)->type);
}

/* The totals. le: why the loader stopped, if not at the end. */
static bool finish(EvalResult *r, Verdicts *v, const Dataset *d, const LoaderStats *stats, double since, const Error *le, Error *e) {
    qsort(r->type, (size_t)r->ntypes, sizeof *r->type, by_type);
    if (v->n) qsort(v->at, (size_t)v->n, sizeof *v->at, by_group);
    for (int64_t i = 0, end; i < v->n; i = end) {
        bool all = true;
        for (end = i; end < v->n && !by_group(&v->at[i], &v->at[end]); end++) all &= v->at[end].right;
        r->groups++;
        r->groups_right += all;
    }
    free(v->at);
    r->skipped = stats->skipped;
    for (int k = JPEG_OK + 1; k < LOADER_CAUSES; k++) r->bad_images += stats->bad[k];
    char causes[256];
    loader_causes(stats, causes, sizeof causes);
    if (*causes) warn("images that cannot be used: %s; %" PRId64 " questions were left out", causes, r->skipped);
    if (r->failed) info("%" PRId64 " of %" PRId64 " programs gave no answer and count as wrong (%" PRId64 " did not parse); the first: %s",
                        r->failed, r->n, r->unparsed, r->first_failure);
    r->seconds = now_s() - since;
    if (*le->text) return *e = *le, false;
    return r->n ? true : fail_as(e, FAIL_DATA, "%s: no question could be evaluated: %" PRId64 " have no usable image, %" PRId64 " no answer",
                                 d->images.dir, r->skipped, r->no_gold);
}

/* ---- batches -------------------------------------------------------------------------------------- */

EvalConfig eval_config(const Dataset *d, const Config *cfg) {
    bool two = d->nsamples && d->sample[0].nimages == 2;
    return (EvalConfig){.batch = cfg->eval.batch, .limit = cfg->eval.limit, .workers = cfg->data.workers,
                        .max_bad_percent = cfg->data.max_bad_percent, .dialect = two ? &dialect_nlvr : &dialect_gqa,
                        .style = two ? ANSWER_TRUE_FALSE : ANSWER_YES_NO};
}

/* The first `limit` questions in the order of the file, once. `head` is what the loader borrows. */
static Loader *open_questions(Dataset *head, const Dataset *d, const EvalConfig *cfg, Error *e) {
    if (!d->nsamples) {
        fail_as(e, FAIL_DATA, "%s: there are no questions to evaluate", d->images.dir ? d->images.dir : "the dataset");
        return NULL;
    }
    *head = *d;
    if (cfg->limit) head->nsamples = MIN(head->nsamples, cfg->limit);
    LoaderConfig lc = {.seed = 1, .batch = cfg->batch, .workers = cfg->workers, .passes = 1,
                       .max_bad_percent = (float)cfg->max_bad_percent, .batch_bytes = (size_t)1 << 30};
    return loader_open(head, &lc, e);
}

static void failed_program(EvalResult *r, const Sample *s, const char *why) {
    if (!r->failed++) snprintf(r->first_failure, sizeof r->first_failure, "question %s: %s", s->id ? s->id : "?", why);
}

/* Parses the batch's programs into jobs; one that does not parse is counted here. Returns the number of jobs. */
static int make_jobs(EvalResult *r, Verdicts *v, const Dataset *d, const Batch *b, const EvalConfig *cfg, Job *job, const Sample **sample,
                     Arena *a) {
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        const Sample *s = &d->sample[b->item[i]];
        Error e = {0};
        if (!s->answer) {
            r->no_gold++;
            continue;
        }
        Program *p = arena_alloc(a, sizeof *p);
        bool ok = s->program ? program_parse(p, a, cfg->dialect, s->program, strlen(s->program), &e)
                             : fail(&e, "it has no program");
        if (ok && p->ninputs > s->nimages) ok = fail(&e, "its program wants %d images, the question has %d", p->ninputs, s->nimages);
        if (!ok) {
            failed_program(r, s, e.text);
            r->unparsed++;
            count(r, v, s, false);
            continue;
        }
        ImageView *image = arena_alloc(a, 2 * sizeof *image);
        uint64_t *id = arena_alloc(a, 2 * sizeof *id);
        Value *vars = ARENA_NEW(a, Value, p->nslots);
        for (int k = 0; k < p->ninputs; k++) {
            int at = b->image_of[i][k];
            image[k] = b->image[at];
            id[k] = b->image_id[at];
            vars[k] = value_image(id[k], image[k].w, image[k].h);
        }
        job[n] = (Job){.prog = p, .vars = vars, .image = image, .image_id = id};
        sample[n++] = s;
    }
    return n;
}

/* Whether the job's result is the gold answer. */
static bool judge(EvalResult *r, const Job *j, const Sample *s, AnswerStyle style) {
    char text[ANSWER_TEXT];
    Error e = {0};
    if (j->failed) {
        failed_program(r, s, j->err.text);
        return false;
    }
    if (!answer_text(text, sizeof text, program_result(j->prog, j->vars), style, &e)) {
        failed_program(r, s, e.text);
        return false;
    }
    return !strcmp(text, s->answer);
}

bool eval_programs(Run *r, Answerer *const *answerer, int nanswerers, const Dataset *d, const EvalConfig *cfg, EvalResult *out,
                   Error *e) {
    CHECK(cfg->batch >= 1 && cfg->dialect, "eval: batch %d, dialect %p", cfg->batch, (const void *)cfg->dialect);
    double since = now_s();
    *out = (EvalResult){0};
    Dataset head;
    Loader *l = open_questions(&head, d, cfg, e);
    if (!l) return false;
    Error le = {0};
    Verdicts v = {0};
    Sched s;
    sched_open(&s, answerer, nanswerers);
    for (const Batch *b; (b = loader_next(l, &le));) {
        run_begin(r, 0, false);
        for (int k = 0; k < cfg->nmodules; k++) module_begin(cfg->module[k]);
        Arena *a = &r->host;
        int room = MAX(b->n, 1);
        Job *job = arena_alloc(a, (size_t)room * sizeof *job);
        const Sample **sample = arena_alloc(a, (size_t)room * sizeof *sample);
        bool *right = arena_alloc(a, (size_t)room * sizeof *right);
        int n = make_jobs(out, &v, d, b, cfg, job, sample, a);
        sched_run(&s, &r->ctx, job, n, a);
        for (int i = 0; i < n; i++) {
            right[i] = judge(out, &job[i], sample[i], cfg->style);
            count(out, &v, sample[i], right[i]);
        }
        out->steps += s.nrecords;
        out->questions += s.nquestions;
        out->waves += s.waves;
        if (cfg->seen) cfg->seen(cfg->arg, &(EvalBatch){&s, job, sample, right, n});
    }
    bool ok = finish(out, &v, d, loader_stats(l), since, &le, e);
    sched_close(&s);
    loader_close(l);
    return ok;
}

bool eval_end_to_end(Run *r, Module *vqa, const Dataset *d, const EvalConfig *cfg, EvalResult *out, Error *e) {
    double since = now_s();
    *out = (EvalResult){0};
    if (d->nsamples && d->sample[0].nimages != vqa->images)
        return fail_as(e, FAIL_CONFIG, "%s: questions about %d images cannot be put to %s end to end, which takes %d", d->images.dir,
                       d->sample[0].nimages, vqa->folder, vqa->images);
    Dataset head;
    Loader *l = open_questions(&head, d, cfg, e);
    if (!l) return false;
    Error le = {0};
    Verdicts v = {0};
    for (const Batch *b; (b = loader_next(l, &le));) {
        run_begin(r, 0, false);
        module_begin(vqa);
        Ask *ask = arena_alloc(&r->host, (size_t)MAX(b->n * vqa->images, 1) * sizeof *ask);
        const Sample **sample = arena_alloc(&r->host, (size_t)MAX(b->n, 1) * sizeof *sample);
        int n = 0;
        for (int i = 0; i < b->n; i++) {
            const Sample *s = &d->sample[b->item[i]];
            if (!s->answer || s->nimages != vqa->images) {
                out->no_gold += !s->answer;
                continue;
            }
            for (int k = 0; k < vqa->images; k++) {
                int at = b->image_of[i][k];
                ask[n * vqa->images + k] = (Ask){b->image[at], b->image_id[at], {0, 0, b->image[at].w, b->image[at].h}, s->question};
            }
            sample[n++] = s;
        }
        if (!n) continue;
        Outputs o;
        module_forward(vqa, &r->ctx, ask, n, &o);
        const char **text = arena_alloc(&r->host, (size_t)n * sizeof *text);
        answer_texts(vqa, &r->ctx, &o, text, &r->host);
        for (int i = 0; i < n; i++) count(out, &v, sample[i], !strcmp(text[i], sample[i]->answer));
        out->steps += n;
        out->questions += n;
    }
    bool ok = finish(out, &v, d, loader_stats(l), since, &le, e);
    loader_close(l);
    return ok;
}

/* ---- telling -------------------------------------------------------------------------------------- */

static const EvalType *find_type(const EvalResult *r, const char *name) {
    for (int i = 0; r && i < r->ntypes; i++)
        if (!strcmp(r->type[i].type, name)) return &r->type[i];
    return NULL;
}

static void print_row(FILE *f, const char *name, int64_t n, const EvalColumn *column, int ncolumns, bool overall) {
    fprintf(f, "%-20s %9" PRId64, name, n);
    for (int k = 0; k < ncolumns; k++) {
        const EvalResult *r = column[k].result;
        const EvalType *t = overall ? NULL : find_type(r, name + 2);
        int width = MAX((int)strlen(column[k].name), 7) + 2;
        if (r && (overall ? r->n : t && t->n)) fprintf(f, "%*.1f%%", width - 1, overall ? eval_accuracy(r) : percent(t->right, t->n));
        else fprintf(f, "%*s", width, "-");
    }
    fputc('\n', f);
}

void eval_print(FILE *f, const EvalColumn *column, int ncolumns) {
    fprintf(f, "%-20s %9s", "", "questions");
    for (int k = 0; k < ncolumns; k++) fprintf(f, "%*s", MAX((int)strlen(column[k].name), 7) + 2, column[k].name);
    fputc('\n', f);
    const EvalResult *first = NULL;
    for (int k = 0; k < ncolumns && !first; k++) first = column[k].result;
    print_row(f, "all", first ? first->n : 0, column, ncolumns, true);
    for (int k = 0; k < ncolumns; k++) { /* types that a column before it had are printed already */
        const EvalResult *r = column[k].result;
        for (int i = 0; r && i < r->ntypes; i++) {
            bool old = false;
            for (int j = 0; j < k && !old; j++) old = find_type(column[j].result, r->type[i].type);
            char name[EVAL_TYPE_NAME + 2];
            snprintf(name, sizeof name, "  %s", r->type[i].type);
            if (!old) print_row(f, name, r->type[i].n, column, ncolumns, false);
        }
    }
    for (int k = 0; k < ncolumns; k++) {
        const EvalResult *r = column[k].result;
        if (r && r->groups) fprintf(f, "%s: consistency %.1f%% of %" PRId64 " groups\n", column[k].name, percent(r->groups_right, r->groups), r->groups);
        if (r && r->failed) fprintf(f, "%s: %" PRId64 " programs gave no answer (wrong)\n", column[k].name, r->failed);
    }
}

json_t *eval_json(const EvalResult *r) {
    json_t *types = json_object();
    for (int i = 0; i < r->ntypes; i++) {
        const EvalType *t = &r->type[i];
        json_object_set_new(types, t->type, json_pack("{s:f,s:I,s:I}", "accuracy", percent(t->right, t->n), "n", (json_int_t)t->n, "right",
                                                      (json_int_t)t->right));
    }
    json_t *o = json_pack("{s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o}", "accuracy", eval_accuracy(r), "n", (json_int_t)r->n, "right",
                          (json_int_t)r->right, "failed", (json_int_t)r->failed, "unparsed", (json_int_t)r->unparsed, "skipped",
                          (json_int_t)r->skipped, "no_gold", (json_int_t)r->no_gold, "bad_images", (json_int_t)r->bad_images, "types", types);
    CHECK(o, "eval: a result did not become JSON (a type name that is not UTF-8?)");
    if (r->groups) json_object_set_new(o, "consistency", json_real(percent(r->groups_right, r->groups)));
    json_object_set_new(o, "steps", json_integer(r->steps));
    json_object_set_new(o, "questions", json_integer(r->questions));
    json_object_set_new(o, "seconds", json_real(r->seconds));
    if (*r->first_failure) json_object_set_new(o, "first_failure", json_string(r->first_failure));
    return o;
}
