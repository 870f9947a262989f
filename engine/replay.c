/* replay.c -- the store of lessons. See replay.h. */
#include "engine/replay.h"

#include <unistd.h>

#include "engine/comm.h"

/* Room per program to begin with: some five questions, each with a distribution over the answers or a few dozen boxes. A batch may
 * want more: programs may ask more, and a checkpoint's lessons may be of more programs a step. */
enum { PROGRAM_BYTES = 1 << 16 };

void replay_open(Replay *r, int reuse, int lag, int nlabels, int programs, int lo, int hi) {
    *r = (Replay){.reuse = reuse, .lag = lag, .nlabels = nlabels, .lo = lo, .hi = hi,
                  .size = reuse ? (int64_t)reuse * lag + 1 : 0};
    r->kept = xcalloc((size_t)r->size + 1, sizeof *r->kept);
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    for (int64_t i = 0; i < r->size; i++) {
        r->kept[i].batch = -1;
        arena_open_growing(&r->kept[i].memory, "replay", (size_t)(programs + 16) * PROGRAM_BYTES, machine);
    }
}

void replay_close(Replay *r) {
    for (int64_t i = 0; i < r->size; i++) arena_close(&r->kept[i].memory);
    free(r->kept);
    *r = (Replay){0};
}

static KeptBatch *slot(const Replay *r, int64_t batch) { return &r->kept[batch % r->size]; }

void replay_begin(Replay *r, int64_t batch) {
    if (!r->size) return;
    KeptBatch *k = slot(r, batch);
    arena_reset(&k->memory, 0);
    k->batch = batch;
    k->n = 0;
    k->lesson = NULL;
}

static void *copy(Arena *a, const void *p, size_t bytes) {
    return p ? memcpy(arena_alloc(a, bytes), p, bytes) : NULL;
}

/* Lessons grow by doubling; what is outgrown stays in the arena until the ring comes round. */
static KeptLesson *add(KeptBatch *k) {
    if ((k->n & (k->n - 1)) == 0) {
        KeptLesson *more = arena_alloc(&k->memory, (size_t)MAX(2 * k->n, 16) * sizeof *more);
        if (k->n) memcpy(more, k->lesson, (size_t)k->n * sizeof *more);
        k->lesson = more;
    }
    return &k->lesson[k->n++];
}

void replay_keep(Replay *r, int64_t batch, int at, const Ask *ask, const Lesson *lesson) {
    if (!r->size) return;
    KeptBatch *k = slot(r, batch);
    Arena *a = &k->memory;
    CHECK(at >= r->lo && at < r->hi, "a lesson of place %d, ours are %d to %d", at, r->lo, r->hi);
    KeptLesson *l = add(k);
    *l = (KeptLesson){at, ask->image_id, arena_strdup(a, ask->query, strlen(ask->query)), *lesson};
    l->lesson.p = copy(a, lesson->p, (size_t)r->nlabels * sizeof *lesson->p);
    l->lesson.candidate = copy(a, lesson->candidate, (size_t)lesson->ncandidates * sizeof *lesson->candidate);
    l->lesson.yes = copy(a, lesson->yes, (size_t)lesson->nleaders * sizeof *lesson->yes);
}

const KeptBatch *replay_find(const Replay *r, int64_t batch) {
    if (!r->size || batch < 0) return NULL;
    const KeptBatch *k = slot(r, batch);
    return k->batch == batch ? k : NULL;
}

/* ---- the file ------------------------------------------------------------------------------------- */

/* Four flat tensors: whole numbers, fractions and text of all lessons, one after the other, and how many there are.
 *   batches (1 + nbatches, 2)  {reuse * lag + 1, nlabels}, then {batch, its lessons}
 *   ints    per lesson: place, image_id, rect, is_loc, nleaders, ncandidates, bytes of the query; per candidate: box, leader
 *   floats  per lesson: the distribution, or yes of the leaders; per candidate: yes
 *   text    the queries */
typedef struct Extent { int64_t batch, n, nints, nfloats, ntext; } Extent; /* of one batch */

typedef struct Flat {
    int64_t *ints, nints, ints_cap, nfloats, floats_cap, ntext, text_cap;
    float *floats;
    char *text;
    Extent *extent; /* in the order of batches */
    int64_t nbatches;
} Flat;

static void put_ints(Flat *f, const int64_t *x, int64_t n) {
    GROW(f->ints, f->ints_cap, f->nints + n);
    if (n) memcpy(f->ints + f->nints, x, (size_t)n * sizeof *x);
    f->nints += n;
}

static void put_int(Flat *f, int64_t x) { put_ints(f, &x, 1); }

static void put_text(Flat *f, const char *x, int64_t n) {
    GROW(f->text, f->text_cap, f->ntext + n);
    if (n) memcpy(f->text + f->ntext, x, (size_t)n);
    f->ntext += n;
}

static void put_floats(Flat *f, const float *x, int64_t n) {
    GROW(f->floats, f->floats_cap, f->nfloats + n);
    if (n) memcpy(f->floats + f->nfloats, x, (size_t)n * sizeof *x);
    f->nfloats += n;
}

static void put_rect(Flat *f, Rect r) {
    put_int(f, r.x0);
    put_int(f, r.y0);
    put_int(f, r.x1);
    put_int(f, r.y1);
}

static void put_lesson(Flat *f, const KeptLesson *k, int nlabels) {
    const Lesson *l = &k->lesson;
    int64_t bytes = (int64_t)strlen(k->query);
    put_int(f, k->place);
    put_int(f, (int64_t)k->image_id);
    put_rect(f, l->rect);
    put_int(f, l->is_loc);
    put_int(f, l->nleaders);
    put_int(f, l->ncandidates);
    put_int(f, bytes);
    put_text(f, k->query, bytes);
    if (l->is_loc) put_floats(f, l->yes, l->nleaders);
    else put_floats(f, l->p, nlabels);
    for (int i = 0; i < l->ncandidates; i++) {
        put_rect(f, l->candidate[i].box);
        put_int(f, l->candidate[i].leader);
        put_floats(f, &l->candidate[i].yes, 1);
    }
}

static int by_batch(const void *a, const void *b) {
    const KeptBatch *x = *(const KeptBatch *const *)a, *y = *(const KeptBatch *const *)b;
    return (x->batch > y->batch) - (x->batch < y->batch);
}

static Flat flatten(const Replay *r) {
    const KeptBatch **order = xcalloc((size_t)r->size + 1, sizeof *order);
    Flat f = {.extent = xcalloc((size_t)r->size + 1, sizeof *f.extent)};
    for (int64_t i = 0; i < r->size; i++)
        if (r->kept[i].batch >= 0) order[f.nbatches++] = &r->kept[i];
    qsort(order, (size_t)f.nbatches, sizeof *order, by_batch);
    for (int64_t i = 0; i < f.nbatches; i++) {
        const Extent was = {0, 0, f.nints, f.nfloats, f.ntext};
        for (int64_t k = 0; k < order[i]->n; k++) put_lesson(&f, &order[i]->lesson[k], r->nlabels);
        f.extent[i] = (Extent){order[i]->batch, order[i]->n, f.nints - was.nints, f.nfloats - was.nfloats,
                               f.ntext - was.ntext};
    }
    free(order);
    return f;
}

static void flat_free(Flat *f) {
    free(f->ints);
    free(f->floats);
    free(f->text);
    free(f->extent);
    *f = (Flat){0};
}

/* Brings the ranks' lessons together on rank 0, batch by batch: a higher rank has higher places. Empty on
 * the others. */
static Flat collect(const Flat *mine) {
    Comm *c = comm_world();
    size_t begin[4][c->size + 1];
    Extent *e = comm_collect(c, "lessons", mine->extent, (size_t)mine->nbatches * sizeof *e, begin[0]);
    int64_t *ints = comm_collect(c, "lessons", mine->ints, (size_t)mine->nints * sizeof *ints, begin[1]);
    float *floats =
        comm_collect(c, "lessons", mine->floats, (size_t)mine->nfloats * sizeof *floats, begin[2]);
    char *text = comm_collect(c, "lessons", mine->text, (size_t)mine->ntext, begin[3]);
    Flat all = {0};
    if (c->rank) return all;
    for (int r = 0; r < c->size; r++)
        CHECK(begin[0][r + 1] - begin[0][r] == begin[0][1],
              "rank %d keeps another number of batches than rank 0", r);
    all.nbatches = mine->nbatches;
    all.extent = xcalloc((size_t)all.nbatches + 1, sizeof *all.extent);
    for (int64_t i = 0; i < all.nbatches; i++)
        for (int r = 0; r < c->size; r++) {
            Extent *its = (Extent *)((char *)e + begin[0][r]) + i, *sum = &all.extent[i];
            CHECK(its->batch == mine->extent[i].batch, "rank %d keeps batch %" PRId64 ", rank 0 %" PRId64, r,
                  its->batch, mine->extent[i].batch);
            put_ints(&all, (int64_t *)((char *)ints + begin[1][r]), its->nints);
            put_floats(&all, (float *)((char *)floats + begin[2][r]), its->nfloats);
            put_text(&all, text + begin[3][r], its->ntext);
            begin[1][r] += (size_t)its->nints * sizeof *ints;
            begin[2][r] += (size_t)its->nfloats * sizeof *floats;
            begin[3][r] += (size_t)its->ntext;
            sum->batch = its->batch;
            sum->n += its->n;
        }
    free(e);
    free(ints);
    free(floats);
    free(text);
    return all;
}

void replay_send(const Replay *r) {
    Flat f = flatten(r), none = collect(&f);
    flat_free(&f);
    flat_free(&none);
}

bool replay_save(const Replay *r, const char *path, Error *e) {
    Flat mine = flatten(r), f = collect(&mine);
    int64_t (*batches)[2] = xcalloc((size_t)f.nbatches + 1, sizeof *batches), n = f.nbatches + 1;
    batches[0][0] = r->size;
    batches[0][1] = r->nlabels;
    for (int64_t i = 0; i < f.nbatches; i++) {
        batches[i + 1][0] = f.extent[i].batch;
        batches[i + 1][1] = f.extent[i].n;
    }
    const StTensor t[] = {
        {.name = "batches",
         .dtype = ST_I64,
         .ndim = 2,
         .shape = {n, 2},
         .data = batches,
         .bytes = (size_t)n * sizeof *batches},
        {.name = "floats",
         .dtype = ST_F32,
         .ndim = 1,
         .shape = {f.nfloats},
         .data = f.floats,
         .bytes = (size_t)f.nfloats * 4},
        {.name = "ints",
         .dtype = ST_I64,
         .ndim = 1,
         .shape = {f.nints},
         .data = f.ints,
         .bytes = (size_t)f.nints * 8},
        {.name = "text",
         .dtype = ST_U8,
         .ndim = 1,
         .shape = {f.ntext},
         .data = f.text,
         .bytes = (size_t)f.ntext},
    };
    bool ok = st_write(path, t, COUNT_OF(t), NULL, 0, e);
    flat_free(&mine);
    flat_free(&f);
    free(batches);
    return ok;
}

/* Reading: where we are, and whether everything so far was there. */
typedef struct Cursor {
    const uint8_t *ints, *floats, *text;
    int64_t nints, nfloats, ntext;
    bool bad;
} Cursor;

static int64_t take_int(Cursor *c, int64_t lo, int64_t hi) {
    int64_t x = lo;
    if (c->nints < 1) return c->bad = true, lo;
    memcpy(&x, c->ints, sizeof x);
    c->ints += sizeof x;
    c->nints--;
    if (x < lo || x > hi) c->bad = true, x = lo;
    return x;
}

static Rect take_rect(Cursor *c) {
    const int64_t far = 1 << 24;
    Rect r;
    r.x0 = (int)take_int(c, -far, far);
    r.y0 = (int)take_int(c, -far, far);
    r.x1 = (int)take_int(c, -far, far);
    r.y1 = (int)take_int(c, -far, far);
    return r;
}

/* Probabilities. */
static bool take_floats(Cursor *c, float *out, int64_t n) {
    if (c->nfloats < n) return !(c->bad = true);
    memcpy(out, c->floats, (size_t)n * sizeof *out);
    c->floats += (size_t)n * sizeof *out;
    c->nfloats -= n;
    for (int64_t i = 0; i < n; i++)
        if (!(out[i] >= 0 && out[i] <= 1.0001f)) c->bad = true;
    return !c->bad;
}

static void take_lesson(Cursor *c, Replay *r, int64_t batch) {
    Candidate candidate[MAX_CANDIDATES];
    float yes[MAX_CANDIDATES], *p = xcalloc((size_t)r->nlabels + 1, sizeof *p);
    const int at = (int)take_int(c, 0, INT32_MAX);
    Ask ask = {.image_id = (uint64_t)take_int(c, 0, INT64_MAX)};
    Lesson l = {.rect = take_rect(c)};
    l.is_loc = take_int(c, 0, 1);
    l.nleaders = (int)take_int(c, 0, MAX_CANDIDATES);
    l.ncandidates = (int)take_int(c, l.nleaders, MAX_CANDIDATES);
    int64_t bytes = take_int(c, 0, c->ntext);
    if (rect_w(l.rect) <= 0 || rect_h(l.rect) <= 0 || (!l.is_loc && l.ncandidates)) c->bad = true;
    char *query = xcalloc((size_t)bytes + 1, 1);
    memcpy(query, c->text, (size_t)bytes);
    c->text += bytes;
    c->ntext -= bytes;
    ask.query = query;
    if (l.is_loc) l.yes = take_floats(c, yes, l.nleaders) ? yes : NULL;
    else l.p = take_floats(c, p, r->nlabels) ? p : NULL;
    for (int i = 0; i < l.ncandidates && !c->bad; i++) {
        candidate[i] = (Candidate){.box = take_rect(c), .leader = (int)take_int(c, 0, MAX(l.nleaders - 1, 0))};
        take_floats(c, &candidate[i].yes, 1);
    }
    l.candidate = candidate;
    if (!c->bad && at >= r->lo && at < r->hi) replay_keep(r, batch, at, &ask, &l);
    free(query);
    free(p);
}

bool replay_load(Replay *r, const char *path, Error *e) {
    SafeTensors st;
    if (!st_open(&st, path, e)) return false;
    static const struct { const char *name; StDType dtype; } want[] = {
        {"batches", ST_I64}, {"floats", ST_F32}, {"ints", ST_I64}, {"text", ST_U8}};
    const StTensor *t[COUNT_OF(want)];
    for (int i = 0; i < COUNT_OF(want); i++) {
        t[i] = st_find(&st, want[i].name);
        if (!t[i] || t[i]->dtype != want[i].dtype) {
            fail_as(e, FAIL_MODEL, "%s: %s is missing or of another type: not a store of lessons", path, want[i].name);
            st_close(&st);
            return false;
        }
    }
    Cursor batches = {.ints = t[0]->data, .nints = st_numel(t[0])},
           c = {t[2]->data, t[1]->data, t[3]->data, st_numel(t[2]), st_numel(t[1]), st_numel(t[3]), false};
    int64_t size = take_int(&batches, 0, INT64_MAX), nlabels = take_int(&batches, 0, INT64_MAX);
    bool ok = size == r->size && nlabels == r->nlabels;
    if (!ok)
        fail_as(e, FAIL_MODEL, "%s: lessons of %" PRId64 " batches with %" PRId64 " answers; this run keeps %" PRId64 " with %d (another distill.reuse or lag?)",
                path, size, nlabels, r->size, r->nlabels);
    while (ok && batches.nints && !c.bad && !batches.bad) {
        int64_t batch = take_int(&batches, 0, INT64_MAX), n = take_int(&batches, 0, INT64_MAX);
        replay_begin(r, batch);
        for (int64_t i = 0; i < n && !c.bad; i++) take_lesson(&c, r, batch);
    }
    if (ok && (c.bad || batches.bad || c.nints || c.nfloats || c.ntext))
        ok = fail_as(e, FAIL_MODEL, "%s: the store of lessons is damaged", path);
    st_close(&st);
    return ok;
}
