/* boxes.cu -- a detector's output as a list of boxes on CUDA. Contract: ops.h, detect.
 *
 * One block of 256 threads per image; thread t owns outputs t, t + 256, ... of the 144..3600 there are, and nobody else touches
 * their scores. The block looks for the best one left, then every thread strikes out of its own what overlaps that: a round
 * costs one reduction, and there are as many rounds as boxes kept, a few dozen. Sorting first would cost more than it saves.
 * Rectangles and scores stay in shared memory, so logits and boxes are read once and nothing but the result is written; more
 * outputs than it holds lie in scratch memory.
 */
#include "kernels/cuda/cuda.cuh"

enum { THREADS = 256, SHARED_OUTPUTS = 4096 }; /* 80 KB; a block may have 99 on any card since sm_80, 163 on that */

/* int() of a float, for values that a wild network may give: NaN is 0, the rest within 2^24. */
__device__ __forceinline__ int pixel(float f) { return f != f ? 0 : (int)fminf(fmaxf(f, -16777216.0f), 16777216.0f); }

__device__ __forceinline__ double pixel_iou(Rect a, Rect b) {
    const int64_t area_a = ((int64_t)a.x1 - a.x0 + 1) * ((int64_t)a.y1 - a.y0 + 1);
    const int64_t area_b = ((int64_t)b.x1 - b.x0 + 1) * ((int64_t)b.y1 - b.y0 + 1);
    const int64_t w = max((int64_t)0, (int64_t)min(a.x1, b.x1) - max(a.x0, b.x0) + 1);
    const int64_t h = max((int64_t)0, (int64_t)min(a.y1, b.y1) - max(a.y0, b.y0) + 1);
    return (double)(w * h) / (double)(area_a + area_b - w * h); /* 0/0 of degenerate boxes is NaN: not below tau */
}

/* The largest of the block; every thread gets it. Begins with a barrier of its own. */
__device__ __forceinline__ uint64_t block_largest(uint64_t v) {
    SHARED(uint64_t, part, THREADS / 32);
    for (int m = 16; m; m >>= 1) v = max(v, __shfl_xor_sync(ALL_LANES, v, m));
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++) v = max(v, part[w]);
    return v;
}

/* By one access, as neighbours meet different banks. */
__device__ __forceinline__ Rect get(const Rect *r) {
    const Vec<int, 4> v = load<4>(&r->x0);
    return {v.v[0], v.v[1], v.v[2], v.v[3]};
}

/* scratch: rectangles and scores of all images; NULL: they fit the block's shared memory. */
__global__ void __launch_bounds__(THREADS)
detect(Detection *out, Rect *scratch, const float *logit, const float *box, const int32_t *size, float threshold, double tau,
       bool half_open, int64_t Q, int64_t most) {
    const int64_t i = blockIdx.x;
    const int W = size[2 * i], H = size[2 * i + 1], last = half_open ? 0 : 1;
    Rect *rect;
    float *score;
    if (scratch) {
        rect = scratch + i * Q, score = (float *)(scratch + gridDim.x * Q) + i * Q;
    } else {
        DYNAMIC_SHARED(Rect, own);
        rect = own, score = (float *)(own + Q);
    }
    out += i * most, logit += i * Q, box += i * Q * 4;
    for (int64_t q = threadIdx.x; q < Q; q += THREADS) {
        const float p = 1 / (1 + expf(-logit[q])), *b = box + 4 * q;
        const float hw = 0.5f * b[2], hh = 0.5f * b[3], x0 = b[0] - hw, y0 = b[1] - hh, x1 = b[0] + hw, y1 = b[1] + hh;
        const Vec<int, 4> r = {max(0, pixel(x0 * (float)W)), max(0, pixel(y0 * (float)H)), min(pixel(x1 * (float)W), W - last),
                               min(pixel(y1 * (float)H), H - last)};
        const bool there = !half_open || (r.v[2] > r.v[0] && r.v[3] > r.v[1]);
        store(&rect[q].x0, r);
        score[q] = p > threshold && there ? p : -1; /* -1: out of the running */
    }
    for (int64_t k = 0; k < most; k++) {
        /* Positive floats are ordered as their bits are; of equal ones the higher index. 0: nothing is left. */
        uint64_t best = 0;
        for (int64_t q = threadIdx.x; q < Q; q += THREADS)
            if (score[q] >= 0) best = max(best, (uint64_t)(__float_as_uint(score[q]) + 1) << 32 | (uint64_t)q);
        best = block_largest(best); /* its barriers also make all of rect visible */
        if (!best) {
            for (int64_t at = k + threadIdx.x; at < most; at += THREADS) out[at] = {{0, 0, 0, 0}, 0, -1};
            return; /* the whole block */
        }
        const int64_t chosen = (int64_t)(best & 0xffffffffu);
        const Rect r = get(&rect[chosen]);
        for (int64_t q = threadIdx.x; q < Q; q += THREADS) {
            if (q == chosen) {
                out[k] = {r, score[q], (int32_t)q};
                score[q] = -1;
            } else if (score[q] >= 0 && !(pixel_iou(r, get(&rect[q])) < tau)) score[q] = -1;
        }
    }
}

extern "C" void K(detect)(Stream *s, Detection *out, const float *logit, const float *box, const int32_t *size, float threshold,
                          double tau, bool half_open, int64_t rows, int64_t Q, int64_t most) {
    if (!rows || !most) return;
    const size_t bytes = (size_t)max(Q, (int64_t)1) * (sizeof(Rect) + sizeof(float));
    if (Q <= SHARED_OUTPUTS) {
        LAUNCH_SMEM(detect, rows, THREADS, bytes, s, out, (Rect *)NULL, logit, box, size, threshold, tau, half_open, Q, most);
    } else {
        Rect *scratch = (Rect *)cuda_scratch(s, (size_t)rows * bytes);
        LAUNCH(detect, rows, THREADS, s, out, scratch, logit, box, size, threshold, tau, half_open, Q, most);
    }
}
