/* test_attention.c -- attention with all masks, forward and backward. */
#include "kernels/cuda/attention_cudnn.h"
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_attention.safetensors"

COVERS(attention, attention_fwd, attention_bwd)

enum { Q, KEY, V, OUT, LSE, DOUT, DQ, DK, DV, MASK_AT };

static void forward(void *const *p, const int64_t *d, bool masked, bool causal) {
    const int64_t H = d[1], D = d[4];
    op->attention_fwd(S, dt, p[OUT], H * D, p[LSE], p[Q], H * D, p[KEY], p[V], H * D, masked ? p[MASK_AT] : NULL, causal,
                      1 / sqrtf((float)D), (int)d[0], (int)H, (int)d[2], (int)d[3], (int)D);
}
static void backward(void *const *p, const int64_t *d, bool masked, bool causal) {
    const int64_t H = d[1], D = d[4];
    op->attention_bwd(S, dt, p[DQ], p[DK], p[DV], p[Q], H * D, p[KEY], p[V], H * D, p[OUT], p[DOUT], H * D, p[LSE],
                      masked ? p[MASK_AT] : NULL, causal, 1 / sqrtf((float)D), (int)d[0], (int)H, (int)d[2], (int)d[3], (int)D);
}

#define KIND(id, label, masked, causal, ...)                                                                 \
    static void id##_f(void *const *p, const int64_t *d) { forward(p, d, masked, causal); }                  \
    static void id##_b(void *const *p, const int64_t *d) { backward(p, d, masked, causal); }                 \
    static const Kernel id = {label, "BHqkD",                                                                \
        {{"q", X, "BqHD", -3, 3}, {"k", X, "BkHD", -3, 3}, {"v", X, "BkHD"}, {"out", Y, "BqHD", .bound = 32, .bf16 = 1}, \
         {"lse", STAT, "BHq", .bound = 16}, {"dout", DY, "BqHD"}, {"dq", DX, "BqHD", .of = 0, .bound = 64, .bf16 = 4}, \
         {"dk", DX, "BkHD", .of = 1, .bound = 64, .bf16 = 4}, {"dv", DX, "BkHD", .of = 2, .bound = 32, .bf16 = 1}, __VA_ARGS__},   \
        id##_f, id##_b, .slope = 0.03};

/* A score is a sum of D <= 64 products of magnitude 9 / sqrt(D): error about sqrt(D) 9 / sqrt(D) EPS32 / 2, taken as is into
 * the exponential: 5 EPS32 relative, then sums over the keys as a walk (sqrt(101)). dP - delta subtracts two sums of that
 * error, and dq, dk add them up once more: twice that.
 * In bf16 the tensor cores take P and dS rounded: out and dv are sums of P times values within [-1, 1], so one rounding of the
 * whole at most; dq and dk are sums of dS times keys and queries of up to 3, the sum of |dS| beside them of the size of 1. */
KIND(plain, "attention", false, false, {0})
KIND(masked, "attention_masked", true, false, {"mask", MASK, "Bk"})
KIND(causal, "attention_causal", false, true, {0})
KIND(both, "attention_masked_causal", true, true, {"mask", MASK, "Bk"})

const Kernel *const attention_kinds[4] = {&plain, &masked, &causal, &both}; /* tests/cudnn, too */
#define kinds attention_kinds

DEVICE_TEST(attention_golden) {
    static const int64_t sizes[][5] = {
        /* B  H   Tq  Tk   D */
        {1, 1, 1, 1, 1},
        {2, 3, 7, 11, 5},    /* batch 1 of the masked cases sees nothing at all */
        {2, 2, 13, 13, 16},
        {1, 1, 101, 37, 16}, /* two blocks of queries; causal: the first 64 queries see nothing */
        {1, 2, 37, 21, 20},
    };
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int k = 0; k < COUNT_OF(kinds); k++) kernel_check(kinds[k], sizes[i], GOLDEN);
}

DEVICE_TEST(attention_sizes) {
    static const int64_t sizes[][5] = {
        {0, 2, 3, 3, 4}, {2, 2, 0, 3, 4}, {2, 2, 3, 0, 4}, {1, 1, 1, 17, 3}, {1, 1, 17, 1, 33}, {4, 2, 80, 80, 32}, {1, 2, 185, 185, 64},
        {2, 1, 33, 70, 32}, {1, 1, 129, 65, 64}, /* cross attention; causal: the first 64 queries see nothing */
        {2, 2, 16, 16, 64}, {1, 1, 66, 70, 128},
    };
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int k = 0; k < COUNT_OF(kinds); k++) kernel_check(kinds[k], sizes[i], NULL);
}

/* q, k, v as slices of one projection (stride 3HD) give the bits of separate tensors; what lies between is not touched. */
DEVICE_TEST(attention_strides) {
    enum { B = 2, H = 2, T = 19, D = 12, C = H * D };
    static float qkv[B * T * 3 * C], part[3][B * T * C], out[2][B * T * C], lse[2][B * H * T], dqkv[B * T * 3 * C],
        dpart[3][B * T * C], dout[B * T * C];
    memset(dqkv, 0, sizeof dqkv);
    memset(dpart, 0, sizeof dpart);
    fill_random(qkv, COUNT_OF(qkv), 1, -2, 2);
    fill_random(dout, COUNT_OF(dout), 2, -1, 1);
    for (int i = 0; i < B * T; i++)
        for (int s = 0; s < 3; s++) memcpy(part[s] + i * C, qkv + (i * 3 + s) * C, C * sizeof(float));
    float *at = IN(qkv);
    RUN(op->attention_fwd(S, F32, IO(out[0]), C, IO(lse[0]), at, 3 * C, at + C, at + 2 * C, 3 * C, NULL, true, 0.3f, B, H, T, T, D));
    RUN(op->attention_fwd(S, F32, IO(out[1]), C, IO(lse[1]), IN(part[0]), C, IN(part[1]), IN(part[2]), C, NULL, true, 0.3f, B, H, T, T, D));
    EXPECT(!memcmp(out[0], out[1], sizeof out[0]) && !memcmp(lse[0], lse[1], sizeof lse[0]), "forward");
    float *dat = IO(dqkv);
    at = IN(qkv);
    RUN(op->attention_bwd(S, F32, dat, dat + C, dat + 2 * C, at, 3 * C, at + C, at + 2 * C, 3 * C, IN(out[0]), IN(dout), C, IN(lse[0]), NULL,
                          true, 0.3f, B, H, T, T, D));
    RUN(op->attention_bwd(S, F32, IO(dpart[0]), IO(dpart[1]), IO(dpart[2]), IN(part[0]), C, IN(part[1]), IN(part[2]), C, IN(out[1]), IN(dout),
                          C, IN(lse[1]), NULL, true, 0.3f, B, H, T, T, D));
    for (int i = 0; i < B * T; i++)
        for (int s = 0; s < 3; s++)
            EXPECT(!memcmp(dpart[s] + i * C, dqkv + (i * 3 + s) * C, C * sizeof(float)), "gradient %d of token %d", s, i);
}

/* The same in bf16 at a head size for tensor cores, with NaN behind masked keys, which no result may meet. */
DEVICE_TEST(attention_strides_bf16) {
    enum { B = 2, H = 2, T = 70, D = 32, C = H * D };
    static float x[B * T * 3 * C];
    static uint16_t qkv[B * T * 3 * C], part[3][B * T * C], out[2][B * T * C], dqkv[B * T * 3 * C], dpart[3][B * T * C], dout[B * T * C];
    static float lse[2][B * H * T];
    static uint8_t mask[B * T];
    if (!strcmp(dev->name, "cpu")) return; /* it computes in f32 */
    memset(dqkv, 0, sizeof dqkv);
    memset(dpart, 0, sizeof dpart);
    fill_random(x, COUNT_OF(x), 1, -2, 2);
    for (int i = 0; i < COUNT_OF(qkv); i++) qkv[i] = bf16_round(x[i]);
    for (int i = 0; i < COUNT_OF(dout); i++) dout[i] = bf16_round(x[i] * 0.5f);
    for (int i = 0; i < B * T; i++) {
        mask[i] = i % 5 != 3;
        for (int c = C; c < 3 * C && !mask[i]; c++) qkv[i * 3 * C + c] = 0x7FFF;
        for (int s = 0; s < 3; s++) memcpy(part[s] + i * C, qkv + (i * 3 + s) * C, C * sizeof *qkv);
    }
    uint16_t *at = IN(qkv);
    RUN(op->attention_fwd(S, BF16, IO(out[0]), C, IO(lse[0]), at, 3 * C, at + C, at + 2 * C, 3 * C, IN(mask), true, 0.3f, B, H, T, T, D));
    RUN(op->attention_fwd(S, BF16, IO(out[1]), C, IO(lse[1]), IN(part[0]), C, IN(part[1]), IN(part[2]), C, IN(mask), true, 0.3f, B, H, T, T, D));
    EXPECT(!memcmp(out[0], out[1], sizeof out[0]) && !memcmp(lse[0], lse[1], sizeof lse[0]), "forward");
    uint16_t *dat = IO(dqkv);
    at = IN(qkv);
    RUN(op->attention_bwd(S, BF16, dat, dat + C, dat + 2 * C, at, 3 * C, at + C, at + 2 * C, 3 * C, IN(out[0]), IN(dout), C, IN(lse[0]), IN(mask),
                          true, 0.3f, B, H, T, T, D));
    RUN(op->attention_bwd(S, BF16, IO(dpart[0]), IO(dpart[1]), IO(dpart[2]), IN(part[0]), C, IN(part[1]), IN(part[2]), C, IN(out[1]), IN(dout),
                          C, IN(lse[1]), IN(mask), true, 0.3f, B, H, T, T, D));
    for (int i = 0; i < B * T; i++)
        for (int s = 0; s < 3; s++)
            EXPECT(!memcmp(dpart[s] + i * C, dqkv + (i * 3 + s) * C, C * sizeof *dqkv), "gradient %d of token %d", s, i);
    for (int i = 0; i < COUNT_OF(out[0]); i++) EXPECT(isfinite(bf16_value(out[0][i])), "out[%d] met what is masked", i);
    for (int i = 0; i < COUNT_OF(dqkv); i++) EXPECT(isfinite(bf16_value(dqkv[i])), "gradient %d met what is masked", i);
}

/* Scores of +-1e4 do not overflow; a masked key may hold anything, NaN too; a NaN that is seen shows. */
DEVICE_TEST(attention_edges) {
    float q[1] = {100}, k[3] = {100, -100, NAN}, v[3] = {1, 2, NAN}, out[1], lse[1], d[1] = {1}, dq[1] = {0}, dk[3] = {0}, dv[3] = {0};
    const uint8_t mask[3] = {1, 1, 0};
    RUN(op->attention_fwd(S, F32, IO(out), 1, IO(lse), IN(q), 1, IN(k), IN(v), 1, IN(mask), false, 1, 1, 1, 1, 3, 1));
    EXPECT(out[0] == 1 && lse[0] == 1e4f, "%g, lse %g", (double)out[0], (double)lse[0]);
    RUN(op->attention_bwd(S, F32, IO(dq), IO(dk), IO(dv), IN(q), 1, IN(k), IN(v), 1, IN(out), IN(d), 1, IN(lse), IN(mask), false, 1, 1, 1, 1, 3, 1));
    EXPECT(dq[0] == 0 && dk[0] == 0 && dk[2] == 0 && dv[0] == 1 && dv[1] == 0 && dv[2] == 0, "gradients");
    RUN(op->attention_fwd(S, F32, IO(out), 1, IO(lse), IN(q), 1, IN(k), IN(v), 1, NULL, false, 1, 1, 1, 1, 3, 1));
    EXPECT(isnan(out[0]), "a NaN is hidden: %g", (double)out[0]);
}

/* ---- with cuDNN (kernels/cuda/attention_cudnn.c) ---------------------------------------------------- */

/* Its packing of the visible keys, and the way back: by the emulated card's kernels, or the card's own. */
static void check_packing(void) {
    enum { B = 3, T = 70, C = 24, LD = 2 * C };
    static uint16_t k[B * T * LD], v[B * T * LD], pk[B * T * C], pv[B * T * C], dk[B * T * LD], was[B * T * LD];
    static uint8_t mask[B * T], blind[B];
    static int32_t order[B * T], length[B];
    static float x[B * T * LD];
#ifdef WITH_CUDA
#define ON_DEVICE(what) (strcmp(dev->name, "emu") ? cuda_##what : emu_##what)
#else
#define ON_DEVICE(what) emu_##what
#endif
    fill_random(x, COUNT_OF(x), 1, -2, 2);
    for (int i = 0; i < COUNT_OF(k); i++) k[i] = bf16_round(x[i]), v[i] = bf16_round(-x[i]), dk[i] = was[i] = bf16_round(x[i] / 2);
    for (int i = 0; i < B * T; i++) mask[i] = i / T != 1 && (i * 7 % 5 < 3 || i / T == 2);
    int32_t *o = IO(order);
    uint16_t *a = IO(pk), *b = IO(pv), *d = IO(dk);
    RUN(ON_DEVICE(attention_order)(S, o, IO(length), IO(blind), IN(mask), B, T); ON_DEVICE(attention_pack)(S, a, b, IN(k), IN(v), LD, o, B, T, C);
        ON_DEVICE(attention_unpack)(S, d, NULL, LD, a, b, o, B, T, C));
    for (int i = 0; i < B; i++) {
        int n = 0;
        for (int j = 0; j < T; j++) {
            if (!mask[i * T + j]) continue;
            EXPECT(order[i * T + n] == j, "batch %d: key %d is number %d", i, j, n);
            for (int c = 0; c < C; c++) {
                const int from = (i * T + j) * LD + c, to = (i * T + n) * C + c;
                EXPECT(pk[to] == k[from] && pv[to] == v[from], "batch %d: key %d is not packed", i, j);
                was[from] = bf16_round(bf16_value(was[from]) + bf16_value(k[from]));
            }
            n++;
        }
        EXPECT(length[i] == MAX(n, 1) && blind[i] == (n == 0), "batch %d: %d keys", i, (int)length[i]);
        for (int r = n; r < T; r++) EXPECT(order[i * T + r] == -1 && !pk[(i * T + r) * C] && !pv[(i * T + r) * C], "batch %d: row %d is not empty", i, r);
    }
    EXPECT(!memcmp(dk, was, sizeof dk), "gradients");
}
TEST(attention_packing_on_emu) { device_test_run(EMU, check_packing); }

#ifdef WITH_CUDA
TEST(attention_packing_on_cuda) { device_test_run(CUDA_CARD, check_packing); }

/* The library itself, where it and a card are. */
static void check_cudnn(void) {
    static const int64_t sizes[][5] = {{4, 2, 80, 80, 32}, {1, 2, 185, 185, 64}, {2, 3, 17, 17, 32}, {2, 1, 33, 70, 32}, {3, 2, 5, 40, 64}};
    const Ops *own = dev->ops;
    static Error e; /* the reason for skipping is read later */
    if (!device_use_cudnn(dev, &e)) {
        test_skip(e.text);
        return;
    }
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int k = 0; k < COUNT_OF(kinds); k++) kernel_check(kinds[k], sizes[i], NULL);
    dev->ops = own;
}
TEST(cudnn_by_card) { device_test_run(CUDA_CARD, check_cudnn); }
#endif
