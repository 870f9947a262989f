/* twins.cu -- cuda.cuh's own helpers, for tests: test_emu.c compares each with a plain loop. */
#include "kernels/cuda/cuda.cuh"

/* c (16,8) = a (16,16) b, by way of asynchronous copies, ldmatrix and mma. b is (16,8), or its transpose (8,16). */
__global__ void matrix_product(float *c, const bf16 *a, const bf16 *b, bool transposed) {
    SHARED(bf16, tile_a, 256);
    SHARED(bf16, tile_b, 256);
    const int lane = (int)threadIdx.x;
    cp_async16(tile_a + 8 * lane, a + 8 * lane, true);
    cp_async_commit();
    cp_async16(tile_b + 8 * lane, b + 8 * (lane % 16), lane < 16); /* the rest is zeros, and not used */
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t ra[4], rb[4];
    float r[4] = {0, 0, 0, 0};
    ldmatrix_x4(ra, tile_a + lane % 16 * 16 + lane / 16 * 8);
    /* Matrices 0 and 1 of b are its rows 0..7 and 8..15 as columns of registers want them. */
    if (transposed) ldmatrix_x4(rb, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
    else ldmatrix_x4_trans(rb, tile_b + 8 * lane);
    mma_m16n8k16(r, ra, rb);
    for (int i = 0; i < 4; i++) c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = r[i];
}
extern "C" void K(matrix_product)(Stream *s, float *c, const void *a, const void *b, bool transposed) {
    LAUNCH(matrix_product, 1, 32, s, c, (const bf16 *)a, (const bf16 *)b, transposed);
}

/* Four reductions one after the other, as they must be allowed to follow: out[thread][0..3]. */
__global__ void reductions(double *out, const float *x) {
    const float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    double *o = out + (int64_t)(blockIdx.x * blockDim.x + threadIdx.x) * 4;
    o[0] = block_sum(v);
    o[1] = block_max(v);
    o[2] = block_sum((double)v);
    o[3] = block_sum(v * v);
}
extern "C" void K(reductions)(Stream *s, double *out, const float *x, int blocks, int threads) {
    LAUNCH(reductions, blocks, threads, s, out, x);
}

/* Each lane's value from others, by every kind of shuffle: out[lane][0..4]. */
__global__ void shuffles(float *out, const float *x) {
    const int lane = (int)threadIdx.x;
    const float v = x[lane];
    out[5 * lane] = __shfl_sync(ALL_LANES, v, lane / 2);
    out[5 * lane + 1] = __shfl_xor_sync(ALL_LANES, v, 5, 8);
    out[5 * lane + 2] = __shfl_down_sync(ALL_LANES, v, 3, 8);
    out[5 * lane + 3] = __shfl_up_sync(ALL_LANES, v, 3, 8);
    out[5 * lane + 4] = (float)__popc(__ballot_sync(ALL_LANES, v > 0));
}
extern "C" void K(shuffles)(Stream *s, float *out, const float *x) { LAUNCH(shuffles, 1, 32, s, out, x); }

/* y[i] = x reversed in the block, through dynamic shared memory. */
__global__ void reversed(float *y, const float *x) {
    DYNAMIC_SHARED(float, tile);
    const int n = (int)blockDim.x, t = (int)threadIdx.x;
    for (int k = 0; k < 64; k++) tile[k * n + t] = x[k * n + t];
    __syncthreads();
    for (int k = 0; k < 64; k++) y[k * n + t] = tile[64 * n - 1 - (k * n + t)];
}
extern "C" void K(reversed)(Stream *s, float *y, const float *x, int threads) {
    LAUNCH_SMEM(reversed, 1, threads, (size_t)threads * 64 * sizeof(float), s, y, x);
}
