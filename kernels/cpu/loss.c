/* loss.c -- losses with their gradients in one pass on the CPU. Contracts: ops.h.
 *
 * One row at a time; rows go over threads. A row of weight 0 writes zeros and reads nothing else.
 */
#include "kernels/cpu/cpu.h"

static void no_loss(float *loss, float *dx, int64_t V) {
    *loss = 0;
    for (int64_t v = 0; v < V; v++) dx[v] = 0;
}

/* max(x, 0) - x t + log(1 + e^-|x|); *p = sigmoid(x) from the same exponential. */
static inline float bce_f(float x, float target, float *p) {
    const float e = exp_f(-fabsf(x)), over = x < 0.0f ? 0.0f : x; /* NaN stays */
    *p = (x < 0.0f ? e : 1.0f) / (1.0f + e);
    return over - x * target + log1p_f(e);
}

void cpu_bce_loss(Stream *s, DType t, float *loss, void *dx_, const void *x_, const float *target_, const float *weight,
                  float T, int64_t rows, int64_t V) {
    (void)s;
    WIDE(t, cpu_bce_loss(s, F32, loss, WRITE(t, dx_, rows * V), READ(t, x_, rows * V), target_, weight, T,
                         rows, V));
    PAR_FOR(rows * V)
    for (int64_t b = 0; b < rows; b++) {
        const float *x = (const float *)x_ + b * V, *target = target_ + b * V, w = weight[b], k = w * T, r = 1.0f / T;
        float *dx = (float *)dx_ + b * V, sum;
        if (w == 0) {
            no_loss(&loss[b], dx, V);
            continue;
        }
        SUM_LANES(sum, v, V, {
            float p;
            term = bce_f(x[v] * r, target[v], &p);
            dx[v] = k * (p - target[v]);
        });
        loss[b] = k * T * sum;
    }
}

/* dx = softmax(x r) by row; returns log sum exp of x r. */
static float softmax_row(float *dx, const float *x, float r, int64_t V) {
    const float m = row_max(x, V) * r;
    float sum;
    SUM_LANES(sum, v, V, { dx[v] = term = exp_neg_f(fmaf(x[v], r, -m)); });
    const float k = 1.0f / sum;
    SIMD
    for (int64_t v = 0; v < V; v++) dx[v] *= k;
    return m + logf(sum);
}

void cpu_ce_loss(Stream *s, DType t, float *loss, void *dx_, const void *x_, const int32_t *label, const float *weight,
                 float smoothing, int64_t rows, int64_t V) {
    (void)s;
    WIDE(t, cpu_ce_loss(s, F32, loss, WRITE(t, dx_, rows * V), READ(t, x_, rows * V), label, weight,
                        smoothing, rows, V));
    PAR_FOR(rows * V)
    for (int64_t b = 0; b < rows; b++) {
        const float *x = (const float *)x_ + b * V, w = weight[b];
        float *dx = (float *)dx_ + b * V;
        if (w == 0 || label[b] == -1 || !V) {
            no_loss(&loss[b], dx, V);
            continue;
        }
        CHECK(label[b] >= 0 && label[b] < V, "ce_loss: row %" PRId64 " has label %d of %" PRId64, b, label[b], V);
        const float lse = softmax_row(dx, x, 1.0f, V), each = smoothing / (float)V;
        /* sum_v target_v (lse - x_v); every difference is >= 0, so nothing cancels. */
        float sum;
        SUM_LANES(sum, v, V, {
            term = lse - x[v];
            dx[v] = w * (dx[v] - each);
        });
        loss[b] = w * ((1.0f - smoothing) * (lse - x[label[b]]) + (smoothing != 0 ? each * sum : 0.0f));
        dx[label[b]] -= w * (1.0f - smoothing);
    }
}

void cpu_kl_loss(Stream *s, DType t, float *loss, void *dx_, const void *x_, const float *z_, const float *weight, float T,
                 int64_t rows, int64_t V) {
    (void)s;
    WIDE(t, cpu_kl_loss(s, F32, loss, WRITE(t, dx_, rows * V), READ(t, x_, rows * V), z_, weight, T, rows,
                        V));
    const float r = 1.0f / T;
    PAR_FOR(rows * V)
    for (int64_t b = 0; b < rows; b++) {
        const float *x = (const float *)x_ + b * V, *z = z_ + b * V, w = weight[b], k = w * T;
        float *dx = (float *)dx_ + b * V;
        if (w == 0) {
            no_loss(&loss[b], dx, V);
            continue;
        }
        const float lse_x = softmax_row(dx, x, r, V), m = row_max(z, V) * r;
        float sum_e, sum;
        SUM_LANES(sum_e, v, V, { term = exp_neg_f(fmaf(z[v], r, -m)); });
        const float lse_z = m + logf(sum_e), inv = 1.0f / sum_e;
        /* sum_v q (log q - log p), log q - log p = (z - x) / T - (lse_z - lse_x) */
        SUM_LANES(sum, v, V, {
            const float q = exp_neg_f(fmaf(z[v], r, -m)) * inv;
            const float d = (z[v] * r - lse_z) - (x[v] * r - lse_x);
            term = q == 0.0f ? 0.0f : q * d; /* 0 log 0 = 0; a NaN shows */
            dx[v] = k * (dx[v] - q);
        });
        loss[b] = k * T * sum;
    }
}

/* With s = sigmoid(x), e = y - s, a = |e|: L = a^gamma BCE, dL/dx = a^gamma (s - y) - gamma a^(gamma-1) sign(e) s (1-s) BCE. */
void cpu_focal_loss(Stream *s, DType t, float *loss, void *dx_, const void *x_, const float *target_,
                    const float *weight_, float alpha, float gamma, int64_t rows, int64_t V) {
    (void)s;
    WIDE(t, cpu_focal_loss(s, F32, loss, WRITE(t, dx_, rows * V), READ(t, x_, rows * V), target_, weight_,
                           alpha, gamma, rows, V));
    PAR_FOR(rows * V)
    for (int64_t b = 0; b < rows; b++) {
        const float *x = (const float *)x_ + b * V, *target = target_ + b * V, *weight = weight_ + b * V;
        float *dx = (float *)dx_ + b * V, sum = 0;
        for (int64_t v = 0; v < V; v++) {
            const float y = target[v], w = weight[v];
            if (w == 0) {
                dx[v] = 0;
                continue;
            }
            float p, q, bce = bce_f(x[v], y, &p);
            q = sigmoid_f(-x[v]);
            /* y - s without cancellation at either end: y q - (1 - y) p. */
            const float e = y * q - (1.0f - y) * p, a = fabsf(e);
            const float k = w * (alpha < 0 ? 1.0f : alpha * y + (1.0f - alpha) * (1.0f - y));
            const float a1 = gamma == 2 ? a : gamma == 0 ? 0.0f : powf(a, gamma - 1);
            const float ag = gamma == 0 ? 1.0f : a1 * a;
            const float slope = gamma == 0 ? 0.0f : gamma * a1 * copysignf(1.0f, e) * p * q * bce;
            sum += k * ag * bce;
            dx[v] = k * (-ag * e - (e == 0 ? 0.0f : slope));
        }
        loss[b] = sum;
    }
}

/* ---- boxes ---------------------------------------------------------------------------------------- */

/* Derivative of max(a, b) by a: a tie shares it, as PyTorch does, so an exact match has slope 0. */
static inline float share(float a, float b) { return a > b ? 1.0f : a == b ? 0.5f : 0.0f; }
static inline float sign_f(float x) { return (float)((x > 0) - (x < 0)); }
static inline float relu_f(float x) { return x < 0.0f ? 0.0f : x; } /* NaN stays */

/* 1 - GIoU of corner boxes a, b; da[4] = its gradient by a. */
static float giou_loss(float da[4], const float a[4], const float b[4]) {
    float lo[2], hi[2], in[2], out[2], wa[2], wb[2];
    for (int k = 0; k < 2; k++) {
        lo[k] = a[k] > b[k] ? a[k] : b[k];
        hi[k] = a[k + 2] < b[k + 2] ? a[k + 2] : b[k + 2];
        in[k] = relu_f(hi[k] - lo[k]);
        out[k] = relu_f((a[k + 2] > b[k + 2] ? a[k + 2] : b[k + 2]) - (a[k] < b[k] ? a[k] : b[k]));
        wa[k] = relu_f(a[k + 2] - a[k]);
        wb[k] = relu_f(b[k + 2] - b[k]);
    }
    const float inter = in[0] * in[1], area = wa[0] * wa[1], both = area + wb[0] * wb[1] - inter, hull = out[0] * out[1];
    /* An empty union or hull (all points in one place): that quotient is 0 and has no slope. */
    const float ru = both == 0 ? 0.0f : 1.0f / both, rh = hull == 0 ? 0.0f : 1.0f / hull;
    const float iou = inter * ru, gap = (hull - both) * rh;
    /* giou = I/U - (H - U)/H = I/U - 1 + U/H, U = area + const - I */
    const float d_both = -iou * ru + rh, d_inter = ru - d_both, d_area = d_both, d_hull = -both * rh * rh;
    for (int k = 0; k < 2; k++) {
        const float gi = hi[k] - lo[k] >= 0 ? d_inter * in[!k] : 0.0f, ga = a[k + 2] - a[k] >= 0 ? d_area * wa[!k] : 0.0f;
        const float gh = d_hull * out[!k];
        da[k] = -(-gi * share(a[k], b[k]) - ga - gh * share(b[k], a[k]));
        da[k + 2] = -(gi * share(b[k + 2], a[k + 2]) + ga + gh * share(a[k + 2], b[k + 2]));
    }
    return 1.0f - (iou - gap);
}

static void to_corners(float c[4], const float *box) {
    for (int k = 0; k < 2; k++) {
        c[k] = box[k] - 0.5f * box[k + 2];
        c[k + 2] = box[k] + 0.5f * box[k + 2];
    }
}

void cpu_box_loss(Stream *s, float *loss, float *dbox, const float *box, const float *target, const float *weight,
                  float w_l1, float w_giou, bool corners, int64_t n) {
    (void)s;
    for (int64_t i = 0; i < n; i++) { /* some thousand boxes at most: one thread */
        const float w = weight[i], *x = box + 4 * i, *y = target + 4 * i;
        float *dx = dbox + 4 * i;
        if (w == 0) {
            no_loss(&loss[i], dx, 4);
            continue;
        }
        float a[4], b[4], da[4], l1 = 0;
        to_corners(a, x);
        to_corners(b, y);
        const float giou = giou_loss(da, a, b);
        for (int k = 0; k < 4; k++) {
            const float d = corners ? a[k] - b[k] : x[k] - y[k];
            l1 += fabsf(d);
            da[k] = w_giou * da[k] + (corners ? w_l1 * sign_f(d) : 0.0f);
        }
        for (int k = 0; k < 2; k++) { /* through to_corners */
            const float direct0 = corners ? 0.0f : w_l1 * sign_f(x[k] - y[k]);
            const float direct1 = corners ? 0.0f : w_l1 * sign_f(x[k + 2] - y[k + 2]);
            dx[k] = w * (da[k] + da[k + 2] + direct0);
            dx[k + 2] = w * (0.5f * (da[k + 2] - da[k]) + direct1);
        }
        loss[i] = w * (w_l1 * l1 + w_giou * giou);
    }
}
