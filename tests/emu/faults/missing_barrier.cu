/* The block's values in reverse order, through shared memory: a barrier is missing between the writes and the reads. */
#include "kernels/cuda/cuda.cuh"

__global__ void reverse(float *y, const float *x, int n) {
    SHARED(float, tile, 256);
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    tile[threadIdx.x] = i < n ? x[i] : 0;
    if (i < n) y[i] = tile[255 - threadIdx.x];
}

extern "C" void emu_missing_barrier(Stream *s, float *y, const float *x, int n) { LAUNCH(reverse, ceil_div(n, 256), 256, s, y, x, n); }
