/* test_loss.c -- losses and the gradients they write. */
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/kernels_loss.safetensors"

COVERS(loss, bce_loss, ce_loss, kl_loss, focal_loss, box_loss)

/* Sums over V <= 3129 values in 8 lanes: a walk of sqrt(V / 8) <= 20 roundings; the terms' own error about 4 EPS32.
 * Gradients are one expression each: exp, sum, quotient, difference. */
static void bce_f(void *const *p, const int64_t *d) { op->bce_loss(S, dt, p[3], p[4], p[0], p[1], p[2], 2, d[0], d[1]); }
static const Kernel bce = {"bce", "rV",
    {{"x", X, "rV", -6, 6}, {"target", CONST, "rV", 0, 1}, {"weight", CONST, "r", 0, 1}, {"loss", Y, "r", .bound = 16, .f32 = true},
     {"dx", WRITTEN, "rV", .of = 0, .bound = 8}}, bce_f, NULL};

static void ce_f(void *const *p, const int64_t *d) { op->ce_loss(S, dt, p[3], p[4], p[0], p[1], p[2], 0.1f, d[0], d[1]); }
static const Kernel ce = {"ce", "rV",
    {{"x", X, "rV", -6, 6}, {"label", INDEX, "r", .below = 'V'}, {"weight", CONST, "r", 0, 1}, {"loss", Y, "r", .bound = 16, .f32 = true},
     {"dx", WRITTEN, "rV", .of = 0, .bound = 12}}, ce_f, NULL};

/* The sum of q d cancels: |d| <= 12 beside a loss near 5. */
static void kl_f(void *const *p, const int64_t *d) { op->kl_loss(S, dt, p[3], p[4], p[0], p[1], p[2], 2, d[0], d[1]); }
static const Kernel kl = {"kl", "rV",
    {{"x", X, "rV", -6, 6}, {"z", CONST, "rV", -6, 6}, {"weight", CONST, "r", 0, 1}, {"loss", Y, "r", .bound = 48, .f32 = true},
     {"dx", WRITTEN, "rV", .of = 0, .bound = 16}}, kl_f, NULL};

static void focal_f(void *const *p, const int64_t *d) {
    op->focal_loss(S, dt, p[3], p[4], p[0], p[1], p[2], 0.3f, 2, d[0], d[1]);
}
#define FOCAL(label)                                                                                         \
    {label, "rV", {{"x", X, "rV", -6, 6}, {"target", CONST, "rV", 0, 1}, {"weight", CONST, "rV", 0, 1},      \
                   {"loss", Y, "r", .bound = 16, .f32 = true}, {"dx", WRITTEN, "rV", .of = 0, .bound = 16}}, focal_f, NULL}
static const Kernel focal = FOCAL("focal"), focal_hard = FOCAL("focal_hard");

static void box_f(void *const *p, const int64_t *d) { op->box_loss(S, p[3], p[4], p[0], p[1], p[2], 5, 2, false, d[0]); }
static void box_corners_f(void *const *p, const int64_t *d) { op->box_loss(S, p[3], p[4], p[0], p[1], p[2], 5, 2, true, d[0]); }
/* Central differences: among 404 coordinates some four are nearer to the target than the step, where |x| has its kink and
 * the difference is wrong by up to 5: a tenth of the whole. */
#define BOX(label, run)                                                                                      \
    {label, "n", {{"x", X, "4n", 0.2f, 0.8f}, {"target", CONST, "4n", 0.2f, 0.8f}, {"weight", CONST, "n", 0, 1}, \
                  {"loss", Y, "n", .bound = 16}, {"dx", WRITTEN, "4n", .of = 0, .bound = 32}}, run, NULL, .only_f32 = true, .slope = 0.2}
static const Kernel box = BOX("box", box_f), box_corners = BOX("box_corners", box_corners_f);

DEVICE_TEST(loss_golden) {
    static const int64_t sizes[][2] = {{1, 1}, {5, 37}, {4, 701}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        kernel_check(&bce, sizes[i], GOLDEN);
        kernel_check(&ce, sizes[i], GOLDEN);
        kernel_check(&kl, sizes[i], GOLDEN);
        if (sizes[i][1] > 100) continue;
        kernel_check(&focal, sizes[i], GOLDEN);
        kernel_check(&focal_hard, sizes[i], GOLDEN);
    }
    for (int64_t n = 1; n <= 101; n += 100) {
        kernel_check(&box, &n, GOLDEN);
        kernel_check(&box_corners, &n, GOLDEN);
    }
}

DEVICE_TEST(loss_sizes) {
    static const int64_t sizes[][2] = {{0, 7}, {1, 2}, {3, 31}, {16, 3129}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        kernel_check(&bce, sizes[i], NULL);
        kernel_check(&ce, sizes[i], NULL);
        kernel_check(&kl, sizes[i], NULL);
        kernel_check(&focal, sizes[i], NULL);
    }
    kernel_check(&box, (int64_t[]){0}, NULL);
    kernel_check(&bce, (int64_t[]){3, 0}, NULL);
    kernel_check(&kl, (int64_t[]){3, 0}, NULL);
    kernel_check(&focal, (int64_t[]){3, 0}, NULL);
}

/* Weight 0 (and label -1): zeros, even where the row is not finite or its label is nonsense. */
DEVICE_TEST(loss_weight_zero) {
    const float x[2] = {NAN, INFINITY}, target[2] = {NAN, 3}, zero[2] = {0};
    float loss = 7, dx[4] = {7, 7, 7, 7};
    const int32_t label = 1000;
#define ZERO(what, n)                                                                                        \
    EXPECT(loss == 0, what ": loss %g", (double)loss);                                                       \
    for (int i = 0; i < (n); i++) EXPECT(dx[i] == 0, what ": dx %g", (double)dx[i]), dx[i] = 7;              \
    loss = 7;
    RUN(op->bce_loss(S, F32, IO(loss), IO(dx), IN(x), IN(target), IN(zero), 1, 1, 2));
    ZERO("bce", 2)
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN(x), IN(label), IN(zero), 0, 1, 2));
    ZERO("ce", 2)
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN(x), IN((int32_t[]){-1}), IN((float[]){1}), 0, 1, 2));
    ZERO("ce without label", 2)
    RUN(op->kl_loss(S, F32, IO(loss), IO(dx), IN(x), IN(target), IN(zero), 1, 1, 2));
    ZERO("kl", 2)
    RUN(op->focal_loss(S, F32, IO(loss), IO(dx), IN(x), IN(target), IN(zero), 0.3f, 2, 1, 2));
    ZERO("focal", 2)
    RUN(op->box_loss(S, IO(loss), IO(dx), IN((float[]){NAN, 0, 0, 0}), IN((float[]){1, 1, 1, NAN}), IN(zero), 1, 1, true, 1));
    ZERO("box", 4)
}

/* test-vectors 8. Printed to 8 or 10 decimals; the kernels add a few EPS32 of the value. */
DEVICE_TEST(loss_specification) {
    float loss, dx[4];
    const float one[4] = {1, 1, 1, 1};
    static const double bce_rows[][4] = {{2, 0.3, 1.52692801, 0.58079708}, {-1.5, 1, 1.70141328, -0.81757448},
                                         {-7, 0, 0.00091147, 0.00091105}, {30, 0.6, 12, 0.4}};
    for (int i = 0; i < COUNT_OF(bce_rows); i++) {
        const float x = (float)bce_rows[i][0], t = (float)bce_rows[i][1];
        RUN(op->bce_loss(S, F32, IO(loss), IO(dx), IN(x), IN(t), IN(one), 1, 1, 1));
        /* the target itself is rounded: x EPS32 */
        EXPECT_NEAR(loss, bce_rows[i][2], 5e-9 + 8 * EPS32 * bce_rows[i][2] + EPS32 * fabs(bce_rows[i][0]), "bce row %d", i);
        EXPECT_NEAR(dx[0], bce_rows[i][3], 5e-9 + 4 * EPS32, "bce row %d: gradient", i);
    }
    /* ViLT: weight 1 / B gives L x mean. */
    const float x6[6] = {2, -1, 0.5f, -3, 1, 0}, t6[6] = {0.3f, 0, 1, 0, 0.6f, 0}, half[2] = {0.5f, 0.5f};
    const double g6[6] = {0.29039854, 0.13447071, -0.18877033, 0.02371294, 0.06552929, 0.25};
    float l2[2], d6[6];
    RUN(op->bce_loss(S, F32, IO(l2), IO(d6), IN(x6), IN(t6), IN(half), 1, 2, 3));
    EXPECT_NEAR(l2[0] + l2[1], 1.88463145, 5e-9 + 8 * EPS32 * 2, "ViLT loss");
    for (int i = 0; i < 6; i++) EXPECT_NEAR(d6[i], g6[i], 5e-9 + 4 * EPS32, "ViLT gradient %d", i);
    static const double focal_rows[][3] = {{1, 1, 0.0067974173}, {1, 0, 0.4913078124}, {-4.59511985, 0, 0.0000007035},
                                           {-4.59511985, 1, 1.3540581897}, {0, 1, 0.0519860385}};
    for (int i = 0; i < COUNT_OF(focal_rows); i++) {
        const float x = (float)focal_rows[i][0], t = (float)focal_rows[i][1];
        RUN(op->focal_loss(S, F32, IO(loss), IO(dx), IN(x), IN(t), IN(one), 0.3f, 2, 1, 1));
        EXPECT_NEAR(loss, focal_rows[i][2], 5e-11 + 16 * EPS32 * focal_rows[i][2], "focal row %d", i);
    }
    /* Hinton: T = 2 */
    const float z[3] = {2, 1, 0}, x3[3] = {0.5f, 1, -1};
    const double dk[3] = {-0.28737457, 0.31727936, -0.02990479};
    RUN(op->kl_loss(S, F32, IO(loss), IO(dx), IN(x3), IN(z), IN(one), 2, 1, 3));
    EXPECT_NEAR(loss, 0.22670021, 5e-9 + 16 * EPS32, "KL");
    for (int i = 0; i < 3; i++) EXPECT_NEAR(dx[i], dk[i], 5e-9 + 4 * EPS32, "KL gradient %d", i);
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN(x3), IN((int32_t[]){0}), IN(one), 0, 1, 3));
    EXPECT_NEAR(loss, 1.05495692, 5e-9 + 8 * EPS32, "CE");
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN(x3), IN((int32_t[]){0}), IN(one), 0.1f, 1, 3));
    EXPECT_NEAR(loss, 1.08829025, 5e-9 + 8 * EPS32, "label smoothing");
    static const float boxes[][8] = {{0.5f, 0.5f, 0.4f, 0.4f, 0.6f, 0.55f, 0.4f, 0.2f}, {0.2f, 0.2f, 0.2f, 0.2f, 0.8f, 0.7f, 0.2f, 0.4f},
                                     {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.6f, 0.6f, 0.5f, 0.5f, 0.2f, 0.2f}};
    static const double want[][3] = {{0.23333333, 0.35, 0.4}, {-0.8125, 1.3, 2.2}, {1, 0, 0}, {0.11111111, 0.8, 0.8}};
    for (int i = 0; i < COUNT_OF(boxes); i++) {
        RUN(op->box_loss(S, IO(loss), IO(dx), IN_N(boxes[i], 16), IN_N(boxes[i] + 4, 16), IN(one), 0, 1, false, 1));
        EXPECT_NEAR(1 - loss, want[i][0], 5e-9 + 24 * EPS32, "GIoU row %d", i);
        RUN(op->box_loss(S, IO(loss), IO(dx), IN_N(boxes[i], 16), IN_N(boxes[i] + 4, 16), IN(one), 1, 0, false, 1));
        EXPECT_NEAR(loss, want[i][1], 12 * EPS32, "L1 row %d", i);
        RUN(op->box_loss(S, IO(loss), IO(dx), IN_N(boxes[i], 16), IN_N(boxes[i] + 4, 16), IN(one), 1, 0, true, 1));
        EXPECT_NEAR(loss, want[i][2], 16 * EPS32, "L1 on corners row %d", i);
    }
    /* The same box twice is the minimum: no slope. */
    RUN(op->box_loss(S, IO(loss), IO(dx), IN_N(boxes[2], 16), IN_N(boxes[2] + 4, 16), IN(one), 5, 2, false, 1));
    for (int i = 0; i < 4; i++) EXPECT_NEAR(dx[i], 0, 16 * EPS32, "slope %d of a perfect box", i);
}

/* Degenerate boxes: both a point, in one place or two. Finite everywhere. */
DEVICE_TEST(box_loss_degenerate) {
    static const float boxes[][8] = {{0.5f, 0.5f, 0, 0, 0.5f, 0.5f, 0, 0}, {0.1f, 0.1f, 0, 0, 0.9f, 0.5f, 0, 0},
                                     {0.5f, 0.5f, 0, 0, 0.5f, 0.5f, 0.5f, 0.5f}, {0, 0, 0, 0, 0, 0, 0, 0}};
    for (int i = 0; i < COUNT_OF(boxes); i++) {
        float loss, dx[4];
        RUN(op->box_loss(S, IO(loss), IO(dx), IN_N(boxes[i], 16), IN_N(boxes[i] + 4, 16), IN((float[]){1}), 1, 1, true, 1));
        EXPECT(isfinite(loss) && isfinite(dx[0]) && isfinite(dx[1]) && isfinite(dx[2]) && isfinite(dx[3]), "row %d: %g", i, (double)loss);
    }
}

/* Confident logits: no overflow, no log of 0; a NaN shows. */
DEVICE_TEST(loss_edges) {
    float loss, dx[2];
    const float one[2] = {1, 1};
    RUN(op->bce_loss(S, F32, IO(loss), IO(dx), IN((float[]){1000, -1000}), IN((float[]){1, 0}), IN(one), 1, 1, 2));
    EXPECT(loss == 0 && dx[0] == 0 && dx[1] == 0, "bce at 1000: %g", (double)loss);
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN((float[]){1000, -1000}), IN((int32_t[]){1}), IN(one), 0, 1, 2));
    EXPECT(loss == 2000 && dx[0] == 1 && dx[1] == -1, "ce at 1000: %g", (double)loss);
    RUN(op->kl_loss(S, F32, IO(loss), IO(dx), IN((float[]){0, 0}), IN((float[]){0, -INFINITY}), IN(one), 1, 1, 2));
    EXPECT_NEAR(loss, log(2), 4 * EPS32, "kl with an impossible class");
    RUN(op->bce_loss(S, F32, IO(loss), IO(dx), IN((float[]){NAN, 0}), IN((float[]){1, 0}), IN(one), 1, 1, 2));
    EXPECT(isnan(loss) && isnan(dx[0]), "bce hides a NaN");
    RUN(op->ce_loss(S, F32, IO(loss), IO(dx), IN((float[]){NAN, 0}), IN((int32_t[]){1}), IN(one), 0, 1, 2));
    EXPECT(isnan(loss), "ce hides a NaN");
    RUN(op->kl_loss(S, F32, IO(loss), IO(dx), IN((float[]){NAN, 0}), IN((float[]){0, 0}), IN(one), 1, 1, 2));
    EXPECT(isnan(loss), "kl hides a NaN");
    RUN(op->focal_loss(S, F32, IO(loss), IO(dx), IN((float[]){NAN, 0}), IN((float[]){1, 0}), IN(one), 0.3f, 2, 1, 2));
    EXPECT(isnan(loss), "focal hides a NaN");
    /* gamma 0, alpha < 0: binary cross entropy */
    float bce, d2[2];
    RUN(op->focal_loss(S, F32, IO(loss), IO(dx), IN((float[]){0.5f, -2}), IN((float[]){0.3f, 1}), IN(one), -1, 0, 1, 2));
    RUN(op->bce_loss(S, F32, IO(bce), IO(d2), IN((float[]){0.5f, -2}), IN((float[]){0.3f, 1}), IN(one), 1, 1, 2));
    EXPECT_NEAR(loss, bce, 4 * EPS32 * 3, "focal with gamma 0");
    EXPECT_NEAR(dx[0], d2[0], 4 * EPS32, "focal with gamma 0: gradient");
}
