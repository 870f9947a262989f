/* attention_pack.cu -- the visible keys to the front, and their gradients back: around cuDNN's attention.
 * Contracts: attention_cudnn.h.
 *
 * Memory: k and v are read and written once, and their gradients read once and added to. Rows of C values
 * (a multiple of 8, aligned: attention_cudnn.c sees to that) move by 16 bytes. The order is one warp's work
 * for each batch, 32 keys at a time by ballots.
 */
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cuda.cuh"

__global__ void __launch_bounds__(32)
    attention_order(int32_t *order, int32_t *length, uint8_t *blind, const uint8_t *key_mask, int Tk) {
    const int lane = (int)threadIdx.x;
    const uint8_t *mask = key_mask + (int64_t)blockIdx.x * Tk;
    order += (int64_t)blockIdx.x * Tk;
    int n = 0;
    for (int first = 0; first < Tk; first += 32) {
        const int j = first + lane;
        const bool visible = j < Tk && mask[j];
        const unsigned all = __ballot_sync(ALL_LANES, visible);
        if (visible) order[n + __popc(all & ((1u << lane) - 1))] = j;
        n += __popc(all);
    }
    for (int r = n + lane; r < Tk; r += 32) order[r] = -1;
    if (lane == 0) {
        length[blockIdx.x] = max(n, 1);
        blind[blockIdx.x] = n == 0;
    }
}

/* Chunk i of B Tk rows of `chunks`. */
__global__ void __launch_bounds__(256)
    attention_pack(bf16 *pk, bf16 *pv, const bf16 *k, const bf16 *v, int64_t ldkv, const int32_t *order,
                   int Tk, int64_t chunks, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t row = i / chunks, from = row / Tk * Tk + order[row], at = from * ldkv + i % chunks * 8;
        Vec<bf16, 8> a = {}, b = {};
        if (order[row] >= 0) a = load<8>(k + at), b = load<8>(v + at);
        store(pk + i * 8, a);
        store(pv + i * 8, b);
    }
}

__device__ __forceinline__ void add_chunk(bf16 *to, const bf16 *from) {
    Vec<bf16, 8> a = load<8>(to);
    const Vec<bf16, 8> b = load<8>(from);
#pragma unroll
    for (int j = 0; j < 8; j++) a.v[j] = from_f32<bf16>(to_f32(a.v[j]) + to_f32(b.v[j]));
    store(to, a);
}

/* A key is one row's, so no two threads add to the same place. */
__global__ void __launch_bounds__(256)
    attention_unpack(bf16 *dk, bf16 *dv, int64_t ldkv, const bf16 *pdk, const bf16 *pdv, const int32_t *order,
                     int Tk, int64_t chunks, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t row = i / chunks, to = row / Tk * Tk + order[row], at = to * ldkv + i % chunks * 8;
        if (order[row] < 0) continue;
        if (dk) add_chunk(dk + at, pdk + i * 8);
        if (dv) add_chunk(dv + at, pdv + i * 8);
    }
}

__global__ void __launch_bounds__(256) attention_fill(int32_t *x, int32_t value, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        x[i] = value;
}

__global__ void __launch_bounds__(256) attention_blind(float *lse, const uint8_t *blind, int64_t rows) {
    if (!blind[blockIdx.x]) return; /* the whole block */
    for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) lse[blockIdx.x * rows + i] = -INFINITY;
}

__global__ void __launch_bounds__(256) attention_stats(float *stats, const float *lse, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        stats[i] = lse[i] == -INFINITY ? INFINITY : lse[i];
}

/* ---- launches: B, Tk, C, n > 0 -------------------------------------------------------------------- */

extern "C" void K(attention_order)(Stream *s, int32_t *order, int32_t *length, uint8_t *blind,
                                   const uint8_t *key_mask, int B, int Tk) {
    LAUNCH(attention_order, B, 32, s, order, length, blind, key_mask, Tk);
}

extern "C" void K(attention_pack)(Stream *s, void *pk, void *pv, const void *k, const void *v, int64_t ldkv,
                                  const int32_t *order, int B, int Tk, int64_t C) {
    const int64_t n = (int64_t)B * Tk * (C / 8);
    LAUNCH(attention_pack, grid_for(n, 256), 256, s, (bf16 *)pk, (bf16 *)pv, (const bf16 *)k, (const bf16 *)v,
           ldkv, order, Tk, C / 8, n);
}

extern "C" void K(attention_unpack)(Stream *s, void *dk, void *dv, int64_t ldkv, const void *pdk,
                                    const void *pdv, const int32_t *order, int B, int Tk, int64_t C) {
    const int64_t n = (int64_t)B * Tk * (C / 8);
    LAUNCH(attention_unpack, grid_for(n, 256), 256, s, (bf16 *)dk, (bf16 *)dv, ldkv, (const bf16 *)pdk,
           (const bf16 *)pdv, order, Tk, C / 8, n);
}

extern "C" void K(attention_fill)(Stream *s, int32_t *x, int32_t value, int64_t n) {
    LAUNCH(attention_fill, grid_for(n, 256), 256, s, x, value, n);
}

extern "C" void K(attention_blind)(Stream *s, float *lse, const uint8_t *blind, int B, int64_t rows) {
    LAUNCH(attention_blind, B, 256, s, lse, blind, rows);
}

extern "C" void K(attention_stats)(Stream *s, float *stats, const float *lse, int64_t n) {
    LAUNCH(attention_stats, grid_for(n, 256), 256, s, stats, lse, n);
}
