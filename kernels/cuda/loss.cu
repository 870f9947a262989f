/* loss.cu -- losses with their gradients in one pass on CUDA. Contracts: ops.h.
 *
 * One block of 256 threads per row; V is 20..200 answers or 144..577 patches in the demo and 3129 answers in the published
 * models. A row is read from memory once and then from L1: the softmax losses look at it three times (largest, sum, gradient),
 * each time computing the exponential anew, which is cheaper than a place to keep it. Rows of 3129 values begin at any
 * alignment, so accesses are one value wide, and coalesced. All of it is a few hundred kilobytes: what counts is one launch per
 * loss. Arithmetic is f32 with the accurate functions; sums in a fixed order. Boxes: one thread each.
 *
 * A row of weight 0 writes zeros and reads nothing else.
 */
#include "kernels/cuda/cuda.cuh"

enum { THREADS = 256 };

#define EACH_VALUE(v, V) for (int64_t v = threadIdx.x; v < (V); v += THREADS)

/* The whole block calls it. */
template <typename T> __device__ __forceinline__ void no_loss(float *loss, T *dx, int64_t V) {
    if (threadIdx.x == 0) *loss = 0;
    EACH_VALUE(v, V) dx[v] = from_f32<T>(0);
}

/* max(x, 0) - x t + log(1 + e^-|x|); *p = sigmoid(x) and *q = 1 - p, without cancellation, from the same exponential. */
__device__ __forceinline__ float bce_f(float x, float target, float *p, float *q) {
    const float e = expf(-fabsf(x)), over = x < 0.0f ? 0.0f : x; /* NaN stays */
    *p = (x < 0.0f ? e : 1.0f) / (1.0f + e);
    *q = (x > 0.0f ? e : 1.0f) / (1.0f + e);
    return over - x * target + log1pf(e);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
bce_loss(float *loss, T *dx, const T *x, const float *target, const float *weight, float temperature, int64_t V) {
    const int64_t b = blockIdx.x;
    const float w = weight[b], k = w * temperature, r = 1.0f / temperature;
    x += b * V, dx += b * V, target += b * V;
    if (w == 0) {
        no_loss(&loss[b], dx, V);
        return;
    }
    float sum = 0;
    EACH_VALUE(v, V) {
        const float t = target[v];
        float p, q;
        sum += bce_f(to_f32(x[v]) * r, t, &p, &q);
        dx[v] = from_f32<T>(k * (p - t));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[b] = k * temperature * sum;
}

/* e^(r x - m) of one value is expf(fmaf(x, r, -m)); the row's sum of them makes it a probability. */
struct Softmax { float m, sum; };

template <typename T> __device__ __forceinline__ Softmax softmax_row(const T *x, float r, int64_t V) {
    float most = -INFINITY, sum = 0;
    EACH_VALUE(v, V) most = fmaxf(most, to_f32(x[v])); /* passes over a NaN, which shows in the sum */
    const float m = block_max(most) * r;
    EACH_VALUE(v, V) sum += expf(fmaf(to_f32(x[v]), r, -m));
    return {m, block_sum(sum)};
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
ce_loss(float *loss, T *dx, const T *x, const int32_t *label, const float *weight, float smoothing, int64_t V) {
    const int64_t b = blockIdx.x;
    const int32_t right = label[b];
    const float w = weight[b];
    x += b * V, dx += b * V;
    if (w == 0 || right == -1 || V == 0) {
        no_loss(&loss[b], dx, V);
        return;
    }
    const Softmax p = softmax_row(x, 1.0f, V);
    const float lse = p.m + logf(p.sum), inv = 1.0f / p.sum, each = smoothing / (float)V, rest = w * (1.0f - smoothing);
    /* sum_v target_v (lse - x_v); every difference is >= 0, so nothing cancels. */
    float sum = 0;
    EACH_VALUE(v, V) {
        const float xv = to_f32(x[v]), q = expf(xv - p.m) * inv;
        sum += lse - xv;
        /* Not fused: with one answer w (1 - each) - rest has to be 0, and an unrounded product is not. */
        dx[v] = from_f32<T>(__fmul_rn(w, q - each) - (v == right ? rest : 0.0f));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[b] = rest * (lse - to_f32(x[right])) + (smoothing != 0 ? w * each * sum : 0.0f);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
kl_loss(float *loss, T *dx, const T *x, const float *z, const float *weight, float temperature, int64_t V) {
    const int64_t b = blockIdx.x;
    const float w = weight[b], k = w * temperature, r = 1.0f / temperature;
    x += b * V, dx += b * V, z += b * V;
    if (w == 0) {
        no_loss(&loss[b], dx, V);
        return;
    }
    const Softmax px = softmax_row(x, r, V), pz = softmax_row(z, r, V);
    const float lse_x = px.m + logf(px.sum), inv_x = 1.0f / px.sum, lse_z = pz.m + logf(pz.sum), inv_z = 1.0f / pz.sum;
    /* sum_v q (log q - log p), log q - log p = (z - x) / T - (lse_z - lse_x) */
    float sum = 0;
    EACH_VALUE(v, V) {
        const float xv = to_f32(x[v]), zv = z[v];
        const float p = expf(fmaf(xv, r, -px.m)) * inv_x, q = expf(fmaf(zv, r, -pz.m)) * inv_z;
        const float d = (zv * r - lse_z) - (xv * r - lse_x);
        sum += q == 0.0f ? 0.0f : q * d; /* 0 log 0 = 0; a NaN shows */
        dx[v] = from_f32<T>(k * (p - q));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[b] = k * temperature * sum;
}

/* With s = sigmoid(x), e = y - s, a = |e|: L = a^gamma BCE, dL/dx = a^gamma (s - y) - gamma a^(gamma-1) sign(e) s (1-s) BCE. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
focal_loss(float *loss, T *dx, const T *x, const float *target, const float *weight, float alpha, float gamma, int64_t V) {
    const int64_t b = blockIdx.x;
    x += b * V, dx += b * V, target += b * V, weight += b * V;
    float sum = 0;
    EACH_VALUE(v, V) {
        const float y = target[v], w = weight[v];
        float slope = 0;
        if (w != 0) {
            float p, q;
            const float bce = bce_f(to_f32(x[v]), y, &p, &q);
            const float e = y * q - (1.0f - y) * p, a = fabsf(e); /* y - s without cancellation at either end */
            const float k = w * (alpha < 0 ? 1.0f : alpha * y + (1.0f - alpha) * (1.0f - y));
            const float a1 = gamma == 2 ? a : gamma == 0 ? 0.0f : powf(a, gamma - 1);
            const float ag = gamma == 0 ? 1.0f : a1 * a;
            const float steep = gamma == 0 || e == 0 ? 0.0f : gamma * a1 * copysignf(1.0f, e) * p * q * bce;
            sum += k * ag * bce;
            slope = k * (-ag * e - steep);
        }
        dx[v] = from_f32<T>(slope);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[b] = sum;
}

/* ---- boxes ---------------------------------------------------------------------------------------- */

/* Derivative of max(a, b) by a: a tie shares it, as PyTorch does, so an exact match has slope 0. */
__device__ __forceinline__ float share(float a, float b) { return a > b ? 1.0f : a == b ? 0.5f : 0.0f; }
__device__ __forceinline__ float sign_f(float x) { return (float)((x > 0) - (x < 0)); }
__device__ __forceinline__ float relu_f(float x) { return x < 0.0f ? 0.0f : x; } /* NaN stays */

/* 1 - GIoU of corner boxes a, b; da[4] = its gradient by a. */
__device__ __forceinline__ float giou_loss(float da[4], const float a[4], const float b[4]) {
    float lo[2], hi[2], in[2], out[2], wa[2], wb[2];
#pragma unroll
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
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float gi = hi[k] - lo[k] >= 0 ? d_inter * in[!k] : 0.0f, ga = a[k + 2] - a[k] >= 0 ? d_area * wa[!k] : 0.0f;
        const float gh = d_hull * out[!k];
        da[k] = -(-gi * share(a[k], b[k]) - ga - gh * share(b[k], a[k]));
        da[k + 2] = -(gi * share(b[k + 2], a[k + 2]) + ga + gh * share(a[k + 2], b[k + 2]));
    }
    return 1.0f - (iou - gap);
}

__device__ __forceinline__ void to_corners(float c[4], const float box[4]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        c[k] = box[k] - 0.5f * box[k + 2];
        c[k + 2] = box[k] + 0.5f * box[k + 2];
    }
}

/* V = 4: a box is one 16-byte access. */
template <int V>
__global__ void __launch_bounds__(THREADS)
box_loss(float *loss, float *dbox, const float *box, const float *target, const float *weight, float w_l1, float w_giou,
         bool corners, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float w = weight[i];
    float x[4], y[4], a[4], b[4], da[4], dx[4] = {}, l1 = 0, sum = 0;
    if (w != 0) {
#pragma unroll
        for (int k = 0; k < 4; k += V) {
            const Vec<float, V> from = load<V>(box + 4 * i + k), to = load<V>(target + 4 * i + k);
#pragma unroll
            for (int j = 0; j < V; j++) x[k + j] = from.v[j], y[k + j] = to.v[j];
        }
        to_corners(a, x);
        to_corners(b, y);
        const float giou = giou_loss(da, a, b);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float d = corners ? a[k] - b[k] : x[k] - y[k];
            l1 += fabsf(d);
            da[k] = w_giou * da[k] + (corners ? w_l1 * sign_f(d) : 0.0f);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) { /* through to_corners */
            const float direct0 = corners ? 0.0f : w_l1 * sign_f(x[k] - y[k]);
            const float direct1 = corners ? 0.0f : w_l1 * sign_f(x[k + 2] - y[k + 2]);
            dx[k] = w * (da[k] + da[k + 2] + direct0);
            dx[k + 2] = w * (0.5f * (da[k + 2] - da[k]) + direct1);
        }
        sum = w * (w_l1 * l1 + w_giou * giou);
    }
    loss[i] = sum;
#pragma unroll
    for (int k = 0; k < 4; k += V) {
        Vec<float, V> r;
#pragma unroll
        for (int j = 0; j < V; j++) r.v[j] = dx[k + j];
        store(dbox + 4 * i + k, r);
    }
}

/* ---- the ops -------------------------------------------------------------------------------------- */

extern "C" void K(bce_loss)(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target, const float *weight,
                            float temperature, int64_t rows, int64_t V) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH((bce_loss<T>), rows, THREADS, s, loss, (T *)dx, (const T *)x, target, weight, temperature, V));
}

extern "C" void K(ce_loss)(Stream *s, DType t, float *loss, void *dx, const void *x, const int32_t *label, const float *weight,
                           float smoothing, int64_t rows, int64_t V) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH((ce_loss<T>), rows, THREADS, s, loss, (T *)dx, (const T *)x, label, weight, smoothing, V));
}

extern "C" void K(kl_loss)(Stream *s, DType t, float *loss, void *dx, const void *x, const float *z, const float *weight,
                           float temperature, int64_t rows, int64_t V) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH((kl_loss<T>), rows, THREADS, s, loss, (T *)dx, (const T *)x, z, weight, temperature, V));
}

extern "C" void K(focal_loss)(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target, const float *weight,
                              float alpha, float gamma, int64_t rows, int64_t V) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH((focal_loss<T>), rows, THREADS, s, loss, (T *)dx, (const T *)x, target, weight, alpha, gamma, V));
}

extern "C" void K(box_loss)(Stream *s, float *loss, float *dbox, const float *box, const float *target, const float *weight,
                            float w_l1, float w_giou, bool corners, int64_t n) {
    if (!n) return;
    const int64_t blocks = ceil_div<int64_t>(n, THREADS);
    if (vec_ok<float>(4, 4, dbox, box, target))
        LAUNCH((box_loss<4>), blocks, THREADS, s, loss, dbox, box, target, weight, w_l1, w_giou, corners, n);
    else LAUNCH((box_loss<1>), blocks, THREADS, s, loss, dbox, box, target, weight, w_l1, w_giou, corners, n);
}
