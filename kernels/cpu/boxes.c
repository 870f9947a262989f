/* boxes.c -- a detector's output as a list of boxes on the CPU. Contract: ops.h, detect.
 *
 * The best of those that are left is looked for again after each choice, as the reference does it: some hundred outputs and
 * some ten boxes kept. What is out of the running has score -1.
 */
#include "kernels/cpu/cpu.h"

/* int() of a float, for values that a wild network may give: NaN is 0, the rest within 2^24. */
static int pixel(float f) { return f != f ? 0 : (int)fminf(fmaxf(f, -16777216.0f), 16777216.0f); }

static Rect pixels_of(const float *b, int right, int bottom, int W, int H) {
    const float hw = 0.5f * b[2], hh = 0.5f * b[3];
    const float x0 = b[0] - hw, y0 = b[1] - hh, x1 = b[0] + hw, y1 = b[1] + hh;
    return (Rect){MAX(0, pixel(x0 * (float)W)), MAX(0, pixel(y0 * (float)H)), MIN(pixel(x1 * (float)W), right),
                  MIN(pixel(y1 * (float)H), bottom)};
}

static double pixel_iou(Rect a, Rect b) {
    const int64_t area_a = ((int64_t)a.x1 - a.x0 + 1) * ((int64_t)a.y1 - a.y0 + 1);
    const int64_t area_b = ((int64_t)b.x1 - b.x0 + 1) * ((int64_t)b.y1 - b.y0 + 1);
    const int64_t w = MAX(0, (int64_t)MIN(a.x1, b.x1) - MAX(a.x0, b.x0) + 1);
    const int64_t h = MAX(0, (int64_t)MIN(a.y1, b.y1) - MAX(a.y0, b.y0) + 1);
    return (double)(w * h) / (double)(area_a + area_b - w * h); /* 0/0 of degenerate boxes is NaN: not below tau */
}

void cpu_detect(Stream *s, Detection *out, const float *logit, const float *box, const int32_t *size, float threshold,
                double tau, bool half_open, int64_t rows, int64_t Q, int64_t max) {
    (void)s;
    PAR_FOR(rows * Q * 16)
    for (int64_t i = 0; i < rows; i++) {
        Rect *rect = cpu_scratch(SCRATCH_THREAD, (size_t)Q * (sizeof(Rect) + sizeof(float)));
        float *score = (float *)(rect + Q);
        const int W = size[2 * i], H = size[2 * i + 1], last = half_open ? 0 : 1;
        for (int64_t q = 0; q < Q; q++) {
            const float p = 1 / (1 + expf(-logit[i * Q + q]));
            rect[q] = pixels_of(box + (i * Q + q) * 4, W - last, H - last, W, H);
            const bool there = !half_open || (rect_w(rect[q]) >= 1 && rect_h(rect[q]) >= 1);
            score[q] = p > threshold && there ? p : -1;
        }
        Detection *found = out + i * max;
        for (int64_t k = 0; k < max; k++) {
            int64_t best = -1;
            for (int64_t q = 0; q < Q; q++)
                if (score[q] >= 0 && (best < 0 || score[q] >= score[best])) best = q;
            found[k] = (Detection){.query = -1};
            if (best < 0) continue;
            found[k] = (Detection){rect[best], score[best], (int32_t)best};
            score[best] = -1;
            for (int64_t q = 0; q < Q; q++)
                if (score[q] >= 0 && !(pixel_iou(rect[best], rect[q]) < tau)) score[q] = -1;
        }
    }
}
