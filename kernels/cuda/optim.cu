/* optim.cu -- AdamW and the sum of squares on CUDA. Contracts: ops.h.
 *
 * AdamW is one launch over all segments: 28 bytes per parameter (reads p, m, v, g, writes p, m, v; 30 with the bf16 copy) and
 * nothing else, by vectors of 16 bytes. A block takes one stretch of one segment; it finds which by halving a table of the segments' first blocks.
 */
#include "kernels/cuda/cuda.cuh"

#include <vector>

enum { THREADS = 256, VECTORS = 4 /* of 4 values, per thread */, SUM_BLOCKS = 1024 };

/* ---- AdamW -------------------------------------------------------------------------------------------- */

struct Stretch {              /* a segment as the card sees it */
    int64_t begin, end;       /* values */
    float step, decay;        /* lr / c1, lr weight_decay */
    int first_block, unused_; /* 32 bytes: two accesses of 16 */
};

struct AdamRates { float b1, b2, a1, a2, eps, scale, rc2; /* a = 1 - b, rc2 = 1 / sqrt(c2) */ };

/* The buffers' values i .. i + V - 1. The same operations in the same order as on the CPU. COPY: p goes to p16, too. */
template <int V, bool COPY>
__device__ __forceinline__ void adamw_vector(float *p, float *m, float *v, bf16 *p16, const float *g,
                                             int64_t i, float step, float decay, const AdamRates &r) {
    Vec<float, V> pi = load<V>(p + i), mi = load<V>(m + i), vi = load<V>(v + i);
    const Vec<float, V> gi = load<V>(g + i);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float d = gi.v[k] * r.scale;
        mi.v[k] = fmaf(r.b1, mi.v[k], r.a1 * d);
        vi.v[k] = fmaf(r.b2, vi.v[k], r.a2 * (d * d));
        /* The two small terms first: p rounds once. */
        pi.v[k] -= fmaf(decay, pi.v[k], step * mi.v[k] / fmaf(sqrtf(vi.v[k]), r.rc2, r.eps));
    }
    store(p + i, pi);
    store(m + i, mi);
    store(v + i, vi);
    if constexpr (COPY) {
        Vec<bf16, V> low;
#pragma unroll
        for (int k = 0; k < V; k++) low.v[k] = bf16_from_f32(pi.v[k]);
        store(p16 + i, low);
    }
}

/* `shift`: values from p back to an address that divides by 16, where the vectors are; -1: the buffers do not lie alike. A vector
 * across the end of a segment is done value by value. */
template <bool COPY>
__global__ void __launch_bounds__(THREADS) adamw(float *p, float *m, float *v, bf16 *p16, const float *g,
                                                 const Stretch *table, int n, int shift, const AdamRates r) {
    int low = 0;
    for (int high = n; high - low > 1;) {
        const int mid = (low + high) / 2;
        if (table[mid].first_block <= (int)blockIdx.x) low = mid;
        else high = mid;
    }
    const Stretch t = table[low];
    const int64_t first = (t.begin + max(shift, 0)) / 4; /* vector */
    for (int k = 0; k < VECTORS; k++) {
        const int64_t vector = first + ((int64_t)(blockIdx.x - t.first_block) * VECTORS + k) * THREADS + threadIdx.x;
        const int64_t i = 4 * vector - max(shift, 0);
        if (shift >= 0 && i >= t.begin && i + 4 <= t.end)
            adamw_vector<4, COPY>(p, m, v, p16, g, i, t.step, t.decay, r);
        else
            for (int64_t j = max(i, t.begin); j < min(i + 4, t.end); j++)
                adamw_vector<1, COPY>(p, m, v, p16, g, j, t.step, t.decay, r);
    }
}

extern "C" void K(adamw)(Stream *s, float *p, float *m, float *v, uint16_t *p16, const float *g,
                         const AdamSegment *segments, int nsegments, float b1, float b2, float eps,
                         float grad_scale, int64_t step) {
    const double c1 = 1 - pow(b1, (double)step), c2 = 1 - pow(b2, (double)step);
    const AdamRates rates = {b1, b2, 1.0f - b1, 1.0f - b2, eps, grad_scale, (float)(1 / sqrt(c2))};
    const int at = (int)((uintptr_t)p / 4 % 4);
    const bool alike = (uintptr_t)m / 4 % 4 == (unsigned)at && (uintptr_t)v / 4 % 4 == (unsigned)at &&
                       (uintptr_t)g / 4 % 4 == (unsigned)at &&
                       (!p16 || (uintptr_t)p16 / 2 % 4 == (unsigned)at);
    std::vector<Stretch> table;
    int64_t blocks = 0;
    for (int k = 0; k < nsegments; k++) {
        const AdamSegment *q = &segments[k];
        if (q->begin >= q->end) continue;
        const int64_t shift = alike ? at : 0, vectors = (q->end + shift + 3) / 4 - (q->begin + shift) / 4;
        table.push_back({q->begin, q->end, q->lr * (float)(1 / c1), q->lr * q->weight_decay, (int)blocks, 0});
        blocks += ceil_div(vectors, (int64_t)(THREADS * VECTORS));
    }
    if (table.empty()) return;
    Stretch *on_card = (Stretch *)cuda_scratch(s, table.size() * sizeof(Stretch));
    cuda_upload(s, on_card, table.data(), table.size() * sizeof(Stretch));
    const int shift = alike ? at : -1;
    bf16 *const copy = (bf16 *)p16;
    if (p16)
        LAUNCH(adamw<true>, (int)blocks, THREADS, s, p, m, v, copy, g, (const Stretch *)on_card,
               (int)table.size(), shift, rates);
    else
        LAUNCH(adamw<false>, (int)blocks, THREADS, s, p, m, v, copy, g, (const Stretch *)on_card,
               (int)table.size(), shift, rates);
}

/* ---- sum of squares ----------------------------------------------------------------------------------- */

template <typename T, int V> __device__ __forceinline__ double vector_squares(const T *x, int64_t i) {
    const Vec<T, V> r = load<V>(x + i);
    double sum = 0;
#pragma unroll
    for (int k = 0; k < V; k++) sum += (double)to_f32(r.v[k]) * (double)to_f32(r.v[k]);
    return sum;
}

/* part[block] = a share of the sum; in double there is nothing to lose to the order, but it is fixed all the same. */
template <typename T> __global__ void __launch_bounds__(THREADS) squares(double *part, const T *x, int64_t whole, int64_t n) {
    constexpr int V = WIDTH<T>;
    const int64_t thread = (int64_t)blockIdx.x * THREADS + threadIdx.x, threads = (int64_t)gridDim.x * THREADS;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = thread * V; i < whole; i += threads * V) sum += vector_squares<T, V>(x, i);
    for (int64_t i = whole + thread; i < n; i += threads) sum += vector_squares<T, 1>(x, i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) sum_parts(double *out, const double *part, int n) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

extern "C" void K(sum_squares)(Stream *s, DType t, double *out, const void *x, int64_t n) {
    *out = 0;
    if (n == 0) return;
    double *part = (double *)cuda_scratch(s, (SUM_BLOCKS + 1) * sizeof(double)), *total = part + SUM_BLOCKS;
    int blocks = 0;
    DISPATCH(t, T, {
        const int64_t whole = vec_ok<T>(1, n, x) ? n / WIDTH<T> * WIDTH<T> : 0;
        blocks = (int)min(ceil_div(n, (int64_t)(THREADS * 4 * WIDTH<T>)), (int64_t)SUM_BLOCKS);
        LAUNCH(squares<T>, blocks, THREADS, s, part, (const T *)x, whole, n);
    });
    LAUNCH(sum_parts, 1, THREADS, s, total, (const double *)part, blocks);
    cuda_download(s, out, total, sizeof *out);
}
