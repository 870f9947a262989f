/* row.cuh -- a row of a matrix in the hands of a team of threads: a warp, or a whole block. For norm.cu and softmax.cu.
 *
 * Such an op goes over its row two or three times. Each thread keeps its first N vectors in registers between the passes, so a
 * row that fits is read from memory once; what is beyond is read again, out of a cache. So a kernel is right for any C, and
 * the launcher only chooses which rows fit:
 *
 *     const Row<T, V, N, TEAM> x(x_ + i * C, C);
 *     float sum = 0;
 *     each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {          // vector k of this thread, at columns c .. c + V - 1
 *         const Vec<T, V> v = x.get(k, c);
 *         for (int j = 0; j < V; j++) sum += to_f32(v.v[j]);
 *     });
 *     sum = team_sum<TEAM>(sum);
 *
 * k is a constant once the loop is unrolled, or `kept` would be no registers (`make ptx` would show a stack).
 */
#pragma once
#include "kernels/cuda/cuda.cuh"

enum { ROW_THREADS = 256 }; /* of a block, at most */
/* 64 registers: half of the threads that an SM can hold. */
#define ROW_BOUNDS __launch_bounds__(ROW_THREADS, 4)

enum Team { WARP, BLOCK };

template <Team TEAM> __device__ __forceinline__ float team_sum(float v) { return TEAM == WARP ? warp_sum(v) : block_sum(v); }
template <Team TEAM> __device__ __forceinline__ float team_max(float v) { return TEAM == WARP ? warp_max(v) : block_max(v); }
template <Team TEAM> __device__ __forceinline__ int team_size() { return TEAM == WARP ? 32 : (int)blockDim.x; }
template <Team TEAM> __device__ __forceinline__ int team_lane() { return (int)threadIdx.x % team_size<TEAM>(); }

/* Rows of a team: for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>()), the same trips for all its threads. */
template <Team TEAM> __device__ __forceinline__ int64_t team_row() {
    return TEAM == WARP ? (int64_t)blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32 : (int64_t)blockIdx.x;
}
template <Team TEAM> __device__ __forceinline__ int64_t team_step() {
    return (int64_t)gridDim.x * (TEAM == WARP ? ROW_THREADS / 32 : 1);
}

template <int V, int N, Team TEAM, typename F> __device__ __forceinline__ void each_vector(int64_t C, F f) {
    const int size = team_size<TEAM>(), lane = team_lane<TEAM>(), held = (int)min(C, (int64_t)(N * V * size));
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int c = (k * size + lane) * V;
        if (c < held) f(k, (int64_t)c);
    }
#pragma unroll 1 /* rare; unrolled it would take registers from the rest */
    for (int64_t c = (int64_t)(N * size + lane) * V; c < C; c += size * V) f(N, c);
}

template <typename T, int V, int N, Team TEAM> struct Row {
    const T *row;
    Vec<T, V> kept[N];
    __device__ __forceinline__ Row(const T *p, int64_t C) : row(p) {
        const int size = team_size<TEAM>(), lane = team_lane<TEAM>(), held = (int)min(C, (int64_t)(N * V * size));
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int c = (k * size + lane) * V;
            if (c < held) kept[k] = load<V>(p + c);
        }
    }
    /* The sum of two rows, which goes to `sum` on its way; rounded to T first. All loads before the first store, which the
     * compiler may not do for us: `sum` may be a. */
    __device__ __forceinline__ Row(T *sum, const T *a, const T *b, int64_t C) : Row(a, C) {
        Vec<T, V> other[N];
        row = sum;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int64_t c = (int64_t)(k * team_size<TEAM>() + team_lane<TEAM>()) * V;
            if (c < C) other[k] = load<V>(b + c);
        }
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            Vec<T, V> v = k < N ? kept[k] : load<V>(a + c);
            const Vec<T, V> w = k < N ? other[k] : load<V>(b + c);
#pragma unroll
            for (int j = 0; j < V; j++) v.v[j] = from_f32<T>(to_f32(v.v[j]) + to_f32(w.v[j]));
            store(sum + c, v);
            if (k < N) kept[k] = v;
        });
    }
    __device__ __forceinline__ Vec<T, V> get(int k, int64_t c) const { return k < N ? kept[k] : load<V>(row + c); }
};

/* V values of an f32 parameter or of its gradient, by accesses of 16 bytes where V allows. */
template <int V> __device__ __forceinline__ void load_params(float (&out)[V], const float *p) {
    constexpr int W = V < 4 ? V : 4;
#pragma unroll
    for (int j = 0; j < V; j += W) {
        const Vec<float, W> v = load<W>(p + j);
#pragma unroll
        for (int i = 0; i < W; i++) out[j + i] = v.v[i];
    }
}

template <int V> __device__ __forceinline__ void store_params(float *p, const float (&in)[V]) {
    constexpr int W = V < 4 ? V : 4;
#pragma unroll
    for (int j = 0; j < V; j += W) {
        Vec<float, W> v;
#pragma unroll
        for (int i = 0; i < W; i++) v.v[i] = in[j + i];
        store(p + j, v);
    }
}

/* Launches kernel<T, V, N, TEAM>: by 16-byte vectors when `vec`, value by value otherwise, where each thread keeps `values` of them;
 * a warp per row while its registers hold the row, otherwise a block, no larger than the row has vectors. */
#define LAUNCH_ROWS(kernel, T, values, vec, rows, C, s, ...)                                                          \
    do {                                                                                                              \
        if (vec) LAUNCH_ROWS_(kernel, T, WIDTH<T>, (values) / WIDTH<T>, rows, C, s, __VA_ARGS__);                     \
        else LAUNCH_ROWS_(kernel, T, 1, (values) / 4, rows, C, s, __VA_ARGS__);                                                  \
    } while (0)
#define LAUNCH_ROWS_(kernel, T, V, N, rows, C, s, ...)                                                                \
    do {                                                                                                              \
        if ((C) <= 32 * (N) * (V))                                                                                    \
            LAUNCH((kernel<T, V, (N), WARP>), grid_for(rows, ROW_THREADS / 32), ROW_THREADS, s, __VA_ARGS__);         \
        else LAUNCH((kernel<T, V, (N), BLOCK>), grid_for(rows, 1), row_threads(C, V), s, __VA_ARGS__);                \
    } while (0)
inline int row_threads(int64_t C, int V) { return (int)std::min(((C + V - 1) / V + 31) / 32 * 32, (int64_t)ROW_THREADS); }
