/* kernels.c -- `bench kernels`: every operation at the shapes of the demo's and the published networks.
 *
 * For each row: the operands are laid out and filled, the operation runs once and a sample of its results is
 * compared with a plain loop in double; then it and its baselines take turns until bench.ms are spent, so
 * that a slow moment of the machine hurts all of them: 20 times at least, 5 when that takes more than 20
 * seconds.
 *   med_us, p99_us   of `runs` times. On a card one time is a series of launches of about 200 us, divided by
 *                    their number: a kernel of some microseconds is shorter than what two events around it
 *                    cost
 *   GB/s, GFLOP/s    the least bytes (kernels.h) and the operations of its products, per median
 *   %peak            of the median, the time that the machine would need for them: the longer of bytes / peak
 *                    and operations / peak, both measured in this run. CPU: peak.c. Card: a copy of the
 *                    largest size; a large product by cuBLASLt in the row's format
 *   copy             how many times as long a plain copy of as many bytes takes, half of them read and half
 *                    written: above 1 we are quicker. Beyond 256 MB a copy of 256 MB, in proportion
 *   lib              the same for the library: oneDNN's primitive for that operation with its own threads;
 *                    for attention its (on a card cuBLASLt's) plain product of as many operations. On a card
 *                    where cuDNN is installed its attention (bf16), and its convolution for the patches. "-" where
 *                    there is none: on a card gemm IS cuBLASLt, and the CPU has bf16 to be right, not quick
 *   wrong            values of the sample that differ by more than the rounding of every addition behind them
 *                    explains
 * On a card every launch takes the next of up to 16 sets of operands, so that its second cache does not hold
 * them. On the CPU small shapes do live in caches, as they do in training, and their GB/s may pass the
 * memory's.
 */
#include "bench/kernels.h"

#include <omp.h>
#include <stdarg.h>

enum {
    SETS = 16,
    LEAST_RUNS = 20,
    LEAST_LONG_RUNS = 5,
    LONG_S = 20,
    MOST_RUNS = 20000,
    WARM = 3,
    SERIES_US = 200,
    MOST_LAUNCHES = 200,
    ALIGN = 256,
    SAMPLES = 256
};
static const size_t MOST_COPY = (size_t)256 << 20;

/* The demo's students, the networks of the papers; for long sequences attention alone, which is what they
 * are about. */
static const Shape shapes[] = {
    {.model = "demo",
     .B = {64, 512},
     .T = 47,
     .C = 64,
     .H = 2,
     .mlp = 256,
     .V = 38,
     .words = 200,
     .text = 10,
     .patch = 8,
     .image = 48,
     .Q = 36,
     .D = 64,
     .parameters = 274000},
    {.model = "ViLT-B/32",
     .B = {8, 64},
     .T = 185,
     .C = 768,
     .H = 12,
     .mlp = 3072,
     .V = 3129,
     .words = 30522,
     .text = 40,
     .patch = 32,
     .image = 384,
     .parameters = 117588537},
    {.model = "BERT text",
     .B = {64, 512},
     .T = 40,
     .C = 768,
     .H = 12,
     .mlp = 3072,
     .masked = true,
     .attention_alone = true},
    {.model = "OWL-ViT-B/32",
     .B = {1, 16},
     .T = 577,
     .C = 768,
     .H = 12,
     .mlp = 3072,
     .patch = 32,
     .image = 768,
     .Q = 576,
     .D = 512},
    {.model = "OWL-ViT-B/32 text",
     .B = {16, 512},
     .T = 16,
     .C = 512,
     .H = 8,
     .mlp = 2048,
     .words = 49408,
     .text = 16,
     .causal = true},
    {.model = "OWL-ViT-L/14",
     .B = {1, 4},
     .T = 3601,
     .C = 1024,
     .H = 16,
     .mlp = 4096,
     .attention_alone = true},
};

/* ---- memory --------------------------------------------------------------------------------------- */

static size_t kind_size(const Case *c, Kind k) {
    switch (k) {
    case TENSOR:
        return dtype_size(c->t);
    case REAL:
    case INDEX:
        return 4;
    default:
        return 1;
    }
}

static size_t slot_bytes(const Case *c, const Slot *s) { return (size_t)s->n * kind_size(c, s->kind); }
static size_t aligned(size_t n) { return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1); }

/* What the call must move. */
static double least_bytes(const Case *c) {
    double sum = 0;
    if (c->bytes > 0) return c->bytes;
    for (int k = 0; k < SLOTS; k++)
        sum += (c->slot[k].role == ADD ? 2.0 : 1.0) * (double)slot_bytes(c, &c->slot[k]);
    return sum;
}

/* The numbers of a slot, PATTERN of them: uniform in lo..hi, as the row's format holds them. A WRITE slot
 * has NaN. */
static void make_pattern(Case *c, int k) {
    const Slot *s = &c->slot[k];
    uint32_t seed = 0x9E3779B9u * (uint32_t)(k + 1);
    for (int i = 0; i < PATTERN; i++) {
        seed = seed * 1664525u + 1013904223u;
        float v =
            s->role == WRITE ? NAN : (float)(s->lo + (s->hi - s->lo) * (double)(seed >> 8) / 16777216.0);
        c->pattern[k][i] = s->kind == TENSOR && c->t == BF16 ? bf16_value(bf16_round(v)) : v;
    }
}

/* Fills one slot of device memory. */
static void fill(Table *t, const Case *c, int k, char *dst) {
    const Slot *s = &c->slot[k];
    const size_t size = kind_size(c, s->kind), n = (size_t)s->n;
    if (s->kind == RAW || !n) return;
    char *part = xcalloc(PATTERN, size);
    for (size_t at = 0; at < n; at += PATTERN) {
        const size_t m = MIN((size_t)PATTERN, n - at);
        if (!at || s->kind == INDEX || s->kind == MASK) /* these do not repeat */
            for (size_t i = 0; i < m; i++) {
                const int64_t pos = (int64_t)(at + i);
                if (s->kind == INDEX)
                    ((int32_t *)part)[i] = (int32_t)index_at(c, k, pos);
                else if (s->kind == MASK)
                    ((uint8_t *)part)[i] = mask_at(c, k, pos);
                else if (s->kind == TENSOR && c->t == BF16)
                    ((uint16_t *)part)[i] = bf16_round(c->pattern[k][i]);
                else
                    ((float *)part)[i] = c->pattern[k][i];
            }
        t->dev->upload(t->dev, dst + at * size, part, m * size);
    }
    free(part);
}

int64_t sample_at(int i, int64_t count) {
    if (i < 2) return i ? count - 1 : 0;
    return (int64_t)((uint64_t)i * UINT64_C(0x9E3779B97F4A7C15) % (uint64_t)count);
}

double device_value(Table *t, const Case *c, void *const *p, int k, int64_t i) {
    const Slot *s = &c->slot[k];
    const size_t size = kind_size(c, s->kind);
    uint32_t bits = 0;
    t->dev->download(t->dev, &bits, (char *)p[k] + (size_t)i * size, size);
    if (size == 2) return (double)bf16_value((uint16_t)bits);
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* ---- what is timed -------------------------------------------------------------------------------- */

typedef struct Timed {
    Table *t;
    const Case *c;
    void *set[SETS][SLOTS];
    char *from[SETS], *to[SETS]; /* of the copy */
    size_t copied;
    Library *library;
    int sets, now;
} Timed;

static void call_ours(void *arg) {
    Timed *u = arg;
    u->c->run(u->t, u->c, u->set[u->now]);
    u->now = (u->now + 1) % u->sets;
}

static void call_copy(void *arg) {
    Timed *u = arg;
    char *to = u->to[u->now];
    const char *from = u->from[u->now];
    const size_t n = u->copied, piece = 64 << 10;
    u->now = (u->now + 1) % u->sets;
    if (u->t->cuda) {
        bench_cuda_copy(u->t->dev, to, from, n);
        return;
    }
#pragma omp parallel for schedule(static) if (n > 2 * piece)
    for (size_t at = 0; at < n; at += piece) memcpy(to + at, from + at, MIN(piece, n - at));
}

static void call_library(void *arg) {
    Timed *u = arg;
    if (u->library) {
        library_run(u->library);
        return;
    }
    u->c->library_card(u->t, u->c, u->set[u->now]);
    u->now = (u->now + 1) % u->sets;
}

typedef struct Side {
    void (*call)(void *);
    int launches;
    double seconds[MOST_RUNS];
} Side;

static double one_time(Table *t, Side *s, Timed *u) {
    if (t->cuda) return bench_cuda_series(t->dev, s->launches, s->call, u);
    const double from = now_s();
    s->call(u);
    return now_s() - from;
}

/* The sides (call NULL: not there) in turns. */
static int take_turns(Table *t, Side *side[], int nsides, Timed *u, double seconds) {
    int n = 0;
    for (int k = 0; k < nsides; k++) {
        if (!side[k]->call) continue;
        side[k]->launches = 1;
        for (int i = 0; i < WARM; i++) {
            const double each = one_time(t, side[k], u);
            if (t->cuda)
                side[k]->launches =
                    each > 0 ? MAX(1, MIN(MOST_LAUNCHES, (int)(SERIES_US * 1e-6 / each))) : MOST_LAUNCHES;
        }
    }
    const double from = now_s();
    for (double spent = 0; n < MOST_RUNS; n++, spent = now_s() - from) {
        if (n >= (spent > LONG_S ? LEAST_LONG_RUNS : LEAST_RUNS) && spent >= seconds) break;
        for (int k = 0; k < nsides; k++)
            if (side[k]->call) side[k]->seconds[n] = one_time(t, side[k], u);
    }
    return n;
}

/* ---- right or wrong ------------------------------------------------------------------------------- */

static int count_wrong(Table *t, Case *c, void *const *p) {
    int wrong = 0;
    for (int k = 0; k < SLOTS && c->want; k++) {
        const Slot *s = &c->slot[k];
        if (s->role == READ || !s->n) continue;
        /* The format of what is written, then every addition behind it, and 8 for the function's own
         * steps. */
        const double last = s->kind == TENSOR && c->t == BF16 ? 0x1p-8 : 0x1p-23,
                     sum = (c->terms + 8) * 0x1p-24 + c->extra;
        const int n = (int)MIN(s->n, c->samples ? c->samples : SAMPLES);
        for (int j = 0; j < n; j++) {
            const int64_t i = sample_at(j, s->n);
            double size = 0, want = c->want(c, k, i, &size), got = device_value(t, c, p, k, i);
            size = MAX(size, fabs(want));
            wrong += !(fabs(got - want) <= last * fabs(want) + sum * size + 1e-37);
        }
    }
    return wrong;
}

/* ---- one row -------------------------------------------------------------------------------------- */

static void heading(Table *t) {
    if (t->headed) return;
    t->headed = true;
    printf("\n%s, batch %d\n%-15s %-19s %-4s %5s %9s %9s %6s %7s %5s %5s %5s %5s\n", t->shape->model,
           (int)shape_batch(t), "op", "shape", "type", "runs", "med_us", "p99_us", "GB/s", "GFLOP/s", "%peak",
           "copy", "lib", "wrong");
}

/* A ratio in five columns. */
static const char *ratio(char out[16], double base, double ours, bool there) {
    const double r = base / ours;
    if (there)
        snprintf(out, 16, r < 99.95 ? "%.2f" : "%.0f", r);
    else
        strcpy(out, "-");
    return out;
}

static json_t *baseline(const char *name, Spread s, double ours) {
    return json_pack("{s:s, s:f, s:f, s:f}", "name", name, "median_us", s.median * 1e6, "p99_us", s.p99 * 1e6,
                     "ratio", s.median / ours);
}

static void tell(Table *t, const Case *c, Spread ours, Spread copy, Spread library, int wrong) {
    char gflops[16] = "-", by_copy[16], by_library[16], name[32];
    const double bytes = least_bytes(c), gbs = bytes / ours.median * 1e-9,
                 rate = c->flops / ours.median * 1e-9;
    const double by_memory = gbs / t->peak.gbs, by_products = rate / t->peak.gflops;
    const char *library_name = t->cuda ? c->library_card_name : c->library_name;
    snprintf(name, sizeof name, "%s%s%s", c->op, *c->what ? " " : "", c->what);
    if (c->flops > 0) snprintf(gflops, sizeof gflops, rate < 1e5 ? "%.1f" : "%.0f", rate);
    printf("%-15s %-19s %-4s %5d %9.1f %9.1f %6.1f %7s %5.1f %5s %5s %5d\n", name, c->shape,
           c->t == F32 ? "f32" : "bf16", ours.n, ours.median * 1e6, ours.p99 * 1e6, gbs, gflops,
           100 * MAX(by_memory, by_products), ratio(by_copy, copy.median, ours.median, copy.n > 0),
           ratio(by_library, library.median, ours.median, library.n > 0), wrong);
    fflush(stdout);
    json_t *bases = json_array();
    if (copy.n) json_array_append_new(bases, baseline("copy", copy, ours.median));
    if (library.n) json_array_append_new(bases, baseline(library_name, library, ours.median));
    json_t *row = json_pack(
        "{s:s, s:s, s:s, s:i, s:s, s:s, s:f, s:f, s:f, s:o, s:f, s:s, s:o, s:i}", "op", c->op, "what",
        c->what, "model", c->s->model, "batch", (int)shape_batch(t), "shape", c->shape, "dtype",
        c->t == F32 ? "f32" : "bf16", "bytes", bytes, "flop", c->flops, "gb_per_s", gbs, "gflop_per_s",
        c->flops > 0 ? json_real(rate) : json_null(), "share_of_peak", MAX(by_memory, by_products),
        "bound_by", by_memory >= by_products ? "memory" : "products", "baselines", bases, "wrong", wrong);
    report_spread(row, ours);
    report_row(&t->report, row);
}

static void measure(Table *t, Case *c) {
    static Side ours, copy, library;
    static float pattern[SLOTS][PATTERN];
    Timed u = {.t = t, .c = c};
    u.copied = MIN((size_t)(least_bytes(c) / 2), MOST_COPY);
    size_t size = 2 * aligned(u.copied);
    for (int k = 0; k < SLOTS; k++) size += aligned(slot_bytes(c, &c->slot[k]));
    heading(t);
    if (size > t->room) {
        printf("%-15s %-19s needs bench.mb=%zu\n", c->op, c->shape, (size >> 20) + 1);
        t->left_out++;
        return;
    }
    u.sets = t->cuda ? (int)MIN((size_t)SETS, t->room / size) : 1;
    for (int k = 0; k < SLOTS; k++) {
        c->pattern[k] = pattern[k];
        if (c->slot[k].n) make_pattern(c, k);
    }
    for (int set = 0; set < u.sets; set++) {
        char *at = t->pool + (size_t)set * size;
        for (int k = 0; k < SLOTS; k++) {
            u.set[set][k] = at;
            fill(t, c, k, at);
            at += aligned(slot_bytes(c, &c->slot[k]));
        }
        u.from[set] = at;
        u.to[set] = at + aligned(u.copied);
        t->dev->zero(t->dev, at, 2 * aligned(u.copied));
    }
    c->run(t, c, u.set[0]);
    const int wrong = c->wrong ? c->wrong(t, c, u.set[0]) : count_wrong(t, c, u.set[0]);
    if (t->cuda && c->choose_card) c->choose_card(t, c);
    ours.call = call_ours;
    copy.call = c->flops > 0 || !u.copied ? NULL : call_copy;
    u.library = !t->cuda && c->t == F32 && c->library ? c->library(c, u.set[0]) : NULL;
    library.call = u.library || (t->cuda && c->library_card) ? call_library : NULL;
    const int n = take_turns(t, (Side *[]){&ours, &copy, &library}, 3, &u,
                             (t->cfg->bench.ms > 0 ? t->cfg->bench.ms : 200) * 1e-3);
    library_close(u.library);
    Spread by_copy = bench_spread(copy.seconds, copy.call ? n : 0);
    const double part = least_bytes(c) / 2 / (double)MAX(u.copied, 1);
    by_copy.median *= part;
    by_copy.p99 *= part;
    tell(t, c, bench_spread(ours.seconds, n), by_copy, bench_spread(library.seconds, library.call ? n : 0),
         wrong);
    t->rows++;
    t->wrong_rows += wrong > 0;
}

void bench_row(Table *t, Case c, const char *shape_format, ...) {
    char all[200];
    va_list ap;
    va_start(ap, shape_format);
    vsnprintf(c.shape, sizeof c.shape, shape_format, ap);
    va_end(ap);
    c.s = t->shape;
    c.t = t->t;
    if (c.f32_only && t->t != F32) return;
    if (t->list) {
        t->list(t->list_arg, &c);
        return;
    }
    snprintf(all, sizeof all, "%s %s %s %s %s", c.op, c.what, c.s->model, c.shape,
             c.t == F32 ? "f32" : "bf16");
    if (bench_chosen(t->word, t->nwords, all)) measure(t, &c);
}

/* ---- the table ------------------------------------------------------------------------------------ */

static void rows_of(Table *t) {
    for (int i = 0; i < COUNT_OF(shapes); i++) {
        t->shape = &shapes[i];
        t->headed = false;
        rows_attention(t);
        if (t->shape->attention_alone) continue;
        rows_gemm(t);
        rows_norm(t);
        rows_softmax(t);
        rows_elementwise(t);
        rows_embed(t);
        rows_image(t);
        rows_boxes(t);
        rows_loss(t);
        rows_optim(t);
    }
}

void bench_kernels_list(bool cuda, void (*list)(void *arg, const Case *c), void *arg) {
    Table t = {.cuda = cuda, .list = list, .list_arg = arg};
    for (t.t = F32; t.t <= BF16; t.t++) rows_of(&t);
}

typedef struct Product {
    Table *t;
    char *C, *A, *B;
    int64_t n;
} Product;

static void call_product(void *arg) {
    Product *p = arg;
    p->t->k->gemm(p->t->s, p->t->t, p->t->t, p->C, p->n, p->A, p->n, p->B, p->n, NULL, false, true, p->n,
                  p->n, p->n, 0);
}

typedef struct Copy {
    Device *dev;
    char *to;
    const char *from;
    size_t n;
} Copy;

static void call_large_copy(void *arg) {
    Copy *c = arg;
    bench_cuda_copy(c->dev, c->to, c->from, c->n);
}

/* The quickest of 20: a copy of half the pool (256 MB at most) and a product that fills the card. */
static Peak card_peak(Table *t) {
    const size_t half = MIN(t->room / 2, MOST_COPY) & ~(size_t)(ALIGN - 1);
    const int64_t n = t->room >= (size_t)1 << 30 ? 8192 : 256;
    Peak best = {0};
    t->dev->zero(t->dev, t->pool, MAX(2 * half, (size_t)(3 * n * n) * dtype_size(t->t)));
    Product p = {t, t->pool, t->pool + (size_t)(n * n) * dtype_size(t->t),
                 t->pool + (size_t)(2 * n * n) * dtype_size(t->t), n};
    Copy c = {t->dev, t->pool, t->pool + half, half};
    for (int i = 0; i < LEAST_RUNS; i++) {
        best.gbs = MAX(best.gbs, 2e-9 * (double)half / bench_cuda_series(t->dev, 1, call_large_copy, &c));
        best.gflops = MAX(best.gflops, 2e-9 * (double)n * (double)n * (double)n /
                                           bench_cuda_series(t->dev, 1, call_product, &p));
    }
    return best;
}

Peak bench_card_peak(Device *d, DType type, int mb) {
    Table t = {
        .dev = d, .k = d->ops, .s = d->main, .t = type, .cuda = true, .room = (size_t)(mb ? mb : 1024) << 20};
    t.pool = d->alloc(d, t.room);
    const Peak p = card_peak(&t);
    d->release(d, t.pool, t.room);
    return p;
}

static Device *open_device(const Config *cfg, Error *e) {
    Device *cpu = device_cpu(cfg->run.threads), *cuda = NULL;
    if (cfg->run.device == DEVICE_AUTO && device_cuda_count(NULL)) cuda = device_cuda(cfg->run.card, NULL);
    if (cfg->run.device == DEVICE_CUDA && !(cuda = device_cuda(cfg->run.card, e))) return NULL;
    return cuda ? cuda : cpu;
}

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    Table t = {
        .cfg = cfg, .word = word, .nwords = nwords, .batch = cfg->bench.batch, .dev = open_device(cfg, e)};
    if (!t.dev) return false;
    t.k = t.dev->ops;
    t.s = t.dev->main;
    t.cuda = strcmp(t.dev->name, "cpu") != 0;
    t.room = (size_t)(cfg->bench.mb ? cfg->bench.mb
                      : t.cuda      ? 8192
                                    : 4096)
             << 20; /* AdamW of ViLT-B/32: 2.3 GB */
    report_begin(&t.report, "kernels", cfg, t.dev);
    json_t *peaks = json_array();
    t.pool = t.dev->alloc(t.dev, t.room);
    if (!t.cuda) t.peak = bench_peak(t.dev->nthreads, 0.3);
    for (t.t = F32; t.t <= BF16; t.t++) {
        if (t.cuda) t.peak = card_peak(&t);
        if (t.cuda || t.t == F32) { /* the CPU computes in f32 whatever tensors are */
            json_array_append_new(peaks, json_pack("{s:s, s:f, s:f}", "dtype", t.t == F32 ? "f32" : "bf16",
                                                   "gflop_per_s", t.peak.gflops, "gb_per_s", t.peak.gbs));
            printf("\npeaks measured in this run, %s: %.1f GFLOP/s of %s, %.1f GB/s of %s\n",
                   t.t == F32 ? "f32" : "bf16", t.peak.gflops, t.cuda ? "a large product" : "multiply-adds",
                   t.peak.gbs, t.cuda ? "a copy" : "triad");
        }
        rows_of(&t);
    }
    t.dev->sync(t.dev);
    t.dev->release(t.dev, t.pool, t.room);
    report_set(&t.report, "peaks", peaks);
    printf("\n%" PRId64 " rows, %" PRId64 " with wrong values%s\n", t.rows, t.wrong_rows,
           t.left_out ? "; rows were left out" : "");
    if (!report_end(&t.report, true, e)) return false;
    if (t.wrong_rows)
        return fail_as(e, FAIL_OTHER, "%" PRId64 " of %" PRId64 " rows have wrong values", t.wrong_rows,
                       t.rows);
    if (!t.rows && !t.left_out)
        return fail_as(e, FAIL_USAGE, "bench kernels: no row contains \"%s\"%s", nwords ? word[0] : "",
                       nwords > 1 ? " and the other words" : "");
    return true;
}

const Benchmark bench_kernels = {
    "kernels", "every operation at the shapes of the demo and the published networks", false, run};
