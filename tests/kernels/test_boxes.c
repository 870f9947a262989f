/* test_boxes.c -- a detector's output as a list of boxes, against the specification's tables and a plain loop. */
#include "tests/kernels/kernels.h"

#include <math.h>

COVERS(boxes, detect)

static float logit_of(double p) { return (float)log(p / (1 - p)); }

/* Pixel corners as the network would give them; exact when W and H are powers of two. */
static void put(float *box, double x0, double y0, double x1, double y1, int W, int H) {
    box[0] = (float)((x0 + x1) / 2 / W), box[1] = (float)((y0 + y1) / 2 / H);
    box[2] = (float)((x1 - x0) / W), box[3] = (float)((y1 - y0) / H);
}

#define EXPECT_BOX(got, X0, Y0, X1, Y1, Q)                                                                   \
    EXPECT((got).query == (Q) && (got).rect.x0 == (X0) && (got).rect.y0 == (Y0) && (got).rect.x1 == (X1) &&  \
               (got).rect.y1 == (Y1),                                                                        \
           "query %d [%d, %d, %d, %d]", (got).query, (got).rect.x0, (got).rect.y0, (got).rect.x1, (got).rect.y1)

/* test-vectors 2: box 1 has IoU exactly 0.5 with box 0; box 2 survives at 0.49 because its killer is gone. */
DEVICE_TEST(detect_specification) {
    static const double corner[6][4] = {{10, 10, 109, 109}, {10, 10, 109, 59}, {10, 10, 109, 58},
                                        {300, 40, 380, 120}, {305, 45, 385, 125}, {10, 61, 109, 109}};
    static const double score[6] = {0.9, 0.8, 0.7, 0.55, 0.6, 0.3};
    static const struct { double tau; int n, want[6]; } cases[] = {
        {0.5, 4, {0, 2, 4, 5}}, {0.3, 2, {0, 4}}, {0.8, 5, {0, 1, 4, 3, 5}}};
    float box[6][4], logit[6], even[6] = {0};
    const int32_t size[2] = {512, 512};
    Detection out[6];
    for (int q = 0; q < 6; q++) {
        put(box[q], corner[q][0], corner[q][1], corner[q][2], corner[q][3], 512, 512);
        logit[q] = logit_of(score[q]);
    }
    for (int c = 0; c < COUNT_OF(cases); c++) {
        memset(out, 0xFF, sizeof out);
        RUN(op->detect(S, IO(out), IN(logit), IN(box), IN(size), 0.1f, cases[c].tau, false, 1, 6, 6));
        for (int k = 0; k < cases[c].n; k++) {
            const int q = cases[c].want[k];
            const double *at = corner[q];
            EXPECT_BOX(out[k], (int)at[0], (int)at[1], (int)at[2], (int)at[3], q);
            EXPECT_NEAR(out[k].score, score[q], 8 * EPS32, "tau %g: score %d", cases[c].tau, k);
        }
        for (int k = cases[c].n; k < 6; k++) EXPECT_BOX(out[k], 0, 0, 0, 0, -1);
    }
    RUN(op->detect(S, IO(out), IN(even), IN(box), IN(size), 0.1f, 0.5, false, 1, 6, 6));
    const int ties[4] = {5, 4, 2, 0}; /* equal scores: the higher index first */
    for (int k = 0; k < 4; k++) EXPECT(out[k].query == ties[k], "tie %d is query %d", k, out[k].query);
    EXPECT(out[4].query == -1, "a fifth of equal scores");
}

/* test-vectors 1, the rows of LOC: truncation, clamping, what is not a number, both dialects. */
DEVICE_TEST(detect_pixels) {
    enum { Q = 8 };
    float box[Q][4], logit[Q];
    static const double score[Q] = {0.2, 0.9, 0.05, 0.5, 0.01, 0.3, 0.3, 0.4};
    const int32_t size[2] = {640, 427};
    Detection out[Q];
    for (int q = 0; q < Q; q++) logit[q] = logit_of(score[q]);
    put(box[0], -3.7, 12.9, 250.2, 430.6, 640, 427);
    put(box[1], 600.5, -0.4, 655.0, 90.99, 640, 427);
    put(box[2], 100, 100, 150, 150, 640, 427);
    put(box[3], 300.2, 200.2, 300.9, 200.9, 640, 427);
    put(box[4], 0, 0, 640, 427, 640, 427);
    put(box[5], 400.5, 300.5, 450.5, 350.5, 640, 427);
    put(box[6], 400.5, 300.5, 450.5, 350.5, 640, 427); /* a twin with the same score */
    put(box[7], 0, 0, 0, 0, 640, 427);
    box[7][0] = NAN, box[7][2] = INFINITY;
    RUN(op->detect(S, IO(out), IN(logit), IN(box), IN(size), 0.1f, 0.5, false, 1, Q, Q));
    EXPECT_BOX(out[0], 600, 0, 639, 90, 1);
    EXPECT_BOX(out[1], 300, 200, 300, 200, 3);
    EXPECT(out[2].query == 7 && out[2].rect.x0 >= 0 && out[2].rect.x1 <= 639, "a box that is not a number stays inside");
    EXPECT_BOX(out[3], 400, 300, 450, 350, 6);
    EXPECT_BOX(out[4], 0, 12, 250, 426, 0);
    EXPECT(out[5].query == -1, "a sixth box: query %d", out[5].query);
    RUN(op->detect(S, IO(out), IN(logit), IN(box), IN(size), 0.1f, 0.5, true, 1, Q, Q));
    EXPECT_BOX(out[0], 600, 0, 640, 90, 1); /* half-open, and the box without a pixel is gone */
    EXPECT(out[1].query != 3, "a box without a pixel");
    logit[1] = NAN;
    RUN(op->detect(S, IO(out), IN(logit), IN(box), IN(size), 0.1f, 0.5, false, 1, Q, 2)); /* at most two */
    EXPECT(out[0].query == 3 && out[1].query == 7, "without the first: %d, %d", out[0].query, out[1].query);
    RUN(op->detect(S, IO(out), NULL, NULL, IN(size), 0.1f, 0.5, false, 1, 0, 2)); /* no outputs */
    EXPECT(out[0].query == -1 && out[1].query == -1, "found something in nothing");
}

/* ---- many boxes, against a plain loop ---- */

typedef struct Candidate { int q; double logit; int64_t x0, y0, x1, y1; } Candidate;

static int best_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->q > y->q ? -1 : 1;
}

static double overlap(const Candidate *a, const Candidate *b) {
    double both = 0, either = (double)((a->x1 - a->x0 + 1) * (a->y1 - a->y0 + 1) + (b->x1 - b->x0 + 1) * (b->y1 - b->y0 + 1));
    int64_t w = (a->x1 < b->x1 ? a->x1 : b->x1) - (a->x0 > b->x0 ? a->x0 : b->x0) + 1;
    int64_t h = (a->y1 < b->y1 ? a->y1 : b->y1) - (a->y0 > b->y0 ? a->y0 : b->y0) + 1;
    if (w > 0 && h > 0) both = (double)(w * h);
    return both / (either - both);
}

/* Corners on whole pixels of images whose sides are powers of two are exact, logits are multiples of 1/4 (so that there are
 * ties, and no two scores that differ by rounding alone): the list is the same on every device, and the plain loop's. */
DEVICE_TEST(detect_many) {
    enum { ROWS = 3, MAX = 100, MOST = 8193 };
    static const int queries[] = {1, 31, 255, 257, 700, MOST}; /* at last more than a card's shared memory holds */
    static float logit[ROWS * MOST], box[ROWS * MOST * 4];
    static Detection out[ROWS * MAX];
    static Candidate c[MOST], kept[MOST];
    const int32_t size[ROWS][2] = {{512, 256}, {64, 64}, {1024, 512}};
    for (int n = 0; n < COUNT_OF(queries); n++) {
        const int Q = queries[n];
        uint64_t r = hash_bytes(&Q, sizeof Q, 1);
#define DRAW(m) ((int)((r = r * 6364136223846793005u + 1442695040888963407u) >> 40) % (m))
        for (int i = 0; i < ROWS * Q; i++) {
            const int W = size[i / Q][0], H = size[i / Q][1], w = 1 + DRAW(W / 4), h = 1 + DRAW(H / 4), x = DRAW(W), y = DRAW(H);
            logit[i] = (float)(DRAW(33) - 16) / 4;
            put(box + 4 * i, x, y, x + w, y + h, W, H);
        }
        RUN(op->detect(S, IO(out), IN_N(logit, (size_t)ROWS * Q * 4), IN_N(box, (size_t)ROWS * Q * 16), IN(size), 0.1f, 0.5, false, ROWS, Q, MAX));
        for (int i = 0; i < ROWS; i++) {
            int m = 0, k = 0;
            for (int q = 0; q < Q; q++) {
                const float *b = box + 4 * (i * Q + q);
                const double W = size[i][0], H = size[i][1], l = (double)logit[i * Q + q];
                if (1 / (1 + exp(-l)) > 0.1)
                    c[m++] = (Candidate){q, l, (int64_t)((b[0] - b[2] / 2) * W), (int64_t)((b[1] - b[3] / 2) * H),
                                         (int64_t)fmin((b[0] + b[2] / 2) * W, W - 1), (int64_t)fmin((b[1] + b[3] / 2) * H, H - 1)};
            }
            qsort(c, (size_t)m, sizeof *c, best_first);
            for (int j = 0; j < m; j++) {
                bool survives = true;
                for (int a = 0; a < k && survives; a++) survives = overlap(&kept[a], &c[j]) < 0.5;
                if (survives) kept[k++] = c[j];
            }
            for (int a = 0; a < MAX; a++) {
                const Detection *d = &out[i * MAX + a];
                if (a >= k) EXPECT(d->query == -1, "%d outputs, image %d: box %d should not be there", Q, i, a);
                else EXPECT(d->query == kept[a].q && d->rect.x0 == kept[a].x0 && d->rect.y1 == kept[a].y1,
                            "%d outputs, image %d: box %d is query %d, wants %d", Q, i, a, d->query, kept[a].q);
            }
        }
    }
}
