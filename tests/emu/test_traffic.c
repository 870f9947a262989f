/* test_traffic.c -- do the kernels that are bound by memory move each byte once, and does shared memory serve every warp at once?
 * Counted by the emulated card.
 *
 * What an op must move: its inputs once, its outputs once, what it adds to twice. What it moves: the sectors of 32 bytes that each
 * of its launches reads and writes (emu.h), so that a second launch over the same values, or a buffer between two, counts, and a
 * row that a block meets again in its cache does not. At most a tenth more may move. TRAFFIC=1 prints the table; with
 * TRAFFIC_KERNELS=FILE each kernel that an op launches gets a line there, which `make ptx` puts beside what nvcc says of it:
 *
 *     address in the program, op, type, threads and most shared memory of a block, moved / least of the op (- without a bound),
 *     share of the bytes asked for by 16-byte accesses, sectors, least sectors, transactions and wavefronts of shared memory
 */
#include "kernels/ops.h"
#include "tests/emu/emu.h"
#include "tests/test.h"

#include <link.h>

#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* rows name what matters */

enum { B = 4, T = 160, ROWS = B * T, C = 256, N = ROWS * C }; /* 160 tokens: three chunks for sums over rows */
/* layernorm_bwd's blocks have some rows each at least: once with more of them, as in a model, and once with no more. */
enum { NORM_C = 8, NORM_ROWS = N / NORM_C };
/* Positions are interpolated at a published model's width: what is sorted, 32 bytes a row several times over, is nothing beside a row. */
enum { POS_C = 768, POS_ROWS = N / POS_C };
enum { PAIRS = 8, TEXTS = 8 };
enum { HEADS = 2, TOKENS = 185, D = 64, HEAD_VALUES = HEADS * TOKENS * D };
enum { IMAGE_H = 240, IMAGE_W = 320, SIDE = 224, PATCH = 32, GRID = SIDE / PATCH }; /* ViLT-B/32's patches of a small photograph */
enum { QUERIES = 576, FOUND = 20 }; /* OWL-ViT-B/32 at 768 x 768 */

static const Ops *op;
static Stream *s;
static void *x[6]; /* N values each, of either type */
static float *f[4]; /* N */
static int32_t *order, *label; /* a permutation of the rows; below C */
static int32_t *corners, *pair_image, *pair_text, *image_size;
static double out;

static void run_image_patches(DType t);

#define CASE(name, call)                                                                                     \
    static void run_##name(DType t) { (void)t, call; }
CASE(gelu_fwd, op->gelu_fwd(s, t, x[0], x[1], N))
CASE(gelu_bwd, op->gelu_bwd(s, t, x[0], x[1], x[2], N))
CASE(gelu_bwd_in_place, op->gelu_bwd(s, t, x[0], x[1], x[0], N))
CASE(gelu_tanh_fwd, op->gelu_tanh_fwd(s, t, x[0], x[1], N))
CASE(gelu_tanh_bwd, op->gelu_tanh_bwd(s, t, x[0], x[1], x[2], N))
CASE(quick_gelu_fwd, op->quick_gelu_fwd(s, t, x[0], x[1], N))
CASE(quick_gelu_bwd, op->quick_gelu_bwd(s, t, x[0], x[1], x[2], N))
CASE(elu1_fwd, op->elu1_fwd(s, t, x[0], x[1], N))
CASE(elu1_bwd, op->elu1_bwd(s, t, x[0], x[1], x[2], N))
CASE(tanh_fwd, op->tanh_fwd(s, t, x[0], x[1], N))
CASE(sigmoid_fwd, op->sigmoid_fwd(s, t, x[0], x[1], N))
CASE(sigmoid_bwd, op->sigmoid_bwd(s, t, x[0], x[1], x[2], N))
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
CASE(add_layernorm_fwd, op->add_layernorm_fwd(s, t, x[0], x[1], f[0], f[1], x[2], x[3], f[2], f[3], 1e-5f, ROWS, C))
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
CASE(interp_rows_fwd, op->interp_rows_fwd(s, t, x[0], x[1], corners, f[0], POS_ROWS, POS_C))
CASE(interp_rows_bwd, op->interp_rows_bwd(s, t, x[0], t, x[1], corners, f[0], POS_ROWS, POS_C))
CASE(pair_scores_fwd, op->pair_scores_fwd(s, t, x[0], x[1], x[2], pair_image, pair_text, PAIRS, T, C))
CASE(pair_scores_bwd, op->pair_scores_bwd(s, t, x[0], x[1], x[2], x[3], x[4], pair_image, pair_text, PAIRS, T, C))
CASE(box_loss, op->box_loss(s, f[0], f[1], f[2], f[3], x[0], 5, 2, false, N / 4))
CASE(layernorm_bwd_few, op->layernorm_bwd(s, t, x[0], f[0], f[0] + C, x[1], x[2], f[1], f[2], f[3], ROWS, C))
CASE(attention_fwd, op->attention_fwd(s, t, x[0], HEADS *D, f[0], x[1], HEADS *D, x[2], x[3], HEADS *D, NULL, false, 0.125f, 1, HEADS, TOKENS, TOKENS, D))
CASE(attention_bwd, op->attention_bwd(s, t, x[0], x[1], x[2], x[3], HEADS *D, x[4], x[5], HEADS *D, f[1], f[2], HEADS *D, f[0], NULL, false, 0.125f, 1, HEADS,
                                      TOKENS, TOKENS, D))
CASE(detect, op->detect(s, (Detection *)x[0], f[0], f[1], image_size, 0.1f, 0.5, false, B, QUERIES, FOUND))

static void run_image_patches(DType t) {
    static uint8_t pixels[IMAGE_H * IMAGE_W * 3];
    for (int i = 0; i < COUNT_OF(pixels); i++) pixels[i] = (uint8_t)(i * 2654435761u >> 24);
    static const PatchSpec spec = {PATCH, GRID, GRID, BICUBIC, {0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
    const ImageView view = {pixels, IMAGE_W, IMAGE_H};
    op->image_patches(s, t, x[0], &view, &(Rect){0, 0, IMAGE_W, IMAGE_H}, (int[][2]){{SIDE, SIDE}}, &spec, 1);
}

/* values, f32s: how many of each move at least, over N. */
static const struct {
    const char *name;
    void (*run)(DType t);
    double values, f32s;
    bool free; /* of the bound */
} cases[] = {
    {"gelu_fwd", run_gelu_fwd, 2, 0},
    {"gelu_bwd", run_gelu_bwd, 4, 0},
    {"gelu_bwd_in_place", run_gelu_bwd_in_place, 3, 0},
    {"gelu_tanh_fwd", run_gelu_tanh_fwd, 2, 0},
    {"gelu_tanh_bwd", run_gelu_tanh_bwd, 4, 0},
    {"quick_gelu_fwd", run_quick_gelu_fwd, 2, 0},
    {"quick_gelu_bwd", run_quick_gelu_bwd, 4, 0},
    {"elu1_fwd", run_elu1_fwd, 2, 0},
    {"elu1_bwd", run_elu1_bwd, 4, 0},
    {"tanh_fwd", run_tanh_fwd, 2, 0},
    {"sigmoid_fwd", run_sigmoid_fwd, 2, 0},
    {"sigmoid_bwd", run_sigmoid_bwd, 4, 0},
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
    {"add_layernorm_fwd", run_add_layernorm_fwd, 4, 2.0 / C + 2.0 / ROWS},
    {"layernorm_bwd", run_layernorm_bwd, 4, 2.0 / NORM_C + 5.0 / NORM_ROWS},
    {"layernorm_bwd_few", run_layernorm_bwd_few, 4, 2.0 / C + 5.0 / ROWS},
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
    /* four indices and weights for a row; every row of x is some output's */
    {"interp_rows_fwd", run_interp_rows_fwd, 2.0 * POS_ROWS * POS_C / N, 8.0 * POS_ROWS / N},
    {"interp_rows_bwd", run_interp_rows_bwd, 3.0 * POS_ROWS * POS_C / N, 8.0 * POS_ROWS / N},
    {"pair_scores_fwd", run_pair_scores_fwd, 1 + (TEXTS * C + PAIRS * T) / (double)N, 2.0 * PAIRS / N},
    {"pair_scores_bwd", run_pair_scores_bwd, 3 + (3 * TEXTS * C + PAIRS * T) / (double)N, 2.0 * PAIRS / N},
    {"box_loss", run_box_loss, 0, 14.0 / 4}, /* box, target, dbox, weight, loss */
    {"image_patches", run_image_patches, 3.0 * SIDE * SIDE / N, IMAGE_H * IMAGE_W * 3 / 4.0 / N},
    {"detect", run_detect, 0, B * (5.0 * QUERIES + 6 * FOUND + 2) / N},
    /* What binds these is not memory. */
    {"attention_fwd", run_attention_fwd, 4.0 * HEAD_VALUES / N, HEADS * TOKENS / (double)N, .free = true},
    {"attention_bwd", run_attention_bwd, 11.0 * HEAD_VALUES / N, HEADS * TOKENS / (double)N, .free = true},
};

static double moved(void (*run)(DType), DType t, EmuTraffic *m) {
    emu_count(m);
    run(t);
    emu_stream_sync(s);
    emu_count(NULL);
    return (double)(m->read + m->written);
}

static Device *d; /* that they run on */

static int32_t *uploaded(const int32_t *host, size_t bytes) {
    int32_t *p = d->alloc(d, bytes);
    d->upload(d, p, host, bytes);
    return p;
}

static void begin(Device *on) {
    d = on;
    op = d->ops;
    s = d->main;
    static uint32_t some[N]; /* numbers within -1 and 1, read as f32 and as bf16 */
    for (uint32_t i = 0; i < N; i++) some[i] = 0x3F003F00u | (i * 2654435761u & 0x807F807Fu);
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = uploaded((int32_t *)some, sizeof some);
    for (int i = 0; i < COUNT_OF(f); i++) f[i] = (float *)uploaded((int32_t *)some, sizeof some);
    int32_t host[ROWS];
    order = d->alloc(d, sizeof host);
    label = d->alloc(d, sizeof host);
    for (int i = 0; i < ROWS; i++) host[i] = i * 7 % ROWS;
    d->upload(d, order, host, sizeof host);
    for (int i = 0; i < ROWS; i++) host[i] = i % C;
    d->upload(d, label, host, sizeof host);
    int32_t four[4 * POS_ROWS];
    for (int i = 0; i < 4 * POS_ROWS; i++) four[i] = (i / 4 + i % 4 / 2 * GRID + i % 2) % POS_ROWS;
    corners = uploaded(four, sizeof four);
    pair_image = uploaded((int32_t[PAIRS]){0, 1, 2, 3, 0, 1, 2, 3}, PAIRS * sizeof(int32_t));
    pair_text = uploaded((int32_t[PAIRS]){7, 6, 5, 4, 3, 2, 1, 0}, PAIRS * sizeof(int32_t));
    image_size = uploaded((int32_t[B * 2]){640, 480, 640, 480, 640, 480, 640, 480}, B * 2 * sizeof(int32_t));
}

static void end(void) {
    for (int i = 0; i < COUNT_OF(x); i++) d->release(d, x[i], N * sizeof(float));
    for (int i = 0; i < COUNT_OF(f); i++) d->release(d, f[i], N * sizeof(float));
    d->release(d, order, ROWS * sizeof *order);
    d->release(d, label, ROWS * sizeof *label);
    d->release(d, corners, 4 * POS_ROWS * sizeof *corners);
    d->release(d, pair_image, PAIRS * sizeof *pair_image);
    d->release(d, pair_text, PAIRS * sizeof *pair_text);
    d->release(d, image_size, B * 2 * sizeof *image_size);
}

/* How far from its linked address the program was loaded: `nm` knows nothing of it. The program itself comes first. */
static int first_bias(struct dl_phdr_info *info, size_t size, void *bias) {
    (void)size;
    *(uintptr_t *)bias = (uintptr_t)info->dlpi_addr;
    return 1;
}

static void row(const char *name, DType t, const EmuTraffic *m, double least, bool free) {
    const double over = (double)(m->read + m->written) / least;
    const char *type = t == F32 ? "f32" : "bf16", *path = getenv("TRAFFIC_KERNELS");
    if (getenv("TRAFFIC"))
        printf("  %-17s %-5s least %9.0f  moved %9.0f  %.3f%s  asked for %.3f\n", name, type, least, (double)(m->read + m->written), over,
               free ? "*" : " ", (double)(m->loads + m->stores) / least);
    const EmuKernel *k = path ? emu_kernel(0) : NULL;
    FILE *to = k ? fopen(path, "a") : NULL;
    uintptr_t bias;
    dl_iterate_phdr(first_bias, &bias);
    for (int i = 0; to && (k = emu_kernel(i)); i++)
        fprintf(to, "%016zx %s %s %d %zu %.3f%s %.3f %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n",
                (size_t)((uintptr_t)k->function - bias), name, type, k->threads, k->shared, over, free ? "*" : "",
                k->bytes ? (double)k->wide_bytes / (double)k->bytes : 0.0, k->sectors, k->least_sectors, k->transactions, k->wavefronts);
    if (to) fclose(to);
}

/* Each transaction takes one wavefront. Not in resample, where what a lane reads depends on the picture: a source pixel of 3 bytes
 * at its own scale, and a table by the pixel's value. */
static void check_banks(const char *name, DType t) {
    const EmuKernel *k;
    for (int i = 0; (k = emu_kernel(i)); i++)
        EXPECT(k->wavefronts == k->transactions || strstr(k->name, "resample"),
               "%s, type %d, kernel %s: %" PRId64 " wavefronts for %" PRId64 " transactions", name, (int)t, k->name, k->wavefronts, k->transactions);
}

static double least_of(int i, DType t) { return (cases[i].values * (double)dtype_size(t) + cases[i].f32s * 4) * N; }

TEST(traffic) {
    if (!emu_sees_accesses()) return test_skip("AddressSanitizer sees the accesses in this build");
    begin(device_emu());
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (DType t = F32; t <= BF16; t++) {
            EmuTraffic m;
            const double least = least_of(i, t), got = moved(cases[i].run, t, &m);
            row(cases[i].name, t, &m, least, cases[i].free);
            if (!cases[i].free) EXPECT_NEAR(got, least, 0.1 * least, "%s, type %d: bytes", cases[i].name, (int)t);
            check_banks(cases[i].name, t);
        }
    for (DType t = F32; t <= BF16; t++) {
        EmuTraffic m;
        const double got = moved(run_cast, t, &m);
        row("cast", t, &m, 6 * N, false);
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
    begin(device_emu());
    for (DType t = F32; t <= BF16; t++) {
        EmuTraffic m;
        const double got = moved(run_adamw, t, &m), least = t == F32 ? 28 : 30, n = (double)adamw_values;
        row("adamw", t, &m, least * n, false);
        EXPECT(m.launches == 1, "%d launches", m.launches);
        EXPECT((double)m.stores == (least - 16) * n, "%g bytes stored per parameter", (double)m.stores / n);
        EXPECT(got == least * n + 12 * 32, "%g bytes per parameter", got / n);
    }
    end();
}

#ifdef WITH_CUDA
/* The same launches for a profiler (tests/cuda/profile.sh), which is the second witness: TRAFFIC_OP="gelu_fwd bf16" runs that one, once,
 * TRAFFIC_OP=list prints what there is, with the least bytes of each. */
TEST(traffic_on_cuda) {
    const char *wanted = getenv("TRAFFIC_OP");
    Error e = {0};
    if (!wanted) return test_skip("a profiler's: tests/cuda/profile.sh");
    Device *card = strcmp(wanted, "list") ? device_cuda(0, &e) : NULL;
    if (card) begin(card);
    int found = 0;
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (DType t = F32; t <= BF16; t++) {
            char name[64];
            snprintf(name, sizeof name, "%s %s", cases[i].name, t == F32 ? "f32" : "bf16");
            if (!card) printf("op %s %.0f%s\n", name, least_of(i, t), cases[i].free ? " *" : "");
            else if (!strcmp(name, wanted)) cases[i].run(t), found++;
        }
    if (!card) return;
    d->sync(d);
    EXPECT(found == 1, "TRAFFIC_OP=%s is no op and type; TRAFFIC_OP=list prints them", wanted);
    end();
}
#endif
