/* test_optim.c -- AdamW and the sum of squares. */
#include "data/safetensors.h"
#include "tests/kernels/kernels.h"

#include <math.h>

COVERS(optim, adamw, sum_squares)

/* test-vectors 9. Each step rounds p, m, v once or twice at their magnitude. */
DEVICE_TEST(adamw_specification) {
    static const float g[3] = {0.5f, -0.2f, 0.1f};
    static const double want[3][3] = {{0.05, 0.005, 0.9899000002}, {0.025, 0.0057, 0.986332870672}, {0.0325, 0.005786, 0.982410896276}};
    float p = 1, m = 0, v = 0;
    const AdamSegment all = {0, 1, 1e-2f, 0.01f};
    for (int k = 0; k < 3; k++) {
        RUN(op->adamw(S, IO(p), IO(m), IO(v), NULL, IN(g[k]), &all, 1, 0.9f, 0.98f, 1e-8f, 1, k + 1));
        EXPECT_NEAR(m, want[k][0], 8 * EPS32 * 0.05, "m after step %d", k + 1);
        /* 0.98f is 1.3e-8 off: 1 - b2 moves by 6e-7 of itself */
        EXPECT_NEAR(v, want[k][1], (8 * EPS32 + 7e-7) * 0.0058, "v after step %d", k + 1);
        EXPECT_NEAR(p, want[k][2], (k + 1) * (EPS32 + 8 * EPS32 * 0.02), "p after step %d", k + 1);
    }
}

/* PyTorch, three steps, two segments with rates of their own and a gap; gradients scaled by 1/2. */
DEVICE_TEST(adamw_golden) {
    Error e = {0};
    SafeTensors st = {0};
    static float p[1000], g[3000], want[1000], first[1000], m[1000], v[1000];
    if (!st_open(&st, "tests/golden/kernels_optim.safetensors", &e)) {
        test_fail(__FILE__, __LINE__, "%s", e.text);
        return;
    }
    const StTensor *tp = st_find(&st, "adamw_1000.p"), *tg = st_find(&st, "adamw_1000.g"), *tw = st_find(&st, "adamw_1000.want");
    EXPECT(tp && tg && tw && st_numel(tp) == 1000 && st_numel(tg) == 3000, "not in the file");
    if (!tp || !tg || !tw) return;
    EXPECT(st_to_f32(p, tp, &e) && st_to_f32(g, tg, &e) && st_to_f32(want, tw, &e), "%s", e.text);
    memcpy(first, p, sizeof p);
    memset(m, 0, sizeof m);
    memset(v, 0, sizeof v);
    const AdamSegment segments[] = {{310, 1000, 1e-3f, 0}, {400, 400, 1, 1}, {0, 300, 1e-2f, 0.1f}}; /* any order, empty ones too */
    for (int k = 0; k < 3; k++) {
        float *gradient = IN(g);
        RUN(op->adamw(S, IO(p), IO(m), IO(v), NULL, gradient + 1000 * k, segments, 3, 0.9f, 0.98f, 1e-8f, 0.5f, k + 1));
    }
    /* |p| <= 1: a rounding per step; updates of 0.01 with 10 EPS32 of their own, 1e-6 where m cancels */
    for (int i = 0; i < 1000; i++) EXPECT_NEAR(p[i], want[i], 3 * EPS32 + 3e-8 + 1e-9, "p[%d]", i);
    for (int i = 300; i < 310; i++) EXPECT(p[i] == first[i] && m[i] == 0 && v[i] == 0, "value %d in no segment was touched", i);
    st_close(&st);
}

/* Many small segments, any number of threads: the same bits. */
DEVICE_TEST(adamw_threads) {
    enum { N = 100000 };
    static float p[2][N], m[2][N], v[2][N], g[N];
    static AdamSegment segments[100];
    for (int i = 0; i < 100; i++) segments[i] = (AdamSegment){i * 1000 + i % 3, i * 1000 + 1000 - i % 7, 1e-3f * (float)(i + 1), 0.01f};
    fill_random(g, N, 9, -1, 1);
    for (int t = 0; t < 2; t++) {
        fill_random(p[t], N, 8, -1, 1);
        memset(m[t], 0, sizeof m[t]);
        memset(v[t], 0, sizeof v[t]);
        device_cpu(t ? 3 : 1);
        for (int k = 1; k <= 3; k++) RUN(op->adamw(S, IO(p[t]), IO(m[t]), IO(v[t]), NULL, IN(g), segments, 100, 0.9f, 0.999f, 1e-8f, 1, k));
    }
    device_cpu(0);
    EXPECT(!memcmp(p[0], p[1], sizeof p[0]) && !memcmp(m[0], m[1], sizeof m[0]) && !memcmp(v[0], v[1], sizeof v[0]), "other bits");
    RUN(op->adamw(S, IO(p[0]), IO(m[0]), IO(v[0]), NULL, IN(g), segments, 0, 0.9f, 0.999f, 1e-8f, 1, 1));
    EXPECT(!memcmp(p[0], p[1], sizeof p[0]), "no segment, yet something moved");
}

/* The copy in bf16 is the new p, rounded; what no segment holds keeps its own, and p, m, v do not notice. */
DEVICE_TEST(adamw_copy) {
    enum { N = 10007 };
    static float p[2][N], m[2][N], v[2][N], g[N];
    static uint16_t copy[N];
    const AdamSegment segments[] = {{3, 700, 1e-2f, 0.1f}, {705, 9001, 1e-3f, 0}, {9001, N, 0.1f, 0.01f}};
    for (int skew = 0; skew < 2; skew++) { /* 1: the buffers do not lie alike, no vectors */
        fill_random(g, N, 9, -1, 1);
        memset(copy, 0xA5, sizeof copy);
        for (int k = 0; k < 2; k++) {
            fill_random(p[k], N, 8, -1, 1);
            memset(m[k], 0, sizeof m[k]);
            memset(v[k], 0, sizeof v[k]);
        }
        const int n = skew ? 2 : 3;
        for (int step = 1; step <= 2; step++) {
            RUN(op->adamw(S, IO(p[0]), IO(m[0]), IO(v[0]), (uint16_t *)IO(copy) + skew, IN(g), segments, n, 0.9f, 0.98f, 1e-8f, 1, step));
            RUN(op->adamw(S, IO(p[1]), IO(m[1]), IO(v[1]), NULL, IN(g), segments, n, 0.9f, 0.98f, 1e-8f, 1, step));
        }
        EXPECT(!memcmp(p[0], p[1], sizeof p[0]) && !memcmp(m[0], m[1], sizeof m[0]) && !memcmp(v[0], v[1], sizeof v[0]), "skew %d: other bits",
               skew);
        for (int i = 0; i < N - skew; i++) {
            const bool held = (i >= 3 && i < 700) || (i >= 705 && (i < 9001 || !skew));
            const uint16_t want = held ? bf16_round(p[0][i]) : 0xA5A5;
            EXPECT(copy[i + skew] == want, "skew %d: value %d is %04x, wants %04x", skew, i, copy[i + skew], want);
        }
    }
}

DEVICE_TEST(sum_squares) {
    static float x[100003];
    static const int64_t sizes[] = {0, 1, 37, 4096, 4097, 100003};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        fill_random(x, sizes[i], 4, -1, 1);
        double want = 0, got[3];
        for (int64_t j = 0; j < sizes[i]; j++) want += (double)x[j] * (double)x[j];
        for (int t = 0; t < 3; t++) {
            device_cpu(t + 1);
            RUN(op->sum_squares(S, F32, &got[t], IN_N(x, (size_t)sizes[i] * 4), sizes[i]));
            EXPECT(got[t] == got[0], "n %" PRId64 ": other bits with %d threads", sizes[i], t + 1);
        }
        /* in double on both sides: n roundings at worst */
        EXPECT_NEAR(got[0], want, 1e-16 * (double)sizes[i] * want, "n %" PRId64, sizes[i]);
    }
    device_cpu(0);
    double out;
    RUN(op->sum_squares(S, F32, &out, IN((float[]){1e30f, 1e30f}), 2));
    EXPECT_NEAR(out, 2e60, 1e54, "no overflow at 1e60");
    RUN(op->sum_squares(S, F32, &out, IN((float[]){1, NAN, 2}), 3));
    EXPECT(isnan(out), "a NaN is hidden: %g", out);
    RUN(op->sum_squares(S, F32, &out, IN((float[]){1, -INFINITY, 2}), 3));
    EXPECT(isinf(out), "an infinity is hidden: %g", out);
}
