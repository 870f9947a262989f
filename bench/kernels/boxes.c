/* boxes.c -- rows of a detector's last step: scores, boxes in pixels, suppression. See kernels.h. */
#include "bench/kernels.h"

enum { MOST = 32, LEAST_SIDE = 48, SIDE = 480 };
static const double TAU = 0.5;
static const float THRESHOLD = 0.1f;

static void run_detect(Table *t, const Case *c, void *const *p) {
    t->k->detect(t->s, p[0], p[1], p[2], p[3], THRESHOLD, TAU, false, c->M, c->N, MOST);
}

/* Pixels at both ends count. */
static double iou(Rect a, Rect b) {
    const double w = MAX(0, MIN(a.x1, b.x1) - MAX(a.x0, b.x0) + 1),
                 h = MAX(0, MIN(a.y1, b.y1) - MAX(a.y0, b.y0) + 1);
    return w * h /
           ((double)(rect_w(a) + 1) * (rect_h(a) + 1) + (double)(rect_w(b) + 1) * (rect_h(b) + 1) - w * h);
}

static Rect pixels_of(const Case *c, int64_t q, int W, int H) {
    float v[4]; /* corners are computed in f32: that is the contract */
    for (int k = 0; k < 4; k++) v[k] = c->pattern[2][(4 * q + k) % PATTERN];
    const float x0 = v[0] - 0.5f * v[2], y0 = v[1] - 0.5f * v[3], x1 = v[0] + 0.5f * v[2],
                y1 = v[1] + 0.5f * v[3];
    return (Rect){MAX(0, (int)(x0 * (float)W)), MAX(0, (int)(y0 * (float)H)),
                  MIN((int)(x1 * (float)W), W - 1), MIN((int)(y1 * (float)H), H - 1)};
}

/* Detections of the first two images that are not those of the plain algorithm. */
static int wrong_detect(Table *t, const Case *c, void *const *p) {
    int wrong = 0;
    const int64_t Q = c->N;
    bool *out = xcalloc((size_t)Q, 1);
    for (int64_t row = 0; row < MIN(c->M, 2); row++) {
        Detection got[MOST];
        t->dev->download(t->dev, got, (Detection *)p[0] + row * MOST, sizeof got);
        const int W = (int)index_at(c, 3, 2 * row), H = (int)index_at(c, 3, 2 * row + 1);
        for (int64_t q = 0; q < Q; q++)
            out[q] = !(1 / (1 + exp(-value(c, 1, row * Q + q))) > (double)THRESHOLD);
        for (int k = 0; k < MOST; k++) {
            int64_t best = -1;
            for (int64_t q = 0; q < Q; q++)
                if (!out[q] && (best < 0 || value(c, 1, row * Q + q) >= value(c, 1, row * Q + best)))
                    best = q;
            const Rect r = best < 0 ? (Rect){0} : pixels_of(c, row * Q + best, W, H);
            wrong += got[k].query != best || memcmp(&got[k].rect, &r, sizeof r) != 0;
            for (int64_t q = 0; best >= 0 && q < Q; q++)
                out[q] |= q == best || iou(r, pixels_of(c, row * Q + q, W, H)) >= TAU;
        }
    }
    free(out);
    return wrong;
}

void rows_boxes(Table *t) {
    const int64_t M = shape_batch(t), Q = t->shape->Q;
    if (!Q) return;
    bench_row(t,
              (Case){.op = "detect",
                     .what = "",
                     .M = M,
                     .N = Q,
                     .f32_only = true,
                     .run = run_detect,
                     .wrong = wrong_detect,
                     .slot = {{WRITE, RAW, M * MOST * (int64_t)sizeof(Detection), 0, 0},
                              F_IN(M * Q, -4, 1),
                              F_IN(M * Q * 4, 0.1, 0.5),
                              {READ, INDEX, 2 * M, LEAST_SIDE, SIDE}}},
              "%" PRId64 "x%" PRId64, M, Q);
}
