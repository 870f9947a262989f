/* softmax.cu -- softmax by row on CUDA. Contract: ops.h. Attention has its own inside attention.cu.
 *
 * Bound by memory: the forward moves 2 rows C sizeof(T) bytes, the backward 4 (y, dy, dx read and written). A warp takes a row of up
 * to 768 values into registers, a block a longer one (row.cuh): one read of each input. The exponential is made twice, for
 * the sum and for the result, which is cheaper than the registers (8 more f32 for each vector of 8 bf16) to keep it.
 */
#include "kernels/cuda/row.cuh"

template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS softmax_fwd(T *y_, const T *x_, int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>()) {
        const Row<T, V, N, TEAM> x(x_ + i * C, C);
        T *y = y_ + i * C;
        float most = -INFINITY, sum = 0;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> v = x.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) most = fmaxf(most, to_f32(v.v[j]));
        });
        /* A NaN is no maximum; it shows in the sum. */
        const float m = team_max<TEAM>(most);
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> v = x.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) sum += expf(to_f32(v.v[j]) - m);
        });
        const float r = 1.0f / team_sum<TEAM>(sum);
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            Vec<T, V> v = x.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) v.v[j] = from_f32<T>(expf(to_f32(v.v[j]) - m) * r);
            store(y + c, v);
        });
    }
}

template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS
softmax_bwd(T *dx_, const T *y_, const T *dy_, int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>()) {
        const Row<T, V, N, TEAM> y(y_ + i * C, C), dy(dy_ + i * C, C);
        T *dx = dx_ + i * C;
        float sum = 0;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> a = y.get(k, c), b = dy.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) sum = fmaf(to_f32(a.v[j]), to_f32(b.v[j]), sum);
        });
        const float dot = team_sum<TEAM>(sum);
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> a = y.get(k, c), b = dy.get(k, c);
            Vec<T, V> d = load<V>(dx + c);
#pragma unroll
            for (int j = 0; j < V; j++) d.v[j] = from_f32<T>(fmaf(to_f32(a.v[j]), to_f32(b.v[j]) - dot, to_f32(d.v[j])));
            store(dx + c, d);
        });
    }
}

extern "C" void K(softmax_fwd)(Stream *s, DType t, void *y, const void *x, int64_t rows, int64_t C) {
    if (!rows || !C) return;
    DISPATCH(t, T, LAUNCH_ROWS(softmax_fwd, T, 24, vec_ok<T>(WIDTH<T>, C, y, x), rows, C, s, (T *)y, (const T *)x, rows, C));
}

extern "C" void K(softmax_bwd)(Stream *s, DType t, void *dx, const void *y, const void *dy, int64_t rows, int64_t C) {
    if (!rows || !C || !dx) return;
    DISPATCH(t, T, LAUNCH_ROWS(softmax_bwd, T, 16, vec_ok<T>(WIDTH<T>, C, dx, y, dy), rows, C, s, (T *)dx, (const T *)y, (const T *)dy, rows, C));
}
