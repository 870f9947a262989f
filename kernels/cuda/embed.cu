/* embed.cu -- moving rows: embedding, gathering, concatenation, pooling, pair scores on CUDA. Contracts: ops.h.
 *
 * All of it is bound by memory: an op reads its rows once and writes them once. Two shapes of launch:
 *
 *   Rows that do not meet (gather, interpolate, copy). A row has 1 to some 100,000 values (a box; all patches of an image), so a
 *   block is `x` lanes along a row by 256 / x rows, x the power of two that covers a row, and the grid has as many blocks along
 *   rows as it takes. No index is ever divided. 16 bytes a thread where pointers and strides allow it.
 *
 *   Rows that are added into one (scatter, backwards, pooling). A block is 32 lanes along the row by 8 warps; each warp adds a
 *   stretch of the rows in order, and the 8 sums are added in order. What is added where is found by sorting (index, i): each
 *   run of equal indices is one destination's rows in the order of i. So no atomics, any number of rows, and one row that gets
 *   half of all (padding, a class token) does not leave the rest of the card waiting for one warp. Sums in f32, rounded once.
 */
#include "kernels/cuda/cuda.cuh"

/* ---- launches ------------------------------------------------------------------------------------- */

#define EACH_ROW(i, n)                                                                                       \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; i < (n); i += (int64_t)gridDim.x * blockDim.y)
#define EACH_COLUMN(c, C, V)                                                                                 \
    for (int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * V; c < (C);                          \
         c += (int64_t)gridDim.y * blockDim.x * V)

enum { THREADS = 256, WARPS = 8 };

/* The statement with V = 16 bytes of T when `ok`, else 1. */
#define VECTOR(T, ok, ...)                                                                                   \
    do {                                                                                                     \
        if (ok) {                                                                                            \
            constexpr int V = WIDTH<T>;                                                                      \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            constexpr int V = 1;                                                                             \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

static unsigned grid_y(int64_t n, int64_t per_block) {
    const int64_t blocks = ceil_div(n, per_block);
    return (unsigned)(blocks < 65535 ? blocks : 65535); /* the most that a grid may have along y */
}

static dim3 block_for(int64_t units) {
    unsigned x = 1;
    while (x < units && x < THREADS) x *= 2;
    return dim3(x, THREADS / x);
}

static dim3 grid_of(int64_t rows, int64_t units) {
    const dim3 block = block_for(units);
    const int64_t x = ceil_div(rows, (int64_t)block.y);
    return dim3((unsigned)(x < INT32_MAX ? x : INT32_MAX), grid_y(units, block.x));
}

/* ---- rows that do not meet ------------------------------------------------------------------------ */

template <typename T, int V>
__global__ void __launch_bounds__(THREADS) gather_rows(T *dst, const T *src, const int32_t *idx, int64_t n, int64_t C) {
    EACH_ROW(i, n) {
        const T *from = src + idx[i] * C;
        EACH_COLUMN(c, C, V) store(dst + i * C + c, load<V>(from + c));
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
interp_rows(T *y, const T *x, const int32_t *idx, const float *w, int64_t n, int64_t C) {
    EACH_ROW(i, n) {
        const float w0 = w[4 * i], w1 = w[4 * i + 1], w2 = w[4 * i + 2], w3 = w[4 * i + 3];
        const T *x0 = x + idx[4 * i] * C, *x1 = x + idx[4 * i + 1] * C, *x2 = x + idx[4 * i + 2] * C, *x3 = x + idx[4 * i + 3] * C;
        EACH_COLUMN(c, C, V) {
            const Vec<T, V> a = load<V>(x0 + c), b = load<V>(x1 + c), d = load<V>(x2 + c), e = load<V>(x3 + c);
            Vec<T, V> r;
            for (int k = 0; k < V; k++)
                r.v[k] = from_f32<T>(fmaf(w3, to_f32(e.v[k]), fmaf(w2, to_f32(d.v[k]), fmaf(w1, to_f32(b.v[k]), w0 * to_f32(a.v[k])))));
            store(y + i * C + c, r);
        }
    }
}

template <typename T, int V, bool ADD>
__global__ void __launch_bounds__(THREADS) copy_rows(T *dst, int64_t ldd, const T *src, int64_t lds, int64_t rows, int64_t n) {
    EACH_ROW(i, rows) {
        EACH_COLUMN(c, n, V) {
            Vec<T, V> x = load<V>(src + i * lds + c);
            if (ADD) {
                const Vec<T, V> d = load<V>(dst + i * ldd + c);
                for (int k = 0; k < V; k++) x.v[k] = from_f32<T>(to_f32(d.v[k]) + to_f32(x.v[k]));
            }
            store(dst + i * ldd + c, x);
        }
    }
}

/* ---- rows that are added into one ----------------------------------------------------------------- */

/* acc of the 8 warps, added in their order; every thread of warp 0 gets the sum of its columns. */
template <int V> __device__ __forceinline__ void sum_of_warps(float acc[V]) {
    SHARED(float, part, WARPS * 32 * V);
    const int lane = threadIdx.x, warp = threadIdx.y;
    __syncthreads(); /* the sums of an earlier call have been read */
    for (int k = 0; k < V; k++) part[(warp * V + k) * 32 + lane] = acc[k];
    __syncthreads();
    if (warp == 0)
        for (int w = 1; w < WARPS; w++)
            for (int k = 0; k < V; k++) acc[k] += part[(w * V + k) * 32 + lane];
}

template <typename T, int V> __device__ __forceinline__ void add_to(T *y, const float acc[V]) {
    Vec<T, V> r = load<V>(y);
    for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(to_f32(r.v[k]) + acc[k]);
    store(y, r);
}

/* Warp w's part of n things, in order. */
struct Stretch { int64_t begin, end; };
__device__ __forceinline__ Stretch stretch_of_warp(int64_t n) {
    const int64_t share = (n + WARPS - 1) / WARPS, begin = threadIdx.y * share;
    return {min(begin, n), min(begin + share, n)};
}

/* All rows into the first: copy_rows with ldd 0. */
template <typename T> __global__ void __launch_bounds__(THREADS) add_into_one(T *dst, const T *src, int64_t lds, int64_t rows, int64_t n) {
    for (int64_t at = (int64_t)blockIdx.x * 32; at < n; at += (int64_t)gridDim.x * 32) {
        const int64_t c = at + threadIdx.x;
        const Stretch mine = stretch_of_warp(rows);
        float acc[1] = {0};
        if (c < n)
            for (int64_t i = mine.begin; i < mine.end; i++) acc[0] += to_f32(src[i * lds + c]);
        sum_of_warps<1>(acc);
        if (threadIdx.y == 0 && c < n) add_to<T, 1>(dst + c, acc);
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(THREADS) mean_tokens(T *y, const T *x, const uint8_t *mask, int64_t T_, int64_t C) {
    SHARED(int, counts, WARPS);
    const int64_t b = blockIdx.x;
    const Stretch mine = stretch_of_warp(T_);
    int count = 0;
    for (int64_t k = mine.begin; k < mine.end; k++) count += !mask || mask[b * T_ + k];
    if (threadIdx.x == 0) counts[threadIdx.y] = count;
    for (int64_t at = (int64_t)blockIdx.y * 32 * V; at < C; at += (int64_t)gridDim.y * 32 * V) {
        const int64_t c = at + threadIdx.x * V;
        float acc[V] = {};
        if (c < C)
            for (int64_t k = mine.begin; k < mine.end; k++) {
                if (mask && !mask[b * T_ + k]) continue;
                const Vec<T, V> r = load<V>(x + (b * T_ + k) * C + c);
                for (int j = 0; j < V; j++) acc[j] += to_f32(r.v[j]);
            }
        sum_of_warps<V>(acc); /* its barriers are counts[]'s, too */
        if (threadIdx.y || c >= C) continue;
        int n = 0;
        for (int w = 0; w < WARPS; w++) n += counts[w];
        Vec<T, V> r;
        for (int j = 0; j < V; j++) r.v[j] = from_f32<T>(n ? acc[j] / (float)n : 0.0f);
        store(y + b * C + c, r);
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(THREADS) mean_tokens_back(T *dx, const T *dy, const uint8_t *mask, int64_t T_, int64_t C) {
    const int64_t b = blockIdx.x;
    int64_t n = T_;
    if (mask) { /* every warp counts for itself: T bytes, from the cache */
        int count = 0;
        for (int64_t k = threadIdx.x; k < T_; k += 32) count += mask[b * T_ + k] != 0;
        n = warp_sum(count);
    }
    const float each = 1.0f / (float)n;
    for (int64_t k = (int64_t)blockIdx.y * WARPS + threadIdx.y; k < T_; k += (int64_t)gridDim.y * WARPS) {
        if (mask && !mask[b * T_ + k]) continue;
#pragma unroll 1 /* unrolled it needs more registers than it gets */
        for (int64_t c = threadIdx.x * V; c < C; c += 32 * V) {
            const Vec<T, V> r = load<V>(dy + b * C + c);
            float g[V];
            for (int j = 0; j < V; j++) g[j] = each * to_f32(r.v[j]);
            add_to<T, V>(dx + (b * T_ + k) * C + c, g);
        }
    }
}

/* ---- sorting (index, i) ---------------------------------------------------------------------------- */

/* A key holds both, the index in the high 31 bits: all keys differ, so any sort of them keeps the order of i. */
typedef uint64_t Key;
enum { KEY_SHIFT = 33, TILE = 1024 };

__device__ __forceinline__ int64_t key_row(Key k) { return (int64_t)(k >> KEY_SHIFT); }
__device__ __forceinline__ int64_t key_i(Key k) { return (int64_t)(k & (((Key)1 << KEY_SHIFT) - 1)); }

/* Where key i of a tile lies: of every 32 keys the second 16 in turned order. A stride of less than 16 takes 16 threads to 16 of 32
 * neighbours, and these are then in different banks. */
__device__ __forceinline__ int tile_place(int i) { return i & 16 ? i ^ 15 : i; }

/* Bitonic network over a tile in shared memory (Batcher 1968). */
__global__ void __launch_bounds__(THREADS) sort_tiles(Key *key, const int32_t *idx, int64_t n) {
    SHARED(Key, k, TILE);
    const int64_t at = (int64_t)blockIdx.x * TILE;
    for (int t = threadIdx.x; t < TILE; t += THREADS)
        k[tile_place(t)] = at + t < n ? (Key)(uint32_t)idx[at + t] << KEY_SHIFT | (Key)(at + t) : ~(Key)0; /* the end of the last tile */
    for (int size = 2; size <= TILE; size *= 2)
        for (int stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            for (int t = threadIdx.x; t < TILE / 2; t += THREADS) {
                const int lower = 2 * t - (t & (stride - 1)), i = tile_place(lower), j = tile_place(lower + stride);
                const Key a = k[i], b = k[j];
                const bool up = !(lower & size);
                if ((a > b) == up) {
                    k[i] = b;
                    k[j] = a;
                }
            }
        }
    __syncthreads();
    for (int t = threadIdx.x; t < TILE; t += THREADS)
        if (at + t < n) key[at + t] = k[tile_place(t)];
}

/* The first place in the sorted key[lo..hi) that is not below `what`; hi when there is none. */
__device__ __forceinline__ int64_t lower_bound(const Key *key, int64_t lo, int64_t hi, Key what) {
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (key[mid] < what) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* Pairs of sorted runs of `run` keys become runs of twice that: a key's place is its own in its run plus the number of keys
 * before it in the other. */
__global__ void __launch_bounds__(THREADS) merge_runs(Key *out, const Key *in, int64_t run, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        const int64_t first = i & -(2 * run), other = i - first < run ? first + run : first; /* run is a power of two */
        const int64_t begin = min(other, n), end = min(other + run, n);
        const int64_t before = lower_bound(in, begin, end, in[i]) - begin;
        out[first + (i & (run - 1)) + before] = in[i];
    }
}

static size_t sort_bytes(int64_t n) { return 2 * (size_t)n * sizeof(Key); }

/* The sorted keys of idx[0..n), in `room` (sort_bytes). n > 0. */
static const Key *sort_rows(Stream *s, void *room, const int32_t *idx, int64_t n) {
    Key *key = (Key *)room, *spare = key + n;
    LAUNCH(sort_tiles, ceil_div<int64_t>(n, TILE), THREADS, s, key, idx, n);
    for (int64_t run = TILE; run < n; run *= 2) {
        LAUNCH(merge_runs, grid_for(n, THREADS), THREADS, s, spare, key, run, n);
        Key *t = key;
        key = spare;
        spare = t;
    }
    return key;
}

/* Whether a run of equal indices begins at `at`. */
__device__ __forceinline__ bool is_head(const Key *key, int64_t at, int64_t n) {
    return at < n && (at == 0 || key_row(key[at - 1]) != key_row(key[at]));
}

/* dst[row] += sum over the run of row of w[i] src[i / PER] (w NULL: 1). A block looks at SPAN places of the sorted list for runs
 * that begin there and takes them one after another: short runs give many small blocks, a long run a whole block of its own. */
enum { SPAN = 16 };

template <typename TD, typename TS, int V, int PER>
__global__ void __launch_bounds__(THREADS)
add_runs(TD *dst, const TS *src, const float *w, const Key *key, int64_t n, int64_t C) {
    const int lane = threadIdx.x;
    const int64_t base = (int64_t)blockIdx.x * SPAN;
    unsigned heads = __ballot_sync(ALL_LANES, lane < SPAN && is_head(key, base + lane, n));
    while (heads) { /* the same in all warps */
        const int64_t begin = base + __ffs((int)heads) - 1;
        heads &= heads - 1;
        const int64_t row = key_row(key[begin]);
        const int64_t end = heads ? base + __ffs((int)heads) - 1 : lower_bound(key, begin, n, (Key)(row + 1) << KEY_SHIFT);
        const Stretch mine = stretch_of_warp(end - begin);
        for (int64_t at = (int64_t)blockIdx.y * 32 * V; at < C; at += (int64_t)gridDim.y * 32 * V) {
            const int64_t c = at + lane * V;
            float acc[V] = {};
            if (c < C) {
#pragma unroll 4
                for (int64_t k = begin + mine.begin; k < begin + mine.end; k++) {
                    const int64_t i = key_i(key[k]);
                    const Vec<TS, V> r = load<V>(src + i / PER * C + c);
                    const float wi = PER > 1 ? w[i] : 1.0f;
                    for (int j = 0; j < V; j++) acc[j] = PER > 1 ? fmaf(wi, to_f32(r.v[j]), acc[j]) : acc[j] + to_f32(r.v[j]);
                }
            }
            sum_of_warps<V>(acc);
            if (threadIdx.y == 0 && c < C) add_to<TD, V>(dst + row * C + c, acc);
        }
    }
}

/* PER: rows of idx and w to one row of src. */
template <typename TD, typename TS, int PER>
static void scatter(Stream *s, TD *dst, const TS *src, const float *w, const Key *key, int64_t n, int64_t C) {
    VECTOR(TD, vec_ok<TD>(WIDTH<TD>, C, dst, src),
           LAUNCH((add_runs<TD, TS, V, PER>), dim3((unsigned)ceil_div<int64_t>(n, SPAN), grid_y(C, 32 * V)), dim3(32, WARPS), s, dst,
                  src, w, key, n, C));
}

/* ---- pair scores ---------------------------------------------------------------------------------- */

/* A warp takes four patches of one pair, so that each piece of the query is read once for four of the image. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
pair_scores(T *y, const T *f, const T *q, const int32_t *img, const int32_t *txt, int64_t P, int64_t D) {
    enum { EACH = 4 };
    const int64_t i = blockIdx.x;
    const T *query = q + txt[i] * D;
    for (int64_t p = ((int64_t)blockIdx.y * WARPS + threadIdx.y) * EACH; p < P; p += (int64_t)gridDim.y * WARPS * EACH) {
        float acc[EACH] = {};
        for (int64_t d = threadIdx.x * V; d < D; d += 32 * V) {
            const Vec<T, V> b = load<V>(query + d);
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const Vec<T, V> a = load<V>(f + (img[i] * P + min(p + k, P - 1)) * D + d); /* beyond the last: not written */
#pragma unroll
                for (int j = 0; j < V; j++) acc[k] = fmaf(to_f32(a.v[j]), to_f32(b.v[j]), acc[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const float sum = warp_sum(acc[k]);
            if (threadIdx.x == 0 && p + k < P) y[i * P + p + k] = from_f32<T>(sum);
        }
    }
}

/* df[image][p] += sum over its pairs of dy[i][p] q[txt[i]]. key: pairs sorted by image; a block takes 8 patches of one image. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, 4) /* 4: without a number ptxas aims at 32 registers on sm_80 and spills one */
pair_scores_df(T *df, const T *q, const T *dy, const int32_t *txt, const Key *key, int64_t n, int64_t P, int64_t D) {
    const int64_t begin = blockIdx.x;
    if (!is_head(key, begin, n)) return; /* the whole block */
    const int64_t image = key_row(key[begin]), end = lower_bound(key, begin, n, (Key)(image + 1) << KEY_SHIFT);
    for (int64_t p = (int64_t)blockIdx.y * WARPS + threadIdx.y; p < P; p += (int64_t)gridDim.y * WARPS)
        for (int64_t d = threadIdx.x * V; d < D; d += 32 * V) {
            float acc[V] = {};
            for (int64_t k = begin; k < end; k++) {
                const int64_t i = key_i(key[k]);
                const float g = to_f32(dy[i * P + p]);
                const Vec<T, V> b = load<V>(q + txt[i] * D + d);
                for (int j = 0; j < V; j++) acc[j] = fmaf(g, to_f32(b.v[j]), acc[j]);
            }
            add_to<T, V>(df + (image * P + p) * D + d, acc);
        }
}

/* part[i] = sum over patches of dy[i][p] f[img[i]][p]: what pair i adds to its query. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
pair_scores_dq(float *part, const T *f, const T *dy, const int32_t *img, int64_t P, int64_t D) {
    const int64_t i = blockIdx.x;
    const Stretch mine = stretch_of_warp(P);
    for (int64_t at = (int64_t)blockIdx.y * 32 * V; at < D; at += (int64_t)gridDim.y * 32 * V) {
        const int64_t d = at + threadIdx.x * V;
        float acc[V] = {};
        if (d < D) {
#pragma unroll 4
            for (int64_t p = mine.begin; p < mine.end; p++) {
                const float g = to_f32(dy[i * P + p]);
                const Vec<T, V> a = load<V>(f + (img[i] * P + p) * D + d);
                for (int j = 0; j < V; j++) acc[j] = fmaf(g, to_f32(a.v[j]), acc[j]);
            }
        }
        sum_of_warps<V>(acc);
        if (threadIdx.y == 0 && d < D)
            for (int j = 0; j < V; j++) part[i * D + d + j] = acc[j];
    }
}

/* ---- the ops -------------------------------------------------------------------------------------- */

extern "C" void K(gather_rows)(Stream *s, DType t, void *dst, const void *src, const int32_t *idx, int64_t n, int64_t C) {
    if (!n || !C) return;
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, C, dst, src),
                          LAUNCH((gather_rows<T, V>), grid_of(n, C / V), block_for(C / V), s, (T *)dst, (const T *)src, idx, n, C)));
}

extern "C" void K(scatter_rows)(Stream *s, DType td, void *dst, DType t, const void *src, const int32_t *idx,
                                int64_t n, int64_t C) {
    if (!dst || !n || !C) return;
    const Key *key = sort_rows(s, cuda_scratch(s, sort_bytes(n)), idx, n);
    DISPATCH_GRADIENT(td, TD, t, T, (scatter<TD, T, 1>(s, (TD *)dst, (const T *)src, NULL, key, n, C)));
}

extern "C" void K(interp_rows_fwd)(Stream *s, DType t, void *y, const void *x, const int32_t *idx, const float *w, int64_t n,
                                   int64_t C) {
    if (!n || !C) return;
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, C, y, x),
                          LAUNCH((interp_rows<T, V>), grid_of(n, C / V), block_for(C / V), s, (T *)y, (const T *)x, idx, w, n, C)));
}

extern "C" void K(interp_rows_bwd)(Stream *s, DType td, void *dx, DType t, const void *dy, const int32_t *idx,
                                   const float *w, int64_t n, int64_t C) {
    if (!dx || !n || !C) return;
    const Key *key = sort_rows(s, cuda_scratch(s, sort_bytes(4 * n)), idx, 4 * n);
    DISPATCH_GRADIENT(td, TD, t, T, (scatter<TD, T, 4>(s, (TD *)dx, (const T *)dy, w, key, 4 * n, C)));
}

extern "C" void K(copy_rows)(Stream *s, DType t, void *dst, int64_t ldd, const void *src, int64_t lds, int64_t rows, int64_t n,
                             bool add) {
    if (!rows || !n) return;
    if (add && ldd == 0) {
        DISPATCH(t, T, LAUNCH((add_into_one<T>), grid_for(n, 32), dim3(32, WARPS), s, (T *)dst, (const T *)src, lds, rows, n));
        return;
    }
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, n, dst, src) && lds % WIDTH<T> == 0 && ldd % WIDTH<T> == 0, {
                 const dim3 grid = grid_of(rows, n / V), block = block_for(n / V);
                 if (add) LAUNCH((copy_rows<T, V, true>), grid, block, s, (T *)dst, ldd, (const T *)src, lds, rows, n);
                 else LAUNCH((copy_rows<T, V, false>), grid, block, s, (T *)dst, ldd, (const T *)src, lds, rows, n);
             }));
}

extern "C" void K(mean_tokens_fwd)(Stream *s, DType t, void *y, const void *x, const uint8_t *mask, int64_t B, int64_t T_,
                                   int64_t C) {
    if (!B || !C) return;
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, C, y, x),
                          LAUNCH((mean_tokens<T, V>), dim3((unsigned)B, grid_y(C, 32 * V)), dim3(32, WARPS), s, (T *)y, (const T *)x,
                                 mask, T_, C)));
}

extern "C" void K(mean_tokens_bwd)(Stream *s, DType t, void *dx, const void *dy, const uint8_t *mask, int64_t B, int64_t T_,
                                   int64_t C) {
    if (!dx || !B || !T_ || !C) return;
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, C, dx, dy),
                          LAUNCH((mean_tokens_back<T, V>), dim3((unsigned)B, grid_y(T_, WARPS)), dim3(32, WARPS), s, (T *)dx,
                                 (const T *)dy, mask, T_, C)));
}

extern "C" void K(pair_scores_fwd)(Stream *s, DType t, void *y, const void *f, const void *q, const int32_t *img,
                                   const int32_t *txt, int64_t n, int64_t P, int64_t D) {
    if (!n || !P) return;
    DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, D, f, q),
                          LAUNCH((pair_scores<T, V>), dim3((unsigned)n, grid_y(P, 4 * WARPS)), dim3(32, WARPS), s, (T *)y,
                                 (const T *)f, (const T *)q, img, txt, P, D)));
}

extern "C" void K(pair_scores_bwd)(Stream *s, DType t, void *df, void *dq, const void *f, const void *q, const void *dy,
                                   const int32_t *img, const int32_t *txt, int64_t n, int64_t P, int64_t D) {
    if (!n || !P || !D) return;
    const size_t keys = (sort_bytes(n) + 255) & ~(size_t)255;
    char *room = (char *)cuda_scratch(s, keys + (size_t)(n * D) * sizeof(float));
    if (df) {
        const Key *key = sort_rows(s, room, img, n);
        DISPATCH(t, T, VECTOR(T, vec_ok<T>(WIDTH<T>, D, df, q),
                              LAUNCH((pair_scores_df<T, V>), dim3((unsigned)n, grid_y(P, WARPS)), dim3(32, WARPS), s, (T *)df,
                                     (const T *)q, (const T *)dy, txt, key, n, P, D)));
    }
    if (!dq) return;
    float *part = (float *)(room + keys);
    const Key *key = sort_rows(s, room, txt, n);
    DISPATCH(t, T, {
        VECTOR(T, vec_ok<T>(WIDTH<T>, D, f),
               LAUNCH((pair_scores_dq<T, V>), dim3((unsigned)n, grid_y(D, 32 * V)), dim3(32, WARPS), s, part, (const T *)f,
                      (const T *)dy, img, P, D));
        scatter<T, float, 1>(s, (T *)dq, part, NULL, key, n, D);
    });
}
