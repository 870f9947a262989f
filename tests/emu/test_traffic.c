/* test_traffic.c -- do the kernels that are bound by memory move each byte once? Counted by the emulated card.
 *
 * What an op must move: its inputs once, its outputs once, what it adds to twice. What it moves: the sectors of 32 bytes that each
 * of its launches reads and writes (emu.h), so that a second launch over the same values, or a buffer between two, counts, and a
 * row that a block meets again in its cache does not. At most a tenth more may move. TRAFFIC=1 prints the table.
 */
#include "kernels/ops.h"
#include "tests/emu/emu.h"
#include "tests/test.h"

enum { B = 4, T = 160, ROWS = B * T, C = 256, N = ROWS * C }; /* 160 tokens: three chunks for sums over rows */
/* layernorm_bwd takes 528 blocks or 8 rows each: it is at its best, as in a model, when that is more. */
enum { NORM_C = 8, NORM_ROWS = N / NORM_C };

static const Ops *op;
static Stream *s;
static void *x[6]; /* N values each, of either type */
static float *f[4]; /* N */
static int32_t *order, *label; /* a permutation of the rows; below C */
static double out;

#define CASE(name, call)                                                                                     \
    static void run_##name(DType t) { call; }
CASE(gelu_fwd, op->gelu_fwd(s, t, x[0], x[1], N))
CASE(gelu_bwd, op->gelu_bwd(s, t, x[0], x[1], x[2], N))
CASE(tanh_bwd, op->tanh_bwd(s, t, x[0], x[1], x[2], N))
CASE(add_fwd, op->add_fwd(s, t, x[0], x[1], x[2], N))
CASE(accumulate, op->accumulate(s, t, x[0], t, x[1], N))
CASE(mul_fwd, op->mul_fwd(s, t, x[0], x[1], x[2], N))
CASE(mul_bwd, op->mul_bwd(s, t, x[0], x[1], x[2], x[3], x[4], N))
CASE(add_rows_fwd, op->add_rows_fwd(s, t, x[0], x[1], x[2], ROWS, C))
CASE(add_rows_bwd, op->add_rows_bwd(s, t, x[0], t, x[1], ROWS, C))
CASE(bias_bwd, op->bias_bwd(s, t, f[0], x[0], ROWS, C))
CASE(mul_tokens_fwd, op->mul_tokens_fwd(s, t, x[0], x[1], x[2], B, T, C))
CASE(mul_tokens_bwd, op->mul_tokens_bwd(s, t, x[0], x[1], x[2], x[3], x[4], B, T, C))
CASE(dropout_fwd, op->dropout_fwd(s, t, x[0], x[1], 0.1f, 1, 3, N))
CASE(dropout_bwd, op->dropout_bwd(s, t, x[0], x[1], 0.1f, 1, 3, N))
CASE(cast, op->cast(s, t, x[0], t == F32 ? BF16 : F32, x[1], N))
CASE(sum_squares, op->sum_squares(s, t, &out, x[0], N))
CASE(layernorm_fwd, op->layernorm_fwd(s, t, x[0], f[0], f[1], x[1], f[2], f[3], 1e-5f, ROWS, C))
CASE(layernorm_bwd, op->layernorm_bwd(s, t, x[0], f[0], f[0] + NORM_C, x[1], x[2], f[1], f[2], f[3], NORM_ROWS, NORM_C))
CASE(l2norm_fwd, op->l2norm_fwd(s, t, x[0], f[0], x[1], 1e-6f, ROWS, C))
CASE(l2norm_bwd, op->l2norm_bwd(s, t, x[0], x[1], x[2], f[0], 1e-6f, ROWS, C))
CASE(softmax_fwd, op->softmax_fwd(s, t, x[0], x[1], ROWS, C))
CASE(softmax_bwd, op->softmax_bwd(s, t, x[0], x[1], x[2], ROWS, C))
CASE(gather_rows, op->gather_rows(s, t, x[0], x[1], order, ROWS, C))
CASE(scatter_rows, op->scatter_rows(s, t, x[0], t, x[1], order, ROWS, C))
CASE(copy_rows, op->copy_rows(s, t, x[0], C, x[1], C, ROWS, C, false))
CASE(mean_tokens_fwd, op->mean_tokens_fwd(s, t, x[0], x[1], NULL, B, T, C))
CASE(mean_tokens_bwd, op->mean_tokens_bwd(s, t, x[0], x[1], NULL, B, T, C))
CASE(bce_loss, op->bce_loss(s, t, f[0], x[0], x[1], f[1], f[2], 1, ROWS, C))
CASE(ce_loss, op->ce_loss(s, t, f[0], x[0], x[1], label, f[2], 0.1f, ROWS, C))
CASE(kl_loss, op->kl_loss(s, t, f[0], x[0], x[1], f[1], f[2], 2, ROWS, C))
CASE(focal_loss, op->focal_loss(s, t, f[0], x[0], x[1], f[1], f[2], 0.25f, 2, ROWS, C))

/* values, f32s: how many of each move at least, over N. */
static const struct {
    const char *name;
    void (*run)(DType t);
    double values, f32s;
} cases[] = {
    {"gelu_fwd", run_gelu_fwd, 2, 0},
    {"gelu_bwd", run_gelu_bwd, 4, 0},
    {"tanh_bwd", run_tanh_bwd, 4, 0},
    {"add_fwd", run_add_fwd, 3, 0},
    {"accumulate", run_accumulate, 3, 0},
    {"mul_fwd", run_mul_fwd, 3, 0},
    {"mul_bwd", run_mul_bwd, 7, 0},
    {"add_rows_fwd", run_add_rows_fwd, 2 + 1.0 / ROWS, 0},
    {"add_rows_bwd", run_add_rows_bwd, 1 + 2.0 / ROWS, 0},
    {"bias_bwd", run_bias_bwd, 1, 2.0 / ROWS},
    {"mul_tokens_fwd", run_mul_tokens_fwd, 2 + 1.0 / T, 0},
    {"mul_tokens_bwd", run_mul_tokens_bwd, 4 + 3.0 / T, 0},
    {"dropout_fwd", run_dropout_fwd, 2, 0},
    {"dropout_bwd", run_dropout_bwd, 3, 0},
    {"sum_squares", run_sum_squares, 1, 0},
    {"layernorm_fwd", run_layernorm_fwd, 2, 2.0 / C + 2.0 / ROWS},
    {"layernorm_bwd", run_layernorm_bwd, 4, 2.0 / NORM_C + 5.0 / NORM_ROWS},
    {"l2norm_fwd", run_l2norm_fwd, 2, 1.0 / C},
    {"l2norm_bwd", run_l2norm_bwd, 4, 1.0 / C},
    {"softmax_fwd", run_softmax_fwd, 2, 0},
    {"softmax_bwd", run_softmax_bwd, 4, 0},
    {"gather_rows", run_gather_rows, 2, 1.0 / C},
    {"scatter_rows", run_scatter_rows, 3, 1.0 / C},
    {"copy_rows", run_copy_rows, 2, 0},
    {"mean_tokens_fwd", run_mean_tokens_fwd, 1 + 1.0 / T, 0},
    {"mean_tokens_bwd", run_mean_tokens_bwd, 2 + 1.0 / T, 0},
    {"bce_loss", run_bce_loss, 2, 1 + 2.0 / C},
    {"ce_loss", run_ce_loss, 2, 3.0 / C},
    {"kl_loss", run_kl_loss, 2, 1 + 2.0 / C},
    {"focal_loss", run_focal_loss, 2, 2 + 1.0 / C},
};

static double moved(void (*run)(DType), DType t, EmuTraffic *m) {
    emu_count(m);
    run(t);
    emu_stream_sync(s);
    emu_count(NULL);
    return (double)(m->read + m->written);
}

static void begin(void) {
    Device *d = device_emu();
    op = d->ops;
    s = d->main;
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = d->alloc(d, N * sizeof(float));
    for (int i = 0; i < COUNT_OF(f); i++) f[i] = d->alloc(d, N * sizeof(float));
    int32_t host[ROWS];
    order = d->alloc(d, sizeof host);
    label = d->alloc(d, sizeof host);
    for (int i = 0; i < ROWS; i++) host[i] = i * 7 % ROWS;
    d->upload(d, order, host, sizeof host);
    for (int i = 0; i < ROWS; i++) host[i] = i % C;
    d->upload(d, label, host, sizeof host);
}

static void end(void) {
    Device *d = device_emu();
    for (int i = 0; i < COUNT_OF(x); i++) d->release(d, x[i], N * sizeof(float));
    for (int i = 0; i < COUNT_OF(f); i++) d->release(d, f[i], N * sizeof(float));
    d->release(d, order, ROWS * sizeof *order);
    d->release(d, label, ROWS * sizeof *label);
}

static void row(const char *name, DType t, const EmuTraffic *m, double least) {
    if (getenv("TRAFFIC"))
        printf("  %-16s %-5s least %9.0f  moved %9.0f  %.3f  asked for %.3f\n", name, t == F32 ? "f32" : "bf16", least,
               (double)(m->read + m->written), (double)(m->read + m->written) / least, (double)(m->loads + m->stores) / least);
}

TEST(traffic) {
    if (!emu_sees_accesses()) return test_skip("AddressSanitizer sees the accesses in this build");
    begin();
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (DType t = F32; t <= BF16; t++) {
            EmuTraffic m;
            const double least = (cases[i].values * (double)dtype_size(t) + cases[i].f32s * 4) * N, got = moved(cases[i].run, t, &m);
            row(cases[i].name, t, &m, least);
            EXPECT_NEAR(got, least, 0.1 * least, "%s, type %d: bytes", cases[i].name, (int)t);
        }
    for (DType t = F32; t <= BF16; t++) {
        EmuTraffic m;
        const double got = moved(run_cast, t, &m);
        row("cast", t, &m, 6 * N);
        EXPECT_NEAR(got, 6 * N, 0, "cast");
    }
    end();
}

/* 28 bytes per parameter: p, m, v in and out, g in; 30 with the copy in bf16. Beside it the table of segments, 32 bytes each and
 * once per block. */
static int64_t adamw_values;
static void run_adamw(DType t) {
    enum { SEGMENTS = 12 };
    static const int64_t lengths[] = {768 * 32, 768, 1024 * 12, 32}; /* weights, biases: begins are multiples of 8, as in a model */
    AdamSegment seg[SEGMENTS];
    int64_t at = 0;
    for (int k = 0; k < SEGMENTS; k++) {
        seg[k] = (AdamSegment){at, at + lengths[k % 4], 0.1f, 0.01f};
        at = seg[k].end;
    }
    adamw_values = at;
    op->adamw(s, f[0], f[1], f[2], t == BF16 ? (uint16_t *)x[0] : NULL, f[3], seg, SEGMENTS, 0.9f, 0.99f,
              1e-8f, 1, 1);
}

TEST(traffic_adamw) {
    if (!emu_sees_accesses()) return test_skip("AddressSanitizer sees the accesses in this build");
    begin();
    for (DType t = F32; t <= BF16; t++) {
        EmuTraffic m;
        const double got = moved(run_adamw, t, &m), least = t == F32 ? 28 : 30, n = (double)adamw_values;
        row("adamw", t, &m, least * n);
        EXPECT(m.launches == 1, "%d launches", m.launches);
        EXPECT((double)m.stores == (least - 16) * n, "%g bytes stored per parameter", (double)m.stores / n);
        EXPECT(got == least * n + 12 * 32, "%g bytes per parameter", got / n);
    }
    end();
}
