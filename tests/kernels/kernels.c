/* kernels.c -- the driver of the kernel tests. See kernels.h. */
#include "tests/kernels/kernels.h"

#include "data/safetensors.h"
#include "engine/run.h"
#include "kernels/cpu/onednn.h"
#include "kernels/philox.h"
#include "tests/emu/emu.h"

#include <math.h>

Device *dev;
DType dt;

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

/* ---- devices -------------------------------------------------------------------------------------- */

static DeviceId now_on;
static const char *const device_names[] = {"cpu", "emu", "cuda"};

void device_test_register(const char *file, const char *name, TestFn *on[NDEVICES]) {
    for (int i = 0; i < NDEVICES; i++) {
#ifndef WITH_CUDA
        if (i == CUDA_CARD) continue;
#endif
        char text[128];
        snprintf(text, sizeof text, "%s [%s]", name, device_names[i]);
        test_register(file, xstrdup(text), on[i]);
    }
}

void device_test_run(DeviceId id, TestFn *body) {
    static Error e;
    Device *d = id == CPU ? device_cpu(0) : id == EMU ? device_emu() : device_cuda(0, &e);
    if (!d) {
        test_skip(e.text);
        return;
    }
    now_on = id;
    dev = d;
    dt = F32;
    body();
    if (id == EMU) emu_schedule(0);
    if (id == CPU) device_cpu(0);
    dev = NULL;
    run_use_device(NULL);
}

/* ---- guarded buffers of the device ---------------------------------------------------------------- */

enum { GUARD = 64, CANARY = 0xA5 };

/* `bytes` at p, between canaries when guarded, in memory of the device. */
typedef struct Buffer {
    unsigned char *base, *p;
    size_t bytes, before, total;
} Buffer;

/* The CPU gets memory of the heap: the sanitizer sees its ends. */
static void *take(size_t bytes) { return now_on == CPU ? xcalloc(bytes + 1, 1) : dev->alloc(dev, bytes); }
static void give(void *p, size_t bytes) {
    if (now_on == CPU) free(p);
    else dev->release(dev, p, bytes);
}

/* value: bytes of one value; the address of a guarded buffer is a multiple of nothing more. */
static Buffer buffer_open(const void *data, size_t bytes, bool guarded, size_t value) {
    Buffer b = {.bytes = bytes, .before = guarded ? GUARD + value : 0};
    b.total = b.before + bytes + (guarded ? GUARD : 0);
    b.base = take(b.total);
    b.p = b.base + b.before;
    unsigned char *image = xcalloc(b.total + 1, 1);
    memset(image, CANARY, b.total);
    if (bytes) memcpy(image + b.before, data, bytes);
    dev->upload(dev, b.base, image, b.total);
    free(image);
    return b;
}

/* Reads the contents back into out (bytes), which may be NULL, and lets go of the memory. False when a canary is gone. */
static bool buffer_close(Buffer *b, void *out) {
    unsigned char *image = xcalloc(b->total + 1, 1);
    dev->download(dev, image, b->base, b->total);
    bool whole = true;
    for (size_t i = 0; i < b->total; i++) whole &= (i >= b->before && i < b->before + b->bytes) || image[i] == CANARY;
    if (out && b->bytes) memcpy(out, image + b->before, b->bytes);
    free(image);
    give(b->base, b->total);
    return whole;
}

/* ---- tests by hand -------------------------------------------------------------------------------- */

static struct Mirror { Buffer b; void *host; bool out; } mirrors[16];
static int nmirrors;

void *mirror(void *host, size_t bytes, bool out) {
    CHECK(nmirrors < COUNT_OF(mirrors), "more than %d arrays in one RUN", COUNT_OF(mirrors));
    mirrors[nmirrors] = (struct Mirror){buffer_open(host, bytes, true, 16), host, out}; /* aligned to 16 bytes */
    return mirrors[nmirrors++].b.p;
}

void mirror_fetch(const char *file, int line) {
    for (int i = 0; i < nmirrors; i++) {
        struct Mirror *m = &mirrors[i];
        void *got = xcalloc(m->b.bytes + 1, 1);
        if (!buffer_close(&m->b, got)) test_fail(file, line, "wrote outside argument %d of %d", i, nmirrors);
        if (m->out) memcpy(m->host, got, m->b.bytes);
        else if (memcmp(m->host, got, m->b.bytes)) test_fail(file, line, "changed its input, argument %d of %d", i, nmirrors);
        free(got);
    }
    nmirrors = 0;
}

/* ---- a case --------------------------------------------------------------------------------------- */

typedef struct Case {
    const Kernel *k;
    const int64_t *d;
    char name[128];  /* in the golden file */
    char where[144]; /* the same with device and type, for messages */
    int nslots, y, dy; /* the first Y, the DY (-1: none) */
    int64_t n[MAX_SLOTS];
    void *start[MAX_SLOTS];  /* what every run starts from: f32, i32 or u8, and rounded when tensors are bf16 */
    void *device[MAX_SLOTS]; /* the same as the device wants it */
    float *golden[MAX_SLOTS];
} Case;

typedef struct Result { void *p[MAX_SLOTS]; } Result; /* what is in each slot afterwards, as the device has it */

static bool is_output(Role r) { return r == Y || r == STAT || r == DX || r == WRITTEN; }

static DType slot_type(const Slot *s) {
    return s->f32 || s->role == STAT || s->role == CONST || s->role == INDEX ? F32 : dt;
}
static size_t value_size(const Slot *s) { return s->role == MASK ? 1 : dtype_size(slot_type(s)); }
static size_t slot_bytes(const Case *c, int i) { return (size_t)c->n[i] * value_size(&c->k->slot[i]); }

static float value(const Slot *s, const void *p, int64_t j) {
    return slot_type(s) == BF16 ? bf16_value(((const uint16_t *)p)[j]) : ((const float *)p)[j];
}

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
    void *p = c->start[i];
    const size_t bytes = (size_t)c->n[i] * (s->role == MASK ? 1 : 4);
    const uint64_t seed = hash_bytes(c->name, strlen(c->name), 77) + (uint64_t)i;
    char name[192];
    snprintf(name, sizeof name, "%s.%s", c->name, s->name);
    const StTensor *t = golden ? st_find(golden, name) : NULL;
    if (golden && s->role != STAT) EXPECT(t && st_numel(t) == c->n[i], "%s: not in the golden file, or of another size", name);
    if (t && st_numel(t) != c->n[i]) t = NULL;
    if (is_output(s->role)) {
        if (s->role == DX) fill_random(p, c->n[i], seed, -1, 1); /* to be added to */
        else memset(p, 0xFF, bytes);                             /* NaN */
        if (!t) return;
        Error e = {0};
        c->golden[i] = xcalloc((size_t)c->n[i] + 1, sizeof(float));
        if (!st_to_f32(c->golden[i], t, &e)) test_fail(__FILE__, __LINE__, "%s", e.text);
    } else if (t) {
        EXPECT(t->bytes == bytes, "%s: %zu bytes in the golden file, wants %zu", name, t->bytes, bytes);
        if (t->bytes == bytes && bytes) memcpy(p, t->data, bytes);
    } else if (s->role == INDEX) {
        const int64_t below = c->d[strchr(c->k->dims, s->below) - c->k->dims];
        for (int64_t j = 0; j < c->n[i]; j++) ((int32_t *)p)[j] = (int32_t)(hash_bytes(&j, sizeof j, seed) % (uint64_t)below);
    } else if (s->role == MASK) {
        for (int64_t j = 0; j < c->n[i]; j++) ((uint8_t *)p)[j] = hash_bytes(&j, sizeof j, seed) % 4 != 0;
    } else {
        fill_random(p, c->n[i], seed, s->lo == s->hi ? -1 : s->lo, s->lo == s->hi ? 1 : s->hi);
    }
}

/* Tensors in the device's type. With bf16 the f32 originals are rounded, too: all sides begin with the same numbers. */
static void round_start(Case *c) {
    for (int i = 0; i < c->nslots; i++) {
        const size_t bytes = slot_bytes(c, i);
        c->device[i] = xcalloc(bytes + 1, 1);
        if (slot_type(&c->k->slot[i]) == BF16 && c->k->slot[i].role != MASK) {
            float *x = c->start[i];
            for (int64_t j = 0; j < c->n[i]; j++) x[j] = bf16_value(((uint16_t *)c->device[i])[j] = bf16_round(x[j]));
        } else if (bytes) {
            memcpy(c->device[i], c->start[i], bytes);
        }
    }
}

static void case_open(Case *c, const Kernel *k, const int64_t *d, const SafeTensors *golden) {
    *c = (Case){.k = k, .d = d, .y = -1, .dy = -1};
    int at = snprintf(c->name, sizeof c->name, "%s_", k->name);
    for (int i = 0; k->dims[i]; i++)
        at += snprintf(c->name + at, sizeof c->name - (size_t)at, "%s%" PRId64, i ? "x" : "", d[i]);
    snprintf(c->where, sizeof c->where, "%s%s", c->name, dt == BF16 ? " in bf16" : "");
    for (; c->nslots < MAX_SLOTS && k->slot[c->nslots].role; c->nslots++) {
        const int i = c->nslots;
        c->n[i] = slot_size(k, &k->slot[i], d);
        c->start[i] = xcalloc((size_t)c->n[i] + 1, 4);
        if (k->slot[i].role == Y && c->y < 0) c->y = i;
        if (k->slot[i].role == DY) c->dy = i;
        fill_slot(c, i, golden);
    }
    round_start(c);
}

static void case_close(Case *c) {
    for (int i = 0; i < c->nslots; i++) {
        free(c->start[i]);
        free(c->device[i]);
        free(c->golden[i]);
    }
}

/* ---- runs ----------------------------------------------------------------------------------------- */

/* One run in fresh buffers. in_place: the first Y is slot 0, forward only. alone: the one DX that is wanted, -1: all.
 * All that is independent of the result is checked here: canaries and inputs. */
static void run(const Case *c, Result *r, bool guarded, bool in_place, int alone) {
    Buffer b[MAX_SLOTS];
    void *p[MAX_SLOTS];
    for (int i = 0; i < c->nslots; i++) {
        b[i] = buffer_open(c->device[i], slot_bytes(c, i), guarded, value_size(&c->k->slot[i]));
        p[i] = alone >= 0 && c->k->slot[i].role == DX && i != alone ? NULL : b[i].p;
    }
    if (in_place) p[c->y] = p[0];
    c->k->forward(p, c->d);
    if (c->k->backward && !in_place) c->k->backward(p, c->d);
    for (int i = 0; i < c->nslots; i++) {
        r->p[i] = xcalloc(b[i].bytes + 1, 1);
        const char *name = c->k->slot[i].name;
        EXPECT(buffer_close(&b[i], r->p[i]), "%s: wrote outside %s", c->where, name);
        const bool input = !is_output(c->k->slot[i].role) && !(in_place && i == 0);
        if (input) EXPECT(!b[i].bytes || !memcmp(r->p[i], c->device[i], b[i].bytes), "%s: changed its input %s", c->where, name);
    }
}

static void result_free(const Case *c, Result *r) {
    for (int i = 0; i < c->nslots; i++) free(r->p[i]);
}

static bool same(const Case *c, const Result *a, const Result *b, int i) {
    return !slot_bytes(c, i) || !memcmp(a->p[i], b->p[i], slot_bytes(c, i));
}

/* ---- comparisons ---------------------------------------------------------------------------------- */

/* What the CPU makes of the same inputs in f32. Its backward gets the device's outputs of the forward, where it reads them: an
 * op is judged alone. */
static void reference(const Case *c, const Result *got, Result *want) {
    void *p[MAX_SLOTS];
    for (int i = 0; i < c->nslots; i++) {
        p[i] = want->p[i] = xcalloc((size_t)c->n[i] + 1, 4);
        memcpy(p[i], c->start[i], (size_t)c->n[i] * (c->k->slot[i].role == MASK ? 1 : 4));
    }
    float *mine[MAX_SLOTS] = {0};
    for (int i = 0; i < c->nslots; i++) {
        const Slot *s = &c->k->slot[i];
        if (s->role != Y && s->role != STAT) continue;
        mine[i] = xcalloc((size_t)c->n[i] + 1, 4);
        for (int64_t j = 0; j < c->n[i]; j++) mine[i][j] = value(s, got->p[i], j);
    }
    Device *const was = dev;
    const DType was_type = dt;
    dev = device_cpu(0);
    dt = F32;
    c->k->forward(p, c->d);
    for (int i = 0; i < c->nslots; i++) p[i] = mine[i] ? mine[i] : p[i];
    if (c->k->backward) c->k->backward(p, c->d);
    dev = was;
    dt = was_type;
    for (int i = 0; i < c->nslots; i++) free(mine[i]);
}

/* want: golden values, a DX without what it was added to. Or the CPU's, a DX with it: then its own error comes on top. */
static void compare(const Case *c, const Result *got, int i, const float *want, bool golden) {
    const Slot *s = &c->k->slot[i];
    const bool plus_start = golden && s->role == DX, rounded = slot_type(s) == BF16;
    const float *was = c->start[i];
    double most = s->role == DX ? 1 : 0; /* the sum with what was there rounds too */
    for (int64_t j = 0; j < c->n[i]; j++)
        if (isfinite(want[j])) most = fmax(most, fabs(want[j]) + (plus_start ? 1 : 0));
    for (int64_t j = 0; j < c->n[i]; j++) {
        const double w = (double)want[j] + (plus_start ? (double)was[j] : 0), g = (double)value(s, got->p[i], j);
        const double bound = (golden ? 1 : 2) * s->bound * EPS32 * most + (dt == BF16 ? s->bf16 * EPS16 * fmax(most, 1) : 0);
        /* The rounding of a bf16 result cannot be helped: what goes beyond it counts. */
        const double beyond = rounded ? fmax(fabs(g - w) - EPS16 * fabs(w), 0) : fabs(g - w);
        if (!isfinite(w)) EXPECT(g == w || (isnan(g) && isnan(w)), "%s.%s[%" PRId64 "] is %g, not %g", c->where, s->name, j, g, w);
        else EXPECT_NEAR(isnan(g) ? NAN : beyond, 0, bound, "%s.%s[%" PRId64 "] is %.9g, not %.9g: error", c->where, s->name, j, g, w);
    }
}

/* only: the one output that is there, -1: all. */
static void compare_all(const Case *c, const Result *got, int only) {
    const bool use_cpu = now_on != CPU || dt == BF16;
    Result want = {0};
    if (use_cpu) reference(c, got, &want);
    for (int i = 0; i < c->nslots; i++) {
        if (!is_output(c->k->slot[i].role) || (only >= 0 && i != only)) continue;
        if (dt == F32 && c->golden[i]) compare(c, got, i, c->golden[i], true);
        else if (use_cpu) compare(c, got, i, want.p[i], false);
    }
    if (use_cpu) result_free(c, &want);
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

/* On the CPU: input x of slot i moved by +-h u, u = +-1 per value. The step's third-derivative term is h^2 / 6; rounding of y,
 * some EPS32 per value and adding as a random walk, is divided by 2 h. */
static void central_difference(const Case *c, int dx, const Result *result) {
    const Slot *s = &c->k->slot[dx];
    const int x = s->of;
    const float h = 1.0f / 256;
    const float *got = result->p[dx], *was = c->start[dx];
    double expect = 0, squares = 0, side[2], noise = 0;
    for (int k = 0; k < 2; k++) {
        void *p[MAX_SLOTS];
        for (int i = 0; i < c->nslots; i++) {
            p[i] = xcalloc(slot_bytes(c, i) + 1, 1);
            memcpy(p[i], c->start[i], slot_bytes(c, i));
        }
        for (int64_t j = 0; j < c->n[x]; j++) {
            const float u = hash_bytes(&j, sizeof j, 5) & 1 ? h : -h;
            ((float *)p[x])[j] += k ? u : -u;
        }
        c->k->forward(p, c->d);
        side[k] = projection(c, p, &noise);
        for (int i = 0; i < c->nslots; i++) free(p[i]);
    }
    for (int64_t j = 0; j < c->n[x]; j++) {
        const double slope = (double)got[j] - (s->role == DX ? (double)was[j] : 0);
        expect += (hash_bytes(&j, sizeof j, 5) & 1 ? 1 : -1) * slope;
        squares += slope * slope;
    }
    const double bound = (c->k->slope > 0 ? c->k->slope : 0.01) * sqrt(squares) + 64 * EPS32 * (noise + 1e-3) / h;
    EXPECT_NEAR((side[1] - side[0]) / (2 * (double)h), expect, bound, "%s.%s: central difference", c->name, s->name);
}

/* Another number of threads, another order of the emulated card's warps and blocks. */
static void stir(const Case *c, int r) {
    const bool by_library = c->k->library && dt == BF16 && onednn_bf16();
    if (now_on == CPU && !(r && by_library)) device_cpu(r ? 1 + r % 3 : 1);
    if (now_on == EMU) emu_schedule((uint64_t)r);
}

/* The emulated card takes some 30 ns per thread and barrier: a case of more values than this is only run and compared there,
 * aligned; what the rest of the checks would find, they find in the small cases. */
enum { EMU_VALUES = 40000 };

static bool large(const Case *c) {
    int64_t values = 0;
    for (int i = 0; i < c->nslots; i++) values += c->n[i];
    return now_on == EMU && values > EMU_VALUES;
}

/* Everything for one placement of the buffers. */
static void check_placed(const Case *c, bool guarded, int reruns) {
    if (large(c) && guarded) return;
    Result first;
    stir(c, 0);
    run(c, &first, guarded, false, -1);
    compare_all(c, &first, -1);
    if (large(c)) {
        result_free(c, &first);
        return;
    }
    for (int r = 1; r <= reruns; r++) {
        Result again;
        stir(c, r);
        run(c, &again, guarded, false, -1);
        for (int i = 0; i < c->nslots; i++)
            EXPECT(same(c, &again, &first, i), "%s: %s has other bits in run %d", c->where, c->k->slot[i].name, r);
        result_free(c, &again);
    }
    if (c->k->in_place) {
        Result r;
        run(c, &r, guarded, true, -1);
        EXPECT(!slot_bytes(c, c->y) || !memcmp(r.p[0], first.p[c->y], slot_bytes(c, c->y)), "%s: other bits in place", c->where);
        result_free(c, &r);
    }
    int wanted = 0;
    for (int i = 0; i < c->nslots; i++) wanted += c->k->slot[i].role == DX;
    for (int i = 0; wanted > 1 && i < c->nslots; i++) {
        if (c->k->slot[i].role != DX) continue;
        Result r;
        run(c, &r, guarded, false, i);
        if (c->k->together)
            compare_all(c, &r, i);
        else
            EXPECT(same(c, &r, &first, i), "%s: %s has other bits when it is the only gradient", c->where,
                   c->k->slot[i].name);
        result_free(c, &r);
    }
    for (int i = 0; now_on == CPU && dt == F32 && guarded && i < c->nslots; i++)
        if (c->k->slot[i].role == DX || c->k->slot[i].role == WRITTEN) central_difference(c, i, &first);
    result_free(c, &first);
}

void kernel_check(const Kernel *k, const int64_t *d, const char *golden_path) {
    Error e = {0};
    SafeTensors golden = {0};
    if (golden_path && !st_open(&golden, golden_path, &e)) {
        test_fail(__FILE__, __LINE__, "%s (make it with tests/golden/make_kernels.py)", e.text);
        return;
    }
    for (int t = k->only_bf16; t <= !k->only_f32; t++) {
        Case c;
        dt = t ? BF16 : F32;
        case_open(&c, k, d, golden_path ? &golden : NULL);
        check_placed(&c, true, now_on == CPU ? 3 : 1);
        check_placed(&c, false, now_on == CPU ? 0 : 1);
        case_close(&c);
    }
    dt = F32;
    if (golden_path) st_close(&golden);
}
