/* elementwise.cu -- activations, sums and products, sums over rows, dropout, casts on CUDA. Contracts: ops.h.
 *
 * All are bound by memory: each value is moved once, 16 bytes at a time where the pointers are aligned, by blocks of 256
 * threads with few registers, so that enough loads are in flight. Arithmetic is f32, also for bf16.
 * Sums over rows go in two stages: blocks sum stretches of rows, then one pass sums the stretches, in an order that depends on
 * the sizes alone.
 */
#include "kernels/cuda/cuda.cuh"

#include "kernels/activation.h"
#include "kernels/philox.h"

enum { THREADS = 256 };

/* A grid-stride loop: from first_value(V), in steps of grid_step(V), each thread has V values in a row. */
__device__ __forceinline__ int64_t first_value(int V) { return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V; }
__device__ __forceinline__ int64_t grid_step(int V) { return (int64_t)gridDim.x * blockDim.x * V; }

/* a mod b, 0 <= a, 0 < b: 64-bit division only where it is needed, it takes five times as long. */
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : (int64_t)((uint32_t)a / (uint32_t)b);
}

/* The values that go by vectors of V: the first whole(...), all of them but a tail when every pointer is aligned, otherwise none.
 * One kernel does both, for there are many and each costs its compile time. */
template <typename T, typename... P> static int64_t whole(int V, int64_t n, P... p) { return vec_ok<T>(1, n, p...) ? n / V * V : 0; }

/* ---- functions of one to three values --------------------------------------------------------------- */

/* y[i] = F(a[i], b[i], c[i]); only F::INPUTS of them are read. y may be any of them. */
template <typename F, typename T, int V>
__device__ __forceinline__ void map_vector(T *y, const T *a, const T *b, const T *c, int64_t i) {
    Vec<T, V> va = load<V>(a + i), vb = va, vc = va;
    if (F::INPUTS > 1) vb = load<V>(b + i);
    if (F::INPUTS > 2) vc = load<V>(c + i);
#pragma unroll
    for (int k = 0; k < V; k++) va.v[k] = from_f32<T>(F::value(to_f32(va.v[k]), to_f32(vb.v[k]), to_f32(vc.v[k])));
    store(y + i, va);
}

/* Blocks that a multiprocessor shall hold; 0 leaves it to ptxas, which takes 32 registers, for 8 blocks, and may
 * spill to get there. */
template <typename F> constexpr int LEAST_BLOCKS = 0;

template <typename F, typename T>
__global__ void __launch_bounds__(THREADS, LEAST_BLOCKS<F>) map(T *y, const T *a, const T *b, const T *c, int64_t whole, int64_t n) {
    constexpr int V = WIDTH<T>;
    for (int64_t i = first_value(V); i < whole; i += grid_step(V)) map_vector<F, T, V>(y, a, b, c, i);
    for (int64_t i = whole + first_value(1); i < n; i += grid_step(1)) map_vector<F, T, 1>(y, a, b, c, i);
}

template <typename F, typename T> static void launch_map(Stream *s, void *y, const void *a, const void *b, const void *c, int64_t n) {
    if (n == 0) return;
    LAUNCH((map<F, T>), grid_for(n, THREADS * WIDTH<T>), THREADS, s, (T *)y, (const T *)a, (const T *)b, (const T *)c,
           whole<T>(WIDTH<T>, n, y, a, b, c), n);
}

/* Each activation: its value, and the slope by which the backward multiplies, of what the contract names (x, or y). */
struct Gelu {
    static __device__ float value(float x) { return gelu_f(x); }
    static __device__ float slope(float x) { return gelu_slope(x); }
};
__device__ __forceinline__ float sigmoid_f(float x) { return 1.0f / (1.0f + expf(-x)); }
struct GeluTanh {
    static __device__ float value(float x) { return (x < -10.0f ? -10.0f : x) * sigmoid_f(gelu_tanh_2u(x)); }
    static __device__ float slope(float x) { return gelu_tanh_slope_of(x, expf(-fabsf(gelu_tanh_2u(x)))); }
};
struct QuickGelu { /* past -61 the product is 0 in f32: the clamp keeps infinities out of it */
    static __device__ float value(float x) { return (x < -88.0f ? -88.0f : x) * sigmoid_f(1.702f * x); }
    static __device__ float slope(float x) {
        const float s = sigmoid_f(1.702f * x), c = x > 88.0f ? 88.0f : x < -88.0f ? -88.0f : x;
        return s * fmaf(1.702f * c, 1.0f - s, 1.0f);
    }
};
struct Elu1 {
    static __device__ float value(float x) { return x < 0.0f ? expf(x) : x + 1.0f; }
    static __device__ float slope(float x) { return x > 0.0f ? 1.0f : expf(x); /* NaN stays */ }
};
struct Tanh {
    static __device__ float value(float x) { return tanhf(x); }
    static __device__ float slope(float y) { return fmaf(-y, y, 1.0f); }
};
struct Sigmoid {
    static __device__ float value(float x) { return sigmoid_f(x); }
    static __device__ float slope(float y) { return y * (1.0f - y); }
};

template <typename A> struct Forward {
    enum { INPUTS = 1 };
    static __device__ float value(float x, float, float) { return A::value(x); }
};
template <typename A> struct Backward {
    enum { INPUTS = 3 };
    static __device__ float value(float dx, float x, float dy) { return fmaf(dy, A::slope(x), dx); }
};
template <typename A> struct Through { /* dx is dy */
    enum { INPUTS = 2 };
    static __device__ float value(float d, float x, float) { return d * A::slope(x); }
};
template <> constexpr int LEAST_BLOCKS<Through<QuickGelu>> = 6;
struct Same {
    enum { INPUTS = 1 };
    static __device__ float value(float a, float, float) { return a; }
};
struct Sum {
    enum { INPUTS = 2 };
    static __device__ float value(float a, float b, float) { return a + b; }
};
struct Product {
    enum { INPUTS = 2 };
    static __device__ float value(float a, float b, float) { return a * b; }
};
struct AddProduct {
    enum { INPUTS = 3 };
    static __device__ float value(float sum, float a, float b) { return fmaf(b, a, sum); }
};

#define ACTIVATION(name, F)                                                                                  \
    extern "C" void K(name##_fwd)(Stream *s, DType t, void *y, const void *x, int64_t n) {                   \
        DISPATCH(t, T, (launch_map<Forward<F>, T>(s, y, x, NULL, NULL, n)));                                 \
    }                                                                                                        \
    extern "C" void K(name##_bwd)(Stream *s, DType t, void *dx, const void *x, const void *dy, int64_t n) {  \
        if (dx && dx == dy) DISPATCH(t, T, (launch_map<Through<F>, T>(s, dx, dx, x, NULL, n)));              \
        else if (dx) DISPATCH(t, T, (launch_map<Backward<F>, T>(s, dx, dx, x, dy, n)));                      \
    }

ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_tanh, GeluTanh)
ACTIVATION(quick_gelu, QuickGelu)
ACTIVATION(elu1, Elu1)
ACTIVATION(tanh, Tanh)
ACTIVATION(sigmoid, Sigmoid)

extern "C" void K(add_fwd)(Stream *s, DType t, void *y, const void *a, const void *b, int64_t n) {
    DISPATCH(t, T, (launch_map<Sum, T>(s, y, a, b, NULL, n)));
}

extern "C" void K(mul_fwd)(Stream *s, DType t, void *y, const void *a, const void *b, int64_t n) {
    DISPATCH(t, T, (launch_map<Product, T>(s, y, a, b, NULL, n)));
}

/* Both gradients of a product, dy read once. */
template <typename T, int V>
__device__ __forceinline__ void mul_bwd_vector(T *da, T *db, const T *a, const T *b, const T *dy, int64_t i) {
    const Vec<T, V> va = load<V>(a + i), vb = load<V>(b + i), d = load<V>(dy + i);
    Vec<T, V> ra = load<V>(da + i), rb = load<V>(db + i);
#pragma unroll
    for (int k = 0; k < V; k++) {
        ra.v[k] = from_f32<T>(fmaf(to_f32(d.v[k]), to_f32(vb.v[k]), to_f32(ra.v[k])));
        rb.v[k] = from_f32<T>(fmaf(to_f32(d.v[k]), to_f32(va.v[k]), to_f32(rb.v[k])));
    }
    store(da + i, ra);
    store(db + i, rb);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) mul_bwd(T *da, T *db, const T *a, const T *b, const T *dy, int64_t whole, int64_t n) {
    constexpr int V = WIDTH<T>;
    for (int64_t i = first_value(V); i < whole; i += grid_step(V)) mul_bwd_vector<T, V>(da, db, a, b, dy, i);
    for (int64_t i = whole + first_value(1); i < n; i += grid_step(1)) mul_bwd_vector<T, 1>(da, db, a, b, dy, i);
}

extern "C" void K(mul_bwd)(Stream *s, DType t, void *da, void *db, const void *a, const void *b, const void *dy, int64_t n) {
    if (n == 0) return;
    if (!da || !db || da == db) { /* y = a a: one gradient after the other */
        if (da) DISPATCH(t, T, (launch_map<AddProduct, T>(s, da, da, b, dy, n)));
        if (db) DISPATCH(t, T, (launch_map<AddProduct, T>(s, db, db, a, dy, n)));
        return;
    }
    DISPATCH(t, T, {
        LAUNCH(mul_bwd<T>, grid_for(n, THREADS * WIDTH<T>), THREADS, s, (T *)da, (T *)db, (const T *)a, (const T *)b, (const T *)dy,
               whole<T>(WIDTH<T>, n, da, db, a, b, dy), n);
    });
}

/* ---- one row for many: positions, merged class tokens ------------------------------------------------- */

/* y[b][k][c] = x[b][k][c] (+ or *) g[b][c]. add_rows is the case of one b. */
template <typename F, typename T, int V>
__global__ void __launch_bounds__(THREADS) map_rows(T *y, const T *x, const T *g, int64_t B, int64_t rows, int64_t C) {
    const int64_t n = B * rows * C;
    for (int64_t i = first_value(V); i < n; i += grid_step(V)) {
        const int64_t row = quotient(i, C), c = i - row * C, b = B == 1 ? 0 : quotient(row, rows);
        Vec<T, V> r = load<V>(x + i);
        const Vec<T, V> w = load<V>(g + b * C + c);
#pragma unroll
        for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(F::value(to_f32(r.v[k]), to_f32(w.v[k]), 0));
        store(y + i, r);
    }
}

template <typename F, typename T>
static void launch_map_rows(Stream *s, void *y, const void *x, const void *g, int64_t B, int64_t rows, int64_t C) {
    const int64_t n = B * rows * C;
    if (n == 0) return;
    if (vec_ok<T>(WIDTH<T>, C, y, x, g))
        LAUNCH((map_rows<F, T, WIDTH<T>>), grid_for(n, THREADS * WIDTH<T>), THREADS, s, (T *)y, (const T *)x, (const T *)g, B, rows, C);
    else LAUNCH((map_rows<F, T, 1>), grid_for(n, THREADS), THREADS, s, (T *)y, (const T *)x, (const T *)g, B, rows, C);
}

extern "C" void K(add_rows_fwd)(Stream *s, DType t, void *y, const void *x, const void *p, int64_t rows, int64_t n) {
    DISPATCH(t, T, (launch_map_rows<Sum, T>(s, y, x, p, 1, rows, n)));
}

extern "C" void K(mul_tokens_fwd)(Stream *s, DType t, void *y, const void *x, const void *g, int64_t B, int64_t T_, int64_t C) {
    DISPATCH(t, T, (launch_map_rows<Product, T>(s, y, x, g, B, T_, C)));
}

/* ---- sums over rows ----------------------------------------------------------------------------------- */

/* What a row contributes: the values themselves (add_rows, bias), or products (mul_tokens, which updates dx on its way). */
template <typename T> struct RowValues {
    const T *x;
    template <int V> __device__ __forceinline__ void add(float (&sum)[V], int64_t, int64_t, int64_t at) const {
        const Vec<T, V> r = load<V>(x + at);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += to_f32(r.v[k]);
    }
};

template <typename T> struct TokenProducts {
    T *dx; /* or NULL */
    const T *x, *g, *dy;
    template <int V> __device__ __forceinline__ void add(float (&sum)[V], int64_t b_C, int64_t c, int64_t at) const {
        const Vec<T, V> d = load<V>(dy + at), v = load<V>(x + at);
        if (dx) {
            const Vec<T, V> w = load<V>(g + b_C + c);
            Vec<T, V> r = load<V>(dx + at);
#pragma unroll
            for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(fmaf(to_f32(d.v[k]), to_f32(w.v[k]), to_f32(r.v[k])));
            store(dx + at, r);
        }
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] = fmaf(to_f32(d.v[k]), to_f32(v.v[k]), sum[k]);
    }
};

/* The way a block is laid on (rows, C): `across` threads side by side, a power of two, on vectors of V columns; the others below
 * them. A launch covers B matrices (z), each cut into `chunks` of `height` rows (y). */
struct RowSums {
    int64_t B, rows, C;
    int across, V;
    int64_t height, chunks, blocks_x;
};

static RowSums row_sums(int64_t B, int64_t rows, int64_t C, int V) {
    RowSums r = {B, rows, C, 1, V, 0, 0, 0};
    const int64_t vectors = ceil_div(C, (int64_t)V);
    while (r.across < 32 && r.across < vectors) r.across *= 2;
    r.blocks_x = ceil_div(vectors, (int64_t)r.across);
    /* About 1000 blocks fill any card; 64 rows or more in a chunk keep the second stage's traffic at some percent. */
    const int64_t want = max((int64_t)1024 / (r.blocks_x * B), (int64_t)1);
    r.height = max(ceil_div(rows, want), (int64_t)64);
    r.chunks = ceil_div(rows, r.height);
    return r;
}

/* out[b][chunk][c] = or += the sum over the chunk's rows. Each thread takes every (256 / across)-th row, then these add up as a tree. */
template <typename R, typename O, int V>
__global__ void __launch_bounds__(THREADS) sum_rows(O *out, R source, bool add, const RowSums s) {
    SHARED(float, part, THREADS * V);
    const int down = THREADS / s.across, tx = (int)threadIdx.x % s.across, ty = (int)threadIdx.x / s.across;
    const int64_t c = ((int64_t)blockIdx.x * s.across + tx) * V, chunk = blockIdx.y;
    const int64_t from = chunk * s.height, to = min(from + s.height, s.rows);
    for (int64_t b = blockIdx.z; b < s.B; b += gridDim.z) {
        float sum[V] = {};
        if (c < s.C) {
#pragma unroll 4
            for (int64_t i = from + ty; i < to; i += down) source.template add<V>(sum, b * s.C, c, (b * s.rows + i) * s.C + c);
        }
        __syncthreads(); /* the b before has been added up */
        for (int k = 0; k < V; k++) part[k * THREADS + threadIdx.x] = sum[k];
        for (int half = down / 2; half; half /= 2) {
            __syncthreads();
            if (ty < half)
                for (int k = 0; k < V; k++) part[k * THREADS + threadIdx.x] += part[k * THREADS + threadIdx.x + half * s.across];
        }
        if (ty == 0 && c < s.C) {
            O *to_ = out + (b * gridDim.y + chunk) * s.C + c;
            constexpr int W = V < 4 ? V : 4;
#pragma unroll
            for (int k = 0; k < V; k += W) {
                Vec<O, W> r;
#pragma unroll
                for (int j = 0; j < W; j++) r.v[j] = from_f32<O>(part[(k + j) * THREADS + threadIdx.x] + (add ? to_f32(to_[k + j]) : 0.0f));
                if (!add) store(to_ + k, r); /* the scratch: aligned */
                else
                    for (int j = 0; j < W; j++) to_[k + j] = r.v[j];
            }
        }
    }
}

/* out (B, C) += sums over rows of what R gives. `aligned`: R and out may be read by vectors of 16 bytes. */
template <typename T, typename R, typename O>
static void launch_sum_rows(Stream *s, O *out, R source, int64_t B, int64_t rows, int64_t C, bool aligned) {
    if (B * rows * C == 0) return;
    const RowSums a = row_sums(B, rows, C, aligned ? WIDTH<T> : 1);
    const int z = (int)min(B, (int64_t)65535);
    if (a.chunks == 1) {
        if (aligned) LAUNCH((sum_rows<R, O, WIDTH<T>>), dim3((unsigned)a.blocks_x, 1, z), THREADS, s, out, source, true, a);
        else LAUNCH((sum_rows<R, O, 1>), dim3((unsigned)a.blocks_x, 1, z), THREADS, s, out, source, true, a);
        return;
    }
    float *part = (float *)cuda_scratch(s, (size_t)(B * a.chunks * C) * sizeof(float));
    const dim3 grid((unsigned)a.blocks_x, (unsigned)a.chunks, z);
    if (aligned) LAUNCH((sum_rows<R, float, WIDTH<T>>), grid, THREADS, s, part, source, false, a);
    else LAUNCH((sum_rows<R, float, 1>), grid, THREADS, s, part, source, false, a);
    RowSums second = row_sums(B, a.chunks, C, C % 4 == 0 ? 4 : 1);
    second.height = a.chunks; /* in one piece */
    const RowValues<float> parts = {part};
    const dim3 grid2((unsigned)second.blocks_x, 1, z);
    if (second.V == 4) LAUNCH((sum_rows<RowValues<float>, O, 4>), grid2, THREADS, s, out, parts, true, second);
    else LAUNCH((sum_rows<RowValues<float>, O, 1>), grid2, THREADS, s, out, parts, true, second);
}

extern "C" void K(add_rows_bwd)(Stream *s, DType td, void *dp, DType t, const void *dy, int64_t rows,
                                int64_t n) {
    if (!dp) return;
    DISPATCH_GRADIENT(td, TD, t, T, {
        const RowValues<T> values = {(const T *)dy};
        launch_sum_rows<T>(s, (TD *)dp, values, 1, rows, n, vec_ok<T>(WIDTH<T>, n, dy));
    });
}

extern "C" void K(bias_bwd)(Stream *s, DType t, float *dbias, const void *dy, int64_t rows, int64_t C) {
    if (!dbias) return;
    DISPATCH(t, T, {
        const RowValues<T> values = {(const T *)dy};
        launch_sum_rows<T>(s, dbias, values, 1, rows, C, vec_ok<T>(WIDTH<T>, C, dy));
    });
}

/* dx += dy g alone, for when dg is not wanted. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS) mul_tokens_dx(T *dx, const T *g, const T *dy, int64_t B, int64_t rows, int64_t C) {
    const int64_t n = B * rows * C;
    for (int64_t i = first_value(V); i < n; i += grid_step(V)) {
        const int64_t row = quotient(i, C), c = i - row * C, b = quotient(row, rows);
        Vec<T, V> r = load<V>(dx + i);
        const Vec<T, V> d = load<V>(dy + i), w = load<V>(g + b * C + c);
#pragma unroll
        for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(fmaf(to_f32(d.v[k]), to_f32(w.v[k]), to_f32(r.v[k])));
        store(dx + i, r);
    }
}

extern "C" void K(mul_tokens_bwd)(Stream *s, DType t, void *dx, void *dg, const void *x, const void *g, const void *dy, int64_t B,
                                  int64_t T_, int64_t C) {
    const int64_t n = B * T_ * C;
    if (n == 0) return;
    DISPATCH(t, T, {
        const bool aligned = vec_ok<T>(WIDTH<T>, C, dx, x, g, dy);
        if (dg) {
            const TokenProducts<T> products = {(T *)dx, (const T *)x, (const T *)g, (const T *)dy};
            launch_sum_rows<T>(s, (T *)dg, products, B, T_, C, aligned);
        } else if (dx && aligned) {
            LAUNCH((mul_tokens_dx<T, WIDTH<T>>), grid_for(n, THREADS * WIDTH<T>), THREADS, s, (T *)dx, (const T *)g, (const T *)dy, B, T_, C);
        } else if (dx) {
            LAUNCH((mul_tokens_dx<T, 1>), grid_for(n, THREADS), THREADS, s, (T *)dx, (const T *)g, (const T *)dy, B, T_, C);
        }
    });
}

/* ---- dropout ------------------------------------------------------------------------------------------ */

struct Drop { uint64_t seed, offset; uint32_t threshold; float scale; };

/* keep[k] = 0 or scale, for the V values from index i. Four of them share a counter when offset + i divides by 4, otherwise they
 * lie across two. Written without an index that varies, which would put r into memory. */
template <int V> __device__ __forceinline__ void keep_factors(float (&keep)[V], const Drop &d, int64_t i) {
    constexpr int COUNTERS = V == 1 ? 1 : V / 4;
    constexpr uint64_t WRAP = ~(uint64_t)0 >> 2; /* value numbers wrap at 2^64 */
    const uint64_t at = d.offset + (uint64_t)i;
    const int lead = (int)(at & 3);
    uint32_t r[4 * (COUNTERS + 1)];
#pragma unroll
    for (int j = 0; j < COUNTERS; j++) philox(r + 4 * j, d.seed, ((at >> 2) + (uint64_t)j) & WRAP);
    if (V > 1 && lead) philox(r + 4 * COUNTERS, d.seed, ((at >> 2) + COUNTERS) & WRAP);
    else r[4 * COUNTERS] = r[4 * COUNTERS + 1] = r[4 * COUNTERS + 2] = 0;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const uint32_t word = lead == 0 ? r[k] : lead == 1 ? r[k + 1] : lead == 2 ? r[k + 2] : r[k + 3];
        keep[k] = word < d.threshold ? 0.0f : d.scale;
    }
}

template <typename T, int V, bool ADD> __device__ __forceinline__ void dropout_vector(T *y, const T *x, const Drop &d, int64_t i) {
    float keep[V];
    keep_factors<V>(keep, d, i);
    Vec<T, V> r = load<V>(x + i), sum = r;
    if (ADD) sum = load<V>(y + i);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float v = to_f32(r.v[k]);
        r.v[k] = from_f32<T>(ADD ? fmaf(v, keep[k], to_f32(sum.v[k])) : keep[k] == 0.0f ? 0.0f : v * keep[k]);
    }
    store(y + i, r);
}

template <typename T, bool ADD>
__global__ void __launch_bounds__(THREADS) dropout(T *y, const T *x, const Drop d, int64_t whole, int64_t n) {
    constexpr int V = WIDTH<T>;
    for (int64_t i = first_value(V); i < whole; i += grid_step(V)) dropout_vector<T, V, ADD>(y, x, d, i);
    for (int64_t i = whole + first_value(1); i < n; i += grid_step(1)) dropout_vector<T, 1, ADD>(y, x, d, i);
}

template <typename T, bool ADD>
static void launch_dropout(Stream *s, void *y, const void *x, float p, uint64_t seed, uint64_t offset, int64_t n) {
    if (n == 0) return;
    const Drop d = {seed, offset, dropout_threshold(p), 1.0f / (1.0f - p)};
    LAUNCH((dropout<T, ADD>), grid_for(n, THREADS * WIDTH<T>), THREADS, s, (T *)y, (const T *)x, d, whole<T>(WIDTH<T>, n, y, x), n);
}

extern "C" void K(dropout_fwd)(Stream *s, DType t, void *y, const void *x, float p, uint64_t seed, uint64_t offset, int64_t n) {
    DISPATCH(t, T, (launch_dropout<T, false>(s, y, x, p, seed, offset, n)));
}

extern "C" void K(dropout_bwd)(Stream *s, DType t, void *dx, const void *dy, float p, uint64_t seed, uint64_t offset, int64_t n) {
    if (dx) DISPATCH(t, T, (launch_dropout<T, true>(s, dx, dy, p, seed, offset, n)));
}

/* ---- from one type to the other ------------------------------------------------------------------------ */

/* y = x or y += x. A warp's lanes lie side by side in both types: 4 values each, 16 bytes of f32 and 8 of bf16. With 8 bf16 values a
 * lane, its two f32 vectors would leave every sector to be written in halves. Two vectors a thread, so that enough loads are in
 * flight. */
enum { CAST = 4, CAST_STEP = THREADS * CAST };

template <bool ADD, typename Y, typename X, int V> __device__ __forceinline__ Vec<Y, V> converted(const Vec<X, V> &x, const Vec<Y, V> &was) {
    Vec<Y, V> y;
#pragma unroll
    for (int k = 0; k < V; k++) y.v[k] = from_f32<Y>(ADD ? to_f32(was.v[k]) + to_f32(x.v[k]) : to_f32(x.v[k]));
    return y;
}

template <typename Y, typename X, bool ADD>
__global__ void __launch_bounds__(THREADS) cast(Y *y, const X *x, int64_t whole, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * 2 * CAST_STEP + threadIdx.x * CAST; i < whole; i += (int64_t)gridDim.x * 2 * CAST_STEP) {
        const int64_t j = i + CAST_STEP;
        const Vec<X, CAST> a = load<CAST>(x + i);
        Vec<X, CAST> b = a;
        Vec<Y, CAST> at_i = {}, at_j = {};
        if (j < whole) b = load<CAST>(x + j);
        if (ADD) at_i = load<CAST>(y + i);
        if (ADD && j < whole) at_j = load<CAST>(y + j);
        store(y + i, converted<ADD>(a, at_i));
        if (j < whole) store(y + j, converted<ADD>(b, at_j));
    }
    for (int64_t i = whole + first_value(1); i < n; i += grid_step(1)) y[i] = from_f32<Y>(ADD ? to_f32(y[i]) + to_f32(x[i]) : to_f32(x[i]));
}

template <typename Y, typename X, bool ADD>
static void launch_cast(Stream *s, void *y, const void *x, int64_t n) {
    if (n == 0) return;
    LAUNCH((cast<Y, X, ADD>), grid_for(n, 2 * CAST_STEP), THREADS, s, (Y *)y, (const X *)x, whole<X>(CAST, n, y, x), n);
}

extern "C" void K(cast)(Stream *s, DType ty, void *y, DType tx, const void *x, int64_t n) {
    if (ty == tx && y == x) return;
    if (ty == tx) DISPATCH(ty, T, (launch_map<Same, T>(s, y, x, NULL, NULL, n)));
    else if (ty == BF16)
        launch_cast<bf16, float, false>(s, y, x, n);
    else
        launch_cast<float, bf16, false>(s, y, x, n);
}

extern "C" void K(accumulate)(Stream *s, DType ty, void *y, DType tx, const void *x, int64_t n) {
    if (ty != tx)
        launch_cast<float, bf16, true>(s, y, x, n); /* a parameter's gradient from an activation's */
    else
        DISPATCH(ty, T, (launch_map<Sum, T>(s, y, y, x, NULL, n)));
}
