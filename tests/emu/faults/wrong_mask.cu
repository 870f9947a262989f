/* Half a warp shuffles, and names the other half too. */
#include "kernels/cuda/cuda.cuh"

__global__ void pairs(float *y, const float *x, int n) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float v = i < n ? x[i] : 0;
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(ALL_LANES, v, 1);
    if (i < n) y[i] = v;
}

extern "C" void emu_wrong_mask(Stream *s, float *y, const float *x, int n) { LAUNCH(pairs, ceil_div(n, 256), 256, s, y, x, n); }
