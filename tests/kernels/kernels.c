/* kernels.c -- the driver of the kernel tests. See kernels.h. */
#include "tests/kernels/kernels.h"

#include "data/safetensors.h"
#include "kernels/philox.h"

#include <math.h>

const Ops *const op = &ops_cpu;

static const char *covered[64];
static int ncovered;

void kernels_cover(const char *ops) {
    CHECK(ncovered < COUNT_OF(covered), "more than %d COVERS", COUNT_OF(covered));
    covered[ncovered++] = ops;
}

bool kernels_covered(const char *name) {
    const size_t n = strlen(name);
    for (int i = 0; i < ncovered; i++)
        for (const char *at = covered[i]; (at = strstr(at, name)); at += n) {
            const char before = at == covered[i] ? ' ' : at[-1], after = at[n];
            if ((before == ' ' || before == ',') && (after == 0 || after == ',' || after == ' ')) return true;
        }
    return false;
}

void fill_random(float *x, int64_t n, uint64_t seed, float lo, float hi) {
    uint32_t r[4] = {0};
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) philox(r, seed, (uint64_t)i / 4);
        x[i] = lo + (hi - lo) * (float)(r[i % 4] >> 8) * 0x1p-24f;
    }
}

/* ---- guarded buffers ------------------------------------------------------------------------------ */

enum { GUARD = 64, CANARY = 0xA5 };

typedef struct Guarded { unsigned char *base; void *p; size_t bytes; } Guarded;

static Guarded guarded(size_t bytes) {
    Guarded g = {.base = xcalloc(1, bytes + 2 * GUARD + 8), .bytes = bytes};
    memset(g.base, CANARY, bytes + 2 * GUARD + 8);
    g.p = g.base + GUARD + 4; /* aligned for its type and for nothing more */
    return g;
}

static bool whole(const Guarded *g) {
    const unsigned char *p = g->p;
    for (const unsigned char *c = g->base; c < p; c++)
        if (*c != CANARY) return false;
    for (int i = 0; i < GUARD; i++)
        if (p[g->bytes + (size_t)i] != CANARY) return false;
    return true;
}

/* ---- a case --------------------------------------------------------------------------------------- */

typedef struct Case {
    const Kernel *k;
    const int64_t *d;
    char name[128];
    int nslots, y, dy; /* the first Y, the DY (-1: none) */
    int64_t n[MAX_SLOTS];
    Guarded start[MAX_SLOTS]; /* what every run starts from */
    float *want[MAX_SLOTS];   /* golden, or NULL */
} Case;

static size_t value_size(Role r) { return r == MASK ? 1 : 4; }
static bool is_output(Role r) { return r == Y || r == STAT || r == DX || r == WRITTEN; }

static int64_t slot_size(const Kernel *k, const Slot *s, const int64_t *d) {
    int64_t n = 1;
    for (const char *c = s->shape; *c; c++) {
        const char *at = strchr(k->dims, *c);
        CHECK(at || (*c >= '0' && *c <= '9'), "%s: slot %s has shape %s, dims are %s", k->name, s->name, s->shape, k->dims);
        n *= at ? d[at - k->dims] : *c - '0';
    }
    return n;
}

static void fill_slot(Case *c, int i, const SafeTensors *golden) {
    const Slot *s = &c->k->slot[i];
    void *p = c->start[i].p;
    const uint64_t seed = hash_bytes(c->name, strlen(c->name), 77) + (uint64_t)i;
    char name[192];
    snprintf(name, sizeof name, "%s.%s", c->name, s->name);
    const StTensor *t = golden ? st_find(golden, name) : NULL;
    if (golden && s->role != STAT) EXPECT(t && st_numel(t) == c->n[i], "%s: not in the golden file, or of another size", name);
    if (t && st_numel(t) != c->n[i]) t = NULL;
    if (is_output(s->role)) {
        if (s->role == DX) fill_random(p, c->n[i], seed, -1, 1); /* to be added to */
        else memset(p, 0xFF, (size_t)c->n[i] * 4);               /* NaN */
        if (!t) return;
        Error e = {0};
        c->want[i] = xcalloc((size_t)c->n[i] + 1, sizeof(float));
        if (!st_to_f32(c->want[i], t, &e)) test_fail(__FILE__, __LINE__, "%s", e.text);
    } else if (t) {
        EXPECT(t->bytes == c->start[i].bytes, "%s: %zu bytes in the golden file, wants %zu", name, t->bytes, c->start[i].bytes);
        if (t->bytes == c->start[i].bytes && t->bytes) memcpy(p, t->data, t->bytes);
    } else if (s->role == INDEX) {
        const int64_t below = c->d[strchr(c->k->dims, s->below) - c->k->dims];
        for (int64_t j = 0; j < c->n[i]; j++) ((int32_t *)p)[j] = (int32_t)(hash_bytes(&j, sizeof j, seed) % (uint64_t)below);
    } else if (s->role == MASK) {
        for (int64_t j = 0; j < c->n[i]; j++) ((uint8_t *)p)[j] = hash_bytes(&j, sizeof j, seed) % 4 != 0;
    } else {
        fill_random(p, c->n[i], seed, s->lo == s->hi ? -1 : s->lo, s->lo == s->hi ? 1 : s->hi);
    }
}

/* Fresh copies of all buffers; the caller frees with `done`. */
static void begin(const Case *c, Guarded *g, void **p) {
    for (int i = 0; i < c->nslots; i++) {
        g[i] = guarded(c->start[i].bytes);
        if (g[i].bytes) memcpy(g[i].p, c->start[i].p, g[i].bytes);
        p[i] = g[i].p;
    }
}

static void done(const Case *c, Guarded *g) {
    for (int i = 0; i < c->nslots; i++) free(g[i].base);
}

static void run(const Case *c, void **p) {
    c->k->forward(p, c->d);
    if (c->k->backward) c->k->backward(p, c->d);
}

static bool same(const Guarded *a, const Guarded *b) { return !a->bytes || !memcmp(a->p, b->p, a->bytes); }

static void compare_golden(const Case *c, const Guarded *g) {
    for (int i = 0; i < c->nslots; i++) {
        const Slot *s = &c->k->slot[i];
        if (!c->want[i]) continue;
        double most = 0;
        for (int64_t j = 0; j < c->n[i]; j++)
            if (isfinite(c->want[i][j])) most = fmax(most, fabs(c->want[i][j]));
        if (s->role == DX) most += 1; /* the sum with what was there rounds too */
        const float *got = g[i].p, *was = c->start[i].p;
        for (int64_t j = 0; j < c->n[i]; j++) {
            const double want = (double)c->want[i][j] + (s->role == DX ? (double)was[j] : 0);
            if (isinf(want)) EXPECT(got[j] == want, "%s.%s[%" PRId64 "] is %g", c->name, s->name, j, (double)got[j]);
            else EXPECT_NEAR(got[j], want, s->bound * EPS32 * most, "%s.%s[%" PRId64 "]", c->name, s->name, j);
        }
    }
}

/* sum(dy y) in double, or sum(y) for a loss; *size = root of the sum of squared terms, for the rounding noise. */
static double projection(const Case *c, void **p, double *size) {
    const float *y = p[c->y], *dy = c->dy < 0 ? NULL : p[c->dy];
    double sum = 0, squares = 0;
    for (int64_t j = 0; j < c->n[c->y]; j++) {
        const double term = (double)y[j] * (dy ? (double)dy[j] : 1);
        sum += term;
        squares += term * term;
    }
    *size = sqrt(squares);
    return sum;
}

/* Input x of slot i moved by +-h u, u = +-1 per value. The step's third-derivative term is h^2 / 6; rounding of y, some
 * EPS32 per value and adding as a random walk, is divided by 2 h. */
static void central_difference(const Case *c, int dx, void **result) {
    const Slot *s = &c->k->slot[dx];
    const int x = s->of;
    const float h = 1.0f / 256;
    const float *got = result[dx], *was = c->start[dx].p;
    double expect = 0, squares = 0, value[2], noise = 0;
    Guarded g[MAX_SLOTS];
    void *p[MAX_SLOTS];
    for (int side = 0; side < 2; side++) {
        begin(c, g, p);
        for (int64_t j = 0; j < c->n[x]; j++) {
            const float u = hash_bytes(&j, sizeof j, 5) & 1 ? h : -h;
            ((float *)p[x])[j] += side ? u : -u;
        }
        c->k->forward(p, c->d);
        value[side] = projection(c, p, &noise);
        done(c, g);
    }
    for (int64_t j = 0; j < c->n[x]; j++) {
        const double slope = (double)got[j] - (s->role == DX ? (double)was[j] : 0);
        expect += (hash_bytes(&j, sizeof j, 5) & 1 ? 1 : -1) * slope;
        squares += slope * slope;
    }
    const double bound = (c->k->slope > 0 ? c->k->slope : 0.01) * sqrt(squares) + 64 * EPS32 * (noise + 1e-3) / h;
    EXPECT_NEAR((value[1] - value[0]) / (2 * (double)h), expect, bound, "%s.%s: central difference", c->name, s->name);
}

static void check_in_place(const Case *c, const Guarded *first) {
    Guarded g[MAX_SLOTS];
    void *p[MAX_SLOTS];
    begin(c, g, p);
    p[c->y] = p[0];
    c->k->forward(p, c->d);
    EXPECT(!memcmp(p[0], first[c->y].p, first[c->y].bytes), "%s: other bits in place", c->name);
    EXPECT(whole(&g[0]), "%s in place: wrote outside", c->name);
    done(c, g);
}

/* Each gradient alone: the others are not wanted, and it is the same. */
static void check_alone(const Case *c, const Guarded *first) {
    for (int i = 0; c->k->backward && i < c->nslots; i++) {
        if (c->k->slot[i].role != DX) continue;
        Guarded g[MAX_SLOTS];
        void *p[MAX_SLOTS];
        begin(c, g, p);
        for (int j = 0; j < c->nslots; j++)
            if (c->k->slot[j].role == DX && j != i) p[j] = NULL;
        run(c, p);
        EXPECT(same(&g[i], &first[i]), "%s: %s has other bits when it is the only gradient", c->name, c->k->slot[i].name);
        done(c, g);
    }
}

static void case_open(Case *c, const Kernel *k, const int64_t *d, const SafeTensors *golden) {
    *c = (Case){.k = k, .d = d, .y = -1, .dy = -1};
    int at = snprintf(c->name, sizeof c->name, "%s_", k->name);
    for (int i = 0; k->dims[i]; i++)
        at += snprintf(c->name + at, sizeof c->name - (size_t)at, "%s%" PRId64, i ? "x" : "", d[i]);
    for (; c->nslots < MAX_SLOTS && k->slot[c->nslots].role; c->nslots++) {
        const int i = c->nslots;
        const Slot *s = &k->slot[i];
        c->n[i] = slot_size(k, s, d);
        c->start[i] = guarded((size_t)c->n[i] * value_size(s->role));
        if (s->role == Y && c->y < 0) c->y = i;
        if (s->role == DY) c->dy = i;
        fill_slot(c, i, golden);
    }
}

void kernel_check(const Kernel *k, const int64_t *d, const char *golden_path) {
    Error e = {0};
    SafeTensors golden = {0};
    if (golden_path && !st_open(&golden, golden_path, &e)) {
        test_fail(__FILE__, __LINE__, "%s (make it with tests/golden/make_kernels.py)", e.text);
        return;
    }
    Case c;
    case_open(&c, k, d, golden_path ? &golden : NULL);
    Guarded first[MAX_SLOTS];
    void *p[MAX_SLOTS];
    static const int threads[] = {1, 1, 2, 3};
    for (int r = 0; r < COUNT_OF(threads); r++) {
        Guarded g[MAX_SLOTS];
        void *q[MAX_SLOTS];
        device_cpu(threads[r]);
        begin(&c, r ? g : first, r ? q : p);
        run(&c, r ? q : p);
        for (int i = 0; i < c.nslots; i++) {
            const Guarded *now = r ? &g[i] : &first[i];
            EXPECT(whole(now), "%s: wrote outside %s", c.name, k->slot[i].name);
            if (!is_output(k->slot[i].role)) EXPECT(same(now, &c.start[i]), "%s: changed its input %s", c.name, k->slot[i].name);
            EXPECT(same(now, &first[i]), "%s: %s has other bits in run %d, with %d threads", c.name, k->slot[i].name, r, threads[r]);
        }
        if (r) done(&c, g);
    }
    device_cpu(2);
    compare_golden(&c, first);
    if (k->in_place) check_in_place(&c, first);
    check_alone(&c, first);
    for (int i = 0; i < c.nslots; i++)
        if (k->slot[i].role == DX || k->slot[i].role == WRITTEN) central_difference(&c, i, p);
    done(&c, first);
    for (int i = 0; i < c.nslots; i++) {
        free(c.start[i].base);
        free(c.want[i]);
    }
    device_cpu(0);
    if (golden_path) st_close(&golden);
}
