/* attention.cu -- softmax(scale q k^T + masks) v and its backward on CUDA. Contract: ops.h.
 *
 * Flash attention (Dao et al. 2022, Dao 2023): a block keeps a tile of queries and walks over the keys tile by tile with running
 * maxima and sums, so the (Tq, Tk) matrix never leaves the SM. The backward makes the scores again from lse. Two ways:
 *
 * Tensor cores: bf16, D = 32 or 64, rows at multiples of 16 bytes. Floor: 4 B H Tq Tk D flops forward, 10 backward (5 products of
 * 2 each), at the rate of mma.sync; the bytes, 4 rows of B T H D, are nothing beside it at T = 185 and more. What competes with the
 * mma: 1024 exponentials for 64 mma (16 queries by 64 keys, D = 64), at 16 a cycle; fragments of k and v from shared memory, so the
 * forward gives 32 queries to a warp and uses each fragment twice; and the issue of everything else, which is why addresses of
 * fragments are bytes with the swizzle in them, sums are rescaled only when a maximum grew, and masks are looked at only in the
 * parts that have any. Latency wants warps: scores of 32 keys at a time leave room for 12 warps an SM (168 registers). Tiles of 64
 * keys come by cp.async one tile ahead, in two stages, their 16-byte chunks swizzled so that neither the copies nor ldmatrix meet a
 * bank twice; scores pass from one product's accumulators into the next one's operand without leaving the registers.
 *   The backward has no atomics: one kernel over tiles of keys for dk and dv, one over tiles of queries for dq. That makes the
 * scores and dout v^T twice, 7 products instead of 5, and the sums come in the same order in every run.
 *
 * f32 arithmetic: everything else (f32, D up to 128, any stride). 256 threads have tiles of 64 x 64 scores in shared memory, 4 x 4 of
 * them a thread; operands are read as float4, 12 wavefronts for 16 cycles of multiply-adds, rows padded by 4 words against
 * bank conflicts. Floor: the same flops at the rate of the f32 pipes.
 *
 * A masked key may hold NaN: its k and v are zeros in the tiles, its score is -infinity. Positions beyond the end are treated alike.
 */
#include "kernels/cuda/cuda.cuh"

#define LOG2E 1.4426950408889634f

/* What all kernels here want to know. A block works on one tile of one head: blockIdx.x = (b H + h) tiles + tile, so that the blocks
 * that share k and v run side by side. */
struct Problem {
    const uint8_t *key_mask;
    int64_t ldq, ldkv, ldo;
    float scale;
    int H, Tq, Tk, D, tiles;
    bool causal, vec; /* vec: all rows start at multiples of 16 bytes */
};

/* Of a block. Where its head starts in q, k and v, out, lse is worked out where it is needed: kept, it would take registers from the
 * inner loops. */
struct Place {
    int b, h, tile;
    __device__ __forceinline__ int64_t q(const Problem &p) const { return b * (int64_t)p.Tq * p.ldq + h * p.D; }
    __device__ __forceinline__ int64_t k(const Problem &p) const { return b * (int64_t)p.Tk * p.ldkv + h * p.D; }
    __device__ __forceinline__ int64_t o(const Problem &p) const { return b * (int64_t)p.Tq * p.ldo + h * p.D; }
    __device__ __forceinline__ int64_t lse(const Problem &p) const { return (b * p.H + h) * (int64_t)p.Tq; }
    __device__ __forceinline__ const uint8_t *key_mask(const Problem &p) const {
        return p.key_mask ? p.key_mask + b * (int64_t)p.Tk : NULL;
    }
};

__device__ __forceinline__ Place place_of(const Problem &p) {
    const int bh = (int)(blockIdx.x / p.tiles);
    return {bh / p.H, bh % p.H, (int)(blockIdx.x % p.tiles)};
}

/* Keys [0, keys_end) are all that queries before `row` may see; queries from queries_begin on may see key `key`. */
__device__ __forceinline__ int keys_end(const Problem &p, int row) { return p.causal ? max(min(row + p.Tk - p.Tq, p.Tk), 0) : p.Tk; }
__device__ __forceinline__ int queries_begin(const Problem &p, int key) { return p.causal ? max(key - (p.Tk - p.Tq), 0) : 0; }
__device__ __forceinline__ bool visible(const Problem &p, int i, int j) { return !p.causal || j <= i + (p.Tk - p.Tq); }

/* bias[j] = 0 or -infinity: may key `first` + j be looked at? By 64 threads. */
__device__ __forceinline__ void key_bias(float *bias, const uint8_t *key_mask, int first, int Tk) {
    const int j = threadIdx.x;
    for (int i = j; i < 64; i += blockDim.x)
        bias[i] = first + i < Tk && (!key_mask || key_mask[first + i]) ? 0.0f : -INFINITY;
}

/* lse and delta = sum(dout out) of queries `first`..: what makes p = e^(s - lse) zero where there is no query, or one that saw no
 * key (lse = -infinity), is +infinity. */
__device__ __forceinline__ float lse_or_infinity(const float *lse, int i, int Tq) {
    const float l = i < Tq ? lse[i] : INFINITY;
    return l == -INFINITY ? INFINITY : l;
}

/* ---- delta[b][h][i] = sum(dout out): both backwards begin with it ---------------------------------- */

/* 8 lanes per row. */
template <typename T, int V>
__global__ void __launch_bounds__(256) attention_delta(float *delta, const T *out, const T *dout, int64_t ldo, int64_t rows, int H, int Tq, int D) {
    const int lane = threadIdx.x % 8;
    for (int64_t first = (int64_t)blockIdx.x * 32; first < rows; first += (int64_t)gridDim.x * 32) {
        const int64_t r = first + threadIdx.x / 8, token = r / H; /* rows in the order of memory: b, i, h */
        const int h = (int)(r % H);
        float sum = 0;
        if (r < rows)
            for (int d = lane * V; d < D; d += 8 * V) {
                const Vec<T, V> a = load<V>(out + token * ldo + h * D + d), b = load<V>(dout + token * ldo + h * D + d);
#pragma unroll
                for (int j = 0; j < V; j++) sum = fmaf(to_f32(a.v[j]), to_f32(b.v[j]), sum);
            }
        for (int m = 4; m; m >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, m);
        if (r < rows && lane == 0) delta[(token / Tq * H + h) * Tq + token % Tq] = sum;
    }
}

/* ---- f32 arithmetic ------------------------------------------------------------------------------- */

/* Tiles are (64, DP + 4) f32, DP = D rounded up to 32, 64 or 128; scores (64, 68). Thread (tx, ty) of 16 x 16 has scores of rows
 * 4 ty + i and columns tx + 16 j, and of results rows 4 ty + i and DP / 16 columns. */
enum { TILE = 64, LD_S = TILE + 4 };
template <int DP> constexpr int LD = DP + 4;
#define F32_BOUNDS __launch_bounds__(256, DP == 128 ? 1 : 2) /* as many as shared memory lets in */

/* Rows `first`.. of x, times `by`: zeros beyond `rows`, beyond D, and for keys that are hidden. */
template <typename T, int DP>
__device__ __forceinline__ void tile_load(float *tile, const T *x, int64_t ld, int first, int rows, const Problem &p, const uint8_t *key_mask,
                                          float by) {
    constexpr int V = WIDTH<T>;
    if (p.vec) {
#pragma unroll 1
        for (int i = threadIdx.x; i < TILE * (DP / V); i += 256) {
            const int r = i / (DP / V), d = i % (DP / V) * V;
            const bool here = first + r < rows && d < p.D && (!key_mask || key_mask[first + r]);
            Vec<T, V> v = {};
            if (here) v = load<V>(x + (first + r) * ld + d);
#pragma unroll
            for (int j = 0; j < V; j += 4) {
                Vec<float, 4> f;
#pragma unroll
                for (int k = 0; k < 4; k++) f.v[k] = here ? to_f32(v.v[j + k]) * by : 0.0f;
                store(tile + r * LD<DP> + d + j, f);
            }
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < TILE * DP; i += 256) {
            const int r = i / DP, d = i % DP;
            const bool here = first + r < rows && d < p.D && (!key_mask || key_mask[first + r]);
            tile[r * LD<DP> + d] = here ? to_f32(x[(first + r) * ld + d]) * by : 0.0f;
        }
    }
}

/* s[i][j] = row 4 ty + i of a times row tx + 16 j of b. */
template <int DP> __device__ __forceinline__ void tile_scores(float (&s)[4][4], const float *a, const float *b) {
    a += threadIdx.x / 16 * 4 * LD<DP>;
    b += threadIdx.x % 16 * LD<DP>;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = 0;
#pragma unroll 1 /* 64 multiply-adds; more would spill */
    for (int d = 0; d < DP; d += 4) {
        Vec<float, 4> x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = load<4>(a + i * LD<DP> + d), y[i] = load<4>(b + i * 16 * LD<DP> + d);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) s[i][j] = fmaf(x[i].v[k], y[j].v[k], s[i][j]);
    }
}

/* Scores to shared memory as their transpose: t[column][row], a float4 per column. */
__device__ __forceinline__ void tile_store(float *t, const float (&s)[4][4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const Vec<float, 4> v = {s[0][j], s[1][j], s[2][j], s[3][j]};
        store(t + (threadIdx.x % 16 + 16 * j) * LD_S + threadIdx.x / 16 * 4, v);
    }
}

/* A thread's columns of a result: groups of W neighbours, 16 W apart. */
template <int DP> constexpr int GROUP = DP < 64 ? DP / 16 : 4;
template <int DP> __device__ __forceinline__ int column(int c) { return c / GROUP<DP> * 16 * GROUP<DP> + (int)threadIdx.x % 16 * GROUP<DP> + c % GROUP<DP>; }

/* o[i][c] += sum over the tile's 64 rows r of t[r][4 ty + i] b[r][column c]. */
template <int DP> __device__ __forceinline__ void tile_product(float (&o)[4][DP / 16], const float *t, const float *b) {
    constexpr int W = GROUP<DP>;
    t += threadIdx.x / 16 * 4;
#pragma unroll 2
    for (int r = 0; r < TILE; r++) {
        const Vec<float, 4> x = load<4>(t + r * LD_S);
#pragma unroll
        for (int g = 0; g < DP / 16; g += W) {
            const Vec<float, W> y = load<W>(b + r * LD<DP> + column<DP>(g));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < W; j++) o[i][g + j] = fmaf(x.v[i], y.v[j], o[i][g + j]);
        }
    }
}

/* x[4 ty + i][column c] += by o[i][c], for rows `first`.. before `rows`. */
template <typename T, int DP>
__device__ __forceinline__ void tile_add(T *x, int64_t ld, int first, int rows, int D, const uint8_t *key_mask, const float (&o)[4][DP / 16],
                                         float by) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = first + (int)threadIdx.x / 16 * 4 + i;
        if (r >= rows || (key_mask && !key_mask[r])) continue;
#pragma unroll
        for (int c = 0; c < DP / 16; c++) {
            const int d = column<DP>(c);
            if (d < D) x[r * ld + d] = from_f32<T>(fmaf(by, o[i][c], to_f32(x[r * ld + d])));
        }
    }
}

/* Over the 16 threads that share rows. */
__device__ __forceinline__ float row_max(float v) {
    for (int m = 8; m; m >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, m));
    return v;
}
__device__ __forceinline__ float row_sum(float v) {
    for (int m = 8; m; m >>= 1) v += __shfl_xor_sync(ALL_LANES, v, m);
    return v;
}

template <typename T, int DP>
__global__ void F32_BOUNDS attention_fwd_f32(T *out, float *lse, const T *q, const T *k, const T *v, const Problem p) {
    DYNAMIC_SHARED(float, shared);
    float *Q = shared, *Kt = Q + TILE * LD<DP>, *Vt = Kt + TILE * LD<DP>, *S = Vt + TILE * LD<DP>, *bias = S + TILE * LD_S;
    const Place at = place_of(p);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, i0 = at.tile * TILE, end = keys_end(p, i0 + TILE);
    float o[4][DP / 16] = {}, m[4], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) m[i] = -INFINITY;
    tile_load<T, DP>(Q, q + at.q(p), p.ldq, i0, p.Tq, p, NULL, p.scale);
    for (int j0 = 0; j0 < end; j0 += TILE) {
        __syncthreads();
        tile_load<T, DP>(Kt, k + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
        tile_load<T, DP>(Vt, v + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
        key_bias(bias, at.key_mask(p), j0, p.Tk);
        __syncthreads();
        float s[4][4];
        tile_scores<DP>(s, Q, Kt);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float most = m[i], part = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = visible(p, i0 + ty * 4 + i, j0 + tx + 16 * j) ? s[i][j] + bias[tx + 16 * j] : -INFINITY;
                most = fmaxf(most, s[i][j]);
            }
            most = row_max(most);
            const float shift = most == -INFINITY ? 0.0f : most, shrink = expf(m[i] - shift);
#pragma unroll
            for (int j = 0; j < 4; j++) part += s[i][j] = expf(s[i][j] - shift);
            sum[i] = fmaf(sum[i], shrink, row_sum(part));
            m[i] = most;
#pragma unroll
            for (int c = 0; c < DP / 16; c++) o[i][c] *= shrink;
        }
        tile_store(S, s);
        __syncthreads();
        tile_product<DP>(o, S, Vt);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = i0 + ty * 4 + i;
        if (r >= p.Tq) continue;
        /* No visible key: sum is 0. A NaN is not. */
        const float by = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
        if (tx == 0) lse[at.lse(p) + r] = sum[i] == 0 ? -INFINITY : m[i] + logf(sum[i]);
#pragma unroll
        for (int c = 0; c < DP / 16; c++) {
            const int d = column<DP>(c);
            if (d < p.D) out[at.o(p) + r * p.ldo + d] = from_f32<T>(o[i][c] * by);
        }
    }
}

/* With P = softmax, dP = dout v^T: dS = P (dP - delta); dv = P^T dout, dk = scale dS^T q: tiles of keys, over the queries. */
template <typename T, int DP>
__global__ void F32_BOUNDS
attention_bwd_kv_f32(T *dk, T *dv, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, const Problem p) {
    DYNAMIC_SHARED(float, shared);
    float *Q = shared, *Kt = Q + TILE * LD<DP>, *Vt = Kt + TILE * LD<DP>, *O = Vt + TILE * LD<DP>, *S = O + TILE * LD<DP>, *bias = S + TILE * LD_S,
          *row_lse = bias + TILE, *row_delta = row_lse + TILE;
    const Place at = place_of(p);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, j0 = at.tile * TILE;
    float gk[4][DP / 16] = {}, gv[4][DP / 16] = {};
    tile_load<T, DP>(Kt, k + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
    tile_load<T, DP>(Vt, v + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
    key_bias(bias, at.key_mask(p), j0, p.Tk);
    for (int i0 = queries_begin(p, j0) / TILE * TILE; i0 < p.Tq; i0 += TILE) {
        __syncthreads();
        tile_load<T, DP>(Q, q + at.q(p), p.ldq, i0, p.Tq, p, NULL, p.scale);
        tile_load<T, DP>(O, dout + at.o(p), p.ldo, i0, p.Tq, p, NULL, 1);
        if (threadIdx.x < TILE) {
            const int i = i0 + (int)threadIdx.x;
            row_lse[threadIdx.x] = lse_or_infinity(lse + at.lse(p), i, p.Tq);
            row_delta[threadIdx.x] = i < p.Tq ? delta[at.lse(p) + i] : 0.0f;
        }
        __syncthreads();
        float s[4][4], ds[4][4]; /* rows are keys, columns queries */
        tile_scores<DP>(s, Kt, Q);
        tile_scores<DP>(ds, Vt, O);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int c = tx + 16 * j, r = ty * 4 + i;
                s[i][j] = visible(p, i0 + c, j0 + r) ? expf(s[i][j] + bias[r] - row_lse[c]) : 0.0f;
                ds[i][j] = s[i][j] * (ds[i][j] - row_delta[c]);
            }
        tile_store(S, s);
        __syncthreads();
        tile_product<DP>(gv, S, O);
        __syncthreads();
        tile_store(S, ds);
        __syncthreads();
        tile_product<DP>(gk, S, Q); /* the scale is in Q */
    }
    if (dv) tile_add<T, DP>(dv + at.k(p), p.ldkv, j0, p.Tk, p.D, at.key_mask(p), gv, 1);
    if (dk) tile_add<T, DP>(dk + at.k(p), p.ldkv, j0, p.Tk, p.D, at.key_mask(p), gk, 1);
}

/* dq = scale dS k: tiles of queries, over the keys. */
template <typename T, int DP>
__global__ void F32_BOUNDS
attention_bwd_q_f32(T *dq, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, const Problem p) {
    DYNAMIC_SHARED(float, shared);
    float *Q = shared, *Kt = Q + TILE * LD<DP>, *Vt = Kt + TILE * LD<DP>, *O = Vt + TILE * LD<DP>, *S = O + TILE * LD<DP>, *bias = S + TILE * LD_S;
    const Place at = place_of(p);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, i0 = at.tile * TILE, end = keys_end(p, i0 + TILE);
    float g[4][DP / 16] = {}, row_lse[4], row_delta[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = i0 + ty * 4 + i;
        row_lse[i] = lse_or_infinity(lse + at.lse(p), r, p.Tq);
        row_delta[i] = r < p.Tq ? delta[at.lse(p) + r] : 0.0f;
    }
    tile_load<T, DP>(Q, q + at.q(p), p.ldq, i0, p.Tq, p, NULL, p.scale);
    tile_load<T, DP>(O, dout + at.o(p), p.ldo, i0, p.Tq, p, NULL, 1);
    for (int j0 = 0; j0 < end; j0 += TILE) {
        __syncthreads();
        tile_load<T, DP>(Kt, k + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
        tile_load<T, DP>(Vt, v + at.k(p), p.ldkv, j0, p.Tk, p, at.key_mask(p), 1);
        key_bias(bias, at.key_mask(p), j0, p.Tk);
        __syncthreads();
        float s[4][4], ds[4][4];
        tile_scores<DP>(s, Q, Kt);
        tile_scores<DP>(ds, O, Vt);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int c = tx + 16 * j;
                const float e = visible(p, i0 + ty * 4 + i, j0 + c) ? expf(s[i][j] + bias[c] - row_lse[i]) : 0.0f;
                ds[i][j] = e * (ds[i][j] - row_delta[i]);
            }
        tile_store(S, ds);
        __syncthreads();
        tile_product<DP>(g, S, Kt);
    }
    tile_add<T, DP>(dq + at.q(p), p.ldq, i0, p.Tq, p.D, NULL, g, p.scale);
}

/* ---- tensor cores --------------------------------------------------------------------------------- */

enum { STEP = 64, MOST_WARPS = 4 }; /* keys (or queries) of a step, warps of a block */
enum { PART = 32 };                 /* of a step, those whose scores are in registers: twice as many would leave room for half the warps */
/* 168 registers: three blocks for each SM, three warps for each of its schedulers to choose from. With D = 64 dk and dv, k and v take
 * too many for that. */
#define MMA_BOUNDS __launch_bounds__(32 * MOST_WARPS, 3)
#define MMA_BOUNDS_KV __launch_bounds__(32 * MOST_WARPS, D == 64 ? 2 : 3)

/* A tile is rows of D bf16 in chunks of 16 bytes. Where chunk c of a row lies is chosen so that the same chunk of 8 rows in turn, and the
 * chunks of one row, are in different banks: ldmatrix reads the ones, cp.async writes the others. */
template <int D> __device__ __forceinline__ int chunk_at(int row, int c) {
    return row * D + (D == 64 ? c ^ (row & 7) : c ^ (row >> 1 & 3)) * 8;
}

/* Rows [first, first + n) of x into a tile; zeros from row `end` on and for hidden keys. A thread keeps its column of chunks. */
template <int D>
__device__ __forceinline__ void tile_copy(bf16 *tile, const bf16 *x, int64_t ld, int first, int n, int end, const uint8_t *key_mask) {
    const int c = threadIdx.x % (D / 8), down = blockDim.x / (D / 8);
    int r = threadIdx.x / (D / 8);
    const bf16 *from = x + (first + r) * ld + c * 8;
#pragma unroll 1 /* registers are the inner loops' */
    for (; r < n; r += down, from += down * ld) {
        const bool here = first + r < end && (!key_mask || key_mask[first + r]);
        cp_async16(tile + chunk_at<D>(r, c), here ? from : x, here);
    }
}

/* Fragments (cuda.cuh, mma_m16n8k16), each by one ldmatrix of four 8x8 matrices. `left`: 16 rows from `row`, columns 16 k.. as the left
 * side. `right`: the tile's rows from `row` as 16 columns of the right side, its columns 16 k.. as the sum's index: two b's.
 * `right_trans`: its rows from `row` as the sum's index, columns 16 n.. as columns: two b's.
 * The two of the inner loops take the place of the lane's first row (tile_lane, tile_lane_trans): a step of 16 columns, two chunks,
 * is 32 bytes, and turns the bits that the swizzle turns, a step of 16 rows leaves them alone. Tiles begin at multiples of 128 bytes. */
template <int D> __device__ __forceinline__ void left(uint32_t (&a)[4], const bf16 *tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + chunk_at<D>(row + lane % 16, 2 * k + lane / 16));
}
template <int D> __device__ __forceinline__ uint32_t tile_lane(const bf16 *tile) {
    const int lane = threadIdx.x % 32;
    return shared_at(tile + chunk_at<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2));
}
template <int D> __device__ __forceinline__ uint32_t tile_lane_trans(const bf16 *tile) {
    const int lane = threadIdx.x % 32;
    return shared_at(tile + chunk_at<D>(lane % 16, lane / 16));
}
enum { BF16_BYTES = 2 };
template <int D> constexpr int ROW_BYTES = D * BF16_BYTES;
template <int D> __device__ __forceinline__ void right(uint32_t (&b)[4], uint32_t lane_at, int row, int k) {
    ldmatrix_x4(b, (lane_at ^ (uint32_t)(32 * k)) + (uint32_t)(row * ROW_BYTES<D>));
}
template <int D> __device__ __forceinline__ void right_trans(uint32_t (&b)[4], uint32_t lane_at, int row, int n) {
    ldmatrix_x4_trans(b, (lane_at ^ (uint32_t)(32 * n)) + (uint32_t)(row * ROW_BYTES<D>));
}

/* Two neighbouring accumulators (16 x 16 values) as the left side of the next product. */
__device__ __forceinline__ void left_of(uint32_t (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
    a[0] = pack_bf16(c0[0], c0[1]);
    a[1] = pack_bf16(c0[2], c0[3]);
    a[2] = pack_bf16(c1[0], c1[1]);
    a[3] = pack_bf16(c1[2], c1[3]);
}

__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

/* -infinity to the scores of what may not be seen: queries from i0 (the thread's first) and keys from j0 on, whose bias is at `hidden`
 * (the thread's first). Most parts are seen whole. */
template <int M>
__device__ __forceinline__ void hide(float (&s)[M][PART / 8][4], const Problem &p, const uint8_t *key_mask, const float *hidden, int i0, int j0) {
    const int t = threadIdx.x % 4;
    if (key_mask || j0 + PART > p.Tk) {
#pragma unroll
        for (int n = 0; n < PART / 8; n++) {
            const Vec<float, 2> h = load<2>(hidden + 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][n][e] += h.v[e % 2];
        }
    }
    if (p.causal && j0 + PART - 1 > i0 + p.Tk - p.Tq) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < PART / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (!visible(p, i0 + 16 * m + e / 2 * 8, j0 + 8 * n + 2 * t + e % 2)) s[m][n][e] = -INFINITY;
    }
}

/* A warp's 16 rows of accumulators o by row factors (rows g and g + 8), to rows `first`.. of x, through `tile`, 16 rows of shared memory that are the
 * warp's own: whole chunks move. ADD: to what x holds. Rows from `end` on are left alone, hidden keys' too. */
template <int D, bool ADD>
__device__ __forceinline__ void rows_out(bf16 *x, int64_t ld, int first, int end, const uint8_t *key_mask, bf16 *tile, const float (&o)[D / 8][4],
                                         float by0, float by1) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
    if (ADD) {
        for (int i = lane; i < 16 * (D / 8); i += 32) {
            const int r = i / (D / 8), c = i % (D / 8);
            if (first + r < end) copy16(tile + chunk_at<D>(r, c), x + (first + r) * ld + c * 8);
        }
        __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bf16 *at = tile + chunk_at<D>(g + 8 * half, n) + 2 * t;
            const float by = half ? by1 : by0;
            float a = o[n][2 * half] * by, b = o[n][2 * half + 1] * by;
            if (ADD) {
                const Vec<bf16, 2> was = load<2>(at);
                a += to_f32(was.v[0]);
                b += to_f32(was.v[1]);
            }
            *(uint32_t *)at = pack_bf16(a, b);
        }
    __syncwarp();
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        const int r = i / (D / 8), c = i % (D / 8);
        if (first + r < end && (!key_mask || key_mask[first + r])) copy16(x + (first + r) * ld + c * 8, tile + chunk_at<D>(r, c));
    }
}

/* M: 16-row pieces of a warp's queries. */
template <int D, int M>
__global__ void MMA_BOUNDS
attention_fwd_mma(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const Problem p) {
    DYNAMIC_SHARED(bf16, shared);
    const int block_rows = blockDim.x / 32 * 16 * M, warp_rows = threadIdx.x / 32 * 16 * M;
    bf16 *Q = shared, *Kt = Q + block_rows * D, *Vt = Kt + 2 * STEP * D;
    float *bias = (float *)(Vt + 2 * STEP * D); /* (2, STEP) */
    const Place at = place_of(p);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int i0 = at.tile * block_rows + warp_rows; /* the warp's first query */
    const int end = keys_end(p, min((at.tile + 1) * block_rows, p.Tq)), steps = (end + STEP - 1) / STEP;
    const float log2_scale = p.scale * LOG2E;
    const uint32_t k_at = tile_lane<D>(Kt), v_at = tile_lane_trans<D>(Vt);
    constexpr int KEPT = D == 64 ? 3 : D / 16; /* of q's fragments; the fourth would be 8 registers too many */
    uint32_t qa[M][KEPT][4];
    float o[M][D / 8][4] = {}, most[M][2], sum[M][2] = {}; /* of rows g and g + 8 */
#pragma unroll
    for (int m = 0; m < M; m++) most[m][0] = most[m][1] = -INFINITY;

    if (steps) tile_copy<D>(Q, q + at.q(p), p.ldq, at.tile * block_rows, block_rows, p.Tq, NULL);
    for (int step = -1; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles are there, and everybody is done with the last step's */
        if (step + 1 < steps) {
            const int next = (step + 1) % 2, j0 = (step + 1) * STEP;
            tile_copy<D>(Kt + next * STEP * D, k + at.k(p), p.ldkv, j0, STEP, p.Tk, at.key_mask(p));
            tile_copy<D>(Vt + next * STEP * D, v + at.k(p), p.ldkv, j0, STEP, p.Tk, at.key_mask(p));
            key_bias(bias + next * STEP, at.key_mask(p), j0, p.Tk);
            cp_async_commit();
        }
        if (step < 0 || i0 >= p.Tq) continue;
        if (step == 0) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int kk = 0; kk < KEPT; kk++) left<D>(qa[m][kk], Q, warp_rows + 16 * m, kk);
        }
        const int j0 = step * STEP;
        for (int part = 0; part < STEP && j0 + part < end; part += PART) {
            const uint32_t skip = (uint32_t)((step % 2 * STEP + part) * ROW_BYTES<D>), Ks = k_at + skip, Vs = v_at + skip;
            float s[M][PART / 8][4] = {};
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++) {
                uint32_t a[M][4];
#pragma unroll
                for (int m = 0; m < M; m++) {
                    if (kk >= KEPT) left<D>(a[m], Q, warp_rows + 16 * m, kk);
#pragma unroll
                    for (int i = 0; i < 4 && kk < KEPT; i++) a[m][i] = qa[m][kk][i];
                }
#pragma unroll
                for (int n = 0; n < PART / 16; n++) {
                    uint32_t b[4];
                    right<D>(b, Ks, 16 * n, kk);
#pragma unroll
                    for (int m = 0; m < M; m++) mma_m16n8k16(s[m][2 * n], a[m], b), mma_m16n8k16(s[m][2 * n + 1], a[m], b + 2);
                }
            }
            hide<M>(s, p, at.key_mask(p), bias + step % 2 * STEP + part + 2 * t, i0 + g, j0 + part);
            float now[M][2];
            bool grew = false;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float v = most[m][half];
#pragma unroll
                    for (int n = 0; n < PART / 8; n++) v = fmaxf(v, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                    now[m][half] = quad_max(v);
                    grew |= now[m][half] > most[m][half];
                }
            if (__any_sync(ALL_LANES, grew)) { /* seldom after the first keys; with the old maximum the factor would be 1 */
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const float to = now[m][half], shrink = to > most[m][half] ? exp2_fast((most[m][half] - to) * log2_scale) : 1.0f;
                        most[m][half] = to;
                        sum[m][half] *= shrink;
#pragma unroll
                        for (int n = 0; n < D / 8; n++) o[m][n][2 * half] *= shrink, o[m][n][2 * half + 1] *= shrink;
                    }
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float shift = most[m][half] == -INFINITY ? 0.0f : most[m][half] * log2_scale;
#pragma unroll
                    for (int n = 0; n < PART / 8; n++) {
                        sum[m][half] += s[m][n][2 * half] = exp2_fast(fmaf(s[m][n][2 * half], log2_scale, -shift));
                        sum[m][half] += s[m][n][2 * half + 1] = exp2_fast(fmaf(s[m][n][2 * half + 1], log2_scale, -shift));
                    }
                }
#pragma unroll
            for (int kk = 0; kk < PART / 16; kk++) {
                uint32_t a[M][4];
#pragma unroll
                for (int m = 0; m < M; m++) left_of(a[m], s[m][2 * kk], s[m][2 * kk + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    uint32_t b[4];
                    right_trans<D>(b, Vs, 16 * kk, n);
#pragma unroll
                    for (int m = 0; m < M; m++) mma_m16n8k16(o[m][2 * n], a[m], b), mma_m16n8k16(o[m][2 * n + 1], a[m], b + 2);
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
        float by[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float total = quad_sum(sum[m][half]);
            const int i = i0 + 16 * m + g + 8 * half;
            by[half] = total == 0 ? 0.0f : 1.0f / total; /* no visible key */
            if (t == 0 && i < p.Tq) lse[at.lse(p) + i] = total == 0 ? -INFINITY : fmaf(most[m][half], p.scale, logf(total));
        }
        rows_out<D, false>(out + at.o(p), p.ldo, i0 + 16 * m, p.Tq, NULL, Q + (warp_rows + 16 * m) * D, o[m], by[0], by[1]);
    }
}

/* dk and dv of a tile of keys, 16 for each warp, over the queries. The products are transposed, keys as rows: k and v stay in registers as left
 * sides, and P^T and dS^T come out of their accumulators as left sides of the next products. A hidden key's row is computed (from
 * zeros) and not written. */
template <int D>
__global__ void MMA_BOUNDS_KV
attention_bwd_kv_mma(bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta,
                     const Problem p) {
    DYNAMIC_SHARED(bf16, shared);
    const int block_rows = blockDim.x / 32 * 16, warp_rows = threadIdx.x / 32 * 16;
    bf16 *Kt = shared, *Vt = Kt + block_rows * D, *Q = Vt + block_rows * D, *O = Q + 2 * STEP * D;
    float *stats = (float *)(O + 2 * STEP * D); /* (2, {lse, delta}, STEP) */
    const Place at = place_of(p);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, j0 = at.tile * block_rows + warp_rows;
    const int first = queries_begin(p, at.tile * block_rows) / STEP, steps = (p.Tq + STEP - 1) / STEP;
    const float log2_scale = p.scale * LOG2E;
    const uint32_t q_at = tile_lane<D>(Q), q_trans_at = tile_lane_trans<D>(Q); /* O lies 2 STEP rows behind */
    uint32_t ka[D / 16][4], va[D / 16][4];
    float gk[D / 8][4] = {}, gv[D / 8][4] = {};

    tile_copy<D>(Kt, k + at.k(p), p.ldkv, at.tile * block_rows, block_rows, p.Tk, at.key_mask(p));
    tile_copy<D>(Vt, v + at.k(p), p.ldkv, at.tile * block_rows, block_rows, p.Tk, at.key_mask(p));
    cp_async_commit();
    for (int step = first - 1; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps) {
            const int next = (step + 1) % 2, i0 = (step + 1) * STEP;
            tile_copy<D>(Q + next * STEP * D, q + at.q(p), p.ldq, i0, STEP, p.Tq, NULL);
            tile_copy<D>(O + next * STEP * D, dout + at.o(p), p.ldo, i0, STEP, p.Tq, NULL);
            cp_async_commit();
            float *to = stats + next * 2 * STEP;
            for (int i = threadIdx.x; i < STEP; i += blockDim.x) {
                to[i] = lse_or_infinity(lse + at.lse(p), i0 + i, p.Tq) * LOG2E;
                to[STEP + i] = i0 + i < p.Tq ? delta[at.lse(p) + i0 + i] : 0.0f;
            }
        }
        if (j0 >= p.Tk) continue;
        if (step < first) {
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++) left<D>(ka[kk], Kt, warp_rows, kk), left<D>(va[kk], Vt, warp_rows, kk);
            continue;
        }
        const float *row = stats + step % 2 * 2 * STEP + 2 * t;
        for (int part = 0; part < STEP && step * STEP + part < p.Tq; part += PART) {
            const uint32_t skip = (uint32_t)((step % 2 * STEP + part) * ROW_BYTES<D>), Qs = q_at + skip, Qt = q_trans_at + skip;
            float s[PART / 8][4] = {}, ds[PART / 8][4] = {};
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
                for (int n = 0; n < PART / 16; n++) {
                    uint32_t b[4];
                    right<D>(b, Qs, 16 * n, kk);
                    mma_m16n8k16(s[2 * n], ka[kk], b), mma_m16n8k16(s[2 * n + 1], ka[kk], b + 2);
                    right<D>(b, Qs, 2 * STEP + 16 * n, kk);
                    mma_m16n8k16(ds[2 * n], va[kk], b), mma_m16n8k16(ds[2 * n + 1], va[kk], b + 2);
                }
            if (p.causal && j0 + 15 > step * STEP + part + p.Tk - p.Tq) {
#pragma unroll
                for (int n = 0; n < PART / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (!visible(p, step * STEP + part + 8 * n + 2 * t + e % 2, j0 + g + e / 2 * 8)) s[n][e] = -INFINITY;
            }
#pragma unroll
            for (int n = 0; n < PART / 8; n++) {
                const Vec<float, 2> l = load<2>(row + part + 8 * n), dl = load<2>(row + STEP + part + 8 * n);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[n][e] = exp2_fast(fmaf(s[n][e], log2_scale, -l.v[e % 2]));
                    ds[n][e] = s[n][e] * (ds[n][e] - dl.v[e % 2]);
                }
            }
#pragma unroll
            for (int kk = 0; kk < PART / 16; kk++) {
                uint32_t a[4], da[4];
                left_of(a, s[2 * kk], s[2 * kk + 1]);
                left_of(da, ds[2 * kk], ds[2 * kk + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    uint32_t b[4];
                    right_trans<D>(b, Qt, 2 * STEP + 16 * kk, n);
                    mma_m16n8k16(gv[2 * n], a, b), mma_m16n8k16(gv[2 * n + 1], a, b + 2);
                    right_trans<D>(b, Qt, 16 * kk, n);
                    mma_m16n8k16(gk[2 * n], da, b), mma_m16n8k16(gk[2 * n + 1], da, b + 2);
                }
            }
        }
    }
    if (dv) rows_out<D, true>(dv + at.k(p), p.ldkv, j0, p.Tk, at.key_mask(p), Vt + warp_rows * D, gv, 1, 1);
    if (dk) rows_out<D, true>(dk + at.k(p), p.ldkv, j0, p.Tk, at.key_mask(p), Kt + warp_rows * D, gk, p.scale, p.scale);
}

/* dq of a tile of queries, 16 M for each warp, over the keys. */
template <int D, int M>
__global__ void MMA_BOUNDS
attention_bwd_q_mma(bf16 *dq, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta,
                    const Problem p) {
    DYNAMIC_SHARED(bf16, shared);
    const int block_rows = blockDim.x / 32 * 16 * M, warp_rows = threadIdx.x / 32 * 16 * M;
    bf16 *Q = shared, *O = Q + block_rows * D, *Kt = O + block_rows * D, *Vt = Kt + 2 * STEP * D;
    float *bias = (float *)(Vt + 2 * STEP * D);
    const Place at = place_of(p);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, i0 = at.tile * block_rows + warp_rows;
    const int end = keys_end(p, min((at.tile + 1) * block_rows, p.Tq)), steps = (end + STEP - 1) / STEP;
    const float log2_scale = p.scale * LOG2E;
    const uint32_t k_at = tile_lane<D>(Kt), k_trans_at = tile_lane_trans<D>(Kt); /* Vt lies 2 STEP rows behind */
    uint32_t qa[M][D / 16][4], oa[M][D / 16][4];
    float gq[M][D / 8][4] = {}, row_lse[M][2], row_delta[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = i0 + 16 * m + g + 8 * half;
            row_lse[m][half] = lse_or_infinity(lse + at.lse(p), i, p.Tq) * LOG2E;
            row_delta[m][half] = i < p.Tq ? delta[at.lse(p) + i] : 0.0f;
        }

    tile_copy<D>(Q, q + at.q(p), p.ldq, at.tile * block_rows, block_rows, p.Tq, NULL);
    tile_copy<D>(O, dout + at.o(p), p.ldo, at.tile * block_rows, block_rows, p.Tq, NULL);
    cp_async_commit();
    for (int step = -1; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps) {
            const int next = (step + 1) % 2, j0 = (step + 1) * STEP;
            tile_copy<D>(Kt + next * STEP * D, k + at.k(p), p.ldkv, j0, STEP, p.Tk, at.key_mask(p));
            tile_copy<D>(Vt + next * STEP * D, v + at.k(p), p.ldkv, j0, STEP, p.Tk, at.key_mask(p));
            key_bias(bias + next * STEP, at.key_mask(p), j0, p.Tk);
            cp_async_commit();
        }
        if (i0 >= p.Tq) continue;
        if (step < 0) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int kk = 0; kk < D / 16; kk++)
                    left<D>(qa[m][kk], Q, warp_rows + 16 * m, kk), left<D>(oa[m][kk], O, warp_rows + 16 * m, kk);
            continue;
        }
        const float *hidden = bias + step % 2 * STEP + 2 * t;
        const int j0 = step * STEP;
        for (int part = 0; part < STEP && j0 + part < end; part += PART) {
            const uint32_t skip = (uint32_t)((step % 2 * STEP + part) * ROW_BYTES<D>), Ks = k_at + skip, Kst = k_trans_at + skip;
            float s[M][PART / 8][4] = {}, ds[M][PART / 8][4] = {};
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
                for (int n = 0; n < PART / 16; n++) {
                    uint32_t b[4];
                    right<D>(b, Ks, 16 * n, kk);
#pragma unroll
                    for (int m = 0; m < M; m++) mma_m16n8k16(s[m][2 * n], qa[m][kk], b), mma_m16n8k16(s[m][2 * n + 1], qa[m][kk], b + 2);
                    right<D>(b, Ks, 2 * STEP + 16 * n, kk);
#pragma unroll
                    for (int m = 0; m < M; m++) mma_m16n8k16(ds[m][2 * n], oa[m][kk], b), mma_m16n8k16(ds[m][2 * n + 1], oa[m][kk], b + 2);
                }
            hide<M>(s, p, at.key_mask(p), hidden + part, i0 + g, j0 + part);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < PART / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const float w = exp2_fast(fmaf(s[m][n][e], log2_scale, -row_lse[m][e / 2]));
                        ds[m][n][e] = w * (ds[m][n][e] - row_delta[m][e / 2]);
                    }
#pragma unroll
            for (int kk = 0; kk < PART / 16; kk++) {
                uint32_t a[M][4];
#pragma unroll
                for (int m = 0; m < M; m++) left_of(a[m], ds[m][2 * kk], ds[m][2 * kk + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    uint32_t b[4];
                    right_trans<D>(b, Kst, 16 * kk, n);
#pragma unroll
                    for (int m = 0; m < M; m++) mma_m16n8k16(gq[m][2 * n], a[m], b), mma_m16n8k16(gq[m][2 * n + 1], a[m], b + 2);
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
        rows_out<D, true>(dq + at.q(p), p.ldq, i0 + 16 * m, p.Tq, NULL, Q + (warp_rows + 16 * m) * D, gq[m], p.scale, p.scale);
}

/* ---- launchers ------------------------------------------------------------------------------------ */

/* Warps of `rows` rows over blocks of at most MOST_WARPS, evenly: 6 warps are 3 + 3. */
struct Split { int warps, tiles; };
static Split split(int T, int rows) {
    const int all = (T + rows - 1) / rows, tiles = (all + MOST_WARPS - 1) / MOST_WARPS;
    return {(all + tiles - 1) / tiles, tiles};
}

static bool mma_takes(DType t, float scale, int D, const Problem &p) {
    return t == BF16 && (D == 32 || D == 64) && scale > 0 && p.vec; /* the maximum of scaled scores is taken before scaling */
}

template <int D>
static void fwd_mma(Stream *s, bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, Problem p, int BH) {
    constexpr int M = 2;
    const Split sp = split(p.Tq, 16 * M);
    p.tiles = sp.tiles;
    const int bytes = (sp.warps * 16 * M + 4 * STEP) * D * 2 + 2 * STEP * 4;
    LAUNCH_SMEM((attention_fwd_mma<D, M>), BH * sp.tiles, sp.warps * 32, bytes, s, out, lse, q, k, v, p);
}

template <typename T, int DP>
static void fwd_f32(Stream *s, T *out, float *lse, const T *q, const T *k, const T *v, Problem p, int BH) {
    p.tiles = (p.Tq + TILE - 1) / TILE;
    const int bytes = (3 * TILE * LD<DP> + TILE * LD_S + TILE) * 4;
    LAUNCH_SMEM((attention_fwd_f32<T, DP>), BH * p.tiles, 256, bytes, s, out, lse, q, k, v, p);
}

template <int D>
static void bwd_mma(Stream *s, bf16 *dq, bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse,
                    const float *delta, Problem p, int BH) {
    if ((dk || dv) && p.Tk) {
        const Split sp = split(p.Tk, 16);
        p.tiles = sp.tiles;
        const int bytes = (2 * sp.warps * 16 + 4 * STEP) * D * 2 + 4 * STEP * 4;
        LAUNCH_SMEM((attention_bwd_kv_mma<D>), BH * sp.tiles, sp.warps * 32, bytes, s, dk, dv, q, k, v, dout, lse, delta, p);
    }
    if (dq) {
        constexpr int M = 1;
        const Split sp = split(p.Tq, 16 * M);
        p.tiles = sp.tiles;
        const int bytes = (2 * sp.warps * 16 * M + 4 * STEP) * D * 2 + 2 * STEP * 4;
        LAUNCH_SMEM((attention_bwd_q_mma<D, M>), BH * sp.tiles, sp.warps * 32, bytes, s, dq, q, k, v, dout, lse, delta, p);
    }
}

template <typename T, int DP>
static void bwd_f32(Stream *s, T *dq, T *dk, T *dv, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
                    Problem p, int BH) {
    const int bytes = (4 * TILE * LD<DP> + TILE * LD_S + 3 * TILE) * 4;
    if ((dk || dv) && p.Tk) {
        p.tiles = (p.Tk + TILE - 1) / TILE;
        LAUNCH_SMEM((attention_bwd_kv_f32<T, DP>), BH * p.tiles, 256, bytes, s, dk, dv, q, k, v, dout, lse, delta, p);
    }
    if (dq) {
        p.tiles = (p.Tq + TILE - 1) / TILE;
        LAUNCH_SMEM((attention_bwd_q_f32<T, DP>), BH * p.tiles, 256, bytes, s, dq, q, k, v, dout, lse, delta, p);
    }
}

extern "C" void K(attention_fwd)(Stream *s, DType t, void *out, int64_t ldo, float *lse, const void *q, int64_t ldq, const void *k, const void *v,
                                 int64_t ldkv, const uint8_t *key_mask, bool causal, float scale, int B, int H, int Tq, int Tk, int D) {
    const int BH = B * H;
    if (!BH || !Tq || !D) return;
    DISPATCH(t, T, {
        const bool vec = vec_ok<T>(WIDTH<T>, D, out, q, k, v) && vec_ok<T>(WIDTH<T>, ldo) && vec_ok<T>(WIDTH<T>, ldq) && vec_ok<T>(WIDTH<T>, ldkv);
        const Problem p = {key_mask, ldq, ldkv, ldo, scale, H, Tq, Tk, D, 0, causal, vec};
        if (mma_takes(t, scale, D, p)) {
            if (D == 32) fwd_mma<32>(s, (bf16 *)out, lse, (const bf16 *)q, (const bf16 *)k, (const bf16 *)v, p, BH);
            else fwd_mma<64>(s, (bf16 *)out, lse, (const bf16 *)q, (const bf16 *)k, (const bf16 *)v, p, BH);
        } else if (D <= 32) fwd_f32<T, 32>(s, (T *)out, lse, (const T *)q, (const T *)k, (const T *)v, p, BH);
        else if (D <= 64) fwd_f32<T, 64>(s, (T *)out, lse, (const T *)q, (const T *)k, (const T *)v, p, BH);
        else fwd_f32<T, 128>(s, (T *)out, lse, (const T *)q, (const T *)k, (const T *)v, p, BH);
    });
}

extern "C" void K(attention_bwd)(Stream *s, DType t, void *dq, void *dk, void *dv, const void *q, int64_t ldq, const void *k, const void *v,
                                 int64_t ldkv, const void *out, const void *dout, int64_t ldo, const float *lse, const uint8_t *key_mask,
                                 bool causal, float scale, int B, int H, int Tq, int Tk, int D) {
    const int BH = B * H;
    if (!BH || !Tq || !D) return;
    const int64_t rows = (int64_t)BH * Tq;
    float *delta = (float *)cuda_scratch(s, (size_t)rows * sizeof(float));
    DISPATCH(t, T, {
        const T *q_ = (const T *)q, *k_ = (const T *)k, *v_ = (const T *)v, *out_ = (const T *)out, *dout_ = (const T *)dout;
        const bool vec = vec_ok<T>(WIDTH<T>, D, dq, dk, dv, q, k, v, out, dout) && vec_ok<T>(WIDTH<T>, ldo) && vec_ok<T>(WIDTH<T>, ldq) &&
                         vec_ok<T>(WIDTH<T>, ldkv);
        const Problem p = {key_mask, ldq, ldkv, ldo, scale, H, Tq, Tk, D, 0, causal, vec};
        if (vec) LAUNCH((attention_delta<T, WIDTH<T>>), grid_for(rows, 32), 256, s, delta, out_, dout_, ldo, rows, H, Tq, D);
        else LAUNCH((attention_delta<T, 1>), grid_for(rows, 32), 256, s, delta, out_, dout_, ldo, rows, H, Tq, D);
        if (mma_takes(t, scale, D, p)) {
            const bf16 *qb = (const bf16 *)q, *kb = (const bf16 *)k, *vb = (const bf16 *)v, *db = (const bf16 *)dout;
            if (D == 32) bwd_mma<32>(s, (bf16 *)dq, (bf16 *)dk, (bf16 *)dv, qb, kb, vb, db, lse, delta, p, BH);
            else bwd_mma<64>(s, (bf16 *)dq, (bf16 *)dk, (bf16 *)dv, qb, kb, vb, db, lse, delta, p, BH);
        } else if (D <= 32) bwd_f32<T, 32>(s, (T *)dq, (T *)dk, (T *)dv, q_, k_, v_, dout_, lse, delta, p, BH);
        else if (D <= 64) bwd_f32<T, 64>(s, (T *)dq, (T *)dk, (T *)dv, q_, k_, v_, dout_, lse, delta, p, BH);
        else bwd_f32<T, 128>(s, (T *)dq, (T *)dk, (T *)dv, q_, k_, v_, dout_, lse, delta, p, BH);
    });
}
