/* norm.cu -- layer normalisation and unit vectors on CUDA. Contracts: ops.h.
 *
 * All bound by memory. Floors: layernorm_fwd 2 rows C sizeof(T) bytes, add_layernorm_fwd 4 (add_fwd and layernorm_fwd in turn would
 * be 5), layernorm_bwd 4 (x, dy, dx read and written), l2norm as layernorm.
 *
 * Forward, and l2norm both ways: a warp per row with the row in registers, a block per row when it is longer (row.cuh).
 *
 * layernorm_bwd makes all three gradients in one pass over x and dy: a second pass for dgamma and dbeta would read half of the
 * bytes again. So a thread owns a vector of COLUMNS, not of rows: a team of threads takes a row, the teams of a block walk down its
 * rows, every thread adds its columns' dgamma and dbeta in registers, and the two sums of a row cross its team through shared memory
 * with one barrier (the array alternates). Blocks leave partial sums that layernorm_bwd_sums adds in their order: no atomics, the same
 * bits in every run.
 *
 * Partial sums are 16 C bytes of a block, written and read, its rows 4 C sizeof(T) each: with 64 / sizeof(T) rows a block they are a
 * sixteenth of the rest. 528 blocks of 256 threads are 4 for each SM of an H100: some 750 threads with 3 accesses of 16 bytes under way
 * each, twice what covers the latency of its memory. Where there are rows for fewer blocks, these get as many more teams: few rows
 * then meet as many threads as ever, in larger blocks, and none of them takes more rows one after the other.
 */
#include "kernels/cuda/row.cuh"

/* ---- layer normalisation, forward ----------------------------------------------------------------- */

/* The row x, and its statistics to the place of row i. */
template <typename T, int V, int N, Team TEAM>
__device__ __forceinline__ void normalise(T *y, float *mean, float *rstd, const Row<T, V, N, TEAM> &x, const float *gamma, const float *beta,
                                          float eps, int64_t i, int64_t C) {
    float sum = 0, squares = 0;
    each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
        const Vec<T, V> v = x.get(k, c);
#pragma unroll
        for (int j = 0; j < V; j++) sum += to_f32(v.v[j]);
    });
    const float m = C ? team_sum<TEAM>(sum) / (float)C : 0.0f;
    /* Second pass: E[x^2] - E[x]^2 loses every digit when |mean| >> std. */
    each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
        const Vec<T, V> v = x.get(k, c);
#pragma unroll
        for (int j = 0; j < V; j++) squares = fmaf(to_f32(v.v[j]) - m, to_f32(v.v[j]) - m, squares);
    });
    /* Not rsqrtf, which is an approximation: rstd goes into every gradient. */
    const float r = 1.0f / sqrtf((C ? team_sum<TEAM>(squares) / (float)C : 0.0f) + eps);
    if (team_lane<TEAM>() == 0) mean[i] = m, rstd[i] = r;
    each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
        Vec<T, V> v = x.get(k, c);
        float g[V], b[V];
        load_params(g, gamma + c);
        load_params(b, beta + c);
#pragma unroll
        for (int j = 0; j < V; j++) v.v[j] = from_f32<T>(fmaf((to_f32(v.v[j]) - m) * r, g[j], b[j]));
        store(y + c, v);
    });
}

template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS
layernorm_fwd(T *y, float *mean, float *rstd, const T *x, const float *gamma, const float *beta, float eps, int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>())
        normalise(y + i * C, mean, rstd, Row<T, V, N, TEAM>(x + i * C, C), gamma, beta, eps, i, C);
}

template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS
add_layernorm_fwd(T *sum, T *y, float *mean, float *rstd, const T *a, const T *b, const float *gamma, const float *beta, float eps,
                  int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>())
        normalise(y + i * C, mean, rstd, Row<T, V, N, TEAM>(sum + i * C, a + i * C, b + i * C, C), gamma, beta, eps, i, C);
}

/* ---- layer normalisation, backward ---------------------------------------------------------------- */

enum { BWD_BLOCKS = 528, BWD_THREADS = 256, MAX_THREADS = 1024 };

/* Blocks and the rows of each: a function of the sizes alone, so that the sums are. */
static int64_t rows_per_block(DType t, int64_t rows) {
    return max(ceil_div(rows, (int64_t)BWD_BLOCKS), (int64_t)(64 / dtype_size(t)));
}

/* Both numbers over the team that takes a row: blockDim.x threads, whole warps; the block's teams come here together. part: a pair
 * for each warp; the caller alternates between two of them, since a slow warp may still read the last call's. */
__device__ __forceinline__ float2 team_sums(float2 *part, float a, float b) {
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    float2 *mine = part + threadIdx.y * warps;
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane == 0) mine[threadIdx.x / 32] = {a, b};
    __syncthreads();
    float2 sum = mine[0];
    for (int w = 1; w < warps; w++) sum.x += mine[w].x, sum.y += mine[w].y;
    return sum;
}

/* The sums of the block's teams to the first: the upper half of them is added to the lower, again and again. */
template <int V> __device__ __forceinline__ void add_teams(float (&dgamma)[V], float (&dbeta)[V]) {
    DYNAMIC_SHARED(float, columns); /* (teams / 2, 2 V, blockDim.x) */
    const int step = blockDim.x, team = threadIdx.y;
    for (int teams = blockDim.y, lower; teams > 1; teams = lower) {
        lower = (teams + 1) / 2;
        float *pair = columns + (team % lower) * 2 * V * step + threadIdx.x;
        if (team >= lower && team < teams) {
#pragma unroll
            for (int j = 0; j < V; j++) pair[j * step] = dgamma[j], pair[(V + j) * step] = dbeta[j];
        }
        __syncthreads();
        if (team + lower < teams) {
#pragma unroll
            for (int j = 0; j < V; j++) dgamma[j] += pair[j * step], dbeta[j] += pair[(V + j) * step];
        }
        __syncthreads();
    }
}

/* With xhat = (x - mean) rstd and g = dy gamma: dx = rstd (g - mean(g) - xhat mean(g xhat)).
 * C <= blockDim.x V. part (gridDim.x, 2 C): the block's sums for dgamma, then dbeta; NULL: not wanted, as is dx. */
template <typename T, int V>
__global__ void __launch_bounds__(MAX_THREADS) /* 64 registers */
layernorm_bwd(T *dx, float *part, const T *x, const T *dy, const float *mean, const float *rstd, const float *gamma, int64_t rows,
              int64_t per_block, int C) {
    SHARED(float2, sums, 64);
    const int c = threadIdx.x * V;
    const bool own = c < C;
    const float inv_C = 1.0f / (float)C;
    const int64_t begin = blockIdx.x * per_block;
    const int count = (int)(min(begin + per_block, rows) - begin);
    float gamma_[V] = {}, dgamma[V] = {}, dbeta[V] = {};
    if (own) load_params(gamma_, gamma + c);
    for (int first = 0, turn = 0; first < count; first += blockDim.y, turn ^= 32) {
        const int64_t i = begin + first + threadIdx.y, at = i * C + c;
        const bool here = own && first + (int)threadIdx.y < count;
        Vec<T, V> xv = {}, dyv = {};
        float m = 0, r = 0, sum_g = 0, sum_gx = 0;
        if (here) {
            xv = load<V>(x + at);
            dyv = load<V>(dy + at);
            m = mean[i];
            r = rstd[i];
#pragma unroll
            for (int j = 0; j < V; j++) {
                /* g rounded here as below: fused into the sum and then into the difference it would leave a rest, which rstd
                 * blows up where the row is flat. */
                const float d = to_f32(dyv.v[j]), xhat = (to_f32(xv.v[j]) - m) * r, g = __fmul_rn(d, gamma_[j]);
                dgamma[j] = fmaf(d, xhat, dgamma[j]);
                dbeta[j] += d;
                sum_g += g;
                sum_gx = fmaf(g, xhat, sum_gx);
            }
        }
        if (!dx) continue; /* the same for all threads */
        const float2 sum = team_sums(sums + turn, sum_g, sum_gx);
        if (here) {
            Vec<T, V> dxv = load<V>(dx + at);
            const float mean_g = sum.x * inv_C, mean_gx = sum.y * inv_C;
#pragma unroll
            for (int j = 0; j < V; j++) {
                const float g = __fmul_rn(to_f32(dyv.v[j]), gamma_[j]), xhat = (to_f32(xv.v[j]) - m) * r;
                dxv.v[j] = from_f32<T>(fmaf(r, g - fmaf(xhat, mean_gx, mean_g), to_f32(dxv.v[j])));
            }
            store(dx + at, dxv);
        }
    }
    if (!part) return;
    if (blockDim.y > 1) add_teams(dgamma, dbeta);
    if (threadIdx.y > 0 || !own) return;
    float *out = part + blockIdx.x * (int64_t)(2 * C) + c;
    store_params(out, dgamma);
    store_params(out + C, dbeta);
}

/* The same for rows of more values than a block can own: each thread owns every blockDim.x-th column, and its sums lie in
 * `part` itself (its own places, so in order). Reads x and dy twice. */
template <typename T>
__global__ void __launch_bounds__(BWD_THREADS, 4)
layernorm_bwd_long(T *dx, float *part, const T *x_, const T *dy_, const float *mean, const float *rstd, const float *gamma,
                   int64_t rows, int64_t per_block, int64_t C) {
    const int64_t begin = blockIdx.x * per_block, end = min(begin + per_block, rows);
    float *out = part ? part + blockIdx.x * (2 * C) : NULL;
    for (int64_t i = begin; i < end; i++) {
        const T *x = x_ + i * C, *dy = dy_ + i * C;
        const float m = mean[i], r = rstd[i];
        float sum_g = 0, sum_gx = 0;
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
            const float d = to_f32(dy[c]), xhat = (to_f32(x[c]) - m) * r, g = __fmul_rn(d, gamma[c]);
            sum_g += g;
            sum_gx = fmaf(g, xhat, sum_gx);
            if (!out) continue;
            out[c] = fmaf(d, xhat, i == begin ? 0.0f : out[c]);
            out[C + c] = d + (i == begin ? 0.0f : out[C + c]);
        }
        if (!dx) continue;
        sum_g = block_sum(sum_g) / (float)C;
        sum_gx = block_sum(sum_gx) / (float)C;
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
            const float g = __fmul_rn(to_f32(dy[c]), gamma[c]), xhat = (to_f32(x[c]) - m) * r;
            dx[i * C + c] = from_f32<T>(fmaf(r, g - fmaf(xhat, sum_gx, sum_g), to_f32(dx[i * C + c])));
        }
    }
}

/* dgamma[c] += sum over blocks of part[block][c], dbeta from column C on. 32 columns per block of (32, 32) threads: each row of
 * threads adds an equal stretch of the partial sums, then the first adds the 32 results, all in order. */
__global__ void __launch_bounds__(1024) layernorm_bwd_sums(float *dgamma, float *dbeta, const float *part, int blocks, int64_t C) {
    SHARED(float, sum, 32 * 32);
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    const int each = (blocks + 31) / 32, begin = threadIdx.y * each, end = min(begin + each, blocks);
    float a = 0;
    if (c < 2 * C) {
#pragma unroll 8
        for (int b = begin; b < end; b++) a += part[b * 2 * C + c];
    }
    sum[threadIdx.y * 32 + threadIdx.x] = a;
    __syncthreads();
    if (threadIdx.y > 0 || c >= 2 * C) return;
    for (int k = 1; k < 32; k++) a += sum[k * 32 + threadIdx.x];
    if (c < C && dgamma) dgamma[c] += a;
    if (c >= C && dbeta) dbeta[c - C] += a;
}

template <typename T, int V>
static void bwd_launch(Stream *s, T *dx, float *part, const T *x, const T *dy, const float *mean, const float *rstd,
                       const float *gamma, int64_t rows, int64_t per_block, int64_t C) {
    const unsigned blocks = (unsigned)ceil_div(rows, per_block);
    if (C > BWD_THREADS * V) {
        LAUNCH(layernorm_bwd_long<T>, blocks, BWD_THREADS, s, dx, part, x, dy, mean, rstd, gamma, rows, per_block, C);
        return;
    }
    const unsigned threads = (unsigned)(ceil_div(C, (int64_t)(32 * V)) * 32);
    const unsigned most = min(BWD_BLOCKS * BWD_THREADS / blocks, (unsigned)MAX_THREADS); /* of a block */
    const unsigned teams = min(max(most / threads, 1u), (unsigned)min(per_block, rows));
    LAUNCH_SMEM((layernorm_bwd<T, V>), blocks, dim3(threads, teams), (teams / 2) * 2 * V * threads * sizeof(float), s, dx, part, x, dy,
                mean, rstd, gamma, rows, per_block, (int)C);
}

/* ---- unit vectors --------------------------------------------------------------------------------- */

template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS l2norm_fwd(T *y_, float *inv, const T *x_, float eps, int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>()) {
        const Row<T, V, N, TEAM> x(x_ + i * C, C);
        T *y = y_ + i * C;
        float squares = 0;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> v = x.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) squares = fmaf(to_f32(v.v[j]), to_f32(v.v[j]), squares);
        });
        const float r = 1.0f / (sqrtf(team_sum<TEAM>(squares)) + eps);
        if (team_lane<TEAM>() == 0) inv[i] = r;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            Vec<T, V> v = x.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) v.v[j] = from_f32<T>(to_f32(v.v[j]) * r);
            store(y + c, v);
        });
    }
}

/* y = x k, k = 1 / (|x| + eps), dk/dx = -k^2 x / |x|: dx = k (dy - x k (x . dy) / |x|). */
template <typename T, int V, int N, Team TEAM>
__global__ void ROW_BOUNDS
l2norm_bwd(T *dx_, const T *x_, const T *dy_, const float *inv, float eps, int64_t rows, int64_t C) {
    for (int64_t i = team_row<TEAM>(); i < rows; i += team_step<TEAM>()) {
        const Row<T, V, N, TEAM> x(x_ + i * C, C), dy(dy_ + i * C, C);
        T *dx = dx_ + i * C;
        float dot = 0;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> a = x.get(k, c), b = dy.get(k, c);
#pragma unroll
            for (int j = 0; j < V; j++) dot = fmaf(to_f32(a.v[j]), to_f32(b.v[j]), dot);
        });
        dot = team_sum<TEAM>(dot);
        const float r = inv[i], norm = 1.0f / r - eps;
        /* A zero row: the norm has no slope there; PyTorch takes 0, and so do we. */
        const float a = norm > 0 ? r * dot / norm : 0.0f;
        each_vector<V, N, TEAM>(C, [&](int k, int64_t c) {
            const Vec<T, V> v = x.get(k, c), b = dy.get(k, c);
            Vec<T, V> d = load<V>(dx + c);
#pragma unroll
            for (int j = 0; j < V; j++)
                d.v[j] = from_f32<T>(fmaf(r, fmaf(-a, to_f32(v.v[j]), to_f32(b.v[j])), to_f32(d.v[j])));
            store(dx + c, d);
        });
    }
}

/* ---- launchers ------------------------------------------------------------------------------------ */

extern "C" void K(layernorm_fwd)(Stream *s, DType t, void *y, float *mean, float *rstd, const void *x, const float *gamma,
                                 const float *beta, float eps, int64_t rows, int64_t C) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH_ROWS(layernorm_fwd, T, 24, vec_ok<T>(WIDTH<T>, C, y, x, gamma, beta), rows, C, s, (T *)y, mean, rstd,
                               (const T *)x, gamma, beta, eps, rows, C));
}

extern "C" void K(add_layernorm_fwd)(Stream *s, DType t, void *sum, void *y, float *mean, float *rstd, const void *a, const void *b,
                                     const float *gamma, const float *beta, float eps, int64_t rows, int64_t C) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH_ROWS(add_layernorm_fwd, T, 8, vec_ok<T>(WIDTH<T>, C, sum, y, a, b, gamma, beta), rows, C, s, (T *)sum, (T *)y, mean,
                               rstd, (const T *)a, (const T *)b, gamma, beta, eps, rows, C));
}

extern "C" void K(layernorm_bwd)(Stream *s, DType t, void *dx, float *dgamma, float *dbeta, const void *x, const void *dy,
                                 const float *mean, const float *rstd, const float *gamma, int64_t rows, int64_t C) {
    if (!rows || !C) return;
    const int64_t per_block = rows_per_block(t, rows), blocks = ceil_div(rows, per_block);
    float *part = dgamma || dbeta ? (float *)cuda_scratch(s, (size_t)(blocks * 2 * C) * sizeof(float)) : NULL;
    DISPATCH(t, T, {
        if (vec_ok<T>(WIDTH<T>, C, dx, x, dy, gamma))
            bwd_launch<T, WIDTH<T>>(s, (T *)dx, part, (const T *)x, (const T *)dy, mean, rstd, gamma, rows, per_block, C);
        else bwd_launch<T, 1>(s, (T *)dx, part, (const T *)x, (const T *)dy, mean, rstd, gamma, rows, per_block, C);
    });
    if (part) LAUNCH(layernorm_bwd_sums, ceil_div(2 * C, (int64_t)32), dim3(32, 32), s, dgamma, dbeta, part, (int)blocks, C);
}

extern "C" void K(l2norm_fwd)(Stream *s, DType t, void *y, float *inv, const void *x, float eps, int64_t rows, int64_t C) {
    if (!rows) return;
    DISPATCH(t, T, LAUNCH_ROWS(l2norm_fwd, T, 24, vec_ok<T>(WIDTH<T>, C, y, x), rows, C, s, (T *)y, inv, (const T *)x, eps, rows, C));
}

extern "C" void K(l2norm_bwd)(Stream *s, DType t, void *dx, const void *x, const void *dy, const float *inv, float eps,
                              int64_t rows, int64_t C) {
    if (!rows || !C || !dx) return;
    DISPATCH(t, T, LAUNCH_ROWS(l2norm_bwd, T, 16, vec_ok<T>(WIDTH<T>, C, dx, x, dy), rows, C, s, (T *)dx, (const T *)x, (const T *)dy, inv, eps,
                               rows, C));
}
